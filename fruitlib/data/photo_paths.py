"""Where the photos are that a table or an annotation file names: listed folder by folder, no photo is opened.

A name that differs from the file's in case, accents' form or spaces is matched, with a note. With `photos_dir` set,
names are looked up in that folder and below it: what another machine wrote before them is dropped, the same number of
folders for all, and an id without an ending finds its file. What fits two files is refused.
"""

import contextlib
import math
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from fruitlib.core import files
from fruitlib.core.errors import InputError
from fruitlib.core.texts import normal, printable
from fruitlib.data import tree

MOST_ENTRIES, SECONDS, DEPTH = 200_000, 5.0, 3  # of a search for photos near a table
SHOWN, SOUGHT = 1000, 20_000  # names that show how many folders to drop; that are sought near a table


def base_folder(photos_dir: str, beside: Path) -> Path:
    """The folder that `photos_dir` names: taken like `data` from the project folder, else from the folder `beside`.

    Raises:
        InputError: no such folder, or one in each of the two places.
    """
    wanted = dict.fromkeys([files.resolve(photos_dir), beside / photos_dir])
    found = [folder for folder in wanted if os.path.isdir(folder)]
    if len({os.path.realpath(folder) for folder in found}) > 1:
        raise InputError(f"photos_dir = {photos_dir}: {found[0]} and {found[1]} both are folders: give it in full")
    if not found:
        looked = " or ".join(str(folder) for folder in wanted)
        raise InputError(f"photos_dir = {photos_dir}: no such folder; looked for {looked}")
    return found[0]


def find(
    rows: pd.DataFrame, folder: Path, listing: Path, is_photo: Callable[[str], bool], photos_dir: str = ""
) -> tuple[pd.DataFrame, list[str]]:
    """The rows with `path` and `photo` as the files are called, relative to `folder`; and notes.

    Photos that are missing stay as they are named, with a note of how many (and of the setting that would find all,
    where there is one); the checks of photos quarantine them. `is_photo` says by its name whether a file is one.

    Raises:
        InputError: none is found, or a name fits several files.
    """
    named = rows["photo"].drop_duplicates().tolist()
    found = _as_named(folder, named, inside=bool(photos_dir))
    notes = _note_of_likes(named, found)
    if photos_dir and None in found:
        found, more = _below(folder, listing, named, found, walk(folder), is_photo)
        notes += more
    missing = [name for name, file in zip(named, found, strict=True) if file is None]
    if named and len(missing) == len(named):
        raise InputError(f"{files.display_path(listing)}: {_none_found(named, folder, photos_dir, is_photo)}")
    if missing:
        setting = "" if photos_dir else _all_below(folder, listing, named, found, is_photo)
        notes.append(_note_of_missing(rows, missing, folder) + setting)
    changed = {name: file for name, file in zip(named, found, strict=True) if file not in (None, name)}
    if not changed:
        return rows, notes
    photos = [changed.get(name, name) for name in rows["photo"]]
    pairs = zip(photos, rows["photo"], rows["path"], strict=True)
    paths = [file + path[len(name) :] for file, name, path in pairs]  # with its box
    photo, path = (pd.Series(texts, rows.index, dtype=str) for texts in (photos, paths))
    return rows.assign(photo=photo, path=path), notes


def _note_of_likes(named: list[str], found: list[str | None]) -> list[str]:
    likes = [(name, file) for name, file in zip(named, found, strict=True) if file not in (None, name)]
    if not likes:
        return []
    example = f"{printable(likes[0][0])} is {printable(likes[0][1])}"
    return [f"{_photos(len(likes))} found under a name that differs in case, accents or spaces: {example}"]


def _note_of_missing(rows: pd.DataFrame, missing: list[str], folder: Path) -> str:
    lost = rows[rows["photo"].isin(missing)]
    parts = Counter(lost["split"][lost["split"] != ""])
    of_parts = f" (of {', '.join(f'{part} {number:,}' for part, number in sorted(parts.items()))})" if parts else ""
    return (
        f"{len(missing):,} of {rows['photo'].nunique():,} photos were not found in {files.display_path(folder)}"
        f"{of_parts}; the first is {printable(missing[0])}"
    )


