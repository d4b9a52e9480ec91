"""Processes that open many photos at once, where threads would wait for each other.

Of a small photo, most of the time is Python's own work, which threads of one process do one at a time. A process here
is a Python of its own that waits for work at its input and imports only what that needs. It runs nobody's `__main__`
and inherits no thread, so it works alike from notebooks, from plain scripts and beside torch. It leaves Ctrl-C to its
owner, and ends when its owner has ended, however that ends.
"""

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fruitlib.core import machine
from fruitlib.core.errors import InputError
from fruitlib.core.files import os_error_text
from fruitlib.data import memory

WORTHWHILE = 2000  # photos; fewer are opened sooner by threads than processes start
MOST = 32  # processes, or threads, at once
CHUNK = 16  # photos handed out at a time: handing out small ones one by one costs more than opening them
SERVE = "from fruitlib.data import processes; processes.serve()"


class Pool:
    """Processes for work on photos; any number of threads may ask them. They end with it, or when it is closed."""

    def __init__(self, count: int):
        self.count, self._idle, self._all = count, queue.SimpleQueue(), []
        self.close = weakref.finalize(self, _end, self._all)  # what they are doing is given up
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(_package_and_path())}
        command = [sys.executable, "-P", "-c", SERVE, str(count)]
        try:
            for _ in range(count):
                self._all.append(subprocess.Popen(command, -1, None, subprocess.PIPE, subprocess.PIPE, env=environment))
                self._idle.put(self._all[-1])
        except OSError:
            self.close()
            raise

    def do(self, work: Callable, *job) -> Any:
        """`work(*job)`, done by a process that is idle. `work` is a function of a module; all of it is pickled.

        Raises:
            InputError: the process was ended from outside.
        """
        process = self._idle.get()
        try:
            pickle.dump((work, job), process.stdin, protocol=5)
            process.stdin.flush()
            done, result = pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError, ValueError):
            how = machine.ending(process.wait())
            raise InputError(f"a process that opens photos was ended: {how}; free some memory and run again") from None
        finally:
            self._idle.put(process)
        if not done:
            raise result
        return result


def _end(all_of_them: list[subprocess.Popen]) -> None:
    for process in all_of_them:
        process.terminate()
    for process in all_of_them:
        process.wait()
        process.stdout.close()
        with contextlib.suppress(OSError):  # what was not sent any more
            process.stdin.close()


def _package_and_path() -> list[str]:
    """The folder of the package and what else is on PYTHONPATH; an owner may have found the package in other ways."""
    package = str(Path(__file__).resolve().parents[2])
    return [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]


def pool_for(photos: int, workers: int | None = None) -> Pool | None:
    """As many processes as there are cores (or `workers`), where so many photos are worth it; else None: threads do.

    Processes that train together on one machine share its cores.
    """
    together = int(os.environ.get("LOCAL_WORLD_SIZE", machine.world_size()))
    count = min(workers or machine.usable_cores() // together, MOST)
    if photos < WORTHWHILE or count < 2:
        return None
    try:
        return Pool(count)
    except OSError as problem:
        print(f"the system allows no more processes ({os_error_text(problem)}): threads open the photos, more slowly")
        return None


@contextlib.contextmanager
def briefly(pool: Pool | None) -> Iterator[Pool | None]:
    """The pool, which is closed when the block ends."""
    try:
        yield pool
    finally:
        if pool:
            pool.close()


def in_order(work: Callable, jobs: Iterable[tuple], at_once: int) -> Iterator:
    """`work(*job)` for every job, in order, by threads; few are queued at a time, for memory and for Ctrl-C."""
    threads = ThreadPoolExecutor(at_once)
    try:
        waiting = deque()
        for job in jobs:
            waiting.append(threads.submit(work, *job))
            if len(waiting) >= 4 * at_once:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)


def serve() -> None:
    """What a process does: answer its owner's requests until there is no owner."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not end up among the replies
    memory.limit_to_share(int(sys.argv[1]))
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            work, job = pickle.load(sys.stdin.buffer)
            try:
                reply = True, work(*job)
            except Exception as problem:  # for the owner to raise
                reply = False, problem
            pickle.dump(reply, replies, protocol=5)
            replies.flush()
