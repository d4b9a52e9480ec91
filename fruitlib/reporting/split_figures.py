"""Figures of 01: how the photos are divided, and what a leaky split would claim."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fruitlib.evaluation.leakage import Leakage
from fruitlib.evaluation.wording import leakage_points_text, leakage_text
from fruitlib.reporting.style import COLOURS

FOLD_COLOURS = (("#0072b2", "white"), ("#a6d0ee", "black"))  # neighbours alternate; with the colour of their numbers


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
    """How many groups of which size each class has, and how many photos have no group, from the usable rows.

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
    areas, least = 30 + 370 * counts / most, 0 if len(counts) <= 12 else 150  # among many only large discs have numbers
    ax.scatter(counts.index, [row] * len(counts), s=areas, color=COLOURS["train"], alpha=0.8, linewidth=0)
    for (size, count), area in zip(counts.items(), areas, strict=True):
        if count > 1 and area >= max(least, 25 * len(f"{count:,}") ** 2):
            ax.annotate(f"{count:,}", (size, row), fontsize=8, ha="center", va="center", color="white")


def leakage_bars(leak: Leakage) -> Axes:
    """Accuracy under a random and a group-safe split with 95 % intervals, and the points between them."""
    _, ax = plt.subplots(figsize=(8, 2.6 if leak.measured else 0.6))
    if not leak.measured:
        ax.text(0, 0.5, leakage_text(leak), va="center")
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
    text = f"accuracy of a quick classifier, with 95 % interval over {leak.groups:,} groups; n = {leak.n:,} photos"
    ax.set_xlabel(f"{text}\n{leakage_points_text(leak)}", fontsize=10)
    ax.set_title("What a random split would claim")
    return ax
