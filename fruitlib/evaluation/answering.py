"""When may the model answer alone, and when should a person look? A confidence above which it is seldom wrong, proven.

Confidence is the probability of the predicted class. probs are (n, C), labels class indexes (n,), groups a name for
each photo ("": it stands alone). All of it on photos that the model did not learn from.
"""

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import pandas as pd

from fruitlib.core import files
from fruitlib.evaluation import calibration, crossval, intervals, prevalence
from fruitlib.runs.run import Run

ANSWERING_FILE = "answering.json"
LEVELS, GROUP_LEVELS = 50, 20  # shares answered that are tried, whatever the photos; a bound in groups takes longer
MISTAKES = 2  # that the first level tried has room for, where there are photos enough
CONFIDENT = 0.95  # of the bound, one-sided
SET_ERROR = 0.1  # conformal sets leave out the true class this often
FEWEST_OF_CLASS = 9  # photos: with fewer, no threshold reaches 90 %
NONE = "none"  # in the metadata, where nothing is proven


# ---- one threshold for all classes


@dataclass(frozen=True)
class Answering:
    """Above which confidence the model may answer alone, and what was tried on the way.

    `bound` is the one-sided 95 % upper bound of the share wrong among the photos answered: of new groups where `groups`
    is not 0, else of new photos. Without a threshold `above` and `bound` are NaN, `answered` and `wrong` 0.
    """

    max_error: float  # share wrong that is allowed
    above: float  # it answers where its confidence is above this
    answered: float  # share of photos it answers
    wrong: int  # of them
    bound: float
    n: int
    groups: int
    needed: int  # photos, or groups, without any mistake that a proof needs
    curve: pd.DataFrame = field(compare=False, repr=False)  # of `risk_coverage`

    def record(self) -> dict[str, float]:
        """The numbers by name, without those that are NaN; of `answering.json`."""
        numbers = {name: value for name, value in asdict(self).items() if name != "curve"}
        return {name: value for name, value in numbers.items() if not math.isnan(value)}

    @property
    def proven(self) -> bool:
        """Whether there is a threshold."""
        return not math.isnan(self.above)


def answer_alone(
    probs: np.ndarray, labels: np.ndarray, max_error: float, groups: Sequence[str] | None = None
) -> Answering:
    """The lowest confidence above which at most `max_error` of the answers are wrong, with 95 % confidence.

    Levels of coverage are tested one by one from the most confident photos downward, up to the first that fails (fixed
    sequence testing: Angelopoulos, Bates, Candès, Jordan and Lei 2021, Learn then Test; Geifman and El-Yaniv 2017 for
    the setting), so that choosing among them does not break the bound. The first level is set by numbers of photos
    alone: it could pass without a mistake, and has room for two where that takes no more than half of the photos.

    How often the share wrong above the threshold found exceeds `max_error` 0.05, at most 0.05 being promised; how often
    a threshold is found; the mean share answered then; and how often conformal sets hold the true class:

                                    60 photos  300 photos  1000 photos  49 groups  100 groups
        exceeded, easy                   0.02        0.03         0.01       0.00        0.00
        exceeded, very easy              0.00        0.00         0.00       0.00        0.00
        exceeded, says nothing           0.04        0.05         0.04       0.00        0.00
        found, easy                      0.03        1.00         1.00       0.07        0.60
        found, very easy                 0.89        1.00         1.00       1.00        1.00
        answered, easy                   0.99        0.85         0.91       0.10        0.08
        answered, very easy              1.00        1.00         1.00       0.58        0.88
        sets hold, easy                  0.90        0.90         0.90       0.90        0.90
        sets hold, very easy             0.91        0.90         0.90       0.89        0.89

    ("says nothing": 5.5 % are wrong at every confidence, so that any threshold is false.)
    """
    probs, labels = np.asarray(probs, float), np.asarray(labels)
    confidence, right = probs.max(1), probs.argmax(1) == labels
    unit, grouped = intervals.units_of(len(labels), groups)
    curve = risk_coverage(confidence, right, unit, grouped, max_error)
    tested = curve[curve["enough"] & (curve["photos"] >= _first_level(len(labels), max_error))]
    passed = tested[np.logical_and.accumulate(tested["bound"].to_numpy() <= max_error)]
    units = int(unit.max()) + 1 if grouped else 0
    found = passed.iloc[-1] if len(passed) else None
    return Answering(
        max_error,
        above=float("nan") if found is None else float(found["above"]),
        answered=0.0 if found is None else float(found["photos"]) / len(labels),
        wrong=0 if found is None else int(found["wrong"]),
        bound=float("nan") if found is None else float(found["bound"]),
        n=len(labels),
        groups=units,
        needed=units_needed(max_error, round(len(labels) / units) if units else 0),
        curve=curve,
    )


