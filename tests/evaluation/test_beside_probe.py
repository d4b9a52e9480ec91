"""A network beside frozen features: the numbers, the test that decides, and what people read of it."""

import math

import numpy as np
import pandas as pd
import pytest

from fruitlib.evaluation import baselines, crossval, significance, sweep_answers, validation, wording

NAMES = ["apple", "cherry", "tomato"]
LABELS = np.arange(60) % 3
PROBS = np.full((3, 3), 0.1) + 0.7 * np.eye(3)  # of each class, as it is predicted


def wrong_on(photos) -> np.ndarray:
    """Predictions that miss these of the 60 photos."""
    predicted = LABELS.copy()
    predicted[list(photos)] = (predicted[list(photos)] + 1) % 3
    return predicted


GROUPS = [f"variety {photo // 6}" for photo in range(60)]  # ten varieties
FEW = [f"variety {photo // 15}" for photo in range(60)]  # four
EVERY_SIXTH, TWELVE, TWO = range(0, 60, 6), range(12), range(2)
CASES = [
    ("better", TWO, range(20, 40), None, "this run is better on new photos", "beaten"),
    (
        "worse",
        range(20, 40),
        TWO,
        None,
        "frozen features are better on new photos: take them (head: logistic, as in params",
        "better",
    ),
    (
        "open",
        TWELVE,
        range(10, 23),
        None,
        "not significant on new photos: nothing shows that this run",
        "not beaten",
    ),
    ("alike", TWELVE, TWELVE, None, "not significant on new photos", "not beaten"),
    ("in groups", [], EVERY_SIXTH, GROUPS, "this run is better on new varieties", "beaten"),
    ("one group", [], range(6), GROUPS, "not significant on new varieties", "not beaten"),
    ("few groups", [], EVERY_SIXTH, FEW, "too few varieties to tell (at least six are needed)", "not beaten"),
]


