"""Which hyperparameter mattered, beyond chance: paired effects over a sweep's runs, and what they cost.

Two runs alike in all knobs but one are a pair. The settings of the other knobs are fixed by whoever wrote the sweep;
what varies by luck is the seed (and the fold), so these are the replicates: see `effects`. Tables in, tables and words
out; `read` and what takes a `Study` open files.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise, product
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd

from fruitlib import stats
from fruitlib.core import files
from fruitlib.core.errors import InputError
from fruitlib.runs.run import POOLED, Run

SCORES = ("macro_f1", "accuracy", "balanced_accuracy", "macro_precision", "macro_recall")  # higher is better, 0 to 1
CONVERGED = "epochs_to_converge"
REPLICATES = ("seed", "fold", "repeat")  # these make pairs, they are not compared
RECORDED = {"train_seconds": "seconds", "parameters": "total_parameters", "train_photos": "train_photos"}
WORDS = {"macro_f1": "macro-F1", CONVERGED: "epochs to converge", "train_seconds": "training time"}
COSTS = {"parameters": "parameters", "mflops": "MFLOPs a photo", "size_mb_int8": "size as INT8, MB"}
COSTS |= {"latency_ms_int8": "latency as INT8, ms a photo"}
LEVEL, MOST_MORE = 0.05, 200
FEWEST_UNITS = 3  # Student's interval over two is wider than any difference can be


@dataclass(frozen=True)
class Study:
    """A sweep as its files tell it: `results` has a row per complete run, with `epochs_to_converge` added.

    `differs` are the knobs in which runs differ, `measure` is the score asked about, `missing` counts the other runs by
    their state, `searched` says whether Optuna proposed the runs, `folds` are those of the division, done or not.
    """

    folder: Path
    results: pd.DataFrame
    differs: list[str]
    measure: str
    missing: dict[str, int] = field(default_factory=dict)
    searched: bool = False
    folds: int = 0

    @property
    def knobs(self) -> list[str]:
        """The knobs to compare; seed, fold and repeat make pairs."""
        return compared(self.differs)

    @property
    def measures(self) -> list[str]:
        """What is asked of each knob: the score, epochs to converge, seconds of training, as far as they are known."""
        wanted = (self.measure, CONVERGED, "train_seconds")
        return [name for name in wanted if name in self.results and self.results[name].notna().any()]

    @property
    def said(self) -> str:
        """How many runs there are, and what about them limits the answers."""
        others = "".join(f", {n} {state}" for state, n in self.missing.items())
        text = f"{len(self.results)} complete run{'s' * (len(self.results) != 1)}{others}"
        text += f"; what differs: {', '.join(self.differs) or 'nothing'}"
        if self.searched:
            text += "\nproposed by a search: nobody designed pairs, and runs alike in all knobs but one are rare"
        elif self.knobs and not set(REPLICATES) & set(self.differs):
            text += "\none seed: the intervals speak of other settings of the knobs, not of other seeds"
        return text


def read(sweep_dir: Path, measure: str = "") -> Study:
    """A sweep's folder, or one with runs that were made by hand; `measure` empty: what the sweep chose by.

    Raises:
        InputError: no complete run, an unreadable file, a measure that is none of `SCORES` or was not recorded.
    """
    told = {}
    if (sweep_dir / "results.csv").is_file() and (sweep_dir / "sweep.json").is_file():
        told = json.loads((sweep_dir / "sweep.json").read_text(encoding="utf-8"))
        listed = {run["name"]: run["knobs"] for run in told["runs"] if "stages" not in run}  # those: made to ship
        table = pd.read_csv(sweep_dir / "results.csv", dtype={"run": str})
    else:
        listed, table = _by_hand(sweep_dir)
    return study(sweep_dir, table, listed, measure or told.get("choose_by") or SCORES[0])


def study(sweep_dir: Path, table: pd.DataFrame, listed: dict[str, dict], measure: str) -> Study:
    """The runs of a table like `results.csv` that are `listed`, by name with their values of the knobs that differ.

    Raises:
        InputError: as `read`, but for files.
    """
    table = table[table["run"].isin(listed)] if len(table) else table
    differs = list(dict.fromkeys(knob for knobs in listed.values() for knob in knobs))
    rows = table.to_dict("records")
    for knob in differs:  # as they were meant: a CSV loses types
        table = table.assign(**{knob: [listed[row["run"]].get(knob, row.get(knob)) for row in rows]})
    complete = table[table["state"] == "complete"].reset_index(drop=True) if len(table) else table
    where = files.display_path(sweep_dir)
    if complete.empty:
        raise InputError(f"{where}: no complete run yet; execute `fruitlib sweep`, or 02_train and 03_metrics, first")
    if measure not in SCORES or measure not in complete:
        raise InputError(f"{where}: measure = {measure}: wanted {' | '.join(n for n in SCORES if n in complete)}")
    complete[CONVERGED] = [_converged(sweep_dir / run) for run in complete["run"]]
    missing = table.loc[table["state"] != "complete", "state"].value_counts().to_dict()
    searched = (sweep_dir / "search.journal").is_file() or complete["run"].str.startswith("trial=").all()
    folds = max((int(knobs["fold"]) for knobs in listed.values() if knobs.get("fold")), default=0)
    return Study(sweep_dir, complete, differs, measure, missing, searched, folds)


def _by_hand(sweep_dir: Path) -> tuple[dict[str, dict], pd.DataFrame]:
    """The trained runs in a folder that no sweep has summed up: the knobs that differ, by run, and a row per run."""
    found = [Run(path.parent) for path in sorted(sweep_dir.glob("*/params.yaml"))]
    found = [run for run in found if run.record("train") and (run.path / "metrics.json").is_file()]
    knobs = pd.DataFrame([run.params["knobs"] for run in found], dtype=object)
    differ = [name for name in knobs if knobs[name].map(text).nunique() > 1]
    rows = []
    for run in found:
        rows.append({"run": run.name, "state": "complete"} | run.read_json("metrics.json"))
        rows[-1] |= run.read_json("export.json")
        rows[-1] |= {new: run.record("train").get(old) for new, old in RECORDED.items()}
    return {run.name: {k: run.params["knobs"].get(k) for k in differ} for run in found}, pd.DataFrame(rows)


def converged(history: pd.DataFrame, chance: float, share: float = 0.95) -> float:
    """The first epoch whose val_accuracy reaches `share` of the run's own best one.

    NaN for a run that was never above `chance` (what naming the commonest class would reach): it has not learnt, so
    there is nothing it converged to. The measure is about speed alone; a poor run can be quick to reach its own best.
    """
    if "val_accuracy" not in history or not history["val_accuracy"].max() > chance:
        return math.nan
    reached = history["val_accuracy"] >= share * history["val_accuracy"].max() - 1e-9
    return float(history.loc[reached, "epoch"].min())


def _converged(folder: Path) -> float:
    """NaN too where the run's files cannot be read, which whoever needs them more says: one must not stop a sweep."""
    run = Run(folder)
    try:
        return converged(run.history(), run.predictions("val")["label"].value_counts(normalize=True).max())
    except (OSError, ValueError, KeyError):  # pandas' errors and InputError are ValueErrors
        return math.nan


