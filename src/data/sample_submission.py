"""The competition's sample_submission.csv: its ids, in order."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from src import artifacts
from src.data.layouts.text import decode, open_text, printable
from src.paths import display_path

WIDTH = 384
HEADER = ["imgId_eId", "val"]


def sample_ids(sample: Path) -> list[str]:
    """The image ids of a sample_submission.csv in its order.

    ValueError unless each has rows 0..383, in order.
    """
    sample = Path(sample)
    names = read_cells(sample)[HEADER[0]]
    if names.is_empty():
        raise ValueError(f"{display_path(sample)}: no rows below the header")

    ids = whole_ids(names)
    if ids is not None:
        return ids

    # something is wrong: count the rows of each id to say what
    id_of_row = names.str.extract(r"^(.*)_\d+$", 1).alias("id")
    lengths = pl.DataFrame(id_of_row).group_by("id", maintain_order=True).len()
    refuse(display_path(sample), length_problems(lengths))

    row = first_true(names != cell_names(lengths["id"].to_list()))
    raise ValueError(
        f"{display_path(sample)}: line {row + 2} is {names[row]!r}, not in order of eId 0..383"
    )


def first_true(mask: pl.Series) -> int:
    """The first row that is true; 0 where none is."""
    return int(mask.arg_max() or 0)


def whole_ids(names: pl.Series) -> list[str] | None:
    """The ids in order where `names` are `<id>_0` .. `<id>_383` of distinct ids, else None.

    It takes a second for six million names.
    """
    heads = names.gather_every(WIDTH)
    if len(names) % WIDTH or not heads.str.ends_with("_0").all() or heads.n_unique() != len(heads):
        return None

    ids = heads.str.strip_suffix("_0").to_list()
    return ids if names.equals(cell_names(ids)) else None


def cell_names(ids: Sequence[str]) -> pl.Series:
    """`<id>_0` .. `<id>_383` for each id, in order."""
    frame = pl.DataFrame({"id": pl.Series(ids, dtype=pl.String)})
    numbers = pl.DataFrame({"number": pl.Series([str(i) for i in range(WIDTH)])})
    cells = frame.join(numbers, how="cross", maintain_order="left_right")
    return cells.select(pl.concat_str("id", "number", separator="_").alias(HEADER[0])).to_series()


def read_cells(path: Path) -> pl.DataFrame:
    """The rows of a submission's CSV, (imgId_eId, val); a value that is not a number is null.

    Raises FileNotFoundError, ValueError for another header or a file that cannot be read.
    """
    if not path.exists():
        raise FileNotFoundError(f"{display_path(path)} does not exist")

    with open_text(path) as lines:
        header = printable(lines.readline().strip())
    if header != ",".join(HEADER):
        raise ValueError(
            f"{display_path(path)}: the header is {header!r}, must be {','.join(HEADER)!r}"
        )

    # values that are no number become null here and are counted with the ones that are not finite
    schema = {HEADER[0]: pl.String, HEADER[1]: pl.Float32}
    with artifacts.readable(path):
        return pl.read_csv(_as_utf8(path.read_bytes()), schema=schema, ignore_errors=True)


def _as_utf8(content: bytes) -> bytes:
    """A text file's content in the one encoding that polars reads."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return decode(content).encode("utf-8")
    return content


def length_problems(lengths: pl.DataFrame) -> list[str]:
    """What is wrong with the rows per id, (id, len), a line each.

    A multiple of 384 is an id that occurs twice, any other number a vector of that length.
    """
    unnamed = lengths.filter(pl.col("id").is_null())
    named = lengths.filter(pl.col("id").is_not_null())
    doubled = named.filter((pl.col("len") > WIDTH) & (pl.col("len") % WIDTH == 0))
    wrong = named.filter(pl.col("len") % WIDTH != 0)

    problems = []
    if len(unnamed):
        problems.append(f"{unnamed['len'].sum()} rows are not named <imgId>_<eId>")
    if len(doubled):
        problems.append(
            f"{len(doubled)} ids occur more than once, e.g. {doubled['id'][:3].to_list()}"
        )
    if len(wrong):
        examples = [f"{identifier}: {n}" for identifier, n in wrong.head(3).iter_rows()]
        problems.append(f"{len(wrong)} vectors are not {WIDTH} long, e.g. {examples}")
    return problems


def refuse(what: str, problems: list[str]) -> None:
    """Raise one ValueError that begins with `what` and lists the problems, where there are any."""
    if problems:
        raise ValueError(f"{what}: " + "; ".join(problems))
