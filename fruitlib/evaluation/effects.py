"""Which hyperparameter mattered, beyond chance: paired effects over a sweep's runs, and what they cost.

Two runs alike in all settings but one are a pair. Whoever wrote the sweep chose the values of the other settings; what
varies by luck is the seed, and which photos, of which groups, there happen to be: see `main_effects`. Tables in, tables
out; `wording` puts them into words.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, product
from pathlib import Path

import numpy as np
import pandas as pd

from fruitlib.core import files
from fruitlib.core.errors import InputError
from fruitlib.evaluation import crossed, significance
from fruitlib.evaluation.outcomes import Outcomes
from fruitlib.evaluation.study import SCORES, compared_settings, ordered_values, value_text

MEASURED_NOISE = 0.05  # share by which two latencies may differ and still count as equal
COSTS = ("parameters", "mflops", "size_mb_int8", "latency_ms_int8")
SIGNIFICANCE_LEVEL = 0.05
SEEDS_ADVISED = 5
LUCK = ("seed", "repeat")  # what replicates a comparison; folds are parts of one
ANSWER = ["gain", "pairs", "seeds", "seeds_low", "seeds_high", "photos", "groups", "low", "high", "limited_by"]
ANSWER += ["p", "holm_p", "significant", "findable"]


def asked_pairs(values: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of values that are compared: all of up to three, else each with the first and with its neighbour."""
    if len(values) <= 3:
        return list(combinations(values, 2))
    return list(dict.fromkeys([(values[0], value) for value in values[1:]] + list(pairwise(values))))


class Cells:
    """What a sweep measured, by seed and settings: a number (1,) or, of a score, each photo's part in it (J,).

    Runs that are alike in everything are averaged; folds are pooled first, so that every photo is in once.
    """

    def __init__(
        self,
        results: pd.DataFrame,
        differs: Sequence[str],
        settings: Sequence[str],
        measure: str,
        outcomes: Outcomes | None,
    ):
        if absent := [name for name in (*differs, measure) if name not in results]:
            raise InputError(f"results: no column {absent[0]}; the table has {', '.join(map(str, results.columns))}")
        results = results[results[measure].notna()]
        values = results[list(differs)].map(value_text)
        luck = [name for name in differs if name in LUCK]
        rest = [name for name in differs if name not in (*luck, "fold", *settings)]
        keys = zip(*(map(tuple, values[list(part)].to_numpy()) for part in (luck, rest, settings)), strict=True)
        runs: dict[tuple, list[int]] = {}
        for place, key in enumerate(keys):
            runs.setdefault(key, []).append(place)
        self.unit = None
        self.values: dict[tuple, dict[tuple, dict[tuple, np.ndarray]]] = {}  # by what is compared, luck, and the rest
        parts = None
        if outcomes and measure in SCORES:
            parts = {key: outcomes.parts(results["run"].iloc[places], measure) for key, places in runs.items()}
            self.unit = outcomes.unit
        numbers = results[measure].to_numpy(float)
        for (seed, others, compared), places in runs.items():
            measured = np.array([numbers[places].mean()])
            if parts is not None:
                measured = parts[seed, others, compared]
            if measured is not None:
                self.values.setdefault(compared, {}).setdefault(seed, {})[others] = measured

    def differences(self, signs: dict[tuple, int]) -> tuple[np.ndarray, int]:
        """The signed sum of cells, averaged over the other settings, (seeds, J or 1); and how many pairs it has.

        Args:
            signs: 1 or -1 by the values of the compared settings.
        """
        if any(compared not in self.values for compared in signs):
            return np.empty((0, 1)), 0
        sides, rows, pairs = [self.values[compared] for compared in signs], [], 0
        for seed in sides[0]:
            alike = [side.get(seed, {}) for side in sides]
            others = [rest for rest in alike[0] if all(rest in side for side in alike)]
            pairs += len(others)
            if others:
                sums = [
                    sign * sum(side[rest] for rest in others) for side, sign in zip(alike, signs.values(), strict=True)
                ]
                rows.append(sum(sums) / len(others))
        return np.array(rows) if rows else np.empty((0, 1)), pairs


