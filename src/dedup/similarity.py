"""One pass over the similarities of a set with itself, from which filter 2, its curve, the groups and the histogram follow.

The upper triangle of the matrix is computed in tiles that stay in the processor's cache; of a tile only the pairs above the
lowest threshold survive it. A tile's numbers depend on its size, on threads and on the device in their last digits, so a pair
that lies within the proven rounding error of a threshold is computed again in float64: the answer does not depend on any of them.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from threading import local
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from tqdm import tqdm

BLOCK = {
    "cpu": 1024,
    "cuda": 8192,
}  # a tile of 1024 x 1024 float32 is 4 MB: it is scanned while it is in the cache
PAIRS = 4_000_000  # linked pairs held before they are reduced to a spanning forest: 9 bytes each
LOOK = 8192  # pairs of one second look: 8192 x 384 float64 are 25 MB a side
LINK_STEP = 0.02  # how far apart the similarities are at which groups can be asked for
UNIT = 1e-3  # how far from 1 a row's length may be
ROUNDING = {
    "float32": 0.0,
    "tf32": 2.0**-10,
    "bfloat16": 2.0**-8,
}  # relative error of one rounded input


@dataclass(frozen=True)
class Forest:
    """A maximum spanning forest of the pairs above the lowest of `levels`: edges i-j whose similarity passed `level` of them."""

    n: int
    i: np.ndarray
    j: np.ndarray
    level: np.ndarray
    levels: np.ndarray

    def components(
        self, threshold: float, links: tuple[np.ndarray, np.ndarray] | None = None
    ) -> np.ndarray:
        """(n,) int64 labels of the rows joined by chains of pairs above `threshold` and of `links` (i, j), which always join.

        Raises ValueError when `threshold` is not one of `levels`.
        """
        above = np.flatnonzero(self.levels == np.float32(threshold))
        if not len(above):
            raise ValueError(
                f"groups: no pairs were collected at {threshold}, only at {self.levels.round(4).tolist()}"
            )
        near = self.level > above[0]
        i, j = (
            np.concatenate([part[near], extra])
            for part, extra in zip((self.i, self.j), links or ([], []), strict=True)
        )
        graph = coo_matrix(
            (np.ones(len(i), dtype=bool), (i.astype(np.int64), j.astype(np.int64))),
            shape=(self.n, self.n),
        )
        return connected_components(graph, directed=False)[1].astype(np.int64)


@dataclass(frozen=True)
class PairScan:
    """What one pass found, by the rows' own order.

    `keeper` (n,) int64, the row itself where no row removed it; `similarity` (n,) float32 to it; `stays` (n,) bool; `nearest`
    (n,) float32, the highest similarity to any other row, within the `margin` of the precision; `kept` (t,) int64, how many rows
    stay at each of `thresholds`.
    """

    keeper: np.ndarray
    similarity: np.ndarray
    stays: np.ndarray
    nearest: np.ndarray
    thresholds: np.ndarray
    kept: np.ndarray
    forest: Forest


def check_unit(embeddings: np.ndarray, *thresholds: float) -> None:
    """Raise ValueError unless `embeddings` are (n, d) float32 rows of length 1 and each threshold is a cosine."""
    if embeddings.ndim != 2 or embeddings.dtype != np.float32:
        raise ValueError(
            f"embeddings must be 2-D float32, got {embeddings.ndim}-D {embeddings.dtype}"
        )
    wrong = [t for t in thresholds if not -1 <= t <= 1]
    if wrong:
        raise ValueError(f"threshold must be a cosine in [-1, 1], got {wrong[0]}")
    off = np.flatnonzero(
        ~(np.abs(np.sqrt(np.einsum("nd,nd->n", embeddings, embeddings)) - 1) < UNIT)
    )
    if len(off):
        raise ValueError(
            f"{len(off)} of {len(embeddings)} rows are not of unit length, e.g. row {off[0]}"
        )


def margin(dim: int, precision: str = "float32") -> float:
    """How far a computed product of two unit rows of `dim` numbers can be from the true one, whatever the order of summing.

    Summing d products in float32 errs by at most d 2^-24 |x||y|; rounding both rows to u relative, and the result once more,
    by at most (3u + 3u^2 + u^3) |x||y| (Cauchy-Schwarz).
    """
    u = ROUNDING[precision]
    return (1 + UNIT) ** 2 * (1.01 * (dim + 1) * 2.0**-24 + (1 + u) ** 3 - 1)


def choose_precision(device: torch.device) -> str:
    """`tf32` on a GPU that has it, else `float32`.

    `bfloat16` pays on a processor with instructions for it where few pairs are above the lowest threshold; of prompts so many
    are, each to be computed again within its wide margin, that the pass takes three times as long.
    """
    if device.type == "cuda":
        return "tf32" if torch.cuda.get_device_capability(device)[0] >= 8 else "float32"
    return "float32"


def exact(x: torch.Tensor, y: torch.Tensor, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """(m,) float32: similarities of the pairs x[i], y[j], summed in float64 and rounded once."""
    found = np.empty(len(i), np.float32)
    for start in range(0, len(i), LOOK):
        a, b = (
            rows[torch.from_numpy(part[start : start + LOOK]).to(rows.device)].double()
            for rows, part in ((x, i), (y, j))
        )
        found[start : start + LOOK] = (a * b).sum(1).float().cpu().numpy()
    return found


def nearest_in(
    embeddings: np.ndarray, others: np.ndarray, *, block: int | None = None, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """For each unit row of `embeddings` the highest similarity among `others`, (n,) float32, and its index there, (n,) int64.

    Exact; of equals the first. Raises ValueError when there are no others.
    """
    if not len(others):
        raise ValueError("no other rows to compare with")
    x, y = (torch.from_numpy(rows).to(device) for rows in (embeddings, others))
    best, index = np.full(len(x), -np.inf, np.float32), np.zeros(len(x), np.int64)
    block, slack = block or BLOCK[x.device.type], 2 * margin(x.shape[1])
    for start in range(0, len(x), block):
        for first in range(0, len(y), block):
            tile = x[start : start + block] @ y[first : first + block].T
            floor = (
                torch.maximum(
                    torch.from_numpy(best[start : start + block]).to(device), tile.amax(1)
                )
                - slack
            )
            i, j = (
                part.cpu().numpy() for part in torch.nonzero(tile >= floor[:, None], as_tuple=True)
            )
            i, j = i + start, j + first
            true = exact(x, y, i, j)
            order = np.lexsort((j, -true, i))
            order = order[_starts(i[order])]
            order = order[true[order] > best[i[order]]]
            best[i[order]], index[i[order]] = true[order], j[order]
    return best, index


def nearest_across(
    embeddings: np.ndarray, label: np.ndarray, *, block: int | None = None, device: str = "cpu"
) -> np.ndarray:
    """(n,) float32: each unit row's highest similarity to a row of another `label`, to float32's rounding; -1 without one."""
    order = np.argsort(label, kind="stable")
    x, label = torch.from_numpy(embeddings[order]).to(device), label[order]
    highest = torch.full((len(x),), -1.0, device=x.device)
    ends = [*_starts(label).tolist(), len(label)]
    size = block or BLOCK[x.device.type]
    for end, upto in zip(
        ends[1:-1], ends[2:], strict=True
    ):  # a label's rows against those of all earlier labels
        for start in range(end, upto, size):
            later = slice(start, min(start + size, upto))
            for first in range(0, end, size):
                earlier = slice(first, min(first + size, end))
                tile = x[later] @ x[earlier].T
                highest[later] = torch.maximum(highest[later], tile.amax(1))
                highest[earlier] = torch.maximum(highest[earlier], tile.amax(0))
    found = np.empty(len(x), np.float32)
    found[order] = highest.cpu().numpy()
    return found


def scan_pairs(
    embeddings: np.ndarray,
    threshold: float,
    *,
    curve: Sequence[float] = (),
    link: float | None = None,
    order: np.ndarray | None = None,
    eligible: np.ndarray | None = None,
    scope: np.ndarray | None = None,
    keep_one: bool = True,
    block: int | None = None,
    device: str = "cpu",
    precision: str = "auto",
    progress: bool = False,
) -> PairScan:
    """Filter (n, d) float32 unit rows at `threshold` and every value of `curve`, and collect the pairs above `link`.

    Rows are walked in `order` (a permutation; default as they stand): a row stays unless it is above the threshold with a row
    that stayed before it. A row not `eligible` never stays, one of another `scope` label removes none; both still link.
    With `keep_one` false, a row stays only when no other row is above the threshold with it. Exact, whatever the block, the
    device and the precision ("auto", "float32", "tf32", "bfloat16"). Raises ValueError as `check_unit` does, and for more
    than 64 thresholds.
    """
    check_unit(embeddings, threshold, *curve, *(() if link is None else (link,)))
    n = len(embeddings)
    eligible = np.ones(n, bool) if eligible is None else eligible
    scope = np.zeros(n, np.int64) if scope is None else scope
    order = np.arange(n) if order is None else order
    order = np.concatenate(
        [order[eligible[order]], order[~eligible[order]]]
    )  # all keepers are known before the last rows
    first = _first_equal(embeddings, order, eligible, scope)
    walk = order[first[order] == order]
    search = _PairScanner(
        embeddings,
        walk,
        eligible=eligible[walk],
        scope=scope[walk],
        threshold=threshold,
        curve=curve,
        link=link,
        keep_one=keep_one,
        device=device,
        precision=precision,
    )
    search.run(block or BLOCK[search.x.device.type], progress)
    return search.result(walk, first)


def _first_equal(
    embeddings: np.ndarray, order: np.ndarray, eligible: np.ndarray, scope: np.ndarray
) -> np.ndarray:
    """(n,) int64: of rows with the same bytes, scope and eligibility, the first in `order`."""
    seen: dict[tuple, int] = {}
    first = np.arange(len(embeddings))
    beginning = pl.Series(
        np.ascontiguousarray(embeddings[:, :2]).view(np.uint64)[:, 0]
        if embeddings.shape[1] > 1
        else first * 0
    )
    alike = (
        beginning.is_duplicated().to_numpy()
    )  # no other row can be equal to one whose beginning is its own
    for row in order[alike[order]].tolist():
        content = blake2b(np.ascontiguousarray(embeddings[row]), digest_size=16).digest()
        first[row] = seen.setdefault((content, scope[row], eligible[row]), row)
    return first


class _Hits(NamedTuple):
    """Pairs of a tile, sorted by `j`, then `i`: rows of the walk, similarity, and how many watched thresholds it is above."""

    j: np.ndarray
    i: np.ndarray
    similarity: np.ndarray
    level: np.ndarray

    def where(self, mask: np.ndarray) -> "_Hits":
        return _Hits(*(part[mask] for part in self))


class _PairScanner:
    """The state of a pass over the rows `walk`, no two of them equal; every index is a position in the walk.

    Bit b of `kept[r]` says that row r stays at `thresholds[b]`, so one walk settles all thresholds at once.
    """

    def __init__(
        self,
        embeddings: np.ndarray,
        walk: np.ndarray,
        *,
        eligible: np.ndarray,
        scope: np.ndarray,
        threshold: float,
        curve: Sequence[float],
        link: float | None,
        keep_one: bool,
        device: str,
        precision: str,
    ):
        self.thresholds = np.unique(np.float32([threshold, *curve]))
        if len(self.thresholds) > 64:
            raise ValueError(
                f"{len(self.thresholds)} thresholds in one pass, at most 64 are possible"
            )
        self.links = (
            np.empty(0, np.float32)
            if link is None
            else np.arange(link, 1, LINK_STEP).round(6).astype(np.float32)
        )
        self.links[:1] = link  # whatever its decimals
        self.watched = np.unique(np.concatenate([self.thresholds, self.links]))
        self.main = np.uint64(1 << int(np.searchsorted(self.thresholds, np.float32(threshold))))
        passed = np.searchsorted(self.thresholds, self.watched, side="right").tolist()
        self.bits = np.array(
            [0, *((1 << p) - 1 for p in passed)], dtype=np.uint64
        )  # level -> the thresholds it is above
        self.link_level = np.concatenate(
            [[0], np.searchsorted(self.links, self.watched, side="right")]
        ).astype(np.uint8)
        self.precision = (
            choose_precision(torch.device(device)) if precision == "auto" else precision
        )
        self.margin = margin(embeddings.shape[1], self.precision)
        whole = len(walk) == len(embeddings) and (np.diff(walk) > 0).all()
        self.x = torch.from_numpy(embeddings if whole else embeddings[walk]).to(device)
        self.eligible, self.scope, self.scopes = eligible, scope, len(np.unique(scope))
        self.keep_one = keep_one
        self.kept = np.where(eligible, self.bits[-1], np.uint64(0))
        self.nearest, self.buffers = np.full(len(walk), -1, np.float32), local()
        self.best, self.keeper = np.full(len(walk), -np.inf, np.float32), np.arange(len(walk))
        self.pairs, self.n_pairs = (
            [(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.uint8))],
            0,
        )

    def run(self, block: int, progress: bool) -> None:
        """Walk the upper triangle, block of rows by block of rows: all earlier rows are settled when a block comes.

        Tiles are computed ahead, a processor's thread each (no thread waits for another within a product), and used in order.
        """
        n, ahead = len(self.x), deque()
        workers = torch.get_num_threads() if self.x.device.type == "cpu" else 1
        before = torch.backends.cuda.matmul.allow_tf32, torch.get_num_threads()
        torch.backends.cuda.matmul.allow_tf32 = self.precision == "tf32"
        torch.set_num_threads(
            1
        )  # of this thread, which shares the processor with the tiles' threads
        try:
            with (
                ThreadPoolExecutor(workers, initializer=self._start_thread) as pool,
                tqdm(
                    total=n * (n + 1) // 2,
                    desc="similarities",
                    unit=" pairs",
                    unit_scale=True,
                    disable=not progress,
                ) as bar,
            ):
                for later, earlier in _upper_tiles(n, block):
                    ahead.append((later, earlier, pool.submit(self._look, later, earlier)))
                    if len(ahead) > 4 * workers:
                        bar.update(self._use(*ahead.popleft()))
                while ahead:
                    bar.update(self._use(*ahead.popleft()))
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before[0]
            torch.set_num_threads(before[1])
        self._reduce_pairs()

    def _start_thread(self) -> None:
        torch.set_num_threads(1)
        if self.x.device.type == "cuda":
            torch.cuda.set_device(self.x.device)  # a thread of its own begins without one

    def _tile(self, later: slice, earlier: slice) -> torch.Tensor:
        """The similarities of two blocks, in this thread's buffer."""
        a, b = self.x[later], self.x[earlier]
        if self.precision == "bfloat16":
            return a.bfloat16() @ b.bfloat16().T
        if getattr(self.buffers, "tile", None) is None or self.buffers.tile.numel() < len(a) * len(
            b
        ):
            self.buffers.tile = torch.empty(len(a) * len(b), device=self.x.device)
        return torch.mm(a, b.T, out=self.buffers.tile[: len(a) * len(b)].view(len(a), len(b)))

    def _look(self, later: slice, earlier: slice) -> tuple[np.ndarray, ...]:
        """A tile's highest similarity by row and by column, and `j`, `i`, similarity of its pairs near or above the lowest
        threshold, sorted by `j`, then `i`.
        """
        tile = self._tile(later, earlier)
        if later == earlier:
            tile.fill_diagonal_(-1)  # a row is no neighbour of itself
        by_row, by_column = tile.amax(1), tile.amax(0)
        cut = float(self.watched[0]) - self.margin
        rows = torch.nonzero(by_row > cut)[:, 0]
        part = tile[rows]
        j, i = torch.nonzero(part > cut, as_tuple=True)
        found = (
            by_row.float(),
            by_column.float(),
            rows[j] + later.start,
            i + earlier.start,
            part[j, i].float(),
        )
        return tuple(values.cpu().numpy() for values in found)

    def _use(self, later: slice, earlier: slice, looked: Future) -> int:
        """Let a tile's pairs remove rows and link them, and note the rows' highest similarities; how many pairs it had."""
        by_row, by_column, j, i, similarity = looked.result()
        for rows, highest in ((later, by_row), (earlier, by_column)):
            np.maximum(self.nearest[rows], highest, out=self.nearest[rows])
        hits, own = self._levelled(j, i, similarity), later == earlier
        hits = hits.where(hits.i < hits.j) if own else hits
        self._link(hits)
        if self.scopes > 1:
            hits = hits.where(self.scope[hits.i] == self.scope[hits.j])
        if len(hits.j):
            (self._settle if own else self._remove)(hits)
        n = len(by_row)
        return n * (n + 1) // 2 if own else n * len(by_column)

    def _levelled(self, j: np.ndarray, i: np.ndarray, similarity: np.ndarray) -> _Hits:
        """Pairs with their level; what lies within the margin of a threshold is computed again."""
        level = np.searchsorted(self.watched, similarity)
        below, above = (
            self.watched[np.maximum(level - 1, 0)],
            self.watched[np.minimum(level, len(self.watched) - 1)],
        )
        near = np.flatnonzero(
            np.minimum(np.abs(similarity - below), np.abs(similarity - above)) <= self.margin
        )
        similarity[near] = self._exact(j[near], i[near])
        level[near] = np.searchsorted(self.watched, similarity[near])
        return _Hits(j, i, similarity, level).where(level > 0)

    def _exact(self, j: np.ndarray, i: np.ndarray) -> np.ndarray:
        return exact(self.x, self.x, j, i)

    def _remove(self, hits: _Hits) -> None:
        """What settled rows `i` do to the later rows `j`."""
        above = self.bits[hits.level]
        if not self.keep_one:
            return self._remove_both(hits, above)
        at = _starts(hits.j)
        removed = np.bitwise_or.reduceat(above & self.kept[hits.i], at)
        self.kept[hits.j[at]] &= ~removed
        self._name_keepers(hits.where((above & self.kept[hits.i] & self.main) > 0))

    def _settle(self, hits: _Hits) -> None:
        """A block's own pairs, in order: a row that stays is at once a keeper for the later rows of its block."""
        above = self.bits[hits.level]
        if not self.keep_one:
            return self._remove_both(hits, above)
        at = _starts(hits.j)
        for start, end in zip(at.tolist(), [*at[1:].tolist(), len(hits.j)], strict=True):
            self.kept[hits.j[start]] &= ~np.bitwise_or.reduce(
                above[start:end] & self.kept[hits.i[start:end]]
            )
        self._name_keepers(hits.where((above & self.kept[hits.i] & self.main) > 0))

    def _remove_both(self, hits: _Hits, above: np.ndarray) -> None:
        """The keep-none rule: either row of a pair removes the other."""
        for row, other in ((hits.j, hits.i), (hits.i, hits.j)):
            real = self.eligible[other]
            np.bitwise_and.at(self.kept, row[real], ~above[real])
            real &= (above & self.main) > 0
            by_row = np.argsort(row[real], kind="stable")
            self._name_keepers(
                _Hits(row, other, hits.similarity, hits.level).where(np.flatnonzero(real)[by_row])
            )

    def _name_keepers(self, hits: _Hits) -> None:
        """Of the candidates `i` for each `j`, and the one it has, the most similar; of equals the earliest in the walk."""
        hits = hits.where(hits.similarity >= self.best[hits.j] - 2 * self.margin)
        at = _starts(hits.j)
        if not len(at):
            return
        top = np.repeat(np.maximum.reduceat(hits.similarity, at), np.diff([*at, len(hits.j)]))
        hits = hits.where(hits.similarity >= top - 2 * self.margin)
        true = self._exact(hits.j, hits.i)
        first = np.lexsort((hits.i, -true, hits.j))
        first = first[_starts(hits.j[first])]
        j, i, true = hits.j[first], hits.i[first], true[first]
        better = (true > self.best[j]) | ((true == self.best[j]) & (i < self.keeper[j]))
        self.best[j[better]], self.keeper[j[better]] = true[better], i[better]

    def _link(self, hits: _Hits) -> None:
        level = self.link_level[hits.level]
        linked = level > 0
        if not linked.any():
            return
        self.pairs.append(
            (hits.i[linked].astype(np.int32), hits.j[linked].astype(np.int32), level[linked])
        )
        self.n_pairs += len(self.pairs[-1][0])
        if self.n_pairs > PAIRS:
            self._reduce_pairs()

    def _reduce_pairs(self) -> None:
        """Of the pairs so far keep a maximum spanning forest: it has the same components at every level."""
        i, j, level = (np.concatenate(part) for part in zip(*self.pairs, strict=True))
        n = len(self.x)
        tree = minimum_spanning_tree(
            csr_matrix((256.0 - level, (i, j)), shape=(n, n)), overwrite=True
        ).tocoo()
        self.pairs = [
            (
                tree.row.astype(np.int32),
                tree.col.astype(np.int32),
                (256 - tree.data).astype(np.uint8),
            )
        ]
        self.n_pairs = 0  # that are not in the forest

    def result(self, walk: np.ndarray, first: np.ndarray) -> PairScan:
        """The pass in the rows' own order, the rows equal to an earlier one put back."""
        n = len(first)
        position = np.empty(n, np.int64)
        position[walk] = np.arange(len(walk))
        position = position[first]
        doubled = np.flatnonzero(first != np.arange(n))
        itself = self._exact(position[doubled], position[doubled])
        above = self.bits[np.searchsorted(self.watched, itself)]
        kept, keeper, similarity = (
            self.kept[position],
            walk[self.keeper[position]],
            self.best[position],
        )
        kept[doubled] &= ~above
        if not self.keep_one:
            np.bitwise_and.at(kept, first[doubled], ~above)
        near = doubled[((above & self.main) > 0) & self.eligible[position[doubled]]]
        for row, other in ((near, first[near]), *([] if self.keep_one else [(first[near], near)])):
            named = (kept[other] & self.main) > 0 if self.keep_one else np.ones(len(row), bool)
            keeper[row[named]], similarity[row[named]] = (
                other[named],
                self._exact(position[row[named]], position[other[named]]),
            )
        stays = (kept & self.main) > 0
        keeper[stays], similarity[stays] = np.flatnonzero(stays), 1
        unremoved = np.isneginf(similarity)  # dropped by a rule, and near no row that stays
        keeper[unremoved], similarity[unremoved] = np.flatnonzero(unremoved), 1
        nearest = self.nearest[position]
        for rows in (doubled, first[doubled]):
            nearest[rows] = np.maximum(nearest[rows], itself)
        counts = np.array(
            [((kept >> np.uint64(b)) & np.uint64(1)).sum() for b in range(len(self.thresholds))],
            np.int64,
        )
        level = self.link_level[np.searchsorted(self.watched, itself)]
        i, j, levels = self.pairs[0]
        forest = Forest(
            n,
            np.concatenate([walk[i], first[doubled]]),
            np.concatenate([walk[j], doubled]),
            np.concatenate([levels, level]),
            self.links,
        )
        return PairScan(keeper, similarity, stays, nearest, self.thresholds, counts, forest)


def _upper_tiles(n: int, block: int) -> Iterator[tuple[slice, slice]]:
    """(later, earlier) blocks of rows; a block's tile with itself comes after those with all earlier blocks."""
    for start in range(0, n, block):
        for earlier in range(0, start, block):
            yield slice(start, min(start + block, n)), slice(earlier, earlier + block)
        yield (slice(start, min(start + block, n)),) * 2


def _starts(ordered: np.ndarray) -> np.ndarray:
    """Where each run of equal values begins."""
    return np.flatnonzero(np.diff(ordered, prepend=-1))
