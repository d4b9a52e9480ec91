"""Photos are decoded once: what models see is made while they are checked, and is what a second decoding would give."""

import errno

import numpy as np
import pandas as pd
import pytest
from data.test_preprocess import large
from data.test_processes import drawn
from PIL import Image

from fruitlib.core import config as settings
from fruitlib.data import cache, first_squares, photo_checks, preprocess, processes, sources


@pytest.fixture
def photos(tmp_path):
    """A folder with photos of many kinds, and their rows as they are before they are checked."""
    rows = pd.DataFrame({"path": drawn(tmp_path / "photos"), "label": "a", "group": "", "split": ""})
    return tmp_path / "photos", rows


def checked(photos, config, cache_dir):
    folder, rows = photos
    with cache.squares_while_checking(folder, len(rows), config, cache_dir) as squares:
        return photo_checks.check_photos(folder, rows, squares=squares)


def found_in(cache_dir, config, paths, keys):
    (file,) = cache_dir.glob("*.squares")
    photos = [(sources.box_of(path), key) for path, key in zip(paths, keys, strict=True)]
    return first_squares.found(file, config.image_size, photos)


def usable(table):
    ok = table[table["status"] == "ok"]
    return ok["path"].tolist(), ok["sha256"].tolist()


@pytest.mark.parametrize("by_processes", [False, True])
@pytest.mark.parametrize("changes", [{}, {"image_size": 300}, {"crop_to": "object"}, {"resize": "pad", "center": 0.8}])
def test_one_opening_gives_the_same_table_and_the_same_squares(photos, tmp_path, monkeypatch, by_processes, changes):
    if by_processes:
        monkeypatch.setattr(processes, "WORTHWHILE", 1)
        monkeypatch.setattr(processes.machine, "usable_cores", lambda: 2)
    config = settings.make({"image_size": 64} | changes)
    table = checked(photos, config, tmp_path / "cache")
    assert table.equals(photo_checks.check_photos(*photos))
    paths, keys = usable(table)
    with found_in(tmp_path / "cache", config, paths, keys) as found:
        there = set(range(len(paths))) - set(found.missing().tolist())
        pixels = cache.mapped(found.content, (len(table), *[config.image_size] * 2, 3), 0, read_ahead=False)
        for number in there:
            expected = preprocess.decode(photos[0], paths[number], config)
            assert np.array_equal(pixels[found.rows[number]], expected), paths[number]
    compared = {paths[number] for number in there}
    assert compared >= {"grey.jpg", "turned.jpg", "large.png", "10.jpg"} and "deep.png" not in compared
    assert any("#xywh" in path for path in compared)


def counted(monkeypatch):
    """The paths of photos that are decoded from now on."""
    decoded, real = [], preprocess.decode
    monkeypatch.setattr(
        preprocess, "decode", lambda folder, path, *rest: decoded.append(path) or real(folder, path, *rest)
    )
    return decoded


def test_the_cache_reads_them_and_nothing_is_decoded_twice(photos, tmp_path, monkeypatch):
    config, cache_dir = settings.make({"image_size": 64}), tmp_path / "cache"
    paths, keys = usable(checked(photos, config, cache_dir))
    expected = np.stack([preprocess.decode(photos[0], path, config) for path in paths])
    decoded, shown = counted(monkeypatch), []
    store = cache.open_store(photos[0], paths, keys, config, cache_dir, lambda *progress: shown.append(progress))
    assert set(decoded) == {"deep.png", "progressive.jpg"} and shown == [(1, 2), (2, 2)]
    assert np.array_equal(store.take(range(len(paths))), expected)
    with pytest.raises(ValueError, match="read-only"):
        store.pixels[0] = 0
    decoded.clear()  # what was missing is there now; any of the photos, in any order, are served by the one file
    back = cache.open_store(photos[0], paths[::-2], keys[::-2], config, cache_dir)
    assert np.array_equal(back.take(range(len(back))), expected[::-2])
    assert not decoded and not list(cache_dir.glob("*.npy"))


