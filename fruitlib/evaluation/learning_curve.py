"""Would more photos help? A learning curve: the score over the number of training photos, and beyond."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from fruitlib.evaluation.study import REPLICATES, Study, value_text
from fruitlib.runs.run import Run

FEWEST_SHARES, MORE_PHOTOS, REFITS = 3, 50, 200


@dataclass(frozen=True)
class LearningCurve:
    """`points` (photos, score) of `shares` different sizes, and the fitted `line` (photos, score, low, high).

    `now` is the fitted score with all photos, `later` with `more` on top (95 % interval `later_low`, `later_high`; NaN
    with one seed). No line, and NaN, where there are too few shares to extrapolate.
    """

    points: pd.DataFrame
    shares: int
    line: pd.DataFrame = field(default_factory=pd.DataFrame)
    class_name: str = ""  # the class whose photos are counted; empty: all
    more: int = MORE_PHOTOS
    now: float = float("nan")
    later: float = float("nan")
    later_low: float = float("nan")
    later_high: float = float("nan")

    @property
    def extrapolated(self) -> bool:
        """Whether there is a fitted line."""
        return len(self.line) > 0


def fit_learning_curve(
    photos: Sequence[float], scores: Sequence[float], more: int = MORE_PHOTOS, class_name: str = ""
) -> LearningCurve:
    """The score over the number of training photos, and what `more` of them would bring.

    error = a + b n^-c (Cortes et al. 1994; Hestness et al. 2017), least squares within bounds. The band is the middle
    95 % of 200 refits to points redrawn among the seeds of each share (their spread widened by the square root of
    S / (S - 1), since S seeds are few). It covers the variation between seeds, not between photos, and assumes the
    power law.
    """
    points = pd.DataFrame({"photos": photos, "score": scores}).dropna().astype(float).sort_values("photos")
    sizes, at = np.unique(points["photos"], return_inverse=True)
    if len(sizes) < FEWEST_SHARES:
        return LearningCurve(points, len(sizes), class_name=class_name, more=more)
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
    fitted, (low, high) = scores[0], _band(scores[1:])
    line = pd.DataFrame({"photos": grid, "score": fitted, "low": low, "high": high})
    now, later = (line[line["photos"] == end].iloc[0] for end in ends)
    ends_of_line = {
        "now": now["score"],
        "later": later["score"],
        "later_low": later["low"],
        "later_high": later["high"],
    }
    return LearningCurve(points, len(sizes), line, class_name, more, **ends_of_line)


def _band(scores: np.ndarray) -> np.ndarray:
    """The middle 95 % of refitted scores (refits, sizes) at each size, (2, sizes); NaN where there is one seed."""
    if not len(scores):
        return np.full((2, scores.shape[1]), np.nan)
    return np.percentile(scores, [2.5, 97.5], axis=0)


def learning_curves(study: Study) -> list[LearningCurve]:
    """A curve for every class that `share_class` thins, or one for all photos; none where `train_share` is the same."""
    if "train_share" not in study.differs:
        return []
    results, curves = study.results, []
    thinned = [_share_class(study, row) for row in results.to_dict("records")]
    for class_name in [name for name in dict.fromkeys(thinned) if name] or [""]:
        own = results[(np.array(thinned) == class_name) | (results["train_share"] == 1)]
        own = own.assign(photos=_training_photos(study, own, class_name))
        seeds = own.groupby([own["train_share"], *(own[name] for name in study.differs if name in REPLICATES)])
        seeds = seeds[["photos", study.measure]].mean() if set(REPLICATES) & set(study.differs) else own
        # Whole groups are left out, so the number differs a little between seeds
        photos = seeds.groupby("train_share")["photos"].transform("mean")
        curves.append(fit_learning_curve(photos.round(), seeds[study.measure], class_name=class_name))
    return curves


def _share_class(study: Study, row: dict) -> str:
    """The class whose photos a run had fewer of; empty: all of them."""
    if "share_class" not in row and (study.folder / row["run"] / "params.yaml").is_file():  # the same in all runs
        row = Run(study.folder / row["run"]).params["settings"] | {"train_share": row["train_share"]}
    name = value_text(row.get("share_class"))
    return name if name != "empty" and row["train_share"] < 1 else ""


def _training_photos(study: Study, own: pd.DataFrame, class_name: str) -> list[int]:
    """How many training photos each run had; of one class where it is named."""
    if not class_name and "train_photos" in own and own["train_photos"].notna().all():
        return list(own["train_photos"])
    labels = [Run(study.folder / run).rows("train")["label"] for run in own["run"]]
    return [int((one == class_name).sum()) if class_name else len(one) for one in labels]


def power_law(photos: Sequence[float], errors: Sequence[float]) -> np.ndarray:
    """a, b and c of the a + b (n / smallest n)^-c that fits best, with 0 <= a <= 1, 0 <= b <= 2 and 0.01 <= c <= 3."""
    from scipy.optimize import least_squares

    errors, n = np.asarray(errors, float), np.asarray(photos, float) / np.min(photos)
    start = [errors.min() / 2, max(errors.max() - errors.min() / 2, 1e-3), 0.5]
    return least_squares(lambda w: w[0] + w[1] * n ** -w[2] - errors, start, bounds=([0, 0, 0.01], [1, 2, 3])).x
