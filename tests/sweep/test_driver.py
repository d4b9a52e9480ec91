"""A params file executed as a person would: what is complete stays, failures are listed, bad input writes nothing."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from rich.console import Console
from sklearn.metrics import f1_score
from support import WILD, link_notebooks

from fruitlib import cli
from fruitlib.core import config
from fruitlib.data import splits
from fruitlib.runs import status as status_module
from fruitlib.runs.run import WORKING, Run, create_run
from fruitlib.runs.stages import STAGES
from fruitlib.runs.status import RunStatus, SweepStatus, load_run_status
from fruitlib.sweep import final_model, folder, params, schedule, summary, terminal, worker
from fruitlib.sweep.driver import RUN_STAGES, TEST_STAGE, Driver
from fruitlib.sweep.notebook import KernelLost, NotebookFailed, execute_notebook, parameters
from fruitlib.sweep.queue import Outcome

HOME = Path(__file__).parents[2]


def sweep(house, monkeypatch, *arguments) -> int:
    """`fruitlib sweep` in a project folder, but in this process; returns its exit code."""
    monkeypatch.setenv("FRUITLIB_HOME", str(house))
    before = signal.getsignal(signal.SIGTERM)
    try:
        return cli.main(["sweep", *map(str, arguments)])
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def swept(finished_sweep) -> dict:
    """How the finished sweep ended, one run well and one not, and what it printed."""
    return json.loads((finished_sweep / "output.json").read_text())


def test_one_failure_does_not_stop_the_rest(swept, finished_sweep):
    assert swept["returncode"] == 1
    folder = finished_sweep / "executed" / "tiny"
    table = pd.read_csv(folder / "results.csv").set_index("run")
    assert table["state"].to_dict() == {"lr=0.003": "complete", "lr=0.01": "complete", WILD: "failed"}
    assert table.loc[["lr=0.003", "lr=0.01"], ["accuracy", "macro_f1", "size_mb_int8"]].notna().all(axis=None)
    chosen = table.index[table["test_accuracy"].notna()].tolist()
    assert len(chosen) == 1
    for name in ("lr=0.003", "lr=0.01"):
        stages = {*RUN_STAGES, TEST_STAGE} if [name] == chosen else {*RUN_STAGES}
        assert {path.stem for path in (folder / name).glob("*.ipynb")} == stages
    assert {path.stem for path in (folder / WILD).glob("*.ipynb")} == {"02_train"}
    assert all((folder / f"{stage}.html").is_file() for stage in worker.COMPARISON_STAGES)
    optimism = json.loads((folder / "sweep.json").read_text())["optimism"]
    assert (optimism["candidates"], optimism["epochs"]) == (2, 1) and "honest" in optimism
    assert (folder / "insight.csv").is_file() and not (folder / "effects.csv").exists()


def diverged(folder: Path) -> str:
    """Why the wild run failed, as its process has written it down."""
    return json.loads((folder / "executed" / "tiny" / WILD / "outcome.json").read_text())["error"]


def test_it_tells_what_happened(swept, finished_sweep):
    reason = diverged(finished_sweep)
    assert reason.startswith("02_train: Diverged: ") and f"failed: {WILD}: {reason}" in swept["stdout"]
    assert "* lr=0.0" in swept["stdout"] and "executed/tiny/index.html" in swept["stdout"]
    assert "3 classes: bar 16, cross 16, disc 16" in swept["stdout"]
    assert swept["stderr"] == ""


def test_the_report_lists_all_and_links_what_is_there(finished_sweep):
    folder = finished_sweep / "executed" / "tiny"
    page = (folder / "index.html").read_text()
    assert diverged(finished_sweep).removeprefix("02_train: Diverged: ") in page
    assert "lr=0.003" in page and "lr=0.01" in page
    assert len(list(folder.glob("lr=0.0*/06_test_accuracy.html"))) == 1
    assert "3 classes: bar 16" in page and "3 classes: bar 16" in (folder / "01_split.html").read_text()


def test_no_part_written_files_are_left(finished_sweep):
    hidden = [path.name for path in (finished_sweep / "executed").rglob(".*") if not path.name.endswith(".lock")]
    assert hidden == []


def test_executed_again_it_repeats_nothing(finished_copy, monkeypatch, capsys):
    folder = finished_copy / "executed" / "tiny"
    files = [path for path in folder.glob("lr=0.0*/*") if path.suffix in {".ipynb", ".pt", ".onnx"}]
    before = {path: path.stat().st_mtime_ns for path in files}
    assert sweep(finished_copy, monkeypatch, finished_copy / "tiny.yaml") == 1  # what failed is tried again
    assert len(before) > 14 and {path: path.stat().st_mtime_ns for path in before} == before
    assert len(pd.read_csv(folder / "test_openings.csv")) == 1
    assert "* lr=0.0" in capsys.readouterr().out


def test_results_on_other_photos_are_not_overwritten(finished_sweep, tmp_path, monkeypatch, capsys):
    arguments = [finished_sweep / "tiny.yaml", "--data", tmp_path, "--out", "tiny"]
    assert sweep(finished_sweep, monkeypatch, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "executed/tiny" in line and "--out" in line


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        ("lr: 0.1\nlearning_rat: 3", [], "unknown setting learning_rat"),
        ("lr: -3", [], "lr = -3"),
        ("epochs: many", [], "epochs = 'many'"),
        ("epochs: 1", ["--data", "no such folder"], "no such folder of photos"),
        ("val_per_class: 900", [], "class bar has 16 photos"),
        ("on: 3", [], "True is not a setting"),
        ("grid: {1: [2]}", [], "1 is not a setting"),
        ("seed: 5000000000", [], "seed = 5000000000"),
        ("base_weights: missing.pt", [], "base_weights missing.pt: no such file"),
        ("base_weights: broken.pt", [], "broken.pt: not a readable checkpoint"),
        ("weights: default", [], "weights default: no such file; set none, DEFAULT"),
        ("model: base", [], "model base has 5 classes, the photos have 3"),
        ("share_class: dics\ntrain_share: 0.5", [], "share_class = dics: no such class among bar, cross, disc"),
        ("deploy_shares: {bar: 1, disc: 1}", [], "class cross has no share"),
        ("epochs: 1", ["--data", ""], "--data is empty"),
        ("epochs: 1", ["--out", ""], "--out : an empty name"),
        ("epochs: 1", ["--out", "../up"], "--out ../up: a name is wanted, not a path"),
        ("epochs: 1", ["--out=-x"], "--out -x: a name that begins with -"),
        ("epochs: 1", ["--out", "example"], "--out example: a reserved name"),
        ("grid: {seed: [" + "1, " * 200 + "], epochs: [" + "1, " * 200 + "]}", [], "40,000 runs"),
        ("folds: 2\nscheduler: plateau", [], "ship: refit trains on the photos of all folds"),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(
    shapes, tmp_path, monkeypatch, capsys, text, arguments, words
):
    def ready():
        raise AssertionError("a kernel was started for nothing")

    monkeypatch.setattr("fruitlib.kernels.kernelspec.ready", ready)
    link_notebooks(tmp_path)
    (tmp_path / "broken.pt").write_text("not a checkpoint")
    data = "" if "--data" in arguments else f"data: {shapes}\n"
    (tmp_path / "bad.yaml").write_text(f"{data}{text}\n")
    assert sweep(tmp_path, monkeypatch, tmp_path / "bad.yaml", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not (tmp_path / "executed").exists()


def test_another_params_file_does_not_replace_results(finished_copy, monkeypatch, capsys):
    table = finished_copy / "executed" / "tiny" / "results.csv"
    before = table.read_bytes()
    text = (finished_copy / "tiny.yaml").read_text()
    (finished_copy / "other.yaml").write_text(text.replace('"epochs": 40', '"epochs": 2'))
    assert sweep(finished_copy, monkeypatch, finished_copy / "other.yaml", "--out", "tiny") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "executed/tiny holds the results of tiny.yaml (Tiny; 3 runs): give this sweep another --out" in line
    assert table.read_bytes() == before


@pytest.mark.parametrize("command", [["sweep", "nothing.yaml"], ["swep"]])
def test_missing_params_file_and_unknown_command(command):
    """As from a terminal: the exit code and the line on standard error are those of a process."""
    done = subprocess.run([sys.executable, "-m", "fruitlib.cli", *command], capture_output=True, text=True)
    first = "reading nothing.yaml\n" if command[0] == "sweep" else ""
    assert done.returncode == 2 and done.stdout == first and command[-1] in done.stderr.splitlines()[-1]


def test_what_a_kernel_says_outside_of_its_notebook_is_kept_off_the_terminal(tmp_path, monkeypatch, capfd):
    """Until it dies: then its last words are the reason."""
    monkeypatch.setenv("FRUITLIB_HOME", str(tmp_path))
    (tmp_path / "notebooks").mkdir()
    for name, end in (("quiet", ""), ("dying", "os._exit(1)")):
        source = f"import os\nos.write(2, b'last words\\n')\n{end}"
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")
    execute_notebook("quiet", tmp_path / "quiet.ipynb", config.Config())
    assert "last words" not in "".join(capfd.readouterr())
    with pytest.raises(KernelLost, match=r"dying: the kernel died \(last words\)"):
        execute_notebook("dying", tmp_path / "dying.ipynb", config.Config())


@pytest.mark.parametrize(("threads", "together"), [("2", True), ("1", False)])
def test_with_two_cores_05_is_executed_beside_03_and_04(tmp_path, tiny, monkeypatch, threads, together):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    run, working, seen = create_trained(tmp_path, tiny), set(), []
    meet = threading.Barrier(2, timeout=20)

    def execute(run, stage, kernel, marker):
        working.add(stage)
        if together and stage in ("03_metrics", "05_quantize"):
            meet.wait()
        seen.append((stage, len(working)))
        if together and stage in ("03_metrics", "05_quantize"):
            meet.wait()
        working.remove(stage)
        if stage == "03_metrics":
            raise NotebookFailed("03_metrics: an error")

    monkeypatch.setattr(worker, "_execute_stage", execute)
    stages = ["02_train", "03_metrics", "04_gradcam", "05_quantize"]
    assert worker.execute_stages(run.path, stages, tiny) == "failed"
    assert (("05_quantize", 2) in seen) == together and "04_gradcam" not in [stage for stage, _ in seen]
    outcome = run.read_json("outcome.json")
    assert (outcome["stage"], outcome["error"]) == ("03_metrics", "03_metrics: an error")


def create_trained(folder, settings):
    """A run of these settings whose training counts as complete."""
    splits.prepare_manifest(config.make(settings), folder)
    run = create_run(folder / "run", config.make(settings))
    for name in STAGES["train"].outputs:
        (run.path / name).touch()
    run.complete("train", run.identity("train"))
    return run


def test_a_notebook_after_02_reads_the_settings_its_plan_has_now(tmp_path, tiny, monkeypatch):
    """Such as another `int8_agreement`, which trains nothing anew."""
    monkeypatch.setenv("FRUITLIB_HOME", str(tmp_path))
    (tmp_path / "notebooks").mkdir()
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    nbformat.write(notebook, tmp_path / "notebooks" / "05_quantize.ipynb")
    run = create_trained(tmp_path, tiny)
    before = run.params["record"]
    assert worker.execute_stages(run.path, ["05_quantize"], {**tiny, "int8_agreement": 0.5}) == "complete"
    found = Run(run.path)
    assert found.config.int8_agreement == 0.5 and found.params["record"] == before and found.is_complete("train")


def test_parameters_follow_the_notebooks_cell():
    cfg = config.make({"lr": 0.5, "weight_decay": 0.3, "data": "sample5"})
    found = parameters(HOME / "notebooks" / "02_train.ipynb", cfg, {"run_dir": "x"})
    assert found["lr"] == 0.5 and found["run_dir"] == "x" and found["overrides"] == {"weight_decay": 0.3}
    found = parameters(HOME / "notebooks" / "03_metrics.ipynb", cfg, {"run_dir": "x"})
    assert found == {"run_dir": "x"}


def test_the_choice_is_the_best_on_validation_ties_to_the_lower_loss(tmp_path):
    numbers = {"a": (0.9, 0.5), "b": (0.95, 0.4), "c": (0.95, 0.2), "d": (0.99, 0.1)}
    work = {}
    for name, (score, loss) in numbers.items():
        work[name] = Run(tmp_path / name)
        work[name].path.mkdir()
        (work[name].path / "metrics.json").write_text(json.dumps({"macro_f1": score, "val_loss": loss}))
    states = {name: {"state": "complete"} for name in "abc"} | {"d": {"state": "failed"}}
    plan = params.Sweep("s", "s", "t", "chosen", "macro_f1", "refit", "every", config.Config(), {}, {})
    assert final_model.choose(plan, work, states, tmp_path) == "c"
    assert final_model.choose(plan, work, {name: {"state": "failed"} for name in work}, tmp_path) is None


@pytest.fixture
def folded(tmp_path):
    """A plan of two combinations with two folds each; its runs, all complete, and pooled results."""
    (tmp_path / "folds.yaml").write_text("folds: 2\ntest_per_class: 0\ngrid:\n  lr: [0.1, 0.01]\n")
    plan = params.read_params(tmp_path / "folds.yaml")
    work = {name: Run(tmp_path / name, cfg) for name, cfg in plan.runs.items()}
    rows = [("lr=0.1", 0.7, 0.9), ("lr=0.01", 0.8, 0.6)]
    table = pd.DataFrame(rows, columns=["combination", "macro_f1", "accuracy"])
    table.to_csv(tmp_path / "results_oof.csv", index=False)
    return plan, work, {name: {"state": "complete"} for name in work}


def ten_photos(share: float) -> pd.DataFrame:
    """Predictions for ten photos of two classes, the first of them right."""
    labels, others = list("xy" * 5), list("yx" * 5)
    right = round(10 * share)
    return pd.DataFrame({"path": list("abcdefghij"), "label": labels, "predicted": labels[:right] + others[right:]})


def compared(tmp_path, broken: str = "") -> pd.DataFrame:
    """`insight.csv` after three lr over two seeds; the last run failed, one run's history is `broken`."""
    (tmp_path / "lrs.yaml").write_text("grid:\n  lr: [0.1, 0.01, 0.001]\n  seed: [0, 1]\n")
    plan = params.read_params(tmp_path / "lrs.yaml")
    states = {name: {"state": "complete", "error": None} for name in plan.runs}
    work = {name: Run(tmp_path / name, cfg) for name, cfg in plan.runs.items()}
    for number, run in enumerate(work.values()):
        score = 0.5 + number / 10  # lr by lr, and within each seed by seed
        run.path.mkdir()
        (run.path / "metrics.json").write_text(json.dumps({"macro_f1": score, "accuracy": score}))
        run.complete("train", "as it is", seconds=9.0, epochs=2, kept_epoch=1)
        (run.path / "history.csv").write_text("epoch,val_accuracy\n1,0.2\n2,0.9\n")
        ten_photos(score).to_csv(run.path / "predictions_val.csv", index=False)
    states[run.name]["state"] = "failed"
    if broken:
        (next(iter(work.values())).path / "history.csv").write_text(broken)
    summary.write_summary(plan, tmp_path, work, states)
    found = pd.read_csv(tmp_path / "insight.csv")
    summary.write_summary(plan, tmp_path, work, {name: {"state": "pending", "error": None} for name in work})
    assert not (tmp_path / "insight.csv").exists()  # nothing is complete: nothing to say
    return found


