"""The numbers of this room in sentences. No program parses a sentence: it takes the number.

`word` is what a group of photos is called, the setting `group_word`.
"""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from fruitlib.core import texts
from fruitlib.evaluation import intervals
from fruitlib.evaluation.compare import Comparison, Pair, sides_without_labels
from fruitlib.evaluation.intervals import Share
from fruitlib.evaluation.leakage import FEWEST_GROUPS, Leakage, LeakageCheck
from fruitlib.evaluation.selection import SelectionOptimism
from fruitlib.evaluation.significance import PairedDifference

MAX_LISTED = 10  # photos or pairs that a check names
FROZEN = "frozen features"  # the probe: a logistic regression on them
EQUAL = 1e-9  # scores that differ by less are a tie
TIED = 3  # runs of a tie that are named
PROBE = "an RBF support vector machine on 40 principal components of 16 × 16 pixels"


def plural(n: int, noun: str) -> str:
    """`1 run`, `2 runs`, `8 varieties`."""
    return f"{n:,} {noun if n == 1 else plural_of(noun)}"


def plural_of(word: str) -> str:
    """`varieties` of `variety`, `days` of `day`."""
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


# ---------------------------------------------------------------- shares


def share_text(share: Share, word: str = "group") -> str:
    """A share with its interval and of what it speaks.

    `0.933 (95 % interval 0.79–0.98, n = 30)`; in groups `0.760 on new varieties (95 % interval 0.53–0.92; 8 varieties,
    960 photos; on more photos of these 8: 0.73–0.79)`.
    """
    if not share.n:
        return "no photos"
    ends = f"95 % interval {share.low:.2f}–{share.high:.2f}"
    if not share.groups:
        return f"{share.value:.3f} ({ends}, n = {share.n:,})"
    same = f"on more photos of these {share.groups}: {share.same_low:.2f}–{share.same_high:.2f}"
    return (
        f"{share.value:.3f} on new {plural_of(word)} ({ends}; {plural(share.groups, word)}, {share.n:,} photos; {same})"
    )


def macro_f1_text(value: float, low: float | None, high: float | None, word: str = "group") -> str:
    """`0.699 (0.41–0.98)`, or why it has no interval."""
    if low is None or math.isnan(low):
        return f"{value:.3f} (no interval: a class has only one {word}, which does not show how {plural_of(word)} vary)"
    return f"{value:.3f} ({low:.2f}–{high:.2f})"


def new_text(groups: Sequence[str], word: str = "group") -> str:
    """Of what an interval speaks: `new varieties`, or `new photos` where no two share a group."""
    return f"new {plural_of(word) if intervals.units_of(len(groups), groups)[1] else 'photos'}"


def population_text(groups: Sequence[str], word: str = "group") -> str:
    """Who the new photos are that numbers speak of, from the group of each photo ("": it stands alone)."""
    n, grouped = len(groups), [group for group in groups if group]
    units = len(set(grouped)) + n - len(grouped)
    if units == n:
        return f"New photos here are other photos like these: the {n:,} stand alone, each is one piece of evidence."
    alone = f" or stand alone ({n - len(grouped):,}, each counts as one)" if len(grouped) < n else ""
    text = f"New photos here are photos of new {plural_of(word)}: these {n:,} photos come in "
    text += f"{plural(len(set(grouped)), word)}{alone}, and photos of one {word} are right or wrong "
    text += f"together, so that a {word} counts about once."
    if intervals.found_by_looks(groups):
        text += f" Which photos belong together was found by looks alone: {plural_of(word)} that nobody named "
        text += "make every interval too narrow. Name them with group_pattern, folders or a column."
    return text


# ---------------------------------------------------------------- a choice


def choice_text(optimism: SelectionOptimism) -> str:
    """`chosen among 20 runs x 12 epochs: flatters by about 10 points`; empty where nothing was chosen, or measured."""
    return f"chosen among {_choices(optimism)}: flatters by {_flattery(optimism)}" if optimism.measured else ""


def tie_text(rows: list[dict], chosen: dict | None, choose_by: str, name: str) -> str:
    """How a tie for the best `choose_by` was broken, as a sentence; "" where the chosen row is best alone.

    Args:
        rows: of the results table, all that were compared; `name` is the column that names them.
        chosen: the one of `rows` that was chosen.
    """
    best = texts.number(chosen.get(choose_by)) if chosen else math.nan
    equal = [row for row in rows if row is not chosen and abs(texts.number(row.get(choose_by)) - best) <= EQUAL]
    if not equal:
        return ""
    names = "; ".join(f"{row.get(name)}" for row in equal[:TIED])  # a name holds commas
    more = f" and {len(equal) - TIED} more" if len(equal) > TIED else ""
    text = f"It is a tie with {names}{more}: the same {texts.measure_name(choose_by)}, {best:.3f}."
    losses = [texts.number(row.get("val_loss")) for row in equal]
    loss = texts.number(chosen.get("val_loss"))
    if name == "run" and losses and all(loss < other for other in losses):
        how = f"the one with the lowest validation loss was taken ({loss:.3f} against {min(losses):.3f})"
        return f"{text} Of equals {how}."
    return f"{text} Of equals the first of the sweep was taken."


