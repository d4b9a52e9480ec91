"""Features once per photo: kept by photo, preparation, network and view; damaged files are made again."""

import os
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from fruitlib.core import config, files
from fruitlib.data import dataset
from fruitlib.training import features, models, views, zoo

SETTINGS = {"model": "resnet18", "head": "logistic", "lr": 0.001}


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """A cache of its own, and how many photos were computed for each view since the last look."""
    monkeypatch.setenv("FRUITLIB_CACHE", str(tmp_path / "cache"))
    counts, real = [], features.compute

    def compute(model, photos, parts=(("one", 0),), progress=None):
        counts.append((len(photos), len(parts)))
        return real(model, photos, parts, progress)

    monkeypatch.setattr(features, "compute", compute)

    def look():
        found = counts.copy()
        counts.clear()
        return found

    return look


@pytest.fixture
def photos(make_run, cached):
    return dataset.load_photos(make_run(**SETTINGS), "train")


def network(seed=0, **settings):
    torch.manual_seed(seed)
    return models.build(config.make({**SETTINGS, "image_size": 32, **settings}), 3).eval()


@pytest.mark.parametrize("kind", ["one", "flip", "five"])
def test_the_heads_mean_over_their_views_is_the_models_own_answer(photos, kind):
    model = network(views=kind)
    found = features.of_photos(model, photos, kind)
    assert found.values.dtype == np.float32 and found.values.shape == (len(photos), len(features.PARTS[kind]), 512)
    head = models.head_of(model)
    with torch.inference_mode():
        own = model(dataset.to_float(photos.images))
        mean = torch.stack([head(torch.from_numpy(values)) for values in found.values.transpose(1, 0, 2)]).mean(0)
    torch.testing.assert_close(mean, own, atol=1e-5, rtol=1e-5)
    assert model.views == kind and models.head_of(model) is head


def test_a_photo_is_computed_once_and_new_ones_only(photos, cached):
    some = photos.pick(range(10))
    first = features.of_photos(network(), some)
    assert cached() == [(10, 1)] and "0 from the cache, 10 computed" in first.summary
    again = features.of_photos(network(), photos)
    assert cached() == [(len(photos) - 10, 1)] and "10 from the cache" in again.summary
    assert np.array_equal(again.values[:10], first.values)
    backwards = features.of_photos(network(), photos.pick(range(len(photos))[::-1]))
    assert cached() == [] and np.array_equal(backwards.values[::-1], again.values)
    assert "all from the cache" in backwards.summary
    flipped = features.of_photos(network(), photos, "flip")
    assert cached() == [(len(photos), 1)]  # the mirrored ones
    assert np.array_equal(flipped.values[:, 0], again.values[:, 0])


def changed(model, name):
    """The same network but for one thing."""
    if name == "head":
        torch.nn.init.ones_(models.head_of(model).weight)
    if name == "mean":
        model.mean += 0.01
    if name == "weight":
        next(model.net.parameters()).data += 1e-4
    return model


@pytest.mark.parametrize(("what", "computed"), [("head", False), ("mean", True), ("weight", True)])
def test_another_network_has_other_features_but_not_another_head(photos, cached, what, computed):
    features.of_photos(network(), photos)
    cached()
    features.of_photos(changed(network(), what), photos)
    assert bool(cached()) == computed


@pytest.mark.parametrize("settings", [{"center": 0.8}, {"brightness": 1.2}, {"resize": "pad"}])
def test_photos_prepared_otherwise_have_other_features(photos, cached, settings):
    features.of_photos(network(), photos)
    cached()
    store = replace(photos.store, config=photos.store.config.model_copy(update=settings))
    features.of_photos(network(), replace(photos, store=store))
    assert cached() == [(len(photos), 1)]


def cut(file):
    file.write_bytes(file.read_bytes()[:-200])


def other_bytes(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(bytes(content))


def nan(file):
    with np.load(file) as content:
        np.savez(file, keys=content["keys"], values=content["values"] * np.nan)


@pytest.mark.parametrize(
    "damage", [cut, other_bytes, nan, lambda file: file.write_bytes(b""), lambda f: f.write_text("x")]
)
def test_a_damaged_file_is_removed_and_made_again(photos, cached, damage, capsys):
    whole = features.of_photos(network(), photos).values
    (file,) = files.cache_dir().glob("*.npz")
    damage(file)
    assert np.array_equal(features.of_photos(network(), photos).values, whole)
    assert cached() == [(len(photos), 1)] * 2 and "damaged; removed" in capsys.readouterr().out
    features.of_photos(network(), photos)
    assert cached() == []


def test_those_who_ask_at_once_compute_once(photos, cached):
    model = network()
    threads = [threading.Thread(target=features.of_photos, args=(network(), photos)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cached() == [(len(photos), 1)]
    assert features.of_photos(model, photos).values.shape == (len(photos), 1, 512)


def test_too_many_features_are_not_kept_and_that_is_said(photos, cached, monkeypatch):
    monkeypatch.setattr(features, "MOST_BYTES", 1000)
    found = features.of_photos(network(), photos)
    assert "not kept, since they take" in found.summary and not list(files.cache_dir().glob("*.npz"))


def test_where_nothing_can_be_written_features_are_computed_once_and_that_is_said(photos, cached, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features, "_write", full)
    found = features.of_photos(network(), photos)
    assert "not kept" in found.summary and "No space left" in found.summary and cached() == [(len(photos), 1)]


def test_files_that_nobody_used_for_a_week_go_when_others_are_made(photos, cached):
    features.of_photos(network(), photos)
    (old,) = files.cache_dir().glob("*.npz")
    for file in (old, shutil.copy(old, files.cache_dir() / "b.probe.csv")):
        os.utime(file, (0, 0))
    features.of_photos(network(seed=1), photos)
    assert not old.exists() and len(list(files.cache_dir().glob("*.npz"))) == 1
    assert not list(files.cache_dir().glob("*.probe.csv"))


def test_no_photos_have_no_features(photos):
    assert features.of_photos(network(), photos.pick([])).values.shape[0] == 0


def test_parts_are_the_views_that_are_averaged():
    images = torch.rand(2, 3, 16, 16)
    for kind, parts in features.PARTS.items():
        found = [views.of(images, part)[number] for part, number in parts]
        assert len(found) == len(views.of(images, kind))
        assert all(torch.equal(one, other) for one, other in zip(found, views.of(images, kind), strict=True))
    assert zoo.head_name(network().net) == "fc"