def main_effects(
    results: pd.DataFrame, differs: Sequence[str], measures: Sequence[str], outcomes: Outcomes | None = None
) -> pd.DataFrame:
    """What each setting does to each measure: paired differences between two of its values, a row per question.

    Of a score, each photo has a part (`crossed.photo_parts`), and differences are averaged over the other settings by
    seed and photo. Two intervals are taken from them. `seeds_low` to `seeds_high`: *these photos, other seeds*,
    Student's t over seeds. `low` to `high`: *new groups (photos where there are none) and new seeds*,
    `crossed.over_seeds_and_groups`, or the first where that reaches further; with one seed, new groups for that seed.

    The verdict is about new groups and seeds. p is the larger of the two p values, since the second alone takes the
    luck of three seeds for an effect too often; it is corrected for the number of questions about its measure (Holm
    1979). With one seed nothing is significant. A measure that photos have no part in, such as seconds, speaks of
    other seeds alone.

    Simulated: sweeps of 24 settings, 93 photos in 16 groups, 6 questions; the share of sweeps with any significant
    effect where no setting has one on new photos and seeds (false), how often the interval holds 0 there, and how often
    a difference of 6 to 8 points is found (power), with 3, 5 and 10 seeds:

                       false 3  holds 3  power 3  false 5  holds 5  power 5  false 10  holds 10  power 10
    run noise alone       0.03     0.96     0.32     0.04     0.96     0.98      0.03      0.96      1.00
    seed luck             0.04     0.95     0.05     0.05     0.95     0.15      0.03      0.96      0.64
    variety x setting     0.02     0.96     0.15     0.03     0.95     0.30      0.03      0.95      0.34
    both                  0.02     0.96     0.03     0.03     0.96     0.10      0.04      0.95      0.24

    Args:
        results: a row per run with run and columns for `differs` (seed, fold and repeat among them) and `measures`.
        outcomes: what each run predicts; None: scores speak of other seeds alone.

    Returns:
        setting, from, to, measure, gain, pairs, seeds, seeds_low, seeds_high, photos, groups (0: photos alone), low,
        high, limited_by (seeds or groups: which varies more), p, holm_p, significant, findable (the difference that
        such a sweep finds in 80 % of cases). Questions without a pair are left out.

    Raises:
        InputError: a column that is missing.
    """
    rows = []
    for measure, setting in product(measures, compared_settings(differs)):
        cells = Cells(results, differs, [setting], measure, outcomes)
        for a, b in asked_pairs(ordered_values(results[setting])):
            if effect := effect_of(cells, {(b,): 1, (a,): -1}):
                rows.append({"setting": setting, "from": a, "to": b, "measure": measure, **effect})
    return _with_verdicts(rows, ["setting", "from", "to", "measure"])


def interactions(
    results: pd.DataFrame, differs: Sequence[str], measure: str, outcomes: Outcomes | None = None
) -> pd.DataFrame:
    """Whether what one setting does depends on another: differences of differences, a row per question, as in
    `main_effects`.

    `gain` is what `to` gains over `from` with `with_to`, less what it gains with `with_from`.
    """
    rows, names = [], ["setting", "from", "to", "with", "with_from", "with_to", "measure"]
    for one, other in combinations(compared_settings(differs), 2):
        cells = Cells(results, differs, [one, other], measure, outcomes)
        asked = (asked_pairs(ordered_values(results[setting])) for setting in (one, other))
        for (a, b), (c, d) in product(*asked):
            effect = effect_of(cells, {(b, d): 1, (a, d): -1, (b, c): -1, (a, c): 1})
            if effect:
                rows.append(dict(zip(names, (one, a, b, other, c, d, measure), strict=True)) | effect)
    return _with_verdicts(rows, names)


def effect_of(cells: Cells, signs: dict[tuple, int]) -> dict:
    """One answer, as the columns of `main_effects` but for holm_p, significant and findable; empty without a pair.

    `estimates` holds the estimates that the verdict rests on.
    """
    differences, pairs = cells.differences(signs)
    if not pairs:
        return {}
    seeds = crossed.over_seeds(differences.mean(1))
    answer = {"gain": seeds.mean, "pairs": pairs, "seeds": len(differences)}
    answer |= {"seeds_low": seeds.low, "seeds_high": seeds.high, "photos": 0, "groups": 0}
    answer |= {"low": math.nan, "high": math.nan, "limited_by": "seeds", "p": seeds.p, "estimates": [seeds]}
    if cells.unit is None:
        return answer
    both = crossed.over_seeds_and_groups(differences, cells.unit)
    groups = int(cells.unit.max()) + 1
    answer |= {"photos": len(cells.unit), "groups": groups if groups < len(cells.unit) else 0}
    answer |= {"low": float(np.fmin(both.low, seeds.low)), "high": float(np.fmax(both.high, seeds.high))}
    answer |= {"limited_by": "seeds" if seeds.error > both.error / math.sqrt(2) else "groups"}
    return answer | {"p": max(both.p, seeds.p), "estimates": [seeds, both]}


def _with_verdicts(rows: list[dict], names: list[str]) -> pd.DataFrame:
    """The rows with Holm's p over the questions about a measure, whether they are significant, and what is findable."""
    table = pd.DataFrame(rows, columns=[*names, *ANSWER, "estimates"])
    for _, places in table.groupby("measure", sort=False).groups.items():
        table.loc[places, "holm_p"] = significance.holm(table.loc[places, "p"])
        table.loc[places, "findable"] = [
            float(np.fmax.reduce([one.findable(len(places)) for one in estimates]))
            for estimates in table.loc[places, "estimates"]
        ]
    table["significant"] = (table["holm_p"].astype(float) <= SIGNIFICANCE_LEVEL) & (table["seeds"].astype(float) > 1)
    return table[[*names, *ANSWER]]


