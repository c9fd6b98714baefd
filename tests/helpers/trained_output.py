"""A trained output in seconds: real models, small and hardly trained, on images of plain colours."""

from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from src import artifacts, encoder, paths
from src.data import prompts
from src.ensemble import confidence
from src.ensemble.blending import combine
from src.ensemble.members import load_members
from src.metrics import cosines
from src.model_a import folds, training_set
from src.model_b import datastore, model, routes, weighting
from tests.helpers.recipes import small_recipe
from tests.helpers.tiny_clip import write_clip

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 180, 60),
    "blue": (40, 60, 220),
    "yellow": (240, 220, 40),
    "black": (10, 10, 10),
    "white": (245, 245, 245),
}
THINGS = ("square", "wall", "flag", "door")


def write_output(folder: Path) -> Path:
    """Write clip/, train/, test/ and output/ as the five stages would; returns `folder`."""
    clip_name, output = f"local-dir:{folder / 'clip'}", folder / "output"
    write_clip(folder / "clip")
    clip = encoder.load(clip_name, device="cpu")
    train, test = (_images(folder / part, seed) for seed, part in enumerate(("train", "test")))
    targets = prompts.encode(train["prompt"].to_list())
    recipe = small_recipe(epochs=1, batch_size=8)
    data = training_set.training_set(
        clip, train, output, name="pairs", recipe=recipe, targets=targets[None]
    )
    blind = training_set.prediction_set(clip, test, output, name="test", recipe=recipe)
    fold = np.arange(len(train)) % 2
    bases = [output / paths.FOLD.format(variant="model_a", fold=f) for f in (0, 1)]
    for f, base in enumerate(bases):
        folds.train_fold(
            clip,
            data,
            blind,
            rows=np.flatnonzero(fold != f),
            scored=np.flatnonzero(fold == f),
            recipe=recipe,
            seed=f,
            base=base,
        )
    oof = folds.collect_oof([[base] for base in bases])
    artifacts.save_embeddings(output / paths.OOF.format(variant="model_a"), *oof)
    artifacts.save_embeddings(
        output / paths.TEST.format(variant="model_a"), *folds.collect_test(bases)
    )
    artifacts.save_json(
        output / paths.MEMBERS_A, {"members": ["model_a"], "clip": {"model_a": clip_name}}
    )
    artifacts.save_table(output / paths.TEST_IMAGES, test.select("id", "image"))
    _write_b(output, clip, train, targets, data.embeddings, blind)
    _write_blend(output, clip_name, train["id"].to_list(), targets)
    return folder


def _images(folder: Path, seed: int) -> pl.DataFrame:
    folder.mkdir()
    random, rows = np.random.default_rng(seed), []
    for colour, rgb in COLOURS.items():
        for thing in THINGS:
            file = folder / f"{colour}_{thing}.png"
            noise = random.integers(-9, 10, (80, 80, 3))
            Image.fromarray((np.array(rgb) + noise).clip(0, 255).astype(np.uint8)).save(file)
            rows.append((file.stem, str(file), f"a {colour} {thing}"))
    table = pl.DataFrame(rows, schema=["id", "image", "prompt"], orient="row").sort("id")
    return table.with_columns(
        group=pl.int_range(pl.len()), keeper="id", similarity=pl.lit(1.0, pl.Float32)
    )


def _write_b(
    output: Path,
    clip: encoder.Encoder,
    train: pl.DataFrame,
    targets: np.ndarray,
    queries: np.ndarray,
    blind,
) -> None:
    ids, names = train["id"].to_list(), train["prompt"].to_list()
    encoders = {
        datastore.VALUES: lambda _: targets,
        "clip": lambda texts: encoder.embed_texts(clip, texts),
    }
    empty = datastore.open_datastore(
        output / paths.STORE_SHARDS, dtype="float32", sentence_model="all-MiniLM-L6-v2"
    )
    disk, rows = datastore.add(empty, names, encoders), np.arange(len(ids))
    texts, values = (
        datastore.ColumnView(disk.column(name), rows) for name in ("clip", datastore.VALUES)
    )
    library = routes.Library(texts, values, queries)
    store = train.select("id", "prompt", source=pl.lit("tiny"), row=pl.Series(rows))
    artifacts.save_table(output / paths.STORE, store)
    artifacts.save_embeddings(output / paths.STORE_IMAGES.format(clip="clip"), ids, queries)
    fitted = routes.fit_route(routes.Route("text"), library, rows, rows)
    part = model.WeightedRoute(fitted, 5, weighting.Weighting(dim=4), 1.0)
    fitted_model = model.ModelB(store.drop("row"), {"clip": library}, (part,), "faiss")
    fitted_model.save(output, 0.0)
    for name, wanted, x in (
        (paths.OOF_B, ids, queries),
        (paths.TEST_B, blind.ids, blind.embeddings),
    ):
        artifacts.save_embeddings(
            output / name.format(member="model_b"), wanted, fitted_model.predict(x)[0]
        )


def _write_blend(output: Path, clip_name: str, ids: list[str], targets: np.ndarray) -> None:
    members, sides = load_members(output, ids, "oof"), (["model_a"], ["model_b"])
    weights = {"model_a": 0.7, "model_b": 0.3}
    blend = combine(members, weights)
    expected = confidence.fit_confidence(
        blend, confidence.agreement(members, weights, sides), cosines(targets, blend)
    )
    artifacts.save_json(
        output / paths.BLEND, {"weights": weights, "clip": clip_name, "confidence": vars(expected)}
    )
