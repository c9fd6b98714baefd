"""Exact top-K search by cosine: cuML or cuVS on a GPU, faiss on a CPU, any of them on Dask workers.

All engines keep one contract (`search`). The store is any number of shards, arrays or memory maps;
it is read in blocks of rows, so memory is bounded by a block, and the engines cannot differ in
anything but the last bits of a similarity.
"""

from src.knn.engines import ENGINES, describe, resolve_engine
from src.knn.exact import search
from src.knn.neighbors import Neighbors, best_first, merge, order_ties

__all__ = [
    "ENGINES",
    "Neighbors",
    "best_first",
    "describe",
    "merge",
    "order_ties",
    "resolve_engine",
    "search",
]
