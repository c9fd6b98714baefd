"""`./run_all.sh predict`: a folder of images to one file, part by part.

Images are decoded while the models work, and each part of the result lies on disk before the next
begins: the same command goes on where a stopped run was.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import polars as pl
from tqdm import tqdm

from src import artifacts, paths
from src.data import sample_submission
from src.errors import UserError
from src.metrics import l2_normalize
from src.model_a.averaging import recorded_averaging
from src.paths import as_text, display_path
from src.submit import command_line, submission
from src.submit.decoding import BatchDecoder, DecodedImage
from src.submit.folder import ImageFolder, read_folder
from src.submit.parts import Parts, escape_formulas
from src.submit.predictor import (
    NO_IMAGES,
    PART_SIZE,
    Prediction,
    Predictor,
    fold_bases,
    stack,
)

FORMATS = (".parquet", ".csv", ".npy")


# --- any number of images ---


def predict_folder(
    predictor: Predictor,
    source: ImageFolder,
    out: Path,
    *,
    batch_size: int = 64,
    part_size: int = PART_SIZE,
) -> tuple[int, pl.DataFrame]:
    """Predict the images of `source` into `out` (.parquet, .csv or .npy).

    Returns how many were predicted, and `id, reason` of those that cannot be read, which
    `<out>.rejected.csv` shows. Finished parts of an earlier run over the same images with the same
    models are kept. UserError when no image can be read.
    """
    names = source.images
    part_names = [names[start : start + part_size] for start in range(0, len(names), part_size)]
    key = {
        "images": artifacts.fingerprint(_file_stamps(source.folder, names)),
        "models": fingerprint(predictor),
        "part_size": part_size,
        "batch_size": batch_size,
        "neighbors": predictor.neighbors,
    }
    parts = Parts(out, key, len(part_names))
    missing = parts.missing()

    # one decoder for all parts, so that it works ahead from one to the next
    batches = [
        part_names[n][start : start + batch_size]
        for n in missing
        for start in range(0, len(part_names[n]), batch_size)
    ]
    decoded = iter(BatchDecoder(predictor, source.folder, batches))
    done = len(names) - sum(map(len, batches))
    with tqdm(total=len(names), initial=done, desc="images", unit="image") as bar:
        for n in missing:
            count = -(-len(part_names[n]) // batch_size)
            parts.write(n, *_predict_part(predictor, islice(decoded, count), bar))

    rejected = parts.rejected()
    _list_rejected(out, rejected)
    if len(rejected) == len(names):
        raise UserError(
            f"none of the {len(names)} images in {display_path(source.folder)} can be read; "
            f"see {display_path(rejected_list(out))}"
        )
    facts = {
        "images": as_text(str(source.folder)),
        "sentence_model": predictor.sentence_model,
    }
    parts.assemble(facts)
    parts.remove()
    return len(names) - len(rejected), rejected


def _predict_part(
    predictor: Predictor, batches: Iterable[list[DecodedImage]], bar: tqdm
) -> tuple[list[str], Prediction, list[tuple[str, str]]]:
    """Ids and prediction of the images that can be read, (id, reason) of the others."""
    ids = []
    encoded = []
    rejected = []
    for batch in batches:
        pixels = []
        for image in batch:
            if image.pixels is None:
                rejected.append((image.name, image.reason))
            else:
                ids.append(image.name)
                pixels.append(image.pixels)

        # a batch of which no image can be read has nothing to stack
        if pixels:
            encoded.append(predictor.encode(stack(pixels)))
        bar.update(len(batch))
    return ids, predictor.blend(encoded) if encoded else NO_IMAGES, rejected


def rejected_list(out: Path) -> Path:
    """The list of images that cannot be read, to be looked at."""
    return out.with_name(out.name + ".rejected.csv")


def _list_rejected(out: Path, rejected: pl.DataFrame) -> None:
    rejected_list(out).unlink(missing_ok=True)
    if len(rejected):
        shown = rejected.with_columns(escape_formulas(pl.col("reason")))
        artifacts.save_table(rejected_list(out), shown)


def _file_stamps(folder: Path, names: Sequence[str]) -> list[tuple[str, int, int]]:
    """Name, size and time of change of each file."""
    stamps = []
    for name in names:
        try:
            status = (folder / name).stat()
        except OSError:  # a link to nowhere; decoding gives the reason
            stamps.append((name, -1, -1))
        else:
            stamps.append((name, status.st_size, status.st_mtime_ns))
    return stamps


def fingerprint(predictor: Predictor) -> str:
    """Changes with the blend, the folds' weights and averaging, the CLIPs, Model B's store."""
    output = predictor.output
    ensembles = predictor.ensembles.values()
    clips = sorted(ensemble.clip.fingerprint for ensemble in ensembles)
    folds = [
        base.with_name(base.name + ".safetensors")
        for ensemble in ensembles
        for member in ensemble.members
        for base in fold_bases(output, member)
    ]
    files = [output / file for file in (paths.BLEND, paths.CHOICE_B, paths.STORE)]
    averaging = recorded_averaging(output).as_json()
    return artifacts.fingerprint(clips, averaging, *folds, *files)


# --- a submission ---


def predict_submission(
    predictor: Predictor, source: ImageFolder, sample: Path, out: Path, *, batch_size: int = 64
) -> tuple[int, int]:
    """The competition's submission for the ids of `sample`, written and checked.

    Returns how many ids were predicted and how many filled: an image that cannot be read gets the
    mean of the other predictions and confidence 0, since one broken file must not cost the whole
    submission. UserError when an id has no image, or more than one.
    """
    ids = sample_submission.sample_ids(sample)
    predicted = out.with_name(out.stem + ".predicted.parquet")
    _, rejected = predict_folder(predictor, source, predicted, batch_size=batch_size)

    table = pl.read_parquet(predicted, glob=False).with_columns(_stems("id"))
    doubled = table.filter(pl.col("id").is_duplicated() & pl.col("id").is_in(ids))["id"]
    if len(doubled):
        examples = doubled.unique(maintain_order=True)
        raise UserError(
            f"{display_path(source.folder)}: {len(examples)} ids have more than one image, "
            f"e.g. {examples[:3].to_list()}"
        )
    readable = set(table["id"])
    unreadable = set(rejected.with_columns(_stems("id"))["id"]) - readable
    missing = [i for i in ids if i not in readable and i not in unreadable]
    if missing:
        skipped = source.summary()
        raise UserError(
            f"{display_path(sample)}: {len(missing)} of {len(ids)} ids have no image in "
            f"{display_path(source.folder)}, e.g. {missing[:3]}"
            + (f"; {skipped}" if skipped else "")
        )

    filled = [i for i in ids if i in unreadable]
    x = table["embedding"].to_numpy()
    mean = l2_normalize(x.mean(axis=0, keepdims=True))
    x = np.concatenate([x, np.repeat(mean, len(filled), axis=0)])
    no_confidence = np.zeros(len(filled), np.float32)
    confidence = np.concatenate([table["confidence"].to_numpy(), no_confidence])

    index = artifacts.indices_of_ids([*table["id"], *filled], ids, display_path(predicted))
    submission.write(ids, x[index], out, sample, confidence=confidence[index])
    submission.check(out, sample)
    return len(ids) - len(filled), len(filled)


def _stems(column: str) -> pl.Expr:
    """The last part of each path, without its ending: the competition's ids."""
    return pl.col(column).map_elements(lambda name: Path(name).stem, return_dtype=pl.String)


