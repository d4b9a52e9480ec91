"""Figures of 08: what the settings of a sweep do, what accuracy costs, and what more photos would bring."""

import re
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fruitlib.evaluation import study
from fruitlib.evaluation.effects import noise_of, pareto_front
from fruitlib.evaluation.effects_wording import COST_NAMES, learning_curve_text, measure_name, measure_scale
from fruitlib.evaluation.learning_curve import LearningCurve
from fruitlib.reporting.labels import find_fonts, label
from fruitlib.reporting.style import COLOURS, drawing, keep_table

SIGNIFICANT_COLOUR, OTHER_COLOUR, LINE_COLOUR = COLOURS["train"], "#8c8c8c", "#333333"
DOT_COLOUR, BEST_COLOUR = COLOURS["train"], COLOURS["train"]
MAX_ROWS, MAX_VALUES, MAX_NAMES = 24, 8, 6
MAX_SETTINGS, MAX_WORDS, MAX_CURVES = 12, 20, 6  # panels, values that are words in a panel, learning curves
LOG_RATIO = 30  # highest over lowest value, from which an axis is logarithmic


@drawing
def forest(effects: pd.DataFrame) -> Figure:
    """Effects, a panel per measure, from `effects.main_effects`; blue where significant.

    The thin line is the 95 % interval for new groups and seeds, the thick one for other seeds on these photos; time and
    epochs have the thick one alone. The 24 questions with the smallest p are shown where there are more; without an
    interval a question has a dot alone.
    """
    measures = list(dict.fromkeys(effects["measure"]))
    asked = effects[["setting", "from", "to"]].itertuples(index=False)
    name = [_wrapped(f"{setting}: {to} over {start}", 44) for setting, start, to in asked]
    table = effects.assign(name=name)
    rows = list(dict.fromkeys(table.sort_values("p", kind="stable")["name"]))[:MAX_ROWS]
    rows = [row for row in dict.fromkeys(name) if row in rows]
    figure, axes = plt.subplots(
        1, len(measures), figsize=(2.6 + 2.2 * len(measures), 1.5 + 0.42 * len(rows)), sharey=True, squeeze=False
    )
    keep_table(figure, effects.drop(columns="summary", errors="ignore"))
    for ax, measure in zip(axes[0], measures, strict=True):
        factor, unit = measure_scale(measure)
        for row in table[(table["measure"] == measure) & table["name"].isin(rows)].to_dict("records"):
            at, colour = rows.index(row["name"]), SIGNIFICANT_COLOUR if row["significant"] else OTHER_COLOUR
            ax.plot([factor * row["low"], factor * row["high"]], [at, at], color=colour, linewidth=1.5)
            seeds = [factor * row["seeds_low"], factor * row["seeds_high"]]
            ax.plot(seeds, [at, at], color=colour, linewidth=5, alpha=0.35, solid_capstyle="butt")
            ax.plot(factor * row["gain"], at, "o", color=colour)
        own = table[table["measure"] == measure]
        own = own.assign(low=own["low"].fillna(own["seeds_low"]), high=own["high"].fillna(own["seeds_high"]))
        _focus(ax, factor * own[["gain", "low", "high"]])
        ax.axvline(0, color=LINE_COLOUR, linewidth=1)
        ax.set(title=measure_name(measure), xlabel=f"difference, {unit}", ylim=(len(rows) - 0.5, -0.5))
    axes[0, 0].set_yticks(range(len(rows)), rows, fontsize=9)
    figure.tight_layout()
    handles = [plt.Line2D([], [], color=c, marker="o", linewidth=1.5) for c in (SIGNIFICANT_COLOUR, OTHER_COLOUR)]
    handles.append(plt.Line2D([], [], color=OTHER_COLOUR, linewidth=5, alpha=0.35))
    figure.legend(
        handles,
        ["significant", "not significant", "other seeds, these photos"],
        loc="upper left",
        ncols=3,
        frameon=False,
        bbox_to_anchor=(0, 0),
        fontsize=10,
    )
    return figure


def _focus(ax: Axes, table: pd.DataFrame) -> None:
    """Limits that one very wide interval, of two pairs say, does not stretch: it runs out of the picture."""
    gains, ends = table["gain"].abs().max(), table[["low", "high"]].abs().max(axis=1)
    reach = max(3 * gains, ends.median() * 1.5 if ends.notna().any() else 0, 1e-9)
    reach = min(reach, max(ends.max() if ends.notna().any() else gains, gains) * 1.1) or 1
    ax.set_xlim(-reach, reach)


