"""Notebook 01: which prompts stay, and which must never stand on two sides of a split."""

from src.dedup.filters import cosine_filter
from src.dedup.folds import given_folds, groups

__all__ = ["cosine_filter", "given_folds", "groups"]
