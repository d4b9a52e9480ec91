"""Knobs: one clear line for whatever is wrong, and numbers taken for what they mean."""

from pathlib import Path

import pytest
import yaml

from fruitlib import config
from fruitlib.config import Config
from fruitlib.runtime import InputError

ROOT = Path(__file__).parent.parent


def params(tmp_path, text: str) -> Path:
    path = tmp_path / "story.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"learning_rate": 0.1}, ["unknown knob learning_rate"]),
        ({"optimiser": "adam"}, ["unknown knob optimiser", "did you mean optimizer?"]),
        ({"lr": -1}, ["lr = -1", "greater than 0"]),
        ({"lr": "fast"}, ["lr = 'fast'", "number"]),
        ({"epochs": 2.5}, ["epochs = 2.5", "integer"]),
        ({"epochs": True}, ["epochs = true", "whole number"]),
        ({"optimizer": "lion"}, ["optimizer = 'lion'", "adamw"]),
        ({"focal_ratio": 1.5}, ["focal_ratio", "less than or equal to 1"]),
        ({"lr": float("nan")}, ["lr"]),
        ({"processes": 4, "batch_size": 4}, ["batch_size 4 is too small for 4 processes"]),
        ({"model": "resnet18", "base_weights": "x.pt"}, ["base_weights", "resnet18"]),
        ({"model": "end2end", "weights": "DEFAULT"}, ["weights DEFAULT", "end2end"]),
        ({"freeze": "backbone"}, ["freeze = backbone keeps random weights", "base_weights"]),
        ({"balance": "smote"}, ["balance = smote", "freeze: backbone", "augment: none"]),
        ({"balance": "augment_to"}, ["augment_to = N", "set both"]),
        ({"balance": "augment_to", "augment_to": 90, "augment": "none"}, ["augmented children", "geometric"]),
        ({"folds": 1}, ["folds = 1", "2 or more"]),
        ({"folds": 3, "fold": 4}, ["fold = 4", "folds = 3"]),
        ({"repeats": 2}, ["repeats = 2", "set folds"]),
        ({"val_per_class": 2.5}, ["val_per_class = 2.5", "a share below 1"]),
        ({"columns": "label"}, ["columns = 'label'", "dictionary"]),
        ({"subset": 0}, ["subset = 0", "greater than 0"]),
    ],
)
def test_bad_knobs_are_named_in_one_line(knobs, words):
    with pytest.raises(InputError) as problem:
        config.make(knobs, "params/x.yaml")
    message = str(problem.value)
    assert "\n" not in message and message.startswith("params/x.yaml: ")
    assert all(word in message for word in words), message


def test_a_number_written_as_text_is_taken_for_the_number(tmp_path):
    text = "lr: 3e-3\nepochs: '7'\n"
    assert yaml.safe_load(text)["lr"] == "3e-3"  # what YAML 1.1 makes of it
    found = config.read_params(params(tmp_path, text)).config
    assert (found.lr, found.epochs) == (0.003, 7)


def test_grid_gives_every_combination_named_by_what_differs(tmp_path):
    plan = config.read_params(params(tmp_path, "epochs: 3\ngrid:\n  optimizer: [adam, sgd]\n  lr: [1e-3, 0.01]\n"))
    expected = {f"lr={lr},optimizer={opt}" for lr in ("0.001", "0.01") for opt in ("adam", "sgd")}
    assert set(plan.runs) == expected
    assert plan.runs["lr=0.01,optimizer=sgd"].model_dump() == {
        **Config().model_dump(),
        **{"epochs": 3, "lr": 0.01, "optimizer": "sgd"},
    }


