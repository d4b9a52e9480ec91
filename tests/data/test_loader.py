"""Photos in order, and batches that depend on (seed, epoch, slot) alone; no thread is left running."""

import re
import threading
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fruitlib.core import config
from fruitlib.core.errors import InputError
from fruitlib.core.files import cache_dir
from fruitlib.data import augment, balance, cache, dataset, loader
from fruitlib.data.batch import Batch

SIDE, COUNT = 32, 21
GPU = torch.device("cuda", 0)


def settings(**values):
    return config.make({"image_size": SIDE, "batch_size": 8, "cache": "ram", **values})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photos of smooth noise, no two alike; class b is rare."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(COUNT):
        rough = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(rough).resize((40, 40), Image.Resampling.BICUBIC).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def rows():
    labels = ["b" if number % 5 == 0 else "a" for number in range(COUNT)]
    return pd.DataFrame({"path": [f"{number:02d}.png" for number in range(COUNT)], "label": labels})


@pytest.fixture(scope="module")
def photos(folder, rows):
    paths = rows["path"].tolist()
    return dataset.Photos(
        cache.decode_all(folder, paths, settings()), np.arange(len(paths)), dataset._labels(rows, ["a", "b"]), paths
    )


def held(pixels: np.ndarray, labels=None) -> dataset.Photos:
    """Photos of given uint8 pixels (n, S, S, 3)."""
    count = len(pixels)
    paths = [str(i) for i in range(count)]
    store = cache.Store(pixels, None, paths, None, "ram", "")
    labels = torch.zeros(count, dtype=torch.long) if labels is None else labels
    return dataset.Photos(store, np.arange(count), labels, paths)


def feed(photos, cfg, rank=0, world_size=1):
    return loader.Feed(photos, cfg, "cpu", rank, world_size)


def test_every_photo_is_in_exactly_one_batch_and_no_batch_is_tiny():
    for count in (16, 17, 31, 40, 234, 5):
        parts = loader.batches(count, 16, seed=3, epoch=2)
        assert sorted(torch.cat(parts).tolist()) == list(range(count))
        assert min(map(len, parts)) >= min(8, count) and max(map(len, parts)) < 24
    assert sorted(map(len, loader.batches(5, 2, seed=0, epoch=1))) == [2, 3]  # BatchNorm cannot train on one


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return torch.cat(loader.batches(50, 8, seed, epoch)).tolist()

    torch.manual_seed(1)
    first = order(0, 1)
    torch.manual_seed(2)  # torch's global state does not matter
    assert order(0, 1) == first
    assert order(0, 2) != first != order(1, 1)


def test_loaded_photos_carry_their_labels_and_an_unknown_label_is_named(folder, rows, photos):
    assert photos.images.shape == (COUNT, 3, SIDE, SIDE) and photos.images.dtype == torch.uint8
    assert photos.images.is_contiguous(memory_format=torch.channels_last)
    assert [["a", "b"][i] for i in photos.labels] == rows["label"].tolist()
    some = photos.pick([7, 2]).pick(torch.tensor([1, 0, 1]))
    assert some.paths == ["02.png", "07.png", "02.png"] and some.labels.tolist() == photos.labels[[2, 7, 2]].tolist()
    assert np.array_equal(some.take([1]), photos.take([7]))
    with pytest.raises(InputError, match=r"01\.png: label a is not among the classes b"):
        dataset._labels(rows[1:], ["b"])


def fake_run(folder, rows, tmp_path, monkeypatch, **values):
    """What `load_photos` reads from a run, over photos 0-11 train, 12-15 val, 16-18 test, 19 sealed, 20 quarantined."""
    monkeypatch.setenv("FRUITLIB_CACHE", str(tmp_path / "kept"))
    split = ["train"] * 12 + ["val"] * 4 + ["test"] * 4 + ["train"]
    status = ["ok"] * 19 + ["sealed", "quarantined"]
    manifest = rows.assign(split=split, status=status, sha256="")
    usable = manifest[manifest["status"] != "quarantined"]
    cfg = settings(data=str(folder), **values)
    return SimpleNamespace(
        config=cfg,
        manifest=manifest,
        class_names=["a", "b"],
        rows=lambda split: usable[usable["split"] == split].reset_index(drop=True),
    )