# --- the command line ---


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="./run_all.sh predict",
        description="Embeddings, confidence and nearest prompts of a folder of images, by the "
        "models in output/. A stopped run continues with the same command.",
    )
    option = parser.add_argument
    option("--images", metavar="FOLDER", required=True, help="images, sub-folders included")
    option(
        "--out",
        metavar="FILE",
        required=True,
        help="the result: .parquet (everything), .csv or .npy",
    )
    option(
        "--sample",
        metavar="FILE",
        help="a sample_submission.csv: --out becomes a checked submission in its order",
    )
    option(
        "--batch-size",
        type=int,
        default=64,
        metavar="N",
        help="images per batch (default: %(default)s)",
    )
    command_line.add_output(parser)
    command_line.add_engine(parser)
    command_line.add_device(parser)

    options = parser.parse_args(argv)
    formats = (".csv",) if options.sample else FORMATS
    if Path(options.out).suffix not in formats:
        parser.error(
            f"--out must end in {', '.join(FORMATS)} (with --sample: .csv), got {options.out}"
        )
    if options.batch_size < 1:
        parser.error(f"--batch-size must be at least 1, got {options.batch_size}")
    return options


def main(argv: list[str] | None = None) -> int:
    """Entry point: 0 done, 2 refused, 130 interrupted (the same command goes on)."""
    options = arguments(argv)
    try:
        return command_line.exit_status(_predict, options)
    except KeyboardInterrupt:
        print("\nstopped; the same command continues from here", file=sys.stderr)
        return 130


def _predict(options: argparse.Namespace) -> None:
    out = artifacts.check_writable(Path(options.out).absolute())
    source = read_folder(Path(options.images).absolute())  # refused before the models are loaded
    predictor = Predictor(options.output, device=options.device, engine=options.engine)

    if options.sample:
        sample = Path(options.sample).absolute()
        good, filled = predict_submission(
            predictor, source, sample, out, batch_size=options.batch_size
        )
        print(f"{display_path(out)}: {good} images, checked", end="")
        print(f"; {filled} unreadable ones have the mean prediction" if filled else "")
    else:
        good, rejected = predict_folder(predictor, source, out, batch_size=options.batch_size)
        listed = display_path(rejected_list(out))
        print(f"{display_path(out)}: {good} images", end="")
        print(f"; {len(rejected)} could not be read: {listed}" if len(rejected) else "")
    if source.skipped:
        print(source.summary())


if __name__ == "__main__":
    sys.exit(main())
