"""A result of `predict`, opened for search: any text, image or vector finds its images.

    from src.submit import Index
    index = Index("found.parquet")
    index.search("two foxes on a snowy mountain")  # a table: rank, id, similarity, confidence, ...

What is predicted for an image is the embedding of a sentence, so texts need no tower of a CLIP.
"""

import os
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from src import knn
from src.data import prompts
from src.data.images import IMAGE_SUFFIXES
from src.data.sample_submission import WIDTH
from src.dedup import similarity
from src.errors import UserError
from src.paths import display_path
from src.submit.vectors import open_vectors

FACTS = ("images", "sentence_model")  # that `predict` notes in a result, for whoever opens it
MAX_QUERY = 2000  # characters of a text; the sentence encoder reads some 256 tokens of them


@dataclass(frozen=True)
class Duplicates:
    """Near-duplicates: `groups` (group, size, id), the largest first, and `pairs` (group, id,
    other, similarity), the strongest ones that hold each group together.
    """

    groups: pl.DataFrame
    pairs: pl.DataFrame


class Index:
    """The vectors of a .parquet result, memory-mapped, with an exact search.

    `images` is the folder that the ids are relative to, where the file does not name it. UserError
    when the file is not a result of `predict`, is of another sentence model, or its vectors are not
    unit rows.
    """

    def __init__(self, file: str | Path, *, images: str | Path | None = None, engine: str = "auto"):
        self.file = Path(os.path.abspath(file))
        self.engine = engine
        facts = _read_facts(self.file)
        self.sentence_model = facts.get("sentence_model", prompts.EMBEDDED)
        self.images = _image_folder(images, facts)

        self._vectors = open_vectors(self.file)
        self.table = _read_table(self.file)  # id, confidence
        self._lock = threading.Lock()  # one text at a time through the sentence encoder

    def __len__(self) -> int:
        return len(self.table)

    # --- queries ---

    def search(
        self, text: str, k: int = 20, *, min_confidence: float | None = None
    ) -> pl.DataFrame:
        """The `k` images nearest to `text`: rank, row, id, similarity, confidence, prompt."""
        return self.by_vector(self.encode(text), k, min_confidence=min_confidence)

    def near(self, identifier: str, k: int = 20, **options: float | None) -> pl.DataFrame:
        """The `k` images nearest to the one called `identifier`, itself first."""
        return self.by_vector(self.vectors(np.array([self.row(identifier)]))[0], k, **options)

    def by_vector(
        self, vector: np.ndarray, k: int = 20, *, min_confidence: float | None = None
    ) -> pl.DataFrame:
        """The `k` images nearest to a unit vector (384,), fewer where there are fewer."""
        if k < 1:
            raise UserError(f"{k} results were asked for: at least 1 is needed")
        queries = np.ascontiguousarray(vector[None], np.float32)
        if min_confidence is None:
            return self.rows(*self._nearest(queries, k))

        allowed = (self.table["confidence"] >= min_confidence).fill_null(False).to_numpy()
        count = min(k, int(allowed.sum()))
        if count == 0:
            return self.rows(np.empty(0, np.int64), np.empty(0, np.float32))
        # a longer list of all, until enough of it are confident: rows picked out would be copied
        depth = 2 * count * len(self) // int(allowed.sum())
        while True:
            index, cosine = self._nearest(queries, depth)
            confident = allowed[index]
            if confident.sum() >= count:
                return self.rows(index[confident][:count], cosine[confident][:count])
            depth *= 4

    def _nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and similarity of the `k` nearest, or of all where there are fewer."""
        cosine, index = knn.search(
            self._vectors, queries, min(k, len(self)), self.engine, checked=True
        )
        return index[0], cosine[0]

    def encode(self, text: str) -> np.ndarray:
        """(384,) float32: the unit vector of a text. UserError when it is empty or too long."""
        if not text.strip():
            raise UserError("the query is empty: describe what the image should show")
        if len(text) > MAX_QUERY:
            raise UserError(
                f"the query has {len(text):,} characters; at most {MAX_QUERY:,} are searched for"
            )
        with self._lock:
            return prompts.encode([text], model=self.sentence_model, device="cpu")[0]

    def row(self, identifier: str) -> int:
        """The row of an id. UserError when it is not there."""
        rows = (self.table["id"] == identifier).arg_true()
        if not len(rows):
            examples = self.table["id"][:3].to_list()
            raise UserError(
                f"{display_path(self.file)} has no id {identifier[:100]!r}; its {len(self):,} ids "
                f"look like {examples}"
            )
        return int(rows[0])

    def vectors(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Unit rows (n, 384) float32, in the order of `rows`."""
        return self._vectors[rows]

    # --- what is known of a row ---

    def rows(self, index: np.ndarray, cosine: np.ndarray | None = None) -> pl.DataFrame:
        """The rows `index` (n,) as a table, in that order, with a rank and their nearest prompt."""
        nearest = [texts[0] if texts else None for texts in self.prompts(index)]
        no_cosine = [None] * len(index)
        return pl.DataFrame(
            {
                "rank": pl.Series(range(1, len(index) + 1), dtype=pl.Int64),
                "row": pl.Series(index, dtype=pl.Int64),
                "id": self.table["id"].gather(index),
                "similarity": pl.Series(no_cosine if cosine is None else cosine, dtype=pl.Float32),
                "confidence": self.table["confidence"].gather(index),
                "prompt": pl.Series(nearest, dtype=pl.String),
            }
        )

    def prompts(self, index: np.ndarray) -> list[list[str]]:
        """The nearest prompts of each row, from the Parquet file's row groups that hold them."""
        source = pq.ParquetFile(self.file, metadata=self._metadata)
        if "prompts" not in source.schema_arrow.names:
            return [[] for _ in index]
        group = np.searchsorted(self._group_ends, index, side="right")
        texts = {}
        for number in np.unique(group):
            column = source.read_row_group(int(number), columns=["prompts"])["prompts"]
            first = 0 if number == 0 else int(self._group_ends[number - 1])
            for row in index[group == number]:
                texts[int(row)] = column[int(row) - first].as_py() or []
        return [texts[int(row)] for row in index]

    @cached_property
    def _metadata(self) -> pq.FileMetaData:
        """The file's footer: a thousand row groups take longer to parse than a group to read."""
        return pq.read_metadata(self.file)

    @cached_property
    def _group_ends(self) -> np.ndarray:
        groups = range(self._metadata.num_row_groups)
        return np.cumsum([self._metadata.row_group(n).num_rows for n in groups])

    def image_path(self, row: int) -> Path | None:
        """The image of a row, where it lies in the folder of images itself; else None.

        An id is data, whoever wrote it: `..`, absolute paths and links out of the folder are None.
        """
        if self.images is None:
            return None
        identifier = self.table["id"][row]
        if identifier is None or "\0" in identifier:
            return None
        try:
            folder = self.images.resolve(strict=True)
            for name in (identifier, *(identifier + suffix for suffix in IMAGE_SUFFIXES)):
                file = (folder / name).resolve()
                if file.is_file() and file.is_relative_to(folder):
                    return file
        except (OSError, RuntimeError):  # a name too long, a circle of links
            return None
        return None

    # --- near-duplicates ---

    def duplicates(self, threshold: float, *, progress: bool = False) -> Duplicates:
        """Groups of images whose predictions are nearer than `threshold`, by chains of pairs."""
        if not 0 < threshold < 1:
            raise UserError(f"the duplicates' similarity must be within 0..1, got {threshold}")
        x = np.array(self._vectors)
        scan = similarity.scan_pairs(x, threshold, link=threshold, progress=progress)
        label = scan.forest.components(threshold)

        # images of groups of two and more, the largest group first; groups are numbered so
        sizes = np.bincount(label)
        ids = self.table["id"]
        members = pl.DataFrame({"label": label, "id": ids, "size": sizes[label]})
        groups = members.filter(pl.col("size") > 1)
        groups = groups.sort("size", "label", descending=[True, False], maintain_order=True)
        number = {old: new for new, old in enumerate(groups["label"].unique(maintain_order=True))}

        # the forest holds for each group the strongest pairs that keep it together
        cosine = np.einsum("nd,nd->n", x[scan.forest.i], x[scan.forest.j])
        pairs = pl.DataFrame(
            {
                "group": [number[old] for old in label[scan.forest.i]],
                "id": ids.gather(scan.forest.i),
                "other": ids.gather(scan.forest.j),
                "similarity": cosine,
            }
        )
        renumbered = [number[old] for old in groups["label"]]
        return Duplicates(
            groups.select(group=pl.Series(renumbered, dtype=pl.Int64), size="size", id="id"),
            pairs.sort("group", "similarity", descending=[False, True]),
        )


