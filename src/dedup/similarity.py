"""One scan over the similarities of a set with itself, for filter 2, its curve and the groups.

The upper triangle of the matrix is computed in tiles that stay in the processor's cache; of a tile
only the pairs above the lowest threshold survive. A tile's numbers depend in their last digits on
its size, on threads and on the device, so a pair within the proven rounding error of a threshold is
computed again in float64: the answer depends on none of them.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from threading import local
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from tqdm import tqdm

# rows of a tile; 1024 x 1024 float32 are 4 MB, which stay in a processor's cache while scanned
BLOCK = {"cpu": 1024, "cuda": 8192}
PAIRS = 4_000_000  # linked pairs held before they are reduced to a spanning forest: 9 bytes each
RECHECK = 8192  # pairs computed in float64 at a time: 8192 x 384 float64 are 25 MB a side
LINK_STEP = 0.02  # how far apart the similarities are at which groups can be asked for
LENGTH_TOLERANCE = 1e-3  # how far from 1 a row's length may be
ROUNDING = {"float32": 0.0, "tf32": 2.0**-10}  # relative error of one rounded input
MAX_THRESHOLDS = 64  # one bit of a uint64 each


# --- results of a scan ---


@dataclass(frozen=True)
class Forest:
    """A maximum spanning forest of the pairs above the lowest of `levels`.

    Edge e joins rows `i[e]` and `j[e]`, whose similarity is above the first `level[e]` levels.
    """

    n: int
    i: np.ndarray
    j: np.ndarray
    level: np.ndarray
    levels: np.ndarray

    def components(
        self, threshold: float, links: tuple[np.ndarray, np.ndarray] | None = None
    ) -> np.ndarray:
        """(n,) int64 labels of the rows joined by chains of pairs above `threshold`.

        Pairs of `links` (i, j) join at every threshold. Raises ValueError when `threshold` is not
        one of `levels`.
        """
        index = np.flatnonzero(self.levels == np.float32(threshold))
        if not len(index):
            levels = self.levels.round(4).tolist()
            raise ValueError(f"groups: no pairs were collected at {threshold}, only at {levels}")

        above = self.level > index[0]
        i = self.i[above].astype(np.int64)
        j = self.j[above].astype(np.int64)
        if links is not None:
            i = np.concatenate([i, links[0]])
            j = np.concatenate([j, links[1]])

        edges = np.ones(len(i), dtype=bool)
        graph = coo_matrix((edges, (i, j)), shape=(self.n, self.n))
        return connected_components(graph, directed=False)[1].astype(np.int64)


@dataclass(frozen=True)
class PairScan:
    """What `scan_pairs` returns, in the order of the rows it was given.

    `keeper` (n,) int64, the row itself where no row removed it; `similarity` (n,) float32 to the
    keeper; `stays` (n,) bool; `nearest` (n,) float32, the highest similarity to any other row,
    within the `margin` of the precision; `kept` (t,) int64, the rows that stay at each of
    `thresholds`.
    """

    keeper: np.ndarray
    similarity: np.ndarray
    stays: np.ndarray
    nearest: np.ndarray
    thresholds: np.ndarray
    kept: np.ndarray
    forest: Forest


# --- what every comparison shares ---


def check_unit(embeddings: np.ndarray, *thresholds: float) -> None:
    """Raise ValueError unless rows are (n, d) float32 of length 1 and thresholds are cosines."""
    if embeddings.ndim != 2 or embeddings.dtype != np.float32:
        kind = f"{embeddings.ndim}-D {embeddings.dtype}"
        raise ValueError(f"embeddings must be 2-D float32, got {kind}")

    wrong = [t for t in thresholds if not -1 <= t <= 1]
    if wrong:
        raise ValueError(f"threshold must be a cosine in [-1, 1], got {wrong[0]}")

    length = np.sqrt(np.einsum("nd,nd->n", embeddings, embeddings))
    # negated, so that NaN is refused too
    off = np.flatnonzero(~(np.abs(length - 1) < LENGTH_TOLERANCE))
    if len(off):
        count = f"{len(off)} of {len(embeddings)} rows"
        raise ValueError(f"{count} are not of unit length, e.g. row {off[0]}")


def margin(dim: int, precision: str = "float32") -> float:
    """How far a computed product of two unit rows of `dim` numbers can be from the true one.

    Whatever the order of summing: summing d products in float32 errs by at most d 2^-24 |x||y|;
    rounding both rows to u relative, and the result once more, by at most
    (3u + 3u^2 + u^3) |x||y| (Cauchy-Schwarz).
    """
    u = ROUNDING[precision]
    longest = (1 + LENGTH_TOLERANCE) ** 2
    return longest * (1.01 * (dim + 1) * 2.0**-24 + (1 + u) ** 3 - 1)


def choose_precision(device: torch.device) -> str:
    """`tf32` on a GPU that has it, else `float32`."""
    if device.type != "cuda":
        return "float32"
    return "tf32" if torch.cuda.get_device_capability(device)[0] >= 8 else "float32"


def exact(x: torch.Tensor, y: torch.Tensor, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """(m,) float32: similarities of the pairs x[i], y[j], summed in float64 and rounded once."""
    similarity = np.empty(len(i), np.float32)
    for start in range(0, len(i), RECHECK):
        part = slice(start, start + RECHECK)
        left = x[torch.from_numpy(i[part]).to(x.device)].double()
        right = y[torch.from_numpy(j[part]).to(y.device)].double()
        similarity[part] = (left * right).sum(1).float().cpu().numpy()
    return similarity


# --- nearest rows ---


def nearest_in(
    embeddings: np.ndarray, others: np.ndarray, *, block: int | None = None, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """For each unit row its highest similarity among `others`, (n,) float32, and its index there.

    The index is (n,) int64. Exact; of equals the first. Raises ValueError without others.
    """
    if not len(others):
        raise ValueError("no other rows to compare with")

    x = torch.from_numpy(embeddings).to(device)
    y = torch.from_numpy(others).to(device)
    block = block or BLOCK[x.device.type]
    slack = 2 * margin(x.shape[1])
    best = np.full(len(x), -np.inf, np.float32)
    index = np.zeros(len(x), np.int64)

    # block by block against block by block: what is held is one tile, and each row's best so far
    for start in range(0, len(x), block):
        rows = x[start : start + block]
        for first in range(0, len(y), block):
            tile = rows @ y[first : first + block].T

            # every pair that rounding may have kept from being its row's highest
            best_before = torch.from_numpy(best[start : start + block]).to(device)
            floor = torch.maximum(best_before, tile.amax(1)) - slack
            near_rows, near_columns = torch.nonzero(tile >= floor[:, None], as_tuple=True)
            i = near_rows.cpu().numpy() + start
            j = near_columns.cpu().numpy() + first
            similarity = exact(x, y, i, j)

            # by row, then falling similarity, then index: the first of each row is its best
            order = np.lexsort((j, -similarity, i))
            order = order[_run_starts(i[order])]
            order = order[similarity[order] > best[i[order]]]
            best[i[order]] = similarity[order]
            index[i[order]] = j[order]
    return best, index


def nearest_across(
    embeddings: np.ndarray, label: np.ndarray, *, block: int | None = None, device: str = "cpu"
) -> np.ndarray:
    """(n,) float32: each unit row's highest similarity to a row of another `label`.

    To float32's rounding; -1 where there is no other label.
    """
    order = np.argsort(label, kind="stable")
    x = torch.from_numpy(embeddings[order]).to(device)
    size = block or BLOCK[x.device.type]
    bounds = [*_run_starts(label[order]).tolist(), len(label)]
    highest = torch.full((len(x),), -1.0, device=x.device)

    # rows lie label by label: those of each label against those of all earlier labels
    for begin, end in pairwise(bounds[1:]):
        for start in range(begin, end, size):
            later = slice(start, min(start + size, end))
            for first in range(0, begin, size):
                earlier = slice(first, min(first + size, begin))
                tile = x[later] @ x[earlier].T
                highest[later] = torch.maximum(highest[later], tile.amax(1))
                highest[earlier] = torch.maximum(highest[earlier], tile.amax(0))

    in_given_order = np.empty(len(x), np.float32)
    in_given_order[order] = highest.cpu().numpy()
    return in_given_order


# --- the scan ---


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
    """Filter (n, d) float32 unit rows at `threshold` and each of `curve`; link pairs above `link`.

    Rows are walked in `order` (a permutation; by default as they stand): a row stays unless it is
    above the threshold with a row that stayed before it. A row that is not `eligible` never stays,
    and a row of another `scope` label removes none; both still link. With `keep_one` false, a row
    stays only when no other row is above the threshold with it. Exact, whatever the block, the
    device and the precision ("auto", "float32", "tf32"). Raises ValueError as `check_unit` does,
    and for more than 64 thresholds.
    """
    check_unit(embeddings, threshold, *curve, *(() if link is None else (link,)))
    n = len(embeddings)
    eligible = np.ones(n, bool) if eligible is None else eligible
    scope = np.zeros(n, np.int64) if scope is None else scope
    order = np.arange(n) if order is None else order

    # rows that can never stay come last, when all rows that can remove them are known
    order = np.concatenate([order[eligible[order]], order[~eligible[order]]])
    first_copy = _first_copies(embeddings, order, eligible, scope)
    walk = order[first_copy[order] == order]

    scanner = _PairScanner(
        embeddings,
        walk,
        _Levels.of(threshold, curve, link),
        eligible=eligible[walk],
        scope=scope[walk],
        keep_one=keep_one,
        device=device,
        precision=precision,
    )
    scanner.run(block or BLOCK[scanner.x.device.type], progress)
    return scanner.result(first_copy)


def _first_copies(
    embeddings: np.ndarray, order: np.ndarray, eligible: np.ndarray, scope: np.ndarray
) -> np.ndarray:
    """(n,) int64: of rows with the same bytes, scope and eligibility, the first in `order`."""
    first = np.arange(len(embeddings))

    # only rows whose first two numbers occur twice can be copies: the others need no hash
    if embeddings.shape[1] > 1:
        beginning = np.ascontiguousarray(embeddings[:, :2]).view(np.uint64)[:, 0]
    else:
        beginning = np.zeros(len(embeddings), np.uint64)
    may_be_copy = pl.Series(beginning).is_duplicated().to_numpy()

    first_with: dict[tuple, int] = {}
    for row in order[may_be_copy[order]].tolist():
        content = blake2b(embeddings[row].tobytes(), digest_size=16).digest()
        first[row] = first_with.setdefault((content, scope[row], eligible[row]), row)
    return first


@dataclass(frozen=True)
class _Levels:
    """Every similarity that a scan watches. A pair's level counts the `watched` values it is above.

    `removal_bits[level]` has bit b set when such a pair is above `thresholds[b]`; `main_bit` is the
    bit of the filter's own threshold. `link_level[level]` counts the `links` it is above.
    """

    thresholds: np.ndarray
    links: np.ndarray
    watched: np.ndarray
    removal_bits: np.ndarray
    main_bit: np.uint64
    link_level: np.ndarray

    @classmethod
    def of(cls, threshold: float, curve: Sequence[float], link: float | None) -> "_Levels":
        """Raises ValueError for more thresholds than a row has bits."""
        thresholds = np.unique(np.array([threshold, *curve], np.float32))
        if len(thresholds) > MAX_THRESHOLDS:
            count = f"{len(thresholds)} thresholds in one scan"
            raise ValueError(f"{count}, at most {MAX_THRESHOLDS} are possible")

        links = np.empty(0, np.float32)
        if link is not None:
            links = np.arange(link, 1, LINK_STEP).round(6).astype(np.float32)
            links[:1] = link  # whatever its decimals
        watched = np.unique(np.concatenate([thresholds, links]))

        passed = np.searchsorted(thresholds, watched, side="right").tolist()
        removal_bits = np.array([0, *((1 << p) - 1 for p in passed)], dtype=np.uint64)
        main = int(np.searchsorted(thresholds, np.float32(threshold)))
        links_passed = np.searchsorted(links, watched, side="right")
        return cls(
            thresholds=thresholds,
            links=links,
            watched=watched,
            removal_bits=removal_bits,
            main_bit=np.uint64(1 << main),
            link_level=np.concatenate([[0], links_passed]).astype(np.uint8),
        )


class _Pairs(NamedTuple):
    """Pairs of a tile, sorted by `j`, then `i`: places in the walk, similarity and level."""

    j: np.ndarray
    i: np.ndarray
    similarity: np.ndarray
    level: np.ndarray

    def where(self, mask: np.ndarray) -> "_Pairs":
        return _Pairs(*(part[mask] for part in self))


class _Copies(NamedTuple):
    """Rows left out of the walk, since an earlier row has the same bytes, scope and eligibility.

    Their own index, that of the earlier row, its place in the walk, the similarity of the two (not
    1 to the last digit), and its level.
    """

    row: np.ndarray
    first: np.ndarray
    place: np.ndarray
    similarity: np.ndarray
    level: np.ndarray


class _PairScanner:
    """The state of a scan over the rows `walk`, no two of them equal.

    Every index is a place in the walk. Bit b of `stay_bits[r]` says that row r stays at
    `thresholds[b]`: one walk settles them all.
    """

    def __init__(
        self,
        embeddings: np.ndarray,
        walk: np.ndarray,
        levels: _Levels,
        *,
        eligible: np.ndarray,
        scope: np.ndarray,
        keep_one: bool,
        device: str,
        precision: str,
    ):
        self.walk = walk
        self.levels = levels
        self.eligible = eligible
        self.scope = scope
        self.one_scope = len(np.unique(scope)) <= 1
        self.keep_one = keep_one

        in_order = len(walk) == len(embeddings) and (np.diff(walk) > 0).all()
        rows = embeddings if in_order else embeddings[walk]
        self.x = torch.from_numpy(rows).to(device)
        if precision == "auto":
            precision = choose_precision(torch.device(device))
        self.precision = precision
        self.margin = margin(embeddings.shape[1], precision)
        self.buffers = local()

        # what the scan finds out about each row
        n = len(walk)
        # each row stays at every threshold until a row that stays removes it
        self.stay_bits = np.where(eligible, levels.removal_bits[-1], np.uint64(0))
        self.nearest = np.full(n, -1, np.float32)
        self.keeper = np.arange(n)
        self.keeper_similarity = np.full(n, -np.inf, np.float32)

        # linked pairs: a spanning forest first, then the pairs found since
        no_rows = np.empty(0, np.int32)
        self.linked = [(no_rows, no_rows, np.empty(0, np.uint8))]
        self.n_linked = 0

    # --- walking the triangle ---

    def run(self, block: int, progress: bool) -> None:
        """Walk the upper triangle: when a block of rows comes, all earlier rows are settled.

        Tiles are computed ahead, each by a thread of its own, and applied in order.
        """
        n = len(self.x)
        workers = torch.get_num_threads() if self.x.device.type == "cpu" else 1
        bar = tqdm(
            total=n * (n + 1) // 2,
            desc="similarities",
            unit=" pairs",
            unit_scale=True,
            disable=not progress,
        )

        # far enough ahead that no thread waits, and no further: tiles take memory
        pool = ThreadPoolExecutor(workers, initializer=self._start_thread)
        ahead: deque[tuple[slice, slice, Future]] = deque()
        with self._torch_settings(), pool, bar:
            for later, earlier in _upper_tiles(n, block):
                ahead.append((later, earlier, pool.submit(self._scan_tile, later, earlier)))
                if len(ahead) > 4 * workers:
                    bar.update(self._apply_tile(*ahead.popleft()))
            while ahead:
                bar.update(self._apply_tile(*ahead.popleft()))
        self._reduce_linked()

    @contextmanager
    def _torch_settings(self) -> Iterator[None]:
        """One thread for this thread's own products: those of the tiles fill the processor."""
        allow_tf32 = torch.backends.cuda.matmul.allow_tf32
        threads = torch.get_num_threads()
        torch.backends.cuda.matmul.allow_tf32 = self.precision == "tf32"
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = allow_tf32
            torch.set_num_threads(threads)

    def _start_thread(self) -> None:
        torch.set_num_threads(1)
        if self.x.device.type == "cuda":
            torch.cuda.set_device(self.x.device)  # a new thread begins without one

    def _tile(self, later: slice, earlier: slice) -> torch.Tensor:
        """The similarities of two blocks, in this thread's buffer."""
        rows = self.x[later]
        columns = self.x[earlier]
        size = len(rows) * len(columns)
        buffer = getattr(self.buffers, "tile", None)
        if buffer is None or buffer.numel() < size:
            buffer = torch.empty(size, device=self.x.device)
            self.buffers.tile = buffer
        return torch.mm(rows, columns.T, out=buffer[:size].view(len(rows), len(columns)))

    def _scan_tile(self, later: slice, earlier: slice) -> tuple[np.ndarray, ...]:
        """A tile's highest similarity by row and by column, and its pairs of interest.

        These are the pairs near or above the lowest threshold: `j`, `i` and similarity, sorted by
        `j`, then `i`.
        """
        tile = self._tile(later, earlier)
        if later == earlier:
            tile.fill_diagonal_(-1)  # a row is not a neighbor of itself
        by_row = tile.amax(1)
        by_column = tile.amax(0)

        # most rows of a tile are near no other: look only into those that are
        cut = float(self.levels.watched[0]) - self.margin
        rows = torch.nonzero(by_row > cut)[:, 0]
        part = tile[rows]
        j, i = torch.nonzero(part > cut, as_tuple=True)
        result = (by_row, by_column, rows[j] + later.start, i + earlier.start, part[j, i])
        return tuple(values.cpu().numpy() for values in result)

    def _apply_tile(self, later: slice, earlier: slice, scanned: Future) -> int:
        """Let a tile's pairs remove and link rows, and note each row's highest similarity.

        Returns the number of pairs that the tile holds.
        """
        by_row, by_column, j, i, similarity = scanned.result()
        for rows, highest in ((later, by_row), (earlier, by_column)):
            np.maximum(self.nearest[rows], highest, out=self.nearest[rows])

        within_block = later == earlier
        pairs = self._with_levels(j, i, similarity)
        if within_block:
            pairs = pairs.where(pairs.i < pairs.j)
        self._link(pairs)

        if not self.one_scope:
            pairs = pairs.where(self.scope[pairs.i] == self.scope[pairs.j])
        if len(pairs.j):
            self._remove(pairs, within_block)

        n = len(by_row)
        return n * (n + 1) // 2 if within_block else n * len(by_column)

    def _with_levels(self, j: np.ndarray, i: np.ndarray, similarity: np.ndarray) -> _Pairs:
        """Pairs with their level; within the margin of a threshold it is decided in float64."""
        watched = self.levels.watched
        level = np.searchsorted(watched, similarity)
        to_below = np.abs(similarity - watched[np.maximum(level - 1, 0)])
        to_above = np.abs(similarity - watched[np.minimum(level, len(watched) - 1)])

        doubtful = np.flatnonzero(np.minimum(to_below, to_above) <= self.margin)
        similarity[doubtful] = self._exact(j[doubtful], i[doubtful])
        level[doubtful] = np.searchsorted(watched, similarity[doubtful])
        return _Pairs(j, i, similarity, level).where(level > 0)

    def _exact(self, j: np.ndarray, i: np.ndarray) -> np.ndarray:
        return exact(self.x, self.x, j, i)

    # --- removing rows ---

    def _remove(self, pairs: _Pairs, within_block: bool) -> None:
        """Let rows `i` that stay remove the later rows `j`, or, keeping none, each the other."""
        above = self.levels.removal_bits[pairs.level]
        if not self.keep_one:
            self._remove_each_other(pairs, above)
            return

        # earlier blocks are settled, so their rows remove all at once; a block's own rows are not
        if within_block:
            self._remove_one_by_one(pairs, above)
        else:
            starts = _run_starts(pairs.j)
            removed = np.bitwise_or.reduceat(above & self.stay_bits[pairs.i], starts)
            self.stay_bits[pairs.j[starts]] &= ~removed

        by_a_keeper = (above & self.stay_bits[pairs.i] & self.levels.main_bit) > 0
        self._name_keepers(pairs.where(by_a_keeper))

    def _remove_one_by_one(self, pairs: _Pairs, above: np.ndarray) -> None:
        """A block's own pairs, in order: a row that stays can remove later rows of its block."""
        starts = _run_starts(pairs.j).tolist()
        for start, end in zip(starts, [*starts[1:], len(pairs.j)], strict=True):
            by = above[start:end] & self.stay_bits[pairs.i[start:end]]
            self.stay_bits[pairs.j[start]] &= ~np.bitwise_or.reduce(by)

    def _remove_each_other(self, pairs: _Pairs, above: np.ndarray) -> None:
        """The keep-none rule: either row of a pair removes the other."""
        for row, other in ((pairs.j, pairs.i), (pairs.i, pairs.j)):
            removes = self.eligible[other]
            np.bitwise_and.at(self.stay_bits, row[removes], ~above[removes])

            named = np.flatnonzero(removes & ((above & self.levels.main_bit) > 0))
            named = named[np.argsort(row[named], kind="stable")]
            self._name_keepers(_Pairs(row, other, pairs.similarity, pairs.level).where(named))

    def _name_keepers(self, pairs: _Pairs) -> None:
        """Name the most similar of the candidates `i` and the keeper; of equals the first."""
        # only candidates that rounding may have kept from being the most similar
        slack = 2 * self.margin
        pairs = pairs.where(pairs.similarity >= self.keeper_similarity[pairs.j] - slack)
        starts = _run_starts(pairs.j)
        if not len(starts):
            return
        counts = np.diff([*starts, len(pairs.j)])
        highest = np.repeat(np.maximum.reduceat(pairs.similarity, starts), counts)
        pairs = pairs.where(pairs.similarity >= highest - slack)

        # by row, then falling similarity, then candidate: the first of each row is its best
        similarity = self._exact(pairs.j, pairs.i)
        best = np.lexsort((pairs.i, -similarity, pairs.j))
        best = best[_run_starts(pairs.j[best])]
        j = pairs.j[best]
        i = pairs.i[best]
        similarity = similarity[best]

        before = self.keeper_similarity[j]
        better = (similarity > before) | ((similarity == before) & (i < self.keeper[j]))
        self.keeper_similarity[j[better]] = similarity[better]
        self.keeper[j[better]] = i[better]

    # --- linking rows ---

    def _link(self, pairs: _Pairs) -> None:
        """Collect the pairs above the lowest link."""
        level = self.levels.link_level[pairs.level]
        linked = level > 0
        if not linked.any():
            return
        i = pairs.i[linked].astype(np.int32)
        j = pairs.j[linked].astype(np.int32)
        self.linked.append((i, j, level[linked]))
        self.n_linked += len(i)
        if self.n_linked > PAIRS:
            self._reduce_linked()

    def _reduce_linked(self) -> None:
        """Keep a maximum spanning forest of the linked pairs: its components are the same."""
        i, j, level = (np.concatenate(part) for part in zip(*self.linked, strict=True))
        n = len(self.x)

        # the heavier an edge, the lower its level; 0 would be no edge
        graph = csr_matrix((256.0 - level, (i, j)), shape=(n, n))
        tree = minimum_spanning_tree(graph, overwrite=True).tocoo()
        level = (256 - tree.data).astype(np.uint8)
        self.linked = [(tree.row.astype(np.int32), tree.col.astype(np.int32), level)]
        self.n_linked = 0

    # --- the answer, in the order of the rows given ---

    def result(self, first_copy: np.ndarray) -> PairScan:
        """The scan's answer with the copies of earlier rows put back."""
        # (n,): where each row, or for a copy its first row, stands in the walk
        place = np.empty(len(first_copy), np.int64)
        place[self.walk] = np.arange(len(self.walk))
        place = place[first_copy]
        copies = self._copies(first_copy, place)

        stay_bits = self._stay_bits_with(copies, place)
        stays = (stay_bits & self.levels.main_bit) > 0
        keeper, similarity = self._keepers_with(copies, place, stays)

        # a copy is as near to others as its first row, and the two are each other's neighbors
        nearest = self.nearest[place]
        for rows in (copies.row, copies.first):
            nearest[rows] = np.maximum(nearest[rows], copies.similarity)

        thresholds = self.levels.thresholds
        each_bit = np.arange(len(thresholds), dtype=np.uint64)
        kept = [int(((stay_bits >> bit) & np.uint64(1)).sum()) for bit in each_bit]
        return PairScan(
            keeper=keeper,
            similarity=similarity,
            stays=stays,
            nearest=nearest,
            thresholds=thresholds,
            kept=np.array(kept, np.int64),
            forest=self._forest_with(copies, len(first_copy)),
        )

    def _copies(self, first_copy: np.ndarray, place: np.ndarray) -> _Copies:
        row = np.flatnonzero(first_copy != np.arange(len(first_copy)))
        similarity = self._exact(place[row], place[row])
        level = np.searchsorted(self.levels.watched, similarity)
        return _Copies(row, first_copy[row], place[row], similarity, level)

    def _stay_bits_with(self, copies: _Copies, place: np.ndarray) -> np.ndarray:
        """(n,) uint64: a copy goes wherever its first row stays, or, keeping none, both go."""
        stay_bits = self.stay_bits[place]
        above = self.levels.removal_bits[copies.level]
        stay_bits[copies.row] &= ~above
        if not self.keep_one:
            np.bitwise_and.at(stay_bits, copies.first, ~above)
        return stay_bits

    def _keepers_with(
        self, copies: _Copies, place: np.ndarray, stays: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(n,) int64 keepers and (n,) float32 similarities to them.

        A copy's keeper is its first row where that stays; keeping none, they name each other.
        """
        keeper = self.walk[self.keeper[place]]
        similarity = self.keeper_similarity[place]

        above = (self.levels.removal_bits[copies.level] & self.levels.main_bit) > 0
        removed = above & self.eligible[copies.place]
        if self.keep_one:
            removed &= stays[copies.first]
        keeper[copies.row[removed]] = copies.first[removed]
        similarity[copies.row[removed]] = copies.similarity[removed]
        if not self.keep_one:
            keeper[copies.first[removed]] = copies.row[removed]
            similarity[copies.first[removed]] = copies.similarity[removed]

        # a row that stays names itself, and so does one that a rule dropped and no row removed
        itself = np.flatnonzero(stays | np.isneginf(similarity))
        keeper[itself] = itself
        similarity[itself] = 1
        return keeper, similarity

    def _forest_with(self, copies: _Copies, n: int) -> Forest:
        i, j, level = self.linked[0]
        return Forest(
            n=n,
            i=np.concatenate([self.walk[i], copies.first]),
            j=np.concatenate([self.walk[j], copies.row]),
            level=np.concatenate([level, self.levels.link_level[copies.level]]),
            levels=self.levels.links,
        )


def _upper_tiles(n: int, block: int) -> Iterator[tuple[slice, slice]]:
    """(later, earlier) blocks of rows; a block meets all earlier blocks, then itself."""
    for start in range(0, n, block):
        later = slice(start, min(start + block, n))
        for earlier in range(0, start, block):
            yield later, slice(earlier, earlier + block)
        yield later, later


def _run_starts(ordered: np.ndarray) -> np.ndarray:
    """Where each run of equal values begins."""
    return np.flatnonzero(np.diff(ordered, prepend=-1))
