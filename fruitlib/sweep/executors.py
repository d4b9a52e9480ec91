"""Where runs are executed: on this machine, several side by side, or on a Dask cluster; a process for each run.

Both are executors as in `concurrent.futures`, and what they execute is `perform`: start `fruitlib.sweep.worker` on a
run folder, wait, tell how it ended. They place work, no more: the folder's lock decides who does it, its files are the
result.

On a cluster, every worker must see the project folder under the same path and have fruitlib installed:

    dask scheduler                                              # says tcp://HOST:8786
    dask worker tcp://HOST:8786 --nthreads 1 --nworkers 4       # on every machine: four runs at a time
    fruitlib sweep params/demo.yaml --scheduler tcp://HOST:8786

Under Slurm, `dask-jobqueue` starts both, from a login node:

    from dask_jobqueue import SLURMCluster
    cluster = SLURMCluster(cores=4, processes=4, memory="16GB", walltime="04:00:00")
    cluster.scale(jobs=10); print(cluster.scheduler_address)    # and then the same sweep, with that address

**Whom a cluster trusts.** Dask's scheduler and workers take pickled functions from whoever reaches their ports, and by
default they listen on every interface: each of these people can run any program as you. `tcp://` is good enough only
in a network of your own. With `tls://` all of them show certificates signed by your own authority, and refuse who has
none. Dask reads them from its configuration, on every machine the same (`dask.yaml`, or these variables):

    export DASK_DISTRIBUTED__COMM__TLS__CA_FILE=ca.pem DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT=me.pem
    export DASK_DISTRIBUTED__COMM__TLS__SCHEDULER__CERT=me.pem DASK_DISTRIBUTED__COMM__TLS__WORKER__CERT=me.pem
    dask scheduler --protocol tls                               # says tls://HOST:8786, for workers and --scheduler

`me.pem` holds certificate and key. openssl makes an authority, a request, and its answer:

    openssl req -x509 -newkey rsa:3072 -nodes -subj /CN=ca -keyout ca.key -out ca.pem
    openssl req -newkey rsa:3072 -nodes -subj /CN=me -keyout me.key -out me.csr
    openssl x509 -req -in me.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out me.pem; cat me.key >> me.pem

Runs on this machine open no port beyond it. Sweep, workers and kernels talk through pipes and sockets in folders of
this user. A kernel listens on one port of 127.0.0.1, by which ipykernel takes what forked processes print; what comes
without its random key of 16 bytes is dropped.

A run has as many threads as its worker's OMP_NUM_THREADS says, which Dask sets to 1; GPUs are given out by
CUDA_VISIBLE_DEVICES, a worker each.
"""

import contextlib
import functools
import json
import logging
import os
import platform
import queue
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

from fruitlib.core import files, machine
from fruitlib.core.errors import InputError, first_line
from fruitlib.kernels import kernelspec, launcher
from fruitlib.sweep import watch

END_TIMEOUT = 1.5  # seconds that a process may take to end before it is killed
WARM_TIMEOUT = 2 * launcher.IMPORT_TIMEOUT  # seconds until a sweep goes on with cold kernels


def perform(
    job: dict, say: Callable[[str], None] = lambda line: None, stop_requested: Callable[[], bool] = bool
) -> dict:
    """Execute a run's stages in a process of its own and wait for it; runs wherever an executor puts it.

    Args:
        job: folder, stages, settings (those that differ from their defaults), kernel; home (the project folder);
            environment (more variables); stop: a file whose appearance ends the process at once.
        say: takes the process's remarks as they come.
        stop_requested: whether the process must end, as the stop file says.

    Returns:
        code: its exit code, below zero the signal that ended it; None: this machine does not see the folder; remarks:
        its standard output; error: the last line on its standard error; given_up: why it was ended, if it hung.
    """
    if not Path(job["folder"]).is_dir():
        return {"code": None, "remarks": [], "error": f"{platform.node()} does not see the folder {job['folder']}"}
    scratch = watch.new_folder()
    try:
        return _perform_in(scratch, job, say, stop_requested)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _perform_in(scratch: Path, job: dict, say: Callable[[str], None], stop_requested: Callable[[], bool]) -> dict:
    """`perform`, with a folder for what the process and its kernels leave."""
    process = _start(job, scratch)
    watched = watch.Watch(process.pid, scratch)
    given_up: list[str] = []
    asked = functools.partial(_must_stop, job, stop_requested)
    threading.Thread(target=_end_on_request, args=(process, asked, watched, given_up), daemon=True).start()
    output, error_output = _lines(process.stdout), _lines(process.stderr)
    remarks = []
    for line in _until_ended(output, process, watched):
        remarks.append(line)
        say(line)
    code = process.wait()
    watched.end()
    errors = [line.strip() for line in _until_ended(error_output, process, watched)]
    process.stdin.close()
    last = [line for line in errors if line and not line.startswith(launcher.COLD)][-1:]
    return {"code": code, "remarks": remarks, "error": "".join(last), "given_up": "".join(given_up)}