# --- opening a file ---


def _read_facts(file: Path) -> dict[str, str]:
    """What `predict` noted in the file. UserError unless it is a table of id and embedding."""
    if not file.exists():
        raise UserError(f"{display_path(file)} does not exist: write it by predict")
    if file.is_dir():
        raise UserError(f"{display_path(file)} is a folder: name the .parquet result of predict")
    if file.suffix in (".csv", ".npy"):
        raise UserError(
            f"{display_path(file)} cannot be opened, a .parquet result can: "
            f"run predict with --out {file.with_suffix('.parquet').name}"
        )
    try:
        schema = pq.read_schema(file)
    except Exception as error:  # pyarrow raises several kinds on what is not a Parquet file
        raise UserError(f"{display_path(file)} is not a Parquet file ({error})") from error
    missing = {"id", "embedding"} - set(schema.names)
    if missing:
        raise UserError(
            f"{display_path(file)} has the columns {schema.names}, without {sorted(missing)}: "
            "it is not a result of predict"
        )
    width = getattr(schema.field("embedding").type, "list_size", WIDTH)
    if width != WIDTH:
        raise UserError(
            f"{display_path(file)}: its vectors are {width} long, not {WIDTH}: of another model"
        )
    facts = {k.decode(): v.decode() for k, v in (schema.metadata or {}).items() if k != b"pandas"}
    noted = {name: facts[name] for name in FACTS if name in facts}
    if noted.get("sentence_model", prompts.EMBEDDED) != prompts.EMBEDDED:
        _check_model(file, noted["sentence_model"])
    return noted


def _check_model(file: Path, name: str) -> None:
    """UserError unless the sentence model that the file was made with can be loaded here."""
    try:
        prompts.encode(["a fox"], model=name, device="cpu")
    except Exception as error:  # a hub that is not reached, a folder that is not there
        raise UserError(
            f"{display_path(file)} was made with the sentence model {name!r}, which cannot be "
            f"loaded here ({type(error).__name__}); texts must be encoded by the same model"
        ) from error


def _image_folder(given: str | Path | None, facts: dict[str, str]) -> Path | None:
    if given is None:
        noted = Path(facts["images"]) if "images" in facts else None
        return noted if noted is not None and noted.is_dir() else None
    folder = Path(os.path.abspath(given))
    if not folder.is_dir():
        raise UserError(f"--images: {display_path(folder)} is not a folder")
    return folder


def _read_table(file: Path) -> pl.DataFrame:
    """`id, confidence`; a confidence that the file lacks is null."""
    lazy = pl.scan_parquet(file, glob=False)
    if "confidence" in lazy.collect_schema().names():
        return lazy.select("id", pl.col("confidence").cast(pl.Float32)).collect()
    return lazy.select("id", confidence=pl.lit(None, pl.Float32)).collect()
