"""Figures of how far predictions can be trusted: arrays in, `Axes` or a `Figure` out, in the look of `style`.

probs are (n, C), labels class indexes (n,), right booleans (n,).
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fruitlib.evaluation import calibration, intervals, metrics
from fruitlib.evaluation.answering import Answering
from fruitlib.evaluation.intervals import Share
from fruitlib.evaluation.wording import plural_of
from fruitlib.reporting.labels import label
from fruitlib.reporting.labels import labels as named
from fruitlib.reporting.style import COLOURS, ROWS, drawing, greatest, keep_table, row_height

MARKS = ("-", "--", "-.", ":")  # besides its colour, by which a class's line is known
INKS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")  # Okabe and Ito 2008
GROUPS = 30  # shown, at most
BARS, CURVES, LISTED = 20, 8, 7  # classes with bars, with curves, in a legend by colour
NUMBERS, CELLS, PAIRS = 20, 60, 30  # classes of a matrix with numbers, and of one without; pairs in place of one


@drawing
def scores(rows: dict[str, tuple[float, float, float]], title: str, xlabel: str) -> Axes:
    """Named numbers with their intervals (value, low, high), one a row; no line where an interval is NaN."""
    figure, ax = plt.subplots(figsize=(8, 1.1 + 0.5 * len(rows)))
    numbers = pd.DataFrame(rows.values(), columns=["value", "low", "high"])
    keep_table(figure, numbers.assign(of=list(rows))[["of", "value", "low", "high"]])
    for row, (name, (value, low, high)) in enumerate(rows.items()):
        colour = "#666666" if "baseline" in name else COLOURS["val"]
        ax.plot([low, high], [row, row], color=colour, linewidth=2)
        ax.plot(value, row, "o", color=colour)
        ax.annotate(f"{value:.3f}", (value, row), xytext=(0, 7), textcoords="offset points", fontsize=9, ha="center")
    ax.set(title=title, xlabel=xlabel, xlim=(-0.03, 1.05), ylim=(len(rows) - 0.5, -0.8))
    ax.set(yticks=range(len(rows)), yticklabels=named(rows, 48))
    return ax


@drawing
def shares(rows: dict[str, Share], title: str, word: str = "group") -> Axes:
    """Named shares, one a row: a thin line for new groups (new photos, where none belong together), and a thick one for
    more photos of the same groups; `word` is what a group is called."""
    figure, ax = plt.subplots(figsize=(8, 1.2 + 0.55 * len(rows)))
    keep_table(figure, pd.DataFrame([{"of": name} | _share_row(share) for name, share in rows.items()]))
    for row, share in enumerate(rows.values()):
        if share.groups:
            same = [share.same_low, share.same_high]
            ax.plot(same, [row, row], color=COLOURS["test"], linewidth=6, alpha=0.4, solid_capstyle="butt")
        _share(ax, row, share, COLOURS["test"])
    groups = max((share.groups for share in rows.values()), default=0)
    of = f"new {plural_of(word)}; thick: these {plural_of(word)}" if groups else "new photos"
    ax.set(title=title, xlabel=f"accuracy, with 95 % interval: {of}", ylim=(len(rows) - 0.5, -0.7))
    ax.set(yticks=range(len(rows)), yticklabels=named(rows, 48), xlim=(-0.02, 1.02))
    return ax


@drawing
def reliability(
    probs: np.ndarray, labels: np.ndarray, scaled: np.ndarray | None = None, weights: np.ndarray | None = None
) -> Figure:
    """Accuracy against confidence in bins, with Wilson intervals, and how many photos each bin has.

    On the diagonal, 0.9 means right nine times in ten; below it the model is overconfident. `scaled` adds the same
    after temperature scaling. `weights` (n,) weigh photos to the class shares where the model is used.
    """
    figure, (ax, below) = plt.subplots(2, 1, figsize=(6, 5.6), sharex=True, height_ratios=(3, 1))
    ax.plot([0, 1], [0, 1], color="#777777", linewidth=1, linestyle=":", label="as sure as right")
    shown, numbers = {"as it is": (probs, COLOURS["val"], "o", -0.006)}, []
    if scaled is not None:
        shown["temperature scaled"] = (scaled, COLOURS["train"], "s", 0.006)
    for name, (values, colour, mark, shift) in shown.items():
        weight, confidence, right, squares = calibration.reliability_bins(values, labels, weights)
        there = weight > 0
        x, y = confidence[there] / weight[there] + shift, right[there] / weight[there]
        worth = weight[there] ** 2 / squares[there]  # photos of one weight that say as much
        ends = [metrics.wilson_share(*pair) for pair in zip(y, worth, strict=True)]
        bins = {"confidence": confidence[there] / weight[there], "right": y, "weight of photos": weight[there]}
        bins |= {"right low": [low for low, _ in ends], "right high": [high for _, high in ends]}
        numbers.append(pd.DataFrame(bins).assign(of=name))
        ax.vlines(x, *np.transpose(ends), color=colour, linewidth=1.5, alpha=0.7)
        ax.plot(x, y, mark, color=colour, label=name)
        edges = np.linspace(0, 1, calibration.BINS + 1)
        below.hist(values.max(1), edges, color=colour, alpha=0.55 if scaled is not None else 1)
    ax.set(ylabel="share that is right", ylim=(-0.03, 1.05), title="Is it as sure as it is right?")
    ax.legend(frameon=True, loc="upper left", fontsize=9)
    below.set(xlabel="confidence: probability of the predicted class", ylabel="photos", xlim=(0, 1.02))
    below.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    figure.subplots_adjust(hspace=0.12)
    keep_table(figure, pd.concat(numbers))
    return figure


@drawing
def risk_coverage(alone: Answering) -> Axes:
    """Share wrong, with its 95 % upper bound, over the share answered, the most confident photos first.

    The dotted line is the share wrong that is allowed; a vertical line marks the threshold that is proven.
    """
    curve, (figure, ax) = alone.curve, plt.subplots(figsize=(7, 4))
    answered = curve["photos"] / alone.n
    keep_table(figure, pd.DataFrame({name: curve[name] for name in ("photos", "wrong", "bound")}))
    ax.fill_between(answered, curve["wrong"] / curve["photos"], curve["bound"], color=COLOURS["val"], alpha=0.18)
    ax.plot(answered, curve["bound"], color=COLOURS["val"], linewidth=1, label="95 % upper bound")
    ax.plot(answered, curve["wrong"] / curve["photos"], color=COLOURS["val"], label="wrong here")
    ax.axhline(alone.max_error, color="#777777", linestyle=":", label=f"allowed: {alone.max_error:.0%}")
    if alone.proven:
        label = f"answers above {alone.above:.3g}: {alone.answered:.0%}"
        ax.axvline(alone.answered, color=COLOURS["test"], linewidth=1.5, label=label)
    top = max(4 * alone.max_error, 1.3 * float((curve["wrong"] / curve["photos"]).max()))
    ax.set(xlim=(0, 1.02), ylim=(0, min(top, 1.02)), xlabel="share of photos answered, the most confident first")
    ax.set(ylabel="share of them that is wrong", title="How often is it wrong when it answers alone?")
    ax.legend(frameon=True, fontsize=9, loc="best")
    return ax


@drawing
def threshold_curves(curves: dict[str, dict]) -> Figure:
    """ROC, precision over recall, and both rates over the threshold, per class, from `calibration.threshold_curves`.

    Of more than 8 classes, the 8 with the lowest average precision.
    """
    names = list(curves)
    shown = [names[place] for place in greatest([-curve["ap"] for curve in curves.values()], CURVES)]
    figure, (roc, pr, over) = plt.subplots(1, 3, figsize=(9.2, 3.6))
    keep_table(figure, pd.concat([_threshold_rows(key, curves[key]) for key in shown]))
    for number, key in enumerate(shown):
        curve, name, threshold = curves[key], label(key, 24), curves[key]["threshold"]
        colour, steps = INKS[number % len(INKS)], {"drawstyle": "steps-pre"}
        style = {"color": colour, "linestyle": MARKS[number % len(MARKS)], "linewidth": 2}
        roc.plot(curve["false_alarms"], curve["recall_roc"], label=f"{name}, AUC {curve['auc']:.2f}", **style)
        pr.plot(curve["recall"], curve["precision"], label=f"{name}, AP {curve['ap']:.2f}", **steps, **style)
        over.plot(threshold, curve["recall"][:-1], color=colour, label=f"{name}: recall", **steps)
        over.plot(threshold, curve["precision"][:-1], color=colour, linestyle="--", alpha=0.8, **steps)
    roc.plot([0, 1], [0, 1], color="#777777", linewidth=1, linestyle=":")
    roc.set(title="ROC", xlabel="share of the others called it", ylabel="recall")
    pr.set(title="Precision and recall", xlabel="recall", ylabel="precision")
    over.set(title="Over the threshold", xlabel="least probability to be called it", ylabel="recall —, precision --")
    for ax in (roc, pr, over):
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.04))
    handles, words = roc.get_legend_handles_labels()
    words = [f"{w}, AP {curves[key]['ap']:.2f}" for w, key in zip(words, shown, strict=True)]
    figure.legend(handles, words, loc="upper left", bbox_to_anchor=(0.02, 0), ncols=3, fontsize=9, frameon=False)
    if len(shown) < len(curves):
        figure.suptitle(f"The {len(shown)} of {len(curves):,} classes with the lowest average precision", fontsize=11)
    figure.subplots_adjust(left=0.06, right=0.99, bottom=0.15, top=0.88, wspace=0.27)
    return figure


def _threshold_rows(name: str, curve: dict) -> pd.DataFrame:
    """The points of a class's curves over the threshold."""
    points = {"threshold": curve["threshold"], "recall": curve["recall"][:-1], "precision": curve["precision"][:-1]}
    return pd.DataFrame(points).assign(**{"class": name})


