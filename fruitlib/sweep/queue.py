"""Tasks handed to an executor until all are done: what others work on is waited for, what was lost is tried once more.

The executor places processes (`executors`), the run folder's lock decides which of them works, and its files are the
result. So two sweeps on one folder share the work, and a killed sweep loses nothing.
"""

import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from fruitlib.core import files, machine
from fruitlib.core.config import Config
from fruitlib.core.errors import first_line
from fruitlib.runs.run import OUTCOME, WORKING, Run
from fruitlib.sweep import executors
from fruitlib.sweep.worker import CODES, lock_of

KILLED = -9  # by SIGKILL, which not every system has a name for
TRIES = 2  # of a run whose process or kernel was killed under it
WORDS = {code: word for word, code in CODES.items()}


@dataclass
class Task:
    """Stages of one run (or of the sweep itself: 01) to execute one after the other."""

    name: str
    folder: Path
    stages: tuple[str, ...]
    config: Config = field(default_factory=Config)
    tries: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a task ended."""

    state: str  # complete | failed | pruned | lost | disk_full
    error: str = ""


class PlacementLost(RuntimeError):
    """The executor itself is gone: a Dask scheduler that was stopped, say."""


class Engine:
    """Tasks in, outcomes out, as many at a time as the executor is wide."""

    def __init__(self, executor, sweep_dir: Path, kernel: Callable[[], str], say: Callable[[str], None]):
        self.executor, self.kernel, self.say = executor, kernel, say
        self.stop_file = sweep_dir / f".stop.{files.owner()}.{secrets.token_hex(4)}"  # removed with stale partial files
        self._reported: set[str] = set()
        self.waiting: list[Task] = []
        self.elsewhere: list[Task] = []  # another process holds their run
        self.running: dict[Future, Task] = {}

    @property
    def room(self) -> int:
        """How many more tasks could begin at once."""
        return self.executor.width - len(self.running) - len(self.waiting)

    @property
    def names(self) -> set[str]:
        """The runs that have a task on its way."""
        return {task.name for task in [*self.running.values(), *self.waiting, *self.elsewhere]}

    def add(self, task: Task) -> None:
        """One more task; tasks begin in the order they come."""
        self.waiting.append(task)

    def outcomes(self, idle: Callable[[], None] = lambda: None) -> Iterator[tuple[Task, Outcome]]:
        """Each task as it ends, until there are none; more may be added meanwhile. `idle` is called twice a second.

        Raises:
            PlacementLost: nobody is there to execute anything.
        """
        while self.waiting or self.elsewhere or self.running:
            self._fill()
            if self.running:
                done, _ = wait(self.running, timeout=0.5, return_when=FIRST_COMPLETED)
            else:  # others hold all that is left
                time.sleep(0.5)
                done = set()
            for future in done:
                task = self.running.pop(future)
                if outcome := self._ended(task, future):
                    yield task, outcome
            self._look_elsewhere()
            self._fill()  # before `idle`, which writes summary and pages: a free core would wait for them
            idle()

    def _fill(self) -> None:
        """Begin as many of the waiting tasks as there is room for."""
        while self.waiting and len(self.running) < self.executor.width:
            self._submit(self.waiting.pop(0))

    def _submit(self, task: Task) -> None:
        job = {"folder": str(task.folder), "stages": list(task.stages), "kernel": self.kernel()}
        job |= {"settings": task.config.model_dump(exclude_defaults=True), "home": str(files.home())}
        job |= {"environment": executors.environment(), "stop": str(self.stop_file)}
        try:
            self.running[self.executor.submit(executors.perform, job)] = task
        except Exception as problem:  # a cluster's client has many ways to say that it lost its scheduler
            raise PlacementLost(first_line(problem)) from problem

    def _ended(self, task: Task, future: Future) -> Outcome | None:
        """How a task ended; None where it goes on, here or elsewhere."""
        try:
            result = future.result()
        except CancelledError as problem:
            raise PlacementLost("it cancelled what it was given") from problem
        except Exception as problem:  # it could not be started, or Dask lost its worker more often than it allows
            if type(problem).__name__ != "KilledWorker":
                return Outcome("failed", f"could not be executed: {first_line(problem)}")
            result = {"code": KILLED, "remarks": [], "error": first_line(problem)}
        if not hasattr(self.executor, "say"):  # remarks of another machine come at the end
            for line in result["remarks"]:
                self.say(line)
        if result["code"] is None:
            return Outcome("failed", result["error"])
        word = WORDS.get(result["code"], "lost")
        if word == "busy":
            self.say(f"{task.name}: another process is working on it")
            self.elsewhere.append(task)
            return None
        if word == "lost":
            return self._lost(task, result)
        error = "" if word == "complete" else _reason(task.folder) or result["error"] or "no reason was left"
        return Outcome(word, error)

    def _lost(self, task: Task, result: dict) -> Outcome | None:
        """Try a killed task once more; None if it is tried again."""
        task.tries += 1
        if result.get("given_up"):
            error, again = result["given_up"], "it is started again"
        else:
            named = result["code"] == CODES["lost"] and _reason(task.folder)
            last = f": {result['error']}" * bool(result["error"])
            error, again = named or f"its process was lost ({machine.ending(result['code'])}){last}", "once more"
        if task.tries < TRIES:
            self.say(f"{task.name}: {error}; {again}")
            self.waiting.insert(0, task)
            return None
        return Outcome("lost", error)

    def _look_elsewhere(self) -> None:
        """Take back the tasks whose run nobody works on any more."""
        for task in list(self.elsewhere):
            try:
                with files.lock(task.folder / lock_of(task.stages), timeout=0):
                    pass
            except files.Locked:
                self._report_stopped(task)
                continue
            self.elsewhere.remove(task)
            self.waiting.append(task)

    def _report_stopped(self, task: Task) -> None:
        """Say once that a process of another sweep, which holds a task's run, was stopped: it is not ours to end."""
        held = Run(task.folder).read_json(WORKING)
        if task.name in self._reported or held.get("host") != socket.gethostname():
            return
        with contextlib.suppress(psutil.Error):
            if psutil.Process(pid := held["pid"]).status() == psutil.STATUS_STOPPED:
                self._reported.add(task.name)
                self.say(f"{task.name}: process {pid} works on it and was stopped: kill -CONT {pid}, or kill -9 {pid}")

    def stop(self) -> None:
        """End what is running, within two seconds; it can be resumed."""
        getattr(self.executor, "stop", lambda: None)()  # this machine's need no file, which a full disk may refuse
        try:
            with contextlib.suppress(OSError):
                self.stop_file.touch()
            # Before cancelling: a cancelled job does not look for the file.
            wait(self.running, timeout=executors.END_TIMEOUT)
            for future in self.running:
                future.cancel()
        finally:
            self.stop_file.unlink(missing_ok=True)

    def close(self) -> None:
        """No more tasks; what this machine runs has ended then, but nobody waits for a cluster that was lost."""
        self.executor.shutdown(wait=False, cancel_futures=True)


def _reason(folder: Path) -> str:
    """What the run's process wrote down on its end."""
    return Run(folder).read_json(OUTCOME).get("error", "")
