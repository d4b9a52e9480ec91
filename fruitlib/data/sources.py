"""Photographs as people have them -> rows of path, label, group and split, without opening a photo.

Known are a folder of class folders; the same under parts such as `Training` and `Test` (Fruits-360); a CSV or TSV table
naming photos, labels, boxes; COCO, YOLO and VOC annotations; and names for what is drawn (`sample`) or fetched. A group
holds photos that belong together (one variety, one tree, one session) and must not be divided between training and
validation or test.
"""

import re
from pathlib import Path

import pandas as pd

from fruitlib.core import files
from fruitlib.core.config import Config
from fruitlib.core.errors import InputError
from fruitlib.core.progress import OnProgress
from fruitlib.core.texts import normal, printable, shortened
from fruitlib.data import annotations, decoding, fetch, labels, layouts, photo_paths, practice_photos, tables
from fruitlib.data.tables import ROW
from fruitlib.data.tree import on_disk

SAMPLES = {"sample": False, "sample5": True}
NAMES = (*SAMPLES, *fetch.DATASETS)
RECORDS = {"sample.json", fetch.RECORD}
SEPARATORS = ("__", "_", "-", " ")  # in file names that begin with what the photo shows
MOST_LISTED = 12  # classes in a line
LOOKED_AT = 20_000  # rows, for such beginnings


def root(data: str, photos_dir: str = "") -> Path:
    """The folder that a manifest's paths start from: the one that `data` names, of a table or another file that lists
    photos its parent folder or else `photos_dir`, of a name its folder in `data/` of the project.

    Raises:
        InputError: a data set that is not fetched yet, or no such `photos_dir`.
    """
    if data not in NAMES:
        path = files.resolve(data)
        folder = path.parent if annotations.is_listing(path) else path
        if photos_dir and annotations.kind(path):
            return photo_paths.base_folder(photos_dir, folder)
    if photos_dir:
        raise InputError(f"photos_dir = {photos_dir}: {data} is no table or annotations: leave it out")
    if data not in NAMES:
        return folder
    folder = files.home() / "data" / data
    if data in fetch.DATASETS and not folder.is_dir():
        raise InputError(f"{data} is not in {files.display_path(folder)} yet; run: fruitlib data fetch {data}")
    return folder


def ready(data: str, progress: OnProgress | None = None, photos_dir: str = "") -> Path:
    """`root(data, photos_dir)`; where the practice photographs are asked for and missing, they are drawn first."""
    folder = root(data, photos_dir)
    return practice_photos.draw(folder, five=SAMPLES[data], progress=progress) if data in SAMPLES else folder


def locate(folder: Path, path: str) -> tuple[Path, tuple[int, int, int, int] | None]:
    """The file of a manifest's `path`, and its box (x, y, width, height in pixels) or None.

    A box is a media fragment at the end, `a/b.jpg#xywh=10,20,30,40` (W3C Media Fragments URI 1.0, 4.2.2).
    """
    return on_disk(folder, tables.FRAGMENT.sub("", path)), box_of(path)


def box_of(path: str) -> tuple[int, int, int, int] | None:
    """The box of a manifest's `path`, as `locate` gives it, without a look at the disk."""
    box = tables.FRAGMENT.search(path)
    return tuple(int(number) for number in box.groups()) if box else None


def scan(config: Config) -> tuple[pd.DataFrame, list[str]]:
    """List the photos of `config.data` without opening any.

    Returns:
        rows sorted by path, with path (relative to `root`, with `/`, a box as its fragment), label, group ("" where
        the photo stands alone) and split ("" where none is given); and notes, sentences for people.

    Raises:
        InputError: no photos, fewer than two classes, parts or a table that are ambiguous, a wrong group_pattern.
    """
    folder = root(config.data, config.photos_dir)
    path = folder if config.data in NAMES else files.resolve(config.data)
    listing = annotations.kind(path) if config.data not in NAMES else ""
    rows, notes = annotations.read(listing, path, folder, config, decoding.is_photo) if listing else _from_folder(path)
    if config.columns and listing != "table":
        notes.append("columns was not used: data is not a table")
    if config.group_pattern and listing and (rows["group"] != "").any():
        notes.append(f"group_pattern was not used: {path.name} gives groups")
    elif config.group_pattern and len(rows):
        rows["group"], more = _groups_by_name(rows, config.group_pattern)
        notes += more
    elif len(rows) and (rows["group"] == "").all() and config.data not in NAMES:
        notes += _hint_of_groups(rows.head(LOOKED_AT))
    if listing:
        rows["group"] = tables.join_boxes(rows)
    _check_classes(rows, path, "photos of class" if listing else "class folder")
    return rows.sort_values("path", ignore_index=True)[ROW], [printable(note) for note in notes]