def test_what_made_a_difference_is_written_by_the_rule_of_08(tmp_path):
    table = compared(tmp_path)
    score = table[table["measure"] == "macro_f1"].set_index(["from", "to"])
    assert score["pairs"].to_dict() == {(0.001, 0.01): 1, (0.001, 0.1): 1, (0.01, 0.1): 2}
    photos = {share: ten_photos(share) for share in (0.5, 0.6, 0.7, 0.8, 0.9)}
    f1 = {share: f1_score(own["label"], own["predicted"], average="macro") for share, own in photos.items()}
    expected = [f1[0.7] - f1[0.9], f1[0.5] - f1[0.9], (f1[0.5] + f1[0.6] - f1[0.7] - f1[0.8]) / 2]
    assert score["gain"].tolist() == pytest.approx(expected)
    assert set(table["measure"]) == {"macro_f1", "epochs_to_converge", "train_seconds"}
    assert score["seeds_low"].notna().tolist() == [False, False, True] and not score["significant"].any()


@pytest.mark.parametrize("broken", [" ", "a;b\n1;2\n"])
def test_an_unreadable_history_costs_its_own_number_alone(tmp_path, broken):
    table = compared(tmp_path, broken)
    pairs = table[(table["from"] == 0.01) & (table["to"] == 0.1)].set_index("measure")["pairs"]
    assert pairs.to_dict() == {"macro_f1": 2, "epochs_to_converge": 1, "train_seconds": 2}


