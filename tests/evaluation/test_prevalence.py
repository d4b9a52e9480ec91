"""Other class shares: the reweighted matrix, the moved prior, whose shares they are."""

import numpy as np
import pytest

from fruitlib.core.errors import InputError
from fruitlib.data import balance
from fruitlib.evaluation import prevalence, run_wording

NAMES = ["apple", "cherry", "tomato"]
MATRIX = np.array([[9, 1, 0], [1, 8, 1], [2, 0, 8]])
USED = np.array([0.45, 0.45, 0.1])


def rows_of(matrix):
    """Labels and predicted of a confusion matrix."""
    cells = [(i, j) for i, row in enumerate(matrix) for j, count in enumerate(row) for _ in range(count)]
    return np.array(cells).T


def test_a_reweighted_matrix_is_arithmetic():
    found = prevalence.at_shares(MATRIX, USED)
    assert found.accuracy == pytest.approx(0.45 * 0.9 + 0.45 * 0.8 + 0.1 * 0.8)
    assert found.precision[2] == pytest.approx(0.1 * 0.8 / (0.1 * 0.8 + 0.45 * 0.1))
    assert found.matrix.sum() == pytest.approx(1)
    table = prevalence.precision_table(MATRIX, USED, NAMES)
    assert table.loc["tomato", "precision at equal shares"] == pytest.approx(0.889)
    assert table.loc["tomato", "precision where used"] == pytest.approx(0.64)
    assert table["recall"].tolist() == [0.9, 0.8, 0.8]


def test_a_class_without_photos_has_no_part():
    found = prevalence.at_shares(np.array([[9, 1, 0], [2, 8, 0], [0, 0, 0]]), USED)
    assert found.accuracy == pytest.approx(0.85) and np.isnan(found.precision[2])


def test_weights_give_each_class_its_share():
    labels, predicted = rows_of(MATRIX)
    weights = prevalence.photo_weights(labels, USED)
    assert weights.mean() == pytest.approx(1)
    assert np.bincount(labels, weights) / len(labels) == pytest.approx(USED)
    assert np.average(labels == predicted, weights=weights) == pytest.approx(
        prevalence.at_shares(MATRIX, USED).accuracy
    )


def test_accuracy_has_an_interval_that_groups_widen():
    labels, predicted = rows_of(5 * MATRIX)
    alone = prevalence.accuracies(labels, predicted, USED)
    groups = [f"{label}-{place // 10}" for place, label in enumerate(labels)]
    grouped = prevalence.accuracies(labels, predicted, USED, groups)
    assert alone.equal == pytest.approx(25 / 30) and alone.used == grouped.used == pytest.approx(0.845)
    assert grouped.low < alone.low < alone.used < alone.high < grouped.high
    assert "0.83 at equal class shares; 0.85 (95 %" in run_wording.shares_text(alone, USED, NAMES)
    perfect = prevalence.accuracies(labels, labels, USED)
    assert perfect.low < 1 == perfect.high


def test_a_prior_is_moved_there_and_back():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(3), 20)
    equal = np.full(3, 1 / 3)
    moved = prevalence.to_prior(probs, USED, equal)
    assert moved.sum(1) == pytest.approx(np.ones(20))
    by_hand = probs[0] / USED
    assert moved[0] == pytest.approx(by_hand / by_hand.sum())
    assert prevalence.to_prior(moved, equal, USED) == pytest.approx(probs)


def shifted(n: int, groups: int = 0, seed: int = 0):
    """A network that knows its features exactly, trained on uneven shares, on as many photos of each class."""
    rng, labels = np.random.default_rng(seed), np.arange(n) % 3
    logits = 1.5 * (1.5 * np.eye(3)[labels] + rng.normal(0, 1, (n, 3))) + np.log([0.48, 0.48, 0.04])
    return labels, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_equal_shares_are_a_gain_where_it_is_proven():
    prior = np.array([0.48, 0.48, 0.04])
    found = prevalence.prior_shift(*shifted(600), prior)
    assert found.recommended and found.after > found.before + 0.03 and found.better > found.worse
    assert f"{found.better} photos better, {found.worse} worse" in run_wording.prior_shift_text(found)
    assert "a free gain" in run_wording.prior_shift_text(found)
    few = prevalence.prior_shift(*shifted(12), prior)
    assert not few.recommended and "no proven difference" in run_wording.prior_shift_text(few)
    five = prevalence.prior_shift(*shifted(600), prior, [f"g{i % 5}" for i in range(600)])
    assert not five.recommended and five.p >= 2 / 2**5  # five groups cannot prove it
    same = prevalence.prior_shift(*shifted(60), np.full(3, 1 / 3))
    assert same.better == same.worse == 0 and same.p == 1 and "no prior to move" in run_wording.prior_shift_text(same)


def test_shares_where_used_are_set_or_those_of_the_folder(make_run):
    run = make_run()
    usable = run.manifest[run.manifest["status"].isin(["ok", "sealed"])]
    counts = usable["label"].value_counts()[run.class_names].to_numpy()
    assert prevalence.deploy_shares(run) == pytest.approx(counts / counts.sum())
    names = run.class_names
    run = make_run("set", deploy_shares={names[0]: 6, names[1]: 3, names[2]: 1})
    assert prevalence.deploy_shares(run) == pytest.approx([0.6, 0.3, 0.1])
    with pytest.raises(InputError, match=f"class {names[2]} has no share; give one share for each of"):
        prevalence.deploy_shares(make_run("few", deploy_shares={names[0]: 1, names[1]: 1}))
    with pytest.raises(InputError, match="no class is called pear"):
        prevalence.deploy_shares(make_run("other", deploy_shares={"pear": 1}))


def test_what_training_taught_follows_the_balance(make_run):
    assert set(prevalence.EQUALISING) | {"none", "augment_to"} == set(balance.METHODS)
    run = make_run(train_share=0.5)
    counts = run.rows("train")["label"].value_counts()[run.class_names].to_numpy()
    assert prevalence.training_prior(run) == pytest.approx(counts / counts.sum())
    assert prevalence.training_prior(make_run("equal", balance="oversample")) == pytest.approx(np.full(3, 1 / 3))
    lifted = make_run("lifted", balance="augment_to", augment_to=1000)
    assert prevalence.training_prior(lifted) == pytest.approx(np.full(3, 1 / 3))