@drawing
def by_group(table: pd.DataFrame) -> Axes:
    """A dot for every group: the share of its photos that are right, with its Wilson interval; worst first.

    `table` has a row per group: label, right, n; its index names them. 30 at most are shown. Colour shows
    their classes; of more than 7, names do.
    """
    shown = table.head(GROUPS)
    classes = list(dict.fromkeys(sorted(shown["label"])))
    few = len(classes) <= LISTED
    colours = dict(zip(classes, INKS, strict=False)) if few else dict.fromkeys(classes, INKS[0])
    figure, ax = plt.subplots(figsize=(6.6, 1.2 + 0.27 * len(shown)))
    keep_table(figure, table[["label", "right", "n"]].rename_axis("group").reset_index())
    for row, (right, n, name) in enumerate(zip(shown["right"], shown["n"], shown["label"], strict=True)):
        ax.plot(metrics.wilson(int(right), int(n)), [row, row], color=colours[name], linewidth=1.5, alpha=0.6)
        ax.plot(right / n, row, "o", color=colours[name], markersize=5)
        ax.annotate(f"{right}/{n}", (1.02, row), xycoords=("axes fraction", "data"), fontsize=9, va="center")
    names = [label(name if len(str(name)) < 28 else f"…{str(name)[-26:]}") for name in shown.index]
    if not few:
        names = [f"{name} ({label(of, 20)})" for name, of in zip(names, shown["label"], strict=True)]
    else:
        for name in classes:
            ax.plot([], [], "o-", color=colours[name], label=label(name))
        ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.1, 1))
    ax.set(yticks=range(len(shown)), yticklabels=names, ylim=(len(shown) - 0.4, -0.6), xlim=(-0.02, 1.02))
    ax.tick_params(axis="y", labelsize=9)
    more = f", the worst {GROUPS} of {len(table):,}" if len(table) > GROUPS else ""
    ax.set(
        title=f"Right by group{more}", xlabel="share of the group's photos that are right, with 95 % Wilson interval"
    )
    return ax


