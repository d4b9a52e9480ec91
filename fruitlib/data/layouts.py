"""A tree of folders -> which folder is a class, which a part (train, val, test), which a group; or one line why not.

Known are class folders; class folders in parts, the parts named in many ways (`part_names`); parts within every class;
and up to two folders too many above the classes. A folder that is a part is never taken for a class: where parts and
classes cannot be distinguished, the layout is refused.
"""

import os
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from fruitlib.core.errors import InputError
from fruitlib.core.texts import normal, some
from fruitlib.data import labels, part_names
from fruitlib.data.tables import ROW
from fruitlib.data.tree import Place, Tree, read_tree

TOO_MANY = 2  # folders above the classes that are looked into
WAY_ON = (  # for a part that lacks a class
    "add photos of it there, or leave the class out everywhere, or have all photos divided again: move them out of the "
    "parts, or set data to one part"
)
A_CLASS_TOO = {"train", "trains", "valid"}  # parts by name that may be a class: beside bus and tram, beside invalid


@dataclass
class Layout:
    """What the folders of a tree are.

    Attributes:
        classes: every class folder, and its part ("" where none is given).
        depth: how many folders below its class a photo's part is named; 0: nowhere.
        inner_parts: the part that each folder at that depth is; such a folder is no group.
    """

    classes: dict[Place, str] = field(default_factory=dict)
    depth: int = 0
    inner_parts: dict[str, str] = field(default_factory=dict)


def read_folder(
    folder: Path, is_photo: Callable[[str], bool], ignored: Collection[str] = ()
) -> tuple[pd.DataFrame, list[str]]:
    """A row per photo of a folder, with path, label, group and split; and notes, sentences for people.

    Args:
        is_photo: whether a file of this name is a photo.
        ignored: names of files in the folder that are nothing to remark on.

    Raises:
        InputError: no folder, no class folders, an empty one, or parts that are not clear.
    """
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder of photos; data names a folder of class folders, a table or sample")
    tree = read_tree(folder, is_photo, ignored)
    finder = _Finder(folder, tree)
    layout = finder.find()
    rows = _rows(tree, layout)
    rows["label"], joined = labels.unify(rows["label"])
    if (rows["label"] == "").any():
        raise InputError(f"{folder}: the name of a class folder shows nothing: rename the folder")
    inside = rows.pop("inside")
    rows["group"] = (rows["label"] + "/" + inside).where(inside != "", "")
    return rows[ROW], [*_links_note(tree), *finder.notes, *joined, *_skipped_notes(tree, layout)]


def _rows(tree: Tree, layout: Layout) -> pd.DataFrame:
    """A row per photo, with path, label, split, and its folders within the class as `inside`."""
    rows = []
    for top, split in layout.classes.items():
        for place in tree.under(top):
            within, part = list(place[len(top) :]), split
            if layout.depth and len(within) >= layout.depth:
                part = layout.inner_parts.get(within.pop(layout.depth - 1), split)
            inside = normal("/".join(within))
            rows += [("/".join((*place, photo)), top[-1], part, inside) for photo in tree.photos[place]]
    return pd.DataFrame(rows, columns=["path", "label", "split", "inside"], dtype=str)


