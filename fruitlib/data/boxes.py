"""Boxes in photos as annotation files have them -> the rows that tables make: a box is a fragment of the path."""

from typing import NamedTuple

import numpy as np
import pandas as pd

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