def test_train_and_val_share_one_file_and_test_is_not_decoded_before_asked(folder, rows, tmp_path, monkeypatch, photos):
    run = fake_run(folder, rows, tmp_path, monkeypatch)
    train, val = dataset.load_photos(run, "train"), dataset.load_photos(run, "val")
    files = list(cache_dir().glob("*.npy"))
    assert len(files) == 1 and len(train.store) == len(val.store) == 16
    assert (len(train), len(val)) == (12, 4) and val.paths == [f"{i}.png" for i in range(12, 16)]
    assert np.array_equal(val.take(range(4)), photos.take(range(12, 16)))
    assert torch.equal(val.labels, photos.labels[12:16])
    test = dataset.load_photos(run, "test")
    assert test.paths == [f"{i}.png" for i in range(16, 20)] and len(test.store) == 4
    run.manifest.loc[3, "status"] = "left_out"
    with pytest.raises(InputError, match=r"03\.png: in the train part, but not usable"):
        dataset.load_photos(run, "train")


def test_spread_keeps_the_proportions_of_the_classes():
    labels = torch.tensor([0] * 107 + [1] * 107 + [2] * 30)
    photos = held(np.zeros((244, 4, 4, 3), np.uint8), labels)
    counts = torch.bincount(dataset.spread(photos, 100).labels)
    assert counts.sum() == 100 and (counts - torch.tensor([44, 44, 12])).abs().max() <= 1
    assert len(dataset.spread(photos, 9999)) == 244
    assert len(dataset.spread(photos.pick([]), 10)) == 0


def test_arrays_and_pictures_hold_the_same_pixels(photos):
    pixels = photos.images
    np.testing.assert_allclose(dataset.to_array(pixels), dataset.to_float(pixels).numpy(), atol=1e-7)
    assert dataset.to_array(pixels).flags["C_CONTIGUOUS"]
    assert dataset.to_pictures(pixels)[1, 2, 3].tolist() == pixels[1, :, 2, 3].tolist()


def test_a_batch_is_what_its_slots_say(photos):
    cfg = settings(augment="geometric", seed=3)
    draws = augment.draw("geometric", COUNT, 3, 2, cfg.image_size)
    order = loader.batches(COUNT, 8, 3, 2)
    shown = list(feed(photos, cfg).epoch(2))
    assert len(shown) == len(order) and len(feed(photos, cfg)) == COUNT
    for batch, slots in zip(shown, order, strict=True):
        expected = augment.apply(photos.take(slots), draws.pick(slots.numpy()))
        assert torch.equal(batch.images, dataset.to_float(torch.from_numpy(expected).permute(0, 3, 1, 2)))
        assert torch.equal(batch.labels, photos.labels[slots]) and batch.size == len(slots)
        assert batch.other_labels is None and batch.share == 1
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "values",
    [
        {"augment": "geometric"},
        {"augment": "full", "mixing": "mixup"},
        {"augment": "crop", "mixing": "cutmix"},
        {"augment": "trivial", "mixing": "mixup"},
        {"augment": "none", "balance": "oversample"},
        {"augment": "geometric", "balance": "augment_to", "augment_to": 20, "mixing": "cutmix"},
    ],
)
def test_photos_look_the_same_whatever_the_processes_and_the_cache(values, folder, rows, photos):
    cfg = settings(**values)
    whole = list(feed(photos, cfg).epoch(3))
    keys = [""] * COUNT
    stream = cache.open_store(folder, photos.paths, keys, settings(cache="stream"), folder)
    streamed = dataset.Photos(stream, photos.index, photos.labels, photos.paths)
    for batch, again in zip(whole, feed(streamed, cfg).epoch(3), strict=True):
        assert torch.equal(batch.images, again.images)
    for processes in (2, 3):
        shares = [list(feed(photos, cfg, rank, processes).epoch(3)) for rank in range(processes)]
        for number, batch in enumerate(whole):
            for rank, share in enumerate(shares):
                mine = share[number]
                assert torch.equal(mine.images, batch.images[rank::processes])
                assert torch.equal(mine.labels, batch.labels[rank::processes])
                assert (mine.share, mine.size) == (batch.share, len(batch.images))
                if batch.other_labels is not None:
                    assert torch.equal(mine.other_labels, batch.other_labels[rank::processes])


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_mixed_labels_belong_to_the_photos_mixed_in(mixing):
    """Photos of one flat colour each, which is their class: the mix can be read off the pixels."""
    pixels = np.repeat(np.arange(0, 200, 10, dtype=np.uint8), SIDE * SIDE * 3).reshape(20, SIDE, SIDE, 3)
    photos = held(pixels, torch.arange(20))
    for batch in feed(photos, settings(augment="none", mixing=mixing, mixing_alpha=2.0)).epoch(1):
        expected = (batch.share * batch.labels + (1 - batch.share) * batch.other_labels) * 10 / 255
        torch.testing.assert_close(batch.images.mean((1, 2, 3)), expected.float(), atol=1e-5, rtol=0)
        assert sorted(batch.other_labels.tolist()) == sorted(batch.labels.tolist())


