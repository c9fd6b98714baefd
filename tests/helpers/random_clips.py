"""CLIPs of many families with random weights, in folders: small, but each with its real forward."""

import json
from pathlib import Path

import open_clip
import timm
import torch
from safetensors.torch import save_file

from tests.helpers.toy_training import MEAN, STD, TEXT

SHORT_VIT = {"layers": 3, "width": 64, "head_width": 32, "image_size": 64}
# what makes a family's tower small: other entries of its vision config
SMALLER = {
    "MobileCLIP-S1": {"timm_model_name": "fastvit_t8", "image_size": 64},
    "MobileCLIP2-S0": {"image_size": 64},
    "coca_ViT-B-32": SHORT_VIT | {"attn_pooler_heads": 2},
    "EVA02-B-16": {"timm_model_name": "eva02_tiny_patch14_224"},
    "ViT-B-16-SigLIP2": {"timm_model_name": "test_vit", "image_size": 160},
    "ViT-H-14-worldwide": SHORT_VIT | {"image_size": 56},
    "ViT-B-16-quickgelu": SHORT_VIT,
    "convnext_base": {"timm_model_name": "test_convnext", "image_size": 64},
    "RN50": {"layers": (1, 1, 1, 1), "width": 16, "image_size": 64},
}


# towers of timm that know their input size run at another one: (side / patch)^2 tokens
RUN_AT = {"EVA02-B-16": 56, "PE-Core-T-16-384": 64}


def write_random_clip(name: str, folder: Path) -> str:
    """open_clip's model `name` with a tiny text tower, and its tower as SMALLER makes it.

    The name to load it by, with an input size where RUN_AT has one.
    """
    config = open_clip.get_model_config(name)
    vision = config["vision_cfg"] | SMALLER.get(name, {})
    coca = {"embed_cls": True, "output_tokens": True} if "multimodal_cfg" in config else {}
    content = config | {"vision_cfg": vision, "text_cfg": TEXT | coca, "custom_text": True}
    if coca:
        content["multimodal_cfg"] = TEXT | {"attn_pooler_heads": 2}
    size = vision["image_size"]
    settings = {"mean": MEAN, "std": STD, "size": [size, size], "mode": "RGB"}
    settings |= {"interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0}

    folder.mkdir(parents=True)
    text = json.dumps({"model_cfg": content, "preprocess_cfg": settings})
    (folder / "open_clip_config.json").write_text(text)
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    tensors = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    size = f"@{RUN_AT[name]}" if name in RUN_AT else ""
    return f"local-dir:{folder}{size}"


def write_timm_tower(name: str, folder: Path, **options: object) -> str:
    """A tower of timm in a folder as timm itself writes it."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, **options)
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return f"timm:local-dir:{folder}"


def write_hugging_face_clip(family: str, folder: Path) -> str:
    """A CLIP or SigLIP as transformers saves it, with a tokenizer of a few words."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(0)
    shared = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3}
    shared |= {"intermediate_size": 128}
    text = shared | {"vocab_size": 10, "max_position_embeddings": 12}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = shared | {"image_size": 32, "patch_size": 8}
    kind, model_class = {
        "clip": (transformers.CLIPConfig, transformers.CLIPModel),
        "siglip": (transformers.SiglipConfig, transformers.SiglipModel),
    }[family]
    options = {"projection_dim": 48} if family == "clip" else {}
    model_class(kind(text_config=text, vision_config=vision, **options)).save_pretrained(folder)

    words = ["<start>", "<end>", "<unknown>", "a", "red", "blue", "fox", "boat", "on", "ice"]
    tokens = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unknown>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<end>", eos_token="<end>", unk_token="<unknown>"
    ).save_pretrained(folder)
    settings = {"image_mean": MEAN, "image_std": STD, "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"resample": 3}))
    return f"local-dir:{folder}"