class _Finder:
    """Finds the layout of one tree."""

    def __init__(self, folder: Path, tree: Tree):
        self.folder, self.tree, self.notes = folder, tree, []

    def find(self) -> Layout:
        """The layout; raises `InputError` where it is not clear."""
        if not self.tree.count(()):
            raise InputError(f"{self.folder}: no photos in it or below it")
        place, parts = (), {}
        for _ in range(TOO_MANY + 1):
            if parts := self._parts(place):
                break
            deeper = self._only_folder(place)
            if deeper is None or len(deeper) > TOO_MANY:
                break
            place = deeper
        if place:
            self.notes.append(f"the folder {'/'.join(place)} was looked into: it is the only one with photos")
        layout = Layout()
        for above, part in (parts or {place: ""}).items():
            layout.classes |= {(*above, name): part for name in self._class_names(above, part)}
        self._note_same_groups(layout)
        self._find_inner_parts(layout)
        return layout

    def _refuse(self, place: Place, why: str) -> InputError:
        return InputError(f"{self.folder.joinpath(*place)}: {why}")

    def _table(self) -> str:
        """A table with labels, which may lie in the folder."""
        found = [name for name in self.tree.others[()] if name.lower().endswith((".csv", ".tsv"))]
        return f"a table with the columns path and label{f' (here lies {found[0]})' if found else ''}"

    # ---- one folder too many

    def _only_folder(self, place: Place) -> Place | None:
        """The one folder in `place` that holds photos, if it may hold the class folders."""
        filled = self._labelled(place)
        if len(filled) != 1 or self.tree.photos[place]:
            return None
        deeper = (*place, filled[0])
        if self.tree.photos[deeper] or not self.tree.filled(deeper):
            return None
        empty = [name for name in self.tree.children(place) if not self.tree.count((*place, name))]
        doubtful = [name for name in empty if not part_names.stands_beside_photos(name)]
        if doubtful and not part_names.is_collection(filled[0]):
            return None
        if empty:
            self.notes.append(f"folders without photos were skipped: {some(empty)}")
        return deeper

    def _labelled(self, place: Place) -> list[str]:
        """The folders in `place` with photos, less those whose name says that their photos have no label."""
        filled = self.tree.filled(place)
        parts = part_names.parts_among(filled)
        return [name for name in filled if parts.get(name) != "unlabelled" or not self._is_bare((*place, name))]

    def _inside(self, place: Place) -> Place:
        """Where a part's class folders are: in it, or in a folder too many, such as `train/images`."""
        for _ in range(TOO_MANY):
            filled = self.tree.filled(place)
            if self.tree.photos[place] or len(filled) != 1:
                break
            same = part_names.words_of(filled[0]) == part_names.words_of(place[-1])
            if not same and not part_names.is_collection(filled[0]):
                break
            place = (*place, filled[0])
        return place

    def _is_bare(self, place: Place) -> bool:
        """Whether a part holds photos without class folders."""
        return not self.tree.filled(self._inside(place))

    # ---- parts that hold class folders

    def _parts(self, place: Place) -> dict[Place, str]:
        """The part of each folder in `place` that holds class folders; {} where `place` has no parts."""
        labelled = self._labelled(place)
        named = part_names.parts_among(labelled)
        others = [name for name in labelled if name not in named]
        self._note_unlabelled(place, [name for name in self.tree.filled(place) if name not in labelled])
        if len(named) == 1:
            self._check_lone(place, next(iter(named)), others)
        if len(named) < 2:
            return {}
        self._check_parts(place, named, others)
        bare = [name for name in named if self._is_bare((*place, name))]
        self._note_unlabelled(place, bare)
        beside = [name for name in self.tree.children(place) if name in others or not self.tree.count((*place, name))]
        if beside:
            self.notes.append(f"folders beside the parts were skipped: {some(beside)}")
        parts = {self._inside((*place, name)): part for name, part in named.items() if name not in bare}
        if len(parts) == 1:
            self.notes.append("only the train part has class folders: its photos are divided as usual")
            return dict.fromkeys(parts, "")
        return parts

    def _note_unlabelled(self, place: Place, names: list[str]) -> None:
        for name in names:
            count = self.tree.count((*place, name))
            note = f"{name} has no class folders, so its photos have no label: {count:,} photos are not used"
            if note not in self.notes:
                self.notes.append(note)

    def _check_parts(self, place: Place, named: dict[str, str], others: list[str]) -> None:
        """Refuse parts without a train part, one part twice, and parts that cannot be distinguished from classes."""
        counts, listed = Counter(named.values()), some(named)
        if "train" not in counts:
            raise self._refuse(
                place,
                f"a division into parts needs one train and one test (or val) folder; there are {listed}: add train, "
                "or set data to one of them, whose photos are then divided",
            )
        if "unlabelled" in counts:
            name = next(name for name, part in named.items() if part == "unlabelled")
            raise self._refuse(place, f"{name} holds folders: which classes are they? Move it away, or rename it")
        twice = [part for part, count in counts.items() if count > 1]
        if twice:
            names = " and ".join(name for name, part in named.items() if part == twice[0])
            raise self._refuse(place, f"{names} are both the {twice[0]} part: make them one, or rename one")
        train = next(name for name, part in named.items() if part == "train")
        if self._is_bare((*place, train)):
            raise self._refuse(
                place,
                f"{listed} are parts but hold no class folders: give each part a folder for every class, or set data "
                f"to {self._table()}; if they are classes, rename their folders",
            )
        classes = set(self.tree.filled(self._inside((*place, train))))
        doubles = [name for name in others if name in classes or classes & set(self.tree.filled((*place, name)))]
        if doubles:
            raise self._refuse(
                place,
                f"{listed} are parts, and {some(doubles)} beside them holds the same classes: move it away, or move "
                "its photos into the parts",
            )

    def _check_lone(self, place: Place, name: str, others: list[str]) -> None:
        """Refuse a folder named as a part beside other folders, unless it is a class beyond doubt."""
        if not others:
            return
        own, inside = set(self.tree.filled((*place, name))), {}
        for other in others:
            inside[other] = set(self.tree.filled((*place, other)))
        direct = bool(self.tree.photos[(*place, name)])
        apart = len(others) > 1 and not any(own & held for held in inside.values())
        if normal(name).lower() in A_CLASS_TOO and (direct or apart):
            return
        raise self._refuse(
            place,
            f"{name} stands beside {some(others)}: is it a part or a class? A part needs another one (train, and test "
            "or val), with class folders in both; a class needs another name; anything else, move it away",
        )

    # ---- class folders

    def _class_names(self, place: Place, part: str) -> list[str]:
        """The class folders in `place`; those that usually lie beside photos are skipped.

        Raises:
            InputError: empty class folders, none at all, or some that are no classes.
        """
        empty = [name for name in self.tree.children(place) if not self.tree.count((*place, name))]
        beside = [name for name in empty if part_names.stands_beside_photos(name)]
        if beside:
            self.notes.append(f"folders without photos were skipped: {some(beside)}")
        lacking = ["/".join((*place, name)) for name in empty if name not in beside]
        if lacking:
            way = WAY_ON if part else "add photos, or remove these folders"
            raise InputError(f"{self.folder}: empty class folders: {some(lacking)}: {way}")
        names = self._labelled(place)
        if not names:
            raise self._refuse(
                place,
                "photos, but no class folders: put the photos of each class into a folder with its name, or set "
                f"data to {self._table()}",
            )
        if len(names) > 1:
            self._check_names(place, names)
        return names

    def _check_names(self, place: Place, names: list[str]) -> None:
        """Refuse folders that are parts or collections of photos, not classes."""
        parts = part_names.parts_among(names)
        if len(parts) > 1:
            raise self._refuse(place, f"{some(parts)} are parts within a part: keep the parts in one place")
        for name in parts:
            self._check_lone(place, name, [other for other in names if other != name])
        if folds := [name for name in names if part_names.is_fold(name)]:
            raise self._refuse(
                place, f"{some(folds)}: folds are not read from folders: put their photos together, and set folds"
            )
        if wrong := [name for name in names if part_names.is_never_a_class(name)]:
            raise self._refuse(
                place,
                f"{some(wrong)}: a name for a collection of photos, not for a class: move it away, rename it, or, if "
                "it holds the class folders, set data to it",
            )
        for name in names:
            inner = self.tree.filled((*place, name))
            named = part_names.is_collection(name) and not part_names.part_of(name)
            if named and len(inner) > 1 and not self.tree.photos[(*place, name)]:
                others = some([other for other in names if other != name])
                raise self._refuse(
                    place,
                    f"{name} stands beside {others}: which holds the class folders? Set data to it, or move the others "
                    "away; if it is a class, rename it",
                )

    def _note_same_groups(self, layout: Layout) -> None:
        """A note where all class folders hold the same folders: those may be the classes."""
        held = {tuple(self.tree.filled(place)) for place in layout.classes}
        names = next(iter(held))
        direct = any(self.tree.photos[place] for place in layout.classes)
        given = any(layout.classes.values()) or part_names.parts_among(names)
        if len(layout.classes) > 1 and len(held) == 1 and len(names) > 1 and not direct and not given:
            self.notes.append(
                f"all class folders hold the folders {some(names)}: taken as groups; if they are the classes, rename "
                "the folders above them to train, val or test, or set data to one of these"
            )

    # ---- parts within the classes

    def _find_inner_parts(self, layout: Layout) -> None:
        """Look for parts within the class folders, `apple/train`, and for a folder there that says nothing."""
        divided = {}  # the depth below its class of each folder that parts divide
        for top in layout.classes:
            for place in self.tree.under(top):
                kinds = set(part_names.parts_among(self.tree.filled(place)).values())
                if "train" in kinds and kinds & {"val", "test"}:
                    divided[place] = len(place) - len(top)
        if not divided:
            self._pass_over(layout)
            return
        first, depth = next(iter(divided.items()))
        where = "/".join(first)
        if any(layout.classes.values()) or len(set(divided.values())) > 1:
            raise self._refuse(
                (), f"{where} is divided into parts once more: keep parts above the classes or in them, not both"
            )
        names = set()
        for place in self._at_depth(layout, depth, where):
            names.update(self.tree.filled(place))
        parts = part_names.parts_among(sorted(names))
        strays = sorted(name for name in names if parts.get(name, "unlabelled") == "unlabelled")
        if strays:
            raise self._refuse((), f"{some(strays)} beside the parts that {where} holds: move the photos into a part")
        layout.depth, layout.inner_parts = depth + 1, parts

    def _at_depth(self, layout: Layout, depth: int, where: str) -> list[Place]:
        """The folders at a depth below their class, whose folders are parts; no photo may lie above these."""
        places = []
        for top in layout.classes:
            for place in self.tree.under(top):
                below = len(place) - len(top)
                if below <= depth and self.tree.photos[place]:
                    loose = "/".join(place)
                    raise self._refuse(
                        (), f"{loose} holds photos outside parts such as those of {where}: move them into a part"
                    )
                if below == depth:
                    places.append(place)
        return places

    def _pass_over(self, layout: Layout) -> None:
        """Where every class holds one folder that says nothing (`apple/images`, `apple/train`), it is no group."""
        held = [self.tree.filled(place) for place in layout.classes]
        if any(self.tree.photos[place] for place in layout.classes) or any(len(names) != 1 for names in held):
            return
        names = sorted({name for (name,) in held})
        if not all(part_names.is_collection(name) for name in names):
            return
        if len({part_names.part_of(name) for name in names}) > 1:
            raise self._refuse(
                (),
                f"the class folders hold {some(names)}, one each: give every class all parts, or move the photos out",
            )
        layout.depth = 1
        self.notes.append(f"the folders {some(names)} within the class folders are no groups")


