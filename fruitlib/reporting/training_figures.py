"""Figures of 02: the curves of a training, and of the learning rate finder."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fruitlib.reporting.style import COLOURS, drawing, keep_table


@drawing
def training_curves(
    table: pd.DataFrame, epochs: int | None = None, kept_epoch: int | None = None, head: dict | None = None
) -> Figure:
    """Loss, accuracy and macro-F1 by epoch, train and validation, from `history.csv`.

    Of a fitted `head`, the record of it, which has no epochs: what was compared to fit it.
    """
    if head:
        return strength_curve(head)
    figure, axes = plt.subplots(1, 3, figsize=(9.2, 3.0))
    keep_table(figure, table)
    panels = {"loss": "loss", "accuracy": "accuracy", "macro_f1": "macro-F1"}
    for ax, (column, title) in zip(axes, panels.items(), strict=True):
        for split, style in (("train", "--"), ("val", "-")):
            if f"{split}_{column}" not in table:  # there are no validation photos
                continue
            colour = COLOURS[split]
            ax.plot(table["epoch"], table[f"{split}_{column}"], style, color=colour, label=split, marker=".")
        if kept_epoch:
            ax.axvline(kept_epoch, color="#666666", linewidth=1, linestyle=":", label=f"kept (epoch {kept_epoch})")
        ax.set(title=title, xlabel="epoch", xlim=(0.5, (epochs or table["epoch"].max()) + 0.5))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_ylim((0, None) if column == "loss" else (0, 1.03))
    axes[0].legend(frameon=True)
    figure.subplots_adjust(left=0.05, right=0.99, bottom=0.16, top=0.91, wspace=0.18)  # tight_layout takes 0.1 s longer
    return figure


@drawing
def strength_curve(head: dict) -> Figure:
    """Log-loss and accuracy by strength, of training photos that a fitted head did not learn from.

    `head` is the record of a run's fitted head: `table`, the `strength` that was taken, and its `word`, C or k.
    """
    figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.1))
    table = pd.DataFrame(head["table"])
    keep_table(figure, table)
    for ax, (column, title) in zip(axes, {"log_loss": "log-loss", "accuracy": "accuracy"}.items(), strict=True):
        if head["table"]:
            ax.plot(table["strength"].clip(lower=1e-6), table[column], marker="o", color=COLOURS["train"])
        else:
            ax.text(0.5, 0.5, "nothing was compared", ha="center", va="center", transform=ax.transAxes)
        if head["word"]:
            ax.axvline(head["strength"], color="#666666", linewidth=1, linestyle=":", label="taken")
            ax.set_xscale("log")
            ax.xaxis.set_major_formatter("{x:g}")  # the usual 10^-3 needs the math that `use_style` turns off
        ax.set(title=title, xlabel=head["word"])
        ax.set_ylim((0, None) if column == "log_loss" else (0, 1.03))
    figure.suptitle(f"head {head['kind']}: photos that it did not learn from, in folds of the training photos")
    figure.tight_layout()
    return figure


@drawing
def lr_finder_curve(table: pd.DataFrame, suggested: float, lr: float) -> Figure:
    """Smoothed loss over lr (log axis) from `lr_finder.find_lr`, with the suggested lr (NaN: none) and the run's."""
    figure, ax = plt.subplots(figsize=(7.5, 3.4))
    keep_table(figure, table[["lr", "loss"]])
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
    return figure
