"""Notebook 04: the blend of Models A and B, its weights, and the table that judges it."""

from src.ensemble.blending import blend, search_alpha

__all__ = ["blend", "search_alpha"]
