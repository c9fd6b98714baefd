"""Notebook 01: which prompts stay, and which must never stand on two sides of a split."""

from typing import TYPE_CHECKING

from src import lazy

if TYPE_CHECKING:
    from src.dedup.filters import cosine_filter
    from src.dedup.folds import given_folds, groups

__all__ = ["cosine_filter", "given_folds", "groups"]
_MODULES = {"cosine_filter": "filters", "given_folds": "folds", "groups": "folds"}
__getattr__ = lazy.exports(__name__, _MODULES)  # torch takes seconds to load
