"""Pictures inside pages: what claims to be one is opened before it stands there, and large ones are made lighter."""

import base64
import io
import re
import warnings
from urllib.parse import quote, unquote
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from fruitlib.core.errors import first_line

SVG, NAMESPACE = "image/svg+xml", "{http://www.w3.org/2000/svg}"
SAFE = " !$'()*+,/:;=?@[]"  # what an address in double quotes may have: an SVG's letters, a third less than base64
RASTER = {"image/png": "PNG", "image/jpeg": "JPEG", "image/gif": "GIF", "image/webp": "WEBP"}
TYPES = (SVG, *RASTER)  # the richest first
MAX_LENGTH = 40_000_000  # characters of a picture in a notebook
MAX_PIXELS = 40_000_000
MAX_SIDE = 16_383  # of a WebP
QUALITY = 60  # of a WebP: sheets have two pixels for each of the page, so what is lost is small
MAX_DRAWN = 50_000  # elements of an SVG that repeats its elements: a browser takes seconds for them
COST_OF_FILTER = 200  # elements that take a browser as long as blurring one
LARGE_PNG = 80_000  # base64 characters of a PNG or JPEG: charts are smaller, sheets of photographs larger


class NotShown(ValueError):
    """A picture that cannot be shown; the message says why."""


def embedded(mime: str, content: str) -> str:
    """The `data:` address of a picture out of a notebook: SVG text, or base64 of the other `TYPES`.

    Its type is the one its bytes have. Photographs become a WebP, a tenth of a PNG's size. An SVG shown as a
    picture runs no script and loads nothing.

    Raises:
        NotShown: it is no picture of these types, is cut off, or is too large.
    """
    if len(content) > MAX_LENGTH:
        raise NotShown(f"it has {len(content):,} characters, above {MAX_LENGTH:,}")
    if mime == SVG:
        return f"data:{SVG},{quote(_checked_svg(content), safe=SAFE)}"
    content = "".join(content.split())
    try:
        data = base64.b64decode(content, validate=True)
    except ValueError:
        raise NotShown("it is not encoded as base64") from None
    picture = _opened(data)
    found = next(mime for mime, name in RASTER.items() if name == picture.format)
    if found in ("image/png", "image/jpeg") and len(content) >= LARGE_PNG:
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


def encoded(picture: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    """A picture, or its pixels uint8 (H, W, 3 or 4), as a file of this kind (PNG, JPEG, WEBP), by Pillow's options."""
    picture, buffer = picture if isinstance(picture, Image.Image) else Image.fromarray(picture), io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _as_webp(picture: Image.Image) -> str:
    """Base64 of a WebP on white paper, smaller where a side is longer than a WebP may have."""
    picture = picture.convert("RGBA")
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    flat = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return base64.b64encode(encoded(flat, "WEBP", quality=QUALITY, method=2)).decode()


def _checked_svg(text: str) -> bytes:
    if "<!entity" in text.lower():
        raise NotShown("it is an SVG that defines entities")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as problem:
        raise NotShown(f"it is no SVG ({first_line(problem)})") from None
    if root.tag != f"{NAMESPACE}svg":
        raise NotShown("it is no SVG")
    _refuse_multiplied(root, _has_markers(root))
    return text.encode()


def _has_markers(root: ElementTree.Element) -> bool:
    """Whether anything speaks of markers; words in comments, such as a class of that name, draw nothing."""
    written = (element.text or "" for element in root.iter(f"{NAMESPACE}style"))
    names = (f"{element.tag} {element.attrib}" for element in root.iter())
    return any("marker" in text.lower() for text in (*written, *names))


def _refuse_multiplied(root: ElementTree.Element, markers: bool) -> None:
    """Refuse an SVG in which few elements stand for many: two thousand characters can keep a browser busy for ever.

    Whatever draws another element (`use`, patterns, masks, markers …) names it by `#id`, so each such name in an
    attribute counts as that element once more. Style sheets that would do so are refused.
    """
    elements = list(root.iter())
    known = {element.get("id"): element for element in elements if element.get("id")}
    if any(set("\"'()#\\") & set(name) for name in known):
        raise NotShown("it is an SVG in which the name of an element is none")
    for element in elements:
        tag = f"{element.tag}".removeprefix(NAMESPACE)
        if tag == "style" and re.search(r"url|filter|\\", element.text or "", re.IGNORECASE):
            raise NotShown("it is an SVG whose style sheet refers to its elements or to filters")
        if tag == "set" or tag.startswith("animate"):
            raise NotShown("it is an SVG that moves")
    try:
        drawn = _drawn(root, known, {}, markers)
    except RecursionError:
        raise NotShown("it is an SVG that is nested too deep") from None
    if drawn > max(MAX_DRAWN, 5 * len(elements)):
        raise NotShown(f"it is an SVG whose elements would be drawn {drawn:,.0f} times, above {MAX_DRAWN:,}")


def _drawn(element: ElementTree.Element, known: dict, counts: dict, markers: bool) -> float:
    """How many elements are drawn for this one, about; one that is blurred, or the like, counts as `COST_OF_FILTER`."""
    if element in counts:
        if counts[element] == 0:
            raise NotShown("it is an SVG in which an element contains itself")
        return counts[element]
    counts[element] = 0  # being counted
    count = 1.0 + sum(_drawn(child, known, counts, markers) for child in element)
    if markers:  # stand at each point of a line
        count += len(element.get("d", "") + element.get("points", "")) // 4
    inherited = 0.0  # drawn for each element within this one, too
    for name, value in element.attrib.items():
        count += COST_OF_FILTER * ("filter" in name or (name == "style" and "filter" in value.lower()))
        named = sum(_drawn(known[part], known, counts, markers) for part in _named(name, value) if part in known)
        if name == "style" or name.startswith(("fill", "stroke", "marker")):
            inherited += named
        else:
            count += named
    counts[element] = count * (1 + inherited)
    return counts[element]


def _named(name: str, value: str) -> list[str]:
    """The names of elements in an attribute. A picture in it is looked at as others are."""
    if "\\" in value and not name.startswith("{"):
        raise NotShown("it is an SVG that spells an attribute in CSS escapes")
    if value.lstrip().lower().startswith("data:") and name.endswith("href"):
        mime, _, content = value.strip().removeprefix("data:").partition(";base64,")
        if mime not in RASTER:
            raise NotShown("it is an SVG that holds a picture of another kind than PNG, JPEG, GIF or WebP")
        embedded(mime, content)
        return []
    if re.search(r"url\s*\(\s*.?data:", value, re.IGNORECASE):
        raise NotShown("it is an SVG with a picture in the style of an element")
    return [re.split("[\"')]", part)[0].strip() for part in unquote(value).split("#")[1:]]
