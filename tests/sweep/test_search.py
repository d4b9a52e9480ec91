"""A search: asked, watched, pruned, reported; a torn journal mended; open trials taken up again."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import optuna
import pandas as pd
import pytest

from fruitlib.core.errors import InputError
from fruitlib.reporting import pages
from fruitlib.runs.run import STOP, Pruned, Run
from fruitlib.sweep import params, search, space
from fruitlib.sweep.notebook import NotebookFailed, NotebookPruned, execute_notebook
from fruitlib.training import train
from fruitlib.training.train import refuse_stopped

ROOT = Path(__file__).parents[2]
TEXT = """
data: {data}
epochs: 10
search:
  trials: {trials}
  pruner: {pruner}
  sampler: {sampler}
  space:
    lr: {{low: 0.001, high: 0.1, log: true}}
    optimizer: [adam, sgd]
    augment: [crop, geometric]
"""


@pytest.fixture
def plan_of(tmp_path):
    def plan(trials=3, pruner="none", sampler="tpe"):
        text = TEXT.format(data="sample", trials=trials, pruner=pruner, sampler=sampler)
        (tmp_path / "story.yaml").write_text(text)
        return params.read_params(tmp_path / "story.yaml")

    return plan


def finish(trials: search.Trials, name: str, score: float) -> None:
    run = Run(trials.sweep_dir / name)
    run.path.mkdir()
    (run.path / "metrics.json").write_text(json.dumps({"macro_f1": score}))
    trials.tell(name, "complete", run)


def test_trials_are_runs_of_the_plan_and_no_more_than_wanted(plan_of, tmp_path):
    plan = plan_of(trials=3)
    with search.Trials(plan, tmp_path) as trials:
        names = [trials.ask() for _ in range(4)]
        assert names[3] is None and list(plan.runs) == names[:3]
        assert all(name.startswith(f"trial={number},") for number, name in enumerate(names[:3]))
        for number, name in enumerate(names[:3]):
            assert plan.runs[name].epochs == 10 and set(plan.differs[name]) == {"lr", "optimizer", "augment"}
            finish(trials, name, number / 10)
        values = [trial.value for trial in trials.study.trials]
        assert values == [0.0, 0.1, 0.2] and trials.study.best_trial.number == 2


@pytest.mark.parametrize("sampler", params.SAMPLERS)
def test_every_sampler_proposes_what_config_takes(plan_of, tmp_path, sampler):
    plan = plan_of(trials=2, sampler=sampler)
    with search.Trials(plan, tmp_path) as trials:
        finish(trials, trials.ask(), 0.5)
        assert plan.runs[trials.ask()].optimizer in ("adam", "sgd")


def test_a_sweep_that_was_killed_finds_its_open_trials_with_their_values(plan_of, tmp_path):
    with search.Trials(plan_of(), tmp_path) as trials:
        first, second = trials.ask(), trials.ask()
        finish(trials, first, 0.5)
        trials.study.ask()  # killed before anything was suggested
        before = dict(trials.plan.runs)
    plan = plan_of()
    with search.Trials(plan, tmp_path) as trials:
        states = trials.earlier()
        assert [states[first], states[second]] == ["complete", "pending"] and len(states) == 3
        assert {name: plan.runs[name] for name in (first, second)} == before
        assert trials.ask() is None  # three there are
        finish(trials, second, 0.7)
        trials.tell(second, "complete", Run(tmp_path / second))  # reported once already: no harm
        assert [trial.state.name for trial in trials.study.trials] == ["COMPLETE", "COMPLETE", "RUNNING"]


def test_one_who_goes_on_does_not_draw_again_what_was_drawn(plan_of, tmp_path):
    drawn = []
    for _ in range(4):
        plan = plan_of(trials=8, sampler="random")
        with search.Trials(plan, tmp_path) as trials:
            finish(trials, name := trials.ask(), 0.1)
            drawn.append(plan.runs[name].lr)
    assert len(set(drawn)) == 4


def test_a_trial_no_run_can_have_counts_as_failed_and_the_next_is_asked(tmp_path, capsys):
    text = "epochs: 4\nsearch: {trials: 6, seed: 1, sampler: random, space: {lr_find: {low: 0, high: 40}, lr: [0.1]}}\n"
    (tmp_path / "story.yaml").write_text(text)
    with pytest.raises(InputError, match="lr_find = "):  # found by a draw from within; its ends are both good
        params.read_params(tmp_path / "story.yaml")
    (tmp_path / "story.yaml").write_text(text.replace("high: 40", "high: 40, step: 20"))
    plan = params.read_params(tmp_path / "story.yaml")
    plan.search.space["lr_find"] = space.Range(0, 40)  # as if the draws had missed it
    with search.Trials(plan, tmp_path) as trials:
        while trials.ask():
            pass
        states = [trial.state.name for trial in trials.study.trials]
    assert len(states) == 6 and "FAIL" in states and len(plan.runs) == states.count("RUNNING")
    assert "the trial counts as failed" in capsys.readouterr().out


def test_failed_and_pruned_are_told_and_lost_stays_open(plan_of, tmp_path):
    with search.Trials(plan_of(), tmp_path) as trials:
        names = [trials.ask() for _ in range(3)]
        for name, state in zip(names, ("failed", "pruned", "lost"), strict=True):
            trials.tell(name, state, Run(tmp_path / name))
        assert [trial.state.name for trial in trials.study.trials] == ["FAIL", "PRUNED", "RUNNING"]


def test_importances_are_written_and_name_the_setting_that_decides(plan_of, tmp_path):
    with search.Trials(plan_of(trials=20, sampler="random"), tmp_path) as trials:
        for number in range(20):
            if number == search.FEWEST_COMPLETE - 1:
                trials.write_importances()
                assert not (tmp_path / "importances.csv").exists()
            name = trials.ask()
            finish(trials, name, 0.9 if trials.plan.runs[name].optimizer == "adam" else 0.3)
        trials.write_importances()
    table = pd.read_csv(tmp_path / "importances.csv").set_index("setting")["importance"]
    assert table["optimizer"] > 0.8 and table.sum() == pytest.approx(1, abs=1e-4)


def test_another_asker_is_refused_and_so_is_another_space(plan_of, tmp_path):
    with search.Trials(plan_of(), tmp_path):
        code = f"""
