"""Run folders: identity by stage, locks, openings of the test set, the headline."""

import os
import subprocess
import sys

import pytest

from fruitlib import config, runs, splits
from fruitlib.runtime import InputError


@pytest.fixture
def run(tiny, tmp_path):
    cfg = config.make(tiny)
    splits.prepare(cfg, tmp_path)
    return runs.create(tmp_path / "run", cfg)


def identities(run) -> dict[str, str]:
    return {stage: run.identity(stage) for stage in runs.STAGES}


def changed(before: dict, after: dict) -> set[str]:
    return {stage for stage in before if before[stage] != after[stage]}


def with_knobs(run, **knobs):
    return runs.Run(run.path, run.config.model_copy(update=knobs))


NOTEBOOKS = {stage for stage, spec in runs.STAGES.items() if spec.notebook}


def test_a_training_knob_changes_everything_an_export_knob_only_what_follows(run):
    before = identities(run)
    assert changed(before, identities(with_knobs(run, lr=0.5))) == set(runs.STAGES)
    after_export = {"export", "test", "05_quantize", "06_test_accuracy"}
    assert changed(before, identities(with_knobs(run, calibration_images=7))) == after_export


def test_every_knob_belongs_to_a_stage_or_to_the_split():
    staged = [knob for spec in runs.STAGES.values() for knob in spec.knobs]
    assert sorted([*staged, *config.SPLIT_KNOBS]) == sorted(config.Config.model_fields)


@pytest.mark.parametrize(
    ("module", "stages"),
    [
        ("plots", NOTEBOOKS),
        ("train", set(runs.STAGES)),
        ("export", {"export", "test", "05_quantize", "06_test_accuracy"}),
        ("gradcam", {"04_gradcam"}),
    ],
)
def test_a_change_in_a_module_touches_only_what_uses_it(run, monkeypatch, module, stages):
    before, source = identities(run), runs._source
    monkeypatch.setattr(runs, "_source", lambda name: source(name) + (b"changed" if name == module else b""))
    assert changed(before, identities(run)) == stages


def test_comments_and_docstrings_change_no_identity(monkeypatch, tmp_path):
    (tmp_path / "runs.py").touch()
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "runs.py"))
    sources = ['"""Doc."""\n\ndef f(x):\n    """Say."""\n    return x + 1  # why\n', "def f(x):\n\n    return x + 1\n"]
    found = []
    for source in [*sources, sources[1].replace("+ 1", "+ 2")]:
        (tmp_path / "module.py").write_text(source)
        found.append(runs._source("module"))
    assert found[0] != found[2] and found[1] != found[2]
    (tmp_path / "module.py").write_text(sources[0].replace("Say", "Tell").replace("why", "because"))
    assert runs._source("module") == found[0]


def test_other_photos_make_another_training(run, tiny, tmp_path):
    splits.prepare(config.make({**tiny, "split_seed": 5}), tmp_path / "other")
    other = runs.Run(tmp_path / "other" / "run", run.config)
    assert other.identity("train") != run.identity("train")


def test_a_record_counts_only_under_todays_identity(run):
    assert not run.is_complete("train")
    run.complete("train", run.identity("train"), best_epoch=1)
    assert run.is_complete("train") and run.record("train")["best_epoch"] == 1
    assert not with_knobs(run, seed=9).is_complete("train")


def test_params_yaml_holds_every_knob_and_what_it_ran_on(run):
    assert runs.open_run(run.path).config == run.config
    record = runs.open_run(run.path).params["record"]
    assert record["data_fingerprint"] and record["versions"]["torch"] and record["hardware"]


def test_another_process_cannot_take_a_held_run(run):
    code = (
        "import sys\nfrom fruitlib import runs\nfrom pathlib import Path\n"
        "try:\n    with runs.Run(Path(sys.argv[1])).locked(): print('taken')\nexcept runs.Busy as busy: print(busy)\n"
    )

    def other(environment):
        command = [sys.executable, "-c", code, str(run.path)]
        return subprocess.run(command, capture_output=True, text=True, env=environment).stdout

    clean = {name: value for name, value in os.environ.items() if name != "FRUITLIB_LOCK_HELD"}
    with run.locked():
        assert "another process is working on this run" in other(clean)
        assert other(os.environ.copy()) == "taken\n"  # a notebook started by the holder works under its lock
    assert other(clean) == "taken\n"


def test_clear_leaves_notebooks_and_params(run):
    for name in ("best.pt", "history.csv", "02_train.ipynb"):
        (run.path / name).write_text("x")
    run.complete("train", "x")
    runs.clear(run)
    assert {p.name for p in run.path.iterdir()} - {".lock"} == {"params.yaml", "02_train.ipynb"}


def test_openings_of_the_test_set_add_up(run):
    assert run.test_openings().empty
    run.record_test_opening(30)
    run.record_test_opening(30)
    assert run.test_openings()[["run", "photos"]].values.tolist() == [["run", 30], ["run", 30]]


def test_opening_a_run_that_is_not_there():
    with pytest.raises(InputError, match="no run here yet; execute 02_train first"):
        runs.open_run("executed/never")


def test_mistakes_come_most_confident_first(run):
    import pandas as pd

    rows = [("a", "bar", "bar", 0.1, 0.9), ("b", "bar", "disc", 0.6, 0.4), ("c", "disc", "bar", 0.2, 0.8)]
    table = pd.DataFrame(rows, columns=["path", "label", "predicted", "p_disc", "p_bar"])
    assert runs.mistakes(table)[["path", "confidence"]].values.tolist() == [["c", 0.8], ["b", 0.6]]


def test_headline_is_escaped_and_carries_its_numbers():
    data, metadata = runs._bundle("answered", "5 < 6 & more", {"accuracy": 0.93333333})
    assert "5 &lt; 6 &amp; more" in data["text/html"]
    assert metadata["fruitlib"]["headline"]["numbers"] == {"accuracy": 0.933333}
