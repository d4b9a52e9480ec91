"""What the settings of a sweep did, in sentences; see `wording`. `word` is what a group of photos is called."""

import math
from collections.abc import Sequence

import pandas as pd

from fruitlib.core import texts
from fruitlib.evaluation.effects import SEEDS_ADVISED, LrComparison, leading_effects
from fruitlib.evaluation.learning_curve import FEWEST_SHARES, LearningCurve
from fruitlib.evaluation.study import CONVERGED, REPLICATES, Study
from fruitlib.evaluation.wording import plural, plural_of

MEASURE_NAMES = {CONVERGED: "epochs to converge", "train_seconds": "training time"}
COST_NAMES = {"parameters": "parameters", "mflops": "MFLOPs a photo", "size_mb_int8": "size as INT8, MB"}
COST_NAMES |= {"latency_ms_int8": "latency as INT8, ms a photo"}


def study_text(study: Study) -> str:
    """How many runs there are, and what about them limits the answers."""
    others = "".join(f", {n} {state}" for state, n in study.missing.items())
    text = f"{plural(len(study.results), 'complete run')}{others}"
    text += f"; what differs: {', '.join(study.differs) or 'nothing'}"
    if study.searched:
        text += "\nproposed by a search, not planned as pairs: few runs are alike in all settings but one"
    elif study.settings and not set(REPLICATES) & set(study.differs):
        text += f"\none seed: nothing here can be distinguished from a seed's luck; give {SEEDS_ADVISED}"
    return text


def measure_name(measure: str) -> str:
    """A measure's name in words."""
    return MEASURE_NAMES.get(measure, texts.measure_name(measure))


def measure_scale(measure: str) -> tuple[float, str]:
    """What a difference is multiplied by to be shown, and its unit."""
    return {CONVERGED: (1, "epochs"), "train_seconds": (1, "s")}.get(measure, (100, "points"))


def _points(row, *names: str) -> list[str]:
    """Numbers of a row as they are shown, with a sign."""
    return [f"{measure_scale(row['measure'])[0] * row[name]:+.1f}" for name in names]


def _undecided(row, *names: str) -> bool:
    """Whether an interval of points goes beyond what there can be: it excludes nothing."""
    return measure_scale(row["measure"])[1] == "points" and any(abs(row[name]) > 1 for name in names)


def _cannot_tell(row) -> str:
    seeds = plural(int(row["seeds"]), "seed")
    return f"{seeds} cannot tell (an interval from them is wider than all that is possible); give {SEEDS_ADVISED}"


def question_text(row) -> str:
    """`batch_size 16 over 4: macro-F1 -8.7 points`."""
    other = f", with {row['with']} {row['with_to']} rather than {row['with_from']}" if "with" in row else ""
    lr = ""
    if "lr" in row:
        lr = f", all at lr {row['lr']}" if row["lr"] else ", each at its own best lr"
    unit = measure_scale(row["measure"])[1]
    return (
        f"{row['setting']} {row['to']} over {row['from']}{other}{lr}: {measure_name(row['measure'])} "
        f"{_points(row, 'gain')[0]} {unit}"
    )


def seeds_text(row) -> str:
    """What is known of other seeds on the same photos."""
    if row["seeds"] < 2:
        return f"on these photos, other seeds: one seed does not show how much luck matters; give {SEEDS_ADVISED}"
    if _undecided(row, "seeds_low", "seeds_high"):
        return f"on these photos, other seeds: {_cannot_tell(row)}"
    low, high = _points(row, "seeds_low", "seeds_high")
    few = f"; {SEEDS_ADVISED} would say more" if row["seeds"] < SEEDS_ADVISED else ""
    return f"on these photos, other seeds: {low} to {high} ({plural(int(row['seeds']), 'seed')}{few})"


def new_groups_text(row, word: str = "group") -> str:
    """What is known of new groups, or photos, and seeds; with the verdict."""
    if not row["photos"]:
        return f"about other photos it says nothing; {_verdict(row)}"
    evidence = f"{row['photos']:,} photos"
    if row["groups"]:
        evidence = f"{plural(int(row['groups']), word)}, {evidence}"
    new = f"new {plural_of(word) if row['groups'] else 'photos'}"
    if _undecided(row, "low", "high"):
        return f"{new}{' and seeds' if row['seeds'] > 1 else ''}: {_cannot_tell(row)} ({evidence}); {_verdict(row)}"
    low, high = _points(row, "low", "high")
    if row["seeds"] < 2:
        return f"{new}, this seed alone: {low} to {high} ({evidence}): no verdict from one seed"
    return f"{new} and seeds: {low} to {high} ({evidence}): {_verdict(row)}"


