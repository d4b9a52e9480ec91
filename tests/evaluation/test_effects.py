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
from fruitlib.evaluation import significance, sweep_answers
from fruitlib.evaluation.effects import asked_pairs, at_best_lr, interactions, load_importances, main_effects
from fruitlib.evaluation.study import CONVERGED, epochs_to_converge, load_study, ordered_values
from fruitlib.evaluation.wording import (
    effect_summary,
    effects_answer_text,
    leading_effects_text,
    lr_comparison_text,
    study_text,
)

FOUR = {"optimizer": ["adam", "sgd"], "batch_size": [8, 16], "seed": [0, 1, 2, 3]}


def sweep(settings: dict[str, list], score, noise: float = 0.02, seed: int = 0) -> pd.DataFrame:
    """A row per combination; `score(row)` is its true accuracy, `noise` the standard deviation of luck."""
    rng = np.random.default_rng(seed)
    rows = [dict(zip(settings, values, strict=True)) for values in itertools.product(*settings.values())]
    return pd.DataFrame([row | {"accuracy": score(row) + rng.normal(0, noise)} for row in rows])


THREE = {"optimizer": ["adam", "sgd"], "batch_size": [8, 16], "augment": ["none", "geometric"], "seed": [0, 1, 2]}


def test_a_planted_effect_is_found_and_no_other():
    larger = THREE | {"batch_size": [8, 16, 32], "seed": [0, 1, 2]}
    found = 0
    for seed in range(8):
        table = sweep(larger, lambda row: 0.8 + 0.05 * (row["optimizer"] == "sgd"), seed=seed)
        effects = main_effects(table, list(larger), ["accuracy"]).set_index("setting")
        found += effects.loc["optimizer", "significant"]
        assert effects.loc["optimizer", "gain"] == pytest.approx(0.05, abs=0.025)
    assert found >= 7
    text = effects_answer_text(main_effects(table, list(larger), ["accuracy"]), "accuracy")
    assert text.startswith("optimizer sgd over adam: accuracy +") and text.endswith("5 questions asked")


def alarms(monkeypatch, times: int, luck: float) -> pd.DataFrame:
    """Sweeps in which no setting does anything: how often optimizer, or any, is significant, and by pairs alone.

    Each seed favours one optimizer by chance, with a standard deviation of `luck`.
    """
    monkeypatch.setattr(
        "fruitlib.evaluation.significance.pairs_needed", lambda _: None
    )  # half the time, and not asked about here
    rows = []
    for seed in range(times):
        favours = np.random.default_rng([seed, 1]).normal(0, luck, 4)
        table = sweep(FOUR, lambda row, own=favours: 0.8 + own[row["seed"]] * (row["optimizer"] == "sgd"), seed=seed)
        effects = main_effects(table, list(FOUR), ["accuracy"]).set_index("setting")
        own = effects.loc["optimizer"]
        rows.append({"any": effects["significant"].any(), "own": own["significant"], "pairs": own["holm_p"] <= 0.05})
    return pd.DataFrame(rows).mean()


def test_pure_noise_is_significant_in_fewer_sweeps_than_holm_allows(monkeypatch):
    """300 sweeps of 16 runs, two questions each: 2.7 % had a significant effect; Holm allows 5, the draws 3.3 more."""
    assert alarms(monkeypatch, 300, luck=0)["any"] <= 0.05 + 0.033


def test_luck_that_a_seed_gives_to_one_value_is_not_taken_for_an_effect(monkeypatch):
    """100 sweeps. Of 150, an idle setting was significant in 9 % by pairs alone, with the interval over seeds in 3."""
    found = alarms(monkeypatch, 100, luck=0.04)
    assert found["own"] <= 0.05 + 0.05 and found["pairs"] > found["own"] + 0.03


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
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert row["gain"] == pytest.approx((b - a).mean(), abs=1e-12)
    assert (row["pairs"], row["units"], row["unit"]) == (len(pairs), len(pairs), "seed")


