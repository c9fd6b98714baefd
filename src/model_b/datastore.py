"""Model B's prompts on disk, each with a key by one or more CLIPs and a value by the sentence
encoder.

Shards of half or single precision, memory-mapped and only ever appended to: a prompt is encoded
once, and a datastore larger than memory is read shard by shard. What one run searches are views of
its columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from tqdm import tqdm

from src import dask_workers, knn
from src.artifacts import atomic, load_array, load_json, load_table, save_json, save_table
from src.metrics import l2_normalize
from src.paths import display_path

if TYPE_CHECKING:
    from distributed import Client

DTYPES = ("float16", "float32")
INDEX = "store.json"  # lists the shards in order; written last, so an unfinished shard is not in it
VALUES = "values"
SHARD_ROWS = 50_000

Encode = Callable[[list[str]], np.ndarray]  # prompts -> (n, d) float32 unit rows
ShardFiles = tuple[Path, Path]  # keys and values of a precomputed shard


@dataclass(frozen=True)
class Datastore:
    """A folder of shards. Row i of `prompts()` belongs to row i of every column: `values`, and keys
    by each CLIP.
    """

    folder: Path
    dtype: str
    sentence_model: str
    shards: tuple[dict, ...]  # name, rows, and for a precomputed shard its files by column

    def __len__(self) -> int:
        return sum(shard["rows"] for shard in self.shards)

    def prompts(self) -> pl.DataFrame:
        """The table `prompt` of all rows, in order; null where a shard came without its text."""
        empty = pl.DataFrame(schema={"prompt": pl.String})
        return pl.concat([empty, *(load_table(self._prompt_file(shard)) for shard in self.shards)])

    def column(self, name: str) -> list[np.ndarray]:
        """The memory maps of "values" or of a CLIP's keys, one a shard. FileNotFoundError where one
        is missing.
        """
        return [load_array(self._column_file(shard, name), "r") for shard in self.shards]

    def _prompt_file(self, shard: dict) -> Path:
        return self.folder / f"{shard['name']}.parquet"

    def _column_file(self, shard: dict, name: str) -> Path:
        own_file = self.folder / f"{shard['name']}.{name}.npy"
        return Path(shard.get("files", {}).get(name, own_file))


def open_datastore(
    folder: Path, *, dtype: str | None = None, sentence_model: str | None = None
) -> Datastore:
    """The datastore in `folder`; where there is none, an empty one of `dtype` with values by
    `sentence_model`.

    FileNotFoundError when there is none and these two are not given; ValueError when it was started
    with others.
    """
    if not (folder / INDEX).exists() and dtype and sentence_model:
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r} is not one of {DTYPES}")
        return Datastore(folder, dtype, sentence_model, ())

    index = load_json(folder / INDEX)
    if not {"dtype", "sentence_model", "shards"} <= index.keys():
        raise ValueError(
            f"{display_path(folder / INDEX)} holds {sorted(index)}, "
            "wanted dtype, sentence_model and shards"
        )

    for name, wanted in (("dtype", dtype), ("sentence_model", sentence_model)):
        if wanted not in (None, index[name]):
            raise ValueError(
                f"{display_path(folder)} was started with {name} {index[name]}, "
                f"{wanted} is asked for: remove it to start anew"
            )
    return Datastore(folder, index["dtype"], index["sentence_model"], tuple(index["shards"]))


def add(
    datastore: Datastore,
    prompts: Sequence[str],
    encoders: dict[str, Encode],
    *,
    shard_rows: int = SHARD_ROWS,
    cluster: str | None = None,
) -> Datastore:
    """The datastore with all of `prompts` in it and every column of `encoders` complete.

    `encoders` are by column: "values", and CLIPs by name. Only what is missing is encoded,
    `shard_rows` prompts at a time: an interrupted run continues after the last whole shard. With a
    `cluster` shards are tasks of its workers, which must see the datastore's folder.
    """
    for name, encode in encoders.items():
        _complete_column(datastore, name, encode, cluster)

    stored = datastore.prompts()["prompt"].drop_nulls()
    wanted = pl.Series("prompt", prompts, dtype=pl.String).unique(maintain_order=True)
    missing = wanted.filter(~wanted.is_in(stored.implode())).to_list()

    starts = range(0, len(missing), shard_rows)
    tasks = []
    for number, start in enumerate(starts, len(datastore.shards)):
        part = missing[start : start + shard_rows]
        tasks.append({"shard": {"name": f"{number:05d}", "rows": len(part)}, "prompts": part})

    shared = {"datastore": datastore, "encoders": encoders}
    written = dask_workers.results(_write_shard, tasks, shared=shared, cluster=cluster)
    for shard in tqdm(
        written, total=len(tasks), desc="datastore", unit="shard", disable=len(tasks) < 2
    ):
        datastore = _append(datastore, shard)
    return datastore


def _write_shard(
    shard: dict, prompts: list[str], datastore: Datastore, encoders: dict[str, Encode]
) -> dict:
    """Encode and write a shard's prompts and columns; the shard, which no index lists yet."""
    save_table(datastore._prompt_file(shard), pl.DataFrame({"prompt": prompts}))
    for name, encode in encoders.items():
        _write_column(datastore, shard, name, encode(prompts))
    return shard


