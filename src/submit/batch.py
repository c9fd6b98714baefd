"""A folder of new images to one file, part by part: a stopped run goes on where it was."""

import argparse
import os
import shutil
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from itertools import count
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from tqdm import tqdm

from src import artifacts, paths
from src.data import sample_submission
from src.errors import UserError
from src.metrics import l2_normalize
from src.paths import as_text, display_path, resolve
from src.submit import submission
from src.submit.predictor import (
    NOTHING,
    PART,
    SUFFIXES,
    ImageBatch,
    Prediction,
    Predictor,
    fold_bases,
    stack,
)

FORMATS = (".parquet", ".csv", ".npy")
KEY = "key.json"


# --- any number of images, in parts on disk ---


def images_in(folder: Path) -> list[str]:
    """The images below `folder` by their suffix, as sorted paths relative to it. Problem when there is none."""
    if not folder.is_dir():
        raise UserError(f"--images: {display_path(folder)} is no folder")
    found = []
    for parent, _, files in os.walk(folder):
        found += [
            (Path(parent) / file).relative_to(folder).as_posix()
            for file in files
            if file.lower().endswith(SUFFIXES) and not file.startswith(".")
        ]
    if not found:
        raise UserError(
            f"--images: no image ({', '.join(SUFFIXES)}) in {display_path(folder)} or below it"
        )
    return sorted(found)


