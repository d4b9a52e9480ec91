"""Effects of settings: what was planted is found, noise is not, pairs never mix other settings; costs.

Learning curves.
"""

import dataclasses
import itertools
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from fruitlib.core.errors import InputError
from fruitlib.evaluation import crossed, intervals, metrics, significance, sweep_answers
from fruitlib.evaluation.effects import asked_pairs, at_best_lr, interactions, load_importances, main_effects
from fruitlib.evaluation.effects_wording import (
    effect_summary,
    effects_answer_text,
    leading_effects_text,
    lr_comparison_text,
    study_text,
)
from fruitlib.evaluation.outcomes import Outcomes, load_outcomes
from fruitlib.evaluation.study import CONVERGED, epochs_to_converge, load_study, ordered_values
from tests.simulations import sweeps as simulated


def sweep(settings: dict[str, list], score, noise: float = 0.02, seed: int = 0) -> pd.DataFrame:
    """A row per combination; `score(row)` is its true accuracy, `noise` the standard deviation of luck."""
    rng = np.random.default_rng(seed)
    rows = [dict(zip(settings, values, strict=True)) for values in itertools.product(*settings.values())]
    return pd.DataFrame([row | {"accuracy": score(row) + rng.normal(0, noise)} for row in rows])


THREE = {"optimizer": ["adam", "sgd"], "batch_size": [8, 16], "augment": ["none", "geometric"], "seed": [0, 1, 2]}


def with_predictions(table: pd.DataFrame, photos: int, groups: int, rng: np.random.Generator) -> Outcomes:
    """Predictions for each run of a table that are right on its `accuracy` share of photos, drawn anew for each."""
    labels = np.arange(photos) % 3
    predicted = {}
    for number, accuracy in enumerate(table["accuracy"]):
        right = rng.random(photos) < accuracy
        predicted[f"run {number}"] = np.where(right, labels, (labels + 1) % 3)
    names = [f"g{i % groups}" if groups else "" for i in range(photos)]
    table["run"] = [f"run {number}" for number in range(len(table))]
    table["accuracy"] = [(predicted[run] == labels).mean() for run in table["run"]]
    return Outcomes([str(i) for i in range(photos)], labels, intervals.units(names), 3, predicted, names)


def test_a_planted_effect_is_found_on_new_photos_and_seeds_and_no_other():
    larger = THREE | {"batch_size": [8, 16, 32], "seed": [0, 1, 2, 3, 4]}
    table = sweep(larger, lambda row: 0.7 + 0.2 * (row["optimizer"] == "sgd"), noise=0)
    seen = with_predictions(table, 150, 0, np.random.default_rng(0))
    effects = main_effects(table, list(larger), ["accuracy"], seen).set_index("setting", drop=False)
    assert effects["significant"].to_dict() == {"optimizer": True, "batch_size": False, "augment": False}
    row = effects.loc["optimizer"]
    assert row["gain"] == pytest.approx(0.2, abs=0.03) and row["low"] < 0.2 < row["high"]
    assert (row["photos"], row["groups"], row["seeds"], row["pairs"]) == (150, 0, 5, 30)
    text = effects_answer_text(effects, "accuracy")
    assert text.startswith("On new photos and seeds: optimizer sgd over adam: accuracy +") and "1 significant" in text


def test_the_gain_is_the_difference_of_the_scores_whatever_the_score():
    table = sweep(THREE, lambda row: 0.6 + 0.1 * (row["optimizer"] == "sgd"), noise=0)
    seen = with_predictions(table, 90, 9, np.random.default_rng(1))
    names = ["a", "b", "c"]
    for measure in ("macro_f1", "balanced_accuracy", "macro_precision", "macro_recall"):
        matrices = [metrics.confusion_matrix(seen.labels, seen.predicted[run], len(names)) for run in table["run"]]
        table[measure] = [metrics.scores(matrix)[measure] for matrix in matrices]
        scalar = main_effects(table, list(THREE), [measure]).set_index("setting")
        by_photo = main_effects(table, list(THREE), [measure], seen).set_index("setting")
        assert by_photo["gain"].to_numpy() == pytest.approx(scalar["gain"].to_numpy())
        assert by_photo["seeds_low"].to_numpy() == pytest.approx(scalar["seeds_low"].to_numpy())
        assert (by_photo["groups"] == 9).all() and scalar["low"].isna().all()


