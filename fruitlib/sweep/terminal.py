"""A sweep while it runs, read from its folder: a live table and a bar on the terminal; in the end, its results.

What is shown of runs comes from files alone (`sweep.json`, each run's `.working.json` and `history.csv`), so another
process, or a notebook (`widgets.live`), sees the same of a sweep that runs here, elsewhere, or on several machines. The
time left is guessed here (`runs.outlook`), and written into the sweep's `.progress.json` for the others.
"""

import contextlib
import sys
import threading
import time
from pathlib import Path

import pandas as pd
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fruitlib.core import files, texts
from fruitlib.core.errors import first_line
from fruitlib.core.texts import printable, show
from fruitlib.evaluation import ranking
from fruitlib.evaluation.effects_wording import leading_effects_text
from fruitlib.evaluation.selection import SelectionOptimism
from fruitlib.evaluation.sweep_answers import load_effects
from fruitlib.evaluation.wording import choice_text, tie_text
from fruitlib.runs.outlook import Outlook
from fruitlib.runs.run import Run
from fruitlib.runs.status import PROGRESS, SweepStatus, in_order, load_runs, save_progress
from fruitlib.sweep.final_model import TEST_STAGE
from fruitlib.sweep.params import Sweep

BELOW = 3  # lines of the terminal under the table: the bar, and two for the line in words
PRINT_EVERY, SAVE_EVERY = 30.0, 3.0  # seconds between lines where there is no terminal, and between files
COLOURS = {"running": "cyan", "complete": "green", "failed": "red", "pruned": "yellow", "pending": "bright_black"}


def table(status: SweepStatus, rows: int) -> Table:
    """The runs as a table of at most `rows` rows."""
    shown = in_order(status)[:rows]
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in status.headings:
        plain = {"run": {"overflow": "fold"}}.get(heading, {"no_wrap": True})
        drawn.add_column(heading, justify="left" if heading in ("run", "state") else "right", **plain)
    for run in shown:
        name, state, *rest = run.row
        drawn.add_row(Text(printable(name)), Text(state, COLOURS.get(run.state, "")), *map(Text, rest))
    if len(status.runs) > len(shown):
        drawn.add_row(Text(f"… and {len(status.runs) - len(shown)} more", "bright_black"))
    return drawn


def screen(status: SweepStatus, console: Console) -> Group:
    """The table, cut to what the terminal has room for, and under it the bar and the line in words."""
    room = max(2, console.size.height - BELOW - 1)
    rows = room - 1
    while rows > 1 and (excess := len(console.render_lines(table(status, rows))) - room) > 0:
        rows = max(1, rows - excess)  # long names take several lines
    return Group(table(status, rows), bar(status), Text(line(status)))


def bar(status: SweepStatus) -> Table:
    """How much of the sweep's time has passed; a moving bar before that can be guessed."""
    drawn = Table.grid(padding=(0, 1, 0, 0), expand=True)
    drawn.add_column(ratio=1)
    drawn.add_column(justify="right", no_wrap=True)
    known = status.left is not None
    drawn.add_row(ProgressBar(1, status.share, pulse=not known), f"{status.share:.0%}" if known else "")
    return drawn


def line(status: SweepStatus) -> str:
    """The sweep in one line, with the time it has taken and what is left of it."""
    return " · ".join(part for part in (status.line, status.times) if part)


