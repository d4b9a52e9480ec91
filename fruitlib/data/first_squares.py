"""Squares that models see, made of photos while they are checked, so that each is decoded once and not twice.

A file of the cache has a place for every photo, or box in one, of a data set. Behind the places stand, for each of
them, a digest of the photo's bytes and box, and whether its square is there; without this end the file counts for
nothing. `cache.open_store` reads photos from it, and fills in those whose square needs a decoding of its own.
"""

import contextlib
import dataclasses
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fruitlib.core import files
from fruitlib.data.photo_square import Box

ENTRY = np.dtype([("digest", "V32"), ("made", "?")])  # of SHA-256
SYNC_SECONDS = 2


@dataclasses.dataclass(frozen=True)
class Places:
    """Where processes that check photos put squares; `how` has the settings that decide how these look."""

    file: Path
    how: object

    def put(self, place: int, square: np.ndarray) -> bool:
        """Write a square uint8 (S, S, 3) to its place; False where the disk has no room: it is decoded again, then."""
        with contextlib.suppress(OSError), open(self.file, "r+b", buffering=0) as out:
            out.seek(place * square.nbytes)
            return out.write(square) == square.nbytes
        return False


class FirstSquares:
    """A file that is being made: which photo each place is for, and whether its square is there."""

    def __init__(self, places: Places, photos: int):
        self.places, self.entries = places, np.zeros(photos, ENTRY)

    def add(self, place: int, box: Box | None, sha256: str, made: bool) -> None:
        """A photo of these bytes, or a box in it, has this place; `made`: its square is there."""
        self.entries[place] = _digest(box, sha256), made


def photo_line(box: Box | None, sha256: str) -> str:
    """A line that changes with a photo's bytes or box."""
    return f"{sha256} {box}\n"


@contextlib.contextmanager
def collected(file: Path, photos: int, how) -> Iterator[FirstSquares]:
    """Inside, squares of so many photos are put in their places; when the block succeeds, the file is there."""
    with files.replacing(file) as partial, open(partial, "r+b", buffering=0) as out:
        squares = FirstSquares(Places(partial, how), photos)
        with _written_back(out):
            yield squares
        with contextlib.suppress(OSError):  # a full disk: without its end the file counts for nothing
            os.fsync(out.fileno())  # pixels are not checked again: they must outlast a power failure before they count
            out.seek(photos * _bytes(how.image_size))
            out.write(squares.entries)


@contextlib.contextmanager
def _written_back(out: BinaryIO) -> Iterator[None]:
    """Inside, what is written goes to the disk little by little, so that the end need not wait for all of it."""
    ended = threading.Event()

    def write_back() -> None:
        while not ended.wait(SYNC_SECONDS):
            with contextlib.suppress(OSError):
                os.fsync(out.fileno())

    thread = threading.Thread(target=write_back, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@dataclasses.dataclass(frozen=True)
class Found:
    """Squares for photos that were asked for, in such a file, which stays open until the block of `found` ends."""

    content: BinaryIO
    entries: np.ndarray
    rows: np.ndarray  # int64 (k,), the places of the photos asked for
    side: int

    def missing(self) -> np.ndarray:
        """The numbers of the photos whose squares are not there, int64, each place once."""
        missing = np.flatnonzero(~self.entries["made"][self.rows])
        return missing[np.unique(self.rows[missing], return_index=True)[1]]

    def fill(self, squares: Iterable[np.ndarray], on_each: Callable[[int], None]) -> None:
        """Add the squares uint8 (S, S, 3) of the `missing` photos, in that order; `on_each(done)` after each."""
        places = self.rows[self.missing()]
        for done, (place, square) in enumerate(zip(places, squares, strict=True), 1):
            self.content.seek(place * _bytes(self.side))
            self.content.write(square)
            on_each(done)
        if len(places):
            self.content.flush()
            os.fsync(self.content.fileno())
            self.entries["made"][places] = True
            self.content.seek(len(self.entries) * _bytes(self.side))
            self.content.write(self.entries)


@contextlib.contextmanager
def found(file: Path, side: int, photos: Iterable[tuple[Box | None, str]]) -> Iterator[Found | None]:
    """Such a file with a place for every one of the photos (box, sha256); None where there is none."""
    with contextlib.ExitStack() as held:
        content = entries = rows = None
        with contextlib.suppress(FileNotFoundError):
            content = held.enter_context(open(file, "r+b"))
            entries = _entries(content, side)
        if entries is not None:
            places = {entry.tobytes(): place for place, entry in enumerate(entries["digest"])}
            rows = [places.get(_digest(box, sha256)) for box, sha256 in photos]
        if rows is None or None in rows:
            yield None
        else:
            yield Found(content, entries, np.array(rows, dtype=np.int64), side)


def _entries(content: BinaryIO, side: int) -> np.ndarray | None:
    """The end of a file; None where it is not whole."""
    photos, rest = divmod(os.fstat(content.fileno()).st_size, _bytes(side) + ENTRY.itemsize)
    if rest:
        return None
    content.seek(photos * _bytes(side))
    return np.frombuffer(bytearray(content.read()), ENTRY)


def _bytes(side: int) -> int:
    return 3 * side**2


def _digest(box: Box | None, sha256: str) -> bytes:
    return hashlib.sha256(photo_line(box, sha256).encode()).digest()
