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

from fruitlib.core import errors, files
from fruitlib.core.errors import InputError
from fruitlib.evaluation import intervals, metrics, significance
from fruitlib.runs.run import POOLED, Run

COLUMNS = ("path", "label", "predicted", "backend")
DEEPEST = 8  # parts of a path that are looked at where whole paths do not fit


@dataclass(frozen=True)
class Predictions:
    """One side: a row per photo with path, predicted, label where known, and p_<class> where known."""

    name: str
    table: pd.DataFrame
    run: Run | None = None
    part: str = ""  # of a run: val, test or oof (pooled folds)

    @property
    def probs(self) -> list[str]:
        """The classes it gives probabilities of."""
        return [name[2:] for name in self.table if name.startswith("p_")]


@dataclass(frozen=True)
class Pair:
    """Two sides on the photos both judged: path, path_b, label, a, b (predicted), group; and how they were matched."""

    a: Predictions
    b: Predictions
    table: pd.DataFrame
    class_names: list[str]
    matched: str
    chosen_among: int = 0  # runs, out of which these two were picked by their results


def load_predictions(
    source: str | Path, split: str = "val", backend: str = "", columns: Mapping[str, str] | None = None
) -> Predictions:
    """A run folder's predictions of `split`, a CSV, or SWEEP/COMBINATION of a sweep with folds.

    Args:
        backend: of those in a column `backend`; empty: torch, else the first.
        columns: what this CSV calls path, label, predicted, backend or p_<class>.

    Raises:
        InputError: no such file, a column or a cell that is missing, a photo with several rows.
    """
    path, run = files.resolve(source), None
    if not path.exists() and path.name in _combinations(path.parent):
        return load_pooled(path.parent, path.name)
    if path.is_dir():
        run = Run(path)
        if not run.record("train"):
            raise InputError(f"{source}: no trained run here; give a run's folder or a CSV of predictions")
        path = path / f"predictions_{split}.csv"
    if not path.is_file():
        why = "; 06_test_accuracy writes it, for the chosen run" if run and split == "test" else ""
        raise InputError(f"{files.display_path(path)}: no such file{why}")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as problem:
        raise InputError(f"{source}: not a CSV that can be read ({errors.first_line(problem)})") from None
    table, used = _checked(table, str(source), backend, columns or {})
    name = f"{run.sweep_dir.name}/{run.name}" if run else files.display_path(path)
    told = ", ".join([*([used] if used else []), *(["test photos"] if run and split == "test" else [])])
    return Predictions(name + (f" ({told})" if told else ""), table, run, split if run else "")


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
        if (blank := table[name] == "").any():
            raise InputError(f"{source}: {table['path'][blank].iloc[0] or 'a row'} has no {name}; fill or remove it")
    if (twice := _plain(table["path"]).duplicated()).any():
        why = ""
        if "repeat" in table and table["repeat"].nunique() > 1:
            why = ": folds with repeats; keep the rows of one, or give SWEEP/COMBINATION"
        if "combination" in table and table["combination"].nunique() > 1:
            why = ": pooled folds of several combinations; give two of them as SWEEP/COMBINATION"
        raise InputError(f"{source}: {table['path'][twice].iloc[0]} stands there more than once{why}")
    if "label" in table and (table["label"] == "").all():
        table = table.drop(columns="label")
    return table.reset_index(drop=True), backend


def _renamed(table: pd.DataFrame, source: str, columns: Mapping[str, str]) -> pd.DataFrame:
    """Our names for its columns; one that bore a name of ours already, for something else, gives way."""
    for ours, theirs in columns.items():
        if ours not in COLUMNS and not ours.startswith("p_"):
            raise InputError(f"columns: {ours} is none of {', '.join(COLUMNS)} and p_<class>")
        if theirs not in table:
            raise InputError(f"{source}: no column {theirs}; it has {', '.join(table.columns)}")
    kept = table.drop(columns=[*columns.values(), *columns], errors="ignore")
    table = kept.assign(**{ours: table[theirs] for ours, theirs in columns.items()})
    return table.assign(**{name: table[name].str.strip() for name in COLUMNS if name in table})


