"""Photographs as people have them -> rows of path, label, group and split, without opening a photo.

Known are a folder of class folders; the same under parts such as `Training` and `Test` (Fruits-360); a CSV or TSV table
naming photos, labels, boxes; and names for what is drawn (`sample`) or fetched. A group holds photos that belong
together (one variety, one tree, one session) and must not be divided between training and judging.
"""

import csv
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from fruitlib.core import files
from fruitlib.core.config import Config, nearest
from fruitlib.core.errors import InputError
from fruitlib.data import fetch, practice_photos

SAMPLES = {"sample": False, "sample5": True}
NAMES = (*SAMPLES, *fetch.DATASETS)
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"}
SUFFIXES |= {".heic", ".heif"}  # Pillow does not read them: listed all the same, so that intake can say so
SYSTEM = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information"}  # left by systems, not people
TABLES = {".csv", ".tsv"}
RECORDS = {"sample.json", fetch.RECORD}
PREDEFINED = {"training": "train", "train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}
ROW = ["path", "label", "group", "split"]
CORNER_AND_SIZE, TWO_CORNERS = ("x", "y", "w", "h"), ("x1", "y1", "x2", "y2")
FRAGMENT = re.compile(r"#xywh=(-?[0-9]+),(-?[0-9]+),(-?[0-9]+),(-?[0-9]+)\Z")
CHUNK = 200_000  # rows of a table read at a time, so that columns nobody asked for never fill the memory
FAR = 1e9  # no picture has so many pixels on a side


def root(data: str) -> Path:
    """The folder that `data` names: for a table its parent folder, for a name its folder in `data/` of the project.

    Raises:
        InputError: a data set that is not fetched yet.
    """
    if data not in NAMES:
        path = files.resolve(data)
        return path.parent if _is_table(path) else path
    folder = files.home() / "data" / data
    if data in fetch.DATASETS and not folder.is_dir():
        raise InputError(f"{data} is not in {files.display_path(folder)} yet; run: fruitlib data fetch {data}")
    return folder


def ready(data: str, progress: Callable[[int, int], None] | None = None) -> Path:
    """`root(data)`, the practice photographs drawn there first where they are asked for and missing."""
    return practice_photos.draw(root(data), five=SAMPLES[data], progress=progress) if data in SAMPLES else root(data)


def locate(folder: Path, path: str) -> tuple[Path, tuple[int, int, int, int] | None]:
    """The file of a manifest's `path`, and its box (x, y, width, height in pixels) or None.

    A box is a media fragment at the end, `a/b.jpg#xywh=10,20,30,40` (W3C Media Fragments URI 1.0, 4.2.2).
    """
    found = FRAGMENT.search(path)
    if not found:
        return folder / path, None
    return folder / path[: found.start()], tuple(int(number) for number in found.groups())


def scan(config: Config) -> tuple[pd.DataFrame, list[str]]:
    """List the photos of `config.data` without opening any.

    Returns:
        rows sorted by path, with path (relative to `root`, with `/`, a box as its fragment), label, group ("" where
        the photo stands alone) and split ("" where it is still to be made); and notes, in words.

    Raises:
        InputError: no photos, fewer than two classes, parts or a table that are not clear, a wrong group_pattern.
    """
    folder, table = root(config.data), files.resolve(config.data)
    if config.data in NAMES or not _is_table(table):
        table = None
    rows, notes = _from_table(table, config.columns) if table else _from_folder(folder)
    if config.columns and not table:
        notes.append("columns is set but data is no table: it was not used")
    if config.group_pattern and table and (rows["group"] != "").any():
        notes.append(f"group_pattern was not used: {table.name} gives groups")
    elif config.group_pattern:
        rows["group"], more = _groups_by_name(rows, config.group_pattern)
        notes += more
    if table:
        rows["group"] = _photos_undivided(rows)
    _check_classes(rows, table or folder, "photos of class" if table else "class folder")
    return rows.sort_values("path", ignore_index=True)[ROW], notes


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in TABLES and not path.is_dir()


def _check_classes(rows: pd.DataFrame, place: Path, what: str) -> None:
    """At least two classes, and every class in every part (rows without a split count as training)."""
    labels = set(rows["label"].unique())
    if len(labels) < 2:
        kind = "classes" if what.startswith("photos") else "class folders with photos"
        raise InputError(f"{place}: found {len(labels)} {kind}, at least 2 are needed")
    alike = pd.Series(sorted(labels)).groupby(pd.Series(sorted(labels)).str.casefold()).agg(" and ".join)
    if len(alike) < len(labels):
        one = alike[alike.str.contains(" and ", regex=False)].iloc[0]
        raise InputError(f"{place}: the classes {one} differ only in upper and lower case: make them one")
    if "all" in labels:
        raise InputError(f"{place}: a class named all would be taken for the total of all classes: rename it")
    parts = rows[["label", "split"]].drop_duplicates().replace({"split": {"": "train"}})
    for split, held in parts.groupby("split")["label"]:
        if missing := labels - set(held):
            raise InputError(f"{place}: the {split} part has no {what} {min(missing)}")


# ---- a folder of class folders


def _from_folder(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """Rows of a folder of class folders, or of its parts."""
    if folder.is_file():
        raise InputError(f"{folder}: a file, but no .csv or .tsv table: save a spreadsheet as CSV UTF-8")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of photos; data names a folder of class folders, a table or sample")
    parts, notes = _parts(folder)
    empty, rows, skipped = (
        [],
        [],
        [name for name, is_folder in _entries(folder) if not is_folder and name not in RECORDS],
    )
    for split, part in parts.items():
        above = "" if part == folder else f"{part.name}/"
        for label, is_folder in _entries(part):
            if is_folder and not label.startswith("."):
                found = _class_rows(folder, f"{above}{label}", label, split, skipped, notes)
                rows, empty = rows + found, empty + [f"{above}{label}"] * (not found)
            elif not is_folder and part != folder:
                skipped.append(label)
    if empty:
        raise InputError(f"{folder}: empty class folders: {', '.join(empty)}: add photos or remove them")
    _check_names([row[0] for row in rows], folder)
    if endings := Counter(_ending(name) or "none" for name in skipped if not name.startswith(".")):
        summary = ", ".join(f"{ending} {count}" for ending, count in endings.most_common(6))
        notes.append(f"endings of files that are no photos or in no class folder: {summary}")
    if skipped:
        were = "file that is hidden or no photo was" if len(skipped) == 1 else "files that are hidden or no photos were"
        notes.append(f"{len(skipped)} {were} passed over")
    return pd.DataFrame(rows, columns=ROW, dtype=str), notes


def _parts(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """The parts of a predefined split by name, or the folder itself under "" where there is none; and notes."""
    subfolders = _subfolders(folder)
    named = [(PREDEFINED[d.name.lower()], d) for d in subfolders if d.name.lower() in PREDEFINED]
    if not named:
        return {"": folder}, []
    parts, others = dict(named), [d for d in subfolders if d.name.lower() not in PREDEFINED]
    clear = len(parts) == len(named) and "train" in parts and len(parts) > 1
    classes = {d.name for d in _subfolders(parts["train"])} if clear else set()
    if not clear or any(d.name in classes for other in others for d in _subfolders(other)):
        names = ", ".join(d.name for d in subfolders)
        raise InputError(f"{folder}: a division into parts needs one train and one test (or val) folder, found {names}")
    names = ", ".join(d.name for d in others)
    return parts, [f"folders beside the parts were passed over: {names}"] if others else []


def _subfolders(folder: Path) -> list[Path]:
    return [folder / name for name, is_folder in _entries(folder) if is_folder and not name.startswith(".")]


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _entries(folder: str | Path) -> list[tuple[str, bool]]:
    """(name, whether it is a folder) of what lies in a folder, in order; links are followed."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name in SYSTEM:
                    continue
                try:
                    found.append((entry.name, entry.is_dir()))
                except OSError:  # a link to itself
                    found.append((entry.name, False))
    except OSError as problem:
        raise InputError(f"{folder}: the folder cannot be read ({problem.strerror}): see to its permissions") from None
    return sorted(found)


def _class_rows(folder: Path, place: str, label: str, split: str, skipped: list, notes: list) -> list[tuple]:
    """Rows of the class folder `place` in `folder`; what is no photo is added to `skipped`."""
    rows, to_do = [], [(place, "", False, (_identity(folder), _identity((folder / place).parent)))]
    while to_do:
        path, group, hidden, above = to_do.pop()
        if (identity := _identity(f"{folder}/{path}")) in above:
            notes.append(f"{path}: a link to a folder above it was not followed")
            continue
        for name, is_folder in _entries(f"{folder}/{path}"):
            if is_folder:
                deeper, unseen = f"{group or label}/{name}", hidden or name.startswith(".")
                to_do.append((f"{path}/{name}", deeper, unseen, (*above, identity)))
            elif hidden or name.startswith(".") or _ending(name) not in SUFFIXES:
                skipped.append(f".{name}" if hidden else name)
            else:
                rows.append((f"{path}/{name}", label, group, split))
    return rows


def _identity(folder: str | Path) -> tuple[int, int]:
    facts = os.stat(folder)
    return facts.st_dev, facts.st_ino


def _check_names(paths: list[str], folder: Path) -> None:
    try:
        "\n".join(paths).encode()
    except UnicodeEncodeError:
        bad = next(path for path in paths if path.encode(errors="replace").decode() != path)
        raise InputError(f"{folder}: the file name {bad!a} is not valid UTF-8: rename the file") from None


# ---- groups by file name


def _groups_by_name(rows: pd.DataFrame, template: str) -> tuple[pd.Series, list[str]]:
    """Groups `<label>/<value>` (within a group folder `<label>/<folder>/<value>`) by `group_pattern`; and notes."""
    pattern, field = _pattern(template)
    names = rows.get("photo", rows["path"]).str.rsplit("/", n=1).str[-1]
    stems = names.str.replace(r"(?<=.)\.[^.]*\Z", "", regex=True)
    values = stems.str.extract(pattern)[field]
    known = values.notna()
    if not known.any():
        raise InputError(f"group_pattern {template} matches no file name, such as {stems.iloc[0]}: change or empty it")
    above = rows["group"].where(rows["group"] != "", rows["label"])
    alone = (rows["group"][~known] == "").sum()
    kept = (~known).sum() - alone
    notes = [f"{alone} photos do not match group_pattern and stand alone"] * bool(alone)
    notes += [f"{kept} photos do not match group_pattern and keep their folder as group"] * bool(kept)
    return rows["group"].where(~known, above + "/" + values), notes


def _pattern(template: str) -> tuple[str, int]:
    """A regular expression for `<variety>__<view>`, and the number of the field that names the group."""
    pieces = re.split(r"<([^<>]*)>", template)
    literals, fields = pieces[::2], pieces[1::2]
    wrong = ""
    if any(mark in literal for literal in literals for mark in "<>"):
        wrong = "a < or > stands alone"
    elif not fields or "" in fields:
        wrong = "it needs a field with a name, such as <variety>"
    elif len(set(fields)) < len(fields):
        wrong = "a field is given twice"
    elif "" in literals[1:-1]:
        wrong = "two fields need some text between them"
    if wrong:
        raise InputError(f"group_pattern = {template!r}: {wrong}; wanted: a form such as <variety>__<view>")
    matched = ["([^/]+?)"] * (len(fields) - 1) + ["([^/]+)", ""]
    pattern = "".join(re.escape(literal) + field for literal, field in zip(literals, matched, strict=True))
    return rf"\A{pattern}\Z", fields.index("group") if "group" in fields else 0


# ---- a table


def _from_table(table: Path, columns: dict[str, str]) -> tuple[pd.DataFrame, list[str]]:
    """Rows of a table, each photo or box once; an index counts the table's rows from 0."""
    separator, header, start = _header(table, columns)
    places, notes = _places(table, columns, header)
    rows = _read(table, separator, header, start, places)
    for name in ROW:
        rows[name] = rows[name].str.strip() if name in rows else pd.Series("", index=rows.index, dtype=str)

    def stop(bad: pd.Series, why: str) -> None:
        if bad.any():
            index, more = int(bad.idxmax()), int(bad.sum()) - 1
            also = f" (and {more:,} more rows)" if more else ""
            raise InputError(f"{table} line {_line(table, separator, index)}{also}: {why.format(**rows.loc[index])}")

    stop(rows["extra"] != "", "more fields than the header has columns: put a text that holds a comma in quotes")
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
        rows["photo"] = rows["path"].str.replace(FRAGMENT, "", regex=True)
    return _each_once(rows[[*ROW, "photo"]], table, separator, notes), notes


def _header(table: Path, columns: dict[str, str]) -> tuple[str, list[str], int]:
    """The separator, the columns' names and the number of lines they take."""
    if not table.is_file():
        raise InputError(f"{table}: no such table of photos")
    wanted, found = {columns.get(name, name) for name in ("path", "label")}, []
    for separator in "\t" if table.suffix.lower() == ".tsv" else ",;\t":
        with open(table, encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter=separator)
            try:
                header = [name.strip() for name in next(filter(any, lines), [])]
            except (UnicodeDecodeError, csv.Error) as problem:
                raise InputError(f"{table}: not a table in UTF-8 ({problem}): save it as CSV UTF-8") from None
        found.append((len(wanted & set(header)), len(header), separator, header, lines.line_num))
    return max(found, key=lambda one: one[:2])[2:]


def _places(table: Path, columns: dict[str, str], header: list[str]) -> tuple[dict[str, int], list[str]]:
    """Where in a row each of our columns stands; and notes."""
    ours = (*ROW, *CORNER_AND_SIZE, *TWO_CORNERS)
    there = ", ".join(name or "(no name)" for name in header) or "none"
    for name in columns:
        if name not in ours:
            raise InputError(f"columns: unknown name {name}{nearest(name, ours)}; wanted: {', '.join(ours)}")
    names = {name: columns.get(name, name) for name in ours}
    for name, theirs in names.items():
        if theirs not in header and (name in columns or name in ("path", "label")):
            hint = f"columns: {{{name}: their name}} says which holds it"
            raise InputError(f"{table} line 1: no column {theirs}; there are: {there}; {hint}")
        if header.count(theirs) > 1:
            raise InputError(f"{table} line 1: two columns are named {theirs}: rename one")
    places, notes = {name: header.index(theirs) for name, theirs in names.items() if theirs in header}, []
    for box in (CORNER_AND_SIZE, TWO_CORNERS):
        held = [name for name in box if name in places]
        if 0 < len(held) < 4 and any(name in columns for name in held):
            raise InputError(f"columns: a box needs {', '.join(box)}; {', '.join(held)} alone are none")
        if 0 < len(held) < 4 or (held and box == TWO_CORNERS and set(CORNER_AND_SIZE) <= set(places)):
            notes.append(f"{table.name}: no boxes were read from {', '.join(names[name] for name in held)}")
            places = {name: place for name, place in places.items() if name not in held}
    return places, notes


def _read(table: Path, separator: str, header: list[str], start: int, places: dict[str, int]) -> pd.DataFrame:
    """The wanted columns of a table as text, and `extra`, filled where a row is longer than the header."""
    wanted = {**places, "extra": len(header)}
    options = {"sep": separator, "header": None, "names": range(len(header) + 1), "index_col": False, "dtype": str}
    try:
        with open(table, encoding="utf-8-sig", newline="") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", pd.errors.ParserWarning)  # a longer first row, which `extra` shows
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
    """The line on which row `index` of a table begins, counted as an editor does; blank lines are no rows."""
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
    stop(some & ~held.all(axis=1), f"half a box: {', '.join(boxes)} are all wanted, or none")
    numbers = texts[some].apply(pd.to_numeric, errors="coerce").astype(float)
    wrong = ~(numbers.abs() < FAR).all(axis=1)
    comma = texts[some].apply(lambda column: column.str.contains(",", regex=False)).any(axis=None)
    hint = ": write a decimal point, not a comma" if comma else ""
    stop(wrong.reindex(texts.index, fill_value=False), f"a box that is not four numbers ({', '.join(boxes)}){hint}")
    near, far = numbers.iloc[:, :2].to_numpy(), numbers.iloc[:, 2:].to_numpy()
    if len(near) and 0 < np.abs(far).max() <= 1 and np.abs(near).max() <= 1 and (near % 1).any():
        stop(some, "a box in shares of the picture: pixels are wanted")
    far = far + near if boxes.columns[-1] == "h" else far
    near, far = np.floor(near.round(6)), np.ceil(far.round(6))  # 8.1 + 0.9 must not reach into the next pixel
    columns = pd.DataFrame(np.hstack([near, far - near]).astype(np.int64), index=numbers.index).astype(str)
    fragments = "#xywh=" + columns[0] + "," + columns[1] + "," + columns[2] + "," + columns[3]
    return fragments.astype(str).reindex(texts.index, fill_value="")


def _each_once(rows: pd.DataFrame, table: Path, separator: str, notes: list[str]) -> pd.DataFrame:
    """Rows given twice kept once; a photo with two labels, groups or splits refused."""
    often = rows[rows["photo"].duplicated(keep=False)]
    for key, column in (("path", "label"), ("photo", "group"), ("photo", "split")):
        first = often.groupby(key, sort=False)[column].transform("first")
        if (bad := often[column] != first).any():
            row = often.loc[bad.idxmax()]
            one, other = int((often[key] == row[key]).idxmax()), int(bad.idxmax())
            lines = f"lines {_line(table, separator, one)} and {_line(table, separator, other)}"
            raise InputError(f"{table} {lines}: {row[key]} has two {column}s, {first[other]!r} and {row[column]!r}")
    if (again := often["path"].duplicated()).any():
        notes.append(f"{again.sum()} rows of {table.name} name a photo or box again and were left out")
    return rows.drop(index=again.index[again])


def _photos_undivided(rows: pd.DataFrame) -> pd.Series:
    """The groups, so widened that all boxes of one photo share one (the photo's path where there is none)."""
    several = rows["photo"].duplicated(keep=False)
    group, photos = rows["group"].where(~several | (rows["group"] != ""), rows["photo"]), rows["photo"][several]
    while not (least := group[several].groupby(photos).transform("min")).equals(group[several]):
        merged = least.groupby(group[several]).min()
        group = group.where(~group.isin(merged.index), group.map(merged))
    return group