class Terminal:
    """Shows a sweep while it runs: a live table on a terminal, lines where there is none."""

    def __init__(self, plan: Sweep, sweep_dir: Path):
        extra = bool(plan.config.folds) and plan.ship != "fold"  # the run of the model that is shipped
        self.total = plan.search.trials if plan.search else len(plan.runs) + extra
        self.sweep_dir, self.started, self.doing = sweep_dir, time.monotonic(), ""
        self.outlook = Outlook(sweep_dir)
        self._share = self._saved = 0.0
        self._printed = time.monotonic()  # when the last line was
        self._console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
        self._live: Live | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Terminal":
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Stop; what is printed next starts on a new line."""
        if not self._closed.is_set():
            self._closed.set()
            self._thread.join()
            with contextlib.suppress(OSError):
                (self.sweep_dir / PROGRESS).unlink(missing_ok=True)
            self._stop_live()

    def photos(self, done: int, total: int) -> None:
        """Show how many photos are drawn or checked so far."""
        self.doing = f"photos {done}/{total}" if done < total else ""

    def say(self, text: str) -> None:
        """Print a line that stays; what would steer the terminal is shown."""
        self._console.print(Text(printable(text)))

    def _watch(self) -> None:
        took, reported = 0.0, False
        pause = 0.5 if self._live else SAVE_EVERY
        while not self._closed.wait(max(pause, 10 * took)):  # of thousands of runs it takes a while to read
            began = time.monotonic()
            try:
                self._look(began)
            except (OSError, ValueError):  # a full disk, a folder that is being removed: another thread reports it
                pass
            except Exception as problem:  # an error of ours, or of rich: no reason to lose the sweep
                self._stop_live()
                if not reported:
                    why = f"{type(problem).__name__}: {first_line(problem)}"
                    self.say(f"progress cannot be shown ({why}); the sweep goes on without it")
                reported = True
            took = time.monotonic() - began

    def _look(self, now: float) -> None:
        """Read the status; write it down for others and show it, where it is time to."""
        status = self.status()
        if now - self._saved >= SAVE_EVERY:
            self._saved = now
            save_progress(self.sweep_dir, status)
        if self._live:
            self._live.update(screen(status, self._console), refresh=True)
        elif now - self._printed >= PRINT_EVERY:
            self._printed = now
            self.say(line(status))

    def _stop_live(self) -> None:
        """End the live table; lines take its place."""
        live, self._live = self._live, None
        if live:
            with contextlib.suppress(Exception):
                live.stop()

    def status(self) -> SweepStatus:
        """The status of the sweep now, with what is left of it."""
        status = load_runs(self.sweep_dir)
        status.total, status.elapsed = self.total, time.monotonic() - self.started
        idle = not status.count("running")  # the report is written while runs are executed, too
        status.doing = self.doing or (self.outlook.doing if idle else "") or status.doing
        status.left, of_runs = self.outlook.left(status.runs, time.time())
        for run in status.runs:
            run.left = of_runs.get(run.name)
        if status.left is not None:
            whole = status.elapsed + status.left
            self._share = max(self._share, status.elapsed / whole if whole else 0.0)
        status.share = self._share
        return status


def result_line(run: Run, stages: tuple[str, ...]) -> str:
    """The result of a run's stages in a few words, for the terminal."""
    if stages == (TEST_STAGE,):
        numbers = run.read_json("test.json")["numbers"]
        accuracy, low, high, n = (numbers[f"test_{name}"] for name in ("accuracy", "low", "high", "n"))
        return f"test accuracy {accuracy:.3f} ({low:.2f}–{high:.2f}, n = {n})"
    if "02_train" not in stages:
        return " and ".join(stages)
    metrics = run.read_json("metrics.json")
    if not metrics:
        return "complete"
    interval = f"{metrics['accuracy_low']:.2f}–{metrics['accuracy_high']:.2f}"
    return f"macro-F1 {metrics['macro_f1']:.3f}, accuracy {metrics['accuracy']:.3f} ({interval}, n = {metrics['n']})"


