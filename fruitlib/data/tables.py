"""A CSV or TSV table that names photos, labels, groups, splits and boxes -> rows of text; no photo is opened.

Every error names the line of the table as an editor counts it.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fruitlib.core.errors import InputError
from fruitlib.core.setting_errors import nearest
from fruitlib.core.texts import normal, some
from fruitlib.data import part_names, table_labels, table_text
from fruitlib.data.table_text import Sheet

ENDINGS = {".csv", ".tsv"}
ROW = ["path", "label", "group", "split"]
CORNER_AND_SIZE, TWO_CORNERS = ("x", "y", "w", "h"), ("x1", "y1", "x2", "y2")
FRAGMENT = re.compile(r"#xywh=(-?[0-9]+),(-?[0-9]+),(-?[0-9]+),(-?[0-9]+)\Z")
LARGEST = 1e9  # no picture has so many pixels on a side
TITLES = {  # what others call the columns, for a hint
    "path": "filename file_name file filepath file_path image image_path image_id imageid image_name img id photo name",
    "label": "class label_name labels class_name category species breed variety target diagnosis",
}
OTHER_BOXES = (  # what others call the columns of boxes
    {"x1": "xmin", "y1": "ymin", "x2": "xmax", "y2": "ymax"},
    {"x": "left", "y": "top", "w": "width", "h": "height"},
)


@dataclass(frozen=True)
class Listed:
    """What a file lists: rows with path, label, group, split and photo (the path without its box); notes for people.

    `where` names the place of rows, given by their index, in that file.
    """

    rows: pd.DataFrame
    notes: list[str]
    where: Callable[..., str]


def is_table(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and not os.path.isdir(path)


def part_of(name: str) -> str:
    """train, val or test, where a name means that by itself; else nothing."""
    part = part_names.part_of(name)
    return part if part in ("train", "val", "test") else ""


def photo_of(paths: pd.Series) -> pd.Series:
    """The paths of the photos, without boxes."""
    return paths.str.replace(FRAGMENT, "", regex=True)


def read_table(table: Path, columns: dict[str, str]) -> Listed:
    """A row per photo or box. The index counts the table's rows from 0; rows that are blank are skipped with a note.

    Without a column of labels, columns of 0 and 1 are read as one column per class.

    Raises:
        InputError: no such table, no path or label, several labels in a row, or a wrong box.
    """
    sheet = table_text.open_sheet(table, {columns.get(name, name) for name in ("path", "label")})
    places, titles, notes = _places(sheet, columns)
    rows, blank = _cells(sheet, places, titles)
    if titles:
        notes.append(f"{table.name}: a column per class was read: {some(titles.values())}")
    if blank:
        notes.append(f"{blank:,} blank {'row' if blank == 1 else 'rows'} of {table.name}: skipped")

    def stop(bad: pd.Series, why: str) -> None:
        if bad.any():
            index, more = int(bad.idxmax()), int(bad.sum()) - 1
            also = f" (and {more:,} more rows)" if more else ""
            raise InputError(f"{table} line {sheet.line(index)}{also}: {why.format(**rows.loc[index])}")

    stop(rows["extra"] != "", "more fields than the header has columns: put text that holds a comma in quotes")
    stop(rows["path"] == "", "no path: every row needs one")
    stop(rows["wrong"] != "", "{wrong}")
    rows["label"], more = _one_label(rows["label"], table, stop)
    rows["path"] = rows["path"].str.replace("\\", "/", regex=False).str.replace(r"\A(\./+)+", "", regex=True)
    rows["split"] = _splits(rows["split"], stop)
    rows["photo"] = rows["path"]
    if boxes := [name for name in (*CORNER_AND_SIZE, *TWO_CORNERS) if name in rows]:
        rows["path"] += _boxes(rows[boxes], stop)
    if rows["path"].str.contains("#xywh=", regex=False).any():
        rows["photo"] = photo_of(rows["path"])

    def where(*indices: int) -> str:
        lines = " and ".join(str(sheet.line(index)) for index in indices)
        return f"{table} {'line' if len(indices) == 1 else 'lines'} {lines}"

    return Listed(rows[[*ROW, "photo"]], [*sheet.notes, *notes, *more], where)


def _places(sheet: Sheet, columns: dict[str, str]) -> tuple[dict[str, int], dict[int, str], list[str]]:
    """The position in a row of each column that is read; the titles of those that stand for a class; and notes."""
    known, header = (*ROW, *CORNER_AND_SIZE, *TWO_CORNERS), sheet.header
    for name in columns:
        if name not in known:
            raise InputError(f"columns: unknown name {name}{nearest(name, known)}; wanted: {', '.join(known)}")
    names = {name: columns.get(name, _own_title(name, header)) for name in known}
    places = {name: header.index(title) for name, title in names.items() if title in header}
    one_column = "label" in columns or "label" in places or _titled(header, "label")
    classes = [] if one_column else table_labels.class_columns(sheet, places.values())
    for name, title in names.items():
        if title not in header and (name in columns or name == "path" or (name == "label" and not classes)):
            in_table = ", ".join(name or "(no name)" for name in header) or "none"
            hint = f"name the one that holds it with columns: {{{_guess(name, header, names)}}}"
            where = f"{sheet.path} line {1 + sheet.hinted}"
            raise InputError(f"{where}: no column {title}; there are: {in_table}; {hint}")
        if header.count(title) > 1:
            raise InputError(f"{sheet.path} line 1: two columns are named {title}: rename one")
    places, notes = _whole_boxes(sheet, columns, names, places)
    return places, {place: normal(header[place]) for place in classes}, notes


def _own_title(name: str, header: tuple[str, ...]) -> str:
    """The column of our own name, also as `Path` or `LABEL`."""
    alike = [title for title in header if title.casefold() == name]
    return alike[0] if len(alike) == 1 else name


def _guess(name: str, header: tuple[str, ...], names: dict[str, str]) -> str:
    """`path: image_id, label: breed`: the columns that are missing and the titles that may be meant."""
    wanted = [name] + ["label"] * (name == "path" and names["label"] not in header)
    guesses = {one: _titled(header, one) for one in wanted}
    guesses |= _other_boxes(header) if name in ("path", "label") else {}
    return ", ".join(f"{one}: {guess or 'its title'}" for one, guess in guesses.items() if guess or one == name)


def _titled(header: tuple[str, ...], name: str) -> str:
    """The column that others call so what we call `name`; "" where there is none."""
    titles = {title.casefold(): title for title in reversed(header)}
    return next((titles[word] for word in TITLES.get(name, "").split() if word in titles), "")


def _other_boxes(header: tuple[str, ...]) -> dict[str, str]:
    """The columns that hold boxes under other titles; empty where there are none."""
    titles = {title.casefold(): title for title in header}
    known = [box for box in OTHER_BOXES if set(box.values()) <= set(titles)]
    return {name: titles[title] for name, title in known[0].items()} if known else {}


def _whole_boxes(sheet: Sheet, columns: dict, names: dict, places: dict) -> tuple[dict[str, int], list[str]]:
    """The places without those of columns that make no box; and notes on these."""
    notes = []
    for box in (CORNER_AND_SIZE, TWO_CORNERS):
        held = [name for name in box if name in places]
        if 0 < len(held) < 4 and any(name in columns for name in held):
            raise InputError(f"columns: a box needs {', '.join(box)}; {', '.join(held)} alone are not enough")
        if 0 < len(held) < 4 or (held and box == TWO_CORNERS and set(CORNER_AND_SIZE) <= set(places)):
            notes.append(f"{sheet.path.name}: no boxes were read from {', '.join(names[name] for name in held)}")
            places = {name: place for name, place in places.items() if name not in held}
    others = _other_boxes(sheet.header)
    if others and not set(places) & {*CORNER_AND_SIZE, *TWO_CORNERS}:
        named = ", ".join(f"{name}: {title}" for name, title in others.items())
        notes.append(f"{sheet.path.name}: whole photos were taken; for their boxes, set columns: {{{named}}}")
    return places, notes


def _cells(sheet: Sheet, places: dict[str, int], titles: dict[int, str]) -> tuple[pd.DataFrame, int]:
    """The wanted columns as text, `extra` (filled where a row is longer than the header), `wrong` (why a row has no
    label by its columns of 0 and 1); and how many rows were blank."""
    wanted, kept, blank = {**places, "extra": len(sheet.header)}, [], 0
    for chunk in sheet.chunks():
        doubtful = chunk[chunk[places["path"]].str.strip() == ""]
        empty = doubtful.index[doubtful.apply(lambda column: column.str.strip() == "").all(axis=1)]
        chunk, blank = chunk.drop(index=empty), blank + len(empty)
        rows = chunk[list(wanted.values())].set_axis(list(wanted), axis=1)
        kept.append(rows.assign(**table_labels.from_columns(chunk, titles)) if titles else rows)
    rows = pd.concat(kept)
    for name in (*ROW, "wrong"):
        rows[name] = rows[name].str.strip() if name in rows else pd.Series("", index=rows.index, dtype=str)
    return rows, blank


def _one_label(labels: pd.Series, table: Path, stop: Callable) -> tuple[pd.Series, list[str]]:
    """The labels, those in brackets without them; and notes. Stops at a row with none or with several."""
    texts = {label: table_labels.without_brackets(label) for label in labels.unique()}
    stop(labels.isin([label for label, text in texts.items() if normal(text) == ""]), "no label: every row needs one")
    several = table_labels.several_in_a_cell(texts)
    advice = f"{table_labels.ONE_LABEL}; if it is the name of one class, write it without , ; or |"
    stop(labels.isin(set(several)), "several labels ({label}): " + advice)
    changed = [label for label, text in texts.items() if text != label]
    notes = [f"{table.name}: labels in brackets, such as {changed[0]}, were read without them"] if changed else []
    words = [label for label in texts if " " in label and len(label.split()) > 1 and set(label.split()) <= set(texts)]
    if words:
        notes.append(f"{len(words)} labels are made of others, such as {words[0]}: each counts as a class of its own")
    return (labels.map(texts).astype(str) if changed else labels), notes


def _splits(words: pd.Series, stop: Callable) -> pd.Series:
    """train, val, test or nothing for every word of the split column."""
    known = {word: part_of(word) for word in words.unique()}
    unknown = [word for word, split in known.items() if word and not split]
    stop(words.isin(unknown), "split {split}: wanted train, val or test, or nothing")
    return words.map(known).astype(str)


# ---- boxes


def _boxes(boxes: pd.DataFrame, stop: Callable) -> pd.Series:
    """`#xywh=x,y,w,h` for every row with a box, rounded outwards; "" for the others."""
    texts = boxes.apply(lambda column: column.str.strip())
    held = texts != ""
    some = held.any(axis=1)
    stop(some & ~held.all(axis=1), f"half a box: give all of {', '.join(boxes)}, or none")
    numbers = texts[some].apply(pd.to_numeric, errors="coerce").astype(float)
    wrong = ~(numbers.abs() < LARGEST).all(axis=1)
    comma = texts[some].apply(lambda column: column.str.contains(",", regex=False)).any(axis=None)
    hint = ": write a decimal point, not a comma" if comma else ""
    stop(wrong.reindex(texts.index, fill_value=False), f"a box that is not four numbers ({', '.join(boxes)}){hint}")
    near, far = numbers.iloc[:, :2].to_numpy(), numbers.iloc[:, 2:].to_numpy()
    if len(near) and 0 < np.abs(far).max() <= 1 and np.abs(near).max() <= 1 and (near % 1).any():
        stop(some, "a box in shares of the picture: give it in pixels")
    far = far + near if boxes.columns[-1] == "h" else far
    return pd.Series(fragments(near, far), index=numbers.index, dtype=str).reindex(texts.index, fill_value="")


def fragments(near: np.ndarray, far: np.ndarray) -> list[str]:
    """`#xywh=x,y,w,h` of boxes by two corners, float (n, 2) each in pixels, rounded outwards."""
    near, far = np.floor(near.round(6)), np.ceil(far.round(6))  # 8.1 + 0.9 must not reach into the next pixel
    whole = np.hstack([near, far - near]).astype(np.int64).tolist()
    return [f"#xywh={x},{y},{w},{h}" for x, y, w, h in whole]


# ---- what any list of photos needs


def each_once(listed: Listed, name: str) -> Listed:
    """Rows given twice are kept once, with a note; `name` is what lists them.

    Raises:
        InputError: a photo or box with two labels, a photo with two groups or splits.
    """
    rows = listed.rows
    often = rows[rows["photo"].duplicated(keep=False)]
    for key, column in (("path", "label"), ("photo", "group"), ("photo", "split")):
        first = often.groupby(key, sort=False)[column].transform("first")
        if (bad := often[column] != first).any():
            row = often.loc[bad.idxmax()]
            one, other = int((often[key] == row[key]).idxmax()), int(bad.idxmax())
            values = f"{first[other]!r} and {row[column]!r}"
            advice = "keep one, or give each object a row with its box" if column == "label" else "keep one"
            two = f"{row[key]} has two {column}s, {values}"
            raise InputError(f"{listed.where(one, other)}: {two}: {advice}")
    if not (again := often["path"].duplicated()).any():
        return listed
    note = f"{again.sum()} rows of {name} name a photo or box again: left out"
    return Listed(rows.drop(index=again.index[again]), [*listed.notes, note], listed.where)


def join_boxes(rows: pd.DataFrame) -> pd.Series:
    """The groups, joined so that all boxes of one photo share one (the photo's path where none is given)."""
    several = rows["photo"].duplicated(keep=False)
    group, photos = rows["group"].where(~several | (rows["group"] != ""), rows["photo"]), rows["photo"][several]
    while not (least := group[several].groupby(photos).transform("min")).equals(group[several]):
        merged = least.groupby(group[several]).min()
        group = group.where(~group.isin(merged.index), group.map(merged))
    return group
