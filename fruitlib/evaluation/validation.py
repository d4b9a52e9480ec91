"""What a run is worth on its validation photos: `metrics.json`, every key of it, and the guesses it has to beat.

labels and predicted are class indexes (n,), probs are (n, C), groups a name for each photo ("": it stands alone).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from fruitlib.core import files
from fruitlib.evaluation import baselines, calibration, intervals, metrics, prevalence, significance, wording
from fruitlib.evaluation.intervals import Share
from fruitlib.runs.run import Run

METRICS_FILE = "metrics.json"
NETWORK, COLOUR, MAJORITY = "network", "mean-colour baseline", "majority baseline"
PROBE = "frozen-features baseline"  # where a pretrained network is at hand
Row = tuple[float, float, float]  # a value with the ends of its 95 % interval


@dataclass(frozen=True)
class ValidationScores:
    """The numbers of `metrics.json`, all of the validation photos; shares from 0 to 1 unless a unit is given.

    NaN where a number does not exist, as an interval does not where nothing is wrong; the file leaves it out.
    """

    n: int  # validation photos
    correct: int  # of them, predicted as labelled
    accuracy: float  # correct / n
    accuracy_low: float  # its 95 % interval, for new groups; for new photos where none share a group
    accuracy_high: float
    groups: int  # groups the photos come in; 0: photos stand alone
    correlation: float  # how alike photos of a group are, 0 to 1
    same_low: float  # 95 % interval of accuracy on more photos of these same groups
    same_high: float
    balanced_accuracy: float  # mean recall of the classes that have photos
    macro_precision: float  # mean over these classes; a class that is never predicted counts as 0
    macro_recall: float
    macro_f1: float
    macro_miss_rate: float  # mean share of a class that is missed
    val_loss: float  # mean of -log(probability of the true class), natural logarithm
    macro_f1_low: float  # 95 % interval of macro_f1, for new groups; none where a class has a single group
    macro_f1_high: float
    gap: float  # mean confidence minus accuracy, photos weighted to the class shares where the model is used
    gap_low: float  # its 95 % interval, for new groups where photos come in groups
    gap_high: float
    ece: float  # expected calibration error, 10 bins, weighted likewise
    temperature: float  # fitted on these photos, weighted likewise; above 1 the network is overconfident; no unit
    majority_accuracy: float  # of always predicting the most frequent class of the training photos
    colour_macro_f1: float  # of a logistic regression on each photo's mean colour
    probe_accuracy: float = math.nan  # of a logistic regression on frozen features of a pretrained network, if any
    probe_macro_f1: float = math.nan
    over_probe: float = math.nan  # accuracy less probe_accuracy, on the same photos
    over_probe_low: float = math.nan  # its 95 % interval, for new groups where photos come in groups
    over_probe_high: float = math.nan
    over_probe_p: float = math.nan  # of the paired test (`significance.accuracy_difference`)

    def record(self) -> dict[str, float]:
        """The numbers by name, without those that are NaN."""
        return {name: value for name, value in asdict(self).items() if not math.isnan(value)}

    def write(self, run: Run) -> None:
        """Write them to the run's `metrics.json`."""
        files.write_json(run.path / METRICS_FILE, self.record())

    @property
    def share(self) -> Share:
        """Accuracy with its intervals."""
        same = self.same_low, self.same_high
        return Share(self.correct, self.n, self.accuracy_low, self.accuracy_high, self.groups, self.correlation, *same)

    def summary(self, word: str = "group") -> str:
        """Accuracy and macro-F1 with their intervals, beside the strongest baseline's macro-F1; `word`: a group's."""
        macro_f1 = wording.macro_f1_text(self.macro_f1, self.macro_f1_low, self.macro_f1_high, word)
        accuracy = wording.share_text(self.share, word)
        baselines_own = {"the mean colour": self.colour_macro_f1, wording.FROZEN: self.probe_macro_f1}
        strongest = max(baselines_own, key=lambda name: np.nan_to_num(baselines_own[name], nan=-1))
        beside = f"the strongest baseline, {strongest}, reaches {baselines_own[strongest]:.3f}"
        return f"Accuracy {accuracy}. Macro-F1 {macro_f1}; {beside}"


def baseline_predictions(train_images: np.ndarray, train_labels: np.ndarray, val_images: np.ndarray) -> dict:
    """What each baseline predicts for the validation photos, class indexes (m,); images are uint8 (n, S, S, 3)."""
    return {
        COLOUR: baselines.mean_colour(train_images, train_labels, val_images),
        MAJORITY: baselines.majority(train_labels, len(val_images)),
    }


def probe_guess(predictions: pd.DataFrame | None, paths: Sequence[str], class_names: Sequence[str]) -> dict:
    """What the probe predicts for the photos `paths`, class indexes (n,), by its name; empty where there is no probe.

    `predictions` has path and predicted (the name of a class) of each of them; None: there is no probe.
    """
    if predictions is None:
        return {}
    named = predictions.set_index("path")["predicted"].loc[list(paths)]
    return {PROBE: named.map(list(class_names).index).to_numpy(int)}


