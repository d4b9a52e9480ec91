"""A params file -> executed notebooks: one folder per combination, 02 to 05 in each, 06 for the model that is shipped,
07 and 08 over all of them.

What is complete is not repeated, what failed keeps its notebook with the error, and the rest goes on. Runs are
processes of their own (`work`), several at a time, on this machine or others (`placement`); this module decides what is
to be done and what it comes to, and keeps the summary and the report up to date meanwhile.
"""

import contextlib
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from fruitlib.core import config as configs
from fruitlib.core import files, machine
from fruitlib.core.config import Config
from fruitlib.core.errors import InputError
from fruitlib.data import sources, splits
from fruitlib.kernels import kernelspec
from fruitlib.runs.run import OUTCOME, Run
from fruitlib.runs.stages import notebook_path
from fruitlib.sweep import executors, final_model, search, summary, worker
from fruitlib.sweep.final_model import RUN_STAGES, TEST_STAGE
from fruitlib.sweep.params import Sweep, read_params
from fruitlib.sweep.queue import Engine, Outcome, PlacementLost, Task
from fruitlib.sweep.terminal import Terminal, print_results

FAILURES = 5  # trials in a row, after which a search asks for no more
PUBLISH_SHARE = 0.05  # of the time, at most, that bringing summary and report up to date may take while runs go on


@dataclass(frozen=True)
class Options:
    """What the command line says of how a sweep is carried out; it changes no result."""

    out: str | None = None  # name of the folder in executed/
    jobs: int = 0  # runs at a time on this machine; 0: as many as GPUs, or cores
    scheduler: str = ""  # address of a Dask scheduler


def run_sweep(params_file: Path, data: str | None = None, options: Options = Options()) -> int:
    """Execute a params file; returns 0, or 1 when a run failed.

    Raises:
        InputError: before anything is written, when the params file, the photos or the split do not allow it.
    """
    plan = read_params(params_file, {"data": data} if data else {})
    sweep_dir = files.home() / "executed" / (options.out or sweep_name(plan, data))
    _refuse_other_data(plan.config, sweep_dir)
    _check_before(plan)
    count = plan.search.trials if plan.search else len(plan.runs)
    number = f"{count} {'trial' if plan.search else 'run'}{'s' * (count > 1)}"
    print(f"{plan.title}\n{number} in {files.display_path(sweep_dir)}, photos: {plan.config.data}", flush=True)
    with Terminal(plan, sweep_dir) as progress:
        _check_classes(plan, progress)
        executor, placed = _executor(plan, options, count, progress)
        kernel = Kernel(progress, placed)
        if not sweep_dir.is_dir():  # ten seconds of imports, beside the photos; where all is done, none are needed
            kernel.warm_up()
        else:
            files.remove_stale_partials(sweep_dir)
        splits.prepare(plan.config, sweep_dir, progress.photos)
        driver = Driver(plan, sweep_dir, progress, Engine(executor, sweep_dir, kernel.name, progress.say))
        return driver.run()


class Kernel:
    """The kernel that notebooks are executed with, made ready when the first one is to be."""

    def __init__(self, progress: Terminal, placed: str):
        self.progress, self.placed = progress, placed
        self._found: list[tuple[str, str]] = []
        self._warming = threading.Thread(target=lambda: self._found.append(kernelspec.ready()), daemon=True)
        self._announced = False

    def warm_up(self) -> None:
        """Have a warm kernel's imports begin."""
        if self._warming.ident is None:
            self._warming.start()

    def name(self) -> str:
        """Its name, `fruitlib-warm` or `python3`; the first time it says which, and where runs are placed."""
        self.warm_up()
        self.progress.doing = "starting a warm kernel"
        self._warming.join()
        self.progress.doing = ""
        name, kernels = self._found[0] if self._found else ("python3", "cold: no warm one could be asked for")
        if not self._announced:
            self._announced = True
            self.progress.say(f"{self.placed}; kernels: {kernels}")
        return name


def _executor(plan: Sweep, options: Options, count: int, progress: Terminal):
    if options.scheduler:
        if options.jobs:
            raise InputError("--jobs is for this machine, --scheduler for others: give one of them")
        return executors.cluster(options.scheduler, files.home())
    processes = max(config.processes for config in _configs(plan))
    return executors.local(options.jobs, count, processes, progress.say)


def sweep_name(plan: Sweep, data: str | None) -> str:
    """The params file's name, and the photos' when they come from the command line: results never mix."""
    return f"{plan.name}-{Path(data).name}" if data and data not in sources.SAMPLES else plan.name


