"""A decoded photo -> the square that models see: cut out, resized, enhanced. Needs NumPy and Pillow only.

`how` is whatever has the settings as attributes: a `Config`, or the `Preparation` that an exported file names.
OpenCV is needed by `crop_to: object` alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

ENHANCERS = {  # in the order in which they are applied
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
    "sharpness": ImageEnhance.Sharpness,
}
USUAL_SIDE = 224  # pixels of most pretrained networks
SHARP = 1.5  # levels of colour between neighbours, for each pixel of the photo that one covers
_COLOUR = np.array([[-0.1687, 0.5], [-0.3313, -0.4187], [0.5, -0.0813]], np.float32)  # RGB to Cb, Cr
Area = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class Preparation:
    """The settings of the same names of `core.config.Config`, where that is not installed: in an exported file."""

    image_size: int
    resize: str
    center: float
    brightness: float
    contrast: float
    saturation: float
    sharpness: float
    crop_to: str = "none"
    crop_margin: float = 0.0
    deep_bits: int | str = "auto"

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Preparation":
        """From a file's `preprocess`, which may name more settings than these.

        Raises:
            ValueError: one that has no default is missing, or is of another type.
        """
        found = {field.name: settings[field.name] for field in fields(cls) if field.name in settings}
        try:
            made = cls(**found)
            numbers = [made.image_size, made.center, made.crop_margin, *(getattr(made, name) for name in ENHANCERS)]
            fits = isinstance(made.image_size, int) and made.image_size > 0 and all(number >= 0 for number in numbers)
        except TypeError as problem:
            raise ValueError(f"preprocess: {problem}") from None
        if not fits or made.resize not in ("crop", "squash", "pad"):
            raise ValueError(f"preprocess: {dict(settings)}")
        return made


def bits(how) -> int:
    """`deep_bits` as `decoding.opened` takes it: 0 where each photo's own range counts."""
    return 0 if how.deep_bits == "auto" else how.deep_bits


def prepared(photo: Image.Image, boxed: Area | None, how) -> np.ndarray | None:
    """The photo as models see it, uint8 (S, S, 3), the same bytes on every call; None where `boxed` lies outside."""
    left, top, right, bottom = area = region(photo, boxed, how)
    if right - left < 1 or bottom - top < 1:
        return None
    return np.array(enhance(square(photo, central(area, how), how.resize, how.image_size), how))


def region(photo: Image.Image, boxed: Area | None, how) -> Area:
    """The part of the photo that `crop_to` keeps: its box or the object with a margin, else all of it."""
    if how.crop_to != "object":
        return _kept(photo.size, boxed, how)
    whole = (0, 0, photo.width, photo.height)
    inside = widened(boxed, 0, whole) if boxed else whole  # a photo of several boxes has an object in each
    if inside[2] > inside[0] and inside[3] > inside[1]:
        from fruitlib.data import objects

        extent = objects.find_object(np.asarray(photo.crop(inside)))
        if extent:
            shifted = (extent[0] + inside[0], extent[1] + inside[1], extent[2] + inside[0], extent[3] + inside[1])
            return widened(shifted, how.crop_margin, inside)
    return inside


def _kept(size: tuple[int, int], boxed: Area | None, how) -> Area:
    """The part that `crop_to: none` or `box` keeps of a photo of this size."""
    whole = (0, 0, *size)
    return widened(boxed, how.crop_margin, whole) if boxed and how.crop_to == "box" else whole


def central(area: Area, how) -> Area:
    """The middle of the area: of each side the share `center`; with `resize: crop`, of the square that it keeps."""
    if how.center == 1:
        return area
    left, top, right, bottom = area
    across, down = right - left, bottom - top
    if how.resize == "crop":
        across = down = min(across, down)
    x, y, half = (left + right) / 2, (top + bottom) / 2, how.center / 2
    return x - half * across, y - half * down, x + half * across, y + half * down


def widened(area: Area, margin: float, limit: Area) -> Area:
    """The area with each edge moved outwards by `margin` times the side across it, and cut off at `limit`."""
    left, top, right, bottom = area
    across, down = margin * (right - left), margin * (bottom - top)
    return (
        max(left - across, limit[0]),
        max(top - down, limit[1]),
        min(right + across, limit[2]),
        min(bottom + down, limit[3]),
    )


