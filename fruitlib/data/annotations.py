"""What `data` may name beside a folder of class folders: a table; COCO, YOLO or VOC annotations.

Each is read into the same rows, its photos are found, and what is given twice or contradicts itself is named. An
archive or a spreadsheet is not read: the line says what to do.
"""

import os
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from fruitlib.core import files
from fruitlib.core.config import Config
from fruitlib.core.errors import InputError
from fruitlib.core.texts import normal
from fruitlib.data import coco, labels, photo_paths, tables, voc, yolo
from fruitlib.data.tables import Listed

LISTINGS = {".json", ".yaml", ".yml"}  # files that describe photos of the folder they lie in; and tables
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".gz", ".bz2", ".xz", ".7z", ".rar")
SHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
MOST_ENTRIES = 100_000  # of an archive that are looked at


def is_listing(path: Path) -> bool:
    """Whether `data` names a file that lists photos: these lie in its folder, or in `photos_dir`."""
    named_like_one = path.suffix.lower() in LISTINGS or tables.is_table(path)
    return not os.path.isdir(path) and (named_like_one or os.path.isfile(path))


def kind(path: Path) -> str:
    """What `data` names: table, coco, yolo, voc or file; "" for a folder of class folders."""
    if tables.is_table(path):
        return "table"
    if is_listing(path):
        return {".json": "coco", ".yaml": "yolo", ".yml": "yolo"}.get(path.suffix.lower(), "file")
    if not os.path.isdir(path):
        return ""
    try:
        tests = {"yolo": yolo.file_in, "coco": coco.files_in, "voc": voc.folders_in}
        return next((name for name, test in tests.items() if test(path)), "")
    except OSError:  # a folder that cannot be read: reading it says so
        return ""


def read(
    what: str, path: Path, folder: Path, config: Config, is_photo: Callable[[str], bool]
) -> tuple[pd.DataFrame, list[str]]:
    """The rows of what `kind` found at `path`, whose photos lie in `folder`; and notes.

    Raises:
        InputError: a file that cannot be read or used, photos that are not there, contradictions; one line each.
    """
    if what == "file":
        raise InputError(_other_file(path))
    if what == "table":
        found = tables.read_table(path, config.columns)
    elif what == "coco":
        found = coco.read(coco.files_in(path) if os.path.isdir(path) else [(path, "", "")])
    elif what == "yolo":
        found = yolo.read(yolo.file_in(path) if os.path.isdir(path) else path, folder, is_photo)
    else:
        found = voc.read(path, voc.folders_in(path), is_photo)
    label, joined = labels.unify(found.rows["label"])
    group = found.rows["group"].map({group: normal(group) for group in found.rows["group"].unique()}).astype(str)
    found = Listed(found.rows.assign(label=label, group=group), [*found.notes, *joined], found.where)
    found = tables.each_once(found, path.name)
    rows, more = photo_paths.find(found.rows, folder, path, is_photo, config.photos_dir)
    if what != "table":
        _refuse_outside(rows, folder, path)
    found = tables.each_once(Listed(rows, [*found.notes, *more], found.where), path.name)
    return found.rows, [*found.notes, *_roboflow_note(found.rows, config)]


def _refuse_outside(rows: pd.DataFrame, folder: Path, path: Path) -> None:
    """Annotations come from others: what they name must lie in the folder of the photos, also through links."""
    top, inside = os.path.realpath(folder), {}
    for photo in rows["photo"].unique():
        if os.path.isabs(photo) or os.path.normpath(photo).startswith(".."):
            raise InputError(f"{path}: {photo} lies outside its folder: set photos_dir to the folder of the photos")
        file, place = os.path.join(top, photo), os.path.dirname(photo)
        if place not in inside:
            inside[place] = _leads_into(top, os.path.join(top, place))
        if not inside[place] or (os.path.islink(file) and not _leads_into(top, file)):
            way = "if you trust it, copy the folder with what its links name (cp -RL)"
            raise InputError(f"{path}: {photo} leads outside its folder by a link: {way}")


def _leads_into(folder: str, file: str) -> bool:
    try:
        return Path(os.path.realpath(file)).is_relative_to(folder)
    except ValueError:  # a name that no file can have
        return True


def _roboflow_note(rows: pd.DataFrame, config: Config) -> list[str]:
    """That Roboflow's augmented copies of a photo are to be kept together."""
    if config.group_pattern or not (copies := rows["photo"].str.contains(r"\.rf\.[^/]*\Z")).any():
        return []
    sources = rows["photo"][copies].drop_duplicates().str.replace(r"\.rf\.[^/]*\Z", "", regex=True)
    if not (again := sources.duplicated().sum()):
        return []
    hint = "group_pattern: <photo>.rf.<copy> keeps them together"
    return [f"{again:,} photos are Roboflow's changed copies of others, such as {sources.iloc[0]}: {hint}"]


# ---- files that are not read


def _other_file(path: Path) -> str:
    """What to do with a file that is no list of photos."""
    name, shown = path.name.lower(), files.display_path(path)
    if zipfile.is_zipfile(path) and not name.endswith(SHEETS):
        return _zip_advice(path, shown)
    if name.endswith(ARCHIVES):
        return f"{shown}: an archive: unpack it first, then name the folder as data"
    if name.endswith(SHEETS):
        return f"{shown}: a file, but not a .csv or .tsv table: save a spreadsheet as CSV UTF-8, and name that as data"
    if name.endswith(".xml"):
        return f"{shown}: the annotations of one photo: name their folder, data: {files.display_path(path.parent)}"
    kinds = "a .csv or .tsv table, COCO JSON or a YOLO data.yaml"
    return f"{shown}: a file, but not {kinds}: data names one of these, or a folder"


def _zip_advice(path: Path, shown: str) -> str:
    """How to unpack an archive, and what to name as data afterwards."""
    target = files.display_path(path.with_suffix("") if path.suffix else path.with_name(f"{path.name}-files"))
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist()[:MOST_ENTRIES]]
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return f"{shown}: an archive that cannot be read: fetch it again"
    tops = {name.split("/")[0] for name in names} - {"__MACOSX", ""}
    only = tops.pop() if len(tops) == 1 and all("/" in name for name in names) else ""
    inside = f"{target}/{only}" if only else target
    command = f"unzip {shlex.quote(shown)} -d {shlex.quote(target)}"
    return f"{shown}: an archive: unpack it first ({command}), then data: {inside}"


def hint(folder: Path) -> str:
    """`; ` and what a folder that is no folder of class folders may be meant to be; "" where nothing shows it."""
    if not os.path.isdir(folder):
        return ""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    except OSError:
        return ""
    found = [name for name in names if Path(name).suffix.lower() in tables.ENDINGS and name != "manifest.csv"]
    found = found or [name for name in names if name.lower().endswith(".json") and coco_like(folder / name)]
    found = found or sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*.csv"))
    if found:
        others = f" (or {', '.join(found[1:3])})" if len(found) > 1 else ""
        return f"; {found[0]}{others} may list its photos: data: {files.display_path(folder / found[0])}"
    if (folder / "labels").is_dir() and (folder / "images").is_dir():
        return "; images beside labels may be a YOLO data set: add its data.yaml (names, train, val)"
    return ""


def coco_like(path: Path) -> bool:
    """Whether a JSON file begins as COCO's do."""
    try:
        with open(path, "rb") as file:
            start = file.read(2**16)
    except OSError:
        return False
    return any(word in start for word in (b'"images"', b'"annotations"', b'"categories"'))
