"""How much memory all threads of a process take together for decoding photos."""

import contextlib
import functools
import threading
from collections.abc import Iterator

import psutil

from fruitlib.core.errors import InputError


class Memory:
    """What all threads of this process take together for decoding, at most a quarter of what was available at first."""

    def __init__(self):
        self._changed, self._taken = threading.Condition(), 0

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Wait until `size` bytes fit beside what others hold; a photo larger than the limit is decoded alone.

        Raises:
            InputError: more than there is.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + size <= _limit())
            if size > 2**26 and size > (free := psutil.virtual_memory().available):
                raise InputError(
                    f"decoding it takes {size / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free: save it smaller"
                )
            self._taken += size
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()


TAKEN = Memory()


@functools.cache
def _limit() -> int:
    return max(2**28, psutil.virtual_memory().available // 4)
