"""An output as a finished run leaves it: every artifact that the report reads, made up."""

import numpy as np
import polars as pl
from PIL import Image

from src import artifacts, paths
from src.ensemble import table1
from src.paths import STAGES

NASTY = "<script>alert('fox')</script> & \"owl\" <img src=x onerror=alert(1)>"


FIGURE_COLORS = {"alpha_curve": "blue", "slices": "green"}


def write_finished_output(output, *, ensemble_score=0.70, gain=0.02, seed=1, test=True):
    """Every artifact that the report reads, with a stranger's words wherever they can stand."""
    scores = dict(zip(table1.PAPER, [0.61, 0.62, 0.63, 0.68, 0.65, ensemble_score], strict=True))
    rows = [table1.ScoredVariant(table1.MEAN_PROMPT, 1000, np.full(50, 0.5), None)]
    rows += [
        table1.ScoredVariant(name, 1000, np.full(50, score), 12.0) for name, score in scores.items()
    ]
    artifacts.save_table(output / paths.TABLE1, table1.table1(rows))
    beyond = table1.table1([table1.ScoredVariant(NASTY, 10, np.full(50, 0.5), None)]).drop("paper")
    artifacts.save_table(output / paths.LADDER_TABLE, beyond)
    interval = {"mean": ensemble_score, "low": ensemble_score - 0.01, "high": ensemble_score + 0.01}
    artifacts.save_json(
        output / paths.BLEND,
        {
            "weights": {"model_a": 0.6, "model_b": 0.4},
            "oof": interval,
            "better_single": "model_a",
            "verdict": "the ensemble is better",
            "difference": {"mean": gain, "low": gain - 0.001, "high": gain + 0.001},
        },
    )
    state = {"parameter": {"text": NASTY}, "input": {}, "code": {}, "earlier stage": {}}
    for stage in STAGES:
        facts = {"rows": 1000, "seconds": 90.0, "seed": seed}
        artifacts.write_meta(output / stage, **facts, state=state, files={})
    Image.new("RGB", (30, 20), "red").save(output / "fox.png")
    image = str(output / "fox.png")
    missing = str(output / "gone.png")
    artifacts.save_table(
        output / paths.GALLERY,
        pl.DataFrame(
            {
                "id": ["a", "b"],
                "image": [image, missing],
                "confidence": [0.7, 0.5],
                "prompts": [[NASTY], []],
                "truth": [NASTY, "owl"],
                "cosine": [0.8, 0.4],
            }
        ),
    )
    artifacts.save_table(
        output / paths.FAILURES,
        pl.DataFrame(
            {
                "id": ["a"],
                "image": [image],
                "prompt": [NASTY],
                "cosine": [0.1],
                "confidence": [0.5],
                "nearest": [0.5],
            }
        ),
    )
    artifacts.save_table(
        output / paths.SLICES,
        pl.DataFrame(
            {
                "by": ["style"] * 2,
                "label": ["oil", NASTY],
                "rows": [5, 6],
                "avg_cos": [0.5, 0.7],
                "low": [0.4, 0.6],
                "high": [0.6, 0.8],
            }
        ),
    )
    if test:
        artifacts.save_table(
            output / paths.TEST_SCORES,
            pl.DataFrame(
                {
                    "model": ["Ensemble"],
                    "avg_cos": [ensemble_score + 0.005],
                    "low": [ensemble_score - 0.02],
                    "high": [0.75],
                }
            ),
        )
    for name, width in (("alpha_curve", 600), ("slices", 900)):
        file = output / "04_ensemble_oof" / paths.FIGURES / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, 40), FIGURE_COLORS[name]).save(file)
