"""A tree of folders, read once: which folder holds which photos, and what was skipped; no photo is opened."""

import functools
import os
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from fruitlib.core.errors import InputError
from fruitlib.core.texts import normal

# left by systems, not by people
SYSTEM = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}

Place = tuple[str, ...]  # a folder, by the names that lead to it; () is the one that was read


@dataclass
class Tree:
    """The folders below one, without hidden ones and those that a system left.

    Attributes:
        photos: the photo files of every folder that was entered, by place.
        others: the files of every folder that are no photos or are hidden, by place.
        notes: sentences for people.
    """

    photos: dict[Place, list[str]] = field(default_factory=dict)
    others: dict[Place, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _below: dict[Place, int] = field(default_factory=dict)
    _children: dict[Place, list[str]] = field(default_factory=dict)

    def count(self, place: Place) -> int:
        """How many photos are in a folder and below it."""
        return self._below[place]

    def children(self, place: Place) -> list[str]:
        """The folders in a folder, by name."""
        return self._children[place]

    def filled(self, place: Place) -> list[str]:
        """The folders in a folder that hold photos, themselves or below."""
        return [name for name in self._children[place] if self._below[(*place, name)]]

    def under(self, place: Place) -> list[Place]:
        """The folder and all folders below it."""
        places = [place]
        for above in places:
            places += [(*above, name) for name in self._children[above]]
        return places


def read_tree(root: Path, is_photo: Callable[[str], bool], ignored: Collection[str] = ()) -> Tree:
    """Everything below `root`; links are followed, except to a folder above.

    Hidden files count as skipped, also in hidden folders; but a hidden folder right in `root` (`.git`) is not entered.

    Args:
        is_photo: whether a file of this name is a photo.
        ignored: names of files in `root` that are nothing to remark on.

    Raises:
        InputError: a folder that cannot be read.
    """
    tree = Tree()
    to_do: list[tuple[Place, Place, tuple]] = [((), (), ())]  # a place, its visible place, the folders above
    while to_do:
        place, visible, above = to_do.pop()
        folder = os.path.join(root, *place)
        if (identity := _identity(folder)) in above:
            tree.notes.append(f"{'/'.join(place)}: a link to a folder above it was not followed")
            if place == visible:
                tree._children[place[:-1]].remove(place[-1])
            continue
        hidden = place != visible
        if not hidden:
            tree.photos[place], tree.others[place], tree._children[place] = [], [], []
        for name, is_folder in _entries(folder):
            unseen = hidden or name.startswith(".")
            a_photo = not is_folder and not unseen and is_photo(name)
            if a_photo or (is_folder and not unseen):
                _check_name(folder, name)
            if is_folder and unseen and place:
                to_do.append(((*place, name), visible, (*above, identity)))
            elif is_folder and not unseen:
                tree._children[place].append(name)
                to_do.append(((*place, name), (*place, name), (*above, identity)))
            elif a_photo:
                tree.photos[place].append(name)
            elif not is_folder and (place or name not in ignored):
                tree.others[visible].append(f".{name}" if hidden else name)
    _add_up(tree)
    return tree


def on_disk(folder: Path, path: str) -> Path:
    """The file `path` in `folder`, also where the disk spells it otherwise: with decomposed letters, or odd spaces.

    Where there is no such file, `folder / path`.
    """
    file = folder / path
    if os.path.lexists(os.path.join(folder, path)):  # a third of the time that a Path takes
        return file
    here = folder
    for name in file.relative_to(folder).parts if file.is_relative_to(folder) else ():
        if not os.path.lexists(here / name):
            found = _spellings(here, _changed(here)).get(normal(name))
            if found is None:
                return file
            name = found
        here = here / name
    return here if here != folder else file


def _changed(folder: Path) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(maxsize=256)
def _spellings(folder: Path, changed: int) -> dict[str, str]:
    """What each name of a folder, in normal form, is called on the disk."""
    try:
        return {normal(name): name for name in sorted(os.listdir(folder), reverse=True)}
    except OSError:
        return {}


def _add_up(tree: Tree) -> None:
    below = Counter()
    for place, photos in tree.photos.items():
        for depth in range(len(place) + 1):
            below[place[:depth]] += len(photos)
    tree._below = below


def _entries(folder: str) -> list[tuple[str, bool]]:
    """(name, whether it is a folder) of everything in a folder, sorted; links are followed."""
    listed = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name not in SYSTEM:
                    listed.append((entry.name, _is_folder(entry)))
    except OSError as problem:
        raise InputError(f"{folder}: the folder cannot be read ({problem.strerror}): check its permissions") from None
    return sorted(listed)


def _check_name(folder: str, name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"{folder}: the file name {name!a} is not valid UTF-8: rename the file") from None


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(folder: str) -> tuple[int, int]:
    try:
        facts = os.stat(folder)
    except OSError as problem:
        raise InputError(f"{folder}: the folder cannot be read ({problem.strerror}): check its permissions") from None
    return facts.st_dev, facts.st_ino
