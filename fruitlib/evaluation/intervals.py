"""How far a number from few photos may be trusted, and of what it speaks: 95 % intervals.

Where photos come in groups (varieties, patients, days) an interval speaks of photos of *new groups*: photos of one
group are right and wrong together, so a few groups are little evidence, however many photos they have. Where photos
stand alone it speaks of other photos like these. `groups` is a name for each photo, "" where it stands alone; None:
all do.

scipy is imported where it is used, so that this module costs nothing to import. `make coverage` simulates every
interval; the tables below are its.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fruitlib.evaluation.metrics import Z, confusion_matrix, f1_of_counts, wilson_share

# The grid on which the posterior of mean and correlation is computed
MEANS = np.concatenate([np.linspace(0.002, 0.9, 80), np.linspace(0.905, 0.9995, 60)])
CORRELATIONS = np.array([0.003, 0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97])


def units(groups: Iterable[str]) -> np.ndarray:
    """A number (n,) for each group, and one of its own for each photo that stands alone (group "")."""
    names = pd.Series(list(groups), dtype=object)
    numbers = pd.factorize(names.where(names != "", None))[0]
    alone = numbers < 0
    numbers[alone] = numbers.max(initial=-1) + 1 + np.arange(alone.sum())
    return numbers


def units_of(n: int, groups: Sequence[str] | None) -> tuple[np.ndarray, bool]:
    """The unit (n,) of each of n photos, and whether any two share one."""
    unit = np.arange(n) if groups is None else units(groups)
    return unit, bool(n) and int(unit.max()) + 1 < n


def found_by_looks(groups: Iterable[str]) -> bool:
    """Whether there are groups, and all were found by looks or as copies; nobody named one."""
    named = {group for group in groups if group}
    return bool(named) and all(group.startswith(("near/", "same/")) for group in named)


@dataclass(frozen=True)
class Share:
    """A share of photos, such as an accuracy, and what it says of others.

    `low` to `high` is the 95 % interval for photos of new groups; for new photos where none share a group (`groups` is
    0 then, and `correlation` NaN). `same_low` to `same_high` is Wilson's, for more photos of these same groups.
    """

    correct: float  # a mean over repeats need not be whole
    n: int
    low: float
    high: float
    groups: int
    correlation: float  # how alike photos of a group are, 0 to 1
    same_low: float
    same_high: float

    @property
    def value(self) -> float:
        """correct / n; NaN without photos."""
        return self.correct / self.n if self.n else float("nan")


def share_of(right: Sequence[float], groups: Sequence[str] | None = None) -> Share:
    """The share of photos that are right, from 0 or 1 (or a mean of repeats) for each of n photos, with its intervals.

    Coverage of the interval for new groups, nominal 0.95, by number of groups (beta-binomial worlds with correlations
    0.1 to 0.6 and a world of two kinds of groups, 10 to 120 photos each, true shares 0.7 to 0.95):

                               3     6     8    10    18    49
    new groups              0.95  0.94  0.93  0.94  0.93  0.94
    Wilson's on the photos  0.45  0.43  0.41  0.43  0.43  0.43

    Wilson's interval for more photos of these same groups holds more often than it says, since photos of a known group
    vary less than a proportion does (3, 8, 49 groups):

                    3     8    49
    same groups  0.97  0.97  0.98
    """
    right = np.asarray(right, float)
    unit, grouped = units_of(len(right), groups)
    low, high = wilson_share(right.mean() if len(right) else np.nan, len(right))
    if not grouped:
        return Share(float(right.sum()), len(right), low, high, 0, float("nan"), low, high)
    new = new_group_interval(np.bincount(unit, right), np.bincount(unit))
    return Share(float(right.sum()), len(right), new[0], new[1], int(unit.max()) + 1, new[2], low, high)


def new_group_interval(right: np.ndarray, sizes: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """95 % (or `level`) interval for the share right of photos of new groups, and the mean correlation within a group.

    The number right of a group's photos is taken as beta-binomial (Skellam 1948) with mean mu and intra-class
    correlation rho, both with flat priors; the ends are quantiles of the posterior of mu, summed over a grid. Where
    every photo is a group of its own it is the flat-prior interval of a proportion, as wide as Wilson's.

    Args:
        right: photos that are right (G,), by group.
        sizes: photos (G,), by group.
    """
    from scipy.special import betaln

    pairs, times = np.unique(np.stack([right, sizes], 1), axis=0, return_counts=True)
    precision = (1 - CORRELATIONS) / CORRELATIONS
    a, b = MEANS[:, None] * precision, (1 - MEANS[:, None]) * precision
    log_posterior = -times.sum() * betaln(a, b)
    for (k, n), many in zip(pairs, times, strict=True):
        log_posterior += many * betaln(k + a, n - k + b)
    posterior = np.exp(log_posterior - log_posterior.max())
    posterior *= np.gradient(MEANS)[:, None] * np.gradient(CORRELATIONS)
    posterior /= posterior.sum()
    cumulated = np.append(0, posterior.sum(1).cumsum())
    edges = np.concatenate([[0], MEANS[:-1] + np.diff(MEANS) / 2, [1]])
    low, high = np.interp([(1 - level) / 2, (1 + level) / 2], cumulated, edges)
    low, high = (0.0 if not right.any() else low), (1.0 if (right == sizes).all() else high)
    return float(low), float(high), float(posterior.sum(0) @ CORRELATIONS)


def share_at_most(count: int, n: int, confidence: float = 0.95) -> float:
    """Upper end of a share of which `count` of n photos alone were seen, one-sided (Clopper and Pearson 1934)."""
    from scipy.stats import beta

    return 1.0 if count == n else float(beta.ppf(confidence, count + 1, n - count))


def new_group_share_at_most(counted: np.ndarray, unit: np.ndarray, confidence: float = 0.95) -> float:
    """Upper end, one-sided, of a share on photos of new groups; what is `counted` is 1 (n,), `unit` (n,) the group."""
    unit = np.unique(unit, return_inverse=True)[1]
    sizes = np.bincount(unit)
    others = sizes - np.bincount(unit, counted)
    return 1 - new_group_interval(others, sizes, level=2 * confidence - 1)[0]


def new_group_margins(right: np.ndarray, parts: np.ndarray, unit: np.ndarray) -> tuple[float, float]:
    """How far below and above its value a score that follows accuracy may lie on photos of new groups (95 %).

    The margins of accuracy itself (`new_group_interval`, which allows for the rare bad group), scaled by how much the
    score varies between groups as against accuracy; at least 1.96 standard errors.

    Args:
        right: whether each photo is right (n,).
        parts: what each photo adds to the score's difference from its mean (n,), as right less accuracy, over n, adds
            to accuracy.
        unit: the group of each photo (n,), as a number.
    """
    sizes, accuracy = np.bincount(unit), right.mean()
    low, high, _ = new_group_interval(np.bincount(unit, right), sizes)
    error = np.linalg.norm(np.bincount(unit, parts))
    of_accuracy = np.linalg.norm(np.bincount(unit, right) - accuracy * sizes) / len(right)
    scale = error / of_accuracy if of_accuracy > 1e-9 else 1.0
    return float(max(Z * error, scale * (accuracy - low))), float(max(Z * error, scale * (high - accuracy)))


def macro_f1_interval(
    labels: np.ndarray, predicted: np.ndarray, num_classes: int, groups: Sequence[str] | None = None
) -> tuple[float, float]:
    """The 95 % interval of macro-F1, from class indexes (n,); see `score_interval`.

    Coverage, nominal 0.95 (three classes, even and uneven; 0.7 to 0.97 of each right):

                    10    30   100   300
    even          0.95  0.94  0.95  0.95
    uneven        0.94  0.94  0.95  0.95

    and by groups a class (groups drawn by Dirichlet distributions, correlations 0.02 to 0.7):

                     2     3     5    16
    new groups    0.94  0.94  0.94  0.95
    """
    return score_interval(f1_of_counts, f1_slope, labels, predicted, num_classes, groups)


def f1_slope(matrix: np.ndarray) -> np.ndarray:
    """How macro-F1 changes with the count of each cell (C, C) of a confusion matrix, photos per class fixed."""
    matrix = np.asarray(matrix, float)
    true, claimed, tp = matrix.sum(1), matrix.sum(0), np.diag(matrix)
    total, there = np.maximum(true + claimed, 1e-12), true > 0
    slope = np.tile(np.where(there, -2 * tp / total**2, 0), (len(matrix), 1))
    slope[np.diag_indices(len(matrix))] += np.where(there, 2 / total, 0)
    return slope / max(there.sum(), 1)


def score_interval(
    value_of: Callable[[np.ndarray], float],
    slope_of: Callable[[np.ndarray], np.ndarray],
    labels: np.ndarray,
    predicted: np.ndarray,
    num_classes: int,
    groups: Sequence[str] | None = None,
) -> tuple[float, float]:
    """The 95 % interval of a score of the confusion matrix, photos per class fixed: Wilson's for n_eff photos.

    n_eff = f (1 - f) / Var f: as many independent photos as would make a proportion f vary that much (Korn and Graubard
    1998 do so for surveys). For photos alone Var f is the delta method's, on a matrix to which each class adds half a
    photo right and half a photo wrong, so that a perfect score has an interval too. In groups it is the linearised
    variance between the groups of each class, with Student's t of groups less classes degrees of freedom.

    Args:
        value_of: the score of a matrix (C, C).
        slope_of: its derivative by the count of each cell, (C, C).

    Returns:
        low and high; NaN, NaN where a class has a single group, which does not show how groups differ.
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    matrix = confusion_matrix(labels, predicted, num_classes)
    value, (unit, grouped) = value_of(matrix), units_of(len(labels), groups)
    if not len(labels):
        return float("nan"), float("nan")
    if not grouped:
        smooth = _smoothed(matrix)
        variance, smooth_value = _variance_alone(smooth, slope_of(smooth)), value_of(smooth)
        return wilson_share(value, smooth_value * (1 - smooth_value) / variance)
    variance, degrees = variance_between_groups(slope_of(matrix)[labels, predicted], labels, unit)
    if not degrees:
        return float("nan"), float("nan")
    from scipy.stats import t

    varies = variance > 1e-12 and value < 1
    n_eff = np.clip(value * (1 - value) / variance, 1, len(labels)) if varies else int(unit.max()) + 1
    return wilson_share(value, n_eff, t.ppf(0.975, degrees))


