"""A YOLO data set (https://docs.ultralytics.com/datasets/detect/) -> rows: a row per box of `labels/**/*.txt`.

`data.yaml` names the classes and the folders of photos for train, val and test; Roboflow's and Ultralytics' exports
are read alike. A label file's boxes are shares of the upright photo, so each labelled photo's header is read for its
size, test photos' too; no photo is decoded.
"""

import math
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from fruitlib.core import yaml_files
from fruitlib.core.errors import InputError
from fruitlib.data import boxes, decoding, photo_paths
from fruitlib.data.tables import Listed

PARTS = {"train": "train", "val": "val", "valid": "val", "test": "test"}  # data.yaml's keys
MOST_LABELS, MOST_LIST = 10**6, 2**28  # bytes of one photo's label file; of a list of photos
THREADS = 8  # headers are waited for more than they are computed


def is_described(path: Path) -> bool:
    """Whether a YAML file describes a YOLO data set."""
    try:
        content = _load(path)
    except InputError:  # one that is named as such a file is named is meant: reading it says what is wrong
        return path.stem == "data"
    return isinstance(content, dict) and "names" in content and bool(set(PARTS) & set(content))


def file_in(folder: Path) -> Path | None:
    """The `data.yaml` of a folder with label files."""
    if not any((folder / place).is_dir() for place in ("labels", "train/labels", "valid/labels", "val/labels")):
        return None
    found = [path for ending in ("yaml", "yml") for path in sorted(folder.glob(f"*.{ending}"))[:20]]
    return next((path for path in found if is_described(path)), None)


def read(path: Path, folder: Path, is_photo: Callable[[str], bool]) -> Listed:
    """A row per box; photos without a label file, or with an empty one, are skipped with a note.

    `folder` holds the photos, and the label files beside them.

    Raises:
        InputError: not a YOLO data set, a part that is not in `folder`, or a line that is no box.
    """
    content = _load(path)
    names = _names(path, content)
    rows, notes, seen, unread = [], [], 0, 0
    for key, split in PARTS.items():
        if not (places := _as_list(content.get(key))):
            continue
        photos = [photo for place in places for photo in _photos(path, folder, key, place, is_photo)]
        labelled = [(photo, lines) for photo in photos if (lines := _lines(folder, photo))]
        seen += len(photos)
        sizes = upright_sizes([folder / photo for photo, _ in labelled])
        for (photo, lines), size in zip(labelled, sizes, strict=True):
            lines = [(number, fields[:5] if "kpt_shape" in content else fields) for number, fields in lines]
            rows += _rows(folder / _label_file(photo), lines, names, photo, split, size)
        unread += sizes.count(None)
    if not rows:
        example = folder / _label_file(photos[0]) if seen else folder
        raise InputError(f"{path}: none of {seen:,} photos has a box; looked for {example} and the like")
    if bare := seen - len({row.photo for row in rows}):
        notes.append(f"{bare:,} photos of {path.name} have no box: skipped")
    if unread:
        notes.append(f"{unread:,} photos of {path.name} do not show their size, and are listed without their boxes")
    return boxes.listed(rows, notes)


# ---- data.yaml


def _load(path: Path) -> Any:
    boxes.refuse_no_file(path)
    return yaml_files.read(path, texts=True)[0]


def _names(path: Path, content: Any) -> dict[str, str]:
    """The class of each number, both as text."""
    if not isinstance(content, dict) or "names" not in content or not set(PARTS) & set(content):
        raise InputError(f"{path}: not a YOLO data set: wanted names (the classes), train and val (folders of photos)")
    names = content["names"]
    pairs = names.items() if isinstance(names, dict) else enumerate(names if isinstance(names, list) else [names])
    found = {str(number).strip(): name for number, name in pairs}
    if not found or not all(isinstance(name, str) and name.strip() for name in found.values()):
        raise InputError(f"{path}: names is no list of classes, nor numbers with their classes: name each class")
    return found


def _as_list(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and text.strip()]


# ---- photos


def _photos(path: Path, folder: Path, key: str, place: str, is_photo: Callable[[str], bool]) -> Iterator[str]:
    """The photos of one entry of data.yaml, relative to `folder`: those of a folder, or those that a text file lists.

    Exports name folders as another machine had them (`../train/images`, `/content/set/train/images`,
    `set/train/images`): what is missing in front is dropped, so that nothing outside `folder` is read.
    """
    steps = [step for step in place.strip().replace("\\", "/").split("/") if step not in ("", ".", "..")]
    tails = ["/".join(steps[cut:]) for cut in range(len(steps))]
    tails = tails or [""]  # `train: .`
    found = next((tail for tail in tails if (folder / (tail or ".")).exists()), None)
    if found is None:
        advice = "correct it, or set photos_dir to the folder that has it"
        raise InputError(f"{path}: {key}: {place} is not in {folder}: {advice}")
    if (folder / found).is_dir():
        above = f"{found}/" if found else ""
        yield from (above + photo for photo in sorted(photo_paths.walk(folder / (found or "."))) if is_photo(photo))
        return
    yield from _from_text(path, folder, folder / found, is_photo)


