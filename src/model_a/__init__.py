"""Notebook 02: Model A, a fine-tuned CLIP vision tower with the paper's two-layer head."""

from src.model_a.head import Head

__all__ = ["Head"]
