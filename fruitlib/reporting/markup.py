"""HTML from a notebook made harmless: text, tables and embedded pictures stay, what runs or loads goes."""

import re
from pathlib import Path
from urllib.parse import unquote

import nh3

TAGS = """a abbr b blockquote br caption code col colgroup dd del details div dl dt em figcaption figure h1 h2 h3 h4 h5
    h6 hr i img kbd li mark ol p pre s small span strong sub summary sup table tbody td tfoot th thead tr u ul"""
ATTRIBUTES = "alt class colspan height href id open rowspan scope src start style title width"
STYLES = {"background-color", "color", "font-style", "font-weight", "text-align", "width"}


def clean_markup(markup: str, folder: Path) -> str:
    """`markup` balanced, without anything that runs, loads from a network or leads nowhere."""

    def filtered(tag: str, name: str, value: str) -> str | None:
        if name == "src":
            kept = value.startswith("data:image/") or _local(value, folder)
        elif name == "href":
            kept = value.startswith("#") or _local(value, folder)
        elif name == "style":  # a backslash can spell url( in other letters
            kept = not re.search(r"\\|url\s*\(", value, re.IGNORECASE)
        else:
            kept = True
        return value if kept else None

    markup = re.sub(r'(?is)<a class="anchor-link".*?</a>', "", markup)
    markup = re.sub(r'(?is)<a\b[^>]*?\bhref="([^"]*)"[^>]*>(.*?)</a>', _anchor, markup)
    return nh3.clean(
        markup,
        tags=set(TAGS.split()),
        clean_content_tags={"script", "style"},  # what stands in them goes too
        attributes={"*": set(ATTRIBUTES.split())},
        attribute_filter=filtered,
        filter_style_properties=STYLES,
        url_schemes={"data"},
        link_rel=None,
    ).strip()


def _local(address: str, folder: Path) -> bool:
    """Whether a relative address leads to a file that exists, or that this build writes."""
    if re.match(r"\s*([\w+.-]+:|[/\\])", address) or len(address) > 500:
        return False
    target = folder / unquote(re.split("[?#]", address)[0])
    source = target.parent / ("sweep.json" if target.name == "index.html" else f"{target.stem}.ipynb")
    return target.exists() or (target.suffix == ".html" and source.exists())


def _anchor(link: re.Match) -> str:
    """A link to a notebook leads to its page; an address elsewhere is printed, as on paper."""
    address, text = link[1], link[2]
    if re.match(r"(https?:)?//", address):
        return text if address in text else f'{text} <span class="address">{address}</span>'
    return f'<a href="{re.sub(r"[.]ipynb(?=#|$)", ".html", address)}">{text}</a>'
