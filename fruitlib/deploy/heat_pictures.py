"""Pictures of where a file looked: the photo as the network sees it, and beside it in grey under the heat's colours."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from fruitlib.core.errors import InputError
from fruitlib.core.files import replacing
from fruitlib.deploy.named_photos import Photo

SMALLEST = 224  # pixels a side that a square is enlarged to
GAP = 4  # white pixels between the two
# From cold to hot: deep blue to yellow, ever lighter, distinct with every kind of colour blindness.
COLOURS = np.array([(0, 28, 92), (52, 70, 140), (140, 100, 120), (226, 140, 60), (255, 232, 70)], np.float32)
OVER_COLD, OVER_HOT = 0.35, 0.75  # how much of the photo the colours cover, by heat


def picture(square: np.ndarray, heat: np.ndarray) -> Image.Image:
    """The square uint8 (S, S, 3), and beside it what speaks for the class, heat (h, w): black and white under colours.

    Heat is shown from 0 to its highest value; what speaks against the class, below 0, is as cold as 0.
    """
    side = max(SMALLEST, len(square))
    photo = Image.fromarray(square).resize((side, side), Image.Resampling.BICUBIC)
    shown = Image.new("RGB", (2 * side + GAP, side), "white")
    shown.paste(photo, (0, 0))
    warm = np.maximum(heat, 0).astype(np.float32)
    warm /= max(float(warm.max()), 1e-12)
    warm = np.asarray(Image.fromarray(warm).resize((side, side), Image.Resampling.BILINEAR))
    steps = np.linspace(0, 1, len(COLOURS))
    colours = np.stack([np.interp(warm, steps, channel) for channel in COLOURS.T], 2)
    share = (OVER_COLD + (OVER_HOT - OVER_COLD) * warm)[..., None]
    grey = np.asarray(photo.convert("L"), np.float32)[..., None]
    mixed = (1 - share) * grey + share * colours
    shown.paste(Image.fromarray(mixed.round().astype(np.uint8)), (side + GAP, 0))
    return shown


def places(folder: Path, photos: Iterable[Photo]) -> dict[Photo, Path]:
    """The file of each photo's picture: `folder` with the photo's own path below what named it, and `.png` behind it.

    Raises:
        InputError: the folder cannot be written, or two photos would have one file.
    """
    found, taken = {}, {}
    for photo in photos:
        file = folder / f"{photo.below}.png"
        if (other := taken.setdefault(os.path.normcase(file), photo)) != photo:
            same = f"{other.shown} and {photo.shown} would both be {file}"
            raise InputError(f"--cam {folder}: {same}: name the folder that holds both, in place of each")
        found[photo] = file
    return found


def check_folder(folder: Path, named: Iterable[str]) -> None:
    """Make the folder, unless it cannot be written or lies among the photos: its pictures would be taken for photos.

    Raises:
        InputError: it cannot, or it does.
    """
    real = os.path.realpath(folder)
    for argument in named:
        place = os.path.realpath(os.path.expanduser(argument))
        if os.path.isdir(place) and os.path.commonpath([real, place]) == place:
            raise InputError(f"--cam {folder}: lies among the photos of {argument}: name a folder outside of it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "test.png"):
            raise InterruptedError  # so that nothing is left there
    except InterruptedError:
        return
    except OSError as problem:
        raise InputError(f"--cam {folder}: cannot be written ({problem.strerror})") from None


def write(file: Path, square: np.ndarray, heat: np.ndarray) -> None:
    """`picture` as a PNG file, atomically.

    Raises:
        InputError: it cannot be written.
    """
    try:
        with replacing(file) as partial:
            picture(square, heat).save(partial, "PNG", compress_level=1)  # four times as fast as the usual 6
    except OSError as problem:
        raise InputError(f"--cam: {file}: cannot be written ({problem.strerror or problem})") from None