def _refuse_other_data(config: Config, sweep_dir: Path) -> None:
    if (sweep_dir / "manifest.json").is_file() and (held := splits.record(sweep_dir)["data"]) != config.data:
        where = files.display_path(sweep_dir)
        raise InputError(f"{where} holds results on other photos ({held}): give this sweep another name with --out")


def _configs(plan: Sweep) -> list[Config]:
    """What the runs will have; of a search, what they may have."""
    return plan.search.corners if plan.search else list(plan.runs.values())


def _check_before(plan: Sweep) -> None:
    """What every run needs and only a look at the disk can tell."""
    for stage in (*worker.SWEEP_STAGES, *RUN_STAGES, TEST_STAGE):
        if not notebook_path(stage).is_file():
            raise InputError(f"{notebook_path(stage)}: no such notebook; set FRUITLIB_HOME to the project folder")
    final_model.check_final(plan)
    for config in _configs(plan):
        if config.base_weights and not files.resolve(config.base_weights).is_file():
            raise InputError(f"base_weights {config.base_weights}: no such file; params/base_model.yaml trains one")
        if config.weights not in ("none", "DEFAULT") and not files.resolve(config.weights).is_file():
            raise InputError(f"weights {config.weights}: no such file; wanted none, DEFAULT or a checkpoint")
    _check_with_torch(plan)


def _check_with_torch(plan: Sweep) -> None:
    """What it takes torch, and so some seconds, to tell."""
    planned = _configs(plan)
    starts = {(c.model, c.weights, c.base_weights): c for c in planned if c.weights != "none" or c.base_weights}
    lower = [config for config in planned if config.precision in ("bf16", "fp16")]
    if starts or lower:
        from fruitlib.training import models, precision

        for config in starts.values():
            models.check_start(config)
        for config in lower:
            precision.check(config, machine.device())


def _check_classes(plan: Sweep, progress: Terminal) -> None:
    """The base model's five classes, before anything is written."""
    if all(config.model != "base" for config in _configs(plan)):
        return
    sources.ready(plan.config.data, progress.photos)
    classes = sources.scan(plan.config)[0]["label"].nunique()
    if classes != configs.BASE_CLASSES:
        raise InputError(f"model base has {configs.BASE_CLASSES} classes, the photos have {classes}: use model end2end")


