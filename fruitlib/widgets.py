"""What moves in a notebook: live training curves, and a browser over Grad-CAM pictures.

Reports cannot move, so each widget's notebook shows a still picture of the same thing beside it.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display
from ipywidgets import Dropdown, HBox, Image, SelectionSlider, VBox

from fruitlib import gradcam, plots


class LiveCurves:
    """Training curves redrawn in place, every `seconds` at most: call it with the history so far."""

    def __init__(self, epochs: int, seconds: float = 3):
        self.epochs, self.seconds = epochs, seconds
        self._shown, self._drawn = None, 0.0

    def __call__(self, history: pd.DataFrame) -> None:
        """Show or refresh the figure; a history without rows is passed over."""
        early = time.monotonic() - self._drawn < self.seconds  # drawing must not outweigh training
        if not history.empty and not early:
            self._draw(history)

    def finish(self, history: pd.DataFrame) -> None:
        """Show all of it where something was shown: whatever was passed over is in the last picture."""
        if self._shown is not None:
            self._draw(history)

    def _draw(self, history: pd.DataFrame) -> None:
        figure = plots.history(history, self.epochs)
        if self._shown is None:
            self._shown = display(figure, display_id=True)
        else:
            self._shown.update(figure)
        plt.close(figure)
        self._drawn = time.monotonic()


def cam_browser(cams: dict[int, gradcam.Heatmaps], photos: np.ndarray, names: list[str]) -> VBox:
    """Choose photo, layer and epoch, and see the heatmap on the photo.

    `cams` maps epochs to heatmaps of `photos` (n, S, S, 3 in [0, 1]); `names` are the photos' names.
    """
    epochs = sorted(cams)
    layers = cams[epochs[0]].layer_names
    photo = Dropdown(options=[(name, i) for i, name in enumerate(names)], description="photo")
    layer = Dropdown(options=[(name, i) for i, name in enumerate(layers)], value=len(layers) - 1, description="layer")
    epoch = SelectionSlider(options=epochs, value=epochs[-1], description="epoch")
    picture = Image(format="png", width=320)

    def redraw(_=None) -> None:
        heatmap = cams[epoch.value].heatmap[photo.value, layer.value]
        picture.value = _png(gradcam.overlay(photos[photo.value], heatmap))

    for control in (photo, layer, epoch):
        control.observe(redraw, names="value")
    redraw()
    return VBox([HBox([photo, layer, epoch]), picture])


def _png(picture: np.ndarray) -> bytes:
    from io import BytesIO

    from PIL import Image as Pillow

    buffer = BytesIO()
    Pillow.fromarray(picture).resize((320, 320), Pillow.Resampling.BILINEAR).save(buffer, "PNG")
    return buffer.getvalue()
