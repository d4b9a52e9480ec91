"""Paired tests and intervals: they agree with SciPy, statsmodels and counting, and hold what they say they hold."""

import itertools
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from sklearn.metrics import f1_score
from statsmodels.stats.multitest import multipletests

from fruitlib.core.errors import InputError
from fruitlib.evaluation import intervals, significance, wording
from tests.simulations import two_runs


def sides(only_a: int, only_b: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether A and B are right on n photos, so many on one side only."""
    a, b = np.ones(n, bool), np.ones(n, bool)
    b[:only_a], a[only_a : only_a + only_b] = False, False
    return a, b


# ---------------------------------------------------------------- photos alone


@given(st.integers(0, 25), st.integers(0, 25))
@settings(max_examples=60, deadline=None)
def test_mid_p_is_the_binomial_test_less_half_of_what_was_seen(only_a, only_b):
    differ = only_a + only_b
    exact = scipy_stats.binomtest(only_a, differ).pvalue if differ else 1.0
    wanted = 1.0 if only_a == only_b else exact - scipy_stats.binom.pmf(only_a, differ, 0.5)
    assert significance.mid_p(only_a, only_b) == pytest.approx(wanted)


def test_at_least_five_on_one_side_are_needed():
    assert significance.mid_p(4, 0) > 0.05 > significance.mid_p(5, 0)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 100))
@settings(max_examples=60, deadline=None)
def test_tango_s_interval_holds_the_differences_that_the_score_test_accepts(only_a, only_b, both):
    """The test written out: the constrained estimate by search instead of the root of the likelihood's derivative."""
    n = only_a + only_b + both
    low, high = significance.tango_interval(only_a, only_b, n)
    assert low <= (only_b - only_a) / n <= high

    def z(difference: float) -> float:
        shares = np.linspace(max(0, -difference), (1 - difference) / 2, 40_001)[1:-1]  # that only A is right
        likelihood = only_a * np.log(shares) + only_b * np.log(shares + difference)
        likelihood += both * np.log(np.maximum(1 - 2 * shares - difference, 1e-300))
        share = shares[likelihood.argmax()]
        return (only_b - only_a - n * difference) / np.sqrt(n * (2 * share + difference - difference**2))

    for end, wanted in ((low, 1.96), (high, -1.96)):
        if -0.99 < end < 0.99:
            assert z(end) == pytest.approx(wanted, abs=0.02)


@pytest.mark.parametrize(("n", "lost", "difference"), [(12, 0.1, 0.3), (30, 0.05, 0.2)])
def test_the_power_counts_every_outcome(n, lost, difference):
    power = 0.0
    for only_a, only_b in itertools.product(range(n + 1), repeat=2):
        if only_a + only_b <= n and significance.mid_p(only_a, only_b) < 0.05:
            chances = [lost, lost + difference, 1 - 2 * lost - difference]
            power += scipy_stats.multinomial.pmf([only_a, only_b, n - only_a - only_b], n, chances)
    assert significance.mid_p_power(n, lost, difference) == pytest.approx(power, abs=1e-6)


@pytest.mark.parametrize(("n", "lost", "points"), [(30, 0, 27), (30, 1, 32), (100, 2, 11), (300, 8, 5.4)])
def test_the_detectable_difference_is_found_in_four_of_five(n, lost, points):
    found = significance.detectable_alone(lost, lost + 1, n)
    assert significance.mid_p_power(n, (lost + 1) / (n + 2), found) == pytest.approx(0.8, abs=0.001)
    assert 100 * found == pytest.approx(points, abs=0.3)


def test_ten_photos_find_nothing_reliably():
    found = significance.accuracy_difference(*sides(0, 2, 10))
    assert np.isnan(found.detectable)
    assert "With 10 photos no difference, however large" in wording.difference_text(found)


# ---------------------------------------------------------------- groups


def grouped(seed: int, sizes: np.ndarray):
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(sizes)), sizes)
    a = rng.random(len(group)) < 0.8
    b = rng.random(len(group)) < rng.beta(3, 1, len(sizes))[group]
    return a, b, group, [f"g{one}" for one in group]


@pytest.mark.parametrize("groups", [6, 8, 18])
def test_in_groups_of_one_size_it_is_the_one_sample_t_and_all_patterns_of_signs(groups):
    a, b, group, names = grouped(groups, np.full(groups, 20))
    found = significance.accuracy_difference(a, b, names)
    means = np.bincount(group, b.astype(float) - a) / 20
    low, high = scipy_stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert found.value == pytest.approx(means.mean())
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.p == pytest.approx(
        scipy_stats.permutation_test(
            (means,), np.mean, permutation_type="samples", vectorized=True, n_resamples=9999, rng=0
        ).pvalue,
        abs=0.015,
    )
    assert (found.units, found.groups, found.n) == (groups, groups, 20 * groups)


def test_degrees_of_freedom_are_those_of_the_quadratic_form():
    """Against the matrix itself; and where one of eight groups has most photos, far fewer than seven are left."""
    weight = np.array([60, 10, 10, 20, 5, 5, 10, 10]) / 130
    d = np.eye(8) - weight
    form = (d.T * weight**2 / (1 - weight)) @ d
    correction, degrees = significance._unlike_sizes(weight)
    assert correction == pytest.approx((weight**2).sum() / np.trace(form))
    assert degrees == pytest.approx(np.trace(form) ** 2 / np.trace(form @ form)) and degrees < 3.5
    assert significance._unlike_sizes(np.full(9, 1 / 9)) == (pytest.approx(1), pytest.approx(8))


