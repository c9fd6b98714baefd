"""Model B's prompts on disk, each with a key by one or more CLIPs and a value by the sentence encoder.

Shards of half or single precision, memory-mapped, only ever appended to: a prompt that is there is not encoded again, and a
store larger than memory is read shard by shard. What one run searches is a selection of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from tqdm import tqdm

from src import knn
from src.artifacts import atomic, load_array, load_json, load_table, save_json, save_table
from src.metrics import l2_normalize
from src.paths import display_path

DTYPES = ("float16", "float32")
INDEX = (
    "store.json"  # the shards in order; written last, so a shard that is not in it was not finished
)
VALUES = "values"

Encode = Callable[[list[str]], np.ndarray]  # prompts -> (n, d) float32 unit rows


@dataclass(frozen=True)
class Datastore:
    """A folder of shards. Row i of `rows()` belongs to row i of every column: `values`, and one of keys for each CLIP."""

    folder: Path
    dtype: str
    sentence_model: str
    shards: tuple[dict, ...]  # name, rows, and for a shard that lies elsewhere its files by column

    def __len__(self) -> int:
        return sum(shard["rows"] for shard in self.shards)

    def rows(self) -> pl.DataFrame:
        """The table `prompt` of all rows, in order; null where a shard came without its text."""
        parts = [load_table(self.folder / f"{shard['name']}.parquet") for shard in self.shards]
        return pl.concat([pl.DataFrame(schema={"prompt": pl.String}), *parts])

    def column(self, name: str) -> list[np.ndarray]:
        """The memory maps of a column, one a shard: "values", or the name of a CLIP. FileNotFoundError when one is missing."""
        return [load_array(self._file(shard, name), "r") for shard in self.shards]

    def has(self, shard: dict, name: str) -> bool:
        return self._file(shard, name).exists()

    def _file(self, shard: dict, name: str) -> Path:
        elsewhere = shard.get("files", {})
        return (
            Path(elsewhere[name])
            if name in elsewhere
            else self.folder / f"{shard['name']}.{name}.npy"
        )


def open_store(
    folder: Path, *, dtype: str | None = None, sentence_model: str | None = None
) -> Datastore:
    """The store in `folder`; where there is none, an empty one of `dtype` whose values are by `sentence_model`.

    FileNotFoundError when there is none and these are not given; ValueError when it was begun with others.
    """
    if not (folder / INDEX).exists() and dtype and sentence_model:
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r} is not one of {DTYPES}")
        return Datastore(folder, dtype, sentence_model, ())
    kept = load_json(folder / INDEX)
    if not {"dtype", "sentence_model", "shards"} <= kept.keys():
        raise ValueError(
            f"{display_path(folder / INDEX)} holds {sorted(kept)}, wanted dtype, sentence_model and shards"
        )
    for name, wanted in (("dtype", dtype), ("sentence_model", sentence_model)):
        if wanted not in (None, kept[name]):
            raise ValueError(
                f"{display_path(folder)} was begun with {name} {kept[name]}, {wanted} is asked for: remove it to begin anew"
            )
    return Datastore(folder, kept["dtype"], kept["sentence_model"], tuple(kept["shards"]))


def add(
    store: Datastore,
    prompts: Sequence[str],
    encoders: dict[str, Encode],
    *,
    shard_rows: int = 50_000,
) -> Datastore:
    """The store with all of `prompts` in it and every column of `encoders` ("values", and CLIPs by name) complete.

    Only what is not there is encoded, `shard_rows` prompts at a time: what was interrupted goes on from the last whole shard.
    """
    texts = store.rows()["prompt"]
    for name, encode in encoders.items():
        _complete(store, name, encode)
    new = pl.Series("prompt", prompts, dtype=pl.String).unique(maintain_order=True)
    new = new.filter(~new.is_in(texts.drop_nulls().implode())).to_list()
    starts = range(0, len(new), shard_rows)
    for start in tqdm(starts, desc="store", unit="shard", disable=len(starts) < 2):
        part = new[start : start + shard_rows]
        name = f"{len(store.shards):05d}"
        save_table(store.folder / f"{name}.parquet", pl.DataFrame({"prompt": part}))
        for column, encode in encoders.items():
            _write(store.folder / f"{name}.{column}.npy", encode(part), len(part), store.dtype)
        store = _append(store, {"name": name, "rows": len(part)})
    return store


def add_precomputed(
    store: Datastore, pairs: Sequence[tuple[Path, Path]], *, clip: str
) -> Datastore:
    """The store with pairs of row-aligned .npy shards (CLIP text, sentence embeddings) as they lie: nothing is copied.

    A pair that is there is not added again. ValueError names the pair whose rows or types do not fit.
    """
    there = {shard["files"][VALUES] for shard in store.shards if "files" in shard}
    for key_file, value_file in pairs:
        if str(value_file) in there:
            continue
        key, value = load_array(key_file, "r"), load_array(value_file, "r")
        fits = (
            key.ndim == value.ndim == 2
            and len(key) == len(value)
            and {key.dtype.name, value.dtype.name} <= set(DTYPES)
        )
        if not fits:
            raise ValueError(
                f"{display_path(key_file)} {key.dtype}{key.shape} and {display_path(value_file)} {value.dtype}{value.shape} are "
                "not row-aligned 2-D shards of float16 or float32"
            )
        name = f"{len(store.shards):05d}"
        save_table(
            store.folder / f"{name}.parquet",
            pl.DataFrame({"prompt": [None] * len(key)}, schema={"prompt": pl.String}),
        )
        files = {clip: str(key_file), VALUES: str(value_file)}
        store = _append(store, {"name": name, "rows": len(key), "files": files})
    return store


def precomputed_rows(store: Datastore, pairs: Sequence[tuple[Path, Path]]) -> pl.DataFrame:
    """The rows of precomputed shards as a table `id, prompt, source, row`; they have no text, so `prompt` is null."""
    wanted, parts, offset = {str(values) for _, values in pairs}, [], 0
    for shard in store.shards:
        file = shard.get("files", {}).get(VALUES)
        if file in wanted:
            table = pl.DataFrame({"row": np.arange(offset, offset + shard["rows"])})
            source = Path(file).stem
            parts.append(
                table.select(
                    id=pl.format(
                        "{}/{}/{}", pl.lit(source), pl.lit(shard["name"]), pl.col("row") - offset
                    ),
                    prompt=pl.lit(None, pl.String),
                    source=pl.lit(source),
                    row="row",
                )
            )
        offset += shard["rows"]
    return pl.concat(parts)


def _complete(store: Datastore, name: str, encode: Encode) -> None:
    """Encode a column where it is missing: a CLIP that the store has not seen before."""
    for shard in store.shards:
        if store.has(shard, name):
            continue
        texts = load_table(store.folder / f"{shard['name']}.parquet")["prompt"]
        if texts.null_count():
            raise ValueError(
                f"shard {shard['name']} of {display_path(store.folder)} came without its text: {name} cannot be encoded"
            )
        _write(
            store.folder / f"{shard['name']}.{name}.npy",
            encode(texts.to_list()),
            shard["rows"],
            store.dtype,
        )


def _write(file: Path, x: np.ndarray, rows: int, dtype: str) -> None:
    if x.ndim != 2 or len(x) != rows or not np.isfinite(x).all():
        raise ValueError(
            f"{display_path(file)}: {rows} rows wanted, got {x.shape}, {(~np.isfinite(x)).sum()} values not finite"
        )
    with atomic(file) as temporary:
        np.save(temporary, x.astype(dtype))


def _append(store: Datastore, shard: dict) -> Datastore:
    grown = replace(store, shards=(*store.shards, shard))
    save_json(grown.folder / INDEX, {k: v for k, v in vars(grown).items() if k != "folder"})
    return grown


def places(store: Datastore, prompts: Sequence[str]) -> np.ndarray:
    """(n,) int64: the row of the store that holds each prompt. KeyError for a prompt that is not there."""
    where = {prompt: i for i, prompt in enumerate(store.rows()["prompt"])}
    return np.fromiter((where[prompt] for prompt in prompts), np.int64, len(prompts))


def take(shards: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Rows of sharded embeddings, `rows` of any shape (...,) -> (..., d) float32 unit rows; one shard open at a time."""
    wanted, where = np.unique(rows, return_inverse=True)
    bounds = np.cumsum([0, *map(len, shards)])
    if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < bounds[-1]:
        raise ValueError(
            f"rows {wanted[0]}..{wanted[-1]} are not within the {bounds[-1]} of the store"
        )
    found = np.empty((len(wanted), shards[0].shape[1]), np.float32)
    for s, shard in enumerate(shards):
        mine = slice(*np.searchsorted(wanted, bounds[s : s + 2]))
        found[mine] = shard[wanted[mine] - bounds[s]]
    return l2_normalize(found)[where.reshape(rows.shape)]


@dataclass(frozen=True)
class Selection:
    """The rows of a store that a run searches: row i of the run is row `place[i]` of `shards`, (n, d) unit rows in all.

    Its `search` has `knn.search`'s contract with indices of the run; `seen` (n,) bool leaves in only those rows.
    """

    shards: Sequence[np.ndarray]
    place: np.ndarray  # (n,) int64, distinct

    def search(
        self,
        queries: np.ndarray,
        k: int,
        engine: str = "auto",
        *,
        seen: np.ndarray | None = None,
        cluster: object | None = None,
        centre: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        run_row = np.full(sum(map(len, self.shards)), -1, np.int64)
        chosen = np.arange(len(self.place)) if seen is None else np.flatnonzero(seen)
        run_row[self.place[chosen]] = chosen
        lists = knn.search(
            self.shards, queries, k, engine, rows=run_row >= 0, cluster=cluster, centre=centre
        )
        return knn.merge(
            knn.nothing(len(queries)), (lists[0], run_row[lists[1]]), k
        )  # ties by the run's index

    def take(self, rows: np.ndarray) -> np.ndarray:
        """(..., d) float32 unit rows of the run's `rows`."""
        return take(self.shards, self.place[rows])
