"""A small result of `predict`, as search and browse open it."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from PIL import Image

from src.data import prompts

PROMPTS = [
    "two foxes on a snowy mountain",
    "a bowl of fruit, oil painting",
    "an astronaut riding a horse",
    "a red bicycle in front of a wall",
    "<b>a lighthouse</b> in a storm",
    "portrait of an old fisherman",
]


def write_result(
    folder: Path,
    *,
    vectors: np.ndarray | None = None,
    ids: list[str] | None = None,
    sentence_model: str = "all-MiniLM-L6-v2",
    row_group_size: int = 2,
) -> Path:
    """Write result.parquet: `PROMPTS` with an image each, or rows of `vectors` without images."""
    images = folder / "result images"
    images.mkdir(exist_ok=True)
    if vectors is None:
        vectors = prompts.encode(PROMPTS, device="cpu")
        ids = [f"{row}.png" for row in range(len(PROMPTS))]
        for row, name in enumerate(ids):
            Image.new("RGB", (60, 40), (40 * row, 90, 200)).save(images / name)
        texts = [[prompt, "another"] for prompt in PROMPTS]
    else:
        texts = [[f"prompt {row}"] for row in range(len(vectors))]
    ids = ids or [f"{row}.png" for row in range(len(vectors))]

    columns = {
        "id": ids,
        "embedding": pl.Series(vectors, dtype=pl.Array(pl.Float32, vectors.shape[1])),
        "confidence": pl.Series(np.linspace(0.3, 0.9, len(ids)), dtype=pl.Float32),
        "prompts": pl.Series(texts, dtype=pl.List(pl.String)),
    }
    facts = {"images": str(images), "sentence_model": sentence_model}
    table = pl.DataFrame(columns).to_arrow().replace_schema_metadata(facts)
    pq.write_table(table, folder / "result.parquet", row_group_size=row_group_size)
    return folder / "result.parquet"
