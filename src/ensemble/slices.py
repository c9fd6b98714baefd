"""Where the ensemble fails: its score by the prompt's length, by its nearest training prompt, and
by attributes.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from src import knn
from src.data import sources
from src.statistics import bootstrap

MIN_ROWS = 10  # of a label of an attribute
SHOWN = 8  # labels at each end, of an attribute with many
BINS = 20  # of the similarity of the nearest training prompt, between 0 and 1


def by_label(
    values: np.ndarray,
    labels: Sequence[str],
    *,
    groups: np.ndarray | None = None,
    seed: int = 0,
    n_bootstrap: int = 1000,
) -> pl.DataFrame:
    """The mean of `values` (n,) for each label with its 95 % interval: label, rows, avg_cos, low,
    high; lowest first.
    """
    if len(labels) != len(values):
        raise ValueError(f"{len(labels)} labels for {len(values)} values")

    label_of = np.asarray(labels)
    rows = []
    for label in np.unique(label_of):
        mine = label_of == label
        my_groups = None if groups is None else groups[mine]
        score = bootstrap(values[mine], groups=my_groups, n_bootstrap=n_bootstrap, seed=seed)
        rows.append((str(label), int(mine.sum()), score.mean, score.low, score.high))

    numbers = dict.fromkeys(("avg_cos", "low", "high"), pl.Float64)
    schema = {"label": pl.String, "rows": pl.Int64, **numbers}
    return pl.DataFrame(rows, schema=schema, orient="row").sort("avg_cos", "label")


def nearest_training_prompt(truth: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """(n,) float32: the cosine of each row's prompt with the nearest one of the other folds, which
    its models learned from.
    """
    # a row's models learned from the other folds, so its own fold is not searched
    nearest = np.empty(len(truth), dtype=np.float32)
    for f in np.unique(fold):
        similarity, _ = knn.search(truth[fold != f], truth[fold == f], 1)
        nearest[fold == f] = similarity[:, 0]
    return nearest


def length_labels(prompts: Sequence[str]) -> list[str]:
    """ "1-6 words" and so on for each prompt: five bins of about equally many rows."""
    # equal quantiles fall together where many prompts have one length
    words = np.array([len(prompt.split(" ")) for prompt in prompts])
    edges = np.unique(np.quantile(words, [0.2, 0.4, 0.6, 0.8]).astype(int))

    lowest = [1, *(edges + 1)]
    highest = [*edges, words.max()]
    names = [f"{low}-{high} words".rjust(13) for low, high in zip(lowest, highest, strict=True)]
    return [names[i] for i in np.digitize(words, edges, right=True)]


def similarity_labels(similarity: np.ndarray) -> list[str]:
    """ "0.75-0.80" and so on for each cosine (n,)."""
    lowest = np.floor(similarity * BINS) / BINS
    return [f"{low:.2f}-{low + 1 / BINS:.2f}" for low in lowest]


def described_rows(table: str, columns: Sequence[str], images: pl.Series) -> pl.DataFrame:
    """The `columns` of a table of attributes by `row`, the index in `images`, where it has them."""
    attributes = sources.read_attributes(table, columns, images)
    numbered = pl.DataFrame({"image": images}).with_row_index("row")
    return numbered.join(attributes, on="image", maintain_order="left")


def by_attribute(
    score: np.ndarray,
    described: pl.DataFrame,
    name: str,
    *,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    """`by_label` of one attribute: its labels with at least MIN_ROWS rows, "a + b" counting for a
    and for b.

    `described` has `row`, the index in `score` (n,), and the attribute `name`.
    """
    # one line for each row and label
    split = described.select("row", label=pl.col(name).str.split(" + "))
    long = split.explode("label").drop_nulls()

    # a row with two labels is in two lines, so groups are taken along
    row = long["row"].to_numpy()
    my_groups = None if groups is None else groups[row]
    table = by_label(score[row], long["label"].to_list(), groups=my_groups, seed=seed)
    return table.filter(pl.col("rows") >= MIN_ROWS)


def hardest_and_easiest(table: pl.DataFrame) -> pl.DataFrame:
    """The SHOWN lowest and the SHOWN highest rows of a `by_label` table; all of them where there
    are no more.
    """
    if len(table) <= 2 * SHOWN:
        return table
    return pl.concat([table.head(SHOWN), table.tail(SHOWN)])


def one_table(tables: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """All slicings below each other: by (the slicing's name), label, rows, avg_cos, low, high."""
    return pl.concat(
        [table.select(pl.lit(name).alias("by"), pl.all()) for name, table in tables.items()]
    )


def in_words(tables: Mapping[str, pl.DataFrame]) -> list[str]:
    """For each slicing with two labels or more a sentence: its hardest and its easiest."""
    sentences = []
    for name, table in tables.items():
        if len(table) < 2:
            continue
        ordered = table.sort("avg_cos")
        ends = []
        for row in (ordered.row(0, named=True), ordered.row(-1, named=True)):
            ends.append(f"{row['label'].strip()} {row['avg_cos']:.3f} ({row['rows']} rows)")
        sentences.append(f"{name}: hardest {ends[0]}, easiest {ends[1]}")
    return sentences


def failure_sentences(failures: pl.DataFrame, nearest: np.ndarray, confidence: np.ndarray) -> str:
    """Whether the worst rows were far from all training prompts, and whether they were expected.

    `failures` has their `nearest` and `confidence`; the arrays (n,) hold those of all rows.
    """
    quarter = np.quantile(nearest, 0.25)
    far = (failures["nearest"] < quarter).sum()
    doubted = (failures["confidence"] < np.median(confidence)).sum()
    return (
        f"Of the {len(failures)} worst images {far} have no training prompt above {quarter:.2f}, "
        f"as a quarter of all rows. {doubted} were given less than the median confidence."
    )
