"""Every figure of the notebooks, so that they look alike and a notebook's cell stays a line.

Each function takes arrays or tables, knows no stage of the pipeline, and returns a matplotlib
Figure; `save` gives it a name.
"""

import textwrap
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.figure import Figure

from src.artifacts import atomic
from src.statistics import Interval

BLUE = "#3465a4"
ORANGE = "#e07b39"
GREEN = "#4e9a06"
GREY = "#9a9a9a"
FURTHER_COLORS = tuple(f"C{n}" for n in range(10))  # matplotlib's own
plt.rcParams.update(
    {
        "figure.dpi": 100,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "legend.frameon": False,
        "image.interpolation": "nearest",
    }
)


def save(figure: Figure, file: Path) -> None:
    """Write a figure as a PNG, `output/<stage>/figures/<name>.png`; the report takes it by that
    name.
    """
    with atomic(file) as temporary:
        figure.savefig(temporary, bbox_inches="tight")


# --- 01: data filters, groups, folds ---


def similarity_histogram(nearest: np.ndarray, threshold: float) -> Figure:
    """Histogram of each prompt's highest similarity to any other prompt, (n,), with the filter's
    threshold.
    """
    figure, axes = plt.subplots(figsize=(6, 2.6))
    axes.hist(nearest, bins=60, color=BLUE)
    axes.axvline(threshold, color=ORANGE)

    share = (nearest > threshold).mean()
    title = f"{share:.0%} of prompts have a neighbor above {threshold}"
    axes.set(xlabel="cosine to the nearest other prompt", ylabel="prompts", title=title)
    return figure


def kept_curve(thresholds: np.ndarray, kept: np.ndarray, threshold: float) -> Figure:
    """Rows kept by data filter 2 at each threshold, with the one in use."""
    figure, axes = plt.subplots(figsize=(6, 2.6))
    axes.plot(thresholds, kept, "o-", color=BLUE)
    axes.axvline(threshold, color=ORANGE)
    axes.set(
        xlabel="cosine threshold",
        ylabel="rows kept",
        ylim=(0, None),
        title="Rows kept against the threshold",
    )
    return figure


