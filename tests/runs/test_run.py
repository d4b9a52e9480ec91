"""Run folders: identity by stage, locks, openings of the test set, the headline."""

import os
import shutil
import subprocess
import sys

import pytest

from fruitlib.core import config, files, machine, source_code
from fruitlib.core.errors import InputError
from fruitlib.data import splits
from fruitlib.runs.headline import _bundle, named
from fruitlib.runs.run import Run, clear_run, create_run, open_run
from fruitlib.runs.stages import STAGES, notebook_path


@pytest.fixture
def run(tiny, tmp_path):
    cfg = config.make(tiny)
    splits.prepare_manifest(cfg, tmp_path)
    return create_run(tmp_path / "run", cfg)


def identities(run) -> dict[str, str]:
    return {stage: run.identity(stage) for stage in STAGES}


def changed(before: dict, after: dict) -> set[str]:
    return {stage for stage in before if before[stage] != after[stage]}


def with_settings(run, **settings):
    return Run(run.path, run.config.model_copy(update=settings))


NOTEBOOKS = {stage for stage, spec in STAGES.items() if spec.notebook}


def test_a_training_setting_changes_everything_an_export_setting_only_what_follows(run):
    before = identities(run)
    assert changed(before, identities(with_settings(run, lr=0.5))) == set(STAGES)
    after_export = {"export", "test", "05_quantize", "06_test_accuracy"}
    assert changed(before, identities(with_settings(run, calibration_images=7))) == after_export


def test_every_setting_belongs_to_a_stage_or_to_the_split():
    staged = {setting for spec in STAGES.values() for setting in spec.settings}
    assert sorted([*staged, *config.SPLIT_SETTINGS, *config.PLACE_SETTINGS]) == sorted(config.Config.model_fields)


@pytest.fixture(scope="module")
def package_copy(tmp_path_factory):
    """A copy of the package, whose modules may be edited."""
    folder = tmp_path_factory.mktemp("copy") / "fruitlib"
    shutil.copytree(source_code.PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__", "assets"))
    return folder


def test_an_import_that_is_added_joins_the_closure(monkeypatch, tmp_path):
    monkeypatch.setattr(source_code, "PACKAGE", tmp_path)
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "a.py").write_text("x = 1\n")
    (tmp_path / "core" / "b.py").write_text("y = 1\n")
    first = source_code.closure_fingerprint(["fruitlib.core.a"])
    (tmp_path / "core" / "b.py").write_text("y = 2  # not imported\n")
    assert source_code.closure_fingerprint(["fruitlib.core.a"]) == first
    (tmp_path / "core" / "a.py").write_text("x = 1\n\n\ndef f():\n    from fruitlib.core import b\n")
    second = source_code.closure_fingerprint(["fruitlib.core.a"])
    assert source_code.import_closure(["fruitlib.core.a"]) == ["fruitlib.core.a", "fruitlib.core.b"]
    (tmp_path / "core" / "b.py").write_text("y = 3\n")
    assert len({first, second, source_code.closure_fingerprint(["fruitlib.core.a"])}) == 3


@pytest.mark.parametrize(
    ("module", "stages"),
    [
        ("reporting.style", NOTEBOOKS),
        ("reporting.effects_figures", set()),  # 08 is of the sweep
        ("training.train", set(STAGES)),
        ("data.stratify", set(STAGES)),  # which photos stand where
        ("core.machine", set(STAGES)),  # the seeding
        ("training.lr_finder", {"02_train"}),
        # 04's browser shows the INT8 file's heat beside torch's
        ("deploy.quantize", {"export", "test", "04_gradcam", "05_quantize", "06_test_accuracy"}),
        ("deploy.export", {"export", "test", "04_gradcam", "05_quantize", "06_test_accuracy"}),
        ("deploy.verify", {"05_quantize", "06_test_accuracy"}),  # how files are measured changes no file
        # nor does another score open the test photos; the model card, which 05 writes too, tells it
        ("deploy.test_scores", {"05_quantize", "06_test_accuracy"}),
        ("deploy.test_set", {"test", "06_test_accuracy"}),
        ("evaluation.metrics", set(STAGES)),
        ("data.photo_checks", set(STAGES)),
        ("sweep.driver", set()),
    ],
)
def test_a_change_in_a_module_touches_only_what_uses_it(run, monkeypatch, package_copy, module, stages):
    monkeypatch.setattr(source_code, "PACKAGE", package_copy)
    before, path = identities(run), source_code.module_path(f"fruitlib.{module}")
    original = path.read_text()
    path.write_text(original + "\nCHANGED = True\n")
    assert changed(before, identities(run)) == stages  # an edit between two calls is noticed
    path.write_text(original)
    assert identities(run) == before


