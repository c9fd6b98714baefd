"""Notebook 03: Model B, the distance-weighted mean of the nearest prompts."""

from src.model_b.weighting import fuse, weights

__all__ = ["fuse", "weights"]
