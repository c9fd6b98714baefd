"""Notebook 05: the submission, and what one does with a trained output."""

from src.submit.index import Index
from src.submit.predictor import Predictor

__all__ = ["Index", "Predictor"]
