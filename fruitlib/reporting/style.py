"""Arrays in, `Axes` or a `Figure` out; one look for all notebooks (seaborn, a colour-blind-safe palette).

No figure is larger than a page can show, whatever the number of classes, and none stops a sweep (`drawing`). No text is
smaller than 9 points, and a figure that is meant to be seen whole is at most 9.2 inches wide: so the smallest letters
have 11 pixels on a page.
"""

import base64
import functools
import html
import logging
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from matplotlib.figure import Figure
from matplotlib.text import Text

from fruitlib.core import files
from fruitlib.core.errors import first_line
from fruitlib.reporting.labels import BASE, label

COLOURS = {"train": "#0072b2", "val": "#d55e00", "test": "#009e73"}  # Okabe and Ito 2008
COLOURS |= {"quarantined": "#888888", "set_aside": "#bbbbbb", "left_out": "#555555"}
ROWS = 40  # classes, or other names, that a figure has a row for
DOTS, SHARP = 100, 200  # pixels of a page per inch of a figure; pixels of a saved photograph: twice as many
MAX_SIDE, MAX_PIXELS = 8_000, 24_000_000  # of a saved figure
MAX_SVG = 1_500_000  # bytes; above it lines and dots become pixels, and text stays text
MAX_TABLE = 300_000  # characters of a figure's table that are kept beside it
LEAST_LETTER = 11  # pixels of the smallest letters of a figure as shown
TYPES = {".svg": "image/svg+xml", ".jpg": "image/jpeg", ".png": "image/png"}


def use_style() -> None:
    """The look of every figure: call once in a notebook's import cell."""
    sns.set_theme(style="whitegrid", context="notebook", palette="colorblind")
    plt.rcParams.update({"figure.dpi": DOTS, "axes.titleweight": "bold", "axes.titlesize": 12})
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "fruitlib"})  # text stays text: small, any script
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


def keep_table(figure: Figure, table: pd.DataFrame) -> None:
    """Keep the numbers that a figure shows: `save_figure` puts them into the notebook, and the page offers them."""
    figure.fruitlib_table = table


def save_figure(figure: Figure, path: Path) -> None:
    """Save a figure atomically, draw it once, and show that very picture below the cell.

    The name's ending says how: `.svg` for lines and text, which are sharp at any size; `.jpg` (or `.png`) for sheets of
    photographs, at two pixels for each of the page's. One that would have more than `MAX_SIDE` pixels a side, or
    `MAX_PIXELS` in all, is saved smaller. One that cannot be drawn is replaced by one that says why.
    """
    path = Path(path)
    with files.replacing(path) as partial:
        try:
            size = _save(figure, partial, path.suffix)
        except MemoryError:
            raise
        except Exception as problem:
            if files.is_disk_failure(problem):
                raise
            plt.close(figure)
            figure = _not_drawn(path.stem, problem)
            size = _save(figure, partial, path.suffix)
    plt.close(figure)
    if InteractiveShell.initialized():
        data, metadata = _shown(figure, path, *size)
        display(data, metadata=metadata, raw=True)


def leave_out(why: str, when: bool = True) -> None:
    """In a section that does not apply to this run or sweep: say why. Its page leaves the whole section out."""
    if when:
        display({"text/plain": why}, metadata={"fruitlib_absent": True}, raw=True)


def _save(figure: Figure, path: Path, kind: str) -> tuple[int, int]:
    """Write the picture; returns its width and height in pixels of a page."""
    if engine := figure.get_layout_engine():
        engine.execute(figure)
    box = figure.get_tightbbox().padded(plt.rcParams["savefig.pad_inches"])  # inches
    sides = np.array([box.width, box.height])
    if not (np.isfinite(sides).all() and (sides > 0).all()):
        raise ValueError(f"its size is {sides[0]:g} by {sides[1]:g} inches")
    dots = min(SHARP, *(MAX_SIDE / sides), np.sqrt(MAX_PIXELS / sides.prod()))
    how = {"bbox_inches": box, "dpi": dots, "format": kind[1:]}
    if kind == ".jpg":
        how["pil_kwargs"] = {"quality": 88, "subsampling": 0}  # coloured letters stay sharp
    if kind == ".svg":
        how["metadata"] = {"Date": None, "Creator": None}
    figure.savefig(path, **how)
    if kind == ".svg" and path.stat().st_size > MAX_SVG:
        for ax in figure.axes:
            ax.set_rasterization_zorder(2.4)  # bars, areas, lines; axes and words lie above
        figure.savefig(path, **how)
    if kind == ".svg":
        files.write_text(path, _for_readers(path.read_text("utf-8")))
    width, height = np.round(sides * min(DOTS, dots)).astype(int).tolist()
    return width, height


def _for_readers(svg: str) -> str:
    """An SVG with letters as wide as drawn (Verdana's are, where DejaVu is not installed), without what none sees."""
    svg = re.sub(r"<!--.*?-->|<!DOCTYPE[^>]*>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub(r">\s+<(?!/text|/tspan)", "><", svg).replace(f"'{BASE}'", f"'{BASE}', Verdana, sans-serif")


def _shown(figure: Figure, path: Path, width: int, height: int) -> tuple[dict, dict]:
    """A saved figure for Jupyter: data by type, and metadata, in which `fruitlib_figure` has what `page_figures` reads.

    An SVG stands in HTML, as a picture that runs nothing: by itself JupyterLab would hide it in a notebook that was
    not executed there, as a sweep's are.
    """
    titles = [figure.get_suptitle(), *(ax.get_title() for ax in figure.axes)]
    words = ", ".join(filter(None, titles))
    facts = {"name": path.stem, "alt": words, "width": width, "height": height}
    facts["least"] = min(width, _least_width(figure, width))
    table = getattr(figure, "fruitlib_table", None)
    if table is not None and len(text := files.csv_text(table, float_format="%.6g")) <= MAX_TABLE:
        facts["table"] = text
    kind, content = TYPES[path.suffix], base64.b64encode(path.read_bytes()).decode()
    if path.suffix == ".svg":
        look = f'alt="{html.escape(words)}" width="{width}" style="max-width: 100%"'
        data = {"text/html": f'<img src="data:{kind};base64,{content}" {look}>', "text/plain": f"Figure: {words}"}
        return data, {"fruitlib_figure": facts}
    return {kind: content}, {kind: {"width": width, "alt": words}, "fruitlib_figure": facts}


def _least_width(figure: Figure, width: int) -> int:
    """Pixels a figure must be wide for its smallest letters to be `LEAST_LETTER` high."""
    sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return round(width * LEAST_LETTER / (min(sizes, default=10) * DOTS / 72))


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
