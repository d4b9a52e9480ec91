"""Intervals: they agree with scikit-learn, SciPy and statsmodels, and hold what they say they hold."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from sklearn.metrics import accuracy_score, f1_score
from statsmodels.stats.proportion import proportion_confint

from fruitlib.evaluation import intervals, metrics, selection

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


def test_choosing_among_equals_is_optimistic_and_a_lone_run_is_not():
    rng = np.random.default_rng(5)
    labels = np.arange(30) % 3
    equals = rng.random((30, 20)) < 0.8
    found = selection.selection_optimism(equals, labels)
    assert 0.02 < found.points < 0.15 and found.honest == pytest.approx(found.best - found.points)
    assert (found.candidates, found.photos) == (20, 30)
    alone = selection.selection_optimism(equals[:, :1], labels)
    assert abs(alone.points) < 0.01 and not alone.measured
    better = np.column_stack([np.ones(30, bool), rng.random((30, 5)) < 0.5])
    assert selection.selection_optimism(better, labels).points < 0.005


def test_groups_are_listed_worst_first():
    table = pd.DataFrame({"label": list("aabbbcd"), "predicted": list("aabbacd")})
    found = intervals.accuracy_by_group(table, ["g", "g", "h", "h", "h", "", "lone"])
    assert found.index.tolist() == ["h", "g"] and found["right"].tolist() == [2, 2] and found["n"].tolist() == [3, 2]