@drawing
def means(results: pd.DataFrame, differs: Sequence[str], measure: str) -> Figure:
    """The mean of a measure for each value of each setting as a line, a dot per seed (or fold, or run).

    A setting with more than eight values that are numbers has a dot per run instead, on a log axis where they span
    more than a factor of 30. The first 12 settings are shown, and of values that are words the first 20.
    """
    every, replicates = study.compared_settings(differs), [name for name in differs if name in study.REPLICATES]
    settings = every[:MAX_SETTINGS]
    columns = min(3, len(settings))
    lines = -(-len(settings) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(3 * columns + 0.2, 2.9 * lines), sharey=True, squeeze=False)
    keep_table(figure, results[[name for name in ("run", *differs, measure) if name in results]])
    for ax, setting in zip(axes.flat, settings, strict=False):
        rows = results[results[measure].notna()]
        values = study.ordered_values(rows[setting])
        if len(values) > MAX_VALUES and (numbers := _numbers(rows[setting])) is not None:
            ax.plot(numbers, rows[measure], "o", color=DOT_COLOUR, alpha=0.6, markersize=5)
            _log_if_wide(ax, numbers)
        else:
            _means(ax, rows, replicates, setting, values, measure)
        ax.set_xlabel(_wrapped(setting, 30))
    for ax in axes.flat[len(settings) :]:
        ax.set_axis_off()
    unit = {study.CONVERGED: "epochs", "train_seconds": "seconds"}.get(measure, "validation " + measure_name(measure))
    for ax in axes[:, 0]:
        ax.set_ylabel(unit)
    title = measure_name(measure)
    title = f"{title[0].upper()}{title[1:]} by value: a dot per {replicates[0] if replicates else 'run'}, and the mean"
    title += f" ({len(settings)} of {len(every)} settings)" if len(settings) < len(every) else ""
    figure.suptitle(title, fontweight="bold", fontsize=12)
    figure.tight_layout()
    return figure