def _photos(number: int) -> str:
    return "1 photo was" if number == 1 else f"{number:,} photos were"


# ---- as they are named


def _as_named(folder: Path, named: list[str], inside: bool) -> list[str | None]:
    """The file of each name, relative to `folder`; None where there is none, or, if `inside`, the name is absolute."""
    places: dict[str, int] = {}
    codes = np.array([places.setdefault(_place(name), len(places)) for name in named], dtype=np.int64)
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(places) + 1))
    found: list[str | None] = [None] * len(named)
    known: dict[str, dict[str, list[str]]] = {}
    for number, place in enumerate(places):
        if inside and _is_absolute(place):
            continue
        positions = order[bounds[number] : bounds[number + 1]].tolist()
        names = [named[position].rpartition("/")[2] for position in positions]
        real = place if not place or os.path.isdir(folder / _root(place)) else _alike_folder(folder, place, known)
        if real is None:
            continue
        for position, file in zip(positions, _in_folder(folder / _root(real), names), strict=True):
            if file is not None:  # the same text object where nothing differs: of two million, none is copied
                path = f"{real.rstrip('/')}/{file}" if real else file
                found[position] = named[position] if path == named[position] else path
    return found


def _place(name: str) -> str:
    """The folder of a name; "" where it has none."""
    above = name.rpartition("/")[0]
    return above or ("/" if name.startswith("/") else "")


def _is_absolute(name: str) -> bool:
    return name.startswith("/") or os.path.isabs(name)


def _root(place: str) -> str:
    return place or "."


def _in_folder(folder: Path, names: list[str]) -> list[str | None]:
    """The entry of a folder for each name: the same, else the only one that looks like it."""
    try:
        with os.scandir(folder) as entries:
            there = {entry.name for entry in entries}
    except PermissionError:  # its files may be readable all the same
        return [name if os.path.lexists(folder / name) else None for name in names]
    except (OSError, ValueError):
        return [None] * len(names)
    if all(name in there for name in names):
        return list(names)
    free, wanted = {}, Counter(fold(name) for name in names)
    for name in there.difference(names):
        free.setdefault(fold(name), []).append(name)
    return [name if name in there else _only(free, wanted, fold(name)) for name in names]


def _only(free: dict[str, list[str]], wanted: Counter, key: str) -> str | None:
    return free[key][0] if wanted[key] == 1 and len(free.get(key, ())) == 1 else None


def fold(name: str) -> str:
    """What names have in common that differ in case, Unicode form or spaces alone."""
    if name.isascii():  # ten times as fast
        return " ".join(name.split()).lower()
    return normal(name).casefold()


def _alike_folder(folder: Path, place: str, known: dict[str, dict[str, list[str]]]) -> str | None:
    """The folder that looks like `place`, step by step, relative to `folder`; None where there is none, or several.

    `known` keeps what was listed: thousands of names may be looked for in one folder.
    """
    real = ""
    for step in place.split("/"):
        entry = _alike_entry(folder, real, step, known) if step not in ("", "..") else step
        if not entry:
            return None
        real = f"{real}/{entry}" if real else entry
    return real if os.path.isdir(folder / real) else None


def _alike_entry(folder: Path, real: str, step: str, known: dict[str, dict[str, list[str]]]) -> str | None:
    if os.path.lexists(folder / real / step):  # also in a folder that may not be listed
        return step
    if real not in known:
        known[real] = {}
        with contextlib.suppress(OSError, ValueError), os.scandir(folder / _root(real)) as entries:
            for entry in entries:
                known[real].setdefault(fold(entry.name), []).append(entry.name)
    alike = known[real].get(fold(step), ())
    return alike[0] if len(alike) == 1 else None


# ---- in a folder and below it


