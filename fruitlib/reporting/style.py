"""Arrays in, `Axes` or a `Figure` out; one look for all notebooks (seaborn, a colour-blind-safe palette).

No figure is larger than a page can show, whatever the number of classes, and none stops a sweep (`drawing`).
"""

import functools
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import Image, display
from matplotlib.figure import Figure

from fruitlib.core import files
from fruitlib.core.errors import first_line
from fruitlib.reporting.labels import BASE, label

COLOURS = {"train": "#0072b2", "val": "#d55e00", "test": "#009e73"}  # Okabe and Ito 2008
COLOURS |= {"quarantined": "#888888", "set_aside": "#bbbbbb", "left_out": "#555555"}
ROWS = 40  # classes, or other names, that a figure has a row for
MAX_SIDE, MAX_PIXELS = 8_000, 24_000_000  # of a saved figure


def use_style() -> None:
    """The look of every figure: call once in a notebook's import cell."""
    sns.set_theme(style="whitegrid", context="notebook", palette="colorblind")
    plt.rcParams.update({"figure.dpi": 100, "savefig.dpi": 100, "axes.titleweight": "bold", "axes.titlesize": 12})
    plt.rcParams["text.parse_math"] = False  # a $ in a class name is a $
    plt.rcParams["font.family"] = [BASE]  # `labels` adds others as names need them
    warnings.filterwarnings("ignore", "Glyph .* missing from font")  # `labels` says it once, and what to install
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


def drawing(function: Callable) -> Callable:
    """A figure that cannot be drawn becomes one that says why, and a line is printed; the notebook goes on.

    MemoryError, a disk that is full, and interruption pass.
    """

    @functools.wraps(function)
    def drawn(*arguments, **options):
        before = set(plt.get_fignums())
        try:
            return function(*arguments, **options)
        except MemoryError:
            raise
        except Exception as problem:
            if files.is_disk_failure(problem):
                raise
            for number in set(plt.get_fignums()) - before:
                plt.close(number)
            return _not_drawn(function.__name__, problem)

    return drawn


def _not_drawn(name: str, problem: Exception) -> Figure:
    """A figure that says why there is no other one."""
    reason = f"{type(problem).__name__}: {first_line(problem)}"
    print(f"figure {name} could not be drawn: {reason}", file=sys.stderr)
    figure = plt.figure(figsize=(8, 1))
    words = f"This figure could not be drawn ({label(name)}).\n{label(reason, 110)}"
    figure.text(0.01, 0.5, words, va="center", fontsize=10, color="#666666", parse_math=False)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Save as PNG, atomically, and show that very picture below the cell, so that a figure is drawn once, not twice.

    One that would have more than `MAX_SIDE` pixels a side, or `MAX_PIXELS` in all, is saved smaller. One that cannot be
    drawn is replaced by one that says why.
    """
    with files.replacing(path) as partial:
        try:
            _save(figure, partial)
        except MemoryError:
            raise
        except Exception as problem:
            if files.is_disk_failure(problem):
                raise
            plt.close(figure)
            figure = _not_drawn(Path(path).stem, problem)
            _save(figure, partial)
    plt.close(figure)
    if InteractiveShell.initialized():
        titles = [figure.get_suptitle(), *(ax.get_title() for ax in figure.axes)]
        display(Image(filename=path, alt=", ".join(filter(None, titles)) or None))


def _save(figure: Figure, path: Path) -> None:
    figure.draw_without_rendering()
    box = figure.get_tightbbox().padded(plt.rcParams["savefig.pad_inches"])  # inches
    sides = np.array([box.width, box.height])
    if not (np.isfinite(sides).all() and (sides > 0).all()):
        raise ValueError(f"its size is {sides[0]:g} by {sides[1]:g} inches")
    dots = min(plt.rcParams["savefig.dpi"], *(MAX_SIDE / sides), np.sqrt(MAX_PIXELS / sides.prod()))
    figure.savefig(path, bbox_inches=box, dpi=dots)


def row_height(rows: int, each: float) -> float:
    """Inches of so many rows of a chart: `each` where there are few, less for every one beyond twelve."""
    return each * min(rows, 12) + min(each, 0.3) * max(rows - 12, 0)


def largest_and_smallest(sizes: np.ndarray, at_most: int = ROWS) -> np.ndarray:
    """Places of the largest and of the smallest half as many values each, in their order; all where there are few."""
    if len(sizes) <= at_most:
        return np.arange(len(sizes))
    order = np.argsort(-np.asarray(sizes), kind="stable")
    return np.sort(np.concatenate([order[: at_most // 2], order[-(at_most // 2) :]]))


def greatest(values: np.ndarray, at_most: int = ROWS) -> np.ndarray:
    """Places of the greatest values, in their order; a NaN is the least."""
    order = np.argsort(-np.nan_to_num(np.asarray(values, float), nan=-np.inf), kind="stable")
    return np.sort(order[:at_most])


def spread(count: int, at_most: int) -> list[int]:
    """At most so many places out of `count`, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, at_most)).round().astype(int)).tolist() if count else []
