"""Predictions of a run, or of any other program's CSV, as one checked table.

Other programs' CSVs work too: their columns can be named, a cell may be empty, classes may be spelled otherwise.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from fruitlib.core import errors, files
from fruitlib.core.errors import InputError
from fruitlib.core.texts import normal
from fruitlib.data.labels import unify
from fruitlib.evaluation.matching import plain_paths
from fruitlib.runs.run import POOLED, Run

COLUMNS = ("path", "label", "predicted", "backend")
ROUNDING = 1e-4  # by which a probability may be out of its range


@dataclass(frozen=True)
class Predictions:
    """One side: a row per photo with path, predicted, label where known, and p_<class> where known."""

    name: str
    table: pd.DataFrame
    run: Run | None = None
    part: str = ""  # of a run: val, test or oof (pooled folds)

    @property
    def probs(self) -> list[str]:
        """The classes it has probabilities for."""
        return [name[2:] for name in self.table if name.startswith("p_")]


def load_predictions(
    source: str | Path, split: str = "val", backend: str = "", columns: Mapping[str, str] | None = None
) -> Predictions:
    """A run folder's predictions of `split`, a CSV, or SWEEP/COMBINATION of a sweep with folds.

    Args:
        backend: of those in a column `backend`; empty: torch, else the first.
        columns: what this CSV calls path, label, predicted, backend or p_<class>.

    Raises:
        InputError: no such file, a column or a cell that is missing or wrong, a photo with several rows.
    """
    path, run = files.resolve(source), None
    if not path.exists() and path.name in combinations(path.parent):
        return load_pooled(path.parent, path.name)
    if path.is_dir():
        run = Run(path)
        if not run.record("train"):
            raise InputError(f"{source}: no trained run here; give a run's folder or a CSV of predictions")
        path = path / f"predictions_{split}.csv"
    if not path.is_file():
        why = "; 06_test_accuracy writes it, for the chosen run" if run and split == "test" else ""
        raise InputError(f"{files.display_path(path)}: no such file{why}")
    table = _read(path, str(source))
    table, used = _checked(table, str(source), backend, columns or {})
    name = f"{run.sweep_dir.name}/{run.name}" if run else files.display_path(path)
    details = ", ".join([*([used] if used else []), *(["test photos"] if run and split == "test" else [])])
    return Predictions(name + (f" ({details})" if details else ""), table, run, split if run else "")


def combinations(folder: Path) -> list[str]:
    """Those with pooled predictions in a sweep's folder."""
    path = folder / POOLED
    return files.read_csv(path, dtype=str)["combination"].unique().tolist() if path.is_file() else []


def load_pooled(sweep_dir: Path, combination: str) -> Predictions:
    """The out-of-fold predictions of a combination; of several repeats the first."""
    table = files.read_csv(sweep_dir / POOLED, dtype=str, keep_default_na=False)
    own = table[(table["combination"] == combination) & (table["repeat"] == table["repeat"].min())]
    run = Run(sweep_dir / own["run"].iloc[0])
    own = own.drop(columns=["combination", "run", "trained", "repeat", "fold"])
    more = f", repeat 1 of {table['repeat'].nunique()}" if table["repeat"].nunique() > 1 else ""
    return Predictions(f"{combination} (out of fold{more})", _checked(own, combination, "", {})[0], run, "oof")


