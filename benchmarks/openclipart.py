"""The whole pipeline on a real set: the captioned drawings of Debian's openclipart, 500 held out.

    apt-get install openclipart-png openclipart-svg
    python benchmarks/openclipart.py build     write input/openclipart and its parameters file
    python benchmarks/openclipart.py run       build, run all notebooks, print both scores
    python benchmarks/openclipart.py show      print them again
    python benchmarks/openclipart.py rules     after a run: the rule for folds and the one before it

A prompt is a drawing's title and keywords, as its SVG holds them. No prompt of the 500 has a
neighbor above 0.8 in the rest, so their score is one that no near-duplicate flatters: where the
out-of-fold score agrees with it, the folds do not leak. The CLIP is the demo's, written beside the
drawings, unless --clip names another. `rules` fits a ridge and five neighbors on the frozen image
embeddings, out-of-fold and on the same 500, with folds dealt by each rule.
"""

import argparse
import csv
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import polars as pl
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src import artifacts, paths, statistics
from src.data import prompts, sources
from src.data.sample_submission import WIDTH
from src.dedup import folds, similarity
from src.demo import write_clip
from src.metrics import cosines, l2_normalize
from src.model_a.head import ridge
from tests.helpers.fold_rules import nearest_five, one_threshold_for_all

DRAWINGS = Path("/usr/share/openclipart")
FOLDER = paths.resolve("input/openclipart")
HELD_OUT = 500
LARGEST = 25_000_000  # pixels; one drawing has 231 million, which no reader accepts
APART = 0.8  # no held-out prompt has a neighbor above this in the rest
DEMO_CLIP = FOLDER / "clip"
CLIP_SIZE = 128  # pixels that the demo's CLIP sees, as in params/demo.yaml
PENALTY = 1.0  # of the ridge that compares the two rules
DUBLIN_CORE = "{http://purl.org/dc/elements/1.1/}"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"


# --- the set ---


def prompt_of(svg: Path) -> str:
    """Title and keywords of a drawing, joined by commas."""
    root = ElementTree.fromstring(svg.read_bytes())
    work = next((element for element in root.iter() if element.tag.endswith("}Work")), None)
    if work is None:
        return ""
    title = work.findtext(f"{DUBLIN_CORE}title") or ""
    keywords = [li.text or "" for li in work.iterfind(f"{DUBLIN_CORE}subject/{RDF}Bag/{RDF}li")]
    parts = [" ".join(part.split()) for part in (title, *keywords)]
    return ", ".join(part for part in parts if part)


def drawings() -> pl.DataFrame:
    """Every drawing that is there as a PNG and has a prompt: `image`, `prompt`, in path order."""
    svgs = sorted((DRAWINGS / "svg").rglob("*.svg"))
    if not svgs:
        sys.exit(f"no drawings in {DRAWINGS}: apt-get install openclipart-png openclipart-svg")

    Image.MAX_IMAGE_PIXELS = None  # only headers are read in this process
    rows = []
    too_large = 0
    for svg in svgs:
        png = DRAWINGS / "png" / svg.relative_to(DRAWINGS / "svg").with_suffix(".png")
        text = prompt_of(svg)
        if not text or not png.is_file():
            continue
        with Image.open(png) as image:
            width, height = image.size
        if width * height > LARGEST:
            too_large += 1
            continue
        rows.append({"image": str(png), "prompt": text})
    print(f"{len(rows)} drawings; {too_large} of more than {LARGEST:,} pixels are left out")
    return pl.DataFrame(rows)


def standing_alone(texts: list[str], targets: np.ndarray) -> np.ndarray:
    """(n,) bool: prompts of three words or more without a neighbor above `APART`."""
    scan = similarity.scan_pairs(targets, APART, keep_one=False)
    long_enough = np.array([len(text.split()) >= 3 for text in texts])
    return scan.stays & long_enough


def choose_held_out(texts: list[str], seed: int) -> np.ndarray:
    """(n,) bool: `HELD_OUT` of the prompts that stand alone."""
    alone = np.flatnonzero(standing_alone(texts, prompts.encode(texts)))
    print(f"{len(alone)} of {len(texts)} prompts have no neighbor above {APART}")

    held_out = np.zeros(len(texts), bool)
    held_out[np.random.default_rng(seed).choice(alone, HELD_OUT, replace=False)] = True
    return held_out