def test_comments_and_docstrings_change_no_identity(monkeypatch, tmp_path):
    monkeypatch.setattr(source_code, "PACKAGE", tmp_path)
    sources = ['"""Doc."""\n\ndef f(x):\n    """Say."""\n    return x + 1  # why\n', "def f(x):\n\n    return x + 1\n"]
    found = []
    for source in [*sources, sources[1].replace("+ 1", "+ 2")]:
        (tmp_path / "module.py").write_text(source)
        found.append(source_code.module_fingerprint("fruitlib.module"))
    assert found[0] != found[2] and found[1] != found[2]
    (tmp_path / "module.py").write_text(sources[0].replace("Say", "Tell").replace("why", "because"))
    assert source_code.module_fingerprint("fruitlib.module") == found[0]


def test_other_photos_make_another_training(run, tiny, tmp_path):
    splits.prepare_manifest(config.make({**tiny, "split_seed": 5}), tmp_path / "other")
    other = Run(tmp_path / "other" / "run", run.config)
    assert other.identity("train") != run.identity("train")


def test_a_record_counts_only_under_todays_identity(run):
    assert not run.is_complete("train")
    run.complete("train", run.identity("train"), kept_epoch=1)
    assert not run.is_complete("train")  # its files are not there
    for name in STAGES["train"].outputs:
        (run.path / name).touch()
    assert run.is_complete("train") and run.record("train")["kept_epoch"] == 1
    assert not with_settings(run, seed=9).is_complete("train")


def test_params_yaml_holds_every_setting_and_what_it_ran_on(run):
    assert Run(run.path).config == run.config
    record = Run(run.path).params["record"]
    assert record["data_fingerprint"] and record["versions"]["torch"] and record["hardware"] and record["threads"] > 0


def test_another_process_cannot_take_a_held_run(run):
    code = (
        "import sys\nfrom fruitlib.runs.run import Busy, Run\nfrom pathlib import Path\n"
        "try:\n    with Run(Path(sys.argv[1])).locked(): print('taken')\nexcept Busy as busy: print(busy)\n"
    )

    def other(environment):
        command = [sys.executable, "-c", code, str(run.path)]
        return subprocess.run(command, capture_output=True, text=True, env=environment).stdout

    clean = {name: value for name, value in os.environ.items() if name != "FRUITLIB_LOCK_HELD"}
    with run.locked():
        assert "another process is working on this run" in other(clean)
        assert other(os.environ.copy()) == "taken\n"  # a notebook started by the holder works under its lock
    assert other(clean) == "taken\n"


def test_clear_leaves_nothing_that_could_pass_for_a_new_result(run):
    for name in ("best.pt", "history.csv", "06_test_accuracy.ipynb", "06_test_accuracy.html", "mine.ipynb"):
        (run.path / name).write_text("x")
    run.complete("train", "x")
    clear_run(run)
    assert {p.name for p in run.path.iterdir()} - {".lock"} == {"params.yaml", "mine.ipynb"}


def test_what_is_trained_keeps_the_record_of_what_it_ran_on(run, monkeypatch, capsys):
    for name in STAGES["train"].outputs:
        (run.path / name).touch()
    run.complete("train", run.identity("train"), data_fingerprint=run.data_fingerprint)
    monkeypatch.setattr(machine, "versions", lambda: {"torch": "99"})
    again = create_run(run.path, run.config.model_copy(update={"calibration_images": 7}))
    assert again.config.calibration_images == 7 and again.params["record"]["versions"]["torch"] != "99"
    assert not capsys.readouterr().out
    other = create_run(run.path, run.config.model_copy(update={"lr": 0.5}))
    message = f"holds another training (lr = {run.config.lr}, here 0.5): it is replaced, 02 trains again"
    assert message in capsys.readouterr().out
    assert other.params["record"]["versions"]["torch"] == "99" and not (run.path / "best.pt").exists()