def run(
    predictor: Predictor, folder: Path, out: Path, *, batch_size: int = 64, part: int = PART
) -> tuple[int, int]:
    """Predict every image below `folder` into `out` (.parquet, .csv or .npy); how many were predicted and rejected.

    Finished parts of an earlier run over the same images with the same models are kept. Images that cannot be read are
    listed in `<out>.rejected.csv`. Raises Problem when no image could be read.
    """
    names, parts = images_in(folder), parts_folder(out)
    _begin(
        parts,
        {
            "images": artifacts.fingerprint(_stamps(folder, names)),
            "models": fingerprint(predictor),
            "part": part,
            "batch_size": batch_size,
            "neighbours": predictor.neighbours,
        },
    )
    todo = [
        start
        for start in range(0, len(names), part)
        if not _part_file(parts, start // part).exists()
    ]
    left = sum(min(part, len(names) - start) for start in todo)
    with tqdm(total=len(names), initial=len(names) - left, desc="images", unit="image") as bar:
        decoded = _decoded(
            predictor, folder, (names[start : start + part] for start in todo), batch_size
        )
        for start, batches in zip(todo, decoded, strict=True):
            _write_part(parts, start // part, *_predicted(predictor, batches, bar))
    rejected = pl.concat(
        [artifacts.load_table(_rejected_file(parts, n)) for n in range(-(-len(names) // part))]
    )
    _list_rejected(out, rejected)
    if len(rejected) == len(names):
        raise UserError(
            f"none of the {len(names)} images in {display_path(folder)} can be read; see {display_path(rejected_list(out))}"
        )
    _assemble(parts, -(-len(names) // part), out)
    shutil.rmtree(parts)
    return len(names) - len(rejected), len(rejected)


def parts_folder(out: Path) -> Path:
    """Where the parts of `out` lie until it is whole."""
    return out.with_name(out.name + ".parts")


def rejected_list(out: Path) -> Path:
    """The list of images that could not be read."""
    return out.with_name(out.name + ".rejected.csv")


def _stamps(folder: Path, names: Sequence[str]) -> list[tuple[str, int, int]]:
    def stamp(file: Path) -> tuple[int, int]:
        try:
            return file.stat().st_size, file.stat().st_mtime_ns
        except OSError:  # a link to nowhere; reading it will say so
            return -1, -1

    return [(name, *stamp(folder / name)) for name in names]


def fingerprint(predictor: Predictor) -> str:
    """Changes with the blend, the weights of the folds, the CLIPs and the store."""
    output = predictor.output
    trunks = predictor.trunks.values()
    folds = [
        base.with_name(base.name + ".safetensors")
        for trunk in trunks
        for name in trunk.members
        for base in fold_bases(output, name)
    ]
    return artifacts.fingerprint(
        sorted(trunk.clip.fingerprint for trunk in trunks),
        *folds,
        *(output / file for file in (paths.BLEND, paths.CHOICE_B, paths.STORE)),
    )


def _begin(parts: Path, key: dict) -> None:
    """Keep the parts of an earlier run with the same key, else start anew. Problem when the folder is not one of parts."""
    if parts.exists() and not (parts / KEY).exists() and any(parts.iterdir()):
        raise UserError(
            f"{display_path(parts)} is there and holds no {KEY}: not parts of a prediction, so it is left alone"
        )
    if (parts / KEY).exists() and artifacts.load_json(parts / KEY) == key:
        return
    shutil.rmtree(parts, ignore_errors=True)
    artifacts.save_json(parts / KEY, key)


def _decoded(
    predictor: Predictor, folder: Path, parts: Iterable[Sequence[str]], batch_size: int
) -> Iterator[Iterator[list[tuple[str, ImageBatch | str]]]]:
    """For each part, its batches of (name, pixels or reason); decoding runs ahead of the caller, across parts."""

    def attempt(name: str) -> ImageBatch | str:
        try:
            return predictor.decode(folder / name)
        except (
            Exception
        ) as error:  # decoders raise what they like on broken input, and none of it may stop a run
            return f"{type(error).__name__}: {error}".split("\n")[0][:200]

    jobs = (
        (n, names[i : i + batch_size])
        for n, names in enumerate(parts)
        for i in range(0, len(names), batch_size)
    )
    waiting: deque[tuple[int, Sequence[str], list[Future]]] = deque()

    def submit() -> None:
        while len(waiting) <= predictor.ahead and (job := next(jobs, None)) is not None:
            waiting.append((*job, [predictor.pool.submit(attempt, name) for name in job[1]]))

    def batches(part: int) -> Iterator[list[tuple[str, ImageBatch | str]]]:
        submit()
        while waiting and waiting[0][0] == part:
            _, names, futures = waiting.popleft()
            yield [(name, future.result()) for name, future in zip(names, futures, strict=True)]
            submit()

    submit()
    for part in count():
        if not waiting:
            return
        yield batches(part)


def _predicted(
    predictor: Predictor, batches: Iterable[list[tuple[str, ImageBatch | str]]], bar: tqdm
) -> tuple[list[str], Prediction, list[tuple[str, str]]]:
    names, seen, rejected = [], [], []
    for batch in batches:
        good = [(as_text(name), pixels) for name, pixels in batch if not isinstance(pixels, str)]
        rejected += [
            (as_text(name), as_text(reason)) for name, reason in batch if isinstance(reason, str)
        ]
        if good:
            seen.append(predictor.see(stack([pixels for _, pixels in good])))
            names += [name for name, _ in good]
        bar.update(len(batch))
    return names, predictor.find(seen) if seen else NOTHING, rejected


def _part_file(parts: Path, n: int) -> Path:
    return parts / f"{n:06d}.parquet"


def _rejected_file(parts: Path, n: int) -> Path:
    return parts / f"{n:06d}.rejected.parquet"


def _write_part(
    parts: Path, n: int, names: list[str], found: Prediction, rejected: list[tuple[str, str]]
) -> None:
    """The list of rejected images first: the part itself says that both are there."""
    schema = {"id": pl.String, "reason": pl.String}
    artifacts.save_table(
        _rejected_file(parts, n), pl.DataFrame(rejected, schema=schema, orient="row")
    )
    artifacts.save_table(
        _part_file(parts, n),
        pl.DataFrame(
            {
                "id": pl.Series(names, dtype=pl.String),
                "embedding": pl.Series(
                    found.embedding, dtype=pl.Array(pl.Float32, sample_submission.WIDTH)
                ),
                "confidence": pl.Series(found.confidence, dtype=pl.Float32),
                "prompts": pl.Series(found.prompts, dtype=pl.List(pl.String)),
                "similarity": pl.Series(found.similarity.tolist(), dtype=pl.List(pl.Float32)),
            }
        ),
    )


def _list_rejected(out: Path, rejected: pl.DataFrame) -> None:
    rejected_list(out).unlink(missing_ok=True)
    if len(rejected):
        artifacts.save_table(rejected_list(out), rejected.with_columns(harmless(pl.col(pl.String))))


def harmless(text: pl.Expr) -> pl.Expr:
    """Text for a CSV: what a spreadsheet would take for a formula begins with an apostrophe instead."""
    return text.str.replace(r"^([\s\p{Cc}\p{Cf}]*[=+\-@\t\r\n＝＋－＠])", "'${1}")


def _assemble(parts: Path, number: int, out: Path) -> None:
    """One file from the parts, one part in memory at a time."""
    files = [_part_file(parts, n) for n in range(number)]
    with artifacts.atomic(out) as temporary:
        if out.suffix == ".parquet":
            with pq.ParquetWriter(temporary, pq.read_schema(files[0])) as writer:
                for file in files:
                    writer.write_table(pq.read_table(file))
        elif out.suffix == ".csv":
            with temporary.open("wb") as stream:
                for n, file in enumerate(files):
                    _flat(pl.read_parquet(file)).write_csv(stream, include_header=n == 0)
        else:
            _write_array(files, temporary)
            table = pl.concat([pl.read_parquet(file).drop("embedding") for file in files])
            artifacts.save_table(out.with_name(out.stem + ".ids.parquet"), table)


def _flat(part: pl.DataFrame) -> pl.DataFrame:
    """A part as a CSV's columns: id, confidence, the nearest prompt, its similarity, e0 .. e383."""
    names = [f"e{i}" for i in range(sample_submission.WIDTH)]
    numbers = pl.DataFrame(
        part["embedding"].to_numpy().reshape(-1, sample_submission.WIDTH), schema=names
    )
    told = part.select(
        harmless(pl.col("id")),
        "confidence",
        prompt=harmless(pl.col("prompts").list.first()),
        similarity=pl.col("similarity").list.first(),
    )
    return pl.concat([told, numbers], how="horizontal")


def _write_array(files: Sequence[Path], path: Path) -> None:
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    array, at = artifacts.reserved(path, np.float32, (rows, sample_submission.WIDTH)), 0
    for file in files:
        part = (
            pl.read_parquet(file, columns=["embedding"])["embedding"]
            .to_numpy()
            .reshape(-1, sample_submission.WIDTH)
        )
        array[at : at + len(part)] = part
        at += len(part)
    array.flush()


def submit(
    predictor: Predictor, folder: Path, sample: Path, out: Path, *, batch_size: int = 64
) -> tuple[int, int]:
    """The competition's submission for the ids of `sample`, written and checked; how many were predicted and filled.

    An image that cannot be read gets the mean of the other predictions and confidence 0: one broken file must not cost the
    whole submission. Raises Problem when an id has no image at all.
    """
    ids = sample_submission.sample_ids(sample)
    whole = out.with_name(out.stem + ".predicted.parquet")
    run(predictor, folder, whole, batch_size=batch_size)
    table = pl.read_parquet(whole)
    table = table.with_columns(
        id=pl.Series([Path(name).stem for name in table["id"]], dtype=pl.String)
    )
    doubled = table.filter(pl.col("id").is_duplicated() & pl.col("id").is_in(ids))["id"].unique(
        maintain_order=True
    )
    if len(doubled):
        raise UserError(
            f"{display_path(folder)}: {len(doubled)} ids have more than one image, e.g. {doubled[:3].to_list()}"
        )
    listed = rejected_list(whole)
    broken = {Path(name).stem for name in pl.read_csv(listed)["id"]} if listed.exists() else set()
    broken -= set(table["id"])
    missing = [i for i in ids if i not in set(table["id"]) | broken]
    if missing:
        raise UserError(
            f"{display_path(sample)}: {len(missing)} of {len(ids)} ids have no image in {display_path(folder)}, e.g. {missing[:3]}"
        )
    x = np.ascontiguousarray(table["embedding"].to_numpy())
    filled = [i for i in ids if i in broken]
    names, mean = table["id"].to_list() + filled, l2_normalize(x.mean(axis=0, keepdims=True))
    x = np.concatenate([x, np.repeat(mean, len(filled), axis=0)])
    confidence = np.concatenate([table["confidence"].to_numpy(), np.zeros(len(filled), np.float32)])
    places = artifacts.indices_of_ids(names, ids, display_path(whole))
    submission.write(ids, x[places], out, sample, confidence=confidence[places])
    submission.check(out, sample)
    return len(ids) - len(filled), len(filled)


# --- the command line ---


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="./run_all.sh predict",
        description="Embeddings, confidence and nearest prompts of a "
        "folder of images, by the models in output/. Stopped, it goes on when started again.",
    )
    parser.add_argument("--images", metavar="FOLDER", help="images, sub-folders included")
    parser.add_argument(
        "--out", metavar="FILE", help="the result: .parquet (everything), .csv or .npy"
    )
    parser.add_argument(
        "--sample",
        metavar="FILE",
        help="a sample_submission.csv: --out becomes a checked submission in its order",
    )
    parser.add_argument(
        "--pack",
        metavar="FOLDER",
        help="instead: put models, store and code into FOLDER, for a machine that is not connected",
    )
    parser.add_argument(
        "--output",
        default="output",
        metavar="FOLDER",
        help="a trained output folder (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=64,
        metavar="N",
        help="images at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--engine",
        default="auto",
        help="of the nearest prompts: auto, cuml, faiss (default: %(default)s)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    options = parser.parse_args(argv)
    if not options.pack and not (options.images and options.out):
        parser.error("give --images and --out, or --pack")
    if options.out and Path(options.out).suffix not in (
        FORMATS if not options.sample else (".csv",)
    ):
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
        return _command(options)
    except (UserError, FileNotFoundError, ValueError) as problem:
        print(problem, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130


def _command(options: argparse.Namespace) -> int:
    if options.pack:
        from src.submit import pack

        print(
            f"packed into {display_path(pack.write(resolve(options.output), Path(options.pack).absolute()))}"
        )
        return 0
    folder, out = Path(options.images).absolute(), Path(options.out).absolute()
    images_in(folder)  # before the models are loaded
    predictor = Predictor(options.output, device=options.device, engine=options.engine)
    if options.sample:
        good, bad = submit(
            predictor, folder, Path(options.sample).absolute(), out, batch_size=options.batch_size
        )
        print(
            f"{display_path(out)}: {good} images, checked"
            + (f"; {bad} unreadable ones have the mean prediction" if bad else "")
        )
        return 0
    good, bad = run(predictor, folder, out, batch_size=options.batch_size)
    print(
        f"{display_path(out)}: {good} images"
        + (f"; {bad} could not be read: {display_path(rejected_list(out))}" if bad else "")
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