TRUTH = {"tp": "#0072b2", "fn": "#d55e00", "fp": "#e69f00"}
LONG = {"tp": "true positive", "fn": "false negative", "fp": "false positive", "tn": "true negative"}


@drawing
def class_counts(matrix: np.ndarray, class_names: list[str]) -> Axes:
    """TP, FN and FP per class as bars; TN, many times larger, is in the table beside.

    Of more than 20 classes, the 20 with the most errors.
    """
    counts = metrics.counts(matrix)
    shown = greatest(counts["fn"] + counts["fp"], BARS)
    many = len(shown) > 8
    table = pd.DataFrame({LONG[k]: counts[k][shown] for k in TRUTH}).rename_axis("class").reset_index()
    wide, table = table, table.melt(id_vars="class", var_name="kind", value_name="photos")
    figure, ax = plt.subplots(figsize=(1.6 + (0.65 if many else 1.7) * len(shown), 3.4))
    keep_table(figure, wide)
    sns.barplot(table, x="class", y="photos", hue="kind", palette=list(TRUTH.values()), ax=ax)
    for bars in ax.containers:
        ax.bar_label(bars, fontsize=9, rotation=90 if many else 0, padding=2)
    names = named((class_names[place] for place in shown), 24 if many else 18)
    turned = {"rotation": 40, "ha": "right", "rotation_mode": "anchor", "fontsize": 9} if many else {}
    ax.set_xticks(range(len(shown)), names, **turned)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    some = (
        f": the {len(shown)} of {len(class_names):,} classes with most errors" if len(shown) < len(class_names) else ""
    )
    ax.set(title=f"Right, missed, and wrongly claimed{some}", xlabel="", ylabel="photos")
    ax.legend(title="", frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


@drawing
def class_rates(
    labels: np.ndarray, predicted: np.ndarray, class_names: list[str], groups: list[str], word: str = "group"
) -> Figure:
    """Precision, recall and miss rate per class, each with its 95 % interval for new groups; F1 as a point.

    Of more than 40 classes, the 40 with the lowest F1.
    """
    rates = metrics.rates(metrics.confusion_matrix(labels, predicted, len(class_names)))
    shown = greatest(-rates["f1"], ROWS)
    groups, right = np.asarray(groups, object), labels == predicted
    of = {"precision": (predicted, right), "recall": (labels, right), "miss_rate": (labels, ~right)}
    figure, axes = plt.subplots(1, 4, figsize=(9.2, 1.3 + row_height(len(shown), 0.55)), sharey=True)
    numbers = pd.DataFrame({"class": [class_names[place] for place in shown], "f1": rates["f1"][shown]})
    for ax, (name, (belongs, counted)) in zip(axes, of.items(), strict=False):
        found = [intervals.share_of(counted[belongs == one], groups[belongs == one]) for one in shown]
        for row, share in enumerate(found):
            _share(ax, row, share)
        columns = pd.DataFrame(map(_share_row, found)).add_prefix(f"{name} ")
        numbers = pd.concat([numbers, columns], axis=1)
        ax.set_title(name.replace("_", " "))
    axes[-1].plot(rates["f1"][shown], range(len(shown)), "o", color=COLOURS["val"])
    for row, value in enumerate(rates["f1"][shown]):
        place = {"xytext": (0, 7), "textcoords": "offset points", "fontsize": 9, "ha": "center"}
        axes[-1].annotate(f"{value:.2f}", (value, row), **place)
    axes[-1].set_title("F1")
    names = named(class_names[place] for place in shown)
    for ax in axes:
        ax.set(xlim=(-0.06, 1.06), yticks=range(len(shown)), yticklabels=names, ylim=(len(shown) - 0.4, -0.7))
        ax.set_xticks([0, 0.5, 1])
    of_new = plural_of(word) if any(groups != "") else "photos"
    some = (
        f"; the {len(shown)} of {len(class_names):,} classes with the lowest F1"
        if len(shown) < len(class_names)
        else ""
    )
    words = f"share of photos, with 95 % interval for new {of_new} (F1 is no proportion: none){some}"
    bottom = 0.75 / figure.get_figheight()  # inches, however many rows there are
    figure.supxlabel(words, fontsize=10, y=0.02)
    figure.subplots_adjust(left=0.02, right=0.99, bottom=bottom, top=1 - 0.3 / figure.get_figheight(), wspace=0.12)
    keep_table(figure, numbers)
    return figure


def _share_row(share: Share) -> dict[str, float]:
    """A share as a row of a table."""
    row = {"share": share.value, "low": share.low, "high": share.high, "counted": share.correct, "photos": share.n}
    same = {"same groups low": share.same_low, "same groups high": share.same_high}
    return row | (same if share.groups else {})


def _share(ax: Axes, row: float, share: Share, colour: str = COLOURS["val"]) -> None:
    """One share as a dot on its interval, labelled correct/n."""
    if not share.n:
        ax.annotate("no photos", (0.5, row), fontsize=9, ha="center", va="center", color="#666666")
        return
    ax.plot([share.low, share.high], [row, row], color=colour, linewidth=2)
    ax.plot(share.value, row, "o", color=colour)
    at, text = min(max(share.value, 0.08), 0.92), f"{share.correct:g}/{share.n}"
    ax.annotate(text, (at, row), xytext=(0, 7), textcoords="offset points", fontsize=9, ha="center")


@drawing
def confusion(matrix: np.ndarray, class_names: list[str]) -> Axes:
    """Confusion matrix: photos, true classes as rows, predicted as columns.

    With numbers up to 20 classes and without up to 60; of more, the pairs that are confused most, as bars.
    """
    count = len(class_names)
    if count > CELLS:
        return _confused_pairs(matrix, class_names)
    size = 2.2 + (0.85 if count <= 8 else 0.6 if count <= NUMBERS else 0.24) * count
    figure, ax = plt.subplots(figsize=(size, size * 0.86))
    keep_table(figure, pd.DataFrame(matrix, class_names, class_names).rename_axis("true").reset_index())
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    numbers = {"linewidths": 1 if count <= NUMBERS else 0}
    if count <= NUMBERS:
        texts = [[f"{n}\n{s:.0%}" for n, s in zip(*row, strict=True)] for row in zip(matrix, share, strict=True)]
        numbers |= {"annot": np.array(texts), "fmt": "", "annot_kws": {"fontsize": 9} if count > 8 else None}
    names = named(class_names, 24)
    sns.heatmap(
        share, cmap="Blues", vmin=0, vmax=1, square=True, ax=ax, xticklabels=names, yticklabels=names,
        cbar_kws={"label": "share of the true class", "shrink": 0.8}, **numbers,
    )  # fmt: skip
    ax.set(title="Confusion matrix", xlabel="predicted", ylabel="true")
    ax.tick_params(axis="y", rotation=0)
    if count > 8:
        ax.tick_params(axis="x", rotation=90)
        ax.tick_params(labelsize=9)
    return ax


def _confused_pairs(matrix: np.ndarray, class_names: list[str]) -> Axes:
    """How many photos of one class are predicted as another, the pairs with most photos first."""
    wrong = np.where(np.eye(len(matrix), dtype=bool), 0, matrix)
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    pairs = [(int(true), int(predicted)) for true, predicted in zip(*np.unravel_index(order, wrong.shape), strict=True)]
    pairs = [pair for pair in pairs if wrong[pair]]
    figure, ax = plt.subplots(figsize=(8, 1.2 + row_height(len(pairs), 0.3)))
    rows = [(class_names[pair[0]], class_names[pair[1]], wrong[pair], matrix[pair[0]].sum()) for pair in pairs]
    keep_table(figure, pd.DataFrame(rows, columns=["true", "predicted", "photos", "photos of the class"]))
    bars = ax.barh(range(len(pairs)), [wrong[pair] for pair in pairs], color=COLOURS["val"], height=0.7)
    ax.bar_label(bars, [f"{wrong[pair]} of {matrix[pair[0]].sum()}" for pair in pairs], padding=4, fontsize=9)
    names = [f"{label(class_names[true], 24)} → {label(class_names[predicted], 24)}" for true, predicted in pairs]
    ax.set_yticks(range(len(pairs)), names, fontsize=9)
    ax.set(ylim=(max(len(pairs), 1) - 0.4, -0.6), xlabel="photos of the first class that are predicted as the second")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.margins(x=0.15)
    kinds, photos = int((wrong > 0).sum()), int(wrong.sum())
    ax.set_title(f"The {len(pairs)} most frequent of {kinds:,} confusions ({photos:,} photos, {len(matrix):,} classes)")
    ax.grid(axis="y", visible=False)
    return ax