def _numbered(table: pd.DataFrame, source: str) -> pd.DataFrame:
    """Probabilities as numbers, NaN where a cell is empty; from them what is predicted, where no column says it."""
    probs = [name for name in table if name.startswith("p_")]
    for name in probs:
        numbers = pd.to_numeric(table[name], errors="coerce")
        if (wrong := numbers.isna() & (table[name].str.strip() != "")).any():
            raise InputError(f"{source}: {name} holds {table[name][wrong].iloc[0]!r}, which is no number")
        table = table.assign(**{name: numbers})
    if "predicted" not in table and len(probs) > 1:
        known = table[probs].notna().any(axis=1)
        summary = table.loc[known, probs].idxmax(axis=1).str[2:]
        table = table.assign(predicted=summary.reindex(table.index, fill_value=""))
    return table


def _combinations(folder: Path) -> list[str]:
    """Those with pooled predictions in a sweep's folder."""
    path = folder / POOLED
    return pd.read_csv(path, dtype=str)["combination"].unique().tolist() if path.is_file() else []


def load_pooled(sweep_dir: Path, combination: str) -> Predictions:
    """The out-of-fold predictions of a combination; of several repeats the first."""
    table = pd.read_csv(sweep_dir / POOLED, dtype=str, keep_default_na=False)
    own = table[(table["combination"] == combination) & (table["repeat"] == table["repeat"].min())]
    run = Run(sweep_dir / own["run"].iloc[0])
    own = own.drop(columns=["combination", "run", "trained", "repeat", "fold"])
    more = f", repeat 1 of {table['repeat'].nunique()}" if table["repeat"].nunique() > 1 else ""
    return Predictions(f"{combination} (out of fold{more})", _checked(own, combination, "", {})[0], run, "oof")


def match_photos(a: Predictions, b: Predictions, chosen_among: int = 0) -> Pair:
    """Bring two sides together, photo by photo: by whole paths, else by the ends of them (`_keys`).

    Raises:
        InputError: no photo in common, labels that differ, no labels at all.
    """
    keys, how = _keys(a.table["path"], b.table["path"])
    left, right = (side.table.set_index(key.to_numpy()) for side, key in zip((a, b), keys, strict=True))
    common = [key for key in left.index if isinstance(key, str) and key in right.index]
    if not common:
        first = a.table["path"].iloc[0] if len(a.table) else "nothing"
        raise InputError(f"no photo in common: {a.name} has {first}, {b.name} knows none of its photos")
    left, right = left.loc[common], right.loc[common]
    columns = {"path": left["path"], "path_b": right["path"], "label": _labels(left, right, a.name, b.name)}
    columns |= {"a": left["predicted"], "b": right["predicted"]}
    for side, judged, part in (("a", a, left), ("b", b, right)):
        columns |= {f"p_{side}_{name}": part[f"p_{name}"] for name in judged.probs}
    table = pd.DataFrame(columns)
    run = a.run or b.run
    table["group"] = run.groups(table["path" if a.run else "path_b"]) if run else ""
    names = list(run.class_names) if run else []
    names += sorted({*table["label"], *table["a"], *table["b"]} - set(names))
    alone = {"only A": len(a.table) - len(table), "only B": len(b.table) - len(table)}
    matched = f"photos judged by both: {len(table)}, matched by {how}"
    matched += "".join(f"; by {side}, and left out: {n}" for side, n in alone.items() if n)
    matched += "".join(_strange(table, side) for side in "ab")
    return Pair(a, b, table.sort_values("path", ignore_index=True), names, matched, chosen_among)


def _strange(table: pd.DataFrame, side: str) -> str:
    """A doubt, where nothing that a side says is a label: it may call classes by number, say."""
    summary, labels = (sorted(set(table[name])) for name in (side, "label"))
    if set(summary) & set(labels):
        return ""
    heard, true = (", ".join(names[:3]) + (" …" if len(names) > 3 else "") for names in (summary, labels))
    return f"; nothing that {side.upper()} says ({heard}) is a label ({true}): are classes called otherwise there?"


