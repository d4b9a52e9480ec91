"""The processes of one run: a folder for what they leave, and whether they still do something.

A run's process and its kernel may be forked by the zygote, and so are no descendants of whoever asked for them. All
that `launcher` starts or forks therefore writes its pid into the folder that `$FRUITLIB_JOB` names.

Processes that use next to no processor time, read and write nothing for ten minutes hang: a network folder whose
server is gone, a lock that is never freed. One that was stopped (SIGSTOP) for two minutes is taken for a lost one; the
trainers of a run are started again by the run itself sooner (`training.distributed`). A process that waits for another
run's lock looks for it twenty times a second, which counts as work: the other run is watched itself. One that spins
without end is not found. Time in which the sweep itself was frozen, with its machine or its batch job, does not count.
"""

import contextlib
import functools
import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
from pathlib import Path

import psutil

from fruitlib.core.progress import duration
from fruitlib.kernels import launcher

STALL = 600.0  # seconds without progress until a run is given up; $FRUITLIB_STALL_SECONDS
STOPPED_SHARE = 0.2  # of that time, for a process that was stopped
# Of a core, all processes together: a kernel that only waits uses a third of that, one that waits for a lock 2.7 times.
BUSY = 0.0015
WRITTEN = 1 << 20  # bytes: who writes so much does something, such as a slow download
# Bytes: photos of a slow network folder, say. Who only looks how eight processes of its own are reads 10 MB.
READ = 1 << 24
LOOKS = 30  # in that time
CLOCKS_APART = 2.0  # seconds by which the start of a process may seem later than a file that it wrote


def new_folder() -> Path:
    """A temporary folder for one run's processes; those of processes that were killed are removed first."""
    _remove_stale_folders()
    return Path(tempfile.mkdtemp(prefix=prefix(os.getpid())))  # short: a socket's path has a limit of 108 bytes


def prefix(pid: int | str) -> str:
    """How the name of a process's temporary folders begins, by which those of killed ones are known."""
    host = hashlib.blake2b(socket.gethostname().encode(), digest_size=2).hexdigest()
    return f"fruit-{pid}-{host}-"


@functools.cache  # once in each process
def _remove_stale_folders() -> None:
    for path in Path(tempfile.gettempdir()).glob(prefix("*") + "*"):
        owner = re.fullmatch(prefix(r"(\d+)") + r"\w+", path.name)
        if owner and not psutil.pid_exists(int(owner[1])):
            shutil.rmtree(path, ignore_errors=True)


class Watch:
    """The processes of a run that `root` was started for, and all that registered in `folder`."""

    def __init__(self, root: int, folder: Path):
        self.folder, self.known = folder, {psutil.Process(root)}
        self.limit = float(os.environ.get("FRUITLIB_STALL_SECONDS", STALL))
        ahead = psutil.Process(root).create_time() - time.time()  # of processes' clock; in some containers it is years
        self._latest = max(0.0, ahead) + CLOCKS_APART
        self._looked, self._idle = time.monotonic(), 0.0
        self._before: dict[psutil.Process, tuple[float, int, int]] = {}
        self._stopped: dict[psutil.Process, float] = {}  # for how long

    def why_given_up(self) -> str:
        """Why these processes must be ended, in words; empty while they work. Looks now and then, when called often."""
        now, interval = time.monotonic(), self.limit / LOOKS
        if now - self._looked < interval:
            return ""
        passed = min(now - self._looked, 2 * interval)  # it was frozen itself for the rest
        self._looked = now
        members = self.members()
        if self._longest_stopped(members, passed) >= self.limit * STOPPED_SHARE:
            return f"a process of it was stopped (SIGSTOP) for {duration(self.limit * STOPPED_SHARE)}"
        used = {process: found for process in members if (found := _used(process))}
        cpu, written, read = (sum(_grown(used, self._before, kind)) for kind in range(3))
        self._idle += passed
        if not self._before or cpu > BUSY * self.limit or written > WRITTEN or read > READ:
            self._idle, self._before = 0.0, used
        return f"it made no progress for {duration(self.limit)}" if self._idle > self.limit else ""

    def _longest_stopped(self, members: set[psutil.Process], passed: float) -> float:
        """For how long one of the processes that are stopped has been so; `passed`: seconds since the last look."""
        stopped = {process for process in members if _status(process) == psutil.STATUS_STOPPED}
        self._stopped = {process: self._stopped.get(process, -passed) + passed for process in stopped}
        return max(self._stopped.values(), default=-1.0)

    def members(self) -> set[psutil.Process]:
        """The processes, with all that they have started."""
        for path in self.folder.glob("*.pid"):
            with contextlib.suppress(psutil.Error, ValueError, OSError):
                process = psutil.Process(int(path.stem))
                if process.create_time() <= path.stat().st_mtime + self._latest:  # else its pid is another's by now
                    self.known.add(process)
        self.known = {process for process in self.known if _status(process) not in ("", psutil.STATUS_ZOMBIE)}
        below: dict[int, list[psutil.Process]] = {}
        for process in psutil.process_iter(["ppid"]):
            below.setdefault(process.info["ppid"], []).append(process)
        found, todo = set(self.known), [process.pid for process in self.known]
        while todo:
            children = [process for process in below.get(todo.pop(), ()) if process not in found]
            found |= set(children)
            todo += [process.pid for process in children]
        self.known = found
        return found

    def end(self) -> None:
        """Kill whatever is left of them, also those that have left their family: their environment names the folder."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):  # over by now, or another person's
                if process.environ().get(launcher.JOB) == str(self.folder):
                    self.known.add(process)
        for process in self.members():
            with contextlib.suppress(psutil.Error):
                process.kill()


def _status(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return process.status() if process.is_running() else ""
    return ""


def _used(process: psutil.Process) -> tuple[float, int, int] | None:
    """Seconds of processor time, bytes written and read, where the system tells; None for one that has ended."""
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        counters = process.io_counters() if hasattr(process, "io_counters") else None
        written, read = (getattr(counters, f"{kind}_chars", 0) for kind in ("write", "read"))
        return times.user + times.system, written, read
    return None


def _grown(used: dict, before: dict, kind: int) -> list[float]:
    """By how much each process's time (0) or bytes (1, 2) have grown; of a new process, all of it."""
    return [found[kind] - before.get(process, (0.0, 0, 0))[kind] for process, found in used.items()]