def test_few_photos_that_differ_do_not_make_groups_alike():
    """One photo of forty differs, then none: nothing is surer than if the photos stood alone."""
    pairs = [f"g{i // 2}" for i in range(40)]
    for differ in (0, 1):
        found, alone = (significance.accuracy_difference(*sides(0, differ, 40), groups) for groups in (pairs, None))
        assert (found.low, found.high, found.detectable) == (alone.low, alone.high, alone.detectable)
        assert found.p == 1


def test_fewer_than_six_groups_tell_nothing_and_six_must_agree():
    a, b, _, names = grouped(0, np.full(5, 30))
    found = significance.accuracy_difference(a, b, names)
    assert found.too_few and not found.significant and np.isnan([found.low, found.p, found.detectable]).all()
    text = wording.difference_text(found, group_word="variety")
    assert text.endswith("5 varieties are too few to tell (at least six are needed)") and "interval" not in text
    six = significance.accuracy_difference(a, b, [f"g{i % 6}" for i in range(150)])
    assert not six.too_few and np.isnan(six.detectable) and np.isfinite(six.low)
    assert "With 6 days only a difference that every one of them shows" in wording.detectable_text(six, "day")


def test_a_verdict_says_of_what_it_speaks():
    a, b = sides(0, 20, 80)
    names = [f"near/{i // 4}" if i < 72 else "" for i in range(80)]  # a fruit or two in each group, and eight alone
    found = significance.accuracy_difference(a, b, names)
    assert (found.units, found.groups) == (26, 18) and not found.significant
    text = wording.difference_text(found, group_word="variety", by_looks=intervals.found_by_looks(names))
    assert "on new varieties (18 varieties and 8 photos alone)" in text and "found by looks only" in text
    assert "not significant" in text and "would be found in four of five such comparisons" in text
    assert not intervals.found_by_looks(["near/1", "Golden"]) and not intervals.found_by_looks(["", ""])
    alone = significance.accuracy_difference(a, b)
    assert "the network is better on new photos" in wording.difference_text(alone, ("the mean colour", "the network"))


# ---------------------------------------------------------------- macro-F1


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), min_size=4, max_size=60))
@settings(max_examples=40, deadline=None)
def test_the_macro_f1_difference_is_scikit_learn_s_and_turns_round(rows):
    labels, a, b = np.transpose(rows)
    f1 = [f1_score(labels, side, average="macro", labels=np.unique(labels), zero_division=0) for side in (a, b)]
    value, low, high = significance.macro_f1_difference(labels, a, b, 3)
    assert value == pytest.approx(f1[1] - f1[0]) and low < value < high
    assert significance.macro_f1_difference(labels, b, a, 3) == pytest.approx((-value, -high, -low))


def test_macro_f1_has_no_interval_with_few_groups_or_a_single_one_of_a_class():
    labels = np.repeat([0, 1], 30)
    a, b = labels.copy(), labels.copy()
    a[[0, 9, 19, 33, 52]] = 1 - a[[0, 9, 19, 33, 52]]
    five, single = [f"g{i // 12}" for i in range(60)], [f"g{i // 5}" if i < 30 else "one" for i in range(60)]
    ten = [f"g{i // 6}" for i in range(60)]
    for groups, there in ((five, False), (single, False), (ten, True)):
        assert np.isfinite(significance.macro_f1_difference(labels, a, b, 2, groups)[1]) == there


# ---------------------------------------------------------------- simulated


def test_false_alarms_coverage_and_power_are_as_promised():
    """`table` with few repetitions: bounds of the full run with three standard errors to spare."""
    times = 30
    found = two_runs.table(times)
    error = 3 * np.sqrt(0.05 * 0.95 / times)
    assert (found["false alarms"] <= 0.06 + error).all()
    assert (found[["accuracy covered", "macro-F1 covered"]] >= 0.95 - error / np.sqrt(2)).all(axis=None)
    named = found["found, of named"].dropna()
    assert len(named) == 6 and (named > 0.75 - 3 * np.sqrt(0.25 * 0.75 / times)).all()


# ---------------------------------------------------------------- runs of a sweep


@given(st.lists(st.floats(-1, 1).filter(lambda v: abs(v) > 1e-3), min_size=2, max_size=9, unique=True))
@settings(max_examples=30, deadline=None)
def test_sign_flip_counts_all_patterns(values):
    values = np.array(values)
    signs = np.array(np.meshgrid(*[[-1, 1]] * len(values))).reshape(len(values), -1)
    means = np.abs((values[:, None] * signs).mean(0))
    share = (means >= abs(values.mean()) - 1e-12).mean()
    assert significance.sign_flip(values) == pytest.approx(share, abs=1e-9)


def test_sign_flip_of_too_few_cannot_tell_and_of_none_is_refused():
    assert significance.sign_flip([0.5] * 5) > 0.05 > significance.sign_flip([0.5] * 6)
    assert significance.sign_flip([0.0, 0.0, 0.0]) == 1.0 and significance.sign_flip([3.0]) == 1.0
    with pytest.raises(InputError, match="no differences"):
        significance.sign_flip([])


@given(st.lists(st.floats(0, 1), max_size=12))
@settings(max_examples=40, deadline=None)
def test_holm_is_statsmodels_s(p_values):
    with mock.patch("gc.collect"):  # statsmodels calls it each time: a second, in a process as large as this
        wanted = multipletests(p_values, method="holm")[1] if p_values else []
    np.testing.assert_allclose(significance.holm(p_values), wanted)
