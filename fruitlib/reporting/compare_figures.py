"""Figures of two runs side by side: tables in, `Axes` or a `Figure` out, in the look of `style`."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fruitlib.core.errors import InputError
from fruitlib.evaluation.compare import Pair
from fruitlib.reporting.labels import label
from fruitlib.reporting.style import COLOURS, drawing, keep_table
from fruitlib.runs.run import Run

SIDES = {"a": COLOURS["train"], "b": COLOURS["val"]}
MAX_BARS = 6  # classes that have bars for a photo, where there are more


@drawing
def two_by_two(table: np.ndarray) -> Axes:
    """Photos by whether A (rows) and B (columns) are right, (2, 2); only the two framed fields show a difference."""
    figure, ax = plt.subplots(figsize=(4.4, 3.4))
    rows = pd.DataFrame(table, ["A right", "A wrong"], ["B right", "B wrong"])
    keep_table(figure, rows.rename_axis("photos").reset_index())
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
    ax.set_title("Photos: who is right?")
    ax.grid(visible=False)
    return ax


@drawing
def differences(rows: dict[str, tuple[float, float, float]], units: str, significant: bool = True) -> Axes:
    """B less A, a row per measure (value, low, high), in points.

    A line has the colour of the better side. It is grey where it crosses 0; all are where the two sides do not differ
    significantly by the test. `units` says how many photos or groups there are.
    """
    figure, ax = plt.subplots(figsize=(8, 1.3 + 0.55 * len(rows)))
    numbers = pd.DataFrame(list(rows.values()), list(rows), ["B less A", "low", "high"])
    keep_table(figure, numbers.rename_axis("measure").reset_index())
    ax.axvline(0, color="#333333", linewidth=1)
    for row, (value, low, high) in enumerate(rows.values()):
        better = "b" if low > 0 else "a" if high < 0 else ""
        colour = SIDES[better] if significant and better else "#666666"
        ax.plot([100 * low, 100 * high], [row, row], color=colour, linewidth=2)
        ax.plot(100 * value, row, "o", color=colour)
        ax.annotate(
            f"{100 * value:+.1f}" + ("" if np.isfinite(low) else " (no interval)"),
            (100 * value, row),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},  # readable where it stands on the line at 0
        )
    ends = [abs(100 * end) for row in rows.values() for end in row if np.isfinite(end)]
    reach = 1.25 * max([*ends, 4])
    ax.set(yticks=range(len(rows)), yticklabels=list(rows), ylim=(len(rows) - 0.5, -0.8), xlim=(-reach, reach))
    ax.set(xlabel=f"points B has more than A, with 95 % interval ({units})", title="B less A")
    return ax


@drawing
def disagreements(
    table: pd.DataFrame, class_names: list[str], photos: np.ndarray | None = None, heats: dict[str, list] | None = None
) -> Figure:
    """A row per photo of `compare.disagreements`: the photo, both heatmaps where given, both sides' probabilities.

    Args:
        photos: (n, S, S, 3), as both networks get them; None: only the bars.
        heats: overlays (H, W, 3) of each side, by `a` and `b`.
    """
    columns = [*(["photo"] if photos is not None else []), *(heats or {}), "bars"]
    widths, tall = [1.6] * (len(columns) - 1) + [4.6], 1.35 + 0.18 * min(max(len(class_names), 3), MAX_BARS)
    figure, axes = plt.subplots(
        len(table),
        len(columns),
        figsize=(sum(widths), tall * len(table) + 0.5),
        squeeze=False,
        width_ratios=widths,
        layout="constrained",
    )
    keep_table(figure, table)
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
    return figure


def _bars(ax: Axes, record: dict, class_names: list[str]) -> None:
    """Both sides' probabilities, of `MAX_BARS` classes at most; above them, in their colours, what each predicts."""
    names = _strongest(record, class_names)
    rows = np.arange(len(names))
    for shift, side in ((-0.2, "a"), (0.2, "b")):
        values = np.array([record.get(f"p_{side}_{name}", np.nan) for name in names], float)
        if np.isfinite(values).any():
            ax.barh(rows + shift, np.nan_to_num(values), height=0.38, color=SIDES[side])
        text = f"{side.upper()}: {label(record[side], 34)}" + " (right)" * (record[side] == record["label"])
        _over(ax, text, 15 if side == "a" else 4, color=SIDES[side], fontweight="bold")
    path = str(record["path"])
    name = label(path if len(path) < 44 else f"…{path[-42:]}", 60)
    _over(ax, f"{name}\nis {label(record['label'], 42)}", 27)
    if not ax.containers:  # neither side has probabilities
        ax.axis("off")
        return
    ax.set(yticks=rows, yticklabels=[label(name, 20) for name in names], xlim=(0, 1.02), ylim=(len(rows) - 0.5, -0.5))
    ax.tick_params(labelsize=9)
    ax.spines[["top", "right"]].set_visible(False)


def _over(ax: Axes, text: str, points: int, **look) -> None:
    """Small text so many points above the axes."""
    ax.annotate(text, (0, 1), (0, points), xycoords="axes fraction", textcoords="offset points", fontsize=9, **look)


def _strongest(record: dict, class_names: list[str]) -> list[str]:
    """The classes worth a bar, in their order: the label, what both predict, and the likeliest others."""
    always = [record["label"], record["a"], record["b"]]
    values = [np.nanmax([record.get(f"p_{side}_{name}", np.nan) for side in "ab"] + [-1]) for name in class_names]
    order = sorted(range(len(class_names)), key=lambda i: (class_names[i] not in always, -values[i]))
    return [class_names[i] for i in sorted(order[:MAX_BARS])]


def disagreement_heatmaps(pair: Pair, shown: pd.DataFrame) -> tuple[np.ndarray, dict[str, list]] | None:
    """The photos of rows of `Pair.table`, (n, S, S, 3), and each run's Grad-CAM for the class it predicts.

    None where no side is a run or a photo is missing, and for test photos, which are not opened: only what 06 wrote
    about them is read. For pooled folds the photos alone, since each was predicted by another network.
    """
    from fruitlib.data import dataset

    sides = {side: predictions for side, predictions in (("a", pair.a), ("b", pair.b)) if predictions.run}
    if not len(shown) or not sides or any(predictions.part == "test" for predictions in sides.values()):
        return None
    photos, overlays = None, {}
    try:
        for side, predictions in sides.items():
            paths = shown["path" if side == "a" else "path_b"]
            rows = predictions.run.manifest.set_index("path").reindex(paths).rename_axis("path").reset_index()
            if rows["status"].ne("ok").any() or rows["split"].eq("test").any():
                return None
            images = dataset.load_photos(predictions.run, "val", rows=rows).images
            photos = dataset.to_pictures(images) / 255 if photos is None else photos
            if predictions.part == "val" and (predictions.run.path / "best.pt").is_file():
                overlays[side] = _overlays(predictions.run, images)
    except (InputError, OSError):
        return None
    return photos, overlays


def _overlays(run: Run, images) -> list[np.ndarray]:
    """Heatmaps of the last layer over photos uint8 (n, 3, S, S)."""
    from fruitlib.data import dataset
    from fruitlib.explain import gradcam
    from fruitlib.training import blocks, models

    model, _ = models.restore(run.path / "best.pt")
    name, layer = list(blocks.target_layers(model).items())[-1]
    maps = gradcam.heatmaps(model, dataset.to_float(images), {name: layer})
    pictures = dataset.to_pictures(images) / 255
    return [gradcam.overlay(photo, heat[0]) for photo, heat in zip(pictures, maps.heatmap, strict=True)]
