"""One model of each family memorizes twelve photos through the whole recipe."""

import shutil

import pytest

from fruitlib.core import config
from fruitlib.data import splits
from fruitlib.runs.run import create_run
from fruitlib.training import train

# Learning rate and epochs (of one step each) that suffice with some to spare, at 64 pixels and from fresh weights.
FAMILIES = {
    "end2end": (0.003, 30),
    "resnet18": (0.001, 6),
    "vgg11_bn": (0.001, 6),
    "densenet121": (0.001, 7),
    "efficientnet_b0": (0.003, 15),
    "mobilenet_v2": (0.003, 10),
    "mobilenet_v3_small": (0.003, 10),
    "convnext_tiny": (0.0002, 14),
    "regnet_y_400mf": (0.003, 8),
    "shufflenet_v2_x0_5": (0.003, 10),
}


@pytest.fixture(scope="module")
def dozen(shapes, tmp_path_factory):
    """Three classes of five photos: one of each for validation, four for training."""
    folder = tmp_path_factory.mktemp("dozen") / "photos"
    shutil.copytree(shapes, folder)
    for label in folder.iterdir():
        for photo in sorted(label.iterdir())[5:]:
            photo.unlink()
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_twelve_photos_are_memorized(name, dozen, tmp_path):
    lr, epochs = FAMILIES[name]
    settings = {"model": name, "lr": lr, "epochs": epochs, "batch_size": 12, "image_size": 64}
    settings |= {"data": str(dozen), "val_per_class": 1, "test_per_class": 0, "near_duplicates": "ignore"}
    settings |= {"augment": "none", "cam_every": 0, "precision": "fp32", "memory_format": "channels_last"}
    if name == "convnext_tiny":  # without BatchNorm, as sensitive as transformers
        settings |= {"optimizer": "adamw", "warmup_epochs": 4}
    if name not in config.OURS:
        settings |= {"dropout": 0.0, "head": "gap_bn" if name.startswith("vgg") else "linear"}
    cfg = config.make(settings)
    splits.prepare_manifest(cfg, tmp_path)
    history = train.fit(create_run(tmp_path / "run", cfg))
    assert history["train_accuracy"].iloc[-1] == 1.0
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0] / 2