def add_precomputed(datastore: Datastore, pairs: Sequence[ShardFiles], *, clip: str) -> Datastore:
    """The datastore with row-aligned .npy shards (CLIP text, sentence embeddings), used where they
    lie, not copied.

    A pair that is there is not added again. ValueError names the pair whose rows or types do not
    fit.
    """
    present = {shard["files"][VALUES] for shard in datastore.shards if "files" in shard}
    for key_file, value_file in pairs:
        if str(value_file) in present:
            continue

        rows = _aligned_rows(key_file, value_file)
        shard = {
            "name": f"{len(datastore.shards):05d}",
            "rows": rows,
            "files": {clip: str(key_file), VALUES: str(value_file)},
        }
        no_text = pl.DataFrame({"prompt": pl.repeat(None, rows, dtype=pl.String, eager=True)})
        save_table(datastore._prompt_file(shard), no_text)
        datastore = _append(datastore, shard)
    return datastore


def _aligned_rows(key_file: Path, value_file: Path) -> int:
    keys = load_array(key_file, "r")
    values = load_array(value_file, "r")
    aligned = keys.ndim == values.ndim == 2 and len(keys) == len(values)
    if not aligned or not {keys.dtype.name, values.dtype.name} <= set(DTYPES):
        raise ValueError(
            f"{display_path(key_file)} {keys.dtype}{keys.shape} and {display_path(value_file)} "
            f"{values.dtype}{values.shape} are not row-aligned 2-D shards of float16 or float32"
        )
    return len(keys)


def precomputed_prompts(datastore: Datastore, pairs: Sequence[ShardFiles]) -> pl.DataFrame:
    """The rows of precomputed shards as a table `id, prompt, source, row`; `prompt` is null, as
    they have no text.
    """
    wanted = {str(values) for _, values in pairs}
    tables = []
    offset = 0
    for shard in datastore.shards:
        file = shard.get("files", {}).get(VALUES)
        if file in wanted:
            tables.append(_precomputed_table(shard["name"], Path(file).stem, shard["rows"], offset))
        offset += shard["rows"]
    return pl.concat(tables)


def _precomputed_table(shard: str, source: str, rows: int, offset: int) -> pl.DataFrame:
    table = pl.DataFrame({"row": np.arange(offset, offset + rows)})
    return table.select(
        id=pl.format("{}/{}/{}", pl.lit(source), pl.lit(shard), pl.col("row") - offset),
        prompt=pl.lit(None, pl.String),
        source=pl.lit(source),
        row="row",
    )


def _complete_column(datastore: Datastore, name: str, encode: Encode, cluster: str | None) -> None:
    """Encode a column in the shards that lack it, as for a CLIP that is new to the datastore."""
    tasks = []
    for shard in datastore.shards:
        if datastore._column_file(shard, name).exists():
            continue

        if load_table(datastore._prompt_file(shard))["prompt"].null_count():
            raise ValueError(
                f"shard {shard['name']} of {display_path(datastore.folder)} came without its text: "
                f"{name} cannot be encoded"
            )
        tasks.append({"shard": shard})

    if tasks:
        shared = {"datastore": datastore, "name": name, "encode": encode}
        dask_workers.run(_encode_column, tasks, shared=shared, cluster=cluster)


