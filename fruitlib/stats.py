"""How far a number from few photos may be trusted: bootstrap intervals and paired tests.

Photos of one group (views of one fruit) tell the same story, so whole groups are drawn where there are groups.
scipy and statsmodels are imported where they are used, so that this module costs nothing to import.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from fruitlib.core.errors import InputError

DRAWS = 2000  # bootstrap samples
CELLS = 1 << 24  # of a table of draws by units held at a time


def units(groups: Iterable[str]) -> np.ndarray:
    """A number (n,) for each group, and one of its own for each photo that stands alone (group "")."""
    names = pd.Series(list(groups), dtype=object)
    numbers = pd.factorize(names.where(names != "", None))[0]
    alone = numbers < 0
    numbers[alone] = numbers.max(initial=-1) + 1 + np.arange(alone.sum())
    return numbers


def resampled(
    table: np.ndarray, labels: np.ndarray, groups: Sequence[str] | None = None, draws: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """Sums of the rows of `table` (n, K) in every bootstrap sample, (draws, K).

    The bootstrap (Efron 1979) is stratified: every class keeps its number of photos. With `groups` whole groups are
    drawn (Field and Welsh 2007), each in the stratum of the class most of its photos have; a class with one group
    then does not vary at all. Any statistic that is a function of sums, as counts are, can be had from the result.

    Args:
        table: numbers of each photo, such as the one-hot cell of a confusion matrix.
        labels: class indexes (n,).
        groups: a name for each photo, "" where it stands alone; None: all stand alone.
        seed: the same seed draws the same photos, so that two tables can be compared draw by draw.
    """
    table, labels = np.asarray(table, float), np.asarray(labels)
    of = units(groups) if groups is not None else np.arange(len(labels))
    sums = np.zeros((of.max(initial=-1) + 1, table.shape[1]))
    np.add.at(sums, of, table)
    strata = pd.Series(labels).groupby(of).agg(lambda part: part.mode()[0]).to_numpy() if groups is not None else labels
    found = np.zeros((draws, table.shape[1]))
    rng = np.random.default_rng([seed, 6])
    for stratum in np.unique(strata):
        own = sums[strata == stratum]
        for start in range(0, draws, step := max(1, CELLS // len(own))):
            part = found[start : start + step]
            part += rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size=len(part)) @ own
    return found


def interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """The middle share of bootstrapped values, by percentiles; NaN, NaN where they do not vary.

    Where nothing is wrong, or everything, a bootstrap repeats it for ever, which is no reason to be sure.
    """
    values = np.asarray(values)[np.isfinite(values)]
    if not len(values) or np.ptp(values) < 1e-12:
        return float("nan"), float("nan")
    tail = 50 * (1 - confidence)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def cells(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Each photo's cell of the confusion matrix, one-hot (n, C · C)."""
    table = np.zeros((len(labels), num_classes**2))
    table[np.arange(len(labels)), np.asarray(labels) * num_classes + np.asarray(predicted)] = 1
    return table


def macro_f1(sums: np.ndarray, num_classes: int) -> np.ndarray:
    """Macro-F1 (draws,) of confusion matrices (draws, C · C), over the classes that have photos."""
    matrices = sums.reshape(-1, num_classes, num_classes)
    tp, true, claimed = matrices.diagonal(axis1=1, axis2=2), matrices.sum(2), matrices.sum(1)
    f1 = np.divide(2 * tp, true + claimed, out=np.full(tp.shape, np.nan), where=true > 0)
    return np.nanmean(f1, axis=1)


def accuracy(sums: np.ndarray, num_classes: int) -> np.ndarray:
    """Accuracy (draws,) of confusion matrices (draws, C · C)."""
    return sums[:, :: num_classes + 1].sum(1) / sums.sum(1)