def write_csv(file: Path, header: tuple[str, ...], rows: Iterable[tuple]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)


def copy_images(images: list[str], names: list[str], folder: Path) -> None:
    folder.mkdir(parents=True)
    for image, name in zip(images, names, strict=True):
        shutil.copyfile(image, folder / name)


def build(options: argparse.Namespace) -> Path:
    """Write train, test and truth into `FOLDER`; the parameters file that runs on them."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    table = drawings()
    held_out = choose_held_out(table["prompt"].to_list(), options.seed)

    train = table.filter(~held_out)
    names = [f"{row:05d}.png" for row in range(len(train))]
    copy_images(train["image"].to_list(), names, FOLDER / "train" / "images")
    rows = zip((f"images/{name}" for name in names), train["prompt"], strict=True)
    write_csv(FOLDER / "train" / "metadata.csv", ("file_name", "prompt"), rows)

    # the competition's layout, and the truth beside it
    test = table.filter(held_out)
    ids = [f"{row:09x}" for row in range(len(test))]
    names = [f"{image_id}.png" for image_id in ids]
    copy_images(test["image"].to_list(), names, FOLDER / "test" / "images")
    cells = ((f"{image_id}_{element}", 0.0) for image_id in ids for element in range(WIDTH))
    write_csv(FOLDER / "test" / "sample_submission.csv", ("imgId_eId", "val"), cells)
    truth = zip(ids, test["prompt"], strict=True)
    write_csv(FOLDER / "truth" / "prompts.csv", ("imgId", "prompt"), truth)

    write_clip(DEMO_CLIP, CLIP_SIZE)
    file = FOLDER / "params.yaml"
    file.write_text(yaml.safe_dump(parameters(options), sort_keys=False), encoding="utf-8")
    print(f"{len(train)} pairs and {len(test)} held-out drawings in {paths.display_path(FOLDER)}")
    return file


def parameters(options: argparse.Namespace) -> dict:
    """The demo's settings on these drawings, without text-only prompts."""
    model_a = {"ablation_epochs": 0, "tower": options.tower}
    if options.epochs is not None:
        model_a["epochs"] = options.epochs
    return {
        "common": {
            "train": paths.display_path(FOLDER / "train"),
            "test": paths.display_path(FOLDER / "test"),
            "text_only": None,
            "clip": options.clip,
            "seed": options.seed,
            "output_dir": options.output,
        },
        "02_train_model_a": model_a,
        "05_submit": {"test_truth": paths.display_path(FOLDER / "truth" / "prompts.csv")},
    }


# --- the run ---


def run(options: argparse.Namespace) -> None:
    file = build(options)
    command = [sys.executable, "-m", "src.runner.cli", "--params", paths.display_path(file)]
    subprocess.run(command, cwd=paths.ROOT, check=True)
    show(paths.resolve(options.output))


def show(output: Path) -> None:
    """Print the sizes, how groups were formed, and Table 1 beside the held-out drawings."""
    meta = artifacts.load_json(output / "01_dedup" / paths.META)
    print(f"{meta['rows']} pairs, {meta['filter1']} pass filter 1, {meta['filter2']} are kept")
    for entry in meta["folds"]["thresholds"]:
        print("groups formed at {similarity}: {groups}, {rows} rows, {kept} kept".format(**entry))
    print(f"{meta['folds']['leaking']} scored rows are above the similarity with another fold")

    out_of_fold = artifacts.load_table(output / paths.TABLE1)
    test = artifacts.load_table(output / paths.TEST_SCORES)
    test = test.select("model", test="avg_cos", test_low="low", test_high="high")
    both = out_of_fold.select("model", "avg_cos", "low", "high").join(test, on="model", how="left")
    with pl.Config(tbl_rows=-1, float_precision=4, fmt_str_lengths=60, tbl_width_chars=120):
        print(both)
    show_like_with_like(output)


