"""05: a network as the file holds it, operator by operator, and the error that INT8 makes in each layer.

A row per operator, in the order of computing; activations stand with the operator before them. A result that is used
further down runs beside the rows. Where there are too many rows, those of a block of the network become one.
"""

from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import onnx
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fruitlib.deploy.int8_search import layer_label
from fruitlib.reporting.labels import label
from fruitlib.reporting.style import COLOURS, drawing, keep_table

ROWS = 60  # above it, blocks stand for their operators
AFTER = {"Relu", "Clip", "LeakyRelu", "HardSwish", "Gelu", "BatchNormalization", "Identity", "Reshape", "Flatten"}
INK, PALE = "#333333", "#8c8c8c"


@dataclass
class Row:
    """One operator, with the activations after it, or one block."""

    name: str  # of the layer in the network; "" where it has no weights
    words: list[str]
    after: set[int] = field(default_factory=set)  # rows whose results it takes
    error: float = np.nan  # dB of signal over INT8's error; of a block the lowest


@drawing
def network(file: Path, errors: dict[str, float]) -> Figure:
    """The network in an ONNX file from `images` to `logits`; `errors` are those of `int8_search.Search.layers`."""
    every = rows_of(onnx.load(file, load_external_data=False).graph, errors)
    rows = merged(every)
    figure, (ax, bars) = plt.subplots(1, 2, figsize=(9, 0.9 + 0.27 * len(rows)), sharey=True, width_ratios=(5, 2))
    _draw_rows(ax, rows)
    known = [place for place, row in enumerate(rows) if np.isfinite(row.error)]
    values = [rows[place].error for place in known]
    bars.barh(known, values, color=COLOURS["train"], height=0.6)
    for place, value in zip(known, values, strict=True):
        bars.annotate(
            f"{value:.0f}", (max(value, 0), place), (4, 0), textcoords="offset points", fontsize=9, va="center"
        )
    for place in (place for place, row in enumerate(rows) if row.error == -np.inf):
        bars.annotate("gives no numbers", (0, place), (4, 0), textcoords="offset points", fontsize=9, va="center")
    bars.set(xlabel="dB of signal over INT8's error", ylim=(len(rows) - 0.4, -0.6))
    bars.set_xlim(min([0, *values]), 1.2 * max([1, *values]))
    bars.tick_params(axis="x", labelsize=9)
    bars.xaxis.label.set_size(9)
    bars.grid(axis="y", visible=False)
    what = "the error of each layer" if len(rows) == len(every) else "the largest error in each block of layers,"
    figure.suptitle(f"The network, and {what} in INT8 alone", x=0.02, y=1, ha="left", fontsize=12)
    figure.subplots_adjust(left=0.02, right=0.99, top=1 - 0.35 / figure.get_figheight(), wspace=0.03)
    columns = {"layer": [row.name for row in rows], "operators": [", ".join(row.words) for row in rows]}
    keep_table(figure, pd.DataFrame(columns | {"dB": [row.error for row in rows]}))
    return figure


def rows_of(graph: onnx.GraphProto, errors: dict[str, float]) -> list[Row]:
    """The operators between `images` and `logits`, in their order, with the layer's error where it was measured."""
    shapes = {weights.name: list(weights.dims) for weights in graph.initializer}
    makers, rows = {}, []  # result -> row
    for node in _between(graph, "images", "logits"):
        sources = {makers[name] for name in node.input if name in makers}
        used_once = sum(name in other.input for other in graph.node for name in node.input if name in makers) == 1
        if node.op_type in AFTER and len(sources) == 1 and used_once:
            place = sources.pop()
            rows[place].words += [] if node.op_type in ("Identity", "Reshape", "Flatten") else [node.op_type]
        else:
            place = len(rows)
            rows.append(_row(node, shapes, sources, errors))
        makers |= dict.fromkeys(node.output, place)
    return rows


def _row(node: onnx.NodeProto, shapes: dict, sources: set[int], errors: dict[str, float]) -> Row:
    weights = next((name for name in node.input[1:2] if name in shapes and "weight" in name), "")
    words = node.op_type
    if weights:
        outputs, *rest = shapes[weights]
        window = "×".join(map(str, rest[1:]))
        words += f" {outputs}" + f", {window}" * bool(window)
    name = layer_label(node.name, weights) if weights else ""
    return Row(name, [words], sources, errors.get(name, errors.get(node.name, np.nan)))


def _between(graph: onnx.GraphProto, start: str, end: str) -> list[onnx.NodeProto]:
    """The operators that `end` needs and that need `start`; not what only counts photos."""
    reached, below = {start}, []
    for node in graph.node:
        if reached & set(node.input) and node.op_type != "Shape":
            reached |= set(node.output)
            below.append(node)
    needed, kept = {end}, []
    for node in reversed(below):
        if needed & set(node.output):
            needed |= set(node.input)
            kept.append(node)
    return kept[::-1]


def merged(rows: list[Row], most: int = ROWS) -> list[Row]:
    """The rows where there are at most so many; else consecutive rows of a block as one, of blocks as small as go."""
    deepest = max((row.name.count(".") for row in rows), default=0)
    for depth in range(deepest, 0, -1):
        if len(rows) <= most:
            break
        rows = _joined(rows, depth)
    return rows


def _joined(rows: list[Row], depth: int) -> list[Row]:
    """Rows whose names begin with the same `depth` parts as one; a row without a name belongs to the one before it."""
    blocks, places = [], []
    for row in rows:
        name = ".".join(row.name.split(".")[:depth])
        if not blocks or name not in ("", blocks[-1].name):
            blocks.append(Row(name, []))
        block = blocks[-1]
        places.append(len(blocks) - 1)
        block.words = [*block.words, *row.words]
        block.error = np.fmin(block.error, row.error)
        block.after |= {places[source] for source in row.after} - {places[-1]}
    return blocks


def _draw_rows(ax: Axes, rows: list[Row]) -> None:
    lanes: list[int] = []  # the last row of what runs in each lane beside the rows
    for place, row in enumerate(rows):
        ax.add_patch(plt.Rectangle((0, place - 0.36), 1, 0.72, facecolor="#eef3f6", edgecolor=PALE, linewidth=0.8))
        words = row.words if len(row.words) < 4 else [f"{len(row.words)} operators"]
        ax.text(0.015, place, label(row.name or ", ".join(words), 44), fontsize=9, va="center", color=INK)
        if row.name:
            ax.text(0.985, place, label(", ".join(words), 34), fontsize=9, va="center", ha="right", color="#5f5f5f")
        for source in sorted(row.after):
            if source == place - 1:
                ax.plot([0.5, 0.5], [source + 0.36, place - 0.36], color=INK, linewidth=1.2)
            else:
                _beside(ax, source, place, _lane(lanes, source, place))
    ax.set(xlim=(-0.03 - 0.035 * len(lanes), 1.01))
    ax.axis("off")


def _lane(lanes: list[int], start: int, end: int) -> int:
    """The nearest lane that is free from row `start` on; it is taken to row `end`."""
    free = next((lane for lane, last in enumerate(lanes) if last <= start), len(lanes))
    lanes[free:] = [end, *lanes[free + 1 :]]
    return free


def _beside(ax: Axes, start: int, end: int, lane: int) -> None:
    """A line that leaves row `start` to the left, goes down, and enters row `end`."""
    x = -0.035 * (lane + 1)
    ax.plot([0, x, x, 0], [start + 0.12, start + 0.12, end - 0.12, end - 0.12], color=COLOURS["val"], linewidth=1.2)
    ax.plot(-0.008, end - 0.12, ">", color=COLOURS["val"], markersize=4)
