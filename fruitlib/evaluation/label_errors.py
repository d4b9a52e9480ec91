"""Which labels are doubtful, by confident learning on predictions of models that never saw the photo."""

from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

from fruitlib.core import files
from fruitlib.core.errors import InputError, first_line
from fruitlib.data import corrections, splits

DOUBTS = "doubtful_labels.csv"  # which 03 writes beside a run
DOUBT_COLUMNS = ("path", "label", "suggested", "probability", "quality")


def doubtful_labels(predictions: pd.DataFrame, class_names: list[str]) -> pd.DataFrame:
    """Photos whose label is probably wrong, most doubtful first, by confident learning (Northcutt et al. 2021).

    Confident learning counts the photos that a model which has not seen them gives to another class with the
    confidence it usually has in that class; that many photos, those with the least probability of their own label,
    are listed (cleanlab's `low_self_confidence`: in simulation it listed more planted errors and fewer right labels
    than the other filters). The list is as good as the model. In simulation, one right on 0.94 of the photos
    listed 1 right label in 100, one right on 0.76 ten; a linear model that was right on 0.63 of fruit of unseen
    varieties listed thirty, since it took whole varieties for another class. So a person should look;
    `wording.label_error_text` gives how far to trust the list. Nothing is changed.

    Args:
        predictions: out-of-sample rows with path, label, p_<class>…; several rows of a photo (repeats,
            backends) are averaged.
        class_names: the classes, in any order.

    Returns:
        path, label, suggested (the likelier class), probability (of it), quality (probability of the label as it
        is); empty where no label is in doubt, or where fewer than two classes have photos.

    Raises:
        InputError: a column that is missing, a label that is no class, a probability that is not a number.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    photos, probs = _averaged(predictions, class_names)
    given = pd.Categorical(photos["label"], categories=class_names).codes.astype(int)
    present = np.unique(given)
    if len(present) < 2:
        return _doubts(photos[:0], [], [], [])
    shares = probs[:, present] / probs[:, present].sum(1, keepdims=True).clip(1e-12)  # only classes that are labels
    codes = np.searchsorted(present, given)
    options = {"filter_by": "low_self_confidence", "return_indices_ranked_by": "self_confidence", "n_jobs": 1}
    order = find_label_issues(codes, shares, **options)
    order = order[shares[order].argmax(1) != codes[order]]  # a label that is the likeliest class is in no doubt
    quality = get_label_quality_scores(codes, shares, method="self_confidence")
    suggested = shares[order].argmax(1)
    names = [class_names[present[i]] for i in suggested]
    return _doubts(photos.iloc[order], names, shares[order, suggested], quality[order])


def _doubts(photos: pd.DataFrame, suggested, probability, quality) -> pd.DataFrame:
    columns = {"suggested": suggested, "probability": probability, "quality": quality}
    return photos[["path", "label"]].assign(**columns).reset_index(drop=True)


def _averaged(predictions: pd.DataFrame, class_names: list[str]) -> tuple[pd.DataFrame, np.ndarray]:
    """One row a photo: path and label, and probabilities (n, C) averaged over its rows, summing to 1."""
    columns = [f"p_{name}" for name in class_names]
    if missing := [name for name in ("path", "label", *columns) if name not in predictions]:
        raise InputError(f"predictions: no column {missing[0]}; doubtful labels need path, label and p_<class> of all")
    if unknown := set(predictions["label"]) - set(class_names):
        raise InputError(f"predictions: label {min(map(str, unknown))} is none of the classes {', '.join(class_names)}")
    table = predictions.groupby(["path", "label"], sort=False)[columns].mean().reset_index()
    probs = table[columns].to_numpy(float)
    if not np.isfinite(probs).all():
        bad = table["path"][~np.isfinite(probs).all(1)].iloc[0]
        raise InputError(f"predictions: {bad} has a probability that is not a number: run that prediction again")
    return table, probs / probs.sum(1, keepdims=True).clip(1e-12)


def doubts_of_runs(sweep_dir: Path, manifest: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """What 03 has doubted so far about a manifest's photos: of runs of this sweep and of those beside it, newest first.

    A row counts where the photo (its path, bytes and label) is the same in both sweeps, is no test photo here, and its
    label has not been confirmed.

    Returns:
        The columns of `doubtful_labels`, run (`sweep/run`) and found (the day, ISO 8601); and a sentence for each list
        that cannot be read.
    """
    open_rows = manifest[manifest["split"] != "test"]
    photos = pd.MultiIndex.from_frame(open_rows[["path", "sha256", "label"]])
    parts, problems = [], []
    for path in sorted(sweep_dir.parent.glob(f"*/*/{DOUBTS}"), key=files.changed_at, reverse=True):
        try:
            parts.append(_doubts_of_run(path, photos))
        except (OSError, ValueError, KeyError, InputError) as problem:
            problems.append(f"{files.display_path(path)} is left out, it cannot be read: {first_line(problem)}")
    parts = parts or [pd.DataFrame(columns=[*DOUBT_COLUMNS, "run", "found"])]
    return corrections.unconfirmed(pd.concat(parts, ignore_index=True), manifest), problems


def _doubts_of_run(path: Path, photos: pd.MultiIndex) -> pd.DataFrame:
    """The rows of one list whose photos are among these (path, sha256, label)."""
    texts = dict.fromkeys(DOUBT_COLUMNS[:3], str)
    rows = files.read_csv(path, dtype=texts, keep_default_na=False)[list(DOUBT_COLUMNS)]
    if rows.empty:
        return rows.assign(run="", found="")
    contents = splits.load_manifest(path.parents[1]).drop_duplicates("path").set_index("path")["sha256"]
    there = rows.assign(sha256=rows["path"].map(contents))[["path", "sha256", "label"]]
    found = datetime.fromtimestamp(path.stat().st_mtime).date().isoformat()
    same = rows[pd.MultiIndex.from_frame(there).isin(photos)]
    return same.assign(run=f"{path.parents[1].name}/{path.parent.name}", found=found)
