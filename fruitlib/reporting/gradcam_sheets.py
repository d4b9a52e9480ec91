"""Sheets of 04: heatmaps on their photos, by layer and by epoch.

photos are (n, S, S, 3) in [0, 1], true_names the class name of each.
"""

import numpy as np
from matplotlib.figure import Figure

from fruitlib.explain import gradcam
from fruitlib.explain.gradcam import Heatmaps
from fruitlib.reporting import photo_sheets


def heatmaps_by_layer(photos: np.ndarray, maps: Heatmaps, true_names: list[str], class_names: list[str]) -> Figure:
    """A row per photo, a column per layer; row names say the true class and what is predicted."""
    rows = [
        [photo, *(gradcam.overlay(photo, heat) for heat in heat_of_layers)]
        for photo, heat_of_layers in zip(photos, maps.heatmap, strict=True)
    ]
    names = [
        f"{true}, predicted\n{class_names[predicted]} ({probs[predicted]:.0%})"
        for true, predicted, probs in zip(true_names, maps.predicted, maps.probs, strict=True)
    ]
    title = "Grad-CAM by layer"
    return photo_sheets.picture_table(rows, names, ["photo", *maps.layer_names], title)


def heatmaps_by_epoch(photos: np.ndarray, kept: dict[int, Heatmaps], true_names: list[str]) -> Figure | None:
    """A row per photo, a column per epoch, of the last layer; None where no heatmaps were kept."""
    if not kept:
        return None
    rows = [
        [photo, *(gradcam.overlay(photo, maps.heatmap[number, -1]) for maps in kept.values())]
        for number, photo in enumerate(photos)
    ]
    columns = ["photo", *(f"epoch {epoch}" for epoch in kept)]
    return photo_sheets.picture_table(rows, true_names, columns, "Grad-CAM by epoch, last layer")
