"""A data set fetched from a local git repository: resumed after a kill, counted, never half there under its name."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from fruitlib import cli
from fruitlib.core.errors import InputError
from fruitlib.data import fetch, sources

NAME = "fruits-360-3-body"
COUNTS = {"Training": 24, "Test": 12}


def git(folder, *arguments):
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, env=environment)


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A repository of the known layout whose server can send parts; bytes that line-end conversion would harm."""
    folder = tmp_path_factory.mktemp("origin")
    for part, views in (("Training", 4), ("Test", 2)):
        for label in ("Apple", "Cherry"):
            for number in range(3 * views):
                path = folder / part / label / f"{label} {number % 3}" / f"r_{number}_é.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(f"{path} \r\n\0\n".encode() * (number + 1))
    (folder / "README.md").write_text("about")
    (folder / "papers").mkdir()
    (folder / "papers" / "figure.jpg").write_bytes(b"no photo of the set")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "photos")
    git(folder, "config", "uploadpack.allowFilter", "true")
    return folder


@pytest.fixture
def url(origin):
    return origin.as_uri()


@pytest.fixture
def asked(monkeypatch):
    """The objects that git fetch is asked for, a list per request."""
    requests, run = [], fetch._run

    def noted(folder, *arguments, **options):
        if arguments[0] == "fetch":
            requests.append([word for word in arguments if len(word) == 40])
        return run(folder, *arguments, **options)

    monkeypatch.setattr(fetch, "_run", noted)
    return requests


def bring(to, url, output=None, **options):
    say = output.append if output is not None else lambda text: None
    return fetch.fetch(NAME, url, to, **{"counts": COUNTS, "say": say, "batch": 5, **options})


def same_photos(folder, origin):
    held = {p.relative_to(folder): p.read_bytes() for part in COUNTS for p in (folder / part).rglob("*.jpg")}
    return held == {p.relative_to(origin): p.read_bytes() for part in COUNTS for p in (origin / part).rglob("*.jpg")}


def left_over(folder):
    return [path.name for path in folder.parent.iterdir() if path.name.startswith(".")]


def test_every_photo_arrives_byte_for_byte_in_batches(origin, url, tmp_path, asked):
    output, steps = [], []
    folder = bring(tmp_path / "set", url, output, progress=lambda *step: steps.append(step))
    assert same_photos(folder, origin) and left_over(folder) == []
    assert sorted(path.name for path in folder.iterdir()) == ["Test", "Training", "fetched.json"]
    assert max(map(len, asked)) == 5 and sum(map(len, asked)) == 36
    assert steps[-1] == ("Training/Cherry", 36, 36) and [step[1] for step in steps] == sorted(step[1] for step in steps)
    assert "CC BY-SA 4.0" in output[-1] and "Mihai Oltean" in output[-1] and "github.com/fruits-360" in output[-1]
    record = json.loads((folder / "fetched.json").read_text())
    assert record["counts"] == COUNTS and len(record["commit"]) == 40 and record["url"] == url


def test_a_complete_one_is_left_alone(url, tmp_path, asked):
    folder = bring(tmp_path / "set", url)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    asked.clear()
    output = []
    bring(tmp_path / "set", "file:///nowhere", output)
    assert output[0].endswith("is complete: 24 photos in Training, 12 photos in Test") and asked == []
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_killed_outright_it_goes_on_without_fetching_again(origin, url, tmp_path, asked):
    program = (
        "import time, sys; from fruitlib.data import fetch\n"
        "wait = lambda place, done, total: time.sleep(60 if done > 12 else 0)\n"
        f"fetch.fetch({NAME!r}, sys.argv[1], sys.argv[2], {COUNTS}, progress=wait, batch=5)"
    )
    child = subprocess.Popen([sys.executable, "-c", program, url, str(tmp_path / "set")], stdout=subprocess.DEVNULL)
    photos = tmp_path / ".set.part" / "photos"
    deadline = time.monotonic() + 60
    while len(list(photos.rglob("*.jpg"))) < 17:  # 12 of the first two class folders, 5 of the third
        assert time.monotonic() < deadline and child.poll() is None, "it never came"
        time.sleep(0.02)
    with pytest.raises(InputError, match="another process is fetching it"):
        bring(tmp_path / "set", url)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "set").exists()
    for stale in ("shallow.lock", "config.lock"):  # what a git killed in the midst leaves
        (tmp_path / ".set.part" / "git" / stale).touch()
    (tmp_path / ".set.part" / "writing").write_bytes(b"half a photo")
    folder = bring(tmp_path / "set", url)
    assert same_photos(folder, origin) and left_over(folder) == []
    assert sum(map(len, asked)) == 36 - 17


