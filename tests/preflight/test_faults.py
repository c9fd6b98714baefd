"""What is checked before a run: all that is wrong is said at once, each with its parameter."""

from collections import namedtuple
from pathlib import Path

import polars as pl
import pytest

from src import errors, paths
from src.runner import disk_space, params, plan, preflight


def only_problem(per_stage: dict[str, dict]) -> str:
    """The one line that preflight says."""
    lines = preflight.problems(per_stage)
    assert len(lines) == 1, lines
    return lines[0]


def test_what_is_right_passes(per_stage):
    assert preflight.problems(per_stage) == []


FAULTS = {
    "01_dedup": [
        ("train", "src", "train: "),
        ("test", "src", "test: no images in src"),
        ("keep", "shortest", "keep must be one of first, longest, most_images, got 'shortest'"),
        ("cosine_keep", "two", "cosine_keep must be one or none, got 'two'"),
        ("exclude_near", "src/data", "exclude_near: "),
        ("fold_file", "README.md", "fold_file: "),
        ("sentence_model", "no/such model", "sentence_model: "),
        ("seed", -1, "seed must be within 0..2147483648, got -1"),
        ("n_folds", 1, "n_folds must be at least 2, got 1"),
        ("n_folds", 7, "n_folds: 7 folds of 6 rows; lower it"),
        ("group_similarity", 1.0, "group_similarity must be within -1..0.99, got 1.0"),
        ("filter_scope", "some", "filter_scope must be all or source, got 'some'"),
    ],
    "02_train_model_a": [
        ("extra_clips", ["ViT-B-99/none"], "clip: 'ViT-B-99/none' could not be loaded"),
        ("clip", "local-dir:src", "clip: src lacks"),
        ("head", "tall", "02_train_model_a: head must be one of linear, paper, wide, got 'tall'"),
        (
            "views",
            ["center", "left"],
            "02_train_model_a: views must be some of center, flip, zoom, corners, each once, got",
        ),
        ("seeds", 0, "02_train_model_a: seeds must be at least 1, got 0"),
        ("trainable_blocks", 99, "02_train_model_a: trainable_blocks 99, but the tower has 3"),
        ("baseline_blocks", 99, "baseline_blocks: trainable_blocks 99, but the tower has 3"),
        ("lora_rank", 4, "02_train_model_a: lora_rank is above 0, but no block is frozen"),
        (
            "head_init",
            "nothing",
            "02_train_model_a: head_init must be one of probe, random, got 'nothing'",
        ),
        ("cluster", "tcp://127.0.0.1:9", "cluster: "),
        ("cluster", "many", "cluster: must be null, local or tcp://host:port, got 'many'"),
        ("device", "gpu", "device must be auto, cpu or cuda, got 'gpu'"),
        ("ablation_epochs", -1, "ablation_epochs must be at least 0, got -1"),
        ("lr_fc2", -1.0, "02_train_model_a: lr_fc2 must be at least 0, got -1.0"),
    ],
    "03_cuml_knn_model_b": [
        ("text_only", "src/data", "text_only: "),
        ("stores", ["src"], "stores: "),
        ("engine", "magic", "engine 'magic' is not one of"),
        ("routes", [{"name": "x", "keys": "sound"}], "routes: route x: keys 'sound' is not one of"),
        ("routes", [], "routes: no route is given; the paper's is [{name: text}]"),
        ("routes", [{"nam": "x"}], "routes: route None: unknown ['nam']"),
        ("routes", [{"name": "x", "clip": 2}], "routes: {'name': 'x', 'clip': 2} names a CLIP"),
        ("extra_clips", ["local-dir:src"], "clip: src lacks"),
        ("delta", 0.0, "delta, coef, distance: dim = 2, delta = 0.0"),
        ("distance", "manhattan", "delta, coef, distance: distance 'manhattan' is not one of"),
        ("k_grid", [], "k_grid must hold"),
        ("text_conflict_similarity", 1.5, "text_conflict_similarity must be within -1..1, got 1.5"),
        ("k_grid", [0, 5], "k_grid must be at least 1, got [0, 5]"),
        ("store_dtype", "float64", "store_dtype must be float16 or float32, got 'float64'"),
        (
            "routes",
            [{"name": "x"}, {"name": "x", "linear": True}],
            "routes: each needs a name of its own",
        ),
        (
            "routes",
            [{"name": "x", "hubs": "lots"}],
            "routes: route x: hubs must be a number of at least 0",
        ),
    ],
    "04_ensemble_oof": [
        ("worst", 0, "worst must be at least 1, got 0"),
        ("slice_by", ["image"], "slice_by: image is the image's own column"),
        ("attributes", "src", "attributes: src is not a file"),
    ],
    "05_submit": [
        ("test_truth", "src", "test_truth: src is not a file"),
    ],
}


