"""Selection optimism: how much better the best of many runs looks for having been chosen on its own photos."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from fruitlib.evaluation.intervals import bootstrap_sums
from fruitlib.evaluation.study import Study
from fruitlib.runs.run import POOLED, Run


@dataclass(frozen=True)
class SelectionOptimism:
    """`best`: the highest accuracy; `points`: the share that choosing adds to it; `honest`: best less points.

    Of `candidates` runs (`folds`: combinations) on `photos` photos. NaN where the photos are not the same (0), or where
    there was one run and so no choice.
    """

    best: float = float("nan")
    points: float = float("nan")
    honest: float = float("nan")
    candidates: int = 0
    photos: int = 0
    folds: bool = False

    @property
    def measured(self) -> bool:
        """Whether there was something to choose among."""
        return self.photos > 0 and self.candidates > 1


def selection_optimism(right: np.ndarray, labels: np.ndarray, groups=None, seed: int = 0) -> SelectionOptimism:
    """How optimistic the accuracy of the best of k runs is, chosen and evaluated on the same photos.

    In each bootstrap sample the run that does best there is chosen, and evaluated on all photos as well; the mean gap
    is what choosing adds (Efron and Tibshirani 1993, 17.6). A bootstrap sample has chance of its own added to that of
    the photos, so this is a rough size, not a correction to the third digit.

    Args:
        right: booleans (n, k), photo by run.
    """
    right = np.asarray(right, float)
    drawn = bootstrap_sums(right, labels, groups, seed=seed) / len(right)
    winners = drawn.argmax(1)
    gap = drawn[np.arange(len(drawn)), winners] - right.mean(0)[winners]
    best, points = float(right.mean(0).max()), float(gap.mean())
    return SelectionOptimism(best, points, best - points, candidates=right.shape[1], photos=len(right))


def photos_correct(study: Study) -> pd.DataFrame:
    """Whether each photo (path, label) was recognised, 0 to 1, by each run; with folds by each pooled combination.

    Repeats are averaged. No row where the runs were not all evaluated on the same photos.
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


def optimism_of_study(study: Study) -> SelectionOptimism:
    """The selection optimism of a study's best run, in accuracy; photos of a group are drawn together."""
    right, folds, groups = photos_correct(study), bool(study.folds), None
    if right.empty or right.shape[1] < 2:
        return SelectionOptimism(candidates=right.shape[1], photos=len(right), folds=folds)
    if (study.folder / "manifest.csv").is_file():
        groups = Run(study.folder / study.results["run"][0]).groups(right.index.get_level_values("path"))
    labels = pd.factorize(right.index.get_level_values("label"))[0]
    return replace(selection_optimism(right.to_numpy(), labels, groups), folds=folds)
