"""Heads that scikit-learn fits on a frozen network's features, and the layers of torch that compute the same.

    logistic     multinomial logistic regression
    svm          linear support vector machine, each class against the others
    knn          votes of the nearest training photos, by the angle between features
    prototypes   the nearest class mean, where a shrunken covariance says what is near (linear discriminant analysis)

Features are standardised first. How strongly a head is regularised is chosen within the training photos: by the
log-loss of photos in folds that it did not learn from, whole groups at a time.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from fruitlib.data import balance

# What is compared, from strong to weak: C, the weight of the photos against the penalty; k neighbours; nothing
STRENGTHS = {"logistic": (0.001, 0.01, 0.1, 1.0, 10.0), "svm": (0.0001, 0.001, 0.01, 0.1)}
STRENGTHS |= {"knn": (40, 20, 10, 5, 3, 1), "prototypes": (0,)}
USUAL = {"logistic": 1.0, "svm": 0.01, "knn": 5, "prototypes": 0}  # where nothing can be compared
WORDS = {"logistic": "C", "svm": "C", "knn": "k", "prototypes": ""}
FOLDS = 5
# Rows of features that strengths are compared on; of more, a sample
MOST_COMPARED = {"logistic": 1000, "svm": 500, "knn": 2000, "prototypes": 300}
WORSE = 2
ALIKE = 1.02  # the weakest penalty whose log-loss is within 2 % of the least is taken: see `_choose`
ABSENT = -10.0  # logit of a class without training photos; the mean of the others is 0
COMPARED, FINAL = 1e-4, 1e-7  # tolerances of the solvers
CLOSENESS = 0.07  # Wu et al.'s temperature of votes
SCALES = np.geomspace(0.05, 50, 61)  # factors that are tried to make scores logits


@dataclass(frozen=True)
class Fitted:
    """A head as a layer of torch, from features (N, D) to logits; the strength chosen, those compared, and a line."""

    module: nn.Module
    kind: str
    strength: float
    summary: str
    table: list[dict] = field(default_factory=list)

    def record(self) -> dict:
        """For a run's record; `word` says what the strength is, C or k."""
        names = ("kind", "strength", "summary", "table")
        return {name: getattr(self, name) for name in names} | {"word": WORDS[self.kind]}


