"""Arrays in, `Axes` or a `Figure` out; one look for all notebooks (seaborn, a colour-blind-safe palette)."""

import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import seaborn as sns
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import Image, display
from matplotlib.figure import Figure

from fruitlib.core import files

COLOURS = {"train": "#0072b2", "val": "#d55e00", "test": "#009e73"}  # Okabe and Ito 2008
COLOURS |= {"quarantined": "#888888", "left_out": "#555555"}


def use_style() -> None:
    """The look of every figure: call once in a notebook's import cell."""
    sns.set_theme(style="whitegrid", context="notebook", palette="colorblind")
    fonts = ["Noto Sans CJK KR", "NanumGothic", "Malgun Gothic", "AppleGothic"]  # class names may be Korean
    plt.rcParams.update({"figure.dpi": 100, "savefig.dpi": 100, "axes.titleweight": "bold", "axes.titlesize": 12})
    warnings.filterwarnings(
        "ignore", "Glyph .* missing from font"
    )  # it is shown as an empty box; the warning adds nothing
    plt.rcParams["text.parse_math"] = False  # a $ in a class name is a $
    plt.rcParams["font.family"] = ["DejaVu Sans", *[name for name in fonts if _installed(name)]]


def _installed(font: str) -> bool:
    from matplotlib import font_manager

    return any(entry.name == font for entry in font_manager.fontManager.ttflist)


def save_figure(figure: Figure, path: Path) -> None:
    """Save as PNG, atomically, and show that very picture below the cell, so that a figure is drawn once, not twice."""
    with files.replacing(path) as partial:
        figure.savefig(partial, bbox_inches="tight")
    plt.close(figure)
    if InteractiveShell.initialized():
        titles = [figure.get_suptitle(), *(ax.get_title() for ax in figure.axes)]
        display(Image(filename=path, alt=", ".join(filter(None, titles)) or None))