def _links_note(tree: Tree) -> list[str]:
    names = some(["/".join(place) for place in tree.again])
    return [f"links to folders that are read already were not followed: {names}"] if names else []


def _skipped_notes(tree: Tree, layout: Layout) -> list[str]:
    """How many photos have no class folder; how many other files were skipped, with the endings of those not hidden."""
    above = sorted({top[:depth] for top in layout.classes for depth in range(len(top))})
    beside = [name for place in above for name in tree.photos[place]]
    skipped = [name for place in above for name in tree.others[place]]
    for top in layout.classes:
        skipped += [name for place in tree.under(top) for name in tree.others[place]]
    notes = []
    if beside:
        lie = "1 photo lies" if len(beside) == 1 else f"{len(beside):,} photos lie"
        notes.append(f"{lie} beside the class folders, without a class: not used; the first is {min(beside)}")
    shown = [name for name in skipped if not name.startswith(".")]
    if endings := Counter(os.path.splitext(name)[1].lower() or "none" for name in shown):
        counts = ", ".join(f"{ending} {count}" for ending, count in endings.most_common(6))
        notes.append(f"endings of files that are not photos: {counts}")
    if skipped:
        files_are = "file is hidden or not a photo" if len(skipped) == 1 else "files are hidden or not photos"
        notes.append(f"{len(skipped)} {files_are}: skipped")
    return notes
