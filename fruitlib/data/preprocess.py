"""A photo file -> the square of bytes that models see; the same bytes on every call.

Imports little at once, so that a process which decodes photos starts in a moment (`processes`).
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL

from fruitlib.core.errors import InputError
from fruitlib.data import decoding, memory, objects, photo_square

if TYPE_CHECKING:
    from fruitlib.core.config import Config

LIBRARIES = {"opencv": objects.VERSION, "pillow": PIL.__version__}  # other versions may decode differently
CHANGED = "changed since the photos were divided: run the sweep (or 01_split) again, which divides them again"


def decode(folder: Path, path: str, config: "Config", sha256: str = "") -> np.ndarray:
    """The photo at a manifest's `path`, upright RGB, cropped, made square and enhanced: uint8 (S, S, 3).

    `sha256` is that of the file when it was checked, "" where not known: these bytes are decoded, or none.

    Raises:
        InputError: the photo no longer opens or has changed, or its box lies outside of it.
    """
    from fruitlib.data import sources

    return decode_file(*sources.locate(folder, path), path, config, sha256)


def decode_files(places: list[tuple], how) -> list[np.ndarray | None]:
    """`decode_file` for each of some places; None where this process must not take so much memory."""
    found = []
    for file, box, path, sha256 in places:
        try:
            found.append(decode_file(file, box, path, how, sha256))
        except memory.TooMuchHere:
            found.append(None)
    return found


def decode_file(file: Path, box: tuple | None, path: str, how, sha256: str) -> np.ndarray:
    """`decode` of the `file` and box that `path` names; `how` has the settings of a `Config` as attributes."""
    try:
        with decoding.contents(file) as content:
            if sha256 and hashlib.sha256(content).hexdigest() != sha256:
                raise _Changed
            square, (across, down) = photo_square.read(content, how, how.max_megapixels, box, known=bool(sha256))
    except memory.TooMuchHere:
        raise
    except _Changed:
        raise InputError(f"{file}: {CHANGED}") from None
    except InputError as problem:
        raise InputError(f"{file}: does not open ({problem}): repair or remove it, then split again") from None
    if square is None:
        raise InputError(f"{path}: the box lies outside the photo, {across} x {down}: correct the table")
    return square


class _Changed(Exception):
    """A file has other bytes than those that were checked."""


def share_with_object(folder: Path, paths: Iterable[str]) -> float:
    """In what share of the photos at a manifest's paths `crop_to: object` finds an object; the others stay whole."""
    from fruitlib.data import sources

    found = []
    for path in paths:
        photo = decoding.open_photo(sources.locate(folder, path)[0], decoding.MOST_MEGAPIXELS)
        found.append(objects.find_object(np.asarray(photo)) is not None)
    return float(np.mean(found))
