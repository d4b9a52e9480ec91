"""Do two runs, or any two tables of predictions, really differ, and on which photos?

Other programs' CSVs work too: their columns can be named, their paths may be written otherwise, rows may be missing,
classes may come in another order. The photos that both sides predicted are compared.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fruitlib.core import files, texts
from fruitlib.core.errors import InputError
from fruitlib.evaluation import intervals, metrics, ranking, significance
from fruitlib.evaluation.intervals import Share
from fruitlib.evaluation.matching import photo_keys
from fruitlib.evaluation.prediction_tables import (
    Predictions,
    combinations,
    in_one_spelling,
    load_pooled,
    load_predictions,
)
from fruitlib.evaluation.significance import PairedDifference
from fruitlib.runs.run import POOLED
from fruitlib.runs.status import read_sweep


@dataclass(frozen=True)
class Pair:
    """Two sides on the photos both predicted: path, path_b, label, a, b (predicted), group, p_a_<class>, p_b_<class>.

    `matched_parts` parts of the path's end identified a photo (0: the whole path); `only_a` and `only_b` photos have no
    match and are left out.
    """

    a: Predictions
    b: Predictions
    table: pd.DataFrame
    class_names: list[str]
    matched_parts: int = 0
    only_a: int = 0
    only_b: int = 0
    chosen_among: int = 0  # runs, out of which these two were picked by their results
    respelled: tuple[str, ...] = ()  # classes that not all labels spelled alike


@dataclass(frozen=True)
class Comparison:
    """B against A on `n` photos: counts, the difference in accuracy with its test, and that in macro-F1.

    `only_a` and `only_b`: photos that only this side has right. Ends of intervals are NaN where there is none.
    """

    n: int
    a_correct: int
    b_correct: int
    only_a: int
    only_b: int
    disagree: int  # photos for which they predict different classes
    accuracy: PairedDifference  # its p decides whether they differ
    macro_f1: tuple[float, float, float]  # B less A, and the ends of its 95 % interval
    group_word: str = "group"  # what a group is called
    by_looks: bool = False  # whether groups were found by looks only
    alone: bool = False  # one side, compared with itself
    same_run: bool = False  # one run, by two backends
    folds: bool = False  # out-of-fold predictions of combinations
    chosen_among: int = 0  # as in `Pair`
    candidates: int = 0  # runs, or combinations, of the sweep both belong to; 0: none, or on test photos
    tie: str = ""  # where they tie in what their sweep chose by: that, and which one was chosen by what

    @property
    def significant(self) -> bool:
        """Whether they differ beyond what chance explains."""
        return self.accuracy.significant

    @property
    def rows(self) -> dict[str, tuple[float, float, float]]:
        """B less A in accuracy and in macro-F1, (difference, low, high), by name."""
        found = self.accuracy
        return {"accuracy": (found.value, found.low, found.high), "macro-F1": self.macro_f1}

    @property
    def numbers(self) -> dict:
        """What is recorded, by name, NaN left out."""
        counts = ("n", "a_correct", "b_correct", "only_a", "only_b", "disagree")
        values = {name: getattr(self, name) for name in counts}
        values |= {"p": self.accuracy.p, "significant": self.significant, "detectable": self.accuracy.detectable}
        values |= {"units": self.accuracy.units, "groups": self.accuracy.groups}
        for name, row in zip(("accuracy", "macro_f1"), self.rows.values(), strict=True):
            values |= dict(zip((f"{name}_difference", f"{name}_low", f"{name}_high"), row, strict=True))
        return {name: value for name, value in values.items() if value == value}


def match_photos(a: Predictions, b: Predictions, chosen_among: int = 0) -> Pair:
    """Bring two sides together, photo by photo: by whole paths, else by the ends of them (`photo_keys`).

    Raises:
        InputError: no photo in common, labels that differ, no labels at all.
    """
    alone = a is b
    a, b, respelled = in_one_spelling(a, b)
    b = a if alone else b
    keys, matched_parts = photo_keys(a.table["path"], b.table["path"])
    left, right = (side.table.set_index(key.to_numpy()) for side, key in zip((a, b), keys, strict=True))
    common = [key for key in left.index if isinstance(key, str) and key in right.index]
    if not common:
        first = a.table["path"].iloc[0] if len(a.table) else "nothing"
        raise InputError(f"no photo in common: {a.name} has {first}, {b.name} has none of its photos")
    left, right = left.loc[common], right.loc[common]
    columns = {"path": left["path"], "path_b": right["path"], "label": _labels(left, right, a.name, b.name)}
    columns |= {"a": left["predicted"], "b": right["predicted"]}
    for side, predictions, rows in (("a", a, left), ("b", b, right)):
        columns |= {f"p_{side}_{name}": rows[f"p_{name}"] for name in predictions.probs}
    table = pd.DataFrame(columns)
    run = a.run or b.run
    table["group"] = run.groups(table["path" if a.run else "path_b"]) if run else ""
    names = list(run.class_names) if run else []
    names += sorted({*table["label"], *table["a"], *table["b"]} - set(names))
    only_a, only_b = len(a.table) - len(table), len(b.table) - len(table)
    table = table.sort_values("path", ignore_index=True)
    return Pair(a, b, table, names, matched_parts, only_a, only_b, chosen_among, respelled)


def sides_without_labels(pair: Pair) -> list[str]:
    """The sides (a, b) that never predict a class that is a label; they may call classes by numbers, say."""
    labels = set(pair.table["label"])
    return [side for side in "ab" if not labels & set(pair.table[side])]


def _labels(left: pd.DataFrame, right: pd.DataFrame, a: str, b: str) -> pd.Series:
    """The labels of rows with the same keys: each side's where the other has none."""
    none = pd.Series("", left.index)
    of_a, of_b = (side.get("label", none) for side in (left, right))
    if (of_a == "").all() and (of_b == "").all():
        raise InputError(f"neither {a} nor {b} has labels: name the column of one by columns: label=THEIR_NAME")
    if (differ := (of_a != of_b) & (of_a != "") & (of_b != "")).any():
        path, one, other = left["path"][differ].iloc[0], of_a[differ].iloc[0], of_b[differ].iloc[0]
        raise InputError(f"{path}: {a} has the label {one}, {b} {other}; they must agree")
    labels = of_a.where(of_a != "", of_b)
    if (blank := labels == "").any():
        raise InputError(f"{left['path'][blank].iloc[0]}: neither {a} nor {b} has its label; fill or remove it")
    return labels


