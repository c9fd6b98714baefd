"""What each step of Model A's recipe is worth on the demo: every row on the same folds, paired on the same out-of-fold rows.

    python benchmarks/model_a_ladder.py --output output        # after ./run_all.sh --only 01
    python benchmarks/model_a_ladder.py --rows clip --seeds 3   # Table 1's CLIP rows and Model A over seeds
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np  # noqa: E402

from src import artifacts, encoder, ensemble, model_a, paths  # noqa: E402
from src.metrics import cosines  # noqa: E402

BEST = model_a.Recipe(epochs=10, batch_size=32, lr_vision=1e-2, lr_fc=1e-3, trainable_blocks=1, several_pictures=True)
PLAIN = replace(BEST, head="linear", epochs=4, lr_vision=1e-3, several_pictures=False)
DEFAULT = "+ interpolation (the default)"
LADDER = {
    "ridge on frozen": replace(BEST, head="linear", tower="frozen", epochs=0),
    "linear, one rate, random start": replace(PLAIN, epochs=10, start="random", interpolate=False),
    "paper's head, one rate": replace(PLAIN, epochs=10, head="paper", start="random", interpolate=False),
    "two rates (tower 1e-2, head 1e-3)": replace(PLAIN, epochs=10, head="paper", start="random", interpolate=False, lr_vision=1e-2),
    "+ linear probe first": replace(BEST, several_pictures=False, interpolate=False),
    "+ several pictures": replace(BEST, interpolate=False),
    DEFAULT: BEST,  # what stands below it is the default with one change, held against the default
    "linear head": replace(BEST, head="linear"),
    "layer-wise decay .5": replace(BEST, layer_decay=0.5),
    "EMA .98": replace(BEST, ema=0.98),
    "wide head": replace(BEST, head="wide"),
    "contrastive": replace(BEST, loss="contrastive"),
    "Huber": replace(BEST, loss="huber"),
}
CLIP = {"clip": PLAIN, "clip_filter1": PLAIN, "clip_filter2": PLAIN, "model_a": BEST}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", default="output")
    parser.add_argument("--clip", default="local-dir:input/demo/clip")
    parser.add_argument("--rows", choices=("ladder", "clip"), default="ladder")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    out, clip = paths.resolve(options.output), encoder.load(options.clip)
    pairs = artifacts.load_table(out / paths.PAIRS)
    _, targets = artifacts.load_embeddings(out / paths.TARGETS, pairs["id"].to_list())
    data = model_a.training_set(clip, pairs, out, name="pairs", recipe=BEST, targets=targets[None])
    before, against = None, ""
    for name, recipe in (LADDER if options.rows == "ladder" else CLIP).items():
        found = [out_of_fold(clip, data, pairs, targets, name, recipe, 42 + s) for s in range(options.seeds)]
        scores = [cosine.mean() for cosine, _, _ in found]
        line = f"{name:36} {np.mean(scores):.4f} (+- {np.std(scores):.4f} over {len(scores)} seeds), {found[0][2]:4.0f} s"
        cosine, group = found[0][:2]
        if before is not None:
            line += f"; over {against} {ensemble.paired_bootstrap(cosine, before, groups=group)}"
        print(line, flush=True)
        if against != DEFAULT:
            before, against = cosine, name


def out_of_fold(clip, data, pairs, targets, name, recipe, seed):
    """Cosines, groups and seconds of one row over all folds, scored on data filter 2."""
    fold, filter2 = pairs["fold"].to_numpy(), pairs["filter2"].to_numpy()
    used = {"clip": np.ones_like(filter2), "clip_filter1": pairs["filter1"].to_numpy()}.get(name, filter2)
    start, cosine = time.perf_counter(), np.zeros(len(pairs), np.float32)
    for f in np.unique(fold):
        scored = np.flatnonzero(filter2 & (fold == f))
        fitted = model_a.fit(clip, data, np.flatnonzero(used & (fold != f)), recipe=recipe, seed=seed + int(f))
        cosine[scored] = cosines(targets[scored], model_a.predict(fitted, clip, data, scored))
    return cosine[filter2], pairs["group"].to_numpy()[filter2], time.perf_counter() - start


if __name__ == "__main__":
    main()
