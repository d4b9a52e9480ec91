"""Balance, mixing and freezing inside the recipe: each does what it says, whatever the number of processes."""

import shutil

import numpy as np
import pytest
import torch
import torchvision

from fruitlib.core import config
from fruitlib.data import dataset
from fruitlib.training import blocks, evaluate, features, models, train, weights

VALUES = ["train_loss", "train_accuracy", "train_macro_f1", "val_loss", "val_accuracy", "val_macro_f1"]


@pytest.fixture(scope="module")
def uneven(shapes, tmp_path_factory):
    """16 discs, 16 bars, 10 crosses: 4 each for validation and test leave 8, 8 and 2 for training."""
    folder = tmp_path_factory.mktemp("uneven") / "photos"
    shutil.copytree(shapes, folder)
    for photo in sorted((folder / "cross").iterdir())[10:]:
        photo.unlink()
    return folder


@pytest.fixture
def make_run(make_run, uneven):
    """The same, on uneven classes."""
    fixed = {"data": str(uneven), "near_duplicates": "ignore", "cam_every": 0}
    return lambda name="run", **settings: make_run(name, **{**fixed, **settings})


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkpoint of the five-class base model, untrained but fixed."""
    path = tmp_path_factory.mktemp("base") / "best.pt"
    torch.manual_seed(3)
    cfg = config.make({"model": "base", "image_size": 32})
    torch.save(models.checkpoint(models.build(cfg, 5), cfg, list("abcde")), path)
    return str(path)


@pytest.mark.parametrize(
    ("settings", "photos"),
    [
        ({}, 18),
        ({"balance": "oversample"}, 24),
        ({"balance": "undersample"}, 6),
        ({"balance": "weighted_sampler"}, 18),
        ({"balance": "augment_to", "augment_to": 7}, 8 + 8 + 7),
    ],
)
def test_an_epoch_has_the_photos_its_balance_asks_for(make_run, settings, photos):
    run = make_run(epochs=1, **settings)
    train.fit(run)
    assert run.record("train")["photos_per_epoch"] == photos


def test_class_weights_weigh_the_loss_of_training_alone(make_run):
    plain = train.fit(make_run("plain", epochs=1, lr=1e-9, augment="none"))
    weighted = train.fit(make_run("weighted", epochs=1, lr=1e-9, augment="none", balance="class_weights"))
    assert weighted["val_loss"].iloc[0] == pytest.approx(plain["val_loss"].iloc[0], rel=1e-5)
    assert abs(weighted["train_loss"].iloc[0] - plain["train_loss"].iloc[0]) > 1e-3


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_two_processes_mix_the_same_pairs_as_one(make_run, forked_group, mixing):
    settings = {"mixing": mixing, "balance": "oversample", "epochs": 2}
    one, two = (train.fit(make_run(str(n), processes=n, **settings)) for n in (1, 2))
    np.testing.assert_allclose(two[VALUES], one[VALUES], rtol=1e-4, atol=1e-5)


def test_a_frozen_backbone_stays_and_its_head_learns(make_run, base):
    run = make_run(freeze="backbone", base_weights=base, lr=0.05)
    train.fit(run)
    before = weights.load_checkpoint(base)["state_dict"]
    after = weights.load_checkpoint(run.path / "best.pt")["state_dict"]
    for name in ("conv1.weight", "conv3.bias", "fc.weight"):
        assert torch.equal(after[f"net.base.{name}"], before[f"net.{name}"])
    assert run.record("train")["parameters"] == 5 * 3 + 3


def test_batchnorm_of_a_frozen_backbone_stays_as_it_is():
    cfg = config.make({"model": "resnet18", "weights": "DEFAULT", "freeze": "backbone"})
    model = models.Normalized(torchvision.models.resnet18(weights=None, num_classes=3))
    blocks.freeze_blocks(model, cfg)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    blocks.set_modes(model, cfg)
    assert model.net.fc.training
    model(torch.rand(4, 3, 64, 64)).sum().backward()
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {"net.fc.weight", "net.fc.bias"}


@pytest.mark.parametrize("processes", [1, 2])
def test_features_computed_once_give_the_numbers_of_computing_them_every_time(
    make_run, base, monkeypatch, forked_group, processes
):
    settings = {"freeze": "backbone", "base_weights": base, "augment": "none", "lr": 0.05}
    once = train.fit(make_run("once", processes=processes, **settings))
    monkeypatch.setattr(config.Config, "features_once", False)
    always = train.fit(make_run("always", **settings))
    np.testing.assert_allclose(once[VALUES], always[VALUES], rtol=1e-4, atol=1e-5)


def test_smote_tops_up_the_features_of_rare_classes(make_run, base):
    run = make_run(freeze="backbone", base_weights=base, augment="none", balance="smote", epochs=1)
    train.fit(run)
    assert run.record("train")["photos_per_epoch"] == 24


@pytest.mark.parametrize("name", ["end2end", "resnet18", "efficientnet_b0"])
def test_the_head_of_the_features_is_the_model(name, make_run):
    model = models.build(config.make({"model": name}), 3)
    photos = dataset.load_photos(make_run(), "val")
    with torch.no_grad():
        logits = models.head_of(model.eval())(torch.from_numpy(features.compute(model, photos)[0]))
        torch.testing.assert_close(logits, evaluate.predict(model, photos), atol=1e-5, rtol=1e-4)


def test_the_same_decoded_photos_wherever_they_are_kept(make_run):
    first, second = (train.fit(make_run(kind, cache=kind, epochs=2)) for kind in ("ram", "stream"))
    assert first[VALUES].equals(second[VALUES])


def test_a_frozen_backbone_sees_each_photo_once(make_run, base, monkeypatch, tmp_path):
    """In all runs together, whatever is trained on its features."""
    seen = []
    real = models.Base.forward
    monkeypatch.setenv("FRUITLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(models.Base, "forward", lambda self, images: seen.append(len(images)) or real(self, images))
    run = make_run(freeze="backbone", base_weights=base, augment="none", epochs=5)
    train.fit(run)
    assert sum(seen) == len(run.rows("train")) + len(run.rows("val"))
    train.fit(make_run("other", freeze="backbone", base_weights=base, augment="none", lr=0.01, seed=1))
    assert sum(seen) == len(run.rows("train")) + len(run.rows("val"))


def test_two_processes_unfreeze_as_one_does(make_run, base, forked_group):
    settings = {"freeze": "backbone", "base_weights": base, "unfreeze_every": 1, "lr": 0.01, "monitor": "loss"}
    one, two = (train.fit(make_run(str(n), processes=n, **settings)) for n in (1, 2))
    np.testing.assert_allclose(two[VALUES], one[VALUES], rtol=0, atol=1e-5)
