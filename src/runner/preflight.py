"""The checks before a long run: sources, columns, weights, settings, disk space.

`python -m src.runner.preflight < per_stage.json` is a separate process, since it may load models:
the runner stays small, and no GPU memory remains in use. What takes seconds to import is imported
in the check that needs it, and a CLIP that an earlier check has loaded is not loaded again.
"""

import gc
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from src import artifacts, paths
from src.data import prompts, sources, text_only
from src.data.user_tables import read_user_table
from src.model_a.averaging import Averaging
from src.model_a.recipe import (
    ABLATION_LIMITS,
    BASELINE_LIMITS,
    Recipe,
    baseline_recipe,
    out_of_range,
)
from src.model_b import datastore
from src.paths import Stage, display_path, resolve
from src.runner import disk_space
from src.runner.clip_facts import (
    ClipFacts,
    TowerSize,
    key_of_clip,
    key_of_recipe,
    load_facts,
    save_facts,
)
from src.runner.params import FILES, input_paths

if TYPE_CHECKING:
    from src.encoder import Encoder

TIMEOUT = 5  # seconds for a Dask scheduler to answer
FIRST_ROWS = 1000  # of a text-only source that are read

# lowest and highest value of what no dataclass such as Recipe checks; None: no end
LIMITS = {
    "seed": (0, 2**31),
    "max_rejected": (0, 1),
    "min_words": (0, None),
    "max_tokens": (1, None),
    "edge_characters": (0, None),
    "cosine_threshold": (-1, 1),
    "group_similarity": (-1, 0.99),
    "text_conflict_similarity": (-1, 1),
    "max_group_share": (0, 1),
    "n_folds": (2, None),
    **BASELINE_LIMITS,
    **ABLATION_LIMITS,
    "n_bootstrap": (2, None),
    "worst": (1, None),
    "tolerance": (0, None),
    "k_grid": (1, None),
    "dim_grid": (0, None),
    "tau_grid": (1e-6, None),
}
CHOICES = {"filter_scope": ("all", "source"), "store_dtype": datastore.DTYPES}


@dataclass
class Inspection:
    """The problems, a line each, and what the checks so far have read or loaded."""

    problems: list[str] = field(default_factory=list)
    pairs: pl.DataFrame | None = None
    test_ids: dict[str, list[str]] = field(default_factory=dict)  # by folder
    known: dict[str, ClipFacts] = field(default_factory=dict)  # by earlier checks, and this one
    loaded: dict[str, "Encoder"] = field(default_factory=dict)  # by this one
    clips: dict[str, ClipFacts | None] = field(default_factory=dict)  # None: it does not load
    towers: dict[str, TowerSize] = field(default_factory=dict)  # by CLIP
    sentence_models: set[str] = field(default_factory=set)  # that have been looked at

    @property
    def rows(self) -> int:
        """How many training and test images there are."""
        n_test = max(map(len, self.test_ids.values()), default=0)
        return n_test + (0 if self.pairs is None else len(self.pairs))

    @contextmanager
    def reporting(self, what: str) -> Iterator[None]:
        """Any error inside becomes one line that begins with `what`, the parameter.

        Whatever a library raises on a user's file, the user must see it.
        """
        try:
            yield
        except Exception as error:
            line = _message(error)
            if not line.startswith(what.split(maxsplit=1)[0]):
                line = f"{what}: {line}"
            self.problems.append(line)


