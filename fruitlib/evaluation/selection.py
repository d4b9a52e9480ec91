"""What choosing adds to the score of the best of many runs and epochs, since the same photos choose and evaluate it."""

import contextlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from fruitlib.core import files
from fruitlib.core.errors import InputError
from fruitlib.evaluation.intervals import units_of
from fruitlib.evaluation.study import Study, load_study
from fruitlib.runs.run import POOLED, Run

MOST_VALUES = 20_000_000  # configurations x units, 160 MB: where there are more, only the best configurations compete
BLOCK = 4096  # configurations whose bootstrap sums are computed at a time


@dataclass(frozen=True)
class SelectionOptimism:
    """`best`: the highest accuracy on `photos` photos; `honest`: what its choice promises; `points`: best - honest.

    Chosen among `candidates` runs (with `folds`: combinations), and where runs kept their best epoch, among up to
    `epochs` epochs of each: `configurations` in all. `groups` of photos were drawn together; 0: photos stand alone.
    NaN where there was no choice, or the photos are not the same in all runs (`photos` is 0).
    """

    best: float = float("nan")
    honest: float = float("nan")
    points: float = float("nan")
    candidates: int = 0
    epochs: int = 1
    configurations: int = 0
    photos: int = 0
    groups: int = 0
    folds: bool = False

    @property
    def measured(self) -> bool:
        """Whether there was something to choose among, and photos to tell."""
        return self.points == self.points

    def record(self) -> dict:
        """Its fields as JSON values, without those that are NaN; `SelectionOptimism(**record)` gives it back."""
        return {name: value for name, value in asdict(self).items() if value == value}


def selection_optimism(right: np.ndarray, groups=None, draws: int = 1000, seed: int = 0) -> SelectionOptimism:
    """How much the accuracy of the best of k configurations owes to having been chosen by the photos that measure it.

    Bootstrap bias-corrected (Tsamardinos, Greasidou and Borboudakis 2018, "Bootstrapping the out-of-sample predictions
    for efficient and accurate cross-validation", algorithm 3): in each bootstrap sample of units (groups, or photos
    that stand alone) the configuration with the most right is chosen, and evaluated on the units that were not drawn.

    What choosing adds, in points, truly and as estimated here (`tests/simulations/choosing.py`: photos alone and in
    groups, runs of equal and of different skill; means of 1500 repetitions):

    photos groups  runs  epochs  true  estimated
        30            4       1   4.0        4.4
        30            4      12   7.5        8.3
        30           20       1   6.4        7.3
        30           20      12   8.8        9.8
        30           72       1   7.9        9.0
        30           72      12   9.5       10.8
        93     16     4       1   2.7        3.3
        93     16     4      12   4.8        5.5
        93     16    20       1   4.8        5.5
        93     16    20      12   6.2        7.3
        93     16    72       1   5.9        6.8
        93     16    72      12   7.2        8.2

    It is slightly too large, by up to 1.3 points: a bootstrap sample has fewer different photos than there are.

    Args:
        right: (n, k), photo by configuration: 1 right, 0 wrong, or a mean over repeats.
        groups: a name for each photo, "" where it stands alone; None: all do.
    """
    right = np.asarray(right, float)
    unit, grouped = units_of(len(right), groups)
    sums = np.stack([np.bincount(unit, column) for column in right.T]) if right.size else np.empty((0, 0))
    found = _out_of_bag(sums, np.bincount(unit), draws, seed)
    return replace(found, groups=int(unit.max()) + 1 if grouped else 0)


