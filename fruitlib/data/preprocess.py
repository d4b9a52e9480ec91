"""A photo file -> the square of bytes that models see; the same bytes on every call."""

import contextlib
import hashlib
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import PIL
from PIL import Image, ImageEnhance

from fruitlib.core.config import FACTORS, Config
from fruitlib.core.errors import InputError
from fruitlib.data import decoding, sources
from fruitlib.data.decoding import Decoded

# OpenCV would split each small picture among its own threads, which wait by spinning. That takes cores from torch
# during training, and photos are already decoded in parallel. The setting holds for the whole process.
cv2.setNumThreads(0)

LIBRARIES = {"opencv": cv2.__version__, "pillow": PIL.__version__}  # other versions may decode differently
ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
    "sharpness": ImageEnhance.Sharpness,
}
CHANGED = "changed since the photos were divided: run the sweep (or 01_split) again, which divides them anew"
Area = tuple[float, float, float, float]  # left, top, right, bottom in pixels


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
            bits = 0 if config.deep_bits == "auto" else config.deep_bits
            how = {"megapixels": config.max_megapixels, "bits": bits, "known": bool(sha256)}
            photo = None if changed else held.enter_context(decoding.opened(content, **how))
        except InputError as problem:
            raise InputError(f"{file}: does not open ({problem}): repair or remove it, then split again") from None
        if photo is None:
            raise InputError(f"{file}: {CHANGED}")
        return _prepared(photo, path, box, config)


def _prepared(photo: Decoded, path: str, box: tuple[int, int, int, int] | None, config: Config) -> np.ndarray:
    """The decoded photo as models see it."""
    left, top, right, bottom = area = region(photo.image, photo.area(box) if box else None, config)
    if right - left < 1 or bottom - top < 1:
        across, down = photo.size
        raise InputError(f"{path}: the box lies outside the photo, {across} x {down}: correct the table")
    return np.array(enhance(square(photo.image, central(area, config), config.resize, config.image_size), config))


def share_with_object(folder: Path, paths: Iterable[str]) -> float:
    """In what share of the photos at a manifest's paths `crop_to: object` finds an object; the others stay whole."""
    found = []
    for path in paths:
        photo = decoding.open_photo(sources.locate(folder, path)[0], decoding.MOST_MEGAPIXELS)
        found.append(find_object(np.asarray(photo)) is not None)
    return float(np.mean(found))


def region(photo: Image.Image, boxed: Area | None, config: Config) -> Area:
    """The part of the photo that `crop_to` keeps: its box or the object with a margin, else all of it."""
    whole = (0, 0, photo.width, photo.height)
    if config.crop_to == "none":
        return whole
    inside = whole
    if boxed:
        if config.crop_to == "box":
            return widened(boxed, config.crop_margin, whole)
        inside = widened(boxed, 0, whole)  # a photo of several boxes has an object in each
    if config.crop_to == "object" and inside[2] > inside[0] and inside[3] > inside[1]:
        extent = find_object(np.asarray(photo.crop(inside)))
        if extent:
            shifted = (extent[0] + inside[0], extent[1] + inside[1], extent[2] + inside[0], extent[3] + inside[1])
            return widened(shifted, config.crop_margin, inside)
    return inside


def central(area: Area, config: Config) -> Area:
    """The middle of the area: of each side the share `center`; with `resize: crop`, of the square that it keeps."""
    if config.center == 1:
        return area
    left, top, right, bottom = area
    across, down = right - left, bottom - top
    if config.resize == "crop":
        across = down = min(across, down)
    x, y, half = (left + right) / 2, (top + bottom) / 2, config.center / 2
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


def find_object(pixels: np.ndarray, look_at: int = 256) -> Area | None:
    """The extent of the object on a plain background in uint8 (h, w, 3), or None where there is none.

    The background's colour is the median along the border, which must be plain: three quarters of its pixels within
    30 of 255 steps of that colour. Pixels that differ from it by more than Otsu's threshold (1979) are the object;
    its largest connected part counts, unless that is under 1 % of the picture or all of it. Photos over `look_at`
    pixels are reduced to that size first.
    """
    height, width = pixels.shape[:2]
    scale = max(1, max(height, width) / look_at)
    size = max(1, round(width / scale)), max(1, round(height / scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if scale > 1 else pixels
    border = np.concatenate([small[0], small[-1], small[1:-1, 0], small[1:-1, -1]])
    colour = np.median(border, axis=0)
    plain = (np.abs(border - colour).max(1) <= 30).mean() >= 0.75
    difference = np.abs(small - colour).max(2).astype(np.uint8)
    _, mask = cv2.threshold(difference, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    count, _, facts, _ = cv2.connectedComponentsWithStats(mask)
    if not plain or count < 2 or difference.max() <= 30:  # grain and shadows alone are not an object
        return None
    left, top, wide, high, pixels_in = facts[1 + facts[1:, cv2.CC_STAT_AREA].argmax()]
    if pixels_in < 0.01 * mask.size or (wide, high) == size:
        return None
    across, down = width / size[0], height / size[1]
    return float(left * across), float(top * down), float((left + wide) * across), float((top + high) * down)


def square(photo: Image.Image, area: Area, how: str, side: int) -> Image.Image:
    """The area of the photo as a square of `side` pixels, each the mean over the pixels it covers.

    `crop` keeps the central square, `squash` everything out of proportion, `pad` everything in proportion, with the
    outermost pixels repeated beside it (a reflection would show parts of a second fruit).
    """
    left, top, right, bottom = area
    width, height = right - left, bottom - top
    size = (side, side)
    if how == "crop":
        kept = min(width, height)
        x, y = left + (width - kept) / 2, top + (height - kept) / 2
        area = (x, y, min(x + kept, right), min(y + kept, bottom))
    if how == "pad":
        longer = max(width, height)
        size = max(1, round(side * width / longer)), max(1, round(side * height / longer))
    resized = photo.resize(size, Image.Resampling.BILINEAR, box=area, reducing_gap=3)
    if size == (side, side):
        return resized
    across, down = side - size[0], side - size[1]
    edges = down // 2, down - down // 2, across // 2, across - across // 2
    return Image.fromarray(cv2.copyMakeBorder(np.asarray(resized), *edges, cv2.BORDER_REPLICATE))


def enhance(picture: Image.Image, config: Config) -> Image.Image:
    """The picture with its brightness, contrast, saturation and sharpness multiplied; a factor of 1 is left out."""
    for name in FACTORS:
        if (factor := getattr(config, name)) != 1:
            picture = ENHANCERS[name](picture).enhance(factor)
    return picture