def _plain(paths: pd.Series) -> pd.Series:
    """Paths in one spelling: / between parts, no ./ before them, letters composed as Linux has them, not macOS."""
    return paths.str.replace("\\", "/").str.removeprefix("./").str.normalize("NFC")


def _ends(paths: pd.Series, depth: int) -> pd.Series:
    """The last `depth` parts of each path, None where two have the same."""
    ends = paths.str.split("/").str[-depth:].str.join("/")
    return ends.where(~ends.duplicated(keep=False), None)


def _keys(a: pd.Series, b: pd.Series) -> tuple[list[pd.Series], str]:
    """What identifies a photo on both sides (None: nothing does), and in words what that is.

    Where any whole path fits, whole paths: a shorter end would pair apple/7.jpg with the cherry/7.jpg of photos that
    only one side has. Else that many parts of the end, two or more, that pair most photos; else file names.
    """
    plain = [_plain(a), _plain(b)]
    if set(plain[0]) & set(plain[1]):
        return plain, "path"
    best, most, how = plain, 0, "path"
    for depth in range(DEEPEST, 0, -1):
        if depth == 1 and most:
            break
        ends = [_ends(side, depth) for side in plain]
        if (pairs := len(set(ends[0].dropna()) & set(ends[1].dropna()))) > most:
            best, most, how = ends, pairs, f"the last {depth} parts of the path" if depth > 1 else "file name"
    return best, how


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


def verdict(pair: Pair, seed: int = 0) -> dict:
    """The comparison in numbers and, as `said`, in words.

    Returns:
        n, a_correct, b_correct, only_a, only_b (right alone), disagree, p (McNemar's exact), accuracy_difference and
        macro_f1_difference (B less A) each with _low and _high, told (whether they differ beyond chance), said.
    """
    table, index = pair.table, {name: i for i, name in enumerate(pair.class_names)}
    labels, a, b = (table[name].map(index).to_numpy() for name in ("label", "a", "b"))
    groups = table["group"].tolist() if (table["group"] != "").any() else None
    found = {"n": len(table), "a_correct": int((a == labels).sum()), "b_correct": int((b == labels).sum())}
    found |= significance.mcnemar(a == labels, b == labels) | {"disagree": int((a != b).sum())}
    for name, (value, low, high) in significance.paired_difference(labels, a, b, len(index), groups, seed).items():
        found |= {f"{name}_difference": value, f"{name}_low": low, f"{name}_high": high}
    apart = found["accuracy_low"] > 0 or found["accuracy_high"] < 0
    found["significant"] = found["p"] < 0.05 and (apart or groups is None)
    return found | {"summary": _summary(found, pair, grouped=groups is not None)}


def _summary(found: dict, pair: Pair, grouped: bool) -> str:
    n, only_a, only_b, sided = found["n"], found["only_a"], found["only_b"], found["only_a"] + found["only_b"]
    if pair.a is pair.b:
        return f"Only one {'combination' if pair.a.part == 'oof' else 'run'} is complete: nothing to compare"
    text = f"A is right on {found['a_correct']}/{n}, B on {found['b_correct']}/{n}. "
    if not found["disagree"]:
        return text + "They say the same of every photo: nothing tells them apart"
    text += f"They disagree on {found['disagree']}; A alone is right on {only_a}, B alone on {only_b}: "
    text += f"McNemar's exact p = {found['p']:.3g}, "
    if found["significant"]:
        text += f"{'A' if only_a > only_b else 'B'} is better on photos like these. "
    elif found["p"] < 0.05:
        text += "which takes photos of a group for independent; drawn by group, accuracy does not tell: cannot tell. "
    else:
        text += "cannot tell"
        text += " (six that all speak for one side are the fewest that could). " if sided < 6 else ". "
    low, high = found["macro_f1_low"], found["macro_f1_high"]
    text += f"B less A: macro-F1 {found['macro_f1_difference']:+.3f} ({intervals.interval_text(low, high)}"
    text += ", whole groups drawn)" if grouped else ")"
    if found["p"] >= 0.05 and (low > 0 or high < 0):
        text += "; a bootstrap of so few disagreements is too sure of itself: McNemar decides"
    if pair.chosen_among > 2:
        text += f"; they were picked out of {pair.chosen_among} by their results, which makes p too small"
    elif (among := _siblings(pair)) > 2:
        text += f"; p holds for two that were named beforehand, not picked by their results out of the sweep's {among}"
    return text


