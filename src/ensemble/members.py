"""Members of the ensemble: loaded by id, and checked to be paired with the truth."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from src import artifacts, paths
from src.metrics import l2_normalize

FEW = 10  # rows that are too few to tell whether they were shuffled
PAIRED = 3.0  # standard errors by which rows must fit their own partner better than a stranger

Members = Mapping[str, np.ndarray]  # name -> (n, d) float32, the same rows in the same order


# --- the members ---


def member_names(output: Path) -> tuple[list[str], list[str]]:
    """The predictions of Model A and those of Model B that stages 02 and 03 left, by name."""
    found = []
    for file, alone in ((paths.MEMBERS_A, "model_a"), (paths.MEMBERS_B, "model_b")):
        found.append(
            artifacts.load_json(output / file)["members"] if (output / file).exists() else [alone]
        )
    both = set(found[0]) & set(found[1])
    if both:
        raise ValueError(f"members of Model A and of Model B share the names {sorted(both)}")
    return found[0], found[1]


def load_members(output: Path, ids: Sequence[str], what: str) -> dict[str, np.ndarray]:
    """Every member's `what` ("oof" or "test") predictions of `ids`, in that order, those of Model A first."""
    templates = {"oof": (paths.OOF, paths.OOF_B), "test": (paths.TEST, paths.TEST_B)}[what]
    a, b = member_names(output)
    bases = {name: output / templates[0].format(row=name) for name in a}
    bases |= {name: output / templates[1].format(member=name) for name in b}
    return {name: artifacts.load_embeddings(base, ids)[1] for name, base in bases.items()}


def check_pairing(
    reference: np.ndarray, members: Members, blocks: np.ndarray | None = None
) -> pl.DataFrame:
    """Whether row i of each member belongs to row i of `reference`: the guard against ids that were shuffled between artifacts.

    A row's own cosine must exceed its mean cosine with all rows of its block by `PAIRED` standard errors of that difference; a
    block of fewer than `FEW` rows cannot tell.
    Returns member, block, contrast, errors. Raises ValueError naming the members and blocks that are not better than shuffled.
    """
    blocks = np.zeros(len(reference), dtype=np.int64) if blocks is None else blocks
    found = []
    for name, rows in members.items():
        for block in np.unique(blocks):
            mine = l2_normalize(reference[blocks == block])
            own = np.einsum(
                "nd,nd->n", mine - mine.mean(axis=0), l2_normalize(rows[blocks == block])
            ).astype(np.float64)
            spread = own.std() / np.sqrt(len(own))
            found.append((name, int(block), own.mean(), own.mean() / max(spread, 1e-12)))
    schema = {"member": pl.String, "block": pl.Int64, "contrast": pl.Float64, "errors": pl.Float64}
    table = pl.DataFrame(found, schema=schema, orient="row")
    few = [
        block
        for block, rows in zip(*np.unique(blocks, return_counts=True), strict=True)
        if rows < FEW
    ]
    wrong = table.filter((pl.col("errors") < PAIRED) & ~pl.col("block").is_in(few))
    if len(wrong):
        examples = [
            f"{name} in block {block}: {contrast:+.4f}, {errors:+.1f} standard errors"
            for name, block, contrast, errors in wrong.head(3).iter_rows()
        ]
        raise ValueError(
            f"{len(wrong)} of {len(table)} blocks of rows fit their own partner no better than a stranger, e.g. "
            f"{examples}: ids were shuffled between two artifacts, or the member knows nothing of the image"
        )
    return table