def compared(differs: Iterable[str]) -> list[str]:
    """The knobs whose values are compared, of those that differ."""
    return [name for name in differs if name not in REPLICATES]


def text(value) -> str:
    """A knob's value as it is shown and compared: 8 for 8.0, `empty` for no text."""
    if value is None or value == "" or value != value:
        return "empty"
    try:
        return str(value) if isinstance(value, bool) else f"{float(value):.12g}"
    except (TypeError, ValueError):
        return str(value)


def ordered(values: Iterable) -> list[str]:
    """The different values of a knob as text, numbers by size, words as they come."""
    found = list(dict.fromkeys(map(text, values)))
    try:
        return sorted(found, key=float)
    except ValueError:
        return found


def asked(values: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of values that are compared: all of up to three, else each with the first and with its neighbour."""
    if len(values) <= 3:
        return list(combinations(values, 2))
    return list(dict.fromkeys([(values[0], value) for value in values[1:]] + list(pairwise(values))))


def _table(results: pd.DataFrame, differs: Sequence[str], knobs: list[str], measure: str) -> pd.DataFrame:
    """The measure, a row per (block, setting) and a column per value of `knobs`, runs of the same knobs averaged."""
    if absent := [name for name in (*differs, measure) if name not in results]:
        raise InputError(f"results: no column {absent[0]}; the table has {', '.join(map(str, results.columns))}")
    results = results[results[measure].notna()]
    told = results[list(differs)].map(text)
    blocks = [name for name in differs if name in REPLICATES]
    parts = {"block": blocks, "setting": [name for name in differs if name not in (*blocks, *knobs)]}
    keys = [["|".join(row) for row in told[names].to_numpy()] for names in parts.values()]
    keys = [pd.Series(key, told.index, dtype=object, name=name) for name, key in zip(parts, keys, strict=True)]
    values = results[measure].astype(float).groupby([*keys, *(told[knob] for knob in knobs)]).mean()
    return values.unstack(list(range(2, 2 + len(knobs))))


def effects(results: pd.DataFrame, differs: Sequence[str], measures: Sequence[str], folds: int = 0) -> pd.DataFrame:
    """What each knob does to each measure: paired differences between two of its values, a row per question.

    Two yardsticks, and a knob can be told only if both agree. **p** asks whether the knob does anything at all: if not,
    the two runs of each pair could as well be swapped, so the signs of all pairs are flipped (`stats.sign_flip`,
    Fisher's randomisation test), corrected for all questions of the table (Holm 1979). **The interval** says how large
    the effect is for other seeds: differences are averaged over the settings of the other knobs first, since runs of
    one seed share its luck, and Student's t is taken over the seeds (Bouthillier et al. 2021 on what varies between
    trainings); with folds, over the folds, by Nadeau and Bengio (2003). With one seed it is taken over the pairs, and
    speaks of settings.

    Simulated, 300 sweeps each: with pure noise (3 seeds by 2 x 2 x 2 settings, 3 questions) anything was told in 3.7 %
    of sweeps, where Holm allows 5. Where half the variance of a difference belongs to the seed, pairs alone would tell
    an idle knob in 11 %, this rule in 3.7. 5 points under a run's noise of 2 are found by 83 % of questions with 3
    seeds and 4 settings (one question), 99 % with 12 settings.

    Args:
        results: a row per run with columns for `differs` (seed, fold and repeat among them) and `measures`.
        folds: of one division, where runs differ in fold.

    Returns:
        knob, from, to, measure, gain, low, high (95 %), pairs, units, unit (seed, fold or pair), p, holm_p, told, more
        (units needed on top, a rough guess; NaN: none within reason). Questions without a pair are left out.

    Raises:
        InputError: a column that is missing.
    """
    rows = []
    for measure, knob in product(measures, compared(differs)):
        table = _table(results, differs, [knob], measure)
        known = table.notna().astype(int)
        pairs = known.T @ known  # asked first: a search has many values, hardly any pair, and each effect takes time
        for a, b in asked(ordered(results[knob])):
            if a in table and b in table and pairs.loc[a, b] and (found := effect(table[b] - table[a], folds)):
                rows.append({"knob": knob, "from": a, "to": b, "measure": measure, **found})
    return _judged(rows, ["knob", "from", "to", "measure"])


def interactions(results: pd.DataFrame, differs: Sequence[str], measure: str, folds: int = 0) -> pd.DataFrame:
    """Whether what one knob does depends on another: differences of differences, a row per question, as in `effects`.

    `gain` is what `to` gains over `from` with `with_to`, less what it gains with `with_from`.
    """
    rows, names = [], ["knob", "from", "to", "with", "with_from", "with_to", "measure"]
    for one, other in combinations(compared(differs), 2):
        table = _table(results, differs, [one, other], measure)
        for (a, b), (c, d) in product(asked(ordered(results[one])), asked(ordered(results[other]))):
            if all(cell in table for cell in product((a, b), (c, d))):
                found = effect((table[b, d] - table[a, d]) - (table[b, c] - table[a, c]), folds)
                rows += [dict(zip(names, (one, a, b, other, c, d, measure), strict=True)) | found] if found else []
    return _judged(rows, names)


def effect(differences: pd.Series, folds: int = 0) -> dict:
    """Mean, 95 % interval and p of differences indexed by (block, setting), as in `effects`; empty without any."""
    differences = differences.dropna()
    if differences.empty:
        return {}
    units, unit = differences.groupby(level="block").mean(), "fold" if folds else "seed"
    if len(units) < 2:
        units, unit = differences, "pair"
    found = stats.paired_gain(np.zeros(len(units)), units, folds if unit == "fold" else 0)
    found |= {"pairs": len(differences), "units": len(units), "unit": unit, "p": stats.sign_flip(differences)}
    return found | {"wanted": stats.pairs_needed(units), "wanted_pairs": stats.pairs_needed(differences)}


def _judged(rows: list[dict], names: list[str]) -> pd.DataFrame:
    """The rows with Holm's p, whether they can be told, and how many more units would do."""
    columns = [*names, "gain", "low", "high", "pairs", "units", "unit", "p", "holm_p", "told", "more"]
    table = pd.DataFrame(rows, columns=[*names, *columns[len(names) : -3], "wanted", "wanted_pairs"])
    table["holm_p"] = stats.holm(table["p"])
    table["told"] = (table["holm_p"] <= LEVEL) & ((table["low"] > 0) | (table["high"] < 0))
    questions, unit = max(len(table), 1), table["units"].astype(float) / table["pairs"].astype(float)
    stricter = (NormalDist().inv_cdf(1 - LEVEL / questions / 2) + 0.84) ** 2 / (1.96 + 0.84) ** 2  # power 0.8
    pairs = np.maximum(table["wanted_pairs"].astype(float) * stricter, 1 + math.log2(questions / LEVEL))
    more = np.ceil(np.maximum(table["wanted"].astype(float), pairs * unit)) - table["units"].astype(float)
    table["more"] = more.clip(lower=1).mask(table["told"])
    return table[columns]


def label(measure: str) -> str:
    """A measure's name in words."""
    return WORDS.get(measure, measure.replace("_", " "))


def scale(measure: str) -> tuple[float, str]:
    """What a difference is multiplied by to be shown, and its unit."""
    return {CONVERGED: (1, "epochs"), "train_seconds": (1, "s")}.get(measure, (100, "points"))


def spanned(row) -> str:
    """`+0.4 points (95 % interval -1.1 to 1.9, 12 pairs of 3 seeds`, left open for what follows."""
    factor, unit = scale(row["measure"])
    gain, low, high = (factor * row[name] for name in ("gain", "low", "high"))
    interval = f"95 % interval {low:.1f} to {high:.1f}" if math.isfinite(low) else "no interval"
    of = f" of {row['units']} {row['unit']}s" if row["unit"] != "pair" else ""
    return f"{gain:+.1f} {unit} ({interval}, {row['pairs']} pair{'s' * (row['pairs'] != 1)}{of}"


def said(row) -> str:
    """A row of `effects` or `interactions` in words, with what can be told, or how many more seeds would tell."""
    beside = f", with {row['with']} {row['with_to']} rather than {row['with_from']}" if "with" in row else ""
    start = f"{row['knob']} {row['to']} over {row['from']}{beside}: {label(row['measure'])} {spanned(row)}"
    start += f", Holm p {row['holm_p']:.2g}): "
    if row["told"] or math.isnan(row["more"]):
        return start + ("can tell" if row["told"] else "cannot tell")
    kind = f"{'such pair' if row['unit'] == 'pair' else row['unit']}{'s' * (row['more'] != 1)}"
    count = f"about {row['more']:.0f} more" if row["more"] <= MOST_MORE else f"more than {MOST_MORE} more"
    return start + f"cannot tell; {count} {kind} would"


def in_short(effects: pd.DataFrame, measure: str, at_most: int = 6) -> list[str]:
    """Rows of `effects` with their words (`said`) that a first page has room for: those that can be told come first."""
    own = effects[effects["measure"] == measure] if len(effects) else effects
    if own.empty:
        return []
    enough = own[own["units"] >= FEWEST_UNITS].sort_values("told", ascending=False, kind="stable")
    if enough.empty:
        knobs = " and ".join(dict.fromkeys(own["knob"]))
        return [f"fewer than {FEWEST_UNITS} pairs, seeds or folds cannot tell what {knobs} did: add seeds or folds"]
    more = [f"… and {len(enough) - at_most} more, in effects.csv"] * (len(enough) > at_most)
    return [*enough["said"].head(at_most), *more]


def answer(effects: pd.DataFrame, measure: str) -> str:
    """The headline: the one or two largest effects on the score that can be told, and how many questions were asked."""
    if effects.empty:
        return "No two runs are alike in all knobs but one: nothing to compare"
    asked = f"{len(effects)} question{'s' * (len(effects) != 1)} asked"
    told = effects[effects["told"]].sort_values("gain", key=lambda gain: -gain.abs(), kind="stable")
    own = [said(row).removesuffix(": can tell") for row in told[told["measure"] == measure].head(2).to_dict("records")]
    if own:
        return "; ".join([*own, asked])
    others = [said(row).removesuffix(": can tell") for row in told.head(1).to_dict("records")]
    return "; but ".join([f"In {label(measure)} nothing can be told apart from chance ({asked})", *others])


def at_best_lr(results, differs, measure: str, knob: str = "", folds: int = 0) -> tuple[pd.DataFrame, str]:
    """Values of a knob compared at a shared learning rate, and each at its own best one.

    The best lr of a value has the highest mean over all its runs; the shared one the highest mean over all values. A
    knob that wants another lr loses at any shared one, whatever it is worth (Choi et al. 2019 on comparing optimizers).

    `knob` empty: optimizer where that differs, else the first of the others. Returns a row per value (own_lr, own,
    shared_lr, shared: mean scores), and a sentence; no row without lr or knob.
    """
    others = sorted(set(compared(differs)) - {"lr"}, key=lambda name: (name != "optimizer", differs.index(name)))
    if "lr" not in differs or not (knob := knob or next(iter(others), "")):
        return pd.DataFrame(), "no knob was tried at several learning rates: nothing to compare"
    kinds, rates = results[knob].map(text), results["lr"].map(text)
    means = results[measure].groupby([kinds, rates]).mean().unstack().reindex(ordered(results[knob])).dropna(how="all")
    own, common = means.idxmax(axis=1), means.dropna(axis=1)
    shared = common.mean().idxmax() if common.shape[1] else ""
    table = pd.DataFrame({"own_lr": own, "own": means.max(axis=1)}).rename_axis(knob)
    table = table.assign(shared_lr=shared, shared=common[shared] if shared else math.nan)
    rest = [name for name in differs if name != "lr"]
    ways, parts = [(rates == kinds.map(own), "each at its own best lr"), (rates == shared, f"all at lr {shared}")], []
    for kept, where in ways[1:] if (own == shared).all() else ways:
        wide = _table(results[kept], rest, [knob], measure) if kept.any() else pd.DataFrame()
        for a, b in asked(list(means.index)) if len(wide) else []:
            if found := effect(wide[b] - wide[a], folds):
                parts.append(f"{knob} {b} over {a}, {where}: {spanned(found | {'measure': measure})})")
    if (own == shared).all():
        parts.append(f"lr {shared} is the best one of each")
    no_lr = [] if shared else [f"no lr was tried with every {knob}: there is no shared one"]
    return table, "; ".join([*parts, *no_lr, "each best lr was itself chosen on the validation photos"])


def importances(sweep_dir: Path) -> pd.DataFrame:
    """Optuna's importances of a search (knob, importance), from `importances.csv`; empty without it."""
    path = sweep_dir / "importances.csv"
    table = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=["knob", "importance"])
    if not {"knob", "importance"} <= set(table):
        raise InputError(f"{files.display_path(path)}: wanted the columns knob and importance")
    return table.sort_values("importance", ascending=False, ignore_index=True)