def _encode_column(shard: dict, datastore: Datastore, name: str, encode: Encode) -> None:
    """Encode and write one column of a shard that is there."""
    prompts = load_table(datastore._prompt_file(shard))["prompt"].to_list()
    _write_column(datastore, shard, name, encode(prompts))


def _write_column(datastore: Datastore, shard: dict, name: str, x: np.ndarray) -> None:
    file = datastore._column_file(shard, name)
    if x.ndim != 2 or len(x) != shard["rows"] or not np.isfinite(x).all():
        raise ValueError(
            f"{display_path(file)}: {shard['rows']} rows wanted, got {x.shape}, "
            f"{(~np.isfinite(x)).sum()} values not finite"
        )
    with atomic(file) as temporary:
        np.save(temporary, x.astype(datastore.dtype))


def _append(datastore: Datastore, shard: dict) -> Datastore:
    grown = replace(datastore, shards=(*datastore.shards, shard))
    index = {name: value for name, value in vars(grown).items() if name != "folder"}
    save_json(grown.folder / INDEX, index)
    return grown


def rows_of_prompts(datastore: Datastore, prompts: Sequence[str]) -> np.ndarray:
    """(n,) int64: the datastore's row that holds each prompt. KeyError for a prompt that is not
    there.
    """
    stored = datastore.prompts().with_row_index("row").unique("prompt", keep="last")
    wanted = pl.DataFrame({"prompt": prompts}, schema={"prompt": pl.String})
    listed = wanted.join(stored, on="prompt", how="left", maintain_order="left")

    missing = listed.filter(pl.col("row").is_null())["prompt"]
    if len(missing):
        raise KeyError(f"{len(missing)} prompts are not in the datastore, e.g. {missing[0]!r}")
    return listed["row"].to_numpy().astype(np.int64)


def take(shards: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Rows of sharded embeddings, `rows` of any shape (...,) -> (..., d) float32 unit rows; one
    shard open at a time.
    """
    wanted, position = np.unique(rows, return_inverse=True)
    bounds = np.cumsum([0, *map(len, shards)])
    if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < bounds[-1]:
        raise ValueError(
            f"rows {wanted[0]}..{wanted[-1]} are not within the {bounds[-1]} of the datastore"
        )

    x = np.empty((len(wanted), shards[0].shape[1]), np.float32)
    for number, shard in enumerate(shards):
        in_shard = slice(*np.searchsorted(wanted, bounds[number : number + 2]))
        x[in_shard] = shard[wanted[in_shard] - bounds[number]]
    return l2_normalize(x)[position.reshape(rows.shape)]


@dataclass(frozen=True)
class ColumnView:
    """The rows of a datastore's column that a run searches, in the run's order: (n, d) unit rows in
    all.

    Row i of the run is row `rows[i]` of `shards`.
    """

    shards: Sequence[np.ndarray]
    rows: np.ndarray  # (n,) int64, distinct

    def search(
        self,
        queries: np.ndarray,
        k: int,
        engine: str,
        *,
        visible: np.ndarray | None = None,
        cluster: "str | Client | None" = None,
        center: np.ndarray | None = None,
    ) -> knn.Neighbors:
        """As `knn.search`, with indices of the run; only rows `visible` (n,) bool are searched."""
        run_rows = np.arange(len(self.rows)) if visible is None else np.flatnonzero(visible)
        run_row_of = np.full(sum(map(len, self.shards)), -1, np.int64)
        run_row_of[self.rows[run_rows]] = run_rows

        in_run = run_row_of >= 0
        similarity, row = knn.search(
            self.shards, queries, k, engine, rows=in_run, cluster=cluster, center=center
        )
        return knn.order_ties(similarity, run_row_of[row])  # ties by the run's index

    def take(self, rows: np.ndarray) -> np.ndarray:
        """(..., d) float32 unit rows of the run's `rows`."""
        return take(self.shards, self.rows[rows])
