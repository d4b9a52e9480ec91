"""Pascal VOC's XML, a file per photo (http://host.robots.ox.ac.uk/pascal/VOC) -> rows: a row per object's box.

Known are `Annotations/` beside `JPEGImages/` or `images/`, with the division of `ImageSets/Main` where there is one,
and XML beside the photos, in one folder or in train, valid and test (Roboflow's export).
"""

import contextlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from fruitlib.core.errors import InputError
from fruitlib.data import boxes
from fruitlib.data.tables import LARGEST, Listed, part_of

MOST_BYTES, MOST_LIST = 2**20, 2**28  # of one photo's XML; of a list of a part's photos
PHOTOS = ("JPEGImages", "images", "Images", "imgs", "photos")  # where the photos of `Annotations/` may be


def folders_in(folder: Path) -> list[tuple[Path, str, str]]:
    """(folder of XML, split, folder of the photos relative to `folder`) of every such pair; empty if there is none."""
    photos = next((name for name in PHOTOS if (folder / name).is_dir()), "")
    for place in ("Annotations", "annotations") if photos else ():
        if _stems(folder / place)[0]:
            return [(folder / place, "", photos)]
    if _describes_neighbours(folder):
        return [(folder, "", "")]
    parts = [part for part in sorted(folder.iterdir()) if part_of(part.name) and _describes_neighbours(part)]
    return [(part, part_of(part.name), part.name) for part in parts]


def _describes_neighbours(folder: Path) -> bool:
    """Whether an XML file lies beside another of the same name: one of something else may lie beside class folders."""
    described, others = _stems(folder)
    return bool(described & others)


def _stems(folder: Path) -> tuple[set[str], set[str]]:
    """The names, without endings, of the XML files in a folder and of all other files; none where it cannot be read."""
    described, others = set(), set()
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            stem, ending = os.path.splitext(name)
            (described if ending.lower() == ".xml" else others).add(stem)
    return described, others


def read(folder: Path, listings: list[tuple[Path, str, str]], is_photo: Callable[[str], bool]) -> Listed:
    """A row per object; see `folders_in` for what `listings` holds. Photos without an object are skipped with a note.

    Raises:
        InputError: a file that is not VOC's XML, an object without a name, or a photo that is not clear.
    """
    rows, notes, empty, boxless = [], [], 0, 0
    sets = _image_sets(folder)
    for place, split, photos in listings:
        there: dict[str, list[str]] = {}
        for name in filter(is_photo, _names(folder / photos)):
            there.setdefault(os.path.splitext(name)[0], []).append(name)
        for name in _names(place):
            if not name.lower().endswith(".xml"):
                continue
            stem = os.path.splitext(name)[0]
            found = _rows(place / name, _parse(place / name), there.get(stem, []))
            above, part = f"{photos}/" if photos else "", split or sets.get(stem, "")
            rows += [row._replace(photo=above + row.photo, split=part) for row in found]
            empty, boxless = empty + (not found), boxless + sum(row.box is None for row in found)
    if empty:
        notes.append(f"{empty:,} XML files name no object: skipped")
    if boxless:
        notes.append(f"{boxless:,} objects have no box: the whole photo counts")
    return boxes.listed(rows, notes)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as problem:
        raise InputError(f"{folder}: the folder cannot be read ({problem.strerror}): check its permissions") from None


def _image_sets(folder: Path) -> dict[str, str]:
    """The part of each photo, by its name without ending, where `ImageSets/Main` says so."""
    parts = {}
    for split in ("train", "val", "test"):
        file = folder / "ImageSets" / "Main" / f"{split}.txt"
        if not os.path.lexists(file):
            continue
        try:
            lines = boxes.content_of(file, MOST_LIST, "no list of photos").decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise InputError(f"{file}: not a list of photos in UTF-8: save it as UTF-8 text") from None
        parts |= {fields[0]: split for line in lines if (fields := line.split())}
    return parts


def _parse(path: Path) -> ElementTree.Element:
    """The root of an XML file. A document type, and so every entity of its own, is refused: a few lines of them may
    stand for gigabytes, or for another file.

    Raises:
        InputError: it cannot be read, is too large, or is not VOC's XML.
    """

    def refuse(*_) -> None:
        raise InputError(f"{path}: it declares a document type, which annotations do not need: remove <!DOCTYPE …>")

    parser, builder = expat.ParserCreate(), ElementTree.TreeBuilder()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda tag, attributes: builder.start(tag, attributes)
    parser.EndElementHandler, parser.CharacterDataHandler = builder.end, builder.data
    text = boxes.content_of(path, MOST_BYTES, "no annotations of one photo")
    try:
        parser.Parse(text, True)
        root = builder.close()
    except (expat.ExpatError, ValueError, LookupError) as problem:
        if isinstance(problem, InputError):
            raise
        raise InputError(f"{path}: not valid XML ({problem}): export it again") from None
    if root.tag != "annotation":
        raise InputError(f"{path}: XML, but not Pascal VOC's (its root is {root.tag[:40]}, not annotation)")
    return root


def _rows(path: Path, root: ElementTree.Element, beside: list[str]) -> list[boxes.Row]:
    """A row per object; the photo is the one named like the XML (of several in `beside` the one that it names), else
    the one that it names.
    """
    named = _text(root, "filename").replace("\\", "/").rpartition("/")[2]
    photo = named if named in beside or not beside else beside[0]
    size = (_number(_text(root, "size/width")), _number(_text(root, "size/height")))
    size = size if min(size) > 0 else (math.inf, math.inf)
    rows = []
    for number, entry in enumerate(root.findall("object"), 1):
        where = f"{path}, object {number}"
        if not (label := _text(entry, "name")):
            raise InputError(f"{where}: no name: every object needs its class")
        if not photo:
            raise InputError(f"{path}: no filename, and no photo of its own name beside it: add the photo")
        if len(beside) > 1 and photo != named:
            raise InputError(f"{path}: {beside[0]} and {beside[1]} both fit it: write the right one into its filename")
        rows.append(boxes.Row(photo, label, "", _box(entry.find("bndbox"), where), size, where))
    return rows


def _text(entry: ElementTree.Element, place: str) -> str:
    return (entry.findtext(place) or "").strip()


def _number(text: str) -> float:
    """The number in a text; not a number where there is none, or an absurd one."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if abs(value) < LARGEST else math.nan


def _box(bounds: ElementTree.Element | None, where: str) -> tuple[float, float, float, float] | None:
    """Two corners. VOC counts pixels from 1 and includes the last: 1 to width is the whole photo. Tools that count
    from 0 write a 0, and then the first pixel is that.
    """
    if bounds is None:
        return None
    values = [_number(_text(bounds, name)) for name in ("xmin", "ymin", "xmax", "ymax")]
    if any(math.isnan(value) for value in values):
        raise InputError(f"{where}: a box that is not four numbers (xmin, ymin, xmax, ymax)")
    x, y, right, bottom = values
    return x - 1 if x >= 1 else x, y - 1 if y >= 1 else y, right, bottom
