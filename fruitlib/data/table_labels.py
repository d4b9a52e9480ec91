"""Several labels where one is wanted: columns of 0 and 1, and cells that hold a list; named, never guessed."""

import ast
import itertools
import re
from collections.abc import Iterable

import pandas as pd

from fruitlib.core.texts import some
from fruitlib.data.table_text import Sheet

YES = {"1", "1.0", "true", "True", "TRUE"}
NO = {"0", "0.0", "false", "False", "FALSE", ""}
LOOKED_AT = 1000  # rows that show whether a column holds 0 and 1
ONE_LABEL = "a photo has one class here: keep its main one, or give each object a row with its box (x, y, w, h)"


def class_columns(sheet: Sheet, taken: Iterable[int]) -> list[int]:
    """The places of columns that stand for classes: all their fields are 0 or 1. Empty where fewer than two are."""
    seen: dict[int, set[str]] = {place: set() for place in range(len(sheet.header)) if place not in set(taken)}
    for _, fields in itertools.islice(sheet.records(), 1, LOOKED_AT + 1):
        for place in list(seen):
            seen[place].add(fields[place].strip() if place < len(fields) else "")
            if not seen[place] <= YES | NO:
                del seen[place]
    found = [place for place, values in seen.items() if sheet.header[place] and values & (YES | NO) - {""}]
    return found if len(found) > 1 else []


def from_columns(chunk: pd.DataFrame, titles: dict[int, str]) -> pd.DataFrame:
    """The label of each row by its columns of 0 and 1, and `wrong`: "" or why there is none."""
    fields = chunk[list(titles)].apply(lambda column: column.str.strip())
    ones = fields.isin(YES)
    number = ones.sum(axis=1)
    wrong = pd.Series("", index=chunk.index, dtype=str)
    wrong[number == 0] = f"none of the columns {some(titles.values())} is 1: a photo needs one class"
    for index in number.index[number > 1]:
        wrong[index] = (
            f"several labels ({some(titles[place] for place in titles if ones.at[index, place])}): {ONE_LABEL}"
        )
    odd = ~(ones | fields.isin(NO)).all(axis=1)
    wrong[odd] = f"a field that is not 0 or 1 in one of the columns {some(titles.values())}"
    return pd.DataFrame({"label": ones.idxmax(axis=1).map(titles).astype(str), "wrong": wrong})


def several_in_a_cell(labels: Iterable[str]) -> dict[str, list[str]]:
    """Those of the different labels that hold several, and what they hold.

    A label holds several if it is written as a list, or if a separator divides it into what are labels too: all parts
    for a comma, one for `|` or `;`, which names of classes hardly hold. A part is a label if it stands alone
    elsewhere, or at different places of two cells. So `Pepper, bell` beside `Corn, maize` stays one name.
    """
    labels = list(labels)
    found = {label: parts for label in labels if len(parts := _as_list(label)) > 1}
    for separator, enough in (("|", any), (";", any), (",", all)):
        cells = {label: _parts(label, separator) for label in labels if separator in label}
        alone = {label for label in labels if separator not in label}
        known = alone | _at_different_places(cells.values())
        for label, parts in cells.items():
            if len(parts) > 1 and enough(part in known for part in parts):
                found.setdefault(label, parts)
    return found


def _parts(label: str, separator: str) -> list[str]:
    return [part.strip() for part in label.split(separator) if part.strip()]


def _at_different_places(cells: Iterable[list[str]]) -> set[str]:
    """Texts that stand first in one cell and second in another: the parts of a list, not of a name."""
    places: dict[str, set[int]] = {}
    for parts in cells:
        for place, part in enumerate(parts):
            places.setdefault(part, set()).add(place)
    return {part for part, found in places.items() if len(found) > 1}


def _as_list(label: str) -> list[str]:
    """The items of a cell written as a list, `['a', 'b']` or `[a, b]`; empty where it is none."""
    if not re.fullmatch(r"[\[({].*[\])}]", label, re.DOTALL):
        return []
    try:
        items = ast.literal_eval(label) if len(label) < 10_000 else ()
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        items = _parts(label[1:-1], ",")
    return [str(item) for item in items] if isinstance(items, (list, tuple, set)) else []


def without_brackets(label: str) -> str:
    """`apple` for `['apple']`; any other label as it is."""
    items = _as_list(label) if label.startswith("[") else []
    return items[0].strip() if len(items) == 1 else label
