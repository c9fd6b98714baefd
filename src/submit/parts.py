"""A result in parts on disk, each whole before the next begins, so that a stopped run goes on."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from src import artifacts
from src.data.sample_submission import WIDTH
from src.errors import UserError
from src.paths import display_path
from src.submit.predictor import Prediction
from src.submit.vectors import write_vectors

KEY_FILE = "key.json"
REJECTED_SCHEMA = {"id": pl.String, "reason": pl.String}


class Parts:
    """The parts of `out` until it is whole, in the folder `<out>.parts`.

    `key` says what the parts are made of: those of another key are deleted. UserError when the
    folder holds something else.
    """

    def __init__(self, out: Path, key: dict, count: int):
        self.out = out
        self.folder = parts_folder(out)
        self.count = count
        key_file = self.folder / KEY_FILE

        if self.folder.exists() and not key_file.exists() and any(self.folder.iterdir()):
            raise UserError(
                f"{display_path(self.folder)} holds files but no {KEY_FILE}, so it is not parts of "
                "a prediction and is left alone: choose another --out"
            )
        if key_file.exists() and artifacts.load_json(key_file) == key:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        artifacts.save_json(key_file, key)

    def missing(self) -> list[int]:
        """The parts that are not on disk yet."""
        return [n for n in range(self.count) if not self._part(n).exists()]

    def write(self, n: int, ids: list[str], prediction: Prediction, rejected: list) -> None:
        """Write part `n`: its predictions, and (id, reason) of the images that were rejected."""
        # the rejected first: where the part itself exists, both do
        rows = pl.DataFrame(rejected, schema=REJECTED_SCHEMA, orient="row")
        artifacts.save_table(self._rejected_part(n), rows)

        embedding = pl.Series(prediction.embedding, dtype=pl.Array(pl.Float32, WIDTH))
        similarity = prediction.similarity.tolist()
        columns = {
            "id": pl.Series(ids, dtype=pl.String),
            "embedding": embedding,
            "confidence": pl.Series(prediction.confidence, dtype=pl.Float32),
            "prompts": pl.Series(prediction.prompts, dtype=pl.List(pl.String)),
            "similarity": pl.Series(similarity, dtype=pl.List(pl.Float32)),
        }
        artifacts.save_table(self._part(n), pl.DataFrame(columns))

    def rejected(self) -> pl.DataFrame:
        """`id, reason` of every image that was rejected."""
        return pl.concat([_read(self._rejected_part(n)) for n in range(self.count)])

    def assemble(self, facts: dict[str, str]) -> None:
        """Write `out` from the parts, one in memory at a time.

        A .parquet file notes `facts`, and its vectors lie beside it, ready to be searched.
        """
        files = [self._part(n) for n in range(self.count)]
        with artifacts.atomic(self.out) as temporary:
            if self.out.suffix == ".parquet":
                _write_parquet(files, temporary, facts)
            elif self.out.suffix == ".csv":
                _write_csv(files, temporary)
            else:
                _write_array(files, temporary)

        if self.out.suffix == ".parquet":
            write_vectors(self.out, (_read(file)["embedding"] for file in files))
        if self.out.suffix == ".npy":
            tables = [_read(file).drop("embedding") for file in files]
            artifacts.save_table(ids_file(self.out), pl.concat(tables))

    def remove(self) -> None:
        """Delete the parts."""
        shutil.rmtree(self.folder)

    def _part(self, n: int) -> Path:
        return self.folder / f"{n:06d}.parquet"

    def _rejected_part(self, n: int) -> Path:
        return self.folder / f"{n:06d}.rejected.parquet"


def parts_folder(out: Path) -> Path:
    """Where the parts of `out` lie until it is whole."""
    return out.with_name(out.name + ".parts")


def ids_file(out: Path) -> Path:
    """The table beside an .npy result: everything but the embeddings, row by row."""
    return out.with_name(out.stem + ".ids.parquet")


def escape_formulas(text: pl.Expr) -> pl.Expr:
    """Text to be looked at in a spreadsheet: an apostrophe before what it would run as a formula.

    For display only. What a program reads back, such as an id, is written as it is.
    """
    return text.str.replace(r"^([\s\p{Cc}\p{Cf}]*[=+\-@\t\r\n＝＋－＠])", "'${1}")


def _read(file: Path) -> pl.DataFrame:
    return pl.read_parquet(file, glob=False)  # [ and ] in a name are letters, not a pattern


def _write_parquet(files: Sequence[Path], path: Path, facts: dict[str, str]) -> None:
    schema = pq.read_schema(files[0]).with_metadata(facts)
    with pq.ParquetWriter(path, schema) as writer:
        for file in files:
            table = pq.ParquetFile(file).read()
            writer.write_table(table.replace_schema_metadata(facts))


def _write_csv(files: Sequence[Path], path: Path) -> None:
    with path.open("wb") as stream:
        for n, file in enumerate(files):
            _csv_columns(_read(file)).write_csv(stream, include_header=n == 0)


def _csv_columns(part: pl.DataFrame) -> pl.DataFrame:
    """A part as a CSV's columns: id, confidence, the nearest prompt, its similarity, e0 .. e383."""
    names = [f"e{i}" for i in range(WIDTH)]
    numbers = pl.DataFrame(part["embedding"].to_numpy().reshape(-1, WIDTH), schema=names)
    facts = part.select(
        "id",
        "confidence",
        prompt=escape_formulas(pl.col("prompts").list.first()),
        similarity=pl.col("similarity").list.first(),
    )
    return pl.concat([facts, numbers], how="horizontal")


def _write_array(files: Sequence[Path], path: Path) -> None:
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    array = artifacts.reserved(path, np.float32, (rows, WIDTH))

    start = 0
    for file in files:
        embedding = _read(file)["embedding"].to_numpy().reshape(-1, WIDTH)
        array[start : start + len(embedding)] = embedding
        start += len(embedding)
    array.flush()
