"""Several training processes under torchrun: started, followed, started again when one is lost, none left behind.

On one machine `launch` does it all. When a worker is lost (killed, out of memory, its GPU gone), torchrun starts the
whole group again and training resumes from `last.pt`. A failure that would come again (a photo that does not open,
a loss that is NaN, any exception in the recipe) is not tried again: the first worker to fail writes its reason into
`train.error`, and all workers end.

On several machines with one shared folder, torchrun is started by hand. Execute 02_train on one of them up to "How
does it learn?": it divides the photos and writes the run folder. Then, on every machine:

    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    python -m torch.distributed.run --nnodes=2 --nproc-per-node=1 --max-restarts=3 --rdzv-backend=c10d \\
        --rdzv-endpoint=HOST:29400 -m fruitlib.training.train executed/dev/run

HOST is one of the machines, the same everywhere. Only the worker of rank 0 writes to the run folder, and holds its
lock. The rest of 02 then finds the run trained. `processes` in the params does not matter here: `batch_size` counts
images over all processes, so results do not depend on how many share the work (but for BatchNorm, which normalises by
each process's own share of a batch; rank 0's statistics are evaluated and kept). FRUITLIB_CACHE names a disk of each
machine's own for decoded photos. Where the machines have several networks, GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME for
GPUs) says which to use.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pandas as pd
import psutil
import torch
import torch.distributed as dist

from fruitlib.core import files, machine, progress
from fruitlib.core.errors import InputError, first_line
from fruitlib.runs.run import Pruned, Run
from fruitlib.training import messages
from fruitlib.training.messages import say

OnEpoch = Callable[[pd.DataFrame], None]
# A training of days may lose a worker now and then; one that loses a fourth has a fault that another start won't mend.
MAX_RESTARTS = 3
FAILED = "train.error"  # in the run folder: why training failed, written by the first worker to fail
SCRAPS = ".torchrun"  # in the run folder: what torchrun would leave behind among the system's temporary files
# What several processes take beyond what one does, mostly to load torch and torchvision in torchrun and in each worker.
# Measured on two cores: two processes 8 to 9 s, four 14 s, beside other heavy work up to 15 s.
START_SECONDS = 10
WORTH_IT = 0.8  # several processes must promise to save a fifth of the time; exchanging gradients costs some of it
# A worker waits for others while rank 0 decodes photos, keeps heatmaps or writes to a slow disk; torch's own limit,
# half an hour, would end such a training. A worker that is gone is noticed at once, whatever this is.
PATIENCE = timedelta(hours=2)


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
    """Train in `processes` children under torchrun; print their messages and call `on_epoch` after each epoch.

    Whatever ends this call (an error, an interrupted cell) ends the children too.

    Raises:
        RuntimeError: the children failed; one line says why, and where their log is.
    """
    processes, error_file = run.config.processes, run.path / FAILED
    threads = max(1, torch.get_num_threads() // processes)
    mark = f"{os.getpid()}:{time.time_ns()}"  # who started them and when: in the environment of them all
    say(f"starting {processes} processes with {threads} thread{'s' if threads > 1 else ''} each")
    error_file.unlink(missing_ok=True)
    child = _start_agent(run, processes, threads, mark)
    try:
        error = _follow(child, mark, run, on_epoch)
        if child.wait() or error:
            log = run.path / "train.log"
            reason = _read_text(error_file) or error or _how_lost(_read_text(log), child.returncode)
            where = files.display_path(log)
            raise RuntimeError(f"training in {processes} processes failed: {reason} (log: {where})")
    finally:
        end_tree(child, mark=mark)
        child.stdout.close()
        error_file.unlink(missing_ok=True)
        shutil.rmtree(run.path / SCRAPS, ignore_errors=True)


def _start_agent(run: Run, processes: int, threads: int, mark: str) -> subprocess.Popen:
    """torchrun, in a session of its own: an interrupt from the terminal must reach `launch` alone."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    command += [f"--nproc-per-node={processes}", f"--max-restarts={MAX_RESTARTS}", f"--log-dir={run.path / SCRAPS}"]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        messages.STARTER: mark,
        "FRUITLIB_HOME": str(files.home()),
        # A store that outlives the workers still has the lost ones' addresses, and a restarted group waits for them
        # (pytorch issue 135712; seen with 2.15).
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8", "errors": "replace"}
    command += ["-m", "fruitlib.training.train", str(run.path)]
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def _follow(child: subprocess.Popen, mark: str, run: Run, on_epoch: OnEpoch, patience: float = 10) -> str:
    """Until the children are gone, write all their output to `train.log` and act on their messages.

    A helper that outlives torchrun by more than `patience` seconds (W&B starts one) is ended: it would keep us here.

    Returns:
        the first reason a worker gave for a failure that would come again; empty where there was none.
    """
    error = ""
    threading.Thread(target=lambda: (child.wait(), end_tree(child, patience, mark)), daemon=True).start()
    with (run.path / "train.log").open("w", encoding="utf-8") as log:
        for line in child.stdout:
            message = messages.parse(line)
            if message is None:
                log.write(line)
                continue
            kind, text = message
            log.write(text + "\n")
            if kind == messages.ERROR:
                error = error or text
                child.terminate()  # another try would fail likewise
                continue
            say(text)
            if kind == messages.EPOCH:
                on_epoch(run.history())
    return error