def risk_coverage(
    confidence: np.ndarray, right: np.ndarray, unit: np.ndarray, grouped: bool, max_error: float
) -> pd.DataFrame:
    """A row per level, the most confident photos first.

    Columns: above (the confidence), photos (answered), wrong, bound (95 %, one-sided, of the share wrong), enough
    (whether these photos would show at most `max_error`, were none wrong).
    """
    order, n, rows, enough = np.sort(confidence)[::-1], len(confidence), {}, False
    levels = GROUP_LEVELS if grouped else LEVELS
    for count in dict.fromkeys(np.ceil(np.arange(1, levels + 1) / levels * n - 1e-9).astype(int)):
        above = float(order[count]) if count < n else 0.0
        own = confidence > above
        if own.any():
            enough = enough or wrong_at_most(np.ones(own.sum()), unit[own], grouped) <= max_error
            bound = wrong_at_most(right[own], unit[own], grouped)
            rows[above] = (above, int(own.sum()), int((~right[own]).sum()), bound, enough)
    return pd.DataFrame(rows.values(), columns=["above", "photos", "wrong", "bound", "enough"])


def wrong_at_most(right: np.ndarray, unit: np.ndarray, grouped: bool) -> float:
    """The one-sided 95 % upper bound of the share wrong, from right and the unit of each photo (n,).

    Photos alone: Clopper and Pearson's (1934). In groups: of new groups, a quantile of the beta-binomial posterior.
    """
    if grouped:
        return intervals.new_group_share_at_most(1 - np.asarray(right, float), unit, CONFIDENT)
    return intervals.share_at_most(int(len(right) - np.sum(right)), len(right), CONFIDENT)


@functools.cache
def units_needed(max_error: float, group_size: int = 0, at_most: int = 100_000) -> int:
    """Photos, or groups of so many photos, without a mistake that show that at most `max_error` are wrong.

    0 where `at_most` do not, as where groups show less than the posterior's grid can hold.
    """
    if not group_size:
        return math.ceil(math.log(1 - CONFIDENT) / math.log(1 - max_error))

    def shown(groups: int) -> bool:
        return wrong_at_most(np.ones(groups * group_size), np.repeat(np.arange(groups), group_size), True) <= max_error

    low, high = 1, 2
    while not shown(high):
        low, high = high, 2 * high
        if high * group_size > at_most:
            return 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shown(middle) else (middle, high)
    return high


@functools.cache
def _first_level(n: int, max_error: float) -> int:
    """Photos that the first level tested holds at least, so that a single early mistake does not end the search."""
    room = units_needed(max_error)
    while room < n / 2 and intervals.share_at_most(MISTAKES, room, CONFIDENT) > max_error:
        room += 1
    return int(min(n / 2, room))


# ---- sets of classes


@dataclass(frozen=True)
class Conformal:
    """Sets of classes, one of which is the true one nine times in ten, whatever the class.

    A class is in a photo's set where its probability reaches the class's threshold.
    """

    thresholds: dict[str, float]  # by class name
    mean_size: float  # classes in a set, on these photos
    single: float  # share of sets that hold a single class
    empty: float  # share of sets that hold none: the photo is unlike those of any class
    n: int


