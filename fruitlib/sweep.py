"""A params file -> executed notebooks: one folder per combination, 02 to 05 in each, 06 for the run that is chosen.

What is complete is not repeated, what failed keeps its notebook with the error, and the rest goes on.
"""

import contextlib
import logging
import os
import sys
import tempfile
import threading
import time
import warnings
from datetime import datetime
from pathlib import Path

import nbformat
import pandas as pd

from fruitlib import config as configs
from fruitlib import intake, report, runs, runtime, splits
from fruitlib.config import Config, Sweep
from fruitlib.runs import Run
from fruitlib.runtime import InputError

RUN_STAGES = ("02_train", "03_metrics", "04_gradcam", "05_quantize")
TEST_STAGE = "06_test_accuracy"


class NotebookFailed(RuntimeError):
    """A notebook stopped with an error; the message is the error in one line."""


def sweep(params_file: Path, data: str | None = None, out: str | None = None) -> int:
    """Execute a params file; returns 0, or 1 when a run failed.

    Raises:
        InputError: before anything is written, when the params file, the photos or the split do not allow it.
    """
    plan = configs.read_params(params_file, {"data": data} if data else {})
    sweep_dir = runtime.home() / "executed" / (out or sweep_name(plan, data))
    _refuse_other_data(plan.config, sweep_dir)
    _check_before(plan)
    print(
        f"{plan.title}\n{len(plan.runs)} runs in {runtime.display_path(sweep_dir)}, photos: {plan.config.data}",
        flush=True,
    )
    with Progress(plan, sweep_dir) as progress:
        _check_classes(plan, progress)
        splits.prepare(plan.config, sweep_dir, progress.photos)
        work = {name: Run(sweep_dir / name, config) for name, config in plan.runs.items()}
        return _execute(plan, sweep_dir, work, progress)


def sweep_name(plan: Sweep, data: str | None) -> str:
    """The params file's name, and the photos' when they come from the command line: results never mix."""
    return f"{plan.name}-{Path(data).name}" if data and data not in intake.SAMPLES else plan.name


def _refuse_other_data(config: Config, sweep_dir: Path) -> None:
    if (sweep_dir / "manifest.json").is_file() and (held := splits.record(sweep_dir)["data"]) != config.data:
        where = runtime.display_path(sweep_dir)
        raise InputError(f"{where} holds results on other photos ({held}): give this sweep another name with --out")


def _check_before(plan: Sweep) -> None:
    """What every run needs and only a look at the disk can tell."""
    for stage in ("01_split", *RUN_STAGES, TEST_STAGE):
        if not runs.notebook_path(stage).is_file():
            raise InputError(f"{runs.notebook_path(stage)}: no such notebook; set FRUITLIB_HOME to the project folder")
    for config in plan.runs.values():
        if config.base_weights and not runtime.resolve(config.base_weights).is_file():
            raise InputError(f"base_weights {config.base_weights}: no such file; params/base_model.yaml trains one")


def _check_classes(plan: Sweep, progress: "Progress") -> None:
    """The base model's five classes, before anything is written."""
    rows, _ = intake.scan(intake.ready(plan.config.data, progress.photos))
    classes = rows["label"].nunique()
    if classes != configs.BASE_CLASSES and any(config.model == "base" for config in plan.runs.values()):
        raise InputError(f"model base has {configs.BASE_CLASSES} classes, the photos have {classes}: use model end2end")


def _execute(plan: Sweep, sweep_dir: Path, work: dict[str, Run], progress: "Progress") -> int:
    """01, then every run, then the choice and its test; the summary and report grow as runs finish."""
    states = {name: {"state": _state(run), "error": None} for name, run in work.items()}
    progress.before = {name for name, state in states.items() if state["state"] == "complete"}
    progress.finished |= progress.before
    try:
        _execute_split(plan, sweep_dir, progress)
    except NotebookFailed as problem:
        progress.say(f"fruitlib: {problem}; the notebook with the error: {sweep_dir / '01_split.ipynb'}")
        return 1
    busy = []
    for name, run in work.items():
        if states[name]["state"] != "complete":
            if not _work_on(run, RUN_STAGES, states[name], progress):
                busy.append(name)
            write_summary(plan, sweep_dir, work, states)
    for name in busy:  # another sweep had them; by now it may be done
        _work_on(work[name], RUN_STAGES, states[name], progress, wait=True)
    chosen = choose(plan, work, states)
    to_test = [name for name in work if states[name]["state"] == "complete"] if plan.test == "every" else [chosen]
    for name in filter(None, to_test):
        _work_on(work[name], (TEST_STAGE,), states[name], progress, wait=True)
    write_summary(plan, sweep_dir, work, states, chosen)
    page = report.build(sweep_dir)
    progress.close()
    _print_results(plan, sweep_dir, states, chosen, page)
    return int(any(state["state"] == "failed" for state in states.values()))


