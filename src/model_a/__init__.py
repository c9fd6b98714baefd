"""Notebook 02: Model A, a fine-tuned CLIP vision tower with the paper's two-layer head."""

from typing import TYPE_CHECKING

from src import lazy

if TYPE_CHECKING:
    from src.model_a.head import Head

__all__ = ["Head"]
__getattr__ = lazy.exports(__name__, {"Head": "head"})  # torch takes seconds to load
