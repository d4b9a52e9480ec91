"""What `metrics.json` says of a run on its validation photos."""

import json
import math

import numpy as np
import pytest

from fruitlib.evaluation import metrics, validation

KEYS = ["n", "correct", "accuracy", "accuracy_low", "accuracy_high", "groups", "correlation", "same_low", "same_high"]
KEYS += ["balanced_accuracy"]
KEYS += ["macro_precision", "macro_recall", "macro_f1", "macro_miss_rate", "val_loss", "macro_f1_low", "macro_f1_high"]
KEYS += ["gap", "gap_low", "gap_high", "ece", "temperature", "majority_accuracy", "colour_macro_f1"]
LABELS = np.array([0] * 10 + [1] * 10 + [2] * 10)
PREDICTED = np.where(np.arange(30) % 5 == 0, (LABELS + 1) % 3, LABELS)  # 6 of 30 wrong, 2 of each class
PROBS = np.full((30, 3), 0.1) + 0.7 * np.eye(3)[PREDICTED]
GUESSES = {"mean-colour baseline": np.zeros(30, int), "majority baseline": np.full(30, 2)}


def test_every_number_is_what_its_name_says():
    scores = validation.evaluate_validation(LABELS, PROBS, GUESSES)
    assert (scores.n, scores.correct, scores.accuracy) == (30, 24, 0.8)
    assert (scores.accuracy_low, scores.accuracy_high) == metrics.wilson(24, 30)
    assert scores.macro_f1 == pytest.approx(0.8) and scores.macro_miss_rate == pytest.approx(0.2)
    assert scores.macro_f1_low < 0.8 < scores.macro_f1_high
    assert scores.val_loss == pytest.approx(-(24 * math.log(0.8) + 6 * math.log(0.1)) / 30)
    assert scores.ece == pytest.approx(0) and scores.gap_low < 0 < scores.gap_high  # confident by 0.8, right in 0.8
    assert scores.temperature == pytest.approx(1, abs=0.01)
    assert scores.majority_accuracy == pytest.approx(1 / 3)
    assert scores.colour_macro_f1 == pytest.approx(0.5 / 3)  # F1 of the one class it names: 2 · 10 / (10 + 30)


def test_the_file_has_these_keys_in_this_order(make_run):
    run = make_run()
    groups = [f"variety {photo // 5}" for photo in range(30)]
    scores = validation.evaluate_validation(LABELS, PROBS, GUESSES, groups)
    scores.write(run)
    content = json.loads((run.path / "metrics.json").read_text())
    assert list(content) == KEYS
    assert validation.ValidationScores(**content) == scores


def test_numbers_that_do_not_exist_are_left_out_of_the_file():
    probs = np.full((30, 3), 0.1) + 0.7 * np.eye(3)[LABELS]  # nothing is wrong: the bootstrap does not vary
    record = validation.evaluate_validation(LABELS, probs, GUESSES).record()
    assert set(KEYS) - set(record) == {"correlation"}
    assert record["accuracy"] == 1 and record["groups"] == 0
    assert (record["macro_f1_low"], record["macro_f1_high"]) == (pytest.approx(0.886, abs=0.002), 1)


def test_in_groups_the_headline_speaks_of_new_ones_and_names_the_old():
    groups = [f"variety {photo // 5}" for photo in range(30)]
    scores = validation.evaluate_validation(LABELS, PROBS, GUESSES, groups)
    assert scores.groups == 6 and (scores.same_low, scores.same_high) == metrics.wilson(24, 30)
    text = scores.summary("variety")
    assert text.startswith("Accuracy 0.800 on new varieties (95 % interval 0.") and "(6 varieties" not in text
    assert "; 6 varieties, 30 photos; on more photos of these 6: 0.63–0.90). Macro-F1 0.800 (0." in text
    lone = ["one" if label == 2 else group for label, group in zip(LABELS, groups, strict=True)]
    alone = validation.evaluate_validation(LABELS, PROBS, GUESSES, lone).summary("variety")
    assert "no interval: a class has only one variety" in alone


def test_confidence_is_judged_at_the_shares_where_the_model_is_used():
    predicted = np.where(LABELS == 2, 0, LABELS)
    probs = np.full((30, 3), 0.1) + 0.7 * np.eye(3)[predicted]
    alike = validation.evaluate_validation(LABELS, probs, GUESSES)
    used = validation.evaluate_validation(LABELS, probs, GUESSES, shares=np.array([0.45, 0.45, 0.1]))
    assert (alike.gap, used.gap) == pytest.approx((0.8 - 2 / 3, 0.8 - 0.9))
    assert alike.accuracy == used.accuracy == pytest.approx(2 / 3)


def test_the_baselines_learn_from_training_photos():
    rng = np.random.default_rng(0)
    train_labels = np.repeat([0, 1], [12, 8])
    images = rng.integers(0, 40, (20, 8, 8, 3)).astype(np.uint8)
    images[train_labels == 1, ..., 0] += 150  # class 1 is red
    guesses = validation.baseline_predictions(images, train_labels, images[[0, 19]])
    assert guesses["mean-colour baseline"].tolist() == [0, 1]
    assert guesses["majority baseline"].tolist() == [0, 0]


def test_the_network_stands_first_beside_its_baselines():
    scores = validation.evaluate_validation(LABELS, PROBS, GUESSES)
    rows = validation.beside_baselines(scores, LABELS, GUESSES, 3)
    assert list(rows) == [f"{kind}, {name}" for name in ("network", *GUESSES) for kind in ("accuracy", "macro-F1")]
    assert rows["accuracy, network"] == (scores.accuracy, scores.accuracy_low, scores.accuracy_high)
    assert rows["macro-F1, network"] == (scores.macro_f1, scores.macro_f1_low, scores.macro_f1_high)
    assert rows["accuracy, majority baseline"] == (1 / 3, *metrics.wilson(10, 30))


def test_a_network_that_names_one_class_and_shuffled_labels_are_pointed_out():
    names = ["apple", "cherry", "tomato"]
    one = np.full((30, 3), 0.1) + 0.7 * np.eye(3)[np.ones(30, int)]
    assert validation.learned_summary(LABELS, PROBS, GUESSES, names).count("\n") == 0
    lines = validation.learned_summary(LABELS, one, GUESSES, names, train_labels="shuffled").splitlines()
    assert len(lines) == 3 and "cherry" in lines[1] and "0.33" in lines[2]