def judged(study: Study) -> pd.DataFrame:
    """Whether each photo (path, label) was recognised, 0 to 1, by each run; with folds by each pooled combination.

    Repeats are averaged. No row where the runs were not all judged on the same photos.
    """
    path, name = study.folder / POOLED, "combination" if study.folds else "run"
    if not study.folds:
        tables = [Run(study.folder / run).predictions("val").assign(run=run) for run in study.results["run"]]
        table = pd.concat(tables, ignore_index=True)
    elif path.is_file():
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    else:
        return pd.DataFrame()
    right = (table["predicted"] == table["label"]).astype(float)
    wide = right.groupby([table["path"], table["label"], table[name]]).mean().unstack()
    return wide if wide.notna().all(axis=None) else wide[:0]


def flattery(study: Study) -> tuple[float, str]:
    """What the best run owes to having been chosen on the photos that judge it (`stats.optimism`), and in words.

    Accuracy, as a share; photos of a group are drawn together. NaN where there is nothing to choose among.
    """
    right, what, groups = judged(study), "combinations" if study.folds else "runs", None
    if right.empty:
        return math.nan, f"the {what} were not all judged on the same photos: what choosing adds is not available"
    if (k := right.shape[1]) < 2:
        return math.nan, "one run: nothing was chosen, so nothing is flattered"
    if (study.folder / "manifest.csv").is_file():
        groups = Run(study.folder / study.results["run"][0]).groups(right.index.get_level_values("path"))
    found = stats.optimism(right.to_numpy(), pd.factorize(right.index.get_level_values("label"))[0], groups)
    told = f"the best of {k} {what} has an accuracy of {found['best']:.3f} on {len(right)} photos; "
    told += f"choosing it among {k} flatters it by about {100 * found['points']:.1f} points"
    told += " (at least: drawing photos again cannot show the mistakes it would make)" * (found["best"] == 1)
    return found["points"], told


def pareto(costs: Sequence[float], scores: Sequence[float]) -> np.ndarray:
    """Which points (n,) nobody beats: no other is as cheap and as good, and cheaper or better; NaN is never on it."""
    cost, score = np.asarray(costs, float), np.asarray(scores, float)
    no_worse = (cost[None] <= cost[:, None]) & (score[None] >= score[:, None])
    better = (cost[None] < cost[:, None]) | (score[None] > score[:, None])
    return np.isfinite(cost) & np.isfinite(score) & ~(no_worse & better).any(1)


def costs(results: pd.DataFrame) -> tuple[list[str], str]:
    """The costs worth a panel, and a sentence: those that vary between runs; where none does, one that is known.

    A latency that is measured differs between twins too, so where size and parameters do not vary it does not count.
    """
    known = [name for name in COSTS if name in results and results[name].notna().any()]
    varying = [name for name in known if np.ptp(results[name].dropna()) > 0.01 * results[name].abs().max()]
    if set(varying) - {"latency_ms_int8"}:
        return varying, ""
    return known[-1:], "all runs have the same network: none costs less than another, beyond how latency varies"
