"""What the best of many runs owes to having been chosen on the photos that judge it."""

import math

import numpy as np
import pandas as pd

from fruitlib.evaluation.intervals import bootstrap_sums
from fruitlib.evaluation.study import Study
from fruitlib.runs.run import POOLED, Run


def selection_optimism(right: np.ndarray, labels: np.ndarray, groups=None, seed: int = 0) -> dict[str, float]:
    """What the best of k runs owes to having been chosen on the photos that judge it: points, best, honest.

    In each bootstrap sample the run that does best there is chosen, and judged on all photos as well; the mean gap is
    what choosing adds (Efron and Tibshirani 1993, 17.6). A bootstrap sample has chance of its own added to that of
    the photos, so this is a rough size, not a correction to the third digit.

    Args:
        right: booleans (n, k), photo by run.

    Returns:
        `best`, the highest accuracy; `points`, the mean gap as a share; `honest`, best less points.
    """
    right = np.asarray(right, float)
    drawn = bootstrap_sums(right, labels, groups, seed=seed) / len(right)
    winners = drawn.argmax(1)
    gap = drawn[np.arange(len(drawn)), winners] - right.mean(0)[winners]
    best = float(right.mean(0).max())
    return {"best": best, "points": float(gap.mean()), "honest": best - float(gap.mean())}


def photos_correct(study: Study) -> pd.DataFrame:
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


def optimism_of_study(study: Study) -> tuple[float, str]:
    """What the best run owes to having been chosen on the photos that judge it (`stats.optimism`), and in words.

    Accuracy, as a share; photos of a group are drawn together. NaN where there is nothing to choose among.
    """
    right, what, groups = photos_correct(study), "combinations" if study.folds else "runs", None
    if right.empty:
        return math.nan, f"the {what} were not all judged on the same photos: what choosing adds is not available"
    if (k := right.shape[1]) < 2:
        return math.nan, "one run: nothing was chosen, so nothing is flattered"
    if (study.folder / "manifest.csv").is_file():
        groups = Run(study.folder / study.results["run"][0]).groups(right.index.get_level_values("path"))
    found = selection_optimism(right.to_numpy(), pd.factorize(right.index.get_level_values("label"))[0], groups)
    told = f"the best of {k} {what} has an accuracy of {found['best']:.3f} on {len(right)} photos; "
    told += f"choosing it among {k} flatters it by about {100 * found['points']:.1f} points"
    told += " (at least: drawing photos again cannot show the mistakes it would make)" * (found["best"] == 1)
    return found["points"], told
