"""One folder with what inference needs, models, store, CLIPs and code, for a machine without internet such as a Kaggle notebook."""

import shutil
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

from src import artifacts, encoder, paths
from src.errors import UserError
from src.model_b import routes
from src.paths import display_path
from src.submit.predictor import Predictor, clip_names, fold_bases, used_members

FILES = (
    paths.MEMBERS_A,
    paths.MEMBERS_B,
    paths.BLEND,
    f"{paths.STAGES[1]}/{paths.META}",
    f"{paths.STAGES[2]}/{paths.META}",
)
CARRIED = (
    "open_clip",
    "ftfy",
    "wcwidth",
)  # pure Python, and not on every hosted image: copied from this environment

RUN = '''"""Predict a folder of images with the models packed beside this file. python run.py --help"""

import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path[:0] = [str(here), str(here / "vendor")]
sys.path.append(str(here / "fallback"))  # last: what is installed wins

from src.submit.batch import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["--output", str(here / "output"), *sys.argv[1:]]))
'''

FAISS = '''"""The one function of faiss that the search needs, over torch: for an image with neither a GPU for cuML nor faiss."""

import numpy as np
import torch

METRIC_INNER_PRODUCT = 0


def knn(queries: np.ndarray, store: np.ndarray, k: int, metric: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact search by inner product."""
    found = (torch.from_numpy(queries) @ torch.from_numpy(store).T).topk(k)
    return found.values.numpy(), found.indices.numpy()
'''

README = """Predicts the sentence embedding of an image's prompt. Nothing to install, no network.

    python run.py --images FOLDER --sample sample_submission.csv --out submission.csv    the competition's file, checked
    python run.py --images FOLDER --out predictions.parquet                              embeddings, confidence, nearest prompts

On Kaggle: upload this folder as a data set, attach it to a notebook with the internet switched off, and let its only cell be

    !python /kaggle/input/THIS-FOLDER/run.py --images /kaggle/input/stable-diffusion-image-to-prompts/images \\
        --sample /kaggle/input/stable-diffusion-image-to-prompts/sample_submission.csv --out /kaggle/working/submission.csv

Taken from the image: Python 3.11 or newer, torch, torchvision, timm, transformers, safetensors, numpy, scipy, scikit-learn, polars,
pyarrow, pillow, tqdm; cuML where there is a GPU. Carried in vendor/: {carried}. Where neither cuML nor faiss can
search, fallback/faiss.py does, with torch. Stopped half-way it goes on when started again.
"""


def write(output: Path, folder: Path) -> Path:
    """Copy what inference needs into `folder`: models, store, CLIPs, code, run.py, README.txt.

    Problem when it is not empty or a CLIP is not a local folder; what `Predictor` raises where `output` cannot predict.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"--pack: {display_path(folder)} is not empty")
    clips, clips_b = clip_names(output)
    if hub := sorted(
        clip for clip in {*clips.values(), *clips_b.values()} if not clip.startswith(encoder.LOCAL)
    ):
        raise UserError(
            f"--pack: the CLIP {hub[0]!r} is read from a hub; train with clip=local-dir:<folder> to pack it"
        )
    Predictor(
        output, device="cpu"
    )  # what cannot predict is refused here, not on the machine that it is packed for
    used = used_members(artifacts.load_json(output / paths.BLEND)["weights"], list(clips))
    clips = {name: clips[name] for name in used}
    files = [output / name for name in FILES if (output / name).exists()]
    files += routes.files(output)
    bases = [base for name in clips for base in fold_bases(output, name)]
    files += [
        base.with_name(base.name + suffix) for base in bases for suffix in (".safetensors", ".json")
    ]
    for file in files:
        target = folder / "output" / file.relative_to(output)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(file, target) if file.is_dir() else shutil.copyfile(file, target)
    shutil.copytree(
        paths.ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__")
    )
    _pack_clips(folder, clips, clips_b)
    carried = [_carry(name, folder / "vendor") for name in CARRIED]
    (folder / "fallback").mkdir()
    (folder / "fallback" / "faiss.py").write_text(FAISS, encoding="utf-8")
    (folder / "run.py").write_text(RUN, encoding="utf-8")
    (folder / "README.txt").write_text(README.format(carried=", ".join(carried)), encoding="utf-8")
    return folder


def _pack_clips(folder: Path, clips: dict[str, str], clips_b: dict[str, str]) -> None:
    """Copy each CLIP's folder and let the packed output name the copies."""
    places, copies = {}, {}
    for clip in sorted({*clips.values(), *clips_b.values()}):
        plain, size = encoder.sized(clip)
        if plain not in copies:
            copies[plain] = f"clip/{len(copies)}"
            shutil.copytree(encoder.local_folder(plain), folder / copies[plain])
        places[clip] = f"{encoder.LOCAL}{copies[plain]}" + (f"@{size}" if size else "")
    for file, used, alone in (
        (paths.MEMBERS_A, clips, list(clips)),
        (paths.MEMBERS_B, clips_b, ["model_b"]),
    ):
        members = folder / "output" / file
        known = artifacts.load_json(members) if members.exists() else {"members": alone}
        artifacts.save_json(
            members, {**known, "clip": {name: places[clip] for name, clip in used.items()}}
        )
    blend = folder / "output" / paths.BLEND
    artifacts.save_json(
        blend, {**artifacts.load_json(blend), "clip": places[next(iter(clips_b.values()))]}
    )


def _carry(name: str, vendor: Path) -> str:
    shutil.copytree(
        Path(find_spec(name).origin).parent,
        vendor / name,
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    return f"{name} {version(packages_distributions()[name][0])}"
