"""What the choice of an epoch adds to pooled accuracy: by each fold's own photos, and by those of the other folds.

Whether a fold's run recognises a photo at an epoch is decided on a latent scale, by a sum: 1.3, the luck of the epoch,
the photo, and noise. So the share of new photos that are right has a formula.
"""

import numpy as np
import pandas as pd

from fruitlib.evaluation.crossval import epoch_by_others

TIMES = 400
PHOTOS, FOLDS, EPOCHS = (30, 100, 300), 5, (12, 30)
EPOCH_LUCK, OF_PHOTO, NOISE = 0.15, 1.0, 0.5


def table(times: int) -> pd.DataFrame:
    """A row per number of photos and epochs: points added where the photos themselves choose, and where others do."""
    rows = []
    for n in PHOTOS:
        for epochs in EPOCHS:
            points = np.mean([_points(n, epochs, seed) for seed in range(times)], axis=0).round(1) + 0.0
            rows.append({"photos": n, "epochs": epochs, "own best": points[0], "by others": points[1]})
    return pd.DataFrame(rows)


def _points(n: int, epochs: int, seed: int) -> tuple[float, float]:
    """Points that the choice adds to one cross-validation's pooled accuracy, by own photos and by others."""
    from scipy.stats import norm

    rng = np.random.default_rng((seed, n, epochs))
    skill = 1.3 + rng.normal(0, EPOCH_LUCK, (FOLDS, epochs, 1))
    photo = rng.normal(0, OF_PHOTO, (FOLDS, 1, n // FOLDS))
    right = (skill + photo + rng.normal(0, NOISE, (FOLDS, epochs, n // FOLDS)) > 0).mean(2)
    truth = norm.cdf(skill[:, :, 0] / np.hypot(OF_PHOTO, NOISE))
    own = right.argmax(1)
    loss = 1 - right  # what it is does not matter: it decides between equals
    curves = [
        pd.DataFrame({"epoch": range(1, epochs + 1), "val_accuracy": a, "val_loss": b})
        for a, b in zip(right, loss, strict=True)
    ]
    others = [epoch_by_others(curves[:f] + curves[f + 1 :], epochs, "accuracy") - 1 for f in range(FOLDS)]
    folds, luck = np.arange(FOLDS), right.mean() - truth.mean()  # owes nothing to choosing
    return tuple(100 * ((right - truth)[folds, chosen].mean() - luck) for chosen in (own, others))
