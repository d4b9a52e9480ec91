"""Figures of 01: how the photos are divided, and what a leaky split would claim."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fruitlib.evaluation.leakage import Leakage
from fruitlib.evaluation.wording import leakage_points_text, leakage_text
from fruitlib.reporting.labels import label, labels
from fruitlib.reporting.style import COLOURS, ROWS, drawing, keep_table, largest_and_smallest, row_height

FOLD_COLOURS = (("#0072b2", "white"), ("#a6d0ee", "black"))  # neighbours alternate; with the colour of their numbers


def _some_classes(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows that are shown, and which ones these are: of many classes the largest and the smallest."""
    table = table.drop(index="all", errors="ignore")
    if len(table) <= ROWS:
        return table, ""
    shown = table.iloc[largest_and_smallest(table.to_numpy().sum(1))]
    return shown, f": the {ROWS // 2} largest and {ROWS // 2} smallest of {len(table):,} classes"


@drawing
def split_counts(table: pd.DataFrame) -> Axes:
    """Photos per class, stacked by split, from `splits.counts` (classes as rows, splits as columns)."""
    table, some = _some_classes(table)
    height = 0.7 + row_height(len(table), 0.6)
    figure, ax = plt.subplots(figsize=(7, height))
    keep_table(figure, table.rename_axis("class").reset_index())
    left, narrow = np.zeros(len(table)), table.to_numpy().sum(1).max() / 50  # no room for a number; the table has it
    for split in table.columns:
        name = split.replace("_", " ")
        bars = ax.barh(range(len(table)), table[split], left=left, color=COLOURS[split], label=name)
        texts = [str(n) if n > narrow else "" for n in table[split]]
        ax.bar_label(bars, texts, label_type="center", color="white", fontsize=10)
        left += table[split].to_numpy()
    ax.set(xlabel="photos", title=f"Photos per class and split{some}")
    _name_rows(ax, labels(table.index))
    ax.grid(axis="y", visible=False)
    below = (-0.1, -0.3 * 2.5 / height)  # as far below the axis, however many rows there are
    ax.legend(ncols=5, loc="upper left", bbox_to_anchor=below, frameon=False, columnspacing=1.2)
    return ax


def _name_rows(ax: Axes, names: list[str]) -> None:
    """The names of a chart's rows, smaller where there are many."""
    ax.set_yticks(range(len(names)), names, **({"fontsize": 9} if len(names) > 12 else {}))
    ax.set_ylim(len(names) - 0.5, -0.5)


@drawing
def fold_counts(table: pd.DataFrame) -> Axes:
    """How each class's photos fall into folds, from `splits.fold_counts` (classes as rows, folds as columns).

    Every class has a bar of the same length, so that a rare one can be read as well as a common one.
    """
    table, some = _some_classes(table)
    names = [f"{label(name)} ({total:,})" for name, total in table.sum(axis=1).items()]
    shares = table.div(table.sum(axis=1).clip(lower=1), axis=0)
    figure, ax = plt.subplots(figsize=(7, 1.1 + row_height(len(table), 0.5)))
    keep_table(figure, table.rename_axis("class").rename(columns="fold {}".format).reset_index())
    left = np.zeros(len(table))
    for number, fold in enumerate(table.columns):
        colour, ink = FOLD_COLOURS[number % 2]
        bars = ax.barh(range(len(table)), shares[fold], left=left, color=colour, edgecolor="white")
        texts = [
            f"{n:,}" if share > 0.013 * len(f"{n:,}") + 0.01 else ""
            for n, share in zip(table[fold], shares[fold], strict=True)
        ]
        ax.bar_label(bars, texts, label_type="center", color=ink, fontsize=10)
        left += shares[fold].to_numpy()
    ax.set(xlabel=f"share of the class, folds 1 to {len(table.columns)} from left to right", xlim=(0, 1))
    ax.set_title(f"Photos per class and fold{some}")
    _name_rows(ax, names)
    ax.grid(axis="y", visible=False)
    return ax


