"""A sweep on the terminal: what it is doing and how long it will take, on one line; in the end, what it found."""

import contextlib
import sys
import threading
import time
from pathlib import Path

import pandas as pd

from fruitlib.params import Sweep
from fruitlib.runs import Run

SHARES = {"02_train": 0.5, "03_metrics": 0.14, "04_gradcam": 0.17, "05_quantize": 0.19}  # of a small run's time


class Progress:
    """One line on what is running, how far it is and how long it will take; rewritten in place on a terminal."""

    def __init__(self, plan: Sweep, sweep_dir: Path):
        made = bool(plan.config.folds) and plan.ship != "fold"  # one run more, of the model that is shipped
        self.total, self.sweep_dir, self.started = len(plan.runs) + made, sweep_dir, time.monotonic()
        self.before, self.finished, self.current = set(), set(), ("", "", None)
        self._on_terminal, self._last, self._closed = sys.stdout.isatty(), "", threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Stop writing; what is printed next stands on a line of its own."""
        if not self._closed.is_set():
            self._closed.set()
            self._thread.join()
            self._clear()

    def stage(self, name: str, stage: str, run: Run | None = None) -> None:
        """A notebook begins."""
        self.current = (name, stage, run)
        if not self._on_terminal:
            print(self._line(), flush=True)

    def done(self, name: str) -> None:
        """A run is over, well or badly."""
        self.finished.add(name)
        self.current = ("", "", None)

    def photos(self, done: int, total: int) -> None:
        """Photos drawn or checked so far."""
        self.current = ("", f"photos {done}/{total}", None)

    def say(self, text: str) -> None:
        """A remark that stays."""
        self._clear()
        print(text, flush=True)

    def _watch(self) -> None:
        spoken = time.monotonic()
        while not self._closed.wait(0.5):
            line = self._line()
            if self._on_terminal and line != self._last:
                self._clear()
                print(f"\r{line}", end="", flush=True)
                self._last = line
            elif not self._on_terminal and time.monotonic() - spoken > 30:
                print(line, flush=True)
                spoken = time.monotonic()

    def _clear(self) -> None:
        if self._on_terminal and self._last:
            print("\r" + " " * len(self._last) + "\r", end="", flush=True)
            self._last = ""

    def _line(self) -> str:
        name, stage, run = self.current
        elapsed = time.monotonic() - self.started
        parts = [f"{len(self.finished)}/{self.total} runs", name, stage]
        share = 0.0
        if run is not None and stage in SHARES:
            order = list(SHARES)
            share = sum(SHARES[s] for s in order[: order.index(stage)])
        if run is not None and stage == "02_train" and (run.path / "history.csv").is_file():
            with contextlib.suppress(OSError, pd.errors.ParserError, pd.errors.EmptyDataError):
                history = run.history()
                score = f", macro-F1 {history['val_macro_f1'].iloc[-1]:.2f}" if "val_macro_f1" in history else ""
                parts.append(f"epoch {len(history)}/{run.config.epochs}{score}")
                share += SHARES[stage] * len(history) / run.config.epochs
        work = self.total - len(self.before)  # what was complete before took no time now
        done = (len(self.finished - self.before) + share) / max(1, work)
        parts.append(f"{_clock(elapsed)} gone" + (f", {_clock(elapsed / done - elapsed)} left" if done > 0.02 else ""))
        return " · ".join(part for part in parts if part)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def print_results(plan: Sweep, sweep_dir: Path, summary: dict) -> None:
    """The small table a sweep ends with, what is shipped, and what failed."""
    table = pd.read_csv(sweep_dir / "results.csv")
    complete = table[(table["state"] == "complete") & table["run"].isin(plan.runs)]
    shown, photos = complete.assign(name=complete["run"]), "validation photos"
    if plan.config.folds and len(pooled := _read_table(sweep_dir / "results_oof.csv")):
        timed = "train_seconds" in complete  # not where no run is complete
        seconds = complete.groupby("combination")["train_seconds"].sum() if timed else {}
        shown = pooled.assign(name=pooled["combination"], train_seconds=pooled["combination"].map(seconds))
        photos = "photos, each judged by a fold's model"
    if len(shown):
        width = max(map(len, shown["name"]))
        print(
            f"\n  {'run':{width}}  macro-F1  accuracy (95 % interval)  training   on {int(shown['n'].iloc[0])} {photos}"
        )
    for row in _best_first(shown, plan, summary["chosen"]):
        interval = f"{row['accuracy']:.3f} ({row['accuracy_low']:.2f}–{row['accuracy_high']:.2f})"
        star = "*" if row["name"] == summary["chosen"] else " "
        seconds = f"{row['train_seconds']:.0f} s" if row["train_seconds"] >= 0 else "unfinished"
        print(f"{star} {row['name']:{width}}  {row['macro_f1']:8.3f}  {interval:24}  {seconds:>8}")
    for gain in _read_table(sweep_dir / "gains.csv").to_dict("records"):
        print(f"\n{gain['said']}")
    if summary["shipped"]:
        print(f"\n* {_shipped(table.set_index('run').loc[summary['shipped']], summary)}")
    for run in summary["runs"]:
        if run["error"]:
            print(f"\nfailed: {run['name']}: {run['error']}")


def _shipped(row: pd.Series, summary: dict) -> str:
    """Which model is shipped, how it was made, what is expected of it, and what a test found."""
    told = ["chosen on validation"]
    if made := summary.get("made"):
        expected = f"{row['oof_accuracy']:.3f} (95 % interval {row['oof_low']:.2f}–{row['oof_high']:.2f})"
        told = [f"chosen on out-of-fold predictions; shipped: {row.name}", made]
        told += [f"expected accuracy: {expected}, that of its setting out of fold"]
    if row.get("test_n", 0) > 0:
        judged = f"{row['test_accuracy']:.3f} (95 % interval {row['test_low']:.2f}–{row['test_high']:.2f})"
        told += [f"its {row['test_backend']} on {row['test_n']:.0f} test photos: accuracy {judged}"]
    return ("\n  " if made else "; ").join(told)


def _best_first(table: pd.DataFrame, plan: Sweep, chosen: str | None) -> list[dict]:
    """Rows from best to worst by the choosing metric, the chosen one before its equals."""
    if table.empty:
        return []
    table = table.assign(_chosen=table["name"] == chosen)
    return table.sort_values([plan.choose_by, "_chosen"], ascending=False, kind="stable").to_dict("records")


def _read_table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path) if path.is_file() else pd.DataFrame()
