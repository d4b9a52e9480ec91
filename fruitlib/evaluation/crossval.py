"""Cross-validation: the folds of a combination pooled, so that every photo is predicted by a run that never saw it."""

from pathlib import Path

import numpy as np
import pandas as pd

from fruitlib.core import files
from fruitlib.evaluation import baselines, intervals, metrics
from fruitlib.runs.run import POOLED, Run


def pool_folds(
    work: dict[str, Run], combinations: dict[str, list[str]], sweep_dir: Path
) -> tuple[pd.DataFrame, list[str]]:
    """Write `predictions_oof.csv`: the validation predictions of every combination all of whose folds are trained.

    Columns combination, run, trained (the training's identity), repeat, fold, epoch, path, label, predicted,
    p_<class>…, backend; in every combination each photo of the pool appears once per repeat. `probe` is what a logistic
    regression on frozen features predicts, trained on the same photos: once all folds have their `metrics` of the
    combination, and where it had such a baseline. Without any combination, no file is left.

    Where runs keep their best epoch, a fold's photos are predicted by the epoch that is best in the mean curve of the
    *other* folds of its repeat (`epoch_by_others`), so that no photo has a say in its own epoch. Each fold's own files,
    `best.pt` and `predictions_val.csv`, stay those of its own best epoch.

    Points that choosing the epoch adds to the pooled accuracy, by a fold's own photos and by those of the other folds
    (`tests/simulations/fold_epochs.py`: five folds, means of 400 repetitions):

     photos  epochs  own best  by others
         30      12       8.7        0.1
         30      30       9.8        0.0
        100      12       6.3       -0.3
        100      30       7.3        0.1
        300      12       3.2        0.0
        300      30       4.0        0.0

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
        epoch, own = _predicted_by_others_choice(run, folds)
        places = {"combination": combination, "run": run.name, "trained": run.record("train")["identity"]}
        places |= {"repeat": run.config.repeat, "fold": run.config.fold, "epoch": epoch}
        for position, (name, value) in enumerate(places.items()):
            own.insert(position, name, value)
        tables.append(own)
    probes = [_probe_of(run, table["path"]) for run, table in zip(folds, tables, strict=True)]
    if all(probe is not None for probe in probes):
        tables = [table.assign(probe=probe) for table, probe in zip(tables, probes, strict=True)]
    table = pd.concat(tables, ignore_index=True)
    if (twice := table.duplicated(["repeat", "path"])).any():
        return pd.DataFrame(), f"{combination}: {table.loc[twice, 'path'].iloc[0]} was predicted by two folds: {remedy}"
    return table, ""


def _probe_of(run: Run, paths: pd.Series) -> np.ndarray | None:
    """The class that the run's probe predicts for each of these photos; None unless 03 was executed with one."""
    path = run.path / "predictions_probe.csv"
    if "probe_accuracy" not in run.read_json("metrics.json") or not path.is_file():
        return None
    predicted = run.predictions("probe").drop_duplicates("path").set_index("path")["predicted"].reindex(paths)
    return None if predicted.isna().any() else predicted.to_numpy()


def _predicted_by_others_choice(run: Run, folds: list[Run]) -> tuple[int, pd.DataFrame]:
    """The epoch that predicts a fold's validation photos, and these predictions.

    It is the run's kept one where that is the last, and where predictions of every epoch were too large to keep.
    """
    trained, table = run.record("train"), run.predictions("val")
    others = [one for one in folds if one.config.repeat == run.config.repeat and one.name != run.name]
    paths, probs = run.epoch_probs() if trained["keep"] == "best" and others else ((), ())
    if not len(probs):
        return trained["kept_epoch"], table
    epoch = epoch_by_others([one.history() for one in others], len(probs), run.config.monitor)
    probs = probs[epoch - 1][pd.Index(paths).get_indexer(table["path"])].astype(float)
    columns = {f"p_{name}": probs[:, place].round(6) for place, name in enumerate(run.class_names)}
    return epoch, table.assign(predicted=np.array(run.class_names)[probs.argmax(1)], **columns)


