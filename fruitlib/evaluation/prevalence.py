"""Other class shares than those of the photos at hand: where the model will be used, and where it has learned.

Validation and test hold equal counts per class, the photos where the model will be used do not, and a network carries
the class shares it was trained on as its prior. Shares are (C,) and sum to 1, labels and predicted are class indexes
(n,), probs are (n, C).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fruitlib.core.errors import InputError
from fruitlib.core.model_names import FITTED_HEADS
from fruitlib.core.texts import normal
from fruitlib.data.splits import USABLE
from fruitlib.evaluation import crossval, intervals, significance
from fruitlib.evaluation.metrics import confusion_matrix, f1_of_counts
from fruitlib.runs.run import Run

# Balances after which every class has the same weight in training; `augment_to` lifts the small ones to a number
EQUALISING = ("class_weights", "weighted_sampler", "oversample", "undersample", "smote")


# ---- whose shares


def class_shares(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """The share of each class among these photos."""
    return np.bincount(labels, minlength=num_classes) / max(len(labels), 1)


def deploy_shares(run: Run) -> np.ndarray:
    """The class shares where the model will be used: the setting, else those of all usable photos of the manifest.

    Raises:
        InputError: the setting leaves out a class, or names one that is none.
    """
    names = run.class_names
    if run.config.deploy_shares:
        return shares_in_order(run.config.deploy_shares, names)
    labels = run.manifest.loc[run.manifest["status"].isin(USABLE), "label"]
    return class_shares(labels.map(names.index).to_numpy(), len(names))


def shares_in_order(setting: dict[str, float], names: list[str]) -> np.ndarray:
    """The setting `deploy_shares` in the order of the class names, of sum 1.

    Raises:
        InputError: it leaves out a class, or names one that is none.
    """
    wanted = {normal(name): share for name, share in setting.items()}
    if unknown := sorted(set(wanted) - set(names)) or [name for name in names if name not in wanted]:
        what = f"no class is called {unknown[0]}" if unknown[0] in wanted else f"class {unknown[0]} has no share"
        each = f"give one share for each of {', '.join(names)}"
        raise InputError(f"deploy_shares = {wanted}: {what}; {each}", "deploy_shares")
    shares = np.array([wanted[name] for name in names], float)
    return shares / shares.sum()


def training_prior(run: Run) -> np.ndarray:
    """The class shares that training had: equal where balance, loss or head make them so, else the photos'."""
    names, config = run.class_names, run.config
    by_loss = config.loss == "soft_f1" and config.head not in FITTED_HEADS
    if config.balance in EQUALISING or config.head == "prototypes" or by_loss:
        return np.full(len(names), 1 / len(names))
    counts = np.bincount(run.rows("train")["label"].map(names.index), minlength=len(names))
    counts = np.maximum(counts, max(config.augment_to, 1))  # a class that train_share emptied counts as one photo
    return counts / counts.sum()


