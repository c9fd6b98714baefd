"""Images of a folder decoded on threads, ahead of the models that take them."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from src.paths import as_text
from src.submit.predictor import ImageBatch, Predictor

REASON_LENGTH = 200  # characters of a reason that are kept


@dataclass(frozen=True)
class DecodedImage:
    """An image's name and its pixels, or None and the reason why it cannot be read."""

    name: str
    pixels: ImageBatch | None
    reason: str = ""


class BatchDecoder:
    """Decodes batches of names on the predictor's threads, `batches_ahead` before the one taken."""

    def __init__(self, predictor: Predictor, folder: Path, batches: Iterable[Sequence[str]]):
        self._predictor = predictor
        self._folder = folder
        self._batches = iter(batches)
        self._waiting: deque[list[Future]] = deque()

    def __iter__(self) -> Iterator[list[DecodedImage]]:
        self._fill()
        while self._waiting:
            futures = self._waiting.popleft()
            yield [future.result() for future in futures]
            self._fill()

    def _fill(self) -> None:
        """Hand batches to the threads until enough are waiting."""
        while len(self._waiting) <= self._predictor.batches_ahead:
            names = next(self._batches, None)
            if names is None:
                return
            self._waiting.append([self._predictor.pool.submit(self._decode, n) for n in names])

    def _decode(self, name: str) -> DecodedImage:
        try:
            pixels = self._predictor.decode(self._folder / name)
        except Exception as error:  # decoders raise anything on broken input; a run goes on
            reason = f"{type(error).__name__}: {error}".split("\n")[0][:REASON_LENGTH]
            return DecodedImage(as_text(name), None, as_text(reason))
        return DecodedImage(as_text(name), pixels)
