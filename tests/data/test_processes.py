"""Processes that open many photos: the same results as threads, errors kept, nothing left behind."""

import errno
import io
import os
import signal
import subprocess
import sys

import imagehash
import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image

from fruitlib.core import config
from fruitlib.core.errors import InputError
from fruitlib.data import cache, decoding, inspection, photo_checks, preprocess, processes


def picture(seed, size=(60, 40)):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(kind, image, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def drawn(folder):
    """Photos of many kinds, some broken: their paths, one with boxes."""
    lying, deep = Image.Exif(), np.arange(2400, dtype=np.uint16).reshape(40, 60) * 20
    lying[decoding.ORIENTATION] = 6
    odd = {
        "broken.jpg": encoded("JPEG", picture(1))[:500],
        "cmyk.jpg": encoded("JPEG", picture(2).convert("CMYK")),
        "deep.png": encoded("PNG", Image.fromarray(deep)),
        "empty.jpg": b"",
        "flat.jpg": encoded("JPEG", Image.new("RGB", (40, 40), "red")),
        "grey.jpg": encoded("JPEG", picture(3).convert("L")),
        "large.jpg": encoded("JPEG", picture(4, (1600, 1200)), exif=lying),
        "large.png": encoded("PNG", picture(4, (700, 600))),
        "progressive.jpg": encoded("JPEG", picture(5, (400, 300)), progressive=True),
        "text.jpg": b"no photo",
        "truncated.png": encoded("PNG", picture(6))[:700],
        "turned.jpg": encoded("JPEG", picture(7), exif=lying),
    }
    odd |= {f"{number:02d}.jpg": encoded("JPEG", picture(number, (100, 90))) for number in range(10, 40)}
    folder.mkdir()
    for name, content in odd.items():
        (folder / name).write_bytes(content)
    boxes = [f"{number:02d}.jpg#xywh={10 * (number % 3)},0,50,50" for number in (10, 11, 12, 10)]
    return [*odd, "missing.jpg", *boxes]


@pytest.fixture
def by_processes(monkeypatch):
    """Any number of photos is worth processes; gives the crews that were made."""
    made = []
    real = processes.Pool
    monkeypatch.setattr(processes, "WORTHWHILE", 1)
    monkeypatch.setattr(processes.machine, "usable_cores", lambda: 2)
    monkeypatch.setattr(processes, "Pool", lambda count: made.append(real(count)) or made[-1])
    return made


def alive(pool):
    return [process for process in pool._all if process.poll() is None]


def test_processes_find_what_threads_find(tmp_path, by_processes, monkeypatch):
    rows = pd.DataFrame({"path": drawn(tmp_path / "photos"), "label": "a", "group": "", "split": ""})
    seen = []
    found = photo_checks.check_photos(tmp_path / "photos", rows, progress=lambda *progress: seen.append(progress))
    assert len(by_processes) == 1 and alive(by_processes[0]) == []
    assert seen[-1] == (len(rows), len(rows)) and len(seen) > 1
    monkeypatch.setattr(processes, "WORTHWHILE", 10**6)
    assert found.equals(photo_checks.check_photos(tmp_path / "photos", rows)) and len(by_processes) == 1
    assert found["status"].value_counts().to_dict() == {"ok": len(rows) - 5, "quarantined": 5}


def test_what_is_too_large_for_a_process_is_opened_by_its_owner(tmp_path, by_processes, monkeypatch):
    rows = pd.DataFrame({"path": drawn(tmp_path / "photos"), "label": "a", "group": "", "split": ""})
    real, opened = inspection.inspect_file, []
    monkeypatch.setattr(inspection, "inspect_file", lambda file, *rest: opened.append(file.name) or real(file, *rest))
    monkeypatch.setattr(processes, "SERVE", processes.SERVE.replace("processes.serve", f"{LITTLE}; processes.serve"))
    found = photo_checks.check_photos(tmp_path / "photos", rows)
    assert opened == ["large.jpg", "large.png"]
    assert found.set_index("path").loc["large.png", ["status", "width", "height"]].tolist() == ["ok", 700, 600]


# Room for the small photos only: 12 bytes of each pixel
LITTLE = "from fruitlib.data import memory; memory._available = lambda: 12 * 500 * 400 * 16 / 3 * 2"


@pytest.mark.parametrize("kind", ["ram", "stream"])
def test_processes_decode_what_threads_decode(tmp_path, by_processes, kind):
    folder = tmp_path / "photos"
    bad = ("broken", "empty", "text", "truncated", "missing")
    paths = [path for path in drawn(folder) if not path.startswith(bad)]
    how = config.make({"image_size": 32, "cache": kind, "deep_bits": 12})
    store = cache.open_store(folder, paths, [""] * len(paths), how, tmp_path / "cache")
    asked = [3, 0, len(paths) - 1, 3, 5]
    assert np.array_equal(store.take(asked), np.stack([preprocess.decode(folder, paths[i], how) for i in asked]))
    (pool,) = by_processes
    assert (len(alive(pool)) == 2) == (kind == "stream")
    by_processes.clear()
    started = pool._all
    del store, pool
    assert [process for process in started if process.poll() is None] == []  # nobody has the pool any more


def test_a_photo_that_does_not_open_is_named(tmp_path, by_processes):
    paths = drawn(tmp_path / "photos")
    with pytest.raises(InputError, match=r"broken\.jpg: does not open \(cut off"):
        cache.open_store(tmp_path / "photos", paths[:3], [""] * 3, config.make({"image_size": 32}), tmp_path / "cache")
    assert alive(by_processes[0]) == []


def test_a_process_that_is_killed_is_said_and_the_others_end(by_processes):
    with processes.briefly(processes.pool_for(10)) as pool:
        assert pool.do(os.getpid) in {process.pid for process in pool._all}
        for process in pool._all:
            process.kill()
        with pytest.raises(InputError, match=r"opens photos was ended: killed by SIGKILL.*run again"):
            pool.do(os.getpid)
    assert alive(pool) == []


def test_what_a_process_raises_or_prints_is_not_mistaken_for_an_answer(by_processes, capfd):
    with processes.briefly(processes.pool_for(10)) as pool:
        assert pool.do(print, "to nobody") is None
        with pytest.raises(ZeroDivisionError):
            pool.do(divmod, 1, 0)
        assert pool.do(divmod, 7, 2) == (3, 1)
    assert "to nobody" in capfd.readouterr().err


PROGRAM = """
import sys, time
from fruitlib.data import processes
pool = processes.Pool(2)  # without the guard of __main__ that others need
print(*(process.pid for process in pool._all), flush=True)
pool.do(time.sleep, 0)
print("ready", flush=True)
pool.do(time.sleep, 2)
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_their_owner(tmp_path, ending):
    (tmp_path / "plain.py").write_text(PROGRAM)
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    environment = os.environ | {"PYTHONPATH": root}
    owner = subprocess.Popen(
        [sys.executable, tmp_path / "plain.py"], env=environment, text=True, stdout=-1, stderr=subprocess.DEVNULL
    )
    helpers = [psutil.Process(int(number)) for number in owner.stdout.readline().split()]
    assert owner.stdout.readline() == "ready\n"
    owner.send_signal(ending)
    owner.communicate(timeout=20)
    gone, _ = psutil.wait_procs(helpers, timeout=20)
    assert len(gone) == 2


def test_where_no_more_processes_are_allowed_threads_open_the_photos_and_it_is_said(monkeypatch, capsys):
    def refused(*_, **__):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(processes.subprocess, "Popen", refused)
    assert processes.pool_for(processes.WORTHWHILE, 2) is None
    assert "no more processes (Resource temporarily unavailable): threads open the photos" in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(20))
def test_looks_have_the_bits_of_imagehash(seed):
    small = picture(seed, (32, 32))
    assert inspection.looks(small)[:16] == str(imagehash.phash(small))


@pytest.mark.real
def test_looks_of_real_photos_have_the_bits_of_imagehash(real_data):
    for file in sorted(real_data.rglob("*.jpg"))[::25]:
        with decoding.opened(file.read_bytes()) as photo:
            small = photo.image.resize((32, 32), Image.Resampling.BOX)
        assert inspection.looks(small)[:16] == str(imagehash.phash(small)), file


def test_looks_of_pictures_that_lack_frequencies_do_not_depend_on_rounding():
    """A picture that is the same along each row has one column of frequencies; the others are 0, not noise."""
    rising = Image.fromarray(np.repeat(np.arange(0, 256, 8, dtype=np.uint8)[:, None], 32, 1)).convert("RGB")
    rows = np.frombuffer(bytes.fromhex(inspection.looks(rising)[:16]), np.uint8)
    assert (rows & 0x7F == 0).all()
