"""Arrays in, `Axes` or a `Figure` out; one look for all notebooks (seaborn, a colour-blind-safe palette)."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fruitlib import metrics, runtime

COLOURS = {"train": "#0072b2", "val": "#d55e00", "test": "#009e73", "quarantined": "#999999"}  # Okabe and Ito 2008
TRUTH = {"tp": "#0072b2", "fn": "#d55e00", "fp": "#e69f00"}
LONG = {"tp": "true positive", "fn": "false negative", "fp": "false positive", "tn": "true negative"}


def use_style() -> None:
    """The look of every figure: call once in a notebook's import cell."""
    sns.set_theme(style="whitegrid", context="notebook", palette="colorblind")
    fonts = ["Noto Sans CJK KR", "NanumGothic", "Malgun Gothic", "AppleGothic"]  # class names may be Korean
    plt.rcParams.update({"figure.dpi": 90, "savefig.dpi": 110, "axes.titleweight": "bold", "axes.titlesize": 12})
    plt.rcParams["text.parse_math"] = False  # a $ in a class name is a $
    plt.rcParams["font.family"] = ["DejaVu Sans", *[name for name in fonts if _installed(name)]]


def _installed(font: str) -> bool:
    from matplotlib import font_manager

    return any(entry.name == font for entry in font_manager.fontManager.ttflist)


def save(figure: Figure, path: Path) -> Figure:
    """Save as PNG, atomically, and hand the figure back so that the cell shows it."""
    with runtime.replacing(path) as partial:
        figure.savefig(partial, bbox_inches="tight")
    return figure


def split_counts(table: pd.DataFrame) -> Axes:
    """Photos per class, stacked by split, from `splits.counts` (classes as rows, splits as columns)."""
    table = table.drop(index="all", errors="ignore")
    _, ax = plt.subplots(figsize=(7, 0.7 + 0.6 * len(table)))
    left = np.zeros(len(table))
    for split in table.columns:
        bars = ax.barh(table.index, table[split], left=left, color=COLOURS[split], label=split)
        ax.bar_label(bars, [str(n) if n else "" for n in table[split]], label_type="center", color="white", fontsize=10)
        left += table[split].to_numpy()
    ax.set(xlabel="photos", ylabel="", title="Photos per class and split")
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.legend(ncols=4, loc="upper left", bbox_to_anchor=(0, -0.3), frameon=False)
    return ax


def contact_sheet(images: np.ndarray, titles: list[str], columns: int = 8, title: str = "") -> Figure:
    """Photos uint8 (n, S, S, 3) in a grid, each with its title."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.35 * columns, 1.6 * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, text in zip(axes.flat, images, titles, strict=False):
        ax.imshow(image)
        ax.set_title(text, fontsize=8, fontweight="normal", pad=2)
    figure.suptitle(title, fontweight="bold", fontsize=12)
    figure.tight_layout(h_pad=0.4, w_pad=0.4)
    return figure


def history(table: pd.DataFrame, epochs: int | None = None, best_epoch: int | None = None) -> Figure:
    """Loss, accuracy and macro-F1 by epoch, train and validation, from `history.csv`."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.1))
    panels = {"loss": "loss", "accuracy": "accuracy", "macro_f1": "macro-F1"}
    for ax, (column, title) in zip(axes, panels.items(), strict=True):
        for split, style in (("train", "--"), ("val", "-")):
            colour = COLOURS[split]
            ax.plot(table["epoch"], table[f"{split}_{column}"], style, color=colour, label=split, marker=".")
        if best_epoch:
            ax.axvline(best_epoch, color="#666666", linewidth=1, linestyle=":", label=f"kept (epoch {best_epoch})")
        ax.set(title=title, xlabel="epoch", xlim=(0.5, (epochs or table["epoch"].max()) + 0.5))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_ylim((0, None) if column == "loss" else (0, 1.03))
    axes[0].legend(frameon=True)
    figure.tight_layout()
    return figure


