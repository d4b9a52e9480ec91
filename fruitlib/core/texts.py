"""Text from files and folders: one form for names that look equal, and a form that is safe to print."""

import re
import unicodedata
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


def show(text: str, file: TextIO | None = None) -> None:
    """Print lines (to standard output by default), what would steer the terminal shown."""
    print("\n".join(map(printable, text.split("\n"))), file=file, flush=True)
