"""Members of the ensemble: loaded by id, and checked to be paired with the truth."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from src import artifacts, paths
from src.metrics import l2_normalize

FEW = 10  # with fewer rows a shuffle cannot be told from chance
PAIRED = 3.0  # standard errors by which rows must fit their own partner better than other rows

Members = Mapping[str, np.ndarray]  # name -> (n, d) float32, the same rows in the same order


def member_names(output: Path) -> tuple[list[str], list[str]]:
    """The predictions of Model A and those of Model B that stages 02 and 03 left, by name."""
    of_a = _listed(output / paths.MEMBERS_A, default="model_a")
    of_b = _listed(output / paths.MEMBERS_B, default="model_b")

    both = set(of_a) & set(of_b)
    if both:
        raise ValueError(f"members of Model A and of Model B share the names {sorted(both)}")
    return of_a, of_b


def _listed(file: Path, *, default: str) -> list[str]:
    return artifacts.load_json(file)["members"] if file.exists() else [default]


def load_members(output: Path, ids: Sequence[str], what: str) -> dict[str, np.ndarray]:
    """Every member's `what` ("oof" or "test") predictions of `ids`, in that order, those of Model A
    first.
    """
    templates = {"oof": (paths.OOF, paths.OOF_B), "test": (paths.TEST, paths.TEST_B)}[what]
    of_a, of_b = member_names(output)

    bases = {name: output / templates[0].format(variant=name) for name in of_a}
    bases |= {name: output / templates[1].format(member=name) for name in of_b}
    return {name: artifacts.load_embeddings(base, ids)[1] for name, base in bases.items()}


def check_pairing(
    reference: np.ndarray, members: Members, blocks: np.ndarray | None = None
) -> pl.DataFrame:
    """Whether row i of each member belongs to row i of `reference`: the guard against ids shuffled
    between artifacts.

    A row's own cosine must exceed its mean cosine with all rows of its block by `PAIRED` standard
    errors of that difference; blocks of fewer than `FEW` rows are not judged. Returns member,
    block, contrast, errors. Raises ValueError naming the members and blocks that are not better
    than shuffled.
    """
    blocks = np.zeros(len(reference), dtype=np.int64) if blocks is None else blocks

    # by how many standard errors a row fits its own partner better than the others of its block
    rows = []
    for name, member in members.items():
        for block in np.unique(blocks):
            mine = blocks == block
            contrast = _contrasts(reference[mine], member[mine])
            error = max(contrast.std() / np.sqrt(len(contrast)), 1e-12)
            rows.append((name, int(block), contrast.mean(), contrast.mean() / error))

    schema = {"member": pl.String, "block": pl.Int64, "contrast": pl.Float64, "errors": pl.Float64}
    table = pl.DataFrame(rows, schema=schema, orient="row")

    # too few rows cannot be told from chance
    sizes = zip(*np.unique(blocks, return_counts=True), strict=True)
    few = [block for block, size in sizes if size < FEW]
    wrong = table.filter((pl.col("errors") < PAIRED) & ~pl.col("block").is_in(few))
    if len(wrong):
        examples = [
            f"{name} in block {block}: {contrast:+.4f}, {errors:+.1f} standard errors"
            for name, block, contrast, errors in wrong.head(3).iter_rows()
        ]
        raise ValueError(
            f"{len(wrong)} of {len(table)} blocks of rows fit their own partner no better than "
            f"another row's, e.g. {examples}: ids were shuffled between two artifacts, or the "
            "member knows nothing of the image"
        )
    return table


def _contrasts(reference: np.ndarray, member: np.ndarray) -> np.ndarray:
    """(n,) float64: each row's cosine with its own reference, less its mean cosine with all of
    them.
    """
    unit_rows = l2_normalize(reference)
    own = np.einsum("nd,nd->n", unit_rows - unit_rows.mean(axis=0), l2_normalize(member))
    return own.astype(np.float64)