def square(photo: Image.Image, area: Area, how: str, side: int) -> Image.Image:
    """The area of the photo as a square of `side` pixels, each the mean over the pixels it covers.

    `crop` keeps the central square, `squash` everything out of proportion, `pad` everything in proportion, with the
    outermost pixels repeated beside it (a reflection would show parts of a second fruit). Of large photos, blocks are
    averaged first.
    """
    area, size = _fitted(area, how, side)
    blocks = _blocks(area, size)
    if blocks != (1, 1):
        photo = photo.reduce(blocks)
        area = area[0] / blocks[0], area[1] / blocks[1], area[2] / blocks[0], area[3] / blocks[1]
    resized = photo.resize(size, Image.Resampling.BILINEAR, box=area)
    if size == (side, side):
        return resized
    across, down = side - size[0], side - size[1]
    edges = (down // 2, down - down // 2), (across // 2, across - across // 2), (0, 0)
    return Image.fromarray(np.pad(np.asarray(resized), edges, mode="edge"))


def _fitted(area: Area, how: str, side: int) -> tuple[Area, tuple[int, int]]:
    """The area that `resize` keeps, and the pixels across and down that it is brought to, `side` at most."""
    left, top, right, bottom = area
    width, height = right - left, bottom - top
    if how == "crop":
        kept = min(width, height)
        x, y = left + (width - kept) / 2, top + (height - kept) / 2
        area = (x, y, min(x + kept, right), min(y + kept, bottom))
    if how == "pad":
        longer = max(width, height)
        return area, (max(1, round(side * width / longer)), max(1, round(side * height / longer)))
    return area, (side, side)


def _blocks(area: Area, size: tuple[int, int]) -> tuple[int, int]:
    """How many pixels across and down are averaged first: the largest powers of two, up to 128, of which three and more
    make a pixel of the result. Blocks begin at the photo's first pixel, as those do of a decoder that reduces.
    """
    lengths = area[2] - area[0], area[3] - area[1]
    thirds = (int(length / pixels / 3) for length, pixels in zip(lengths, size, strict=True))
    across, down = (min(128, 1 << max(0, third.bit_length() - 1)) for third in thirds)
    return across, down


def reducible(size: tuple[int, int], boxed: Area | None, how) -> int:
    """By what power of two a decoder may divide the sides of a photo of this `size`, upright or not, for `prepared`.

    Half of the sides of the blocks that `square` averages: what a JPEG decoder reduces differs a little from means, and
    where colours change sharply by more (`is_sharp`). Objects are looked for at full scale. Whole blocks only, since a
    decoder makes up what others lack. Of whole photos, networks of fewer pixels than `USUAL_SIDE` take what these
    do: one decoding serves them all, and the comparison of photos, too (`usual`).
    """
    side = how.image_size if boxed else max(how.image_size, USUAL_SIDE)
    if how.crop_to == "object" or max(size) < 12 * side:  # a half takes blocks of four, of three pixels and more each
        return 1
    divisors = [8]
    for lying in (size, size[::-1]):  # `boxed` is that of the upright photo
        area = central(_kept(lying, boxed, how), how)
        if area[2] - area[0] < 1 or area[3] - area[1] < 1:
            return 1
        divisors.append(min(_blocks(*_fitted(area, how.resize, side))) // 2)
    divided = max(1, min(divisors))
    return 1 if any(length % divided for length in size) else divided


def usual(size: tuple[int, int]) -> int:
    """`reducible` of a whole photo for a network of `USUAL_SIDE` pixels with the default settings."""
    return reducible(size, None, Preparation(USUAL_SIDE, "crop", 1.0, 1.0, 1.0, 1.0, 1.0))


def is_sharp(made: np.ndarray, size: tuple[int, int], boxed: Area | None, how) -> bool:
    """Whether colours change so sharply in the square `made` of a reduced photo that it is to be decoded in full.

    JPEG files hold colours at half the scale. A decoder smooths them over where it does not reduce, so that means along
    a sharp edge between colours differ: by up to 9 of 255 on drawings. What differed by more than 2 had neighbours in
    the square whose blue or red difference (ITU-R 601) was 1.77 times the pixels that one covers apart, or more; of
    photos a tenth have that (drawings and photos of 1200 to 3000 pixels at 96 and 224; test_preprocess).

    Args:
        made: uint8 (S, S, 3).
        size: the width and height of the upright photo.
    """
    area, pixels = _fitted(central(_kept(size, boxed, how), how), how.resize, how.image_size)
    covered = min((area[2] - area[0]) / pixels[0], (area[3] - area[1]) / pixels[1])
    colours = made.astype(np.float32) @ _COLOUR
    steps = max(float(np.abs(np.diff(colours, axis=axis)).max(initial=0)) for axis in (0, 1))
    return steps > SHARP * covered


def enhance(picture: Image.Image, how) -> Image.Image:
    """The picture with its brightness, contrast, saturation and sharpness multiplied; a factor of 1 is left out."""
    for name, enhancer in ENHANCERS.items():
        if (factor := getattr(how, name)) != 1:
            picture = enhancer(picture).enhance(factor)
    return picture
