"""A CLIP of the demo's kind, not trained, as a `local-dir`: for tests that need towers."""

from pathlib import Path

from src import demo


def write_clip(folder: Path, size: int = 64) -> None:
    """Write it for images of `size` pixels."""
    demo.write_clip(folder, size, weights=None)
