"""Does what 03 says of confidence hold? Gap and accuracy at the shares where used, calibration error, temperature.

Three classes, trained at 44, 44 and 12 %, validated on as many photos of each, used at the training shares. A photo's
features are its class's mean, plus its group's luck, plus its own; the network knows all of this but the luck, so that
over all groups it is perfectly calibrated at the training shares. "sharpened": its logits are doubled.
"""

import functools
import zlib

import numpy as np
import pandas as pd

from fruitlib.evaluation import calibration, metrics, prevalence

TIMES = 200
PRIOR = np.array([0.44, 0.44, 0.12])
SIZES = {"30 photos": 0, "99 photos": 0, "300 photos": 0, "8 groups": 8, "18 groups": 18, "49 groups": 49}
EQUAL = np.full(3, 1 / 3)
# By name: how far apart the classes are, by what logits are multiplied, the shares in training and use
WORLDS = {
    "hard": (1.5, 1, PRIOR),
    "easy": (2.5, 1, PRIOR),
    "easy, equal shares": (2.5, 1, EQUAL),
    "easy, sharpened": (2.5, 2, PRIOR),
}
LUCK = 1.0  # standard deviation of a group's features, where there are groups; a photo's own is 1


def drawn(rng, labels, unit, separation: float, sharper: float, prior: np.ndarray):
    """Probabilities (n, 3) of a network for photos with these labels and units (n,); no luck where `unit` is None."""
    luck = 0 if unit is None else rng.normal(0, LUCK, (unit.max() + 1, 3))[unit]
    features = separation * np.eye(3)[labels] + luck + rng.normal(0, 1, (len(labels), 3))
    variance = 1 if unit is None else 1 + LUCK**2
    return metrics.softmax((features * separation / variance + np.log(prior)) * sharper)


def photos(rng, size: str, groups: int):
    """Labels and units of a validation set, with as many photos, or groups of 10 to 120 photos, of each class."""
    if not groups:
        return np.arange(int(size.split()[0])) % 3, None
    sizes = rng.integers(10, 121, groups)
    return np.repeat(np.arange(len(sizes)) % 3, sizes), np.repeat(np.arange(len(sizes)), sizes)


@functools.cache
def truth(world: str, groups: bool) -> tuple[float, float]:
    """The gap and the accuracy at the training shares, of 300,000 photos."""
    labels = np.arange(300_000) % 3
    probs = drawn(np.random.default_rng(1), labels, np.arange(len(labels)) if groups else None, *WORLDS[world])
    weights, right = prevalence.photo_weights(labels, WORLDS[world][2]), probs.argmax(1) == labels
    return np.average(probs.max(1) - right, weights=weights), np.average(right, weights=weights)


def once(rng, size: str, world: str, true: tuple[float, float]) -> dict[str, float]:
    """The verdicts on one network, and whether they are so."""
    labels, unit = photos(rng, size, SIZES[size])
    probs = drawn(rng, labels, unit, *WORLDS[world])
    shares, groups = WORLDS[world][2], None if unit is None else unit.astype(str)
    weights = prevalence.photo_weights(labels, shares)
    gap = calibration.confidence_gap(probs, labels, groups, weights)
    low, high = prevalence.accuracy_interval(labels, probs.argmax(1), shares, groups)
    chance = calibration.error_by_chance(probs, labels, groups, shares, draws=199)
    doubted = calibration.beyond_chance(calibration.ece(probs, labels, weights), chance, gap)
    found = {"gap covered": gap.low <= true[0] <= gap.high, "accuracy where used covered": low <= true[1] <= high}
    found["called miscalibrated"] = doubted
    if world == "hard":
        found["temperature, equal shares"] = calibration.fit_temperature(probs, labels)
        found["temperature, shares where used"] = calibration.fit_temperature(probs, labels, weights)
    return found


def table(times: int = TIMES) -> pd.DataFrame:
    """A row per number and world, a column per size: shares of `times` networks, of temperatures the median."""
    columns = {}
    for size, groups in SIZES.items():
        found = {}
        for world in WORLDS:
            true = truth(world, bool(groups))
            rng = np.random.default_rng(zlib.crc32(f"{size} {world}".encode()))
            rows = pd.DataFrame([once(rng, size, world, true) for _ in range(times)])
            for name in rows:
                value = rows[name].median() if name.startswith("temperature") else rows[name].mean()
                found[name, world] = round(float(value), 2)
        columns[size] = found
    return pd.DataFrame(columns).sort_index(level=0, sort_remaining=False)
