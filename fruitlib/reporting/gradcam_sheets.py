"""Sheets of 04: heatmaps on their photos, by layer and by epoch.

photos are (n, S, S, 3) in [0, 1], true_names the class name of each. Of many photos or epochs some are shown, evenly
spread.
"""

import numpy as np
from matplotlib.figure import Figure

from fruitlib.explain import gradcam
from fruitlib.explain.gradcam import Heatmaps
from fruitlib.reporting import photo_sheets
from fruitlib.reporting.labels import label
from fruitlib.reporting.style import drawing, spread

PHOTOS, EPOCHS = 12, 11  # on a sheet, at most
EMPTY = "no heat"


def one_of_each(true_names: list[str]) -> list[int]:
    """The place of the first photo of each class; of some classes where there are more than 12."""
    first = [true_names.index(name) for name in dict.fromkeys(true_names)]
    return [first[place] for place in spread(len(first), PHOTOS)]


def _title(words: str, shown: int, total: int) -> str:
    return words if shown == total else f"{words}: {shown} of {total:,} photos"


def _heat(photo: np.ndarray, maps: list[np.ndarray]) -> tuple[list[np.ndarray], list[str]]:
    """A photo and heatmaps on it, and what is written on each of them: that a map is empty."""
    return [photo, *(gradcam.overlay(photo, one) for one in maps)], ["", *("" if one.any() else EMPTY for one in maps)]


def _row_name(true_name: str, maps: Heatmaps, place: int, class_names: list[str]) -> str:
    """The true class, and what the network predicts."""
    predicted = int(maps.predicted[place])
    return f"{label(true_name)}, predicted\n{label(class_names[predicted])} ({maps.probs[place][predicted]:.0%})"


@drawing
def heatmaps_by_layer(photos: np.ndarray, maps: Heatmaps, true_names: list[str], class_names: list[str]) -> Figure:
    """A row per photo, a column per layer; row names say the true class and what is predicted."""
    shown = spread(len(photos), PHOTOS)
    rows, words = zip(*(_heat(photos[place], list(maps.heatmap[place])) for place in shown), strict=True)
    names = [_row_name(true_names[place], maps, place, class_names) for place in shown]
    title = _title("Grad-CAM by layer", len(shown), len(photos))
    return photo_sheets.picture_table(list(rows), names, ["photo", *maps.layer_names], title, list(words))


@drawing
def heatmaps_by_epoch(
    photos: np.ndarray, kept: dict[int, Heatmaps], true_names: list[str], class_names: list[str]
) -> Figure | None:
    """A row per photo, a column per epoch, of the last layer; None where no heatmaps were kept.

    Row names say the true class and what was predicted at the last of these epochs.
    """
    if not kept:
        return None
    shown, epochs = spread(len(photos), PHOTOS), [list(kept)[place] for place in spread(len(kept), EPOCHS)]
    rows, words = zip(
        *(_heat(photos[place], [kept[epoch].heatmap[place, -1] for epoch in epochs]) for place in shown), strict=True
    )
    columns = ["photo", *(f"epoch {epoch}" for epoch in epochs)]
    names = [_row_name(true_names[place], kept[epochs[-1]], place, class_names) for place in shown]
    title = _title("Grad-CAM by epoch, last layer", len(shown), len(photos))
    return photo_sheets.picture_table(list(rows), names, columns, title, list(words))
