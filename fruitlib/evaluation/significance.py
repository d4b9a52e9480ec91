"""Do two settings, or two runs, really differ? Paired tests and their intervals.

scipy and statsmodels are imported where they are used, so that this module costs nothing to import.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from fruitlib.core.errors import InputError
from fruitlib.evaluation.intervals import (
    accuracy_of_sums,
    bootstrap_sums,
    confusion_cells,
    macro_f1_of_sums,
    percentile_interval,
)


def mcnemar(a_right: np.ndarray, b_right: np.ndarray) -> dict[str, float]:
    """McNemar's exact test (1947) on booleans (n,): only_a, only_b (photos only one has right) and p, two-sided.

    p is that of a fair coin: photos that both have right, or both wrong, do not show which is better. At least six, all
    in favour of one side, are needed for p < 0.05.
    """
    from statsmodels.stats.contingency_tables import mcnemar as exact_test

    a, b = np.asarray(a_right, bool), np.asarray(b_right, bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    p = exact_test([[int((a & b).sum()), only_a], [only_b, int((~a & ~b).sum())]], exact=True).pvalue
    return {"only_a": only_a, "only_b": only_b, "p": float(min(p, 1.0))}


def paired_difference(
    labels, a_predicted, b_predicted, num_classes: int, groups=None, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """B minus A in accuracy and in macro_f1, each as (difference, low, high), 95 %, from class indexes (n,).

    The same photos are drawn for both (a paired bootstrap), so that what both find hard cancels. low and high are NaN
    where the two agree on every photo.
    """
    both = np.hstack([confusion_cells(labels, predicted, num_classes) for predicted in (a_predicted, b_predicted)])
    sums, width, differences = bootstrap_sums(both, labels, groups, seed=seed), num_classes**2, {}
    for name, statistic in {"accuracy": accuracy_of_sums, "macro_f1": macro_f1_of_sums}.items():
        a, b = (statistic(both[:, part].sum(0)[None], num_classes)[0] for part in (slice(width), slice(width, None)))
        drawn = statistic(sums[:, width:], num_classes) - statistic(sums[:, :width], num_classes)
        differences[name] = (float(b - a), *percentile_interval(drawn))
    return differences


def paired_gain(a: Iterable[float], b: Iterable[float], folds: int = 0) -> dict[str, float]:
    """Mean of b - a over pairs, with its 95 % interval by Student's t; keys gain, low, high, n.

    Pairs share everything but what is compared (seed, fold). Runs on `folds` of one division share training photos,
    so their differences vary together: the variance is then (1/n + 1/(folds - 1)) s² instead of s²/n (Nadeau and
    Bengio 2003, equation 7). It covers other seeds or folds of these photos, not other photos. With one pair low and
    high are NaN.

    Raises:
        InputError: lists of different lengths, or empty ones.
    """
    from scipy.stats import t

    a, b = np.asarray(list(a), float), np.asarray(list(b), float)
    if len(a) != len(b) or not len(a):
        raise InputError(f"paired gain: {len(a)} and {len(b)} numbers; expected as many on both sides, at least one")
    gain, n = float((b - a).mean()), len(a)
    shared = 1 / (folds - 1) if folds > 1 else 0  # validation photos to training photos
    half = float(t.ppf(0.975, n - 1) * (b - a).std(ddof=1) * np.sqrt(1 / n + shared)) if n > 1 else np.nan
    return {"gain": gain, "low": gain - half, "high": gain + half, "n": n}


def sign_flip(differences: Sequence[float], seed: int = 0) -> float:
    """p of paired differences under the hypothesis that each could as well have the other sign, two-sided.

    All sign patterns are tried up to 13 differences, 10,000 random ones beyond (Fisher's randomisation test). With n
    differences p is never below 2 / 2^n: five cannot reach 0.05.

    Raises:
        InputError: no differences.
    """
    from scipy.stats import permutation_test

    values = np.asarray(differences, float)
    if not len(values):
        raise InputError("sign_flip: no differences to test")
    if len(values) == 1 or np.ptp(values) == 0 == values[0]:
        return 1.0
    result = permutation_test(
        (values,),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=10_000,
        rng=np.random.default_rng([seed, 7]),
    )
    return float(result.pvalue)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p values (k,) corrected for k questions (Holm 1979), so that the chance of *any* false alarm holds.

    statsmodels has it too, but collects garbage at each call, which takes a second in a large process.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(np.arange(len(p), 0, -1) * p[order]), 1)
    return corrected


def pairs_needed(differences: Sequence[float], power: float = 0.8, at_most: int = 10_000) -> int | None:
    """How many pairs like these a t test needs to tell their mean from 0 (5 %, two-sided) with this power.

    A rough guess, since mean and spread are themselves guesses; None beyond `at_most`, or with fewer than two.
    """
    from scipy.stats import nct, t

    values = np.asarray(differences, float)
    if len(values) < 2 or not (spread := values.std(ddof=1)) or not values.mean():
        return None
    effect = abs(values.mean()) / spread

    def reached(n: int) -> bool:
        return nct.sf(t.ppf(0.975, n - 1), n - 1, effect * np.sqrt(n)) >= power

    low, high = 2, 2
    while not reached(high):
        low, high = high, 2 * high
        if high > at_most:
            return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle + 1, high)
    return high
