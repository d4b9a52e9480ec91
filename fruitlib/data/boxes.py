"""What readers of annotations share: files read within a limit; boxes in photos -> the rows that tables make."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from fruitlib.core.errors import InputError
from fruitlib.core.texts import normal
from fruitlib.data.tables import ROW, Listed, fragments

SLACK = 2.0  # pixels by which a box may reach beyond its photo, by rounding, and is cut to it; one further out is kept


class Row(NamedTuple):
    """A labelled photo, or a box in one.

    `box` has two corners (x1, y1, x2, y2) in pixels of the upright photo, or is None; `size` is the photo's width and
    height, infinite where unknown; `where` says in which file it stands.
    """

    photo: str
    label: str
    split: str
    box: tuple[float, float, float, float] | None
    size: tuple[float, float]
    where: str


def content_of(path: Path, most: int, too_large: str) -> bytes:
    """The bytes of an annotation file.

    Raises:
        InputError: no such file, one that cannot be read, or one of more than `most` bytes (`too_large` says why not).
    """
    refuse_no_file(path)
    try:
        with open(path, "rb") as file:
            content = file.read(most + 1)
    except OSError as problem:
        raise InputError(f"{path}: cannot be read ({problem.strerror}): correct data or its permissions") from None
    if len(content) > most:
        raise InputError(f"{path}: larger than {most:,} bytes: {too_large}")
    return content


def refuse_no_file(path: Path) -> None:
    """
    Raises:
        InputError: no such file, or no regular one: reading a pipe would wait for ever.
    """
    if not os.path.isfile(path):
        wrong = "not a regular file: correct data" if os.path.lexists(path) else "no such file of annotations"
        raise InputError(f"{path}: {wrong}")


def listed(rows: list[Row], notes: list[str]) -> Listed:
    """The rows as a table gives them."""
    photos = [row.photo.replace("\\", "/") for row in rows]
    held = [number for number, row in enumerate(rows) if row.box is not None]
    corners = np.array([rows[number].box for number in held], float).reshape(-1, 2, 2)
    sizes = np.array([rows[number].size for number in held], float).reshape(-1, 2)
    near = np.where((corners[:, 0] < 0) & (corners[:, 0] >= -SLACK), 0, corners[:, 0])
    beyond = corners[:, 1] - sizes
    far = np.where((beyond > 0) & (beyond <= SLACK), sizes, corners[:, 1])
    paths = list(photos)
    for number, text in zip(held, fragments(near, far), strict=True):
        paths[number] += text
    columns = {"path": paths, "label": [normal(row.label) for row in rows], "group": [""] * len(rows)}
    columns |= {"split": [row.split for row in rows], "photo": photos}
    table = pd.DataFrame(columns, columns=[*ROW, "photo"], dtype=str)
    return Listed(table, notes, lambda *indices: " and ".join(rows[index].where for index in indices))
