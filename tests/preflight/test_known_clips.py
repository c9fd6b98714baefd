"""A CLIP that an earlier check has loaded is not loaded again, and nothing heavy is imported."""

import json
import shutil
import subprocess
import sys

from src import encoder
from src.paths import ROOT
from src.runner import clip_facts, preflight


def test_a_clip_that_was_checked_is_loaded_again_only_when_it_changed(
    per_stage, disk, tmp_path, monkeypatch
):
    shutil.copytree(disk / "clip", tmp_path / "clip")
    for values in per_stage.values():
        if "clip" in values:
            values["clip"] = f"local-dir:{tmp_path / 'clip'}"
    loaded = []
    load = encoder.load

    def counted(name, **options):
        loaded.append(name)
        return load(name, **options)

    monkeypatch.setattr(encoder, "load", counted)
    assert preflight.problems(per_stage) == [] and len(loaded) == 1
    assert preflight.problems(per_stage) == [] and len(loaded) == 1

    # another recipe cuts the tower anew; what is refused is not remembered
    per_stage["02_train_model_a"]["trainable_blocks"] = 99
    for _ in range(2):
        assert "but the tower has 3" in preflight.problems(per_stage)[0]
    assert len(loaded) == 3
    per_stage["02_train_model_a"]["trainable_blocks"] = 3

    # other code may load or cut it otherwise
    monkeypatch.setattr(clip_facts, "CODE", (ROOT / "src/demo",))
    assert preflight.problems(per_stage) == [] and len(loaded) == 4

    weights = tmp_path / "clip" / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "could not be loaded" in preflight.problems(per_stage)[0]
    assert len(loaded) == 5


LIGHT = """
import json, sys
from src.runner import preflight
print(json.dumps(preflight.problems(json.load(sys.stdin))))
heavy = {"torch", "sklearn", "open_clip", "transformers", "cuml", "faiss", "matplotlib"}
print(sorted(heavy & sys.modules.keys()))
"""


def printed_by(per_stage: dict) -> str:
    """What LIGHT prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", LIGHT],
        input=json.dumps(per_stage),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_heavy_library_is_imported_for_a_known_clip_or_one_that_is_yet_to_be_written(
    per_stage, disk
):
    missing = {stage: dict(values) for stage, values in per_stage.items()}
    for values in missing.values():
        if "clip" in values:
            values["clip"] = "local-dir:input/none"
    assert printed_by(missing) == "[]\n[]\n"

    assert preflight.problems(per_stage) == []
    assert printed_by(per_stage) == "[]\n[]\n"