class Knn(nn.Module):
    """Votes of the `k` training rows whose standardised features point most nearly the same way, as logits.

    A row votes with exp(cosine / 0.07) (Wu et al. 2018, "Unsupervised feature learning", section 3.4), so that votes
    change with the photo and Grad-CAM has gradients. Logits are the logarithm of each class's share, as scikit-learn's
    KNeighborsClassifier with these weights has it, after one vote of k + 1 is given to all classes alike, so that none
    has probability 0.
    """

    def __init__(self, width: int, num_classes: int, rows: int = 0):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("directions", torch.zeros(rows, width))  # each of length 1
        self.register_buffer("votes", torch.zeros(rows, num_classes))
        self.register_buffer("k", torch.tensor(1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, D) -> logits (N, C)."""
        towards = nn.functional.normalize((features - self.mean) / self.scale)
        k = int(self.k)
        cosine, nearest = (towards @ self.directions.T).topk(k, dim=1)
        votes = (cosine / CLOSENESS).softmax(1)[..., None] * self.votes[nearest]
        shares = votes.sum(1) / votes.sum((1, 2))[:, None]
        return ((k * shares + 1 / self.votes.shape[1]) / (k + 1)).log()


def resize(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Give a `Knn` inside `model` as many rows as it has in `state`, so that this can be loaded."""
    for name, part in model.named_modules():
        if isinstance(part, Knn) and f"{name}.directions" in state:
            rows = len(state[f"{name}.directions"])
            part.directions = part.directions.new_zeros(rows, part.directions.shape[1])
            part.votes = part.votes.new_zeros(rows, part.votes.shape[1])


@dataclass(frozen=True)
class TrainingSet:
    """What a head learns from: features, a row for each view of each photo, and how classes are balanced.

    `rows` (m, r) are the standardised features in an orthonormal `basis` (D, r) of their own span, or as they are
    where `basis` is None. A rotation changes neither penalties nor angles, and of few photos the span is much smaller.
    """

    kind: str
    rows: np.ndarray
    labels: np.ndarray  # int (m,), as all below
    photos: np.ndarray
    groups: np.ndarray
    class_names: Sequence[str]
    balance: str
    seed: int
    mean: np.ndarray  # (D,)
    scale: np.ndarray
    basis: np.ndarray | None

    @property
    def num_classes(self) -> int:
        """Outputs of the head, also for classes without training photos."""
        return len(self.class_names)

    def balanced(self, rows: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """These rows and labels, with SMOTE's where that is set."""
        if self.balance != "smote":
            return rows, labels
        more, names = balance.smote(torch.from_numpy(rows), torch.from_numpy(labels), self.class_names, self.seed)
        return more.numpy(), names.numpy()

    def weights(self, labels: np.ndarray) -> np.ndarray:
        """What each row counts, 1 in the mean: the same for all, or for all classes."""
        if self.balance != "class_weights":
            return np.ones(len(labels))
        counts = np.bincount(labels)
        return (len(labels) / ((counts > 0).sum() * np.maximum(counts, 1)))[labels]

    def linear(self, coefficients: np.ndarray, intercepts: np.ndarray, classes: np.ndarray) -> nn.Linear:
        """The layer that makes of plain features (N, D) the probabilities of `rows @ coefficients.T + intercepts`.

        Coefficients are (classes, r), or (1, r) for the difference between two classes.
        """
        if len(coefficients) < len(classes):
            coefficients, intercepts = _two(coefficients), _two(intercepts)
        coefficients = coefficients - coefficients.mean(0)  # the mean logit is 0, which changes no probability
        intercepts = intercepts - intercepts.mean()
        weights = coefficients if self.basis is None else coefficients @ self.basis.T
        weights = weights / self.scale
        layer = nn.Linear(len(self.mean), self.num_classes)
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.fill_(ABSENT)
            layer.weight[classes] = torch.from_numpy(weights).float()
            layer.bias[classes] = torch.from_numpy(intercepts - weights @ self.mean).float()
        return layer


def _two(difference: np.ndarray) -> np.ndarray:
    """Values of two classes from the difference between the second and the first."""
    return np.concatenate([-difference, difference]) / 2


def fit(
    kind: str,
    features: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[str],
    class_names: Sequence[str],
    method: str = "none",
    seed: int = 0,
) -> Fitted:
    """A head for features float32 (n, views, D) of photos with class indexes (n,), fitted on every view of each.

    `groups` (n,) stay together where strengths are compared; "" is a photo alone. `method` is `Config.balance`, of
    which class_weights and smote count here.

    Raises:
        InputError: SMOTE with a class of one row.
    """
    training = _training_set(kind, features, labels, groups, class_names, method, seed)
    present = np.unique(training.labels)
    if len(present) == 1:
        layer = training.linear(np.zeros((1, training.rows.shape[1])), np.zeros(1), present)
        return Fitted(layer, kind, USUAL[kind], f"head {kind}: one class has photos, and it is always the answer")
    strength, factor, table, how = _choose(training)
    rows, names = training.balanced(training.rows, training.labels)
    if kind == "knn":
        module = _knn(training, rows, names, strength)
    else:
        model = _estimator(training, rows, names, strength, FINAL)
        module = training.linear(model.coef_ * factor, model.intercept_ * factor, present)
    photos = f"{len(features):,} photos" + (f", {features.shape[1]} views each" if features.shape[1] > 1 else "")
    balanced = {"class_weights": ", all classes weigh alike", "smote": ", rare classes topped up by SMOTE"}
    chosen = f"{WORDS[kind]} = {strength:g}, {how}" if WORDS[kind] else "covariance within classes shrunken by OAS"
    return Fitted(module, kind, strength, f"head {kind}: fitted on {photos}{balanced.get(method, '')}; {chosen}", table)


def _training_set(kind, features, labels, groups, class_names, method: str, seed: int) -> TrainingSet:
    photos = np.arange(len(features)).repeat(features.shape[1])
    names = [group or f"\0{place}" for place, group in enumerate(groups)]
    of_group = np.unique(names, return_inverse=True)[1]
    rows = features.reshape(len(photos), -1).astype(np.float64)
    mean, scale = _standard(rows)
    rows, basis = (rows - mean) / scale, None
    if len(rows) < len(mean):
        basis, right = np.linalg.qr(rows.T)
        rows = np.ascontiguousarray(right.T)
    labels = np.asarray(labels)
    return TrainingSet(
        kind, rows, labels[photos], photos, of_group[photos], class_names, method, seed, mean, scale, basis
    )


def _standard(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale of each feature: its standard deviation, or the median one of all features where that is larger.

    So a feature that hardly varies is not enlarged to the size of the others: it is mostly noise, and its weight would
    outgrow all others of the layer, which INT8 rounds by the largest. On fruit304 (EfficientNet lite0, varieties
    whole) it lifts accuracy from .83 to .85 and lowers the log-loss from .48 to .43.
    """
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(rows)
    deviations = np.sqrt(scaler.var_)
    scale = np.maximum(deviations, np.median(deviations))
    return scaler.mean_, np.where(scale > 0, scale, 1.0)


def _estimator(
    training: TrainingSet, rows: np.ndarray, labels: np.ndarray, strength: float, tolerance: float, warm=None
):
    """scikit-learn's fitted estimator; logistic regression starts from `warm`, that of another strength."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    if training.kind == "prototypes":
        return Prototypes(rows, labels)
    if training.kind == "svm":
        model = LinearSVC(C=strength, tol=10 * COMPARED, max_iter=10_000, random_state=training.seed)
    else:
        model = warm or LogisticRegression(max_iter=10_000, warm_start=True)
        model.set_params(C=strength, tol=tolerance)
    return model.fit(rows, labels, sample_weight=training.weights(labels))


class Prototypes:
    """The nearest class mean, as scikit-learn's LinearDiscriminantAnalysis with equal priors and this covariance.

    The covariance is that of all rows about their class means, shrunken by scikit-learn's `OAS`. (LDA would estimate
    one for each class first, from a few photos, and takes half a minute for a hundred classes.)
    """

    def __init__(self, rows: np.ndarray, labels: np.ndarray):
        from sklearn.covariance import OAS

        classes, places = np.unique(labels, return_inverse=True)
        means = np.stack([rows[places == place].mean(0) for place in range(len(classes))])
        covariance = OAS(assume_centered=True).fit(rows - means[places]).covariance_
        covariance += (1e-9 * np.trace(covariance) / len(covariance) + 1e-12) * np.eye(len(covariance))  # alike photos
        self.coef_ = np.linalg.solve(covariance, means.T).T
        self.intercept_ = -(self.coef_ * means).sum(1) / 2

    def decision_function(self, rows: np.ndarray) -> np.ndarray:
        """Scores (m, classes)."""
        return rows @ self.coef_.T + self.intercept_


def _knn(training: TrainingSet, rows: np.ndarray, labels: np.ndarray, k: int) -> Knn:
    """The votes of these rows, for plain features."""
    plain = rows if training.basis is None else rows @ training.basis.T
    module = Knn(len(training.mean), training.num_classes, len(rows))
    module.mean.copy_(torch.from_numpy(training.mean))
    module.scale.copy_(torch.from_numpy(training.scale))
    module.directions.copy_(nn.functional.normalize(torch.from_numpy(plain)))
    module.votes[np.arange(len(rows)), labels] = torch.from_numpy(training.weights(labels)).float()
    module.k.fill_(min(k, len(rows)))
    return module


def _choose(training: TrainingSet) -> tuple[float, float, list[dict], str]:
    """The strength with the least log-loss, the factor that makes its scores logits, all compared, and how, in words.

    The log-loss is taken with the scores multiplied by the factor that suits them best, so that it compares what a
    head knows and not how sure it is. Of those within 2 % the weakest penalty is taken: differences so small are noise,
    and on fruit304 (varieties whole, 15 folds) the least log-loss led to .82 accuracy where this leads to .83; on the
    photos of another collection, on which it was not chosen, the two were alike (.829 and .826).
    Features are scaled by all training photos, which tells no labels.
    """
    sample, folds, how = _division(training)
    strengths = STRENGTHS[training.kind]
    if not folds:
        return USUAL[training.kind], 1.0, [], how
    table: list[dict] = []
    warm: list[Any] = [None] * len(folds)
    for strength in strengths:
        logits, labels = _unseen(training, sample, folds, strength, warm)
        factor, loss = _scaled(logits, labels, training)
        hits = np.average(logits.argmax(1) == labels, weights=training.weights(labels))
        row = {"strength": strength, "log_loss": loss, "accuracy": float(hits), "factor": factor}
        table.append(row)
        limit = ALIKE * min(row["log_loss"] for row in table)
        best = [row for row in table if row["log_loss"] <= limit][-1]
        if len(table) - table.index(best) > WORSE:
            break
    if len(strengths) > 1:
        how = f"the best of {len(table)} by log-loss in {len(folds)} folds of the training photos{how}"
    return best["strength"], best["factor"], table, how


def _division(training: TrainingSet) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]], str]:
    """The rows on which strengths are compared, folds of these rows (train, held out), and what to say of it.

    No folds where a class has fewer than two groups, of which one could train and one be held out.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    sample, how = np.arange(len(training.rows)), ""
    if len(sample) > (most := MOST_COMPARED[training.kind]):
        count = max(most // int((training.photos == 0).sum()), 2 * training.num_classes)  # all views of a photo
        chosen = _sample(training, count)
        sample, how = np.flatnonzero(np.isin(training.photos, chosen)), f", on {len(chosen):,} of them"
    labels, groups = training.labels[sample], training.groups[sample]
    classes, groups_of_each = np.unique(np.unique([labels, groups], axis=1)[0], return_counts=True)
    count = min(FOLDS, groups_of_each.min())
    folds = []
    if count > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes with fewer rows than folds
            divide = StratifiedGroupKFold(count, shuffle=True, random_state=training.seed)
            folds = list(divide.split(sample, labels, groups))
    needed = 2 if training.balance == "smote" else 1
    whole = [(np.bincount(labels[train], minlength=classes[-1] + 1)[classes] >= needed).all() for train, _ in folds]
    if not folds or not all(whole):
        return sample, [], "the usual value, since a class has too few groups to compare strengths"
    return sample, folds, how


def _sample(training: TrainingSet, count: int) -> np.ndarray:
    """About `count` photos: of every class some, in proportion, from as many groups as can be."""
    photos, first = np.unique(training.photos, return_index=True)
    order = np.random.default_rng(training.seed).permutation(len(photos))
    order = order[np.argsort(_rank(training.groups[first][order]), kind="stable")]  # a photo of every group first
    labels = training.labels[first][order]
    rank, size = _rank(labels), np.bincount(labels)[labels]
    turn = np.where(rank < FOLDS, rank - FOLDS, rank / size)  # what the folds need, then each class alike
    return photos[order[np.argsort(turn, kind="stable")][:count]]


def _rank(names: np.ndarray) -> np.ndarray:
    """How many equal ones stand before each."""
    return pd.Series(names).groupby(names).cumcount().to_numpy()


def _unseen(training: TrainingSet, sample: np.ndarray, folds: list, strength: float, warm: list[Any]):
    """Scores (n, classes) of the sample's photos, by heads that did not learn from them, and labels (n,).

    `warm` holds each fold's estimator of the strength before, and then that of this one.
    """
    rows, labels = training.rows[sample], training.labels[sample]
    classes, places = np.unique(labels, return_inverse=True)
    scores = np.empty((len(rows), len(classes)))
    for number, (train, held_out) in enumerate(folds):
        centre = rows[train].mean(0)  # that of all rows would give away the mean of those held out
        train_rows, names = training.balanced(rows[train] - centre, labels[train])
        asked = rows[held_out] - centre
        if training.kind == "knn":
            scores[held_out] = _votes(training, train_rows, names, asked, strength)[:, classes]
            continue
        warm[number] = _estimator(training, train_rows, names, strength, COMPARED, warm[number])
        found = warm[number].decision_function(asked)
        scores[held_out] = found if found.ndim == 2 else _two(found[None]).T
    photos, first = np.unique(training.photos[sample], return_index=True)
    views = len(rows) // len(photos)  # a photo's rows follow one another
    return scores.reshape(len(photos), views, -1).mean(1), places[first]


def _votes(training: TrainingSet, train_rows: np.ndarray, names: np.ndarray, asked: np.ndarray, k: int) -> np.ndarray:
    module = Knn(train_rows.shape[1], training.num_classes, len(train_rows)).double()
    module.directions.copy_(nn.functional.normalize(torch.from_numpy(train_rows)))
    module.votes[np.arange(len(train_rows)), names] = torch.from_numpy(training.weights(names))
    module.k.fill_(min(k, len(train_rows)))
    return module(torch.from_numpy(asked)).numpy()


def _scaled(logits: np.ndarray, labels: np.ndarray, training: TrainingSet) -> tuple[float, float]:
    """The factor on scores (n, classes) with the least log-loss, and that; 1 where they are logits already."""
    factors = np.ones(1) if training.kind == "knn" else SCALES
    weights, losses = training.weights(labels), []
    for factor in factors:
        scores = logits * factor
        largest = scores.max(1)
        sums = largest + np.log(np.exp(scores - largest[:, None]).sum(1))
        losses.append(np.average(sums - scores[np.arange(len(labels)), labels], weights=weights))
    best = int(np.argmin(losses))
    return float(factors[best]), float(losses[best])
