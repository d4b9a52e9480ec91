"""A tree of folders, read once: which folder holds which photos, and what was skipped; no photo is opened."""

import functools
import os
from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from fruitlib.core import files
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
        again: links to folders that were read already, which were not followed.
    """

    photos: dict[Place, list[str]] = field(default_factory=dict)
    others: dict[Place, list[str]] = field(default_factory=dict)
    again: list[Place] = field(default_factory=list)
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
    """Everything below `root`, each folder once: those that lie there first, then what links lead to.

    Hidden files count as skipped, also in hidden folders; but a hidden folder right in `root` (`.git`) is not entered.

    Args:
        is_photo: whether a file of this name is a photo.
        ignored: names of files in `root` that are nothing to remark on.

    Raises:
        InputError: a folder that cannot be read.
    """
    tree, seen = Tree(), set()
    real, links, unseen = deque([()]), deque(), deque()  # places; of hidden ones with the visible place above them
    while real or links:
        place = (real or links).popleft()
        if (found := _entries(root, place, seen)) is None:
            tree.again.append(place)
            continue
        tree.photos[place], tree.others[place], tree._children[place] = [], [], []
        if place:
            tree._children[place[:-1]].append(place[-1])
        for name, is_folder, is_link in found:
            hidden = name.startswith(".")
            a_photo = not hidden and not is_folder and is_photo(name)
            if (a_photo or (is_folder and not hidden)) and not name.isascii():
                _check_name(os.path.join(root, *place), name)
            if is_folder and not hidden:
                (links if is_link else real).append((*place, name))
            elif is_folder and place:
                unseen.append(((*place, name), place))
            elif a_photo:
                tree.photos[place].append(name)
            elif not is_folder and (place or name not in ignored):
                tree.others[place].append(name)
    while unseen:
        place, visible = unseen.popleft()
        for name, is_folder, _ in _entries(root, place, seen) or ():
            if is_folder:
                unseen.append(((*place, name), visible))
            else:
                tree.others[visible].append(f".{name}")
    for names in tree._children.values():
        names.sort()
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
            found = _spellings(here, files.changed_at(here)).get(normal(name))
            if found is None:
                return file
            name = found
        here = here / name
    return here if here != folder else file


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


def _entries(root: Path, place: Place, seen: set) -> list[tuple[str, bool, bool]] | None:
    folder = os.path.join(root, *place)
    try:
        return entries(folder, seen)
    except OSError as problem:
        raise InputError(f"{folder}: the folder cannot be read ({problem.strerror}): check its permissions") from None


def entries(folder: str | Path, seen: set) -> list[tuple[str, bool, bool]] | None:
    """(name, whether it is a folder, whether that is a link) of everything in a folder, sorted, but for what systems
    left; None where `seen`, to which the folder is added, holds it already: links may lead to one folder many times.

    Raises:
        OSError: it cannot be read.
    """
    facts = os.stat(folder)
    if (facts.st_dev, facts.st_ino) in seen:
        return None
    seen.add((facts.st_dev, facts.st_ino))
    with os.scandir(folder) as found:
        kept = [(entry.name, _is_folder(entry), entry) for entry in found if entry.name not in SYSTEM]
    return sorted((name, is_folder, is_folder and entry.is_symlink()) for name, is_folder, entry in kept)


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
