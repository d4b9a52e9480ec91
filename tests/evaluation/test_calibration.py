"""Calibration, thresholds and baselines: they recover what was planted, and scikit-learn agrees."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from fruitlib.evaluation import baselines, calibration, intervals, metrics, prevalence, run_wording
from fruitlib.reporting import metrics_figures
from tests.simulations import calibration as simulation

FEW = 10  # repetitions of the simulation


def drawn(n: int, sharper: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that were right before they were sharpened, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, 3))
    honest = metrics.softmax(logits)
    return metrics.softmax(logits * sharper), np.array([rng.choice(3, p=p) for p in honest])


def test_ece_is_the_definition():
    probs = np.array([[0.95, 0.05], [0.92, 0.08], [0.35, 0.65], [0.38, 0.62]])
    labels = np.array([0, 1, 1, 1])
    by_hand = 2 / 4 * abs(0.5 - 0.935) + 2 / 4 * abs(1.0 - 0.635)
    assert calibration.ece(probs, labels) == pytest.approx(by_hand)


def test_an_honest_model_has_the_error_chance_gives_it_and_an_overconfident_one_more():
    honest, labels = drawn(300)
    chance = calibration.error_by_chance(honest, labels)
    assert calibration.ece(honest, labels) < np.quantile(chance, 0.99)
    assert calibration.chance_p(np.median(chance), chance) == pytest.approx(0.5, abs=0.01)
    sharp, sharp_labels = drawn(300, sharper=3)
    chance = calibration.error_by_chance(sharp, sharp_labels)
    value, gap = calibration.ece(sharp, sharp_labels), calibration.confidence_gap(sharp, sharp_labels)
    assert value > chance.max() and calibration.chance_p(value, chance) == pytest.approx(1 / 1001)
    assert gap.significant and gap.low < gap.value < gap.high and calibration.beyond_chance(value, chance, gap)
    few, many = (calibration.error_by_chance(*drawn(n)).mean() for n in (30, 3000))
    assert few > 2 * many


def test_the_gap_is_confidence_less_accuracy_weighted():
    probs, labels = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]]), np.array([0, 0, 1, 1])
    gap = calibration.confidence_gap(probs, labels)
    assert (gap.confidence, gap.accuracy, gap.value) == pytest.approx((0.75, 0.75, 0))
    assert gap.low < 0 < gap.high and not gap.significant
    weighted = calibration.confidence_gap(probs, labels, weights=np.array([1.5, 1.5, 0.5, 0.5]))
    assert (weighted.confidence, weighted.accuracy) == pytest.approx((0.8, 0.875))


def test_photos_of_few_groups_widen_the_gap_and_flip_together():
    probs, labels = drawn(240, 2)
    groups = [f"g{i // 30}" for i in range(240)]
    alone, grouped = calibration.confidence_gap(probs, labels), calibration.confidence_gap(probs, labels, groups)
    assert grouped.groups == 8 and alone.groups == 0 and grouped.value == pytest.approx(alone.value)
    one = calibration.error_by_chance(probs, labels, ["g"] * 240)
    assert np.ptp(one) < 1e-12  # one group has one error, whatever its sign
    assert one[0] == pytest.approx(calibration.ece(probs, labels))


def test_weighted_to_where_it_is_used_a_perfect_model_is_not_called_overconfident():
    """Trained and used at 44, 44 and 12 %, validated on as many photos of each class."""
    rng, prior = np.random.default_rng(0), np.array([0.44, 0.44, 0.12])
    labels = np.arange(6000) % 3
    logits = 2 * (2 * np.eye(3)[labels] + rng.normal(0, 1, (6000, 3)))
    probs = metrics.softmax(logits + np.log(prior))
    weights = prevalence.photo_weights(labels, prior)
    assert calibration.fit_temperature(probs, labels) > 1.1
    assert calibration.fit_temperature(probs, labels, weights) == pytest.approx(1, abs=0.05)
    assert calibration.confidence_gap(probs, labels).low > 0
    assert not calibration.confidence_gap(probs, labels, weights=weights).significant
    assert calibration.ece(probs, labels, weights) < 0.5 * calibration.ece(probs, labels)
    found = calibration.evaluate_calibration(probs, labels, prior)
    assert not found.beyond and "none is called for" in run_wording.temperature_text(found)


def test_what_is_said_of_confidence_holds():
    """The simulation of the docstrings, in short; bounds are the issue's, and three standard errors."""
    found = simulation.table(FEW)
    for name in ("gap covered", "accuracy where used covered"):
        shares = found.loc[name].to_numpy()
        assert shares.min() >= 0.93 - 3 * np.sqrt(0.93 * 0.07 / FEW)
        assert shares.mean() >= 0.93 - 3 * np.sqrt(0.93 * 0.07 / FEW / shares.size)
    honest = found.loc["called miscalibrated"].drop(index="easy, sharpened")
    assert honest.to_numpy().mean() <= 0.07 + 3 * np.sqrt(0.07 * 0.93 / FEW / honest.size)
    assert found.loc[("called miscalibrated", "easy, sharpened"), ["300 photos", "49 groups"]].min() > 0.7
    weighted = found.loc["temperature, shares where used"].to_numpy()
    assert np.abs(weighted - 1).max() < 0.2
    assert found.loc[("temperature, equal shares", "hard"), ["300 photos", "49 groups"]].min() > 1.1


@pytest.mark.parametrize("sharper", [0.5, 1, 2, 4])
def test_temperature_finds_the_sharpening(sharper):
    probs, labels = drawn(4000, sharper)
    temperature = calibration.fit_temperature(probs, labels)
    assert temperature == pytest.approx(sharper, rel=0.1)
    scaled = calibration.scale_probs(probs, temperature)
    assert (scaled.argmax(1) == probs.argmax(1)).all()
    assert metrics.log_loss(scaled, labels) <= metrics.log_loss(probs, labels)


