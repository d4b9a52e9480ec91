"""Photos are decoded once, by one process, whole or not at all, and again when anything that matters changed."""

import errno
import hashlib
import os
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from PIL import Image

from fruitlib.core import config
from fruitlib.core.errors import InputError
from fruitlib.data import cache, preprocess

SIDE = 32


def settings(**values):
    return config.make({"image_size": SIDE, **values})


def draw(folder, count=12, size=40):
    """Photos that all differ, and their sha256."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    paths = [file.name for file in sorted(folder.iterdir())]
    return paths, [hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in paths]


@pytest.fixture
def photos(tmp_path):
    return tmp_path / "photos", *draw(tmp_path / "photos")


def open_it(photos, tmp_path, **values):
    return cache.open_store(*photos, settings(**values), tmp_path / "cache")


def files(tmp_path, ending="npy"):
    return sorted((tmp_path / "cache").glob(f"*.{ending}"))


def test_all_kinds_give_the_same_bytes_in_the_order_asked(photos, tmp_path):
    folder, paths, _ = photos
    expected = np.stack([preprocess.decode(folder, path, settings()) for path in paths])
    asked = [5, 0, 5, 11, 3]
    for kind in ("ram", "disk", "stream"):
        store = open_it(photos, tmp_path, cache=kind)
        assert store.kind == kind and len(store) == 12
        assert np.array_equal(store.take(asked), expected[asked])
        taken = store.take(np.array([], dtype=int))
        assert taken.shape == (0, SIDE, SIDE, 3)
    assert np.array_equal(cache.decode_all(folder, paths, settings()).take(range(12)), expected)


def test_what_is_taken_may_be_changed_and_the_file_stays(photos, tmp_path):
    store = open_it(photos, tmp_path)
    before = store.take([0])
    store.take([0])[:] = 0
    assert np.array_equal(store.take([0]), before)
    with pytest.raises(ValueError, match="read-only"):
        store.pixels[0] = 0


def test_a_second_opening_decodes_nothing(photos, tmp_path, monkeypatch):
    done = []
    cache.open_store(*photos, settings(), tmp_path / "cache", lambda *progress: done.append(progress))
    assert done == [(i, 12) for i in range(1, 13)]
    monkeypatch.setattr(preprocess, "decode", None)
    assert len(open_it(photos, tmp_path, cache="disk").take([1, 2])) == 2


@pytest.mark.parametrize("change", [{"image_size": 48}, {"resize": "pad"}, {"brightness": 1.2}, {"crop_to": "none"}])
def test_a_changed_setting_makes_another_file(photos, tmp_path, change):
    open_it(photos, tmp_path)
    store = open_it(photos, tmp_path, **change)
    assert len(files(tmp_path)) == 2
    assert np.array_equal(store.take([4])[0], preprocess.decode(photos[0], photos[1][4], settings(**change)))


def test_content_boxes_and_order_make_the_file_not_names_nor_training_settings(photos, tmp_path):
    folder, paths, keys = photos

    def name(paths=paths, keys=keys, **values):
        return cache.identity(folder, paths, keys, settings(**values))

    same = name()
    assert same == name(lr=0.01, seed=3, cache="disk", augment="none")
    assert same == name(keys=[""] * 12)  # hashed here where not known
    (folder / "renamed.png").write_bytes((folder / paths[0]).read_bytes())
    assert same == name(paths=["renamed.png", *paths[1:]])
    others = [name(keys=["0" * 64, *keys[1:]]), name(paths[::-1], keys[::-1]), name(paths[1:], keys[1:])]
    boxes = [name([f"{paths[0]}#xywh=0,0,{side},20", *paths[1:]]) for side in (20, 30)]
    assert len({same, *others, *boxes}) == 6


def test_an_empty_list_of_photos_gives_an_empty_store(tmp_path):
    for kind in ("auto", "ram", "disk", "stream"):
        store = cache.open_store(tmp_path, [], [], settings(cache=kind), tmp_path / "cache")
        assert len(store) == 0 and store.take([]).shape == (0, SIDE, SIDE, 3)
    assert cache.decode_all(tmp_path, [], settings()).take([]).shape == (0, SIDE, SIDE, 3)


def test_auto_keeps_what_fits_and_the_summary_names_the_budgets(photos, tmp_path, monkeypatch):
    size = 12 * SIDE * SIDE * 3

    def budgets(memory, disk):
        monkeypatch.setattr(cache, "memory_budget", lambda: memory)
        monkeypatch.setattr(cache, "disk_budget", lambda folder: disk)

    budgets(size, size - 1)
    store = open_it(photos, tmp_path)
    assert (store.kind, files(tmp_path)) == ("stream", []) and "decoded every time" in store.summary
    with pytest.raises(InputError, match="cache = disk: the photos take 37 kB"):
        open_it(photos, tmp_path, cache="disk")
    budgets(size - 1, size)
    with pytest.raises(InputError, match="cache = ram: the photos take 37 kB"):
        open_it(photos, tmp_path, cache="ram")
    store = open_it(photos, tmp_path)
    assert store.kind == "disk" and store.summary == (
        "12 photos, 37 kB decoded, read from the disk (memory budget 37 kB, disk budget 37 kB)"
    )
    budgets(size, 0)  # the file is there already: no room is needed
    store = open_it(photos, tmp_path)
    assert store.kind == "ram" and store.summary == "12 photos, 37 kB decoded, in memory (budget 37 kB)"
    assert open_it(photos, tmp_path, cache="disk").kind == "disk"


def test_a_disk_that_fills_up_means_streaming_or_an_error_by_setting(photos, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)  # the last moment at which a full disk shows
    store = open_it(photos, tmp_path)
    assert store.kind == "stream" and "decoded every time" in store.summary and "No space left" in store.summary
    assert len(store.take([1])) == 1
    with pytest.raises(InputError, match=r"cache = disk: .*No space left on device; make room"):
        open_it(photos, tmp_path, cache="disk")
    assert files(tmp_path) == [] and files(tmp_path, "partial") == []


def test_a_photo_that_vanished_is_named_and_leaves_no_file(photos, tmp_path):
    (photos[0] / photos[1][7]).unlink()
    with pytest.raises(InputError, match=r"007\.png: does not open"):
        open_it(photos, tmp_path)
    assert files(tmp_path) == [] and files(tmp_path, "partial") == []
    with pytest.raises(InputError, match=r"007\.png: does not open"):
        open_it(photos, tmp_path, cache="stream").take([7])


def test_a_damaged_file_is_made_again(photos, tmp_path):
    whole = open_it(photos, tmp_path).take(range(12))
    content = files(tmp_path)[0].read_bytes()
    for damaged in (content[:-1], b"", content + b"0", b"0" * len(content)):
        files(tmp_path)[0].unlink()
        (tmp_path / "cache" / f"{cache.identity(*photos, settings())}.npy").write_bytes(damaged)
        assert np.array_equal(open_it(photos, tmp_path).take(range(12)), whole)


def test_files_unused_for_a_week_go_when_a_new_one_is_made(photos, tmp_path):
    open_it(photos, tmp_path)
    open_it(photos, tmp_path, image_size=48)
    for file in files(tmp_path):
        os.utime(file, (0, time.time() - 8 * 24 * 3600))
    open_it(photos, tmp_path, image_size=48)  # a use
    open_it(photos, tmp_path, image_size=64)
    sizes = {np.load(file, mmap_mode="r").shape[1] for file in files(tmp_path)}
    assert sizes == {48, 64}


PROGRAM = """
import hashlib, sys, time
from pathlib import Path
from fruitlib.core import config
from fruitlib.data import cache, preprocess

