"""What is on disk becomes tables: training pairs, test images, prompts, pixels."""

from src.data.sources import read_pairs, read_test

__all__ = ["read_pairs", "read_test"]
