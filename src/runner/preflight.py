"""What can be known before a long run begins: sources, columns, weights, settings and room, all of it looked at once.

`python -m src.runner.preflight < per_stage.json` is a process of its own, since it loads the models: the runner stays light, and no GPU
memory stays held.
"""

import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import torch

from src import artifacts, encoder, knn, paths
from src.data import prompts, sources, text_only
from src.dedup import filters, folds
from src.encoder import Encoder
from src.ensemble import outside
from src.model_a import head
from src.model_a.recipe import (
    ABLATION_LIMITS,
    BASELINE_LIMITS,
    Recipe,
    baseline_recipe,
    out_of_range,
)
from src.model_a.tower import make_tower
from src.model_a.training_set import ACTIVATION_BYTES
from src.model_b import datastore, routes, weighting
from src.paths import display_path, resolve
from src.runner.params import FILES, input_paths

CHARACTERS = 100  # of a prompt in a text file: how many there are is not counted, only estimated
TIMEOUT = 5  # seconds for a Dask scheduler to answer
LIMITS = {  # what a notebook, and no dataclass such as Recipe, would find out of range; None: no end
    "seed": (0, 2**31),
    "max_rejected": (0, 1),
    "min_words": (0, None),
    "max_tokens": (1, None),
    "edge_characters": (0, None),
    "cosine_threshold": (-1, 1),
    "group_similarity": (-1, 0.99),
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
class Findings:
    """What is wrong, a line each, and what the checks so far have learnt for those that follow."""

    wrong: list[str] = field(default_factory=list)
    pairs: pl.DataFrame | None = None
    test: dict[str, list[str]] = field(default_factory=dict)  # by folder: the images' ids
    clips: dict[str, Encoder | None] = field(
        default_factory=dict
    )  # None for one that does not load
    kept: dict[str, dict[int, int]] = field(
        default_factory=dict
    )  # by CLIP and cut: bytes of one image's frozen activations
    trained: dict[str, int] = field(default_factory=dict)  # by CLIP: parameters that train

    @contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """Any error inside becomes one line that begins with `what`, the parameter."""
        try:
            yield
        except (
            Exception
        ) as error:  # whatever a library raises on a user's file is what the user must know
            said = _said(error)
            self.wrong.append(said if said.startswith(what.split()[0]) else f"{what}: {said}")


def _said(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return (
        text
        if isinstance(error, ValueError | OSError | RuntimeError | AssertionError)
        else f"{type(error).__name__}: {text}"
    )


def problems(per_stage: dict[str, dict]) -> list[str]:
    """What would stop the stages of `per_stage` (stage -> parameters), each a line that names the parameter; empty if nothing.

    Inputs that do not exist are passed over: `params.missing_inputs` lists them.
    """
    found, per_stage = Findings(), {stage: _there(values) for stage, values in per_stage.items()}
    for stage, check in CHECKS.items():
        if stage in per_stage:
            _check_limits(found, per_stage[stage])
            with found.noting(stage):
                check(found, per_stage[stage])
    clips = {
        per_stage[stage]["clip"]
        for stage in ("03_cuml_knn_model_b", "04_ensemble_oof")
        if stage in per_stage
    }
    if len(clips) > 1:
        found.wrong.append("clip: notebooks 03 and 04 must be given the same; set it in `common`")
    members = [
        values["extra_members"] for values in per_stage.values() if "extra_members" in values
    ]
    if any(given != members[0] for given in members):
        found.wrong.append(
            "extra_members: notebooks 04 and 05 must be given the same; set it in `common`"
        )
    with found.noting("output_dir"):
        _check_room(found, per_stage)
    return list(dict.fromkeys(found.wrong))


def _there(values: dict) -> dict:
    """The parameters with None, or a shorter list, where a source does not exist."""
    return values | {name: _existing(name, values[name]) for name in FILES if name in values}


def _existing(name: str, value: object) -> object:
    if isinstance(value, list):
        return [entry for entry in value if not _is_missing(name, entry)] or (
            None if value else value
        )
    return None if _is_missing(name, value) else value


def _is_missing(name: str, value: object) -> bool:
    return any(not os.path.exists(path) for path in input_paths({name: value}).values())


def _check_limits(found: Findings, values: dict) -> None:
    for name in sorted(values.keys() & LIMITS.keys()):
        found.wrong += out_of_range(name, values[name], *LIMITS[name])
    for name in sorted(values.keys() & CHOICES.keys()):
        if values[name] not in CHOICES[name]:
            found.wrong.append(f"{name} must be {' or '.join(CHOICES[name])}, got {values[name]!r}")


# --- one check a notebook ---


def _check_data(found: Findings, values: dict) -> None:
    if values["train"] is not None:
        with found.noting("train"):
            found.pairs, rejected = sources.read_all(values["train"])
            file = resolve(values["output_dir"]) / paths.REFUSED
            refusal = sources.refusal(found.pairs, rejected, values["max_rejected"], file=file)
            if refusal:
                artifacts.save_table(file, rejected)
                raise ValueError(refusal)
            if values["fold_file"] is None and len(found.pairs) < values["n_folds"]:
                found.wrong.append(
                    f"n_folds: {values['n_folds']} folds of {len(found.pairs)} rows; lower it"
                )
    _check_test(found, values)
    with found.noting("exclude_near"):
        _first_prompts(values["exclude_near"])
    if values["fold_file"] is not None and found.pairs is None:
        _check_columns(found, "fold_file", values["fold_file"], ["id", "fold"])
    elif values["fold_file"] is not None:
        with found.noting("fold_file"):
            ids = found.pairs["id"].to_list()
            if (
                len(set(folds.given_folds(values["fold_file"], ids, np.arange(len(ids))).tolist()))
                < 2
            ):
                raise ValueError(
                    f"{display_path(resolve(values['fold_file']))} has one fold alone; two are the least"
                )
    with found.noting("cosine_keep"):
        filters.keeps_one(values["cosine_keep"])
    with found.noting("keep"):
        filters.walk_order(pl.Series(["a prompt"]), values["keep"])
    _check_models(found, values)


def _check_training(found: Findings, values: dict) -> None:
    _check_models(found, values)
    _check_cluster(found, values)
    with found.noting("02_train_model_a"):
        recipe = Recipe.from_parameters(values)
        if found.clips[values["clip"]] is not None:
            with found.noting("baseline_blocks"):
                _dry_step(found, values["clip"], baseline_recipe(values))
        for name in [values["clip"], *values["extra_clips"]]:
            if found.clips[name] is not None:
                _dry_step(found, name, recipe)


def _dry_step(found: Findings, name: str, recipe: Recipe) -> None:
    """Cut the tower as training will and run an image of noise through it; on a GPU a step with a whole batch, which says whether
    the memory suffices.
    """
    clip = found.clips[name]
    tower, on_gpu = make_tower(clip, recipe), clip.device.type == "cuda"
    shape = (recipe.batch_size if on_gpu else 1, clip.geometry.size, clip.geometry.size, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    try:
        with encoder.autocast(clip.device):
            frozen = tower.frozen(clip.normalize(noise))
            embedding = tower(frozen)
        if on_gpu and embedding.requires_grad:
            embedding.float().sum().backward()
    except torch.OutOfMemoryError as error:
        raise RuntimeError(
            f"batch_size {recipe.batch_size} does not fit the GPU's memory; halve it and double accumulate, turn on "
            f"grad_checkpointing, or lower trainable_blocks ({str(error).split('. ')[0]})"
        ) from None
    found.trained[name] = sum(p.numel() for p in tower.parameters() if p.requires_grad)
    if tower.splits and tower.trains:
        found.kept.setdefault(name, {})[tower.cut] = frozen[0].numel() * (2 if on_gpu else 4)


def _check_search(found: Findings, values: dict) -> None:
    _check_models(found, values)
    _check_cluster(found, values)
    with found.noting("text_only"):
        _first_prompts(values["text_only"])
    for folder in values["stores"] or []:
        with found.noting("stores"):
            sources.read_store(folder)
    with found.noting("engine"):
        knn.resolve_engine(values["engine"])
    with found.noting("routes"):
        if not values["routes"]:
            raise ValueError("none is given; the paper's is [{name: text}]")
        for route in values["routes"]:
            routes.Route.from_parameters(route, ["clip", *values["extra_clips"]])
        names = [route["name"] for route in values["routes"]]
        if len(set(names)) < len(names) or (
            "text" in names and {"name": "text"} not in values["routes"]
        ):
            raise ValueError(f"each has a name of its own, and `text` is the plain one's: {names}")
    with found.noting("delta, coef, distance"):
        for dim in values["dim_grid"]:
            weighting.Weighting(
                dim, values["delta"], values["coef"], values["distance"], values["delta_inside"]
            )(np.ones((1, 1), np.float32))
    if not values["k_grid"] or not values["dim_grid"] + values["tau_grid"]:
        found.wrong.append(
            "k_grid must hold numbers of neighbours, and dim_grid or tau_grid something to try"
        )


def _check_ensemble(found: Findings, values: dict) -> None:
    _check_slices(found, values)
    _check_members(found, values, "oof")


def _check_members(found: Findings, values: dict, what: str) -> None:
    """The members from outside can be read, and know the test images; their training rows are
    known only once notebook 01 has filtered.
    """
    with found.noting("extra_members"):
        outside.check_form(values["extra_members"])
        for entry in values["extra_members"]:
            file = resolve(entry[what])
            if file.exists():
                ids, _ = outside.read(file)
                wanted = found.test.get(values.get("test"), []) if what == "test" else []
                artifacts.indices_of_ids(ids, wanted, display_path(file))


def _check_slices(found: Findings, values: dict) -> None:
    if "image" in values["slice_by"]:
        found.wrong.append("slice_by: image is the image's own column; rename it in the table")
    if values["attributes"] is not None and found.pairs is None:
        _check_columns(
            found, "attributes", values["attributes"], ["file_name", *values["slice_by"]]
        )
    elif values["attributes"] is not None:
        with found.noting("attributes"):
            sources.read_attributes(values["attributes"], values["slice_by"], found.pairs["image"])


def _check_truth(found: Findings, values: dict) -> None:
    _check_test(found, values)
    _check_members(found, values, "test")
    with found.noting("test_truth"):
        if values["test_truth"] is not None:
            known = sources.read_truth(values["test_truth"])["imgId"].to_list()
            artifacts.indices_of_ids(
                known,
                found.test.get(values["test"], known),
                display_path(resolve(values["test_truth"])),
            )
    _check_models(found, values)


CHECKS = {
    "01_dedup": _check_data,
    "02_train_model_a": _check_training,
    "03_cuml_knn_model_b": _check_search,
    "04_ensemble_oof": _check_ensemble,
    "05_submit": _check_truth,
}


# --- what several notebooks share ---


def _check_test(found: Findings, values: dict) -> None:
    if values["test"] is None or values["test"] in found.test:
        return
    with found.noting("test"):
        found.test[values["test"]] = sources.read_test(values["test"])[0]["id"].to_list()


def _check_models(found: Findings, values: dict) -> None:
    """The device is there; every CLIP that exists and the sentence encoder load, and fit the task."""
    device = "cpu"
    with found.noting("device"):
        device = encoder.choose_device(values["device"]).type
    for name in (
        [values["clip"], *values.get("extra_clips", []), *values.get("extra_clips", [])]
        if "clip" in values
        else []
    ):
        if name not in found.clips:
            found.clips[name] = None
            if not _is_missing("clip", name):
                with found.noting(f"clip {name!r}"):
                    found.clips[name] = encoder.load(name, device=device)
    if "sentence_model" in values:
        with found.noting("sentence_model"):
            prompts.encode(["a prompt"], model=values["sentence_model"], device="cpu")


def _check_cluster(found: Findings, values: dict) -> None:
    with found.noting("cluster"):
        if values["cluster"] not in (None, "local"):
            scheme, _, address = values["cluster"].partition("://")
            host, _, port = address.rpartition(":")
            if scheme not in ("tcp", "tls") or not host or not port.isdigit():
                raise ValueError(
                    f"must be null, local or tcp://host:port, got {values['cluster']!r}"
                )
            socket.create_connection((host, int(port)), timeout=TIMEOUT).close()


def _check_columns(found: Findings, name: str, file: str, wanted: list[str]) -> None:
    with found.noting(name):
        artifacts.load_table(resolve(file), wanted)


def _first_prompts(text: str | list | None) -> None:
    """Read the beginning of each text-only source."""
    for entry in [text] if isinstance(text, str) else text or []:
        if next(sources.text_batches(entry, rows=1000), None) is None:
            raise ValueError(f"{display_path(resolve(entry))} holds no prompts")


# --- room ---


def _check_room(found: Findings, per_stage: dict[str, dict]) -> None:
    """The output can be written; and, once all else is right, what will be written has room."""
    output = resolve(next(iter(per_stage.values()))["output_dir"])
    with found.noting("output_dir"):
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    if found.wrong:
        return
    needed, free = room_needed(found, per_stage, output), shutil.disk_usage(output).free
    if sum(needed.values()) > free:
        parts = ", ".join(f"{name} {n / 2**30:.2f}" for name, n in needed.items())
        found.wrong.append(
            f"output_dir: {display_path(output)} needs about {sum(needed.values()) / 2**30:.2f} GiB ({parts}), "
            f"{free / 2**30:.2f} are free: make room, or set output_dir on another disk"
        )


def room_needed(found: Findings, per_stage: dict[str, dict], output: Path) -> dict[str, int]:
    """Bytes that the stages will write, by kind, less what the cache holds already; an estimate, on the low side."""
    needed = {"pixels": 0, "activations": 0, "weights": 0, "embeddings": 0, "store": 0}
    rows = max(map(len, found.test.values()), default=0) + (
        0 if found.pairs is None else len(found.pairs)
    )
    training, searching = per_stage.get("02_train_model_a"), per_stage.get("03_cuml_knn_model_b")
    for name, clip in ((name, clip) for name, clip in found.clips.items() if clip is not None):
        width = _width(clip)
        needed["pixels"] += rows * 3 * clip.geometry.size**2
        needed["embeddings"] += rows * 4 * width
        if name in found.trained:
            kept = [rows * n_bytes for n_bytes in found.kept.get(name, {}).values()]
            needed["activations"] += sum(n_bytes for n_bytes in kept if n_bytes <= ACTIVATION_BYTES)
            fits = per_stage.get("01_dedup", {}).get("n_folds", 1) * (
                4 if name == training["clip"] else 1
            )
            needed["weights"] += 4 * found.trained[name] * (fits + 5)  # 5: one checkpoint
        if searching and name in (searching["clip"], *searching["extra_clips"]):
            columns = width + (head.N_OUT if name == searching["clip"] else 0)
            n_bytes = 2 if searching["store_dtype"] == "float16" else 4
            needed["store"] += n_bytes * columns * (rows + _count_prompts(searching["text_only"]))
    needed["embeddings"] += (
        rows * 4 * head.N_OUT * 8
    )  # targets, and a prediction of each row of the tables
    held = [
        f.stat().st_size
        for folder in (paths.CACHE, paths.STORE_SHARDS)
        for f in (output / folder).rglob("*")
        if f.is_file()
    ]
    needed["there already"] = -min(sum(held), sum(needed.values()))
    return needed


def _width(clip: Encoder) -> int:
    size = clip.geometry.size
    return encoder.embed_images(clip, np.zeros((1, size, size, 3), np.uint8)).shape[1]


def _count_prompts(text: str | list | None) -> int:
    """About how many prompts the text-only sources hold: Parquet tables say it, other files are estimated by their size."""
    count = 0
    for entry in [text] if isinstance(text, str) else text or []:
        for file in text_only.text_files(resolve(entry)):
            parquet = file.suffix.lower() == ".parquet"
            count += (
                pl.scan_parquet(file, glob=False).select(pl.len()).collect().item()
                if parquet
                else file.stat().st_size // CHARACTERS
            )
    return count


if __name__ == "__main__":
    print(
        "\n" + json.dumps(problems(json.load(sys.stdin)))
    )  # on a line of its own, whatever libraries have said before