def test_what_only_a_few_groups_show_is_not_significant():
    """Every seed agrees, so more seeds would only confirm it: but one group of eight makes all of the difference."""
    table = sweep({"optimizer": ["adam", "sgd"], "seed": list(range(5))}, lambda row: 0.8, noise=0)
    seen = with_predictions(table, 80, 8, np.random.default_rng(2))
    for run, optimizer in zip(table["run"], table["optimizer"], strict=True):
        right = (seen.unit != 3) | (optimizer == "sgd")
        seen.predicted[run] = np.where(right, seen.labels, (seen.labels + 1) % 3)
    row = main_effects(table, ["optimizer", "seed"], ["accuracy"], seen).iloc[0]
    assert row["seeds_low"] == pytest.approx(0.125) and not row["significant"] and row["low"] < 0
    assert row["limited_by"] == "groups"
    text = effect_summary(row.to_dict(), "tree")
    assert "new trees and seeds: " in text and "(8 trees, 80 photos): not significant" in text


def test_folds_are_pooled_before_a_setting_is_judged():
    grid = {"loss": ["ce", "focal"], "fold": [1, 2, 3]}
    table = sweep(grid, lambda row: 0.8)
    seen = with_predictions(table, 60, 0, np.random.default_rng(3))
    for run, fold in zip(table["run"], table["fold"], strict=True):
        seen.predicted[run] = np.where(np.arange(60) % 3 == fold - 1, seen.predicted[run], -1)
    row = main_effects(table, list(grid), ["accuracy"], seen).iloc[0]
    pooled = [
        np.max([seen.predicted[run] for run in table["run"][table["loss"] == loss]], 0) == seen.labels
        for loss in ("ce", "focal")
    ]
    assert row["gain"] == pytest.approx(pooled[1].mean() - pooled[0].mean())
    assert (row["seeds"], row["photos"], row["significant"]) == (1, 60, False)
    text = effect_summary(row.to_dict())
    assert "one seed does not show how much luck matters; give 5" in text and "no verdict from one seed" in text
    assert main_effects(table[:5], list(grid), ["accuracy"], seen).empty  # a fold is missing: no photo is in twice


@examples(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_one_group_a_photo_and_one_seed_is_student_s_t_over_photos(seed):
    values = np.random.default_rng(seed).integers(-1, 2, (1, 30)).astype(float)
    found = crossed.over_seeds_and_groups(values, np.arange(30))
    if np.ptp(values) > 0:
        expected = scipy_stats.ttest_1samp(values[0], 0)
        ends = expected.confidence_interval(0.95)
        assert (found.low, found.high) == (pytest.approx(ends.low), pytest.approx(ends.high))
        assert found.p == pytest.approx(expected.pvalue)


def test_the_variance_of_a_layout_without_luck_of_either_kind_is_that_of_the_other():
    rng = np.random.default_rng(4)
    of_seed, of_group = rng.normal(size=5), rng.normal(size=12)
    unit = np.arange(12)
    seeds = crossed.over_seeds_and_groups(np.tile(of_seed[:, None], 12), unit)
    assert seeds.error == pytest.approx(crossed.over_seeds(of_seed).error) and seeds.degrees == pytest.approx(4)
    groups = crossed.over_seeds_and_groups(np.tile(of_group, (5, 1)), unit)
    assert groups.error == pytest.approx(of_group.std(ddof=1) / np.sqrt(12)) and groups.degrees == pytest.approx(11)


def test_a_difference_that_is_called_findable_is_found_in_four_of_five_studies():
    rng, found = np.random.default_rng(5), []
    for _ in range(1500):
        estimate = crossed.Estimate(0.0, 1.0, 9)
        draw = rng.normal(estimate.findable(questions=6)) / np.sqrt(rng.chisquare(9) / 9)
        found.append(abs(draw) > scipy_stats.t.ppf(1 - 0.025 / 6, 9))
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)


