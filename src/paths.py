"""Every artifact's name, once, so that no notebook and no module types a file name of another.

Names are relative to `output_dir`: `resolve(output_dir) / paths.PAIRS`. Embeddings are named
without a suffix, since `artifacts.save_embeddings` writes two files (`.npy`, `.ids.parquet`).
"""

import os
from enum import StrEnum
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Stage(StrEnum):
    """The stages in the order they run; each is a notebook and a folder of `output_dir`."""

    DEDUP = "01_dedup"
    MODEL_A = "02_train_model_a"
    MODEL_B = "03_cuml_knn_model_b"
    ENSEMBLE = "04_ensemble_oof"
    SUBMIT = "05_submit"


STAGES = tuple(Stage)

# shared by stages: decoded images and embeddings that only depend on their input
CACHE = "cache"

# --- 01_dedup ---

# id, image, prompt, source, reason, filter1, filter2, keeper, similarity, group,
# group_similarity (at which the row's group was formed), fold
PAIRS = f"{Stage.DEDUP}/pairs.parquet"

# id, image, prompt, source, reason
REJECTED = f"{Stage.DEDUP}/rejected.parquet"

# the same, where so many rows are bad that 01 does not start
REFUSED = "refused_rows.parquet"

# sentence embeddings of pairs' prompts
TARGETS = f"{Stage.DEDUP}/targets"

# id, image
TEST_IMAGES = f"{Stage.DEDUP}/test.parquet"

# --- 02_train_model_a; {variant} is one of LADDER ---

LADDER = ("clip", "clip_filter1", "clip_filter2", "model_a")
OOF = f"{Stage.MODEL_A}/oof_{{variant}}"
TEST = f"{Stage.MODEL_A}/test_{{variant}}"

# with .safetensors, .json, _oof and _test embeddings
FOLD = f"{Stage.MODEL_A}/folds/{{variant}}_fold{{fold}}"

# the same without _oof: trained on all rows
FINAL = f"{Stage.MODEL_A}/folds/{{variant}}_final"

# variant, fold, rows_trained, seconds, score
TRAINED = f"{Stage.MODEL_A}/trained.parquet"

# members: the variants that are predictions of Model A; clip: what each was trained from;
# averaging: what their predictions are means of (model_a/averaging.py)
MEMBERS_A = f"{Stage.MODEL_A}/members.json"

# --- 03_cuml_knn_model_b ---

# id, prompt, source, row: the row of STORE_SHARDS that holds the prompt
STORE = f"{Stage.MODEL_B}/store.parquet"

# row, prompt, source: the text-only prompts that the rules leave
TEXT_STORE = f"{Stage.MODEL_B}/text.parquet"

# the prompts' keys and values, appended to and never encoded twice (model_b/datastore.py)
STORE_SHARDS = f"{Stage.MODEL_B}/store"

# embeddings of the training images: the image keys
STORE_IMAGES = f"{Stage.MODEL_B}/images_{{clip}}"

# what a route of CHOICE_B learned from the training rows
ROUTE_B = f"{Stage.MODEL_B}/route_{{n}}.npz"

OOF_B = f"{Stage.MODEL_B}/oof_{{member}}"
TEST_B = f"{Stage.MODEL_B}/test_{{member}}"

# members: the predictions of Model B; clip: the CLIP of each column of keys
MEMBERS_B = f"{Stage.MODEL_B}/members.json"

# query, rank, neighbor, prompt, similarity, weight (test queries)
NEIGHBORS = f"{Stage.MODEL_B}/neighbors.parquet"

# the routes with their K, weights and shares
CHOICE_B = f"{Stage.MODEL_B}/choice.json"

# --- 04_ensemble_oof ---

OOF_ENSEMBLE = f"{Stage.ENSEMBLE}/oof_ensemble"

# alpha and how it was found
BLEND = f"{Stage.ENSEMBLE}/blend.json"
TABLE1 = "table1.csv"  # the mean prompt and the paper's six rows

# the rows beyond Table 1: ablations, further members, all members together
LADDER_TABLE = "ladder.csv"

# by, label, rows, avg_cos, low, high
SLICES = f"{Stage.ENSEMBLE}/slices.parquet"

# the worst out-of-fold rows: id, image, prompt, cosine, confidence, nearest
FAILURES = f"{Stage.ENSEMBLE}/failures.parquet"
REPORT = "report.html"

# --- 05_submit ---

# with .csv, .parquet, .npy and .ids.parquet
SUBMISSION = "submission"

# model, avg_cos, low, high on the test images, where their truth is known
TEST_SCORES = f"{Stage.SUBMIT}/test_scores.csv"

# id, image, confidence, prompts, and where known: truth, cosine
GALLERY = f"{Stage.SUBMIT}/gallery.parquet"

# --- the runner ---

EXECUTED = "executed"  # the notebooks as they ran, .ipynb and .html
LOGS = "logs"  # one file a run: a line for each step
META = "meta.json"  # in each stage's folder
FAILED = "failed.txt"  # in a stage's folder after it failed: when and where
RUNS = "runs.csv"  # a line for each finished run, and the leaderboard's answers
RUNS_PLOT = "runs.png"  # out-of-fold against leaderboard
FIGURES = "figures"  # in a stage's folder: its figures by name, .png
LOCK = ".lock"  # held during a run


def resolve(path: str | Path) -> Path:
    """`path` as an absolute path; a relative one is relative to the repository's root."""
    path = Path(os.path.expanduser(path))  # Path.expanduser fails on a user that is not there
    return path if path.is_absolute() else ROOT / path


def display_path(path: str | Path) -> str:
    """`path` as a reader would type it from the repository's root."""
    path = Path(path)
    if path.is_relative_to(ROOT):
        path = path.relative_to(ROOT)
    return as_text(str(path))


def as_text(name: str) -> str:
    """A file's name as text that can be stored: bytes that are not UTF-8 are spelled out."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
