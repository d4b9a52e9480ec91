"""One of several training processes: it joins the others, exchanges numbers with them, and ends when they do.

On one machine `distributed.launch` starts them. They meet through a file in a folder that only this user can open, and
talk over the loopback interface. Anybody on the machine may connect there, so each pair of processes first proves to
one another that it has read the key in that folder. Under torchrun, on several machines, nobody proves anything:
whoever reaches its ports can take part.

What processes exchange is tensors, and JSON as tensors: nothing that another process sends is unpickled.
"""

import contextlib
import hashlib
import hmac
import json
import os
import re
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from fruitlib.core import files, machine
from fruitlib.core.errors import InputError, first_line
from fruitlib.runs.run import Pruned, Run
from fruitlib.training import messages
from fruitlib.training.messages import say

FOLDER = "FRUITLIB_GROUP"  # environment variable: where the processes of one machine meet; not set by torchrun
RESTART = "FRUITLIB_RESTART"  # environment variable: how often the group was started again
KEY = "key"  # in that folder
FAILED = "train.error"  # in the run folder: why training failed, written by the first process to fail
# A process waits for others while rank 0 decodes photos, keeps heatmaps or writes to a slow disk; torch's own limit,
# half an hour, would end such a training. A process that is gone is noticed at once, whatever this is.
PATIENCE = timedelta(hours=2)
DIGEST = hashlib.sha256().digest_size


class Stranger(RuntimeError):
    """A process that does not know the group's key has taken the place of one that does."""


def from_first(value: Any) -> Any:
    """Rank 0's `value`, whatever JSON can hold, in every process; `value` itself where there is one process only."""
    if not dist.is_initialized():
        return value
    text = json.dumps(value).encode() if dist.get_rank() == 0 else b""
    length = torch.tensor([len(text)])
    dist.broadcast(length, src=0)
    content = _tensor(text) if text else torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(content, src=0)
    return json.loads(_bytes(content))


def all_rows(own: torch.Tensor | None, counts: list[int]) -> list[torch.Tensor]:
    """Every process's rows, in the order of ranks, in every process.

    Args:
        own: this process's rows, float32 (counts[rank], columns); None where it has none. Rank 0 has some.
        counts: the number of rows of each process.
    """
    columns = from_first(None if own is None else own.shape[1])
    padded = torch.zeros(max(counts), columns)  # all_gather wants the same shape of all
    if own is not None:
        padded[: len(own)] = own
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return [rows[:count] for rows, count in zip(gathered, counts, strict=True)]


def check_same_epoch(epoch: int) -> None:
    """Stop where processes would resume after different epochs.

    Raises:
        InputError: on a shared folder, one machine does not see yet what another has written.
    """
    if not dist.is_initialized():
        return
    epochs = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(epochs, torch.tensor([epoch]))
    if len(read := sorted({int(one) for one in epochs})) > 1:
        raise InputError(f"last.pt: machines read different epochs from it ({read}); start again later")


def raise_on_all_ranks(check: Callable[[], None]) -> None:
    """Call `check` in rank 0, and raise its `runs.Pruned` in all ranks: each alone might look a moment too early."""
    reason = ""
    if machine.rank() == 0:
        try:
            check()
        except Pruned as pruned:
            reason = str(pruned)
    if reason := from_first(reason):
        raise Pruned(reason)


def _tensor(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.numpy().tobytes()


# ---- joining


def join(backend: str) -> None:
    """Join the other processes: through the private folder where there is one, else as torchrun says.

    Raises:
        Stranger: one of the others does not know the key.
    """
    if folder := os.environ.get(FOLDER):
        world_size = machine.world_size()
        store = dist.FileStore(f"{folder}/store.{os.environ.get(RESTART, 0)}", world_size)
        dist.init_process_group(backend, store=store, rank=machine.rank(), world_size=world_size, timeout=PATIENCE)
        check_members(Path(folder, KEY).read_bytes())
    else:
        dist.init_process_group(backend, timeout=PATIENCE)


def check_members(key: bytes) -> None:
    """Prove to each other process that this one knows `key`, and have each prove it; every pair by its own connection.

    Each sends the other a random question, and answers with HMAC-SHA256 (RFC 2104) of the question and both ranks.

    Raises:
        Stranger: one of the others does not know it.
    """
    me, ranks = dist.get_rank(), range(dist.get_world_size())
    questions = [os.urandom(DIGEST) for _ in ranks]
    asked = _exchanged(questions)
    answers = _exchanged([_proof(key, me, other, asked[other]) for other in ranks])
    for other in ranks:
        if not hmac.compare_digest(answers[other], _proof(key, other, me, questions[other])):
            raise Stranger(f"a process outside the group answers as process {other}: training stops")


def _proof(key: bytes, sender: int, receiver: int, question: bytes) -> bytes:
    return hmac.digest(key, f"{sender} {receiver} ".encode() + question, "sha256")


def _exchanged(texts: list[bytes]) -> list[bytes]:
    """Text i goes to process i; returns what each has sent to this one. All of `DIGEST` bytes."""
    sent = _tensor(b"".join(texts))
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent)
    return [_bytes(part) for part in received.split(DIGEST)]


# ---- a process's life


def worker(work: Callable[[], None]) -> None:
    """One process's life around `work`, the training of the run folder that is its program's argument.

    Rank 0 holds the run's lock, unless its starter does; a run that is trained already is left alone. An exception in
    `work` is written into `train.error`, unless another process was first, and ends this one. An exception that
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
            if not run.is_complete("train"):  # else a process was lost after all was done
                work()
            dist.barrier()
        dist.destroy_process_group()
    except Exception as problem:
        _fail(run, problem)
    _leave(0)


def _meet(run: Run, first: bool) -> None:
    """Join the other processes; all end again if one of them has written to `train.error`."""
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    if first and not restarts and FOLDER not in os.environ:
        # An earlier start's. In this one nobody writes it before all have joined.
        (run.path / FAILED).unlink(missing_ok=True)
    enough_gpus = torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    if enough_gpus:
        torch.cuda.set_device(machine.device())
    join("cpu:gloo,cuda:nccl" if enough_gpus else "gloo")
    if reason := failure_of(run):
        messages.failed(reason)
        _leave(1)
    if restarts:
        say(f"a process was lost: all start again (restart {restarts} of {_max_restarts()})")


def failure_of(run: Run) -> str:
    """What the first process to fail has written; empty where none has."""
    path = run.path / FAILED
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""


def _fail(run: Run, problem: Exception) -> None:
    """Report why this process ends, to all if it is its own failure, and end it."""
    traceback.print_exc()
    if not is_echo(problem):
        reason = f"{type(problem).__name__}: {first_line(problem)}"  # of CUDA's many lines the first matters
        with contextlib.suppress(OSError), (run.path / FAILED).open("x", encoding="utf-8") as file:
            file.write(reason)  # "x": only the first process to fail can
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
            "--max-restarts: restarted processes would wait for ever; export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 first"
        )


def _max_restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))


def _leave_with_starter() -> None:
    """End this process when the one that started it (`distributed.launch`, torchrun's agent) is gone.

    That one may be killed outright, without a chance to end others.
    """
    starter = messages.starter() or os.getppid()

    def watch() -> None:
        while os.getppid() == starter:
            time.sleep(1)
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
        if folder := os.environ.get(FOLDER):
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
