"""One photo opened once: is it a photo, how large is it, what is odd about it, and what does it look like?

The squares that models see are put in their places at once, where the same decoding will do. Imports nothing heavy, so
that a process which inspects photos starts in a tenth of a second.
"""

import functools
import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from fruitlib.core.errors import InputError
from fruitlib.data import decoding, geometry, memory, photo_square
from fruitlib.data.decoding import Decoded
from fruitlib.data.first_squares import Places
from fruitlib.data.photo_square import Box

Facts = tuple[str, str, int, int, str, str, int]  # status, reason, width, height, sha256, phash, bits
Found = tuple[Facts, bool]  # and whether its square is in its place
Boxes = list[tuple[int, Box | None]]  # of one file: the row of each in its table, and None for all of the photo
SIDE, LOWEST = 32, 8  # of the picture whose frequencies are taken, and how many of these along each axis


def inspect(
    file: Path, box: Box | None = None, min_side: int = 16, megapixels: float = decoding.FULL_SCALE / 1e6
) -> Facts:
    """(status, reason, width, height, sha256, phash, bits) of a photo, or of a box (x, y, width, height) in it.

    Width and height are the whole upright photo's, sha256 the file's, phash the box's. The file is read once and
    decoded completely, a large JPEG file at a reduced scale if no box is given.
    """
    return inspect_file(Path(file), [(0, box)], min_side, megapixels)[0][0]


def inspect_file(
    file: Path, boxes: Boxes, min_side: int, megapixels: float, places: Places | None = None
) -> list[Found]:
    """`inspect` for several boxes of one file; each row's square goes to its place."""
    sha256, only = "", [box for _, box in boxes]
    try:
        with decoding.contents(file) as content:
            sha256 = hashlib.sha256(content).hexdigest()
            whole = {"small": True, "reducible": geometry.usual} if only == [None] else {}
            with decoding.opened(content, file.suffix, megapixels, **whole) as photo:
                facts = [_facts(photo, sha256, box, min_side) for box in only]
                made = [_put(places, row, photo, box) for row, box in boxes]
            return list(zip(facts, made, strict=True))
    except memory.TooMuchHere:
        raise
    except InputError as problem:
        return [(("quarantined", str(problem), 0, 0, sha256, "", 0), False)] * len(boxes)


def inspect_files(
    files: list[tuple[Path, Boxes]], min_side: int, megapixels: float, places: Places | None = None
) -> list[list[Found] | None]:
    """`inspect_file` for each of some files with their boxes; None where this process must not take so much memory."""
    found = []
    for file, boxes in files:
        try:
            found.append(inspect_file(file, boxes, min_side, megapixels, places))
        except memory.TooMuchHere:
            found.append(None)
    return found


def _put(places: Places | None, row: int, photo: Decoded, box: Box | None) -> bool:
    """Whether the square of a photo, or of a box in it, is in its place."""
    square = photo_square.from_decoded(photo, places.how, box) if places else None
    return square is not None and places.put(row, square)


def _facts(photo: Decoded, sha256: str, box: Box | None, min_side: int) -> Facts:
    """The facts of a photo that opened, or of one box in it."""
    if wrong := _wrong_size(photo.size, box, min_side):
        return "quarantined", wrong, *photo.size, sha256, "", 0
    area = (0, 0, *photo.image.size) if box is None else photo.area(box)
    small, odd = photo.image.resize((SIDE, SIDE), Image.Resampling.BOX, area), photo.odd
    if _flat(small) and _flat(photo.image.crop(area)):
        odd = [*odd, "a single flat colour"]
    return "ok", "; ".join(odd), *photo.size, sha256, looks(small), photo.bits


def _wrong_size(size: tuple[int, int], box: Box | None, min_side: int) -> str:
    """Why a photo of this size, or a box in it, cannot be used; "" where it can."""
    if box is None:
        return f"{size[0]} x {size[1]} pixels: the shorter side is below {min_side}" if min(size) < min_side else ""
    x, y, width, height = box
    named = f"the box {x},{y},{width},{height}"
    if min(box) < 0:
        return f"{named} is negative"
    if min(width, height) == 0:
        return f"{named} is empty"
    if x + width > size[0] or y + height > size[1]:
        return f"{named} reaches beyond the photo of {size[0]} x {size[1]} pixels"
    return f"{named}: its shorter side is below {min_side} pixels" if min(width, height) < min_side else ""


def _flat(photo: Image.Image) -> bool:
    return all(high - low <= 2 for low, high in photo.getextrema())  # JPEG's rounding may add a level or two


def looks(small: Image.Image) -> str:
    """What a photo looks like, as 70 hex digits: 16 of shape, 54 of colour. From the photo squashed to 32 x 32, RGB.

    Shape is pHash, the signs of the 8 x 8 lowest frequencies of the luminance's cosine transform against their median
    (Zauner, 2010, "Implementation and benchmarking of perceptual image hash functions"), the bits of the package
    imagehash, in a tenth of its time. It is the same for a yellow apple and a red one, so colour follows: the mean red,
    green and blue of 3 x 3 cells, a byte each.
    """
    waves = _waves()
    lowest = waves @ np.asarray(small.convert("L"), dtype=float) @ waves.T
    # Without rounding, frequencies that a picture lacks would be noise of either sign, of a millionth of this step.
    lowest = np.round(lowest.ravel(), 3)
    ordered = np.sort(lowest)
    middle = len(ordered) // 2
    bits = lowest > (ordered[middle - 1] + ordered[middle]) / 2
    return np.packbits(bits).tobytes().hex() + small.resize((3, 3), Image.Resampling.BOX).tobytes().hex()


@functools.cache
def _waves() -> np.ndarray:
    """The lowest cosines of the transform (DCT-II, not normalised: only signs count), float (8, 32)."""
    steps = np.outer(np.arange(LOWEST), 2 * np.arange(SIDE) + 1)
    return 2 * np.cos(np.pi / (2 * SIDE) * steps)
