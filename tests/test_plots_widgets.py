"""Figures show the numbers they are given; widgets react."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fruitlib import gradcam, plots, widgets

NAMES = ["apple", "sour $_1$ cherry", "tomato"]
MATRIX = np.array([[9, 1, 0], [2, 8, 0], [0, 0, 0]])  # a class without photos must not break a figure


@pytest.fixture(autouse=True)
def style():
    plots.use_style()
    yield
    plt.close("all")


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_split_counts_shows_each_number_once():
    table = pd.DataFrame({"train": [107, 30], "val": [10, 10], "test": [10, 0]}, index=["apple", "tomato"])
    ax = plots.split_counts(table)
    assert sorted(filter(None, texts(ax)), key=int) == ["10", "10", "10", "30", "107"]


def test_confusion_shows_counts_and_shares():
    assert texts(plots.confusion(MATRIX, NAMES))[:3] == ["9\n90%", "1\n10%", "0\n0%"]


def test_class_counts_and_rates_name_their_fractions():
    heights = [bar.get_height() for bars in plots.class_counts(MATRIX, NAMES).containers for bar in bars]
    assert heights == [9, 8, 0, 1, 2, 0, 2, 1, 0]  # tp, fn, fp
    axes = plots.class_rates(MATRIX, NAMES).axes
    assert texts(axes[0]) == ["9/11", "8/9", "no photos"] and texts(axes[1])[:2] == ["9/10", "8/10"]


def test_proportions_stand_where_they_should():
    ax = plots.proportions({"torch": 27, "int8": 15}, 30, "accuracy")
    dots = [line.get_xdata()[0] for line in ax.lines if len(np.atleast_1d(line.get_xdata())) == 1]
    assert dots == [0.9, 0.5] and texts(ax) == ["27/30", "15/30"]


def test_history_marks_the_kept_epoch():
    rows = {f"{s}_{m}": [0.5, 0.6] for s in ("train", "val") for m in ("loss", "accuracy", "macro_f1")}
    figure = plots.history(pd.DataFrame({"epoch": [1, 2], **rows}), epochs=9, best_epoch=2)
    assert [ax.get_title() for ax in figure.axes] == ["loss", "accuracy", "macro-F1"]
    assert figure.axes[0].get_xlim() == (0.5, 9.5)
    assert "kept (epoch 2)" in [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_save_writes_a_picture(tmp_path):
    figure = plots.cost_bars({"fp32": 0.4, "int8": 0.1}, "size", "MB", {"fp32": (0.3, 0.5), "int8": (0.1, 0.1)}).figure
    plots.save(figure, tmp_path / "deep" / "figure.png")
    with Image.open(tmp_path / "deep" / "figure.png") as picture:
        assert picture.size[0] > 300


def test_pictures_and_maps_fill_their_tables():
    photo = np.random.default_rng(0).random((16, 16, 3))
    table = plots.picture_table([[photo, photo], [photo, photo], [photo, photo]], NAMES, ["photo", "conv1"], "CAM")
    assert [ax.get_ylabel() for ax in table.axes[::2]] == NAMES
    maps = {"conv1": np.ones((4, 8, 8)), "conv2": np.ones((3, 4, 4))}
    assert sum(bool(ax.images) for ax in plots.feature_maps(maps, photo, "maps").axes) == 1 + 4 + 3


def test_contact_sheet_titles_each_photo():
    sheet = plots.contact_sheet(np.zeros((5, 8, 8, 3), np.uint8), list("abcde"), columns=3)
    assert [ax.get_title() for ax in sheet.axes] == ["a", "b", "c", "d", "e", ""]


def test_live_curves_are_one_output_and_do_not_outweigh_training(monkeypatch):
    shown, updates = [], []

    class Handle:
        def update(self, figure):
            updates.append(figure)

    monkeypatch.setattr(widgets, "display", lambda figure, display_id: shown.append(figure) or Handle())
    rows = {f"{s}_{m}": 0.5 for s in ("train", "val") for m in ("loss", "accuracy", "macro_f1")}
    live = widgets.LiveCurves(epochs=6, seconds=60)
    live(pd.DataFrame())
    for epoch in range(1, 7):
        live(pd.DataFrame([{"epoch": e, **rows} for e in range(1, epoch + 1)]))
    assert (len(shown), len(updates)) == (1, 1)  # the first epoch and the last


def test_the_browser_shows_the_chosen_photo_layer_and_epoch():
    rng = np.random.default_rng(0)
    photos = rng.random((2, 16, 16, 3)).astype(np.float32)

    def maps() -> gradcam.Heatmaps:
        heat = rng.random((2, 3, 16, 16)).astype(np.float32)
        return gradcam.Heatmaps(heat, heat[:, :, 0, 0], np.zeros(2), np.zeros((2, 3)), np.zeros(2), ["a", "b", "c"])

    cams = {1: maps(), 5: maps()}
    box = widgets.cam_browser(cams, photos, ["one", "two"])
    (photo, layer, epoch), picture = box.children[0].children, box.children[1]
    expected = widgets._png(gradcam.overlay(photos[0], cams[5].heatmap[0, 2]))
    assert picture.value == expected  # the last epoch and layer first
    photo.value, layer.value, epoch.value = 1, 0, 1
    assert picture.value == widgets._png(gradcam.overlay(photos[1], cams[1].heatmap[1, 0]))
    assert Image.open(io.BytesIO(picture.value)).size == (320, 320)
