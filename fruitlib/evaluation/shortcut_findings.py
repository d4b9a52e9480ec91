"""Does a network look at the object? The numbers of 04's last section, and what they say, in sentences.

Shares are from 0 to 1. Differences are paired, on the same photos, and speak of new groups where photos come in groups,
else of new photos; `word` is what a group is called.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fruitlib.evaluation import intervals, significance, wording
from fruitlib.evaluation.intervals import Share
from fruitlib.evaluation.significance import PairedDifference

GREY, HUE, HIDDEN = "grey", "other hue", "object hidden"
FAR = 0.1  # accuracy above chance, with the object hidden, from which the background is called a shortcut
FEWEST = 10  # photos whose object's place is known, for a verdict
COLUMNS = ("heat_on_object", "object_area", "hidden_accuracy", "hidden_corrected", "hidden_chance", "shortcut")
COLUMNS += ("grey_accuracy",)


@dataclass(frozen=True)
class Changed:
    """Accuracy on changed photos beside that on the same photos as they are, or beside chance."""

    name: str  # GREY, HUE or HIDDEN
    share: Share  # of the changed photos that are right
    beside: float  # the share of the same photos that is right as they are, or by a constant answer
    difference: PairedDifference  # accuracy less beside

    @property
    def n(self) -> int:
        """How many photos."""
        return self.share.n

    @property
    def accuracy(self) -> float:
        """Accuracy on the changed photos."""
        return self.share.value

    def text(self, what: str, word: str = "group") -> str:
        """`with colours taken away: right on 0.80 of 30 photos instead of 0.93 (-13.3 points, …)`."""
        return f"{what}: right on {self.accuracy:.2f} of {self.n:,} photos instead of {self.beside:.2f} " + (
            f"({points_text(self.difference, word)})"
        )


def changed(name: str, plain: np.ndarray, now: np.ndarray, groups: Sequence[str] | None) -> Changed:
    """From whether each of n photos is right as it is and changed, bool (n,)."""
    found = significance.accuracy_difference(plain, now, groups)
    return Changed(name, intervals.share_of(now, groups), float(plain.mean()), found)


def points_text(found: PairedDifference, word: str = "group") -> str:
    """`-13.3 points; 95 % interval for new photos -29 to +1`."""
    text = f"{100 * found.value:+.1f} points"
    if math.isnan(found.low):
        return f"{text}; {significance.FEWEST_GROUPS} {wording.plural_of(word)} are needed for an interval"
    new = wording.plural_of(word) if found.groups else "photos"
    return f"{text}; 95 % interval for new {new} {100 * found.low:+.0f} to {100 * found.high:+.0f}"


@dataclass(frozen=True)
class HeatOnObject:
    """The share of each photo's heat that lies on the object, beside the object's share of the picture."""

    shares: np.ndarray  # (n,) NaN where a photo has no heat, or its object's place is not known
    areas: np.ndarray  # (n,) NaN where its place is not known: the share that an even heat would have

    @property
    def held(self) -> np.ndarray:
        """Which photos have both numbers, bool (n,)."""
        return np.isfinite(self.shares) & np.isfinite(self.areas)

    @property
    def median(self) -> tuple[float, float]:
        """The median share, and the median area of the same photos; NaN where there are none."""
        held = self.held
        if not held.any():
            return math.nan, math.nan
        return float(np.median(self.shares[held])), float(np.median(self.areas[held]))

    @property
    def below(self) -> int:
        """Photos with less heat on the object than an even heat would have."""
        held = self.held
        return int((self.shares[held] < self.areas[held]).sum())

    def text(self, labels: np.ndarray, names: Sequence[str]) -> str:
        """All of it in a sentence; the classes most of whose photos have less heat on the object than even heat has."""
        held = self.held
        if not held.any():
            return "no photo has both heat and an object whose place is known"
        share, area = self.median
        text = f"half of {held.sum():,} photos have {share:.0%} of their heat or more on the object, which takes up "
        text += f"{area:.0%} of the picture; {self.below:,} have less there than an even heat would have"
        lower = self.shares < self.areas
        worst = [
            name for i, name in enumerate(names) if (own := held & (labels == i)).any() and lower[own].mean() > 0.5
        ]
        if worst and len(names) > len(worst):
            text += f", among them most photos of {', '.join(worst[:3])}"
        return text


@dataclass(frozen=True)
class Gain:
    """What hiding by heat does to the explained class's probability beyond hiding at random: a mean over photos.

    Positive where hot places count for more than random ones. `low` to `high` is the 95 % interval, NaN with fewer
    than six groups.
    """

    name: str
    value: float
    low: float
    high: float
    n: int


def gain(name: str, per_photo: np.ndarray, groups: Sequence[str] | None) -> Gain:
    """From each photo's own difference (n,); the interval is Student's t over groups (`between_groups`)."""
    n, nothing = len(per_photo), math.nan
    if not n:
        return Gain(name, nothing, nothing, nothing, 0)
    unit, _ = intervals.units_of(n, groups)
    sums, sizes = np.bincount(unit, per_photo), np.bincount(unit)
    if len(sizes) < significance.FEWEST_GROUPS:
        return Gain(name, float(per_photo.mean()), nothing, nothing, n)
    low, high, _ = significance.between_groups(sums, sizes)
    return Gain(name, float(per_photo.mean()), low, high, n)


def gains_text(gains: Sequence[Gain], groups: Sequence[str] | None, word: str = "group") -> str:
    """The three curves in a sentence."""
    if not gains or not gains[0].n:
        return "no photo has heat: nothing to hide by it"
    parts = [
        f"{one.name} {one.value:+.2f}" + ("" if math.isnan(one.low) else f" ({one.low:+.2f} to {one.high:+.2f})")
        for one in gains
    ]
    sure, n = [one.name for one in gains if one.low > 0], wording.plural(gains[0].n, "photo")
    if all(math.isnan(one.low) for one in gains):
        return f"too few {wording.plural_of(word)} for intervals: {', '.join(parts)} (n = {n})"
    verdict = "places that are hot count for more than random ones"
    if len(sure) < len(gains):
        verdict = (
            f"that hot places count for more than random ones is shown by {', '.join(sure) or 'none of the three'}"
        )
    new = wording.new_text(groups if groups is not None else [""] * gains[0].n, word)
    between = f"area between the curves, in probability, with 95 % interval for {new}"
    return f"{verdict}: {between}: {', '.join(parts)} (n = {n})"


@dataclass(frozen=True)
class Background:
    """Accuracy where the object is hidden: as the network answers, and with its leaning to some classes taken out.

    Without an object a network tends to call every photo the same, which hides what else it knows. So a photo's answer
    is also taken to be the class whose log probability is furthest above its mean over these photos; labels play no
    part in that. `corrected` compares it with the best constant answer (`corrected.beside`).
    """

    plain: float  # accuracy on the same photos as they are
    answered: Share  # right as the network answers
    corrected: Changed  # the same with its leaning taken out
    most: str  # the class that is recognised best
    recall: float  # of its photos, the share that is taken for it
    others: float  # of the other classes' photos, the share that is taken for it

    @property
    def shortcut(self) -> bool:
        """Whether classes are recognised far more often than by a constant answer, beyond chance."""
        found = self.corrected.difference
        return not self.open and found.significant and found.value >= FAR

    @property
    def open(self) -> bool:
        """Whether there are too few photos or groups for a verdict."""
        return self.corrected.n < FEWEST or self.corrected.difference.too_few

    def verdict(self, word: str = "group") -> str:
        """Whether something beside the object gives the class away, in a sentence."""
        one = self.corrected
        text = f"with the object hidden it is right on {self.answered.value:.2f} of {one.n:,} photos, with its leaning "
        text += f"to some classes taken out on {one.accuracy:.2f}; the best constant answer is on {one.beside:.2f} "
        text += f"({points_text(one.difference, word)})"
        if self.open:
            return f"Too few to tell whether the background gives the class away: {text}"
        if not self.shortcut:
            return f"No shortcut found: {text}"
        return (
            f"It looks beside the object: {text}. Something around the object gives the class away, {self.most} most "
            f"of all: {self.recall:.0%} of its photos are taken for it, and {self.others:.0%} of the others"
        )


def background(
    labels: np.ndarray, plain: np.ndarray, log_probs: np.ndarray, names: Sequence[str], groups: Sequence[str] | None
) -> Background:
    """From class indexes (n,), labels and predictions of the photos as they are; log probabilities (n, C) without it.

    How often a shortcut is found by this: see `tests/explain/test_shortcuts.py`, which plants one.
    """
    constant, answers = np.bincount(labels, minlength=len(names)).argmax(), log_probs.argmax(1)
    corrected = (log_probs - log_probs.mean(0)).argmax(1)
    recalls = [(corrected[labels == i] == i).mean() if (labels == i).any() else math.nan for i in range(len(names))]
    others = [(corrected[labels != i] == i).mean() if (labels != i).any() else 0.0 for i in range(len(names))]
    best = int(np.nanargmax(np.subtract(recalls, others)))
    return Background(
        float((plain == labels).mean()),
        intervals.share_of(answers == labels, groups),
        changed(HIDDEN, labels == constant, corrected == labels, groups),
        names[best],
        float(recalls[best]),
        float(others[best]),
    )


def shortcuts_text(results: list[dict]) -> str:
    """Of the runs of a sweep, rows of `results.csv`, in which a shortcut was found, in a sentence or two."""
    known = [row for row in results if row.get("shortcut") in (0, 1)]
    if not known:
        return (
            "in no run is known whether the background gives the class away (04 was not executed, or no object found)"
        )
    found = [row for row in known if row["shortcut"] == 1]
    if not found:
        return f"in none of {wording.plural(len(known), 'run')} does the background give the class away"
    worst = max(found, key=lambda row: row["hidden_corrected"] - row["hidden_chance"])
    return (
        f"in {len(found)} of {wording.plural(len(known), 'run')} something beside the object gives the class away, "
        f"most in {worst['run']}: with the object hidden and its leaning to some classes taken out, the "
        f"network is right on {worst['hidden_corrected']:.2f} of photos, where the best constant answer is on "
        f"{worst['hidden_chance']:.2f}"
    )
