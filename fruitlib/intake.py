"""Photographs as people have them -> rows of a manifest, each checked, none dropped.

Two layouts are known: a folder of class folders, and the same under `Training` and `Test` (Fruits-360). A folder
inside a class folder is a group: photos that belong together (one variety, one tree, one session) and must not be
divided between training and judging. Test photos of a predefined split are listed but not opened ("sealed").
"""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from fruitlib import runtime, sample
from fruitlib.runtime import InputError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
PREDEFINED = {"training": "train", "train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}
SAMPLES = {"sample": False, "sample5": True}
COLUMNS = ["path", "label", "group", "split", "status", "reason", "width", "height", "sha256"]


def root(data: str) -> Path:
    """The folder that `data` names; `sample` and `sample5` lie in `data/` of the project."""
    return runtime.home() / "data" / data if data in SAMPLES else runtime.resolve(data)


def ready(data: str, progress: Callable[[int, int], None] | None = None) -> Path:
    """`root(data)`, the practice photographs drawn there first where they are asked for and missing."""
    return sample.draw(root(data), five=SAMPLES[data], progress=progress) if data in SAMPLES else root(data)


def scan(folder: Path) -> tuple[pd.DataFrame, int]:
    """List the photos below a folder without opening any.

    Returns:
        rows with path (relative, with `/`), label, group ("" where the photo stands alone) and split ("" where the
        split is still to be made); and how many other files were passed over.

    Raises:
        InputError: no such folder, no class folders, an empty class folder, fewer than two classes.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of photos; data names a folder of class folders, or sample")
    rows, passed_over = [], sum(1 for entry in folder.iterdir() if not entry.is_dir())
    for split, part in _parts(folder).items():
        found, others = _scan_classes(part, folder, split)
        rows, passed_over = rows + found, passed_over + others
    for path, *_ in rows:
        if not path.isascii() and path.encode(errors="replace").decode() != path:
            raise InputError(f"{folder}: the file name {path!a} is not valid UTF-8: rename the file")
    frame = pd.DataFrame(rows, columns=COLUMNS[:4]).sort_values("path", ignore_index=True)
    _check_classes(frame, folder)
    return frame, passed_over


def _parts(folder: Path) -> dict[str, Path]:
    """The parts of a predefined split by name, or the folder itself under the name "" where there is none."""
    subfolders = _subfolders(folder)
    named = [(PREDEFINED[d.name.lower()], d) for d in subfolders if d.name.lower() in PREDEFINED]
    if not named:
        return {"": folder}
    parts = dict(named)
    if len(parts) < len(named) or len(named) < len(subfolders) or "train" not in parts or len(parts) == 1:
        names = ", ".join(d.name for d in subfolders)
        raise InputError(f"{folder}: a division into parts needs one train and one test (or val) folder, found {names}")
    return parts


def _subfolders(folder: Path) -> list[Path]:
    return sorted(d for d in folder.iterdir() if d.is_dir() and not d.name.startswith("."))


def _scan_classes(part: Path, folder: Path, split: str) -> tuple[list[tuple], int]:
    """Rows of the class folders in one part of the data, and a count of files that are no photos."""
    rows, passed_over = [], 0
    for class_folder in _subfolders(part):
        walk = os.walk(class_folder, followlinks=True)
        files = sorted(Path(place) / name for place, _, names in walk for name in names)
        visible = [f for f in files if not any(p.startswith(".") for p in f.relative_to(part).parts)]
        photos = [f for f in visible if f.suffix.lower() in SUFFIXES]
        passed_over += len(files) - len(photos)
        if not photos:
            raise InputError(f"{class_folder}: an empty class folder: add photos or remove the folder")
        for photo in photos:
            inside = photo.relative_to(class_folder).parent
            group = "" if inside == Path(".") else f"{class_folder.name}/{inside.as_posix()}"
            rows.append((photo.relative_to(folder).as_posix(), class_folder.name, group, split))
    return rows, passed_over


def _check_classes(frame: pd.DataFrame, folder: Path) -> None:
    labels = set(frame["label"])
    if len(labels) < 2:
        raise InputError(f"{folder}: found {len(labels)} class folders with photos, at least 2 are needed")
    for split, rows in frame[frame["split"] != ""].groupby("split"):
        if missing := labels - set(rows["label"]):
            raise InputError(f"{folder}: the {split} part has no class folder {min(missing)}")


def check(folder: Path, rows: pd.DataFrame, progress: Callable[[int, int], None] | None = None) -> pd.DataFrame:
    """Open every photo that may be opened now, and fill in status, reason, width, height and sha256.

    Predefined test photos become `sealed`; a photo that opens is `ok`, one that does not is `quarantined`.
    """
    sealed = rows["split"] == "test"
    facts = dict.fromkeys(rows.index[sealed], ("sealed", "", 0, 0, ""))
    to_open = rows.index[~sealed]
    with ThreadPoolExecutor() as pool:
        results = pool.map(lambda index: inspect(folder / rows["path"][index]), to_open)
        for done, (index, fact) in enumerate(zip(to_open, results, strict=True), 1):
            facts[index] = fact
            if progress:
                progress(done, len(to_open))
    checked = pd.DataFrame([facts[index] for index in rows.index], columns=COLUMNS[4:], index=rows.index)
    return pd.concat([rows, checked], axis=1)


def inspect(path: Path) -> tuple[str, str, int, int, str]:
    """(status, reason, width, height, sha256) of one photo: decoded fully, its EXIF orientation applied."""
    try:
        content = path.read_bytes()
        with open_photo(path) as photo:
            return "ok", "", *photo.size, hashlib.sha256(content).hexdigest()
    except Exception as problem:  # a broken file can raise nearly anything inside a decoder
        return "quarantined", _reason(path, problem), 0, 0, ""


def _reason(path: Path, problem: Exception) -> str:
    """Why a photo did not open, without the path that Pillow puts into its message."""
    if path.is_file() and path.stat().st_size == 0:
        return "the file is empty (0 bytes)"
    text = " ".join(str(problem).split()) or type(problem).__name__
    return "not an image that can be read" if "cannot identify image" in text else text.replace(str(path), path.name)


def open_photo(path: Path) -> Image.Image:
    """One photo as RGB, upright (EXIF orientation applied), fully decoded."""
    with Image.open(path) as photo:
        upright = ImageOps.exif_transpose(photo)
        if upright.mode.startswith("I;16"):  # convert would clip 16 bits to white
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        return upright.convert("RGB")
