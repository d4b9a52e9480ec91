"""What the report's script works with: predictions, histories, groups and a map of the validation photos, as JSON.

Probabilities are whole millionths, as `predictions_val.csv` has six decimals: what the script counts is then what
Python counts. Test photos are never among them.
"""

import contextlib
import functools
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup

from fruitlib.core.files import read_csv, read_json, read_npz
from fruitlib.evaluation.metrics import confusion_matrix, rates, wilson
from fruitlib.reporting.sprites import NOTHING, Sheet
from fruitlib.runs.run import POOLED

PREDICTIONS = "predictions_val.csv"
MILLION = 1_000_000
MOST_PHOTOS = 10_000  # of a run, on its page
MOST_PAIRED = 150_000  # photos times runs on the index
MOST_EPOCHS = 200  # points of a curve
MOST_CLASSES = 25  # in a table of confusions; where there are more, the most frequent confusions are listed
MOST_PAIRS = 40  # confusions that are listed
MOST_GROUPS = 60  # rows of the grid of groups, those with most mistakes
SHOWN = 3  # most probable classes of a photo
CURVES = ("train_loss", "val_loss", "val_accuracy", "val_macro_f1")
SMALL_SIDE = 300  # of a table whose singular values are all computed
FEATURES_FILE = "features_val.npz"  # as `explain.for_report` calls it, which imports torch
MAX_FEATURES = 200_000_000  # bytes of a run's features
FEATURES, PROBABILITIES = "features", "probabilities"


@dataclass(frozen=True)
class RunPhotos:
    """The validation photos of a run: a row per photo of `table` (path, label, predicted), the probabilities beside."""

    table: pd.DataFrame
    probs: np.ndarray  # (n, C)
    class_names: list[str]
    groups: list[str] = field(default_factory=list)  # of each photo; "": it stands alone

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """Class indexes (n,)."""
        return self.table["label"].map(self.class_names.index).to_numpy(int)

    @functools.cached_property
    def predicted(self) -> np.ndarray:
        """Class indexes (n,) of what is predicted."""
        return self.table["predicted"].map(self.class_names.index).to_numpy(int)

    @functools.cached_property
    def confidence(self) -> np.ndarray:
        """The probability (n,) of the predicted class, in millionths."""
        return self.millionths[np.arange(len(self.table)), self.predicted]

    @property
    def millionths(self) -> np.ndarray:
        """The probabilities int64 (n, C) in millionths."""
        return np.rint(MILLION * self.probs).astype(np.int64)

    @functools.cached_property
    def mistakes(self) -> np.ndarray:
        """Rows that are wrong, the most confident first."""
        wrong = np.flatnonzero(self.labels != self.predicted)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")]

    @property
    def least_sure(self) -> np.ndarray:
        """Rows, the least confident first."""
        return np.argsort(self.confidence, kind="stable")


def load_photos(folder: Path, groups: dict[str, str]) -> RunPhotos | None:
    """The validation photos of a run's folder, by torch; None where there are none, or they cannot be read."""
    return _photos_of(_predictions(folder / PREDICTIONS), groups)


def load_pooled(sweep_dir: Path, combination: str, groups: dict[str, str]) -> RunPhotos | None:
    """The photos of all folds of a combination, each predicted by a fold that has not seen it; of repeats the first.

    None where there are no pooled predictions of it, or they cannot be read.
    """
    table = _predictions(sweep_dir / POOLED)
    if not {"combination", "repeat"} <= set(table):
        return None
    own = table[table["combination"] == combination]
    return _photos_of(own[own["repeat"] == own["repeat"].min()], groups)


def _predictions(path: Path) -> pd.DataFrame:
    """A table of predictions; empty where there is none, or it cannot be read."""
    named = ("path", "label", "predicted", "backend", "combination")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        if path.is_file() and not path.is_symlink():
            return read_csv(path, dtype=dict.fromkeys(named, str), keep_default_na=False)
    return pd.DataFrame()


