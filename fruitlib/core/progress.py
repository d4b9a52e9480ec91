"""How far long work is and how long it still takes, in words; and in a file, for whoever watches from outside.

Inside `recorded`, every `step` is noted in that folder's `FILE`, and at most every other second how far a `meter`, an
epoch or another long loop is: so the terminal of a sweep shows what a notebook of it downloads, trains or exports.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from fruitlib.core import files

OnProgress = Callable[[int, int], None]  # called with (done, total) while long work goes on
FILE = ".doing.json"
EPOCH = "epoch"  # what is noted of an epoch, beside its number
NOTE_EVERY = 2.0  # seconds
Item = TypeVar("Item")
_folder: Path | None = None


@contextlib.contextmanager
def recorded(folder: Path):
    """Inside, long work of this process is noted in that folder; nothing of it is left there in the end."""
    global _folder
    before, _folder = _folder, folder
    try:
        yield
    finally:
        _forget()
        _folder = before


def step(what: str) -> None:
    """Note what begins now, of which nobody can say how far it is."""
    _note(what)


def meter(what: str, every: float = 5, say: Callable[[str], None] | None = None, unit: str = "") -> OnProgress:
    """An `OnProgress` that prints `photos checked: 4,500 of 49,236, 3 min left` every so many seconds.

    Work that is over sooner prints nothing. `say` prints a line in its own way. `unit`: of what is counted, such as MB.
    """
    say = say or (lambda line: print(line, flush=True))
    started = spoken = noted = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal spoken, noted
        now = time.monotonic()
        if done >= total and noted > started:
            _forget()  # it is over, and whatever comes next may say nothing of itself
        elif done and now - noted >= NOTE_EVERY:
            noted = now
            _note(what, share=done / total)
        if now - spoken < every or not done:
            return
        left = (now - started) / done * (total - done)
        say(f"{what}: {done:,} of {total:,}{unit and f' {unit}'}, {duration(left)} left")
        spoken = now

    return show


def through_epoch(batches: Iterable[Item], number: int, steps: int) -> Iterator[Item]:
    """The `steps` batches of an epoch; how many have been taken is noted where it takes longer than two seconds."""
    return through(batches, steps, EPOCH, number=number)


def through(items: Iterable[Item], total: int, what: str, **facts) -> Iterator[Item]:
    """The `total` items; how many have been taken is noted where it takes longer than two seconds."""
    noted = time.monotonic()
    for done, item in enumerate(items):
        if (now := time.monotonic()) - noted >= NOTE_EVERY:
            noted = now
            _note(what, share=done / total, **facts)
        yield item


def _note(what: str, **facts) -> None:
    if _folder:
        with contextlib.suppress(OSError):  # no reason to lose the work
            files.write_json(_folder / FILE, {"what": what, **facts})


def _forget() -> None:
    if _folder:
        with contextlib.suppress(OSError):
            (_folder / FILE).unlink(missing_ok=True)


def duration(seconds: float) -> str:
    """`80 s`, `3 min`: as exact as a guess of the time left deserves."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
