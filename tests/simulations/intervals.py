"""Coverage of the printed 95 % intervals: a share on new groups, a share and macro-F1 of photos alone and in groups.

The pooled folds of a cross-validation are simulated with real learners: a nearest-centroid classifier.
"""

import itertools

import numpy as np
import pandas as pd

from fruitlib.evaluation import crossval, intervals, metrics

TIMES = 1500
TRUE_SHARES = (0.7, 0.9, 0.95)
WORLDS = {"correlation 0.1": 0.1, "correlation 0.3": 0.3, "correlation 0.6": 0.6, "two kinds of groups": None}
LOW_KIND = {0.7: 0.2, 0.9: 0.4, 0.95: 0.5}  # the share right in groups that are hard; in others it is 0.99


def group_shares(rng: np.random.Generator, share: float, correlation: float | None, groups: int) -> np.ndarray:
    """The true share right (groups,) of groups drawn from a world with this mean."""
    if correlation is not None:
        spread = (1 - correlation) / correlation
        return rng.beta(share * spread, (1 - share) * spread, groups)
    low = LOW_KIND[share]
    return np.where(rng.random(groups) < (0.99 - share) / (0.99 - low), low, 0.99)


def shares_table(times: int) -> pd.DataFrame:
    """Coverage of `share_of` for new groups, and what Wilson's on the photos would hold, by number of groups."""
    rows = {"new groups": {}, "Wilson's on the photos": {}}
    for groups in (3, 6, 8, 10, 18, 49):
        held, naive = [], []
        rng = np.random.default_rng(groups)
        for share in TRUE_SHARES:
            for correlation in WORLDS.values():
                for size in (10, 40, 120):
                    for _ in range(max(1, times // 36)):
                        true = group_shares(rng, share, correlation, groups)
                        right = np.concatenate([rng.random(size) < one for one in true])
                        found = intervals.share_of(right, np.repeat(np.arange(groups).astype(str), size))
                        held.append(found.low <= share <= found.high)
                        naive.append(found.same_low <= share <= found.same_high)
        rows["new groups"][groups], rows["Wilson's on the photos"][groups] = np.mean(held), np.mean(naive)
    return pd.DataFrame(rows).T.rename_axis("groups").round(2)


def same_groups_table(times: int) -> pd.DataFrame:
    """Coverage of Wilson's interval for more photos of these same groups, by number of groups."""
    row = {}
    for groups in (3, 8, 49):
        rng, held = np.random.default_rng(groups), []
        for _ in range(times):
            true = group_shares(rng, 0.9, 0.3, groups)
            right = np.concatenate([rng.random(40) < one for one in true])
            found = intervals.share_of(right, np.repeat(np.arange(groups).astype(str), 40))
            held.append(found.same_low <= true.mean() <= found.same_high)
        row[groups] = np.mean(held)
    return pd.DataFrame({"same groups": row}).T.rename_axis("groups").round(2)


def class_chances(rng: np.random.Generator, mean: float) -> np.ndarray:
    """Chances (3, 3) of each predicted class by true class, `mean` of them right."""
    right = np.clip(mean + rng.permutation([-0.06, 0, 0.06]) * (1 - mean) / 0.3, 0.3, 0.995)
    return np.stack([np.insert(rng.dirichlet([2, 2]) * (1 - p), c, p) for c, p in enumerate(right)])


def macro_f1_table(times: int) -> pd.DataFrame:
    """Coverage of `macro_f1_interval` for photos alone, by n, even and uneven classes."""
    sizes = {10: ((4, 3, 3), (4, 4, 2)), 30: ((10, 10, 10), (13, 12, 5)), 100: ((34, 33, 33), (42, 42, 16))}
    sizes[300] = ((100, 100, 100), (125, 125, 50))
    rows = {"even": {}, "uneven": {}}
    for n, shapes in sizes.items():
        for name, counts in zip(rows, shapes, strict=True):
            rng, held, labels = np.random.default_rng(n), [], np.repeat([0, 1, 2], counts)
            for mean in (0.7, 0.8, 0.9, 0.97):
                for _ in range(max(1, times // 2)):
                    chances = class_chances(rng, mean)
                    predicted = (rng.random((n, 1)) > chances[labels].cumsum(1)).sum(1).clip(max=2)
                    low, high = intervals.macro_f1_interval(labels, predicted, 3)
                    held.append(low <= metrics.f1_of_counts(chances * np.array(counts)[:, None]) <= high)
            rows[name][n] = np.mean(held)
    return pd.DataFrame(rows).T.rename_axis("photos alone").round(2)


def macro_f1_groups_table(times: int) -> pd.DataFrame:
    """Coverage of `macro_f1_interval` for new groups, by groups per class: three classes, groups drawn by Dirichlet."""
    row = {}
    for groups in (2, 3, 5, 16):
        rng, held = np.random.default_rng(groups), []
        for mean, correlation, size in itertools.product((0.7, 0.9), (0.02, 0.3, 0.7), (10, 40, 120)):
            for _ in range(max(1, times // 9)):
                chances = class_chances(rng, mean)
                spread = (1 - correlation) / correlation
                of_group = np.concatenate([rng.dirichlet(np.maximum(one, 1e-3) * spread, groups) for one in chances])
                labels, unit = np.repeat([0, 1, 2], groups * size), np.repeat(np.arange(3 * groups), size)
                predicted = (rng.random((len(unit), 1)) > of_group[unit].cumsum(1)).sum(1).clip(max=2)
                low, high = intervals.macro_f1_interval(labels, predicted, 3, unit.astype(str))
                held.append(low <= metrics.f1_of_counts(chances) <= high)
        row[groups] = np.mean(held)
    return pd.DataFrame({"new groups": row}).T.rename_axis("groups a class").round(2)


def folds_table(times: int) -> pd.DataFrame:
    """Coverage of the pooled accuracy of five folds, for what a model trained on four fifths of new photos reaches."""
    rows = {}
    for n in (100, 300):
        held = []
        for difficulty in (1.0, 1.6):
            rng = np.random.default_rng([n, int(10 * difficulty)])
            draws = [_cross_validated(rng, n, difficulty) for _ in range(times)]
            truth = np.mean([true for _, true in draws])
            shares = [intervals.share_of(right) for right, _ in draws]
            held += [share.low <= truth <= share.high for share in shares]
        rows[n] = np.mean(held)
    return pd.DataFrame({"pooled folds": rows}).T.rename_axis("photos").round(2)


def _cross_validated(rng, n: int, difficulty: float, width: int = 20) -> tuple[np.ndarray, float]:
    """Whether each of n photos is right out of fold, by nearest centroids; and the models' true accuracy."""
    centres = np.zeros((3, width))
    centres[:, :3] = difficulty * np.eye(3)
    labels, other = np.arange(n) % 3, np.arange(1000) % 3
    photos, fresh = (centres[own] + rng.normal(size=(len(own), width)) for own in (labels, other))
    right, true, fold = np.zeros(n), [], rng.permutation(n) % 5
    for part in range(5):
        train = fold != part
        means = np.stack([photos[train & (labels == label)].mean(0) for label in range(3)])
        nearest = [((x[:, None] - means) ** 2).sum(2).argmin(1) for x in (photos[~train], fresh)]
        right[~train] = nearest[0] == labels[~train]
        true.append((nearest[1] == other).mean())
    return right, float(np.mean(true))


TABLES = {
    intervals.share_of: (shares_table, same_groups_table),
    intervals.macro_f1_interval: (macro_f1_table, macro_f1_groups_table),
    crossval.pooled_results: (folds_table,),
}
