"""Notebook 01: which prompts are kept, and which must share a fold."""

from src.dedup.filters import cosine_filter
from src.dedup.folds import given_folds, groups

__all__ = ["cosine_filter", "given_folds", "groups"]
