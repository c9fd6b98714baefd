"""The competition's sample_submission.csv: its ids, in order."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from src import artifacts
from src.paths import display_path

WIDTH = 384
HEADER = ["imgId_eId", "val"]


def sample_ids(sample: Path) -> list[str]:
    """The image ids of a sample_submission.csv in its order. ValueError unless each has rows 0..383, in order."""
    frame = _read_csv(Path(sample))
    if frame.is_empty():
        raise ValueError(f"{display_path(Path(sample))}: no rows below the header")
    whole = _whole_ids(frame[HEADER[0]])
    if whole is not None:
        return whole
    cells = frame.select(pl.col(HEADER[0]).str.extract(r"^(.*)_\d+$", 1).alias("id"))
    lengths = cells.group_by("id", maintain_order=True).len()
    _raise(display_path(Path(sample)), _lengths(lengths))
    ids = lengths["id"].to_list()
    where = int((frame[HEADER[0]] != _cell_names(ids)).arg_max())
    raise ValueError(
        f"{display_path(Path(sample))}: line {where + 2} is {frame[HEADER[0]][where]!r}, not in order of eId 0..383"
    )


def _whole_ids(names: pl.Series) -> list[str] | None:
    """The ids in order where `names` are `<id>_0` .. `<id>_383` of distinct ids, else None: six million names in a second."""
    heads = names.gather_every(WIDTH)
    if len(names) % WIDTH or not heads.str.ends_with("_0").all() or heads.n_unique() != len(heads):
        return None
    ids = heads.str.strip_suffix("_0").to_list()
    return ids if names.equals(_cell_names(ids)) else None


def _cell_names(ids: Sequence[str]) -> pl.Series:
    """`<id>_0` .. `<id>_383` for each id, in order."""
    frame = pl.DataFrame({"id": pl.Series(ids, dtype=pl.String)})
    numbers = pl.DataFrame({"number": pl.Series([str(i) for i in range(WIDTH)])})
    return frame.join(numbers, how="cross", maintain_order="left_right").select(
        pl.concat_str("id", "number", separator="_").alias(HEADER[0])
    )[HEADER[0]]


def _read_csv(path: Path) -> pl.DataFrame:
    if not path.exists():
        raise FileNotFoundError(f"{display_path(path)} does not exist")
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        header = lines.readline().strip()
    if header != ",".join(HEADER):
        raise ValueError(
            f"{display_path(path)}: the header is {header!r}, must be {','.join(HEADER)!r}"
        )
    # values that are no number become null here and are counted with the ones that are not finite
    with artifacts.readable(path):
        return pl.read_csv(
            path, schema={HEADER[0]: pl.String, HEADER[1]: pl.Float32}, ignore_errors=True
        )


def _lengths(lengths: pl.DataFrame) -> list[str]:
    """Problems with rows an image: a multiple of 384 is an id given twice, any other number a vector of that length."""
    unnamed = lengths.filter(pl.col("id").is_null())
    named = lengths.filter(pl.col("id").is_not_null())
    doubled = named.filter((pl.col("len") > WIDTH) & (pl.col("len") % WIDTH == 0))
    wrong = named.filter(pl.col("len") % WIDTH != 0)
    problems = [f"{unnamed['len'].sum()} rows are not named <imgId>_<eId>"] if len(unnamed) else []
    if len(doubled):
        problems.append(f"{len(doubled)} ids doubled, e.g. {doubled['id'][:3].to_list()}")
    if len(wrong):
        examples = [f"{identifier}: {n}" for identifier, n in wrong.head(3).iter_rows()]
        problems.append(f"{len(wrong)} vectors are not {WIDTH} long, e.g. {examples}")
    return problems


def _raise(what: str, problems: list[str]) -> None:
    if problems:
        raise ValueError(f"{what}: " + "; ".join(problems))
