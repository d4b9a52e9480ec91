"""Squares that models see, made of many photos while they are checked, so that each is decoded once and not twice.

They wait in a file of the cache, each with a digest of its photo's bytes and box, until `cache.open_store` makes a file
of those that training and validation need.
"""

import contextlib
import hashlib
import os
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fruitlib.core import files
from fruitlib.core.config import PREPROCESS_SETTINGS, Config
from fruitlib.data.photo_square import Box

DIGEST = 32  # bytes of a SHA-256


class FirstSquares:
    """Squares in a file, added one by one; `how` has the settings that decide how they look."""

    def __init__(self, out, config: Config):
        self._out = out
        self.how = types.SimpleNamespace(**config.model_dump(include={*PREPROCESS_SETTINGS}))

    def add(self, box: Box | None, sha256: str, square: np.ndarray) -> None:
        """Add the square uint8 (S, S, 3) of a photo of these bytes, or of a box in it."""
        if self._out:
            try:
                self._out.write(_digest(photo_line(box, sha256)) + square.tobytes())
            except OSError:  # the disk is full: the other photos are decoded when they are needed
                self._out = None


def photo_line(box: Box | None, sha256: str) -> str:
    """A line that changes with a photo's bytes or box."""
    return f"{sha256} {box}\n"


@contextlib.contextmanager
def collected(file: Path, config: Config) -> Iterator[FirstSquares]:
    """Inside, squares are added; when the block succeeds, they are in the file."""
    with files.replacing(file) as partial, open(partial, "wb", buffering=0) as out:
        yield FirstSquares(out, config)
        os.fsync(out.fileno())  # under its name it is whole, after a power failure too: pixels are not checked again


def found(file: Path, side: int) -> tuple[dict[bytes, int], np.ndarray]:
    """Where in such a file which photo is, by its digest, and all squares, mapped; none where there is no such file."""
    row = np.dtype([("digest", "u1", DIGEST), ("square", "u1", (side, side, 3))])
    with contextlib.suppress(OSError, ValueError):  # none, empty, or cut off where the disk was full
        rows = np.asarray(np.memmap(file, row, "r"))
        return {digest.tobytes(): place for place, digest in enumerate(rows["digest"])}, rows["square"]
    return {}, np.empty((0, side, side, 3), np.uint8)


def place_of(places: dict[bytes, int], box: Box | None, sha256: str) -> int | None:
    """Where a photo's square is, of the places that `found` gives."""
    return places.get(_digest(photo_line(box, sha256)))


def _digest(line: str) -> bytes:
    return hashlib.sha256(line.encode()).digest()