def test_sweeps_in_which_nothing_matters_are_rarely_called_significant():
    """Short runs of the simulation behind the docstring's table, 3 and 5 seeds; and the published figures."""
    short = simulated.table(60, seeds=(3, 5))
    wrong = short[[name for name in short if name.startswith("false")]]
    assert wrong.to_numpy().max() <= 0.07 + 3 * np.sqrt(0.07 * 0.93 / 60)
    lines = [line.strip() for line in main_effects.__doc__.splitlines()]
    for world in simulated.WORLDS:
        numbers = [float(text) for text in next(line for line in lines if line.startswith(world))[len(world) :].split()]
        assert len(numbers) == 9 and max(numbers[0::3]) <= 0.07 and min(numbers[1::3]) >= 0.93


def test_the_simulation_asks_as_main_effects_does():
    rng = np.random.default_rng(6)
    right, group = simulated.simulated_sweep(rng, 4, simulated.WORLDS["both"], 0.45)
    names = ["batch_size", "optimizer", "scheduler", "lr"]
    rows = [
        {"seed": seed, "run": f"{seed} {i}", **dict(zip(names, map(int, values), strict=True))}
        for seed in range(4)
        for i, values in enumerate(simulated.SETTINGS)
    ]
    labels = np.zeros(len(group), int)
    predicted = {row["run"]: 1 - right[row["seed"], int(row["run"].split()[1])].astype(int) for row in rows}
    seen = Outcomes([], labels, intervals.units(map(str, group)), 2, predicted)
    table = pd.DataFrame(rows).assign(accuracy=[(predicted[row["run"]] == 0).mean() for row in rows])
    effects = main_effects(table, [*names, "seed"], ["accuracy"], seen)
    significant, holds = simulated.answers(right, group)
    assert effects["significant"].tolist() == significant.tolist()
    assert ((effects["low"] <= 0) & (effects["high"] >= 0)).tolist() == holds.tolist()


@examples(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=9))
def test_one_setting_over_seeds_is_the_paired_t_test(pairs):
    runs = [(value, seed, pair[value == "b"]) for seed, pair in enumerate(pairs) for value in "ab"]
    rows = pd.DataFrame(runs, columns=["optimizer", "seed", "accuracy"])
    row = main_effects(rows, ["optimizer", "seed"], ["accuracy"]).iloc[0]
    a, b = np.array(pairs).T
    if np.ptp(b - a) < 1e-9:
        return
    expected = scipy_stats.ttest_rel(b, a).confidence_interval(0.95)
    assert (row["seeds_low"], row["seeds_high"]) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert row["gain"] == pytest.approx((b - a).mean(), abs=1e-12)
    assert (row["pairs"], row["seeds"], row["photos"]) == (len(pairs), len(pairs), 0)