def photo_weights(labels: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The weight (n,) of each photo with which its class has its share of all, mean 1.

    A class without photos has no part in it; the others keep their ratios.
    """
    weights = (shares / np.maximum(class_shares(labels, len(shares)), 1e-12))[labels]
    return weights / weights.mean() if len(weights) else weights


# ---- scores at other shares


@dataclass(frozen=True)
class AtShares:
    """What a confusion matrix would be where classes come in certain shares."""

    matrix: np.ndarray  # shares of all photos (C, C), sum 1; classes without photos left out
    accuracy: float
    precision: np.ndarray  # (C,); NaN for a class that is never predicted


def at_shares(matrix: np.ndarray, shares: np.ndarray) -> AtShares:
    """The confusion matrix (C, C) with its rows weighted to these shares. Recall stays, precision does not."""
    count = matrix.sum(1, keepdims=True)
    rows = matrix / np.maximum(count, 1) * np.asarray(shares)[:, None]
    rows = rows / max(rows.sum(), 1e-12)
    claimed = rows.sum(0)
    precision = np.divide(np.diag(rows), claimed, out=np.full(len(rows), np.nan), where=claimed > 0)
    return AtShares(rows, float(np.trace(rows)) if count.any() else float("nan"), precision)


def accuracy_interval(
    labels: np.ndarray, predicted: np.ndarray, shares: np.ndarray, groups: Sequence[str] | None = None
) -> tuple[float, float]:
    """The 95 % interval of accuracy at these shares: `intervals.score_interval`; in groups `new_group_margins`.

    Coverage, nominal 0.95 (shares 0.44, 0.44 and 0.12, in the third line equal; as many photos of each class):

                      30 photos  99 photos  300 photos  8 groups  18 groups  49 groups
        hard               0.96       0.94        0.95      0.97       0.97       0.99
        easy               0.94       0.93        0.92      0.96       0.95       0.95
        equal shares       0.94       0.95        0.97      0.98       0.97       0.94
    """

    def slope(matrix: np.ndarray) -> np.ndarray:
        """How accuracy changes with each cell's count; a row's sum counts, so groups may differ in size."""
        count = matrix.sum(1)
        recall, own = np.diag(matrix) / np.maximum(count, 1e-12), np.where(count > 0, shares, 0)
        return (np.eye(len(matrix)) - recall[:, None]) * (own / own.sum() / np.maximum(count, 1e-12))[:, None]

    def value(matrix: np.ndarray) -> float:
        return at_shares(matrix, shares).accuracy

    unit, grouped = intervals.units_of(len(labels), groups)
    if not grouped:
        return intervals.score_interval(value, slope, labels, predicted, len(shares), groups)
    weights, right = photo_weights(labels, shares), (np.asarray(predicted) == labels).astype(float)
    accuracy = np.average(right, weights=weights)
    below, above = intervals.new_group_margins(right, weights * (right - accuracy) / weights.sum(), unit)
    return float(max(accuracy - below, 0)), float(min(accuracy + above, 1))


@dataclass(frozen=True)
class Accuracies:
    """Accuracy at equal class shares, and with its 95 % interval where the model is used."""

    equal: float
    used: float
    low: float
    high: float


def accuracies(
    labels: np.ndarray, predicted: np.ndarray, shares: np.ndarray, groups: Sequence[str] | None = None
) -> Accuracies:
    """Accuracy at equal class shares and at these (C,)."""
    matrix = confusion_matrix(labels, predicted, len(shares))
    equal, used = (at_shares(matrix, at).accuracy for at in (np.full(len(shares), 1 / len(shares)), shares))
    return Accuracies(equal, used, *accuracy_interval(labels, predicted, shares, groups))


def precision_table(matrix: np.ndarray, shares: np.ndarray, class_names: Sequence[str]) -> pd.DataFrame:
    """A row per class: its share where the model is used, recall, and precision at equal and at these shares."""
    equal, used = at_shares(matrix, np.full(len(shares), 1 / len(shares))), at_shares(matrix, shares)
    count = matrix.sum(1)
    recall = np.divide(np.diag(matrix), count, out=np.full(len(matrix), np.nan), where=count > 0)
    columns = {"share where used": shares, "recall": recall}
    columns |= {"precision at equal shares": equal.precision, "precision where used": used.precision}
    return pd.DataFrame(columns, index=list(class_names)).round(3)


# ---- another prior


def to_prior(probs: np.ndarray, prior: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Probabilities for other class shares than training had (Saerens, Latinne and Decaestecker 2002, equation 2.4)."""
    moved = np.asarray(probs, float) * (np.asarray(wanted) / np.maximum(prior, 1e-12))
    return moved / np.maximum(moved.sum(1, keepdims=True), 1e-12)


@dataclass(frozen=True)
class PriorShift:
    """What moving probabilities from the training shares to equal ones brings, on photos weighted to equal shares."""

    before: float  # macro-F1 at equal shares
    after: float
    better: int  # photos that only the moved probabilities get right
    worse: int  # photos that only the unmoved get right
    p: float  # sign flips of photos, or of groups
    n: int
    equal: bool  # the training shares are equal already: nothing to move

    @property
    def recommended(self) -> bool:
        """Whether it is a proven gain."""
        return self.p < 0.05 and self.after > self.before


def prior_shift(
    labels: np.ndarray, probs: np.ndarray, prior: np.ndarray, groups: Sequence[str] | None = None
) -> PriorShift:
    """The gain in macro-F1 of moving probabilities from the training shares, `prior`, to equal ones, and a verdict.

    Photos, or whole groups, on which the two differ have their signs flipped, weighted to equal class shares.
    """
    classes = len(prior)
    equal = np.full(classes, 1 / classes)
    weights, (unit, _) = photo_weights(labels, equal), intervals.units_of(len(labels), groups)
    sides = [np.asarray(probs).argmax(1), to_prior(probs, prior, equal).argmax(1)]
    macro_f1 = [f1_of_counts(at_shares(confusion_matrix(labels, side, classes), equal).matrix) for side in sides]
    right, moved_right = (side == labels for side in sides)
    change = np.bincount(unit, weights * (moved_right.astype(float) - right))
    change = change[np.abs(change) > 1e-9]
    p = significance.sign_flip(change) if len(change) else 1.0
    better, worse = int((moved_right & ~right).sum()), int((right & ~moved_right).sum())
    return PriorShift(*macro_f1, better, worse, p, len(labels), bool(np.ptp(prior) < 0.01))


def prior_shift_of(run: Run) -> PriorShift:
    """`prior_shift` of a run's predictions on photos it did not learn from; of repeated folds, the first repeat's."""
    predictions, _ = crossval.out_of_sample(run)
    if "repeat" in predictions:
        predictions = predictions[predictions["repeat"].astype(int) == 1]
    probs, labels = run.probs(predictions)
    return prior_shift(labels, probs, training_prior(run), run.groups(predictions["path"]))
