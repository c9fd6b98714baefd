"""The runner lists every problem before anything is run or written."""

from pathlib import Path

from src.errors import LOOK_UP
from src.paths import ROOT
from src.runner import cli


def refused(tmp_path: Path, *changes: str) -> int:
    (tmp_path / "params.yaml").write_text("common:\n  seed: 1\n")
    return cli.main(
        [
            "--params",
            str(tmp_path / "params.yaml"),
            *(part for change in changes for part in ("--set", change)),
        ]
    )


def test_the_runner_lists_everything_and_runs_nothing(disk, tmp_path, capfd):
    assert (
        refused(
            tmp_path,
            f"train={disk / 'train'}",
            f"test={disk / 'gone'}",
            "text_only=null",
            f"clip=local-dir:{disk / 'clip'}",
            f"output_dir={tmp_path / 'out'}",
            "02_train_model_a.head=tall",
            "03_cuml_knn_model_b.engine=magic",
        )
        == 2
    )
    error = capfd.readouterr().err
    assert f"test: {disk / 'gone'} does not exist" in error and "run the embedded demo" in error
    assert (
        "head must be one of" in error
        and "engine 'magic'" in error
        and not (tmp_path / "out" / "executed").exists()
    )
    assert error.endswith(f"\n{LOOK_UP}\n")


def test_refused_parameters_name_the_page_of_errors_too(tmp_path, capfd):
    assert refused(tmp_path, "sed=1") == 2
    error = capfd.readouterr().err
    assert "common.sed is declared by no notebook" in error
    assert error.endswith(f"\n{LOOK_UP}\n")
    assert (ROOT / LOOK_UP.split()[-1]).is_file()


def test_what_is_wrong_beside_a_demo_yet_to_be_written_is_listed_before_it_is_written(
    tmp_path, capfd
):
    demo = tmp_path / "demo"
    sizes = {
        "folder": demo,
        "train_scenes": 4,
        "test_scenes": 2,
        "text_prompts": 2,
        "image_size": 64,
        "clip_size": 32,
        "seed": 1,
    }
    assert (
        refused(
            tmp_path,
            f"train={demo / 'train'}",
            f"test={demo / 'test'}",
            f"text_only={tmp_path / 'gone.txt'}",
            f"clip=local-dir:{demo / 'clip'}",
            f"output_dir={tmp_path / 'out'}",
            "03_cuml_knn_model_b.engine=magic",
            *(f"demo.{name}={value}" for name, value in sizes.items()),
        )
        == 2
    )
    error = capfd.readouterr().err
    assert (
        f"text_only: {tmp_path / 'gone.txt'} does not exist" in error
        and "engine 'magic'" in error
        and str(demo) not in error
    )
    assert not demo.exists()
