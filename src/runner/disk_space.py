"""How many bytes a run will write, estimated before it begins."""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from src import paths
from src.data import prompts, text_only
from src.model_a.recipe import ACTIVATION_BYTES
from src.paths import Stage, resolve
from src.runner.clip_facts import ClipFacts, TowerSize

# of a prompt in a text file: how many there are is not counted, only estimated
CHARACTERS = 100

CHECKPOINTS = 5  # what one checkpoint takes, in copies of the trained weights
VARIANTS = 4  # of Table 1 that the first CLIP is trained for; a further CLIP is trained once
TABLES = 8  # targets, and a prediction of each row by the members


def space_needed(
    per_stage: Mapping[str, dict],
    output: Path,
    *,
    rows: int,
    clips: Mapping[str, ClipFacts | None],
    towers: Mapping[str, TowerSize],
) -> dict[str, int]:
    """Bytes that the stages will write, by kind, less what `output` holds already.

    `rows` counts training and test images. An estimate, on the low side.
    """
    needed = {"pixels": 0, "activations": 0, "weights": 0, "embeddings": 0, "store": 0}
    training = per_stage.get(Stage.MODEL_A)
    searching = per_stage.get(Stage.MODEL_B)
    n_folds = per_stage.get(Stage.DEDUP, {}).get("n_folds", 1)

    for name, clip in clips.items():
        if clip is None:
            continue
        needed["pixels"] += rows * 3 * clip.size**2
        needed["embeddings"] += rows * 4 * clip.width

        tower = towers.get(name)
        if tower is not None and training is not None:
            kept = [rows * n_bytes for n_bytes in tower.activation_bytes.values()]
            needed["activations"] += sum(n for n in kept if n <= ACTIVATION_BYTES)
            fits = training["seeds"] * (n_folds + training["final_fit"])
            baselines = VARIANTS - 1 if name == training["clip"] else 0
            copies = n_folds * baselines + fits + CHECKPOINTS
            needed["weights"] += 4 * tower.trained_parameters * copies

        if searching and name in (searching["clip"], *searching["extra_clips"]):
            columns = clip.width + (prompts.WIDTH if name == searching["clip"] else 0)
            n_bytes = 2 if searching["store_dtype"] == "float16" else 4
            n_captions = rows * len(searching["captions"])
            n_prompts = rows + n_captions + _count_prompts(searching["text_only"])
            needed["store"] += n_bytes * columns * n_prompts

    needed["embeddings"] += rows * 4 * prompts.WIDTH * TABLES
    needed["there already"] = -min(_bytes_held(output), sum(needed.values()))
    return needed


def _bytes_held(output: Path) -> int:
    """Bytes of an earlier run that are used again."""
    files = [
        file
        for folder in (paths.CACHE, paths.STORE_SHARDS)
        for file in (output / folder).rglob("*")
        if file.is_file()
    ]
    return sum(file.stat().st_size for file in files)


def _count_prompts(text: str | list | None) -> int:
    """About how many prompts the text-only sources hold.

    Parquet tables say it, other files are estimated by their size.
    """
    count = 0
    for entry in [text] if isinstance(text, str) else text or []:
        for file in text_only.text_files(resolve(entry)):
            if file.suffix.lower() == ".parquet":
                table = pl.scan_parquet(file, glob=False)
                count += table.select(pl.len()).collect().item()
            else:
                count += file.stat().st_size // CHARACTERS
    return count
