"""Params files: what they ask for, run by run, and one clear line for what they cannot ask."""

import time
from pathlib import Path

import pytest
import yaml

from fruitlib.core.config import Config
from fruitlib.core.errors import InputError
from fruitlib.sweep import params
from fruitlib.sweep import space as spaces

ROOT = Path(__file__).parents[2]


def story(tmp_path, text: str) -> Path:
    path = tmp_path / "story.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_number_written_as_text_is_taken_for_the_number(tmp_path):
    text = "lr: 3e-3\nepochs: '7'\n"
    assert yaml.safe_load(text)["lr"] == "3e-3"  # what YAML 1.1 makes of it
    found = params.read_params(story(tmp_path, text)).config
    assert (found.lr, found.epochs) == (0.003, 7)


def test_grid_gives_every_combination_named_by_what_differs(tmp_path):
    plan = params.read_params(story(tmp_path, "epochs: 3\ngrid:\n  optimizer: [adam, sgd]\n  lr: [1e-3, 0.01]\n"))
    expected = {f"lr={lr},optimizer={opt}" for lr in ("0.001", "0.01") for opt in ("adam", "sgd")}
    assert set(plan.runs) == expected
    assert plan.runs["lr=0.01,optimizer=sgd"].model_dump() == {
        **Config().model_dump(),
        **{"epochs": 3, "lr": 0.01, "optimizer": "sgd"},
    }


def test_list_and_command_line_settings(tmp_path):
    path = story(tmp_path, "data: sample5\nlist:\n  - {model: base}\n  - {model: resnet18, lr: 0.01}\n")
    plan = params.read_params(path, {"data": "elsewhere"})
    assert set(plan.runs) == {"model=base", "lr=0.01,model=resnet18"}
    assert {run.data for run in plan.runs.values()} == {"elsewhere"}


@pytest.mark.parametrize(
    ("text", "setting", "line"),
    [
        ("title: x\nlr: -1\n", "lr", 2),
        ("lr: 0.1\ngrid:\n  lr:\n    - 0.01\n    - 99\n", "lr", 5),  # of several values, the one that is refused
        ("grid:\n  optimizer: [adam, sgd]\n  lr:\n    adam: [0.1]\n    sgd: [99]\n", "lr", 5),
        ("epochs: 5\nlist:\n  - {warmup_epochs: 2}\n  - {warmup_epochs: 7}\n", "warmup_epochs", 4),
        ("list:\n  - {lr: 0.1}\n  - {lr: 1e-1}\n", "lr", 3),  # given twice: the second
        ("lr: 0.1\nepochs: 3\nlr: 0.2\n", "lr", 3),
        ("title: x\noptimiser: adam\n", "optimiser", 2),
        ("epochs: 5\nsearch:\n  trials: 0\n  space: {lr: [0.1, 0.2]}\n", "trials", 3),
        ("search:\n  trials: 2\n  space:\n    epochs: [1, 2]\n    lr: {low: 2, high: 1}\n", "lr", 5),
        ("title: x\nlr: [\n", "", 3),
        ("freeze: backbone\n", "freeze", 1),
    ],
)
def test_a_refused_setting_is_named_with_its_file_and_line(tmp_path, text, setting, line):
    path = story(tmp_path, text)
    with pytest.raises(InputError) as problem:
        params.read_params(path)
    assert (problem.value.setting, problem.value.place) == (setting, f"{path} line {line}")
    assert str(problem.value) == f"{problem.value.place}: {problem.value.message}" and "\n" not in str(problem.value)


def test_a_setting_of_the_command_line_has_no_line_in_the_file(tmp_path):
    path = story(tmp_path, "data: sample5\n")
    with pytest.raises(InputError) as problem:
        params.read_params(path, {"data": ""})
    assert (problem.value.setting, problem.value.place) == ("data", str(path))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("grid:\n  lr: [0.1, 1e-1]\n", "given twice"),
        ("grid:\n  data: [a, b]\n", "data cannot differ within a sweep"),
        ("grid: [lr]\n", "grid maps each setting to a list"),
        ("grid:\n  lr: 0.1\n", "grid maps each setting to a list"),
        ("lr: [\n", "not valid YAML"),
        ("- lr\n", "expected 'setting: value' lines"),
        ("test: always\n", "test = 'always'"),
        ("chose_by: accuracy\n", "unknown setting chose_by"),
    ],
)
def test_broken_params_files(tmp_path, text, word):
    with pytest.raises(InputError, match=word) as problem:
        params.read_params(story(tmp_path, text))
    assert "story.yaml" in str(problem.value)