def _message(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    if isinstance(error, ValueError | OSError | RuntimeError | AssertionError):
        return text
    return f"{type(error).__name__}: {text}"


def problems(per_stage: Mapping[str, dict]) -> list[str]:
    """What would stop the stages of `per_stage` (stage -> parameters), a line for each parameter.

    Inputs that do not exist are passed over: `params.missing_inputs` lists them.
    """
    output = resolve(next(iter(per_stage.values()))["output_dir"])
    inspection = Inspection(known=load_facts(output))
    present = {stage: _without_missing(values) for stage, values in per_stage.items()}
    for stage, check in CHECKS.items():
        if stage in present:
            inspection.problems += _out_of_limits(present[stage])
            with inspection.reporting(stage):
                check(inspection, present[stage])

    clips = {
        present[stage]["clip"] for stage in (Stage.MODEL_B, Stage.ENSEMBLE) if stage in present
    }
    if len(clips) > 1:
        inspection.problems.append(
            "clip: notebooks 03 and 04 must be given the same; set it in `common`"
        )

    members = [
        values["extra_members"] for values in per_stage.values() if "extra_members" in values
    ]
    if any(given != members[0] for given in members):
        inspection.problems.append(
            "extra_members: notebooks 04 and 05 must be given the same; set it in `common`"
        )

    with inspection.reporting("output_dir"):
        _check_output(inspection, present)
        save_facts(output, inspection.known)
    return list(dict.fromkeys(inspection.problems))


def _without_missing(values: dict) -> dict:
    """The parameters with None, or a shorter list, where a source does not exist."""
    changed = {}
    for name in values.keys() & set(FILES):
        value = values[name]
        if isinstance(value, list):
            there = [entry for entry in value if not _is_missing(name, entry)]
            changed[name] = there if there or not value else None
        elif _is_missing(name, value):
            changed[name] = None
    return values | changed


def _is_missing(name: str, value: object) -> bool:
    return any(not os.path.exists(path) for path in input_paths({name: value}).values())


def _out_of_limits(values: dict) -> list[str]:
    """A line for each value, or entry of a list, that is beyond LIMITS or not in CHOICES."""
    problems = []
    for name in sorted(values.keys() & LIMITS.keys()):
        problems += out_of_range(name, values[name], *LIMITS[name])
    for name in sorted(values.keys() & CHOICES.keys()):
        if values[name] not in CHOICES[name]:
            allowed = " or ".join(CHOICES[name])
            problems.append(f"{name} must be {allowed}, got {values[name]!r}")
    return problems


# --- one check for each notebook ---


def _check_dedup(inspection: Inspection, values: dict) -> None:
    if values["train"] is not None:
        with inspection.reporting("train"):
            _check_train(inspection, values)
    _check_test(inspection, values)
    with inspection.reporting("exclude_near"):
        _read_beginnings(values["exclude_near"])
    if values["fold_file"] is not None:
        with inspection.reporting("fold_file"):
            _check_fold_file(inspection, values["fold_file"])

    from src.dedup import filters

    with inspection.reporting("cosine_keep"):
        filters.keeps_one(values["cosine_keep"])
    with inspection.reporting("keep"):
        filters.walk_order(pl.Series(["a prompt"]), values["keep"])
    _check_models(inspection, values)
    _check_cluster(inspection, values)


def _check_train(inspection: Inspection, values: dict) -> None:
    """Read the training pairs. Raises ValueError for a set of which too many rows are bad."""
    inspection.pairs, rejected = sources.read_all(values["train"])
    file = resolve(values["output_dir"]) / paths.REFUSED
    refusal = sources.refusal(inspection.pairs, rejected, values["max_rejected"], file=file)
    if refusal:
        artifacts.save_table(file, rejected)
        raise ValueError(refusal)

    n_pairs = len(inspection.pairs)
    n_folds = values["n_folds"]
    if values["fold_file"] is None and n_pairs < n_folds:
        inspection.problems.append(f"n_folds: {n_folds} folds of {n_pairs} rows; lower it")


def _check_fold_file(inspection: Inspection, file: str) -> None:
    """Raise ValueError for fewer than two folds; without pairs check only the columns."""
    if inspection.pairs is None:
        read_user_table(resolve(file), ["id", "fold"])
        return
    from src.dedup import folds

    ids = inspection.pairs["id"].to_list()
    fold = folds.given_folds(file, ids, np.arange(len(ids)))
    if len(np.unique(fold)) < 2:
        raise ValueError(
            f"{display_path(resolve(file))} has only one fold; at least two are needed"
        )


def _check_model_a(inspection: Inspection, values: dict) -> None:
    _check_models(inspection, values)
    _check_cluster(inspection, values)
    with inspection.reporting(Stage.MODEL_A):
        Averaging.from_parameters(values)
        recipe = Recipe.from_parameters(values)
        first = inspection.clips[values["clip"]]
        if first is not None:
            with inspection.reporting("baseline_blocks"):
                _check_tower(inspection, values, values["clip"], baseline_recipe(values))
        for name in [values["clip"], *values["extra_clips"]]:
            if inspection.clips[name] is not None:
                _check_tower(inspection, values, name, recipe)


def _check_tower(inspection: Inspection, values: dict, name: str, recipe: Recipe) -> None:
    """The tower can be trained by the recipe, as shown now or by an earlier check."""
    facts = inspection.clips[name]
    assert facts is not None
    key = key_of_recipe(recipe)
    if key not in facts.towers:
        facts.towers[key] = _run_tower(_loaded(inspection, name, values["device"]), recipe)

    # the frozen activations of each cut are cached; the recipe that comes last is Model A's own
    tower = facts.towers[key]
    earlier = inspection.towers.get(name)
    activation_bytes = dict(earlier.activation_bytes) if earlier else {}
    activation_bytes |= tower.activation_bytes
    inspection.towers[name] = TowerSize(tower.trained_parameters, activation_bytes)


def _run_tower(clip: "Encoder", recipe: Recipe) -> TowerSize:
    """Cut the tower as training will and run an image of noise through it.

    On a GPU that is a step with a whole batch, which shows whether the memory suffices.
    """
    import torch

    from src import encoder
    from src.model_a.tower import make_tower

    tower = make_tower(clip, recipe)
    on_gpu = clip.device.type == "cuda"
    n_images = recipe.batch_size if on_gpu else 1
    shape = (n_images, clip.geometry.size, clip.geometry.size, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    try:
        with encoder.autocast(clip.device):
            frozen = tower.frozen(clip.normalize(noise))
            embedding = tower(frozen)
        if on_gpu and embedding.requires_grad:
            embedding.float().sum().backward()
    except torch.OutOfMemoryError as error:
        raise RuntimeError(
            f"batch_size {recipe.batch_size} does not fit the GPU's memory; halve it and double "
            "accumulate, turn on grad_checkpointing, or lower trainable_blocks "
            f"({str(error).split('. ')[0]})"
        ) from None

    activation_bytes = {}
    if tower.splits and tower.trains:
        activation_bytes[tower.cut] = frozen[0].numel() * (2 if on_gpu else 4)
    trained = sum(p.numel() for p in tower.parameters() if p.requires_grad)
    return TowerSize(trained, activation_bytes)


def _check_model_b(inspection: Inspection, values: dict) -> None:
    _check_models(inspection, values)
    for name in [values["clip"], *values["extra_clips"]]:
        facts = inspection.clips.get(name)
        if facts is not None and not facts.has_text:
            with inspection.reporting("clip"):
                _refuse_without_text(_loaded(inspection, name, values["device"]))
    _check_cluster(inspection, values)
    from src import knn

    with inspection.reporting("text_only"):
        _read_beginnings(values["text_only"])
    with inspection.reporting("captions"):
        _check_captions(values["captions"])
    for folder in values["stores"] or []:
        with inspection.reporting("stores"):
            sources.read_store(folder)
    if values["engine"] != "auto":  # which takes what is available; the check imports cuML
        with inspection.reporting("engine"):
            knn.resolve_engine(values["engine"])
    with inspection.reporting("routes"):
        _check_routes(values["routes"], ["clip", *values["extra_clips"]])
    with inspection.reporting("delta, coef, distance"):
        _check_weighting(values)
    if not values["k_grid"] or not values["dim_grid"] + values["tau_grid"]:
        inspection.problems.append(
            "k_grid must hold numbers of neighbors, and dim_grid or tau_grid at least one value"
        )


def _check_captions(files: list[str]) -> None:
    """Raise ValueError for a file that Model B cannot search; others report a missing one."""
    from src.ensemble import outside

    for name in files:
        if resolve(name).exists():
            ids, _ = outside.read(resolve(name))
            outside.caption_prompts([name], ids)


def _refuse_without_text(clip: "Encoder") -> None:
    from src import encoder

    encoder.require_text(clip)


def _check_routes(given: list[dict], clips: list[str]) -> None:
    """Raise ValueError for a route that notebook 03 cannot take."""
    from src.model_b import routes

    if not given:
        raise ValueError("no route is given; the paper's is [{name: text}]")

    for route in given:
        routes.Route.from_parameters(route, clips)

    names = [route["name"] for route in given]
    doubled = len(set(names)) < len(names)
    other_text = "text" in names and {"name": "text"} not in given
    if doubled or other_text:
        raise ValueError(
            f"each needs a name of its own, and `text` is reserved for the plain one: {names}"
        )


def _check_weighting(values: dict) -> None:
    """Raise ValueError for constants of equation 4 that cannot be used."""
    from src.model_b.weighting import Weighting

    for dim in values["dim_grid"]:
        Weighting(dim, values["delta"], values["coef"], values["distance"], values["delta_inside"])


def _check_ensemble(inspection: Inspection, values: dict) -> None:
    _check_slices(inspection, values)
    _check_members(inspection, values, "oof")


def _check_members(inspection: Inspection, values: dict, what: str) -> None:
    """The members from outside can be read, and know the test images.

    Their training rows are known only once notebook 01 has filtered.
    """
    if not values["extra_members"]:
        return
    from src.ensemble import outside

    with inspection.reporting("extra_members"):
        outside.check_form(values["extra_members"])
        for entry in values["extra_members"]:
            file = resolve(entry[what])
            if file.exists():
                ids, _ = outside.read(file)
                wanted = []
                if what == "test":
                    wanted = inspection.test_ids.get(values["test"], [])
                artifacts.indices_of_ids(ids, wanted, display_path(file))


def _check_slices(inspection: Inspection, values: dict) -> None:
    if "image" in values["slice_by"]:
        inspection.problems.append(
            "slice_by: image is the image's own column; rename it in the table"
        )

    table = values["attributes"]
    if table is None:
        return
    with inspection.reporting("attributes"):
        if inspection.pairs is None:
            read_user_table(resolve(table), ["file_name", *values["slice_by"]])
        else:
            sources.read_attributes(table, values["slice_by"], inspection.pairs["image"])


def _check_submit(inspection: Inspection, values: dict) -> None:
    _check_test(inspection, values)
    _check_members(inspection, values, "test")
    if values["test_truth"] is not None:
        with inspection.reporting("test_truth"):
            ids = sources.read_truth(values["test_truth"])["imgId"].to_list()
            wanted = inspection.test_ids.get(values["test"], ids)
            artifacts.indices_of_ids(ids, wanted, display_path(resolve(values["test_truth"])))
    _check_models(inspection, values)


CHECKS = {
    Stage.DEDUP: _check_dedup,
    Stage.MODEL_A: _check_model_a,
    Stage.MODEL_B: _check_model_b,
    Stage.ENSEMBLE: _check_ensemble,
    Stage.SUBMIT: _check_submit,
}


# --- what several notebooks share ---


def _check_test(inspection: Inspection, values: dict) -> None:
    folder = values["test"]
    if folder is None or folder in inspection.test_ids:
        return
    with inspection.reporting("test"):
        inspection.test_ids[folder] = sources.read_test(folder)[0]["id"].to_list()


def _check_models(inspection: Inspection, values: dict) -> None:
    """The device is there; every CLIP that exists and the sentence encoder load and fit."""
    if values["device"] not in ("auto", "cpu"):  # these are always available
        from src import encoder

        with inspection.reporting("device"):
            encoder.choose_device(values["device"])

    clips = [values["clip"], *values.get("extra_clips", [])] if "clip" in values else []
    for name in clips:
        if name in inspection.clips:
            continue
        inspection.clips[name] = None
        if not _is_missing("clip", name):
            with inspection.reporting(f"clip {name!r}"):
                inspection.clips[name] = _facts(inspection, name, values["device"])

    model = values.get("sentence_model")
    if model is not None and model not in inspection.sentence_models:
        inspection.sentence_models.add(model)
        with inspection.reporting("sentence_model"):
            _check_sentence_model(model)


def _facts(inspection: Inspection, name: str, device: str) -> ClipFacts:
    """The facts of a CLIP by an earlier check; else it is loaded."""
    known = inspection.known
    key = key_of_clip(name, device)
    if key not in known:
        clip = _loaded(inspection, name, device)
        from src import encoder

        size = clip.geometry.size
        black = np.zeros((1, size, size, 3), np.uint8)
        width = encoder.embed_images(clip, black).shape[1]
        known[key] = ClipFacts(size, width, clip.has_text)
    return known[key]


def _loaded(inspection: Inspection, name: str, device: str) -> "Encoder":
    """The CLIP itself, on the device; on the CPU where the device is not available."""
    if name in inspection.loaded:
        return inspection.loaded[name]

    with _collector_paused():
        from src import encoder

        try:
            usable = encoder.choose_device(device).type
        except ValueError:  # reported as a fault of its own
            usable = "cpu"
        inspection.loaded[name] = encoder.load(name, device=usable)
    return inspection.loaded[name]


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Without garbage collection, which takes a fifth of the time that torch's imports take."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.collect(1)  # once for all that is new, in place of twice
            gc.enable()


def _check_sentence_model(model: str) -> None:
    """Load a model of the user's; of the packaged one it is enough that its weights are there."""
    if model == prompts.EMBEDDED:
        prompts.packaged_model()
    else:
        prompts.encode(["a prompt"], model=model, device="cpu")


def _check_cluster(inspection: Inspection, values: dict) -> None:
    cluster = values["cluster"]
    if cluster in (None, "local"):
        return
    with inspection.reporting("cluster"):
        scheme, _, address = cluster.partition("://")
        host, _, port = address.rpartition(":")
        if scheme not in ("tcp", "tls") or not host or not port.isdigit():
            raise ValueError(f"must be null, local or tcp://host:port, got {cluster!r}")
        socket.create_connection((host, int(port)), timeout=TIMEOUT).close()


def _read_beginnings(text: str | list | None) -> None:
    """Read the beginning of each text-only source. Raises ValueError for one without a prompt."""
    for entry in [text] if isinstance(text, str) else text or []:
        if next(text_only.text_batches(entry, rows=FIRST_ROWS), None) is None:
            raise ValueError(f"{display_path(resolve(entry))} holds no prompts")


def _check_output(inspection: Inspection, per_stage: Mapping[str, dict]) -> None:
    """The output can be written; and, once all else is right, there is space for it."""
    output = resolve(next(iter(per_stage.values()))["output_dir"])
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=output):
        pass
    if inspection.problems:
        return

    needed = disk_space.space_needed(
        per_stage,
        output,
        rows=inspection.rows,
        clips=inspection.clips,
        towers=inspection.towers,
    )
    total = sum(needed.values())
    free = shutil.disk_usage(output).free
    if total > free:
        parts = ", ".join(f"{name} {n_bytes / 2**30:.2f}" for name, n_bytes in needed.items())
        inspection.problems.append(
            f"output_dir: {display_path(output)} needs about {total / 2**30:.2f} GiB ({parts}), "
            f"{free / 2**30:.2f} are free: make room, or set output_dir on another disk"
        )


if __name__ == "__main__":
    # on a line of its own, whatever libraries have printed before
    print("\n" + json.dumps(problems(json.load(sys.stdin))))