@pytest.mark.parametrize(
    ("stage", "name", "value", "line"),
    [(stage, *fault) for stage, faults in FAULTS.items() for fault in faults],
    ids=lambda x: str(x)[:30],
)
def test_each_fault_is_one_line_that_names_its_parameter(per_stage, stage, name, value, line):
    problem = only_problem({stage: {**per_stage[stage], name: value}})
    assert problem.startswith(line), problem


def test_a_sample_without_an_image_s_rows_and_a_truth_of_other_images_are_said(
    per_stage, disk, tmp_path
):
    (tmp_path / "test" / "images").mkdir(parents=True)
    for file in (disk / "test" / "images").iterdir():
        (tmp_path / "test" / "images" / file.name).write_bytes(file.read_bytes())
    names = [f"p0_{i}" for i in range(384)]
    sample = tmp_path / "test" / "sample_submission.csv"
    pl.DataFrame({"imgId_eId": names, "val": [0.1] * 384}).write_csv(sample)
    submit = per_stage["05_submit"]
    problem = only_problem({"05_submit": submit | {"test": str(tmp_path / "test")}})
    assert problem.startswith("test: ")
    assert "1 of 2 images are not in it, e.g. ['p1']" in problem

    truth = tmp_path / "truth.csv"
    pl.DataFrame({"imgId": ["p0", "else"], "prompt": ["a", "b"]}).write_csv(truth)
    problem = only_problem({"05_submit": submit | {"test_truth": str(truth)}})
    assert problem.startswith("test_truth: ")
    assert "1 of 2 ids are missing" in problem


def test_what_a_notebook_needs_of_earlier_ones_is_said(per_stage):
    output = Path(per_stage["03_cuml_knn_model_b"]["output_dir"])
    lines = plan.stages_to_run_first(["03_cuml_knn_model_b"], output)
    assert len(lines) == 1
    assert lines[0].startswith("01_dedup has not finished in ")
    assert lines[0].endswith("use --from 01")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"common": {"train": [None]}},
            "01_dedup.train must be str or list of str or dict, got [None]",
        ),
        (
            {"02_train_model_a": {"extra_clips": [{"name": "x"}]}},
            "02_train_model_a.extra_clips must be list of str",
        ),
        (
            {"03_cuml_knn_model_b": {"tau_grid": [None]}},
            "03_cuml_knn_model_b.tau_grid must be list of float",
        ),
        ({"common": {"text_only": ""}}, "03_cuml_knn_model_b.text_only must not be empty"),
        (
            {"02_train_model_a": {"output_dir": "elsewhere"}},
            "output_dir must be one for all notebooks",
        ),
        ({"demo": {"folder": 5}}, "demo.folder must be a folder to write, got 5"),
    ],
)
def test_entries_of_lists_and_empty_names_are_refused(change, message):
    with pytest.raises(errors.UserError) as problem:
        params.stage_params(change, "test")
    assert message in str(problem.value)


def test_columns_are_looked_at(per_stage, disk):
    per_stage["04_ensemble_oof"]["attributes"] = str(disk / "train" / "metadata.csv")
    per_stage["05_submit"]["test_truth"] = str(disk / "train" / "metadata.csv")
    found = preflight.problems(per_stage)
    assert len(found) == 2
    assert "has no column subject, style; there are ['file_name', 'prompt']" in found[0]
    assert "has no column imgId; there are" in found[1]


def test_attributes_of_other_images_are_refused(per_stage, disk, tmp_path):
    table = pl.DataFrame({"file_name": ["p0.png"], "subject": ["square"], "style": ["plain"]})
    for folder, wrong in ((tmp_path, 1), (disk / "train", 0)):
        table.write_csv(folder / "attributes.csv")
        per_stage["04_ensemble_oof"]["attributes"] = str(folder / "attributes.csv")
        found = preflight.problems(per_stage)
        (folder / "attributes.csv").unlink()
        assert len(found) == wrong and all(
            "describes none of the 6 training images; its first file is" in line for line in found
        )