def _photos_of(table: pd.DataFrame, groups: dict[str, str]) -> RunPhotos | None:
    """Predictions, one a photo, by torch where a table has several backends; None where they are not whole."""
    try:
        if "backend" in table and len(table):
            backends = table["backend"]
            table = table[backends == ("torch" if "torch" in set(backends) else backends.iloc[0])]
        columns = [name for name in table if name.startswith("p_")]
        names = [name[2:] for name in columns]
        probs = table[columns].to_numpy(float)
        known = set(table["label"]) | set(table["predicted"]) <= set(names)
        whole = len(table) and table["path"].is_unique and np.isfinite(probs).all()
    except (ValueError, KeyError, TypeError):
        return None
    if not known or not whole or probs.min() < 0 or probs.max() > 1:
        return None
    table = table[["path", "label", "predicted"]].reset_index(drop=True)
    return RunPhotos(table, probs, names, [groups.get(path, "") for path in table["path"]])


@functools.lru_cache(maxsize=1)
def _groups_once(path: Path, time: int) -> dict[str, str]:
    table = read_csv(path, dtype=str, keep_default_na=False, usecols=["path", "group"])
    table = table[table["group"] != ""]
    return dict(zip(table["path"], table["group"], strict=True))


def load_groups(sweep_dir: Path) -> dict[str, str]:
    """The group of each photo that has one; empty where the manifest cannot be read."""
    path = sweep_dir / "manifest.csv"
    with contextlib.suppress(OSError, ValueError, KeyError):
        return {} if path.is_symlink() else _groups_once(path, path.stat().st_mtime_ns)
    return {}


def load_history(folder: Path) -> dict[str, list]:
    """The curves of a run by name, with `epoch`; of many epochs some, the first and the last among them."""
    path = folder / "history.csv"
    try:
        table = read_csv(path) if path.is_file() and not path.is_symlink() else pd.DataFrame()
        shown = table[["epoch", *(name for name in CURVES if name in table)]].astype(float)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    shown = (
        shown.iloc[np.unique(np.linspace(0, len(shown) - 1, MOST_EPOCHS).round().astype(int))] if len(shown) else shown
    )
    return {name: [_rounded(value) for value in column] for name, column in shown.items()}


def _rounded(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


# ---------------------------------------------------------------- a run's page


def run_data(
    photos: RunPhotos, sheet: Sheet, heat: Sheet, features: np.ndarray | None = None, every: Sheet = NOTHING
) -> dict:
    """What the page of a run's photos holds for the script; `every` has heat of photos that `heat` lacks."""
    table, millionths = photos.table, photos.millionths
    top = np.argsort(-millionths, axis=1, kind="stable")[:, :SHOWN]
    group_names = sorted({name for name in photos.groups if name})
    number = {name: at for at, name in enumerate(group_names)}
    flat, of_what = flat_map(photos.probs, features)
    return {
        "classes": photos.class_names,
        "groups": group_names,
        "paths": table["path"].tolist(),
        "labels": photos.labels.tolist(),
        "predicted": photos.predicted.tolist(),
        "confidence": photos.confidence.tolist(),
        "ofLabel": millionths[np.arange(len(table)), photos.labels].tolist(),
        "top": [[c, int(p[c])] for row, p in zip(top.tolist(), millionths, strict=True) for c in row],
        "shown": top.shape[1],
        "group": [number.get(name, -1) for name in photos.groups],
        "cells": [sheet.cells.get(path, -1) for path in table["path"]],
        "sheet": sheet_data(sheet, "../assets/"),
        "rows": [heat.cells.get(path, -1) for path in table["path"]],
        "heat": sheet_data(heat, "") | {"layers": heat.layers},
        "everyRows": [every.cells.get(path, -1) for path in table["path"]],
        "every": sheet_data(every, "") | {"layers": every.layers},
        "map": flat.tolist(),
        "mapOf": of_what,
    }


def sheet_data(sheet: Sheet, folder: str) -> dict:
    """Where a sheet is, for the script; `folder` leads to it, ready for an address."""
    rows = -(-(max(sheet.cells.values(), default=0) + 1) // (1 if sheet.layers else sheet.columns))
    return {"file": folder + sheet.name if sheet.name else "", "columns": sheet.columns, "rows": rows}


def flat_map(probs: np.ndarray, features: np.ndarray | None = None) -> tuple[np.ndarray, str]:
    """Places int64 (n, 2) from 0 to 1000 of photos on a plane, and of what: the two first principal components.

    Of features (n, d) where given; else of the logarithms of the probabilities (n, C), less their mean by photo: the
    logits but for a constant. Components point to where the class, or feature, of largest weight grows.
    """
    table = features
    if table is None:
        table = np.log(np.clip(probs, 1e-6, 1))
        table = table - table.mean(1, keepdims=True)
    centred = table - table.mean(0)
    axes = _two_axes(centred)
    axes = axes[:2] * np.sign(axes[np.arange(len(axes[:2])), np.abs(axes[:2]).argmax(1)])[:, None]
    flat = centred @ axes.T
    flat = np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))
    low, width = flat.min(0), np.ptp(flat, axis=0)
    places = np.divide(flat - low, width, out=np.full(flat.shape, 0.5), where=width > 1e-9)
    return np.rint(1000 * places).astype(np.int64), FEATURES if features is not None else PROBABILITIES


