"""A picture of a notebook on its page: it can be enlarged, and its numbers taken along.

Enlarging is a link to the figure itself (`:target` in `pages.css`), so it needs no script. `assets/figures.js` adds the
Escape key and, beside each CSV, a button that copies the table as Markdown. A phone shows a wide figure whole, with
letters that are too small, and says that a tap enlarges it: to scroll sideways for the half that matters is worse.
"""

import base64
import re
from urllib.parse import quote

from markupsafe import escape

from fruitlib.core import texts
from fruitlib.reporting import pictures

EMBEDDED = re.compile(r'<img src="data:image/svg\+xml;base64,([A-Za-z0-9+/=]*)"')  # as `style.save_figure` shows an SVG
PHONE = 390  # pixels that a figure may need for a narrow phone to show letters of ten pixels
MAX_TABLE = 500_000  # characters of a table that are put into a page


def facts_of(output) -> dict:
    """What `style.save_figure` wrote about a figure, as far as it has the right shape; else empty."""
    metadata = output.get("metadata")
    found = metadata.get("fruitlib_figure") if isinstance(metadata, dict) else None
    return found if isinstance(found, dict) else {}


def svg_in_html(markup: str) -> str | None:
    """The SVG that a figure's HTML holds; None where it holds none."""
    found = EMBEDDED.match(markup)
    try:
        return base64.b64decode(found[1], validate=True).decode() if found else None
    except ValueError:
        return None


def markup(mime: str, content: str, facts: dict, heading: str, number: int) -> str:
    """The `<figure>` of a picture, the `number`th of its page; a line that says why where it cannot be shown.

    `facts` are those of `facts_of`, or what a notebook says of a picture (alt, width, height); nothing in them is taken
    on trust. `heading` is what the picture is called where nothing else is known.
    """
    try:
        address = pictures.embedded(mime, content)
    except pictures.NotShown as problem:
        return f'<p class="note">A picture could not be shown: {escape(problem)}. The notebook has it.</p>'
    alt = escape(texts.shortened(f"{facts.get('alt') or f'Figure: {heading}'}", 300))
    size = "".join(f' {side}="{facts[side]}"' for side in ("width", "height") if _is_size(facts.get(side)))
    least = facts["least"] if _is_size(facts.get("least")) else 0
    look = f' style="--least: {least}px"' if least else ""
    hint = '<span class="hint">Tap the figure to read its labels.</span>' if int(least) > PHONE else ""
    own, beside = f"figure-{number}", hint + _table(facts)
    caption = f"<figcaption>{beside}</figcaption>" if beside else ""
    return (
        f'<figure id="{own}"><div class="frame" id="at-{own}" tabindex="-1"><a href="#{own}" title="Enlarge">'
        f'<img src="{address}" alt="{alt}"{size}{look}></a></div>'
        f'<a class="close" href="#at-{own}">Close</a>{caption}</figure>'
    )


def _is_size(value) -> bool:
    return re.fullmatch("[0-9]{1,4}", f"{value}") is not None


def _table(facts: dict) -> str:
    """The link to a figure's numbers; nothing where it has none."""
    table = facts.get("table")
    if not isinstance(table, str) or not table or len(table) > MAX_TABLE:
        return ""
    name = re.sub(r"[^\w-]", "_", texts.shortened(f"{facts.get('name') or 'figure'}", 60))
    return f'<a class="table" download="{name}.csv" href="data:text/csv;charset=utf-8,{quote(table)}">Data as CSV</a>'