def class_counts(matrix: np.ndarray, class_names: list[str]) -> Axes:
    """TP, FN and FP per class as bars; TN, many times larger, is in the table beside."""
    counts = metrics.counts(matrix)
    table = pd.DataFrame({LONG[k]: counts[k] for k in TRUTH}, index=class_names).rename_axis("class").reset_index()
    table = table.melt(id_vars="class", var_name="kind", value_name="photos")
    _, ax = plt.subplots(figsize=(1.6 + 1.7 * len(class_names), 3.4))
    sns.barplot(table, x="class", y="photos", hue="kind", palette=list(TRUTH.values()), ax=ax)
    for bars in ax.containers:
        ax.bar_label(bars, fontsize=9)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(title="Right, missed, and wrongly claimed", xlabel="", ylabel="photos")
    ax.legend(title="", frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def class_rates(matrix: np.ndarray, class_names: list[str]) -> Figure:
    """Precision, recall and miss rate per class, each with its n and 95 % Wilson interval; F1 as a point."""
    counts, rates = metrics.counts(matrix), metrics.rates(matrix)
    of = {
        "precision": (counts["tp"], counts["tp"] + counts["fp"]),
        "recall": (counts["tp"], counts["tp"] + counts["fn"]),
        "miss_rate": (counts["fn"], counts["tp"] + counts["fn"]),
        "f1": None,
    }
    figure, axes = plt.subplots(1, 4, figsize=(10, 1.3 + 0.55 * len(class_names)), sharey=True)
    rows = np.arange(len(class_names))
    for ax, (name, fraction) in zip(axes, of.items(), strict=True):
        if fraction:
            for row, k, n in zip(rows, *fraction, strict=True):
                _interval(ax, row, int(k), int(n))
        else:
            ax.plot(rates["f1"], rows, "o", color=COLOURS["val"])
            for row, value in zip(rows, rates["f1"], strict=True):
                ax.annotate(
                    f"{value:.2f}", (value, row), xytext=(0, 7), textcoords="offset points", fontsize=9, ha="center"
                )
        title = {"miss_rate": "miss rate", "f1": "F1"}.get(name, name)
        ax.set(title=title, xlim=(-0.06, 1.06), yticks=rows, yticklabels=class_names, ylim=(len(rows) - 0.4, -0.7))
        ax.set_xticks([0, 0.5, 1])
    figure.supxlabel("share of photos, with 95 % Wilson interval (F1 is no proportion and has none here)", fontsize=10)
    figure.tight_layout()
    return figure


def _interval(ax: Axes, row: float, correct: int, n: int, colour: str = COLOURS["val"], text: bool = True) -> None:
    """One proportion as a dot on its Wilson interval, labelled correct/n."""
    if n == 0:
        ax.annotate("no photos", (0.5, row), fontsize=9, ha="center", va="center", color="#666666")
        return
    low, high = metrics.wilson(correct, n)
    ax.plot([low, high], [row, row], color=colour, linewidth=2)
    ax.plot(correct / n, row, "o", color=colour)
    if text:
        at = min(max(correct / n, 0.08), 0.92)
        ax.annotate(f"{correct}/{n}", (at, row), xytext=(0, 7), textcoords="offset points", fontsize=9, ha="center")


def proportions(correct: dict[str, int], n: int, title: str, xlabel: str = "accuracy") -> Axes:
    """Several proportions of the same n photos, each with its Wilson interval, one a row."""
    _, ax = plt.subplots(figsize=(8, 1.2 + 0.55 * len(correct)))
    for row, (_, k) in enumerate(correct.items()):
        _interval(ax, row, k, n, COLOURS["test"])
    ax.set(
        title=title, xlabel=f"{xlabel} of n = {n} photos, with 95 % Wilson interval", ylim=(len(correct) - 0.5, -0.7)
    )
    ax.set(yticks=range(len(correct)), yticklabels=list(correct), xlim=(-0.02, 1.02))
    return ax


def confusion(matrix: np.ndarray, class_names: list[str]) -> Axes:
    """Confusion matrix: photos, true classes as rows, predicted as columns."""
    size = 2.2 + 0.85 * len(class_names)
    _, ax = plt.subplots(figsize=(size, size * 0.86))
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    texts = [[f"{n}\n{s:.0%}" for n, s in zip(*row, strict=True)] for row in zip(matrix, share, strict=True)]
    sns.heatmap(
        share, annot=np.array(texts), fmt="", cmap="Blues", vmin=0, vmax=1, square=True, ax=ax, linewidths=1,
        xticklabels=class_names, yticklabels=class_names, cbar_kws={"label": "share of the true class", "shrink": 0.8},
    )  # fmt: skip
    ax.set(title="Confusion matrix", xlabel="predicted", ylabel="true")
    ax.tick_params(axis="y", rotation=0)
    return ax


def picture_table(
    pictures: list[list[np.ndarray]], row_names: list[str], column_names: list[str], title: str
) -> Figure:
    """A table of pictures (lists of H×W×3 arrays): row names at the left, column names on top."""
    rows, columns = len(pictures), len(column_names)
    figure, axes = plt.subplots(rows, columns, figsize=(1.25 * columns + 1.6, 1.25 * rows + 0.7), squeeze=False)
    for ax, picture in zip(axes.flat, [p for line in pictures for p in line], strict=True):
        ax.imshow(picture)
        ax.set(xticks=[], yticks=[])
        ax.grid(visible=False)
        sns.despine(ax=ax, left=True, bottom=True)
    for ax, name in zip(axes[0], column_names, strict=True):
        ax.set_title(name, fontsize=9, fontweight="normal")
    for ax, name in zip(axes[:, 0], row_names, strict=True):
        ax.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    figure.suptitle(title, fontweight="bold", fontsize=12)
    figure.tight_layout(h_pad=0.3, w_pad=0.3)
    return figure


def feature_maps(maps: dict[str, np.ndarray], photo: np.ndarray, title: str) -> Figure:
    """A photo and, one row a layer, the activations (channels, h, w) of its strongest channels."""
    columns = max(len(channels) for channels in maps.values()) + 1
    figure, axes = plt.subplots(len(maps), columns, figsize=(1.1 * columns, 1.15 * len(maps) + 0.5), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for line, (layer, channels) in zip(axes, maps.items(), strict=True):
        text = f"{layer}\n{channels.shape[1]} × {channels.shape[2]}"
        line[0].text(0.9, 0.5, text, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
        for ax, channel in zip(line[1:], channels, strict=False):
            ax.imshow(channel, cmap="viridis")
    axes[0, 0].imshow(photo)
    axes[0, 0].texts[0].set(position=(0.5, -0.05), ha="center", va="top")  # the photo has the first cell
    figure.suptitle(title, fontweight="bold", fontsize=12)
    figure.tight_layout(h_pad=0.3, w_pad=0.3)
    return figure


def cost_bars(values: dict[str, float], title: str, xlabel: str, spread: dict[str, tuple] | None = None) -> Axes:
    """One bar a backend (size, latency); `spread` gives (low, high) for an error bar."""
    _, ax = plt.subplots(figsize=(6.5, 1.1 + 0.45 * len(values)))
    heights = list(values.values())
    errors = None
    if spread:
        errors = np.array([[v - spread[k][0], spread[k][1] - v] for k, v in values.items()]).T
    bars = ax.barh(list(values), heights, color="#0072b2", height=0.6, xerr=errors, ecolor="#555555")
    ax.bar_label(bars, [f"{v:.2f}" for v in heights], padding=6, fontsize=10)
    ax.set(title=title, xlabel=xlabel, xlim=(0, max(heights) * 1.2))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    return ax
