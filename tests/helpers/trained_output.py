"""A trained output in seconds: real models, small and hardly trained, on images of plain colors."""

from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch
from PIL import Image, ImageColor

from src import artifacts, encoder, paths
from src.data import prompts
from src.ensemble import confidence
from src.ensemble.blending import combine
from src.ensemble.members import load_members
from src.metrics import cosines
from src.model_a import folds, training_set
from src.model_b import datastore, inputs, model, routes, weighting
from tests.helpers.recipes import small_recipe
from tests.helpers.tiny_clip import write_clip

COLORS = ("red", "green", "blue", "yellow", "black", "white")
THINGS = ("square", "wall", "flag", "door")
RECIPE = small_recipe(epochs=1, batch_size=8)


CLIP = "clip"
SECOND_CLIP = "clip2"  # Model B alone looks up by it
SIZES = {CLIP: 64, SECOND_CLIP: 48}
SHARES = {"text": 0.6, "image by 2": 0.4}  # of Model B's routes, the second by SECOND_CLIP


def write_output(folder: Path) -> Path:
    """Write clip/, clip2/, train/, test/ and output/ as the five stages would; returns `folder`.

    Model B predicts by both CLIPs, in fixed shares.
    """
    output = folder / "output"
    for name, size in SIZES.items():
        torch.manual_seed(size)
        write_clip(folder / name, size)
    clips = {name: encoder.load(clip_address(folder, name), device="cpu") for name in SIZES}
    train, test = (_images(folder / part, seed) for seed, part in enumerate(("train", "test")))
    targets = prompts.encode(train["prompt"].to_list())

    sets = {}  # of training rows and of test images, by each CLIP
    for name, clip in clips.items():
        data = training_set.training_set(
            clip, train, output, name="pairs", recipe=RECIPE, targets=targets[None]
        )
        blind = training_set.prediction_set(clip, test, output, name="test", recipe=RECIPE)
        sets[name] = (data, blind)

    _write_a(output, clips[CLIP], *sets[CLIP])
    members = {"members": ["model_a"], "clip": {"model_a": clip_address(folder, CLIP)}}
    artifacts.save_json(output / paths.MEMBERS_A, members)
    artifacts.save_table(output / paths.TEST_IMAGES, test.select("id", "image"))

    queries = {name: data.embeddings for name, (data, _) in sets.items()}
    test_queries = {name: blind.embeddings for name, (_, blind) in sets.items()}
    _write_b(output, clips, train, targets, queries, test["id"].to_list(), test_queries)
    addresses = {name: clip_address(folder, name) for name in SIZES}
    artifacts.save_json(output / paths.MEMBERS_B, {"members": ["model_b"], "clip": addresses})
    _write_blend(output, addresses[CLIP], train["id"].to_list(), targets)
    return folder


def clip_address(folder: Path, name: str) -> str:
    """How the output names a CLIP of `write_output`."""
    return f"local-dir:{folder / name}"


def _write_a(
    output: Path,
    clip: encoder.Encoder,
    data: training_set.TrainingSet,
    blind: training_set.TrainingSet,
) -> None:
    fold = np.arange(len(data.ids)) % 2
    bases = [output / paths.FOLD.format(variant="model_a", fold=f) for f in (0, 1)]
    for f, base in enumerate(bases):
        folds.train_fold(
            clip,
            data,
            blind,
            rows=np.flatnonzero(fold != f),
            scored=np.flatnonzero(fold == f),
            recipe=RECIPE,
            seed=f,
            base=base,
        )
    oof = folds.collect_oof([[base] for base in bases])
    artifacts.save_embeddings(output / paths.OOF.format(variant="model_a"), *oof)
    artifacts.save_embeddings(
        output / paths.TEST.format(variant="model_a"), *folds.collect_test(bases)
    )


def _images(folder: Path, seed: int) -> pl.DataFrame:
    folder.mkdir()
    random = np.random.default_rng(seed)
    rows = []
    for color in COLORS:
        for thing in THINGS:
            file = folder / f"{color}_{thing}.png"
            pixels = ImageColor.getrgb(color) + random.integers(-9, 10, (80, 80, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)
            rows.append((file.stem, str(file), f"a {color} {thing}"))
    table = pl.DataFrame(rows, schema=["id", "image", "prompt"], orient="row").sort("id")
    return table.with_columns(
        group=pl.int_range(pl.len()), keeper="id", similarity=pl.lit(1.0, pl.Float32)
    )


def _write_b(
    output: Path,
    clips: dict[str, encoder.Encoder],
    train: pl.DataFrame,
    targets: np.ndarray,
    queries: dict[str, np.ndarray],
    test_ids: list[str],
    test_queries: dict[str, np.ndarray],
) -> None:
    ids = train["id"].to_list()
    rows = np.arange(len(ids))
    encoders = {datastore.VALUES: lambda _: targets}
    for name, clip in clips.items():
        encoders[name] = partial(encoder.embed_texts, clip)
    empty = datastore.open_datastore(
        output / paths.STORE_SHARDS, dtype="float32", sentence_model="all-MiniLM-L6-v2"
    )
    stored = datastore.add(empty, train["prompt"].to_list(), encoders)
    store = train.select("id", "prompt", source=pl.lit("tiny"), row=pl.Series(rows))
    artifacts.save_table(output / paths.STORE, store)
    for name, images in queries.items():
        artifacts.save_embeddings(output / paths.STORE_IMAGES.format(clip=name), ids, images)

    libraries = inputs.open_libraries(stored, rows, queries)
    used = (
        routes.Route("text", clip=CLIP),
        routes.Route("image by 2", keys="image", clip=SECOND_CLIP),
    )
    parts = []
    for route in used:
        fitted = routes.fit_route(route, libraries[route.clip], rows, rows)
        weights = weighting.Weighting(dim=4)
        parts.append(model.WeightedRoute(fitted, 5, weights, SHARES[route.name]))
    fitted_model = model.ModelB(store.drop("row"), libraries, tuple(parts), "faiss")
    fitted_model.save(output, 0.0)

    for name, wanted, images in (
        (paths.OOF_B, ids, queries),
        (paths.TEST_B, test_ids, test_queries),
    ):
        prediction, _, _ = fitted_model.predict(images)
        artifacts.save_embeddings(output / name.format(member="model_b"), wanted, prediction)


def _write_blend(output: Path, clip_name: str, ids: list[str], targets: np.ndarray) -> None:
    members = load_members(output, ids, "oof")
    sides = (["model_a"], ["model_b"])
    weights = {"model_a": 0.7, "model_b": 0.3}
    blend = combine(members, weights)
    expected = confidence.fit_confidence(
        blend, confidence.agreement(members, weights, sides), cosines(targets, blend)
    )
    artifacts.save_json(
        output / paths.BLEND, {"weights": weights, "clip": clip_name, "confidence": vars(expected)}
    )