def test_no_photo_is_scaled_by_its_own_label():
    """A fold's temperature must not change when its own labels do."""
    probs, labels = drawn(100, 3)
    groups = [f"g{i // 4}" for i in range(100)]
    before = calibration.cross_fitted_probs(probs, labels, groups)
    others = labels.copy()
    others[:4] = (labels[:4] + 1) % 3
    after = calibration.cross_fitted_probs(probs, others, groups)
    same = np.isclose(before, after, atol=1e-9).all(1)
    assert same[:4].all() and not same.all()
    assert calibration.ece(before, labels) < calibration.ece(probs, labels)


def test_without_mistakes_no_temperature_is_suggested():
    probs, _ = drawn(20)
    assert calibration.fit_temperature(probs, probs.argmax(1)) == 1
    found = calibration.evaluate_calibration(probs, probs.argmax(1), np.full(3, 1 / 3))
    assert "none is suggested" in run_wording.calibration_text(found)
    assert "no reliability diagram: 20 photos" in run_wording.calibration_text(found)


def test_overconfidence_is_named_with_its_remedy():
    probs, labels = drawn(300, 3)
    text = run_wording.calibration_text(calibration.evaluate_calibration(probs, labels, np.full(3, 1 / 3)))
    assert "on new photos: 300 photos): overconfident" in text and "divide the logits by" in text
    assert "no reliability diagram" not in text
    groups = np.repeat(np.arange(10), 30).astype(str)
    grouped = calibration.evaluate_calibration(probs, labels, np.full(3, 1 / 3), groups)
    assert "on new varieties: 10 varieties, 300 photos" in run_wording.calibration_text(grouped, "variety")


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_curves_are_scikit_learn_s(seed):
    probs, labels = drawn(40, seed=seed)
    for number, (name, curve) in enumerate(calibration.threshold_curves(probs, labels, ["a", "b", "c"]).items()):
        true = labels == "abc".index(name)
        assert curve["auc"] == pytest.approx(roc_auc_score(true, probs[:, number]))
        assert curve["ap"] == pytest.approx(average_precision_score(true, probs[:, number]))
        at, recall, precision = calibration.best_threshold(curve)
        claimed = probs[:, number] >= at
        assert recall == pytest.approx((claimed & true).sum() / true.sum())
        assert f1_score(true, claimed) == pytest.approx(2 * recall * precision / (recall + precision))
        assert all(
            f1_score(true, probs[:, number] >= t) <= f1_score(true, claimed) + 1e-9 for t in np.linspace(0, 1, 21)
        )


def test_a_class_without_photos_has_no_curve():
    probs, labels = drawn(40)
    assert list(calibration.threshold_curves(probs[labels < 2], labels[labels < 2], ["a", "b", "c"])) == ["a", "b"]


@pytest.mark.parametrize("count", [0, 5])
def test_colours_are_mean_and_spread_of_each_channel(count):
    drawn = np.random.default_rng(0).integers(0, 256, (count, 3, 12, 10), dtype=np.uint8)
    photos = drawn.transpose(0, 2, 3, 1)  # as they come from torch: not contiguous
    pixels = photos.reshape(count, 120, 3) / 255
    expected = np.concatenate([pixels.mean(1), pixels.std(1)], axis=1)
    np.testing.assert_allclose(baselines.colours(photos), expected, rtol=1e-12)


def test_mean_colour_tells_colours_apart_and_nothing_else():
    rng = np.random.default_rng(0)

    def photos(labels, colour):
        made = rng.integers(0, 60, (len(labels), 8, 8, 3), dtype=np.uint8)
        if colour:
            made[..., 0] += (labels * 60).astype(np.uint8)[:, None, None]
        return made

    train_labels, val_labels = np.arange(60) % 3, np.arange(30) % 3
    predicted = baselines.mean_colour(photos(train_labels, True), train_labels, photos(val_labels, True))
    assert (predicted == val_labels).mean() > 0.95
    predicted = baselines.mean_colour(photos(train_labels, False), train_labels, photos(val_labels, False))
    assert (predicted == val_labels).mean() < 0.7
    assert (baselines.majority(np.array([2, 2, 0]), 4) == 2).all()
    alike = np.zeros(3, int)
    assert (baselines.mean_colour(photos(alike, True), alike, photos(val_labels, True)) == 0).all()


def test_figures_say_what_they_show():
    probs, labels = drawn(60, 2)
    figure = metrics_figures.reliability(probs, labels, calibration.cross_fitted_probs(probs, labels))
    assert "confidence" in figure.axes[1].get_xlabel() and len(figure.axes[0].get_legend().get_texts()) == 3
    ax = metrics_figures.scores(
        {"accuracy, network": (0.9, 0.8, 0.95), "macro-F1, majority baseline": (0.2, np.nan, np.nan)}, "t", "x"
    )
    drawn_lines = [line for line in ax.lines if len(line.get_xdata()) == 2]
    assert list(drawn_lines[0].get_xdata()) == [0.8, 0.95]
    metrics_figures.threshold_curves(calibration.threshold_curves(probs, labels, ["a", "b", "c"]))
    import pandas as pd

    table = pd.DataFrame({"label": ["a", "b"], "predicted": ["a", "a"]}).loc[[0, 0, 1, 1]]
    ax = metrics_figures.by_group(intervals.accuracy_by_group(table, ["g", "g", "h", "h"]))
    assert [text.get_text() for text in ax.get_yticklabels()] == ["h", "g"]
    plt.close("all")