def show_like_with_like(output: Path) -> None:
    """Print the ensemble's out-of-fold score on rows like the held-out ones, and on the others.

    No held-out prompt has a near-duplicate, most training prompts have; so the two sets differ,
    whatever the folds do.
    """
    pairs = artifacts.load_table(output / paths.PAIRS)
    ids = pairs["id"].to_list()
    _, targets = artifacts.load_embeddings(output / paths.TARGETS, ids)
    scored, prediction = artifacts.load_embeddings(output / paths.OOF_ENSEMBLE)

    rows = artifacts.indices_of_ids(ids, scored, "out-of-fold rows")
    cosine = cosines(targets[rows], prediction)
    group = pairs["group"].to_numpy()[rows]
    alone = standing_alone(pairs["prompt"].to_list(), targets)[rows]
    for name, part in (("like the held-out ones", alone), ("all others", ~alone)):
        score = statistics.bootstrap(cosine[part], groups=group[part])
        print(f"ensemble out-of-fold, {part.sum()} rows {name}: {score}")


# --- the rule for folds against the one before it ---


def predict(images: np.ndarray, targets: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The sum of a ridge's and of the five nearest images' prediction, both at unit length."""
    weight, bias = ridge(images, targets, PENALTY)
    return l2_normalize(queries @ weight + bias) + nearest_five(queries, images, targets)


def compare_rules(output: Path) -> None:
    """Print each rule's out-of-fold score, and that of the same models on the held-out drawings."""
    pairs = artifacts.load_table(output / paths.PAIRS)
    ids = pairs["id"].to_list()
    _, targets = artifacts.load_embeddings(output / paths.TARGETS, ids)
    kept = np.flatnonzero(pairs["filter2"])

    cache = output / paths.CACHE
    file = next(cache.glob("image_embeddings_pairs.*.npy")).with_suffix("")
    _, images = artifacts.load_embeddings(file, ids)
    test_file = file.with_name(file.name.replace("_pairs.", "_test."))
    test_ids, test_images = artifacts.load_embeddings(test_file)
    truth = sources.read_truth(FOLDER / "truth" / "prompts.csv")
    rows = artifacts.indices_of_ids(truth["imgId"].to_list(), test_ids, "truth")
    true_targets = prompts.encode(truth["prompt"].gather(rows).to_list())

    eligible = pairs["filter1"].to_numpy()
    scan = similarity.scan_pairs(targets, 0.85, link=0.7, eligible=eligible)
    before, threshold = one_threshold_for_all(scan, 0.1)
    print(f"the rule before: all rows grouped at {threshold:.2f}")
    rules = {
        "one threshold for all": (before, folds.folds(before, 3)),
        "split inside itself": (pairs["group"].to_numpy(), pairs["fold"].to_numpy()),
    }
    for name, (group, fold) in rules.items():
        inside = np.empty(len(kept))
        outside = np.zeros(len(test_ids))
        for number in np.unique(fold):
            mine = fold[kept] == number
            learned = kept[~mine]
            predicted = predict(images[learned], targets[learned], images[kept[mine]])
            inside[mine] = cosines(targets[kept[mine]], predicted)
            predicted = predict(images[learned], targets[learned], test_images)
            outside += cosines(true_targets, predicted) / len(np.unique(fold))

        leaking = similarity.nearest_across(targets, fold)[kept] > 0.7
        out_of_fold = statistics.bootstrap(inside, groups=group[kept])
        print(f"{name}: {leaking.sum()} of {len(kept)} scored rows above 0.7 with another fold")
        print(f"  out-of-fold {out_of_fold}, held out {statistics.bootstrap(outside)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=["build", "run", "show", "rules"])
    parser.add_argument("--clip", default=f"local-dir:{paths.display_path(DEMO_CLIP)}")
    parser.add_argument("--epochs", type=int, help="of Model A; the notebook's own by default")
    parser.add_argument("--tower", choices=["trained", "frozen"], default="trained")
    parser.add_argument("--output", default="output/openclipart", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    if options.step == "build":
        build(options)
    elif options.step == "run":
        run(options)
    elif options.step == "rules":
        compare_rules(paths.resolve(options.output))
    else:
        show(paths.resolve(options.output))
