"""Intervals and paired tests: they agree with scikit-learn, SciPy and statsmodels, and hold what they say they hold."""

from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from sklearn.metrics import accuracy_score, f1_score
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

from fruitlib.core.errors import InputError
from fruitlib.evaluation import intervals, metrics, significance, wording

CLASSES = 3
pairs = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), min_size=4, max_size=60)


@given(pairs)
@settings(max_examples=60, deadline=None)
def test_statistics_of_sums_are_scikit_learn_s(rows):
    labels, a, _ = np.transpose(rows)
    sums = intervals.confusion_cells(labels, a, CLASSES).sum(0)[None]
    assert intervals.accuracy_of_sums(sums, CLASSES)[0] == pytest.approx(accuracy_score(labels, a))
    wanted = f1_score(labels, a, average="macro", labels=np.unique(labels), zero_division=0)
    assert intervals.macro_f1_of_sums(sums, CLASSES)[0] == pytest.approx(wanted)


@given(pairs)
@settings(max_examples=60, deadline=None)
def test_mcnemar_is_the_binomial_test_of_those_that_disagree(rows):
    labels, a, b = np.transpose(rows)
    found = significance.mcnemar(a == labels, b == labels)
    n = found["only_a"] + found["only_b"]
    wanted = scipy_stats.binomtest(found["only_a"], n, 0.5).pvalue if n else 1.0
    assert found["p"] == pytest.approx(wanted)


def test_at_least_six_on_one_side_are_needed():
    right, wrong = np.ones(30, bool), np.ones(30, bool)
    wrong[:6] = False
    assert significance.mcnemar(right, wrong)["p"] < 0.05
    wrong[0] = True
    assert significance.mcnemar(right, wrong)["p"] > 0.05


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


def macro_f1_claim(n: int):
    """One simulated test set of three even classes; whether the interval of its macro-F1 holds the true one."""

    def claim(rng: np.random.Generator) -> bool | None:
        labels, right = np.arange(n) % CLASSES, rng.uniform(0.7, 0.95, CLASSES)
        chances = np.stack([np.insert(rng.dirichlet([1, 1]) * (1 - p), c, p) for c, p in enumerate(right)])
        predicted = np.array([rng.choice(CLASSES, p=chances[c]) for c in labels])
        truth = intervals.macro_f1_of_sums((chances * np.bincount(labels)[:, None]).reshape(1, -1), CLASSES)[0]
        sums = intervals.bootstrap_sums(
            intervals.confusion_cells(labels, predicted, CLASSES), labels, draws=400, seed=rng.integers(1 << 30)
        )
        low, high = intervals.percentile_interval(intervals.macro_f1_of_sums(sums, CLASSES))
        return None if np.isnan(low) else bool(low <= truth <= high)

    return claim


@pytest.mark.parametrize(("n", "published", "made"), [(10, 0.95, 0.82), (30, 0.91, 0.99)])
def test_the_bootstrap_holds_as_often_as_its_docstring_says(n, published, made):
    times = 600
    rng = np.random.default_rng(1)
    made_claims = [held for held in (macro_f1_claim(n)(rng) for _ in range(times)) if held is not None]
    coverage, claims = np.mean(made_claims), len(made_claims)
    assert coverage == pytest.approx(published, abs=0.035)  # three standard errors
    assert claims / times == pytest.approx(made, abs=0.05)
    assert f"{published}" in intervals.macro_f1_interval.__doc__


def test_whole_groups_are_drawn_so_few_groups_make_a_wide_interval():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 60)
    groups = [f"g{i // 12}" for i in range(120)]
    wrong = np.repeat(rng.random(10) < 0.3, 12)
    predicted = np.where(wrong, 1 - labels, labels)
    alone = intervals.macro_f1_interval(labels, predicted, 2)
    grouped = intervals.macro_f1_interval(labels, predicted, 2, groups)
    assert grouped[1] - grouped[0] > 2 * (alone[1] - alone[0])
    sums = intervals.bootstrap_sums(np.ones((120, 1)), labels, groups, draws=50)
    assert (sums == 120).all()  # groups of equal size: every draw has as many photos


def test_every_class_keeps_its_photos():
    labels = np.array([0] * 20 + [1] * 3)
    sums = intervals.bootstrap_sums(np.eye(2)[labels], labels, draws=200)
    assert (sums == [20, 3]).all()


def test_where_nothing_is_wrong_no_interval_is_claimed():
    labels = np.arange(30) % 3
    assert np.isnan(intervals.macro_f1_interval(labels, labels, 3)).all()
    assert intervals.value_with_interval(1.0, np.nan, np.nan) == "1.000"


def test_the_same_photos_are_drawn_for_both():
    """What both find hard cancels: paired, a small steady gain is significant; apart, it would not be."""
    rng = np.random.default_rng(3)
    labels = np.arange(300) % 3
    a = np.where(rng.random(300) < 0.4, (labels + 1) % 3, labels)
    b = np.where((a != labels) & (rng.random(300) < 0.15), labels, a)
    difference, low, high = significance.paired_difference(labels, a, b, 3)["accuracy"]
    assert difference == pytest.approx((b == labels).mean() - (a == labels).mean()) and 0 < low < difference < high
    _, a_high = intervals.percentile_interval(
        intervals.accuracy_of_sums(intervals.bootstrap_sums(intervals.confusion_cells(labels, a, 3), labels), 3)
    )
    b_low, _ = intervals.percentile_interval(
        intervals.accuracy_of_sums(intervals.bootstrap_sums(intervals.confusion_cells(labels, b, 3), labels), 3)
    )
    assert b_low < a_high
    assert np.isnan(significance.paired_difference(labels, a, a, 3)["macro_f1"][1])
    assert "cannot tell" in wording.difference_text(0.1, -0.1, 0.3, "x")
    assert "tell" not in wording.difference_text(0.1, 0.05, 0.3, "x")


pairs = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=12)


@settings(max_examples=50, deadline=None)
@given(pairs)
def test_the_interval_of_a_gain_is_the_paired_t_tests(values):
    a, b = np.array(values).T
    found = significance.paired_gain(a, b)
    assert found["gain"] == pytest.approx((b - a).mean()) and found["n"] == len(a)
    if (b - a).std() > 1e-6:
        low, high = scipy_stats.ttest_rel(b, a).confidence_interval(0.95)
        assert (found["low"], found["high"]) == (pytest.approx(low), pytest.approx(high))


def test_one_pair_has_no_interval_and_unequal_lists_no_pairs():
    assert np.isnan(significance.paired_gain([0.5], [0.6])["low"])
    with pytest.raises(InputError, match="2 and 1 numbers"):
        significance.paired_gain([0.5, 0.6], [0.7])


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


@pytest.mark.parametrize("effect", [0.3, 0.5, 1.0, 2.0])
def test_pairs_needed_agrees_with_statsmodels_power(effect):
    differences = np.array([-1.0, 0.0, 1.0]) + effect  # mean: effect, standard deviation: 1
    wanted = TTestPower().solve_power(effect, power=0.8, alpha=0.05)
    assert significance.pairs_needed(differences) == pytest.approx(wanted, abs=1.1)
    assert significance.pairs_needed([1.0]) is None and significance.pairs_needed([1.0, -1.0]) is None


def test_groups_are_listed_worst_first():
    table = pd.DataFrame({"label": list("aabbbcd"), "predicted": list("aabbacd")})
    found = intervals.accuracy_by_group(table, ["g", "g", "h", "h", "h", "", "lone"])
    assert found.index.tolist() == ["h", "g"] and found["right"].tolist() == [2, 2] and found["n"].tolist() == [3, 2]