def _verdict(row) -> str:
    if row["seeds"] < 2:
        return "no verdict from one seed"
    if row["significant"]:
        return f"significant (Holm p {row['holm_p']:.2g})"
    factor, unit = measure_scale(row["measure"])
    ends = [abs(row[name]) for name in ("low", "high", "seeds_low", "seeds_high") if math.isfinite(row[name])]
    text = f"not significant (Holm p {row['holm_p']:.2g})"
    if not ends or not math.isfinite(row["findable"]):
        return text
    if unit == "points" and max(*ends, row["findable"]) > 1:  # more than there can be
        return text
    return (
        f"{text}; at most {factor * max(ends):.0f} {unit} either way; "
        f"{factor * row['findable']:.0f} would have been found"
    )


def effect_summary(row, word: str = "group") -> str:
    """An answer in three lines: the question with its gain, other seeds, new groups and seeds with the verdict."""
    return "\n".join([question_text(row), seeds_text(row), new_groups_text(row, word)])


def leading_effects_text(effects: pd.DataFrame, measure: str, at_most: int = 6) -> list[str]:
    """The answers that a first page has room for, from `insight.csv`: significant effects come first."""
    asked = effects[effects["measure"] == measure] if len(effects) else effects
    if asked.empty:
        return []
    leading = leading_effects(asked)
    if leading.empty:
        settings = " and ".join(dict.fromkeys(asked["setting"]))
        return [f"one seed cannot tell what {settings} did from luck: give {SEEDS_ADVISED} (seed: [0, 1, 2, 3, 4])"]
    rest = [f"… and {len(leading) - at_most} more, in insight.csv"] * (len(leading) > at_most)
    return [*leading["summary"].head(at_most), *rest]


def effects_answer_text(effects: pd.DataFrame, measure: str, word: str = "group") -> str:
    """The headline of 08: the one or two largest significant effects on the score, and how many questions were asked.

    Where the score shows none, what the sweep could have found.
    """
    asked = effects[effects["measure"] == measure] if len(effects) else effects
    if asked.empty:
        return "No two runs are alike in all settings but one: nothing to compare"
    questions = f"{plural(len(asked), 'question')} about {measure_name(measure)}"
    if not (asked["seeds"] > 1).any():
        return f"One seed cannot tell what a setting did from luck: give {SEEDS_ADVISED} ({questions})"
    new = f"new {plural_of(word) if asked['groups'].any() else 'photos'} and seeds"
    significant = asked[asked["significant"]].sort_values("gain", key=lambda gain: -gain.abs(), kind="stable").head(2)
    if len(significant):
        found = "; ".join(map(question_text, significant.to_dict("records")))
        return f"On {new}: {found} ({questions}, {int(asked['significant'].sum())} significant)"
    findable = 100 * asked["findable"].median()
    if not findable < 100:
        return f"So few seeds show no difference, however large: give {SEEDS_ADVISED} ({questions})"
    return (
        f"No setting changed {measure_name(measure)} beyond chance on {new} "
        f"({questions}; a difference of about {findable:.0f} points would have been found)"
    )


def lr_comparison_text(compared: LrComparison, word: str = "group") -> str:
    """What the values of a setting gain over each other at their own best lr, and at a shared one."""
    if compared.values.empty:
        return "no setting was tried at several learning rates: nothing to compare"
    parts = [effect_summary(row, word) for row in compared.effects.to_dict("records")]
    if not compared.shared_lr:
        parts.append(f"no lr was tried with every {compared.setting}: there is no shared one")
    elif compared.same_best_lr:
        parts.append(f"lr {compared.shared_lr} is the best one of each")
    return "\n".join([*parts, "each best lr was itself chosen on the validation photos"])


def costs_text(costs_vary: bool) -> str:
    """Why `effects.cost_measures` chose no cost; else empty."""
    return "" if costs_vary else "all runs have the same network, so they cost the same"


def learning_curve_text(curve: LearningCurve) -> str:
    """What more photos would bring, as far as the curve goes."""
    if not curve.extrapolated:
        few = f"{plural(curve.shares, 'share')} of the training photos: a curve needs {FEWEST_SHARES}"
        return f"{few}; nothing is extrapolated"
    low, high = curve.later_low, curve.later_high
    span = f"{low:.2f} to {high:.2f}" if math.isfinite(low) else "no interval: one seed"
    photos = f"{curve.more} more photos{curve.class_name and f' of {curve.class_name}'}"
    return f"{photos}: {curve.now:.2f} -> {curve.later:.2f} ({span})"


def learning_curves_text(curves: Sequence[LearningCurve]) -> str:
    """A line for each curve, or why there is none."""
    return "\n".join(map(learning_curve_text, curves)) or "train_share is the same in all runs: no learning curve"
