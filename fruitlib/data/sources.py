"""Photographs as people have them -> rows of path, label, group and split, without opening a photo.

Known are a folder of class folders; the same under parts such as `Training` and `Test` (Fruits-360); a CSV or TSV table
naming photos, labels, boxes; and names for what is drawn (`sample`) or fetched. A group holds photos that belong
together (one variety, one tree, one session) and must not be divided between training and validation or test.
"""

import os
import re
from collections import Counter
from pathlib import Path

import pandas as pd

from fruitlib.core import files
from fruitlib.core.config import Config
from fruitlib.core.errors import InputError
from fruitlib.core.progress import OnProgress
from fruitlib.data import fetch, practice_photos, tables
from fruitlib.data.tables import PREDEFINED, ROW

SAMPLES = {"sample": False, "sample5": True}
NAMES = (*SAMPLES, *fetch.DATASETS)
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"}
SUFFIXES |= {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k"}
SUFFIXES |= {".heic", ".heif"}  # read with an extra; listed in any case, so that `photo_checks` says so
SYSTEM = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information"}  # left by systems, not people
RECORDS = {"sample.json", fetch.RECORD}


def root(data: str) -> Path:
    """The folder that `data` names: for a table its parent folder, for a name its folder in `data/` of the project.

    Raises:
        InputError: a data set that is not fetched yet.
    """
    if data not in NAMES:
        path = files.resolve(data)
        return path.parent if tables.is_table(path) else path
    folder = files.home() / "data" / data
    if data in fetch.DATASETS and not folder.is_dir():
        raise InputError(f"{data} is not in {files.display_path(folder)} yet; run: fruitlib data fetch {data}")
    return folder


def ready(data: str, progress: OnProgress | None = None) -> Path:
    """`root(data)`, where the practice photographs are asked for and missing, they are drawn first."""
    return practice_photos.draw(root(data), five=SAMPLES[data], progress=progress) if data in SAMPLES else root(data)


def locate(folder: Path, path: str) -> tuple[Path, tuple[int, int, int, int] | None]:
    """The file of a manifest's `path`, and its box (x, y, width, height in pixels) or None.

    A box is a media fragment at the end, `a/b.jpg#xywh=10,20,30,40` (W3C Media Fragments URI 1.0, 4.2.2).
    """
    box = tables.FRAGMENT.search(path)
    if not box:
        return folder / path, None
    return folder / path[: box.start()], tuple(int(number) for number in box.groups())


def scan(config: Config) -> tuple[pd.DataFrame, list[str]]:
    """List the photos of `config.data` without opening any.

    Returns:
        rows sorted by path, with path (relative to `root`, with `/`, a box as its fragment), label, group ("" where
        the photo stands alone) and split ("" where none is given); and notes, sentences for people.

    Raises:
        InputError: no photos, fewer than two classes, parts or a table that are ambiguous, a wrong group_pattern.
    """
    folder, table = root(config.data), files.resolve(config.data)
    if config.data in NAMES or not tables.is_table(table):
        table = None
    rows, notes = tables.read_table(table, config.columns) if table else _from_folder(folder)
    if config.columns and not table:
        notes.append("columns was not used: data is not a table")
    if config.group_pattern and table and (rows["group"] != "").any():
        notes.append(f"group_pattern was not used: {table.name} gives groups")
    elif config.group_pattern:
        rows["group"], more = _groups_by_name(rows, config.group_pattern)
        notes += more
    if table:
        rows["group"] = tables.join_boxes(rows)
    _check_classes(rows, table or folder, "photos of class" if table else "class folder")
    return rows.sort_values("path", ignore_index=True)[ROW], notes


def _check_classes(rows: pd.DataFrame, place: Path, what: str) -> None:
    """At least two classes, and every class in every part (rows without a split count as training)."""
    labels = set(rows["label"].unique())
    if len(labels) < 2:
        kind = "classes" if what.startswith("photos") else "class folders with photos"
        raise InputError(f"{place}: {len(labels)} {kind}, at least 2 are needed")
    alike = pd.Series(sorted(labels)).groupby(pd.Series(sorted(labels)).str.casefold()).agg(" and ".join)
    if len(alike) < len(labels):
        one = alike[alike.str.contains(" and ", regex=False)].iloc[0]
        raise InputError(f"{place}: the classes {one} differ only in upper and lower case: make them one")
    if "all" in labels:
        raise InputError(f"{place}: a class named all would be confused with the total of all classes: rename it")
    parts = rows[["label", "split"]].drop_duplicates().replace({"split": {"": "train"}})
    for split, held in parts.groupby("split")["label"]:
        if missing := labels - set(held):
            raise InputError(f"{place}: the {split} part has no {what} {min(missing)}")


# ---- a folder of class folders


def _from_folder(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """Rows of a folder of class folders, or of its parts."""
    if folder.is_file():
        raise InputError(f"{folder}: a file, but not a .csv or .tsv table: save a spreadsheet as CSV UTF-8")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of photos; data names a folder of class folders, a table or sample")
    parts, notes = _parts(folder)
    rows, empty = [], []
    skipped = [name for name, is_folder in _entries(folder) if not is_folder and name not in RECORDS]
    for split, part in parts.items():
        above = "" if part == folder else f"{part.name}/"
        for label, is_folder in _entries(part):
            if is_folder and not label.startswith("."):
                photos = _class_rows(folder, f"{above}{label}", label, split, skipped, notes)
                rows += photos
                if not photos:
                    empty.append(f"{above}{label}")
            elif not is_folder and part != folder:
                skipped.append(label)
    if empty:
        raise InputError(f"{folder}: empty class folders: {', '.join(empty)}: add photos or remove them")
    _check_names([row[0] for row in rows], folder)
    return pd.DataFrame(rows, columns=ROW, dtype=str), notes + _skipped_notes(skipped)


def _skipped_notes(skipped: list[str]) -> list[str]:
    """How many files were skipped, and the endings of those that are not hidden."""
    notes = []
    if endings := Counter(_ending(name) or "none" for name in skipped if not name.startswith(".")):
        counts = ", ".join(f"{ending} {count}" for ending, count in endings.most_common(6))
        notes.append(f"endings of files that are not photos or not in a class folder: {counts}")
    if skipped:
        files_are = "file is hidden or not a photo" if len(skipped) == 1 else "files are hidden or not photos"
        notes.append(f"{len(skipped)} {files_are}: skipped")
    return notes


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
        raise InputError(
            f"{folder}: a division into parts needs one train and one test (or val) folder; there are {names}"
        )
    names = ", ".join(d.name for d in others)
    return parts, [f"folders beside the parts were skipped: {names}"] if others else []


def _subfolders(folder: Path) -> list[Path]:
    return [folder / name for name, is_folder in _entries(folder) if is_folder and not name.startswith(".")]


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _entries(folder: str | Path) -> list[tuple[str, bool]]:
    """(name, whether it is a folder) of everything in a folder, sorted; links are followed."""
    listed = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name in SYSTEM:
                    continue
                try:
                    listed.append((entry.name, entry.is_dir()))
                except OSError:  # a link to itself
                    listed.append((entry.name, False))
    except OSError as problem:
        raise InputError(f"{folder}: the folder cannot be read ({problem.strerror}): check its permissions") from None
    return sorted(listed)


def _class_rows(folder: Path, place: str, label: str, split: str, skipped: list, notes: list) -> list[tuple]:
    """Rows of the class folder `place` in `folder`; files that are not photos are added to `skipped`."""
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
        raise InputError(
            f"group_pattern {template} matches no file name, such as {stems.iloc[0]}: correct or remove it"
        )
    parent = rows["group"].where(rows["group"] != "", rows["label"])
    alone = (rows["group"][~known] == "").sum()
    kept = (~known).sum() - alone
    notes = [f"{alone} photos do not match group_pattern and stand alone"] * bool(alone)
    notes += [f"{kept} photos do not match group_pattern and keep their folder as group"] * bool(kept)
    return rows["group"].where(~known, parent + "/" + values), notes


def _pattern(template: str) -> tuple[str, int]:
    """A regular expression for `<variety>__<view>`, and the number of the field that names the group."""
    pieces = re.split(r"<([^<>]*)>", template)
    literals, fields = pieces[::2], pieces[1::2]
    wrong = ""
    if any(mark in literal for literal in literals for mark in "<>"):
        wrong = "a < or > without its partner"
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
