"""What the checks need to know of a CLIP, and the CLIPs that were found to load.

Loading one takes seconds, mostly imports. The facts are kept in the output's cache and hold until
the CLIP's files, its parameters, the code that loads and cuts it, the libraries or the machine's
GPU change.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

from src import paths
from src.artifacts import fingerprint, load_json, save_json
from src.runner.params import input_paths

FILE = f"{paths.CACHE}/checked_clips.json"
CODE = (paths.ROOT / "src/encoder", paths.ROOT / "src/model_a")  # loads CLIPs and cuts towers
LIBRARIES = ("torch", "open_clip_torch", "timm", "transformers")
GPU_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class TowerSize:
    """What one CLIP's tower takes in a fine-tune."""

    trained_parameters: int
    activation_bytes: dict[int, int]  # by cut: the frozen activations of one image


@dataclass
class ClipFacts:
    """A CLIP that loads: side of its images in pixels, width of its embeddings, whether it reads
    text, and its tower by the recipes that it was cut by.
    """

    size: int
    width: int
    has_text: bool
    towers: dict[str, TowerSize] = field(default_factory=dict)


def load_facts(output: Path) -> dict[str, ClipFacts]:
    """The facts of earlier checks, by what they depend on; none where the file was changed."""
    known: dict[str, ClipFacts] = {}
    # facts that cannot be read are found again by the next check
    with suppress(OSError, ValueError, TypeError, LookupError):
        for key, content in load_json(output / FILE).items():
            towers = {name: _tower(size) for name, size in content.pop("towers").items()}
            known[key] = ClipFacts(**content, towers=towers)
    return known


def save_facts(output: Path, known: dict[str, ClipFacts]) -> None:
    """Write the facts; an output that cannot be written is reported by another check."""
    with suppress(OSError):
        (output / FILE).parent.mkdir(parents=True, exist_ok=True)
        save_json(output / FILE, {key: asdict(facts) for key, facts in known.items()})


def _tower(content: dict) -> TowerSize:
    """As it was saved; JSON has no keys that are numbers."""
    n_bytes = {int(cut): n for cut, n in content["activation_bytes"].items()}
    return TowerSize(content["trained_parameters"], n_bytes)


def key_of_clip(clip: str, device: str) -> str:
    """What the facts of a CLIP depend on: name and files, our code, libraries, device, driver."""
    # a CLIP of a folder is known by its files, one of a hub by its name alone
    folder = next(iter(input_paths({"clip": clip}).values()), None)
    driver = GPU_DRIVER.read_text() if GPU_DRIVER.exists() else ""
    versions = [version(name) for name in LIBRARIES]
    code = [file.read_text() for package in CODE for file in sorted(package.glob("*.py"))]
    return fingerprint(clip, folder, code, versions, device, driver)


def key_of_recipe(recipe: object) -> str:
    """What a tower's size depends on: every setting of the recipe."""
    return json.dumps(vars(recipe), sort_keys=True, default=str)
