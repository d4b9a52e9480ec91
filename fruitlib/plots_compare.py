"""Figures of two runs side by side: tables in, `Axes` or a `Figure` out, in the look of `plots`."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fruitlib.plots import COLOURS

SIDES = {"a": COLOURS["train"], "b": COLOURS["val"]}


def two_by_two(table: np.ndarray) -> Axes:
    """Photos by whether A (rows) and B (columns) are right, (2, 2); only the two framed fields tell them apart."""
    figure, ax = plt.subplots(figsize=(4.4, 3.4))
    ax.imshow(table / max(table.sum(), 1), cmap="Blues", vmin=0, vmax=1.2)
    for (row, column), n in np.ndenumerate(table):
        ink = "white" if n / max(table.sum(), 1) > 0.6 else "black"
        ax.annotate(f"{n}", (column, row), ha="center", va="center", fontsize=15, color=ink)
        if row != column:
            colour = SIDES["a" if row < column else "b"]
            ax.add_patch(
                plt.Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, fill=False, edgecolor=colour, linewidth=3)
            )
    ax.set(xticks=[0, 1], xticklabels=["B right", "B wrong"], yticks=[0, 1], yticklabels=["A right", "A wrong"])
    ax.set_title("Photos: who is right where?")
    ax.grid(visible=False)
    figure.tight_layout()
    return ax


def differences(rows: dict[str, tuple[float, float, float]], n: int) -> Axes:
    """B less A, a row per measure (value, low, high), in points; nothing can be told where a line crosses 0."""
    _, ax = plt.subplots(figsize=(8, 1.3 + 0.55 * len(rows)))
    ax.axvline(0, color="#333333", linewidth=1)
    for row, (value, low, high) in enumerate(rows.values()):
        colour = SIDES["b"] if low > 0 else SIDES["a"] if high < 0 else "#666666"
        ax.plot([100 * low, 100 * high], [row, row], color=colour, linewidth=2)
        ax.plot(100 * value, row, "o", color=colour)
        ax.annotate(
            f"{100 * value:+.1f}",
            (100 * value, row),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    ends = [abs(100 * end) for row in rows.values() for end in row if np.isfinite(end)]
    reach = 1.25 * max([*ends, 4])
    ax.set(yticks=range(len(rows)), yticklabels=list(rows), ylim=(len(rows) - 0.5, -0.8), xlim=(-reach, reach))
    ax.set(xlabel=f"points B has more than A, with 95 % interval (n = {n} photos)", title="B less A")
    return ax


def disagreements(
    table: pd.DataFrame, class_names: list[str], photos: np.ndarray | None = None, heats: dict[str, list] | None = None
) -> Figure:
    """A row per photo of `compare.disagreements`: the photo, both heatmaps where given, both sides' probabilities.

    Args:
        photos: (n, S, S, 3), what both saw; None: only the bars.
        heats: overlays (H, W, 3) of each side, by `a` and `b`.
    """
    columns = [*(["photo"] if photos is not None else []), *(heats or {}), "bars"]
    widths = [1.6] * (len(columns) - 1) + [4.6]
    figure, axes = plt.subplots(
        len(table), len(columns), figsize=(sum(widths), 1.75 * len(table) + 0.5), squeeze=False, width_ratios=widths
    )
    for row, (line, record) in enumerate(zip(axes, table.to_dict("records"), strict=True)):
        for ax, column in zip(line, columns, strict=True):
            if column == "bars":
                _bars(ax, record, class_names)
            else:
                ax.imshow(photos[row] if column == "photo" else heats[column][row])
                ax.axis("off")
            if row == 0 and column != "bars":
                ax.set_title({"photo": "photo", "a": "A looks here", "b": "B looks here"}[column], fontsize=9)
    axes[-1, -1].set_xlabel("probability", fontsize=9)
    figure.tight_layout(h_pad=0.6)
    return figure


def _bars(ax: Axes, record: dict, class_names: list[str]) -> None:
    """Both sides' probabilities of each class; what each says, and the label, in words above them."""
    rows = np.arange(len(class_names))
    for shift, side in ((-0.2, "a"), (0.2, "b")):
        values = [record.get(f"p_{side}_{name}", np.nan) for name in class_names]
        if np.isfinite(values).any():
            ax.barh(rows + shift, np.nan_to_num(values), height=0.38, color=SIDES[side], label=side.upper())
    name = str(record["path"])
    name = name if len(name) < 44 else f"…{name[-42:]}"
    said = f"is {record['label']}; A: {record['a']}, B: {record['b']}"
    ax.text(0, 1.02, f"{name}\n{said}", transform=ax.transAxes, fontsize=8, va="bottom")
    ax.set(yticks=rows, yticklabels=class_names, xlim=(0, 1.02), ylim=(len(rows) - 0.5, -0.5))
    ax.tick_params(labelsize=8)
    if ax.containers:
        ax.legend(fontsize=7, loc="center right", frameon=True)
    ax.spines[["top", "right"]].set_visible(False)
