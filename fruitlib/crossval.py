"""Cross-validation: the folds of a combination pooled, so that every photo is judged by a run that never saw it."""

from pathlib import Path

import numpy as np
import pandas as pd

from fruitlib import metrics, runtime
from fruitlib.runs import Run
from fruitlib.runtime import InputError

POOLED = "predictions_oof.csv"


def pool(work: dict[str, Run], combinations: dict[str, list[str]], sweep_dir: Path) -> pd.DataFrame:
    """Write and return `predictions_oof.csv`: the validation predictions of every combination whose folds are trained.

    Columns combination, run, repeat, fold, path, label, predicted, p_<class>…, backend; in every combination each
    photo of the pool stands once per repeat.

    Raises:
        InputError: a fold that did not start from the same fresh weights as the others, or a photo judged twice.
    """
    frames = [
        _pooled(combination, [work[name] for name in names])
        for combination, names in combinations.items()
        if all(work[name].is_complete("train") for name in names)
    ]
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    if len(table):
        with runtime.replacing(sweep_dir / POOLED) as partial:
            table.to_csv(partial, index=False)
    return table


def _pooled(combination: str, folds: list[Run]) -> pd.DataFrame:
    """The pooled predictions of one combination's runs."""
    started = {run.name: run.record("train")["initial_weights"] for run in folds}
    if len(set(started.values())) > 1:
        raise InputError(f"{combination}: its folds did not start from the same fresh weights ({started})")
    tables = []
    for run in folds:
        table = run.predictions("val")
        places = {"combination": combination, "run": run.name, "repeat": run.config.repeat, "fold": run.config.fold}
        for position, (name, value) in enumerate(places.items()):
            table.insert(position, name, value)
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    if table.duplicated(["repeat", "path"]).any():
        twice = table.loc[table.duplicated(["repeat", "path"]), "path"].iloc[0]
        raise InputError(f"{combination}: {twice} was judged by two folds; remove the combination's folders, run again")
    return table


def out_of_sample(run: Run) -> tuple[pd.DataFrame, str]:
    """Predictions on photos their model never saw, and in words where they come from.

    The pooled out-of-fold predictions of this run's combination where a sweep has written them, else this run's own
    validation predictions.
    """
    path = run.sweep_dir / POOLED
    if run.config.folds and path.is_file():
        table = pd.read_csv(path, dtype={"label": str, "predicted": str, "run": str}, keep_default_na=False)
        mine = table.loc[table["run"] == run.name, "combination"]
        if len(mine):
            table = table[table["combination"] == mine.iloc[0]].reset_index(drop=True)
            return table, f"out-of-fold predictions on {table['path'].nunique()} photos, {run.config.folds} folds"
    table = run.predictions("val")
    return table, f"validation predictions on {len(table)} photos; with folds: 5, every photo would be judged"


def results(pooled: pd.DataFrame, class_names: list[str]) -> pd.DataFrame:
    """A row per combination: n photos, accuracy with its interval, balanced_accuracy and macro_f1, from pooled labels.

    With repeats the numbers are means over the repeats; n stays the number of photos.
    """
    rows = []
    for combination, table in pooled.groupby("combination", sort=False) if len(pooled) else ():
        found = [
            metrics.summary(metrics.from_labels(part["label"], part["predicted"], class_names))
            for _, part in table.groupby("repeat")
        ]
        n, correct = found[0]["n"], float(np.mean([one["correct"] for one in found]))
        low, high = metrics.wilson(correct, n)
        row = {"combination": combination, "repeats": len(found), "folds": table["fold"].nunique(), "n": n}
        row |= {name: np.mean([one[name] for one in found]) for name in ("macro_f1", "balanced_accuracy")}
        rows.append(row | {"accuracy": correct / n, "accuracy_low": low, "accuracy_high": high})
    return pd.DataFrame(rows)
