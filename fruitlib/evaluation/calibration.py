"""Whether a probability of 0.9 is right nine times in ten: reliability, calibration error, temperature.

Confidence is the probability of the predicted class. Probabilities are (n, C), labels class indexes (n,).
"""

import numpy as np

from fruitlib.evaluation import intervals, metrics

BINS = 10
MIN_PROB = 1e-6  # files keep six decimals


def reliability_bins(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Per photo, one-hot by bin of confidence: 1, confidence, and whether it is right; (n, 3 · BINS)."""
    probs = np.asarray(probs)
    confidence, right = probs.max(1), probs.argmax(1) == labels
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    table = np.zeros((len(probs), 3, BINS))
    table[np.arange(len(probs)), :, place] = np.stack([np.ones(len(probs)), confidence, right], 1)
    return table.reshape(len(probs), -1)


def calibration_error(sums: np.ndarray) -> np.ndarray:
    """Expected calibration error (draws,) of summed `bins` (draws, 3 · BINS), in shares.

    ECE = sum over bins of n_bin / n · |accuracy - mean confidence| (Guo et al. 2017, equation 3; 10 bins of equal
    width). On few photos even a perfectly calibrated model has one of some points, by chance.
    """
    counts, confidence, right = np.moveaxis(sums.reshape(-1, 3, BINS), 1, 0)
    return np.abs(right - confidence).sum(1) / counts.sum(1)


def ece(probs: np.ndarray, labels: np.ndarray, groups=None, seed: int = 0) -> tuple[float, float, float]:
    """Expected calibration error with its 95 % bootstrap interval: (value, low, high).

    The error is never negative and chance adds to it, so the interval lies too high: compare with `error_by_chance`.
    """
    table = reliability_bins(probs, labels)
    drawn = calibration_error(intervals.bootstrap_sums(table, labels, groups, seed=seed))
    return (float(calibration_error(table.sum(0)[None])[0]), *intervals.percentile_interval(drawn))


def error_by_chance(probs: np.ndarray, seed: int = 0, draws: int = 1000) -> np.ndarray:
    """Calibration errors (draws,) these probabilities would have by chance alone, were they perfectly calibrated.

    Whether a photo is right is drawn from its own confidence (Vaicenavicius et al. 2019, consistency resampling).
    """
    probs, rng = np.asarray(probs, float), np.random.default_rng([seed, 8])
    confidence = probs.max(1) / probs.sum(1)
    table = reliability_bins(probs, probs.argmax(1)).reshape(len(probs), 3, BINS)
    right = rng.random((draws, len(probs))) < confidence
    counted = right.astype(float) @ table[:, 0]
    return np.abs(counted - table[:, 1].sum(0)).sum(1) / len(probs)


def fit_temperature(probs: np.ndarray, labels: np.ndarray) -> float:
    """The T that makes softmax(log(probs) / T) fit the labels best (Guo et al. 2017, 4.2).

    Above 1 the model is overconfident. T is kept between 0.05 and 20. It is 1 where nothing is wrong: the smallest T
    would fit best then, whatever the photos.
    """
    from scipy.optimize import minimize_scalar

    if (np.asarray(probs).argmax(1) == labels).all():
        return 1.0
    logits = np.log(np.clip(probs, MIN_PROB, 1))

    def loss(log_t: float) -> float:
        return metrics.log_loss(metrics.softmax(logits / np.exp(log_t)), labels)

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def scale_probs(probs: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities at this temperature; the predicted class stays."""
    return metrics.softmax(np.log(np.clip(probs, MIN_PROB, 1)) / temperature)


def cross_fitted_probs(probs: np.ndarray, labels: np.ndarray, groups=None, seed: int = 0, parts: int = 5) -> np.ndarray:
    """Probabilities at temperatures fitted on the other photos, so that no photo is scaled by its own label.

    Whole groups fall into one of `parts` parts.
    """
    probs, labels = np.asarray(probs), np.asarray(labels)
    units = intervals.units(groups) if groups is not None else np.arange(len(labels))
    part_of_photo = np.random.default_rng([seed, 9]).permutation(units.max(initial=0) + 1)[units] % parts
    scaled = probs.astype(float)
    for part in np.unique(part_of_photo):
        own = part_of_photo == part
        if not own.all():
            scaled[own] = scale_probs(probs[own], fit_temperature(probs[~own], labels[~own]))
    return scaled


def chance_p(ece: float, chance: np.ndarray) -> float:
    """The share of errors by chance (draws,) that are as large as this one, the one itself counted: a p value."""
    return float((1 + (chance >= ece).sum()) / (1 + len(chance)))


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