def macro_f1_interval(labels, predicted, num_classes: int, groups=None, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of macro-F1 by `resampled`, from class indexes (n,).

    It is too narrow for few photos. Simulated (three even classes, 0.70 to 0.95 of each right, 2,000 sets of each size;
    tests/test_stats.py repeats it on fewer), it holds the true macro-F1 in 0.91 of sets with n = 30, 0.93 with 100 and
    0.94 with 300. With n = 10, 0.18 of the sets have no mistake and so no interval; of the others' wide ones 0.95
    hold it, which makes 0.78 of all.
    """
    sums = resampled(cells(labels, predicted, num_classes), labels, groups, seed=seed)
    return interval(macro_f1(sums, num_classes))


def mcnemar(a_right: np.ndarray, b_right: np.ndarray) -> dict[str, float]:
    """McNemar's exact test (1947) on booleans (n,): only_a, only_b (photos only one has right) and p, two-sided.

    p is that of a fair coin: the photos both have right, or wrong, say nothing about which is better. Six that all
    speak for one side are the fewest to reach p < 0.05.
    """
    from statsmodels.stats.contingency_tables import mcnemar as test

    a, b = np.asarray(a_right, bool), np.asarray(b_right, bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    p = test([[int((a & b).sum()), only_a], [only_b, int((~a & ~b).sum())]], exact=True).pvalue
    return {"only_a": only_a, "only_b": only_b, "p": float(min(p, 1.0))}


def paired_difference(
    labels, a_predicted, b_predicted, num_classes: int, groups=None, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """B minus A in accuracy and in macro_f1, each as (difference, low, high), 95 %, from class indexes (n,).

    The same photos are drawn for both (a paired bootstrap), so that what both find hard cancels. low and high are NaN
    where the two agree on every photo.
    """
    both = np.hstack([cells(labels, predicted, num_classes) for predicted in (a_predicted, b_predicted)])
    sums, width, found = resampled(both, labels, groups, seed=seed), num_classes**2, {}
    for name, statistic in {"accuracy": accuracy, "macro_f1": macro_f1}.items():
        a, b = (statistic(both[:, part].sum(0)[None], num_classes)[0] for part in (slice(width), slice(width, None)))
        drawn = statistic(sums[:, width:], num_classes) - statistic(sums[:, :width], num_classes)
        found[name] = (float(b - a), *interval(drawn))
    return found


def paired_gain(a: Iterable[float], b: Iterable[float], folds: int = 0) -> dict[str, float]:
    """Mean of b - a over pairs, with its 95 % interval by Student's t; keys gain, low, high, n.

    Pairs share everything but what is compared (seed, fold). Runs on `folds` of one division share training photos,
    so their differences vary together: the variance is then (1/n + 1/(folds - 1)) s² instead of s²/n (Nadeau and
    Bengio 2003, equation 7). It tells what other seeds or folds of these photos would give, not what other photos
    would. With one pair low and high are NaN.

    Raises:
        InputError: lists of different lengths, or empty ones.
    """
    from scipy.stats import t

    a, b = np.asarray(list(a), float), np.asarray(list(b), float)
    if len(a) != len(b) or not len(a):
        raise InputError(f"paired gain: {len(a)} and {len(b)} numbers; wanted as many on both sides, at least one")
    gain, n = float((b - a).mean()), len(a)
    shared = 1 / (folds - 1) if folds > 1 else 0  # photos that judge to photos that teach
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
    found = permutation_test(
        (values,),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=10_000,
        rng=np.random.default_rng([seed, 7]),
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p values (k,) corrected for having asked k questions (Holm 1979): the chance of *any* false alarm holds.

    statsmodels has it too, but collects garbage at each call, which takes a second in a large process.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(np.arange(len(p), 0, -1) * p[order]), 1)
    return corrected


def pairs_needed(differences: Sequence[float], power: float = 0.8, at_most: int = 10_000) -> int | None:
    """How many pairs like these a t test wants to tell their mean from 0 (5 %, two-sided) with this power.

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


def optimism(right: np.ndarray, labels: np.ndarray, groups=None, seed: int = 0) -> dict[str, float]:
    """What the best of k runs owes to having been chosen on the photos that judge it: points, best, honest.

    In each bootstrap sample the run that does best there is chosen, and judged on all photos as well; the mean gap is
    what choosing adds (Efron and Tibshirani 1993, 17.6). A bootstrap sample has chance of its own added to that of
    the photos, so this is a rough size, not a correction to the third digit.

    Args:
        right: booleans (n, k), photo by run.

    Returns:
        `best`, the highest accuracy; `points`, the mean gap as a share; `honest`, best less points.
    """
    right = np.asarray(right, float)
    drawn = resampled(right, labels, groups, seed=seed) / len(right)
    winners = drawn.argmax(1)
    gap = drawn[np.arange(len(drawn)), winners] - right.mean(0)[winners]
    best = float(right.mean(0).max())
    return {"best": best, "points": float(gap.mean()), "honest": best - float(gap.mean())}


def by_group(predictions: pd.DataFrame, groups: Sequence[str]) -> pd.DataFrame:
    """A row per group of two photos and more: label (of most), right, n; the least share right first, large ones first.

    Args:
        predictions: rows with label and predicted; `groups` names a group for each row, "" for none.
    """
    table = pd.DataFrame({"group": list(groups), "label": predictions["label"].to_numpy()})
    table["right"] = (predictions["label"] == predictions["predicted"]).to_numpy()
    table = (
        table[table["group"] != ""]
        .groupby("group")
        .agg(label=("label", lambda part: part.mode()[0]), right=("right", "sum"), n=("right", "size"))
    )
    table = table[table["n"] > 1].assign(share=table["right"] / table["n"])
    return table.sort_values(["share", "n"], ascending=[True, False]).drop(columns="share")


def span(low: float, high: float) -> str:
    """`95 % interval 0.83 to 1.00`, or that there is none."""
    return f"95 % interval {low:.2f} to {high:.2f}" if np.isfinite(low) else "no interval: it does not vary"


def said(value: float, low: float, high: float) -> str:
    """`0.933 (95 % interval 0.83 to 1.00)`; without the interval where there is none."""
    return f"{value:.3f}{f' ({span(low, high)})' if np.isfinite(low) else ''}"


def said_difference(difference: float, low: float, high: float, name: str) -> str:
    """`macro-F1 +0.210 (95 % interval 0.05 to 0.38)`, with `cannot tell` where the interval holds 0 or is missing."""
    unsure = "" if low > 0 or high < 0 else ": cannot tell"
    return f"{name} {difference:+.3f} ({span(low, high)}){unsure}"