VALUES = ", ".join(map(str, range(1, 151)))


@pytest.mark.parametrize(
    ("text", "words", "line"),
    [
        (
            f"grid:\n  seed: [{VALUES}]\n  epochs: [{VALUES}]\n  batch_size: [2, {VALUES}]\n",
            "3,397,500 runs (batch_size: 151, seed: 150, epochs: 150), at most 10,000 in a sweep",
            4,
        ),
        ("list:\n" + "- {seed: 1}\n" * 10_001, "10,001 runs (list: 10,001)", 1),
        (
            "folds: 100\nrepeats: 100\ngrid:\n  lr: [0.1, 0.2]\n",
            "20,000 runs (folds: 100, repeats: 100, lr: 2)",
            1,
        ),
        (
            f"grid:\n  optimizer: [adam, sgd]\n  seed: [{VALUES}]\n  lr: {{adam: [0.1], sgd: [{VALUES}]}}\n",
            "45,000 runs (seed: 150, lr: 150, optimizer: 2)",
            3,
        ),
        ("random:\n  runs: 3000000\n  space: {lr: {low: 0.001, high: 0.1}}\n", "3,000,000 runs", 2),
        (
            f"search:\n  trials: 3\n  space:\n    seed: [{', '.join(map(str, range(50_000)))}]\n",
            "50,000 values, most of them of seed; at most 1,000: give a range",
            4,
        ),
    ],
)
def test_more_runs_than_a_sweep_can_hold_are_refused_before_any_is_made(tmp_path, text, words, line):
    path = story(tmp_path, text)
    started = time.process_time()
    with pytest.raises(InputError) as problem:
        params.read_params(path)
    assert words in str(problem.value) and str(problem.value).startswith(f"{path} line {line}: ")
    assert time.process_time() - started < 5  # seconds; most of it is PyYAML's, where there is no libyaml


def test_ten_thousand_runs_are_read_in_a_time_that_grows_with_their_number(tmp_path):
    seconds = {}
    for seeds in (100, 2500):
        values = ", ".join(map(str, range(seeds)))
        path = story(tmp_path, f"grid:\n  seed: [{values}]\n  lr: [0.1, 0.2]\n  batch_size: [8, 16]\n")
        started = time.process_time()
        assert len(params.read_params(path).runs) == 4 * seeds
        seconds[seeds] = time.process_time() - started
    assert seconds[2500] < 100 * seconds[100]  # 25 times as many; 7 s for the square of a fifth of them


def test_many_draws_are_different_and_take_little_time():
    space = spaces.read_space({"lr": {"low": 1e-4, "high": 0.1, "log": True}, "seed": {"low": 0, "high": 9999}}, "x")
    started = time.process_time()
    rows = spaces.draw(space, 10_000, seed=0)
    assert len({repr(row) for row in rows}) == 10_000 and time.process_time() - started < 5


def test_folds_make_a_run_of_each_fold_and_repeat(tmp_path):
    plan = params.read_params(story(tmp_path, "folds: 3\nrepeats: 2\ngrid:\n  lr: [0.1, 0.01]\n"))
    assert len(plan.runs) == 12 and "fold=3,lr=0.1,repeat=2" in plan.runs
    assert {(c.fold, c.repeat) for c in plan.runs.values()} == {(f, r) for f in (1, 2, 3) for r in (1, 2)}
    found = plan.combinations()
    assert set(found) == {"lr=0.1", "lr=0.01"} and all(len(names) == 6 for names in found.values())
    once = params.read_params(story(tmp_path, "folds: 2\n"))
    assert list(once.runs) == ["fold=1", "fold=2"] and once.combinations() == {"run": ["fold=1", "fold=2"]}
    with pytest.raises(InputError, match="fold is set by folds: 2"):
        params.read_params(story(tmp_path, "folds: 2\ngrid:\n  fold: [1, 2]\n"))


def test_missing_params_file(tmp_path):
    with pytest.raises(InputError, match="no such params file"):
        params.read_params(tmp_path / "none.yaml")


