"""Names of classes, runs and groups as they stand in figures: short, harmless, in a font that has their letters."""

import contextlib
import functools
import unicodedata
from collections.abc import Iterable

import matplotlib.pyplot as plt
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from fruitlib.core import texts

BASE = "DejaVu Sans"  # comes with matplotlib: Latin, Greek, Cyrillic, Arabic, Hebrew, simple emoji
BOXES = "Last Resort"  # comes with matplotlib: a box for every letter there is
ZERO_WIDTH = "\u200b"
EAST_ASIAN = {"HANGUL", "CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "FULLWIDTH", "HALFWIDTH", "IDEOGRAPHIC"}
_unknown_scripts: set[str] = set()  # no font has all that was asked for of them; named once


def label(text: object, letters: int = 32) -> str:
    """A name for a figure, `letters` wide at most; its middle is left out where it is longer.

    Control characters are shown. A name that begins with `_` gets a character without width in front, since matplotlib
    leaves such names out of legends. A font that has its letters is looked for; where none is installed, a line says
    once which package brings one. (`$` is harmless as `style.use_style` turns math off.)
    """
    shown = texts.shortened(texts.printable(str(text)), letters)
    find_fonts(shown)
    return ZERO_WIDTH + shown if shown.startswith("_") else shown


def labels(names: Iterable, letters: int = 32) -> list[str]:
    """A `label` for each name."""
    return [label(name, letters) for name in names]


def find_fonts(text: str) -> None:
    """Add fonts to matplotlib's list of families until it has every letter of `text`, as far as any is installed."""
    lacking = [letter for letter in dict.fromkeys(text) if not _is_drawn(letter)]
    while lacking and (font := _search(lacking)):
        _found[font.name] = font.fname
        if font.name not in plt.rcParams["font.family"]:
            plt.rcParams["font.family"] = [*plt.rcParams["font.family"], font.name]
        lacking = [letter for letter in lacking if not _has(font.fname, letter)]
    for script in dict.fromkeys(map(_script, lacking)):
        if script not in _unknown_scripts:
            _unknown_scripts.add(script)
            letters = texts.some([letter for letter in lacking if _script(letter) == script])
            print(
                f"letters in names that no installed font can draw: {letters} ({_spoken(script)}): install one that "
                f"has them, such as {_package(script)}"
            )


def _is_drawn(letter: str) -> bool:
    if letter.isascii() or letter.isspace() or not texts.width(letter) or _has(_base_file(), letter):
        return True
    family = plt.rcParams["font.family"]
    return any(_has(file, letter) for name, file in _found.items() if name in family)


_found: dict[str, str] = {}  # fonts that were needed: name -> file


@functools.cache
def _base_file() -> str:
    return font_manager.findfont(BASE)


def _search(letters: list[str]):
    """An installed font with most of these letters: one that matplotlib knows, or else one installed since."""
    if font := _with_most(letters):
        return font
    if all(_script(letter) in _unknown_scripts for letter in letters):  # looked for before
        return None
    return _with_most(letters) if _add_new_fonts() else None


def _with_most(letters: list[str]):
    fonts = [font for font in font_manager.fontManager.ttflist if not font.name.startswith(BOXES)]
    counts = {font.fname: sum(_has(font.fname, letter) for letter in letters) for font in fonts}
    best = max(counts.values(), default=0)
    return min((font for font in fonts if best and counts[font.fname] == best), key=_preference, default=None)


def _preference(font) -> tuple[bool, ...]:
    """One that was needed before, then upright and regular ones, then Noto's sans serif."""
    return (
        font.name not in _found,
        font.style != "normal",
        str(font.weight) not in ("400", "normal"),
        not font.name.startswith("Noto Sans"),
    )


def _add_new_fonts() -> bool:
    """Tell matplotlib, which keeps a list of fonts, of those that were installed since it was made."""
    listed = {font.fname for font in font_manager.fontManager.ttflist}
    new = set(font_manager.findSystemFonts()) - listed
    for file in sorted(new):
        with contextlib.suppress(Exception):  # a damaged font is none
            font_manager.fontManager.addfont(file)
    return bool(new)


@functools.lru_cache(maxsize=4096)
def _letters(file: str) -> frozenset[int]:
    """The letters that a font has outlines for; none of a font of coloured bitmaps, which matplotlib cannot draw."""
    try:
        font = FT2Font(file)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except Exception:  # a damaged font is none
        return frozenset()


def _has(file: str, letter: str) -> bool:
    return ord(letter) in _letters(file)


def _script(letter: str) -> str:
    if unicodedata.category(letter) in ("So", "Sk"):
        return "EMOJI"
    return unicodedata.name(letter, "UNKNOWN").split()[0]


def _spoken(script: str) -> str:
    return {"CJK": "Chinese characters", "EMOJI": "emoji", "UNKNOWN": "unknown characters"}.get(script, script.title())


def _package(script: str) -> str:
    if script in EAST_ASIAN:
        return "fonts-noto-cjk"
    return "fonts-symbola" if script == "EMOJI" else "fonts-noto-core"
