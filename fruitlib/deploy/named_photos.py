"""The photos that a person names for `fruitlib predict`: files, folders, patterns, CSV files with a column of paths."""

import csv
import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fruitlib.core.errors import InputError
from fruitlib.core.files import unguarded
from fruitlib.core.texts import normal, printable, some
from fruitlib.data import decoding, tree

COLUMNS = ("path", "file", "filename", "image")  # a CSV's column of paths; the first that is there
LABEL = "label"  # its column of true classes


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo's file; its path as people see it; the path below the folder that named it; and its label.

    The label is the CSV's, else the name of the folder that holds the photo.
    """

    file: str
    shown: str
    below: str
    label: str


def find(arguments: Iterable[str]) -> tuple[list[Photo], list[str]]:
    """The photos that the arguments name, each once, in the order of the arguments; and notes, sentences for people.

    Folders are read with all that is below them, by the names of the files, without hidden ones and those that systems
    leave. A pattern such as `photos/*.jpg` counts where the shell has left it as it is.

    Raises:
        InputError: nothing is there, a folder holds no photos or cannot be read, a CSV has no column of paths.
    """
    found: dict[str, Photo] = {}
    count = 0
    for argument in arguments:
        for photo in _named_by(argument):
            count += 1
            found.setdefault(os.path.abspath(photo.file), photo)
    twice = count - len(found)
    photos = "1 photo was" if twice == 1 else f"{twice:,} photos were"
    return list(found.values()), [f"{photos} named twice, and predicted once"] if twice else []


def _named_by(argument: str) -> list[Photo]:
    path = os.path.expanduser(argument)
    if os.path.isdir(path):
        return _in_folder(path)
    if os.path.lexists(path):
        is_list = path.lower().endswith(".csv")
        return _in_csv(path) if is_list else [_photo(path, os.path.basename(path))]
    if not glob.has_magic(path):
        raise InputError(f"{argument}: no such file or folder")
    matches = sorted(glob.glob(path, recursive=True))
    if not matches:
        raise InputError(f"{argument}: no file matches")
    return [photo for match in matches for photo in _named_by(match)]


def _photo(file: str, below: str, shown: str = "", label: str = "") -> Photo:
    label = label or os.path.basename(os.path.dirname(os.path.abspath(file)))
    return Photo(file, shown or file, below, normal(label))


def _in_folder(folder: str) -> list[Photo]:
    photos = tree.read_tree(Path(folder), decoding.is_photo).photos
    belows = ["/".join((*place, name)) for place, names in photos.items() for name in names]
    if not belows:
        endings = " ".join(sorted(decoding.ENDINGS))
        raise InputError(f"{folder}: no photos in this folder; photos are known by their endings: {endings}")
    return [_photo(os.path.join(folder, below), below) for below in sorted(belows)]


def _in_csv(path: str) -> list[Photo]:
    """The photos of a CSV file's rows; relative paths begin where the CSV lies."""
    folder = os.path.dirname(path)
    photos = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            separator = _separator(file.readline())
            file.seek(0)
            rows = csv.DictReader(file, delimiter=separator)
            titles = {normal(title).lower(): title for title in reversed(rows.fieldnames or []) if title}
            wanted = next((titles[name] for name in COLUMNS if name in titles), None)
            if wanted is None:
                there = printable(some(rows.fieldnames or ["nothing"]))
                raise InputError(f"{path}: no column named {', '.join(COLUMNS)}; its columns are: {there}")
            for row in rows:
                label = row[titles[LABEL]] if LABEL in titles else ""
                if named := unguarded((row[wanted] or "").strip()):
                    photos.append(_in_row(folder, named, unguarded(label or "")))
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8: save it as a CSV file in UTF-8") from None
    except csv.Error as problem:
        raise InputError(f"{path}: not a CSV file that can be read ({problem})") from None
    except OSError as problem:
        raise InputError(f"{path}: cannot be read ({problem.strerror}): check its permissions") from None
    if not photos:
        raise InputError(f"{path}: its column {printable(wanted)} names no photos")
    return photos


def _in_row(folder: str, named: str, label: str) -> Photo:
    if "\\" in named and not os.path.lexists(os.path.join(folder, named)):
        named = named.replace("\\", "/")  # written on Windows
    below = os.path.normpath(named)
    if os.path.isabs(below) or below.startswith(".."):
        below = os.path.basename(below)
    return _photo(os.path.join(folder, named), below.replace(os.sep, "/"), label=label)


def _separator(header: str) -> str:
    """What stands between the columns: of comma, semicolon and tab what the first line has most of."""
    return max(",;\t", key=header.count)
