"""Figures of 04 and 08 about where networks look: drawn whatever is known, within a page's width."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fruitlib.explain import shortcuts
from fruitlib.reporting import shortcut_figures, style

WIDEST = 9.3  # inches: a page shows no more without making letters smaller


class Bright(nn.Module):
    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        bright = images.mean((1, 2, 3))
        return torch.stack([bright, 1 - bright], 1)


def photos(plain: bool, n: int = 12) -> np.ndarray:
    rng = np.random.default_rng(0)
    if not plain:
        return rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    pictures = np.full((n, 32, 32, 3), 220, np.uint8)
    for picture in pictures:
        x, y = rng.integers(6, 16, 2)
        picture[y : y + 9, x : x + 9] = rng.integers(0, 120, 3)
    return pictures


@pytest.mark.parametrize("heat", [0.0, 1.0], ids=["no heat", "heat"])
@pytest.mark.parametrize("plain", [True, False], ids=["objects", "no objects"])
def test_what_was_looked_at_is_drawn(plain, heat, capsys):
    style.use_style()
    names = ["$a$ <b>", "_사과" * 12]
    labels, maps = np.repeat([0, 1], 6), np.full((12, 32, 32), heat, np.float32)
    found = shortcuts.look(Bright(), photos(plain), labels, maps, np.ones(12, int), names)
    figure = shortcut_figures.looked(found)
    figure.draw_without_rendering()
    titles = [ax.get_title() for ax in figure.axes]
    plt.close(figure)
    assert "could not be drawn" not in capsys.readouterr().err
    assert ("Heat on the object, n = 12" in titles) is (plain and heat > 0)
    marks = figure.fruitlib_table["figure"].value_counts().to_dict()
    expected = {"accuracy": 5 if plain else 3} | ({"heat on the object": 12} if plain and heat else {})
    assert marks == expected | ({"deletion": 14, "insertion": 14, "ROAD": 6} if heat else {})
    assert f"ROAD, n = {12 if heat else 0}" in titles and figure.get_size_inches()[0] <= WIDEST


@pytest.mark.parametrize("runs", [1, 2, 200])
@pytest.mark.parametrize("objects", [True, False])
def test_runs_are_drawn(runs, objects, capsys):
    table = pd.DataFrame({"run": [f"lr={number}" for number in range(runs)], "accuracy": 0.9, "grey_accuracy": 0.5})
    if objects:
        table = table.assign(hidden_corrected=0.4, hidden_chance=0.3, heat_on_object=0.6, object_area=np.nan)
    figure = shortcut_figures.of_runs(table)
    figure.draw_without_rendering()
    plt.close(figure)
    assert "could not be drawn" not in capsys.readouterr().err
    assert len(figure.axes) == 1 + objects and figure.get_size_inches()[0] <= WIDEST
    assert len(figure.axes[0].get_yticks()) == min(runs, shortcut_figures.RUNS) == len(figure.fruitlib_table)


def test_runs_without_these_numbers_have_no_figure():
    assert shortcut_figures.of_runs(pd.DataFrame({"run": ["a"], "accuracy": [0.9]})) is None
