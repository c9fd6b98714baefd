"""The recipe of a fine-tune: every setting of the training loop, checked when it is made."""

from dataclasses import dataclass

from src.model_a.head import ACTIVATIONS, HEADS

LOSSES = ("cosine", "contrastive", "huber")
STARTS = ("probe", "random")


def out_of_range(
    name: str, value: float | list[float] | None, low: float, high: float | None
) -> list[str]:
    """One line where `value`, or an entry of it, lies outside low..high (None: no end); None may be anything."""
    entries = value if isinstance(value, list) else [] if value is None else [value]
    if all(low <= entry and (high is None or entry <= high) for entry in entries):
        return []
    return [
        f"{name} must be {f'at least {low}' if high is None else f'within {low}..{high}'}, got {value}"
    ]


@dataclass(frozen=True)
class Recipe:
    """One row's architecture and budget. What each value means stands beside the notebook's parameters."""

    head: str = "paper"
    epochs: int = 8
    batch_size: int = 64
    lr_vision: float = 1e-3
    lr_fc: float = 1e-3
    lr_fc2: float | None = None
    weight_decay: float = 0.01
    trainable_blocks: int = 2
    tower: str = "trained"
    train_depthwise: bool = False
    activation: str = "none"
    mix: float = 0.5
    learn_mix: bool = True
    start: str = "probe"
    layer_decay: float = 1.0
    warmup: float = 0.1
    ema: float = 0.0
    clip_norm: float = 1.0
    accumulate: int = 1
    patience: int = 3
    interpolate: bool = True
    loss: str = "cosine"
    loss_mix: float = 0.1
    lora_rank: int = 0
    lora_blocks: int = -1
    grad_checkpointing: bool = False
    compile: bool = False
    augment_images: bool = False
    augment_text: bool = False
    sample_duplicates: bool = False
    weight_by_clip_score: bool = False

    def __post_init__(self):
        known = {
            "head": HEADS,
            "tower": ("trained", "frozen"),
            "activation": tuple(ACTIVATIONS),
            "start": STARTS,
            "loss": LOSSES,
        }
        wrong = [
            f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
            for name, allowed in known.items()
            if getattr(self, name) not in allowed
        ]
        for name, low, high in (
            ("epochs", 0, None),
            ("batch_size", 1, None),
            ("accumulate", 1, None),
            ("patience", 1, None),
            ("lora_rank", 0, 1024),
            ("lora_blocks", -1, None),
            ("layer_decay", 1e-3, 1),
            ("warmup", 0, 1),
            ("ema", 0, 0.99999),
            ("mix", 0, 1),
            ("lr_vision", 0, None),
            ("lr_fc", 0, None),
            ("lr_fc2", 0, None),
            ("weight_decay", 0, None),
            ("clip_norm", 0, None),
            ("loss_mix", 0, None),
        ):
            wrong += out_of_range(name, getattr(self, name), low, high)
        if wrong:
            raise ValueError("; ".join(wrong))
