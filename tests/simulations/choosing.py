"""What choosing among runs and epochs adds to their accuracy: the truth, and `selection.selection_optimism`'s estimate.

Whether run r at epoch e recognises photo j is decided on a latent scale, by a sum: 1.3, the run's skill, the luck of
the epoch, the photo (and its group), run x photo (and run x group), and noise. So the share of new photos that are
right has a formula.
"""

import numpy as np
import pandas as pd

from fruitlib.evaluation.selection import selection_optimism

TIMES = 1500
PLACES = ((30, 0), (93, 16))  # validation photos, and groups that they are in; 0: they stand alone
RUNS, EPOCHS, SPREADS = (4, 20, 72), (1, 12), (0.0, 0.3)  # spread: standard deviation of the runs' skill
EPOCH_LUCK, NOISE = 0.15, 0.5
OF_PHOTO, OF_RUN = {False: 1.0, True: 0.6}, {False: 0.6, True: 0.4}  # by whether there are groups
OF_GROUP, OF_RUN_AND_GROUP = 0.9, 0.5


def table(times: int) -> pd.DataFrame:
    """A row per number of photos, runs and epochs: points that choosing adds, truly and as estimated."""
    rows = []
    for n, groups in PLACES:
        for runs in RUNS:
            for epochs in EPOCHS:
                points = np.mean([_points(n, groups, runs, epochs, SPREADS[i % 2], i) for i in range(times)], axis=0)
                row = {"photos": n, "groups": groups or "", "runs": runs, "epochs": epochs}
                rows.append(row | dict(zip(("true", "estimated"), points.round(1), strict=True)))
    return pd.DataFrame(rows)


def _points(n: int, groups: int, runs: int, epochs: int, spread: float, seed: int) -> tuple[float, float]:
    """What choosing adds in one world, in points: truly, and as estimated."""
    rng = np.random.default_rng((seed, n, runs, epochs))
    skill = 1.3 + rng.normal(0, spread, (runs, 1)) + rng.normal(0, EPOCH_LUCK, (runs, epochs))
    group = (
        rng.permutation(np.concatenate([np.arange(groups), rng.integers(0, groups, n - groups)])) if groups else None
    )
    right = (_latent(rng, skill, n, groups, group) > 0).reshape(runs * epochs, n)
    truth = _chance_right(skill, bool(groups)).ravel()
    accuracy = right.mean(1)
    chosen = accuracy.argmax()
    # The mean over all configurations owes nothing to choosing; without it fewer repetitions tell the same
    added = accuracy[chosen] - truth[chosen] - (accuracy.mean() - truth.mean())
    names = None if group is None else [f"g{number}" for number in group]
    return 100 * added, 100 * selection_optimism(right.T, names, draws=500).points


def _latent(rng, skill: np.ndarray, n: int, groups: int, group) -> np.ndarray:
    """The latent scores (runs, epochs, n)."""
    runs, epochs = skill.shape
    photo = rng.normal(0, OF_PHOTO[bool(groups)], n)
    of_run = rng.normal(0, OF_RUN[bool(groups)], (runs, n))
    if groups:
        photo += rng.normal(0, OF_GROUP, groups)[group]
        of_run += rng.normal(0, OF_RUN_AND_GROUP, (runs, groups))[:, group]
    return skill[:, :, None] + photo + of_run[:, None] + rng.normal(0, NOISE, (runs, epochs, n))


def _chance_right(skill: np.ndarray, grouped: bool) -> np.ndarray:
    """The share of new photos (of new groups) that are right."""
    from scipy.stats import norm

    variance = OF_PHOTO[grouped] ** 2 + OF_RUN[grouped] ** 2 + NOISE**2
    variance += OF_GROUP**2 + OF_RUN_AND_GROUP**2 if grouped else 0
    return norm.cdf(skill / np.sqrt(variance))