def test_a_run_is_not_judged_on_photos_it_may_have_learnt_from(run, tiny, tmp_path):
    run.complete("train", "x", data_fingerprint=run.data_fingerprint)
    assert open_run(run.path).name == "run"
    splits.prepare_manifest(config.make({**tiny, "split_seed": 5}), tmp_path)
    with pytest.raises(InputError, match="split changed after training; execute 02_train again"):
        open_run(run.path)


def test_no_metric_hides_a_setting(run):
    import numpy as np

    from fruitlib.evaluation import metrics

    assert not {*metrics.scores(np.eye(3, dtype=int)), "val_loss"} & set(config.Config.model_fields)


def test_a_manifest_edited_by_hand_counts(run):
    before = run.identity("train")
    path = run.sweep_dir / "manifest.csv"
    path.write_text(path.read_text().replace(",train,", ",val,", 1))
    assert Run(run.path).identity("train") != before


def test_what_jupyterlab_saves_beside_the_text_changes_no_identity(run, monkeypatch, tmp_path):
    import nbformat

    source, before = notebook_path("03_metrics"), run.identity("03_metrics")
    monkeypatch.setattr("fruitlib.runs.stages.notebook_path", lambda stage: tmp_path / "copy.ipynb")
    notebook = nbformat.read(source, as_version=4)
    notebook.cells[1].execution_count = 5
    nbformat.write(notebook, tmp_path / "copy.ipynb")
    assert run.identity("03_metrics") == before
    notebook.cells[2].source += "\nprint()"
    nbformat.write(notebook, tmp_path / "copy.ipynb")
    assert run.identity("03_metrics") != before


def test_openings_of_the_test_set_add_up(run):
    assert run.test_openings().empty
    run.record_test_opening(30)
    run.record_test_opening(30)
    assert run.test_openings()[["run", "photos"]].values.tolist() == [["run", 30], ["run", 30]]


def test_opening_a_run_that_is_not_there():
    with pytest.raises(InputError, match="no trained run here yet; execute 02_train first"):
        open_run("executed/never")


def test_headline_is_escaped_and_carries_its_numbers():
    data, metadata = _bundle("answered", "5 < 6 & more", {"accuracy": 0.93333333})
    assert "5 &lt; 6 &amp; more" in data["text/html"]
    assert metadata["fruitlib"]["headline"]["numbers"] == {"accuracy": 0.933333}


def test_what_killed_writers_left_is_tidied_and_a_living_one_s_file_stays(tmp_path):
    killed = """
import os, signal, sys
from fruitlib.core import files
with files.replacing(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "run").mkdir()
    subprocess.run([sys.executable, "-c", killed, str(tmp_path / "run" / "split.png")])
    [left] = (tmp_path / "run").glob(".split.*.png")
    elsewhere = left.with_name(".split.1@another-machine.abcdefgh.png")
    elsewhere.touch()
    (tmp_path / ".lock").touch()
    with files.replacing(tmp_path / "table.csv") as partial:
        files.remove_stale_partials(tmp_path)
        assert partial.exists() and not left.exists() and elsewhere.exists()
    os.utime(elsewhere, (0, 0))
    files.remove_stale_partials(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".lock", "run", "table.csv"]


@pytest.mark.parametrize("text", ["", "5", "- a", "settings: {}", "settings: 5\nrecord: {}"])
def test_a_damaged_record_of_settings_is_one_line(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(InputError, match=r"params\.yaml: damaged"):
        _ = Run(tmp_path).config


@pytest.mark.parametrize(
    ("numbers", "shown"),
    [
        ({"n": 30.0, "seconds": 24.03, "accuracy": 0.8333, "macro_f1": 0.8175, "kept_epoch": 30.0},
         {"validation accuracy": "0.833", "validation macro-F1": "0.818", "seconds of training": "24"}),
        ({"accuracy_difference": -0.0001, "disagree": 0.0, "p": 1.0, "significant": 0.0, "n": 30.0},
         {"points of accuracy B has more": "0.0", "photos they predict differently": "0", "p of the test": "1"}),
        ({"selection_optimism_points": 0.0, "raw_key": 3.0}, {}),
    ],
)  # fmt: skip
def test_a_headline_shows_three_named_numbers_at_most(numbers, shown):
    assert named(numbers) == shown
