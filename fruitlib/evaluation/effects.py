"""Which hyperparameter mattered, beyond chance: paired effects over a sweep's runs, and what they cost.

Two runs alike in all settings but one are a pair. Whoever wrote the sweep chose the values of the other settings; what
varies by luck is the seed (and the fold), so these are the replicates: see `main_effects`. Tables in, tables out;
`wording` puts them into words.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, product
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd

from fruitlib.core import files
from fruitlib.core.errors import InputError
from fruitlib.evaluation import significance
from fruitlib.evaluation.study import REPLICATES, compared_settings, ordered_values, value_text

COSTS = ("parameters", "mflops", "size_mb_int8", "latency_ms_int8")
SIGNIFICANCE_LEVEL = 0.05
FEWEST_UNITS = 3  # Student's interval over two is wider than any difference can be


def asked_pairs(values: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of values that are compared: all of up to three, else each with the first and with its neighbour."""
    if len(values) <= 3:
        return list(combinations(values, 2))
    return list(dict.fromkeys([(values[0], value) for value in values[1:]] + list(pairwise(values))))


def _measured_by_setting(
    results: pd.DataFrame, differs: Sequence[str], settings: list[str], measure: str
) -> pd.DataFrame:
    """The measure, a row per (block, rest) and a column per value of `settings`, runs of the same settings averaged."""
    if absent := [name for name in (*differs, measure) if name not in results]:
        raise InputError(f"results: no column {absent[0]}; the table has {', '.join(map(str, results.columns))}")
    results = results[results[measure].notna()]
    values = results[list(differs)].map(value_text)
    blocks = [name for name in differs if name in REPLICATES]
    parts = {"block": blocks, "rest": [name for name in differs if name not in (*blocks, *settings)]}
    keys = []
    for name, columns in parts.items():
        joined = ["|".join(row) for row in values[columns].to_numpy()]
        keys.append(pd.Series(joined, values.index, dtype=object, name=name))
    means = results[measure].astype(float).groupby([*keys, *(values[setting] for setting in settings)]).mean()
    return means.unstack(list(range(2, 2 + len(settings))))


def main_effects(
    results: pd.DataFrame, differs: Sequence[str], measures: Sequence[str], folds: int = 0
) -> pd.DataFrame:
    """What each setting does to each measure: paired differences between two of its values, a row per question.

    There are two criteria, and an effect is significant only if both agree. **p** asks whether the setting does
    anything at all: if not, the two runs of each pair could as well be swapped, so the signs of all pairs are flipped
    (`significance.sign_flip`, Fisher's randomisation test), corrected for all questions of the table (Holm 1979). **The
    interval** says how large the effect is for other seeds: differences are averaged over the settings of the other
    settings first, since runs of one seed share its luck, and Student's t is taken over the seeds (Bouthillier et al.
    2021 on what varies between trainings); with folds, over the folds, by Nadeau and Bengio (2003). With one seed it is
    taken over the pairs, and speaks of settings.

    Simulated, 300 sweeps each: with pure noise (3 seeds by 2 x 2 x 2 settings, 3 questions) 3.7 % of sweeps had a
    significant effect, where Holm allows 5. Where half the variance of a difference belongs to the seed, pairs alone
    would call an idle setting significant in 11 %, this rule does in 3.7. 5 points under a run's noise of 2 are found
    by 83 % of questions with 3 seeds and 4 settings (one question), 99 % with 12 settings.

    Args:
        results: a row per run with columns for `differs` (seed, fold and repeat among them) and `measures`.
        folds: of one division, where runs differ in fold.

    Returns:
        setting, from, to, measure, gain, low, high (95 %), pairs, units, unit (seed, fold or pair), p, holm_p,
        significant, more (units needed on top, a rough guess; NaN: significant, or none within reason). Questions
        without a pair are left out.

    Raises:
        InputError: a column that is missing.
    """
    rows = []
    for measure, setting in product(measures, compared_settings(differs)):
        table = _measured_by_setting(results, differs, [setting], measure)
        known = table.notna().astype(int)
        pairs = known.T @ known  # asked first: a search has many values, hardly any pair, and each effect takes time
        for a, b in asked_pairs(ordered_values(results[setting])):
            if a in table and b in table and pairs.loc[a, b]:
                effect = effect_of(table[b] - table[a], folds)
                rows.append({"setting": setting, "from": a, "to": b, "measure": measure, **effect})
    return _with_verdicts(rows, ["setting", "from", "to", "measure"])


def interactions(results: pd.DataFrame, differs: Sequence[str], measure: str, folds: int = 0) -> pd.DataFrame:
    """Whether what one setting does depends on another: differences of differences, a row per question, as in
    `main_effects`.

    `gain` is what `to` gains over `from` with `with_to`, less what it gains with `with_from`.
    """
    rows, names = [], ["setting", "from", "to", "with", "with_from", "with_to", "measure"]
    for one, other in combinations(compared_settings(differs), 2):
        table = _measured_by_setting(results, differs, [one, other], measure)
        for (a, b), (c, d) in product(
            asked_pairs(ordered_values(results[one])), asked_pairs(ordered_values(results[other]))
        ):
            if all(cell in table for cell in product((a, b), (c, d))):
                effect = effect_of((table[b, d] - table[a, d]) - (table[b, c] - table[a, c]), folds)
                if effect:
                    rows.append(dict(zip(names, (one, a, b, other, c, d, measure), strict=True)) | effect)
    return _with_verdicts(rows, names)


