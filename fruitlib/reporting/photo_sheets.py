"""Sheets of photographs and maps: arrays in, a `Figure` out, in the look of `style`.

A sheet is one Axes measured in inches, from its upper left corner to the right and down. An Axes for each picture would
be the usual way, and takes ten times as long to draw, on every page of every run.
"""

import re
import textwrap
import unicodedata
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fruitlib.core import texts
from fruitlib.reporting.labels import find_fonts, label
from fruitlib.reporting.style import drawing

SIDE, GAP, LINE = 1.25, 0.1, 0.165  # inches: a photo's side, what lies between two, a line of small text
WIDEST, NAMES, LEAST = 9.2, 1.25, 0.6  # inches: a sheet that a page shows whole, its row names, a picture's side
LINES = 6  # of a caption, at most
SMALL = {"fontsize": 9, "linespacing": 1.2}


@drawing
def contact_sheet(
    images: np.ndarray, titles: list[str], columns: int = 6, title: str = "", at_most: int = 96
) -> Figure:
    """Photos uint8 (n, S, S, 3) in a grid, each with its title above it; the first 96 where there are more."""
    title += f" (the first {at_most} of {len(images):,})" if len(images) > at_most else ""
    images, titles = images[:at_most], [_in_lines(text, 19) for text in titles[:at_most]]
    lines = max((text.count("\n") + 1 for text in titles if text), default=0)
    figure, ax, corners = _grid(len(images), columns, SIDE + GAP, SIDE + LINE * lines + GAP, title)
    for image, text, (x, y) in zip(images, titles, corners, strict=True):
        y += LINE * lines
        _picture(ax, image, x, y)
        ax.text(x + SIDE / 2, y - 0.03, text, ha="center", va="bottom", **SMALL)
    return figure


@drawing
def quarantine_sheet(pictures: Sequence[np.ndarray | None] | None, titles: Sequence[str], at_most: int = 18) -> Figure:
    """Quarantined photos, each with its title under it (path, reason; a line break between): 18 at most.

    `pictures` are uint8 (H, W, 3), None for a photo, or for all, of which nothing can be shown: a grey tile then.
    """
    shown = list(pictures if pictures is not None else [None] * len(titles))[:at_most]
    title = f"{len(titles)} quarantined photo{'s' if len(titles) > 1 else ''}"
    title += f", the first {at_most}" if len(titles) > at_most else ""
    side = 1.5
    figure, ax, corners = _grid(len(shown), 6, side + 0.2, side + (LINES + 1) * LINE, title)
    for picture, text, (x, y) in zip(shown, titles[:at_most], corners, strict=True):
        if picture is None:
            _picture(ax, np.full((8, 8, 3), 225, np.uint8), x, y, side)
            ends = side * np.array([0.3, 0.7])
            for rise in (ends, ends[::-1]):
                ax.plot(x + ends, y + rise, color="#888888", linewidth=2)
        else:
            _picture(ax, picture, x, y, side)
        ax.text(x, y + side + 0.05, _in_lines(text, 24), va="top", **SMALL)
    return figure


@drawing
def pair_sheet(pairs: Sequence[tuple], titles: Sequence[str], at_most: int = 12, title: str = "") -> Figure:
    """Pairs of pictures uint8 (H, W, 3) side by side, each pair with its title under it: 12 at most.

    For near duplicates, or for photos that look alike and have different labels.
    """
    pairs, side = list(pairs)[:at_most], 1.5
    figure, ax, corners = _grid(len(pairs), 3, 2 * side + 0.3, side + (LINES + 1) * LINE, title)
    for pair, text, (x, y) in zip(pairs, titles[:at_most], corners, strict=True):
        for shift, picture in zip((0, side + 0.05), pair, strict=True):
            _picture(ax, picture, x + shift, y, side)
        ax.text(x, y + side + 0.05, _in_lines(text, 48), va="top", **SMALL)
    return figure


