"""How a training can be followed: history.csv, the machine's load, mirrors in TensorBoard and W&B.

history.csv is the record. Mirrors repeat its numbers elsewhere; when one fails, training goes on without it.
"""

import contextlib
import importlib
import math
import numbers
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import torch

from fruitlib.core import files
from fruitlib.core.errors import InputError, first_line
from fruitlib.runs.run import Run
from fruitlib.training.messages import say

GB = 1e9
PATIENCE = 60.0  # seconds that W&B may take to begin, or to upload what is left at the end
LATER = "upload later: wandb login; wandb sync"


def write_history(run: Run, history: list[dict]) -> None:
    """`history.csv`, whole and atomic after every epoch."""
    files.write_csv(run.path / "history.csv", pd.DataFrame(history))


def seconds_per_epoch(history: pd.DataFrame) -> float:
    """The median time of an epoch, from the rows of `history.csv`."""
    return float(history["seconds"].diff().fillna(history["seconds"]).median())


class Meters:
    """The load that this process and its children put on the machine, from one `read` to the next.

    Processes of one training are not each other's children: each sees its own. `summary` says what cannot be measured.
    """

    def __init__(self, device: torch.device):
        self.device, self.summary = torch.device(device), ""
        self._busy, self._when = _cpu_seconds(_family()), time.monotonic()
        self._gpu_percent = self.device.type == "cuda" and self._driver_answers()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def read(self) -> dict[str, float]:
        """The load since the last read (the first: since this object was made).

        Returns:
            cpu_percent: processor time over time gone by; 100 is one core kept busy, two cores make 200.
            ram_gb: memory held now, 10⁹ bytes; pages of photos mapped from the cache count while they are in memory.
            gpu_percent: share of its last moments (a sixth of a second to a second) in which the GPU computed.
            gpu_gb: the most GPU memory that tensors took at a time, 10⁹ bytes.
            The last two only on a GPU, and gpu_percent only where NVIDIA's driver answers (else `summary` says so).
        """
        family, before, since = _family(), self._busy, self._when
        self._busy, self._when = _cpu_seconds(family), time.monotonic()
        seconds = sum(now - before.get(process, 0.0) for process, now in self._busy.items())
        values = {"cpu_percent": round(100 * seconds / max(self._when - since, 1e-3), 1)}
        values["ram_gb"] = round(_resident(family) / GB, 3)
        if self._gpu_percent:
            values["gpu_percent"] = float(torch.cuda.utilization(self.device))
        if self.device.type == "cuda":
            values["gpu_gb"] = round(torch.cuda.max_memory_allocated(self.device) / GB, 3)
            torch.cuda.reset_peak_memory_stats(self.device)
        return values

    def _driver_answers(self) -> bool:
        try:
            torch.cuda.utilization(self.device)
        except Exception as problem:  # pynvml's own errors, where it is there; torch's, where it is not
            self.summary = f"gpu_percent is left out: {first_line(problem)} (pip install nvidia-ml-py)"
            return False
        return True


def _family() -> list[psutil.Process]:
    return [psutil.Process(), *psutil.Process().children(recursive=True)]


def _cpu_seconds(family: list[psutil.Process]) -> dict[psutil.Process, float]:
    """Processor seconds each process has used in its life; the last seconds of one that ended meanwhile are lost."""
    used = {}
    for process in family:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            used[process] = times.user + times.system
    return used


def _resident(family: list[psutil.Process]) -> int:
    total = 0
    for process in family:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total


@dataclass(frozen=True)
class Mirror:
    """One place that rows are repeated to."""

    summary: str  # where they go
    log: Callable[[dict], None]
    close: Callable[[bool], None]  # its argument: whether training ended well


