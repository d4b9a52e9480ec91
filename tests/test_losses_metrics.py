"""Losses against their papers' equations, metrics against scikit-learn, intervals against their definition."""

import math

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fruitlib import config, losses, metrics

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [-2.0, 1.0, 4.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 2, 1])


def test_focal_is_equation_4_of_lin_et_al():
    p_t = LOGITS.softmax(1)[torch.arange(3), LABELS]
    for gamma in (0.0, 1.0, 2.0, 5.0):
        expected = -((1 - p_t) ** gamma) * p_t.log()
        torch.testing.assert_close(losses.focal(LOGITS, LABELS, gamma), expected)
    torch.testing.assert_close(losses.focal(LOGITS, LABELS, 0.0), F.cross_entropy(LOGITS, LABELS, reduction="none"))


def test_focal_stays_finite_where_the_model_is_certain():
    certain = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    loss = losses.focal(certain, torch.tensor([0, 0]))
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(certain.grad).all()


def test_mix_runs_from_cross_entropy_to_focal():
    ce, focal = losses.cross_entropy(LOGITS, LABELS), losses.focal(LOGITS, LABELS, 3.0)
    for ratio in (0.0, 0.25, 1.0):
        knobs = {"loss": "mix", "focal_ratio": ratio, "focal_gamma": 3.0}
        found = losses.build(config.make(knobs))(LOGITS, LABELS)
        torch.testing.assert_close(found, (1 - ratio) * ce + ratio * focal)
    torch.testing.assert_close(losses.build(config.make({"loss": "ce"}))(LOGITS, LABELS), ce)
    torch.testing.assert_close(losses.build(config.make({"loss": "focal", "focal_gamma": 3.0}))(LOGITS, LABELS), focal)


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
    summary = metrics.summary(matrix)
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
    matrix = metrics.from_labels(["b", "a", "b"], ["a", "a", "b"], ["b", "a"])
    assert matrix.tolist() == [[1, 1], [0, 1]]


@pytest.mark.parametrize(("correct", "n"), [(27, 30), (0, 10), (30, 30), (1, 2), (500, 1000)])
def test_wilson_is_where_the_score_test_just_rejects(correct, n):
    z = 1.959963984540054
    for bound in metrics.wilson(correct, n):
        if 0 < bound < 1:
            assert abs(correct / n - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), rel=1e-6)
    assert metrics.wilson(0, 10)[0] == 0 and metrics.wilson(30, 30)[1] == 1


def test_the_founding_example():
    assert metrics.proportion(27, 30) == "0.900 (95 % CI 0.74–0.97, n = 30)"


def test_log_loss_agrees_with_scikit_learn():
    probs = metrics.softmax(LOGITS.numpy())
    assert probs.sum(1) == pytest.approx(np.ones(3))
    expected = sklearn.metrics.log_loss(LABELS.numpy(), probs, labels=[0, 1, 2])
    assert metrics.log_loss(probs, LABELS.numpy()) == pytest.approx(expected)


def test_class_weights_are_torchs():
    weights = torch.tensor([0.5, 2.0, 1.2], dtype=torch.float64)
    found = losses.build(config.make({"loss": "ce"}), weights)(LOGITS, LABELS)
    torch.testing.assert_close(found, torch.nn.CrossEntropyLoss(weight=weights, reduction="none")(LOGITS, LABELS))
    plain = losses.build(config.make({"loss": "focal"}))(LOGITS, LABELS)
    weighted = losses.build(config.make({"loss": "focal"}), weights)(LOGITS, LABELS)
    torch.testing.assert_close(weighted, plain * torch.tensor([0.5, 1.2, 2.0], dtype=torch.float64))
