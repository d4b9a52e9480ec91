"""Pictures inside pages: what claims to be one is opened before it stands there, and large ones are made lighter."""

import base64
import io
import re
import warnings
from xml.etree import ElementTree

from PIL import Image

from fruitlib.core.errors import first_line

SVG = "image/svg+xml"
RASTER = {"image/png": "PNG", "image/jpeg": "JPEG", "image/gif": "GIF", "image/webp": "WEBP"}
TYPES = (SVG, *RASTER)  # the richest first
MAX_LENGTH = 40_000_000  # characters of a picture in a notebook
MAX_PIXELS = 40_000_000
MAX_SIDE = 16_383  # of a WebP
LARGE_PNG = 80_000  # base64 characters of a PNG: charts are smaller, sheets of photographs larger


class NotShown(ValueError):
    """A picture that cannot be shown; the message says why."""


def embedded(mime: str, content: str) -> str:
    """The `data:` address of a picture out of a notebook: SVG text, or base64 of the other `TYPES`.

    Its type is the one its bytes have. A PNG of photographs becomes a WebP, a tenth of the size. An SVG shown as a
    picture runs no script and loads nothing.

    Raises:
        NotShown: it is no picture of these types, is cut off, or is too large.
    """
    if len(content) > MAX_LENGTH:
        raise NotShown(f"it has {len(content):,} characters, above {MAX_LENGTH:,}")
    if mime == SVG:
        return f"data:{SVG};base64,{base64.b64encode(_checked_svg(content)).decode()}"
    content = "".join(content.split())
    try:
        data = base64.b64decode(content, validate=True)
    except ValueError:
        raise NotShown("it is not encoded as base64") from None
    picture = _opened(data)
    found = next(mime for mime, name in RASTER.items() if name == picture.format)
    if found == "image/png" and len(content) >= LARGE_PNG:
        found, content = "image/webp", _as_webp(picture)
    return f"data:{found};base64,{content}"


def _opened(data: bytes) -> Image.Image:
    """The picture, decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # there is a lower limit below
            picture = Image.open(io.BytesIO(data), formats=list(RASTER.values()))
        if picture.width * picture.height <= MAX_PIXELS:
            picture.load()
            return picture
    except MemoryError:
        raise
    except Exception as problem:  # decoders raise what they like on bytes that are no picture
        raise NotShown(f"it is no PNG, JPEG, GIF or WebP, or is damaged ({_without_address(problem)})") from None
    raise NotShown(f"it has {picture.width:,} x {picture.height:,} pixels, above {MAX_PIXELS:,}")


def _without_address(problem: Exception) -> str:
    """What a decoder says; not where in memory, which would differ from one report to the next."""
    return re.sub(r" <\S+ object at 0x\w+>", "", first_line(problem))


def _as_webp(picture: Image.Image) -> str:
    """Base64 of a WebP on white paper, smaller where a side is longer than a WebP may have."""
    picture = picture.convert("RGBA")
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    paper, buffer = Image.new("RGBA", picture.size, "white"), io.BytesIO()
    Image.alpha_composite(paper, picture).convert("RGB").save(buffer, "WEBP", quality=85, method=4)
    return base64.b64encode(buffer.getvalue()).decode()


def _checked_svg(text: str) -> bytes:
    if "<!entity" in text.lower():
        raise NotShown("it is an SVG that defines entities")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as problem:
        raise NotShown(f"it is no SVG ({first_line(problem)})") from None
    if root.tag != "{http://www.w3.org/2000/svg}svg":
        raise NotShown("it is no SVG")
    return text.encode()
