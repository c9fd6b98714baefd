"""What `kaggle datasets create` and `kaggle kernels push` ask of a pack.

Fields and limits as in the Kaggle API's documentation: docs/datasets_metadata.md and
docs/kernels_metadata.md of the repository Kaggle/kaggle-api.
"""

import re
import shlex
import shutil
from pathlib import Path

from src import artifacts
from src.errors import UserError
from src.paths import display_path

COMPETITION = "stable-diffusion-image-to-prompts"
NOTEBOOK = "submit.ipynb"
KERNEL = "kernel"  # the folder of the notebook inside a pack
NAME = "image-to-prompt-embeddings"
USER = "INSERT_USERNAME_HERE"  # as the API's own templates say it
NAME_LENGTHS = range(6, 51)  # of a data set's title; a slug may be 3 to 50
SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
USER_NAME = re.compile(r"[A-Za-z0-9_-]+")


def check_names(user: str, name: str) -> None:
    """UserError unless `user` and `name` can stand in an address on Kaggle."""
    if not USER_NAME.fullmatch(user):
        raise UserError(f"--kaggle-user: {user!r} is not a user name")
    if not SLUG.fullmatch(name) or len(name) not in NAME_LENGTHS:
        raise UserError(
            f"--kaggle-name: {name!r} must be 6 to 50 small letters, digits and single dashes"
        )


def write(folder: Path, *, user: str = USER, name: str = NAME) -> list[str]:
    """Write the metadata and the notebook of a pack; returns the two commands that upload them."""
    check_names(user, name)
    # a kernel's slug is its title with dashes for spaces, so the two are made from one name
    title = name.replace("-", " ")
    dataset = {
        "title": title,
        "id": f"{user}/{name}",
        "licenses": [{"name": "other"}],
    }
    kernel = {
        "id": f"{user}/{name}-submit",
        "title": f"{title} submit",
        "code_file": NOTEBOOK,
        "language": "python",
        "kernel_type": "notebook",
        "is_private": "true",
        "enable_gpu": "true",
        "enable_internet": "false",
        "dataset_sources": [f"{user}/{name}"],
        "competition_sources": [COMPETITION],
        "kernel_sources": [],
        "model_sources": [],
    }
    artifacts.save_json(folder / "dataset-metadata.json", dataset)
    artifacts.save_json(folder / KERNEL / "kernel-metadata.json", kernel)
    notebook = Path(__file__).with_name("packed") / NOTEBOOK
    shutil.copyfile(notebook, folder / KERNEL / NOTEBOOK)
    place = shlex.quote(display_path(folder))
    kernel_place = shlex.quote(display_path(folder / KERNEL))
    return [
        f"kaggle datasets create -p {place} --dir-mode zip --keep-tabular",
        f"kaggle kernels push -p {kernel_place}",
    ]
