"""Calibration, thresholds and baselines: they recover what was planted, and scikit-learn agrees."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from fruitlib.evaluation import baselines, calibration, intervals, metrics, wording
from fruitlib.reporting import metrics_figures


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
    assert calibration.ece(probs, labels)[0] == pytest.approx(by_hand)


def test_an_honest_model_has_the_error_chance_gives_it_and_an_overconfident_one_more():
    honest, labels = drawn(300)
    chance = calibration.error_by_chance(honest)
    assert calibration.ece(honest, labels)[0] < np.quantile(chance, 0.99)
    assert calibration.chance_p(np.median(chance), chance) == pytest.approx(0.5, abs=0.01)
    sharp, labels = drawn(300, sharper=3)
    value, low, high = calibration.ece(sharp, labels)
    assert low < value < high and low > calibration.error_by_chance(sharp).max()
    assert calibration.chance_p(value, calibration.error_by_chance(sharp)) == pytest.approx(1 / 1001)
    assert calibration.error_by_chance(drawn(30)[0]).mean() > 2 * calibration.error_by_chance(drawn(3000)[0]).mean()


def test_of_calibrated_models_one_in_twenty_is_doubted():
    """Its stated rate, over models of thirty photos."""
    doubted = 0
    for seed in range(200):
        probs, labels = drawn(30, seed=seed)
        chance = calibration.error_by_chance(probs, draws=200)
        doubted += calibration.chance_p(calibration.ece(probs, labels)[0], chance) < 0.05
    assert 1 <= doubted <= 22  # 10 expected; three standard errors


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
    assert calibration.ece(before, labels)[0] < calibration.ece(probs, labels)[0]


def test_without_mistakes_no_temperature_is_suggested():
    probs, _ = drawn(20)
    assert calibration.fit_temperature(probs, probs.argmax(1)) == 1
    assert "none is suggested" in wording.temperature_text(1, 0, accuracy=1)


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
