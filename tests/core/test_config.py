"""Settings: one clear line for whatever is wrong, and numbers taken for what they mean."""

from pathlib import Path

import pytest
import yaml

from fruitlib.core import config, parameters
from fruitlib.core.config import Config
from fruitlib.core.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rate": 0.1}, ["unknown setting learning_rate", "did you mean lr?"]),
        ({"optimiser": "adam"}, ["unknown setting optimiser", "did you mean optimizer?"]),
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
        ({"fold": 0}, ["fold = 0", "set folds to 2 or more"]),
        ({"folds": 2, "fold": -1}, ["fold = -1", "greater than or equal to 0"]),
        ({"model": "resnet19"}, ["model = 'resnet19'", "did you mean resnet1", "?"]),
        ({"weights": "x.pt", "base_weights": "y.pt"}, ["both name the weights"]),
        ({"unfreeze_every": 2}, ["unfreeze_every = 2", "nothing is frozen", "freeze: backbone"]),
        ({"head": "gap_bn"}, ["torchvision's and timm's models", "end2end"]),
        ({"model": "resnet18", "head_width": 64}, ["head_width = 64", "set head: gap_bn"]),
        ({"model": "timm:resnet19"}, ["timm does not know it", "did you mean resnet"]),
        ({"weights": "package"}, ["weights package", "not end2end"]),
        ({"head": "logistic"}, ["torchvision's and timm's models", "end2end"]),
        ({"model": "resnet18", "head": "svm", "augment": "full"}, ["head = svm", "augment: none"]),
        ({"model": "resnet18", "head": "knn", "balance": "oversample"}, ["balance = oversample", "class_weights"]),
        ({"model": "resnet18", "head": "knn", "lr_find": 100}, ["lr_find = 100", "set lr_find: 0"]),
        ({"model": "resnet18", "head": "svm", "head_start": "logistic"}, ["head_start = logistic", "not head svm"]),
        ({"head_start": "logistic"}, ["head_start = logistic", "not model end2end"]),
        ({"warmup_epochs": 20}, ["warmup_epochs = 20", "epochs = 20"]),
        ({"patience": 20}, ["patience = 20", "never reached within epochs = 20"]),
        ({"loss": "soft_f1", "micro_batch": 4}, ["loss = soft_f1", "micro_batch = 4", "micro_batch: auto"]),
        ({"loss": "soft_f1", "balance": "class_weights"}, ["loss = soft_f1", "set balance other than"]),
        ({"micro_batch": "some"}, ["micro_batch = 'some'"]),
        ({"dropout": 1.0}, ["dropout = 1.0", "less than 1"]),
        ({"image_size": "large"}, ["image_size = 'large'", "auto"]),
        ({"track": ["mlflow"]}, ["track"]),
        ({"early_stopping": 5}, ["unknown setting early_stopping", "did you mean patience?"]),
        ({"seed": [0, 1]}, ["seed = [0, 1]", "several values belong under grid:"]),
        ({"lr": {"adam": 0.1}}, ["several values belong under grid:"]),
    ],
)
def test_bad_settings_are_named_in_one_line(settings, words):
    with pytest.raises(InputError) as problem:
        config.make(settings, "params/x.yaml")
    message = str(problem.value)
    assert "\n" not in message and message.startswith("params/x.yaml: ")
    assert all(word in message for word in words), message


def test_a_refit_on_all_folds_is_fold_0():
    assert config.make({"folds": 3, "fold": 0}).fold == 0


def test_a_single_tracker_needs_no_brackets():
    assert config.make({"track": "wandb"}).track == ["wandb"]


def test_image_size_auto_is_the_models_own():
    assert config.make({"model": "efficientnet_b3", "image_size": "auto"}).image_size == 300
    assert config.make({"image_size": "auto"}).image_size == 96


def test_base_yaml_lists_every_setting_with_its_default():
    assert yaml.safe_load((ROOT / "params" / "base.yaml").read_text()) == Config().model_dump()


def test_notebook_parameters_become_a_config_and_unknown_ones_are_refused():
    cell = "run_dir: str = 'x'  # where\nlr: float = 0.001\noverrides: dict = {}"
    space = {
        "lr": 0.5,
        "overrides": {"weight_decay": 0.2},
        "run_dir": "x",
        "In": ["", cell, "# Parameters\nlr = 0.5\n"],
    }
    assert parameters.from_notebook(space).model_dump(include={"lr", "weight_decay"}) == {
        "lr": 0.5,
        "weight_decay": 0.2,
    }
    with pytest.raises(InputError, match=r"unknown parameter optimiser \(did you mean optimizer"):
        parameters.from_notebook(space | {"In": ["", cell, "# Parameters\noptimiser = 0.5\n"]})
    with pytest.raises(InputError, match="unknown setting"):
        parameters.from_notebook(space | {"overrides": {"weight_decai": 1}})
