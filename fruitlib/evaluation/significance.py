"""Do two settings, or two runs, really differ? Paired tests, their intervals, and what they could have found.

Two runs are compared on the same photos. `groups` is a name for each photo, "" where it stands alone; None: all do.
scipy is imported where it is used, so that this module costs nothing to import. `make coverage` simulates the tests
and intervals of two runs; the tables below are its.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fruitlib.core.errors import InputError
from fruitlib.evaluation.intervals import f1_slope, units_of, variance_between_groups
from fruitlib.evaluation.metrics import Z, confusion_matrix, f1_of_counts

FEWEST_GROUPS = 6  # with five, no pattern of signs is rarer than 2 in 32
EXACT_SIGNS, DRAWN_SIGNS = 13, 9999  # up to so many differences all patterns of signs are tried; else so many drawn
BLOCK = 1 << 22  # signs that are held in memory at a time


@dataclass(frozen=True)
class PairedDifference:
    """The accuracy of B less that of A on the same photos, as a share; interval and p as `accuracy_difference` says.

    NaN with fewer than six groups: `low`, `high` and `p`. `detectable` is NaN with six and fewer, and where photos
    alone are too few for any difference to be found in four of five comparisons.
    """

    value: float
    low: float
    high: float
    p: float  # of the mid-p test, or of sign flips
    detectable: float  # the difference that four of five such comparisons would have found, as a share
    n: int  # photos
    units: int  # groups, each photo that stands alone being one
    groups: int = 0  # of them, those with a name; 0 where no two photos share one

    @property
    def too_few(self) -> bool:
        """Whether there are too few groups to tell."""
        return bool(self.groups) and self.units < FEWEST_GROUPS

    @property
    def significant(self) -> bool:
        """Whether p < 0.05."""
        return self.p < 0.05


def accuracy_difference(
    a_right: np.ndarray, b_right: np.ndarray, groups: Sequence[str] | None = None
) -> PairedDifference:
    """Whether B has more photos right than A, from booleans (n,), beyond what chance explains.

    Photos alone: McNemar's mid-p (`mid_p`), Tango's interval (`tango_interval`), and `detectable_alone`. In groups:
    the exact or drawn sign flips of groups (`sign_flip`) decide, the interval is Student's t over groups, and the
    detectable difference is (t_.975 + t_.8) times its standard error; both are no smaller than of as many photos
    alone, since where few photos differ groups seem alike by chance. Six groups must all agree, which a mean does not
    promise: no difference is named. Fewer than six tell nothing.

    Simulated (tests/simulations/two_runs.py): false alarms, nominal 0.05 at most; coverage of the intervals of the
    accuracy and of the macro-F1 difference, nominal 0.95; and how often a difference of the size that was named as
    detectable is found, 0.8 being claimed:

    ====================  ============  ================  ================  ===============
                          false alarms  accuracy covered  macro-F1 covered  found, of named
    ====================  ============  ================  ================  ===============
    10 photos alone               0.00              1.00              0.95             none
    30 photos alone               0.03              0.96              0.95             0.78
    100 photos alone              0.05              0.94              0.94             0.75
    300 photos alone              0.05              0.95              0.95             0.76
    6 groups                      0.01              0.98              0.94             none
    8 groups                      0.02              0.96              0.94             0.69
    18 groups                     0.05              0.95              0.93             0.79
    49 groups                     0.04              0.95              0.96             0.75
    ====================  ============  ================  ================  ===============

    At n = 10 the interval covers too often: so few photos differ that it nearly always holds 0.
    """
    a, b = np.asarray(a_right, bool), np.asarray(b_right, bool)
    only_a, only_b, n = int((a & ~b).sum()), int((b & ~a).sum()), len(a)
    value, (low, high) = (only_b - only_a) / n, tango_interval(only_a, only_b, n)
    detectable, (unit, grouped) = detectable_alone(only_a, only_b, n), units_of(n, groups)
    if not grouped:
        return PairedDifference(value, low, high, mid_p(only_a, only_b), detectable, n, units=n)
    surplus, sizes = np.bincount(unit, b.astype(float) - a), np.bincount(unit)
    counts, nothing = {"n": n, "units": len(sizes), "groups": len({*groups} - {""})}, float("nan")
    if len(sizes) < FEWEST_GROUPS:
        return PairedDifference(value, nothing, nothing, nothing, nothing, **counts)
    group_low, group_high, between = between_groups(surplus, sizes)
    detectable = nothing if len(sizes) == FEWEST_GROUPS else float(np.maximum(detectable, between))
    ends = min(low, group_low), max(high, group_high)
    return PairedDifference(value, *ends, sign_flip(surplus), detectable, **counts)


# ---------------------------------------------------------------- photos alone


def mid_p(only_a: int, only_b: int) -> float:
    """McNemar's test (1947) of photos that only one side has right: its mid-p, two-sided.

    Photos that both have right, or both wrong, do not show which is better. The mid-p is the exact p of a fair coin
    less half the probability of what was seen (Fagerland, Lydersen and Laake 2013): the exact test's false alarms
    are far below 5 %, those of the mid-p nearly never above. At least five, all in favour of one side, are needed.
    """
    from scipy.stats import binom

    if only_a == only_b:
        return 1.0
    fewer, differ = min(only_a, only_b), only_a + only_b
    return float(2 * binom.cdf(fewer, differ, 0.5) - binom.pmf(fewer, differ, 0.5))


def tango_interval(only_a: int, only_b: int, n: int) -> tuple[float, float]:
    """95 % interval of the difference of two paired shares, (only_b - only_a) / n (Tango 1998).

    The differences that a score test does not reject, found by bisection. It exists where the two agree on every
    photo, too. Bonett and Price's adjusted Wald (2012) is wider: .98 against .965 at n = 30.
    """
    a, b = float(only_a), float(only_b)

    def score(difference: float) -> float:
        linear = -b - a + (2 * n - b + a) * difference  # share that only A has right, as likely as can be under it
        root = np.sqrt(max(linear**2 + 8 * n * a * difference * (1 - difference), 0)) - linear
        variance = n * (root / (2 * n) + difference * (1 - difference))
        return (b - a - n * difference) / np.sqrt(max(variance, 1e-12))

    value = (b - a) / n
    return _bisect(lambda d: score(d) <= Z, -1, value), _bisect(lambda d: score(d) < -Z, value, 1)


def _bisect(holds, low: float, high: float) -> float:
    """Where `holds` becomes true between low and high; high where it never does."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def mid_p_power(n: int, lost: float, difference: float) -> float:
    """The chance that `mid_p` is below 0.05 on n photos, exactly.

    Args:
        lost: the share of photos that only the worse side has right; the better side alone has `difference` more.
    """
    from scipy.special import bdtr, bdtrc

    share = min(2 * lost + difference, 1.0)
    reach, counts = _significant_counts(n), np.arange(n + 1)
    chance = np.diff(bdtr(counts.astype(float), n, share), prepend=0)  # of so many photos that one alone has right
    better, some = (lost + difference) / share, reach >= 0
    reach, counts = reach[some], counts[some]
    return float(chance[some] @ (bdtr(reach, counts, better) + bdtrc(counts - reach - 1, counts, better)))