class Limit:
    """How long a search may go on; `reached` says afterwards that it was ended."""

    def __init__(self, entries: int, seconds: float):
        self.entries, self.until, self.reached = entries, time.monotonic() + seconds, False

    def count(self) -> bool:
        """Whether one entry more is too many."""
        self.entries -= 1
        self.reached = self.entries < 0 or time.monotonic() > self.until
        return self.reached


def walk(folder: Path, depth: int = 100, limit: Limit | None = None) -> Iterator[str]:
    """The files in a folder and below it, relative to it, nearest first, what links lead to last; hidden ones and
    folders of systems are skipped, as is what cannot be read."""
    real, links, seen = deque([("", 0)]), deque(), set()
    while real or links:
        place, below = (real or links).popleft()
        found = None
        with contextlib.suppress(OSError):
            found = tree.entries(folder / _root(place), seen)
        for name, is_folder, is_link in found or ():
            if name.startswith("."):
                continue
            if limit and limit.count():
                return
            path = f"{place}/{name}" if place else name
            if not is_folder:
                yield path
            elif below < depth:
                (links if is_link else real).append((path, below + 1))


class Index:
    """Files by their names' last parts. A name without an ending fits a photo.

    Names are looked up together: thousands may share their last part, as in `tree 17/image.jpg`.
    """

    def __init__(self, paths: Iterable[str], named: Iterable[str], is_photo: Callable[[str], bool]):
        wanted, self.by_name = {fold(name.rpartition("/")[2]) for name in named}, {}
        for path in paths:
            name = fold(path.rpartition("/")[2])
            keys = {name, os.path.splitext(name)[0]} if is_photo(name) else {name}
            for key in keys & wanted:
                self.by_name.setdefault(key, []).append(path)

    def fits(self, names: Iterable[str], cut: int) -> list[list[str]]:
        """The files that end as each name does without its first `cut` folders."""
        tails = [tail_of(name, cut) for name in names]
        found = self.ending(set(tails))
        return [found[tail] for tail in tails]

    def ending(self, tails: Collection[tuple[str, ...]]) -> dict[tuple[str, ...], list[str]]:
        """The files that end in each of the tails (of `tail_of`); where some lie directly in that place, these."""
        found: dict[tuple[str, ...], list[str]] = {tail: [] for tail in tails}
        lengths: dict[str, set[int]] = {}
        for tail in found:
            lengths.setdefault(tail[-1], set()).add(len(tail))
        for last, some in lengths.items():
            for path in self.by_name.get(last, ()):
                steps = (*map(fold, path.split("/")[:-1]), last)
                for key in (steps[-length:] for length in some if length <= len(steps)):
                    if key in found:
                        found[key].append(path)
        for tail, paths in found.items():
            found[tail] = [path for path in paths if path.count("/") < len(tail)] or paths
        return found

    def cut(self, named: list[str]) -> int:
        """How many folders to drop from the names, so that most of some of them are found; the fewest that do."""
        some = named[:: max(len(named) // SHOWN, 1)]
        deepest = max((len(steps_of(name)) for name in some), default=1)
        counts = [sum(map(bool, self.fits(some, cut))) for cut in range(min(deepest, 20))]
        return counts.index(max(counts)) if counts else 0


def steps_of(name: str) -> list[str]:
    return [step for step in name.split("/") if step not in ("", ".")] or [""]


def tail_of(name: str, cut: int) -> tuple[str, ...]:
    """The steps of a path, in the form of `fold`, without the first `cut`, but for the last one, which stays."""
    steps = steps_of(name)
    return tuple(map(fold, steps[min(cut, len(steps) - 1) :]))


def _all_below(folder: Path, listing: Path, named: list[str], found: list, is_photo: Callable[[str], bool]) -> str:
    """The setting with which photos that are missing in a folder would all be found below it; "" where not all would.

    The search ends after so many entries, not after a time: the note of a manifest must stay the same.
    """
    paths = walk(folder, DEPTH, Limit(SOUGHT, math.inf))
    try:
        found, _ = _below(folder, listing, named, found, paths, is_photo)
    except InputError:
        return ""
    return "" if None in found else f"; with photos_dir: {files.display_path(folder)} all would be"


def _below(
    folder: Path,
    listing: Path,
    named: list[str],
    found: list[str | None],
    paths: Iterable[str],
    is_photo: Callable[[str], bool],
) -> tuple[list[str | None], list[str]]:
    """The files of all names; those not found as they are named are looked up among the `paths` below the folder."""
    lost = [name for name, file in zip(named, found, strict=True) if file is None]
    index = Index(paths, lost, is_photo)
    cut = 0 if len(lost) < len(named) else index.cut(lost)
    fits = iter(index.fits(lost, cut))
    claimed = {file: name for name, file in zip(named, found, strict=True) if file is not None}
    found, example, number = list(found), "", 0
    for position, name in enumerate(named):
        if found[position] is not None or not (fitting := next(fits)):
            continue
        if len(fitting) > 1:
            why = f"{fitting[0]} and {fitting[1]} both fit"
            raise InputError(_ambiguous(listing, name, folder, why, "the folder of the right one"))
        if (other := claimed.setdefault(fitting[0], name)) != name:
            why = f"{other} would be the same file, {fitting[0]}"
            raise InputError(_ambiguous(listing, name, folder, why, "another folder, or correct the paths"))
        found[position], number = fitting[0], number + 1
        example = example or f"{printable(name)} is {printable(fitting[0])}"
    notes = [f"{_photos(number)} looked up in {files.display_path(folder)}: {example}"] if number else []
    return found, notes


def _ambiguous(listing: Path, name: str, folder: Path, why: str, advice: str) -> str:
    where = files.display_path(folder)
    begin = f"{files.display_path(listing)}: {name} is not clear in {where}"
    return f"{begin}: {why}; set photos_dir to {advice}"


# ---- none found: where are they?


def _none_found(named: list[str], folder: Path, photos_dir: str, is_photo: Callable[[str], bool]) -> str:
    """That no photo was found, where they were looked for, and the folder near it that has them."""
    example = named[0] if _is_absolute(named[0]) else f"{files.display_path(folder)}/{named[0]}"
    begin = f"none of its {len(named):,} photos was found"
    if photos_dir:
        return f"{begin} in {files.display_path(folder)} or below it, such as {named[0]}: correct photos_dir"
    begin += f"; looked for {example} and the like"
    some = named[:: -(-len(named) // SOUGHT)]
    for start, least in ((folder, 1), (folder.parent, len(some) / 2)):  # further off, a few may be there by chance
        limit = Limit(MOST_ENTRIES, SECONDS)
        index = Index(walk(start, DEPTH, limit), some, is_photo)
        if suggestion := _suggestion(start, index, some, least):
            ended = " (the search ended early)" if limit.reached else ""
            return f"{begin}; {suggestion}{ended}"
    return f"{begin}: set photos_dir to the folder that holds them"


def _suggestion(start: Path, index: Index, named: list[str], least: float) -> str:
    """The setting with which most of the photos would be found; "" where fewer than `least` would."""
    cut, bases, fitting = index.cut(named), Counter(), 0
    tails = Counter(tail_of(name, cut) for name in named)
    for tail, paths in index.ending(tails).items():
        fitting += tails[tail] * bool(paths)
        for base in {"/".join(path.split("/")[: -len(tail)]) for path in paths}:
            bases[base] += tails[tail]
    if fitting < least:
        return ""
    (base, most), *others = sorted(bases.items(), key=lambda one: (-one[1], one[0]))
    if most < fitting and sum(bases.values()) == fitting:  # in several folders, each photo in one of them
        base, most = os.path.commonpath([f"/{base}" for base in bases])[1:], fitting
    number = "all" if most == len(named) else f"{most:,} of {len(named):,}"
    tied = [other for other, count in others if count == most]
    also = f" (or {files.display_path(start / tied[0])})" if tied else ""
    return f"with photos_dir: {files.display_path(start / base)}{also} {number} would be"