class Driver:
    """One sweep on its way: which tasks come next, what has become of each run, and what all of it amounts to."""

    def __init__(self, plan: Sweep, sweep_dir: Path, progress: Terminal, engine: Engine):
        self.plan, self.sweep_dir, self.progress, self.engine = plan, sweep_dir, progress, engine
        self.work: dict[str, Run] = {}
        self.states: dict[str, dict] = {}
        self.trials: search.Trials | None = None
        self.failures: list[str] = []  # of the sweep's own notebook
        self._spoilt, self._in_a_row = False, 0
        self._reported: set[str] = set()
        self._changed, self._due = {"summary": True, "pages": True}, {"summary": 0.0, "pages": 0.0}

    def run(self) -> int:
        """01 and every run; then the choice and its test. Whatever ends this ends what it has started."""
        try:
            with (
                search.Trials(self.plan, self.sweep_dir, self.progress.say)
                if self.plan.search
                else contextlib.nullcontext() as trials
            ):
                self.trials = trials
                self._explore()
            chosen = final_model.choose(self.plan, self.work, self.states, self.sweep_dir)
            shipped = self._ship(chosen)
            self._test(shipped)
            self._publish(chosen, shipped)
            self._look_back()
            told = self._publish(chosen, shipped)
        except PlacementLost as problem:
            self.engine.stop()
            self._publish()
            again = "what is complete is kept; run the same command again to go on"
            self.progress.say(f"fruitlib: what runs were handed to is gone ({problem}): {again}")
            return 1
        except BaseException:
            self.engine.stop()
            raise
        finally:
            self.engine.close()
        self.progress.close()
        print_results(self.plan, self.sweep_dir, told)
        for failure in self.failures:
            print(f"\nfailed: {failure}")
        print(f"\nreport: {files.display_path(self.sweep_dir / 'index.html')}")
        return int(
            bool(self.failures) or any(state["error"] and state["state"] != "pruned" for state in self.states.values())
        )

    def _explore(self) -> None:
        """01, and every run of the plan or of the search."""
        if not worker.sweep_stage_is_complete(self.sweep_dir, worker.SPLIT, self.plan.config):
            self.engine.add(Task(worker.SPLIT, self.sweep_dir, (worker.SPLIT,), self.plan.config))
        known = self.trials.earlier() if self.trials else {}
        for name in self.plan.runs:
            self._join(name, known.get(name, "pending"))
        self.progress.before = {name for name, state in self.states.items() if state["state"] != "pending"}
        for name in self.states:
            self._tell_search(name)  # killed between a run's end and its telling
        self._begin(self._pending())
        self._write_summary()
        self._ask()
        for task, outcome in self.engine.outcomes(self._idle):
            self._note(task, outcome)
            self._ask()
        if self.trials:
            try:
                self.trials.write_importances()
            except Exception as problem:  # of a library; not worth the sweep
                self.progress.say(f"no importances: {type(problem).__name__}: {problem}")

    def _join(self, name: str, known: str = "pending", run: Run | None = None) -> None:
        """A run becomes part of the sweep, as it stands on the disk today."""
        self.work[name] = run = run or Run(self.sweep_dir / name, self.plan.runs[name])
        state = "complete" if _is_complete(run) else known if known in ("pruned", "failed") else "pending"
        error = run.read_json(OUTCOME).get("error", known) if state in ("pruned", "failed") else None
        self.states[name] = {"state": state, "error": error}

    def _pending(self) -> list[str]:
        return [name for name, state in self.states.items() if state["state"] == "pending"]

    def _begin(self, names: list[str]) -> None:
        """Hand runs over. All folds of a combination are trained before any is looked at: 03 wants the predictions on
        all photos."""
        stages = RUN_STAGES[:1] if self.plan.config.folds else RUN_STAGES
        for name in names:
            self._hand_over(name, stages)

    def _hand_over(self, name: str, stages: tuple[str, ...]) -> None:
        run = self.work[name]
        run.path.mkdir(parents=True, exist_ok=True)
        self.engine.add(Task(name, run.path, stages, run.config))

    def _ask(self) -> None:
        """As many new trials as there is room for; none while what fails would fail them all."""
        while self.trials and not self._spoilt and self.engine.room > 0 and (name := self.trials.ask()):
            self._join(name)
            self._begin([name])
            self._changed = dict.fromkeys(self._changed, True)

    def _note(self, task: Task, outcome: Outcome) -> None:
        """What has become of a task, and what follows from it."""
        self._changed = dict.fromkeys(self._changed, True)
        if task.name in worker.SWEEP_STAGES:
            if outcome.error:
                self.failures.append(f"{task.name}: {outcome.error}")
                self.progress.say(f"{task.name}: {outcome.error}")
            return
        run, state = self.work[task.name], self.states[task.name]
        complete = _is_complete(run)
        if outcome.state != "complete":  # when only the test failed, the run's validation still stands
            word = outcome.state if outcome.state == "pruned" else "failed"
            state.update(state="complete" if complete else word, error=outcome.error)
            self.progress.say(f"{task.name}: {outcome.error}")
        elif complete:
            state.update(state="complete", error=None)
            self.progress.say(f"{task.name}: {_result(run, task.stages)}")
        elif task.stages != RUN_STAGES[:1]:
            changed = "settings, photos or code changed while it ran: run the same command again"
            state.update(state="failed", error=changed)
            self.progress.say(f"{task.name}: {changed}")
        self._tell_search(task.name, outcome.state)
        self._look_for_spoilt(outcome)
        if self.plan.config.folds and task.stages == RUN_STAGES[:1]:
            self._look_at_folds(task.name)

    def _look_for_spoilt(self, outcome: Outcome) -> None:
        """Ask for no more trials where a disk is full, or several in a row failed: the fault is hardly theirs."""
        self._in_a_row = self._in_a_row + 1 if outcome.state == "failed" else 0
        if self.trials and not self._spoilt and (outcome.state == "disk_full" or self._in_a_row == FAILURES):
            self._spoilt = True
            self.progress.say("no more trials are asked for: mend what failed, and run the same command again")

    def _tell_search(self, name: str, ended: str = "complete") -> None:
        """Tell the search how a trial ended. One that was lost, or met a full disk, stays open: the next sweep goes on
        with it."""
        if self.trials and ended not in ("lost", "disk_full") and self.states[name]["state"] != "pending":
            self.trials.tell(name, self.states[name]["state"], self.work[name])

    def _look_at_folds(self, name: str) -> None:
        """When the last fold of a combination is trained: pool their predictions, and hand over the other notebooks."""
        names = next(names for names in self.plan.combinations().values() if name in names)
        if not self.engine.names & set(names):
            self._write_summary()
            for fold in names:  # also those of an earlier sweep: what they say of all photos may have changed
                if self.states[fold]["state"] != "failed" and not _is_complete(self.work[fold]):
                    self.states[fold]["state"] = "pending"
                    self._hand_over(fold, RUN_STAGES)

    def _idle(self) -> None:
        """Twice a second: what searching and watching want done."""
        if self.trials:
            for task in list(self.engine.running.values()):
                if task.name in self.work:
                    self.trials.watch(task.name, self.work[task.name])
        for what, bring in (("summary", self._write_summary), ("pages", self._write_pages)):
            if self._changed[what] and time.monotonic() > self._due[what]:
                try:
                    bring()
                except OSError as problem:  # a run that begins anew has removed what was about to be read
                    if files.is_disk_failure(problem):
                        raise
                    self._changed[what] = True

    def _publish(self, chosen: str | None = None, shipped: str | None = None) -> dict:
        """Bring summary and report up to date at once; returns what `sweep.json` holds."""
        told = self._write_summary(chosen, shipped)
        self._write_pages()
        return told

    @contextlib.contextmanager
    def _bringing(self, what: str):
        """Around the work of bringing something up to date: it is due again when it has cost but a twentieth."""
        started, self._changed[what] = time.monotonic(), False
        yield
        self._due[what] = time.monotonic() + (time.monotonic() - started) / PUBLISH_SHARE

    def _write_pages(self) -> None:
        with self._bringing("pages"):
            from fruitlib.reporting import site  # three seconds of imports, which bad input need not wait for

            site.build_site(self.sweep_dir, changed_only=True)

    def _write_summary(self, chosen: str | None = None, shipped: str | None = None) -> dict:
        with self._bringing("summary"):
            total = self.progress.total
            told, problems = summary.write_summary(
                self.plan, self.sweep_dir, self.work, self.states, chosen, shipped, total
            )
        for problem in problems:
            if problem not in self._reported:
                self.progress.say(problem)
                self._reported.add(problem)
        return told

    def _finish(self, name: str, stages: tuple[str, ...]) -> None:
        """Execute a run's stages and wait for them."""
        if not all(self.work[name].is_complete(stage) for stage in stages):
            self._hand_over(name, stages)
        for task, outcome in self.engine.outcomes(self._idle):
            self._note(task, outcome)

    def _ship(self, chosen: str | None) -> str | None:
        """The run whose model is shipped; where it is none of the plan's, it is made and joins the others."""
        if chosen is None:
            return None
        folds = summary.folds_of(self.plan, self.work, chosen)
        run = final_model.plan_final(self.plan, folds)
        if run.name in self.work:
            return run.name
        self._join(run.name, run=run)
        try:
            if self.plan.ship == "ensemble":
                self.work[run.name] = run = final_model.assemble(run, folds)
        except InputError as problem:
            self.states[run.name] = {"state": "failed", "error": str(problem)}
            return run.name
        if _is_complete(run):
            self.progress.before.add(run.name)
        self._finish(run.name, final_model.stages(run))
        return run.name

    def _test(self, shipped: str | None) -> None:
        """Open the test photos: for the shipped run, or for every one; not where none were put aside for a test."""
        if shipped is None or self.work[shipped].rows("test").empty:
            return
        for name in list(self.work) if self.plan.test == "every" else [shipped]:
            if self.states[name]["state"] == "complete":
                self._finish(name, (TEST_STAGE,))

    def _look_back(self) -> None:
        """The notebooks that compare runs, where there are runs to compare."""
        if sum(state["state"] == "complete" for state in self.states.values()) < 2:
            return
        for stage in worker.LOOK_BACK:
            if not worker.sweep_stage_is_complete(self.sweep_dir, stage, self.plan.config):
                self.engine.add(Task(stage, self.sweep_dir, (stage,), self.plan.config))
                for task, outcome in self.engine.outcomes(lambda: None):  # what they read stays as it is
                    self._note(task, outcome)


def _is_complete(run: Run) -> bool:
    """Whether all of a run's notebooks before the test hold today."""
    return all(run.is_complete(stage) for stage in final_model.stages(run))


def _result(run: Run, stages: tuple[str, ...]) -> str:
    """What a run's stages came to in a few words, for the terminal."""
    if stages == (TEST_STAGE,):
        found = run.read_json("test.json")["numbers"]
        accuracy, low, high, n = (found[f"test_{name}"] for name in ("accuracy", "low", "high", "n"))
        return f"test accuracy {accuracy:.3f} ({low:.2f}–{high:.2f}, n = {n})"
    if not (found := run.read_json("metrics.json")):
        return "complete"
    interval = f"{found['accuracy_low']:.2f}–{found['accuracy_high']:.2f}"
    return f"macro-F1 {found['macro_f1']:.3f}, accuracy {found['accuracy']:.3f} ({interval}, n = {found['n']})"
