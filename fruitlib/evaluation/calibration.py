"""Whether a probability of 0.9 is right nine times in ten: the gap, reliability, calibration error, temperature.

Confidence is the probability of the predicted class. Probabilities are (n, C), labels class indexes (n,). `weights`
(n,) weigh photos to the class shares where the model is used (`prevalence.photo_weights`): a network carries the shares
it was trained on, and judged on photos with other shares a perfect one looks overconfident. None: all photos alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fruitlib.evaluation import intervals, metrics
from fruitlib.evaluation.prevalence import class_shares, photo_weights, to_prior

BINS = 10
FEWEST_PHOTOS = 100  # for a reliability diagram: below, a bin holds a few photos
MIN_PROB = 1e-6  # files keep six decimals
DRAWS, CELLS = 1000, 1 << 22


# ---- the gap


@dataclass(frozen=True)
class Gap:
    """Mean confidence and accuracy of the weighted photos, and the 95 % interval of their difference.

    The interval speaks of new photos, or of photos of new groups where `groups` is not 0.
    """

    confidence: float
    accuracy: float
    low: float
    high: float
    n: int
    groups: int

    @property
    def value(self) -> float:
        """Confidence minus accuracy: above 0 the model is overconfident."""
        return self.confidence - self.accuracy

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def confidence_gap(
    probs: np.ndarray, labels: np.ndarray, groups: Sequence[str] | None = None, weights: np.ndarray | None = None
) -> Gap:
    """Mean confidence minus accuracy, with its 95 % interval.

    Photos alone: Wilson's interval of accuracy, given the confidence, for n_eff photos (`intervals.score_interval`),
    from the variance between photos of a class, to which half a photo right and half a photo wrong are added. In
    groups: `intervals.new_group_margins`, as much narrower as the gap varies less than accuracy does (confidence falls
    where errors are). Student's t, which knows nothing of the rare bad group, covered 0.67 to 0.94 with 8 groups.

    Coverage, nominal 0.95 (calibrated models, the last one's logits doubled):

                      30 photos  99 photos  300 photos  8 groups  18 groups  49 groups
        hard               0.97       0.93        0.94      0.94       0.95       0.99
        easy               0.97       0.96        0.94      0.96       0.93       0.94
        equal shares       0.94       0.97        0.96      0.98       0.93       0.93
        sharpened          0.96       0.96        0.94      0.95       0.97       0.94
    """
    probs, labels = np.asarray(probs, float), np.asarray(labels)
    weights = np.ones(len(labels)) if weights is None else weights
    confidence, right = probs.max(1), (probs.argmax(1) == labels).astype(float)
    unit, grouped = intervals.units_of(len(labels), groups)
    means = float(np.average(confidence, weights=weights)), float(np.average(right, weights=weights))
    seen = (confidence, right, weights)
    ends = _gap_in_groups(*seen, unit) if grouped else _gap_alone(*seen, labels)
    return Gap(*means, *ends, len(labels), int(unit.max()) + 1 if grouped else 0)


def _gap_alone(confidence: np.ndarray, right: np.ndarray, weights: np.ndarray, labels: np.ndarray) -> tuple:
    """The ends for photos alone, from confidence, right, weights and labels (n,)."""
    variance = smooth = 0.0
    for one in np.unique(labels):
        own = labels == one
        mean, count = confidence[own].mean(), own.sum()
        gaps = np.concatenate([confidence[own] - right[own], [mean - 1, mean]])
        counts = np.append(np.ones(count), [0.5, 0.5])
        spread = np.average((gaps - np.average(gaps, weights=counts)) ** 2, weights=counts)
        share = weights[own].sum() / weights.sum()
        variance += share**2 * spread / count
        smooth += share * (right[own].sum() + 0.5) / (count + 1)
    low, high = metrics.wilson_share(np.average(right, weights=weights), smooth * (1 - smooth) / variance)
    expected = np.average(confidence, weights=weights)
    return float(expected - high), float(expected - low)


def _gap_in_groups(confidence: np.ndarray, right: np.ndarray, weights: np.ndarray, unit: np.ndarray) -> tuple:
    """The ends for new groups, from confidence, right, weights and the unit (n,) of each photo."""
    gaps = confidence - right
    gap = np.average(gaps, weights=weights)
    below, above = intervals.new_group_margins(right, weights * (gap - gaps) / weights.sum(), unit)
    return float(max(gap - above, -1)), float(min(gap + below, 1))


# ---- calibration error


def reliability_bins(probs: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """By bin of confidence, summed over photos: weight, confidence, right and squared weight; (4, BINS)."""
    probs = np.asarray(probs)
    weights = np.ones(len(probs)) if weights is None else weights
    confidence, right, place = probs.max(1), probs.argmax(1) == labels, _bin_of(probs)
    rows = (weights, weights * confidence, weights * right, weights**2)
    return np.stack([np.bincount(place, row, BINS) for row in rows])


def _bin_of(probs: np.ndarray) -> np.ndarray:
    """The bin (n,) of each photo's confidence."""
    return np.minimum((probs.max(1) * BINS).astype(int), BINS - 1)


def ece(probs: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Expected calibration error, a share.

    ECE = sum over bins of n_bin / n · |accuracy - mean confidence| (Guo et al. 2017, equation 3; 10 bins of equal
    width). Never negative, and chance adds to it, so it has no interval: compare with `error_by_chance`.
    """
    weight, confidence, right, _ = reliability_bins(probs, labels, weights)
    return float(np.abs(right - confidence).sum() / weight.sum())


def error_by_chance(
    probs: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[str] | None = None,
    shares: np.ndarray | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> np.ndarray:
    """Calibration errors (draws,) that chance alone would make, were the model perfectly calibrated.

    Photos alone: labels are drawn from the photos' own probabilities (Vaicenavicius et al. 2019, consistency
    resampling). In groups: what a group's photos are off, right minus confidence in each bin, gets a random sign for
    the whole group (the wild bootstrap by cluster; Cameron, Gelbach and Miller 2008). That knows nothing of the rare
    bad group, so in groups `beyond_chance` asks the gap, too: signs alone doubted up to 0.22 of calibrated models.

    Share of models that `beyond_chance` says are not calibrated, of calibrated ones and of others:

                      30 photos  99 photos  300 photos  8 groups  18 groups  49 groups
        hard               0.06       0.07        0.05      0.02       0.02       0.00
        easy               0.05       0.07        0.04      0.03       0.06       0.06
        equal shares       0.04       0.04        0.01      0.02       0.07       0.07
        not calibrated     0.39       0.65        0.91      0.14       0.72       1.00

    Args:
        shares: class shares (C,) where the model is used, to which photos are weighted; None: those of the photos.
    """
    probs, rng = np.asarray(probs, float), np.random.default_rng([seed, 8])
    probs = probs / probs.sum(1, keepdims=True)
    there = class_shares(labels, probs.shape[1])
    weight_of_class = np.divide(there if shares is None else shares, there, out=np.zeros(len(there)), where=there > 0)
    unit, grouped = intervals.units_of(len(labels), groups)
    if grouped:
        return _signs_by_chance(probs, labels, weight_of_class, unit, rng, draws)
    return _labels_by_chance(probs, there, weight_of_class, rng, draws)


def _labels_by_chance(
    probs: np.ndarray, there: np.ndarray, weight_of_class: np.ndarray, rng: np.random.Generator, draws: int
) -> np.ndarray:
    """Errors with labels drawn from the probabilities, moved to the class shares of these photos (C,)."""
    likely = to_prior(probs, np.where(there > 0, there * weight_of_class, 1), there).cumsum(1)
    chosen, confidence, bins = probs.argmax(1), probs.max(1), np.eye(BINS)[_bin_of(probs)]
    errors, step = [], max(1, CELLS // max(len(probs), 1))
    for start in range(0, draws, step):
        drawn = rng.random((min(step, draws - start), len(probs)))
        label = sum((drawn > likely[:, one]).astype(np.int8) for one in range(probs.shape[1] - 1))
        weights = weight_of_class[label]
        errors.append(np.abs(weights * ((label == chosen) - confidence) @ bins).sum(1) / weights.sum(1))
    return np.concatenate(errors)


def _signs_by_chance(
    probs: np.ndarray, labels: np.ndarray, weight_of_class: np.ndarray, unit: np.ndarray, rng, draws: int
) -> np.ndarray:
    """Errors with the signs of whole groups drawn at random."""
    weights = weight_of_class[labels]
    off = np.zeros((unit.max() + 1, BINS))
    np.add.at(off, (unit, _bin_of(probs)), weights * ((probs.argmax(1) == labels) - probs.max(1)))
    signs = rng.choice([-1.0, 1.0], (draws, len(off)))
    return np.abs(signs @ off).sum(1) / weights.sum()


def chance_p(error: float, chance: np.ndarray) -> float:
    """The share of errors by chance (draws,) that are as large as this one, the one itself counted: a p value."""
    return float((1 + (chance >= error - 1e-12).sum()) / (1 + len(chance)))


def beyond_chance(error: float, chance: np.ndarray, gap: Gap) -> bool:
    """Whether the model is proven to be miscalibrated; in groups, the gap's interval must leave out 0 as well."""
    return chance_p(error, chance) < 0.05 and (gap.significant or not gap.groups)


# ---- temperature


def fit_temperature(probs: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The T that makes softmax(log(probs) / T) fit the labels best (Guo et al. 2017, 4.2).

    Above 1 the model is overconfident. T is kept between 0.05 and 20. It is 1 where nothing is wrong: the smallest T
    would fit best then, whatever the photos.

    Of a perfect model trained and used at 44, 44 and 12 %, validated on as many photos of each (median of 200):

                      30 photos  99 photos  300 photos  8 groups  18 groups  49 groups
        all alike          1.19       1.24        1.21      1.14       1.46       1.40
        weighted           0.96       0.99        0.99      0.93       0.99       0.99
    """
    from scipy.optimize import minimize_scalar

    if (np.asarray(probs).argmax(1) == labels).all():
        return 1.0
    logits, rows = np.log(np.clip(probs, MIN_PROB, 1)), np.arange(len(labels))

    def loss(log_t: float) -> float:
        chosen = metrics.softmax(logits / np.exp(log_t))[rows, labels]
        return np.average(-np.log(np.clip(chosen, MIN_PROB, 1)), weights=weights)

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def scale_probs(probs: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities at this temperature; the predicted class stays."""
    return metrics.softmax(np.log(np.clip(probs, MIN_PROB, 1)) / temperature)


def cross_fitted_probs(
    probs: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[str] | None = None,
    weights: np.ndarray | None = None,
    seed: int = 0,
    parts: int = 5,
) -> np.ndarray:
    """Probabilities at temperatures fitted on the other photos, so that no photo is scaled by its own label.

    Whole groups fall into one of `parts` parts.
    """
    probs, labels = np.asarray(probs), np.asarray(labels)
    weights, (units, _) = np.ones(len(labels)) if weights is None else weights, intervals.units_of(len(labels), groups)
    part_of_photo = np.random.default_rng([seed, 9]).permutation(units.max(initial=0) + 1)[units] % parts
    scaled = probs.astype(float)
    for part in np.unique(part_of_photo):
        own = part_of_photo == part
        if not own.all():
            scaled[own] = scale_probs(probs[own], fit_temperature(probs[~own], labels[~own], weights[~own]))
    return scaled


# ---- all of it


@dataclass(frozen=True)
class Calibration:
    """What 03 shows of a run's confidence, photos weighted to the class shares where the model is used."""

    gap: Gap
    ece: float
    chance: np.ndarray  # errors that chance alone would make (draws,)
    beyond: bool  # the error is more than chance explains
    temperature: float
    scaled: np.ndarray  # probabilities (n, C) at temperatures fitted on other photos
    scaled_ece: float
    weights: np.ndarray  # of the photos (n,)


def evaluate_calibration(
    probs: np.ndarray, labels: np.ndarray, shares: np.ndarray, groups: Sequence[str] | None = None
) -> Calibration:
    """All of it at the class shares (C,) where the model is used."""
    weights = photo_weights(labels, shares)
    gap, error = confidence_gap(probs, labels, groups, weights), ece(probs, labels, weights)
    chance = error_by_chance(probs, labels, groups, shares)
    scaled = cross_fitted_probs(probs, labels, groups, weights)
    return Calibration(
        gap,
        error,
        chance,
        beyond_chance(error, chance, gap),
        fit_temperature(probs, labels, weights),
        scaled,
        ece(scaled, labels, weights),
        weights,
    )


# ---- thresholds


def threshold_curves(probs: np.ndarray, labels: np.ndarray, class_names: list[str]) -> dict[str, dict]:
    """Curves of each class against the rest, for classes that some photo has and some has not.

    Args:
        probs: (n, C); labels: class indexes (n,).

    Returns:
        by class name: `false_alarms` and `recall_roc` (the ROC, k points) with `auc`; `recall` and `precision` (m + 1
        points) over `threshold` (m) with `ap`, average precision. scikit-learn's definitions.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

    curves = {}
    for number, name in enumerate(class_names):
        true, score = np.asarray(labels) == number, np.asarray(probs)[:, number]
        if true.any() and not true.all():
            false_alarms, recall_roc, _ = roc_curve(true, score)
            precision, recall, threshold = precision_recall_curve(true, score)
            curves[name] = {"false_alarms": false_alarms, "recall_roc": recall_roc, "auc": roc_auc_score(true, score)}
            curves[name] |= {"recall": recall, "precision": precision, "threshold": threshold}
            curves[name]["ap"] = average_precision_score(true, score)
    return curves


def best_threshold(curve: dict) -> tuple[float, float, float]:
    """The threshold with the highest F1 on a class's curve: (threshold, recall there, precision there)."""
    recall, precision = curve["recall"][:-1], curve["precision"][:-1]
    f1 = 2 * recall * precision / np.maximum(recall + precision, 1e-12)
    at = int(f1.argmax())
    return float(curve["threshold"][at]), float(recall[at]), float(precision[at])


def threshold_table(curves: dict[str, dict]) -> pd.DataFrame:
    """A row per class: `best_threshold` on its curve."""
    columns = ["threshold with the highest F1", "recall there", "precision there"]
    rows = {name: best_threshold(curve) for name, curve in curves.items()}
    return pd.DataFrame(rows, index=columns).T.round(3)
