"""`./run_all.sh pack FOLDER`: models, store, CLIPs and code in one folder, for a machine without
internet such as a Kaggle notebook.
"""

import argparse
import shutil
import sys
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

from src import artifacts, encoder, paths
from src.ensemble.confidence import load_weights
from src.errors import UserError
from src.model_b import model
from src.paths import display_path, resolve
from src.submit import command_line, kaggle
from src.submit.predictor import Predictor, clip_names, fold_bases, used_members

FILES = (
    paths.MEMBERS_A,
    paths.MEMBERS_B,
    paths.BLEND,
    f"{paths.STAGES[1]}/{paths.META}",
    f"{paths.STAGES[2]}/{paths.META}",
)
# pure Python, and not on every hosted image: copied from this environment
VENDORED = ("open_clip", "ftfy", "wcwidth")
PACKED = Path(__file__).with_name("packed")  # the programs that only a pack needs
NO_CACHES = shutil.ignore_patterns("__pycache__")


def write(output: Path, folder: Path) -> Path:
    """Copy what inference needs into `folder`: models, store, CLIPs, code, run.py, README.md.

    UserError when it is not empty or a CLIP is not a local folder; what `Predictor` raises where
    `output` cannot predict.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"pack: {display_path(folder)} is not empty")
    clips_a, clips_b = clip_names(output)
    from_hub = {
        clip for clip in (*clips_a.values(), *clips_b.values()) if not encoder.is_local(clip)
    }
    if from_hub:
        raise UserError(
            f"pack: the CLIP {min(from_hub)!r} is read from a hub; train with "
            "clip=local-dir:<folder> to pack it"
        )
    # what cannot predict is refused here, not on the machine that it is packed for
    Predictor(output, device="cpu")

    weights = load_weights(output, new_images=True)
    clips_a = {name: clips_a[name] for name in used_members(weights, list(clips_a))}
    for file in _files(output, list(clips_a)):
        target = folder / "output" / file.relative_to(output)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            shutil.copytree(file, target)
        else:
            shutil.copyfile(file, target)
    _pack_clips(folder, clips_a, clips_b)
    _pack_code(folder)
    return folder


def _files(output: Path, members: list[str]) -> list[Path]:
    """What prediction reads below `output`, for the given members of Model A."""
    files = [output / name for name in FILES if (output / name).exists()]
    files += model.files(output)
    for member in members:
        for base in fold_bases(output, member):
            files += [base.with_name(base.name + suffix) for suffix in (".safetensors", ".json")]
    return files


def _pack_clips(folder: Path, clips_a: dict[str, str], clips_b: dict[str, str]) -> None:
    """Copy each CLIP's folder, and let the packed output name the copies."""
    copies: dict[str, str] = {}  # folder of a CLIP -> its copy
    packed_names = {}  # CLIP as the output names it -> as the packed output does
    for clip in sorted({*clips_a.values(), *clips_b.values()}):
        plain, size = encoder.sized(clip)
        if plain not in copies:
            copies[plain] = f"clip/{len(copies)}"
            shutil.copytree(encoder.local_folder(plain), folder / copies[plain])
        kind = encoder.TIMM if plain.startswith(encoder.TIMM) else ""
        suffix = f"@{size}" if size else ""
        packed_names[clip] = f"{kind}{encoder.LOCAL}{copies[plain]}{suffix}"

    # the packed files name the copies; those of the output itself are not touched
    output = folder / "output"
    _name_clips(output / paths.MEMBERS_A, clips_a, packed_names, list(clips_a))
    _name_clips(output / paths.MEMBERS_B, clips_b, packed_names, ["model_b"])
    blend = artifacts.load_json(output / paths.BLEND)
    default = packed_names[next(iter(clips_b.values()))]
    artifacts.save_json(output / paths.BLEND, {**blend, "clip": default})


def _name_clips(
    file: Path, clips: dict[str, str], packed_names: dict[str, str], members: list[str]
) -> None:
    """Write the packed names of `clips` into a members file; `members` where there is no file."""
    content = artifacts.load_json(file) if file.exists() else {"members": members}
    named = {name: packed_names[clip] for name, clip in clips.items()}
    artifacts.save_json(file, {**content, "clip": named})


def _pack_code(folder: Path) -> None:
    """The package, what it needs and may lack, and how to run it."""
    shutil.copytree(paths.ROOT / "src", folder / "src", ignore=NO_CACHES)
    shutil.copyfile(PACKED / "run.py", folder / "run.py")
    (folder / "fallback").mkdir()
    shutil.copyfile(PACKED / "faiss.py", folder / "fallback" / "faiss.py")

    carried = [_vendor(name, folder / "vendor") for name in VENDORED]
    readme = (PACKED / "README.md").read_text(encoding="utf-8")
    text = readme.format(carried=", ".join(carried))
    (folder / "README.md").write_text(text, encoding="utf-8")


def _vendor(name: str, vendor: Path) -> str:
    """Copy an installed package; its name and version."""
    spec = find_spec(name)
    assert spec is not None and spec.origin is not None  # requirements.txt has it
    shutil.copytree(Path(spec.origin).parent, vendor / name, ignore=NO_CACHES)
    return f"{name} {version(packages_distributions()[name][0])}"


# --- the command line ---


def main(argv: list[str] | None = None) -> int:
    """Entry point: 0 done, 2 refused."""
    parser = argparse.ArgumentParser(
        prog="./run_all.sh pack",
        description="Put models, datastore and code into a folder, for a machine without internet.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="the pack: an empty or a new folder")
    command_line.add_output(parser)
    parser.add_argument(
        "--kaggle-user",
        default=kaggle.USER,
        metavar="NAME",
        help="your user name on Kaggle, for the files that upload the pack",
    )
    parser.add_argument(
        "--kaggle-name",
        default=kaggle.NAME,
        metavar="NAME",
        help="the data set's name there (default: %(default)s)",
    )
    return command_line.exit_status(_pack, parser.parse_args(argv))


def _pack(options: argparse.Namespace) -> None:
    kaggle.check_names(options.kaggle_user, options.kaggle_name)
    folder = write(resolve(options.output), Path(options.folder).absolute())
    commands = kaggle.write(folder, user=options.kaggle_user, name=options.kaggle_name)
    print(f"packed into {display_path(folder)}; to upload it to Kaggle:")
    print(*(f"    {command}" for command in commands), sep="\n")
    if options.kaggle_user == kaggle.USER:
        print(f"    first put your user name in place of {kaggle.USER} in the two metadata files")


if __name__ == "__main__":
    sys.exit(main())