def _two_axes(centred: np.ndarray) -> np.ndarray:
    """The directions (2, d), or fewer, in which a centred table (n, d) varies most.

    Of a large table by subspace iteration (Halko, Martinsson and Tropp 2011): all its singular values take a minute.
    """
    if min(centred.shape) <= SMALL_SIDE:
        return np.linalg.svd(centred, full_matrices=False)[2][:2]
    basis = np.random.default_rng(0).normal(size=(centred.shape[1], 8))
    for _ in range(12):
        basis = np.linalg.qr(centred.T @ (centred @ basis))[0]
    return np.linalg.svd(centred @ basis, full_matrices=False)[2][:2] @ basis.T


def load_features(folder: Path, paths: list[str]) -> np.ndarray | None:
    """Features (n, d) of the photos, which 04 saves in `features_val.npz` (`explain.for_report`).

    None where there are none of all these photos, or they are those of an earlier training.
    """
    path = folder / FEATURES_FILE
    if path.is_symlink():
        return None
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError, TypeError):
        stored = read_npz(path, MAX_FEATURES)
        order = pd.Index(stored["paths"]).get_indexer(paths)
        features, trained = stored["features"][order].astype(np.float32), f"{stored['trained']}"
        whole = (order >= 0).all() and features.ndim == 2 and np.isfinite(features).all()
        return features if whole and trained == train_identity(folder) else None
    return None


def train_identity(folder: Path) -> str:
    """Which training a run's folder holds; "" where none was recorded."""
    record = record_of(folder / "stages" / "train.json")
    return f"{record.get('identity', '')}" if isinstance(record, dict) else ""


# ---------------------------------------------------------------- tables that stand without script


@dataclass(frozen=True)
class Confusion:
    """Photos by true and predicted class: a table, or where there are many classes the most frequent confusions."""

    class_names: list[str]
    matrix: list[list[int]]  # empty where there are many classes
    pairs: list[tuple[int, int, int]]  # true, predicted, photos; the most frequent first
    more_pairs: int  # that are not listed
    recall: list[float]


def confusion_of(photos: RunPhotos) -> Confusion:
    """The confusions of a run's validation photos."""
    matrix = confusion_matrix(photos.labels, photos.predicted, len(photos.class_names))
    off = [(int(t), int(p), int(matrix[t, p])) for t, p in zip(*np.nonzero(matrix), strict=True) if t != p]
    pairs = sorted(off, key=lambda pair: -pair[2])
    few = len(photos.class_names) <= MOST_CLASSES
    recall = rates(matrix)["recall"].tolist()
    more = max(0, len(pairs) - MOST_PAIRS)
    return Confusion(photos.class_names, matrix.tolist() if few else [], pairs[:MOST_PAIRS], more, recall)