def selection_optimism_text(optimism: SelectionOptimism, word: str = "group") -> str:
    """How much better the best run looks for having been chosen."""
    what = "combination" if optimism.folds else "run"
    if not optimism.photos:
        return f"the {what}s were not all evaluated on the same photos: what choosing among them adds is not known"
    if optimism.configurations < 2:
        return f"one {what}{'' if optimism.folds else ', its last epoch'}: nothing was chosen, so nothing flatters"
    if not optimism.measured:
        return f"all validation photos are of one {word}: what choosing adds is not known"
    n = f"n = {optimism.photos}{f' in {plural(optimism.groups, word)}' if optimism.groups else ''}"
    score = "pooled accuracy" if optimism.folds else "validation accuracy"
    text = (
        f"{score} {optimism.best:.2f}; chosen among {_choices(optimism)}, which flatters by {_flattery(optimism)} ({n})"
    )
    if optimism.best == 1:
        text += "; at least: these photos cannot show the mistakes it would make on others"
    return text


def _choices(optimism: SelectionOptimism) -> str:
    """`20 runs x 12 epochs`; `20 runs` where each had one epoch to offer."""
    runs = plural(optimism.candidates, "combination" if optimism.folds else "run")
    if optimism.epochs == 1:
        return runs
    alike = optimism.configurations == optimism.candidates * optimism.epochs
    return f"{runs} x {'' if alike else 'up to '}{optimism.epochs} epochs"


def _flattery(optimism: SelectionOptimism) -> str:
    points = round(100 * optimism.points)
    return f"about {plural(points, 'point')}" if points >= 1 else "less than a point"


# ---------------------------------------------------------------- two sides compared


def match_text(pair: Pair) -> str:
    """How many photos both sides have, how they were matched, and what is doubtful about it."""
    how = {0: "path", 1: "file name"}.get(pair.matched_parts, f"the last {pair.matched_parts} parts of the path")
    text = f"photos predicted by both: {len(pair.table)}, matched by {how}"
    for side, n in (("A", pair.only_a), ("B", pair.only_b)):
        text += f"; only in {side}, and left out: {n}" if n else ""
    if pair.respelled:
        names = texts.some(pair.respelled, 3)
        text += f"; classes that are spelled in several ways, and were taken for one: {names}"
    for side in sides_without_labels(pair):
        predicted, labels = (texts.some(sorted(set(pair.table[name])), 3) for name in (side, "label"))
        text += f"; nothing that {side.upper()} predicts ({predicted}) is a label ({labels}): "
        text += "does it call the classes by other names?"
    return text


def comparison_text(comparison: Comparison) -> str:
    """Which side is better, if either, of what that speaks, and what could have been found."""
    if comparison.alone:
        return f"Only one {'combination' if comparison.folds else 'run'} is complete: nothing to compare"
    text = f"A is right on {comparison.a_correct}/{comparison.n}, B on {comparison.b_correct}/{comparison.n}. "
    text += f"{comparison.tie}. " if comparison.tie else ""
    if not comparison.disagree:
        return text + "They predict the same for every photo: nothing tells them apart"
    text += f"They disagree on {comparison.disagree}; "
    text += f"A alone is right on {comparison.only_a}, B alone on {comparison.only_b}. B less A: "
    text += difference_text(comparison.accuracy, "AB", comparison.group_word, comparison.by_looks)
    if math.isfinite(comparison.macro_f1[1]):
        text += f". Macro-F1, B less A: {_signed_interval(comparison.macro_f1)}"
    else:
        text += f". Macro-F1, B less A: {100 * comparison.macro_f1[0]:+.1f} points (no interval)"
    if not comparison.same_run:
        text += ". This speaks of these two models: other seeds of the same settings may differ more (08)"
    if comparison.chosen_among > 2:
        text += f"; they were picked out of {comparison.chosen_among} by their results, which makes p too small"
    elif comparison.candidates > 2:
        text += "; p holds for two that were named beforehand, "
        text += f"not picked by their results out of the sweep's {comparison.candidates}"
    return text


def comparison_answer(comparison: Comparison, a: str, b: str) -> str:
    """The verdict alone, and how often each is right; `a` and `b` are the names of the sides."""
    if comparison.alone:
        return comparison_text(comparison)
    found, where = comparison.accuracy, "on new photos"
    if found.groups:
        where = f"on new {plural_of(comparison.group_word)}"
    if not comparison.disagree:
        verdict = "They predict the same for every photo"
    elif found.too_few:
        verdict = f"{units_text(found, comparison.group_word)} are too few to tell which is better"
    elif found.significant:
        verdict = f"{'AB'[int(found.value > 0)]} is better {where}"
        if comparison.chosen_among > 2:
            verdict += f", though picked by results out of {comparison.chosen_among}, which makes p too small"
    else:
        verdict = f"Nothing shows that either is better {where}"
    verdict = f"A tie: {verdict[0].lower()}{verdict[1:]}" if comparison.tie else verdict
    right = f"A is right on {comparison.a_correct} of {plural(comparison.n, 'photo')}, B on {comparison.b_correct}"
    return f"{verdict}. {right} (A: {a}; B: {b})"