def _read(path: Path, source: str) -> pd.DataFrame:
    """A CSV as text; its fields are separated by commas, semicolons or tabs."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a row longer than the header would be cut
            with open(path, encoding="utf-8-sig") as file:
                first = file.readline()
            separator = max(",;\t", key=first.count)
            options = {"dtype": str, "keep_default_na": False, "index_col": False, "encoding": "utf-8-sig"}
            return files.read_csv(path, sep=separator, **options).fillna("")
    except pd.errors.ParserWarning:
        raise InputError(f"{source}: a row has more fields than the header: put text with a comma in quotes") from None
    except ValueError as problem:  # of which pandas' parsing errors and undecodable bytes are kinds
        raise InputError(f"{source}: not a CSV in UTF-8 that can be read ({errors.first_line(problem)})") from None


def _checked(table: pd.DataFrame, source: str, backend: str, columns: Mapping[str, str]) -> tuple[pd.DataFrame, str]:
    """The table with our names for its columns, one backend, one row a photo; and the backend."""
    table = _renamed(table, source, columns)
    if backend and ("backend" not in table or backend not in set(table["backend"])):
        raise InputError(f"{source}: no rows of backend {backend}")
    if "backend" in table and len(table):
        backend = backend or ("torch" if "torch" in set(table["backend"]) else table["backend"].iloc[0])
        table = table[table["backend"] == backend]
    table = _numbered(table, source)
    if absent := [name for name in ("path", "predicted") if name not in table]:
        hint = f"name it by columns: {absent[0]}=THEIR_NAME"
        raise InputError(f"{source}: no column {absent[0]} among {', '.join(table.columns)}; {hint}")
    for name in ("path", "predicted"):
        if (blank := table[name].map(normal) == "").any():
            raise InputError(f"{source}: {table['path'][blank].iloc[0] or 'a row'} has no {name}; fill or remove it")
    if (twice := plain_paths(table["path"])[0].duplicated()).any():
        why = ""
        if "repeat" in table and table["repeat"].nunique() > 1:
            why = ": folds with repeats; keep the rows of one, or give SWEEP/COMBINATION"
        if "combination" in table and table["combination"].nunique() > 1:
            why = ": pooled folds of several combinations; give two of them as SWEEP/COMBINATION"
        raise InputError(f"{source}: {table['path'][twice].iloc[0]} has more than one row{why}")
    if "label" in table and (table["label"] == "").all():
        table = table.drop(columns="label")
    return table.reset_index(drop=True), backend


def _renamed(table: pd.DataFrame, source: str, columns: Mapping[str, str]) -> pd.DataFrame:
    """The table with our names for its columns; a column that has such a name for something else is dropped."""
    for ours, given in columns.items():
        if ours not in COLUMNS and not ours.startswith("p_"):
            raise InputError(f"columns: {ours} is none of {', '.join(COLUMNS)} and p_<class>")
        if given not in table:
            raise InputError(f"{source}: no column {given}; it has {', '.join(table.columns)}")
    kept = table.drop(columns=[*columns.values(), *columns], errors="ignore")
    table = kept.assign(**{ours: table[given] for ours, given in columns.items()})
    return table.assign(**{name: table[name].str.strip() for name in COLUMNS if name in table})


def _numbered(table: pd.DataFrame, source: str) -> pd.DataFrame:
    """Probabilities as numbers, NaN where a cell is empty; where there is no column predicted, the likeliest class."""
    probs = [name for name in table if name.startswith("p_")]
    for name in probs:
        numbers = pd.to_numeric(table[name], errors="coerce")
        if (wrong := numbers.isna() & (table[name].str.strip() != "")).any():
            raise InputError(f"{source}: {name} holds {table[name][wrong].iloc[0]!r}, which is not a number")
        if (wrong := (numbers < -ROUNDING) | (numbers > 1 + ROUNDING)).any():
            raise InputError(
                f"{source}: {name} holds {table[name][wrong].iloc[0]}, but a probability is from 0 to 1: convert the "
                "column, or rename it if it holds no probabilities"
            )
        table = table.assign(**{name: numbers})
    if "predicted" not in table and len(probs) > 1:
        known = table[probs].notna().any(axis=1)
        predicted = table.loc[known, probs].idxmax(axis=1).str[2:]
        table = table.assign(predicted=predicted.reindex(table.index, fill_value=""))
    return table


def in_one_spelling(a: Predictions, b: Predictions) -> tuple[Predictions, Predictions, tuple[str, ...]]:
    """Both sides with every class spelled as the run does (A's, of two), and the classes that were not."""
    run = a.run or b.run
    known = list(run.class_names) if run else []
    given = [side.table[name] for side in (a, b) for name in ("label", "predicted") if name in side.table]
    names = pd.concat([*given, *(pd.Series(side.probs, dtype=str) for side in (a, b))], ignore_index=True)
    spelling = dict(zip(names, unify(names, known)[0], strict=True))
    respelled = sorted({now for before, now in spelling.items() if before != now and now})
    return _respelled(a, spelling), _respelled(b, spelling), tuple(respelled)


def _respelled(side: Predictions, spelling: Mapping[str, str]) -> Predictions:
    columns = {f"p_{name}": f"p_{spelling[name]}" for name in side.probs}
    table = side.table.rename(columns=columns)
    if (twice := table.columns.duplicated()).any():
        same = [name for name, now in columns.items() if now == table.columns[twice][0]]
        raise InputError(f"{side.name}: the columns {' and '.join(same)} are of one class: keep one")
    given = [name for name in ("label", "predicted") if name in table]
    return replace(side, table=table.assign(**{name: table[name].map(spelling) for name in given}))


def mistakes(predictions: pd.DataFrame) -> pd.DataFrame:
    """The wrong predictions, most confident first, with a column `confidence`, the probability of the wrong class."""
    wrong = predictions[predictions["label"] != predictions["predicted"]]
    confidence = [row[f"p_{row['predicted']}"] for row in wrong.to_dict("records")]
    return wrong.assign(confidence=confidence).sort_values("confidence", ascending=False, ignore_index=True)
