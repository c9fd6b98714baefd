"""New pictures with a trained `output/`: embeddings, a confidence for each, and the nearest prompts.

    from src.predict import Predictor
    predictor = Predictor("output")
    found = predictor(["fox.jpg", "owl.png"])  # found.embedding, found.confidence, found.prompts

`python -m src.predict --images FOLDER --out FILE` does it for any number of pictures: they are decoded while the models work, and
each part of the result lies on disk before the next begins, so a run that was stopped goes on where it was.
"""

import argparse
import os
import shutil
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import torch
from PIL import Image
from tqdm import tqdm

from src import artifacts, encoder, ensemble, images, model_a, model_b, paths, submission
from src.images import Geometry
from src.metrics import unit
from src.paths import as_text, resolve, shown
from src.trunk import Trunk

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FORMATS = (".parquet", ".csv", ".npy")
PART = 1024  # pictures in a part: what a stopped run may lose
KEY = "key.json"

Pixels = dict[Geometry, np.ndarray]  # how a CLIP wants its pictures -> (n, s, s, 3) uint8
Seen = tuple[
    dict[str, np.ndarray], dict[str, np.ndarray]
]  # by member of Model A (n, 384), by CLIP (n, D): float32 unit rows


class Problem(Exception):
    """Something the user can put right: shown without a traceback."""


@dataclass(frozen=True)
class Found:
    """Aligned by picture: embedding (n, 384) float32 unit rows, confidence (n,) float32 expected cosine, nearest prompts."""

    embedding: np.ndarray
    confidence: np.ndarray
    prompts: list[list[str]]
    similarity: np.ndarray


NOTHING = Found(
    np.empty((0, submission.WIDTH), np.float32),
    np.empty(0, np.float32),
    [],
    np.empty((0, 1), np.float32),
)


class Predictor:
    """The members that the blend uses, loaded once.

    FileNotFoundError names the stage whose artifacts are missing, ValueError the one to run again, Problem a CLIP that cannot
    be loaded.
    """

    def __init__(
        self,
        output: str | Path = "output",
        *,
        device: str = "auto",
        engine: str = "auto",
        neighbours: int = 5,
    ):
        self.output, self.neighbours = resolve(output), neighbours
        self.weights = artifacts.load_json(self.output / paths.BLEND)["weights"]
        self.confidence = ensemble.load_confidence(self.output)
        self.sides = ensemble.member_names(self.output)
        clips, self.clips_b = clip_names(self.output)
        used = used_members(self.weights, self.sides[0])
        self.trunks = {}
        for clip in {*self.clips_b.values(), *(clips[name] for name in used)}:
            try:
                loaded = encoder.load(clip, device=device)
            except RuntimeError as error:
                raise Problem(error) from error
            self.trunks[clip] = Trunk(
                loaded,
                {
                    name: [
                        model_a.load_fold(base, loaded) for base in fold_bases(self.output, name)
                    ]
                    for name in used
                    if clips[name] == clip
                },
            )
        self.b = replace(model_b.load(self.output, engine=engine), depth=neighbours)
        self.geometries = {trunk.clip.geometry for trunk in self.trunks.values()}
        self.pool = ThreadPoolExecutor(
            os.cpu_count(), "decode", torch.set_num_threads, (1,)
        )  # one picture a thread
        # on a GPU the next batches are decoded while it works; on a CPU both would only fight for the same cores
        self.ahead = (
            2 if any(trunk.clip.device.type == "cuda" for trunk in self.trunks.values()) else 0
        )

    def __call__(
        self, pictures: Sequence[str | Path | Image.Image], *, batch_size: int = 64
    ) -> Found:
        """Predict pictures (paths or PIL) in order; raises what `images.decode` raises on a broken one."""
        parts = []
        for first in range(0, len(pictures), PART):
            part = pictures[first : first + PART]
            batches = (
                part[start : start + batch_size] for start in range(0, len(part), batch_size)
            )
            parts.append(
                self.find(
                    [self.see(stack(list(self.pool.map(self.decode, batch)))) for batch in batches]
                )
            )
        return join(parts) if parts else NOTHING

    def decode(self, picture: str | Path | Image.Image) -> Pixels:
        """One picture as each CLIP in use wants it, decoded as the stages decode theirs: (s, s, 3) uint8 each."""
        if isinstance(picture, Image.Image):
            return {
                geometry: images.resized(picture.convert("RGB"), geometry)
                for geometry in self.geometries
            }
        content = Path(picture).read_bytes()
        return {geometry: images.from_bytes(content, geometry) for geometry in self.geometries}

    def see(self, pixels: Pixels) -> Seen:
        """What the towers make of a batch of decoded pictures."""
        members, embeddings = {}, {}
        for name, trunk in self.trunks.items():
            embeddings[name], predictions = trunk(pixels[trunk.clip.geometry])
            members |= predictions
        return members, embeddings

    def find(self, seen: Sequence[Seen]) -> Found:
        """The search and the blend, for all batches at once: the store is made ready as long for one picture as for a thousand."""
        members, embeddings = (
            {name: np.concatenate([batch[kind][name] for batch in seen]) for name in seen[0][kind]}
            for kind in (0, 1)
        )
        prediction, similarity, index = self.b.predict(
            {column: embeddings[clip] for column, clip in self.clips_b.items()}
        )
        members |= dict.fromkeys(used_members(self.weights, self.sides[1]), prediction)
        sides = tuple([name for name in side if name in members] for side in self.sides)
        members = {name: members[name] for side in sides for name in side}
        weights = {name: self.weights[name] for name in members}
        blend, agreement = (
            ensemble.combine(members, weights),
            ensemble.agreement(members, weights, sides),
        )
        prompts = self.b.store["prompt"].gather(index.ravel()).to_list()
        return Found(
            blend,
            self.confidence(blend, agreement),
            [prompts[i : i + index.shape[1]] for i in range(0, len(prompts), index.shape[1])],
            similarity,
        )