def compare_pair(pair: Pair) -> Comparison:
    """Which side is better, and whether beyond chance (`significance.accuracy_difference`)."""
    table, index = pair.table, {name: i for i, name in enumerate(pair.class_names)}
    labels, a, b = (table[name].map(index).to_numpy() for name in ("label", "a", "b"))
    a_right, b_right, groups = a == labels, b == labels, table["group"].tolist()
    return Comparison(
        n=len(table),
        a_correct=int(a_right.sum()),
        b_correct=int(b_right.sum()),
        only_a=int((a_right & ~b_right).sum()),
        only_b=int((b_right & ~a_right).sum()),
        disagree=int((a != b).sum()),
        accuracy=significance.accuracy_difference(a_right, b_right, groups),
        macro_f1=significance.macro_f1_difference(labels, a, b, len(index), groups),
        group_word=_group_word(pair),
        by_looks=intervals.found_by_looks(groups),
        alone=pair.a is pair.b,
        same_run=bool(pair.a.run and pair.b.run) and pair.a.run.path == pair.b.run.path,
        folds=pair.a.part == "oof",
        chosen_among=pair.chosen_among,
        candidates=_candidates(pair),
        tie=_tie(pair),
    )


def _group_word(pair: Pair) -> str:
    """What the settings of either run call a group."""
    runs = [side.run for side in (pair.a, pair.b) if side.run and (side.run.path / "params.yaml").is_file()]
    return runs[0].config.group_word if runs else "group"


def _candidates(pair: Pair) -> int:
    """How many runs (with folds, combinations) the sweep of both has; 0 where there is none, or on test photos."""
    a, b = pair.a, pair.b
    if not a.run or not b.run or "test" in (a.part, b.part) or a.run.path == b.run.path:
        return 0
    return len(_ranked(a.run.sweep_dir)[0]) if a.run.sweep_dir == b.run.sweep_dir else 0


def _tie(pair: Pair) -> str:
    """How a tie in what their sweep chose by was broken, of runs, or of combinations by their pooled predictions.

    "" where there is none, or neither was chosen.
    """
    folder = pair.a.run.sweep_dir if _candidates(pair) else None
    if folder is None or not (folder / "sweep.json").is_file() or not (folder / "results.csv").is_file():
        return ""
    sweep, table = read_sweep(folder), files.read_csv(folder / "results.csv", dtype={"run": str}).set_index("run")
    names = [pair.a.run.name, pair.b.run.name]
    if pair.a.part == "oof":
        if "combination" not in table or not set(names) <= set(table.index):
            return ""
        names = table.loc[names, "combination"].tolist()
        table = files.read_csv(folder / "results_oof.csv", dtype={"combination": str}).set_index("combination")
    by = str(sweep.get("choose_by", "macro_f1"))
    if by not in table or not set(names) <= set(table.index) or sweep.get("chosen") not in names:
        return ""
    score, other = table.loc[names, by].tolist()
    if not abs(score - other) < 1e-9:
        return ""
    side = "AB"[names.index(sweep["chosen"])]
    text = f"{texts.measure_name(by)} {score:.3f} each: a tie, which proves neither better. {side} was chosen"
    if "val_loss" not in table or table.loc[names, "val_loss"].nunique() < 2:
        return f"{text} as the first in the sweep's order"
    losses = table.loc[names, "val_loss"].sort_values()
    return f"{text} for its lower validation loss ({losses.iloc[0]:.3g}, the other's {losses.iloc[1]:.3g})"


