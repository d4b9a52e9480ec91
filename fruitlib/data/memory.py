"""How much memory all threads of a process take together for reading and decoding photos."""

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from fruitlib.core.errors import InputError

CGROUP = Path("/sys/fs/cgroup/memory.max")  # a container's limit (Linux' cgroup v2): a number of bytes, or max


class TooMuchHere(InputError):
    """More than this process may take: whoever gave it the work has room for it."""


class Memory:
    """What all threads of this process take together, at most a share of the memory that was available at first.

    A lack of memory passes, so that it says nothing about a photo: one photo at a time may always go on.
    """

    def __init__(self, share: float):
        self._changed, self._taken, self._share, self._strict = threading.Condition(), 0, share, False

    def limit_to_share(self, count: int) -> None:
        """Take at most one of `count` shares of this, and nothing beyond."""
        self._share, self._strict = self._share / count, True

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Wait until `size` bytes fit beside what others hold; a photo larger than the limit waits until it is alone.

        Raises:
            InputError: more than the whole machine has.
            TooMuchHere: more than the share of this process.
        """
        if size > (most := total()):
            there = f"{most / 1e9:.1f} GB are in this machine"
            raise InputError(f"decoding it takes {size / 1e9:.1f} GB of memory, {there}: save it smaller")
        if self._strict and size > self._share * _available():
            raise TooMuchHere("more memory than this process may take")
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + size <= self._share * _available())
            self._taken += size
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()


# Two, so that who waits for room to decode a photo may hold its file: who decodes waits for nothing more.
FILES, PIXELS = Memory(1 / 16), Memory(3 / 16)


def limit_to_share(count: int) -> None:
    """Let this process, one of `count` that open photos for another, take its share; together they take as much again
    as their owner, which opens what is too large for them.
    """
    FILES.limit_to_share(count)
    PIXELS.limit_to_share(count)


@functools.cache
def total() -> int:
    """The bytes of memory that this machine, or its container, has."""
    most = _of_machine()[0]
    with contextlib.suppress(OSError, ValueError):
        most = min(most, int(CGROUP.read_text()))
    return most


@functools.cache
def _available() -> int:
    """The bytes that are available when the first photo is read; at least a gigabyte, so that the shares are of use."""
    return max(2**30, min(_of_machine()[1], total()))


def _of_machine() -> tuple[int, int]:
    """The bytes of memory that the machine has, and that are available; without psutil, which is an extra, as well as
    its system says, and 4 GiB where that says nothing.
    """
    try:
        import psutil

        memory = psutil.virtual_memory()
        return memory.total, memory.available
    except ImportError:
        pass
    try:
        page, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return 4 * 2**30, 4 * 2**30
    try:
        free = os.sysconf("SC_AVPHYS_PAGES")
    except (OSError, ValueError):  # macOS
        free = pages // 2
    return page * pages, page * free
