"""A photo file's bytes -> the square of bytes that models see. Needs NumPy and Pillow only.

A large JPEG file is decoded at a reduced scale, several times as fast; where its colours change so sharply that this
would be seen in the square (`geometry.is_sharp`), it is decoded once more, in full.
"""

import numpy as np

from fruitlib.data import decoding, geometry
from fruitlib.data.decoding import Decoded

Box = tuple[int, int, int, int]  # x, y, width, height in pixels


def read(
    content: bytes, how, megapixels: float, box: Box | None = None, known: bool = False
) -> tuple[np.ndarray | None, tuple[int, int]]:
    """The square, uint8 (S, S, 3), None where the box lies outside; and the width and height of the upright photo.

    Args:
        content: the file's bytes.
        how: has the settings as attributes: a `Config`, or the `geometry.Preparation` that an exported file names.
        megapixels: larger photos are refused, million pixels.
        box: x, y, width and height in the photo's own pixels; None: the whole photo.
        known: these bytes were found complete before, so that this need not be checked again.

    Raises:
        InputError: not a photo that can be used; the line says why, without the file's name.
    """
    settings = {"megapixels": megapixels, "bits": geometry.bits(how), "known": known}
    boxed = _corners(box)
    with decoding.opened(content, **settings, reducible=lambda size: geometry.reducible(size, boxed, how)) as photo:
        square, size, in_full = _prepared(photo, how, box), photo.size, photo.image.size == photo.size
    if square is None or in_full or not geometry.is_sharp(square, size, boxed, how):
        return square, size
    with decoding.opened(content, **settings) as photo:
        return _prepared(photo, how, box), size


def from_decoded(photo: Decoded, how, box: Box | None = None) -> np.ndarray | None:
    """The square that `read` makes of a photo's bytes, of the photo decoded for another purpose; None where it cannot
    be: decoded at another scale, of more than 8 bits, so sharp that it is to be decoded in full, or no square.
    """
    boxed = _corners(box)
    wanted = geometry.reducible(photo.size, boxed, how)
    if photo.bits or photo.divided != wanted:
        return None
    square = _prepared(photo, how, box)
    if square is None or (wanted > 1 and geometry.is_sharp(square, photo.size, boxed, how)):
        return None
    return square


def _prepared(photo: Decoded, how, box: Box | None) -> np.ndarray | None:
    return geometry.prepared(photo.image, photo.area(box) if box else None, how)


def _corners(box: Box | None) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom."""
    return box and (box[0], box[1], box[0] + box[2], box[1] + box[3])
