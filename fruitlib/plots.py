"""Arrays in, `Axes` or a `Figure` out; one look for all notebooks (seaborn, a colour-blind-safe palette)."""

import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import Image, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fruitlib.core import files
from fruitlib.evaluation import metrics
from fruitlib.evaluation.leakage import Leakage, points_text

COLOURS = {"train": "#0072b2", "val": "#d55e00", "test": "#009e73"}  # Okabe and Ito 2008
COLOURS |= {"quarantined": "#888888", "left_out": "#555555"}
FOLD_COLOURS = (("#0072b2", "white"), ("#a6d0ee", "black"))  # neighbours alternate; with the colour of their numbers
TRUTH = {"tp": "#0072b2", "fn": "#d55e00", "fp": "#e69f00"}
LONG = {"tp": "true positive", "fn": "false negative", "fp": "false positive", "tn": "true negative"}


def use_style() -> None:
    """The look of every figure: call once in a notebook's import cell."""
    sns.set_theme(style="whitegrid", context="notebook", palette="colorblind")
    fonts = ["Noto Sans CJK KR", "NanumGothic", "Malgun Gothic", "AppleGothic"]  # class names may be Korean
    plt.rcParams.update({"figure.dpi": 100, "savefig.dpi": 100, "axes.titleweight": "bold", "axes.titlesize": 12})
    warnings.filterwarnings("ignore", "Glyph .* missing from font")  # shown as an empty box, and said once is too often
    plt.rcParams["text.parse_math"] = False  # a $ in a class name is a $
    plt.rcParams["font.family"] = ["DejaVu Sans", *[name for name in fonts if _installed(name)]]


def _installed(font: str) -> bool:
    from matplotlib import font_manager

    return any(entry.name == font for entry in font_manager.fontManager.ttflist)


def save(figure: Figure, path: Path) -> None:
    """Save as PNG, atomically, and show that very picture below the cell, so that a figure is drawn once, not twice."""
    with files.replacing(path) as partial:
        figure.savefig(partial, bbox_inches="tight")
    plt.close(figure)
    if InteractiveShell.initialized():
        titles = [figure.get_suptitle(), *(ax.get_title() for ax in figure.axes)]
        display(Image(filename=path, alt=", ".join(filter(None, titles)) or None))


def split_counts(table: pd.DataFrame) -> Axes:
    """Photos per class, stacked by split, from `splits.counts` (classes as rows, splits as columns)."""
    table = table.drop(index="all", errors="ignore")
    _, ax = plt.subplots(figsize=(7, 0.7 + 0.6 * len(table)))
    left, narrow = np.zeros(len(table)), table.to_numpy().sum(1).max() / 50  # no room for a number; the table has it
    for split in table.columns:
        name = split.replace("_", " ")
        bars = ax.barh(table.index, table[split], left=left, color=COLOURS[split], label=name)
        texts = [str(n) if n > narrow else "" for n in table[split]]
        ax.bar_label(bars, texts, label_type="center", color="white", fontsize=10)
        left += table[split].to_numpy()
    ax.set(xlabel="photos", ylabel="", title="Photos per class and split")
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.legend(ncols=5, loc="upper left", bbox_to_anchor=(-0.1, -0.3), frameon=False, columnspacing=1.2)
    return ax


def fold_counts(table: pd.DataFrame) -> Axes:
    """How each class's photos fall into folds, from `splits.fold_counts` (classes as rows, folds as columns).

    Every class has a bar of the same length, so that a rare one can be read as well as a common one.
    """
    table = table.drop(index="all", errors="ignore")
    names = [f"{label} ({total:,})" for label, total in table.sum(axis=1).items()]
    shares = table.div(table.sum(axis=1).clip(lower=1), axis=0)
    _, ax = plt.subplots(figsize=(7, 1.1 + 0.5 * len(table)))
    left = np.zeros(len(table))
    for number, fold in enumerate(table.columns):
        colour, ink = FOLD_COLOURS[number % 2]
        bars = ax.barh(names, shares[fold], left=left, color=colour, edgecolor="white")
        texts = [
            f"{n:,}" if share > 0.013 * len(f"{n:,}") + 0.01 else ""
            for n, share in zip(table[fold], shares[fold], strict=True)
        ]
        ax.bar_label(bars, texts, label_type="center", color=ink, fontsize=10)
        left += shares[fold].to_numpy()
    ax.set(xlabel=f"share of the class, folds 1 to {len(table.columns)} from left to right", xlim=(0, 1))
    ax.set_title("Photos per class and fold")
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    return ax


def group_sizes(manifest: pd.DataFrame) -> Axes:
    """How many groups of which size each class has, and how many photos stand alone, from the manifest's usable rows.

    A disc's area shows the number of groups; the grey disc at 1 stands for photos without a group or alone in one.
    """
    usable = manifest[manifest["status"] == "ok"]
    classes = sorted(set(usable["label"]))
    size = usable.groupby("group")["label"].transform("size").where(usable["group"] != "", 1)
    grouped = usable.assign(size=size)[size >= 2].drop_duplicates(["label", "group"])  # a group may span classes
    groups = pd.crosstab(grouped["label"], grouped["size"]).reindex(classes, fill_value=0)
    lone = usable["label"][size < 2].value_counts()
    largest = max([*groups.columns, 1])
    _, ax = plt.subplots(figsize=(7.5, 1.2 + 0.62 * len(classes)))
    for row, label in enumerate(classes):
        own = groups.loc[label][groups.loc[label] > 0]
        _discs(ax, row, own, groups.to_numpy().max(initial=1))
        alone = int(lone.get(label, 0))
        if alone:
            ax.scatter(1, row, s=400, color="#767676", linewidth=0)
            ax.annotate(f"{alone:,}", (1, row), fontsize=8, ha="center", va="center", color="white")
        text = f"{int(own.sum()):,} group{'s' * int(own.sum() != 1)}\n{alone:,} alone"
        ax.annotate(text, (1.02, row), xycoords=("axes fraction", "data"), fontsize=9, va="center")
    ax.set_xscale("log" if largest > 30 else "linear")
    ax.set_xlim((0.7, largest * 1.35) if largest > 30 else (0, largest + 1))
    if largest <= 30:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set(yticks=range(len(classes)), yticklabels=classes, ylim=(len(classes) - 0.4, -0.6))
    ax.set(xlabel="photos in the group (grey: alone)", title="Groups by size")
    return ax


