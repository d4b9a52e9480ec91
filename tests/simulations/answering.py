"""When the model answers alone above the threshold found, how often is the share wrong larger than promised?

The worlds of `calibration`, and one in which the confidence says nothing: 5.5 % are wrong at every confidence, so that
any threshold is false. Groups have 10 to 120 photos.
"""

import functools
import zlib

import numpy as np
import pandas as pd

from fruitlib.evaluation import answering
from tests.simulations import calibration as worlds

TIMES = 15  # ten times as often where photos are alone
SIZES = {"60 photos": 0, "300 photos": 0, "1000 photos": 0, "49 groups": 49, "100 groups": 100}
WORLDS = {"easy": (2.5, 1, worlds.EQUAL), "very easy": (4, 1, worlds.EQUAL), "confidence says nothing": None}
MAX_ERROR = 0.05


def drawn(rng, labels, unit, world: str) -> np.ndarray:
    """Probabilities (n, 3) of a network."""
    if WORLDS[world]:
        return worlds.drawn(rng, labels, unit, *WORLDS[world])
    rate = 0.945 if unit is None else rng.beta(0.945 * 4, 0.055 * 4, unit.max() + 1)[unit]  # correlation 0.2
    predicted = np.where(rng.random(len(labels)) < rate, labels, (labels + 1) % 3)
    confidence = rng.uniform(0.5, 1, len(labels))[:, None]
    return np.where(np.eye(3)[predicted] > 0, confidence, (1 - confidence) / 2)


@functools.cache
def population(world: str, groups: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Confidences of 100,000 photos in descending order, the share wrong up to each, all probabilities and labels."""
    labels = np.arange(100_000) % 3
    probs = drawn(np.random.default_rng(1), labels, np.arange(len(labels)) if groups else None, world)
    order = np.argsort(-probs.max(1))
    wrong = (probs.argmax(1) != labels)[order].cumsum() / np.arange(1, len(labels) + 1)
    return probs.max(1)[order], wrong, probs, labels


def once(rng, size: str, world: str, everyone) -> dict[str, float]:
    """What is found for one network, and whether it holds."""
    confidence, share_wrong, probs_of_all, labels_of_all = everyone
    labels, unit = worlds.photos(rng, size, SIZES[size])
    probs = drawn(rng, labels, unit, world)
    groups = None if unit is None else unit.astype(str)
    alone = answering.answer_alone(probs, labels, MAX_ERROR, groups)
    answered = np.searchsorted(-confidence, -alone.above) if alone.proven else 0
    found = {"more wrong than promised": bool(answered) and share_wrong[answered - 1] > MAX_ERROR}
    if WORLDS[world]:
        found |= {"threshold found": alone.proven, "answered": alone.answered if alone.proven else np.nan}
        sets = answering.conformal_sets(probs, labels, "abc")
        reached = np.array(list(sets.thresholds.values()))[:, None] <= probs_of_all.T
        found["sets hold the class"] = reached[labels_of_all, np.arange(len(labels_of_all))].mean()
    return found


def table(times: int = TIMES) -> pd.DataFrame:
    """A row per number and world, a column per size: shares of `times` networks."""
    columns = {}
    for size, groups in SIZES.items():
        found = {}
        for world in WORLDS:
            everyone = population(world, bool(groups))
            rng = np.random.default_rng(zlib.crc32(f"{size} {world}".encode()))
            rows = pd.DataFrame([once(rng, size, world, everyone) for _ in range(times if groups else 10 * times)])
            found |= {(name, world): round(float(rows[name].mean()), 2) for name in rows}
        columns[size] = found
    return pd.DataFrame(columns).sort_index(level=0, sort_remaining=False)