def test_values_that_read_alike_as_a_folder_stay_apart(tmp_path):
    plan = params.read_params(story(tmp_path, "grid:\n  base_weights: [a/b.pt, a_b.pt]\n"))
    assert len(plan.runs) == 2
    assert len(params.read_params(story(tmp_path, "grid:\n  lr: [0.001, 0.0010000001]\n")).runs) == 2


def test_run_names_are_short_enough_for_a_folder_and_stay_apart():
    long = [{f"setting{i}": "x" * 30 for i in range(8)} | {"last": last} for last in "ab"]
    names = [params.run_name(differing) for differing in long]
    assert max(map(len, names)) <= 120 and names[0] != names[1]
    names = [params.run_name({"share_class": "사과" * 55 + last}) for last in ("", "배")]
    assert max(len(name.encode()) for name in names) <= 240 and names[0] != names[1] and "사과" in names[0]
    assert "/" not in params.run_name({"base_weights": "a/b c.pt"})


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_params_files_can_be_read(path):
    plan = params.read_params(path)
    assert plan.runs or plan.search


def test_each_optimizer_may_have_learning_rates_of_its_own(tmp_path):
    text = "grid:\n  optimizer: [adam, sgd]\n  lr: {adam: [0.001], sgd: [0.1, 0.01]}\n  seed: [0, 1]\n"
    plan = params.read_params(story(tmp_path, text))
    found = {(run.optimizer, run.lr) for run in plan.runs.values()}
    assert found == {("adam", 0.001), ("sgd", 0.1), ("sgd", 0.01)} and len(plan.runs) == 6
    with pytest.raises(InputError, match="grid lr names adam; optimizer must list the same ones"):
        params.read_params(story(tmp_path, "grid:\n  optimizer: [adam, sgd]\n  lr: {adam: [0.001]}\n"))
    with pytest.raises(InputError, match=r"grid lr names adam; optimizer must list the same ones"):
        params.read_params(story(tmp_path, "grid:\n  optimizer: [[adam]]\n  lr: {adam: [0.001]}\n"))


def test_what_is_shipped_is_a_refit_unless_the_file_says_otherwise(tmp_path):
    assert params.read_params(story(tmp_path, "folds: 2\n")).ship == "refit"
    assert params.read_params(story(tmp_path, "folds: 2\nship: ensemble\n")).ship == "ensemble"
    with pytest.raises(InputError, match=r"ship = 'all': wanted refit \| ensemble \| fold"):
        params.read_params(story(tmp_path, "folds: 2\nship: all\n"))


def test_combinations_that_read_alike_stay_apart_with_folds(tmp_path):
    plan = params.read_params(story(tmp_path, "folds: 2\ngrid:\n  base_weights: [a/b.pt, a_b.pt]\n"))
    assert [len(names) for names in plan.combinations().values()] == [2, 2]


def test_every_one_of_a_few_runs_gets_pages_and_the_best_of_many(tmp_path):
    few, many = "grid: {seed: [1, 2]}\n", f"grid: {{seed: {list(range(13))}}}\n"
    assert params.read_params(story(tmp_path, few)).pages == "every"
    assert params.read_params(story(tmp_path, many)).pages == "best"
    assert params.read_params(story(tmp_path, f"{many}test: every\n")).pages == "every"
    assert params.read_params(story(tmp_path, f"{few}pages: chosen\n")).pages == "chosen"
    with pytest.raises(InputError, match="test: every needs the files that 05 writes"):
        params.read_params(story(tmp_path, f"{few}pages: best\ntest: every\n"))


def test_ship_without_folds_is_refused(tmp_path):
    with pytest.raises(InputError, match="ship says which model goes out after folds"):
        params.read_params(story(tmp_path, "ship: refit\n"))


def test_a_setting_that_does_nothing_in_a_run_is_not_compared(tmp_path):
    with pytest.raises(InputError, match=r"focal_gamma does nothing in the run loss=ce,focal_gamma=3\.0"):
        params.read_params(story(tmp_path, "grid:\n  loss: [ce, focal]\n  focal_gamma: [2.0, 3.0]\n"))
    runs = "list:\n  - {loss: ce}\n  - {loss: focal, focal_gamma: 3.0}\n"
    assert len(params.read_params(story(tmp_path, runs)).runs) == 2
