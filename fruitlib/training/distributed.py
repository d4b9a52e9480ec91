"""Several training processes on one machine: started, followed, started again when one is lost, none left behind.

When a process is lost (killed, out of memory, its GPU gone, stopped), `launch` starts the whole group again and
training resumes from `last.pt`. A failure that would come again (a photo that does not open, a loss that is NaN, any
exception in the recipe) is not tried again: the first process to fail writes its reason into `train.error`, and all
end. What one of these processes does is in `group`; nobody else on the machine can take part.

Several machines with one shared folder need torchrun, started by hand. **It trusts whoever reaches its port**: its
store asks for no password, and what is written there can run as you. Use it only in a network of your own, behind a
firewall. Execute 02_train on one of the machines up to "How does it learn?": it divides the photos and writes the run
folder. Then, on every machine:

    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    python -m torch.distributed.run --nnodes=2 --nproc-per-node=1 --max-restarts=3 --rdzv-backend=c10d \\
        --rdzv-endpoint=HOST:29400 -m fruitlib.training.train executed/dev/run

HOST is one of the machines, the same everywhere. Only the process of rank 0 writes to the run folder, and holds its
lock. The rest of 02 then finds the run trained. `processes` in the params does not matter here: `batch_size` counts
images over all processes, so results do not depend on how many share the work (but for BatchNorm, which normalises by
each process's own share of a batch; rank 0's statistics are evaluated and kept). FRUITLIB_CACHE names a disk of each
machine's own for decoded photos. Where the machines have several networks, GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME for
GPUs) says which to use. (The variable in the first line: a store that outlives lost workers still has their addresses,
and a restarted group waits for them, pytorch issue 135712, seen with 2.15.)
"""

import contextlib
import os
import queue
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import pandas as pd
import psutil
import torch

from fruitlib.core import files, machine, progress
from fruitlib.runs.run import Run
from fruitlib.training import group, messages
from fruitlib.training.messages import say

OnEpoch = Callable[[pd.DataFrame], None]
# A training of days may lose a process now and then; one that loses a fourth has a fault that another start won't mend.
MAX_RESTARTS = 3
NAME = "fruitlib-group"  # of a folder among the system's temporary ones, which only this user can open
STOPPED_SECONDS = 60  # a process that was stopped (SIGSTOP) for so long is lost
LOOK_SECONDS = 0.2  # between two looks at whether all are there
END_SECONDS = 10  # that processes have to end when asked
# What several processes take beyond what one does, mostly to load torch and torchvision in each.
# Measured on two cores, beside other work: two processes 11 to 15 s, four 17 to 21 s.
START_SECONDS = 10
WORTH_IT = 0.8  # several processes must promise to save a fifth of the time; exchanging gradients costs some of it


def least_seconds(seconds_per_epoch: float, epochs: int, processes: int) -> float:
    """The least time a training can take: the work divided evenly, and the start of several processes.

    `seconds_per_epoch` is that of one process.
    """
    return seconds_per_epoch * epochs / processes + (START_SECONDS if processes > 1 else 0)


def worth_it(seconds_per_epoch: float, epochs: int, processes: int) -> bool:
    """Whether several processes can save enough of the time that one takes."""
    one = least_seconds(seconds_per_epoch, epochs, 1)
    return least_seconds(seconds_per_epoch, epochs, processes) <= WORTH_IT * one


def advice(seconds_per_epoch: float, epochs: int, processes: int) -> str:
    """A sentence on whether several processes are worth it."""
    one = progress.duration(least_seconds(seconds_per_epoch, epochs, 1))
    best = progress.duration(least_seconds(seconds_per_epoch, epochs, processes))
    summary = f"about {one} in one process; {processes} take {START_SECONDS} s to start, so"
    if not worth_it(seconds_per_epoch, epochs, processes):
        return f"{summary} this run is too small for them: processes: 1 is right"
    return f"{summary} they may be done after {best} where each has cores or a GPU of its own"