def print_results(plan: Sweep, sweep_dir: Path, summary: dict) -> None:
    """The small table a sweep ends with, what is shipped, and what failed."""
    table = files.read_csv(sweep_dir / "results.csv")
    complete = table[(table["state"] == "complete") & table["run"].isin(plan.runs)]
    shown, photos = complete.assign(name=complete["run"]), "validation photos"
    if plan.config.folds and len(pooled := _read_table(sweep_dir / "results_oof.csv")):
        timed = "train_seconds" in complete  # not where no run is complete
        seconds = complete.groupby("combination")["train_seconds"].sum() if timed else {}
        shown = pooled.assign(name=pooled["combination"], train_seconds=pooled["combination"].map(seconds))
        photos = "photos, each predicted by a fold's model"
    measures = {texts.measure_name("macro_f1"): "macro_f1"}
    if plan.choose_by not in ("macro_f1", "accuracy"):
        measures[texts.measure_name(plan.choose_by)] = plan.choose_by
    if len(shown):
        width = max(map(len, shown["name"]))
        heads = ["run".ljust(width), *measures, "accuracy (95 % interval)", "training"]
        show(f"\n  {'  '.join(heads)}   on {int(shown['n'].iloc[0])} {photos}")
    for row in _best_first(shown, plan, summary["chosen"]):
        interval = f"{row['accuracy']:.3f} ({row['accuracy_low']:.2f}–{row['accuracy_high']:.2f})"
        star = "*" if row["name"] == summary["chosen"] else " "
        seconds = f"{row['train_seconds']:.0f} s" if row["train_seconds"] >= 0 else "unfinished"
        scores = [f"{row[name]:{len(head)}.3f}" for head, name in measures.items()]
        show(f"{star} {'  '.join([row['name'].ljust(width), *scores, f'{interval:24}', f'{seconds:>8}'])}")
    if summary.get("population"):
        show(f"\n{summary['population']}")
    if summary.get("beside_probe"):
        show(f"\n{summary['beside_probe']}")
    for line in leading_effects_text(load_effects(sweep_dir), plan.choose_by):
        show("\n" + line.replace("\n", "\n    "))
    if summary["shipped"] in set(table["run"]):  # another sweep on this folder may have written the table since
        show(f"\n* {_shipped(table.set_index('run').loc[summary['shipped']], summary)}")
        if tie := _tie(shown, plan, summary["chosen"]):
            show(f"  {tie}")
        for remark in summary.get("test_remarks", []):
            show(f"  {remark}")
    for run in summary["runs"]:
        if run["error"] and run["state"] != "pruned":
            show(f"\nfailed: {run['name']}: {run['error']}")


def _shipped(row: pd.Series, summary: dict) -> str:
    """Which model is shipped, how it was made, its expected accuracy, and its test accuracy."""
    choice = choice_text(SelectionOptimism(**summary.get("optimism", {})))
    parts = [f"chosen on validation ({choice})" if choice else "chosen on validation"]
    if made := summary.get("made"):
        expected = f"{row['oof_accuracy']:.3f} (95 % interval {row['oof_low']:.2f}–{row['oof_high']:.2f})"
        parts = [f"chosen on out-of-fold predictions{f' ({choice})' * bool(choice)}; shipped: {row.name}", made]
        parts += [f"expected accuracy: {expected}, that of its combination out of fold"]
    if row.get("test_n", 0) > 0:
        tested = f"{row['test_accuracy']:.3f} (95 % interval {row['test_low']:.2f}–{row['test_high']:.2f})"
        parts += [f"its {row['test_backend']} on {row['test_n']:.0f} test photos: accuracy {tested}"]
    return ("\n  " if made else "; ").join(parts)


def _tie(table: pd.DataFrame, plan: Sweep, chosen: str | None) -> str:
    """How the choice was made among the best of these rows, where several are; else ""."""
    rows = table.to_dict("records")
    winner = next((row for row in rows if row["name"] == chosen), None)
    return tie_text(rows, winner, plan.choose_by, "combination" if plan.config.folds else "run")


def _best_first(table: pd.DataFrame, plan: Sweep, chosen: str | None) -> list[dict]:
    """Rows from best to worst (`ranking.place`), the chosen one before its equals."""
    rows = table.to_dict("records")
    return sorted(rows, key=lambda row: ranking.place(row, plan.choose_by, row["name"] == chosen))


def _read_table(path: Path) -> pd.DataFrame:
    return files.read_csv(path) if path.is_file() else pd.DataFrame()
