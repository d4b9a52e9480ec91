"""Whether a probability of 0.9 is right nine times in ten: reliability, calibration error, temperature.

Confidence is the probability of the predicted class. Probabilities are (n, C), labels class indexes (n,).
"""

import numpy as np

from fruitlib import metrics, stats

BINS = 10
LEAST = 1e-6  # files keep six decimals


def bins(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Per photo, one-hot by bin of confidence: 1, confidence, and whether it is right; (n, 3 · BINS)."""
    probs = np.asarray(probs)
    confidence, right = probs.max(1), probs.argmax(1) == labels
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    table = np.zeros((len(probs), 3, BINS))
    table[np.arange(len(probs)), :, place] = np.stack([np.ones(len(probs)), confidence, right], 1)
    return table.reshape(len(probs), -1)


def error(sums: np.ndarray) -> np.ndarray:
    """Expected calibration error (draws,) of summed `bins` (draws, 3 · BINS), in shares.

    ECE = sum over bins of n_bin / n · |accuracy - mean confidence| (Guo et al. 2017, equation 3; 10 bins of equal
    width). On few photos even a perfectly calibrated model has one of some points, by chance.
    """
    counts, confidence, right = np.moveaxis(sums.reshape(-1, 3, BINS), 1, 0)
    return np.abs(right - confidence).sum(1) / counts.sum(1)


def ece(probs: np.ndarray, labels: np.ndarray, groups=None, seed: int = 0) -> tuple[float, float, float]:
    """Expected calibration error with its 95 % bootstrap interval: (value, low, high)."""
    table = bins(probs, labels)
    drawn = error(stats.resampled(table, labels, groups, seed=seed))
    return (float(error(table.sum(0)[None])[0]), *stats.interval(drawn))


def by_chance(probs: np.ndarray, seed: int = 0, draws: int = 1000) -> float:
    """The mean calibration error these probabilities would have by chance alone, were every one of them right.

    Labels are drawn from the probabilities themselves.
    """
    probs, rng = np.asarray(probs, float), np.random.default_rng([seed, 8])
    confidence = probs.max(1) / probs.sum(1)
    table = bins(probs, probs.argmax(1)).reshape(len(probs), 3, BINS)
    right = rng.random((draws, len(probs))) < confidence
    counted = right.astype(float) @ table[:, 0]
    return float((np.abs(counted - table[:, 1].sum(0)).sum(1) / len(probs)).mean())


def temperature(probs: np.ndarray, labels: np.ndarray) -> float:
    """The T that makes softmax(log(probs) / T) likeliest (Guo et al. 2017, 4.2): above 1, the model is overconfident.

    Between 0.05 and 20; a model without mistakes is most likely with the least, which tells nothing.
    """
    from scipy.optimize import minimize_scalar

    logits = np.log(np.clip(probs, LEAST, 1))

    def loss(log_t: float) -> float:
        return metrics.log_loss(metrics.softmax(logits / np.exp(log_t)), labels)

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def scaled(probs: np.ndarray, by: float) -> np.ndarray:
    """Probabilities at temperature `by`; the predicted class stays."""
    return metrics.softmax(np.log(np.clip(probs, LEAST, 1)) / by)


def cross_scaled(probs: np.ndarray, labels: np.ndarray, groups=None, seed: int = 0, parts: int = 5) -> np.ndarray:
    """Probabilities at temperatures fitted on the other photos, so that what is judged was not fitted.

    Whole groups fall into one of `parts` parts.
    """
    probs, labels = np.asarray(probs), np.asarray(labels)
    of = stats.units(groups) if groups is not None else np.arange(len(labels))
    numbers = np.random.default_rng([seed, 9]).permutation(of.max(initial=0) + 1)[of] % parts
    found = probs.astype(float)
    for part in np.unique(numbers):
        own = numbers == part
        if not own.all():
            found[own] = scaled(probs[own], temperature(probs[~own], labels[~own]))
    return found