def difference_text(
    found: PairedDifference, sides: Sequence[str] = "AB", group_word: str = "group", by_looks: bool = False
) -> str:
    """A difference in accuracy with its interval, p and verdict; where it is not significant, what would have been.

    Args:
        sides: names of the first and the second side; the difference is the second's less the first's.
    """
    if found.too_few:
        units = units_text(found, group_word)
        return f"{100 * found.value:+.1f} points of accuracy; {units} are too few to tell (at least six are needed)"
    test = f"sign flips of {units_text(found, group_word)}" if found.groups else "McNemar's mid-p"
    text = f"accuracy {_signed_interval((found.value, found.low, found.high))}; p = {found.p:.2g} ({test}): "
    number = found.units if found.units == found.groups else units_text(found, group_word)
    where = f"on new {plural_of(group_word)} ({number})" if found.groups else "on new photos"
    if found.significant:
        text += f"{sides[int(found.value > 0)]} is better {where}"
    else:
        text += f"not significant {where}. {detectable_text(found, group_word)}"
    if found.groups and by_looks:
        text += f". These {plural_of(group_word)} were found by looks only: others without a name make this too sure"
    return text


def detectable_text(found: PairedDifference, group_word: str = "group") -> str:
    """The difference that four of five such comparisons would have found, or why there is none."""
    units = units_text(found, group_word)
    if math.isfinite(found.detectable):
        points = 100 * found.detectable
        shown = f"{points:.0f}" if points >= 10 else f"{points:.1f}"
        return f"With {units} a difference of {shown} points would be found in four of five such comparisons"
    if found.groups:
        return f"With {units} only a difference that every one of them shows can be found"
    return f"With {units} no difference, however large, would be found in four of five such comparisons"


def units_text(found: PairedDifference, group_word: str = "group") -> str:
    """`30 photos`; `8 varieties`, with the photos that stand alone where there are any."""
    if not found.groups:
        return plural(found.n, "photo")
    alone = found.units - found.groups
    groups = f"{found.groups} {group_word if found.groups == 1 else plural_of(group_word)}"
    return groups + (f" and {plural(alone, 'photo')} alone" if alone else "")


def _signed_interval(row: tuple[float, float, float]) -> str:
    """`+6.7 points (95 % interval -4.1 to 19.0)`."""
    value, low, high = (100 * number for number in row)
    return f"{value:+.1f} points (95 % interval {low:.1f} to {high:.1f})"


# ---------------------------------------------------------------- beside frozen features


def probe_text(numbers: Mapping, word: str = "group") -> str:
    """Whether a network is worth more than frozen features, from numbers named as in `ValidationScores`.

    `accuracy 0.823 against 0.790, +3.3 points (95 % interval 0.4 to 6.2), p = 0.03; macro-F1 0.794 against 0.761: this
    run is better on new varieties`; empty where there was no probe.
    """
    value = numbers.get("over_probe", math.nan)
    if math.isnan(value):
        return ""
    text = f"accuracy {numbers['accuracy']:.3f} against {numbers['probe_accuracy']:.3f}, "
    f1 = f"macro-F1 {numbers['macro_f1']:.3f} against {numbers['probe_macro_f1']:.3f}"
    low, high, p = (numbers.get(f"over_probe_{end}", math.nan) for end in ("low", "high", "p"))
    if math.isnan(p):
        few = f"too few {plural_of(word)} to tell (at least six are needed)"
        return f"{text}{100 * value:+.1f} points; {f1}: {few}"
    where = f"on new {plural_of(word) if numbers.get('groups', 0) > 0 else 'photos'}"
    verdict = f"not significant {where}: nothing shows that this run is worth more than {FROZEN}"
    if p < 0.05:
        worse = f"{FROZEN} are better {where}: take them (head: logistic, as in params/pretrained.yaml)"
        verdict = f"this run is better {where}" if value > 0 else worse
    return f"{text}{_signed_interval((value, low, high))}, p = {p:.2g}; {f1}: {verdict}"


def probe_mark(numbers: Mapping) -> str:
    """The same in a few words: `frozen 0.790: beaten`, `not beaten` or `better`; empty without a probe."""
    value, p, its_own = (numbers.get(name, math.nan) for name in ("over_probe", "over_probe_p", "probe_accuracy"))
    if math.isnan(value) or math.isnan(its_own):
        return ""
    verdict = "not beaten" if not p < 0.05 else "beaten" if value > 0 else "better"
    return f"frozen {its_own:.3f}: {verdict}"


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
        verdict = "cannot be distinguished from 0" if high >= 0 else "the other way: too few groups for a comparison"
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