def _state(run: Run) -> str:
    """`complete` when all of 02 to 05 hold today, else `pending`."""
    return "complete" if all(run.is_complete(stage) for stage in RUN_STAGES) else "pending"


def _execute_split(plan: Sweep, sweep_dir: Path, progress: "Progress") -> None:
    """01 on the sweep's manifest, unless it was executed on it already. Without it there is no sweep."""
    modules = [runs.module_source(name) for name in ("intake", "splits", "images", "plots")]
    manifest, size = splits.read(sweep_dir), plan.config.image_size
    identity = runtime.fingerprint(splits.fingerprint(manifest), size, runs.notebook_source("01_split"), *modules)
    record = sweep_dir / "stages" / "01_split.json"
    there = (sweep_dir / "01_split.ipynb").is_file() and record.is_file()
    if there and identity in record.read_text(encoding="utf-8"):
        return
    progress.stage("", "01_split")
    execute("01_split", sweep_dir / "01_split.ipynb", plan.config, sweep_dir=runtime.display_path(sweep_dir))
    runtime.write_json(record, {"identity": identity, "finished": datetime.now().isoformat(timespec="seconds")})


def _work_on(run: Run, stages: tuple[str, ...], state: dict, progress: "Progress", wait: bool = False) -> bool:
    """Execute what is not complete of a run; False when another process holds the run and `wait` is not wanted."""
    try:
        with run.locked(timeout=-1 if wait else 0):
            for stage in stages:
                if not run.is_complete(stage):
                    progress.stage(run.name, stage, run)
                    _execute_stage(run, stage)
            state["state"] = "complete"
    except NotebookFailed as problem:
        state.update(state="failed", error=str(problem))
        progress.say(f"{run.name}: {problem}")
    except runs.Busy as busy:
        progress.say(str(busy))
        return False
    progress.done(run.name)
    return True


def _execute_stage(run: Run, stage: str) -> None:
    identity, started = run.identity(stage), time.perf_counter()
    execute(stage, run.path / f"{stage}.ipynb", run.config, run_dir=runtime.display_path(run.path))
    run.complete(stage, identity, seconds=round(time.perf_counter() - started, 2))


def execute(stage: str, output: Path, config: Config, **places: str) -> None:
    """Execute a numbered notebook by papermill into `output`, which is complete or the failed copy, never a part.

    Knobs its parameters cell names are injected as they are, others that differ from their default as `overrides`.

    Raises:
        NotebookFailed: a cell raised, or the kernel died.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    source = runs.notebook_path(stage)
    logging.getLogger("papermill").setLevel(logging.ERROR)
    partial = output.with_name(f".{output.stem}.partial.ipynb")
    try:
        with warnings.catch_warnings(), _private_sockets() as settings:
            warnings.simplefilter("ignore")
            papermill.execute_notebook(
                _literal(source),
                _literal(partial),
                parameters(source, config, places),
                progress_bar=False,
                start_timeout=120,
                config=settings,
                extra_arguments=["--IPKernelApp.log_level=50"],  # its own log would mix with the progress line
            )
        os.replace(partial, output)
    except papermill.PapermillExecutionError as problem:
        os.replace(partial, output)
        raise NotebookFailed(f"{stage}: {problem.ename}: {_first_line(problem.evalue)}") from None
    except DeadKernelError:
        os.replace(partial, output)
        raise NotebookFailed(f"{stage}: the kernel died (often out of memory: try a smaller batch_size)") from None
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _private_sockets():
    """Kernel settings for talking over files of the sweep's own: TCP ports can collide and be overheard."""
    from traitlets.config import Config as Settings

    if os.name == "nt":  # no such sockets there
        yield Settings()
        return
    with tempfile.TemporaryDirectory(prefix="fruit") as folder:  # short: a socket's path has a limit of 108 bytes
        yield Settings({"KernelManager": {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}})