@examples(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_p_is_corrected_by_holm_over_all_measures(seed):
    table = sweep(THREE, lambda row: 0.8 + 0.02 * (row["optimizer"] == "sgd"), seed=seed)
    table["train_seconds"] = np.random.default_rng(seed).normal(60, 5, len(table)) + 9 * (table["batch_size"] == 8)
    effects = main_effects(table, list(THREE), ["accuracy", "train_seconds"])
    assert len(effects) == 6
    assert effects["holm_p"].to_numpy() == pytest.approx(significance.holm(effects["p"]))


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
    assert set(effects["unit"]) == {"pair"} and not effects["significant"].any()
    assert "cannot tell" in effect_summary(effects.iloc[0].to_dict())
    assert main_effects(table[:1], list(grid), ["accuracy"]).empty
    assert main_effects(table[:1], [], ["accuracy"]).empty
    assert interactions(table[:1], [], "accuracy").empty
    assert effects_answer_text(main_effects(table[:1], [], ["accuracy"]), "accuracy").startswith(
        "No two runs are alike"
    )
    one = main_effects(table[:2], list(grid), ["accuracy"]).iloc[0].to_dict()
    assert "no interval, 1 pair," in effect_summary(one)


def test_runs_without_a_number_are_passed_over():
    table = sweep(THREE, lambda row: 0.8 + 0.1 * (row["optimizer"] == "sgd"), noise=0.001)
    table.loc[::5, "accuracy"] = np.nan
    effects = main_effects(table, list(THREE), ["accuracy"]).set_index("setting")
    assert effects.loc["optimizer", "pairs"] < 12 and effects.loc["optimizer", "significant"]
    with pytest.raises(InputError, match="no column lr"):
        main_effects(table, ["lr"], ["accuracy"])


def test_folds_widen_the_interval():
    grid = {"loss": ["ce", "focal"], "fold": [1, 2, 3, 4, 5]}
    table = sweep(grid, lambda row: 0.8)
    plain, folded = (main_effects(table, list(grid), ["accuracy"], folds).iloc[0] for folds in (0, 5))
    assert folded["unit"] == "fold"
    assert (folded["high"] - folded["low"]) / (plain["high"] - plain["low"]) == pytest.approx(1.5)  # Nadeau, Bengio


def test_more_seeds_are_asked_for_where_they_would_help():
    table = sweep(THREE, lambda row: 0.8 + 0.01 * (row["optimizer"] == "sgd"), seed=3)
    row = main_effects(table, list(THREE), ["accuracy"]).set_index("setting", drop=False).loc["optimizer"]
    assert not row["significant"] and row["more"] >= 1
    assert effect_summary(row.to_dict()).endswith("more seeds would") or row["more"] == 1


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
    assert [effect["lr"] for effect in found.effects] == ["", found.shared_lr] and not found.same_best_lr
    assert found.effects[0]["gain"] == pytest.approx(0, abs=0.005) and found.effects[0]["pairs"] == 3
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
    runs.append({"name": "refit", "settings": {}, "stages": ["train"]})
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
    rows += [("accuracy", 2, False, "two pairs"), ("train_seconds", 3, True, "takes longer")]
    table = pd.DataFrame(rows, columns=["measure", "units", "significant", "summary"]).assign(setting="lr")
    lines = leading_effects_text(table, "accuracy")
    assert lines[:2] == ["it matters", "setting 0"] and lines[-1].startswith("… and 2 more") and len(lines) == 7
    few = "fewer than 3 pairs, seeds or folds cannot tell what lr did: add seeds or folds"
    assert leading_effects_text(table[table["units"] < 3], "accuracy") == [few]
    assert leading_effects_text(pd.DataFrame(), "accuracy") == []


def test_insight_csv_is_written_read_and_removed(folder):
    study = load_study(folder)
    table = sweep_answers.write_effects(study)
    assert len(table) and sweep_answers.load_effects(folder)["summary"].tolist() == table["summary"].tolist()
    sweep_answers.write_effects(dataclasses.replace(study, results=study.results[:1]))
    assert not (folder / sweep_answers.INSIGHT).exists() and sweep_answers.load_effects(folder).empty