def image_grid(images: list, titles: list[str], *, columns: int = 4, width: float = 2.4) -> Figure:
    """Images (PIL or (h, w, 3) arrays) in rows of `columns`, each above its wrapped title."""
    rows = -(-len(images) // columns)
    size = (width * columns, (width + 0.7) * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)

    for ax in axes.flat:
        ax.axis("off")
    for ax, image, title in zip(axes.flat, images, titles, strict=False):
        wrapped = "\n".join(textwrap.wrap(title, 40)[:5])
        ax.imshow(image)
        ax.set_title(wrapped, fontsize=7, y=-0.03, va="top", pad=0)

    figure.tight_layout()
    return figure


# --- 02: Model A ---


def learning_curves(history: list[dict]) -> Figure:
    """Training loss and inner validation score by epoch, one line for each fold.

    `history` rows have variant, fold, epoch, loss, score.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
    names = list(dict.fromkeys(entry["variant"] for entry in history))
    colors = (GREY, GREEN, ORANGE, BLUE, *FURTHER_COLORS)

    # a color for each variant, whose folds are lines of that color with one entry in the legend
    for name, color in zip(names, colors, strict=False):
        mine = [entry for entry in history if entry["variant"] == name]
        for fold in sorted({entry["fold"] for entry in mine}):
            line = [entry for entry in mine if entry["fold"] == fold]
            line.sort(key=lambda entry: entry["epoch"])
            epochs = [entry["epoch"] for entry in line]
            style = {"color": color, "label": name if fold == 0 else None}

            # before the first epoch there is a score, but no loss
            left.plot(epochs[1:], [entry["loss"] for entry in line[1:]], "o-", **style)
            right.plot(epochs, [entry["score"] for entry in line], "o-", **style)

    left.set(xlabel="epoch", ylabel="1 - cosine", title="training loss")
    right.set(xlabel="epoch (0 is the linear probe)", ylabel="Avg-Cos", title="inner validation")
    right.legend()
    return figure


def factor_curves(fits: list[dict]) -> Figure:
    """Inner validation score over the probe's, against the way from the probe (0) to the best
    epoch (1); one line for each fit, its choice ringed.

    `fits` rows have variant, fold, factors {factor: score} and the chosen factor.
    """
    figure, axes = plt.subplots(figsize=(6, 2.8))
    colors = (BLUE, ORANGE, GREEN, GREY, *FURTHER_COLORS)

    # over the probe's score, so that the fits start at one point
    for fit, color in zip(fits, colors, strict=False):
        factors = {float(factor): score for factor, score in fit["factors"].items()}
        gain = {factor: score - factors[0.0] for factor, score in factors.items()}
        label = f"{fit['variant']}, fold {fit['fold']}"
        axes.plot(list(gain), list(gain.values()), "o-", color=color, label=label)
        axes.plot(fit["factor"], gain[fit["factor"]], "o", ms=11, mfc="none", color=color)

    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(
        xlabel="0: the probe, 1: the best epoch",
        ylabel="Avg-Cos over the probe",
        title="inner validation",
    )
    axes.legend()
    return figure


def bars(scores: Mapping[str, Interval], *, title: str) -> Figure:
    """Horizontal bars with their 95 % intervals, first name on top; the axis starts near the
    smallest value.
    """
    means = np.array([score.mean for score in scores.values()])
    low = np.array([score.low for score in scores.values()])
    high = np.array([score.high for score in scores.values()])

    figure, axes = plt.subplots(figsize=(6, 0.4 * len(scores) + 1))
    axes.barh(list(scores), means, xerr=[means - low, high - means], color=BLUE, alpha=0.8)
    axes.invert_yaxis()

    # differences are small beside the values: from zero on, all bars would look alike
    span = high.max() - low.min()
    axes.set(title=title, xlim=(low.min() - span, high.max() + 0.3 * span))
    return figure


# --- 03: Model B ---


def heat_map(
    score: np.ndarray, rows: list, columns: list, *, row_name: str, column_name: str, title: str
) -> Figure:
    """`score` (len(rows), len(columns)) as colors and numbers; the best is framed."""
    size = (1.2 + 0.62 * len(columns), 0.9 + 0.38 * len(rows))
    figure, axes = plt.subplots(figsize=size)
    axes.imshow(score, cmap="viridis", aspect="auto")
    axes.grid(False)

    # numbers in white where the color is dark
    middle = (score.min() + score.max()) / 2
    for row, column in np.ndindex(score.shape):
        value = score[row, column]
        color = "white" if value < middle else "black"
        text = axes.text(column, row, f"{value:.3f}", ha="center", va="center", fontsize=7)
        text.set_color(color)

    row, column = np.unravel_index(score.argmax(), score.shape)
    corner = (column - 0.5, row - 0.5)
    axes.add_patch(plt.Rectangle(corner, 1, 1, fill=False, edgecolor=ORANGE, linewidth=2))

    axes.set(xticks=range(len(columns)), xticklabels=columns, xlabel=column_name)
    axes.set(yticks=range(len(rows)), yticklabels=rows, ylabel=row_name, title=title)
    if max(len(str(column)) for column in columns) > 5:
        plt.setp(axes.get_xticklabels(), rotation=40, ha="right", rotation_mode="anchor")
    return figure


def image_page(images: list, texts: list[list[str]], *, columns: int = 2) -> Figure:
    """Images with lines of text to the right of each, the first line in bold: a query and what was
    found for it.
    """
    rows = -(-len(images) // columns)
    size = (5.4 * columns, 1.9 * rows)
    figure, axes = plt.subplots(
        rows, 2 * columns, figsize=size, squeeze=False, width_ratios=[1, 1.9] * columns
    )
    for ax in axes.flat:
        ax.axis("off")

    pairs = axes.reshape(-1, 2)
    for (left, right), image, lines in zip(pairs, images, texts, strict=False):
        left.imshow(image)
        head = textwrap.wrap(lines[0], 48)[:3]
        body = "\n".join(_wrapped_line(line) for line in lines[1:])
        right.text(
            0,
            1,
            "\n".join(head),
            va="top",
            fontsize=7.5,
            fontweight="bold",
            transform=right.transAxes,
        )
        below = 0.97 - 0.085 * len(head)
        right.text(0, below, body, va="top", fontsize=7, transform=right.transAxes)

    figure.tight_layout()
    return figure


def _wrapped_line(line: str) -> str:
    """At most two printed lines, the second one indented."""
    return "\n  ".join(textwrap.wrap(line, 52, max_lines=2, placeholder=" …"))


# --- 04: the ensemble ---


def alpha_curve(
    alphas: np.ndarray, score: np.ndarray, best: float, flat: tuple[float, float]
) -> Figure:
    """Mean cosine of the blend against alpha, `flat` shaded; the ends are the two models alone."""
    figure, axes = plt.subplots(figsize=(6, 2.8))
    within = f"within one standard error: {flat[0]:.2f} to {flat[1]:.2f}"
    axes.axvspan(*flat, color=GREY, alpha=0.2, label=within)
    axes.plot(alphas, score, color=BLUE)
    axes.plot(best, np.interp(best, alphas, score), "o", color=ORANGE, label=f"alpha = {best:.3f}")

    for end, name, side in ((0, "Model B", "left"), (-1, "Model A", "right")):
        point = (alphas[end], score[end])
        text = f"{name} {score[end]:.4f}"
        axes.annotate(text, point, xytext=(0, -14), textcoords="offset points", ha=side)

    axes.set(xlabel="alpha (weight of Model A)", ylabel="Avg-Cos, out-of-fold")
    axes.margins(y=0.2)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)  # above, clear of the labels
    return figure


def ladder(names: list[str], here: np.ndarray, paper: np.ndarray) -> Figure:
    """Two panels on axes of their own, since only shapes compare: `here` (n, 3) mean, low, high,
    and the `paper`'s n numbers.
    """
    size = (9, 2.8)
    figure, (left, right) = plt.subplots(1, 2, figsize=size, sharey=True, width_ratios=[2, 1])
    y = np.arange(len(names))

    mean = here[:, 0]
    error = [mean - here[:, 1], here[:, 2] - mean]
    left.errorbar(mean, y, xerr=error, fmt="o", color=BLUE, capsize=3)
    left.set(yticks=y, yticklabels=names, title="this data")
    left.set(xlabel="Avg-Cos, out-of-fold, 95 % interval")

    right.plot(paper, y, "o", color=GREY)
    right.set(xlabel="Avg-Cos", title="the paper (its hidden test set)")

    left.invert_yaxis()
    figure.tight_layout()
    return figure


def calibration(
    confidence: np.ndarray, agreement: np.ndarray, cosine: np.ndarray, *, bins: int = 12
) -> Figure:
    """Cosine with the truth against the confidence and against the agreement of A and B, (n,) each:
    every row, and the means of bins of equal size.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    panels = {"confidence": confidence, "agreement: cosine of A with B": agreement}

    for ax, (label, values) in zip(axes, panels.items(), strict=True):
        ax.plot(values, cosine, ".", color=GREY, alpha=0.25, markersize=3, label="an image")

        # bins of equal size, not of equal width: each mean is then about as certain
        parts = np.array_split(np.argsort(values), min(bins, len(values)))
        x = np.array([values[part].mean() for part in parts])
        y = np.array([cosine[part].mean() for part in parts])
        error = np.array([1.96 * cosine[part].std() / np.sqrt(len(part)) for part in parts])
        mean_of = f"mean of {len(parts[0])}, 95 % interval"
        ax.errorbar(x, y, yerr=error, fmt="o", color=BLUE, capsize=3, label=mean_of)

        ax.set(xlabel=f"{label} (correlation {_correlation(values, cosine):.2f})")

    ends = [confidence.min(), confidence.max()]
    axes[0].plot(ends, ends, color=ORANGE, label="cosine equal to the confidence")
    axes[0].set(ylabel="cosine with the truth")
    for ax in axes:
        # points lie below the legend, and one of them is hardly visible in it
        ax.legend(loc="lower right", fontsize=8, frameon=True, framealpha=0.8, markerscale=1.5)
    figure.tight_layout()
    return figure


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation; 0 where one of the two is constant."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def slices(tables: dict[str, pl.DataFrame], mean: float) -> Figure:
    """One panel for each slicing: its labels from the top with avg_cos, low and high; the overall
    `mean` as a line.
    """
    tallest = max(len(table) for table in tables.values())
    size = (4.2 * len(tables), 0.24 * tallest + 1)
    figure, axes = plt.subplots(1, len(tables), figsize=size, squeeze=False)

    for ax, (name, table) in zip(axes[0], tables.items(), strict=True):
        y = np.arange(len(table))
        score = table["avg_cos"].to_numpy()
        error = [score - table["low"].to_numpy(), table["high"].to_numpy() - score]
        ax.axvline(mean, color=ORANGE, linewidth=1)
        ax.errorbar(score, y, xerr=error, fmt="o", color=BLUE, capsize=2, markersize=4)
        labels = table["label"].to_list()
        ax.set(yticks=y, yticklabels=labels, xlabel="Avg-Cos, 95 % interval", title=name)
        ax.invert_yaxis()

    figure.tight_layout()
    return figure


# --- 05: the submission ---


def histograms(values: dict[str, np.ndarray], *, label: str) -> Figure:
    """Densities of the same quantity over several sets of rows, with their means in the legend."""
    figure, axes = plt.subplots(figsize=(6, 2.6))
    # the same edges for all sets, or their heights could not be compared
    edges = np.histogram_bin_edges(np.concatenate(list(values.values())), 40).tolist()
    for (name, x), color in zip(values.items(), (BLUE, ORANGE, GREEN, GREY), strict=False):
        label_of = f"{name}: mean {x.mean():.3f}"
        axes.hist(
            x, edges, density=True, histtype="step", linewidth=1.6, color=color, label=label_of
        )

    axes.set(xlabel=label, ylabel="density")
    axes.legend(loc="upper left")
    return figure


# --- the runs ---


def leaderboard(
    runs: np.ndarray,
    out_of_fold: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    public: np.ndarray,
) -> Figure:
    """The leaderboard's answer against the out-of-fold score with its interval; a point for each of
    the numbered `runs`, all (n,).
    """
    figure, axes = plt.subplots(figsize=(6, 4))
    error = [out_of_fold - low, high - out_of_fold]
    axes.errorbar(out_of_fold, public, xerr=error, fmt="o", color=BLUE, capsize=3)
    for run, x, y in zip(runs, out_of_fold, public, strict=True):
        axes.annotate(str(run), (x, y), xytext=(5, 5), textcoords="offset points")

    # a line needs two different scores, a correlation three runs
    if np.ptp(out_of_fold) > 0:
        slope, intercept = np.polyfit(out_of_fold, public, 1)
        ends = np.array([out_of_fold.min(), out_of_fold.max()])
        axes.plot(ends, slope * ends + intercept, color=ORANGE, linewidth=1)
    if len(runs) > 2:
        axes.set(title=f"correlation {_correlation(out_of_fold, public):.2f} over {len(runs)} runs")

    axes.set(xlabel="Avg-Cos, out-of-fold, 95 % interval", ylabel="leaderboard")
    return figure