@examples(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_p_is_corrected_by_holm_over_the_questions_about_a_measure(seed):
    table = sweep(THREE, lambda row: 0.8 + 0.02 * (row["optimizer"] == "sgd"), seed=seed)
    table["train_seconds"] = np.random.default_rng(seed).normal(60, 5, len(table)) + 9 * (table["batch_size"] == 8)
    effects = main_effects(table, list(THREE), ["accuracy", "train_seconds"])
    assert len(effects) == 6
    for _, own in effects.groupby("measure"):
        assert own["holm_p"].to_numpy(float) == pytest.approx(significance.holm(own["p"]))


def test_pairs_never_mix_other_settings():
    """With luck left out, a setting's difference must be exactly its own part, though runs are missing unevenly."""
    table = sweep(THREE, lambda row: 0.5 + 0.1 * (row["optimizer"] == "sgd") + 0.01 * row["batch_size"], noise=0)
    table = table.sample(frac=0.7, random_state=1).sort_index()
    effects = main_effects(table, list(THREE), ["accuracy"]).set_index("setting")
    assert effects.loc["optimizer", "gain"] == pytest.approx(0.1)
    assert effects.loc["batch_size", "gain"] == pytest.approx(0.08)
    assert effects.loc["augment", "gain"] == pytest.approx(0)
    assert not effects.loc["augment", "significant"]


def test_which_values_are_compared():
    assert asked_pairs(["a", "b", "c"]) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert asked_pairs(list("abcd")) == [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("c", "d")]
    assert ordered_values([16, 8.0, "32", 8]) == ["8", "16", "32"]
    assert ordered_values(["sgd", "", float("nan"), True]) == ["sgd", "empty", "True"]


def test_one_seed_one_run_and_nothing_that_differs():
    grid = {"lr": [0.01, 0.003], "optimizer": ["adam", "sgd"]}
    table = sweep(grid, lambda row: 0.8)
    effects = main_effects(table, list(grid), ["accuracy"])
    assert set(effects["seeds"]) == {1} and not effects["significant"].any()
    assert "no verdict from one seed" in effect_summary(effects.iloc[0].to_dict())
    assert effects_answer_text(effects, "accuracy").startswith("One seed cannot tell what a setting did")
    assert main_effects(table[:1], list(grid), ["accuracy"]).empty
    assert main_effects(table[:1], [], ["accuracy"]).empty
    assert interactions(table[:1], [], "accuracy").empty
    nothing = effects_answer_text(main_effects(table[:1], [], ["accuracy"]), "accuracy")
    assert nothing.startswith("No two runs are alike")


def test_runs_without_a_number_are_passed_over():
    table = sweep(THREE, lambda row: 0.8 + 0.1 * (row["optimizer"] == "sgd"), noise=0.001)
    table.loc[::5, "accuracy"] = np.nan
    effects = main_effects(table, list(THREE), ["accuracy"]).set_index("setting")
    assert effects.loc["optimizer", "pairs"] < 12 and effects.loc["optimizer", "significant"]
    with pytest.raises(InputError, match="no column lr"):
        main_effects(table, ["lr"], ["accuracy"])


def test_where_nothing_is_significant_the_line_says_what_could_hide():
    table = sweep(THREE, lambda row: 0.8 + 0.01 * (row["optimizer"] == "sgd"), seed=3)
    seen = with_predictions(table, 60, 0, np.random.default_rng(7))
    row = main_effects(table, list(THREE), ["accuracy"], seen).set_index("setting", drop=False).loc["optimizer"]
    assert not row["significant"] and row["findable"] > 0.05
    most = 100 * max(abs(row["low"]), abs(row["high"]))
    text = effect_summary(row.to_dict())
    assert text.endswith(f"at most {most:.0f} points either way; {100 * row['findable']:.0f} would have been found")
    assert "3 seeds; 5 would say more" in text
    answer = effects_answer_text(main_effects(table, list(THREE), ["accuracy"], seen), "accuracy")
    assert answer.startswith("No setting changed accuracy beyond chance on new photos and seeds (3 questions about")


@pytest.mark.parametrize(("low", "high", "bounded"), [(-0.2, 0.3, True), (-1.61, 1.5, False), (-0.9, 1.01, False)])
@pytest.mark.parametrize("seeds", [1, 2])
def test_an_interval_wider_than_all_that_is_possible_is_no_number(low, high, bounded, seeds):
    row = {"setting": "lr", "from": "0.1", "to": "0.2", "measure": "accuracy", "gain": 0.05, "pairs": 2, "seeds": seeds}
    row |= {"seeds_low": low, "seeds_high": high, "low": low, "high": high, "photos": 30, "groups": 0}
    text = effect_summary(row | {"holm_p": 0.9, "significant": False, "findable": 0.4})
    assert (f"{100 * high:.1f}" in text) == bounded == ("cannot tell" not in text)
    assert ("either way" in text) == (bounded and seeds == 2)
    assert ("no verdict from one seed" in text) == (seeds == 1) == ("not significant" not in text)


def test_where_no_difference_could_be_found_the_answer_says_so():
    row = {"setting": "lr", "measure": "accuracy", "seeds": 2, "groups": 0, "significant": False}
    row |= {"gain": 0.1, "findable": 1.6}
    text = effects_answer_text(pd.DataFrame([row]), "accuracy")
    assert text.startswith("So few seeds show no difference, however large: give 5")


def test_an_interaction_is_found_and_put_into_words():
    grid = {"optimizer": ["adam", "sgd"], "lr": [0.001, 0.01], "seed": list(range(8))}
    table = sweep(grid, lambda row: 0.8 + 0.08 * (row["optimizer"] == "sgd") * (row["lr"] == 0.01), noise=0.01)
    row = interactions(table, list(grid), "accuracy").iloc[0].to_dict()
    assert row["significant"] and row["gain"] == pytest.approx(0.08, abs=0.02)
    assert effect_summary(row).startswith("optimizer sgd over adam, with lr 0.01 rather than 0.001: accuracy +")
    flat = sweep(grid, lambda row: 0.8 + 0.08 * (row["lr"] == 0.01), noise=0.01)
    assert not interactions(flat, list(grid), "accuracy")["significant"].any()


def test_optimizers_at_their_own_best_lr_and_at_a_shared_one():
    best = {"adam": 0.001, "sgd": 0.1}
    grid = {"optimizer": ["adam", "sgd"], "lr": [0.001, 0.01, 0.1], "seed": [0, 1, 2]}
    table = sweep(grid, lambda row: 0.9 - 0.1 * abs(np.log10(row["lr"] / best[row["optimizer"]])), noise=0.001)
    found = at_best_lr(table, list(grid), "accuracy")
    assert found.values["own_lr"].to_dict() == {"adam": "0.001", "sgd": "0.1"}
    assert found.values["own"].to_numpy() == pytest.approx([0.9, 0.9], abs=0.005)
    assert list(found.effects["lr"]) == ["", found.shared_lr] and not found.same_best_lr
    assert found.effects["gain"][0] == pytest.approx(0, abs=0.005) and found.effects["pairs"][0] == 3
    text = lr_comparison_text(found)
    assert "each at its own best lr" in text and "all at lr" in text and "validation photos" in text
    apart = table[table["lr"] == table["optimizer"].map(best)]
    assert at_best_lr(apart, list(grid), "accuracy").shared_lr == ""
    assert at_best_lr(table, ["optimizer", "seed"], "accuracy").values.empty


def test_when_a_run_has_converged():
    history = pd.DataFrame({"epoch": [1, 2, 3, 4], "val_accuracy": [0.3, 0.8, 0.96, 1.0]})
    assert epochs_to_converge(history, chance=1 / 3) == 3
    assert np.isnan(epochs_to_converge(history.assign(val_accuracy=1 / 3), chance=1 / 3))
    assert np.isnan(epochs_to_converge(pd.DataFrame(), chance=1 / 3))


@pytest.fixture
def folder(tmp_path):
    """A finished sweep of four runs in files, two of them failed or shipped, evaluated on the same ten photos."""
    names = ["lr=0.01,seed=0", "lr=0.01,seed=1", "lr=0.1,seed=0", "lr=0.1,seed=1"]
    states = ["complete", "complete", "complete", "failed"]
    runs = [{"name": n, "settings": {"lr": float(n[3:].split(",")[0]), "seed": int(n[-1])}} for n in names]
    runs.append({"name": "refit", "settings": {}, "candidate": False})
    (tmp_path / "sweep.json").write_text(json.dumps({"choose_by": "accuracy", "runs": runs}))
    rows = [{"run": name, "state": state, "n": 10} for name, state in zip(names, states, strict=True)]
    rows = [row | {"accuracy": 0.9, "macro_f1": 0.8} for row in rows]
    pd.DataFrame([*rows, {"run": "refit", "state": "complete"}]).to_csv(tmp_path / "results.csv", index=False)
    labels = ["apple"] * 5 + ["cherry"] * 5
    for number, name in enumerate(names[:3]):
        (tmp_path / name).mkdir()
        pd.DataFrame({"epoch": [1, 2], "val_accuracy": [0.5, 0.9]}).to_csv(tmp_path / name / "history.csv", index=False)
        predicted = ["cherry" if i == number else label for i, label in enumerate(labels)]
        table = pd.DataFrame({"path": [f"{i}.png" for i in range(10)], "label": labels, "predicted": predicted})
        table.to_csv(tmp_path / name / "predictions_val.csv", index=False)
    return tmp_path


def test_a_sweep_is_read_from_its_folder(folder):
    study = load_study(folder)
    assert (study.differs, study.settings, study.measure, study.folds) == (["lr", "seed"], ["lr"], "accuracy", 0)
    assert len(study.results) == 3 and study.missing == {"failed": 1} and not study.searched
    assert list(study.results[CONVERGED]) == [2, 2, 2]
    assert study_text(study).startswith("3 complete runs, 1 failed; what differs: lr, seed")
    with pytest.raises(InputError, match="measure = test_accuracy"):
        load_study(folder, "test_accuracy")


def test_a_folder_without_runs_says_so(tmp_path):
    with pytest.raises(InputError, match="no complete run yet"):
        load_study(tmp_path)


def test_importances_are_read_where_there_are_some(folder):
    assert load_importances(folder).empty
    (folder / "importances.csv").write_text("setting,importance\nseed,0.1\nlr,0.9\n")
    assert list(load_importances(folder)["setting"]) == ["lr", "seed"]
    (folder / "importances.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="columns setting and importance"):
        load_importances(folder)


def test_a_first_page_lists_significant_effects_first_and_counts_the_rest():
    rows = [("accuracy", 3, False, f"setting {n}") for n in range(7)] + [("accuracy", 3, True, "it matters")]
    rows += [("accuracy", 1, False, "one seed"), ("train_seconds", 3, True, "takes longer")]
    table = pd.DataFrame(rows, columns=["measure", "seeds", "significant", "summary"]).assign(setting="lr")
    lines = leading_effects_text(table, "accuracy")
    assert lines[:2] == ["it matters", "setting 0"] and lines[-1].startswith("… and 2 more") and len(lines) == 7
    few = leading_effects_text(table[table["seeds"] < 2], "accuracy")
    assert few == ["one seed cannot tell what lr did from luck: give 5 (seed: [0, 1, 2, 3, 4])"]
    assert leading_effects_text(pd.DataFrame(), "accuracy") == []


def test_runs_on_other_photos_are_left_out(folder):
    assert len(load_outcomes(load_study(folder)).predicted) == 3
    path = folder / "lr=0.1,seed=0" / "predictions_val.csv"
    pd.read_csv(path)[:9].to_csv(path, index=False)
    assert list(load_outcomes(load_study(folder)).predicted) == ["lr=0.01,seed=0", "lr=0.01,seed=1"]
    path.write_text("no,table\n")
    assert list(load_outcomes(load_study(folder)).predicted) == ["lr=0.01,seed=0", "lr=0.01,seed=1"]


def test_insight_csv_is_written_read_and_removed(folder):
    study = load_study(folder)
    table = sweep_answers.write_effects(study)
    assert len(table) and sweep_answers.load_effects(folder)["summary"].tolist() == table["summary"].tolist()
    sweep_answers.write_effects(dataclasses.replace(study, results=study.results[:1]))
    assert not (folder / sweep_answers.INSIGHT).exists() and sweep_answers.load_effects(folder).empty