@drawing
def picture_table(
    pictures: list[list[np.ndarray]],
    row_names: list[str],
    column_names: list[str],
    title: str,
    words: list[list[str]] | None = None,
) -> Figure:
    """A table of pictures (lists of H×W×3 arrays): row names at the left, column names on top, `words` on them.

    The more columns, the smaller the pictures, so that a page shows all of up to twelve columns.
    """
    gap = 0.06
    side = min(SIDE, max(LEAST, (WIDEST - NAMES) / len(column_names) - gap))
    step, names = side + gap, [_in_lines(name, round(13 * side)) for name in column_names]
    for name in row_names:
        find_fonts(name)
    head = 0.17 * max((name.count("\n") + 1 for name in names if name), default=0) + 0.03
    figure, ax = _sheet(step * len(column_names), step * len(pictures) + head, title)
    places = [step * column for column in range(len(names))]
    for x, name in zip(places, names, strict=True):
        ax.text(x + side / 2, head - 0.05, name, ha="center", va="bottom", fontsize=9)
    for row, (line, name) in enumerate(zip(pictures, row_names, strict=True)):
        y = head + row * step
        ax.text(-0.08, y + side / 2, name, ha="right", va="center", fontsize=9)
        for x, picture, word in zip(places, line, words[row] if words else [""] * len(line), strict=True):
            _picture(ax, picture, x, y, side)
            if word:
                box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}
                ax.text(x + side / 2, y + 0.9 * side, word, ha="center", va="center", fontsize=9, bbox=box)
    return figure


@drawing
def policy_sheet(originals: np.ndarray, by_policy: dict[str, np.ndarray]) -> Figure:
    """What augmentation policies do to photos uint8 (k, S, S, 3): one column a photo, one row a policy.

    The first row holds the originals, so that one sees whether the fruit is still the fruit.
    """
    rows = [list(originals), *(list(pictures) for pictures in by_policy.values())]
    return picture_table(rows, ["original", *by_policy], [""] * len(originals), "The same photos under each policy")


@drawing
def feature_maps(maps: dict[str, np.ndarray], photo: np.ndarray, title: str) -> Figure:
    """The photo and, one row a layer, the activations (channels, h, w) of its strongest channels.

    Each map has a colour scale of its own, from its least to its greatest activation.
    """
    side, step = 0.83, 0.88
    columns = max(len(channels) for channels in maps.values())
    figure, ax = _sheet(step * columns, step * len(maps), label(title, 80))
    _picture(ax, photo, -1.05 - side, 0, side)
    for row, (layer, channels) in enumerate(maps.items()):
        text = f"{label(layer)}\n{channels.shape[1]} × {channels.shape[2]}"
        ax.text(-0.1, row * step + side / 2, text, ha="right", va="center", fontsize=9)
        for column, channel in enumerate(channels):
            _picture(ax, channel, column * step, row * step, side)
    return figure


def _sheet(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """An empty sheet of so many inches; what stands further out, as row names do, is saved all the same."""
    top = 0.35 if title else 0
    height = max(height, 0.1)
    figure = plt.figure(figsize=(width, height + top))
    ax = figure.add_axes((0, 0, 1, height / (height + top)))
    ax.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    ax.axis("off")
    figure.suptitle(title, fontweight="bold", fontsize=12, y=1, va="top")
    return figure, ax


def _grid(count: int, columns: int, wide: float, tall: float, title: str) -> tuple[Figure, Axes, list]:
    """A sheet of so many cells, `columns` in a row at most, and the upper left corner (x, y) of each."""
    columns = min(columns, max(count, 1))
    corners = [(n % columns * wide, n // columns * tall) for n in range(count)]
    return *_sheet(wide * columns, tall * -(-count // columns), title), corners


def _picture(ax: Axes, picture: np.ndarray, x: float, y: float, side: float = SIDE) -> None:
    """A picture (H, W, 3), or a map (H, W), as large as goes into a square, in the middle of its upper edge."""
    height, width = (side * extent / max(picture.shape[:2]) for extent in picture.shape[:2])
    x += (side - width) / 2
    ax.imshow(picture, extent=(x, x + width, y + height, y), cmap="viridis", aspect="auto", clip_on=False)


def _in_lines(text: str, letters: int) -> str:
    """A text with each of its lines wrapped to so many letters, `LINES` at most."""
    lines = []
    find_fonts(text)
    for line in map(texts.printable, text.split("\n")):
        wide = any(unicodedata.east_asian_width(letter) in "WF" for letter in line)  # twice as broad
        loose = re.sub(r"(?<=[/_])(?=\w)", " ", line)  # long names part there
        parts = textwrap.wrap(loose, letters // 2 if wide else letters)
        lines += [re.sub(r"(?<=[/_]) (?=\w)", "", part) for part in parts]
    return "\n".join(lines if len(lines) <= LINES else [*lines[: LINES - 1], "…"])