def test_objects_that_came_but_were_not_written_are_not_fetched_again(origin, url, tmp_path, asked, monkeypatch):
    monkeypatch.setattr(fetch, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        bring(tmp_path / "set", url)
    monkeypatch.undo()
    assert len(asked[-1]) == 5
    counted = subprocess.run(
        ["git", "rev-list", "--objects", "--missing=print", fetch.PINNED],
        cwd=tmp_path / ".set.part" / "git",
        capture_output=True,
        text=True,
    ).stdout.count("?")
    assert counted == 36 + 2 - 5  # README and the figure are never fetched
    assert same_photos(bring(tmp_path / "set", url), origin)


def test_a_server_that_cannot_send_parts_works_too(origin, tmp_path, asked):
    plain = tmp_path / "plain"
    shutil.copytree(origin, plain)
    git(plain, "config", "uploadpack.allowFilter", "false")
    assert same_photos(bring(tmp_path / "set", plain.as_uri()), origin)
    assert sum(map(len, asked)) == 0


def test_a_repository_that_moves_on_meanwhile_is_not_mixed(origin, tmp_path):
    moving = tmp_path / "moving"
    shutil.copytree(origin, moving)

    def stop(place, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bring(tmp_path / "set", moving.as_uri(), progress=stop)
    for photo in (moving / "Test").rglob("*.jpg"):
        photo.write_bytes(b"another photo")
    git(moving, "commit", "--quiet", "-a", "-m", "changed")
    assert same_photos(bring(tmp_path / "set", moving.as_uri()), origin)


def test_a_mirror_may_finish_what_another_address_began(origin, url, tmp_path, asked):
    def stop(place, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bring(tmp_path / "set", url, progress=stop)
    shutil.copytree(origin, tmp_path / "mirror")
    assert same_photos(bring(tmp_path / "set", (tmp_path / "mirror").as_uri()), origin)
    assert sum(map(len, asked)) == 36


def test_other_counts_are_told_before_any_photo_comes(url, tmp_path, asked):
    words = "found 24 photos in Training, 12 photos in Test, expected 25 photos in Training, 12 photos in Test"
    with pytest.raises(InputError, match=words):
        bring(tmp_path / "set", url, counts={"Training": 25, "Test": 12})
    assert not (tmp_path / "set").exists() and sum(map(len, asked)) == 0


def test_another_repository_is_refused(tmp_path):
    (tmp_path / "other").mkdir()
    git(tmp_path / "other", "init", "--quiet")
    (tmp_path / "other" / "code.py").write_text("")
    git(tmp_path / "other", "add", ".")
    git(tmp_path / "other", "commit", "--quiet", "-m", "code")
    with pytest.raises(InputError, match="not the repository expected: no photos in Training or Test"):
        bring(tmp_path / "set", (tmp_path / "other").as_uri())


def test_a_folder_with_other_files_is_left_alone(url, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"set: holds 0 photos in Training.*remove it, or name another"):
        bring(tmp_path / "set", url)
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["mine.txt"]


def test_what_git_says_is_one_line(tmp_path):
    with pytest.raises(InputError, match="git could not fetch from file:///nowhere: fatal: ") as problem:
        bring(tmp_path / "set", "file:///nowhere")
    assert "\n" not in str(problem.value)


def test_without_git_it_says_what_to_install(url, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="git is not installed"):
        bring(tmp_path / "set", url)


def test_a_full_disk_is_one_line(url, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "photo.jpg")

    monkeypatch.setattr(fetch, "_write", full)
    with pytest.raises(InputError, match=r"photo\.jpg: No space left on device"):
        bring(tmp_path / "set", url)


def test_gits_own_variables_do_not_leak_in(origin, url, tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    mine.mkdir()
    git(mine, "init", "--quiet")
    before = sorted(path.name for path in (mine / ".git").rglob("*"))
    for name, value in {"GIT_DIR": ".git", "GIT_INDEX_FILE": "x", "GIT_OBJECT_DIRECTORY": ".git/objects"}.items():
        monkeypatch.setenv(name, str(mine / value))
    assert same_photos(bring(tmp_path / "set", url), origin)
    assert sorted(path.name for path in (mine / ".git").rglob("*")) == before


def test_the_command_fetches_into_data_and_the_photos_are_found_by_name(url, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FRUITLIB_HOME", str(tmp_path))
    monkeypatch.setitem(fetch.DATASETS, NAME, {**fetch.DATASETS[NAME], "counts": COUNTS})
    assert cli.main(["data", "fetch", NAME, "--url", url]) == 0
    heard = capsys.readouterr()
    assert "36 of 36 photos" in heard.err and "licence: CC BY-SA 4.0" in heard.out and f"data: {NAME}" in heard.out
    rows, notes = sources.scan(sources.Config(data=NAME))
    assert rows["split"].value_counts().to_dict() == {"train": 24, "test": 12} and notes == []
    assert cli.main(["data", "fetch", NAME, "--url", "file:///nowhere", "--to", str(tmp_path / "b")]) == 2
    heard = capsys.readouterr().err
    assert heard.startswith("fruitlib: git could not fetch") and len(heard.splitlines()) == 1


def test_the_practice_photographs_are_drawn_by_name(tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(
        sources.practice_photos, "draw", lambda folder, five, progress: drawn.append((folder, five)) or folder
    )
    monkeypatch.setenv("FRUITLIB_HOME", str(tmp_path))
    assert [cli.main(["data", name]) for name in ("sample", "sample5")] == [0, 0]
    assert drawn == [(tmp_path / "data" / "sample", False), (tmp_path / "data" / "sample5", True)]
    assert capsys.readouterr().out.splitlines() == ["data/sample", "data/sample5"]


class Terminal(list):
    """A stream that keeps what is written."""

    write = list.append

    def __init__(self, terminal):
        self.isatty = lambda: terminal

    def flush(self):
        pass


def test_the_meter_tells_the_time_left(monkeypatch):
    clock = iter([0.0, 60.0, 100.0])
    monkeypatch.setattr(fetch.time, "monotonic", lambda: next(clock))
    page = Terminal(terminal=True)
    show = fetch.meter(page)
    for done in (500, 1500, 4500):
        show("Training/Apple", done, 4500)
    first, second, last = (text.removeprefix("\r\x1b[K") for text in page)
    assert first == "Training/Apple: 500 of 4,500 photos"
    assert second == "Training/Apple: 1,500 of 4,500 photos, about 3 min left"  # 1,000 a minute
    assert last == "Training/Apple: 4,500 of 4,500 photos\n"