@drawing
def group_sizes(manifest: pd.DataFrame) -> Axes:
    """How many groups of which size each class has, and how many photos have no group, from the usable rows.

    A disc's area shows the number of groups; the grey disc at 1 stands for photos without a group or alone in one.
    """
    usable = manifest[manifest["status"] == "ok"]
    photos = usable["label"].value_counts().sort_index().rename("photos").to_frame()
    shown, some = _some_classes(photos)
    classes = list(shown.index)
    size = usable.groupby("group")["label"].transform("size").where(usable["group"] != "", 1)
    grouped = usable.assign(size=size)[size >= 2].drop_duplicates(["label", "group"])  # a group may span classes
    groups = pd.crosstab(grouped["label"], grouped["size"]).reindex(classes, fill_value=0)
    lone = usable["label"][size < 2].value_counts()
    largest = max([*groups.columns, 1])
    disc = 1 if len(classes) <= 12 else 0.45  # rows stand closer
    figure, ax = plt.subplots(figsize=(7.5, 1.2 + row_height(len(classes), 0.62)))
    sizes = groups.rename(columns="groups of {}".format).rename_axis("class", axis=0).rename_axis(None, axis=1)
    keep_table(figure, sizes.assign(alone=lone.reindex(classes).fillna(0).astype(int)).reset_index())
    for row, name in enumerate(classes):
        own = groups.loc[name][groups.loc[name] > 0]
        _discs(ax, row, own, groups.to_numpy().max(initial=1), disc)
        alone = int(lone.get(name, 0))
        if alone:
            ax.scatter(1, row, s=400 * disc, color="#767676", linewidth=0)
            ax.annotate(f"{alone:,}", (1, row), fontsize=9, ha="center", va="center", color="white")
        between = "\n" if len(classes) <= 12 else ", "
        text = f"{int(own.sum()):,} group{'s' * int(own.sum() != 1)}{between}{alone:,} alone"
        ax.annotate(text, (1.02, row), xycoords=("axes fraction", "data"), fontsize=9, va="center")
    ax.set_xscale("log" if largest > 30 else "linear")
    ax.set_xlim((0.7, largest * 1.35) if largest > 30 else (0, largest + 1))
    if largest <= 30:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.xaxis.set_major_formatter("{x:g}")
    _name_rows(ax, labels(classes))
    ax.set_ylim(len(classes) - 0.4, -0.6)
    ax.set(xlabel="photos in the group (grey: alone)", title=f"Groups by size{some}")
    return ax


def _discs(ax: Axes, row: int, counts: pd.Series, most: int, disc: float) -> None:
    """A disc for each size (index) of so many groups (value), with the number in it where it fits."""
    areas = disc * (30 + 370 * counts / most)
    least = 0 if len(counts) <= 12 else 150  # among many only large discs have numbers
    ax.scatter(counts.index, [row] * len(counts), s=areas, color=COLOURS["train"], alpha=0.8, linewidth=0)
    for (size, count), area in zip(counts.items(), areas, strict=True):
        if count > 1 and area >= max(least, 25 * len(f"{count:,}") ** 2):
            ax.annotate(f"{count:,}", (size, row), fontsize=9, ha="center", va="center", color="white")


@drawing
def leakage_bars(leak: Leakage) -> Axes:
    """Accuracy under a random and a group-safe split with 95 % intervals, and the points between them."""
    figure, ax = plt.subplots(figsize=(8, 2.6 if leak.measured else 0.6))
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
    ends = {end: [getattr(leak, f"{key}_{end}") for key, _ in rows.values()] for end in ("low", "high")}
    accuracy = [getattr(leak, key) for key, _ in rows.values()]
    keep_table(figure, pd.DataFrame({"split": list(rows), "accuracy": accuracy} | ends))
    span = {"arrowstyle": "|-|, widthA=0.3, widthB=0.3", "color": "#333333", "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (leak.safe, 0.5), (leak.random, 0.5), arrowprops=span)
    ax.set(yticks=range(len(rows)), yticklabels=list(rows), ylim=(1.5, -0.65), xlim=(-0.02, 1.02))
    text = f"accuracy of a quick classifier, with 95 % interval over {leak.groups:,} groups; n = {leak.n:,} photos"
    ax.set_xlabel(f"{text}\n{leakage_points_text(leak)}", fontsize=10)
    ax.set_title("What a random split would claim")
    return ax