class Mirrors:
    """The trackers that `config.track` names, as a context: each row of history.csv goes to all of them.

    `history` has the epochs before a resumption, and is empty otherwise: they are not written again, unless the
    tracker is new to this run. Losses and scores are named `loss/train`, `loss/val` …, other columns as they are; the
    step is the epoch. A tracker that fails is dropped, and a line says why. All lines are printed and kept in
    `summary`.

    Raises:
        InputError: a tracker that is not installed.
    """

    def __init__(self, run: Run, history: list[dict]):
        self.summary: list[str] = []
        self._open: dict[str, Mirror] = {}
        for name in run.config.track:
            _require(name)
        for name in run.config.track:
            with self._dropped_if_it_fails(name):
                self._open[name] = {"tensorboard": _tensorboard, "wandb": _wandb}[name](run, history)
                self._say(self._open[name].summary)

    def __enter__(self) -> "Mirrors":
        return self

    def __exit__(self, kind, *_) -> None:
        self.close(well=kind is None)

    def log(self, row: dict) -> None:
        """Repeat one row of history.csv, a dict with `epoch`, in every tracker that still works."""
        for name in list(self._open):
            with self._dropped_if_it_fails(name):
                self._open[name].log(row)

    def close(self, well: bool = True) -> None:
        """Finish all files and uploads; waits at most a minute. `well`: training came to its end."""
        for name in list(self._open):
            with self._dropped_if_it_fails(name):
                self._open.pop(name).close(well)

    @contextlib.contextmanager
    def _dropped_if_it_fails(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as problem:  # whatever it is, training is worth more
            self._say(f"{name} stopped: {first_line(problem)}; history.csv goes on")
            if mirror := self._open.pop(name, None):
                with contextlib.suppress(Exception):
                    mirror.close(False)

    def _say(self, line: str) -> None:
        self.summary.append(line)
        say(line)


def scalars(row: dict) -> dict[str, float]:
    """The numbers of a history row by their names in trackers; text and missing values are left out."""
    values = {name: float(value) for name, value in row.items() if isinstance(value, numbers.Real) and name != "epoch"}
    return {re.sub(r"^(train|val)_(.+)$", r"\2/\1", name): v for name, v in values.items() if not math.isnan(v)}


def _require(name: str) -> None:
    """Refuse a tracker that is not installed; a folder of its name in the working directory does not count."""
    try:
        file = getattr(importlib.import_module(name), "__file__", None)
    except ImportError:
        file = None
    if not file:
        raise InputError(f"track = {name}: not installed; pip install 'fruitlib[track]', or set track: []") from None


def _tensorboard(run: Run, history: list[dict]) -> Mirror:
    """Event files in the run's `tensorboard` folder.

    After a resumption, a new file makes TensorBoard drop the epochs that come again.
    """
    from torch.utils.tensorboard import SummaryWriter

    folder = run.path / "tensorboard"
    if not history:
        shutil.rmtree(folder, ignore_errors=True)  # curves of another training
    known = folder.is_dir()
    writer = SummaryWriter(folder, purge_step=history[-1]["epoch"] + 1 if known and history else None)

    def log(row: dict) -> None:
        for name, value in scalars(row).items():
            writer.add_scalar(name, value, row["epoch"])
        writer.flush()

    if not known:
        settings = "\n".join(f"| {name} | {value} |" for name, value in run.config.model_dump().items())
        writer.add_text("settings", f"| setting | value |\n|---|---|\n{settings}", 0)
        for row in history:
            log(row)
    place = files.display_path(run.sweep_dir)
    return Mirror(f"TensorBoard follows: tensorboard --logdir '{place}'", log, lambda well: writer.close())


def _wandb(run: Run, history: list[dict]) -> Mirror:
    """A run in W&B: the sweep's name is the project's; online where somebody is logged in, else files to upload later.

    The files and the W&B run's id are in the run's `wandb` folder. A resumed training continues under that id (offline
    in a second folder, which `wandb sync` joins to the first); a restarted one gets a new id. W&B keeps the first
    values of an epoch that comes again; the recipe repeats itself, so they are the same.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # W&B's helper calls home with it, offline too
    import wandb

    record = run.path / "wandb" / "run_id.txt"
    known = bool(history) and record.is_file()
    if not known:
        files.write_text(record, uuid.uuid4().hex[:12] + "\n")

    def log(row: dict) -> None:
        tracked.log(scalars(row), step=row["epoch"])

    def close(well: bool) -> None:
        try:
            tracked.finish(exit_code=0 if well else 1)
        finally:
            _end_helper(wandb)

    try:
        mode, why = _wandb_mode(wandb)
        try:
            tracked = _wandb_run(wandb, run, mode, record)
        except wandb.errors.CommError as problem:
            if mode != "online" or "WANDB_MODE" in os.environ:
                raise
            _end_helper(wandb)  # it still holds the id
            mode, why = "offline", f"W&B cannot be reached: {first_line(problem)}; {LATER}"
            tracked = _wandb_run(wandb, run, mode, record)
        for row in [] if known else history:
            log(row)
    except BaseException:
        _end_helper(wandb)
        raise
    folders = f" '{files.display_path(record.parent)}'/offline-run-*" if why.endswith(LATER) else ""
    return Mirror(f"W&B follows, {mode} ({why}{folders})", log, close)


def _wandb_run(wandb, run: Run, mode: str, record: Path):
    return wandb.init(
        project=re.sub(r"[/\\#?%:]", "-", run.sweep_dir.name)[:128],
        name=run.name[:128],
        id=record.read_text(encoding="utf-8").strip(),
        resume="allow" if mode == "online" else None,
        config=run.config.model_dump(),
        dir=run.path,
        mode=mode,
        reinit="create_new",  # a run that the notebook's user has open is not ours to end
        settings=_wandb_settings(wandb),
    )


def _wandb_settings(wandb):
    """Numbers only: no console output, code, packages or machine in W&B, and nothing of W&B's in ours."""
    return wandb.Settings(
        silent=True,
        console="off",
        save_code=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        symlink=False,
        x_disable_stats=True,  # history.csv has them
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        x_transaction_log_flush_interval=1.0,  # seconds of rows that a killed machine may lose
        init_timeout=PATIENCE,
        finish_timeout=PATIENCE,
    )


def _wandb_mode(wandb) -> tuple[str, str]:
    """online or offline, and why: what $WANDB_MODE or W&B's own settings say, else whether somebody is logged in.

    Never prompts: a run in a batch has nobody to answer.

    Raises:
        InputError: $WANDB_MODE is online, and nobody is logged in.
    """
    mode = wandb.setup(wandb.Settings(silent=True)).settings.mode
    if mode not in ("online", "run"):
        return mode, "as W&B is set" if "WANDB_MODE" not in os.environ else f"$WANDB_MODE is {mode}"
    if wandb.login(prompt=False, verify=False):
        return "online", "logged in"
    if os.environ.get("WANDB_MODE"):
        raise InputError(f"$WANDB_MODE is {mode}, but nobody is logged in: run `wandb login`")
    return "offline", f"not logged in; {LATER}"


def _end_helper(wandb) -> None:
    """End W&B's helper process, unless a run of somebody else's needs it."""
    if wandb.run is None:
        wandb.teardown()