def test_balanced_slots_are_shown_each_augmented_by_itself(photos):
    cfg = settings(balance="oversample", augment="geometric")
    shown = list(feed(photos, cfg).epoch(1))
    counts = torch.bincount(torch.cat([batch.labels for batch in shown]))
    slots = balance.slots(photos.labels, "oversample", 0, cfg.seed, 1)
    assert counts[0] == counts[1] and len(feed(photos, cfg)) == len(slots) == counts.sum()
    assert len({image.numpy().tobytes() for batch in shown for image in batch.images}) == len(slots)


@pytest.mark.parametrize("policy", ["none", "crop", "geometric", "full"])
def test_what_a_gpu_would_do_looks_the_same(policy, photos):
    cfg = settings(augment=policy, mixing="cutmix")
    as_on_gpu = feed(photos, cfg)
    as_on_gpu.augment_in_loop = True  # moved to the device first, then augmented as one batch
    for here, batch in zip(feed(photos, cfg).epoch(1), as_on_gpu.epoch(1), strict=True):
        assert torch.equal(here.labels, batch.labels) and torch.equal(here.other_labels, batch.other_labels)
        assert (here.images - batch.images).abs().mean() < 0.6 / 255
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "values",
    [
        {"augment": "none"},
        {"augment": "none", "mixing": "mixup", "balance": "oversample"},
        {"augment": "full"},
        {"augment": "crop", "mixing": "cutmix", "balance": "augment_to", "augment_to": 20},
    ],
)
@pytest.mark.parametrize("group_bytes", [1, 3 * 4 * 8 * 3 * SIDE**2, 1e9], ids=["each batch", "three", "all"])
def test_photos_kept_on_the_device_make_the_same_batches(values, group_bytes, photos, monkeypatch):
    """On the CPU by the code that a GPU runs: bit for bit, in however many batches at a time it works."""
    monkeypatch.setattr(loader, "GROUP_BYTES", group_bytes)
    monkeypatch.setattr(loader, "UPLOAD_BYTES", 5 * 3 * SIDE**2)  # not a divisor of the photos
    cfg, some = settings(**values), photos.pick(range(COUNT - 1, -1, -1))
    for rank, processes in ((0, 1), (0, 2), (1, 2)):
        host, there = (loader.Feed(some, cfg, "cpu", rank, processes, resident=way) for way in (False, True))
        host.augment_in_loop = True
        for expected, batch in zip(host.epoch(2), there.epoch(2), strict=True):
            assert torch.equal(batch.images, expected.images) and torch.equal(batch.labels, expected.labels)
            assert (batch.share, batch.size) == (expected.share, expected.size)
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            if expected.other_labels is not None:
                assert torch.equal(batch.other_labels, expected.other_labels)
        assert threads() == []


