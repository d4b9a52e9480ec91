"""A params file -> executed notebooks: one folder per combination, 02 to 05 in each (of many, in the best), 06 for the
model that is shipped, 07 and 08 over all of them.

What is complete is not repeated, a run that failed keeps its notebook with the error, and the other runs continue. Each
run is a process of its own (`worker`), several at a time, on this machine or others (`executors`). This module decides
which runs are executed, records how they end, and keeps the summary and the report up to date meanwhile.
"""

import contextlib
import time
from dataclasses import dataclass, replace
from pathlib import Path

from fruitlib.core import files, machine
from fruitlib.core.errors import InputError, first_line
from fruitlib.core.texts import show
from fruitlib.data import splits
from fruitlib.runs.outlook import REPORT
from fruitlib.runs.run import OUTCOME, Run
from fruitlib.runs.stages import STAGES
from fruitlib.sweep import checks, executors, final_model, folder, schedule, search, summary, worker
from fruitlib.sweep.final_model import NUMBER_STAGES, RUN_STAGES, TEST_STAGE
from fruitlib.sweep.params import Sweep, read_params
from fruitlib.sweep.queue import Engine, Outcome, PlacementLost, Task
from fruitlib.sweep.terminal import Terminal, print_results, result_line

MAX_FAILURES = 5  # trials that fail in a row, after which a search starts no more
PUBLISH_SHARE = 0.05  # of the time, at most, is spent on updating summary and report while runs are executed


@dataclass(frozen=True)
class Options:
    """How a sweep is executed, from the command line; it changes no result."""

    out: str | None = None  # name of the folder in executed/
    jobs: int = 0  # runs at a time on this machine; 0: as many as GPUs, or cores
    scheduler: str = ""  # address of a Dask scheduler


def run_sweep(params_file: Path, data: str | None = None, options: Options = Options()) -> int:
    """Execute a params file; returns 0, or 1 when a run failed.

    Raises:
        InputError: before anything is written, if the params file, the photos or the split do not fit.
    """
    plan = read_params(params_file, {"data": data} if data else {})
    sweep_dir = folder.sweep_folder(plan, data, options.out)
    folder.refuse_other_results(plan, sweep_dir)
    if (known := folder.earlier_data(plan, sweep_dir)) != plan.config.data:
        plan = read_params(params_file, {"data": known})
    plan = replace(plan, command=folder.command(plan, data, options.out))
    count = plan.search.trials if plan.search else len(plan.runs)
    number = f"{count} {'trial' if plan.search else 'run'}{'s' * (count > 1)}"
    show(f"{plan.title}\n{number} in {files.display_path(sweep_dir)}, photos: {plan.config.data}")
    for line in checks.check_plan(plan):
        show(line)
    with Terminal(plan, sweep_dir) as progress:
        checks.check_classes(plan, progress.photos)
        executor, placed = _executor(plan, options, count, progress)
        progress.outlook.places, progress.outlook.beside = schedule.places(executor, count)
        kernel = executors.Kernel(progress, placed)

        def photo_checked(done: int, total: int) -> None:
            kernel.warm_up()  # now that the input has been found good
            progress.photos(done, total)

        with folder.claimed(plan, sweep_dir):
            folder.remove_leftovers(sweep_dir)
            splits.prepare_manifest(plan.config, sweep_dir, photo_checked, progress.say)
        driver = Driver(plan, sweep_dir, progress, Engine(executor, sweep_dir, kernel.name, progress.say))
        return driver.run()


def _executor(plan: Sweep, options: Options, count: int, progress: Terminal):
    if options.scheduler:
        if options.jobs:
            raise InputError("--jobs is for this machine, --scheduler for others: give one of them")
        return executors.cluster(options.scheduler, files.home())
    processes = max(config.processes for config in checks.possible_configs(plan))
    return executors.local(options.jobs, count, processes, progress.say)