def _means(ax: Axes, rows: pd.DataFrame, replicates: list[str], setting: str, values: list[str], measure: str) -> None:
    kinds, values = rows[setting].map(study.value_text), values[:MAX_WORDS]
    for at, value in enumerate(values):
        own = rows[kinds == value]
        dots = own.groupby(replicates)[measure].mean() if replicates else own[measure]
        spread = np.linspace(-0.15, 0.15, len(dots)) if len(dots) > 1 else [0]
        ax.plot(at + np.asarray(spread), dots, "o", color=DOT_COLOUR, alpha=0.6, markersize=5)
        ax.plot([at - 0.28, at + 0.28], [own[measure].mean()] * 2, color=COLOURS["val"], linewidth=2.5)
    ax.set_xticks(range(len(values)), [_wrapped(value, max(7, 36 // len(values))) for value in values], fontsize=9)
    ax.set_xlim(-0.6, len(values) - 0.4)
    ax.grid(axis="x", visible=False)


@drawing
def parallel(results: pd.DataFrame, settings: Sequence[str], measure: str) -> Figure:
    """Parallel coordinates: a line per run through its values of the settings, coloured by its score, best on top.

    Numbers that span more than a factor of 30, and lr, are on a log axis; words are spaced evenly.
    """
    every, settings = settings, settings[:MAX_SETTINGS]
    rows = results[results[measure].notna()].sort_values(measure)
    scores = rows[measure].astype(float)
    places = {setting: _places(rows[setting], setting == "lr") for setting in settings}
    figure, ax = plt.subplots(figsize=(2.2 + (1.9 if len(settings) < 4 else 1.4) * len(settings), 4))
    keep_table(figure, results[[name for name in ("run", *settings, measure) if name in results]])
    norm = plt.Normalize(scores.min() - 1e-9, scores.max() + 1e-9)
    heights = np.column_stack([place for place, _ in places.values()] + [norm(scores)])
    jitter = np.random.default_rng(0).uniform(-0.02, 0.02, heights.shape) * [*[1] * len(settings), 0]
    for line, score in zip(heights + jitter, scores, strict=True):
        ax.plot(range(len(line)), line, color=plt.cm.viridis(0.9 * norm(score)), linewidth=1.6, alpha=0.85)
    for at, (_, ticks) in enumerate(places.values()):
        ax.axvline(at, color=LINE_COLOUR, linewidth=1)
        for height, word in ticks:
            ax.text(
                at - 0.04,
                height,
                _wrapped(word, 16),
                ha="right",
                va="center",
                fontsize=9,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8},
            )
    ax.set_xticks(
        range(len(settings) + 1), [*(_wrapped(setting, 16) for setting in settings), measure_name(measure)], fontsize=10
    )
    ax.axvline(len(settings), color=LINE_COLOUR, linewidth=1)
    some = f" ({len(settings)} of {len(every)} settings)" if len(settings) < len(every) else ""
    for height in (0, 0.5, 1):
        ax.text(len(settings) + 0.04, height, f"{norm.inverse(height):.3f}", va="center", fontsize=9)
    ax.set(
        yticks=[],
        xlim=(-0.75, len(settings) + 0.4),
        ylim=(-0.06, 1.06),
        title=f"{len(rows)} runs, a line each: the lighter, the better{some}",
    )
    ax.grid(visible=False)
    for side in ax.spines.values():
        side.set_visible(False)
    figure.tight_layout()
    return figure


def _places(values: pd.Series, log: bool) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Where values stand on an axis from 0 to 1, and its ticks: all of up to 8, else the ends and the middle."""
    names, numbers = study.ordered_values(values), _numbers(values)
    if numbers is None:
        heights = {value: (i + 0.5) / len(names) for i, value in enumerate(names)}
        chosen = names if len(names) <= 12 else names[:: -(-len(names) // 12)]
        return values.map(study.value_text).map(heights).to_numpy(float), [(heights[v], v) for v in chosen]
    log = bool(numbers.min() > 0 and (log or numbers.max() / numbers.min() > LOG_RATIO))
    at = np.log(numbers) if log else numbers
    low, span = at.min(), np.ptp(at) or 1
    if len(names) <= MAX_VALUES:
        ticks = [float(value) for value in names]
    else:
        ticks = [np.exp(low + span * f) if log else low + span * f for f in (0, 0.5, 1)]
    heights = [((np.log(t) if log else t) - low) / span for t in ticks]
    words = names if len(names) <= MAX_VALUES else [f"{t:.2g}" for t in ticks]
    kept, last = [], -1.0
    for height, word in zip(heights, words, strict=True):  # numbers that lie close together share a place
        if height - last >= 0.05:
            kept.append((height, word))
            last = height
    return (at - low) / span, kept


@drawing
def importances(table: pd.DataFrame) -> Axes:
    """Optuna's importances as bars, from `effects.load_importances`; the 24 greatest."""
    table = table.sort_values("importance", ascending=False, kind="stable").head(MAX_ROWS)
    figure, ax = plt.subplots(figsize=(6.5, 1.2 + 0.38 * len(table)))
    keep_table(figure, table)
    bars = ax.barh([_wrapped(k, 34) for k in table["setting"]], table["importance"], color=DOT_COLOUR, height=0.6)
    ax.bar_label(bars, [f"{v:.2f}" for v in table["importance"]], padding=4, fontsize=9)
    ax.set(
        title="Share of the scores' variance, by Optuna",
        xlabel="importance",
        xlim=(0, 1.15 * max(table["importance"].max(), 1e-9)),
    )
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    return ax


@drawing
def trade_off(results: pd.DataFrame, costs: Sequence[str]) -> Figure:
    """Accuracy with its 95 % interval against each cost; runs on the Pareto front in blue, named below.

    Args:
        results: a row per run with run, accuracy, accuracy_low, accuracy_high, n and the costs.
    """
    columns = min(2, len(costs))
    lines = -(-len(costs) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(6.8 if columns == 1 else 9.2, 3.6 * lines), sharey=True, squeeze=False
    )
    keep_table(figure, results[["run", "accuracy", "accuracy_low", "accuracy_high", "n", *costs]])
    results, letters = results[results["accuracy"].notna()], {}
    for ax, cost in zip(axes.flat, costs, strict=False):
        _front(ax, results[results[cost].notna()], cost, letters)
        ax.set(xlabel=COST_NAMES.get(cost, cost), ylabel="validation accuracy")
    for ax in axes.flat[len(costs) :]:
        ax.set_axis_off()
    n = results["n"].astype(int)
    photos = f"n = {n.min()}" if n.min() == n.max() else f"n = {n.min()} to {n.max()}"
    figure.suptitle(
        f"What accuracy costs, {photos}; blue: no run is cheaper and better", fontweight="bold", fontsize=12
    )
    figure.tight_layout()
    names = "\n".join(_wrapped(f"{letter}  {run}", 66 * columns) for run, letter in letters.items())
    figure.text(0.02, 0, names, fontsize=9, va="top")
    return figure


def _front(ax: Axes, rows: pd.DataFrame, cost: str, letters: dict[str, str]) -> None:
    """One cost; runs on its front get a letter, the same one in every panel."""
    best = pareto_front(rows[cost], rows["accuracy"], noise_of(cost))
    for row, on in zip(rows.to_dict("records"), best, strict=True):
        low, high = row["accuracy_low"], row["accuracy_high"]
        ax.plot(
            [row[cost]] * 2, [low, high], color=BEST_COLOUR if on else "#c4c4c4", linewidth=1.5, zorder=2 if on else 1
        )
        ax.plot(row[cost], row["accuracy"], "o", color=BEST_COLOUR if on else OTHER_COLOUR, zorder=3 if on else 2)
    front = rows[best].sort_values([cost, "accuracy"])
    ax.step(front[cost], front["accuracy"], where="post", color=BEST_COLOUR, linewidth=1, linestyle="--")
    _log_if_wide(ax, rows[cost])
    ax.margins(x=0.12, y=0.08)
    alike = front.drop_duplicates([cost, "accuracy"])
    chosen = np.unique(np.linspace(0, len(alike) - 1, MAX_NAMES).round().astype(int)) if len(alike) else []
    for row in alike.iloc[chosen].to_dict("records"):
        letter = letters.setdefault(row["run"], _letter(len(letters)))
        place = {"xytext": (6, 4), "textcoords": "offset points", "fontsize": 10, "fontweight": "bold"}
        ax.annotate(letter, (row[cost], row["accuracy"]), color=BEST_COLOUR, **place)


def _letter(number: int) -> str:
    return chr(65 + number % 26) + (str(number // 26) if number >= 26 else "")


@drawing
def learning_curves(curves: Sequence[LearningCurve], measure: str) -> Figure:
    """A panel per `LearningCurve`, of 6 at most: seeds as dots, means, the fit, and its band beyond the data."""
    every, curves = len(curves), curves[:MAX_CURVES]
    wide = 6 if len(curves) == 1 else 4.6
    figure, axes = plt.subplots(1, len(curves), figsize=(wide * len(curves), 3.9), sharey=True, squeeze=False)
    keep_table(figure, pd.concat([curve.points.assign(of=curve.class_name or "all classes") for curve in curves]))
    for ax, curve in zip(axes[0], curves, strict=True):
        points, line = curve.points, curve.line
        ax.plot(points["photos"], points["score"], "o", color=DOT_COLOUR, alpha=0.6, markersize=5, label="a seed")
        mean = points.groupby("photos")["score"].mean()
        ax.plot(mean.index, mean, "_", color=COLOURS["val"], markersize=16, markeredgewidth=2.5, label="mean")
        if curve.extrapolated:
            ax.plot(line["photos"], line["score"], color=LINE_COLOUR, linewidth=1.5, label="a + b n^-c, fitted")
            ax.fill_between(line["photos"], line["low"], line["high"], color=LINE_COLOUR, alpha=0.15, linewidth=0)
            ax.axvline(points["photos"].max(), color=LINE_COLOUR, linewidth=1, linestyle=":", label="all photos")
        title = _wrapped(learning_curve_text(curve), 52)
        ax.set(
            title=title,
            xlabel=f"training photos{curve.class_name and f' of {label(curve.class_name)}'}",
            xlim=(0, None),
        )
    axes[0, 0].set_ylabel("validation " + measure_name(measure))
    axes[0, 0].legend(frameon=False, loc="lower right", fontsize=9)
    if len(curves) < every:
        figure.suptitle(f"{len(curves)} of {every:,} classes", fontsize=11)
    figure.tight_layout()
    return figure


def _numbers(values: pd.Series) -> np.ndarray | None:
    """Values as floats (n,); None where they are words, True and False, or missing."""
    if values.map(lambda value: isinstance(value, bool)).any():
        return None
    numbers = pd.to_numeric(values, errors="coerce")
    return numbers.to_numpy(float) if len(numbers) and numbers.notna().all() else None


def _log_if_wide(ax: Axes, numbers: Sequence[float]) -> None:
    low, high = np.min(numbers), np.max(numbers)
    if low > 0 and high / low > LOG_RATIO:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.12g}")  # 10^-3 needs math, which `style.use_style` turns off


def _wrapped(words: str, width: int) -> str:
    """Broken into lines after spaces, commas, `_` and `=`, so that names break between their parts."""
    words, lines = str(words), [""]
    find_fonts(words)
    for part in re.findall(r"[^_,= ]*[_,= ]+|[^_,= ]+", words):
        if lines[-1] and len(lines[-1] + part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)
