"""Counts and rates from labels and predictions, and the interval of a proportion. NumPy only.

`labels` and `predicted` are class indexes (n,); a confusion matrix has true classes as rows, predicted as columns.
"""

from statistics import NormalDist

import numpy as np

Z = NormalDist().inv_cdf(0.975)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Photos by true class (row) and predicted class (column), int64 (C, C)."""
    pairs = np.asarray(labels, np.int64) * num_classes + np.asarray(predicted, np.int64)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def confusion_from_names(labels, predicted, class_names: list[str]) -> np.ndarray:
    """Confusion matrix of class names, such as the columns of a predictions file."""
    index = {name: i for i, name in enumerate(class_names)}
    return confusion_matrix([index[name] for name in labels], [index[name] for name in predicted], len(class_names))


def counts(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """tp, fp, fn, tn per class (C,), each class against the rest."""
    tp = np.diag(matrix)
    fp, fn = matrix.sum(0) - tp, matrix.sum(1) - tp
    return {"tp": tp, "fp": fp, "fn": fn, "tn": matrix.sum() - tp - fp - fn}


def rates(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """precision, recall, f1, miss_rate per class (C,); NaN where the divisor is 0.

    miss_rate = fn / (tp + fn), the share of a class that is not recognised; f1 = 2 tp / (2 tp + fp + fn).
    """
    c = counts(matrix)
    return {
        "precision": _divide(c["tp"], c["tp"] + c["fp"]),
        "recall": _divide(c["tp"], c["tp"] + c["fn"]),
        "f1": _divide(2 * c["tp"], 2 * c["tp"] + c["fp"] + c["fn"]),
        "miss_rate": _divide(c["fn"], c["tp"] + c["fn"]),
    }


def scores(matrix: np.ndarray) -> dict[str, float]:
    """n, correct, accuracy, balanced_accuracy, and macro averages over the classes present.

    A class that is never predicted has precision 0 in the macro average, as an F1 of 0 has it too.
    """
    per_class, n, correct = rates(matrix), int(matrix.sum()), int(np.trace(matrix))
    present = matrix.sum(1) > 0
    return {
        "n": n,
        "correct": correct,
        "accuracy": correct / n if n else float("nan"),
        "balanced_accuracy": float(per_class["recall"][present].mean()) if n else float("nan"),
        "macro_precision": float(np.nan_to_num(per_class["precision"][present]).mean()) if n else float("nan"),
        "macro_recall": float(per_class["recall"][present].mean()) if n else float("nan"),
        "macro_f1": float(per_class["f1"][present].mean()) if n else float("nan"),
        "macro_miss_rate": float(per_class["miss_rate"][present].mean()) if n else float("nan"),
    }


def wilson(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927), which stays honest for small n and near 0 or 1."""
    return wilson_share(correct / n if n else float("nan"), n, NormalDist().inv_cdf(0.5 + confidence / 2))


def wilson_share(share: float, n: float, quantile: float = Z) -> tuple[float, float]:
    """Wilson's interval for a share that is worth n photos, which need not be a whole number; NaN, NaN without any.

    `quantile`: of the normal distribution, or of Student's where n was itself estimated.
    """
    if not n > 0 or share != share:
        return float("nan"), float("nan")
    z2 = quantile * quantile
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = quantile / (1 + z2 / n) * np.sqrt(max(share * (1 - share), 0) / n + z2 / (4 * n * n))
    return float(max(centre - half, 0)) if share > 0 else 0.0, float(min(centre + half, 1)) if share < 1 else 1.0


def f1_of_counts(matrix: np.ndarray) -> float:
    """Macro-F1 of a confusion matrix whose counts need not be whole, over the classes that have photos."""
    matrix = np.asarray(matrix, float)
    true, claimed, there = matrix.sum(1), matrix.sum(0), matrix.sum(1) > 0
    return float((2 * np.diag(matrix)[there] / (true + claimed)[there]).mean()) if there.any() else float("nan")


def log_loss(probs: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log(p of the true class), natural logarithm, from probs (n, C) and class indexes (n,)."""
    chosen = np.asarray(probs)[np.arange(len(labels)), labels]
    return float(-np.log(np.clip(chosen, 1e-6, 1)).mean())  # files keep six decimals


def softmax(logits: np.ndarray) -> np.ndarray:
    """Logits (n, C) -> probabilities (n, C)."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