def conformal_sets(probs: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Conformal | None:
    """Class-conditional split conformal prediction at 90 % (Vovk 2012), from photos the model did not learn from.

    The threshold of a class is the k-th largest of its probabilities on its own n photos, k = ceil(0.9 (n + 1)). New
    photos of the class reach it with probability at least 0.9; the proof asks that photos are drawn independently, so
    for photos of new groups the sets are too small.

    Returns:
        None where a class has fewer than nine photos.
    """
    probs, labels = np.asarray(probs, float), np.asarray(labels)
    if np.bincount(labels, minlength=len(class_names)).min() < FEWEST_OF_CLASS:
        return None
    thresholds = np.array([_conformal_threshold(probs[labels == c, c]) for c in range(len(class_names))])
    sizes = (probs >= thresholds).sum(1)
    by_name = dict(zip(class_names, thresholds.tolist(), strict=True))
    return Conformal(by_name, float(sizes.mean()), float((sizes == 1).mean()), float((sizes == 0).mean()), len(labels))


def _conformal_threshold(own: np.ndarray) -> float:
    """The threshold of a class from its probabilities on its own photos."""
    k = math.ceil((1 - SET_ERROR) * (len(own) + 1) - 1e-9)
    return float(np.sort(own)[::-1][k - 1])


# ---- a run


@dataclass(frozen=True)
class RunAnswering:
    """What `evaluate` finds of a run, and on which photos."""

    alone: Answering
    conformal: Conformal | None
    pooled: bool  # out-of-fold predictions of its combination, else its own validation predictions
    temperature: float  # of the exported files' probabilities; here no photo's own label had a part in it
    photo_shares: dict[str, float]  # class shares of these photos, of which all of it speaks
    deploy_shares: dict[str, float]

    @property
    def other_shares(self) -> bool:
        """Whether classes come in clearly other shares where the model is used."""
        return max(abs(self.photo_shares[name] - self.deploy_shares[name]) for name in self.photo_shares) > 0.05

    def write(self, run: Run) -> None:
        """Write it to the run's `answering.json`."""
        conformal = asdict(self.conformal) if self.conformal else None
        content = self.alone.record() | {"pooled": self.pooled, "photo_shares": self.photo_shares}
        content["temperature"] = self.temperature
        files.write_json(run.path / ANSWERING_FILE, content | {"conformal": conformal})


def evaluate(run: Run) -> RunAnswering | None:
    """The threshold and the conformal sets of a run, of its out-of-fold or validation predictions, calibrated.

    Of repeated folds the first repeat counts, so that each photo does once.

    Returns:
        None where there are no such predictions, as for a model trained on all photos by hand.
    """
    predictions, pooled = crossval.out_of_sample(run)
    if pooled:
        predictions = predictions[predictions["repeat"].astype(int) == 1]
    if predictions.empty:
        return None
    (probs, labels), names = run.probs(predictions), run.class_names
    groups = run.groups(predictions["path"])
    there, used = prevalence.class_shares(labels, len(names)), prevalence.deploy_shares(run)
    shares = [dict(zip(names, of.round(3).tolist(), strict=True)) for of in (there, used)]
    weights = prevalence.photo_weights(labels, used)
    temperature = calibration.fit_temperature(probs, labels, weights)
    probs = calibration.cross_fitted_probs(probs, labels, groups, weights)
    alone = answer_alone(probs, labels, run.config.max_error, groups)
    return RunAnswering(alone, conformal_sets(probs, labels, names), pooled, temperature, *shares)


def metadata(run: Run) -> dict[str, str]:
    """What goes into the exported files: `temperature`, `answer_above`, `max_error`, `conformal`, `class_shares`.

    The last two are JSON objects by class; `class_shares` those of the photos that the others were found on.

    `answer_above` is "none" where no confidence is proven: a person should look at every answer. Empty where the run
    has no predictions on photos it did not learn from. Of torch's calibrated probabilities; INT8's differ a little.
    """
    found = evaluate(run)
    if found is None:
        return {}
    above = repr(float(found.alone.above)) if found.alone.proven else NONE
    thresholds = found.conformal.thresholds if found.conformal else {}
    conformal = json.dumps(thresholds, ensure_ascii=False)
    shares = json.dumps(found.photo_shares, ensure_ascii=False)
    texts = {"answer_above": above, "max_error": f"{found.alone.max_error:g}", "conformal": conformal}
    return texts | {"temperature": f"{found.temperature:.6g}", "class_shares": shares}
