"""What each run of a sweep predicts, photo by photo, brought together: the ground that 08 compares runs on."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from fruitlib.core import files
from fruitlib.evaluation import crossed, intervals
from fruitlib.evaluation.study import Study
from fruitlib.runs.run import Run


@dataclass(frozen=True)
class Outcomes:
    """The validation photos of a sweep, and the class each run predicts for them.

    `predicted` has an array (J,) of class indexes by run, -1 for photos of other folds; `unit` (J,) numbers the groups.
    """

    paths: list[str]
    labels: np.ndarray
    unit: np.ndarray
    num_classes: int
    predicted: dict[str, np.ndarray]
    groups: list[str] = field(default_factory=list)  # a name for each photo, "" where it stands alone

    def parts(self, runs: Iterable[str], measure: str) -> np.ndarray | None:
        """Each photo's part (J,) in the score of these runs, alike or folds of one; None where photos are missing.

        Folds are pooled before the score is taken. Runs on all photos are averaged.
        """
        rows = np.array([self.predicted[run] for run in runs if run in self.predicted])
        if not len(rows):
            return None
        if (rows >= 0).all():
            return np.mean([self._parts(row, measure) for row in rows], 0)
        pooled = rows.max(0)
        complete = ((rows >= 0).sum(0) == 1).all()
        return self._parts(pooled, measure) if complete else None

    def _parts(self, predicted: np.ndarray, measure: str) -> np.ndarray:
        return crossed.photo_parts(self.labels, predicted, self.num_classes, measure)


def load_outcomes(study: Study) -> Outcomes | None:
    """The predictions of a study's runs; None where no run has any.

    A run on other photos than most (its split was another) is left out.
    """
    tables = {run: table for run in study.results["run"] if len(table := _read(study.folder / run))}
    if not tables:
        return None
    labels = pd.concat(tables.values()).groupby(level=0, sort=True)["label"].first()
    if not study.folds:
        photos = pd.Series({run: tuple(table.index.sort_values()) for run, table in tables.items()})
        usual = photos.mode().iloc[0]
        tables = {run: table for run, table in tables.items() if photos[run] == usual}
        labels = labels.loc[list(usual)]
    names = sorted({*labels, *(name for table in tables.values() for name in table["predicted"].unique())})
    index = pd.Series(range(len(names)), names)
    predicted = {
        run: table["predicted"].map(index).reindex(labels.index).fillna(-1).to_numpy(int)
        for run, table in tables.items()
    }
    groups = [""] * len(labels)
    if (study.folder / "manifest.csv").is_file():
        stamp = (study.folder / "manifest.csv").stat().st_mtime_ns
        groups = _groups_once(study.folder / next(iter(tables)), stamp, tuple(labels.index))
    return Outcomes(
        list(labels.index), labels.map(index).to_numpy(), intervals.units(groups), len(names), predicted, groups
    )


@lru_cache(maxsize=2)
def _groups_once(folder: Path, stamp: int, paths: tuple[str, ...]) -> list[str]:
    """The group of each photo, as the manifest was at `stamp`: of two million rows it takes seconds to find them."""
    return Run(folder).groups(list(paths))


def _read(folder: Path) -> pd.DataFrame:
    """label and predicted by path of a run's validation photos; empty where the file is missing or damaged."""
    path = folder / "predictions_val.csv"
    try:
        return _read_once(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, KeyError):  # or removed just now: that must not stop a sweep
        return pd.DataFrame()


@lru_cache(maxsize=4096)
def _read_once(path: Path, stamp: int) -> pd.DataFrame:
    """As the file was at `stamp`: a sweep asks again after every run."""
    table = files.read_csv(path, usecols=["path", "label", "predicted"], dtype=str, keep_default_na=False)
    return table.drop_duplicates("path").set_index("path")