@lru_cache(maxsize=4)
def _significant_counts(n: int) -> np.ndarray:
    """Of 0 to n photos that one side alone has right, so many or fewer on the one side are significant; -1: none."""
    from scipy.stats import binom

    counts = np.arange(n + 1)
    reach = binom.ppf(0.025, counts, 0.5)
    mid = binom.cdf(reach, counts, 0.5) - binom.pmf(reach, counts, 0.5) / 2
    return np.where(mid < 0.025, reach, reach - 1)


def detectable_alone(only_a: int, only_b: int, n: int, power: float = 0.8) -> float:
    """The difference in accuracy that `mid_p` finds with this power on n photos; NaN where none is large enough.

    It takes the share of photos that only the worse side has right to be that seen here, smoothed: (k + 1) / (n + 2)
    with k = min(only_a, only_b). Where either alone is right on 3 % of photos it names 29 points at n = 30 on average,
    11 at n = 100 and 5 at n = 300. Two runs that differ on more photos hide a larger difference.
    """
    lost = (min(only_a, only_b) + 1) / (n + 2)
    most = 1 - 2 * lost
    if most <= 0 or mid_p_power(n, lost, most) < power:
        return float("nan")
    low, high = 0.0, most
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if mid_p_power(n, lost, middle) >= power else (middle, high)
    return high


# ---------------------------------------------------------------- photos in groups


def between_groups(surplus: np.ndarray, sizes: np.ndarray) -> tuple[float, float, float]:
    """95 % interval of sum(surplus) / sum(sizes) over groups (G,) resampled, and the difference found in four of five.

    Student's t; the variance of the ratio is linearised (Cochran 1977, section 6.4). Where groups have unlike sizes
    a large one pulls the ratio to itself: residuals are enlarged by 1 / (1 - its share), and the degrees of freedom
    are Bell and McCaffrey's (2002), for groups that differ alike whatever their size. Of equal sizes this is the
    common formula with G - 1.

    Args:
        surplus: photos (G,) that B has right more than A, by group.
        sizes: photos (G,), by group.
    """
    from scipy.stats import t

    photos, weight = sizes.sum(), sizes / sizes.sum()
    value = surplus.sum() / photos
    correction, degrees = _unlike_sizes(weight)
    error = np.sqrt(correction * ((surplus - value * sizes) ** 2 / (1 - weight)).sum()) / photos
    half = t.ppf(0.975, degrees) * error
    return float(value - half), float(value + half), float(half + t.ppf(0.8, degrees) * error)