def effect_of(differences: pd.Series, folds: int = 0) -> dict:
    """Mean, 95 % interval and p of differences indexed by (block, rest), as in `main_effects`; empty without any."""
    differences = differences.dropna()
    if differences.empty:
        return {}
    units, unit = differences.groupby(level="block").mean(), "fold" if folds else "seed"
    if len(units) < 2:
        units, unit = differences, "pair"
    effect = significance.paired_gain(np.zeros(len(units)), units, folds if unit == "fold" else 0)
    effect |= {"pairs": len(differences), "units": len(units), "unit": unit, "p": significance.sign_flip(differences)}
    effect |= {"units_needed": significance.pairs_needed(units)}
    return effect | {"pairs_needed": significance.pairs_needed(differences)}


def _with_verdicts(rows: list[dict], names: list[str]) -> pd.DataFrame:
    """The rows with Holm's p, whether they are significant, and how many more units would be needed."""
    columns = [*names, "gain", "low", "high", "pairs", "units", "unit", "p", "holm_p", "significant", "more"]
    table = pd.DataFrame(rows, columns=[*names, *columns[len(names) : -3], "units_needed", "pairs_needed"])
    table["holm_p"] = significance.holm(table["p"])
    table["significant"] = (table["holm_p"] <= SIGNIFICANCE_LEVEL) & ((table["low"] > 0) | (table["high"] < 0))
    questions, unit = max(len(table), 1), table["units"].astype(float) / table["pairs"].astype(float)
    z_corrected = NormalDist().inv_cdf(1 - SIGNIFICANCE_LEVEL / questions / 2)
    stricter = (z_corrected + 0.84) ** 2 / (1.96 + 0.84) ** 2  # 0.84: for a power of 0.8
    pairs = np.maximum(table["pairs_needed"].astype(float) * stricter, 1 + math.log2(questions / SIGNIFICANCE_LEVEL))
    more = np.ceil(np.maximum(table["units_needed"].astype(float), pairs * unit)) - table["units"].astype(float)
    table["more"] = more.clip(lower=1).mask(table["significant"])
    return table[columns]


def leading_effects(effects: pd.DataFrame) -> pd.DataFrame:
    """Rows with enough units for a useful interval, significant ones first."""
    enough = effects[effects["units"] >= FEWEST_UNITS]
    return enough.sort_values("significant", ascending=False, kind="stable")


@dataclass(frozen=True)
class LrComparison:
    """Values of a setting compared at their own best learning rate, and at a shared one.

    `values` has a row per value: own_lr, own, shared_lr, shared (mean scores); none without lr or setting. `effects`
    are those of `effect_of`, with setting, from, to, measure and lr, empty where each value has its own. `shared_lr` is
    empty where no lr was tried with every value.
    """

    values: pd.DataFrame
    effects: list[dict]
    setting: str = ""
    shared_lr: str = ""

    @property
    def same_best_lr(self) -> bool:
        """Whether the shared lr is the best one of each value."""
        return bool((self.values["own_lr"] == self.shared_lr).all())


def at_best_lr(results, differs, measure: str, setting: str = "", folds: int = 0) -> LrComparison:
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
        return LrComparison(pd.DataFrame(), [])
    kinds, rates = results[setting].map(value_text), results["lr"].map(value_text)
    means = results[measure].groupby([kinds, rates]).mean().unstack()
    means = means.reindex(ordered_values(results[setting])).dropna(how="all")
    own_lr, common = means.idxmax(axis=1), means.dropna(axis=1)
    shared_lr = common.mean().idxmax() if common.shape[1] else ""
    values = pd.DataFrame({"own_lr": own_lr, "own": means.max(axis=1)}).rename_axis(setting)
    values = values.assign(shared_lr=shared_lr, shared=common[shared_lr] if shared_lr else math.nan)
    rest, effects = [name for name in differs if name != "lr"], []
    ways = {shared_lr: rates == shared_lr}
    if (own_lr != shared_lr).any():
        ways = {"": rates == kinds.map(own_lr)} | ({shared_lr: ways[shared_lr]} if shared_lr else {})
    for lr, kept in ways.items():
        table = _measured_by_setting(results[kept], rest, [setting], measure)
        for a, b in asked_pairs(list(means.index)):
            if effect := effect_of(table[b] - table[a], folds):
                effects.append({"setting": setting, "from": a, "to": b, "measure": measure, "lr": lr, **effect})
    return LrComparison(values, effects, setting, shared_lr)


def load_importances(sweep_dir: Path) -> pd.DataFrame:
    """Optuna's importances of a search (setting, importance), from `importances.csv`; empty without it."""
    path = sweep_dir / "importances.csv"
    table = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=["setting", "importance"])
    if not {"setting", "importance"} <= set(table):
        raise InputError(f"{files.display_path(path)}: wanted the columns setting and importance")
    return table.sort_values("importance", ascending=False, ignore_index=True)


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> np.ndarray:
    """Which points (n,) no other beats: none is as cheap and as good, and cheaper or better; NaN is never on it."""
    cost, score = np.asarray(costs, float), np.asarray(scores, float)
    no_worse = (cost[None] <= cost[:, None]) & (score[None] >= score[:, None])
    better = (cost[None] < cost[:, None]) | (score[None] > score[:, None])
    return np.isfinite(cost) & np.isfinite(score) & ~(no_worse & better).any(1)


def cost_measures(results: pd.DataFrame) -> tuple[list[str], bool]:
    """The costs worth a panel, and whether they vary between runs; where none does, one that is known.

    A latency that is measured differs between twins too, so where size and parameters do not vary it does not count.
    """
    known = [name for name in COSTS if name in results and results[name].notna().any()]
    varying = [name for name in known if np.ptp(results[name].dropna()) > 0.01 * results[name].abs().max()]
    if set(varying) - {"latency_ms_int8"}:
        return varying, True
    return known[-1:], False