def _lines(stream: TextIO) -> queue.SimpleQueue:
    """The lines of a stream as they come, and None at its end, read by a thread that closes the stream then."""

    def read() -> None:
        with stream:
            for line in stream:
                lines.put(line.rstrip())
        lines.put(None)

    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=read, daemon=True).start()
    return lines


def _until_ended(lines: queue.SimpleQueue, process: subprocess.Popen, watched: watch.Watch) -> Iterator[str]:
    """The lines of a process until its end; what it has left running, and has the stream, too, is ended then."""
    while True:
        try:
            line = lines.get(timeout=0.5)
        except queue.Empty:
            if process.poll() is None:
                continue
            watched.end()
            try:
                line = lines.get(timeout=END_TIMEOUT)
            except queue.Empty:  # somebody whom we may not end
                return
        if line is None:
            return
        yield line


def _start(job: dict, scratch: Path) -> subprocess.Popen:
    cold = job["kernel"] == "python3"
    command = [sys.executable, *(["-P", "-m"] if cold else ["-ISP", launcher.__file__])]
    command += ["fruitlib.sweep.worker", job["folder"], *job["stages"], "--kernel", job["kernel"], "--tied"]
    command += ["--settings", json.dumps(job["settings"])]
    environment = os.environ | {"FRUITLIB_HOME": job["home"], launcher.JOB: str(scratch)} | job["environment"]
    environment.pop("FRUITLIB_LOCK_HELD", None)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # In a session of its own: Ctrl-C in the terminal must reach the sweep alone, which then ends its runs.
    return subprocess.Popen(
        command, env=environment, encoding="utf-8", errors="replace", start_new_session=True, **pipes
    )


def _must_stop(job: dict, stop_requested: Callable[[], bool]) -> bool:
    """Whether a run's process must end: it was asked to, or the sweep's folder was removed."""
    if stop_requested() or os.path.exists(job["stop"]):
        return True
    try:
        os.stat(os.path.dirname(job["stop"]))
    except FileNotFoundError:
        return True
    except OSError:  # a network folder whose server starts again
        pass
    return False


def _end_on_request(process: subprocess.Popen, asked: Callable[[], bool], watched: watch.Watch, why: list[str]) -> None:
    """End a process on request, by closing its standard input, to which it is tied; or at once where it hangs."""
    while process.poll() is None:
        if asked():
            with contextlib.suppress(OSError, ValueError):
                process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_TIMEOUT)
            process.kill()
            return
        if reason := watched.why_given_up():
            why.append(reason)
            watched.end()
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)


