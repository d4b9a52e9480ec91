"""How far long work is and how long it still takes, in words."""

import time
from collections.abc import Callable

OnProgress = Callable[[int, int], None]  # called with (done, total) while long work goes on


def meter(what: str, every: float = 5, say: Callable[[str], None] | None = None) -> OnProgress:
    """An `OnProgress` that prints `photos checked: 4,500 of 49,236, 3 min left` every so many seconds.

    Work that is over sooner prints nothing. `say` prints a line in its own way.
    """
    say = say or (lambda line: print(line, flush=True))
    started = spoken = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal spoken
        if (now := time.monotonic()) - spoken < every or not done:
            return
        left = (now - started) / done * (total - done)
        say(f"{what}: {done:,} of {total:,}, {duration(left)} left")
        spoken = now

    return show


def duration(seconds: float) -> str:
    """`80 s`, `3 min`: as exact as a guess of the time left deserves."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
