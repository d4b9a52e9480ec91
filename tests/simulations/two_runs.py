"""Two runs on the same photos: false alarms, coverage of the printed intervals, and the power that is claimed.

Photos alone: three classes, each network right on 70 to 97 % of a class, their mistakes more alike than by chance.
In groups of 10 to 120 photos, sizes alike or not: a photo is right where a latent number is positive, the sum of what
both share (photo, group), of what a network has with a group (standard deviation 0, 0.4 or 0.8) and of noise; A is
right on half of the photos, or on most. Half of the worlds have a true difference. How often the named difference is
found is asked where A is right on half, so that B has room to be so much better.
"""

from functools import cache

import numpy as np
import pandas as pd

from fruitlib.evaluation import significance
from fruitlib.evaluation.metrics import f1_of_counts

TIMES = 500
CLASSES, PHOTOS, GROUPS = 3, (10, 30, 100, 300), (6, 8, 18, 49)
LEVELS = (0.0, 1.4)  # of the latent number: half of the photos are right, or most
TASTES, GAINS = (0.0, 0.4, 0.8), np.linspace(0, 5, 50)  # of a network for a group; what B's latent number has more


def table(times: int) -> pd.DataFrame:
    """A row per kind of test set: false alarms, coverage of both intervals, how often a named difference is found."""
    rows = {f"{n} photos alone": _judge(times, np.random.default_rng(n), _Alone, n) for n in PHOTOS}
    rows |= {f"{n} groups": _judge(times, np.random.default_rng([n, 1]), _Grouped, n) for n in GROUPS}
    return pd.DataFrame(rows).T.astype(float).round(2)


def _judge(times: int, rng: np.random.Generator, world_of, n: int) -> dict[str, float]:
    alarms, held, held_f1, found = [], [], [], []
    for turn in range(2 * times):
        world = world_of(rng, n, equal=turn % 2 == 0)
        labels, a, b, groups = world.draw(rng)
        difference = significance.accuracy_difference(a == labels, b == labels, groups)
        _, f1_low, f1_high = significance.macro_f1_difference(labels, a, b, CLASSES, groups)
        held.append(difference.low <= world.difference <= difference.high)
        if np.isfinite(f1_low):
            held_f1.append(f1_low <= world.f1_difference <= f1_high)
        if turn % 2:
            continue
        alarms.append(difference.significant)
        if (better := world.with_difference(difference.detectable)) is not None:
            labels, a, b, groups = better.draw(rng)
            found.append(significance.accuracy_difference(a == labels, b == labels, groups).significant)
    means = {"false alarms": alarms, "accuracy covered": held, "macro-F1 covered": held_f1, "found, of named": found}
    return {name: np.mean(values) if values else np.nan for name, values in means.items()}


class _Alone:
    """For each class the chances (C, C) of what A and B predict."""

    def __init__(self, rng: np.random.Generator, n: int, equal: bool):
        self.labels, self.chances = np.arange(n) % CLASSES, np.zeros((CLASSES, CLASSES, CLASSES))
        for label in range(CLASSES):
            wrong_a, wrong_b = rng.uniform(0.03, 0.3, 2)
            wrong_b = wrong_a if equal else wrong_b
            both = rng.uniform(wrong_a * wrong_b, 0.9 * min(wrong_a, wrong_b))
            share = np.insert(rng.dirichlet(np.ones(CLASSES - 1)), label, 0)
            self.chances[label] = np.diag(both * share)
            self.chances[label, :, label] += (wrong_a - both) * share
            self.chances[label, label] += (wrong_b - both) * share
            self.chances[label, label, label] = 1 - wrong_a - wrong_b + both
        counts = np.bincount(self.labels)[:, None]
        a, b = self.chances.sum(2) * counts, self.chances.sum(1) * counts
        self.difference = float(np.trace(b - a)) / n
        self.f1_difference = f1_of_counts(b) - f1_of_counts(a)

    def draw(self, rng: np.random.Generator):
        cumulated = self.chances.reshape(CLASSES, -1).cumsum(1)[self.labels]
        cells = np.minimum((cumulated < rng.random((len(self.labels), 1))).sum(1), CLASSES**2 - 1)
        return self.labels, cells // CLASSES, cells % CLASSES, None

    def with_difference(self, difference: float):
        """The same world with B right on so many more photos that A has wrong or, where these do not suffice, right."""
        one = object.__new__(_Alone)
        only_a = np.mean([self.chances[c, c].sum() - self.chances[c, c, c] for c in range(CLASSES)])
        if not 2 * only_a + difference <= 1:
            return None
        one.labels, one.chances = self.labels, np.zeros_like(self.chances)
        for label in range(CLASSES):
            other = (label + 1) % CLASSES
            one.chances[label, label, other], one.chances[label, other, label] = only_a, only_a + difference
            one.chances[label, label, label] = 1 - 2 * only_a - difference
        return one


class _Grouped:
    """Groups of photos, and how much both networks' taste for a group varies."""

    def __init__(self, rng: np.random.Generator, n: int, equal: bool):
        self.sizes = rng.choice([10, 40, 120], n) if rng.random() < 0.5 else np.full(n, rng.choice([10, 40]))
        self.taste, self.gain = float(rng.choice(TASTES)), 0.0 if equal else 0.5
        self.level = float(rng.choice(LEVELS))
        self.difference = self.f1_difference = _expected(self.level, self.taste, self.gain)

    def draw(self, rng: np.random.Generator):
        return _draw_groups(rng, self.sizes, self.level, self.taste, self.gain)

    def with_difference(self, difference: float):
        """The same world with the gain that makes this difference."""
        known = [_expected(self.level, self.taste, gain) for gain in GAINS]
        if self.level or not difference <= known[-1]:
            return None
        one = object.__new__(_Grouped)
        one.sizes, one.level, one.taste = self.sizes, self.level, self.taste
        one.gain = float(np.interp(difference, known, GAINS))
        return one


def _draw_groups(rng: np.random.Generator, sizes: np.ndarray, level: float, taste: float, gain: float):
    group = np.repeat(np.arange(len(sizes)), sizes)
    shared = level + rng.normal(0, 0.8, len(sizes))[group] + rng.normal(0, 0.8, len(group))
    labels, sides = group % CLASSES, []
    wrong = (labels + rng.integers(1, CLASSES, len(group))) % CLASSES
    for more in (0.0, gain):
        own = more + rng.normal(0, taste, len(sizes))[group] + rng.normal(0, 0.5, len(group))
        sides.append(np.where(shared + own > 0, labels, wrong))
    return labels, *sides, [f"group {one}" for one in group]


@cache
def _expected(level: float, taste: float, gain: float) -> float:
    """The difference in accuracy on photos of new groups; in macro-F1, too, since mistakes fall on classes evenly."""
    from scipy.stats import norm

    spread = np.sqrt(0.8**2 + 0.8**2 + taste**2 + 0.5**2)
    return float(norm.cdf((level + gain) / spread) - norm.cdf(level / spread))