class Local(Executor):
    """So many runs at a time on this machine, each with its share of the cores, and a GPU of its own if there are."""

    def __init__(self, width: int, say: Callable[[str], None], threads: int = 0, gpus: list[str] | None = None):
        self.width, self.say, self.threads = width, say, threads
        self._slots: queue.SimpleQueue[dict] = queue.SimpleQueue()
        for number in range(width):
            slot = {"OMP_NUM_THREADS": str(threads)} if threads else {}
            self._slots.put(slot | ({"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}))
        self._pool, self._stopped = ThreadPoolExecutor(width), threading.Event()

    def submit(self, function: Callable, job: dict) -> Future:  # type: ignore[override]
        """Have `function(job)` called when there is room for it."""
        return self._pool.submit(self._in_a_slot, function, job)

    def _in_a_slot(self, function: Callable, job: dict) -> dict:
        slot = self._slots.get()
        try:
            return function(job | {"environment": job["environment"] | slot}, self.say, self._stopped.is_set)
        finally:
            self._slots.put(slot)

    def stop(self) -> None:
        """End what is running, and what begins from now on."""
        self._stopped.set()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Give no more out, and wait in any case until what runs has ended: its leftovers can be removed only then."""
        self._pool.shutdown(cancel_futures=cancel_futures)


def local(wanted: int, runs: int, processes: int, say: Callable[[str], None]) -> tuple[Local, str]:
    """An executor on this machine for so many runs of so many training processes each, and in words what it is.

    As many run at a time as there are GPUs, or else cores, unless `wanted` says how many. The cores are shared out
    once: how many threads a run has, and so its last digits, does not depend on what else is still to be done. Where
    all runs begin at once, 01 has a place of its own beside them.
    """
    cores, devices = machine.usable_cores(), gpus()
    most = wanted or (len(devices) or cores) // processes
    width = max(1, min(most, runs))
    threads = machine.requested_threads("OMP_NUM_THREADS") or max(1, cores // width)
    own = [",".join(devices[n * processes : (n + 1) * processes]) for n in range(len(devices) // processes)]
    summary = f"{width} at a time, {threads} thread{'s' * (threads > 1)} each" if width > 1 else f"{threads} threads"
    summary += f", a GPU each of {len(devices)}" if devices else ""
    return Local(width + (runs <= width), say, threads, own), summary


def gpus() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them; asked of the driver, not of torch."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    asked = subprocess.run(["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"], capture_output=True, text=True)
    return asked.stdout.split() if asked.returncode == 0 else []


def cluster(address: str, sweep_dir: Path) -> tuple[Executor, str]:
    """An executor on the Dask cluster of this scheduler, and in words what it is.

    Raises:
        InputError: Dask is not installed, nobody answers, there are no workers, or one does not see the folder.
    """
    try:
        from distributed import Client
    except ImportError:
        raise InputError("--scheduler needs Dask: pip install 'fruitlib[cluster]'") from None
    for name in ("distributed", "distributed.client", "distributed.comm", "tornado.application", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the sweep reports a lost scheduler in one line
    _check_certificates(address)
    try:
        client = Client(address, timeout=10, set_as_default=False)
    except (OSError, ValueError) as problem:
        raise InputError(f"--scheduler {address}: no Dask scheduler answers there ({first_line(problem)})") from None
    try:
        sees = _asked(client, address, str(sweep_dir))
        if blind := sorted(worker for worker, found in sees.items() if not found):
            raise InputError(f"--scheduler {address}: worker {blind[0]} does not see the folder {sweep_dir}")
        threads = sum(client.nthreads().values())
    except BaseException:
        client.close()
        raise
    if not threads:
        client.close()
        raise InputError(f"--scheduler {address}: no workers yet; start one: dask worker {address} --nthreads 1")
    open_to_all = "" if address.startswith("tls://") or _is_local(address) else ", without TLS"
    words = f"{threads} at a time on {len(sees)} Dask worker{'s' * (len(sees) > 1)}{open_to_all}"
    return Cluster(client, threads), words


def _is_local(address: str) -> bool:
    """Whether a scheduler listens on this machine alone, as its address says."""
    host = address.rpartition("://")[2].rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d+){3}", host) is not None


def _check_certificates(address: str) -> None:
    """Refuse tls:// without certificates, with which Dask's client would neither start nor end."""
    if not address.startswith("tls://"):
        return
    from distributed.security import Security

    try:
        context = Security().get_connection_args("client").get("ssl_context")
    except (OSError, ValueError) as problem:  # no such file, no certificate in it
        raise InputError(f"--scheduler {address}: its certificates cannot be read ({first_line(problem)})") from None
    if context is None:
        names = "DASK_DISTRIBUTED__COMM__TLS__CA_FILE and DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT"
        raise InputError(
            f"--scheduler {address}: tls needs certificates: set {names} (see fruitlib/sweep/executors.py)"
        )


def _asked(client, address: str, folder: str) -> dict[str, bool]:
    """Which workers see a folder, by their addresses."""
    try:
        return client.run(_sees, folder)
    except Exception as problem:  # whatever a worker raises comes back as it is
        why = f"its workers cannot use fruitlib ({first_line(problem)}): install it where they run"
        raise InputError(f"--scheduler {address}: {why}") from None


def _sees(folder: str) -> bool:
    return os.path.isdir(folder)


class Cluster(Executor):
    """Dask's own executor, and the client behind it."""

    def __init__(self, client, width: int):
        self.client, self.width = client, width
        self._executor = client.get_executor(pure=False, retries=3)

    def submit(self, function: Callable, job: dict) -> Future:  # type: ignore[override]
        """Have `function(job)` called on a worker; on another one where that is lost."""
        return self._executor.submit(function, job)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let go of the cluster; runs under way go on, unless the stop file ends them."""
        with contextlib.suppress(Exception):  # a lost scheduler does not answer
            self._executor.shutdown(wait=wait)
        with contextlib.suppress(Exception):
            self.client.close(timeout=2)


class Kernel:
    """The kernel that notebooks are executed with; started when the first notebook needs it.

    `progress` is the sweep's terminal.
    """

    def __init__(self, progress, placed: str):
        self.progress, self.placed = progress, placed
        self._ready: list[tuple[str, str]] = []
        self._warming = threading.Thread(target=lambda: self._ready.append(kernelspec.ready()), daemon=True)
        self._announced = False

    def warm_up(self) -> None:
        """Start the imports of a warm kernel in the background."""
        if self._warming.ident is None:
            self._warming.start()

    def name(self) -> str:
        """Its name, `fruitlib-warm` or `python3`. The first call prints it, and where runs are executed."""
        self.warm_up()
        self.progress.doing = "starting a warm kernel"
        self._warming.join(WARM_TIMEOUT)
        self.progress.doing = ""
        late = f"was not there within {WARM_TIMEOUT:.0f} s" if self._warming.is_alive() else "could not be started"
        name, kernels = self._ready[0] if self._ready else ("python3", f"cold: the warm kernel {late}")
        if not self._announced:
            self._announced = True
            self.progress.say(f"{self.placed}; kernels: {kernels}")
        return name


def environment() -> dict[str, str]:
    """What a job on another machine must know of this one's environment."""
    cache = os.environ.get("FRUITLIB_CACHE")
    return {"FRUITLIB_CACHE": str(files.cache_dir())} if cache else {}