def test_list_and_command_line_knobs(tmp_path):
    path = params(tmp_path, "data: sample5\nlist:\n  - {model: base}\n  - {model: resnet18, lr: 0.01}\n")
    plan = config.read_params(path, {"data": "elsewhere"})
    assert set(plan.runs) == {"model=base", "lr=0.01,model=resnet18"}
    assert {run.data for run in plan.runs.values()} == {"elsewhere"}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("grid:\n  lr: [0.1, 1e-1]\n", "given twice"),
        ("grid:\n  data: [a, b]\n", "data cannot differ within a sweep"),
        ("grid: [lr]\n", "grid maps each knob to a list"),
        ("grid:\n  lr: 0.1\n", "grid maps each knob to a list"),
        ("lr: [\n", "not valid YAML"),
        ("- lr\n", "expected 'knob: value' lines"),
        ("test: always\n", "test = 'always'"),
        ("chose_by: accuracy\n", "unknown knob chose_by"),
    ],
)
def test_broken_params_files(tmp_path, text, word):
    with pytest.raises(InputError, match=word) as problem:
        config.read_params(params(tmp_path, text))
    assert "story.yaml" in str(problem.value)


def test_folds_make_a_run_of_each_fold_and_repeat(tmp_path):
    plan = config.read_params(params(tmp_path, "folds: 3\nrepeats: 2\ngrid:\n  lr: [0.1, 0.01]\n"))
    assert len(plan.runs) == 12 and "fold=3,lr=0.1,repeat=2" in plan.runs
    assert {(c.fold, c.repeat) for c in plan.runs.values()} == {(f, r) for f in (1, 2, 3) for r in (1, 2)}
    found = plan.combinations()
    assert set(found) == {"lr=0.1", "lr=0.01"} and all(len(names) == 6 for names in found.values())
    once = config.read_params(params(tmp_path, "folds: 2\n"))
    assert list(once.runs) == ["fold=1", "fold=2"] and once.combinations() == {"run": ["fold=1", "fold=2"]}
    with pytest.raises(InputError, match="fold is set by folds: 2"):
        config.read_params(params(tmp_path, "folds: 2\ngrid:\n  fold: [1, 2]\n"))


def test_missing_params_file(tmp_path):
    with pytest.raises(InputError, match="no such params file"):
        config.read_params(tmp_path / "none.yaml")


def test_values_that_read_alike_as_a_folder_stay_apart(tmp_path):
    plan = config.read_params(params(tmp_path, "grid:\n  base_weights: [a/b.pt, a_b.pt]\n"))
    assert len(plan.runs) == 2
    assert len(config.read_params(params(tmp_path, "grid:\n  lr: [0.001, 0.0010000001]\n")).runs) == 2


def test_run_names_are_short_enough_for_a_folder_and_stay_apart():
    long = [{f"knob{i}": "x" * 30 for i in range(8)} | {"last": last} for last in "ab"]
    names = [config.run_name(differing) for differing in long]
    assert max(map(len, names)) <= 120 and names[0] != names[1]
    assert "/" not in config.run_name({"base_weights": "a/b c.pt"})


def test_base_yaml_lists_every_knob_with_its_default():
    assert yaml.safe_load((ROOT / "params" / "base.yaml").read_text()) == Config().model_dump()


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_params_files_can_be_read(path):
    assert config.read_params(path).runs


def test_notebook_parameters_become_a_config_and_unknown_ones_are_refused():
    cell = "run_dir: str = 'x'  # where\nlr: float = 0.001\noverrides: dict = {}"
    space = {
        "lr": 0.5,
        "overrides": {"weight_decay": 0.2},
        "run_dir": "x",
        "In": ["", cell, "# Parameters\nlr = 0.5\n"],
    }
    assert config.from_notebook(space).model_dump(include={"lr", "weight_decay"}) == {"lr": 0.5, "weight_decay": 0.2}
    with pytest.raises(InputError, match=r"unknown parameter optimiser \(did you mean optimizer"):
        config.from_notebook(space | {"In": ["", cell, "# Parameters\noptimiser = 0.5\n"]})
    with pytest.raises(InputError, match="unknown knob"):
        config.from_notebook(space | {"overrides": {"weight_decai": 1}})
