"""The numbers of this room in sentences. No program parses a sentence: it takes the number.

Short forms of a number (`intervals.interval_text`, `metrics.proportion_text`) are beside the number.
"""

import math

import pandas as pd

from fruitlib.evaluation import intervals
from fruitlib.evaluation.compare import Comparison, Pair, sides_without_labels
from fruitlib.evaluation.effects import FEWEST_UNITS, LrComparison, leading_effects
from fruitlib.evaluation.leakage import FEWEST_GROUPS, Leakage, LeakageCheck
from fruitlib.evaluation.learning_curve import FEWEST_SHARES, LearningCurve
from fruitlib.evaluation.selection import SelectionOptimism
from fruitlib.evaluation.study import CONVERGED, REPLICATES, Study

MEASURE_NAMES = {"macro_f1": "macro-F1", CONVERGED: "epochs to converge", "train_seconds": "training time"}
COST_NAMES = {"parameters": "parameters", "mflops": "MFLOPs a photo", "size_mb_int8": "size as INT8, MB"}
COST_NAMES |= {"latency_ms_int8": "latency as INT8, ms a photo"}
MAX_MORE_UNITS = 200  # beyond it a guess of how many more would be needed is no use
MAX_LISTED = 10  # photos or pairs that a check names
PROBE = "an RBF support vector machine on 40 principal components of 16 × 16 pixels"


