"""Small real CLIPs with random weights, written as open_clip's local-dir, for the tests of what trains on them."""

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
VISION = {
    "openai_vit_b_32": {"image_size": 224, "patch_size": 32, "width": 768, "layers": 12, "head_width": 64},
    "convnext": {"timm_model_name": "test_convnext", "timm_model_pretrained": False, "timm_pool": "avg", "timm_proj": "linear",
                 "image_size": 64},
    "efficientnet": {"timm_model_name": "test_efficientnet", "timm_model_pretrained": False, "timm_pool": "avg",
                     "timm_proj": "linear", "image_size": 64},
}


def write(folder: Path, kind: str, *, embed_dim: int = 32) -> str:
    """Write a CLIP with the vision tower `kind` and a tiny text tower; returns its name for `encoder.load`."""
    torch.manual_seed(0)
    config = {"embed_dim": embed_dim, "vision_cfg": VISION[kind], "text_cfg": TEXT, "quick_gelu": kind.startswith("openai")}
    model = open_clip.CLIP(**config)
    size = VISION[kind]["image_size"]
    preprocess = {"size": [size, size], "mode": "RGB", "mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28],
                  "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0}
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"
