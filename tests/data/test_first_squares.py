"""Photos are decoded once: what models see is made while they are checked, and is what a second decoding would give."""

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
    (file,) = (tmp_path / "cache").glob("*.squares")
    places, squares = first_squares.found(file, config.image_size)
    compared = set()
    for path, sha256 in zip(*usable(table), strict=True):
        place = first_squares.place_of(places, sources.box_of(path), sha256)
        if place is not None:
            assert np.array_equal(squares[place], preprocess.decode(photos[0], path, config)), path
            compared.add(path)
    assert compared >= {"grey.jpg", "turned.jpg", "large.png", "10.jpg"} and "deep.png" not in compared
    assert any("#xywh" in path for path in compared)


def test_the_cache_is_made_of_them_and_nothing_is_decoded_twice(photos, tmp_path, monkeypatch):
    config, cache_dir = settings.make({"image_size": 64}), tmp_path / "cache"
    paths, keys = usable(checked(photos, config, cache_dir))
    decoded, real = [], preprocess.decode
    monkeypatch.setattr(
        preprocess, "decode", lambda folder, path, *rest: decoded.append(path) or real(folder, path, *rest)
    )
    store = cache.open_store(photos[0], paths, keys, config, cache_dir)
    assert set(decoded) <= {"deep.png", "progressive.jpg"} and not list(cache_dir.glob("*.squares"))
    expected = np.stack([real(photos[0], path, config) for path in paths])
    assert np.array_equal(store.take(range(len(paths))), expected)


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


class Full:
    """A file on a disk that has room for so many writes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, content):
        self.room -= 1
        if self.room < 0:
            raise OSError(28, "No space left on device")
        return self.file.write(content if self.room else content[:100])  # the last one is cut off


def test_a_disk_that_fills_up_while_photos_are_checked_costs_a_second_decoding_only(photos, tmp_path):
    config, cache_dir = settings.make({"image_size": 64}), tmp_path / "cache"
    with cache.squares_while_checking(photos[0], 1, config, cache_dir) as squares:
        squares._out = Full(squares._out, 3)
        table = photo_checks.check_photos(*photos, squares=squares)
    assert table.equals(photo_checks.check_photos(*photos))
    paths, keys = usable(table)
    store = cache.open_store(photos[0], paths, keys, config, cache_dir)
    assert np.array_equal(store.take([5])[0], preprocess.decode(photos[0], paths[5], config))


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
    table = checked((tmp_path / "photos", rows), config, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*.squares")
    places = first_squares.found(file, 224)[0]
    # `read` decodes the drawing once more, in full
    assert [first_squares.place_of(places, None, sha256) for sha256 in table["sha256"]] == [None, 0]
