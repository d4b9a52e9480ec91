"""A data set cloned from a local git repository: counted, and never incomplete under its name."""

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
    """A repository of the known layout; bytes that line-end conversion would change."""
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
    return folder


@pytest.fixture
def url(origin):
    return origin.as_uri()


def bring(to, url, output=None, **options):
    say = output.append if output is not None else lambda text: None
    return fetch.fetch(NAME, url, to, **{"counts": COUNTS, "say": say, **options})


def same_photos(folder, origin):
    held = {p.relative_to(folder): p.read_bytes() for part in COUNTS for p in (folder / part).rglob("*.jpg")}
    return held == {p.relative_to(origin): p.read_bytes() for part in COUNTS for p in (origin / part).rglob("*.jpg")}


def left_over(folder):
    return [path.name for path in folder.parent.iterdir() if path.name.startswith(".")]


def test_every_photo_arrives_byte_for_byte(origin, url, tmp_path):
    output, steps = [], []
    folder = bring(tmp_path / "set", url, output, progress=lambda done, total: steps.append((done, total)))
    assert same_photos(folder, origin) and left_over(folder) == []
    assert sorted(path.name for path in folder.iterdir()) == ["Test", "Training", "fetched.json"]
    assert steps == sorted(steps) and steps[-1][0] == steps[-1][1] >= 36
    assert "CC BY-SA 4.0" in output[-1] and "Mihai Oltean" in output[-1] and "github.com/fruits-360" in output[-1]
    record = json.loads((folder / "fetched.json").read_text())
    assert record["counts"] == COUNTS and len(record["commit"]) == 40 and record["url"] == url


def test_only_the_newest_commit_is_fetched(origin, tmp_path):
    older = tmp_path / "older"
    shutil.copytree(origin, older)
    (older / "Test" / "Apple" / "removed.jpg").write_bytes(b"a photo of the commit before")
    git(older, "add", ".")
    git(older, "commit", "--quiet", "-m", "one more")
    git(older, "rm", "--quiet", "Test/Apple/removed.jpg")
    git(older, "commit", "--quiet", "-m", "and away")
    counts = []
    folder = bring(tmp_path / "set", older.as_uri(), progress=lambda done, total: counts.append(total))
    first = []
    bring(tmp_path / "first", origin.as_uri(), progress=lambda done, total: first.append(total))
    assert same_photos(folder, origin) and counts[-1] == first[-1]


def test_a_complete_one_is_left_alone(url, tmp_path):
    folder = bring(tmp_path / "set", url)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    output = []
    bring(tmp_path / "set", "file:///nowhere", output)
    assert output[0].endswith("is complete: 24 photos in Training, 12 photos in Test")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_killed_outright_it_leaves_nothing_that_counts_and_starts_again(origin, url, tmp_path):
    program = (
        "import time, sys; from fruitlib.data import fetch\n"
        "wait = lambda done, total: time.sleep(60)\n"
        f"fetch.fetch({NAME!r}, sys.argv[1], sys.argv[2], {COUNTS}, progress=wait)"
    )
    command = [sys.executable, "-c", program, url, str(tmp_path / "set")]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".set.part-*/clone")):
        assert time.monotonic() < deadline and child.poll() is None, "it never came"
        time.sleep(0.02)
    with pytest.raises(InputError, match="another process is fetching it"):
        bring(tmp_path / "set", url)
    os.killpg(child.pid, signal.SIGKILL)  # git too
    child.wait()
    assert not (tmp_path / "set").exists()
    folder = bring(tmp_path / "set", url)
    assert same_photos(folder, origin) and left_over(folder) == []


def test_interrupted_it_leaves_nothing(url, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bring(tmp_path / "set", url, progress=stop)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


def test_other_counts_are_refused_and_leave_nothing(url, tmp_path):
    words = "24 photos in Training, 12 photos in Test, expected 25 photos in Training, 12 photos in Test"
    with pytest.raises(InputError, match=words):
        bring(tmp_path / "set", url, counts={"Training": 25, "Test": 12})
    assert not (tmp_path / "set").exists() and not list(tmp_path.glob(".set.part-*"))


def test_another_repository_is_refused(tmp_path):
    (tmp_path / "other").mkdir()
    git(tmp_path / "other", "init", "--quiet")
    (tmp_path / "other" / "code.py").write_text("")
    git(tmp_path / "other", "add", ".")
    git(tmp_path / "other", "commit", "--quiet", "-m", "code")
    with pytest.raises(InputError, match="not the expected repository: no photos in Training or Test"):
        bring(tmp_path / "set", (tmp_path / "other").as_uri())


def test_a_folder_with_other_files_is_left_alone(url, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"set: holds 0 photos in Training.*remove it, or name another"):
        bring(tmp_path / "set", url)
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["mine.txt"]


def test_an_error_of_gits_is_one_line(tmp_path):
    with pytest.raises(InputError, match="git could not clone file:///nowhere: fatal: ") as problem:
        bring(tmp_path / "set", "file:///nowhere")
    assert "\n" not in str(problem.value)


def test_without_git_the_error_names_what_to_install(url, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="git is not installed"):
        bring(tmp_path / "set", url)


def test_a_full_disk_is_one_line(url, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "fetched.json")

    monkeypatch.setattr(fetch.files, "write_json", full)
    with pytest.raises(InputError, match=r"fetched\.json: No space left on device"):
        bring(tmp_path / "set", url)
    assert not (tmp_path / "set").exists()


def test_gits_own_variables_do_not_leak_in(origin, url, tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    mine.mkdir()
    git(mine, "init", "--quiet")
    before = sorted(path.name for path in (mine / ".git").rglob("*"))
    for name, value in {"GIT_DIR": ".git", "GIT_INDEX_FILE": "x", "GIT_OBJECT_DIRECTORY": ".git/objects"}.items():
        monkeypatch.setenv(name, str(mine / value))
    assert same_photos(bring(tmp_path / "set", url), origin)
    assert sorted(path.name for path in (mine / ".git").rglob("*")) == before


def test_the_command_fetches_into_data_and_the_photos_are_listed_by_name(url, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FRUITLIB_HOME", str(tmp_path))
    monkeypatch.setitem(fetch.DATASETS, NAME, {**fetch.DATASETS[NAME], "counts": COUNTS})
    assert cli.main(["data", "fetch", NAME, "--url", url]) == 0
    printed = capsys.readouterr().out
    assert "12 photos in Test" in printed and "licence: CC BY-SA 4.0" in printed and f"data: {NAME}" in printed
    rows, notes = sources.scan(sources.Config(data=NAME))
    assert rows["split"].value_counts().to_dict() == {"train": 24, "test": 12} and notes == []
    assert cli.main(["data", "fetch", NAME, "--url", "file:///nowhere", "--to", str(tmp_path / "b")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fruitlib: git could not clone") and len(error.splitlines()) == 1


def test_the_practice_photographs_are_drawn_by_name(tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(
        sources.practice_photos, "draw", lambda folder, five, progress: drawn.append((folder, five)) or folder
    )
    monkeypatch.setenv("FRUITLIB_HOME", str(tmp_path))
    assert [cli.main(["data", name]) for name in ("sample", "sample5")] == [0, 0]
    assert drawn == [(tmp_path / "data" / "sample", False), (tmp_path / "data" / "sample5", True)]
    assert capsys.readouterr().out.splitlines() == ["data/sample", "data/sample5"]