@pytest.mark.parametrize(
    ("free", "values", "kept", "why"),
    [
        (4 * COUNT * 3 * SIDE**2, {}, True, r"photos are kept on the GPU and take 65 kB \(room for 65 kB, a quarter"),
        (4 * COUNT * 3 * SIDE**2 - 4, {}, False, "come from the host: they take 65 kB"),
        (1e9, {"cache": "stream"}, False, "come from the host: they are decoded every time"),
        (1e9, {"augment": "trivial"}, False, "come from the host: augment = trivial"),
    ],
)
def test_a_gpu_keeps_the_photos_where_a_quarter_of_its_memory_holds_them(
    free, values, kept, why, folder, photos, monkeypatch
):
    cfg = settings(**values)
    store = cache.open_store(folder, photos.paths, [""] * COUNT, cfg, folder)
    monkeypatch.setattr(loader, "_free_bytes", lambda device: int(free))
    placed, summary = loader._placed(dataset.Photos(store, photos.index, photos.labels, photos.paths), cfg, GPU)
    assert placed == kept
    assert re.search(why, summary)
    assert loader._placed(photos, cfg, torch.device("cpu")) == (False, "")


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fruitlib")]


def test_no_thread_is_left_after_an_epoch_or_an_early_end(photos):
    for _ in feed(photos, settings()).epoch(1):
        pass
    assert threads() == []
    early = feed(photos, settings()).epoch(1)
    next(early)
    early.close()
    assert threads() == []


def test_an_interrupted_loop_leaves_no_thread_though_its_traceback_lives():
    def slowly(number):
        time.sleep(0.02)
        return number

    def loop():
        for number in loader.prefetch(slowly, 100, 4):
            if number == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        loop()
    deadline = time.monotonic() + 5
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() == [] and caught.traceback  # which still holds the loop's frame, and so the generator


def test_results_come_in_order_and_only_twice_the_depth_ahead():
    begun = []

    def work(number):
        begun.append(number)
        return number

    for count in (0, 1, 3, 4, 5, 17):
        assert list(loader.prefetch(work, count, 4)) == list(range(count))
    begun.clear()
    results = loader.prefetch(work, 100, 4)
    next(results)
    time.sleep(0.05)
    assert len(begun) <= 8
    results.close()


def test_an_error_beside_the_loop_surfaces_in_it(folder, rows):
    stream = cache.open_store(folder, rows["path"].tolist(), [""] * COUNT, settings(cache="stream"), folder)
    stream.paths[4] = "gone.png"
    photos = dataset.Photos(stream, np.arange(COUNT), torch.zeros(COUNT, dtype=torch.long), rows["path"].tolist())
    with pytest.raises(InputError, match=r"gone\.png: does not open"):
        list(feed(photos, settings()).epoch(1))
    assert threads() == []


def test_example_batch_shows_what_training_sees(photos):
    cfg = settings(augment="none", batch_size=4)
    first = loader.batches(COUNT, 4, 0, 1)[0]
    assert np.array_equal(loader.example_batch(photos, cfg), photos.take(first))
    mixed = settings(augment="geometric", mixing="mixup", mixing_alpha=5.0)
    assert np.abs(loader.example_batch(photos, mixed) - photos.take(loader.batches(COUNT, 8, 0, 1)[0])).mean() > 5
    assert threads() == []


def test_examples_show_a_policy():
    flat = np.full((4, SIDE, SIDE, 3), (200, 60, 20), np.uint8)
    assert np.array_equal(loader.examples(flat, "geometric", 0), flat)
    assert not np.array_equal(loader.examples(flat, "colour", 0), flat)


@given(count=st.integers(2, 40), size=st.integers(1, 12))
def test_parts_of_a_batch_are_all_of_it_and_none_is_a_single_image(count, size):
    """BatchNorm cannot train on one image: a part may hold one more than `size`, unless `size` is 1."""
    labels = torch.arange(count)
    batch = Batch(torch.rand(count, 3, 2, 2), labels, labels + 1, 0.3, 99)
    parts = batch.parts(size)
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    assert torch.equal(torch.cat([part.other_labels for part in parts]), labels + 1)
    sizes = [len(part.labels) for part in parts]
    assert max(sizes) <= size + (size == 2) and max(sizes) - min(sizes) <= 1
    assert all(part.size == 99 and part.share == 0.3 for part in parts)
    assert min(sizes) >= 2 or size == 1
