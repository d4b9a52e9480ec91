"""08's verdict on simulated sweeps: how often an idle setting is called significant, and how often a real one is found.

A run is right or wrong on each of 93 photos in 16 groups, the same photos for all runs. The latent score of a photo is
the sum of its own, its group's, the seed's, what the values of the settings do to a seed, a group and a photo, and
noise. Settings are those of `params/insight.yaml`: 3 x 2 x 2 x 2 values, 6 questions. Nothing has an effect on new
seeds, groups and photos, but for the power one value of one setting.
"""

import itertools

import numpy as np
import pandas as pd

from fruitlib.evaluation import crossed, intervals, significance

TIMES = 1000
PHOTOS, GROUPS = 93, 16
VALUES = (3, 2, 2, 2)
SETTINGS = np.array(list(itertools.product(*map(range, VALUES))))
QUESTIONS = [(0, 0, 1), (0, 0, 2), (0, 1, 2), (1, 0, 1), (2, 0, 1), (3, 0, 1)]  # setting, from, to
REAL = 3  # the question about the setting that has an effect where one is planted
WORLDS = {  # standard deviations of what a value does to a seed, a group, a photo
    "run noise alone": (0.0, 0.0, 0.0),
    "seed luck": (0.25, 0.0, 0.0),
    "variety x setting": (0.0, 0.4, 0.2),
    "both": (0.25, 0.4, 0.2),
}
EFFECT = 0.45  # on the latent scale, about 7 points of accuracy


def simulated_sweep(rng, seeds: int, world: tuple[float, float, float], effect: float) -> tuple[np.ndarray, np.ndarray]:
    """Whether each run is right on each photo, (seeds, settings, photos), and the group of each photo."""
    group = np.sort(np.concatenate([np.arange(GROUPS), rng.integers(0, GROUPS, PHOTOS - GROUPS)]))
    latent = np.full((seeds, len(SETTINGS), PHOTOS), 1.1)
    latent += rng.normal(0, 0.8, GROUPS)[group] + rng.normal(0, 0.8, PHOTOS) + rng.normal(0, 0.1, (seeds, 1, 1))
    of_seed, of_group, of_photo = world
    for setting, values in enumerate(VALUES):
        value = SETTINGS[:, setting]
        latent += rng.normal(0, of_seed, (seeds, values))[:, value, None]
        latent += rng.normal(0, of_group, (values, GROUPS))[:, group][value]
        latent += rng.normal(0, of_photo, (values, PHOTOS))[value]
        if setting == QUESTIONS[REAL][0]:
            latent -= effect * (value == 1)[:, None]
    latent += rng.normal(0, 0.25, (seeds, len(SETTINGS), 1)) + rng.normal(0, 0.5, latent.shape)
    return (latent > 0).astype(float), group


def answers(right: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each question is significant, and whether its printed interval holds 0, by the rule of `main_effects`."""
    unit, p_values, holds = intervals.units([f"g{one}" for one in group]), [], []
    for setting, start, to in QUESTIONS:
        sides = (right[:, SETTINGS[:, setting] == value].mean(1) for value in (to, start))
        differences = next(sides) - next(sides)
        seeds = crossed.over_seeds(differences.mean(1))
        both = crossed.over_seeds_and_groups(differences, unit)
        p_values.append(max(seeds.p, both.p))
        holds.append(min(seeds.low, both.low) <= 0 <= max(seeds.high, both.high))
    return significance.holm(p_values) <= 0.05, np.array(holds)


def table(times: int, seeds: tuple[int, ...] = (3, 5, 10)) -> pd.DataFrame:
    """By world and number of seeds: sweeps with any false `significant`, coverage of the interval, power."""
    rows = []
    for name, world in WORLDS.items():
        row = {"world": name}
        for many in seeds:
            rng = np.random.default_rng([many, len(name)])
            idle = [answers(*simulated_sweep(rng, many, world, 0.0)) for _ in range(times)]
            real = [answers(*simulated_sweep(rng, many, world, EFFECT))[0][REAL] for _ in range(times)]
            row[f"false {many}"] = np.mean([found.any() for found, _ in idle])
            row[f"holds {many}"] = np.mean([holds.mean() for _, holds in idle])
            row[f"power {many}"] = np.mean(real)
        rows.append(row)
    return pd.DataFrame(rows).set_index("world").round(2)