def _discs(ax: Axes, row: int, counts: pd.Series, most: int) -> None:
    """A disc for each size (index) of so many groups (value), with the number in it where it fits."""
    areas, least = 30 + 370 * counts / most, 0 if len(counts) <= 12 else 150  # among many only large discs speak
    ax.scatter(counts.index, [row] * len(counts), s=areas, color=COLOURS["train"], alpha=0.8, linewidth=0)
    for (size, count), area in zip(counts.items(), areas, strict=True):
        if count > 1 and area >= max(least, 25 * len(f"{count:,}") ** 2):
            ax.annotate(f"{count:,}", (size, row), fontsize=8, ha="center", va="center", color="white")


def leakage(leak: Leakage) -> Axes:
    """Accuracy under a random and a group-safe split with 95 % intervals, and the points between them."""
    _, ax = plt.subplots(figsize=(8, 2.6 if leak.measured else 0.6))
    if not leak.measured:
        ax.text(0, 0.5, leak.said, va="center")
        ax.axis("off")
        return ax
    rows = {"random split": ("random", COLOURS["val"]), "group-safe split": ("safe", COLOURS["train"])}
    for row, (name, colour) in enumerate(rows.values()):
        value, ends = getattr(leak, name), [getattr(leak, f"{name}_low"), getattr(leak, f"{name}_high")]
        ax.plot(ends, [row, row], color=colour, linewidth=2)
        ax.plot(value, row, "o", color=colour)
        ax.annotate(f"{value:.2f}", (value, row), xytext=(0, 7), textcoords="offset points", fontsize=9, ha="center")
    span = {"arrowstyle": "|-|, widthA=0.3, widthB=0.3", "color": "#333333", "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (leak.safe, 0.5), (leak.random, 0.5), arrowprops=span)
    ax.set(yticks=range(len(rows)), yticklabels=list(rows), ylim=(1.5, -0.65), xlim=(-0.02, 1.02))
    gap = points_text(leak.points, leak.points_low, leak.points_high)
    text = f"accuracy of a quick classifier, with 95 % interval over {leak.groups:,} groups; n = {leak.n:,} photos"
    ax.set_xlabel(f"{text}\n{gap}", fontsize=10)
    ax.set_title("What a random split would claim")
    return ax


def history(table: pd.DataFrame, epochs: int | None = None, best_epoch: int | None = None) -> Figure:
    """Loss, accuracy and macro-F1 by epoch, train and validation, from `history.csv`."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.1))
    panels = {"loss": "loss", "accuracy": "accuracy", "macro_f1": "macro-F1"}
    for ax, (column, title) in zip(axes, panels.items(), strict=True):
        for split, style in (("train", "--"), ("val", "-")):
            if f"{split}_{column}" not in table:  # nothing validates
                continue
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


def lr_finder(table: pd.DataFrame, suggested: float, lr: float) -> Figure:
    """Smoothed loss over lr (log axis) from `finder.find_lr`, with the suggested lr (NaN: none) and the run's own."""
    figure, ax = plt.subplots(figsize=(7.5, 3.4))
    ax.plot(table["lr"], table["loss"], color=COLOURS["train"], label="loss of the batch, smoothed")
    if np.isfinite(suggested):
        ax.axvline(
            suggested,
            color=COLOURS["test"],
            linewidth=2,
            label=f"suggested, a tenth of the lowest point's: {suggested:.2g}",
        )
    ax.axvline(lr, color=COLOURS["val"], linewidth=2, linestyle="--", label=f"lr of this run: {lr:.2g}")
    ax.set(xscale="log", xlabel="lr, rising step by step", ylabel="loss")
    top = 1.5 * max(table["loss"].iloc[:10], default=1)  # where it blows up, the fall before would look flat
    ax.set_ylim(top=min(top, 1.05 * max(table["loss"], default=1)))
    ax.xaxis.set_major_formatter("{x:g}")  # the usual 10^-3 needs the math that `use_style` turns off
    ax.set_title("Loss while the learning rate rises" if np.isfinite(suggested) else "No learning rate lowers the loss")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.2))
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


def cost_bars(values: dict[str, float], title: str, xlabel: str, spread: dict[str, tuple] | None = None) -> Axes:
    """One bar a backend (size, latency); `spread` gives (low, high) for an error bar."""
    _, ax = plt.subplots(figsize=(6.5, 1.1 + 0.45 * len(values)))
    heights = list(values.values())
    errors = None
    if spread:
        errors = np.array([[v - spread[k][0], spread[k][1] - v] for k, v in values.items()]).T
    bars = ax.barh(list(values), heights, color="#0072b2", height=0.6, xerr=errors, ecolor="#555555")
    ax.bar_label(bars, [f"{v:.2f}" for v in heights], padding=6, fontsize=10)
    longest = max([*heights, *(high for _, high in (spread or {}).values())])
    ax.set(title=title, xlabel=xlabel, xlim=(0, longest * 1.2))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    return ax