def test_a_set_that_is_mostly_bad_is_refused_with_its_tally(per_stage, disk, tmp_path):
    rows = pl.DataFrame(
        {
            "file_name": ["p0.png", *[f"gone{i}.png" for i in range(5)]],
            "prompt": ["a plain square"] * 6,
        }
    )
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "p0.png").write_bytes((disk / "train" / "p0.png").read_bytes())
    rows.write_csv(tmp_path / "train" / "metadata.csv")
    per_stage["01_dedup"]["train"] = str(tmp_path / "train")
    problem = only_problem(per_stage)
    refused = paths.resolve(per_stage["01_dedup"]["output_dir"]) / paths.REFUSED
    assert problem.startswith(
        "train: 1 rows can be used and 5 cannot, 83.3% are bad (max_rejected = 0.2, all of them in "
        f"{paths.display_path(refused)})"
    )
    assert problem.endswith(f"e.g. 'train/gone0' at {tmp_path}/train/gone0.png: no such image")
    assert pl.read_parquet(refused)["reason"].to_list() == ["no such image"] * 5


def test_too_little_room_is_said_with_what_needs_it(per_stage, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(
        preflight.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000)
    )
    problem = only_problem(per_stage)
    assert problem.startswith("output_dir: ")
    assert "pixels" in problem
    assert "make room, or" in problem


def test_an_output_that_cannot_be_written_is_said(per_stage, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for values in per_stage.values():
        values["output_dir"] = str(tmp_path / "file" / "out")
    assert only_problem(per_stage).startswith("output_dir: ")


def test_the_room_is_about_what_is_then_used(per_stage):
    inspection = preflight.Inspection()
    for stage, check in preflight.CHECKS.items():
        check(inspection, per_stage[stage])
    needed = disk_space.space_needed(
        per_stage,
        Path("/no/output/yet"),
        rows=inspection.rows,
        clips=inspection.clips,
        towers=inspection.towers,
    )
    assert (
        needed["pixels"] == 8 * 3 * 32 * 32
        and needed["store"] == 2 * (24 + 384) * 8
        and needed["there already"] == 0
    )
    assert needed["activations"] > 0 and needed["weights"] > 0


MISSING = [
    ("01_dedup", "train", ["input/none", {"path": "input/nothing"}]),
    ("01_dedup", "test", "input/none"),
    ("01_dedup", "exclude_near", "input/none.txt"),
    ("01_dedup", "fold_file", "input/none.csv"),
    ("02_train_model_a", "clip", "local-dir:input/none"),
    ("02_train_model_a", "extra_clips", ["local-dir:input/none@64"]),
    ("03_cuml_knn_model_b", "text_only", "input/none.txt"),
    ("03_cuml_knn_model_b", "stores", ["input/none"]),
    ("03_cuml_knn_model_b", "extra_clips", ["local-dir:input/none"]),
    ("04_ensemble_oof", "attributes", "input/none.csv"),
    ("05_submit", "test", "input/none"),
    ("05_submit", "test_truth", "input/none.csv"),
]


@pytest.mark.parametrize(("stage", "name", "value"), MISSING, ids=lambda x: str(x)[:30])
def test_what_does_not_exist_is_one_line_and_does_not_stop_the_other_checks(
    per_stage, stage, name, value
):
    given = (
        {stage: {**per_stage[stage], name: value, "device": "gpu"}}
        if "device" in per_stage[stage]
        else {stage: {**per_stage[stage], name: value}}
    )
    lines = params.missing_inputs(given)
    assert len(lines) == (len(value) if isinstance(value, list) else 1)
    assert all(line.startswith(name) and line.endswith(" does not exist") for line in lines)
    found = preflight.problems(given)
    assert [line.split(" must be")[0] for line in found] == (
        ["device"] if "device" in per_stage[stage] else []
    )


def test_a_list_of_sources_is_checked_without_the_one_that_does_not_exist(per_stage, disk):
    broken = disk / "train" / "p0.png"  # an image is no table of prompts
    given = {
        "03_cuml_knn_model_b": {
            **per_stage["03_cuml_knn_model_b"],
            "text_only": ["input/none.txt", str(broken)],
        }
    }
    assert params.missing_inputs(given) == ["text_only[0]: input/none.txt does not exist"]
    found = preflight.problems(given)
    assert len(found) == 1 and "p0.png" in found[0]
