"""Few photos, unevenly spread: which photos an epoch goes over, and what a photo of a rare class weighs.

Balancing touches training photos only; validation and test photos keep the proportions they came in.
"""

from collections.abc import Sequence

import numpy as np
import torch

from fruitlib.core.errors import InputError

METHODS = {
    "none": "every photo once an epoch",
    "class_weights": "every photo once; its loss counts n / (classes · photos of its class)",
    "weighted_sampler": "as many photos as there are, drawn with replacement, each class equally likely",
    "oversample": "every class repeated to the size of the largest",
    "undersample": "every class cut to the size of the smallest, drawn again each epoch",
    "augment_to": "classes below augment_to photos topped up with augmented copies",
    "smote": "frozen features of rare classes joined by points between neighbours (SMOTE)",
}
NEIGHBOURS = 5  # SMOTE's own number
_PURPOSE = 0xBA1A  # keeps these draws apart from others of the same seed and epoch


def slots(labels: torch.Tensor, method: str, augment_to: int = 0, seed: int = 0, epoch: int = 1) -> torch.Tensor:
    """The photos one epoch goes over, as indexes int64 (m,) into `labels` int64 (n,); a photo may occur repeatedly.

    The result depends on (labels, method, augment_to, seed, epoch) alone. Its order has no meaning, except that with
    `augment_to` slot i < n is photo i itself, and the augmented copies follow. `weighted_sampler` draws as torch's
    `WeightedRandomSampler` does with weights 1 / photos of the class. The other methods repeat every photo of a class
    equally often as far as possible; those repeated once more are drawn each epoch, without replacement.

    Raises:
        InputError: an unknown method.
    """
    if method not in METHODS:
        raise InputError(f"balance = {method}: wanted {' | '.join(METHODS)}")
    rng = np.random.default_rng([seed, epoch, _PURPOSE])
    members = _members(labels)
    sizes = [len(photos) for photos in members]
    if method == "weighted_sampler":
        chosen = _evenly(members, len(labels), rng)
    elif method == "oversample":
        chosen = np.concatenate([_repeated(photos, max(sizes), rng) for photos in members])
    elif method == "undersample":
        chosen = np.concatenate([rng.choice(photos, min(sizes), replace=False) for photos in members])
    elif method == "augment_to":
        copies = [_repeated(photos, max(augment_to - len(photos), 0), rng) for photos in members]
        chosen = np.concatenate([np.arange(len(labels)), *copies])
    else:
        chosen = np.arange(len(labels))
    return torch.from_numpy(chosen)


def _members(labels: torch.Tensor) -> list[np.ndarray]:
    """The positions of each class that occurs, in the order of the classes."""
    labels = np.asarray(labels)
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _evenly(members: list[np.ndarray], count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` draws with replacement: a class, each equally likely, then one of its photos."""
    sizes = np.array([len(photos) for photos in members])
    drawn = rng.integers(len(members), size=count)
    return np.concatenate(members)[(np.cumsum(sizes) - sizes)[drawn] + rng.integers(sizes[drawn])]


def _repeated(photos: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of these photos: all of them equally often, the remainder drawn without replacement."""
    whole, rest = divmod(count, len(photos))
    return np.concatenate([np.tile(photos, whole), rng.choice(photos, rest, replace=False)])


def class_weights(labels: torch.Tensor, class_names: Sequence[str]) -> torch.Tensor:
    """Weight of each class, float32 (C,): n / (C · n_c) for labels int64 (n,), scikit-learn's "balanced".

    The mean weight of these photos is 1, so losses keep their scale and `lr` its meaning.

    Raises:
        InputError: a class without photos.
    """
    counts = torch.bincount(labels, minlength=len(class_names))
    if missing := (counts == 0).nonzero().flatten().tolist():
        raise InputError(
            f"balance = class_weights: class {class_names[missing[0]]} has no training photos to weigh: "
            "add photos, or choose another balance"
        )
    return (len(labels) / (len(class_names) * counts.double())).float()


def smote(
    features: torch.Tensor, labels: torch.Tensor, class_names: Sequence[str], seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (n, D) and labels (n,) joined by synthetic ones until every class is as large as the largest.

    A synthetic point lies on the segment between a point and one of its nearest neighbours of the same class (Chawla
    et al. 2002, by imbalanced-learn): 5 of them, or all there are where the smallest class has fewer (see `summary`).
    The n given points come first, unchanged.

    Raises:
        InputError: a class of one photo, which has no neighbours.
    """
    from imblearn.over_sampling import SMOTE

    if len(labels.unique()) < 2:
        return features, labels
    sampler = SMOTE(k_neighbors=_neighbours(labels, class_names), random_state=seed)
    more, names = sampler.fit_resample(features.numpy(), labels.numpy())
    return torch.as_tensor(more, dtype=features.dtype), torch.as_tensor(names, dtype=labels.dtype)


def _neighbours(labels: torch.Tensor, class_names: Sequence[str]) -> int:
    """SMOTE's number of neighbours for these labels: one fewer than the smallest class has, 5 at most."""
    present, counts = labels.unique(return_counts=True)
    if counts.min() < 2:
        raise InputError(
            f"balance = smote: class {class_names[present[counts.argmin()]]} has one training photo and needs two: "
            "add photos, or choose oversample or class_weights"
        )
    return min(NEIGHBOURS, int(counts.min()) - 1)


def summary(labels: torch.Tensor, class_names: list[str], method: str, augment_to: int = 0) -> str:
    """What a method makes of these photos, in one line: how many of each class an epoch goes over, and any limit."""
    counts = torch.bincount(labels[slots(labels, method, augment_to)], minlength=len(class_names)).tolist()
    each = [f"{name} {count}" for name, count in zip(class_names, counts, strict=True)]
    each = ", ".join(each[:20]) + (f" and {len(each) - 20:,} other classes" if len(each) > 20 else "")
    text = f"balance {method}: {METHODS[method]}; an epoch has {sum(counts)} ({each}) from {len(labels)} photos"
    if method == "class_weights":
        weights = zip(class_names, class_weights(labels, class_names).tolist(), strict=True)
        return text + "; weights " + ", ".join(f"{name} {weight:.2f}" for name, weight in weights)
    if method == "smote":
        counts = torch.bincount(labels, minlength=len(class_names))
        limit = f"every class has {counts.max()}, neighbours looked at: {_neighbours(labels, class_names)}"
        return f"balance smote: {METHODS['smote']}; {limit}"
    if method == "augment_to" and (above := sum(count > augment_to for count in counts)):
        return text + f"; {above} of {len(counts)} classes have more than {augment_to} and stay whole"
    return text