def launch(run: Run, on_epoch: OnEpoch) -> None:
    """Train in `processes` children; print their messages and call `on_epoch` after each epoch.

    Whatever ends this call (an error, an interrupted cell) ends the children too.

    Raises:
        RuntimeError: the children failed; one line says why, and where their log is.
    """
    processes, error_file = run.config.processes, run.path / group.FAILED
    threads = max(1, torch.get_num_threads() // processes)
    say(f"starting {processes} processes with {threads} thread{'s' if threads > 1 else ''} each")
    error_file.unlink(missing_ok=True)
    log_file = run.path / "train.log"
    try:
        meeting = Path(tempfile.gettempdir()) / NAME
        with files.folder_beside(meeting) as folder, log_file.open("w", encoding="utf-8") as log:
            (folder / group.KEY).write_bytes(secrets.token_bytes(32))
            for restart in range(MAX_RESTARTS + 1):
                children = _Children(run, folder, threads, restart)
                lost = children.follow(log, on_epoch)
                if run.is_complete("train"):  # even if one was lost on its way out
                    return
                if reason := group.failure_of(run) or children.error:
                    break
                if not lost:  # all ended well; settings or code have changed meanwhile
                    return
                reason = f"a process was lost {restart + 1} times, last {lost}"
                if restart < MAX_RESTARTS:
                    say(f"a process was lost ({lost}): all start again (restart {restart + 1} of {MAX_RESTARTS})")
    finally:
        error_file.unlink(missing_ok=True)
    where = files.display_path(log_file)
    raise RuntimeError(f"training in {processes} processes failed: {reason} (log: {where})")


def _loopback() -> str:
    """The name of the interface that only this machine's processes reach: lo, lo0."""
    addresses = psutil.net_if_addrs().items()
    return next(name for name, held in addresses if any(one.address == "127.0.0.1" for one in held))


class _Children:
    """The processes of one start: their output, what was lost, and their end."""

    def __init__(self, run: Run, folder: Path, threads: int, restart: int):
        self.run, self.error = run, ""  # the first reason that a process gave for a failure which would come again
        self.mark = f"{os.getpid()}:{time.time_ns()}"  # who started them and when: in the environment of them all
        self.processes: list[subprocess.Popen] = []
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._stopped_since: dict[int, float] = {}
        environment = os.environ | {
            "WORLD_SIZE": str(run.config.processes),
            "LOCAL_WORLD_SIZE": str(run.config.processes),
            "OMP_NUM_THREADS": str(threads),
            "GLOO_SOCKET_IFNAME": _loopback(),
            "NCCL_SOCKET_IFNAME": _loopback(),
            "FRUITLIB_HOME": str(files.home()),
            messages.STARTER: self.mark,
            group.FOLDER: str(folder),
            group.RESTART: str(restart),
        }
        output, self._input = os.pipe()
        self._reader = threading.Thread(target=self._read, args=(output,), daemon=True)
        self._reader.start()
        try:
            for rank in range(run.config.processes):
                self.processes.append(self._start(environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}))
        except BaseException:
            self._end()
            raise

    def _start(self, environment: dict[str, str]) -> subprocess.Popen:
        """A process in a session of its own: an interrupt from the terminal must reach `launch` alone."""
        command = [sys.executable, "-m", "fruitlib.training.train", str(self.run.path)]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": self._input, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)

    def _read(self, output: int) -> None:
        with open(output, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                self._lines.put(line)

    def follow(self, log: TextIO, on_epoch: OnEpoch) -> str:
        """Write their output to `log` and act on their messages until all have ended, or one must not go on.

        Whatever ends this call, they have ended then.

        Returns:
            how the one that was lost has ended; empty where none was.
        """
        try:
            lost, looked = None, time.monotonic()
            while lost is None and not self.error:
                with contextlib.suppress(queue.Empty):
                    self._act(self._lines.get(timeout=LOOK_SECONDS), log, on_epoch)
                if time.monotonic() - looked >= LOOK_SECONDS:  # by the clock: libraries may print without end
                    lost, looked = self._how_lost(), time.monotonic()
        finally:
            self._end()
        while not self._lines.empty():  # what they wrote last
            self._act(self._lines.get(), log, on_epoch)
        return lost or ""

    def _act(self, line: str, log: TextIO, on_epoch: OnEpoch) -> None:
        message = messages.parse(line)
        if message is None:
            log.write(line)
            return
        kind, text = message
        log.write(text + "\n")
        if kind == messages.ERROR:
            self.error = self.error or text
            return
        say(text)
        if kind == messages.EPOCH:
            on_epoch(self.run.history())

    def _how_lost(self) -> str | None:
        """How one of them was lost; empty when all have ended well, None while all go on."""
        codes = [process.poll() for process in self.processes]
        if bad := [code for code in codes if code]:
            # The others only echo the end of one that was killed: their codes are above zero.
            return machine.ending(min(bad))
        if any(self._is_stopped(process.pid) for process in self.processes):
            return f"stopped for {STOPPED_SECONDS} s"
        return None if None in codes else ""

    def _is_stopped(self, pid: int) -> bool:
        """Whether a process is stopped (SIGSTOP), and has been for long."""
        now = time.monotonic()
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
                return now - self._stopped_since.setdefault(pid, now) >= STOPPED_SECONDS
        self._stopped_since.pop(pid, None)
        return False

    def _end(self) -> None:
        """End them and what they have started: ask first, then kill."""
        try:
            for process in self.processes:
                process.terminate()
            deadline = time.monotonic() + END_SECONDS
            for process in self.processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0, deadline - time.monotonic()))
            self._close_input()
            self._reader.join(max(0, deadline - time.monotonic()))  # W&B starts a helper, which has the pipe, too
        finally:  # also when a second interrupt ends the waiting
            self._close_input()
            for process in _marked(self.mark):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            for process in self.processes:
                process.kill()
                process.wait()
            self._reader.join()

    def _close_input(self) -> None:
        """Close the writing end of the pipe here, so that reading ends when the last process has ended."""
        if self._input is not None:
            os.close(self._input)
            self._input = None


def _marked(mark: str) -> list[psutil.Process]:
    """The processes whose FRUITLIB_STARTER is `mark`, and which a child may have started in a session of its own."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # over by now, or another person's
            if process.environ().get(messages.STARTER) == mark:
                found.append(process)
    return found