def _read_text(path: Path) -> str:
    """A text file without its last line break; empty where there is none."""
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""


def _how_lost(log: str, code: int) -> str:
    """How workers ended that could not give a reason themselves.

    torchrun says so only in its log, whose wording (torch 2.15) is therefore searched; where that has changed, its own
    exit code is all there is to report.
    """
    exit_codes = [int(digits) for digits in re.findall(r"failed \(exitcode: (-?\d+)\)", log)]
    if not exit_codes:
        return f"torchrun ended {_ending(code)}"
    hint = "; often too little memory" if exit_codes[-1] == -signal.SIGKILL else ""
    return f"a worker was lost {len(exit_codes)} times, last {_ending(exit_codes[-1])}{hint}"


def _ending(code: int) -> str:
    """A process's exit code in words."""
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


def check_same_epoch(epoch: int) -> None:
    """Stop where workers would resume after different epochs.

    Raises:
        InputError: on a shared folder, one machine does not see yet what another has written.
    """
    if not dist.is_initialized():
        return
    epochs = [None] * dist.get_world_size()
    dist.all_gather_object(epochs, epoch)
    if len(set(epochs)) > 1:
        raise InputError(f"last.pt: machines read different epochs from it ({sorted(set(epochs))}); start again later")


def raise_on_all_ranks(check: Callable[[], None]) -> None:
    """Call `check` in rank 0, and raise its `runs.Pruned` in all ranks: each alone might look a moment too early."""
    reason = [None]
    if machine.rank() == 0:
        try:
            check()
        except Pruned as pruned:
            reason = [str(pruned)]
    if dist.is_initialized():
        dist.broadcast_object_list(reason, src=0, device=torch.device("cpu"))
    if reason[0]:
        raise Pruned(reason[0])


def end_tree(child: subprocess.Popen, patience: float = 10, mark: str = "") -> None:
    """End a torchrun agent and its workers, which live in sessions of their own: ask first, then kill.

    An agent that died first has no children any more; `mark`, their FRUITLIB_STARTER, finds its workers all the same.
    """
    workers = _workers(child, mark)
    try:
        if child.poll() is None:
            child.terminate()  # the agent passes this on to its workers
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(patience)
        psutil.wait_procs(workers, timeout=patience)
    finally:  # also when a second interrupt ends the waiting
        for process in {*workers, *_workers(child, mark)}:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        child.kill()
        child.wait()


def _workers(child: subprocess.Popen, mark: str) -> set[psutil.Process]:
    """All processes below `child`, and all whose FRUITLIB_STARTER is `mark`."""
    workers = set()
    with contextlib.suppress(psutil.NoSuchProcess):
        workers |= set(psutil.Process(child.pid).children(recursive=True))
    for process in psutil.process_iter() if mark else ():
        with contextlib.suppress(psutil.Error):  # over by now, or another person's
            if process.environ().get(messages.STARTER) == mark:
                workers.add(process)
    return {process for process in workers if process.pid != child.pid}


