"""Figures of 05: what a file costs in size and time, and where INT8 loses."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from fruitlib.core.texts import shortened
from fruitlib.reporting.style import drawing, keep_table


@drawing
def cost_bars(values: dict[str, float], title: str, xlabel: str, spread: dict[str, tuple] | None = None) -> Axes:
    """One bar a backend (size, latency); `spread` gives (low, high) for an error bar."""
    figure, ax = plt.subplots(figsize=(6.5, 1.1 + 0.45 * len(values)))
    heights = list(values.values())
    table = pd.DataFrame({"file": list(values), xlabel: heights})
    ends = {end: [pair[n] for pair in spread.values()] for n, end in enumerate(("low", "high"))} if spread else {}
    keep_table(figure, table.assign(**ends))
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


@drawing
def layer_bars(errors: dict[str, float], most: int = 20) -> Axes:
    """The signal-to-noise ratio in dB of the `most` layers that INT8 computes worst, the worst on top."""
    worst = dict(sorted(errors.items(), key=lambda item: item[1])[:most])
    figure, ax = plt.subplots(figsize=(8, 1.3 + 0.32 * max(1, len(worst))))
    keep_table(figure, pd.DataFrame(sorted(errors.items(), key=lambda item: item[1]), columns=["layer", "dB"]))
    bars = ax.barh([shortened(name, 44) for name in worst], list(worst.values()), color="#0072b2", height=0.65)
    ax.bar_label(bars, [f"{value:.0f}" for value in worst.values()], padding=6, fontsize=10)
    ends = [0, *worst.values()]
    ax.set_xlim(1.1 * min(ends), 1.1 * max(ends) or 1)
    ax.set_xlabel("dB of signal over INT8's error; 10 dB more is a tenth of the error's power")
    ax.set_title(f"The {len(worst)} layers of {len(errors)} that INT8 computes worst")
    ax.tick_params(axis="y", labelsize=9)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    return ax
