"""COCO JSON (https://cocodataset.org/#format-data) -> rows: a row per box, or per photo where there is no box.

Known are one file (`instances_train.json`), Roboflow's export (`train/_annotations.coco.json` beside the photos, the
same for valid and test) and COCO's own layout (`annotations/instances_train2017.json`, photos in `train2017`).
"""

import json
import math
from pathlib import Path
from typing import Any

from fruitlib.core.errors import InputError
from fruitlib.core.texts import shortened
from fruitlib.data import boxes
from fruitlib.data.tables import LARGEST, Listed, part_of

ROBOFLOW = "_annotations.coco.json"
MOST_BYTES = 2**30
_BULKY = ("segmentation", "keypoints", "license", "coco_url", "flickr_url")  # never kept: most of a large file


def files_in(folder: Path) -> list[tuple[Path, str, str]]:
    """(file, split, folder of its photos relative to `folder`) of every COCO file in a folder; empty if there is none.

    Raises:
        InputError: a file of annotations for part of the photos that does not say which.
    """
    if (folder / ROBOFLOW).is_file():
        return [(folder / ROBOFLOW, "", "")]
    found = [(path, part_of(path.parent.name), path.parent.name) for path in sorted(folder.glob(f"*/{ROBOFLOW}"))]
    for path in [] if found else sorted(folder.glob("annotations/instances_*.json")):
        name = path.stem.removeprefix("instances_")
        place = next((place for place in (name, f"images/{name}", "images") if (folder / place).is_dir()), "")
        found.append((path, part_of(name), place))
    if len(found) > 1 and (unclear := [path for path, split, _ in found if not split]):
        raise InputError(f"{unclear[0]}: neither training, validation nor test by its name: name one file as data")
    return [(path, split if len(found) > 1 else "", place) for path, split, place in found]


def read(listings: list[tuple[Path, str, str]]) -> Listed:
    """A row per box in some COCO files; see `files_in` for what `listings` holds.

    Raises:
        InputError: not COCO, or an annotation without a known category.
    """
    rows, notes = [], []
    for path, split, place in listings:
        found, more = _rows(path, _load(path))
        above = f"{place}/" if place else ""
        rows += [boxes.Row(above + row.photo, row.label, split, row.box, row.size, row.where) for row in found]
        notes += more
    return boxes.listed(rows, notes)


def _load(path: Path) -> dict[str, list]:
    """The images, annotations and categories of a file."""
    content = load_json(path)
    names = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in names):
        raise InputError(
            f"{path}: JSON, but not COCO's (lists of images, annotations and categories): export it as COCO"
        )
    for name in names:
        for entry in content[name]:
            if not isinstance(entry, dict):
                raise InputError(
                    f"{path}: an entry of {name} is {_short(entry)}, where COCO has a mapping: export it again"
                )
    return content


def load_json(path: Path) -> Any:
    """The content of a JSON file, without the outlines of objects.

    Raises:
        InputError: it cannot be read, is too large, or is not JSON.
    """
    text = boxes.content_of(path, MOST_BYTES, "export the boxes without outlines")
    try:
        return json.loads(text, object_hook=_slim)
    except RecursionError:
        raise InputError(f"{path}: lists within lists too deep for annotations: export it again") from None
    except ValueError as problem:
        raise InputError(f"{path}: not valid JSON ({problem}): export it again") from None


def _slim(entry: dict) -> dict:
    for name in _BULKY:
        entry.pop(name, None)
    return entry


def _rows(path: Path, content: dict[str, list]) -> tuple[list[boxes.Row], list[str]]:
    """A row per annotation that has a photo; and notes on what was skipped."""
    images = _by_id(path, content["images"], "image", "file_name")
    categories = _by_id(path, content["categories"], "category", "name")
    rows, crowds, strays, bare, used = [], 0, 0, 0, set()
    for number, entry in enumerate(content["annotations"]):
        where = f"{path}, annotation {_short(entry.get('id', number))}"
        image = images.get(_key(entry.get("image_id")))
        if image is None or entry.get("iscrowd") in (1, True):
            crowds, strays = crowds + (image is not None), strays + (image is None)
            continue
        label = categories.get(_key(entry.get("category_id")), {}).get("name")
        if not isinstance(label, (str, int)) or not str(label).strip():
            raise InputError(f"{where}: no category {_short(entry.get('category_id'))}: add it to categories")
        photo, box = _file_name(image, path), _box(entry.get("bbox"), where)
        bare += box is None
        used.add(photo)
        rows.append(boxes.Row(photo, str(label), "", box, (_side(image, "width"), _side(image, "height")), where))
    empty = len({_key(image.get("file_name")) for image in content["images"]} - used)
    counted = {
        "boxes around crowds (iscrowd): skipped": crowds,
        "annotations of photos it does not list: skipped": strays,
        "photos without an annotation: skipped": empty,
        "annotations without a box: the whole photo counts": bare,
    }
    return rows, [f"{path.name}: {number:,} {what}" for what, number in counted.items() if number]


def _by_id(path: Path, entries: list[dict], kind: str, name: str) -> dict[str, dict]:
    """The entries that have an id, by it.

    Raises:
        InputError: an id is given to two of different names, as when files were joined.
    """
    found: dict[str, dict] = {}
    for entry in entries:
        if (key := _key(entry.get("id"))) is None:
            continue
        if (one := found.setdefault(key, entry).get(name)) != (other := entry.get(name)):
            twice = f"{kind} id {_short(key)} is given twice, for {_short(one)} and {_short(other)}"
            raise InputError(f"{path}: {twice}: give each {kind} its own id")
    return found


def _key(value: Any) -> str | None:
    """An id as people compare it: 1, 1.0 and "1" are the same; a list is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, (str, int, float)) else None


def _file_name(image: dict, path: Path) -> str:
    name = image.get("file_name")
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{path}: image {_short(image.get('id'))} has no file_name: export it again")
    return name.strip()


def _box(values: Any, where: str) -> tuple[float, float, float, float] | None:
    """Two corners of COCO's x, y, width, height; None where there is no box."""
    if values is None or values == []:
        return None
    if not isinstance(values, list) or len(values) != 4 or not all(map(_is_number, values)):
        raise InputError(f"{where}: bbox {_short(values)}, where x, y, width and height in pixels are wanted")
    x, y, width, height = map(float, values)
    return x, y, x + width, y + height


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST


def _side(image: dict, name: str) -> float:
    """Width or height of a photo; infinite where it is not given."""
    return float(image[name]) if _is_number(image.get(name)) and image[name] > 0 else math.inf


def _short(value: Any) -> str:
    return shortened(str(value), 40)
