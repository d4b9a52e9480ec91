"""What choosing adds: the bootstrap's own arithmetic, what is chosen among, the sentences about it, and the truth."""

import json
import time

import numpy as np
import pandas as pd
import pytest

from fruitlib.evaluation import selection
from fruitlib.evaluation.outcomes import load_outcomes
from fruitlib.evaluation.selection import SelectionOptimism, selection_optimism
from fruitlib.evaluation.study import Study
from fruitlib.evaluation.wording import choice_text, selection_optimism_text, tie_text
from tests.simulations import choosing


def plainly(right: np.ndarray, unit: np.ndarray, draws: int) -> float:
    """The share right out of the bag, photo by photo and draw by draw."""
    names = np.unique(unit)
    drawn = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    hits = photos = 0
    for counts in drawn:
        weight = counts[np.searchsorted(names, unit)]
        chosen = (right * weight[:, None]).sum(0).argmax()
        hits, photos = hits + right[weight == 0, chosen].sum(), photos + (weight == 0).sum()
    return hits / photos


@pytest.mark.parametrize("groups", [0, 7])
def test_it_chooses_in_the_bag_and_evaluates_out_of_it(groups, monkeypatch):
    rng = np.random.default_rng(3)
    right = (rng.random((40, 25)) < 0.7).astype(float)
    unit = rng.permutation(np.arange(40) % groups) if groups else np.arange(40)
    monkeypatch.setattr(selection, "BLOCK", 4)  # ties between blocks, too, go to the first
    found = selection_optimism(right, [f"g{number:02d}" for number in unit], draws=200)
    first = pd.factorize(unit)[0]
    assert found.honest == pytest.approx(plainly(right, first, 200))
    assert found.best == right.mean(0).max() and found.points == pytest.approx(found.best - found.honest)
    assert (found.candidates, found.photos, found.groups) == (25, 40, groups)


def test_choosing_among_equals_flatters_and_one_far_better_is_no_choice():
    rng = np.random.default_rng(5)
    equals = rng.random((30, 20)) < 0.8
    assert 0.04 < selection_optimism(equals).points < 0.2
    better = np.column_stack([np.arange(30) > 2, rng.random((30, 5)) < 0.3])
    assert abs(selection_optimism(better).points) < 0.01


def test_the_estimate_is_within_two_points_of_the_truth():
    table = choosing.table(60)
    error = table["estimated"] - table["true"]
    assert abs(error.mean()) < 2 and (error.abs() < 2 + 3 * 4.5 / np.sqrt(60)).all(), table  # 4.5: by repetition
    assert table["true"].max() > 6


def test_many_configurations_take_seconds_and_where_they_are_too_many_the_best_compete(monkeypatch):
    rng = np.random.default_rng(0)
    sums, sizes = rng.binomial(3, 0.8, (72 * 12, 31)).astype(float), np.full(31, 3)
    started = time.process_time()
    whole = selection._out_of_bag(sums, sizes)
    assert time.process_time() - started < 3
    least = np.sort(sums.sum(1))[-200]
    assert selection._best_of(sums, 200).sum(1).min() >= least and len(selection._best_of(sums, 200)) == 200
    assert selection._out_of_bag(selection._best_of(sums, 200), sizes).points == pytest.approx(whole.points, abs=0.01)


# ---- what a sweep chose among


@pytest.fixture
def folder(tmp_path):
    """Six runs of three epochs on 20 photos, written as training writes them; each kept its best epoch."""
    rng, names = np.random.default_rng(1), [f"seed={seed}" for seed in range(6)]
    labels = np.arange(20) % 2
    for name in names:
        write_run(tmp_path / name, labels, rng.random((3, 20)) < 0.75, "best")
    (tmp_path / "split.json").write_text(json.dumps({"class_names": ["apple", "cherry"]}))
    return tmp_path


def write_run(path, labels, right, keep: str) -> None:
    """A trained run's record, validation predictions and their epochs, of which the second was kept."""
    classes, paths = np.array(["apple", "cherry"]), [f"{number:02d}.png" for number in range(len(labels))]
    predicted = np.where(right, labels, 1 - labels)
    probs = np.eye(2, dtype=np.float16)[predicted]
    (path / "stages").mkdir(parents=True)
    np.savez(path / "predictions_epochs.npz", paths=np.array(paths), probs=probs)
    (path / "stages" / "train.json").write_text(json.dumps({"keep": keep, "kept_epoch": 2}))
    table = pd.DataFrame({"path": paths, "label": classes[labels], "predicted": classes[predicted[1]]})
    table.to_csv(path / "predictions_val.csv", index=False)


def study_of(folder, **settings) -> Study:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    return Study(folder, pd.DataFrame({"run": names}), ["seed"], "accuracy", **settings)


