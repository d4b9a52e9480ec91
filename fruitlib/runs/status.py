"""How far a sweep is, read from its folder."""

import contextlib
import csv
import time
from dataclasses import dataclass, field
from pathlib import Path

from fruitlib.core import files, progress, texts
from fruitlib.core.errors import InputError
from fruitlib.runs.run import WORKING

PROGRESS = ".progress.json"  # of a sweep: how far it is, and until when it takes, by the process that executes it
STALE = 20.0  # seconds after which an untouched marker shows that its process was killed


@dataclass
class RunStatus:
    """How far one run is."""

    name: str
    state: str  # pending | running | complete | failed | pruned
    stage: str = ""
    epoch: int = 0
    epochs: int = 0
    score: float | None = None  # of the last epoch; of the kept one where training is over
    part: float = 0.0  # of the epoch under way that is done, where it is a long one
    doing: str = ""  # what the stage does that takes long, such as a download
    since: float = 0.0  # when the stage began (`time.time`)
    seconds: list[float] = field(default_factory=list)  # of training at the end of each epoch
    changed: float = 0.0  # when the last epoch ended
    left: float | None = None  # seconds, about, as the sweep that executes it says
    error: str = ""

    @property
    def row(self) -> tuple[str, ...]:
        """Its cells in the table."""
        epoch = f"{self.epoch}/{self.epochs}" if self.epoch else ""
        if self.part:
            epoch = f"{self.epoch}/{self.epochs} · {self.part:.0%}"
        score = "" if self.score is None else f"{self.score:.3f}"
        left = "" if self.left is None else clock(self.left)
        state = self.doing or self.stage if self.state == "running" else self.state
        return (self.name, state, epoch, score, left)


@dataclass
class SweepStatus:
    """How far a sweep is: its runs, in its own order."""

    title: str = ""
    metric: str = "macro_f1"
    total: int = 0
    runs: list[RunStatus] = field(default_factory=list)
    doing: str = ""  # of what belongs to no run: 01_split, 07_compare, report ...
    elapsed: float | None = None  # seconds since the process that executes it began; None: none does
    left: float | None = None  # seconds, about; None: not known yet
    share: float = 0.0  # of the time from its beginning to its end that has passed

    def count(self, state: str) -> int:
        """Runs in this state."""
        return sum(run.state == state for run in self.runs)

    @property
    def headings(self) -> tuple[str, ...]:
        """Of the columns of the table of its runs (`RunStatus.row`)."""
        return "run", "state", "epoch", f"val {texts.measure_name(self.metric)}", "left"

    @property
    def line(self) -> str:
        """All runs in one line."""
        total, over = max(self.total, len(self.runs)), len(self.runs) - self.count("pending") - self.count("running")
        parts = [f"{over}/{total} runs"]
        parts += [f"{n} {state}" for state in ("running", "pruned", "failed") if (n := self.count(state))]
        return ", ".join(parts)

    @property
    def times(self) -> str:
        """What is being done beside the runs, and the time it has taken and takes; empty where nothing goes on."""
        if self.elapsed is None:
            return self.doing
        parts = [self.doing] * bool(self.doing) + [f"{clock(self.elapsed)} elapsed"]
        return " · ".join(parts + ([] if self.left is None else [f"{clock(self.left)} left"]))


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
    status = load_runs(sweep_dir)
    _add_progress(status, _fresh(sweep_dir / PROGRESS))
    return status


def load_runs(sweep_dir: Path) -> SweepStatus:
    """The status without what the process that executes the sweep says about times."""
    try:
        sweep = read_sweep(sweep_dir)
        metric = sweep["choose_by"]
        runs = [load_run_status(sweep_dir / run["name"], run, metric) for run in sweep["runs"]]
        status = SweepStatus(sweep["title"], metric, sweep.get("total", len(runs)), runs)
    except (OSError, ValueError, KeyError, TypeError):
        status = SweepStatus(str(sweep_dir.name))
    status.doing = _fresh(sweep_dir / WORKING).get("stage", "")
    return status


def _add_progress(status: SweepStatus, noted: dict) -> None:
    """Add what the process that executes the sweep says about times."""
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
        status.doing = noted.get("doing") or status.doing
        status.left = None if noted["left"] is None else float(noted["left"])
        status.elapsed, status.share = float(noted["elapsed"]), float(noted["share"])
        for run in status.runs:
            run.left = noted["runs"].get(run.name) if run.state == "running" else None


def save_progress(sweep_dir: Path, status: SweepStatus) -> None:
    """Write down what `load_status` reads about times; called by the process that executes the sweep.

    Raises:
        OSError: it cannot be written.
    """
    noted = {name: getattr(status, name) for name in ("doing", "elapsed", "left", "share")}
    noted["runs"] = {run.name: run.left for run in status.runs if run.left is not None}
    files.write_json(sweep_dir / PROGRESS, noted)


def _fresh(path: Path) -> dict:
    """The content of a file that its process touches every few seconds; empty where that has ended."""
    with contextlib.suppress(OSError, ValueError):
        if time.time() - path.stat().st_mtime < STALE:
            return files.read_json(path)
    return {}


def load_run_status(folder: Path, known: dict, metric: str) -> RunStatus:
    """One run's status: `known` is what the sweep last recorded (name, state, epochs, error)."""
    status = RunStatus(known["name"], known["state"], epochs=known.get("epochs", 0), error=known.get("error") or "")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        if working := _fresh(folder / WORKING):
            status.stage, status.since = working["stage"], float(working.get("since", 0))
            status.state = "running"
    if status.state in ("running", "pruned", "complete"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):
            _add_history(status, folder, metric)
    if status.state == "running":
        _add_long_work(status, folder / progress.FILE)
    return status


def _add_history(status: RunStatus, folder: Path, metric: str) -> None:
    """Add what `history.csv` says: epochs with their seconds, all or none of it, and the score where there is one."""
    path = folder / "history.csv"
    changed = path.stat().st_mtime
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    seconds = [float(row["seconds"]) for row in rows]
    status.epoch, status.seconds, status.changed = int(rows[-1]["epoch"]), seconds, changed
    trained = {} if status.stage == "02_train" else files.read_json(folder / "stages" / "train.json", {})
    row = rows[trained.get("kept_epoch", 0) - 1]  # while it trains, the last one
    status.score = float(row[f"val_{metric}"])


def _add_long_work(status: RunStatus, path: Path) -> None:
    """Add what a stage says about long work in it (`core.progress`), unless a stage before it has left that."""
    with contextlib.suppress(OSError, KeyError, TypeError, ValueError):
        noted, written = files.read_json(path), path.stat().st_mtime
        what, own = f"{noted['what']}", written >= status.since
        if "share" not in noted:  # a step, of which there is no other note until the next one
            status.doing = what if own else ""
            return
        share = min(1.0, max(0.0, float(noted["share"])))
        if what == progress.EPOCH:
            status.part = share if own and status.stage == "02_train" and noted["number"] == status.epoch + 1 else 0.0
        elif time.time() - written < STALE:
            status.doing = f"{what} {share:.0%}"


def in_order(status: SweepStatus) -> list[RunStatus]:
    """Runs in the order of the table: running, failed, ended, pending."""
    order = {"running": 0, "failed": 1, "complete": 2, "pruned": 2, "pending": 3}
    return sorted(status.runs, key=lambda run: order.get(run.state, 3))


def clock(seconds: float) -> str:
    """`4:05`, or `2:04:05` where it takes hours."""
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
