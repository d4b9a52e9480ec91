"""Would more photos help? A learning curve: the score over the number of training photos, and beyond."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from fruitlib.evaluation import intervals
from fruitlib.evaluation.study import REPLICATES, Study, value_text
from fruitlib.runs.run import Run

FEWEST_SHARES, MORE_PHOTOS, REFITS = 3, 50, 200


@dataclass(frozen=True)
class LearningCurve:
    """A learning curve in words, with its `points` (photos, score) and fitted `line` (photos, score, low, high)."""

    points: pd.DataFrame
    summary: str
    line: pd.DataFrame = field(default_factory=pd.DataFrame)
    of: str = ""  # the class whose photos are counted; empty: all


def fit_learning_curve(
    photos: Sequence[float], scores: Sequence[float], more: int = MORE_PHOTOS, of: str = ""
) -> LearningCurve:
    """The score over the number of training photos, and what `more` of them would bring.

    error = a + b n^-c (Cortes et al. 1994; Hestness et al. 2017), least squares within bounds. The band is the middle
    95 % of 200 refits to points drawn anew among the seeds of each share (their spread widened by the square root of
    S / (S - 1), which few seeds S need). It knows of seeds, not of other photos, and trusts the power law.
    """
    points = pd.DataFrame({"photos": photos, "score": scores}).dropna().astype(float).sort_values("photos")
    sizes, at = np.unique(points["photos"], return_inverse=True)
    if len(sizes) < FEWEST_SHARES:
        few = f"{len(sizes)} share{'s' * (len(sizes) != 1)} of the training photos: a curve wants {FEWEST_SHARES}"
        return LearningCurve(points, f"{few}; nothing is extrapolated", of=of)
    ends = sizes[-1], sizes[-1] + more
    grid = np.unique([*np.geomspace(sizes[0], ends[1], 60).round(3), *ends])
    errors, many = 1 - points["score"].to_numpy(), np.bincount(at)
    means = (np.bincount(at, errors) / many)[at]
    rest = (errors - means) * np.sqrt(many / np.maximum(many - 1, 1))[at]
    places, drawn = [np.flatnonzero(at == share) for share in range(len(sizes))], [errors]
    rng = np.random.default_rng(8)
    for _ in range(REFITS if np.ptp(rest) > 1e-9 else 0):
        chosen = np.concatenate([rng.choice(place, len(place)) for place in places])
        drawn.append((means + rest[chosen]).clip(0, 1))
    a, b, c = np.transpose([power_law(points["photos"], one) for one in drawn])[..., None]
    scores = 1 - (a + b * (grid / sizes[0]) ** -c)
    fitted, (low, high) = scores[0], np.transpose([intervals.percentile_interval(column) for column in scores[1:].T])
    line = pd.DataFrame({"photos": grid, "score": fitted, "low": low, "high": high})
    now, later = (line[line["photos"] == end].iloc[0] for end in ends)
    span = f"{later['low']:.2f} to {later['high']:.2f}" if math.isfinite(later["low"]) else "no interval: one seed"
    told = f"{more} more photos{of and f' of {of}'}: {now['score']:.2f} -> {later['score']:.2f} ({span})"
    return LearningCurve(points, told, line, of)


def learning_curves(study: Study) -> list[LearningCurve]:
    """A curve for every class that `share_class` thins, or one for all photos; none where `train_share` is the same."""
    if "train_share" not in study.differs:
        return []
    results, found = study.results, []
    thinned = [_share_class(study, row) for row in results.to_dict("records")]
    for of in [name for name in dict.fromkeys(thinned) if name] or [""]:
        own = results[(np.array(thinned) == of) | (results["train_share"] == 1)]
        own = own.assign(taught=_taught(study, own, of))
        seeds = own.groupby([own["train_share"], *(own[name] for name in study.differs if name in REPLICATES)])
        seeds = seeds[["taught", study.measure]].mean() if set(REPLICATES) & set(study.differs) else own
        photos = seeds.groupby("train_share")["taught"].transform("mean")  # whole groups teach: seeds differ a little
        found.append(fit_learning_curve(photos.round(), seeds[study.measure], of=of))
    return found


def _share_class(study: Study, row: dict) -> str:
    """The class whose photos a run had fewer of; empty: all of them."""
    if "share_class" not in row and (study.folder / row["run"] / "params.yaml").is_file():  # the same in all runs
        row = Run(study.folder / row["run"]).params["settings"] | {"train_share": row["train_share"]}
    name = value_text(row.get("share_class"))
    return name if name != "empty" and row["train_share"] < 1 else ""


def _taught(study: Study, own: pd.DataFrame, of: str) -> list[float]:
    """How many photos taught each run; of one class where it is named."""
    if not of and "train_photos" in own and own["train_photos"].notna().all():
        return list(own["train_photos"])
    taught = [Run(study.folder / run).rows("train")["label"] for run in own["run"]]
    return [int((labels == of).sum()) if of else len(labels) for labels in taught]


def power_law(photos: Sequence[float], errors: Sequence[float]) -> np.ndarray:
    """a, b and c of the a + b (n / smallest n)^-c that fits best, with 0 <= a <= 1, 0 <= b <= 2 and 0.01 <= c <= 3."""
    from scipy.optimize import least_squares

    errors, n = np.asarray(errors, float), np.asarray(photos, float) / np.min(photos)
    start = [errors.min() / 2, max(errors.max() - errors.min() / 2, 1e-3), 0.5]
    return least_squares(lambda w: w[0] + w[1] * n ** -w[2] - errors, start, bounds=([0, 0, 0.01], [1, 2, 3])).x
