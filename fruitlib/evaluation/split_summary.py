"""The answer of 01: how the photos are divided, and what a leaky split would have added."""

import pandas as pd

from fruitlib.evaluation.leakage import Leakage


def split_answer(counts: pd.DataFrame, folds: int, leaks: int, leakage: Leakage) -> tuple[str, dict[str, float]]:
    """How many photos train, validate and test: a sentence, and the numbers kept beside it.

    Args:
        counts: photos by class and part, with a row `all`, as `splits.counts` returns them.
        leaks: groups and files that are on two sides.
    """
    total = {part: int(n) for part, n in counts.loc["all"].items()}
    text = f"{total['train']} photos train, {total['val']} validate, {total['test']} test"
    if folds:
        text = f"{total['train']} photos train and validate in {folds} folds, {total['test']} test"
    text += f", in {len(counts) - 1} classes"
    text += f"; leakage would add {leakage.points:.0f} points" if leakage.points_low > 0 else ""
    numbers = total | {"leaks": leaks}
    return text, numbers | ({"leakage_points": leakage.points} if leakage.measured else {})