def epoch_by_others(histories: list[pd.DataFrame], epochs: int, monitor: str) -> int:
    """The epoch, 1 to `epochs`, at which the mean of the other folds' `monitor` is best; of equals the lowest loss.

    A training that stopped early counts with its last values from there on.
    """
    curves = [history.set_index("epoch").reindex(range(1, epochs + 1)).ffill() for history in histories]
    loss = np.mean([curve["val_loss"] for curve in curves], axis=0)
    scores = -loss if monitor == "loss" else np.mean([curve[f"val_{monitor}"] for curve in curves], axis=0)
    return int(np.lexsort((loss, -scores.round(12)))[0]) + 1


def out_of_sample(run: Run) -> tuple[pd.DataFrame, bool]:
    """Predictions on photos their model never saw, and whether they are pooled from folds.

    The pooled out-of-fold predictions of this run's combination, where a sweep has written them and none of its folds
    was trained again since; else this run's own validation predictions. A refit or an ensemble has those of the
    combination it was made of.
    """
    pooled = _a_fold(run).pooled() if run.config.folds else pd.DataFrame()
    return (pooled, True) if len(pooled) else (run.predictions("val"), False)


def _a_fold(run: Run) -> Run:
    """The run itself; of a refit or an ensemble, a run of a fold of its combination."""
    return run if run.config.fold else next(iter(run.sibling_folds()), run)


def pooled_results(pooled: pd.DataFrame, class_names: list[str], groups: dict[str, str]) -> pd.DataFrame:
    """A row per combination: n photos, accuracy and macro_f1 with their intervals, balanced_accuracy; of pooled labels.

    With repeats the numbers are means over the repeats; n stays the number of photos. Columns as in `metrics.json`,
    those of the probe too where every photo of the combination has its prediction.
    The intervals take each photo's prediction as made by itself. The models of the folds share most of their training
    photos, so they are slightly too narrow:

                    100   300
    pooled folds   0.90  0.93

    Args:
        groups: the group of each photo by path, "" where it stands alone.
    """
    rows = []
    for combination, table in pooled.groupby("combination", sort=False) if len(pooled) else ():
        matrices = [
            metrics.confusion_from_names(part["label"], part["predicted"], class_names)
            for _, part in table.groupby("repeat")
        ]
        by_repeat = [metrics.scores(matrix) for matrix in matrices]
        right = (table["label"] == table["predicted"]).groupby(table["path"]).mean()
        share = intervals.share_of(right, [groups.get(path, "") for path in right.index])
        row = {"combination": combination, "repeats": len(by_repeat), "folds": table["fold"].nunique(), "n": share.n}
        row |= {name: np.mean([one[name] for one in by_repeat]) for name in ("macro_f1", "balanced_accuracy")}
        row["macro_f1_low"], row["macro_f1_high"] = _macro_f1_ends(table, class_names, groups)
        row |= {"accuracy": share.value, "accuracy_low": share.low, "accuracy_high": share.high}
        row |= {"groups": share.groups, "correlation": share.correlation}
        row |= {"same_low": share.same_low, "same_high": share.same_high}
        rows.append(row | _beside_probe(table, class_names, groups))
    return pd.DataFrame(rows)


def _macro_f1_ends(table: pd.DataFrame, class_names: list[str], groups: dict[str, str]) -> tuple[float, float]:
    """The interval of macro-F1."""
    labels, predicted = (table[name].map(class_names.index).to_numpy() for name in ("label", "predicted"))
    return intervals.macro_f1_interval(labels, predicted, len(class_names), _together(table, groups))


def _together(table: pd.DataFrame, groups: dict[str, str]) -> list[str]:
    """A group for each row: the predictions of one photo in several repeats belong together as a group's do."""
    return [groups.get(path, "") or f"photo {path}" for path in table["path"]]


def _beside_probe(table: pd.DataFrame, class_names: list[str], groups: dict[str, str]) -> dict[str, float]:
    """A combination beside its probe, photo by photo (`baselines.beside_probe`); empty where a photo has none."""
    if "probe" not in table or not table["probe"].isin(class_names).all():
        return {}
    labels, predicted, probe = (
        table[name].map(class_names.index).to_numpy() for name in ("label", "predicted", "probe")
    )
    by_repeat = [
        metrics.scores(metrics.confusion_from_names(part["label"], part["probe"], class_names))["macro_f1"]
        for _, part in table.groupby("repeat")
    ]
    numbers = baselines.beside_probe(labels, predicted, probe, len(class_names), _together(table, groups))
    return numbers | {"probe_macro_f1": float(np.mean(by_repeat))}
