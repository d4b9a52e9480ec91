"""A CSV or TSV table that names photos, labels, groups, splits and boxes -> rows of text; no photo is opened.

Every error names the line of the table as an editor counts it.
"""

import csv
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from fruitlib.core.config import nearest
from fruitlib.core.errors import InputError

ENDINGS = {".csv", ".tsv"}
ROW = ["path", "label", "group", "split"]
PREDEFINED = {"training": "train", "train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}
CORNER_AND_SIZE, TWO_CORNERS = ("x", "y", "w", "h"), ("x1", "y1", "x2", "y2")
FRAGMENT = re.compile(r"#xywh=(-?[0-9]+),(-?[0-9]+),(-?[0-9]+),(-?[0-9]+)\Z")
CHUNK = 200_000  # rows read at a time, so that columns nobody asked for never fill the memory
LARGEST = 1e9  # no picture has so many pixels on a side


def is_table(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and not path.is_dir()


def photo_of(paths: pd.Series) -> pd.Series:
    """The paths of the photos, without boxes."""
    return paths.str.replace(FRAGMENT, "", regex=True)


def read_table(table: Path, columns: dict[str, str]) -> tuple[pd.DataFrame, list[str]]:
    """A row per photo or box, with path, label, group, split and photo (the path without its box); and notes.

    The index counts the table's rows from 0. Rows given twice are kept once.

    Raises:
        InputError: no such table, no path or label, a wrong box, or rows that contradict each other.
    """
    separator, header, start = _header(table, columns)
    places, notes = _places(table, columns, header)
    rows = _text(table, separator, header, start, places)
    for name in ROW:
        rows[name] = rows[name].str.strip() if name in rows else pd.Series("", index=rows.index, dtype=str)

    def stop(bad: pd.Series, why: str) -> None:
        if bad.any():
            index, more = int(bad.idxmax()), int(bad.sum()) - 1
            also = f" (and {more:,} more rows)" if more else ""
            raise InputError(f"{table} line {_line(table, separator, index)}{also}: {why.format(**rows.loc[index])}")

    stop(rows["extra"] != "", "more fields than the header has columns: put text that holds a comma in quotes")
    for name in ("path", "label"):
        stop(rows[name] == "", f"no {name}: every row needs one")
    rows["path"] = rows["path"].str.replace("\\", "/", regex=False).str.replace(r"\A(\./+)+", "", regex=True)
    words = rows["split"].drop_duplicates()
    unknown = set(words[~words.str.lower().isin([*PREDEFINED, ""])])
    stop(rows["split"].isin(unknown), "split {split}: wanted train, val or test, or nothing")
    rows["split"] = rows["split"].map({word: PREDEFINED.get(word.lower(), "") for word in words}).astype(str)
    rows["photo"] = rows["path"]
    if boxes := [name for name in (*CORNER_AND_SIZE, *TWO_CORNERS) if name in rows]:
        rows["path"] += _fragments(rows[boxes], stop)
    if rows["path"].str.contains("#xywh=", regex=False).any():
        rows["photo"] = photo_of(rows["path"])
    return _each_once(rows[[*ROW, "photo"]], table, separator, notes), notes


def _header(table: Path, columns: dict[str, str]) -> tuple[str, list[str], int]:
    """The separator, the columns' names and the number of lines they take."""
    if not table.is_file():
        raise InputError(f"{table}: no such table of photos")
    wanted, headers = {columns.get(name, name) for name in ("path", "label")}, []
    for separator in "\t" if table.suffix.lower() == ".tsv" else ",;\t":
        with open(table, encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter=separator)
            try:
                header = [name.strip() for name in next(filter(any, lines), [])]
            except (UnicodeDecodeError, csv.Error) as problem:
                raise InputError(f"{table}: not a table in UTF-8 ({problem}): save it as CSV UTF-8") from None
        headers.append((len(wanted & set(header)), len(header), separator, header, lines.line_num))
    return max(headers, key=lambda one: one[:2])[2:]  # the separator that shows most of the wanted columns


def _places(table: Path, columns: dict[str, str], header: list[str]) -> tuple[dict[str, int], list[str]]:
    """The position in a row of each column that is read; and notes."""
    known = (*ROW, *CORNER_AND_SIZE, *TWO_CORNERS)
    in_table = ", ".join(name or "(no name)" for name in header) or "none"
    for name in columns:
        if name not in known:
            raise InputError(f"columns: unknown name {name}{nearest(name, known)}; wanted: {', '.join(known)}")
    names = {name: columns.get(name, name) for name in known}
    for name, title in names.items():
        if title not in header and (name in columns or name in ("path", "label")):
            hint = f"name the one that holds it with columns: {{{name}: its title}}"
            raise InputError(f"{table} line 1: no column {title}; there are: {in_table}; {hint}")
        if header.count(title) > 1:
            raise InputError(f"{table} line 1: two columns are named {title}: rename one")
    places, notes = {name: header.index(title) for name, title in names.items() if title in header}, []
    for box in (CORNER_AND_SIZE, TWO_CORNERS):
        held = [name for name in box if name in places]
        if 0 < len(held) < 4 and any(name in columns for name in held):
            raise InputError(f"columns: a box needs {', '.join(box)}; {', '.join(held)} alone are not enough")
        if 0 < len(held) < 4 or (held and box == TWO_CORNERS and set(CORNER_AND_SIZE) <= set(places)):
            notes.append(f"{table.name}: no boxes were read from {', '.join(names[name] for name in held)}")
            places = {name: place for name, place in places.items() if name not in held}
    return places, notes


def _text(table: Path, separator: str, header: list[str], start: int, places: dict[str, int]) -> pd.DataFrame:
    """The wanted columns of a table as text, and `extra`, filled where a row is longer than the header."""
    wanted = {**places, "extra": len(header)}
    options = {"sep": separator, "header": None, "names": range(len(header) + 1), "index_col": False, "dtype": str}
    try:
        with open(table, encoding="utf-8-sig", newline="") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", pd.errors.ParserWarning)  # a first row too long: see `extra`
            next(filter(any, csv.reader(file, delimiter=separator)))
            chunks = pd.read_csv(file, na_filter=False, chunksize=CHUNK, **options)
            return pd.concat([chunk[list(wanted.values())].set_axis(list(wanted), axis=1) for chunk in chunks])
    except ValueError as problem:  # of which pandas' parsing errors are kinds
        summary = str(problem)
        if isinstance(problem, UnicodeDecodeError):
            summary = f"not UTF-8 text ({problem.reason}): save the table as CSV UTF-8"
        elif too_long := re.search(r"in line (\d+), saw", summary):
            summary = f"line {start + int(too_long[1])}: more fields than the header has columns"
        elif opened := re.search(r"inside string starting at row (\d+)", summary):
            summary = f"line {_line(table, separator, int(opened[1]))}: a quotation mark is opened and never closed"
        raise InputError(f"{table}: {' '.join(summary.split())}") from None


def _line(table: Path, separator: str, index: int) -> int:
    """The line on which row `index` of a table begins, counted as an editor does; blank lines do not count as rows."""
    with open(table, encoding="utf-8-sig", newline="") as file:
        lines, begins, start = csv.reader(file, delimiter=separator), 1, 1
        for fields in lines:
            if len(fields) > 1 or (fields and fields[0].strip()):
                start = begins
                if index < 0:
                    break
                index -= 1
            begins = lines.line_num + 1
    return start


def _fragments(boxes: pd.DataFrame, stop: Callable) -> pd.Series:
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
    near, far = np.floor(near.round(6)), np.ceil(far.round(6))  # 8.1 + 0.9 must not reach into the next pixel
    columns = pd.DataFrame(np.hstack([near, far - near]).astype(np.int64), index=numbers.index).astype(str)
    fragments = "#xywh=" + columns[0] + "," + columns[1] + "," + columns[2] + "," + columns[3]
    return fragments.astype(str).reindex(texts.index, fill_value="")


def _each_once(rows: pd.DataFrame, table: Path, separator: str, notes: list[str]) -> pd.DataFrame:
    """Rows given twice are kept once; a photo with two labels, groups or splits is an error."""
    often = rows[rows["photo"].duplicated(keep=False)]
    for key, column in (("path", "label"), ("photo", "group"), ("photo", "split")):
        first = often.groupby(key, sort=False)[column].transform("first")
        if (bad := often[column] != first).any():
            row = often.loc[bad.idxmax()]
            one, other = int((often[key] == row[key]).idxmax()), int(bad.idxmax())
            lines = f"lines {_line(table, separator, one)} and {_line(table, separator, other)}"
            raise InputError(f"{table} {lines}: {row[key]} has two {column}s, {first[other]!r} and {row[column]!r}")
    if (again := often["path"].duplicated()).any():
        notes.append(f"{again.sum()} rows of {table.name} name a photo or box again: left out")
    return rows.drop(index=again.index[again])


def join_boxes(rows: pd.DataFrame) -> pd.Series:
    """The groups, joined so that all boxes of one photo share one (the photo's path where none is given)."""
    several = rows["photo"].duplicated(keep=False)
    group, photos = rows["group"].where(~several | (rows["group"] != ""), rows["photo"]), rows["photo"][several]
    while not (least := group[several].groupby(photos).transform("min")).equals(group[several]):
        merged = least.groupby(group[several]).min()
        group = group.where(~group.isin(merged.index), group.map(merged))
    return group