def test_photos_of_the_same_bytes_are_decoded_once(tmp_path, monkeypatch):
    deep = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(deep).save(tmp_path / "photos" / name)
    rows = pd.DataFrame({"path": ["a.png", "b.png"], "label": "a", "group": "", "split": ""})
    config = settings.make({"image_size": 32})
    paths, keys = usable(checked((tmp_path / "photos", rows), config, tmp_path / "cache"))
    decoded = counted(monkeypatch)
    store = cache.open_store(tmp_path / "photos", paths, keys, config, tmp_path / "cache")
    assert len(decoded) == 1 and np.array_equal(*store.take([0, 1]))
    assert np.array_equal(store.take([0])[0], preprocess.decode(tmp_path / "photos", "a.png", config))


def test_they_are_those_of_the_photos_settings_and_bytes_alone(photos, tmp_path):
    config, cache_dir = settings.make({"image_size": 64}), tmp_path / "cache"
    paths, keys = usable(checked(photos, config, cache_dir))
    other = settings.make({"image_size": 32})
    small = cache.open_store(photos[0], paths, keys, other, cache_dir)
    assert np.array_equal(small.take([0])[0], preprocess.decode(photos[0], paths[0], other))
    assert list(cache_dir.glob("*.squares"))  # they wait for whoever asks for this size
    place = paths.index("grey.jpg")
    (photos[0] / "grey.jpg").write_bytes((photos[0] / "10.jpg").read_bytes())
    keys[place] = ""  # not known: the bytes of today count
    now = cache.open_store(photos[0], paths, keys, config, cache_dir)
    assert np.array_equal(now.take([place])[0], preprocess.decode(photos[0], "grey.jpg", config))


@pytest.mark.parametrize("at_the_end_too", [False, True])
def test_a_disk_that_fills_up_while_photos_are_checked_costs_a_second_decoding_only(
    photos, tmp_path, monkeypatch, at_the_end_too
):
    config, cache_dir = settings.make({"image_size": 64}), tmp_path / "cache"
    room, real = iter([True] * 3), first_squares.Places.put

    def put(places, place, square):
        return real(places, place, square) if next(room, False) else real(places, place, square[:3]) and False

    def no_room(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(first_squares.Places, "put", put)
        if at_the_end_too:
            full.setattr(first_squares.os, "fsync", no_room)
        table = checked(photos, config, cache_dir)
    assert table.equals(photo_checks.check_photos(*photos))
    paths, keys = usable(table)
    with found_in(cache_dir, config, paths, keys) as found:
        if at_the_end_too:
            assert found is None
        else:
            assert 0 < len(set(found.rows)) - len(found.missing()) <= 3
    store = cache.open_store(photos[0], paths, keys, config, cache_dir)
    expected = np.stack([preprocess.decode(photos[0], path, config) for path in paths])
    assert np.array_equal(store.take(range(len(paths))), expected)


def test_where_nothing_is_kept_nothing_is_made(photos, tmp_path, monkeypatch):
    with cache.squares_while_checking(photos[0], 1, settings.make({"cache": "stream"}), tmp_path / "a") as squares:
        assert squares is None
    monkeypatch.setattr(cache, "disk_budget", lambda folder: 1000)
    with cache.squares_while_checking(photos[0], 9, settings.make({}), tmp_path / "b") as squares:
        assert squares is None
    assert not list(tmp_path.glob("*/*.squares"))


def test_an_interrupted_check_leaves_nothing(photos, tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        cache.squares_while_checking(photos[0], 1, settings.make({}), tmp_path / "cache"),
    ):
        raise KeyboardInterrupt
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_a_sharp_drawing_needs_is_read_again(tmp_path):
    cells = np.random.default_rng(0).choice([0, 255], (98, 98, 3)).astype(np.uint8)
    picture = np.kron(cells, np.ones((37, 37, 1), np.uint8))[:3600, :3600]
    (tmp_path / "photos").mkdir()
    Image.fromarray(picture).save(tmp_path / "photos" / "drawing.jpg", quality=75)
    large(3600, 3600).save(tmp_path / "photos" / "soft.jpg", quality=75)
    rows = pd.DataFrame({"path": ["drawing.jpg", "soft.jpg"], "label": "a", "group": "", "split": ""})
    config = settings.make({"image_size": 224})
    paths, keys = usable(checked((tmp_path / "photos", rows), config, tmp_path / "cache"))
    with found_in(tmp_path / "cache", config, paths, keys) as found:
        assert [paths[number] for number in found.missing()] == ["drawing.jpg"]  # `read` decodes it in full