def used_members(weights: dict[str, float], side: Sequence[str]) -> list[str]:
    """The members of a side that the blend uses; all of them where none has a weight: they still take part in the agreement."""
    return [name for name in side if weights[name] > 0] or list(side)


def clip_names(output: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The CLIP behind each member of Model A, and behind each column of keys that Model B's routes look up, in their order."""
    first = artifacts.load_json(output / paths.BLEND)["clip"]
    a, b = (
        (artifacts.load_json(output / file) if (output / file).exists() else {}).get("clip", {})
        for file in (paths.MEMBERS_A, paths.MEMBERS_B)
    )
    columns = [
        part["route"]["clip"] for part in artifacts.load_json(output / paths.CHOICE_B)["parts"]
    ]
    return (
        {name: a.get(name, first) for name in ensemble.member_names(output)[0]},
        {column: b.get(column, first) for column in dict.fromkeys(columns)},
    )


def fold_bases(output: Path, member: str) -> list[Path]:
    """Where the folds of a member of Model A lie, in order. FileNotFoundError when there is none."""
    bases, fold = [], 0
    while (output / (paths.FOLD.format(row=member, fold=fold) + ".safetensors")).exists():
        bases.append(output / paths.FOLD.format(row=member, fold=fold))
        fold += 1
    if not bases:
        raise FileNotFoundError(
            f"{shown(output)} holds no trained fold of {member}: run ./run_all.sh --only 02 first"
        )
    return bases


def stack(decoded: Sequence[Pixels]) -> Pixels:
    """Decoded pictures as one batch."""
    return {geometry: np.stack([pixels[geometry] for pixels in decoded]) for geometry in decoded[0]}


def join(parts: Sequence[Found]) -> Found:
    """Parts, one after another."""
    arrays = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("embedding", "confidence", "similarity")
    )
    embedding, confidence, similarity = arrays
    return Found(
        embedding, confidence, [prompts for part in parts for prompts in part.prompts], similarity
    )


# --- any number of pictures, in parts on disk ---


def pictures_in(folder: Path) -> list[str]:
    """The pictures below `folder` by their suffix, as sorted paths relative to it. Problem when there is none."""
    if not folder.is_dir():
        raise Problem(f"--images: {shown(folder)} is no folder")
    found = []
    for parent, _, files in os.walk(folder):
        found += [
            (Path(parent) / file).relative_to(folder).as_posix()
            for file in files
            if file.lower().endswith(SUFFIXES) and not file.startswith(".")
        ]
    if not found:
        raise Problem(
            f"--images: no picture ({', '.join(SUFFIXES)}) in {shown(folder)} or below it"
        )
    return sorted(found)


