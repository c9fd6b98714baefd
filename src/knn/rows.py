"""Rows of the store and queries: unit length, centering, and the blocks they are read in."""

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

TOLERANCE = 1e-3  # how far from 1 the length of a row may be
ROUNDING = 2e-6  # lengths further off are set right: faiss and cuVS take the inner product


@dataclass(frozen=True)
class BlockSettings:
    """How `search` reads the store and the queries; its arguments of the same names."""

    center: np.ndarray | None  # (d,)
    store_rows: int | None
    query_rows: int
    checked: bool = False


@dataclass(frozen=True)
class SearchRequest:
    """What `search` was asked for: its arguments after the checks, `queries` as unit rows."""

    shards: Sequence[np.ndarray]
    queries: np.ndarray  # (q, d)
    k: int
    rows: np.ndarray | None  # (n,) bool
    settings: BlockSettings


@dataclass(frozen=True)
class Piece:
    """`rows` rows of a shard from `start` on, or the `chosen` ones of them.

    `first` is the index in the store of the row at `start`.
    """

    shard: np.ndarray
    start: int
    first: int
    rows: int
    chosen: np.ndarray | None  # (m,) int64, relative to `start`

    def __len__(self) -> int:
        return self.rows if self.chosen is None else len(self.chosen)

    def read(self, part: slice = slice(None)) -> np.ndarray:
        """(m, d) in the shard's own type, or a `part` of them; a view where no row is left out."""
        block = self.shard[self.start : self.start + self.rows]
        return block[part] if self.chosen is None else block[self.chosen[part]]

    def indices(self) -> np.ndarray:
        """(m,) int64: each row's index in the store."""
        inside = np.arange(self.rows) if self.chosen is None else self.chosen
        return self.first + inside

    def release(self) -> None:
        """Let go of a read-only memory map's pages, which count as this process's memory."""
        if not isinstance(self.shard, np.memmap) or self.shard.mode != "r":
            return

        # a slice of a memory map is a view of it, and at the end of the chain is the map itself
        base: object = self.shard
        while isinstance(base, np.ndarray):
            base = base.base
        if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):
            base.madvise(mmap.MADV_DONTNEED)


def pieces(
    shards: Sequence[np.ndarray], rows: np.ndarray | None, piece_rows: int
) -> Iterator[Piece]:
    """The store in order, at most `piece_rows` rows of a shard at a time; only where `rows` is
    true.
    """
    offset = 0
    for shard in shards:
        for start in range(0, len(shard), piece_rows):
            count = min(piece_rows, len(shard) - start)
            first = offset + start
            chosen = None if rows is None else np.flatnonzero(rows[first : first + count])

            # with every row chosen the piece is a slice, which is read without a copy
            if chosen is not None and len(chosen) == count:
                chosen = None
            if chosen is None or len(chosen):
                yield Piece(shard, start, first, count, chosen)
        offset += len(shard)


def unit_rows(x: np.ndarray, name: str, indices: np.ndarray | None = None) -> np.ndarray:
    """`x` in float32, C order, unit rows; a NumPy or CuPy array, left as it was given.

    ValueError counts the rows that are further than TOLERANCE from unit length, and names one, by
    its entry of `indices` (n,) where given.
    """
    given = x
    x = x.astype(np.float32, order="C", copy=False)
    length = np.sqrt(np.einsum("nd,nd->n", x, x))
    off = np.abs(length - 1)
    if not len(x) or float(off.max()) <= ROUNDING:
        return x

    # negated, so that NaN is refused too
    bad = np.flatnonzero(~(off <= TOLERANCE))
    if len(bad):
        row = int(bad[0])
        named = row if indices is None else int(indices[row])
        raise ValueError(
            f"{name}: {len(bad)} of {len(x)} rows are not of unit length or not finite, "
            f"e.g. row {named} has length {float(length[row]):.4g}"
        )
    return np.divide(x, length[:, None], out=None if x is given else x)


def centered(x: np.ndarray, center: np.ndarray | None) -> np.ndarray:
    """Rows less `center` (d,), at unit length again; unchanged for None."""
    if center is None:
        return x
    x = x - center
    x /= np.sqrt(np.einsum("nd,nd->n", x, x))[:, None]
    return x
