"""The lines a training prints for people, and how several processes hand them to the one that started them.

The processes write into one pipe, together with all that torch, NCCL and other libraries print. There a line for
people, or an event the starter acts on, begins with a mark and its kind: nothing has to be recognised by its words.
"""

import os
import sys

from fruitlib.core import machine

# Environment variable of processes that another one follows: its pid, and when it started them
STARTER = "FRUITLIB_STARTER"
MARK = "\x1e"  # ASCII's record separator: libraries don't print it
LINE, EPOCH, ERROR = "line", "epoch", "error"  # kinds of message


def starter() -> int:
    """The pid of the process that started this one and follows it; 0 where none does."""
    return int(os.environ.get(STARTER, "").partition(":")[0] or 0)


def say(*texts: str) -> None:
    """Print each text for the user; empty ones are left out. Of several processes only rank 0 prints."""
    if machine.rank() == 0:
        say_from_any_rank(*texts)


def say_from_any_rank(*texts: str) -> None:
    """`say`, but whichever process calls this prints: for work that only one of them does, not always rank 0."""
    for text in texts:
        for line in text.splitlines():
            _send(LINE, line)


def epoch_done(text: str) -> None:
    """Print the line on a finished epoch, whose row is in history.csv by now."""
    _send(EPOCH, text)


def failed(reason: str) -> None:
    """Print why training cannot go on: the starter then ends all of them."""
    _send(ERROR, reason)


def parse(line: str) -> tuple[str, str] | None:
    """(kind, text) of a process's line, or None where a library printed it.

    The mark may stand in the middle, after something that another process has left without a line break.
    """
    _, mark, message = line.partition(MARK)
    if not mark:
        return None
    kind, _, text = message.rstrip("\n").partition(MARK)
    return kind, text


def _send(kind: str, text: str) -> None:
    """One line in one write, which no other process's can divide; `print` would write the line break by itself."""
    line = f"{MARK}{kind}{MARK}{text}" if STARTER in os.environ else text
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