def _unlike_sizes(weight: np.ndarray) -> tuple[float, float]:
    """By what to multiply the variance of `between_groups` so that it is unbiased, and its degrees of freedom.

    The variance is the quadratic form of A = sum of c_g d_g d_g', d_g being group g less the weighted mean; its
    degrees of freedom are (tr A)² / tr A².
    """
    c, squares = weight**2 / (1 - weight), (weight**2).sum()
    own = 1 - 2 * weight + squares
    trace = (c * own).sum()
    c0, c1, c2 = c.sum(), (c * weight).sum(), (c * weight**2).sum()
    crossed = squares**2 * c0**2 + 2 * c2 * c0 - 4 * squares * c1 * c0 + 2 * c1**2
    trace_of_square = crossed + (c**2 * (own**2 - (squares - 2 * weight) ** 2)).sum()
    return float(squares / trace), float(trace**2 / trace_of_square)


def sign_flip(differences: Sequence[float], seed: int = 0) -> float:
    """p of paired differences under the hypothesis that each could as well have the other sign, two-sided.

    All sign patterns are tried up to 13 differences other than 0, 9,999 random ones beyond (Fisher's randomisation
    test). With n differences p is never below 2 / 2^n: five cannot reach 0.05.

    Raises:
        InputError: no differences.
    """
    values = np.asarray(differences, float)
    if not len(values):
        raise InputError("sign_flip: no differences to test")
    values = values[values != 0]
    if len(values) < 2:
        return 1.0
    reached = abs(values.sum()) - 1e-9 * np.abs(values).sum()
    if len(values) <= EXACT_SIGNS:
        signs = 1.0 - 2 * ((np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1)
        return float((np.abs(signs @ values) >= reached).mean())
    rng, hits, step = np.random.default_rng([seed, 7]), 0, max(1, BLOCK // len(values))
    for start in range(0, DRAWN_SIGNS, step):
        shape = (min(step, DRAWN_SIGNS - start), len(values))
        signs = 1.0 - 2 * rng.integers(0, 2, shape, dtype=np.int8)
        hits += int((np.abs(signs @ values) >= reached).sum())
    return (1 + hits) / (1 + DRAWN_SIGNS)


# ---------------------------------------------------------------- macro-F1


def macro_f1_difference(
    labels: np.ndarray, a: np.ndarray, b: np.ndarray, num_classes: int, groups: Sequence[str] | None = None
) -> tuple[float, float, float]:
    """Macro-F1 of B less that of A, and its 95 % interval, from class indexes (n,).

    Linearised: each photo adds the slope of B's macro-F1 at its cell less that of A's, photos per class fixed. Alone,
    half a photo that only one side has right is spread over the classes and both sides first; in groups the variance
    is that between the groups of each class, with Student's t of groups less classes degrees of freedom. It does not
    decide whether A and B differ: `accuracy_difference` does, whose docstring has the coverage.

    Returns:
        value, low, high; NaN for the ends with fewer than six groups, or where a class has a single one.
    """
    from scipy.stats import t

    labels, a, b = (np.asarray(part) for part in (labels, a, b))
    matrices = [confusion_matrix(labels, predicted, num_classes) for predicted in (a, b)]
    value = f1_of_counts(matrices[1]) - f1_of_counts(matrices[0])
    unit, grouped = units_of(len(labels), groups)
    if not grouped:
        half = Z * np.sqrt(_f1_variance_alone(labels, a, b, matrices))
        return float(value), float(value - half), float(value + half)
    slope_a, slope_b = (f1_slope(matrix) for matrix in matrices)
    parts = slope_b[labels, b] - slope_a[labels, a]
    variance, degrees = variance_between_groups(parts, labels, unit)
    if int(unit.max()) + 1 < FEWEST_GROUPS or not degrees or variance < 1e-12:
        return float(value), float("nan"), float("nan")
    half = t.ppf(0.975, degrees) * np.sqrt(variance)
    return float(value), float(value - half), float(value + half)


def _f1_variance_alone(labels: np.ndarray, a: np.ndarray, b: np.ndarray, matrices: list[np.ndarray]) -> float:
    """The delta method's variance of the difference, each class's photos falling into pairs of cells independently."""
    classes, count = len(matrices[0]), matrices[0].sum(1)
    each = 1 / (4 * classes)  # of a photo: added to each class for each side that alone is right
    other = np.full((classes, classes), each / max(classes - 1, 1))
    np.fill_diagonal(other, 0)
    total = count + 2 * each
    smooth = [(m + other + each * np.eye(classes)) * (count / total)[:, None] for m in matrices]
    slope_a, slope_b = (f1_slope(matrix) for matrix in smooth)
    parts = slope_b[labels, b] - slope_a[labels, a]
    only_a = slope_b - np.diag(slope_a)[:, None]  # by class and by what B predicts instead
    only_b = np.diag(slope_b)[:, None] - slope_a
    mean, of_squares = (
        (np.bincount(labels, parts**power, classes) + (other * (only_a**power + only_b**power)).sum(1)) / total
        for power in (1, 2)
    )
    return float((count * (of_squares - mean**2)).sum())


# ---------------------------------------------------------------- runs of a sweep


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p values (k,) corrected for k questions (Holm 1979), so that the chance of *any* false alarm holds.

    statsmodels has it too, but collects garbage at each call, which takes a second in a large process.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(np.arange(len(p), 0, -1) * p[order]), 1)
    return corrected