def rewrite(folder, name: str, **facts) -> None:
    path = folder / name / "stages" / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def test_runs_that_kept_their_best_epoch_chose_among_epochs_too(folder, monkeypatch):
    monkeypatch.setattr("fruitlib.runs.run.Run.class_names", ["apple", "cherry"])
    found = selection.optimism_of_study(study_of(folder))
    assert (found.candidates, found.epochs, found.configurations, found.photos) == (6, 3, 18, 20)
    for name in study_of(folder).results["run"]:
        rewrite(folder, name, keep="last")
    last = selection.optimism_of_study(study_of(folder))
    assert (last.candidates, last.epochs, last.configurations) == (6, 1, 6)
    assert last.best <= found.best and choice_text(last).startswith("chosen among 6 runs: flatters by about ")
    seen = load_outcomes(study_of(folder))
    right = np.stack([predicted == seen.labels for predicted in seen.predicted.values()], 1)
    assert last.honest == pytest.approx(selection_optimism(right).honest)
    rewrite(folder, "seed=0", keep="best")
    assert choice_text(selection.optimism_of_study(study_of(folder))).startswith("chosen among 6 runs x up to 3 epochs")


def test_runs_without_epochs_or_on_other_photos(folder, monkeypatch):
    monkeypatch.setattr("fruitlib.runs.run.Run.class_names", ["apple", "cherry"])
    (folder / "seed=0" / "predictions_epochs.npz").unlink()
    np.savez(folder / "seed=1" / "predictions_epochs.npz", paths=np.array(["a"]), probs=np.zeros((0, 1, 2)))
    assert selection.optimism_of_study(study_of(folder)).configurations == 14  # their kept epoch, from the table
    path = folder / "seed=0" / "predictions_val.csv"
    pd.read_csv(path)[:9].to_csv(path, index=False)
    found = selection.optimism_of_study(study_of(folder))
    assert not found.measured and np.isnan(found.points) and choice_text(found) == ""
    assert "not all evaluated on the same photos" in selection_optimism_text(found)


def test_with_folds_combinations_are_chosen_by_their_pooled_predictions(folder):
    rng, rows = np.random.default_rng(2), []
    for combination in ("lr=1", "lr=2", "lr=3"):
        for repeat in (1, 2):
            wrong = rng.random(20) < 0.3
            rows += [(combination, repeat, f"{i}", "ab"[i % 2], "ab"[(i + wrong[i]) % 2]) for i in range(20)]
    columns = ["combination", "repeat", "path", "label", "predicted"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "predictions_oof.csv", index=False)
    found = selection.optimism_of_study(study_of(folder, folds=2))
    assert (found.candidates, found.epochs, found.photos, found.folds) == (3, 1, 20, True)
    assert choice_text(found).startswith("chosen among 3 combinations: flatters by ")
    assert selection_optimism_text(found).startswith(f"pooled accuracy {found.best:.2f}; chosen among 3 combinations, ")


# ---- the sentences


def test_what_choosing_adds_is_said_in_one_sentence_and_in_a_few_words():
    found = SelectionOptimism(0.93, 0.83, 0.10, candidates=20, epochs=12, configurations=240, photos=30)
    assert (
        selection_optimism_text(found)
        == "validation accuracy 0.93; chosen among 20 runs x 12 epochs, which flatters by about 10 points (n = 30)"
    )
    assert choice_text(found) == "chosen among 20 runs x 12 epochs: flatters by about 10 points"
    grouped = SelectionOptimism(1.0, 0.998, 0.002, candidates=2, configurations=2, photos=93, groups=16)
    assert selection_optimism_text(grouped).endswith(
        "which flatters by less than a point (n = 93 in 16 groups); at least: these photos cannot show the mistakes it "
        "would make on others"
    )


def test_where_there_was_nothing_to_choose_it_says_so():
    found = selection_optimism(np.ones((30, 1)))
    assert not found.measured and choice_text(found) == ""
    assert selection_optimism_text(found) == "one run, its last epoch: nothing was chosen, so nothing flatters"
    one_group = selection_optimism(np.random.default_rng(0).random((30, 3)) < 0.5, ["a"] * 30)
    assert not one_group.measured and "of one group" in selection_optimism_text(one_group)


def test_its_record_gives_it_back():
    for found in (selection_optimism(np.random.default_rng(0).random((30, 3)) < 0.5), SelectionOptimism()):
        back = SelectionOptimism(**json.loads(json.dumps(found.record(), allow_nan=False)))
        assert back.record() == found.record() and back.measured == found.measured


LOWEST = "Of equals the one with the lowest validation loss was taken (0.200"
ROWS = [{"run": name, "macro_f1": f1, "val_loss": loss} for name, f1, loss in (("a", 0.9, 0.2), ("b", 0.9, 0.3))]


@pytest.mark.parametrize(
    ("rows", "chosen", "sentence"),
    [
        (ROWS, 0, f"It is a tie with b: the same macro-F1, 0.900. {LOWEST}"),
        (ROWS, 1, "Of equals the first of the sweep was taken."),
        ([*ROWS, ROWS[0] | {"run": "c"}], 1, "a tie with a; c: the same macro-F1"),
        ([ROWS[0], ROWS[1] | {"macro_f1": 0.8}], 0, ""),
        ([ROWS[0] | {"macro_f1": float("nan")}] * 2, 0, ""),
    ],
)
def test_a_tie_is_named_and_how_it_was_broken(rows, chosen, sentence):
    text = tie_text(rows, rows[chosen], "macro_f1", "run")
    assert sentence in text if sentence else not text
