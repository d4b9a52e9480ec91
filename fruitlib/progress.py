"""What a sweep is doing, how far it is and how long it will take, on one line."""

import contextlib
import sys
import threading
import time
from pathlib import Path

import pandas as pd

from fruitlib.config import Sweep
from fruitlib.runs import Run

SHARES = {"02_train": 0.5, "03_metrics": 0.14, "04_gradcam": 0.17, "05_quantize": 0.19}  # of a small run's time


class Progress:
    """One line on what is running, how far it is and how long it will take; rewritten in place on a terminal."""

    def __init__(self, plan: Sweep, sweep_dir: Path):
        self.names, self.sweep_dir, self.started = list(plan.runs), sweep_dir, time.monotonic()
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
        parts = [f"{len(self.finished)}/{len(self.names)} runs", name, stage]
        share = 0.0
        if run is not None and stage in SHARES:
            order = list(SHARES)
            share = sum(SHARES[s] for s in order[: order.index(stage)])
        if run is not None and stage == "02_train" and (run.path / "history.csv").is_file():
            with contextlib.suppress(OSError, pd.errors.ParserError, pd.errors.EmptyDataError):
                history = run.history()
                score = history["val_macro_f1"].iloc[-1]
                parts.append(f"epoch {len(history)}/{run.config.epochs}, macro-F1 {score:.2f}")
                share += SHARES[stage] * len(history) / run.config.epochs
        work = len(self.names) - len(self.before)  # what was complete before took no time now
        done = (len(self.finished - self.before) + share) / max(1, work)
        parts.append(f"{_clock(elapsed)} gone" + (f", {_clock(elapsed / done - elapsed)} left" if done > 0.02 else ""))
        return " · ".join(part for part in parts if part)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
