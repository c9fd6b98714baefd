"""The embedded default: rendered scenes, the prompts they were drawn from, and a small CLIP.

No hub is reachable on a closed machine, so the demo stands in for "prompts rendered by Stable
Diffusion": a seeded grammar composes a prompt, and whatever the prompt names is drawn (OpenMoji
subjects over a painted setting, in the named light and style). Heavy packages are imported inside
functions: the workers that render, and the runner, stay light.
"""

from src.demo.folder import STAMP, is_current, write
from src.demo.grammar import prompt
from src.demo.population import choose, embed, text_only
from src.demo.renderer import drawing, render
from src.demo.weights import build_clip, write_clip

__all__ = [
    "STAMP",
    "build_clip",
    "choose",
    "drawing",
    "embed",
    "is_current",
    "prompt",
    "render",
    "text_only",
    "write",
    "write_clip",
]
