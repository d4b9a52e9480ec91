"""Opens every photo once: is it a photo, how large is it, what is odd about it, and what does it look like?

Nothing is rewritten. A photo that cannot be used is quarantined with a reason; one that can be used, but differs from
what its name or kind says, is `ok` and its reason says what is odd. Test photos of a predefined split are listed, not
opened ("sealed").

Threads do the work: decoding, hashing and reading let other threads run, and unlike processes they start at once, in
notebooks and plain scripts alike.
"""

import contextlib
import hashlib
import io
import itertools
import os
import re
import stat
import threading
import types
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
from PIL import Image, ImageCms, ImageFile

from fruitlib.core.errors import InputError
from fruitlib.core.progress import OnProgress
from fruitlib.data import sources

COLUMNS = ["status", "reason", "width", "height", "sha256", "phash"]
UNOPENED = (0, 0, "", "")  # width, height, sha256 and phash of a photo that was not opened
CHUNK = 16  # photos a thread takes at a time
MOST_BYTES = 2**30
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM")  # no EPS: it runs code
NAMED = {"jpg": "JPEG", "jpeg": "JPEG", "jfif": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP"}
NAMED |= {"tif": "TIFF", "tiff": "TIFF", "avif": "AVIF"}
SAME_KIND = {"MPO": "JPEG", "DIB": "BMP"}
ORIENTATION = 0x0112  # the EXIF tag; 2 to 8 say how to turn a photo upright (Exif 2.3, 4.6.4)
TURNS = dict(
    enumerate([Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM], 2)
)
TURNS |= {5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270}
TURNS |= {7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90}
NO_PHOTO = [  # how files begin that Pillow does not open, and what to call them; the first match counts
    (rb"version https://git-lfs", "a Git LFS pointer, not the photo itself: run git lfs pull"),
    (rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?<(!doctype html|html|head|body|!--)", "a web page, not an image"),
    (rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!doctype svg[^>]*>\s*)?<svg", "an SVG drawing: export it as PNG first"),
    (rb"%pdf", "a PDF, not an image"),
    (rb"pk\x03\x04|pk\x05\x06|\x1f\x8b|rar!|7z\xbc\xaf", "an archive (ZIP or the like), not an image"),
    (rb".{4}ftyp(hei|hev|mif1|msf1)", "HEIC: convert it to JPEG first"),
    (rb"\xff\x0a|.{4}jxl ", "JPEG XL: convert it to JPEG first"),
    (rb"8bps", "a Photoshop file: export it as JPEG first"),
    (
        rb"\xff\xd8|\x89png|gif8|riff.{4}webp|ii\*\0|mm\0\*|bm.{4}\0|.{4}ftypavi[fs]",
        "damaged: cut off or corrupt at its start",
    ),
    (rb".{4}ftyp|riff.{4}avi |\x1a\x45\xdf\xa3", "a video, not an image"),
    (rb"\0\x05\x16\x07", "a Mac's side file (AppleDouble), not the photo itself"),
    (rb"\0+\Z", "nothing but zero bytes"),
    (rb"[\s!-~]+\Z", "text, not an image"),
]


def check_photos(
    folder: Path,
    rows: pd.DataFrame,
    min_side: int = 16,
    progress: OnProgress | None = None,
    workers: int | None = None,
) -> pd.DataFrame:
    """Open every photo that may be opened; adds status, reason, width, height, sha256 and phash.

    Predefined test photos become `sealed`, and rows whose status is `left_out` keep it; neither is opened. A
    file with several boxes is decoded once. `progress(done, total)` is called from this thread, every few photos. The
    table is the same whatever the number of `workers` (threads; as many as processors by default).
    """
    paths = rows["path"].tolist()
    left_out = (rows["status"] == "left_out").to_numpy() if "status" in rows else np.zeros(len(rows), bool)
    closed = left_out | (rows["split"] == "test").to_numpy()
    why = rows["reason"].tolist() if "reason" in rows else [""] * len(rows)
    facts = [
        ("left_out", text, *UNOPENED) if out else ("sealed", "", *UNOPENED)
        for text, out in zip(why, left_out, strict=True)
    ]
    to_open = sorted(np.flatnonzero(~closed).tolist(), key=paths.__getitem__)
    places = ((position, *sources.locate(folder, paths[position])) for position in to_open)
    by_file = ([*rows_of_one] for _, rows_of_one in itertools.groupby(places, key=lambda place: place[1]))
    done = 0
    work = ((chunk, min_side) for chunk in _chunks(by_file))
    with contextlib.closing(_in_threads(_inspect_chunk, work, workers or os.cpu_count() or 1)) as results:
        for chunk in results:
            for position, fact in chunk:
                facts[position] = fact
            done += len(chunk)
            if progress:
                progress(done, len(to_open))
    checked = pd.DataFrame(facts, columns=COLUMNS, index=rows.index)
    return pd.concat([rows.drop(columns=COLUMNS, errors="ignore"), checked], axis=1)


def _chunks(items: Iterator) -> Iterator[list]:
    return iter(lambda: list(itertools.islice(items, CHUNK)), [])


def _in_threads(work: Callable, jobs: Iterable[tuple], workers: int) -> Iterator:
    """`work(*job)` for every job, in order; few are queued at a time, for memory and for Ctrl-C."""
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque()
        for job in jobs:
            waiting.append(pool.submit(work, *job))
            if len(waiting) >= 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _inspect_chunk(files: list[list[tuple]], min_side: int) -> list[tuple[int, tuple]]:
    """(row, facts) of every place in some files; a place is (row, file, box)."""
    results = []
    for places in files:
        facts = _inspect(places[0][1], [box for _, _, box in places], min_side)
        results += [(position, fact) for (position, _, _), fact in zip(places, facts, strict=True)]
    return results


def inspect(
    file: Path, box: tuple[int, int, int, int] | None = None, min_side: int = 16
) -> tuple[str, str, int, int, str, str]:
    """(status, reason, width, height, sha256, phash) of a photo, or of a box (x, y, width, height) in it.

    Width and height are the whole upright photo's, sha256 the file's, phash the box's. The file is read once and
    decoded completely, a large JPEG file at a reduced scale if no box is given.
    """
    return _inspect(Path(file), [box], min_side)[0]


def _inspect(file: Path, boxes: list, min_side: int) -> list[tuple]:
    """`inspect` for several boxes of one file."""
    sha256 = ""
    try:
        content = _read(file)
        sha256 = hashlib.sha256(content).hexdigest()
        photo, size, odd = _decode(content, file.suffix, shrink=boxes == [None])
    except InputError as problem:
        return [("quarantined", str(problem), 0, 0, sha256, "")] * len(boxes)
    return [_facts(photo, size, odd, sha256, box, min_side) for box in boxes]


def _facts(photo: Image.Image, size: tuple[int, int], odd: list[str], sha256: str, box, min_side: int) -> tuple:
    """The facts of a photo that opened, or of one box in it."""
    if wrong := _wrong_size(size, box, min_side):
        return "quarantined", wrong, *size, sha256, ""
    area = (0, 0, *photo.size) if box is None else (box[0], box[1], box[0] + box[2], box[1] + box[3])
    small = photo.resize((32, 32), Image.Resampling.BOX, area)
    if _flat(small) and _flat(photo.crop(area)):
        odd = [*odd, "a single flat colour"]
    return "ok", "; ".join(odd), *size, sha256, looks(small)


def _wrong_size(size: tuple[int, int], box: tuple | None, min_side: int) -> str:
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

    Shape is imagehash's pHash, the signs of the 8 x 8 lowest frequencies of the luminance's cosine transform against
    their median (Zauner, 2010, "Implementation and benchmarking of perceptual image hash functions"). It is the same
    for a yellow apple and a red one, so colour follows: the mean red, green and blue of 3 x 3 cells, a byte each.
    """
    return str(imagehash.phash(small)) + small.resize((3, 3), Image.Resampling.BOX).tobytes().hex()


def open_photo(file: Path) -> Image.Image:
    """One photo as RGB, upright (EXIF orientation applied), fully decoded.

    Transparent parts are shown on white, deeper greys are scaled to 8 bits, and an animation gives its first frame.

    Raises:
        InputError: no such file, or not a photo that can be used; the line says why.
    """
    try:
        return _decode(_read(Path(file)), "", shrink=False)[0]
    except InputError as problem:
        raise InputError(f"{file}: {problem}") from None


def glimpse(file: Path, side: int = 128) -> np.ndarray | None:
    """A small picture of a photo even if it is damaged: uint8 (h, w, 3), at most `side` pixels; None if none opens.

    For a page that lists quarantined photos. Do not call it while other threads decode: cut-off files need a setting
    of Pillow's that holds for the process.
    """
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
    try:
        with _warnings_kept():
            photo = Image.open(io.BytesIO(_read(Path(file))), formats=FORMATS)
            _check_pixels(photo)
            photo.thumbnail((side, side))
            return np.asarray(photo.convert("RGB"))
    except Exception:  # a broken file can raise nearly anything inside a decoder
        return None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _read(file: Path) -> bytes:
    """The file's bytes, or an `InputError` saying why there are none."""
    try:
        facts = os.stat(file)
        if stat.S_ISDIR(facts.st_mode):
            raise InputError("a folder, where a file is expected")
        if not stat.S_ISREG(facts.st_mode):
            raise InputError("not a regular file")  # reading a pipe would wait for ever
        if facts.st_size > MOST_BYTES:
            raise InputError(f"too large: a file of {facts.st_size / 2**30:.1f} GiB")
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
    return content


def _decode(content: bytes, suffix: str, shrink: bool) -> tuple[Image.Image, tuple[int, int], list[str]]:
    """(upright RGB photo, its size before any shrinking, what is odd about it); `InputError` where it does not open."""
    with _warnings_kept() as messages:
        try:
            photo = Image.open(io.BytesIO(content), formats=FORMATS)
            _check_pixels(photo)
            odd, raw, whole = _oddities(photo, suffix), str(photo.tile), photo.size
            shrunk = shrink and photo.draft(None, (128, 128))
            photo.load()
            whole = whole if shrunk else photo.size  # TIFF turns while loading
            orientation, readable = _orientation(photo, messages)
            rgb, changes = _to_rgb(photo, raw)
        except InputError:
            raise
        except Exception as problem:  # a broken file can raise nearly anything inside a decoder
            raise InputError(_damage(problem, content)) from None
    if _zero_tail(content):
        raise InputError("cut off: its end is nothing but zeros")
    if orientation in TURNS:
        rgb = rgb.transpose(TURNS[orientation])
    odd += changes + ([] if readable else ["EXIF orientation unreadable"])
    return rgb, whole[::-1] if orientation >= 5 else whole, odd


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


def _check_pixels(photo: Image.Image) -> None:
    """Raise, by the header alone, for a photo that would fill the memory or has no defined brightness."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit and photo.width * photo.height > limit:
        raise Image.DecompressionBombError
    if photo.mode == "F":
        raise InputError("floating-point pixels: save it with 8 or 16 bits first")


def _oddities(photo: Image.Image, suffix: str) -> list[str]:
    """What is odd by the header: a wrong file ending, several frames."""
    kind, named = SAME_KIND.get(photo.format, photo.format), NAMED.get(suffix.lower()[1:])
    odd = [f"{'an' if kind[0] == 'A' else 'a'} {kind} under the name {suffix}"] if named and named != kind else []
    frames = getattr(photo, "n_frames", 1) if photo.format not in ("JPEG", "MPO") else 1  # MPO: previews, no animation
    if frames > 1:
        odd.append(f"{'several pages' if kind == 'TIFF' else 'animated'}: the first of {frames} {_parts(kind)}")
    return odd


def _parts(kind: str) -> str:
    return "pages" if kind == "TIFF" else "frames"


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


def _to_rgb(photo: Image.Image, raw: str) -> tuple[Image.Image, list[str]]:
    """The photo as RGB of 8 bits, and what was changed; `raw` is how Pillow describes the stored pixels."""
    if photo.mode.startswith("I"):
        return _to_8_bits(photo, raw)
    changes = ["16 bits scaled to 8"] if photo.format in ("PNG", "TIFF") and ";16" in raw else []
    if photo.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(photo, lab, srgb, outputMode="RGB"), changes
    if photo.has_transparency_data:
        photo = photo.convert("RGBA")
        if photo.getchannel("A").getextrema()[0] < 255:
            white = Image.new("RGBA", photo.size, "white")
            white.alpha_composite(photo)
            photo, changes = white, [*changes, "transparent parts shown on white"]
    return photo.convert("RGB"), changes


def _to_8_bits(photo: Image.Image, raw: str) -> tuple[Image.Image, list[str]]:
    """Integer greys of 12, 16 or 32 bits, scaled to 8; 32 bits count as 16 if all values fit, as PGM stores them."""
    values = np.asarray(photo)
    if re.search(r"I;\d+B?S", raw) and values.min() < 0:
        raise InputError("negative pixel values: save it with 8 or 16 bits, from 0, first")
    values = values.view(np.uint32) if values.dtype.itemsize == 4 else values
    bits = 12 if "I;12" in raw else 16 if values.max() < 2**16 else 32
    grey = Image.fromarray((values >> (bits - 8)).astype(np.uint8))
    return grey.convert("RGB"), [f"{bits} bits scaled to 8"]


def _damage(problem: Exception, content: bytes) -> str:
    """Why a photo did not open or decode, in a few words."""
    text = str(problem).lower()
    if isinstance(problem, Image.DecompressionBombError):
        return f"too large: more than {Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels"
    if isinstance(problem, Image.UnidentifiedImageError):
        names = (name for start, name in NO_PHOTO if re.match(start, content[:1024], re.DOTALL | re.IGNORECASE))
        return next(names, "not an image that can be read")
    if isinstance(problem, MemoryError):
        return "more memory needed to decode it than there is"
    if "not available" in text or "unsupported" in text:
        return "compressed in a way that cannot be read here: save it again as JPEG or PNG"
    short = content[:4] == b"RIFF" and int.from_bytes(content[4:8], "little") + 8 > len(
        content
    )  # a WebP file holds its length
    if short or re.search("truncated|unexpected end|not enough|only got|eof", text):
        return "cut off: the end of the picture is missing"
    return "corrupt data inside"


def _zero_tail(content: bytes) -> bool:
    """Whether a JPEG file ends in zeros where its picture should, as after a broken copy; libjpeg fills in grey."""
    kept = content.rstrip(b"\0")
    lost = len(content) - len(kept) >= 64 and content.startswith(b"\xff\xd8")
    return lost and kept.rfind(b"\xff\xd9") < kept.rfind(b"\xff\xda")  # no end of image after the last start of scan