def _siblings(pair: Pair) -> int:
    """How many runs (with folds, combinations) the sweep of both has; 0 where there is none, or the test judges."""
    a, b = pair.a, pair.b
    if not a.run or not b.run or "test" in (a.part, b.part) or a.run.path == b.run.path:
        return 0
    return len(_ranked(a.run.sweep_dir)[0]) if a.run.sweep_dir == b.run.sweep_dir else 0


def disagreements(pair: Pair) -> pd.DataFrame:
    """The photos of which they say different things, the surest of both first; columns as in `Pair`, and `right`."""
    table = pair.table[pair.table["a"] != pair.table["b"]]
    sure = np.zeros(len(table))
    for side in "ab":
        columns = [name for name in table if name.startswith(f"p_{side}_")]
        sure += table[columns].max(axis=1).fillna(0).to_numpy() if columns else 0
    right = np.select([table["a"] == table["label"], table["b"] == table["label"]], ["A", "B"], "neither")
    return table.assign(right=right).iloc[np.argsort(-sure, kind="stable")].reset_index(drop=True)


def two_by_two(pair: Pair) -> np.ndarray:
    """Photos by whether A (rows: right, wrong) and B (columns) are right, int (2, 2)."""
    a, b = (pair.table[side] == pair.table["label"] for side in "ab")
    return metrics.confusion_matrix(~a, ~b, 2)


def correct_counts(pair: Pair) -> dict[str, int]:
    """How many each has right, by name."""
    right = {side: int((pair.table[side] == pair.table["label"]).sum()) for side in "ab"}
    return {f"A: {pair.a.name}": right["a"], f"B: {pair.b.name}": right["b"]}


def pair_of_sweep(
    sweep_dir: str | Path, a: str = "", b: str = "", split: str = "val", backends=("", ""), columns=({}, {})
) -> Pair:
    """The two sides that were named, or those a sweep suggests: the chosen run and the runner-up.

    With folds, combinations by their pooled predictions. A lone run that was tested: torch against its INT8 file, on
    the test photos. A lone run that was not, or a lone combination: with itself, which tells nothing and says so.

    Raises:
        InputError: what `read` and `match` refuse; one side named without the other; no run.
    """
    folder, where = files.resolve(sweep_dir), files.display_path(files.resolve(sweep_dir))
    if bool(a) != bool(b):
        raise InputError("a and b: name both, or neither")
    if a:
        given = zip((a, b), backends, columns, strict=True)
        return match_photos(*(load_predictions(_inside(folder, one), split, *of) for one, *of in given))
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
    return folder / name if (folder / name).exists() or name in _combinations(folder) else name


def _ranked(folder: Path) -> tuple[list[str], bool]:
    """The runs of a sweep, the chosen one first, then from best to worst; of folds (True) the combinations."""
    if not (folder / "sweep.json").is_file() or not (folder / "results.csv").is_file():
        return sorted(path.parent.name for path in folder.glob("*/predictions_val.csv")), False
    told = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    folds = (folder / "results_oof.csv").is_file() and (folder / POOLED).is_file()
    if folds:
        table, key = pd.read_csv(folder / "results_oof.csv"), "combination"
    else:
        table, key = pd.read_csv(folder / "results.csv", dtype={"run": str}), "run"
        made = {run["name"] for run in told["runs"] if "stages" in run}
        table = table[(table["state"] == "complete") & ~table["run"].isin(made)]
    by = told.get("choose_by", "macro_f1")
    table = table.sort_values(by, ascending=False, kind="stable") if by in table else table
    names = table[key].tolist()
    names.sort(key=lambda name: name != told.get("chosen"))
    return names, folds
