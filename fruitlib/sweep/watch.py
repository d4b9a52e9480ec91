"""The processes of one run: a folder for what they leave, and whether they still do something.

A run's process and its kernel may be forked by the zygote, and so are no descendants of whoever asked for them. All
that `launcher` starts or forks therefore writes its pid into the folder that `$FRUITLIB_JOB` names.

Processes that use next to no processor time and write nothing for ten minutes hang: a network folder whose server is
gone, a lock that is never freed. One that was stopped (SIGSTOP) for a minute is taken for a lost one. A process that
waits for another run's lock looks for it twenty times a second, which counts as work: the other run is watched itself.
One that spins without end is not found.
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

STALL = 600.0  # seconds without progress until a run is given up; $FRUITLIB_STALL_SECONDS
STOPPED_SHARE = 0.1  # of that time, for a process that was stopped
BUSY = (
    0.0015  # of a core, all processes together: a kernel that only waits uses a third of that, one for a lock 4 times
)
WRITTEN = 1 << 20  # bytes: who writes so much does something, such as a slow download
LOOKS = 30  # in that time


def new_folder() -> Path:
    """A temporary folder for one run's processes; those of processes that were killed are removed first."""
    _remove_stale_folders()
    return Path(tempfile.mkdtemp(prefix=_prefix(os.getpid())))  # short: a socket's path has a limit of 108 bytes


def _prefix(pid: int | str) -> str:
    host = hashlib.blake2b(socket.gethostname().encode(), digest_size=2).hexdigest()
    return f"fruit-{pid}-{host}-"


@functools.cache  # once in each process
def _remove_stale_folders() -> None:
    for path in Path(tempfile.gettempdir()).glob(_prefix("*") + "*"):
        owner = re.fullmatch(_prefix(r"(\d+)") + r"\w+", path.name)
        if owner and not psutil.pid_exists(int(owner[1])):
            shutil.rmtree(path, ignore_errors=True)


class Watch:
    """The processes of a run that `root` was started for, and all that registered in `folder`."""

    def __init__(self, root: int, folder: Path):
        self.folder, self.known = folder, {psutil.Process(root)}
        self.limit = float(os.environ.get("FRUITLIB_STALL_SECONDS", STALL))
        self._since = self._looked = time.monotonic()
        self._before: dict[psutil.Process, tuple[float, int]] = {}
        self._stopped: dict[psutil.Process, float] = {}

    def why_given_up(self) -> str:
        """Why these processes must be ended, in words; empty while they work. Looks now and then, when called often."""
        now = time.monotonic()
        if now - self._looked < self.limit / LOOKS:
            return ""
        self._looked = now
        members = self.members()
        if self._stopped_since(members, now) <= now - self.limit * STOPPED_SHARE:
            return f"a process of it was stopped (SIGSTOP) for {_duration(self.limit * STOPPED_SHARE)}"
        used = {process: found for process in members if (found := _used(process))}
        cpu, written = (sum(_grown(used, self._before, kind)) for kind in (0, 1))
        if not self._before or cpu > BUSY * self.limit or written > WRITTEN:
            self._since, self._before = now, used
        return f"it made no progress for {_duration(self.limit)}" if now - self._since > self.limit else ""

    def _stopped_since(self, members: set[psutil.Process], now: float) -> float:
        """Since when the first of the processes that are stopped has been so."""
        stopped = {process for process in members if _status(process) == psutil.STATUS_STOPPED}
        self._stopped = {process: self._stopped.get(process, now) for process in stopped}
        return min(self._stopped.values(), default=now + 1)

    def members(self) -> set[psutil.Process]:
        """The processes, with all that they have started."""
        for path in self.folder.glob("*.pid"):
            with contextlib.suppress(psutil.Error, ValueError):
                process = psutil.Process(int(path.stem))
                if any(
                    "fruitlib" in word or "ipykernel" in word for word in process.cmdline()
                ):  # else its pid is another's
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
        """Kill whatever is left of them."""
        for process in self.members():
            with contextlib.suppress(psutil.Error):
                process.kill()


def _status(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return process.status() if process.is_running() else ""
    return ""


def _used(process: psutil.Process) -> tuple[float, int] | None:
    """Seconds of processor time, and bytes written, where the system tells; None for one that has ended."""
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        written = getattr(process.io_counters(), "write_chars", 0) if hasattr(process, "io_counters") else 0
        return times.user + times.system, written
    return None


def _grown(used: dict, before: dict, kind: int) -> list[float]:
    """By how much each process's time (0) or bytes (1) have grown; of a new process, all of it."""
    return [found[kind] - before.get(process, (0.0, 0))[kind] for process, found in used.items()]


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds > 90 else "a minute" if seconds > 50 else f"{seconds:.0f} seconds"
