"""Text from files and folders: one form for names that look equal, and a form that is safe to print."""

import math
import re
import unicodedata
from collections.abc import Iterable
from typing import TextIO

# Drawn as nothing, or they reorder what is drawn. Not the joiners U+200C and U+200D: Persian and emoji need them.
_INVISIBLE = re.compile("[\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]|[\u202a-\u202e\u2066-\u2069]|[\ud800-\udfff]")


def normal(text: str) -> str:
    """The one form of a name: composed (Unicode's NFC), every space a plain one, single and inside, nothing invisible.

    macOS writes file names decomposed, spreadsheets bring no-break and zero-width spaces. Case stays.
    """
    return " ".join(unicodedata.normalize("NFC", _INVISIBLE.sub("", text)).split())


def printable(text: str) -> str:
    """The text with control characters and undecoded bytes shown, as in `\\x1b`.

    A name must not steer the terminal it is printed on.
    """
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def shortened(text: str, most: int) -> str:
    """`text`, or its beginning and end with `…` between them where it is wider than `most` letters.

    An East Asian letter counts as two. Never more than four characters for each letter, accents and joiners included.
    """
    if len(text) * 2 <= most:
        return text
    if len(text) > 4 * most:
        text = text[: 2 * most] + text[1 - 2 * most :]
    elif sum(map(width, text)) <= most:
        return text
    last = (most - 1) // 3
    front = _beginning(text, most - 1 - last)
    back = _beginning(text[len(front) :][::-1], last)[::-1]
    while back and width(back[0]) == 0:  # an accent without its letter
        back = back[1:]
    return f"{front}…{back}"


def _beginning(text: str, most: int) -> str:
    for place, letter in enumerate(text):
        most -= width(letter)
        if most < 0:
            return text[:place]
    return text


def width(letter: str) -> int:
    """0 for accents, joiners and variants of the letter before, 2 for an East Asian letter, else 1."""
    if unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def some(names: Iterable[str], most: int = 6, letters: int = 60) -> str:
    """The first `most` names, each `letters` wide at most, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(shortened(name, letters) for name in names[:most]) + more


def show(text: str, file: TextIO | None = None) -> None:
    """Print lines (to standard output by default), what would steer the terminal shown."""
    print("\n".join(map(printable, text.split("\n"))), file=file, flush=True)


def number(value) -> float:
    """A number of a table or record; NaN where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def measure_name(measure: str) -> str:
    """What a measure of a table is called: macro-F1 is `macro_f1`."""
    return measure.replace("_", " ").replace(" f1", "-F1")
