"""A toy for Model A's tests: a small CLIP with random weights, and sixty images."""

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file

from src import encoder
from src.model_a.training_set import TrainingSet

VISION = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 3, "head_width": 32}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
MEAN = [0.48, 0.46, 0.41]
STD = [0.27, 0.26, 0.28]


def write_clip(folder: Path, vision: dict = VISION, **model_options: object) -> str:
    torch.manual_seed(0)
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT, **model_options}
    model = open_clip.model.CustomTextCLIP(**config)
    folder.mkdir(parents=True)
    settings = {
        "mean": MEAN,
        "std": STD,
        "size": [vision["image_size"]] * 2,
        "mode": "RGB",
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }
    content = {"model_cfg": {**config, "custom_text": True}, "preprocess_cfg": settings}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    save_file(
        {n: t.contiguous() for n, t in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return f"local-dir:{folder}"


def data_for(clip, n: int = 60) -> TrainingSet:
    rng = np.random.default_rng(0)
    size = clip.geometry.size
    pixels = rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    embeddings = encoder.embed_images(clip, pixels)
    targets = (
        np.tanh(
            40
            * (embeddings - embeddings.mean(axis=0))
            @ rng.standard_normal((embeddings.shape[1], 384))
        )
        + 0.3
    )
    targets = (targets / np.linalg.norm(targets, axis=1, keepdims=True)).astype(np.float32)
    return TrainingSet([f"p{i}" for i in range(n)], pixels, embeddings, targets[None], np.arange(n))