def plural(n: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{n} {noun}{'s' * (n != 1)}"


# ---------------------------------------------------------------- sweeps


def study_text(study: Study) -> str:
    """How many runs there are, and what about them limits the answers."""
    others = "".join(f", {n} {state}" for state, n in study.missing.items())
    text = f"{plural(len(study.results), 'complete run')}{others}"
    text += f"; what differs: {', '.join(study.differs) or 'nothing'}"
    if study.searched:
        text += "\nproposed by a search, not planned as pairs: few runs are alike in all settings but one"
    elif study.settings and not set(REPLICATES) & set(study.differs):
        text += "\none seed: the intervals show how an effect varies with the other settings, not with the seed"
    return text


def measure_name(measure: str) -> str:
    """A measure's name in words."""
    return MEASURE_NAMES.get(measure, measure.replace("_", " "))


def measure_scale(measure: str) -> tuple[float, str]:
    """What a difference is multiplied by to be shown, and its unit."""
    return {CONVERGED: (1, "epochs"), "train_seconds": (1, "s")}.get(measure, (100, "points"))


def _gain_text(row) -> str:
    """`+0.4 points (95 % interval -1.1 to 1.9, 12 pairs of 3 seeds`; the bracket stays open for what follows."""
    factor, unit = measure_scale(row["measure"])
    gain, low, high = (factor * row[name] for name in ("gain", "low", "high"))
    interval = f"95 % interval {low:.1f} to {high:.1f}" if math.isfinite(low) else "no interval"
    units = f" of {row['units']} {row['unit']}s" if row["unit"] != "pair" else ""
    return f"{gain:+.1f} {unit} ({interval}, {plural(row['pairs'], 'pair')}{units}"


def effect_text(row) -> str:
    """A row of `effects.main_effects` or `effects.interactions` in words, without the verdict."""
    other = f", with {row['with']} {row['with_to']} rather than {row['with_from']}" if "with" in row else ""
    question = f"{row['setting']} {row['to']} over {row['from']}{other}"
    return f"{question}: {measure_name(row['measure'])} {_gain_text(row)}, Holm p {row['holm_p']:.2g})"


def effect_summary(row) -> str:
    """The same with the verdict, and where there is none with how many more seeds would be needed, roughly."""
    if row["significant"]:
        return f"{effect_text(row)}: can tell"
    if math.isnan(row["more"]):
        return f"{effect_text(row)}: cannot tell"
    kind = f"{'such pair' if row['unit'] == 'pair' else row['unit']}{'s' * (row['more'] != 1)}"
    many = f"about {row['more']:.0f}" if row["more"] <= MAX_MORE_UNITS else f"more than {MAX_MORE_UNITS}"
    return f"{effect_text(row)}: cannot tell; {many} more {kind} would"


def leading_effects_text(effects: pd.DataFrame, measure: str, at_most: int = 6) -> list[str]:
    """The lines that a first page has room for, from `insight.csv`: significant effects come first."""
    asked = effects[effects["measure"] == measure] if len(effects) else effects
    if asked.empty:
        return []
    leading = leading_effects(asked)
    if leading.empty:
        settings = " and ".join(dict.fromkeys(asked["setting"]))
        return [f"fewer than {FEWEST_UNITS} pairs, seeds or folds cannot tell what {settings} did: add seeds or folds"]
    rest = [f"… and {len(leading) - at_most} more, in insight.csv"] * (len(leading) > at_most)
    return [*leading["summary"].head(at_most), *rest]


def effects_answer_text(effects: pd.DataFrame, measure: str) -> str:
    """The headline of 08: the one or two largest significant effects on the score, and how many questions were asked.

    Where the score shows none, the largest on another measure.
    """
    if effects.empty:
        return "No two runs are alike in all settings but one: nothing to compare"
    asked = f"{plural(len(effects), 'question')} asked"
    significant = effects[effects["significant"]].sort_values("gain", key=lambda gain: -gain.abs(), kind="stable")
    on_score = significant[significant["measure"] == measure].head(2)
    if len(on_score):
        return "; ".join([*map(effect_text, on_score.to_dict("records")), asked])
    nothing = f"No setting changed {measure_name(measure)} by more than chance explains ({asked})"
    return "; but ".join([nothing, *map(effect_text, significant.head(1).to_dict("records"))])


def lr_comparison_text(compared: LrComparison) -> str:
    """What the values of a setting gain over each other at their own best lr, and at a shared one."""
    if compared.values.empty:
        return "no setting was tried at several learning rates: nothing to compare"
    parts = []
    for row in compared.effects:
        where = f"all at lr {row['lr']}" if row["lr"] else "each at its own best lr"
        parts.append(f"{row['setting']} {row['to']} over {row['from']}, {where}: {_gain_text(row)})")
    if not compared.shared_lr:
        parts.append(f"no lr was tried with every {compared.setting}: there is no shared one")
    elif compared.same_best_lr:
        parts.append(f"lr {compared.shared_lr} is the best one of each")
    return "; ".join([*parts, "each best lr was itself chosen on the validation photos"])


def costs_text(costs_vary: bool) -> str:
    """Why `effects.cost_measures` chose one cost only, where no cost sets runs apart; else empty."""
    return "" if costs_vary else "all runs have the same network: only measured latency varies, and that by chance"


def selection_optimism_text(optimism: SelectionOptimism) -> str:
    """How much better the best run looks for having been chosen."""
    what = "combinations" if optimism.folds else "runs"
    if not optimism.photos:
        return f"the {what} were not all evaluated on the same photos: the selection optimism is not available"
    if optimism.candidates < 2:
        return "one run: nothing was chosen, so there is no selection optimism"
    text = (
        f"the best of {optimism.candidates} {what} has an accuracy of {optimism.best:.3f} on {optimism.photos} photos; "
    )
    text += f"choosing it among {optimism.candidates} makes that optimistic by about {100 * optimism.points:.1f} points"
    if optimism.best == 1:
        text += " (at least: redrawn photos cannot show the mistakes it would make on others)"
    return text


def learning_curve_text(curve: LearningCurve) -> str:
    """What more photos would bring, as far as the curve goes."""
    if not curve.extrapolated:
        few = f"{plural(curve.shares, 'share')} of the training photos: a curve needs {FEWEST_SHARES}"
        return f"{few}; nothing is extrapolated"
    low, high = curve.later_low, curve.later_high
    span = f"{low:.2f} to {high:.2f}" if math.isfinite(low) else "no interval: one seed"
    photos = f"{curve.more} more photos{curve.class_name and f' of {curve.class_name}'}"
    return f"{photos}: {curve.now:.2f} -> {curve.later:.2f} ({span})"


# ---------------------------------------------------------------- two sides compared


def match_text(pair: Pair) -> str:
    """How many photos both sides have, how they were matched, and what is doubtful about it."""
    how = {0: "path", 1: "file name"}.get(pair.matched_parts, f"the last {pair.matched_parts} parts of the path")
    text = f"photos predicted by both: {len(pair.table)}, matched by {how}"
    for side, n in (("A", pair.only_a), ("B", pair.only_b)):
        text += f"; only in {side}, and left out: {n}" if n else ""
    for side in sides_without_labels(pair):
        predicted, labels = (_some(pair.table[name]) for name in (side, "label"))
        text += f"; nothing that {side.upper()} predicts ({predicted}) is a label ({labels}): "
        text += "does it call the classes by other names?"
    return text


def _some(names: pd.Series) -> str:
    shown = sorted(set(names))
    return ", ".join(shown[:3]) + " …" * (len(shown) > 3)


def comparison_text(comparison: Comparison) -> str:
    """Which side is better, if either, and how sure that is."""
    if comparison.alone:
        return f"Only one {'combination' if comparison.folds else 'run'} is complete: nothing to compare"
    text = f"A is right on {comparison.a_correct}/{comparison.n}, B on {comparison.b_correct}/{comparison.n}. "
    if not comparison.disagree:
        return text + "They predict the same for every photo: nothing tells them apart"
    text += f"They disagree on {comparison.disagree}; "
    text += f"A alone is right on {comparison.only_a}, B alone on {comparison.only_b}: "
    text += f"McNemar's exact p = {comparison.p:.3g}, {_verdict_text(comparison)}. "
    text += f"B less A: macro-F1 {comparison.macro_f1_difference:+.3f} "
    text += f"({intervals.interval_text(comparison.macro_f1_low, comparison.macro_f1_high)}"
    text += ", whole groups drawn)" if comparison.grouped else ")"
    if comparison.p >= 0.05 and (comparison.macro_f1_low > 0 or comparison.macro_f1_high < 0):
        text += "; with so few disagreements the bootstrap is too sure of itself, and McNemar's test decides"
    if comparison.chosen_among > 2:
        text += f"; they were picked out of {comparison.chosen_among} by their results, which makes p too small"
    elif comparison.candidates > 2:
        text += "; p holds for two that were named beforehand, "
        text += f"not picked by their results out of the sweep's {comparison.candidates}"
    return text


def _verdict_text(comparison: Comparison) -> str:
    if comparison.significant:
        return f"{'A' if comparison.only_a > comparison.only_b else 'B'} is better on photos like these"
    if comparison.p < 0.05:
        return "but the test takes photos of a group as independent, and with whole groups drawn it cannot tell"
    few = comparison.only_a + comparison.only_b < 6
    return "cannot tell" + " (at least six photos, all in favour of one side, are needed)" * few


def difference_text(difference: float, low: float, high: float, name: str) -> str:
    """`macro-F1 +0.210 (95 % interval 0.05 to 0.38)`, with `cannot tell` where the interval holds 0 or is missing."""
    significant = low > 0 or high < 0
    return f"{name} {difference:+.3f} ({intervals.interval_text(low, high)}){'' if significant else ': cannot tell'}"


# ---------------------------------------------------------------- one run


def out_of_sample_text(predictions: pd.DataFrame, pooled: bool, folds: int) -> str:
    """Where the predictions of `crossval.out_of_sample` come from."""
    if pooled:
        return f"out-of-fold predictions on {predictions['path'].nunique()} photos, {folds} folds"
    why = "not all folds of its combination are trained" if folds else "folds: 5 would cover every photo"
    return f"validation predictions on {len(predictions)} photos; {why}"


def label_error_text(doubts: pd.DataFrame, predictions: pd.DataFrame) -> str:
    """How many labels `doubtful_labels` doubts, and how good the predictions behind it are."""
    n, agree = predictions["path"].nunique(), (predictions["label"] == predictions["predicted"]).mean()
    text = f"{len(doubts):,} of {n:,} labels are in doubt, by predictions that agree with {agree:.2f} of the labels"
    return text + ("; so weak a model doubts many right labels: look, and trust your eyes" if agree < 0.9 else "")


# ---------------------------------------------------------------- leakage


def leakage_text(leak: Leakage) -> str:
    """What a random split would claim, or why there is nothing to compare."""
    if leak.reason == "one class":
        return "fewer than two classes: nothing to compare"
    if leak.reason == "no groups":
        return "no groups: nothing to compare, each photo stands alone"
    if leak.reason == "few groups":
        few = f"class {leak.scarcest_class} has {plural(leak.fewest_groups, 'group')}"
        return f"{few}, too few to train and validate by turns (at least {FEWEST_GROUPS}): nothing to compare"
    both = f"a random split would claim {leak.random:.2f}; the group-safe one finds {leak.safe:.2f}"
    photos = f"n = {leak.n:,}" + (f", thinned from {leak.total:,}" if leak.total > leak.n else "")
    return f"{both}: {leakage_points_text(leak)}, by {PROBE}, {photos}"


def leakage_points_text(leak: Leakage) -> str:
    """`17 points (95 % interval 9 to 25) are leakage`, where the difference is significant."""
    points, low, high = (round(number) for number in (leak.points, leak.points_low, leak.points_high))
    verdict = "is leakage" if points == 1 else "are leakage"
    if low <= 0:
        verdict = "cannot be told from 0" if high >= 0 else "the other way: too few groups for a comparison"
    return f"{plural(points, 'point')} (95 % interval {low} to {high}) {verdict}"


def alarm_lines(check: LeakageCheck) -> list[str]:
    """Reasons not to trust a result: photos that are gone, changed, or in training and evaluation at once."""
    gone = [f"{path}: {reason}" for path, reason in check.unreadable.items()]
    changed = [f"{path}: the file has changed since the split" for path in check.changed]
    copies = [
        f"{row['path_b']} ({row['split_b']}) is found in {row['split_a']}: {row['path_a']}, the same file"
        for row in check.copies
    ]
    return [line for lines in (gone, changed, copies) for line in _first_lines(lines)]


def note_lines(check: LeakageCheck) -> list[str]:
    """Pairs across the split that look alike, for a person to look at."""
    return _first_lines(
        [
            f"{row['path_b']} ({row['split_b']}) looks like {row['path_a']} ({row['split_a']}), "
            f"distance {row['distance']} of 128"
            for row in check.look_alikes
        ]
    )


def _first_lines(lines: list[str]) -> list[str]:
    rest = len(lines) - MAX_LISTED
    return lines[:MAX_LISTED] + [f"and {rest} more of these"] * (rest > 0)
