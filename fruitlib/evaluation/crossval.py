"""Cross-validation: the folds of a combination pooled, so that every photo is predicted by a run that never saw it."""

from pathlib import Path

import numpy as np
import pandas as pd

from fruitlib.core import files
from fruitlib.evaluation import metrics
from fruitlib.runs.run import POOLED, Run


def pool_folds(
    work: dict[str, Run], combinations: dict[str, list[str]], sweep_dir: Path
) -> tuple[pd.DataFrame, list[str]]:
    """Write `predictions_oof.csv`: the validation predictions of every combination all of whose folds are trained.

    Columns combination, run, trained (the training's identity), repeat, fold, path, label, predicted, p_<class>…,
    backend; in every combination each photo of the pool appears once per repeat. Without any, no file is left.

    Returns:
        the table, and a line for each combination that cannot be pooled: why, and what to do.
    """
    frames, problems = [], []
    for combination, names in combinations.items():
        folds = [work[name] for name in names]
        if all(run.is_complete("train") for run in folds):
            table, problem = _pooled(combination, folds)
            frames, problems = [*frames, table], [*problems, *([problem] if problem else [])]
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    if len(table):
        files.write_csv(sweep_dir / POOLED, table)
    else:
        (sweep_dir / POOLED).unlink(missing_ok=True)
    return table, problems


def _pooled(combination: str, folds: list[Run]) -> tuple[pd.DataFrame, str]:
    """The pooled predictions of one combination's runs, or an empty table and why there is none."""
    remedy = "remove the folders of its runs and run the same command again"
    if len({run.record("train")["initial_weights"] for run in folds}) > 1:
        return pd.DataFrame(), f"{combination}: its folds did not start from the same fresh weights: {remedy}"
    tables = []
    for run in folds:
        places = {"combination": combination, "run": run.name, "trained": run.record("train")["identity"]}
        places |= {"repeat": run.config.repeat, "fold": run.config.fold}
        table = run.predictions("val")
        for position, (name, value) in enumerate(places.items()):
            table.insert(position, name, value)
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    if (twice := table.duplicated(["repeat", "path"])).any():
        return pd.DataFrame(), f"{combination}: {table.loc[twice, 'path'].iloc[0]} was predicted by two folds: {remedy}"
    return table, ""


def out_of_sample(run: Run) -> tuple[pd.DataFrame, bool]:
    """Predictions on photos their model never saw, and whether they are pooled from folds.

    The pooled out-of-fold predictions of this run's combination, where a sweep has written them and none of its folds
    was trained again since; else this run's own validation predictions. A refit or an ensemble has those of the
    combination it was made of.
    """
    pooled = _a_fold(run).pooled() if run.config.folds else pd.DataFrame()
    return (pooled, True) if len(pooled) else (run.predictions("val"), False)


def _a_fold(run: Run) -> Run:
    """The run itself; of a refit or an ensemble, a run of a fold of its combination, which its name tells."""
    path, (combination, _, ship) = run.sweep_dir / POOLED, run.name.rpartition("ship=")
    if ship not in ("refit", "ensemble") or not path.is_file():
        return run
    folds = pd.read_csv(path, usecols=["combination", "run"], dtype=str, keep_default_na=False)
    folds = folds.loc[folds["combination"] == (combination.removesuffix(",") or "run"), "run"]
    return Run(run.sweep_dir / folds.iloc[0]) if len(folds) else run


def pooled_results(pooled: pd.DataFrame, class_names: list[str]) -> pd.DataFrame:
    """A row per combination: n photos, accuracy with its interval, balanced_accuracy and macro_f1, from pooled labels.

    With repeats the numbers are means over the repeats; n stays the number of photos.
    """
    rows = []
    for combination, table in pooled.groupby("combination", sort=False) if len(pooled) else ():
        by_repeat = [
            metrics.scores(metrics.confusion_from_names(part["label"], part["predicted"], class_names))
            for _, part in table.groupby("repeat")
        ]
        n, correct = by_repeat[0]["n"], float(np.mean([one["correct"] for one in by_repeat]))
        low, high = metrics.wilson(correct, n)
        row = {"combination": combination, "repeats": len(by_repeat), "folds": table["fold"].nunique(), "n": n}
        row |= {name: np.mean([one[name] for one in by_repeat]) for name in ("macro_f1", "balanced_accuracy")}
        rows.append(row | {"accuracy": correct / n, "accuracy_low": low, "accuracy_high": high})
    return pd.DataFrame(rows)