def _smoothed(matrix: np.ndarray) -> np.ndarray:
    """The matrix with half a photo right and half wrong added to each class that has photos, at its old number."""
    count = matrix.sum(1, keepdims=True)
    prior = np.full(matrix.shape, 0.5 / max(len(matrix) - 1, 1))
    np.fill_diagonal(prior, 0.5)
    return np.where(count > 0, (matrix + prior) * count / (count + 1), 0)


def _variance_alone(matrix: np.ndarray, slope: np.ndarray) -> float:
    """The delta method's variance: each class's photos fall into its cells independently."""
    count = matrix.sum(1)
    share = matrix / np.maximum(count, 1)[:, None]
    return float((count * ((share * slope**2).sum(1) - (share * slope).sum(1) ** 2)).sum())


def variance_between_groups(parts: np.ndarray, labels: np.ndarray, unit: np.ndarray) -> tuple[float, int]:
    """The variance of a sum of `parts` (n,) over groups resampled within each class, and its degrees of freedom.

    A group belongs to the class of most of its photos. 0 degrees where a class has a single group.
    """
    of_group = np.bincount(unit, parts)
    counts = np.zeros((len(of_group), labels.max() + 1))
    np.add.at(counts, (unit, labels), 1)
    home, variance, degrees = counts.argmax(1), 0.0, 0
    for one in np.unique(home):
        own = of_group[home == one]
        if len(own) < 2:
            return float("nan"), 0
        variance += len(own) * own.var(ddof=1)
        degrees += len(own) - 1
    return variance, degrees


def accuracy_by_group(predictions: pd.DataFrame, groups: Sequence[str]) -> pd.DataFrame:
    """A row per group of two photos and more: label (of most), right, n; the lowest share right first.

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
