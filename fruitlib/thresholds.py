"""What a threshold on a class's probability would find and claim: ROC and precision-recall curves per class."""

import numpy as np


def curves(probs: np.ndarray, labels: np.ndarray, class_names: list[str]) -> dict[str, dict]:
    """Curves of each class against the rest, for classes that some photo has and some has not.

    Args:
        probs: (n, C); labels: class indexes (n,).

    Returns:
        by class name: `false_alarms` and `recall_roc` (the ROC, k points) with `auc`; `recall` and `precision` (m + 1
        points) over `threshold` (m) with `ap`, average precision. scikit-learn's definitions.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

    found = {}
    for number, name in enumerate(class_names):
        true, score = np.asarray(labels) == number, np.asarray(probs)[:, number]
        if true.any() and not true.all():
            false_alarms, recall_roc, _ = roc_curve(true, score)
            precision, recall, threshold = precision_recall_curve(true, score)
            found[name] = {"false_alarms": false_alarms, "recall_roc": recall_roc, "auc": roc_auc_score(true, score)}
            found[name] |= {"recall": recall, "precision": precision, "threshold": threshold}
            found[name]["ap"] = average_precision_score(true, score)
    return found


def best(curve: dict) -> tuple[float, float, float]:
    """The threshold with the highest F1 on a class's curve: (threshold, recall there, precision there)."""
    recall, precision = curve["recall"][:-1], curve["precision"][:-1]
    f1 = 2 * recall * precision / np.maximum(recall + precision, 1e-12)
    at = int(f1.argmax())
    return float(curve["threshold"][at]), float(recall[at]), float(precision[at])
