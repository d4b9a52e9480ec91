"""A sweep's runs as a table to draw conclusions from: scores, the settings that differ, epochs to converge."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from fruitlib.core import files
from fruitlib.core.errors import InputError
from fruitlib.runs.run import Run
from fruitlib.runs.status import read_sweep

SCORES = ("macro_f1", "accuracy", "balanced_accuracy", "macro_precision", "macro_recall")  # higher is better, 0 to 1
CONVERGED = "epochs_to_converge"
REPLICATES = ("seed", "fold", "repeat")  # these make pairs, they are not compared
# What a training cost, by its name in results.csv and in the training's record
COSTS = {"train_seconds": "seconds", "parameters": "total_parameters", "train_photos": "train_photos"}


@dataclass(frozen=True)
class Study:
    """A sweep as its files have it: `results` has a row per complete run, with `epochs_to_converge` added.

    `differs` are the settings in which runs differ, `measure` is the score of interest, `missing` counts the other runs
    by their state, `searched` says whether Optuna proposed the runs, `folds` are those of the division, done or not.
    """

    folder: Path
    results: pd.DataFrame
    differs: list[str]
    measure: str
    missing: dict[str, int] = field(default_factory=dict)
    searched: bool = False
    folds: int = 0

    @property
    def settings(self) -> list[str]:
        """The settings to compare; seed, fold and repeat make pairs."""
        return compared_settings(self.differs)

    @cached_property
    def group_word(self) -> str:
        """What a group of photos is called, by the first run's settings."""
        path = self.folder / str(self.results["run"].iloc[0]) / "params.yaml" if "run" in self.results else None
        return Run(path.parent).params["settings"].get("group_word", "group") if path and path.is_file() else "group"

    @property
    def measures(self) -> list[str]:
        """What a setting may change: the score, epochs to converge, seconds of training, where known."""
        wanted = (self.measure, CONVERGED, "train_seconds")
        return [name for name in wanted if name in self.results and self.results[name].notna().any()]


def load_study(sweep_dir: Path, measure: str = "") -> Study:
    """A sweep's folder, or one with runs that were made by hand; `measure` empty: what the sweep chose by.

    Raises:
        InputError: no complete run, an unreadable file, a measure that is none of `SCORES` or was not recorded.
    """
    sweep = {}
    if (sweep_dir / "results.csv").is_file() and (sweep_dir / "sweep.json").is_file():
        sweep = read_sweep(sweep_dir)
        compared = [run for run in sweep["runs"] if run.get("candidate", "stages" not in run)]
        listed = {run["name"]: run.get("settings", {}) for run in compared}
        table = files.read_csv(sweep_dir / "results.csv", dtype={"run": str})
    else:
        listed, table = _by_hand(sweep_dir)
    return build_study(sweep_dir, table, listed, measure or sweep.get("choose_by") or SCORES[0])


def build_study(sweep_dir: Path, table: pd.DataFrame, listed: dict[str, dict], measure: str) -> Study:
    """The runs of a table like `results.csv` that are `listed`, by name with their values of the settings that differ.

    Raises:
        InputError: as `load_study`, but for files.
    """
    table = table[table["run"].isin(listed)] if len(table) else table
    differs = list(dict.fromkeys(setting for settings in listed.values() for setting in settings))
    rows = table.to_dict("records")
    for setting in differs:  # as they were set: a CSV loses types
        table = table.assign(**{setting: [listed[row["run"]].get(setting, row.get(setting)) for row in rows]})
    complete = table[table["state"] == "complete"].reset_index(drop=True) if len(table) else table
    where = files.display_path(sweep_dir)
    if complete.empty:
        raise InputError(f"{where}: no complete run yet; execute `fruitlib sweep`, or 02_train and 03_metrics, first")
    if measure not in SCORES or measure not in complete:
        raise InputError(f"{where}: measure = {measure}: wanted {' | '.join(n for n in SCORES if n in complete)}")
    complete[CONVERGED] = [_epochs_to_converge(sweep_dir / run) for run in complete["run"]]
    missing = table.loc[table["state"] != "complete", "state"].value_counts().to_dict()
    searched = (sweep_dir / "search.journal").is_file() or complete["run"].str.startswith("trial=").all()
    folds = max((int(settings["fold"]) for settings in listed.values() if settings.get("fold")), default=0)
    return Study(sweep_dir, complete, differs, measure, missing, searched, folds)


def _by_hand(sweep_dir: Path) -> tuple[dict[str, dict], pd.DataFrame]:
    """The trained runs in a folder without results.csv: the settings that differ, by run, and a row per run."""
    runs = [Run(path.parent) for path in sorted(sweep_dir.glob("*/params.yaml"))]
    runs = [run for run in runs if run.record("train") and (run.path / "metrics.json").is_file()]
    settings = pd.DataFrame([run.params["settings"] for run in runs], dtype=object)
    differ = [name for name in settings if settings[name].map(value_text).nunique() > 1]
    rows = []
    for run in runs:
        rows.append({"run": run.name, "state": "complete"} | run.read_json("metrics.json"))
        rows[-1] |= run.read_json("export.json")
        rows[-1] |= {new: run.record("train").get(old) for new, old in COSTS.items()}
    return {run.name: {k: run.params["settings"].get(k) for k in differ} for run in runs}, pd.DataFrame(rows)


def epochs_to_converge(history: pd.DataFrame, chance: float, share: float = 0.95) -> float:
    """The first epoch whose val_accuracy reaches `share` of the run's own best one.

    NaN for a run that was never above `chance` (what always predicting the commonest class reaches): it has not
    learnt, so it converged to nothing. The measure is about speed alone; a poor run can be quick to reach its own best.
    """
    if "val_accuracy" not in history or not history["val_accuracy"].max() > chance:
        return math.nan
    reached = history["val_accuracy"] >= share * history["val_accuracy"].max() - 1e-9
    return float(history.loc[reached, "epoch"].min())


def _epochs_to_converge(folder: Path) -> float:
    """NaN too where the run's files cannot be read: that must not stop a sweep."""
    run = Run(folder)
    try:
        return epochs_to_converge(run.history(), run.predictions("val")["label"].value_counts(normalize=True).max())
    except (OSError, ValueError, KeyError):  # pandas' errors and InputError are ValueErrors
        return math.nan


def compared_settings(differs: Iterable[str]) -> list[str]:
    """The settings whose values are compared, of those that differ."""
    return [name for name in differs if name not in REPLICATES]


def value_text(value) -> str:
    """A setting's value as it is shown and compared: 8 for 8.0, `empty` for no text."""
    if value is None or value == "" or value != value:
        return "empty"
    try:
        return str(value) if isinstance(value, bool) else f"{float(value):.12g}"
    except (TypeError, ValueError, OverflowError):
        return str(value)


def ordered_values(values: Iterable) -> list[str]:
    """The different values of a setting as text, numbers by size, words in order of appearance."""
    names = list(dict.fromkeys(map(value_text, values)))
    try:
        return sorted(names, key=float)
    except ValueError:
        return names
