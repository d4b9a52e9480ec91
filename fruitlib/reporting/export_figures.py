"""Figures of 05: what a file costs in size and time."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from fruitlib.reporting.style import drawing


@drawing
def cost_bars(values: dict[str, float], title: str, xlabel: str, spread: dict[str, tuple] | None = None) -> Axes:
    """One bar a backend (size, latency); `spread` gives (low, high) for an error bar."""
    _, ax = plt.subplots(figsize=(6.5, 1.1 + 0.45 * len(values)))
    heights = list(values.values())
    errors = None
    if spread:
        errors = np.array([[v - spread[k][0], spread[k][1] - v] for k, v in values.items()]).T
    bars = ax.barh(list(values), heights, color="#0072b2", height=0.6, xerr=errors, ecolor="#555555")
    ax.bar_label(bars, [f"{v:.2f}" for v in heights], padding=6, fontsize=10)
    longest = max([*heights, *(high for _, high in (spread or {}).values())])
    ax.set(title=title, xlabel=xlabel, xlim=(0, longest * 1.2))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    return ax