def run(
    predictor: Predictor, folder: Path, out: Path, *, batch_size: int = 64, part: int = PART
) -> tuple[int, int]:
    """Predict every picture below `folder` into `out` (.parquet, .csv or .npy); how many were predicted and rejected.

    Finished parts of an earlier run over the same pictures with the same models are kept. Pictures that cannot be read are
    listed in `<out>.rejected.csv`. Raises Problem when no picture could be read.
    """
    names, parts = pictures_in(folder), parts_folder(out)
    _begin(
        parts,
        {
            "pictures": artifacts.fingerprint(_stamps(folder, names)),
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
    with tqdm(total=len(names), initial=len(names) - left, desc="pictures", unit="picture") as bar:
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
        raise Problem(
            f"none of the {len(names)} pictures in {shown(folder)} can be read; see {shown(rejected_list(out))}"
        )
    _assemble(parts, -(-len(names) // part), out)
    shutil.rmtree(parts)
    return len(names) - len(rejected), len(rejected)


def parts_folder(out: Path) -> Path:
    """Where the parts of `out` lie until it is whole."""
    return out.with_name(out.name + ".parts")


def rejected_list(out: Path) -> Path:
    """The list of pictures that could not be read."""
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
        raise Problem(
            f"{shown(parts)} is there and holds no {KEY}: not parts of a prediction, so it is left alone"
        )
    if (parts / KEY).exists() and artifacts.load_json(parts / KEY) == key:
        return
    shutil.rmtree(parts, ignore_errors=True)
    artifacts.save_json(parts / KEY, key)


def _decoded(
    predictor: Predictor, folder: Path, parts: Iterable[Sequence[str]], batch_size: int
) -> Iterator[Iterator[list[tuple[str, Pixels | str]]]]:
    """For each part, its batches of (name, pixels or reason); decoding runs ahead of the caller, across parts."""

    def attempt(name: str) -> Pixels | str:
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

    def batches(part: int) -> Iterator[list[tuple[str, Pixels | str]]]:
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
    predictor: Predictor, batches: Iterable[list[tuple[str, Pixels | str]]], bar: tqdm
) -> tuple[list[str], Found, list[tuple[str, str]]]:
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
    parts: Path, n: int, names: list[str], found: Found, rejected: list[tuple[str, str]]
) -> None:
    """The list of rejected pictures first: the part itself says that both are there."""
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
                    found.embedding, dtype=pl.Array(pl.Float32, submission.WIDTH)
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
    names = [f"e{i}" for i in range(submission.WIDTH)]
    numbers = pl.DataFrame(part["embedding"].to_numpy().reshape(-1, submission.WIDTH), schema=names)
    told = part.select(
        harmless(pl.col("id")),
        "confidence",
        prompt=harmless(pl.col("prompts").list.first()),
        similarity=pl.col("similarity").list.first(),
    )
    return pl.concat([told, numbers], how="horizontal")


def _write_array(files: Sequence[Path], path: Path) -> None:
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    array, at = artifacts.reserved(path, np.float32, (rows, submission.WIDTH)), 0
    for file in files:
        part = (
            pl.read_parquet(file, columns=["embedding"])["embedding"]
            .to_numpy()
            .reshape(-1, submission.WIDTH)
        )
        array[at : at + len(part)] = part
        at += len(part)
    array.flush()


def submit(
    predictor: Predictor, folder: Path, sample: Path, out: Path, *, batch_size: int = 64
) -> tuple[int, int]:
    """The competition's submission for the ids of `sample`, written and checked; how many were predicted and filled.

    A picture that cannot be read gets the mean of the other predictions and confidence 0: one broken file must not cost the
    whole submission. Raises Problem when an id has no picture at all.
    """
    ids = submission.sample_ids(sample)
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
        raise Problem(
            f"{shown(folder)}: {len(doubled)} ids have more than one picture, e.g. {doubled[:3].to_list()}"
        )
    listed = rejected_list(whole)
    broken = {Path(name).stem for name in pl.read_csv(listed)["id"]} if listed.exists() else set()
    broken -= set(table["id"])
    missing = [i for i in ids if i not in set(table["id"]) | broken]
    if missing:
        raise Problem(
            f"{shown(sample)}: {len(missing)} of {len(ids)} ids have no picture in {shown(folder)}, e.g. {missing[:3]}"
        )
    x = np.ascontiguousarray(table["embedding"].to_numpy())
    filled = [i for i in ids if i in broken]
    names, mean = table["id"].to_list() + filled, unit(x.mean(axis=0, keepdims=True))
    x = np.concatenate([x, np.repeat(mean, len(filled), axis=0)])
    confidence = np.concatenate([table["confidence"].to_numpy(), np.zeros(len(filled), np.float32)])
    places = artifacts.positions(names, ids, shown(whole))
    submission.write(ids, x[places], out, sample, confidence=confidence[places])
    submission.check(out, sample)
    return len(ids) - len(filled), len(filled)


# --- the command line ---


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="./run_all.sh predict",
        description="Embeddings, confidence and nearest prompts of a "
        "folder of pictures, by the models in output/. Stopped, it goes on when started again.",
    )
    parser.add_argument("--images", metavar="FOLDER", help="pictures, sub-folders included")
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
        help="pictures at a time (default: %(default)s)",
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
    except (Problem, FileNotFoundError, ValueError) as problem:
        print(problem, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130


def _command(options: argparse.Namespace) -> int:
    if options.pack:
        from src import pack

        print(
            f"packed into {shown(pack.write(resolve(options.output), Path(options.pack).absolute()))}"
        )
        return 0
    folder, out = Path(options.images).absolute(), Path(options.out).absolute()
    pictures_in(folder)  # before the models are loaded
    predictor = Predictor(options.output, device=options.device, engine=options.engine)
    if options.sample:
        good, bad = submit(
            predictor, folder, Path(options.sample).absolute(), out, batch_size=options.batch_size
        )
        print(
            f"{shown(out)}: {good} pictures, checked"
            + (f"; {bad} unreadable ones have the mean prediction" if bad else "")
        )
        return 0
    good, bad = run(predictor, folder, out, batch_size=options.batch_size)
    print(
        f"{shown(out)}: {good} pictures"
        + (f"; {bad} could not be read: {shown(rejected_list(out))}" if bad else "")
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
