"""The recipe of a fine-tune: every setting of the training loop, checked when it is made.

The defaults stand in the parameter cell of notebook 02, and nowhere else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict

HEADS = ("linear", "paper", "wide")
ACTIVATIONS = ("none", "relu", "gelu", "tanh")
TOWERS = ("trained", "frozen")
LOSSES = ("cosine", "contrastive", "huber")
STARTS = ("probe", "random")
# of a set's kept activations; above this the frozen blocks run again in every epoch
ACTIVATION_BYTES = 4 << 30

CHOICES = {
    "head": HEADS,
    "tower": TOWERS,
    "activation": ACTIVATIONS,
    "head_init": STARTS,
    "loss": LOSSES,
}
# lowest and highest value of a parameter; None: no end
LIMITS: dict[str, tuple[float, float | None]] = {
    **dict.fromkeys(("epochs", "lr_vision", "lr_fc", "lr_fc2"), (0, None)),
    **dict.fromkeys(("weight_decay", "clip_norm", "loss_mix"), (0, None)),
    **dict.fromkeys(("batch_size", "accumulate", "patience"), (1, None)),
    "lora_rank": (0, 1024),
    "lora_blocks": (-1, None),
    "layer_decay": (1e-3, 1),
    "warmup": (0, 1),
    "ema": (0, 0.99999),
    "mix": (0, 1),
}
BASELINE_LIMITS = {"baseline_epochs": LIMITS["epochs"], "baseline_lr": LIMITS["lr_vision"]}
ABLATION_LIMITS = {"ablation_epochs": LIMITS["epochs"]}


def out_of_range(
    name: str, value: float | list[float] | None, low: float, high: float | None
) -> list[str]:
    """One line where `value`, or an entry of it, lies outside low..high (None: no end).

    A value of None may be anything.
    """
    if value is None:
        return []

    entries = value if isinstance(value, list) else [value]
    if all(low <= entry and (high is None or entry <= high) for entry in entries):
        return []

    allowed = f"at least {low}" if high is None else f"within {low}..{high}"
    return [f"{name} must be {allowed}, got {value}"]


@dataclass(frozen=True)
class ImageChanges:
    """Which changes are made: rotation by up to 10 degrees, a flip in half of the cases, a crop of
    70 to 100 % of the area.
    """

    rotation: bool
    flip: bool
    crop: bool

    def __bool__(self) -> bool:
        return self.rotation or self.flip or self.crop


class HeadOptions(TypedDict, total=False):
    """The options of `Head`, as they are passed on."""

    activation: str
    mix: float
    learn_mix: bool


@dataclass(frozen=True)
class Recipe:
    """One variant's architecture and budget, under the names of notebook 02's parameters.

    What each value means stands beside the notebook's parameters. Raises ValueError that names
    every setting out of range.
    """

    head: str
    activation: str
    mix: float
    learn_mix: bool
    head_init: str
    tower: str
    trainable_blocks: int
    train_depthwise: bool
    lora_rank: int
    lora_blocks: int
    epochs: int
    patience: int
    batch_size: int
    accumulate: int
    lr_vision: float
    lr_fc: float
    lr_fc2: float | None
    layer_decay: float
    weight_decay: float
    warmup: float
    clip_norm: float
    ema: float
    interpolate: bool
    loss: str
    loss_mix: float
    sample_duplicates: bool
    weight_by_clip_score: bool
    augment_rotation: bool
    augment_flip: bool
    augment_crop: bool
    augment_synonyms: bool
    augment_shuffle: bool
    grad_checkpointing: bool
    compile_tower: bool

    def __post_init__(self):
        wrong = [
            f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
            for name, allowed in CHOICES.items()
            if getattr(self, name) not in allowed
        ]
        for name, (low, high) in LIMITS.items():
            wrong += out_of_range(name, getattr(self, name), low, high)

        if wrong:
            raise ValueError("; ".join(wrong))

    @property
    def image_changes(self) -> ImageChanges:
        """What is changed at random in a training image."""
        return ImageChanges(self.augment_rotation, self.augment_flip, self.augment_crop)

    @property
    def augment_text(self) -> bool:
        """Whether an epoch draws among several versions of each prompt's target."""
        return self.augment_synonyms or self.augment_shuffle

    @property
    def head_options(self) -> HeadOptions:
        """What `head.build` and `head.start` take beside the kind of head."""
        return {"activation": self.activation, "mix": self.mix, "learn_mix": self.learn_mix}

    def without_augmentation(self) -> "Recipe":
        """The same recipe on images and targets as they are."""
        return replace(
            self,
            augment_rotation=False,
            augment_flip=False,
            augment_crop=False,
            augment_synonyms=False,
            augment_shuffle=False,
        )

    @classmethod
    def from_parameters(cls, values: Mapping[str, Any]) -> "Recipe":
        """The recipe of Model A from the notebook's parameters; other names are ignored."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})


def baseline_recipe(values: Mapping[str, Any]) -> Recipe:
    """The plain fine-tune of Table 1's three CLIP variants, from the notebook's parameters.

    One linear layer, one learning rate for tower and layer, and none of Model A's additions.
    """
    return replace(
        Recipe.from_parameters(values).without_augmentation(),
        head="linear",
        epochs=values["baseline_epochs"],
        trainable_blocks=values["baseline_blocks"],
        lr_vision=values["baseline_lr"],
        lr_fc=values["baseline_lr"],
        lr_fc2=None,
        layer_decay=1.0,
        lora_rank=0,
        ema=0.0,
        loss="cosine",
        sample_duplicates=False,
        weight_by_clip_score=False,
    )


def recipe_differences(baseline: Recipe, recipe: Recipe) -> list[dict[str, str]]:
    """The settings in which Model A's recipe differs from that of the CLIP variants, a row each."""
    return [
        {"setting": name, "CLIP variants": str(getattr(baseline, name)), "Model A": str(value)}
        for name, value in vars(recipe).items()
        if getattr(baseline, name) != value
    ]