def _from_folder(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """Rows of a folder of class folders; where it is none, the error says what else it may be."""
    try:
        return layouts.read_folder(folder, decoding.is_photo, RECORDS)
    except InputError as problem:
        table_named = " (here lies " in str(problem)  # a table in the folder
        raise InputError(f"{problem}{'' if table_named else annotations.hint(folder)}") from None


def _check_classes(rows: pd.DataFrame, place: Path, what: str) -> None:
    """At least two classes, distinct by name, and every one in every part (rows without a split: training)."""
    names = set(rows["label"].unique())
    if len(names) < 2:
        kind, deeper = "classes", ""
        if what == "class folder":
            deeper = annotations.hint(place) or "; if they lie deeper, set data to the folder that holds them"
            kind = "class folders with photos"
        raise InputError(f"{place}: {len(names)} {kind}, at least 2 are needed{deeper}")
    if alike := labels.too_alike(names):
        raise InputError(f"{place}: {alike}")
    if "all" in names:
        raise InputError(f"{place}: a class named all would be confused with the total of all classes: rename it")
    parts = rows[["label", "split"]].drop_duplicates().replace({"split": {"": "train"}})
    for split, held in parts.groupby("split")["label"]:
        if missing := sorted(names - set(held)):
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            listed = "add some, or leave the class out everywhere, or leave all splits empty, so that all are divided"
            way = layouts.WAY_ON if what == "class folder" else listed
            raise InputError(f"{place}: the {split} part has no {what} {missing[0]}{more}: {way}")


def listing_text(rows: pd.DataFrame) -> str:
    """The classes of `scan`'s rows with their photos, groups, and given parts, in one line."""
    counts = rows["label"].value_counts().sort_index()
    most = len(counts) if len(counts) <= MOST_LISTED else MOST_LISTED - 2
    text = f"{len(counts):,} classes: " + ", ".join(
        f"{shortened(name, 40)} {n:,}" for name, n in counts.iloc[:most].items()
    )
    if len(counts) > most:
        text += f", … and {len(counts) - most:,} more; smallest: {shortened(counts.idxmin(), 40)} {counts.min():,}"
    if groups := rows.loc[rows["group"] != "", "group"].nunique():
        text += f"; {groups:,} group{'s' * (groups > 1)}"
    if (rows["split"] != "").any():
        parts = rows["split"].replace("", "in no part").value_counts()
        parts = parts.reindex(["train", "val", "test", "in no part"]).dropna().astype(int)
        text += "; given parts: " + ", ".join(f"{name} {n:,}" for name, n in parts.items())
    return printable(text)


# ---- groups by file name


def _groups_by_name(rows: pd.DataFrame, template: str) -> tuple[pd.Series, list[str]]:
    """Groups `<label>/<value>` (within a group folder `<label>/<folder>/<value>`) by `group_pattern`; and notes."""
    pattern, field = _pattern(normal(template))
    stems = _stems(rows)
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


def _hint_of_groups(rows: pd.DataFrame) -> list[str]:
    """A note where file names look as if photos that begin alike belonged together, such as `<patient>_<slice>`.

    Most photos share what stands before a separator with others of their class, and each class has three such
    beginnings and more: one is the class's name, or a camera's.
    """
    for separator in SEPARATORS:
        beginnings = rows.assign(beginning=_stems(rows).str.partition(separator)[0])
        counts = beginnings.groupby(["label", "beginning"]).size()
        shared = counts[counts > 1]
        if shared.sum() >= 0.8 * len(rows) and len(shared) >= 3 * rows["label"].nunique():
            example = f"{shared.index[0][1]}{separator}…"
            which = f"most file names begin as others of their class do, in {len(shared)} ways ({example})"
            return [f"{which}: if such photos show one thing, set group_pattern: <group>{separator}<photo>"]
    return []


def _stems(rows: pd.DataFrame) -> pd.Series:
    """File names without folder and ending."""
    names = rows.get("photo", rows["path"]).str.rsplit("/", n=1).str[-1]
    return names.map(normal).str.replace(r"(?<=.)\.[^.]*\Z", "", regex=True)


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
