"""Decoded pixels of any kind -> RGB of 8 bits, strip by strip, so that a large photo is not held several times over.

Transparent parts are shown on white. Values of more than 8 bits are scaled by the bits that are in use: a camera of 10
bits writes 0 to 1,023 into a file of 16, which would else be nearly black.
"""

import io
import math
import re
import sys
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageCms

from fruitlib.core.errors import InputError

STRIP = 2**21  # pixels converted at a time


def strips(photo: Image.Image, multiple: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """(first row, part) of the photo in strips of about `STRIP` pixels, of rows that `multiple` divides."""
    rows = max(1, STRIP // photo.width // multiple) * multiple
    for top in range(0, photo.height, rows):
        yield top, photo.crop((0, top, photo.width, min(top + rows, photo.height)))


def _by_strips(photo: Image.Image, change: Callable[[Image.Image], Image.Image], factor: int) -> Image.Image:
    """The photo as RGB by `change`, each pixel the mean of `factor` x `factor`; strip by strip, for memory."""
    if factor == 1 and photo.width * photo.height <= STRIP:
        return change(photo)
    whole = Image.new("RGB", (math.ceil(photo.width / factor), math.ceil(photo.height / factor)))
    for top, strip in strips(photo, factor):
        whole.paste(change(strip).reduce(factor), (0, top // factor))
    return whole


def convert(photo: Image.Image, content: bytes, raw: str, bits: int, factor: int) -> tuple[Image.Image, list[str], int]:
    """The photo as RGB of 8 bits; what was changed; and the bits in use, 0 if there are 8.

    `raw` is how Pillow describes the stored pixels.
    """
    if photo.mode.startswith("I"):
        shift, changes, used = _grey_depth(photo, raw, bits)
        return _by_strips(photo, lambda strip: _shifted(_values(strip), shift), factor), changes, used
    changes, used = [], 0
    if photo.format in ("PNG", "TIFF") and ";16" in raw:
        photo, changes, used = _deep_colours(photo, content, bits)
    if photo.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(lab, srgb, "LAB", "RGB")
        return _by_strips(photo, lambda strip: ImageCms.applyTransform(strip, transform), factor), changes, used
    if photo.mode == "RGB" and factor == 1 and not photo.has_transparency_data:
        return photo, changes, used
    seen = set()
    image = _by_strips(photo, lambda strip: _on_white(strip, seen), factor)
    return image, [*changes, *seen], used


def _on_white(strip: Image.Image, seen: set[str]) -> Image.Image:
    if not strip.has_transparency_data:
        return strip.convert("RGB")
    strip = strip.convert("RGBA")
    if strip.getchannel("A").getextrema()[0] < 255:
        white = Image.new("RGBA", strip.size, "white")
        white.alpha_composite(strip)
        strip = white
        seen.add("transparent parts shown on white")
    return strip.convert("RGB")


def _values(strip: Image.Image) -> np.ndarray:
    """Integer greys as unsigned numbers."""
    values = np.asarray(strip)
    return values.view(np.uint32) if values.dtype.itemsize == 4 else values


def _shifted(values: np.ndarray, shift: int) -> Image.Image:
    """Numbers (h, w) or (h, w, 3) as a picture, without their lowest bits; what is still above 255 is white."""
    return Image.fromarray(np.minimum(values >> shift, 255).astype(np.uint8)).convert("RGB")


def _grey_depth(photo: Image.Image, raw: str, bits: int) -> tuple[int, list[str], int]:
    """By how many bits to shift greys of 12, 16 or 32 bits; that in words; and how many bits the values use."""
    extremes = [(np.asarray(strip).min(), _values(strip).max()) for _, strip in strips(photo)]
    if re.search(r"I;\d+B?S", raw) and min(low for low, _ in extremes) < 0:
        raise InputError("negative pixel values: save it with 8 or 16 bits, from 0, first")
    highest = int(max(high for _, high in extremes))
    holds = 12 if "I;12" in raw else 16 if highest < 2**16 else 32  # PGM stores 16 bits as 32
    used = max(8, highest.bit_length())
    return (bits or used) - 8, [_depth_in_words(holds, used)], used


def _deep_colours(photo: Image.Image, content: bytes, bits: int) -> tuple[Image.Image, list[str], int]:
    """A photo whose channels hold 16 bits, with 8; that in words; and how many bits the values use.

    Pillow keeps the upper 8 of the 16. All are read where the values leave upper bits unused.
    """
    highest = max(high for _, high in photo.getextrema()[:3])
    wanted = bits or 8 + highest.bit_length()
    lower = _lower_bytes(photo, content) if wanted < 16 and photo.mode in ("RGB", "RGBA") else None
    if lower is None:
        return photo, [_depth_in_words(16, 16)], 16
    colours = np.asarray(photo)[..., :3].astype(np.uint16) << 8 | np.asarray(lower)[..., :3]
    used = max(8, int(colours.max()).bit_length())
    image = _shifted(colours, (bits or used) - 8)
    if photo.mode == "RGBA":
        image.putalpha(photo.getchannel("A"))
    elif isinstance(key := photo.info.get("transparency"), tuple):  # the colour that a PNG file says is transparent
        image.putalpha(Image.fromarray(np.where((colours == key).all(2), 0, 255).astype(np.uint8)))
    return image, [_depth_in_words(16, used)], used


def _lower_bytes(photo: Image.Image, content: bytes) -> Image.Image | None:
    """The lower 8 of 16 bits a channel: Pillow keeps what it takes for the upper byte, so it gets the other order.

    None where it unpacks the pixels in some other way.
    """
    with Image.open(io.BytesIO(content), formats=(photo.format,)) as other:
        tiles = [(tile, tile.args if isinstance(tile.args, str) else tile.args[0]) for tile in other.tile]
        if not all(re.fullmatch("RGB[AX]?;16[LBN]", mode) for _, mode in tiles):
            return None
        swapped = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
        changed = []
        for tile, mode in tiles:
            mode = mode[:-1] + swapped[mode[-1]]
            changed.append(tile._replace(args=mode if isinstance(tile.args, str) else (mode, *tile.args[1:])))
        other.tile = changed
        other.load()
        return other


def _depth_in_words(holds: int, used: int) -> str:
    return f"{holds} bits scaled to 8" if used == holds else f"uses {used} of its {holds} bits"
