"""A sweep's folder: which names it may have, whose results are not replaced, and what tells that it is gone."""

import contextlib
import json
import os
import shutil
import subprocess
import sys

import pytest
from support import ROOT

from fruitlib.core import files
from fruitlib.core.errors import InputError
from fruitlib.runs.status import load_status
from fruitlib.sweep import folder, params


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A project folder; `house(text, name)` is the plan of a params file in it."""
    monkeypatch.setenv("FRUITLIB_HOME", str(tmp_path))

    def write(text: str, name: str = "story.yaml"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return params.read_params(path)

    write.folder = tmp_path / "executed" / "x"
    return write


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "an empty name"),
        ("  ", "an empty name"),
        ("..", "begins with ."),
        (".", "begins with ."),
        (".cache", "begins with ."),
        ("-x", "begins with -"),
        ("a/b", "not a path"),
        ("../up", "not a path"),
        ("/tmp/x", "not a path"),
        ("a\\b", "not a path"),
        ("a ", "spaces around"),
        ("a\nb", "control characters"),
        ("\x1b[31mred", "control characters"),
        ("x" * 300, "300 bytes long"),
        ("ä" * 100, "200 bytes long"),
        ("a\udcff", "not text in UTF-8"),
        ("example", "the demo's report"),
        ("DEV", "opened by hand"),
    ],
)
def test_names_that_are_refused(house, name, words):
    plan = house("lr: 0.1\n")
    with pytest.raises(InputError) as problem:
        folder.sweep_folder(plan, None, name)
    shown = str(problem.value)
    assert words in shown and shown.startswith("--out ") and shown.isprintable() and len(shown) < 250


@pytest.mark.parametrize("name", ["demo-2", "Früchte 3", "lr=0.1", "x" * 150, "日本"])
def test_names_that_are_taken(house, name):
    assert folder.sweep_folder(house("lr: 0.1\n"), None, name) == house.folder.with_name(name)


def test_a_params_file_whose_own_name_cannot_be_taken_says_what_to_do(house):
    assert folder.sweep_folder(house("lr: 0.1\n"), "/photos/my fruit", None).name == "story-my fruit"
    with pytest.raises(InputError, match=r"^dev: a reserved name .* give a plain name with --out"):
        folder.sweep_folder(house("lr: 0.1\n", "dev.yaml"), None, None)


def hold(house, plan) -> None:
    """Leave the folder as a sweep of this plan does that has just begun."""
    with folder.claimed(plan, house.folder):
        for name in ("manifest.csv", "manifest.json"):
            (house.folder / name).write_text(json.dumps({"data": plan.config.data, "identity": "1"}))


@pytest.mark.parametrize(
    "text",
    ["title: T\ngrid: {lr: [0.1, 0.2, 0.3]}\n", "title: Another\nepochs: 7\n", "folds: 3\n", "grid: {seed: [1, 2]}\n"],
)
def test_the_same_file_goes_on_whatever_has_changed_in_it(house, text):
    hold(house, house("title: T\ngrid: {lr: [0.1, 0.2]}\n"))
    folder.refuse_other_results(house(text), house.folder)


def test_a_moved_or_copied_file_is_the_same_one(house):
    text = "grid: {lr: [0.1, 0.2]}\n"
    hold(house, house(text))
    folder.refuse_other_results(house(text, "copy.yaml"), house.folder)
    os.rename(house.folder.parents[1] / "story.yaml", house.folder.parents[1] / "renamed.yaml")
    folder.refuse_other_results(params.read_params(house.folder.parents[1] / "renamed.yaml"), house.folder)
    folder.refuse_other_results(house("epochs: 9\n", "elsewhere/story.yaml"), house.folder)
    with pytest.raises(InputError, match="the results of story"):
        folder.refuse_other_results(house("epochs: 9\n", "new.yaml"), house.folder)


def test_results_of_another_params_file_are_named_and_stay(house):
    hold(house, house("title: The first\n"))
    before = (house.folder / "sweep.json").read_bytes()
    other = house("title: The second\n", "other.yaml")
    for refuse in (folder.refuse_other_results, folder.claimed):
        with pytest.raises(InputError) as problem, refuse(other, house.folder) or contextlib.nullcontext():
            pass
        shown = str(problem.value)
        assert shown == (
            "executed/x holds the results of story.yaml (The first; 1 run): give this sweep another --out, "
            "or remove that folder"
        )
    assert (house.folder / "sweep.json").read_bytes() == before


def test_a_folder_is_claimed_before_its_photos_are_checked(house):
    """Which may take an hour; nothing is left where they are refused, and a record that looks unfinished meanwhile."""
    plan, other = house("title: T\ngrid: {lr: [0.1, 0.2]}\n"), house("epochs: 9\n", "other.yaml")
    with pytest.raises(InputError, match="a class too small"), folder.claimed(plan, house.folder):
        status = load_status(house.folder)
        assert (status.title, status.total, [run.state for run in status.runs]) == ("T", 2, ["pending"] * 2)
        with pytest.raises(InputError, match=r"holds the results of story.yaml \(T; 2 runs\)"):
            folder.claimed(other, house.folder).__enter__()
        with folder.claimed(plan, house.folder):  # a second sweep of the same file shares the work
            pass
        raise InputError("a class too small")
    assert not house.folder.parent.exists()


@pytest.mark.parametrize(
    ("recorded", "now", "words"),
    [
        ("photos", "photos/", ""),
        ("photos", "./photos", ""),
        ("photos", "{}/photos", ""),
        ("photos", "link", ""),
        ("sample", "data/sample", r"on other photos \(sample\): give"),
        ("there", "photos", r"on other photos \(there\): give this sweep another name with --out$"),
        ("old", "photos", r"on other photos \(old, which are no longer there\): .*, or rename them back"),
        ("/my \x1b \0 photos", "photos", r"on other photos \(/my \\x1b \\x00 photos, which"),
    ],
)
def test_other_photos_are_named_and_the_same_ones_known(house, recorded, now, words):
    home = house.folder.parents[1]
    (home / "photos").mkdir()
    (home / "there").mkdir()
    (home / "link").symlink_to("photos")
    hold(house, house("lr: 0.1\n"))
    (house.folder / "manifest.json").write_text(json.dumps({"data": recorded, "identity": "1"}))
    plan = house(f"lr: 0.1\ndata: {now.format(home)}\n")
    if words:
        with pytest.raises(InputError, match=words):
            folder.refuse_other_results(plan, house.folder)
    else:
        folder.refuse_other_results(plan, house.folder)
    assert folder.earlier_data(plan, house.folder) == (plan.config.data if words else recorded)


def test_a_folder_of_other_files_is_left_alone(house):
    plan = house("grid: {lr: [0.1, 0.2]}\n")
    house.folder.mkdir(parents=True)
    (house.folder / ".manifest.lock").touch()
    folder.refuse_other_results(plan, house.folder)  # hidden files are nobody's
    (house.folder / "lr=0.1").mkdir()  # left of a sweep that was removed
    folder.refuse_other_results(plan, house.folder)
    shutil.rmtree(house.folder / "lr=0.1")
    (house.folder / "thesis.doc").touch()
    with pytest.raises(InputError, match=r"executed/x holds files that are no sweep's, such as thesis.doc"):
        folder.refuse_other_results(plan, house.folder)


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "[" * 100_000, '{"runs": 3}', "{}", None])
def test_results_whose_record_is_damaged_or_lost_stay(house, text):
    plan = house("lr: 0.1\n")
    hold(house, plan)
    record = house.folder / "sweep.json"
    if text is None:
        record.unlink()
    else:
        record.write_text(text)
    lost = text in ("{}", None)
    words = "executed/x holds results, but no sweep.json" if lost else r"executed/x/sweep\.json: damaged: put it back"
    with pytest.raises(InputError, match=words):
        folder.refuse_other_results(plan, house.folder)


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "[" * 100_000, "{}"])
def test_a_damaged_manifest_is_one_line(house, text):
    plan = house("lr: 0.1\n")
    hold(house, plan)
    (house.folder / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"executed/x/manifest\.json: damaged: remove it, and it is made again"):
        folder.refuse_other_results(plan, house.folder)
    (house.folder / "manifest.json").unlink()
    folder.refuse_other_results(plan, house.folder)


def test_a_folder_that_was_removed_moved_emptied_or_made_anew_is_lost(house):
    def spoil(number: int) -> None:
        if number == 0:
            shutil.rmtree(house.folder)
        elif number == 1:
            os.rename(house.folder, house.folder.with_name("moved"))
        elif number == 2:
            os.unlink(house.folder / "manifest.csv")
        else:
            os.rename(house.folder, house.folder.with_name("old"))
            hold(house, plan)

    plan = house("lr: 0.1\n")
    for number in range(4):
        hold(house, plan)
        place = folder.Place(house.folder)
        (house.folder / "more").touch()
        place.check()
        spoil(number)
        with pytest.raises(folder.FolderLost):
            place.check()
        shutil.rmtree(house.folder, ignore_errors=True)


def test_a_file_where_the_folder_would_be_is_named(house):
    plan = house("lr: 0.1\n")
    house.folder.parent.mkdir(parents=True, exist_ok=True)
    house.folder.touch()
    with pytest.raises(InputError, match="is a file, where a sweep's folder is wanted: give this sweep another --out"):
        folder.refuse_other_results(plan, house.folder)


@pytest.mark.parametrize(
    ("data", "out", "options"),
    [
        (None, None, ""),
        ("sample", "other", " --data sample --out other"),
        ("{home}/my photos", None, " --data 'my photos'"),
    ],
)
def test_the_command_leads_to_the_same_photos_and_folder(house, data, out, options):
    plan = house("title: A story")
    data = data and data.replace("{home}", str(house.folder.parents[1]))
    assert folder.command(plan, data, out) == f"fruitlib sweep story.yaml{options}"


def test_what_processes_left_goes_when_they_have_ended(tmp_path):
    with subprocess.Popen(["true"]) as over:
        pass
    for name, pid in (("a=1", over.pid), ("a=2", os.getpid())):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".working.json").write_text("{")
        partial = files.beside(tmp_path / name / "02_train.ipynb", ".ipynb")
        partial.with_name(partial.name.replace(f".{os.getpid()}@", f".{pid}@")).touch()
    hold = """
import sys, pathlib
from fruitlib.runs.run import Run
with Run(pathlib.Path(sys.argv[1])).locked():
    print("held", flush=True)
    input()
"""
    command = [sys.executable, "-c", hold, str(tmp_path / "a=2")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as living:
        living.stdout.readline()
        folder.remove_leftovers(tmp_path)
        living.communicate("over\n")
    left = [(path.parent.name, path.suffix) for path in tmp_path.glob("*/.*") if path.suffix]
    assert sorted(left) == [("a=2", ".ipynb"), ("a=2", ".json")]