class Recorder:
    """An engine that executes nothing: it says that all went well, in order, and remembers what it was given."""

    def __init__(self):
        self.given, self.waiting, self.room, self.running = [], [], 1, {}

    @property
    def names(self):
        return {task.name for task in self.waiting}

    def add(self, task):
        self.given.append((task.name, len(task.stages)))
        self.waiting.append(task)

    def outcomes(self, idle):
        while self.waiting:
            yield self.waiting.pop(0), Outcome("complete")


def test_with_folds_all_of_a_combination_are_trained_before_any_is_looked_at(folded, tmp_path, monkeypatch):
    plan, _, _ = folded
    monkeypatch.setattr(Driver, "_is_complete", lambda driver, run: False)
    monkeypatch.setattr(worker, "sweep_stage_is_complete", lambda *_: True)
    driver = Driver(plan, tmp_path, terminal.Terminal(plan, tmp_path), engine := Recorder())
    monkeypatch.setattr(driver, "_publish", lambda *_, **__: None)
    monkeypatch.setattr(driver, "_write_summary", lambda *_: None)
    driver._execute_runs()
    trained = [("fold=1,lr=0.1", 1), ("fold=2,lr=0.1", 1), ("fold=1,lr=0.01", 1), ("fold=2,lr=0.01", 1)]
    assert engine.given[:4] == trained
    assert engine.given[4:] == [(name, 4) for name, _ in trained]


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A driver of one run whose engine executes nothing, in a folder with a manifest; it prints to `driver.printed`."""
    monkeypatch.setenv("FRUITLIB_HOME", str(tmp_path))
    (tmp_path / "one.yaml").write_text("title: T\n")
    plan, folder_ = params.read_params(tmp_path / "one.yaml"), tmp_path / "executed" / "one"
    folder_.mkdir(parents=True)
    (folder_ / "manifest.csv").touch()
    made = Driver(plan, folder_, terminal.Terminal(plan, folder_), engine := Recorder())
    made.printed = []
    monkeypatch.setattr(made.progress, "say", made.printed.append)
    for name in ("stop", "close"):
        monkeypatch.setattr(engine, name, lambda: None, raising=False)
    return made


def raises(problem: Exception):
    def function(*_, **__):
        raise problem

    return function


def test_pages_and_summaries_that_cannot_be_written_are_told_once_and_stop_nothing(driver, monkeypatch):
    monkeypatch.setattr(summary, "write_summary", raises(KeyError("macro_f1")))
    monkeypatch.setattr("fruitlib.reporting.site.build_site", raises(ValueError("too large\nby far")))
    for _ in range(3):
        assert driver._publish("a", "a") == {"chosen": None, "shipped": None, "runs": []}
    assert driver.printed == [
        "summary: could not be written (KeyError: 'macro_f1'); the sweep goes on",
        "pages: could not be written (ValueError: too large); the sweep goes on",
    ]
    assert driver._changed == {"summary": True, "pages": True}  # they are tried again
    monkeypatch.setattr(summary, "write_summary", raises(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        driver._publish()


@pytest.mark.parametrize("while_", ["it waits", "a run ends", "a page is written", "anything else is done"])
def test_a_sweep_whose_folder_is_removed_says_so_in_one_line(driver, monkeypatch, while_):
    def remove(*_, **__):
        if driver.sweep_dir.is_dir():
            os.rename(driver.sweep_dir, driver.sweep_dir.with_name("moved"))

    def outcomes(idle):
        if while_ == "it waits":
            remove()
            idle()
        if while_ == "a run ends":
            remove()
            yield driver.engine.waiting.pop(), Outcome("failed", "FileNotFoundError")
        if while_ == "a page is written":
            monkeypatch.setattr(
                "fruitlib.reporting.site.build_site", lambda *_, **__: remove() or raises(OSError(2, "x"))()
            )
            idle()
        remove()
        raise FileNotFoundError(2, "No such file or directory", "results.csv")
        yield

    monkeypatch.setattr(worker, "sweep_stage_is_complete", lambda *_: True)
    monkeypatch.setattr(driver.engine, "outcomes", outcomes)
    monkeypatch.setattr(summary, "write_summary", lambda *_, **__: ({"runs": []}, []))
    assert driver.run() == 1
    assert driver.printed == [
        "fruitlib: executed/one was removed or moved while the sweep ran, which is ended: run the same command again"
    ]
    assert not driver.sweep_dir.exists()  # and nothing is made in its place


def test_with_folds_the_choice_is_the_best_pooled_combination(folded, tmp_path):
    plan, work, states = folded
    assert final_model.choose(plan, work, states, tmp_path) == "lr=0.01"
    states["fold=2,lr=0.01"] = {"state": "failed"}  # half a cross-validation is none
    assert final_model.choose(plan, work, states, tmp_path) == "lr=0.1"
    (tmp_path / "results_oof.csv").unlink()
    assert final_model.choose(plan, work, states, tmp_path) is None


def test_runs_of_a_list_that_name_different_settings_are_compared_on_all_of_them(tmp_path):
    (tmp_path / "list.yaml").write_text("list:\n  - {}\n  - {balance: oversample}\n  - {seed: 3}\n")
    plan = params.read_params(tmp_path / "list.yaml")
    work = {name: Run(tmp_path / name, cfg) for name, cfg in plan.runs.items()}
    table = summary.results_table(plan, work, {name: {"state": "pending"} for name in work})
    assert table[["balance", "seed"]].values.tolist() == [["none", 0], ["oversample", 0], ["none", 3]]


def test_sweeps_on_other_photos_get_a_folder_of_their_own():
    plan = params.Sweep("demo", "s", "t", "chosen", "macro_f1", "refit", "every", config.Config(), {}, {})
    assert folder.sweep_name(plan, None) == "demo"
    assert folder.sweep_name(plan, "/photos/my fruit") == "demo-my fruit"


def test_interrupt_is_one_line_and_exit_code_130(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fruitlib.sweep.driver.run_sweep", interrupted)
    assert cli.main(["sweep", "x.yaml"]) == 130
    assert "Run the same command again" in capsys.readouterr().err


def test_the_progress_line_counts_the_run_that_is_made_in_the_end(folded, tmp_path):
    plan, _, _ = folded
    shown = terminal.Terminal(plan, tmp_path)
    runs = [{"name": name, "state": "complete"} for name in plan.runs]
    (tmp_path / "sweep.json").write_text(json.dumps({"title": "T", "choose_by": "macro_f1", "runs": runs}))
    assert terminal.line(shown.status()).startswith("4/5 runs · 0:00 elapsed")
    shown.outlook.plan(schedule.ending(1))
    status = shown.status()
    assert terminal.line(status) == "4/5 runs · 0:00 elapsed · 0:05 left"
    status_module.save_progress(tmp_path, status)
    assert status_module.load_status(tmp_path).times == "0:00 elapsed · 0:05 left"


@pytest.mark.parametrize("size", [(100, 30), (60, 20), (40, 8)])
def test_the_bar_and_the_time_left_are_there_however_small_the_terminal_is(size):
    names = [f"lr={number},model=a_model_with_a_long_name_that_takes_lines" for number in range(30)]
    runs = [RunStatus(name, "running", "02_train", 3, 20, part=0.45) for name in names]
    status = SweepStatus("T", total=30, runs=runs, elapsed=65, left=130, share=1 / 3, doing="07_compare")
    console = Console(width=size[0], height=size[1], file=io.StringIO(), color_system=None)
    console.print(terminal.screen(status, console))
    shown = console.file.getvalue().splitlines()
    assert len(shown) < size[1] and "33%" in console.file.getvalue()
    assert "2:10 left" in " ".join(map(str.strip, shown[-2:])) and "3/20 · 45%" in console.file.getvalue()


def test_a_runs_status_is_read_from_its_files(tmp_path):
    known = {"name": "a", "state": "pending", "epochs": 10}
    assert load_run_status(tmp_path, known, "macro_f1").state == "pending"
    (tmp_path / WORKING).write_text('{"stage": "02_train"}')
    (tmp_path / "history.csv").write_text("epoch,val_macro_f1,seconds\n1,0.5,2.0\n2,0.4,4.0\n")
    found = load_run_status(tmp_path, known, "macro_f1")
    assert (found.state, found.stage, found.epoch, found.score) == ("running", "02_train", 2, 0.4)
    assert found.seconds == [2.0, 4.0] and found.left is None
    os.utime(tmp_path / WORKING, (1, 1))  # whoever touched it was killed
    assert load_run_status(tmp_path, known, "macro_f1").state == "pending"
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "02_train.json").write_text("{}")  # a fold that is trained, and waits for the others