@pytest.mark.parametrize(
    ("network", "probe", "groups", "verdict", "mark"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_the_paired_test_decides_and_everybody_reads_the_same(network, probe, groups, verdict, mark):
    predicted, guess = wrong_on(network), wrong_on(probe)
    guesses = {validation.COLOUR: wrong_on(range(50)), validation.MAJORITY: np.zeros(60, int), validation.PROBE: guess}
    scores = validation.evaluate_validation(LABELS, PROBS[predicted], guesses, groups)
    found = significance.accuracy_difference(guess == LABELS, predicted == LABELS, groups)
    assert scores.probe_accuracy == pytest.approx(1 - len(probe) / 60)
    assert scores.over_probe == pytest.approx(scores.accuracy - scores.probe_accuracy)
    own = (scores.over_probe, scores.over_probe_low, scores.over_probe_high, scores.over_probe_p)
    assert own == pytest.approx((found.value, found.low, found.high, found.p), nan_ok=True)
    record = scores.record()
    assert ("over_probe_p" in record) != found.too_few
    assert verdict in wording.probe_text(record, "variety")
    assert wording.probe_mark(record) == f"frozen {scores.probe_accuracy:.3f}: {mark}"
    printed = validation.learned_summary(LABELS, PROBS[predicted], guesses, NAMES, groups, group_word="variety")
    line = printed.splitlines()[1]
    assert line.startswith("compared with frozen features: accuracy ") and verdict in line
    assert ("found" in line) == (mark == "not beaten" and not found.too_few)  # which difference would have been


def test_without_a_probe_nothing_is_claimed():
    guesses = {validation.COLOUR: wrong_on(range(50)), validation.MAJORITY: np.zeros(60, int)}
    assert validation.probe_guess(None, ["a"], NAMES) == {}
    scores = validation.evaluate_validation(LABELS, PROBS[LABELS], guesses)
    assert not [name for name in scores.record() if "probe" in name]
    assert wording.probe_text(scores.record()) == wording.probe_mark(scores.record()) == ""
    assert "frozen" not in validation.learned_summary(LABELS, PROBS[LABELS], guesses, NAMES)
    from_a_table = {"over_probe": math.nan, "over_probe_p": math.nan, "accuracy": 0.5}
    assert wording.probe_text(from_a_table) == wording.probe_mark(from_a_table) == ""


@pytest.mark.parametrize(
    ("colour", "probe", "strongest"),
    [(50, 10, "frozen features, reaches 0.83"), (5, 30, "the mean colour, reaches 0.91")],
)
def test_the_headline_names_the_strongest_baseline(colour, probe, strongest):
    guesses = {validation.COLOUR: wrong_on(range(colour)), validation.MAJORITY: np.zeros(60, int)}
    guesses[validation.PROBE] = wrong_on(range(probe))
    scores = validation.evaluate_validation(LABELS, PROBS[LABELS], guesses)
    assert f"; the strongest baseline, {strongest}" in scores.summary()
    del guesses[validation.PROBE]
    without = validation.evaluate_validation(LABELS, PROBS[LABELS], guesses)
    assert "the strongest baseline, the mean colour, " in without.summary()


def test_the_probes_predictions_are_matched_by_path():
    table = pd.DataFrame({"path": ["c", "a", "b"], "predicted": ["tomato", "apple", "cherry"]})
    assert validation.probe_guess(table, ["a", "b", "c"], NAMES)[validation.PROBE].tolist() == [0, 1, 2]
    rows = validation.beside_baselines(
        validation.evaluate_validation(LABELS, PROBS[LABELS], guesses := with_probe()), LABELS, guesses, 3
    )
    assert list(rows)[2:4] == ["accuracy, frozen-features baseline", "macro-F1, frozen-features baseline"]
    assert rows["accuracy, frozen-features baseline"][0] == pytest.approx(50 / 60)


def with_probe() -> dict:
    guesses = {validation.COLOUR: wrong_on(range(50)), validation.MAJORITY: np.zeros(60, int)}
    return guesses | {validation.PROBE: wrong_on(range(10))}


@pytest.mark.parametrize("n", [1, 8])
def test_validation_photos_of_a_single_class_break_nothing(n):
    labels, probs = np.zeros(n, int), PROBS[np.zeros(n, int)]
    guesses = dict.fromkeys((validation.COLOUR, validation.MAJORITY, validation.PROBE), labels)
    scores = validation.evaluate_validation(labels, probs, guesses)
    assert (scores.probe_accuracy, scores.over_probe, scores.over_probe_p) == (1, 0, 1)
    lines = validation.learned_summary(labels, probs, guesses, NAMES).splitlines()
    assert "not significant on new photos: nothing shows" in lines[1]


# ---- folds


def pooled(repeats: int = 1, **changes) -> pd.DataFrame:
    """Pooled predictions of a combination: the network misses 2 photos, in a second repeat 4, the probe 20."""
    frames = []
    for repeat in range(1, repeats + 1):
        network, probe = wrong_on(range(2 * repeat)), wrong_on(range(20, 40))
        columns = {"combination": "lr=1", "repeat": repeat, "fold": LABELS % 2 + 1}
        columns |= {"path": [f"{photo}.png" for photo in range(60)]}
        named = {"label": LABELS, "predicted": network, "probe": probe}
        columns |= {name: np.array(NAMES)[values] for name, values in named.items()}
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True).assign(**changes)


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_combination_is_judged_on_all_photos(repeats, grouped):
    groups = {f"{photo}.png": GROUPS[photo] for photo in range(60)} if grouped else {}
    row = crossval.pooled_results(pooled(repeats), NAMES, groups).iloc[0]
    assert row["n"] == 60 and row["probe_accuracy"] == pytest.approx(40 / 60)
    assert row["over_probe"] == pytest.approx(row["accuracy"] - row["probe_accuracy"])
    assert row["over_probe_low"] < row["over_probe"] < row["over_probe_high"]
    single = baselines.beside_probe(LABELS, wrong_on(TWO), wrong_on(range(20, 40)), 3, GROUPS if grouped else None)
    assert row["probe_macro_f1"] == pytest.approx(single["probe_macro_f1"])
    if repeats == 1:
        assert row[list(single)].to_dict() == pytest.approx(single)
    elif not grouped:  # the same photos twice are no more evidence: twice as many would be far surer
        alone = significance.accuracy_difference(
            *(pooled(2)[name] == pooled(2)["label"] for name in ("probe", "predicted"))
        )
        assert row["over_probe_p"] > 10 * alone.p


@pytest.mark.parametrize("changes", [{"probe": ""}, {"probe": np.nan}, {"probe": "an unknown class"}])
def test_a_combination_without_all_probes_is_not_compared(changes):
    table = pooled(**changes)
    assert "probe_accuracy" not in crossval.pooled_results(table, NAMES, {})
    half = table.assign(probe=pooled()["probe"].where(LABELS > 0, table["probe"]))
    assert "probe_accuracy" not in crossval.pooled_results(half, NAMES, {})


# ---- a choice


BETTER = {"accuracy": 0.9, "macro_f1": 0.9, "probe_accuracy": 0.8, "probe_macro_f1": 0.8, "over_probe": 0.1}
BETTER |= {"over_probe_low": 0.02, "over_probe_high": 0.18, "over_probe_p": 0.01, "groups": 12}


@pytest.mark.parametrize(
    ("numbers", "is_probe", "candidates", "message", "missing"),
    [
        (BETTER, False, 1, "better on new groups", "picked"),
        (
            BETTER,
            False,
            8,
            "better on new groups; it was picked out of 8 by its results, which makes p too small",
            "none",
        ),
        (BETTER | {"over_probe_p": 0.5}, False, 8, "nothing shows that this run is worth more", "picked"),
        (BETTER | {"over_probe": -0.1}, False, 8, "frozen features are better on new groups", "picked"),
        ({"accuracy": 0.9}, True, 8, "is itself a logistic regression on frozen features", "Compared"),
    ],
)
def test_the_chosen_one_is_compared_in_one_line(numbers, is_probe, candidates, message, missing):
    text = sweep_answers.beside_probe_summary(numbers, is_probe, candidates)
    assert message in text and missing not in text and "\n" not in text


def test_a_chosen_run_that_nobody_compared_gets_no_line():
    assert sweep_answers.beside_probe_summary({"accuracy": 0.9}, False, 8) == ""
