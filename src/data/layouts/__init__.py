"""Every layout that training images come in, recognized by what is on disk: one reader each.

A reader takes (path, text_column) and returns a table `id, image, prompt, source, reason`. `image`
is a locator as `src/data/locators.py` defines it; `reason` is set where the layout itself says that
a row cannot be used.
"""

from src.data.layouts.journeydb import without_flags
from src.data.layouts.names import IMAGE_SUFFIXES
from src.data.layouts.registry import LAYOUTS, read, recognize
from src.data.layouts.rows import AMBIGUOUS, BLURRED, NO_IMAGE, NOT_DELIVERED, SIDECAR

__all__ = [
    "AMBIGUOUS",
    "BLURRED",
    "IMAGE_SUFFIXES",
    "LAYOUTS",
    "NOT_DELIVERED",
    "NO_IMAGE",
    "SIDECAR",
    "read",
    "recognize",
    "without_flags",
]
