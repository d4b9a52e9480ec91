"""04 and 08: does the network look at the object? Photos with it hidden, heat on it, accuracy without it, curves."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fruitlib.evaluation import intervals, wording
from fruitlib.evaluation.shortcut_findings import GREY, HUE
from fruitlib.explain import shortcuts
from fruitlib.explain.insertion import DELETION, INSERTION, ROAD
from fruitlib.explain.shortcuts import Looked
from fruitlib.reporting.labels import find_fonts, label, labels
from fruitlib.reporting.style import COLOURS, drawing, greatest, keep_table, spread

SHOWN = 8  # photos in the strip
RIGHT, WRONG, OTHER = COLOURS["train"], COLOURS["val"], "#555555"
CURVES = {DELETION: "hidden", INSERTION: "uncovered", ROAD: "hidden"}
RUNS = 30  # of a sweep, at most
MARKS = {  # columns of results.csv: what they are called, marker, colour
    "accuracy": ("as they are", "o", COLOURS["train"]),
    "grey_accuracy": ("without colour", "s", "#8c8c8c"),
    "hidden_corrected": ("object hidden, leaning taken out", "X", COLOURS["val"]),
}


@drawing
def looked(found: Looked) -> Figure:
    """What the network was shown, and the three answers: heat on the object, accuracy on changed photos, curves."""
    heat = bool(found.heat.held.any())
    figure = plt.figure(figsize=(9.2, 10.2))
    grid = figure.add_gridspec(3, 6, height_ratios=(1.2, 1.35, 0.9), hspace=0.36, wspace=0.5)
    _strip(figure.add_subplot(grid[0, :]), found)
    if heat:
        _heat(figure.add_subplot(grid[1, :3]), found)
    _accuracy(figure.add_subplot(grid[1, 4:] if heat else grid[1, 1:]), found)
    panels = [figure.add_subplot(grid[2, 2 * at : 2 * at + 2]) for at in range(len(CURVES))]
    _curves(panels, found)
    keep_table(figure, _numbers(found))
    return figure


def _numbers(found: Looked) -> pd.DataFrame:
    """What the figure shows but for the photos: a row per mark; `share` is of the picture."""
    right = np.where(found.predicted == found.labels, "right", "wrong")
    rows = [
        {"figure": "heat on the object", "of": right[i], "share": found.heat.areas[i], "value": found.heat.shares[i]}
        for i in np.flatnonzero(found.heat.held)
    ]
    for name, share in _accuracies(found):
        numbers = {"value": share.value, "low": share.low, "high": share.high, "n": share.n}
        rows.append({"figure": "accuracy", "of": " ".join(name.split()).strip(","), **numbers})
    for order, curves in (("hottest first", found.curves.by_heat), ("at random", found.curves.at_random)):
        for name, shares in found.curves.shares.items() if found.curve_groups else ():
            points = zip(shares, curves[name].mean(0), strict=True)
            rows += [{"figure": name, "of": order, "share": share, "value": value} for share, value in points]
    return pd.DataFrame(rows)


def _strip(ax: Axes, found: Looked) -> None:
    """Some photos as they are with the object outlined, in other colours, and with the object hidden."""
    known = np.flatnonzero(found.masks.known)
    order = known if len(known) else np.arange(len(found.labels))
    order = order[np.argsort(found.labels[order], kind="stable")]
    shown = order[spread(len(order), SHOWN)]
    photos = found.pictures[shown]
    rows = {"photo": photos, "without colour": shortcuts.grey_of(photos)}
    if len(known):
        outlined = [_outlined(photo, mask) for photo, mask in zip(photos, found.masks.masks[shown], strict=True)]
        rows = {"photo, the object\noutlined": outlined, "other hue": found.turned[shown]}
        rows["object hidden"] = found.masks.hidden[shown]
    side = photos.shape[1]
    ax.imshow(np.concatenate([np.concatenate(list(row), axis=1) for row in rows.values()]), aspect="equal")
    names = labels(found.names[found.labels[i]] for i in shown)
    ax.set_xticks((np.arange(len(shown)) + 0.5) * side, names, fontsize=10)
    ax.set_yticks((np.arange(len(rows)) + 0.5) * side, list(rows), fontsize=10)
    ax.tick_params(length=0)
    ax.grid(False)
    ax.xaxis.tick_top()
    for spine in ax.spines.values():
        spine.set_visible(False)


def _outlined(photo: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The photo with a line along the mask, white on black, so that it shows on any photo."""
    thin = max(1, len(photo) // 150)
    result = np.where(_outline(mask, 2 * thin)[..., None], 0, photo)
    return np.where(_outline(mask, thin)[..., None], 255, result).astype(np.uint8)


def _outline(mask: np.ndarray, reach: int) -> np.ndarray:
    """Pixels within `reach` of another value across or down."""
    result, padded = np.zeros_like(mask), np.pad(mask, reach, mode="edge")
    for step in range(2 * reach + 1):
        result |= padded[step : step + len(mask), reach:-reach] != mask
        result |= padded[reach:-reach, step : step + len(mask)] != mask
    return result


def _heat(ax: Axes, found: Looked) -> None:
    held, right = found.heat.held, found.predicted == found.labels
    for chosen, colour, marker, name in ((right, RIGHT, "o", "right"), (~right, WRONG, "X", "wrong")):
        own = held & chosen
        if own.any():
            points = found.heat.areas[own], found.heat.shares[own]
            ax.scatter(*points, s=28, color=colour, marker=marker, alpha=0.7, label=f"{name} ({own.sum()})")
    ax.plot([0, 1], [0, 1], color="#333333", linewidth=1, linestyle="--", label="even heat")
    ax.set(xlim=(0, 1), ylim=(-0.03, 1.03), ylabel="share of heat on the object")
    ax.set_xlabel("object's share of the picture, which even heat would have", fontsize=10)
    ax.yaxis.label.set_size(10)
    ax.tick_params(labelsize=9)
    ax.set_title(f"Heat on the object, n = {held.sum()}")
    ax.legend(fontsize=9, loc="lower right")


def _accuracy(ax: Axes, found: Looked) -> None:
    """Accuracy with 95 % intervals on the photos as they are and changed, from top to bottom."""
    rows = _accuracies(found)
    for at, (_, share) in enumerate(rows):
        ax.plot([share.low, share.high], [at, at], color=RIGHT, linewidth=2)
        ax.plot(share.value, at, "o", color=RIGHT)
    if found.background:
        chance, last = found.background.corrected.beside, len(rows) - 1
        ax.plot([chance, chance], [last - 1.35, last + 0.35], color=WRONG, linewidth=2)
        ax.text(chance, last + 0.42, "best constant answer", color=WRONG, fontsize=9, ha="center", va="top")
    names = [f"{name}n = {share.n}" for name, share in rows]
    ax.set_yticks(range(len(rows)), names, fontsize=10)
    ax.set(xlim=(-0.02, 1.02), ylim=(len(rows) - 0.25, -0.5))
    ax.set_xlabel(f"with 95 % interval for {wording.new_text(found.groups, found.word)}", fontsize=10)
    ax.set_title("Accuracy on changed photos")
    ax.tick_params(axis="x", labelsize=9)


def _accuracies(found: Looked) -> list[tuple[str, intervals.Share]]:
    """The shares of photos that are right, with what was done to the photos."""
    plain = intervals.share_of(found.predicted == found.labels, found.groups)
    rows = [("as they are\n", plain), ("without colour\n", found.changes[GREY].share)]
    rows += [("other hue\n", found.changes[HUE].share)]
    if found.background:
        rows.append(("object hidden\n", found.background.answered))
        rows.append(("hidden, leaning\ntaken out, ", found.background.corrected.share))
    return rows


def _curves(panels: list[Axes], found: Looked) -> None:
    """The probability of the class that the heat explains, mean over photos, as places are hidden or uncovered."""
    curves, n = found.curves, len(found.curve_groups)
    for ax, (name, what) in zip(panels, CURVES.items(), strict=True):
        for values, colour, style, order in (
            (curves.by_heat, RIGHT, "-", "hottest first"),
            (curves.at_random, OTHER, ":", "at random"),
        ):
            if n:
                line = values[name].mean(0)
                ax.plot(curves.shares[name], line, style, color=colour, marker="o", markersize=4, label=order)
        ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        ax.set_xlabel(f"share of the picture {what}", fontsize=10)
        ax.set_title(f"{name}, n = {n}")
        ax.tick_params(labelsize=9)
        ax.set_yticks([0, 0.5, 1], ["0", "0.5", "1"] if ax is panels[0] else [])
    panels[0].set_ylabel("probability of the\nclass explained", fontsize=10)
    if n:
        panels[0].legend(fontsize=9, loc="lower left")


@drawing
def of_runs(results: pd.DataFrame) -> Figure | None:
    """Of a sweep's runs, accuracy as photos are, without colour, and with the object hidden; heat on the object.

    `results` has the columns of results.csv; None where no run has them. Of more than 30 runs, the most accurate.
    """
    if "grey_accuracy" not in results or results["grey_accuracy"].isna().all():
        return None
    table = results[results["grey_accuracy"].notna()]
    table = table.iloc[greatest(table["accuracy"], RUNS)].sort_values("accuracy", ascending=False)
    heat = "heat_on_object" in table and table["heat_on_object"].notna().any()
    at = np.arange(len(table))
    figure, axes = plt.subplots(
        1, 2 if heat else 1, figsize=(9.2 if heat else 6.5, 2.1 + 0.34 * len(table)), sharey=True, squeeze=False
    )
    for column, (name, marker, colour) in MARKS.items():
        if column in table:
            axes[0, 0].plot(table[column], at, marker, color=colour, label=name, markersize=7)
    if "hidden_chance" in table:
        axes[0, 0].plot(table["hidden_chance"], at, "|", color="#333333", markersize=12, label="best constant answer")
    axes[0, 0].set(xlabel="accuracy on validation photos", xlim=(-0.03, 1.03), ylim=(len(table) - 0.5, -0.5))
    if heat:
        axes[0, 1].plot(table["heat_on_object"], at, "o", color=MARKS["accuracy"][2], label="share of heat, median")
        axes[0, 1].plot(table["object_area"], at, "|", color="#333333", markersize=12, label="of even heat")
        axes[0, 1].set(xlabel="heat on the object", xlim=(-0.03, 1.03))
    axes[0, 0].set_yticks(at, [label(run, 44) for run in table["run"]], fontsize=9)
    find_fonts(table["run"])
    for ax in axes[0]:
        ax.legend(fontsize=9, loc="lower left", bbox_to_anchor=(0, 1.0), frameon=False)
    figure.tight_layout()
    shown = ("run", *MARKS, "hidden_chance", "heat_on_object", "object_area")
    keep_table(figure, table[[name for name in shown if name in table]])
    return figure
