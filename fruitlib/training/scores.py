"""A trained run on its validation photos, beside its baselines: the `metrics` stage, `metrics.json`."""

from dataclasses import dataclass

import numpy as np

from fruitlib.data import dataset
from fruitlib.evaluation import validation
from fruitlib.evaluation.prevalence import deploy_shares
from fruitlib.evaluation.validation import ValidationScores
from fruitlib.runs.run import Run
from fruitlib.training import probe

BASELINE_PHOTOS = 3000  # training photos that the mean colour learns from


@dataclass(frozen=True)
class Scored:
    """A run's numbers, and the guesses that they are compared with."""

    scores: ValidationScores
    guesses: dict[str, np.ndarray]  # class indexes (n,) of the validation photos, by baseline
    baseline: str  # the baseline of frozen features in words, or why there is none


def of_run(run: Run, tell: bool = True) -> Scored:
    """Evaluate a run, write `metrics.json` and, where there is that baseline, `predictions_probe.csv`.

    `tell`: print how the baseline was made, as 03 does; the terminal of a sweep needs no such lines of every run.

    Raises:
        InputError: weights or photos that cannot be read.
    """
    identity, predictions = run.identity("metrics"), run.predictions("val")
    probs, labels = run.probs(predictions)
    train_photos = dataset.spread(dataset.load_photos(run, "train"), BASELINE_PHOTOS)
    train_images = dataset.to_pictures(train_photos.images)
    val_images = dataset.to_pictures(dataset.load_photos(run, "val").images)
    guesses = validation.baseline_predictions(train_images, train_photos.labels.numpy(), val_images)
    frozen = probe.of_run(run, tell)
    guesses |= validation.probe_guess(frozen and frozen.predictions, predictions["path"], run.class_names)
    groups = run.groups(predictions["path"])
    scores = validation.evaluate_validation(labels, probs, guesses, groups, deploy_shares(run))
    scores.write(run)
    run.complete("metrics", identity)
    return Scored(scores, guesses, f"baseline: {frozen.name}" if frozen else probe.reason(run))
