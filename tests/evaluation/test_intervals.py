"""Intervals agree with other libraries where these have them, and hold what they say they hold."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.proportion import proportion_confint

from fruitlib.evaluation import crossval, intervals, metrics, wording
from tests.simulations import intervals as simulated
from tests.support import assert_table_in_docstring

few = st.integers(2, 12).flatmap(
    lambda groups: st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=groups, max_size=groups)
)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_statsmodels_s(fraction):
    wanted = proportion_confint(*fraction, method="wilson")
    assert metrics.wilson(*fraction) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("n", [10, 30, 100])
def test_wilson_s_coverage_averaged_over_p(n):
    """Exact, no simulation: the chance of every count times whether its interval holds p, over p from 0 to 1."""
    p, counts = np.linspace(0.0005, 0.9995, 1000), np.arange(n + 1)
    low, high = np.transpose([metrics.wilson(int(k), n) for k in counts])
    held = (low[:, None] <= p) & (p <= high[:, None])
    coverage = (scipy_stats.binom.pmf(counts[:, None], n, p) * held).sum(0)
    assert 0.945 < coverage.mean() < 0.96


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=40, deadline=None)
def test_photos_alone_have_wilson_s_interval_and_the_posterior_is_as_wide(fraction):
    """One function serves both: with every photo a group of its own the posterior comes out at Wilson's width."""
    correct, n = fraction
    right = np.arange(n) < correct
    share = intervals.share_of(right)
    assert (share.low, share.high) == metrics.wilson(correct, n) == (share.same_low, share.same_high)
    assert (share.groups, share.value) == (0, correct / n) and np.isnan(share.correlation)
    low, high, _ = intervals.new_group_interval(right.astype(float), np.ones(n))
    assert (low, high) == pytest.approx((share.low, share.high), abs=0.08 if n < 6 else 0.025)


@given(few)
@settings(max_examples=40, deadline=None)
def test_few_groups_say_less_than_their_photos(groups):
    """New groups are at least nearly as uncertain as more photos of the same ones, whatever the photos."""
    right = np.concatenate([np.arange(n) < min(k, n) for k, n in groups])
    names = np.repeat([f"g{i}" for i in range(len(groups))], [n for _, n in groups])
    share = intervals.share_of(right, names)
    assert 0 <= share.low <= share.value + 0.05 and share.value - 0.05 <= share.high <= 1
    if share.groups:
        assert share.groups == len(groups) and 0 < share.correlation < 1
        assert share.high - share.low > 0.75 * (share.same_high - share.same_low)


def test_photos_right_or_wrong_together_are_one_piece_of_evidence():
    groups = np.repeat([f"variety {i}" for i in range(8)], 120)
    share = intervals.share_of(np.repeat([1, 1, 1, 0, 1, 1, 1, 0], 120), groups)
    assert (
        share.groups == 8 and share.correlation > 0.6 and (share.same_low, share.same_high) == metrics.wilson(720, 960)
    )
    assert share.high - share.low > 6 * (share.same_high - share.same_low)
    text = wording.share_text(share, "variety")
    assert text.startswith("0.750 on new varieties (95 % interval 0.") and "; 8 varieties, 960 photos; on more" in text
    mixed = intervals.share_of([1, 1, 0, 1, 0], ["a", "a", "", "b", ""])
    assert mixed.groups == 4 and mixed.n == 5


def test_a_perfect_score_has_an_interval_and_a_class_with_one_group_has_none():
    labels = np.arange(30) % 3
    low, high = intervals.macro_f1_interval(labels, labels, 3)
    assert (low, high) == (pytest.approx(0.886, abs=0.002), 1.0)
    groups = [f"{label} {i // 15}" if label else "one" for i, label in enumerate(labels)]
    assert np.isnan(intervals.macro_f1_interval(labels, labels, 3, groups)).all()
    assert "a class has only one tree" in wording.macro_f1_text(1.0, np.nan, np.nan, "tree")
    assert np.isnan(intervals.macro_f1_interval([], [], 3)).all() and np.isnan(intervals.share_of([]).low)


def test_whole_groups_count_so_few_of_them_make_a_wide_interval_of_macro_f1():
    rng = np.random.default_rng(0)
    labels, groups = np.repeat([0, 1], 60), np.repeat([f"g{i}" for i in range(10)], 12)
    predicted = np.where(np.repeat(rng.random(10) < 0.3, 12), 1 - labels, labels)
    alone = intervals.macro_f1_interval(labels, predicted, 2)
    grouped = intervals.macro_f1_interval(labels, predicted, 2, groups)
    assert grouped[1] - grouped[0] > 2 * (alone[1] - alone[0])


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_the_slope_of_macro_f1_is_its_derivative(seed):
    matrix = np.random.default_rng(seed).integers(0, 9, (3, 3)) + np.eye(3)
    slope, step, claimed = intervals.f1_slope(matrix), 1e-6, matrix.sum(0)
    for true, predicted in np.ndindex(3, 3):
        moved = matrix.copy()
        moved[true, predicted] += step
        f1 = 2 * np.diag(moved) / (matrix.sum(1) + moved.sum(0))  # photos per class fixed
        before = 2 * np.diag(matrix) / (matrix.sum(1) + claimed)
        assert slope[true, predicted] == pytest.approx((f1.mean() - before.mean()) / step, abs=1e-4)


def test_who_the_new_photos_are_is_said():
    assert "stand alone" in wording.population_text(["", "", ""])
    named = wording.population_text(["gala", "gala", "fuji"], "variety")
    assert "photos of new varieties: these 3 photos come in 2 varieties, and" in named and "looks" not in named
    looks = wording.population_text(["near/a.jpg", "near/a.jpg", ""])
    assert "1 group or stand alone (1, each counts as one)" in looks and "found by looks alone" in looks
    assert wording.new_text(["gala", "gala"], "variety") == "new varieties"
    assert wording.new_text(["gala", ""], "variety") == "new photos"
    words = {"variety": "varieties", "day": "days", "box": "boxes", "patient": "patients"}
    assert {word: wording.plural_of(word) for word in words} == words


# ---- coverage: short runs of the simulations behind the docstrings' tables (`make coverage` has the long ones)


@pytest.mark.parametrize(
    ("function", "table", "times"),
    [
        (intervals.share_of, simulated.shares_table, 150),
        (intervals.share_of, simulated.same_groups_table, 150),
        (intervals.macro_f1_interval, simulated.macro_f1_table, 150),
        (intervals.macro_f1_interval, simulated.macro_f1_groups_table, 150),
        (crossval.pooled_results, simulated.folds_table, 150),
    ],
)
def test_coverage_is_what_the_docstring_says(function, table, times):
    assert_table_in_docstring(function, table(times), times)


@pytest.mark.parametrize("table", ["new groups", "even", "uneven"])
def test_every_printed_coverage_is_near_95(table):
    """The full run's figures, as published: from 0.93 to 0.97."""
    text = intervals.share_of.__doc__ + intervals.macro_f1_interval.__doc__
    rows = [line.split(table)[1].split() for line in text.splitlines() if line.strip().startswith(table)]
    assert rows and all(0.93 <= float(number) <= 0.97 for row in rows for number in row)


def test_groups_are_listed_worst_first():
    table = pd.DataFrame({"label": list("aabbbcd"), "predicted": list("aabbacd")})
    found = intervals.accuracy_by_group(table, ["g", "g", "h", "h", "h", "", "lone"])
    assert found.index.tolist() == ["h", "g"] and found["right"].tolist() == [2, 2] and found["n"].tolist() == [3, 2]
