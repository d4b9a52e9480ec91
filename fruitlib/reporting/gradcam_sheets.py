"""Sheets of 04: heatmaps on their photos, by layer and by epoch.

photos are (n, S, S, 3) in [0, 1], true_names the class name of each. Of many photos or epochs some are shown, evenly
spread.
"""

import numpy as np
from matplotlib.figure import Figure

from fruitlib.explain import gradcam
from fruitlib.explain.gradcam import Heatmaps
from fruitlib.reporting import photo_sheets
from fruitlib.reporting.labels import label, labels
from fruitlib.reporting.style import drawing, spread

PHOTOS, COLUMNS = 12, 16  # on a sheet, at most


def one_of_each(true_names: list[str]) -> list[int]:
    """The place of the first photo of each class; of some classes where there are more than 12."""
    first = [true_names.index(name) for name in dict.fromkeys(true_names)]
    return [first[place] for place in spread(len(first), PHOTOS)]


def _title(words: str, shown: int, total: int) -> str:
    return words if shown == total else f"{words}: {shown} of {total:,} photos"


@drawing
def heatmaps_by_layer(photos: np.ndarray, maps: Heatmaps, true_names: list[str], class_names: list[str]) -> Figure:
    """A row per photo, a column per layer; row names say the true class and what is predicted."""
    shown = spread(len(photos), PHOTOS)
    rows = [
        [photo, *(gradcam.overlay(photo, heat) for heat in heat_of_layers)]
        for photo, heat_of_layers in ((photos[place], maps.heatmap[place]) for place in shown)
    ]
    predicted = {place: int(maps.predicted[place]) for place in shown}
    names = [
        f"{label(true_names[place])}, predicted\n{label(class_names[one])} ({maps.probs[place][one]:.0%})"
        for place, one in predicted.items()
    ]
    title = _title("Grad-CAM by layer", len(shown), len(photos))
    return photo_sheets.picture_table(rows, names, ["photo", *maps.layer_names], title)


@drawing
def heatmaps_by_epoch(photos: np.ndarray, kept: dict[int, Heatmaps], true_names: list[str]) -> Figure | None:
    """A row per photo, a column per epoch, of the last layer; None where no heatmaps were kept."""
    if not kept:
        return None
    shown, epochs = spread(len(photos), PHOTOS), [list(kept)[place] for place in spread(len(kept), COLUMNS)]
    rows = [
        [photos[place], *(gradcam.overlay(photos[place], kept[epoch].heatmap[place, -1]) for epoch in epochs)]
        for place in shown
    ]
    columns, names = ["photo", *(f"epoch {epoch}" for epoch in epochs)], labels(true_names[place] for place in shown)
    title = _title("Grad-CAM by epoch, last layer", len(shown), len(photos))
    return photo_sheets.picture_table(rows, names, columns, title)