from pathlib import Path
from fruitlib.sweep import params, search
search.Trials(params.read_params(Path({str(tmp_path / "story.yaml")!r})), Path({str(tmp_path)!r})).__enter__()
"""
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "another sweep searches here" in other.stderr
    text = (tmp_path / "story.yaml").read_text().replace("high: 0.1", "high: 0.2")
    (tmp_path / "story.yaml").write_text(text)
    with (
        pytest.raises(InputError, match=r"space changed since this search began .* give it another --out"),
        search.Trials(params.read_params(tmp_path / "story.yaml"), tmp_path),
    ):
        pass


def test_a_torn_last_line_is_cut_off_and_a_stale_lock_dropped(plan_of, tmp_path):
    with search.Trials(plan_of(), tmp_path) as trials:
        finish(trials, trials.ask(), 0.5)
    journal = tmp_path / search.JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "work')
    (tmp_path / f"{search.JOURNAL}.lock").touch()  # its holder was killed; nobody else may write here
    with search.Trials(plan_of(), tmp_path) as trials:
        assert journal.read_bytes().startswith(whole) and len(trials.study.trials) == 1
        assert trials.ask().startswith("trial=1,")


def test_a_storage_of_optunas_own_kind_works_as_well(plan_of, tmp_path):
    text = plan_of() and (tmp_path / "story.yaml").read_text()
    url = f"sqlite:///{tmp_path}/study.db"
    (tmp_path / "story.yaml").write_text(text.replace("trials: 3", f"trials: 3\n  storage: {url}"))
    with search.Trials(params.read_params(tmp_path / "story.yaml"), tmp_path) as trials:
        finish(trials, trials.ask(), 0.5)
    assert not (tmp_path / search.JOURNAL).exists()
    assert optuna.load_study(study_name=f"fruitlib-{tmp_path.name}", storage=url).best_value == 0.5
    (tmp_path / "story.yaml").write_text(text.replace("trials: 3", "trials: 3\n  storage: nonsense"))
    with (
        pytest.raises(InputError, match="search storage nonsense: cannot be used"),
        search.Trials(params.read_params(tmp_path / "story.yaml"), tmp_path),
    ):
        pass


def write_history(run: Run, scores: list[float]) -> None:
    run.path.mkdir(exist_ok=True)
    pd.DataFrame({"epoch": range(1, len(scores) + 1), "val_macro_f1": scores}).to_csv(run.path / "history.csv")


def test_a_trial_behind_the_median_gets_a_stop_file_and_others_do_not(plan_of, tmp_path):
    plan = plan_of(trials=9, pruner="median")
    with search.Trials(plan, tmp_path) as trials:
        for score in (0.5, 0.6, 0.7, 0.8, 0.9):
            name = trials.ask()
            write_history(Run(tmp_path / name), [score] * 9)
            trials.watch(name, Run(tmp_path / name))
            (tmp_path / name / "metrics.json").write_text(json.dumps({"macro_f1": score}))
            trials.tell(name, "complete", Run(tmp_path / name))
        for score, pruned in ((0.3, True), (0.95, False)):
            name = trials.ask()
            run = Run(tmp_path / name, plan.runs[name])
            write_history(run, [score] * 5)
            trials.watch(name, run)
            assert (run.path / STOP).is_file() == pruned
            if pruned:
                with pytest.raises(Pruned, match=r"pruned after epoch 5 of 10: macro_f1 0\.300 at epoch 2, median"):
                    refuse_stopped(run, 5)


@pytest.mark.parametrize("processes", [1, 2])
def test_training_stops_after_an_epoch_when_its_folder_says_so(make_run, forked_group, processes):
    run = make_run(epochs=30, processes=processes, cam_every=0)

    def stop_after_two(history):
        if len(history) == 2:
            (run.path / STOP).write_text("it is behind")

    with pytest.raises(Pruned, match=r"pruned after epoch \d+ of 30: it is behind"):
        train.fit(run, stop_after_two)
    assert 2 <= len(run.history()) < 30 and not run.is_complete("train")
    if processes == 1:
        (run.path / STOP).unlink()
        assert len(train.fit(run)) == 30  # it can be gone on from


def test_a_pruned_notebook_says_so_on_top_and_is_no_failure(make_run, tmp_path):
    run = make_run(epochs=30)
    (run.path / STOP).write_text("it is behind")
    with pytest.raises(NotebookPruned, match=r"^pruned after epoch 0 of 30: it is behind$"):
        execute_notebook("02_train", run.path / "02_train.ipynb", run.config, run_dir=str(run.path))
    page = pages.load(run.path / "02_train.ipynb")
    assert page.state == "pruned" and page.headline["text"] == "pruned after epoch 0 of 30: it is behind"


DISK_FULL_INSIDE = """
try:
    raise OSError(28, "in another language")
except OSError:
    raise ValueError("photos were not written") from None
"""


@pytest.mark.parametrize(
    ("cell", "error", "disk_failure"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero", False),
        ("raise ValueError('No space left on device')", "ValueError: No space left on device", False),
        (DISK_FULL_INSIDE, "ValueError: photos were not written", True),
    ],
)
def test_a_notebook_that_fails_says_so_on_top_and_whether_a_disk_caused_it(
    tmp_path, monkeypatch, cell, error, disk_failure
):
    monkeypatch.setenv("FRUITLIB_HOME", str(tmp_path))
    (tmp_path / "notebooks").mkdir()
    sources = ["from fruitlib.runs.headline import Headline\nheadline = Headline.start()", cell]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    nbformat.write(notebook, tmp_path / "notebooks" / "bad.ipynb")
    with pytest.raises(NotebookFailed) as problem:
        execute_notebook("bad", tmp_path / "bad.ipynb", params.Config())
    assert str(problem.value) == f"bad: {error}" and problem.value.disk_failure == disk_failure
    assert pages.load(tmp_path / "bad.ipynb").headline["text"] == f"stopped: {error}"
