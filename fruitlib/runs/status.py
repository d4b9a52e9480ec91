"""How far a sweep is, read from its folder."""

import contextlib
import csv
import time
from dataclasses import dataclass, field
from pathlib import Path

from fruitlib.core import files
from fruitlib.core.errors import InputError
from fruitlib.runs.run import WORKING

# The stages' shares of a small run's time. metrics is computed where there is no 03, or within it.
SHARES = {"02_train": 0.7, "metrics": 0.0, "03_metrics": 0.08, "04_gradcam": 0.1, "05_quantize": 0.12}
STALE = 20.0  # seconds after which an untouched marker shows that its process was killed
COLUMNS = ("run", "state", "epoch", "val", "left")


@dataclass
class RunStatus:
    """How far one run is."""

    name: str
    state: str  # pending | running | complete | failed | pruned
    stage: str = ""
    epoch: int = 0
    epochs: int = 0
    score: float | None = None  # of the last epoch, or the best one's where training is over
    share: float = 0.0  # of its work that is done, about
    left: float | None = None  # seconds, about
    error: str = ""

    @property
    def row(self) -> tuple[str, ...]:
        """Its cells in the table."""
        epoch = f"{self.epoch}/{self.epochs}" if self.epoch else ""
        score = "" if self.score is None else f"{self.score:.3f}"
        left = "" if self.left is None else clock(self.left)
        state = self.stage if self.state == "running" else self.state
        return (self.name, state, epoch, score, left)


@dataclass
class SweepStatus:
    """How far a sweep is: its runs, in its own order."""

    title: str = ""
    metric: str = "macro_f1"
    total: int = 0
    runs: list[RunStatus] = field(default_factory=list)

    def count(self, state: str) -> int:
        """Runs in this state."""
        return sum(run.state == state for run in self.runs)

    @property
    def line(self) -> str:
        """All runs in one line."""
        total, over = max(self.total, len(self.runs)), len(self.runs) - self.count("pending") - self.count("running")
        parts = [f"{over}/{total} runs"]
        parts += [f"{n} {state}" for state in ("running", "pruned", "failed") if (n := self.count(state))]
        return ", ".join(parts)


def read_sweep(sweep_dir: Path) -> dict:
    """`sweep.json`: its `runs` are a list of mappings with a `name`; title and `settings` are as they should be.

    Raises:
        FileNotFoundError: there is none.
        InputError: it is damaged.
    """
    path = sweep_dir / "sweep.json"
    sweep = files.read_json(path)
    runs = sweep.get("runs")
    whole = isinstance(sweep.get("title", ""), str) and isinstance(runs, list)
    if not whole or not all(map(_is_run, runs)):
        raise InputError(f"damaged (a list of runs was expected); {files.AGAIN}", place=files.display_path(path))
    return sweep


def _is_run(listed: object) -> bool:
    if not isinstance(listed, dict):
        return False
    return isinstance(listed.get("name"), str) and isinstance(listed.get("settings", {}), dict)


def load_status(sweep_dir: Path) -> SweepStatus:
    """The status of a sweep from its folder; without runs where none has begun."""
    try:
        sweep = read_sweep(sweep_dir)
        metric = sweep["choose_by"]
        runs = [load_run_status(sweep_dir / run["name"], run, metric) for run in sweep["runs"]]
        return SweepStatus(sweep["title"], metric, sweep.get("total", len(runs)), runs)
    except (OSError, ValueError, KeyError, TypeError):
        return SweepStatus(str(sweep_dir.name))


def load_run_status(folder: Path, known: dict, metric: str) -> RunStatus:
    """One run's status: `known` is what the sweep last recorded (name, state, epochs, error)."""
    status = RunStatus(known["name"], known["state"], epochs=known.get("epochs", 0), error=known.get("error") or "")
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
        marker = folder / WORKING
        if time.time() - marker.stat().st_mtime < STALE:
            working = files.read_json(marker)
            status.state, status.stage = "running", working["stage"]
            order = list(SHARES)
            if status.stage in order:
                status.share = sum(SHARES[stage] for stage in order[: order.index(status.stage)])
    if status.state == "pending" and (folder / "stages" / "02_train.json").is_file():  # a fold that waits for others
        status.share = SHARES["02_train"]
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
        with (folder / "history.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if status.state in ("running", "pruned", "complete"):
            status.epoch = int(rows[-1]["epoch"])
            scores = [float(row[f"val_{metric}"]) for row in rows]
            status.score = scores[-1] if status.stage == "02_train" else max(scores)
        if status.stage == "02_train" and status.epoch < status.epochs:
            status.share += SHARES["02_train"] * status.epoch / status.epochs
            training = float(rows[-1]["seconds"]) / status.epoch * status.epochs
            rest = (1 - SHARES["02_train"]) / SHARES["02_train"]
            status.left = training * (1 + rest) - float(rows[-1]["seconds"])
    return status


def in_order(status: SweepStatus) -> list[RunStatus]:
    """Runs in the order of the table: running, failed, ended, pending."""
    order = {"running": 0, "failed": 1, "complete": 2, "pruned": 2, "pending": 3}
    return sorted(status.runs, key=lambda run: order.get(run.state, 3))


def clock(seconds: float) -> str:
    """`4:05`, or `2:04:05` where it takes hours."""
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
