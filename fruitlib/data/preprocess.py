"""A photo file -> the square of bytes that models see; the same bytes on every call."""

import contextlib
import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import PIL

from fruitlib.core.config import Config
from fruitlib.core.errors import InputError
from fruitlib.data import decoding, geometry, objects, sources

LIBRARIES = {"opencv": objects.VERSION, "pillow": PIL.__version__}  # other versions may decode differently
CHANGED = "changed since the photos were divided: run the sweep (or 01_split) again, which divides them anew"


def decode(folder: Path, path: str, config: Config, sha256: str = "") -> np.ndarray:
    """The photo at a manifest's `path`, upright RGB, cropped, made square and enhanced: uint8 (S, S, 3).

    `sha256` is that of the file when it was checked, "" where not known: these bytes are decoded, or none.

    Raises:
        InputError: the photo no longer opens or has changed, or its box lies outside of it.
    """
    file, box = sources.locate(folder, path)
    with contextlib.ExitStack() as held:
        try:
            content = held.enter_context(decoding.contents(file))
            changed = sha256 and hashlib.sha256(content).hexdigest() != sha256
            how = {"megapixels": config.max_megapixels, "bits": geometry.bits(config), "known": bool(sha256)}
            boxed = box and (box[0], box[1], box[0] + box[2], box[1] + box[3])
            how["reducible"] = lambda size: geometry.reducible(size, boxed, config)
            photo = None if changed else held.enter_context(decoding.opened(content, **how))
        except InputError as problem:
            raise InputError(f"{file}: does not open ({problem}): repair or remove it, then split again") from None
        if photo is None:
            raise InputError(f"{file}: {CHANGED}")
        square = geometry.prepared(photo.image, photo.area(box) if box else None, config)
        if square is None:
            across, down = photo.size
            raise InputError(f"{path}: the box lies outside the photo, {across} x {down}: correct the table")
        return square


def share_with_object(folder: Path, paths: Iterable[str]) -> float:
    """In what share of the photos at a manifest's paths `crop_to: object` finds an object; the others stay whole."""
    found = []
    for path in paths:
        photo = decoding.open_photo(sources.locate(folder, path)[0], decoding.MOST_MEGAPIXELS)
        found.append(objects.find_object(np.asarray(photo)) is not None)
    return float(np.mean(found))