def _from_text(path: Path, folder: Path, listing: Path, is_photo: Callable[[str], bool]) -> list[str]:
    """The photos that a text file names, a line each, as they lie in `folder`."""
    try:
        text = boxes.content_of(listing, MOST_LIST, "no list of photos").decode("utf-8-sig")
        lines = [line.strip().replace("\\", "/") for line in text.splitlines()]
    except UnicodeDecodeError:
        raise InputError(f"{path}: {listing} is neither a folder of photos nor a text file that lists them") from None
    lines = list(dict.fromkeys(line for line in lines if line))
    if not lines:
        raise InputError(f"{listing}: lists no photo")
    index = photo_paths.Index(photo_paths.walk(folder), lines, is_photo)
    cut, found = index.cut(lines), []
    for line, fitting in zip(lines, index.fits(lines, cut), strict=True):
        if len(fitting) != 1:
            problem = "is not in" if not fitting else f"fits {fitting[0]} and {fitting[1]} in"
            raise InputError(f"{listing}: {line} {problem} {folder}: correct the list")
        found.append(fitting[0])
    return found


def upright_sizes(photos: list[Path]) -> list[tuple[int, int] | None]:
    """Width and height of each photo as it is shown, by its header alone; None where the header cannot be read."""
    most = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = None  # a header takes no memory, however large the photo
        with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:
            warnings.simplefilter("ignore")
            return list(pool.map(_upright_size, photos))
    finally:
        Image.MAX_IMAGE_PIXELS = most


def _upright_size(file: Path) -> tuple[int, int] | None:
    if not os.path.isfile(file):  # reading a pipe would wait for ever
        return None
    try:
        heic = file.suffix.lower() in (".heic", ".heif") and decoding.heif_is_readable()
        with Image.open(file, formats=("HEIF",) if heic else decoding.FORMATS) as photo:
            given = "exif" in photo.info or photo.format != "PNG"  # a PNG would be decoded in search of it
            orientation = photo.getexif().get(decoding.ORIENTATION) if given else 1
            return photo.size[::-1] if orientation in (5, 6, 7, 8) else photo.size
    except Exception:  # a broken file can raise nearly anything; the checks of photos say why it cannot be used
        return None


# ---- labels


def _label_file(photo: str) -> str:
    """`labels/a.txt` for `images/a.jpg`: the last folder named images; else beside the photo."""
    steps = os.path.splitext(photo)[0].split("/")
    places = [number for number, step in enumerate(steps[:-1]) if step == "images"]
    if places:
        steps[places[-1]] = "labels"
    return "/".join(steps) + ".txt"


def _lines(folder: Path, photo: str) -> list[tuple[int, list[str]]]:
    """(line number, fields) of a photo's label file; empty where it has none."""
    file = folder / _label_file(photo)
    if not os.path.lexists(file):
        return []
    text = boxes.content_of(file, MOST_LABELS, "no label file of one photo")
    lines = text.decode("utf-8-sig", errors="replace").splitlines()
    return [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]


def _rows(file: Path, lines: list, names: dict, photo: str, split: str, size: tuple | None) -> list[boxes.Row]:
    """A row per line: `class x y width height`, the centre first, or `class` and the corners of an outline. What
    follows a box as a pose's points (`kpt_shape`) is left out before.

    A photo whose header cannot be read gets one row without a box: it is quarantined with the reason.
    """
    rows = []
    for number, (name, *fields) in lines:
        where = f"{file} line {number}"
        label = names.get(name.removesuffix(".0"))
        if label is None:
            raise InputError(f"{where}: class {name} is not among the names of data.yaml: add it")
        width, height = size or (0, 0)
        near, far = _share(fields, where)
        box = (near[0] * width, near[1] * height, far[0] * width, far[1] * height)
        rows.append(boxes.Row(photo, label, split, box if size else None, (width, height), where))
    return rows if size else rows[:1]


def _share(fields: list[str], where: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """The two corners of a box, as shares of the photo."""
    try:
        values = [float(field) for field in fields]
    except ValueError:
        values = []
    good = len(values) == 4 or (len(values) >= 6 and len(values) % 2 == 0)
    if not good or not all(math.isfinite(value) and abs(value) <= 2 for value in values):
        raise InputError(f"{where}: wanted class x y width height, as shares of the photo (0 to 1)")
    if len(values) == 4:
        x, y, width, height = values
        return (x - width / 2, y - height / 2), (x + width / 2, y + height / 2)
    return (min(values[::2]), min(values[1::2])), (max(values[::2]), max(values[1::2]))
