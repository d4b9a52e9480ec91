"""What a result has to beat: the commonest class, each photo's mean colour, frozen features of a pretrained network.

The last is called the probe. Its predictions come from outside this room, since features take torch.
"""

from collections.abc import Sequence

import numpy as np

from fruitlib.evaluation import metrics, significance


def majority(train_labels: np.ndarray, photos: int) -> np.ndarray:
    """The commonest of the class indexes `train_labels` (n,), once for each of so many photos, (photos,)."""
    return np.full(photos, np.bincount(train_labels).argmax())


def mean_colour(
    train_photos: np.ndarray, train_labels: np.ndarray, val_photos: np.ndarray, seed: int = 0
) -> np.ndarray:
    """Class indexes (m,) by logistic regression on each photo's mean and spread of red, green and blue.

    A network that does no better has learnt colour and nothing of shape, or less. Classes have equal weight, as they
    have in macro-F1.

    Args:
        train_photos: uint8 (n, S, S, 3), with class indexes `train_labels` (n,).
        val_photos: uint8 (m, S, S, 3).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(train_labels)) < 2:
        return majority(train_labels, len(val_photos))
    model = make_pipeline(
        StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000, random_state=seed)
    )
    return model.fit(colours(train_photos), train_labels).predict(colours(val_photos))


def colours(photos: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of each channel of photos uint8 (n, S, S, 3): (n, 6), shares of full brightness."""
    values, features = np.arange(256) / 255, np.empty((len(photos), 6))
    for row, photo in enumerate(photos):  # counts of 256 values: floats of all pixels would take eight times as long
        counts = np.stack([np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(photo, -1, 0)])
        shares = counts / counts[0].sum()
        mean = shares @ values
        features[row, :3], features[row, 3:] = mean, np.sqrt((shares * (values - mean[:, None]) ** 2).sum(1))
    return features


def beside_probe(
    labels: np.ndarray,
    predicted: np.ndarray,
    probe: np.ndarray,
    num_classes: int,
    groups: Sequence[str] | None = None,
) -> dict[str, float]:
    """A model's predictions beside the probe's for the same photos, all class indexes (n,).

    Returns:
        probe_accuracy and probe_macro_f1; over_probe, by how much the model's accuracy is above the probe's, with the
        ends of its 95 % interval and its p (`significance.accuracy_difference`; NaN with fewer than six groups).
    """
    own = metrics.scores(metrics.confusion_matrix(labels, probe, num_classes))
    found = significance.accuracy_difference(probe == labels, predicted == labels, groups)
    numbers = {"probe_accuracy": own["accuracy"], "probe_macro_f1": own["macro_f1"]}
    numbers |= {"over_probe": found.value, "over_probe_low": found.low, "over_probe_high": found.high}
    return numbers | {"over_probe_p": found.p}