class Driver:
    """One sweep while it is executed: its next tasks, the state of each run, its summary and report."""

    def __init__(self, plan: Sweep, sweep_dir: Path, progress: Terminal, engine: Engine):
        self.plan, self.sweep_dir, self.progress, self.engine = plan, sweep_dir, progress, engine
        self.work: dict[str, Run] = {}
        self.states: dict[str, dict] = {}
        self.trials: search.Trials | None = None
        self.failures: list[str] = []  # of the sweep's own notebooks: 01, 07, 08
        self._search_paused, self._failures_in_a_row = False, 0
        self._reported: set[str] = set()
        self._changed, self._due = {"summary": True, "pages": True}, {"summary": 0.0, "pages": 0.0}
        self._summary: dict = {"chosen": None, "shipped": None, "runs": []}
        folds = plan.combinations().values() if plan.config.folds else []
        self._folds_of = {run: names for names in folds for run in names}
        self.place = folder.Place(sweep_dir)

    def run(self) -> int:
        """Execute 01 and every run, choose, test, compare; returns the exit code. An error here ends all runs."""
        try:
            with (
                search.Trials(self.plan, self.sweep_dir, self.progress.say)
                if self.plan.search
                else contextlib.nullcontext() as trials
            ):
                self.trials = trials
                self._execute_runs()
            self._write_summary()  # by which the choice is made; the last one may be older than the last run
            chosen = final_model.choose(self.plan, self.work, self.states, self.sweep_dir)
            shipped = self._add_final_model(chosen)
            self._execute_pages(shipped)
            self._execute_tests(shipped)
            self._publish(chosen, shipped)
            self._run_comparisons()
            sweep_summary = self._publish(chosen, shipped)
        except BaseException as problem:
            self.engine.stop()
            if not isinstance(problem, Exception) or not (why := self._why_over(problem)):
                raise
            self.progress.say(f"fruitlib: {why}")
            return 1
        finally:
            self.engine.close()
            folder.remove_leftovers(self.sweep_dir)
        self.progress.close()
        try:
            print_results(self.plan, self.sweep_dir, sweep_summary)
        except Exception as problem:  # the numbers are in results.csv and in the report
            print(f"the table of results cannot be shown ({type(problem).__name__}: {first_line(problem)})")
        for failure in self.failures:
            show(f"\nfailed: {failure}")
        show(f"\nreport: {files.display_path(self.sweep_dir / 'index.html')}")
        return int(
            bool(self.failures) or any(state["error"] and state["state"] != "pruned" for state in self.states.values())
        )

    def _why_over(self, problem: Exception) -> str:
        """Why the sweep cannot go on, in one line, where something outside of it is the reason; else empty."""
        if isinstance(problem, folder.FolderLost) or self.place.is_lost:
            where = files.display_path(self.sweep_dir)
            return f"{where} was removed or moved while the sweep ran, which is ended: run the same command again"
        if isinstance(problem, PlacementLost):
            self._publish()
            again = "run the same command again; complete runs are kept"
            return f"lost the scheduler that executes the runs ({problem}): {again}"
        return ""

    def _execute_runs(self) -> None:
        """01, and every run of the plan or of the search."""
        if not worker.sweep_stage_is_complete(self.sweep_dir, worker.SPLIT, self.plan.config):
            self.engine.add(Task(worker.SPLIT, self.sweep_dir, (worker.SPLIT,), self.plan.config))
        known = self.trials.earlier() if self.trials else {}
        for name in self.plan.runs:
            self._add_run(name, known.get(name, "pending"))
        for name in self.states:
            self._report_trial(name)  # the last sweep may have been killed between a run's end and this report
        if worker.SPLIT not in self.engine.names:
            self.progress.outlook.end(worker.SPLIT, (worker.SPLIT,))
        complete = [name for name, state in self.states.items() if state["state"] == "complete"]
        self.progress.outlook.learn_from(schedule.earlier(self.plan, self.work, complete))
        self._plan_outlook()
        self._submit_runs(self._pending())
        self._write_summary()
        self._start_new_trials()
        for task, outcome in self.engine.outcomes(self._update):
            self._record_outcome(task, outcome)
            self._start_new_trials()
        if self.trials:
            try:
                self.trials.write_importances()
            except Exception as problem:  # of a library; no reason to lose the sweep
                self.progress.say(f"no importances: {type(problem).__name__}: {problem}")

    def _add_run(self, name: str, known: str = "pending", run: Run | None = None) -> None:
        """Add a run to the sweep, in the state that its folder shows."""
        self.work[name] = run = run or Run(self.sweep_dir / name, self.plan.runs[name])
        state = "complete" if self._is_complete(run) else known if known in ("pruned", "failed") else "pending"
        error = run.read_json(OUTCOME).get("error", known) if state in ("pruned", "failed") else None
        self.states[name] = {"state": state, "error": error}

    def _pending(self) -> list[str]:
        return [name for name, state in self.states.items() if state["state"] == "pending"]

    def _plan_outlook(self) -> None:
        """Name what is still to be done, by which the time left is guessed; a guess stops no sweep."""
        with contextlib.suppress(OSError, ValueError):
            self.progress.outlook.plan(schedule.before_choice(self.plan, self.work, self._pending()))

    def _submit_runs(self, names: list[str]) -> None:
        """Submit runs. All folds of a combination are trained before 03 is executed, which needs the predictions on all
        photos; with other `pages` than every, that is in the end."""
        every = RUN_STAGES[:1] if self.plan.config.folds else RUN_STAGES
        stages = every if self.plan.pages == "every" else NUMBER_STAGES
        for name in names:
            self._submit(name, stages)

    def _submit(self, name: str, stages: tuple[str, ...]) -> None:
        run = self.work[name]
        run.path.mkdir(parents=True, exist_ok=True)
        self.engine.add(Task(name, run.path, stages, run.config))

    def _start_new_trials(self) -> None:
        """Start as many new trials as can be executed at once; none while the search is paused."""
        while self.trials and not self._search_paused and self.engine.room > 0 and (name := self.trials.ask()):
            self._add_run(name)
            self._submit_runs([name])
            self._plan_outlook()
            self._changed = dict.fromkeys(self._changed, True)

    def _record_outcome(self, task: Task, outcome: Outcome) -> None:
        """Record how a task ended, and start what depends on it."""
        self.place.check()
        self._changed = dict.fromkeys(self._changed, True)
        self.progress.outlook.end(task.name, task.stages if outcome.state == "complete" else (*task.stages, *STAGES))
        if task.name in worker.SWEEP_STAGES:
            if outcome.error:
                self.failures.append(f"{task.name}: {outcome.error}")
                self.progress.say(f"{task.name}: {outcome.error}")
            return
        run, state = self.work[task.name], self.states[task.name]
        complete = self._is_complete(run)
        if outcome.state != "complete":  # if only the test failed, the run's validation results hold
            ended = outcome.state if outcome.state == "pruned" else "failed"
            state.update(state="complete" if complete else ended, error=outcome.error)
            self.progress.say(f"{task.name}: {outcome.error}")
        elif complete:
            state.update(state="complete", error=None)
            self.progress.say(f"{task.name}: {result_line(run, task.stages)}")
        elif task.stages != RUN_STAGES[:1]:
            changed = "settings, photos or code changed while it ran: run the same command again"
            state.update(state="failed", error=changed)
            self.progress.say(f"{task.name}: {changed}")
        self._report_trial(task.name, outcome.state)
        self._pause_search_after_failures(outcome)
        if task.name in self._folds_of and task.stages == RUN_STAGES[:1]:
            self._pool_trained_folds(task.name)

    def _pause_search_after_failures(self, outcome: Outcome) -> None:
        """Start no more trials after a full disk or several failures in a row: the next ones would fail, too."""
        self._failures_in_a_row = self._failures_in_a_row + 1 if outcome.state == "failed" else 0
        if (
            self.trials
            and not self._search_paused
            and (outcome.state == "disk_full" or self._failures_in_a_row == MAX_FAILURES)
        ):
            self._search_paused = True
            self.progress.say("no more trials are started: repair what failed, and run the same command again")

    def _report_trial(self, name: str, ended: str = "complete") -> None:
        """Tell the search how a trial ended. A trial that was lost, or met a full disk, stays open: the next sweep
        resumes it."""
        if self.trials and ended not in ("lost", "disk_full") and self.states[name]["state"] != "pending":
            self.trials.tell(name, self.states[name]["state"], self.work[name])

    def _pool_trained_folds(self, name: str) -> None:
        """When all folds of a combination are trained, pool their predictions and submit the other notebooks."""
        names = self._folds_of[name]
        if not self.engine.names & set(names):
            self._write_summary()
            for fold in names:  # also folds of an earlier sweep: their pooled numbers may have changed
                if self.states[fold]["state"] != "failed" and not self._is_complete(self.work[fold]):
                    self.states[fold]["state"] = "pending"
                    self._submit(fold, RUN_STAGES)

    def _update(self) -> None:
        """Called twice a second: watch the trials, update summary and pages when they are due."""
        self.place.check()
        if self.trials:
            for task in list(self.engine.running.values()):
                if task.name in self.work:
                    self.trials.watch(task.name, self.work[task.name])
        for what, update in (("summary", self._write_summary), ("pages", self._write_pages)):
            if self._changed[what] and time.monotonic() > self._due[what]:
                update()

    def _publish(self, chosen: str | None = None, shipped: str | None = None) -> dict:
        """Update summary and report at once; returns what `sweep.json` holds."""
        sweep_summary = self._write_summary(chosen, shipped)
        self._write_pages()
        return sweep_summary

    @contextlib.contextmanager
    def _timed_update(self, what: str):
        """Around an update: the next one is due when this one's duration is a twentieth of the time since.

        An error in it is reported once and costs no run: the update is tried again. A disk that failed would fail the
        runs, too, so that error goes on. A file that is gone was removed by a run that starts again.
        """
        started, self._changed[what] = time.monotonic(), False
        try:
            yield
        except Exception as problem:
            self.place.check()
            if files.is_disk_failure(problem):
                raise
            self._changed[what] = True
            if not isinstance(problem, FileNotFoundError):
                why = (
                    str(problem)
                    if isinstance(problem, InputError)
                    else f"{type(problem).__name__}: {first_line(problem)}"
                )
                self._say_once(f"{what}: could not be written ({why}); the sweep goes on")
        self._due[what] = time.monotonic() + (time.monotonic() - started) / PUBLISH_SHARE

    def _say_once(self, line: str) -> None:
        if line not in self._reported:
            self._reported.add(line)
            self.progress.say(line)

    def _write_pages(self) -> None:
        with self._timed_update("pages"), self.progress.outlook.does(REPORT):
            with machine.quick_imports():  # still half a second, which bad input need not wait for
                from fruitlib.reporting import site

            site.build_site(self.sweep_dir, changed_only=True)

    def _write_summary(self, chosen: str | None = None, shipped: str | None = None) -> dict:
        """Write it; returns what `sweep.json` holds, where that fails the last that could be written."""
        with self._timed_update("summary"):
            total = self.progress.total
            self._summary, problems = summary.write_summary(
                self.plan, self.sweep_dir, self.work, self.states, chosen, shipped, total
            )
            for problem in problems:
                self._say_once(problem)
        return self._summary

    def _submit_missing(self, name: str, stages: tuple[str, ...]) -> None:
        if not all(self.work[name].is_complete(stage) for stage in stages):
            self._submit(name, stages)

    def _wait(self) -> None:
        """Wait until all that was submitted has ended."""
        for task, outcome in self.engine.outcomes(self._update):
            self._record_outcome(task, outcome)

    def _add_final_model(self, chosen: str | None) -> str | None:
        """The run whose model is shipped; a refit or an ensemble is added to the runs."""
        if chosen is None:
            return None
        folds = summary.folds_of(self.plan, self.work, chosen)
        run = final_model.plan_final(self.plan, folds)
        if run.name in self.work:
            return run.name
        self._add_run(run.name, run=run)
        try:
            if self.plan.ship == "ensemble":
                self.work[run.name] = run = final_model.assemble(run, folds)
            else:
                final_model.name_folds(run, folds)
        except InputError as problem:
            self.states[run.name] = {"state": "failed", "error": str(problem)}
            return run.name
        return run.name

    def _execute_pages(self, shipped: str | None) -> None:
        """Execute what the model that is shipped still lacks, and the pages of the best runs.

        Of these, 05 comes first: what INT8 costs the shipped model is judged on all photos of folds that are exported,
        for which its own 05 waits.
        """
        ranking = final_model.ranked(self.plan, self.work, self.states, self.sweep_dir)
        with_pages = final_model.with_pages(self.plan, ranking)
        tested = self._to_test(shipped)
        self.progress.outlook.plan(schedule.after_choice(self.plan, self.work, with_pages, shipped, tested))
        for name in with_pages:
            self._submit_missing(name, schedule.PAGES)
        if shipped and shipped not in self.plan.runs and not self.states[shipped]["error"]:
            self._submit_missing(shipped, final_model.stages(self.work[shipped]))
        self._wait()

    def _execute_tests(self, shipped: str | None) -> None:
        """Evaluate the shipped run, or every run, on the test photos, if there are any."""
        for name in self._to_test(shipped):
            if self.states[name]["state"] == "complete" and not self.states[name]["error"]:  # else it has no files
                self._submit_missing(name, (TEST_STAGE,))
        self._wait()

    def _to_test(self, shipped: str | None) -> list[str]:
        if shipped is None or self.work[shipped].rows("test").empty:
            return []
        return list(self.work) if self.plan.test == "every" else [shipped]

    def _is_complete(self, run: Run) -> bool:
        """Whether all that a run has to have before it is compared is complete."""
        return all(run.is_complete(stage) for stage in final_model.stages(run, self.plan.pages))

    def _run_comparisons(self) -> None:
        """Execute the notebooks that compare runs, if there are at least two to compare."""
        if sum(state["state"] == "complete" for state in self.states.values()) < 2:
            return
        for stage in worker.COMPARISON_STAGES:
            if not worker.sweep_stage_is_complete(self.sweep_dir, stage, self.plan.config):
                self.engine.add(Task(stage, self.sweep_dir, (stage,), self.plan.config))
                for task, outcome in self.engine.outcomes(self.place.check):  # no update: they read these files
                    self._record_outcome(task, outcome)
