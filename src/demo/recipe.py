"""What the demo's CLIP is trained on and how. Light: the processes that render import it."""

from dataclasses import dataclass

# input sizes trained at, drawn for each batch: mostly the demo's, at times that of smoke.yaml
SIZE_SHARES = {1.0: 0.75, 0.75: 0.25}


@dataclass(frozen=True)
class ClipRecipe:
    """What the weights depend on. Sizes in pixels, counts in scenes."""

    scenes: int = 65_536
    held_out: int = 500
    image_size: int = 256  # of the rendered scene, as in the demo
    clip_size: int = 128
    batch: int = 512
    alike: int = 16  # scenes that differ in the things alone: a batch consists of such sets
    lr: float = 1.5e-3
    weight_decay: float = 0.05
    warmup: int = 16  # steps
    average: float = 0.98  # a step's share that the moving average of the weights keeps
    temperature: float = 0.07
    seed: int = 0