def evaluate_validation(
    labels: np.ndarray,
    probs: np.ndarray,
    guesses: dict[str, np.ndarray],
    groups: Sequence[str] | None = None,
    shares: np.ndarray | None = None,
) -> ValidationScores:
    """All numbers of `metrics.json`; `guesses` are those of `baseline_predictions`, and that of `probe_guess`.

    `shares` (C,) are those where the model is used (`prevalence.deploy_shares`); None: those of the photos.
    """
    num_classes, predicted = probs.shape[1], probs.argmax(1)
    share = intervals.share_of(predicted == labels, groups)
    by_guessing = {name: _scores(labels, guess, num_classes) for name, guess in guesses.items()}
    macro_f1_low, macro_f1_high = intervals.macro_f1_interval(labels, predicted, num_classes, groups)
    weights = None if shares is None else prevalence.photo_weights(labels, shares)
    gap = calibration.confidence_gap(probs, labels, groups, weights)
    return ValidationScores(
        **_scores(labels, predicted, num_classes),
        accuracy_low=share.low,
        accuracy_high=share.high,
        groups=share.groups,
        correlation=share.correlation,
        same_low=share.same_low,
        same_high=share.same_high,
        val_loss=metrics.log_loss(probs, labels),
        macro_f1_low=macro_f1_low,
        macro_f1_high=macro_f1_high,
        gap=gap.value,
        gap_low=gap.low,
        gap_high=gap.high,
        ece=calibration.ece(probs, labels, weights),
        temperature=calibration.fit_temperature(probs, labels, weights),
        majority_accuracy=by_guessing[MAJORITY]["accuracy"],
        colour_macro_f1=by_guessing[COLOUR]["macro_f1"],
        **(baselines.beside_probe(labels, predicted, guesses[PROBE], num_classes, groups) if PROBE in guesses else {}),
    )


def beside_baselines(
    scores: ValidationScores,
    labels: np.ndarray,
    guesses: dict[str, np.ndarray],
    num_classes: int,
    groups: Sequence[str] | None = None,
) -> dict[str, Row]:
    """Accuracy and macro-F1 of the network and of each baseline, by name, for `metrics_figures.scores`."""
    rows = {
        f"accuracy, {NETWORK}": (scores.accuracy, scores.accuracy_low, scores.accuracy_high),
        f"macro-F1, {NETWORK}": (scores.macro_f1, scores.macro_f1_low, scores.macro_f1_high),
    }
    for name in sorted(guesses, key=lambda name: name != PROBE):  # the one to beat stands next to the network
        guess = guesses[name]
        own, share = _scores(labels, guess, num_classes), intervals.share_of(guess == labels, groups)
        rows[f"accuracy, {name}"] = (share.value, share.low, share.high)
        rows[f"macro-F1, {name}"] = (own["macro_f1"], *intervals.macro_f1_interval(labels, guess, num_classes, groups))
    return rows


def class_table(matrix: np.ndarray, class_names: Sequence[str]) -> pd.DataFrame:
    """A row per class: TP, FP, FN, TN, and precision, recall, F1 and miss rate."""
    counts = pd.DataFrame(metrics.counts(matrix), index=list(class_names)).rename(columns=str.upper)
    return counts.join(pd.DataFrame(metrics.rates(matrix), index=list(class_names)).round(3))


def learned_summary(
    labels: np.ndarray,
    probs: np.ndarray,
    guesses: dict[str, np.ndarray],
    class_names: Sequence[str],
    groups: Sequence[str] | None = None,
    train_labels: str = "given",
    group_word: str = "group",
) -> str:
    """In a line or more, whether the network has learned more than a baseline knows; the last two are settings."""
    predicted = probs.argmax(1)
    found = significance.accuracy_difference(guesses[COLOUR] == labels, predicted == labels, groups)
    by_looks = intervals.found_by_looks(groups or [])
    text = wording.difference_text(found, ("the mean colour", "the network"), group_word, by_looks)
    lines = [f"compared with the mean colour alone: {text}"]
    if PROBE in guesses:
        lines.append(_probe_line(labels, predicted, guesses[PROBE], len(class_names), groups, group_word))
    if len(set(predicted)) == 1:
        lines.append(
            f"it predicts {class_names[predicted[0]]} for every photo: it has not learned to tell classes apart"
        )
    if train_labels == "shuffled":
        chance = 1 / len(class_names)
        lines.append(f"its training labels were shuffled: a score well above chance, {chance:.2f}, would mean a leak")
    return "\n".join(lines)


def _probe_line(
    labels: np.ndarray,
    predicted: np.ndarray,
    probe: np.ndarray,
    num_classes: int,
    groups: Sequence[str] | None,
    group_word: str,
) -> str:
    """Whether the network is worth more than frozen features; where it is open, which difference would be found."""
    found = significance.accuracy_difference(probe == labels, predicted == labels, groups)
    numbers = _scores(labels, predicted, num_classes) | {"groups": found.groups}
    numbers |= baselines.beside_probe(labels, predicted, probe, num_classes, groups)
    line = f"compared with {wording.FROZEN}: {wording.probe_text(numbers, group_word)}"
    open_question = not found.significant and not found.too_few
    return f"{line}. {wording.detectable_text(found, group_word)}" if open_question else line


def _scores(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> dict[str, float]:
    return metrics.scores(metrics.confusion_matrix(labels, predicted, num_classes))