def worker(work: Callable[[], None]) -> None:
    """One torchrun worker's life around `work`, the training of the run folder that is its program's argument.

    Rank 0 holds the run's lock, unless its starter does; a run that is trained already is left alone. An exception in
    `work` is written into `train.error`, unless another worker was first, and ends this process. An exception that
    only echoes the end of another process is not written: the group then starts again.
    """
    _leave_with_starter()
    run, first = Run(files.resolve(sys.argv[1])), machine.rank() == 0
    try:
        _check_flags(run)
        _meet(run, first)
        with run.locked(timeout=30) if first else contextlib.nullcontext():  # a killed rank 0 may still hold it
            for partial in run.path.glob(".[blhp]*.*.*") if first else ():  # a killed rank 0's best, last …
                partial.unlink(missing_ok=True)
            if not run.is_complete("train"):  # else a worker was lost after all was done
                work()
            dist.barrier()
        dist.destroy_process_group()
    except Exception as problem:
        _fail(run, problem)
    _leave(0)


def _meet(run: Run, first: bool) -> None:
    """Join the other workers; all end again if one of them has written to `train.error`."""
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    if first and not restarts:
        (run.path / FAILED).unlink(
            missing_ok=True
        )  # an earlier start's: in this one nobody writes it before all have joined
    enough_gpus = torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    if enough_gpus:
        torch.cuda.set_device(machine.device())
    dist.init_process_group("cpu:gloo,cuda:nccl" if enough_gpus else "gloo", timeout=PATIENCE)
    if reason := _read_text(run.path / FAILED):
        messages.failed(reason)
        _leave(1)
    if restarts:
        say(f"a worker was lost: all start again (restart {restarts} of {_max_restarts()})")


def _fail(run: Run, problem: Exception) -> None:
    """Report why this worker ends, to all if it is its own failure, and end it."""
    traceback.print_exc()
    if not is_echo(problem):
        reason = f"{type(problem).__name__}: {first_line(problem)}"  # of CUDA's many lines the first matters
        with contextlib.suppress(OSError), (run.path / FAILED).open("x", encoding="utf-8") as file:
            file.write(reason)  # "x": only the first worker to fail can
        messages.failed(reason)
    _leave(1)


def _leave(code: int) -> None:
    """End this process at once.

    Where the group is broken, tidying up may hang; where all is done, Python takes three seconds over it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_echo(problem: BaseException | None) -> bool:
    """Whether this is what a process sees when another one of its group is gone, and no failure of its own.

    NCCL, the store and the network have torch's own class DistError. Gloo's errors arrive as plain RuntimeErrors whose
    text begins with the place in Gloo's sources (torch 2.15). What was raised while such an error was handled counts.
    """
    if problem is None:
        return False
    gloo = type(problem) is RuntimeError and re.match(r"\[\S*gloo/", str(problem)) is not None
    return gloo or isinstance(problem, dist.DistError) or is_echo(problem.__cause__ or problem.__context__)


def _check_flags(run: Run) -> None:
    """Refuse what torchrun's flags, given by hand, may get wrong.

    Raises:
        InputError: batches too small for so many processes; restarts that would wait for ever.
    """
    processes, batch_size = machine.world_size(), run.config.batch_size
    if batch_size < 2 * processes > 2:
        raise InputError(f"batch_size = {batch_size}: too small for {processes} processes (at least 2 images each)")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and _max_restarts():
        raise InputError(
            "--max-restarts: restarted workers would wait for ever; export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 first"
        )


def _max_restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))


def _leave_with_starter() -> None:
    """End this worker when torchrun's agent, or the process that started the agent, is gone.

    Either may be killed outright, without a chance to end others. An agent left alone would start its workers again,
    so it is killed too; it keeps nothing that could be harmed.
    """
    agent, mark = os.getppid(), os.environ.get(messages.STARTER, "")  # no mark: torchrun was started by hand
    starter = int(mark.partition(":")[0] or 0)

    def watch() -> None:
        with contextlib.suppress(psutil.Error):
            while os.getppid() == agent and (not mark or psutil.Process(agent).ppid() == starter):
                time.sleep(1)
            if mark and os.getppid() == agent:
                same = psutil.Process(agent).environ().get(messages.STARTER) == mark  # not a process adopting orphans
                if same:
                    os.kill(agent, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
