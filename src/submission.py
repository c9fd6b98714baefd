"""The submission's files, and a check that reads them back from disk before anybody uploads them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from src import artifacts
from src.paths import shown

WIDTH = 384
HEADER = ["imgId_eId", "val"]


def write(
    ids: Sequence[str],
    embeddings: np.ndarray,
    path: Path,
    sample: Path | None = None,
    confidence: np.ndarray | None = None,
) -> None:
    """Write `<path>.csv` (imgId_eId,val), `<path>.parquet` (id, embedding, confidence if given), `<path>.npy` with its ids.

    Rows stand in the order of `sample` (a sample_submission.csv), else of sorted ids. Raises ValueError, and writes
    nothing, when `embeddings` is not (n, 384) finite float32, the ids are not exactly those of `sample`, or `confidence` is
    not (n,) within -1..1.
    """
    path = _stem(path)
    artifacts.check_embeddings(ids, embeddings, shown(path))
    if embeddings.shape[1] != WIDTH:
        raise ValueError(f"{shown(path)}: vectors are {embeddings.shape[1]} long, must be {WIDTH}")
    order = sorted(ids) if sample is None else sample_ids(sample)
    against = f"{shown(path)} against {shown(Path(sample))}" if sample else shown(path)
    _raise(
        against, _compare_ids(pl.Series(order, dtype=pl.String), pl.Series(ids, dtype=pl.String))
    )
    if confidence is not None:
        _raise(shown(path), _confidence(ids, confidence))
    places = artifacts.positions(ids, order, shown(path))
    x = np.ascontiguousarray(embeddings[places])
    artifacts.save_table(
        _file(path, ".csv"), pl.DataFrame({HEADER[0]: _cell_names(order), HEADER[1]: x.reshape(-1)})
    )
    vectors = pl.Series("embedding", x, dtype=pl.Array(pl.Float32, WIDTH))
    columns = {"id": pl.Series(order, dtype=pl.String), "embedding": vectors}
    if confidence is not None:
        columns["confidence"] = pl.Series(confidence[places], dtype=pl.Float32)
    artifacts.save_table(_file(path, ".parquet"), pl.DataFrame(columns))
    artifacts.save_embeddings(path, order, x)


def check(path: Path, sample: Path | None = None) -> None:
    """Read the files of `write` back and raise a ValueError that counts and shows everything wrong with them.

    Wrong is: another header; an id missing, extra or doubled (against `sample`, else against the Parquet file); a vector
    not 384 long; a value not finite; rows in another order; values that differ between the files; a confidence beyond -1..1.
    """
    path = _stem(path)
    csv, parquet = _read_csv(_file(path, ".csv")), _read_parquet(_file(path, ".parquet"))
    order = pl.Series(
        parquet["id"].to_list() if sample is None else sample_ids(sample), dtype=pl.String
    )
    file = shown(_file(path, ".csv"))
    if (
        _whole_ids(csv[HEADER[0]]) != order.to_list()
        or not csv["val"].is_finite().fill_null(False).all()
    ):
        _diagnose(csv, order, file, f"{file} against {shown(Path(sample))}" if sample else file)
    x = csv["val"].to_numpy().reshape(-1, WIDTH)
    _check_copies(path, order, parquet, x)
    if "confidence" in parquet.columns:
        _raise(
            shown(_file(path, ".parquet")),
            _confidence(parquet["id"].to_list(), parquet["confidence"].to_numpy()),
        )


def sample_ids(sample: Path) -> list[str]:
    """The picture ids of a sample_submission.csv in its order. ValueError unless each has rows 0..383, in order."""
    frame = _read_csv(Path(sample))
    if frame.is_empty():
        raise ValueError(f"{shown(Path(sample))}: no rows below the header")
    whole = _whole_ids(frame[HEADER[0]])
    if whole is not None:
        return whole
    cells = frame.select(pl.col(HEADER[0]).str.extract(r"^(.*)_\d+$", 1).alias("id"))
    lengths = cells.group_by("id", maintain_order=True).len()
    _raise(shown(Path(sample)), _lengths(lengths))
    ids = lengths["id"].to_list()
    where = int((frame[HEADER[0]] != _cell_names(ids)).arg_max())
    raise ValueError(
        f"{shown(Path(sample))}: line {where + 2} is {frame[HEADER[0]][where]!r}, not in order of eId 0..383"
    )


def _whole_ids(names: pl.Series) -> list[str] | None:
    """The ids in order where `names` are `<id>_0` .. `<id>_383` of distinct ids, else None: six million names in a second."""
    heads = names.gather_every(WIDTH)
    if len(names) % WIDTH or not heads.str.ends_with("_0").all() or heads.n_unique() != len(heads):
        return None
    ids = heads.str.strip_suffix("_0").to_list()
    return ids if names.equals(_cell_names(ids)) else None


def _diagnose(csv: pl.DataFrame, order: pl.Series, file: str, against: str) -> None:
    """Say what is wrong with a file whose names or values are not those of `order`."""
    cells = csv.select(pl.col(HEADER[0]).str.extract(r"^(.*)_\d+$", 1).alias("id"), pl.col("val"))
    lengths = cells.group_by("id", maintain_order=True).len()
    _raise(against, _compare_ids(order, lengths["id"]) + _lengths(lengths) + _values(cells))
    where = int((csv[HEADER[0]] != _cell_names(order.to_list())).arg_max())
    raise ValueError(
        f"{file}: rows are out of order from line {where + 2} ({csv[HEADER[0]][where]!r})"
    )


def _cell_names(ids: Sequence[str]) -> pl.Series:
    """`<id>_0` .. `<id>_383` for each id, in order."""
    frame = pl.DataFrame({"id": pl.Series(ids, dtype=pl.String)})
    numbers = pl.DataFrame({"number": pl.Series([str(i) for i in range(WIDTH)])})
    return frame.join(numbers, how="cross", maintain_order="left_right").select(
        pl.concat_str("id", "number", separator="_").alias(HEADER[0])
    )[HEADER[0]]


def _read_csv(path: Path) -> pl.DataFrame:
    if not path.exists():
        raise FileNotFoundError(f"{shown(path)} does not exist")
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        header = lines.readline().strip()
    if header != ",".join(HEADER):
        raise ValueError(f"{shown(path)}: the header is {header!r}, must be {','.join(HEADER)!r}")
    # values that are no number become null here and are counted with the ones that are not finite
    with artifacts.readable(path):
        return pl.read_csv(
            path, schema={HEADER[0]: pl.String, HEADER[1]: pl.Float32}, ignore_errors=True
        )


def _read_parquet(path: Path) -> pl.DataFrame:
    table = artifacts.load_table(path)
    found = {name: table.schema.get(name) for name in ("id", "embedding")}
    if found["id"] != pl.String or not isinstance(found["embedding"], pl.Array):
        raise ValueError(
            f"{shown(path)}: columns are {dict(table.schema)}, must be id (text) and embedding (arrays of {WIDTH})"
        )
    return table


def _compare_ids(wanted: pl.Series, have: pl.Series) -> list[str]:
    doubled = have.filter(have.is_duplicated()).unique(maintain_order=True)
    differences = {
        "missing": wanted.filter(~wanted.is_in(have.implode())),
        "extra": have.filter(~have.is_in(wanted.implode())).unique(maintain_order=True),
        "doubled": doubled,
    }
    return [
        f"{len(ids)} ids {what}, e.g. {ids[:3].to_list()}"
        for what, ids in differences.items()
        if len(ids)
    ]


def _lengths(lengths: pl.DataFrame) -> list[str]:
    """Problems with rows a picture: a multiple of 384 is an id given twice, any other number a vector of that length."""
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


def _values(cells: pl.DataFrame) -> list[str]:
    bad = cells.filter(~pl.col("val").is_finite().fill_null(False))
    examples = bad["id"].unique(maintain_order=True)[:3].to_list()
    return [f"{len(bad)} values are not finite, e.g. of ids {examples}"] if len(bad) else []


def _confidence(ids: Sequence[str], confidence: np.ndarray) -> list[str]:
    if confidence.shape != (len(ids),):
        return [f"confidence of shape {confidence.shape} for {len(ids)} ids"]
    bad = np.flatnonzero(~(np.abs(confidence) <= 1))
    examples = {ids[i]: round(float(confidence[i]), 3) for i in bad[:3]}
    return [f"{len(bad)} confidences are not within -1..1, e.g. {examples}"] if len(bad) else []


def _check_copies(path: Path, order: pl.Series, parquet: pl.DataFrame, x: np.ndarray) -> None:
    ids, array = artifacts.load_embeddings(path)
    copies = {
        ".parquet": (parquet["id"].to_list(), parquet["embedding"].to_numpy()),
        ".npy": (ids, array),
    }
    for suffix, (names, values) in copies.items():
        file = _file(path, suffix)
        if values.ndim != 2 or values.shape[1] != WIDTH:
            raise ValueError(
                f"{shown(file)}: vectors of shape {values.shape}, must be (n, {WIDTH})"
            )
        _raise(shown(file), _compare_ids(order, pl.Series(names, dtype=pl.String)))
        if names != order.to_list():
            raise ValueError(
                f"{shown(file)}: ids are not in the order of {shown(_file(path, '.csv'))}"
            )
        differ = np.flatnonzero((values != x).any(axis=1))
        if len(differ):
            example = names[differ[0]]
            raise ValueError(
                f"{shown(file)}: {len(differ)} vectors differ from {shown(_file(path, '.csv'))}, e.g. {example!r}"
            )


def _raise(what: str, problems: list[str]) -> None:
    if problems:
        raise ValueError(f"{what}: " + "; ".join(problems))


def _file(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _stem(path: Path) -> Path:
    path = Path(path)
    return path.with_suffix("") if path.suffix in (".csv", ".parquet", ".npy") else path
