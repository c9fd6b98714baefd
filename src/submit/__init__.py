"""Notebook 05: the submission, and what one does with a trained output."""

from typing import TYPE_CHECKING

from src.submit.index import Index

if TYPE_CHECKING:
    from src.submit.predictor import Predictor

__all__ = ["Index", "Predictor"]


def __getattr__(name: str) -> object:
    """`Predictor`, when it is asked for: its models' packages take longer to load than a search."""
    if name == "Predictor":
        from src.submit.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
