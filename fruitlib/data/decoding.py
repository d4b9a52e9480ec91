"""A photo file -> its upright RGB pixels, within bounded memory, or one line saying why there are none.

Every place that opens a photo does it here, so that all see the same pixels. A file is read once, refused by its header
where it is too large, decoded, checked to be complete (`completeness`), brought to 8 bits and turned upright. Photos of
more than `FULL_SCALE` pixels are read at a reduced scale.
"""

import contextlib
import functools
import io
import math
import os
import re
import stat
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from fruitlib.core.errors import InputError
from fruitlib.data import completeness, memory, rgb
from fruitlib.data.completeness import JpegScans

MOST_BYTES = 2**30
FULL_SCALE = 89_000_000  # pixels; larger photos are read at a half, a quarter or an eighth of their scale
ENOUGH = (
    4_000_000  # pixels; where a small picture will do, larger photos that cannot be divided evenly are made smaller
)
MOST_MEGAPIXELS = 2000  # the upper end of the setting max_megapixels
CUT_OFF = "cut off: the end of the picture is missing"
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM")  # no EPS: it runs code
NAMED = dict.fromkeys(("jpg", "jpeg", "jpe", "jfif"), "JPEG") | {kind.lower(): kind for kind in FORMATS[1:5]}
NAMED |= {"tif": "TIFF", "tiff": "TIFF", "avif": "AVIF", "jp2": "JPEG2000", "j2k": "JPEG2000"}
NAMED |= {"heic": "HEIF", "heif": "HEIF"} | dict.fromkeys(("ppm", "pgm", "pbm", "pnm"), "PPM")
ENDINGS = {f".{ending}" for ending in NAMED}  # HEIC, too, which needs an extra: so that a message names it
SAME_KIND = {"MPO": "JPEG", "DIB": "BMP"}
ORIENTATION = 0x0112  # the EXIF tag; 2 to 8 say how to turn a photo upright (Exif 2.3, 4.6.4)
TURNS = dict(
    enumerate([Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM], 2)
)
TURNS |= {5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270}
TURNS |= {7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90}
HEIC = re.compile(rb".{4}ftyp(hei|hev|mif1|msf1)", re.DOTALL)
NO_PHOTO = [  # how files begin that Pillow does not open, and what to call them; the first match counts
    (rb"version https://git-lfs", "a Git LFS pointer, not the photo itself: run git lfs pull"),
    (rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?<(!doctype html|html|head|body|!--)", "a web page, not an image"),
    (rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!doctype svg[^>]*>\s*)?<svg", "an SVG drawing: export it as PNG first"),
    (rb"%pdf", "a PDF, not an image"),
    (rb"pk\x03\x04|pk\x05\x06|\x1f\x8b|rar!|7z\xbc\xaf", "an archive (ZIP or the like), not an image"),
    (rb"\xff\x0a|.{4}jxl ", "JPEG XL: convert it to JPEG first"),
    (rb"8bps", "a Photoshop file: export it as JPEG first"),
    (
        rb"\xff\xd8|\x89png|gif8|riff.{4}webp|ii\*\0|mm\0\*|bm.{4}\0|.{4}ftyp(avi[fs]|hei|hev|mif1|msf1)|.{4}jp  ",
        "damaged: cut off or corrupt at its start",
    ),
    (rb".{4}ftyp|riff.{4}avi |\x1a\x45\xdf\xa3", "a video, not an image"),
    (rb"\0\x05\x16\x07", "a Mac's side file (AppleDouble), not the photo itself"),
    (rb"\0+\Z", "nothing but zero bytes"),
    (rb"[\s!-~]+\Z", "text, not an image"),
]


@dataclass(frozen=True)
class Decoded:
    """A photo in memory.

    `image` is upright RGB of 8 bits, perhaps reduced; `size` (width, height) is the upright photo's own. `odd` says
    what is odd about it, and `bits` how many its values use where the file holds more than 8 a channel, else 0.
    `divided` is by what a decoder divided the sides of a JPEG file of one scan, 1 where nothing was reduced, 0 where it
    was in another way.
    """

    image: Image.Image
    size: tuple[int, int]
    odd: list[str]
    bits: int
    divided: int

    def area(self, box: tuple[int, int, int, int]) -> tuple[float, float, float, float]:
        """Left, top, right and bottom in `image` of a box (x, y, width, height) in the photo's own pixels."""
        x, y, width, height = box
        scale = self.image.width / self.size[0]
        return scale * x, scale * y, scale * (x + width), scale * (y + height)


def is_photo(name: str) -> bool:
    """Whether a file is a photo by its name."""
    return os.path.splitext(name)[1].lower() in ENDINGS


@contextlib.contextmanager
def contents(file: Path) -> Iterator[bytes]:
    """The file's bytes, in memory that is counted (`memory`) until the block ends.

    Raises:
        InputError: there are none; the line says why, without the file's name.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(memory.FILES.hold(_size(file)))
            content = file.read_bytes()
        except FileNotFoundError:
            raise InputError("a link to a missing file" if os.path.islink(file) else "no such file") from None
        except PermissionError:
            raise InputError("not readable: permission denied") from None
        except (OSError, ValueError) as problem:
            if isinstance(problem, InputError):
                raise
            raise InputError(f"not readable: {getattr(problem, 'strerror', None) or problem}") from None
        if not content:
            raise InputError("the file is empty (0 bytes)")
        yield content


def _size(file: Path) -> int:
    """How many bytes a file has, if it is one that can be read."""
    facts = os.stat(file)
    if stat.S_ISDIR(facts.st_mode):
        raise InputError("a folder, where a file is expected")
    if not stat.S_ISREG(facts.st_mode):
        raise InputError("not a regular file")  # reading a pipe would wait for ever
    if facts.st_size > MOST_BYTES:
        raise InputError(f"too large: a file of {facts.st_size / 2**30:.1f} GiB")
    return facts.st_size


def open_photo(file: Path, megapixels: float = FULL_SCALE / 1e6) -> Image.Image:
    """One photo as RGB, upright (EXIF orientation applied), fully decoded.

    Transparent parts are shown on white, values of more than 8 bits are scaled to 8 by the range that the photo itself
    uses, and an animation gives its first frame.

    Raises:
        InputError: no such file, or not a photo that can be used; the line says why.
    """
    try:
        with contents(Path(file)) as content, opened(content, megapixels=megapixels) as photo:
            return photo.image
    except InputError as problem:
        raise InputError(f"{file}: {problem}") from None


@contextlib.contextmanager
def opened(
    content: bytes,
    suffix: str = "",
    megapixels: float = FULL_SCALE / 1e6,
    bits: int = 0,
    small: bool = False,
    known: bool = False,
    reducible: Callable[[tuple[int, int]], int] = lambda size: 1,
) -> Iterator[Decoded]:
    """The photo that a file's bytes hold, in memory that is counted (`memory`) until the block ends.

    Args:
        suffix: the file's ending, `.jpg`; another kind under that name is odd. Empty: not looked at.
        megapixels: larger photos are refused, million pixels.
        bits: the brightest value is 2**bits - 1 where the file has more than 8 bits; 0: as the photo itself uses.
        small: a picture of some hundred pixels a side will do.
        known: these bytes were found complete before, so that this need not be checked again.
        reducible: from a photo's size, upright or not, to the power of two by which a decoder may divide its sides.

    Raises:
        InputError: not a photo that can be used; the line says why, without the file's name.
    """
    with contextlib.ExitStack() as held:
        with _warnings_kept() as messages:
            try:
                photo = _identify(content, megapixels)
                odd, raw, whole = _oddities(photo, suffix), str(photo.tile), photo.size
                factor, drafted, divided = _load(photo, content, small, known, reducible, held)
                whole = whole if drafted else photo.size  # TIFF turns while loading
                orientation, readable = _orientation(photo, messages)
                image, changes, used = rgb.convert(photo, content, raw, bits, factor)
            except InputError:
                raise
            except Exception as problem:  # a broken file can raise nearly anything inside a decoder
                raise InputError(_damage(problem, content)) from None
        if _zero_tail(content):
            raise InputError("cut off: its end is nothing but zeros")
        if orientation in TURNS:
            image = image.transpose(TURNS[orientation])
        odd += changes + ([] if readable else ["EXIF orientation unreadable"])
        yield Decoded(image, whole[::-1] if orientation >= 5 else whole, odd, used, divided)


_thread = threading.local()


def _keep(text: str) -> bool:
    messages = getattr(_thread, "messages", None)
    if messages is not None:
        messages.append(text)
    return messages is not None


# Ignores a warning only in a thread that is inside `_warnings_kept`: a filter calls its pattern's `match`. Code that
# copies filters, as scikit-learn does for its workers, copies `pattern`, which matches nothing.
_FILTER = ("ignore", types.SimpleNamespace(match=_keep, pattern="(?!)"), Warning, None, 0)


@contextlib.contextmanager
def _warnings_kept() -> Iterator[list[str]]:
    """Collect this thread's warnings instead of showing them; other threads' warnings are not affected.

    `warnings.catch_warnings` swaps the filters of the whole process, and two threads in it restore each other's.
    """
    if warnings.filters[:1] != [_FILTER]:
        with contextlib.suppress(ValueError):
            warnings.filters.remove(_FILTER)
        warnings.filters.insert(0, _FILTER)
    _thread.messages = []
    try:
        yield _thread.messages
    finally:
        _thread.messages = None


# ---- the header


def _identify(content: bytes, megapixels: float) -> Image.Image:
    """The file's header as Pillow reads it; refused where its pixels would be too many, or have no defined brightness.

    Pillow has a limit of its own for the whole process, which is raised only for who asks for more.
    """
    formats = (*FORMATS, "HEIF") if HEIC.match(content) and heif_is_readable() else FORMATS
    if Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, int(megapixels * 1e6))
    try:
        photo = Image.open(io.BytesIO(content), formats=formats)
    except Image.DecompressionBombError as problem:
        named = re.search(r"(\d+) pixels", str(problem))
        raise InputError(_too_large(int(named[1]) if named else 0)) from None
    if photo.width * photo.height > megapixels * 1e6:
        raise InputError(_too_large(photo.width * photo.height))
    if photo.mode == "F":
        raise InputError("floating-point pixels: save it with 8 or 16 bits first")
    return photo


@functools.cache
def heif_is_readable() -> bool:
    """Whether the package for HEIC, an extra, is installed; it is imported when the first such file is met."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _too_large(pixels: int) -> str:
    millions = pixels / 1e6
    if not 0 < millions <= MOST_MEGAPIXELS:
        return f"too large: {round(millions):,} million pixels, more than {MOST_MEGAPIXELS:,}: save it smaller first"
    shown = f"{round(millions):,}" if millions >= 100 else f"{millions:.1f}"
    needed = math.ceil(millions)
    return f"too large: {shown} million pixels; set max_megapixels: {needed} or more to read it at a reduced scale"


def _oddities(photo: Image.Image, suffix: str) -> list[str]:
    """What is odd by the header: a wrong file ending, several frames."""
    kind, named = SAME_KIND.get(photo.format, photo.format), NAMED.get(suffix.lower()[1:])
    odd = [f"{'an' if kind[0] == 'A' else 'a'} {kind} under the name {suffix}"] if named and named != kind else []
    frames = getattr(photo, "n_frames", 1) if photo.format not in ("JPEG", "MPO") else 1  # MPO: previews, no animation
    if frames > 1:
        several, parts = ("several pages", "pages") if kind == "TIFF" else ("animated", "frames")
        odd.append(f"{several}: the first of {frames} {parts}")
    return odd


def _orientation(photo: Image.Image, messages: list[str]) -> tuple[int, bool]:
    """The EXIF orientation (1: upright as stored), and False where EXIF data are given but unreadable."""
    try:
        value = photo.getexif().get(ORIENTATION)
    except Exception:  # EXIF can be broken in any way
        return 1, False
    if value is None:
        return 1, not any("EXIF" in text for text in messages)
    known = isinstance(value, int) and 0 <= value <= 8  # some cameras write 0 for 1
    return (value or 1, True) if known else (1, False)


# ---- the pixels


def _load(
    photo: Image.Image, content: bytes, small: bool, known: bool, reducible: Callable, held: contextlib.ExitStack
) -> tuple[int, bool, int]:
    """Decode the pixels; returns the factor by which they are still to be reduced, drafted or not, `Decoded.divided`.

    Memory is counted at 12 bytes a pixel: what is decoded, its copy as RGB, and one that is turned; twice that for
    colours of 16 bits, and for JPEG 2000, whose decoder has a copy of its own. A JPEG file of several scans keeps 6
    more for every pixel at its full scale.
    """
    whole, pixels = photo.size, photo.width * photo.height
    scans = completeness.jpeg_scans(content) if photo.format in ("JPEG", "MPO") else JpegScans()
    several, checked = scans.count > 1, scans.end > 0 and not known and not scans.arithmetic
    factor = _reduction(pixels, small)
    side = whole[0] // factor, whole[1] // factor
    if scans.count == 1 and (pixels <= ENOUGH or (reducible(whole) > 1 and pixels <= FULL_SCALE)):
        side = whole[0] // reducible(whole), whole[1] // reducible(whole)
    elif small:  # below half scale, most of what a last scan brings would not be compared
        side = (whole[0] // 2, whole[1] // 2) if several and checked else (128, 128)
    drafted = side != whole and photo.draft(None, side) is not None
    per_pixel = 24 if ";16" in str(photo.tile) or photo.format == "JPEG2000" else 12
    held.enter_context(memory.PIXELS.hold(photo.width * photo.height * per_pixel + 6 * several * pixels))
    if checked and not several:
        photo.fp = io.BytesIO(completeness.without_end(content, scans))
    photo.load()
    if checked and several and not (scans.all_there and _decodes_alike(photo, content, scans, side)):
        raise InputError(CUT_OFF)
    if photo.format == "PNG" and not known and _last_row_is_blank(photo) and completeness.png_is_short(content):
        raise InputError(CUT_OFF)
    divided = (round(whole[0] / photo.width) if scans.count == 1 else 0) if drafted else int(factor == 1)
    return 1 if drafted else factor, drafted, divided


def _reduction(pixels: int, small: bool) -> int:
    """The power of two by which the sides are divided, to at most `FULL_SCALE` pixels, or to a few million."""
    most, factor = 2 * rgb.STRIP if small else FULL_SCALE, 1
    while pixels > most * factor**2:
        factor *= 2
    return factor


def _decodes_alike(photo: Image.Image, content: bytes, scans: JpegScans, side: tuple[int, int]) -> bool:
    """Whether a JPEG file of several scans gives the same picture with bytes added that a complete one skips.

    `side` is what the photo was asked to be reduced to.
    """
    with Image.open(io.BytesIO(completeness.with_stuffing(content, scans)), formats=("JPEG",)) as other:
        other.draft(None, side)
        other.load()
        strips = zip(rgb.strips(photo), rgb.strips(other), strict=True)
        return all(one.tobytes() == two.tobytes() for (_, one), (_, two) in strips)


def _last_row_is_blank(photo: Image.Image) -> bool:
    """Whether the last row holds nothing but zeros, as missing rows do; of an interlaced file it need not, so True."""
    interlaced = photo.info.get("interlace")
    return bool(interlaced) or not np.asarray(photo.crop((0, photo.height - 1, *photo.size))).any()


# ---- what is wrong


def glimpse(file: Path, side: int = 128) -> np.ndarray | None:
    """A small picture of a photo even if it is damaged: uint8 (h, w, 3), at most `side` pixels; None if none opens.

    For a page that lists quarantined photos. Of photos that are too large only JPEG files are shown, whose decoder
    reduces them. Do not call it while other threads decode: cut-off files need a setting of Pillow's that holds for the
    process.
    """
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
    try:
        with _warnings_kept(), contents(Path(file)) as content:
            photo = Image.open(io.BytesIO(content), formats=FORMATS)
            photo.draft(None, (side, side))
            pixels = photo.width * photo.height
            if pixels > FULL_SCALE:
                return None
            with memory.PIXELS.hold(12 * pixels):
                photo.thumbnail((side, side))
                return np.asarray(photo.convert("RGB"))
    except Exception:  # a broken file can raise nearly anything inside a decoder
        return None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _damage(problem: Exception, content: bytes) -> str:
    """Why a photo did not open or decode, in a few words."""
    text = str(problem).lower()
    if isinstance(problem, Image.UnidentifiedImageError):
        if HEIC.match(content) and not heif_is_readable():
            return "HEIC: pip install 'fruitlib[heic]' to read it, or convert it to JPEG first"
        names = (name for start, name in NO_PHOTO if re.match(start, content[:1024], re.DOTALL | re.IGNORECASE))
        return next(names, "not an image that can be read")
    if isinstance(problem, MemoryError):
        return "more memory needed to decode it than there is"
    if "not available" in text or "unsupported" in text:
        return "compressed in a way that cannot be read here: save it again as JPEG or PNG"
    named = int.from_bytes(content[4:8], "little") + 8 if content[:4] == b"RIFF" else 0  # WebP: the file's length
    if named > len(content) or re.search("truncated|unexpected end|not enough|only got|eof", text):
        return CUT_OFF
    return "corrupt data inside"


def _zero_tail(content: bytes) -> bool:
    """Whether a JPEG file ends in zeros where its picture should, as after a broken copy; libjpeg fills in grey."""
    kept = content.rstrip(b"\0")
    lost = len(content) - len(kept) >= 64 and content.startswith(b"\xff\xd8")
    return lost and kept.rfind(b"\xff\xd9") < kept.rfind(b"\xff\xda")  # no end of image after the last start of scan