def _literal(path: Path) -> str:
    """A path as papermill wants it: it fills in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no message"


def parameters(notebook: Path, config: Config, places: dict[str, str]) -> dict:
    """What to inject: the places and knobs the parameters cell names; other knobs off their default as `overrides`."""
    declared = declared_parameters(notebook)
    knobs = config.model_dump()
    injected = {name: value for name, value in {**knobs, **places}.items() if name in declared}
    if "overrides" in declared:
        rest = {name: value for name, value in knobs.items() if name not in declared}
        defaults = {name: field.default for name, field in Config.model_fields.items()}
        injected["overrides"] = {name: value for name, value in rest.items() if value != defaults[name]}
    return injected


def declared_parameters(notebook: Path) -> set[str]:
    """Names assigned in the cell tagged `parameters`."""
    cells = nbformat.read(notebook, as_version=4).cells
    tagged = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    return set().union(*map(configs.assigned_names, tagged))


def choose(plan: Sweep, work: dict[str, Run], states: dict) -> str | None:
    """The complete run that is best on validation; ties go to the lower validation loss."""
    complete = [name for name in work if states[name]["state"] == "complete"]
    return max(complete, key=lambda name: _score(work[name], plan.choose_by), default=None)


def _score(run: Run, choose_by: str) -> tuple[float, float]:
    found = run.read_json("metrics.json")
    return found[choose_by], -found["val_loss"]


def results(plan: Sweep, work: dict[str, Run], states: dict) -> pd.DataFrame:
    """A row per run: what differs, state, validation numbers, costs, and test numbers where 06 was executed."""
    rows = []
    for name, run in work.items():
        row = {"run": name, **plan.differs[name], "state": states[name]["state"]}
        if states[name]["state"] == "complete":
            row |= run.read_json("metrics.json") | run.read_json("export.json")
            trained = run.record("train")
            row |= {
                "best_epoch": trained["best_epoch"],
                "epochs": trained["epochs"],
                "train_seconds": trained["seconds"],
            }
            if run.is_complete(TEST_STAGE):
                tested = run.read_json("test.json")
                row |= tested["numbers"] | {"test_backend": tested["shipped"]}
        rows.append(row)
    return pd.DataFrame(rows)


def write_summary(plan: Sweep, sweep_dir: Path, work: dict, states: dict, chosen: str | None = None) -> None:
    """`results.csv` and `sweep.json`, as far as the sweep has come."""
    with runtime.replacing(sweep_dir / "results.csv") as partial:
        results(plan, work, states).to_csv(partial, index=False)
    stages = ("02_train", "05_quantize", TEST_STAGE)
    finished = [run.record(stage).get("finished", "") for run in work.values() for stage in stages]
    params = next((run.params for run in work.values() if (run.path / "params.yaml").is_file()), {"record": {}})
    summary = {
        "title": plan.title,
        "params_file": runtime.display_path(Path(plan.source).resolve()),
        "data": plan.config.data,
        "choose_by": plan.choose_by,
        "chosen": chosen,
        "hardware": params["record"].get("hardware", ""),
        "versions": params["record"].get("versions", {}),
        "finished": max(finished, default="")[:16].replace("T", " "),
        "runs": [{"name": name, "knobs": plan.differs[name], **states[name]} for name in work],
    }
    runtime.write_json(sweep_dir / "sweep.json", summary)


def _print_results(plan: Sweep, sweep_dir: Path, states: dict, chosen: str | None, page: Path) -> None:
    """The small table a sweep ends with, and where to look."""
    table = pd.read_csv(sweep_dir / "results.csv")
    complete = table[table["state"] == "complete"]
    if len(complete):
        width = max(map(len, complete["run"]))
        photos = f"on {int(complete['n'].iloc[0])} validation photos"
        print(f"\n  {'run':{width}}  macro-F1  accuracy (95 % interval)  training   {photos}")
    for row in _best_first(complete, plan, chosen):
        interval = f"{row['accuracy']:.3f} ({row['accuracy_low']:.2f}–{row['accuracy_high']:.2f})"
        mark, seconds = "*" if row["run"] == chosen else " ", f"{row['train_seconds']:.0f} s"
        print(f"{mark} {row['run']:{width}}  {row['macro_f1']:8.3f}  {interval:24}  {seconds:>8}")
    tested = complete[(complete["run"] == chosen) & complete.get("test_n", pd.Series(dtype=float)).notna()]
    for row in tested.to_dict("records"):
        judged = f"{row['test_accuracy']:.3f} (95 % interval {row['test_low']:.2f}–{row['test_high']:.2f})"
        print(
            f"\n* chosen on validation; its {row['test_backend']} on {row['test_n']:.0f} test photos: accuracy {judged}"
        )
    for name, state in states.items():
        if state["state"] == "failed":
            print(f"\nfailed: {name}: {state['error']}")
    print(f"\nreport: {runtime.display_path(page)}")


def _best_first(table: pd.DataFrame, plan: Sweep, chosen: str | None) -> list[dict]:
    """Rows from best to worst by the choosing metric, the chosen one before its equals."""
    if table.empty:
        return []
    table = table.assign(_chosen=table["run"] == chosen)
    return table.sort_values([plan.choose_by, "_chosen"], ascending=False, kind="stable").to_dict("records")


SHARES = {"02_train": 0.5, "03_metrics": 0.14, "04_gradcam": 0.17, "05_quantize": 0.19}  # of a small run's time


class Progress:
    """One line on what is running, how far it is and how long it will take; rewritten in place on a terminal."""

    def __init__(self, plan: Sweep, sweep_dir: Path):
        self.names, self.sweep_dir, self.started = list(plan.runs), sweep_dir, time.monotonic()
        self.before, self.finished, self.current = set(), set(), ("", "", None)
        self._on_terminal, self._last, self._closed = sys.stdout.isatty(), "", threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Stop writing; what is printed next stands on a line of its own."""
        if not self._closed.is_set():
            self._closed.set()
            self._thread.join()
            self._clear()

    def stage(self, name: str, stage: str, run: Run | None = None) -> None:
        """A notebook begins."""
        self.current = (name, stage, run)
        if not self._on_terminal:
            print(self._line(), flush=True)

    def done(self, name: str) -> None:
        """A run is over, well or badly."""
        self.finished.add(name)
        self.current = ("", "", None)

    def photos(self, done: int, total: int) -> None:
        """Photos drawn or checked so far."""
        self.current = ("", f"photos {done}/{total}", None)

    def say(self, text: str) -> None:
        """A remark that stays."""
        self._clear()
        print(text, flush=True)

    def _watch(self) -> None:
        spoken = time.monotonic()
        while not self._closed.wait(0.5):
            line = self._line()
            if self._on_terminal and line != self._last:
                self._clear()
                print(f"\r{line}", end="", flush=True)
                self._last = line
            elif not self._on_terminal and time.monotonic() - spoken > 30:
                print(line, flush=True)
                spoken = time.monotonic()

    def _clear(self) -> None:
        if self._on_terminal and self._last:
            print("\r" + " " * len(self._last) + "\r", end="", flush=True)
            self._last = ""

    def _line(self) -> str:
        name, stage, run = self.current
        elapsed = time.monotonic() - self.started
        parts = [f"{len(self.finished)}/{len(self.names)} runs", name, stage]
        share = 0.0
        if run is not None and stage in SHARES:
            order = list(SHARES)
            share = sum(SHARES[s] for s in order[: order.index(stage)])
        if run is not None and stage == "02_train" and (run.path / "history.csv").is_file():
            with contextlib.suppress(OSError, pd.errors.ParserError, pd.errors.EmptyDataError):
                history = run.history()
                score = history["val_macro_f1"].iloc[-1]
                parts.append(f"epoch {len(history)}/{run.config.epochs}, macro-F1 {score:.2f}")
                share += SHARES[stage] * len(history) / run.config.epochs
        work = len(self.names) - len(self.before)  # what was complete before took no time now
        done = (len(self.finished - self.before) + share) / max(1, work)
        parts.append(f"{_clock(elapsed)} gone" + (f", {_clock(elapsed / done - elapsed)} left" if done > 0.02 else ""))
        return " · ".join(part for part in parts if part)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