def leading_effects(effects: pd.DataFrame) -> pd.DataFrame:
    """Rows that speak of more than one seed, significant ones first."""
    return effects[effects["seeds"] > 1].sort_values("significant", ascending=False, kind="stable")


@dataclass(frozen=True)
class LrComparison:
    """Values of a setting compared at their own best learning rate, and at a shared one.

    `values` has a row per value: own_lr, own, shared_lr, shared (mean scores); none without lr or setting. `effects`
    has columns as `main_effects`, and lr, empty where each value has its own. `shared_lr` is empty where no lr was
    tried with every value.
    """

    values: pd.DataFrame
    effects: pd.DataFrame
    setting: str = ""
    shared_lr: str = ""

    @property
    def same_best_lr(self) -> bool:
        """Whether the shared lr is the best one of each value."""
        return bool((self.values["own_lr"] == self.shared_lr).all())


def at_best_lr(
    results: pd.DataFrame, differs: Sequence[str], measure: str, outcomes: Outcomes | None = None, setting: str = ""
) -> LrComparison:
    """Values of a setting compared at a shared learning rate, and each at its own best one.

    The best lr of a value has the highest mean over all its runs; the shared one the highest mean over all values. A
    setting that needs another lr loses at any shared one, whatever it is worth (Choi et al. 2019 on comparing
    optimizers).

    `setting` empty: optimizer where that differs, else the first of the others.
    """
    others = sorted(
        set(compared_settings(differs)) - {"lr"}, key=lambda name: (name != "optimizer", differs.index(name))
    )
    if "lr" not in differs or not (setting := setting or next(iter(others), "")):
        return LrComparison(pd.DataFrame(), pd.DataFrame())
    kinds, rates = results[setting].map(value_text), results["lr"].map(value_text)
    means = results[measure].groupby([kinds, rates]).mean().unstack()
    means = means.reindex(ordered_values(results[setting])).dropna(how="all")
    own_lr, common = means.idxmax(axis=1), means.dropna(axis=1)
    shared_lr = common.mean().idxmax() if common.shape[1] else ""
    values = pd.DataFrame({"own_lr": own_lr, "own": means.max(axis=1)}).rename_axis(setting)
    values = values.assign(shared_lr=shared_lr, shared=common[shared_lr] if shared_lr else math.nan)
    rest, rows = [name for name in differs if name != "lr"], []
    ways = {shared_lr: rates == shared_lr}
    if (own_lr != shared_lr).any():
        ways = {"": rates == kinds.map(own_lr)} | ({shared_lr: ways[shared_lr]} if shared_lr else {})
    for lr, kept in ways.items():
        cells = Cells(results[kept], rest, [setting], measure, outcomes)
        for a, b in asked_pairs(list(means.index)):
            if effect := effect_of(cells, {(b,): 1, (a,): -1}):
                rows.append({"setting": setting, "from": a, "to": b, "measure": measure, "lr": lr, **effect})
    table = _with_verdicts(rows, ["setting", "from", "to", "measure", "lr"])
    return LrComparison(values, table, setting, shared_lr)


def load_importances(sweep_dir: Path) -> pd.DataFrame:
    """Optuna's importances of a search (setting, importance), from `importances.csv`; empty without it."""
    path = sweep_dir / "importances.csv"
    table = files.read_csv(path) if path.is_file() else pd.DataFrame(columns=["setting", "importance"])
    if not {"setting", "importance"} <= set(table):
        raise InputError(f"{files.display_path(path)}: wanted the columns setting and importance")
    return table.sort_values("importance", ascending=False, ignore_index=True)


def pareto_front(costs: Sequence[float], scores: Sequence[float], alike: float = 0) -> np.ndarray:
    """Which points (n,) no other beats: none is as cheap and as good, and cheaper or better; NaN is never on it.

    Costs that differ by at most the share `alike` count as equal: of those the better score beats.
    """
    cost, score = np.asarray(costs, float), np.asarray(scores, float)
    margin = alike * np.abs(cost)[:, None]
    no_worse = (cost[None] <= cost[:, None] + margin) & (score[None] >= score[:, None])
    better = (cost[None] < cost[:, None] - margin) | (score[None] > score[:, None])
    return np.isfinite(cost) & np.isfinite(score) & ~(no_worse & better).any(1)


def noise_of(cost: str) -> float:
    """The share of a cost by which runs must differ to differ: a measured time varies by itself."""
    return MEASURED_NOISE if cost.startswith("latency") else 0.01


def cost_measures(results: pd.DataFrame) -> tuple[list[str], bool]:
    """The costs worth a panel, those that set runs apart, and whether there is any.

    Known of more than half of the runs: with `pages: best`, few are exported and have a size and a latency.

    A latency that is measured differs between twins too, so where size and parameters do not vary it does not count.
    """
    known = [name for name in COSTS if name in results and results[name].notna().mean() > 0.5]
    varying = [name for name in known if np.ptp(results[name].dropna()) > noise_of(name) * results[name].abs().max()]
    if set(varying) - {"latency_ms_int8"}:
        return varying, True
    return [], False