decode, slowly, count = preprocess.decode, float(sys.argv[2]), [0]
def counted(*args):
    count[0] += 1
    time.sleep(slowly)
    return decode(*args)
preprocess.decode = counted
place = Path(sys.argv[1])
paths = sorted(file.name for file in (place / "photos").iterdir())
print("ready", flush=True)
sys.stdin.readline()
keys = [hashlib.sha256((place / "photos" / path).read_bytes()).hexdigest() for path in paths]
store = cache.open_store(place / "photos", paths, keys, config.make({"image_size": 32}), place / "cache")
print(count[0], store.kind, hashlib.sha256(store.take(range(len(paths))).tobytes()).hexdigest(), flush=True)
"""


def start(tmp_path, slowly):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(slowly)]
    root = os.path.join(os.path.dirname(__file__), "..", "..")
    child = subprocess.Popen(command, cwd=root, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.readline() == "ready\n"
    return child


def go(child):
    child.stdin.write("\n")
    child.stdin.flush()


def finish(child):
    summary, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    return summary.split()


def test_two_processes_at_once_decode_once_and_read_the_same(photos, tmp_path):
    children = [start(tmp_path, 0.02) for _ in range(2)]
    for child in children:
        go(child)
    first, second = map(finish, children)
    assert {first[0], second[0]} == {"0", "12"}
    assert first[1:] == second[1:] and first[1] == "ram"


def test_a_killed_writer_leaves_no_file_that_counts(photos, tmp_path):
    child = start(tmp_path, 0.3)
    go(child)
    deadline = time.monotonic() + 30
    while not files(tmp_path, "partial") and time.monotonic() < deadline:
        time.sleep(0.01)
    child.kill()
    child.communicate()
    (left,) = files(tmp_path, "partial")
    assert files(tmp_path) == []
    open_it(photos, tmp_path, image_size=48)  # the next process that makes a file cleans up
    assert not left.exists()
    left.write_bytes(b"half")
    store = open_it(photos, tmp_path)
    assert np.array_equal(store.take([9])[0], preprocess.decode(photos[0], photos[1][9], settings()))
    assert files(tmp_path, "partial") == []


def test_a_file_that_is_being_written_is_not_tidied_away(photos, tmp_path):
    child = start(tmp_path, 0.2)
    go(child)
    deadline = time.monotonic() + 30
    while not files(tmp_path, "partial") and time.monotonic() < deadline:
        time.sleep(0.01)
    open_it(photos, tmp_path, image_size=48)
    assert finish(child)[0] == "12"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory of its own is counted on Linux")
def test_a_reader_has_no_copy_of_its_own(tmp_path):
    draw(tmp_path / "photos", 40, 8)
    paths = [file.name for file in sorted((tmp_path / "photos").iterdir())]
    store = cache.open_store(tmp_path / "photos", paths, [""] * 40, settings(image_size=512), tmp_path / "cache")
    before = psutil.Process().memory_full_info().uss - _file_pages(store)
    total = sum(int(store.take([i]).sum(dtype=np.int64) > 0) for i in range(40))  # reads every page
    after = psutil.Process().memory_full_info().uss - _file_pages(store)
    assert total == 40 and after - before < 10e6 < store.pixels.nbytes


def _file_pages(store) -> int:
    """Bytes of the mapped file in memory: shared with every reader, though the only one would count them as its own."""
    mine = [m for m in psutil.Process().memory_maps(grouped=False) if m.path.endswith(".npy")]
    return sum(m.private_clean + m.private_dirty for m in mine)


@pytest.mark.parametrize("kind", ["auto", "disk", "stream"])
def test_a_photo_that_changed_since_it_was_checked_is_named_and_not_decoded(photos, tmp_path, kind):
    changed = photos[0] / photos[1][7]
    Image.new("RGB", (40, 40), "red").save(changed)
    with pytest.raises(InputError) as problem:
        open_it(photos, tmp_path, cache=kind).take([7])
    assert str(problem.value) == f"{changed}: {preprocess.CHANGED}"
    assert files(tmp_path) == [] and files(tmp_path, "partial") == []
    if kind == "stream":
        assert open_it(photos, tmp_path, cache=kind).take([3, 5]).any()


def test_what_a_killed_writer_left_goes_when_any_photos_are_asked_for(photos, tmp_path):
    open_it(photos, tmp_path)
    left = tmp_path / "cache" / "abcdef012345.partial"
    left.write_bytes(b"half")
    open_it(photos, tmp_path)
    assert not left.exists()
