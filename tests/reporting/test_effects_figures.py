"""Figures of a sweep: the Pareto front is right, and every figure shows what it is given, at odd sizes too."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml

from fruitlib.evaluation import effects_wording, learning_curve, study
from fruitlib.evaluation.effects import cost_measures, main_effects, noise_of, pareto_front
from fruitlib.reporting import effects_figures, style


@pytest.fixture(autouse=True)
def close():
    style.use_style()
    yield
    plt.close("all")


def results(values: int = 2, seeds: int = 2) -> pd.DataFrame:
    grid = itertools.product(np.geomspace(1e-4, 1, values), ["adam", "sgd"], range(seeds))
    rng = np.random.default_rng(0)
    rows = [{"run": f"lr={lr:.4g},{o},{s}", "lr": lr, "optimizer": o, "seed": s} for lr, o, s in grid]
    table = pd.DataFrame(rows).assign(n=30, parameters=100_000, latency_ms_int8=1.0)
    return table.assign(accuracy=rng.integers(20, 31, len(rows)) / 30, accuracy_low=0.5, accuracy_high=1.0)


def test_the_pareto_front_is_right():
    costs, scores = [1, 2, 3, 3, 2, np.nan], [0.5, 0.9, 0.9, 1.0, 0.4, 1.0]
    assert pareto_front(costs, scores).tolist() == [True, True, False, True, False, False]
    assert pareto_front([1, 1], [0.5, 0.5]).tolist() == [True, True]  # equals do not beat each other
    rng = np.random.default_rng(0)
    cost, score = rng.integers(0, 9, 60), rng.integers(0, 9, 60)
    beaten = [
        any(c <= cost[i] and s >= score[i] and (c, s) != (cost[i], score[i]) for c, s in zip(cost, score, strict=True))
        for i in range(60)
    ]
    assert (pareto_front(cost, score) == ~np.array(beaten)).all()


def test_a_latency_within_its_noise_makes_no_run_cheaper():
    latency, accuracy = [0.2850, 0.2875, 0.2860, 4.7], [0.8, 0.9, 0.85, 1.0]
    assert pareto_front(latency, accuracy).tolist() == [True, True, True, True]
    assert pareto_front(latency, accuracy, noise_of("latency_ms_int8")).tolist() == [False, True, False, True]
    assert noise_of("parameters") < noise_of("latency_ms_int8")


def test_only_costs_that_vary_get_a_panel():
    table = results()
    assert cost_measures(table) == ([], False)
    table["parameters"] = np.arange(len(table)) + 1000 * (table["optimizer"] == "sgd")
    assert cost_measures(table) == (["parameters"], True)
    assert cost_measures(table[["run", "accuracy"]])[0] == []
    figure = effects_figures.trade_off(table, ["parameters", "latency_ms_int8"])
    front = table[pareto_front(table["parameters"], table["accuracy"])].drop_duplicates("accuracy")
    assert all(run.split(",")[0] in figure.texts[-1].get_text() for run in front["run"])


@pytest.mark.parametrize("values", [1, 2, 10])
def test_effects_are_drawn_whatever_their_number(values):
    table, differs = results(values), ["lr", "optimizer", "seed"]
    effects = main_effects(table, differs, ["accuracy"])
    figure = effects_figures.forest(effects)
    assert len(figure.axes[0].get_yticks()) == len(effects)
    assert len(effects_figures.means(table, differs, "accuracy").axes) == 2
    effects_figures.parallel(table, ["lr", "optimizer"], "accuracy")


def test_an_effect_without_interval_is_a_dot_in_the_picture():
    effects = main_effects(results(seeds=1)[:2], ["optimizer"], ["accuracy"])
    assert np.isnan(effects["low"]).all()
    figure = effects_figures.forest(effects)
    left, right = figure.axes[0].get_xlim()
    assert left < 100 * effects["gain"][0] < right
    figure.canvas.draw()


def test_one_run_has_a_picture_of_its_cost():
    table = results()[:1]
    figure = effects_figures.trade_off(table, ["latency_ms_int8"])
    figure.canvas.draw()
    assert table["run"][0] in figure.texts[-1].get_text().replace("\n", "")


@pytest.mark.parametrize(("a", "b", "c"), [(0.05, 1.5, 0.5), (0.0, 3.0, 0.8), (0.1, 8.0, 1.2)])
def test_a_learning_curve_recovers_a_power_law(a, b, c):
    photos = np.repeat([20, 40, 80, 160, 320], 3)
    curve = learning_curve.fit_learning_curve(photos, 1 - (a + b * photos**-c))
    at = curve.line.set_index("photos")["score"]
    assert at[370.0] == pytest.approx(1 - (a + b * 370**-c), abs=0.003)
    assert (curve.more, curve.later) == (50, pytest.approx(1 - (a + b * 370**-c), abs=0.003))
    assert curve.now == pytest.approx(1 - (a + b * 320**-c), abs=0.003)


def test_a_learning_curve_grows_less_sure_beyond_the_data():
    photos = np.repeat([20, 40, 80, 160], 4)
    scores = 1 - (0.05 + 2 * photos**-0.6) + np.random.default_rng(0).normal(0, 0.02, len(photos))
    line = learning_curve.fit_learning_curve(photos, scores, more=2000).line
    width = (line["high"] - line["low"]).to_numpy()
    inside, beyond = line["photos"].between(40, 160), line["photos"] > 1500
    assert width[beyond].min() > width[inside].max()


def test_a_learning_curve_refuses_two_shares_and_says_when_seeds_are_missing():
    few = learning_curve.fit_learning_curve([20, 40, 40], [0.7, 0.8, 0.81], class_name="tomato")
    assert few.line.empty and few.shares == 2 and not few.extrapolated
    assert effects_wording.learning_curve_text(few).startswith("2 shares of the training photos")
    single = learning_curve.fit_learning_curve([20, 40, 80], [0.7, 0.8, 0.85], class_name="tomato")
    assert np.isnan(single.later_low) and single.later > single.now
    assert effects_wording.learning_curve_text(single).startswith("50 more photos of tomato: ")


def test_curves_are_counted_in_photos_of_the_class_that_was_thinned(tmp_path):
    rows = [
        {"run": f"{share},{seed}", "train_share": share, "share_class": "tomato" if share < 1 else "", "seed": seed}
        for share in (0.25, 0.5, 1)
        for seed in (0, 1)
    ]
    table = pd.DataFrame(rows).assign(
        accuracy=[0.7, 0.72, 0.8, 0.82, 0.9, 0.9], train_photos=[90, 92, 95, 97, 105, 105]
    )
    differs = ["train_share", "share_class", "seed"]
    for row in rows:
        (tmp_path / row["run"]).mkdir()
        settings = {"train_share": row["train_share"], "share_class": row["share_class"]}
        (tmp_path / row["run"] / "params.yaml").write_text(yaml.safe_dump({"settings": settings, "record": {}}))
    photos = {"path": [f"{i}.png" for i in range(25)], "label": ["apple"] * 5 + ["tomato"] * 20}
    photos = pd.DataFrame(photos).assign(group="", split="train", fold="", status="ok", reason="", width=8, height=8)
    photos.assign(sha256="", phash="").to_csv(tmp_path / "manifest.csv", index=False)
    (curve,) = learning_curve.learning_curves(study.Study(tmp_path, table, differs, "accuracy"))
    assert curve.class_name == "tomato" and sorted(set(curve.points["photos"])) == [5, 10, 20]
    every = table.drop(columns="share_class")
    (curve,) = learning_curve.learning_curves(study.Study(tmp_path, every, ["train_share", "seed"], "accuracy"))
    assert curve.class_name == "tomato"  # the same class in all runs is in their params.yaml
    (curve,) = learning_curve.learning_curves(
        study.Study(tmp_path / "none", every, ["train_share", "seed"], "accuracy")
    )
    assert curve.class_name == "" and sorted(set(curve.points["photos"])) == [91, 96, 105]
    assert learning_curve.learning_curves(study.Study(tmp_path, table, ["seed"], "accuracy")) == []


def test_a_learning_curve_is_drawn_with_and_without_a_fit():
    photos = np.repeat([20, 40, 80], 2)
    curves = [
        learning_curve.fit_learning_curve(photos, 1 - photos**-0.5),
        learning_curve.fit_learning_curve([20, 40], [0.7, 0.8], class_name="kiwi"),
    ]
    figure = effects_figures.learning_curves(curves, "macro_f1")
    assert "50 more photos" in figure.axes[0].get_title()
    assert figure.axes[1].get_xlabel() == "training photos of kiwi"


def test_importances_are_bars():
    ax = effects_figures.importances(pd.DataFrame({"setting": ["lr", "dropout"], "importance": [0.8, 0.2]}))
    assert [bar.get_width() for bar in ax.patches] == [0.8, 0.2]
