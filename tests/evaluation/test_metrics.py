"""Metrics against scikit-learn, intervals against their definition."""

import math

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from fruitlib.evaluation import intervals, metrics, wording
from fruitlib.evaluation.prediction_tables import mistakes

LOGITS = np.array([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [-2.0, 1.0, 4.0]])
LABELS = np.array([0, 2, 1])


answers = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)


@settings(max_examples=80, deadline=None)
@given(answers)
def test_counts_and_rates_agree_with_scikit_learn(pairs):
    labels, predicted = map(np.array, zip(*pairs, strict=True))
    matrix = metrics.confusion_matrix(labels, predicted, 4)
    assert np.array_equal(matrix, sklearn.metrics.confusion_matrix(labels, predicted, labels=range(4)))
    counts = metrics.counts(matrix)
    reference = sklearn.metrics.multilabel_confusion_matrix(labels, predicted, labels=range(4))
    for c in range(4):
        assert [counts[k][c] for k in ("tn", "fp", "fn", "tp")] == reference[c].ravel().tolist()
    present = sorted(set(labels.tolist()))
    kwargs = {"labels": present, "average": "macro", "zero_division": 0}
    summary = metrics.scores(matrix)
    assert math.isclose(summary["macro_f1"], sklearn.metrics.f1_score(labels, predicted, **kwargs))
    assert math.isclose(summary["macro_precision"], sklearn.metrics.precision_score(labels, predicted, **kwargs))
    assert math.isclose(summary["macro_recall"], sklearn.metrics.recall_score(labels, predicted, **kwargs))
    assert math.isclose(summary["accuracy"], sklearn.metrics.accuracy_score(labels, predicted))


def test_rates_by_hand_and_undefined_ones():
    rates = metrics.rates(np.array([[8, 2, 0], [1, 9, 0], [3, 2, 0]]))
    assert rates["precision"][:2] == pytest.approx([8 / 12, 9 / 13]) and math.isnan(rates["precision"][2])
    assert rates["miss_rate"] == pytest.approx([0.2, 0.1, 1.0])
    assert rates["f1"][2] == 0


def test_names_become_indexes_in_the_given_order():
    matrix = metrics.confusion_from_names(["b", "a", "b"], ["a", "a", "b"], ["b", "a"])
    assert matrix.tolist() == [[1, 1], [0, 1]]


@pytest.mark.parametrize(("correct", "n"), [(27, 30), (0, 10), (30, 30), (1, 2), (500, 1000)])
def test_wilson_is_where_the_score_test_just_rejects(correct, n):
    z = 1.959963984540054
    for bound in metrics.wilson(correct, n):
        if 0 < bound < 1:
            assert abs(correct / n - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), rel=1e-6)
    assert metrics.wilson(0, 10)[0] == 0 and metrics.wilson(30, 30)[1] == 1


def test_the_founding_example():
    assert wording.share_text(intervals.share_of(np.arange(30) < 27)) == "0.900 (95 % interval 0.74–0.97, n = 30)"


def test_wilson_of_a_share_that_is_worth_fewer_photos_is_wider():
    assert metrics.wilson_share(0.9, 30) == metrics.wilson(27, 30)
    low, high = metrics.wilson_share(0.9, 7.5)
    assert low < metrics.wilson(27, 30)[0] and high > metrics.wilson(27, 30)[1]
    assert metrics.wilson_share(0.9, 30, 3.0)[0] < metrics.wilson(27, 30)[0]
    assert np.isnan(metrics.wilson_share(0.9, 0)).all() and np.isnan(metrics.wilson_share(np.nan, 9)).all()


def test_log_loss_agrees_with_scikit_learn():
    probs = metrics.softmax(LOGITS)
    assert probs.sum(1) == pytest.approx(np.ones(3))
    expected = sklearn.metrics.log_loss(LABELS, probs, labels=[0, 1, 2])
    assert metrics.log_loss(probs, LABELS) == pytest.approx(expected)


def test_mistakes_come_most_confident_first():

    rows = [("a", "bar", "bar", 0.1, 0.9), ("b", "bar", "disc", 0.6, 0.4), ("c", "disc", "bar", 0.2, 0.8)]
    table = pd.DataFrame(rows, columns=["path", "label", "predicted", "p_disc", "p_bar"])
    assert mistakes(table)[["path", "confidence"]].values.tolist() == [["c", 0.8], ["b", 0.6]]
