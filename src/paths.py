"""Every artifact's name, once, so that no notebook and no module types a file name of another.

Names are relative to `output_dir`: `resolve(output_dir) / paths.PAIRS`. Embeddings are named without a suffix, since
`artifacts.save_embeddings` writes two files (`.npy` and `.ids.parquet`).
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("01_dedup", "02_train_model_a", "03_cuml_knn_model_b", "04_ensemble_oof", "05_submit")

# shared by stages: decoded images and embeddings that only depend on their input
CACHE = "cache"

# 01_dedup
PAIRS = "01_dedup/pairs.parquet"  # id, image, prompt, source, reason, filter1, filter2, keeper, similarity, group, fold
REJECTED = "01_dedup/rejected.parquet"  # id, image, prompt, source, reason
TARGETS = "01_dedup/targets"  # sentence embeddings of pairs' prompts
TEST_IMAGES = "01_dedup/test.parquet"  # id, image

# 02_train_model_a; {row} is one of LADDER
LADDER = ("clip", "clip_filter1", "clip_filter2", "model_a")
OOF = "02_train_model_a/oof_{row}"
TEST = "02_train_model_a/test_{row}"
FOLD = "02_train_model_a/folds/{row}_fold{fold}"  # + .safetensors, .json, _oof and _test embeddings
TRAINED = "02_train_model_a/trained.parquet"  # row, fold, rows_trained, seconds, score
MEMBERS_A = "02_train_model_a/members.json"  # members: the rows that are predictions of Model A; clip: what each was trained from

# 03_cuml_knn_model_b
STORE = "03_cuml_knn_model_b/store.parquet"  # id, prompt, source, row: the row of STORE_SHARDS that holds the prompt
TEXT_STORE = "03_cuml_knn_model_b/text.parquet"  # row, prompt, source: the text-only prompts that the rules leave
STORE_SHARDS = "03_cuml_knn_model_b/store"  # the prompts' keys and values, appended to and never encoded twice (src/datastore.py)
STORE_IMAGES = (
    "03_cuml_knn_model_b/images_{clip}"  # embeddings of the training images: the image keys
)
ROUTE_B = (
    "03_cuml_knn_model_b/route_{n}.npz"  # what a route of CHOICE_B learnt from the training rows
)
OOF_B = "03_cuml_knn_model_b/oof_{member}"
TEST_B = "03_cuml_knn_model_b/test_{member}"
MEMBERS_B = "03_cuml_knn_model_b/members.json"  # members: the predictions of Model B; clip: the CLIP of each column of keys
NEIGHBOURS = "03_cuml_knn_model_b/neighbours.parquet"  # query, rank, neighbour, prompt, similarity, weight (test queries)
CHOICE_B = "03_cuml_knn_model_b/choice.json"  # the routes with their K, weights and shares

# 04_ensemble_oof
OOF_ENSEMBLE = "04_ensemble_oof/oof_ensemble"
BLEND = "04_ensemble_oof/blend.json"  # alpha and how it was found
TABLE1 = "table1.csv"
LADDER_TABLE = "ladder.csv"  # the rows beyond Table 1's six: knowing nothing, probes, single members, all members together
SLICES = "04_ensemble_oof/slices.parquet"  # by, label, rows, avg_cos, low, high
FAILURES = "04_ensemble_oof/failures.parquet"  # the worst out-of-fold rows: id, image, prompt, cosine, confidence, nearest
REPORT = "report.html"

# 05_submit
SUBMISSION = "submission"  # .csv, .parquet, .npy + .ids.parquet
TEST_SCORES = "05_submit/test_scores.csv"  # model, avg_cos, low, high on the test images, where their truth is known
GALLERY = (
    "05_submit/gallery.parquet"  # id, image, confidence, prompts, and where known: truth, cosine
)

# the runner
EXECUTED = "executed"  # the notebooks as they ran, .ipynb and .html
LOGS = "logs"  # one file a run: a line for each step
META = "meta.json"  # in each stage's folder
FAILED = "failed.txt"  # in a stage's folder after it failed: when and where
LOCK = ".lock"  # held while a run is at work


def resolve(path: str | Path) -> Path:
    """`path` as an absolute path; a relative one is relative to the repository's root, wherever the caller runs."""
    path = Path(os.path.expanduser(path))  # Path.expanduser fails on a user that is not there
    return path if path.is_absolute() else ROOT / path


def display_path(path: str | Path) -> str:
    """`path` as a reader would type it from the repository's root."""
    path = Path(path)
    return as_text(str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path))


def as_text(name: str) -> str:
    """A file's name as text that can be stored: bytes that are no UTF-8 are spelt out."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