def disagreements(pair: Pair) -> pd.DataFrame:
    """The photos for which they predict different classes, those with the highest probabilities first.

    Columns as in `Pair`, and `right`: A, B or neither.
    """
    table = pair.table[pair.table["a"] != pair.table["b"]]
    confidence = np.zeros(len(table))
    for side in "ab":
        columns = [name for name in table if name.startswith(f"p_{side}_")]
        confidence += table[columns].max(axis=1).fillna(0).to_numpy() if columns else 0
    right = np.select([table["a"] == table["label"], table["b"] == table["label"]], ["A", "B"], "neither")
    return table.assign(right=right).iloc[np.argsort(-confidence, kind="stable")].reset_index(drop=True)


def two_by_two(pair: Pair) -> np.ndarray:
    """Photos by whether A (rows: right, wrong) and B (columns) are right, int (2, 2)."""
    a, b = (pair.table[side] == pair.table["label"] for side in "ab")
    return metrics.confusion_matrix(~a, ~b, 2)


def accuracies(pair: Pair) -> dict[str, Share]:
    """What share each has right, with its intervals, by name."""
    groups = list(pair.table["group"])
    right = {side: intervals.share_of(pair.table[side] == pair.table["label"], groups) for side in "ab"}
    return {f"A: {pair.a.name}": right["a"], f"B: {pair.b.name}": right["b"]}


def pair_of_sweep(
    sweep_dir: str | Path, a: str = "", b: str = "", split: str = "val", backends=("", ""), columns=({}, {})
) -> Pair:
    """The two sides that were named, or those a sweep suggests: the chosen run and the runner-up.

    With folds, combinations by their pooled predictions. A lone run that was tested: torch against its INT8 file, on
    the test photos. A lone run that was not tested, or a lone combination: with itself (`Comparison.alone`).

    Raises:
        InputError: as `load_predictions` and `match_photos`; one side named without the other; no run.
    """
    folder, where = files.resolve(sweep_dir), files.display_path(files.resolve(sweep_dir))
    if bool(a) != bool(b):
        raise InputError("a and b: name both, or neither")
    if a:
        given = zip((a, b), backends, columns, strict=True)
        return match_photos(*(load_predictions(_inside(folder, name), split, *how) for name, *how in given))
    if any(columns):
        raise InputError("columns_a and columns_b: they are for CSVs; name these by a and b")
    ranked, folds = _ranked(folder)
    if folds and ranked and split == "val":
        sides = [load_pooled(folder, name) for name in ranked[:2]]
        return match_photos(sides[0], sides[-1], len(ranked))
    tested = [path.parent.name for path in sorted(folder.glob("*/predictions_test.csv"))]
    tested.sort(key=lambda name: [*ranked, name].index(name))
    names = tested if split == "test" else ranked
    if len(names) > 1:
        sides = (
            load_predictions(folder / name, split, backend) for name, backend in zip(names, backends, strict=False)
        )
        picked = len(names) if split == "val" and (folder / "sweep.json").is_file() else 0
        return match_photos(*sides, picked)
    if tested:
        both = zip(backends, ("torch", "int8"), strict=True)
        return match_photos(*(load_predictions(folder / tested[0], "test", named or usual) for named, usual in both))
    if split == "test":
        raise InputError(f"{where}: no run here has opened its test photos; execute 06_test_accuracy first")
    if not ranked:
        raise InputError(f"{where}: no trained run to compare; execute 02_train first")
    only = load_predictions(folder / ranked[0], split)
    return match_photos(only, only)


def _inside(folder: Path, name: str) -> Path | str:
    """A run or combination of this sweep by its name, or a path."""
    return folder / name if (folder / name).exists() or name in combinations(folder) else name


def _ranked(folder: Path) -> tuple[list[str], bool]:
    """The runs of a sweep, the chosen one first, then from best to worst; of folds (True) the combinations."""
    if not (folder / "sweep.json").is_file() or not (folder / "results.csv").is_file():
        return sorted(path.parent.name for path in folder.glob("*/predictions_val.csv")), False
    sweep = read_sweep(folder)
    folds = (folder / "results_oof.csv").is_file() and (folder / POOLED).is_file()
    if folds:
        table, key = files.read_csv(folder / "results_oof.csv"), "combination"
    else:
        table, key = files.read_csv(folder / "results.csv", dtype={"run": str}), "run"
        made = {run["name"] for run in sweep["runs"] if not run.get("candidate", "stages" not in run)}
        table = table[(table["state"] == "complete") & ~table["run"].isin(made)]
    by = str(sweep.get("choose_by", "macro_f1"))
    names = [row[key] for row in sorted(table.to_dict("records"), key=lambda row: ranking.place(row, by))]
    names.sort(key=lambda name: name != sweep.get("chosen"))
    return names, folds
