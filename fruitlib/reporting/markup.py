"""HTML from a notebook made harmless: text, tables and embedded pictures stay, what runs or loads goes."""

import re
from pathlib import Path
from urllib.parse import unquote

import nh3
from markupsafe import escape

from fruitlib.reporting import pictures

TAGS = """a abbr b blockquote br caption code col colgroup dd del details div dl dt em figcaption figure h1 h2 h3 h4 h5
    h6 hr i img kbd li mark ol p pre s small span strong sub summary sup table tbody td tfoot th thead tr u ul"""
ATTRIBUTES = "alt class colspan height href id open rowspan scope src start style title width"
TAG = re.compile(r'<(/?)(\w+)((?: [\w-]+="[^"]*")*)>')  # as nh3 writes one
EMPTY_HEADER = re.compile(r'<th((?: [\w-]+="[^"]*")*)>(?:\s|&nbsp;)*</th>')
STYLES = {"background-color", "color", "font-style", "font-weight", "text-align", "width"}


def clean_markup(markup: str, folder: Path, root: Path | None = None) -> str:
    """`markup` balanced, without anything that runs, loads from a network or leads nowhere.

    Relative addresses are those of a page in `folder`, and may lead to files in `root` (None: in `folder`).
    """
    root = root or folder

    def filtered(tag: str, name: str, value: str) -> str | None:
        if name == "src":
            return _picture(value) if value.startswith("data:") else value if _local(value, folder, root) else None
        if name == "href":
            notebook = re.sub(r"[.]ipynb(?=#|$)", ".html", value)
            kept = value.startswith("#") or _outside(value) or _local(notebook, folder, root)
            return notebook if kept and tag == "a" else None
        if name == "style":  # a backslash can spell url( in other letters
            return None if re.search(r"\\|url\s*\(", value, re.IGNORECASE) else value
        return value

    cleaned = nh3.clean(
        markup,
        tags=set(TAGS.split()),
        clean_content_tags={"script", "style"},  # what stands in them goes too
        attributes={"*": set(ATTRIBUTES.split())},
        attribute_filter=filtered,
        filter_style_properties=STYLES,
        url_schemes={"data", "http", "https"},
        link_rel=None,
    )
    return re.sub(r'(?s)<a((?: [\w-]+="[^"]*")*)>(.*?)</a>', _anchor, cleaned).strip()


def readable_tables(markup: str, name: str) -> str:
    """Clean markup in which each table, called `name`, has a box that scrolls and that the keyboard reaches.

    Header cells without a word, as pandas writes above an index, become plain cells: a screen reader would announce
    them as headers of nothing.
    """
    box = f'<div class="scroll" tabindex="0" role="group" aria-label="Table: {escape(name)}">'
    depth = 0

    def boxed(tag: re.Match) -> str:
        nonlocal depth
        if tag[2] != "table":
            return tag[0]
        depth += -1 if tag[1] else 1
        if tag[1]:
            return tag[0] if depth else f"{tag[0]}</div>"
        return tag[0] if depth > 1 else f"{box}{tag[0]}"

    return TAG.sub(boxed, EMPTY_HEADER.sub(r"<td\1></td>", markup))


def _outside(address: str) -> bool:
    return re.match(r"(https?:)?//", address, re.IGNORECASE) is not None


def _picture(address: str) -> str | None:
    """A picture's `data:` address, checked; None where it is no picture."""
    found = re.match(r"data:(image/[\w+.-]+);base64,", address)
    if found is None or found[1] not in pictures.RASTER:
        return None
    try:
        return pictures.embedded(found[1], address[found.end() :])
    except pictures.NotShown:
        return None


def _local(address: str, folder: Path, root: Path) -> bool:
    """Whether a relative address leads to a file in `root` that exists, or that this build writes."""
    if re.match(r"\s*([\w+.-]+:|[/\\])", address) or len(address) > 500:
        return False
    try:
        target = folder / unquote(re.split("[?#]", address)[0])
        source = target.parent / ("sweep.json" if target.name == "index.html" else f"{target.stem}.ipynb")
        there = target.exists() or (target.suffix == ".html" and source.exists())
        return there and target.resolve().is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):  # no name that a file could have, or a link to itself
        return False


def _anchor(link: re.Match) -> str:
    """A link to elsewhere is printed, as on paper, and nbconvert's links beside headings go."""
    address, text = re.search(r' href="([^"]*)"', link[1]), link[2]
    if ' class="anchor-link"' in link[1]:
        return ""
    if address is None or not _outside(address[1]):
        return link[0]
    return text if address[1] in text else f'{text} <span class="address">{address[1]}</span>'