def _out_of_bag(sums: np.ndarray, sizes: np.ndarray, draws: int = 1000, seed: int = 0) -> SelectionOptimism:
    """`selection_optimism` from the number right by configuration and unit (k, U), and the photos of each unit (U,)."""
    found = SelectionOptimism(candidates=len(sums), configurations=len(sums), photos=int(sizes.sum()))
    if len(sums) < 2 or len(sizes) < 2:
        return found
    draws = min(draws, max(100, MOST_VALUES // len(sizes)))
    share = np.full(len(sizes), 1 / len(sizes))
    drawn = np.random.default_rng(seed).multinomial(len(sizes), share, size=draws).astype(float)
    winners, most = np.zeros(draws, int), np.full(draws, -np.inf)
    for start in range(0, len(sums), BLOCK):
        scores = sums[start : start + BLOCK] @ drawn.T
        best = scores.argmax(0)
        better = scores[best, np.arange(draws)] > most
        winners[better], most[better] = start + best[better], scores[best, np.arange(draws)][better]
    left_out = drawn == 0
    honest = float((sums[winners] * left_out).sum() / (left_out @ sizes).sum())
    best = float(sums.sum(1).max() / sizes.sum())
    return replace(found, best=best, honest=honest, points=best - honest)


def optimism_of_study(study: Study) -> SelectionOptimism:
    """What choosing adds to the accuracy of a study's best run; photos of a group are drawn together.

    Configurations are the epochs of a run that kept its best one, and else the run. With folds they are combinations,
    by their pooled predictions: there, no photo had a say in its own epoch (`crossval.pool_folds`).
    """
    return _of_combinations(study) if study.folds else _of_runs(study)


def optimism_of_sweep(sweep_dir: Path) -> SelectionOptimism:
    """The same of a sweep's folder; nothing is known where its runs cannot be read."""
    try:
        return optimism_of_study(load_study(sweep_dir))
    except (OSError, ValueError, KeyError):  # pandas' errors and InputError are ValueErrors
        return SelectionOptimism()


def _pooled_correct(study: Study) -> pd.DataFrame:
    """Whether each photo (path, label) was recognised, 0 to 1, by each pooled combination.

    Repeats are averaged. No row where the combinations were not all evaluated on the same photos.
    """
    path = study.folder / POOLED
    if not path.is_file():
        return pd.DataFrame()
    table = files.read_csv(path, dtype=str, keep_default_na=False)
    right = (table["predicted"] == table["label"]).astype(float)
    wide = right.groupby([table["path"], table["label"], table["combination"]]).mean().unstack()
    return wide if wide.notna().all(axis=None) else wide[:0]


def _of_combinations(study: Study) -> SelectionOptimism:
    right = _pooled_correct(study)
    if right.empty:
        return SelectionOptimism(folds=True)
    groups = _groups(study, right.index.get_level_values("path"))
    return replace(selection_optimism(right.to_numpy(), groups), folds=True)


def _of_runs(study: Study) -> SelectionOptimism:
    runs = [Run(study.folder / name) for name in study.results["run"]]
    labels = runs[0].predictions("val").set_index("path")["label"]
    if labels.empty:
        return SelectionOptimism(candidates=len(runs))
    unit, grouped = units_of(len(labels), _groups(study, labels.index))
    most, parts, epochs = max(2, MOST_VALUES // (int(unit.max()) + 1)), [], []
    for run in runs:
        right = _right_by_epoch(run, labels)
        if right is None:
            return SelectionOptimism(candidates=len(runs))
        parts.append(np.stack([np.bincount(unit, row) for row in right]))
        epochs.append(len(right))
        if sum(map(len, parts)) > 2 * most:
            parts = [_best_of(np.concatenate(parts), most)]
    found = _out_of_bag(_best_of(np.concatenate(parts), most), np.bincount(unit))
    found = replace(found, candidates=len(runs), epochs=max(epochs), configurations=sum(epochs))
    return replace(found, groups=int(unit.max()) + 1 if grouped else 0)


def _right_by_epoch(run: Run, labels: pd.Series) -> np.ndarray | None:
    """1 where the run predicts each photo's label, 0 elsewhere: (epochs that it chose among, n).

    A run that kept its last epoch has that one alone, and so has one whose epochs were not written down. None where it
    was evaluated on other photos than those of `labels`, by path.
    """
    trained, predicted = run.record("train"), ()
    if trained.get("keep") == "best":
        with contextlib.suppress(InputError):  # not there, or damaged: then the table has the kept epoch
            paths, predicted = run.epoch_predictions()
            wanted = pd.Index(run.class_names).get_indexer(labels)
    if not len(predicted):
        table = run.predictions("val")
        paths, predicted, wanted = table["path"], table["predicted"].to_numpy()[None], labels.to_numpy()
    order = pd.Index(paths).get_indexer(labels.index)
    if len(paths) != len(labels) or (order < 0).any():
        return None
    return (predicted[:, order] == wanted).astype(float)


def _best_of(sums: np.ndarray, most: int) -> np.ndarray:
    """The rows with the largest sums, `most` of them at most, in their order."""
    if len(sums) <= most:
        return sums
    return sums[np.sort(np.argsort(-sums.sum(1), kind="stable")[:most])]


def _groups(study: Study, paths) -> list[str] | None:
    """The group of each photo; None where the folder has no manifest."""
    if not (study.folder / "manifest.csv").is_file():
        return None
    return Run(study.folder / study.results["run"].iloc[0]).groups(paths)
