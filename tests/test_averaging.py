"""What Model A's predictions are means of: seeds, views and a final fit, each kept and reused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from src import artifacts, encoder, paths
from src.metrics import l2_normalize
from src.model_a import folds, variants
from src.model_a.averaging import SINGLE, Averaging, recorded_averaging
from src.model_a.fit import FinalPlan
from src.model_a.head import ridge
from src.submit.predictor import fold_bases
from tests.helpers import toy_training
from tests.helpers.recipes import small_recipe

FOLD = np.arange(60) % 2
ALL = np.ones(60, dtype=bool)


@pytest.fixture(scope="module")
def variant(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip") / "clip"
    clip = encoder.load(toy_training.write_clip(folder), device="cpu")
    data = toy_training.data_for(clip)
    recipe = small_recipe(epochs=1, batch_size=16)
    return variants.Variant("model_a", clip, recipe, ALL, data, data)


def trained(variant, out: Path, **averaging: object) -> list[dict]:
    """Train a variant with these settings; the records of its folds."""
    chosen = replace(variant, averaging=replace(SINGLE, **averaging))
    return variants.train(chosen, FOLD, out, scored=ALL, seed=0)


def predictions(variant, out: Path, what: str, **averaging: object):
    chosen = replace(variant, averaging=replace(SINGLE, **averaging))
    return variants.predictions(chosen, FOLD, out, what)


def test_seeds_are_averaged_and_the_first_is_that_of_a_single_fit(variant, tmp_path, monkeypatch):
    single = trained(variant, tmp_path)
    records = trained(variant, tmp_path, seeds=2)
    assert [(r["fold"], r["seed"]) for r in records] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [record["key"] for record in records[::2]] == [record["key"] for record in single]

    # out-of-fold: the unit mean of the two fits that did not learn the row
    ids, oof = predictions(variant, tmp_path, "oof", seeds=2)
    files = ["model_a_fold0_oof", "model_a_fold0_seed1_oof"]
    base = (tmp_path / paths.FOLD).parent
    parts = [artifacts.load_embeddings(base / file, ids[:30])[1] for file in files]
    assert np.abs(parts[0] - parts[1]).max() > 1e-4
    assert oof[:30] == pytest.approx(l2_normalize(parts[0] + parts[1]), abs=1e-6)
    assert predictions(variant, tmp_path, "test", seeds=2)[1].shape == (60, 384)

    # fewer seeds need no training
    monkeypatch.setattr(folds, "fit", None)
    assert trained(variant, tmp_path) == single


def test_other_views_cost_the_prediction_alone(variant, tmp_path, monkeypatch):
    trained(variant, tmp_path)
    _, plain = predictions(variant, tmp_path, "oof")
    monkeypatch.setattr(folds, "fit", None)
    first = trained(variant, tmp_path, views=("center", "flip"))
    _, both = predictions(variant, tmp_path, "oof")
    assert np.abs(plain - both).max() > 1e-3

    # and not twice
    monkeypatch.setattr(folds, "predict", None)
    assert trained(variant, tmp_path, views=("center", "flip")) == first
    monkeypatch.undo()
    trained(variant, tmp_path)
    assert predictions(variant, tmp_path, "oof")[1] == pytest.approx(plain, abs=1e-6)


def test_a_changed_image_is_trained_and_predicted_anew(variant, tmp_path):
    before = trained(variant, tmp_path)
    data = replace(variant.data, pixels_key="other images")
    after = trained(replace(variant, data=data), tmp_path)
    assert [r["key"] for r in before] != [r["key"] for r in after]


def test_a_final_fit_joins_the_mean_on_test_images_alone(variant, tmp_path, monkeypatch):
    records = trained(variant, tmp_path)
    final = replace(variant, averaging=replace(SINGLE, final_fit=True))
    (record,) = variants.train_on_all(final, tmp_path, records, seed=0)
    assert record["rows_trained"] == 60

    base = (tmp_path / paths.FINAL).parent
    names = ["model_a_fold0_test", "model_a_fold1_test", "model_a_final_test"]
    parts = [artifacts.load_embeddings(base / name, variant.test.ids)[1] for name in names]
    _, test = variants.predictions(final, FOLD, tmp_path, "test")
    assert test == pytest.approx(l2_normalize(np.sum(parts, axis=0)), abs=1e-6)
    assert not (base / "model_a_final_oof.npy").exists()
    _, oof = variants.predictions(final, FOLD, tmp_path, "oof")
    assert np.array_equal(oof, variants.predictions(variant, FOLD, tmp_path, "oof")[1])

    # it is trained once
    monkeypatch.setattr(folds, "fit_final", None)
    assert variants.train_on_all(final, tmp_path, records, seed=0) == [record]
    assert variants.train_on_all(variant, tmp_path, records, seed=0) == []


def test_without_a_gain_in_the_folds_the_final_fit_is_the_probe_on_all_rows(variant, tmp_path):
    plan = FinalPlan(epochs=0, factor=0.0, penalty=1.0)
    record = folds.train_fold(
        variant.encoder,
        variant.data,
        variant.test,
        rows=np.arange(60),
        scored=np.empty(0, dtype=np.int64),
        recipe=variant.recipe,
        seed=0,
        base=tmp_path / "final",
        plan=plan,
    )
    assert record["history"] == []

    # the paper's head at its start predicts what a LayerNorm leaves of the ridge's prediction
    weight, bias = ridge(variant.data.embeddings, variant.data.targets[0], 1.0)
    probe = variant.data.embeddings @ weight + bias
    centered = l2_normalize(probe - probe.mean(axis=1, keepdims=True))
    _, test = artifacts.load_embeddings(tmp_path / "final_test", variant.data.ids)
    assert (test * centered).sum(axis=1).min() > 0.99


def test_the_plan_of_the_final_fit():
    def record(scores: list[float], factor: float, penalty: float) -> dict:
        history = [{"epoch": n, "score": score} for n, score in enumerate(scores)]
        history[0]["penalty"] = penalty
        return {"history": history, "factor": factor}

    records = [record([1, 2, 3], 1.0, 0.1), record([1, 2, 1], 0.5, 1.0), record([3, 2, 1], 0, 10.0)]
    assert FinalPlan.from_records(records) == FinalPlan(epochs=1, factor=0.5, penalty=1.0)
    records[1]["history"][0]["penalty"] = None
    assert FinalPlan.from_records(records).penalty is None


def test_new_images_take_every_fit_that_was_recorded(tmp_path):
    chosen = Averaging(2, ("center", "zoom"), final_fit=True)
    artifacts.save_json(
        tmp_path / paths.MEMBERS_A, {"members": ["model_a"], "averaging": chosen.as_json()}
    )
    assert recorded_averaging(tmp_path) == chosen

    names = [
        *("model_a_fold0", "model_a_fold0_seed1", "model_a_fold1", "model_a_fold1_seed1"),
        *("model_a_final", "model_a_final_seed1"),
    ]
    folder = (tmp_path / paths.FOLD).parent
    folder.mkdir()
    for name in names:
        (folder / f"{name}.safetensors").touch()
    assert [base.name for base in fold_bases(tmp_path, "model_a")] == names

    # what an earlier run left behind is not taken
    artifacts.save_json(
        tmp_path / paths.MEMBERS_A, {"members": ["model_a"], "averaging": SINGLE.as_json()}
    )
    bases = fold_bases(tmp_path, "model_a")
    assert [base.name for base in bases] == ["model_a_fold0", "model_a_fold1"]


def test_a_fit_that_is_missing_names_the_stage_to_run(tmp_path):
    chosen = Averaging(2, ("center",), final_fit=False)
    artifacts.save_json(
        tmp_path / paths.MEMBERS_A, {"members": ["model_a"], "averaging": chosen.as_json()}
    )
    folder = (tmp_path / paths.FOLD).parent
    folder.mkdir()
    (folder / "model_a_fold0.safetensors").touch()
    with pytest.raises(FileNotFoundError, match="run ./run_all.sh --only 02 first"):
        fold_bases(tmp_path, "model_a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"views": ()}, "views must be some of"),
        ({"views": ("left",)}, r"got \['left'\]"),
    ],
)
def test_values_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SINGLE, **change)
