"""Differences between settings on new seeds *and* new groups of photos: variance that comes from both at once.

The runs of a sweep share their photos, and those of one seed share its luck; so neither the runs nor the photos are
independent, and adding seeds says nothing about other photos. scipy is imported where it is used.
"""

from dataclasses import dataclass

import numpy as np

from fruitlib.evaluation.intervals import f1_slope
from fruitlib.evaluation.metrics import confusion_matrix, f1_of_counts

POWER = 0.8  # of the smallest difference that is named


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error, Student's degrees of freedom, 95 % interval and p of "it is 0"; NaN: unknown."""

    mean: float
    error: float = float("nan")
    degrees: float = float("nan")

    @property
    def half(self) -> float:
        """Half the width of the 95 % interval."""
        from scipy.stats import t

        return float(t.ppf(0.975, self.degrees) * self.error)

    @property
    def low(self) -> float:
        """Its lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Its upper end."""
        return self.mean + self.half

    @property
    def p(self) -> float:
        """Two-sided; 1 where there is no standard error, or 0, to compare with."""
        from scipy.stats import t

        if not self.error > 0:
            return 1.0
        return float(2 * t.sf(abs(self.mean) / self.error, self.degrees))

    def findable(self, questions: int = 1) -> float:
        """The difference that a study like this finds in 80 % of cases, at 5 % shared among so many questions."""
        from scipy.stats import t

        wanted = t.ppf(1 - 0.025 / max(questions, 1), self.degrees) + t.ppf(POWER, self.degrees)
        return float(wanted * self.error)


def over_seeds(differences: np.ndarray) -> Estimate:
    """Other seeds on these photos: Student's t over seeds, from a mean difference (S,) of each.

    Without an error where there is one seed.
    """
    values = np.asarray(differences, float)
    if len(values) < 2:
        return Estimate(float(values.mean()) if len(values) else float("nan"))
    return Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))), len(values) - 1)


def over_seeds_and_groups(differences: np.ndarray, unit: np.ndarray) -> Estimate:
    """New seeds and new groups, from the difference (S, J) of each seed on each photo; `unit` (J,) numbers the groups.

    The mean of a two-way layout with random seeds and groups has variance V = Vs + Vg - Vsg (Searle, Casella and
    McCulloch 1992, chapter 4), where Vs is that of the seeds' means, Vg that of the groups' (weighted by their photos)
    and Vsg the rest's, which both contain. V is taken no smaller than either of Vs and Vg. Its degrees of freedom are
    Satterthwaite's (1946). With one seed it speaks of new groups for that seed.
    """
    differences = np.asarray(differences, float)
    seeds, photos = differences.shape
    groups, mean = int(unit.max()) + 1, float(differences.mean())
    if groups < 2:
        return Estimate(mean)
    parts = np.stack([np.bincount(unit, row - mean, groups) for row in differences]) * groups / photos
    of_seed, of_group = parts.mean(1), parts.mean(0)
    group_variance = of_group.var(ddof=1) / groups
    if seeds < 2:
        return Estimate(mean, float(np.sqrt(group_variance)), groups - 1)
    seed_variance = of_seed.var(ddof=1) / seeds
    rest = parts - of_seed[:, None] - of_group[None] + parts.mean()
    rest_variance = (rest**2).sum() / ((seeds - 1) * (groups - 1)) / (seeds * groups)
    variance = max(seed_variance + group_variance - rest_variance, seed_variance, group_variance)
    if variance <= 0:
        return Estimate(mean)
    satterthwaite = variance**2 / (seed_variance**2 / (seeds - 1) + group_variance**2 / (groups - 1))
    return Estimate(mean, float(np.sqrt(variance)), float(max(1, satterthwaite)))


def photo_parts(labels: np.ndarray, predicted: np.ndarray, num_classes: int, measure: str) -> np.ndarray:
    """Each photo's part (n,) in a score, so that their mean is the score: 0 or 1 for accuracy.

    For the others it is the score plus n times the photo's influence, the derivative by the count of its cell of the
    confusion matrix (the infinitesimal jackknife, Jaeckel 1972), centred within its class.

    Args:
        measure: accuracy | macro_f1 | balanced_accuracy | macro_recall | macro_precision.
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    if measure == "accuracy":
        return (labels == predicted).astype(float)
    matrix = confusion_matrix(labels, predicted, num_classes)
    value, slope = {"macro_f1": _f1, "macro_precision": _precision}.get(measure, _recall)(matrix)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    centred = slope - (share * slope).sum(1, keepdims=True)
    return value + len(labels) * centred[labels, predicted]


def _f1(matrix: np.ndarray) -> tuple[float, np.ndarray]:
    return f1_of_counts(matrix), f1_slope(matrix)


def _recall(matrix: np.ndarray) -> tuple[float, np.ndarray]:
    count = matrix.sum(1)
    there = count > 0
    slope = np.diag(np.where(there, 1 / np.maximum(count, 1), 0)) / there.sum()
    return float((np.diag(matrix)[there] / count[there]).mean()), slope


def _precision(matrix: np.ndarray) -> tuple[float, np.ndarray]:
    claimed, tp, there = matrix.sum(0), np.diag(matrix), matrix.sum(1) > 0
    precision = np.where(claimed > 0, tp / np.maximum(claimed, 1), 0) * there
    slope = np.tile(-precision / np.maximum(claimed, 1), (len(matrix), 1)) + np.diag(there / np.maximum(claimed, 1))
    return float(precision[there].mean()), slope / there.sum()
