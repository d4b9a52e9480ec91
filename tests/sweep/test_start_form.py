"""What is typed into the form of 00: checked at every key, one line beside its field; then a sweep of its own."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from fruitlib.core.errors import InputError
from fruitlib.reporting import sweep_list
from fruitlib.sweep import params, start_form, starting


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FRUITLIB_HOME", str(tmp_path))
    (tmp_path / "params").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("lr", "0.01", [0.01]),
        ("lr", " 1e-3, 3E-4 ", [0.001, 0.0003]),
        ("optimizer", "adam, sgd", ["adam", "sgd"]),
        ("optimizer", "[adam, sgd]", ["adam", "sgd"]),
        ("model", "timm:resnet18, end2end", ["timm:resnet18", "end2end"]),
        ("data", "C:/my photos, all #2", ["C:/my photos, all #2"]),
        ("title", "Which loss, then?", ["Which loss, then?"]),
        ("track", "tensorboard, wandb", [["tensorboard", "wandb"]]),
        ("deploy_shares", "{apple: 0.5, cherry: 0.5}", [{"apple": 0.5, "cherry": 0.5}]),
    ],
)
def test_what_a_field_means(name, text, values):
    assert starting.read_values(name, text) == values


@pytest.mark.parametrize(
    ("texts", "field", "words"),
    [
        ({"lr": "0.01, fast"}, "lr", "lr = 'fast'"),
        ({"lr": "0.01, , 0.1"}, "lr", "several with commas between"),
        ({"head": "gap_bp"}, "head", "'gap_bp'"),
        ({"epochs": "yes"}, "epochs", "a truth value"),
        ({"epochs": "0, 20"}, "epochs", "epochs = 0"),
        ({"folds": "2, 3"}, "folds", "folds cannot differ within a sweep"),
        ({"weights": "package"}, "weights", "not end2end"),
        ({"seed": "1, 1"}, "seed", "given twice"),
        ({"title": "a", "more": "momentun: 0.9"}, "more", "did you mean momentum?"),
        ({"more": "momentum"}, "more", "write lines such as"),
        ({"more": "momentum: [0.9"}, "more", "not valid YAML"),
        ({"lr": "0.1", "more": "lr: 0.2"}, "more", "lr has a field of its own"),
        ({"more": "ship: refit, fold"}, "more", "one value"),
        ({"more": "ship: refit"}, "more", "set folds: 5"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_beside_its_field(home, texts, field, words):
    found = starting.check(texts)
    assert list(found.wrong) == [field] and words in found.wrong[field] and "\n" not in found.wrong[field]
    assert found.plan is None and found.runs_text == ""


def test_every_field_that_is_wrong_says_so(home):
    found = starting.check({"lr": "fast", "epochs": "0", "more": "momentum: 7", "optimizer": "sgd"})
    assert set(found.wrong) == {"lr", "epochs", "more"}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({}, "1 run"),
        ({"lr": "0.1, 0.01", "optimizer": "adam, sgd, rmsprop"}, "6 runs: lr 2 × optimizer 3"),
        ({"folds": "5", "seed": "0, 1"}, "10 runs: seed 2 × folds 5"),
        ({"more": "momentum: 0.9, 0.95\noptimizer: sgd"}, "2 runs: momentum 2"),
        ({"more": "search: {trials: 7, space: {lr: {low: 0.001, high: 0.1}}}"}, "7 trials"),
        ({"more": "list: [{lr: 0.1}, {lr: 0.2}]"}, "2 runs"),
    ],
)
def test_the_number_of_runs_is_that_of_the_file(home, texts, message):
    found = starting.check(texts)
    assert found.wrong == {} and found.runs_text == message
    path = home / "params" / "mine.yaml"
    path.write_text(starting.params_text(found.content), encoding="utf-8")
    plan = params.read_params(path)
    assert list(plan.runs) == list(found.plan.runs) and plan.config == found.plan.config


def test_a_params_file_goes_into_the_form_and_comes_out_the_same(home):
    for path in sorted((Path(__file__).parents[2] / "params").glob("*.yaml")):
        texts = starting.texts_of(path, list(start_form.FIELDS))
        found = starting.check(texts | {"name": path.stem})
        assert found.wrong == {}, (path, found.wrong)
        plan = params.read_params(path)
        assert (found.plan.runs, found.plan.title, found.plan.pages) == (plan.runs, plan.title, plan.pages), path


def test_the_form_answers_at_every_key_and_writes_what_it_says(home, monkeypatch):
    form = start_form.StartForm()
    assert form.found.value == "<b>1 run</b>" and not form.button.disabled
    form.fields["lr"].value = "0.1, x"
    assert "lr = &#x27;x&#x27;" in form.notes["lr"].value and form.button.disabled
    form.start()
    assert not list((home / "params").iterdir())
    form.fields["lr"].value = "0.1, 0.01"
    assert "peak learning rate" in form.notes["lr"].value and "2 runs: lr 2" in form.found.value
    for name, words in {"../up": "not a path", "dev": "reserved", " a": "give a plain name such as", "": ""}.items():
        form.fields["name"].value = name
        assert words in form.notes["name"].value and form.button.disabled == bool(words)
    command = [sys.executable, "-c", "print('report: executed/mine/index.html')"]
    started = []
    monkeypatch.setattr(subprocess, "Popen", _instead(command, started))
    form.button.click()
    assert yaml.safe_load((home / "params" / "mine.yaml").read_text()) == {"grid": {"lr": [0.1, 0.01]}}
    (asked, options), line = started[0], "over: report: executed/mine/index.html"
    assert asked[1:] == ["-m", "fruitlib.cli", "sweep", str(home / "params" / "mine.yaml")]
    assert options["start_new_session"] and "MPLBACKEND" not in options["env"]
    deadline = time.monotonic() + 20
    while form.message.value != line and time.monotonic() < deadline:
        time.sleep(0.02)
    assert form.message.value == line and len(form.below.children) == 1
    assert form.check() is None and not form.button.disabled  # the same settings under the same name: it goes on
    form.fields["lr"].value = "0.5"
    assert "there already, with other settings" in form.notes["name"].value and form.button.disabled


def _instead(command: list[str], started: list):
    popen = subprocess.Popen

    def start(asked, **options):
        started.append((asked, options))
        return popen(command, **options)

    return start


def test_the_list_says_how_far_each_sweep_is_and_links_what_is_there(finished_sweep, monkeypatch, tmp_path):
    monkeypatch.setenv("FRUITLIB_HOME", str(finished_sweep))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    newest = sweep_list.sweeps()[0]
    shown = sweep_list.table()
    assert f"<b>{newest.name}</b>" in shown and f"href='../executed/{newest.name}/index.html'" in shown
    server = f'{{"pid": 1, "base_url": "/hub/ann/", "root_dir": "{finished_sweep}"}}'
    (tmp_path / "jpserver-1.json").write_text(server)
    shown = sweep_list.table()
    assert f"href='/hub/ann/files/executed/{newest.name}/index.html'" in shown
    assert f"href='/hub/ann/lab/tree/executed/{newest.name}/01_split.ipynb'" in shown
    assert sweep_list.followed() == sweep_list.followed(newest.name) == newest
    with pytest.raises(InputError, match=f"no 'tomorrow' in executed/; there are: .*{newest.name}"):
        sweep_list.followed("tomorrow")


@pytest.mark.parametrize(
    ("states", "changed", "words"),
    [
        (["complete", "failed"], 1e6, "complete: 2/2 runs, 1 failed"),
        (["complete", "pending"], 1e6, "stopped: 1/2 runs; start it again"),
        (["complete", "pending"], 1, "running: 1/2 runs"),
        (["running", "pending"], 1e6, "running: 0/2 runs, 1 running"),
    ],
)
def test_the_state_of_a_sweep_in_words(states, changed, words):
    from fruitlib.runs.status import RunStatus, SweepStatus

    status = SweepStatus("t", "macro_f1", 2, [RunStatus(str(n), state) for n, state in enumerate(states)])
    assert sweep_list.state(status, changed).startswith(words)


def test_a_sweep_is_not_complete_before_its_report_is():
    from fruitlib.runs.status import RunStatus, SweepStatus

    status = SweepStatus("t", "macro_f1", 1, [RunStatus("a", "complete")], doing="07_compare", elapsed=90.0)
    assert sweep_list.state(status, 60) == "running: 1/1 runs, 07_compare"


def test_no_sweep_is_said(home):
    assert sweep_list.followed() is None
    assert "no sweep yet" in sweep_list.table() and os.listdir(home / "params") == []


@pytest.mark.parametrize(("display", "message"), [(":0", "opened: executed/x/index"), ("", "open index.html there")])
def test_a_report_opens_where_there_is_a_desktop(home, monkeypatch, display, message):
    page, opened = home / "executed" / "x" / "index.html", []
    page.parent.mkdir(parents=True)
    page.write_text("report")
    (page.parent / "sweep.json").write_text('{"runs": []}')
    monkeypatch.setattr("webbrowser.open", lambda address: bool(opened.append(address) or True))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", display)
    _, line = sweep_list.show().children
    line.children[1].click()
    assert message in line.children[2].value and opened == [page.as_uri()] * bool(display)


@pytest.mark.parametrize("text", ["- lr: 0.1\n", "just words\n", "lr: [\n", "1: 2\n"])
def test_a_params_file_that_cannot_be_copied_is_one_line(home, text):
    (home / "params" / "odd.yaml").write_text(text)
    form = start_form.StartForm()
    form.copy("odd")
    assert form.message.value.count("odd.yaml") == 1 and form.fields["lr"].value == ""
