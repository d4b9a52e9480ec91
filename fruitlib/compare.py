"""Do two runs, or any two tables of predictions, really differ, and on which photos?

Other programs' CSVs will do: their columns can be named, their paths may be written otherwise, rows may be missing,
classes may come in another order. What is compared is what both have judged.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fruitlib import metrics, runs, runtime, stats
from fruitlib.runtime import InputError

COLUMNS = ("path", "label", "predicted", "backend")
DEEPEST = 8  # parts of a path that are looked at where whole paths do not fit


@dataclass(frozen=True)
class Judged:
    """One side: a row per photo with path, predicted, label where known, and p_<class> where known."""

    name: str
    table: pd.DataFrame
    run: runs.Run | None = None

    @property
    def probs(self) -> list[str]:
        """The classes it gives probabilities of."""
        return [name[2:] for name in self.table if name.startswith("p_")]


@dataclass(frozen=True)
class Pair:
    """Two sides on the photos both judged: path, path_b, label, a, b (predicted), group; and how they were matched."""

    a: Judged
    b: Judged
    table: pd.DataFrame
    class_names: list[str]
    matched: str
    chosen_among: int = 0  # runs, out of which these two were picked by their results


def read(source: str | Path, split: str = "val", backend: str = "", columns: Mapping[str, str] | None = None) -> Judged:
    """A run folder's predictions of `split`, or a CSV.

    Args:
        backend: of those in a column `backend`; empty: torch, else the first.
        columns: what this CSV calls path, label, predicted, backend or p_<class>.

    Raises:
        InputError: no such file, a column that is missing, a photo with several rows.
    """
    path, run = runtime.resolve(source), None
    if path.is_dir():
        run = runs.Run(path)
        if not run.record("train"):
            raise InputError(f"{source}: no trained run here; give a run's folder or a CSV of predictions")
        path = path / f"predictions_{split}.csv"
    if not path.is_file():
        why = "; 06_test_accuracy writes it, for the chosen run" if run and split == "test" else ""
        raise InputError(f"{runtime.display_path(path)}: no such file{why}")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as problem:
        raise InputError(f"{source}: not a CSV that can be read ({runtime.first_line(problem)})") from None
    table, used = _checked(table, str(source), backend, columns or {})
    name = f"{run.sweep_dir.name}/{run.name}" if run else runtime.display_path(path)
    return Judged(name + (f" ({used})" if used else ""), table, run)


def _checked(table: pd.DataFrame, source: str, backend: str, columns: Mapping[str, str]) -> tuple[pd.DataFrame, str]:
    """The table with our names for its columns, one backend, one row a photo; and the backend."""
    for ours, theirs in columns.items():
        if ours not in COLUMNS and not ours.startswith("p_"):
            raise InputError(f"columns: {ours} is none of {', '.join(COLUMNS)} and p_<class>")
        if theirs not in table:
            raise InputError(f"{source}: no column {theirs}; it has {', '.join(table.columns)}")
    table = table.rename(columns={theirs: ours for ours, theirs in columns.items()})
    probs = [name for name in table if name.startswith("p_")]
    for name in probs:
        table[name] = pd.to_numeric(table[name], errors="coerce")
    if "predicted" not in table and len(probs) > 1:
        table["predicted"] = table[probs].idxmax(axis=1).str[2:]
    if absent := [name for name in ("path", "predicted") if name not in table]:
        hint = f"name it by columns: {absent[0]}=THEIR_NAME"
        raise InputError(f"{source}: no column {absent[0]} among {', '.join(table.columns)}; {hint}")
    if backend and ("backend" not in table or backend not in set(table["backend"])):
        raise InputError(f"{source}: no rows of backend {backend}")
    if "backend" in table:
        backend = backend or ("torch" if "torch" in set(table["backend"]) else table["backend"].iloc[0])
        table = table[table["backend"] == backend]
    if (twice := table["path"].duplicated()).any():
        row = table["path"][twice].iloc[0]
        what = "pooled folds of several combinations: name two of them by a and b" if "combination" in table else ""
        raise InputError(f"{source}: {row} stands there more than once{what and '; '}{what}")
    return table.reset_index(drop=True), backend


def pooled(sweep_dir: Path, combination: str) -> Judged:
    """The out-of-fold predictions of a combination; of several repeats the first."""
    table = pd.read_csv(sweep_dir / runs.POOLED, dtype=str, keep_default_na=False)
    own = table[(table["combination"] == combination) & (table["repeat"] == table["repeat"].min())]
    run = runs.Run(sweep_dir / own["run"].iloc[0])
    own = own.drop(columns=["combination", "run", "trained", "repeat", "fold"])
    more = f", repeat 1 of {table['repeat'].nunique()}" if table["repeat"].nunique() > 1 else ""
    return Judged(f"{combination} (out of fold{more})", _checked(own, combination, "", {})[0], run)


def match(a: Judged, b: Judged, chosen_among: int = 0) -> Pair:
    """Bring two sides together, photo by photo.

    By whole paths, else by the most parts of their ends (folder/name.jpg) that pair most photos without doubt.

    Raises:
        InputError: no photo in common, labels that differ, no labels at all.
    """
    keys, how = _keys(a.table["path"], b.table["path"])
    left = a.table.assign(key=keys[0]).dropna(subset="key")
    right = b.table.assign(key=keys[1]).dropna(subset="key")
    both = left.merge(right, on="key", suffixes=("", "_b"))
    if both.empty:
        first = a.table["path"].iloc[0] if len(a.table) else "nothing"
        raise InputError(f"no photo in common: {a.name} has {first}, {b.name} knows none of its photos")
    table = pd.DataFrame({"path": both["path"], "path_b": both["path_b"]})
    table["label"] = _labels(both, "label" in a.table, "label" in b.table, a.name, b.name)
    table["a"], table["b"] = both["predicted"], both["predicted_b"]
    for side, judged, end in (("a", a, ""), ("b", b, "_b")):
        for name in judged.probs:
            column = f"p_{name}{end}" if f"p_{name}{end}" in both else f"p_{name}"
            table[f"p_{side}_{name}"] = both[column]
    run = a.run or b.run
    table["group"] = run.groups(table["path" if a.run else "path_b"]) if run else ""
    names = list(run.class_names) if run else []
    names += sorted({*table["label"], *table["a"], *table["b"]} - set(names))
    alone = {"only A": len(a.table) - len(table), "only B": len(b.table) - len(table)}
    unmatched = "; ".join(f"{n} photos {side} judged are left out" for side, n in alone.items() if n)
    matched = f"{len(table)} photos judged by both, matched by {how}" + (f"; {unmatched}" if unmatched else "")
    return Pair(a, b, table.sort_values("path", ignore_index=True), names, matched, chosen_among)


def _keys(a: pd.Series, b: pd.Series) -> tuple[tuple[pd.Series, pd.Series], str]:
    """What identifies a photo on both sides (None: nothing does), and in words what that is."""
    parts = [side.str.replace("\\", "/").str.removeprefix("./").str.split("/") for side in (a, b)]
    whole = tuple(side.str.join("/") for side in parts)
    best, most, how = whole, len(set(whole[0]) & set(whole[1])), "path"
    for depth in range(DEEPEST, 0, -1):
        if most == min(len(a), len(b)):
            break
        ends = tuple(side.str[-depth:].str.join("/") for side in parts)
        ends = tuple(side.where(~side.duplicated(keep=False)) for side in ends)
        if (common := len(set(ends[0].dropna()) & set(ends[1].dropna()))) > most:
            best, most, how = ends, common, f"the last {depth} parts of the path" if depth > 1 else "file name"
    return best, how


def _labels(both: pd.DataFrame, in_a: bool, in_b: bool, a: str, b: str) -> pd.Series:
    if not in_a and not in_b:
        raise InputError(f"neither {a} nor {b} has labels: name the column of one by columns: label=THEIR_NAME")
    if in_a and in_b and (differ := both["label"] != both["label_b"]).any():
        row = both[differ].iloc[0]
        raise InputError(f"{row['path']}: {a} has the label {row['label']}, {b} {row['label_b']}; they must agree")
    return both["label"]


def verdict(pair: Pair, seed: int = 0) -> dict:
    """The comparison in numbers and, as `said`, in words.

    Returns:
        n, a_correct, b_correct, only_a, only_b (right alone), disagree, p (McNemar's exact), accuracy_difference and
        macro_f1_difference (B less A) each with _low and _high, said.
    """
    table, index = pair.table, {name: i for i, name in enumerate(pair.class_names)}
    labels, a, b = (table[name].map(index).to_numpy() for name in ("label", "a", "b"))
    groups = table["group"].tolist() if (table["group"] != "").any() else None
    found = {"n": len(table), "a_correct": int((a == labels).sum()), "b_correct": int((b == labels).sum())}
    found |= stats.mcnemar(a == labels, b == labels) | {"disagree": int((a != b).sum())}
    for name, (value, low, high) in stats.paired_difference(labels, a, b, len(index), groups, seed).items():
        found |= {f"{name}_difference": value, f"{name}_low": low, f"{name}_high": high}
    return found | {"said": _said(found, pair, grouped=groups is not None)}


def _said(found: dict, pair: Pair, grouped: bool) -> str:
    n, only_a, only_b = found["n"], found["only_a"], found["only_b"]
    text = f"A is right on {found['a_correct']}/{n}, B on {found['b_correct']}/{n}. "
    if not found["disagree"]:
        return text + "They say the same of every photo: nothing tells them apart"
    text += f"They disagree on {found['disagree']}; A alone is right on {only_a}, B alone on {only_b}: "
    text += f"McNemar's exact p = {found['p']:.3g}, "
    sided = only_a + only_b
    if found["p"] < 0.05:
        text += f"{'A' if only_a > only_b else 'B'} is better on photos like these. "
    else:
        text += "cannot tell"
        text += " (six that all speak for one side are the fewest that could). " if sided < 6 else ". "
    text += stats.said_difference(
        found["macro_f1_difference"], found["macro_f1_low"], found["macro_f1_high"], "B less A: macro-F1"
    )
    text += ", whole groups drawn" if grouped else ""
    if grouped and found["p"] < 0.05:
        text += "; McNemar takes photos of a group for independent, so trust the interval more"
    if found["p"] >= 0.05 and (found["macro_f1_low"] > 0 or found["macro_f1_high"] < 0):
        text += "; a bootstrap of so few disagreements is too sure of itself: McNemar decides"
    if pair.chosen_among > 2:
        text += f"; they were picked out of {pair.chosen_among} by their results, which makes p too small"
    return text


def disagreements(pair: Pair) -> pd.DataFrame:
    """The photos of which they say different things, the surest of both first; columns as in `Pair`, and `right`."""
    table = pair.table[pair.table["a"] != pair.table["b"]]
    sure = np.zeros(len(table))
    for side in "ab":
        columns = [name for name in table if name.startswith(f"p_{side}_")]
        sure += table[columns].max(axis=1).to_numpy() if columns else 0
    right = np.select([table["a"] == table["label"], table["b"] == table["label"]], ["A", "B"], "neither")
    return table.assign(right=right).iloc[np.argsort(-sure, kind="stable")].reset_index(drop=True)


def heats(pair: Pair, paths: list[str]) -> tuple[np.ndarray, dict[str, list]] | None:
    """What both see of these photos, (n, S, S, 3), and each side's Grad-CAM on them, towards what it says.

    None where one side is no run with a checkpoint, or they see photos otherwise.
    """
    from fruitlib import gradcam, images, models

    sides = {"a": pair.a.run, "b": pair.b.run}
    if not paths or any(run is None or not (run.path / "best.pt").is_file() for run in sides.values()):
        return None
    if not set(paths) <= set(pair.a.run.rows("val")["path"]) | set(pair.a.run.rows("test")["path"]):
        return None
    split = "val" if set(paths) <= set(pair.a.run.rows("val")["path"]) else "test"
    overlays, pictures = {}, None
    for side, run in sides.items():
        rows = run.rows(split).set_index("path").reindex(paths).reset_index()
        photos = images.of(run, split, rows=rows)
        model, _ = models.restore(run.path / "best.pt")
        last = dict([list(models.target_layers(model).items())[-1]])
        maps = gradcam.heatmaps(model, images.to_float(photos.images), last)
        seen = images.to_pictures(photos.images) / 255
        overlays[side] = [gradcam.overlay(photo, heat[0]) for photo, heat in zip(seen, maps.heatmap, strict=True)]
        pictures = seen if pictures is None else pictures
    return pictures, overlays


def two_by_two(pair: Pair) -> np.ndarray:
    """Photos by whether A (rows: right, wrong) and B (columns) are right, int (2, 2)."""
    a, b = (pair.table[side] == pair.table["label"] for side in "ab")
    return metrics.confusion_matrix(~a, ~b, 2)


def accuracies(pair: Pair) -> dict[str, int]:
    """How many each has right, by name."""
    return {
        f"{side.upper()}: {getattr(pair, side).name}": int((pair.table[side] == pair.table["label"]).sum())
        for side in "ab"
    }


def of_sweep(
    sweep_dir: str | Path, a: str = "", b: str = "", split: str = "val", backends=("", ""), columns=({}, {})
) -> Pair:
    """The two sides that were named, or those a sweep suggests: the chosen run and the runner-up.

    With folds, combinations by their pooled predictions. A lone run that was tested: torch against its INT8 file, on
    the test photos. A lone run that was not, or a lone combination: with itself, which tells nothing and says so.

    Raises:
        InputError: what `read` and `match` refuse; one side named without the other; no run.
    """
    folder = runtime.resolve(sweep_dir)
    if bool(a) != bool(b):
        raise InputError("a and b: name both, or neither")
    if a:
        given = zip((a, b), backends, columns, strict=True)
        return match(*(read(_inside(folder, one), split, *of) for one, *of in given))
    ranked, among = _ranked(folder)
    if (folder / runs.POOLED).is_file() and ranked:
        sides = [pooled(folder, name) for name in ranked[:2]]
        return match(sides[0], sides[-1], among)
    if len(ranked) > 1:
        return match(read(folder / ranked[0], split), read(folder / ranked[1], split), among)
    if not ranked:
        raise InputError(f"{runtime.display_path(folder)}: no trained run to compare; execute 02_train first")
    if (folder / ranked[0] / "predictions_test.csv").is_file():
        return match(read(folder / ranked[0], "test", "torch"), read(folder / ranked[0], "test", "int8"))
    only = read(folder / ranked[0], split)
    return match(only, only)


def _inside(folder: Path, name: str) -> Path | str:
    """A run of this sweep by its name, or a path."""
    return folder / name if (folder / name).exists() else name


def _ranked(folder: Path) -> tuple[list[str], int]:
    """The runs (with folds, combinations) of a sweep, the chosen one first, then from best to worst; their number."""
    if not (folder / "sweep.json").is_file():
        names = sorted(path.parent.name for path in folder.glob("*/predictions_val.csv"))
        return names, 0
    told = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    table, key = pd.read_csv(folder / "results.csv", dtype={"run": str}), "run"
    if (folder / "results_oof.csv").is_file() and (folder / runs.POOLED).is_file():
        table, key = pd.read_csv(folder / "results_oof.csv"), "combination"
    else:
        made = {run["name"] for run in told["runs"] if "stages" in run}
        table = table[(table["state"] == "complete") & ~table["run"].isin(made)]
    by = told.get("choose_by", "macro_f1")
    table = table.sort_values(by, ascending=False, kind="stable") if by in table else table
    names = table[key].tolist()
    names.sort(key=lambda name: name != told.get("chosen"))
    return names, len(names)