@dataclass(frozen=True)
class GroupGrid:
    """Mistakes of each group: `rows` are (name, photos, wrong, wrong by predicted class)."""

    rows: list[tuple[str, int, int, list[int]]]
    classes: list[int]  # predicted classes that are columns: those most often wrong
    left_out: int  # groups that are not shown: those with fewest mistakes
    classes_left_out: int  # wrongly predicted classes that are no columns


def group_grid(photos: RunPhotos) -> GroupGrid:
    """Groups by predicted class: how many photos of a group were taken for it wrongly."""
    wrong, predicted = photos.labels != photos.predicted, photos.predicted
    codes, names = pd.factorize(np.array(photos.groups, dtype=object))
    table = np.zeros((len(names), len(photos.class_names)), int)
    np.add.at(table, (codes[wrong], predicted[wrong]), 1)
    sizes = np.bincount(codes, minlength=len(names))
    order = [int(at) for at in np.argsort(-table.sum(1), kind="stable") if names[at]]
    claimed = table.sum(0)
    columns = np.sort(np.argsort(-claimed, kind="stable")[: min(MOST_CLASSES, (claimed > 0).sum())]).tolist()
    rows = [(names[at], int(sizes[at]), int(table[at].sum()), table[at, columns].tolist()) for at in order]
    more = int((claimed > 0).sum()) - len(columns)
    return GroupGrid(rows[:MOST_GROUPS], columns, max(0, len(rows) - MOST_GROUPS), more)


def answered(photos: RunPhotos, above: float) -> dict:
    """What is counted where the run answers above a confidence alone: the reference of the page's slider.

    coverage, n (answered), correct, accuracy, its Wilson interval (low, high), and the confusion matrix.
    """
    own = photos.confidence > round(MILLION * above)
    matrix = confusion_matrix(photos.labels[own], photos.predicted[own], len(photos.class_names))
    n, correct = int(own.sum()), int(np.trace(matrix))
    low, high = wilson(correct, n)
    accuracy = correct / n if n else math.nan
    numbers = {"coverage": n / len(own), "n": n, "correct": correct, "accuracy": accuracy, "low": low, "high": high}
    return numbers | {"matrix": matrix.tolist()}


# ---------------------------------------------------------------- the index


def paired_runs(runs: list[tuple[str, RunPhotos | None]], at_most: int = MOST_PAIRED) -> tuple[dict, int]:
    """For the script of the index: the photos of all runs, and what each run predicts; and how many are left out.

    `runs` are (name, photos), the best first: the last ones are left out where photos times runs exceed `at_most`.
    """
    used, budget = [], at_most
    for name, photos in runs:
        if photos is not None and len(photos.table) <= budget:
            used.append((name, photos))
            budget -= len(photos.table)
    classes = list(dict.fromkeys(label for _, photos in used for label in photos.class_names))
    place, labels = {}, []
    for _, photos in used:
        for path, label in zip(photos.table["path"], photos.table["label"], strict=True):
            if path not in place:
                place[path] = len(place)
                labels.append(classes.index(label))
    own = {name: _paired(photos, place, classes) for name, photos in used}
    left = sum(photos is not None for _, photos in runs) - len(used)
    return {"classes": classes, "paths": list(place), "labels": labels, "predictions": own}, left


def _paired(photos: RunPhotos, place: dict[str, int], classes: list[str]) -> dict:
    """What one run predicts: places of its photos, classes, confidence in thousandths."""
    number = np.array([classes.index(name) for name in photos.class_names])
    at = [place[path] for path in photos.table["path"]]
    whole = at == list(range(len(place)))
    return {
        "photos": None if whole else at,
        "predicted": number[photos.predicted].tolist(),
        "confidence": np.rint(photos.confidence / 1000).astype(int).tolist(),
    }


def as_script_data(value) -> Markup:
    """JSON that may stand within a `<script type="application/json">`, whatever texts it holds."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text.encode("utf-8", "replace").decode())


def record_of(path: Path) -> dict:
    """A JSON record; empty where it is not there, is a link, or cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        return {} if path.is_symlink() else read_json(path, default={})
    return {}
