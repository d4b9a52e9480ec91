"""Which hyperparameter mattered, beyond chance: paired effects over a sweep's runs, and what they cost.

Two runs alike in all settings but one are a pair. The values of the other settings are fixed by whoever wrote the
sweep; what varies by luck is the seed (and the fold), so these are the replicates: see `effects`. Tables in, tables and
words out; `read` and what takes a `Study` open files.
"""

import math
from collections.abc import Sequence
from itertools import combinations, pairwise, product
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd

from fruitlib.core import files
from fruitlib.core.errors import InputError
from fruitlib.evaluation import significance
from fruitlib.evaluation.study import CONVERGED, REPLICATES, compared_settings, ordered_values, value_text

WORDS = {"macro_f1": "macro-F1", CONVERGED: "epochs to converge", "train_seconds": "training time"}
COSTS = {"parameters": "parameters", "mflops": "MFLOPs a photo", "size_mb_int8": "size as INT8, MB"}
COSTS |= {"latency_ms_int8": "latency as INT8, ms a photo"}
LEVEL, MOST_MORE = 0.05, 200
FEWEST_UNITS = 3  # Student's interval over two is wider than any difference can be


def asked_pairs(values: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of values that are compared: all of up to three, else each with the first and with its neighbour."""
    if len(values) <= 3:
        return list(combinations(values, 2))
    return list(dict.fromkeys([(values[0], value) for value in values[1:]] + list(pairwise(values))))


def _table(results: pd.DataFrame, differs: Sequence[str], settings: list[str], measure: str) -> pd.DataFrame:
    """The measure, a row per (block, rest) and a column per value of `settings`, runs of the same settings averaged."""
    if absent := [name for name in (*differs, measure) if name not in results]:
        raise InputError(f"results: no column {absent[0]}; the table has {', '.join(map(str, results.columns))}")
    results = results[results[measure].notna()]
    told = results[list(differs)].map(value_text)
    blocks = [name for name in differs if name in REPLICATES]
    parts = {"block": blocks, "rest": [name for name in differs if name not in (*blocks, *settings)]}
    keys = [["|".join(row) for row in told[names].to_numpy()] for names in parts.values()]
    keys = [pd.Series(key, told.index, dtype=object, name=name) for name, key in zip(parts, keys, strict=True)]
    values = results[measure].astype(float).groupby([*keys, *(told[setting] for setting in settings)]).mean()
    return values.unstack(list(range(2, 2 + len(settings))))


def main_effects(
    results: pd.DataFrame, differs: Sequence[str], measures: Sequence[str], folds: int = 0
) -> pd.DataFrame:
    """What each setting does to each measure: paired differences between two of its values, a row per question.

    Two yardsticks, and a setting can be told only if both agree. **p** asks whether the setting does anything at all:
    if not, the two runs of each pair could as well be swapped, so the signs of all pairs are flipped
    (`stats.sign_flip`, Fisher's randomisation test), corrected for all questions of the table (Holm 1979). **The
    interval** says how large the effect is for other seeds: differences are averaged over the settings of the other
    settings first, since runs of one seed share its luck, and Student's t is taken over the seeds (Bouthillier et al.
    2021 on what varies between trainings); with folds, over the folds, by Nadeau and Bengio (2003). With one seed it is
    taken over the pairs, and speaks of settings.

    Simulated, 300 sweeps each: with pure noise (3 seeds by 2 x 2 x 2 settings, 3 questions) anything was told in 3.7 %
    of sweeps, where Holm allows 5. Where half the variance of a difference belongs to the seed, pairs alone would tell
    an idle setting in 11 %, this rule in 3.7. 5 points under a run's noise of 2 are found by 83 % of questions with 3
    seeds and 4 settings (one question), 99 % with 12 settings.

    Args:
        results: a row per run with columns for `differs` (seed, fold and repeat among them) and `measures`.
        folds: of one division, where runs differ in fold.

    Returns:
        setting, from, to, measure, gain, low, high (95 %), pairs, units, unit (seed, fold or pair), p, holm_p, told,
        more (units needed on top, a rough guess; NaN: none within reason). Questions without a pair are left out.

    Raises:
        InputError: a column that is missing.
    """
    rows = []
    for measure, setting in product(measures, compared_settings(differs)):
        table = _table(results, differs, [setting], measure)
        known = table.notna().astype(int)
        pairs = known.T @ known  # asked first: a search has many values, hardly any pair, and each effect takes time
        for a, b in asked_pairs(ordered_values(results[setting])):
            if a in table and b in table and pairs.loc[a, b] and (found := effect_of(table[b] - table[a], folds)):
                rows.append({"setting": setting, "from": a, "to": b, "measure": measure, **found})
    return _with_verdicts(rows, ["setting", "from", "to", "measure"])


def interactions(results: pd.DataFrame, differs: Sequence[str], measure: str, folds: int = 0) -> pd.DataFrame:
    """Whether what one setting does depends on another: differences of differences, a row per question, as in
    `effects`.

    `gain` is what `to` gains over `from` with `with_to`, less what it gains with `with_from`.
    """
    rows, names = [], ["setting", "from", "to", "with", "with_from", "with_to", "measure"]
    for one, other in combinations(compared_settings(differs), 2):
        table = _table(results, differs, [one, other], measure)
        for (a, b), (c, d) in product(
            asked_pairs(ordered_values(results[one])), asked_pairs(ordered_values(results[other]))
        ):
            if all(cell in table for cell in product((a, b), (c, d))):
                found = effect_of((table[b, d] - table[a, d]) - (table[b, c] - table[a, c]), folds)
                rows += [dict(zip(names, (one, a, b, other, c, d, measure), strict=True)) | found] if found else []
    return _with_verdicts(rows, names)


def effect_of(differences: pd.Series, folds: int = 0) -> dict:
    """Mean, 95 % interval and p of differences indexed by (block, rest), as in `effects`; empty without any."""
    differences = differences.dropna()
    if differences.empty:
        return {}
    units, unit = differences.groupby(level="block").mean(), "fold" if folds else "seed"
    if len(units) < 2:
        units, unit = differences, "pair"
    found = significance.paired_gain(np.zeros(len(units)), units, folds if unit == "fold" else 0)
    found |= {"pairs": len(differences), "units": len(units), "unit": unit, "p": significance.sign_flip(differences)}
    return found | {"wanted": significance.pairs_needed(units), "wanted_pairs": significance.pairs_needed(differences)}


def _with_verdicts(rows: list[dict], names: list[str]) -> pd.DataFrame:
    """The rows with Holm's p, whether they can be told, and how many more units would do."""
    columns = [*names, "gain", "low", "high", "pairs", "units", "unit", "p", "holm_p", "significant", "more"]
    table = pd.DataFrame(rows, columns=[*names, *columns[len(names) : -3], "wanted", "wanted_pairs"])
    table["holm_p"] = significance.holm(table["p"])
    table["significant"] = (table["holm_p"] <= LEVEL) & ((table["low"] > 0) | (table["high"] < 0))
    questions, unit = max(len(table), 1), table["units"].astype(float) / table["pairs"].astype(float)
    stricter = (NormalDist().inv_cdf(1 - LEVEL / questions / 2) + 0.84) ** 2 / (1.96 + 0.84) ** 2  # power 0.8
    pairs = np.maximum(table["wanted_pairs"].astype(float) * stricter, 1 + math.log2(questions / LEVEL))
    more = np.ceil(np.maximum(table["wanted"].astype(float), pairs * unit)) - table["units"].astype(float)
    table["more"] = more.clip(lower=1).mask(table["significant"])
    return table[columns]


def measure_name(measure: str) -> str:
    """A measure's name in words."""
    return WORDS.get(measure, measure.replace("_", " "))


def measure_scale(measure: str) -> tuple[float, str]:
    """What a difference is multiplied by to be shown, and its unit."""
    return {CONVERGED: (1, "epochs"), "train_seconds": (1, "s")}.get(measure, (100, "points"))


def effect_with_interval(row) -> str:
    """`+0.4 points (95 % interval -1.1 to 1.9, 12 pairs of 3 seeds`, left open for what follows."""
    factor, unit = measure_scale(row["measure"])
    gain, low, high = (factor * row[name] for name in ("gain", "low", "high"))
    interval = f"95 % interval {low:.1f} to {high:.1f}" if math.isfinite(low) else "no interval"
    of = f" of {row['units']} {row['unit']}s" if row["unit"] != "pair" else ""
    return f"{gain:+.1f} {unit} ({interval}, {row['pairs']} pair{'s' * (row['pairs'] != 1)}{of}"


def effect_text(row) -> str:
    """A row of `effects` or `interactions` in words, with what can be told, or how many more seeds would tell."""
    beside = f", with {row['with']} {row['with_to']} rather than {row['with_from']}" if "with" in row else ""
    start = f"{row['setting']} {row['to']} over {row['from']}{beside}: "
    start += f"{measure_name(row['measure'])} {effect_with_interval(row)}"
    start += f", Holm p {row['holm_p']:.2g}): "
    if row["significant"] or math.isnan(row["more"]):
        return start + ("can tell" if row["significant"] else "cannot tell")
    kind = f"{'such pair' if row['unit'] == 'pair' else row['unit']}{'s' * (row['more'] != 1)}"
    count = f"about {row['more']:.0f} more" if row["more"] <= MOST_MORE else f"more than {MOST_MORE} more"
    return start + f"cannot tell; {count} {kind} would"


def leading_effects(effects: pd.DataFrame, measure: str, at_most: int = 6) -> list[str]:
    """Rows of `effects` with their words (`said`) that a first page has room for: those that can be told come first."""
    own = effects[effects["measure"] == measure] if len(effects) else effects
    if own.empty:
        return []
    enough = own[own["units"] >= FEWEST_UNITS].sort_values("significant", ascending=False, kind="stable")
    if enough.empty:
        settings = " and ".join(dict.fromkeys(own["setting"]))
        return [f"fewer than {FEWEST_UNITS} pairs, seeds or folds cannot tell what {settings} did: add seeds or folds"]
    more = [f"… and {len(enough) - at_most} more, in effects.csv"] * (len(enough) > at_most)
    return [*enough["summary"].head(at_most), *more]


def answer(effects: pd.DataFrame, measure: str) -> str:
    """The headline: the one or two largest effects on the score that can be told, and how many questions were asked."""
    if effects.empty:
        return "No two runs are alike in all settings but one: nothing to compare"
    asked = f"{len(effects)} question{'s' * (len(effects) != 1)} asked"
    told = effects[effects["significant"]].sort_values("gain", key=lambda gain: -gain.abs(), kind="stable")
    own = [
        effect_text(row).removesuffix(": can tell")
        for row in told[told["measure"] == measure].head(2).to_dict("records")
    ]
    if own:
        return "; ".join([*own, asked])
    others = [effect_text(row).removesuffix(": can tell") for row in told.head(1).to_dict("records")]
    return "; but ".join([f"In {measure_name(measure)} nothing can be told apart from chance ({asked})", *others])


def at_best_lr(results, differs, measure: str, setting: str = "", folds: int = 0) -> tuple[pd.DataFrame, str]:
    """Values of a setting compared at a shared learning rate, and each at its own best one.

    The best lr of a value has the highest mean over all its runs; the shared one the highest mean over all values. A
    setting that wants another lr loses at any shared one, whatever it is worth (Choi et al. 2019 on comparing
    optimizers).

    `setting` empty: optimizer where that differs, else the first of the others. Returns a row per value (own_lr, own,
    shared_lr, shared: mean scores), and a sentence; no row without lr or setting.
    """
    others = sorted(
        set(compared_settings(differs)) - {"lr"}, key=lambda name: (name != "optimizer", differs.index(name))
    )
    if "lr" not in differs or not (setting := setting or next(iter(others), "")):
        return pd.DataFrame(), "no setting was tried at several learning rates: nothing to compare"
    kinds, rates = results[setting].map(value_text), results["lr"].map(value_text)
    means = (
        results[measure]
        .groupby([kinds, rates])
        .mean()
        .unstack()
        .reindex(ordered_values(results[setting]))
        .dropna(how="all")
    )
    own, common = means.idxmax(axis=1), means.dropna(axis=1)
    shared = common.mean().idxmax() if common.shape[1] else ""
    table = pd.DataFrame({"own_lr": own, "own": means.max(axis=1)}).rename_axis(setting)
    table = table.assign(shared_lr=shared, shared=common[shared] if shared else math.nan)
    rest = [name for name in differs if name != "lr"]
    ways, parts = [(rates == kinds.map(own), "each at its own best lr"), (rates == shared, f"all at lr {shared}")], []
    for kept, where in ways[1:] if (own == shared).all() else ways:
        wide = _table(results[kept], rest, [setting], measure) if kept.any() else pd.DataFrame()
        for a, b in asked_pairs(list(means.index)) if len(wide) else []:
            if found := effect_of(wide[b] - wide[a], folds):
                parts.append(f"{setting} {b} over {a}, {where}: {effect_with_interval(found | {'measure': measure})})")
    if (own == shared).all():
        parts.append(f"lr {shared} is the best one of each")
    no_lr = [] if shared else [f"no lr was tried with every {setting}: there is no shared one"]
    return table, "; ".join([*parts, *no_lr, "each best lr was itself chosen on the validation photos"])


def load_importances(sweep_dir: Path) -> pd.DataFrame:
    """Optuna's importances of a search (setting, importance), from `importances.csv`; empty without it."""
    path = sweep_dir / "importances.csv"
    table = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=["setting", "importance"])
    if not {"setting", "importance"} <= set(table):
        raise InputError(f"{files.display_path(path)}: wanted the columns setting and importance")
    return table.sort_values("importance", ascending=False, ignore_index=True)


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> np.ndarray:
    """Which points (n,) nobody beats: no other is as cheap and as good, and cheaper or better; NaN is never on it."""
    cost, score = np.asarray(costs, float), np.asarray(scores, float)
    no_worse = (cost[None] <= cost[:, None]) & (score[None] >= score[:, None])
    better = (cost[None] < cost[:, None]) | (score[None] > score[:, None])
    return np.isfinite(cost) & np.isfinite(score) & ~(no_worse & better).any(1)


def cost_measures(results: pd.DataFrame) -> tuple[list[str], str]:
    """The costs worth a panel, and a sentence: those that vary between runs; where none does, one that is known.

    A latency that is measured differs between twins too, so where size and parameters do not vary it does not count.
    """
    known = [name for name in COSTS if name in results and results[name].notna().any()]
    varying = [name for name in known if np.ptp(results[name].dropna()) > 0.01 * results[name].abs().max()]
    if set(varying) - {"latency_ms_int8"}:
        return varying, ""
    return known[-1:], "all runs have the same network: none costs less than another, beyond how latency varies"
