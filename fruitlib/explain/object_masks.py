"""Where the object is in a photo as models see it, and the photo without it: from a box, or from a plain background.

pictures are uint8 (n, S, S, 3). Shadows count as the object: they have its form.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from fruitlib.core.config import Config
from fruitlib.data import geometry, sources

BACKGROUND, BOX, NONE = "a plain background", "its box", "none"
LOOK_AT = 128  # pixels a side: larger pictures are reduced to that, to find the object
STEPS = 30  # of 255: border pixels within it of the estimate are background
PLAIN = 0.75  # share of the border's pixels that have to be
SMALLEST, LARGEST = 0.01, 0.85  # of the picture's area, between which the object lies
PART = 0.25  # of the area of the largest part; smaller parts are not the object
GROW = 0.03  # of the side, by which the mask is widened before the object is hidden
OTHERS = 3  # classes at most that lend their objects' forms to a hole
LOOK_BOX = 512  # pixels of the longer side of the empty photo on which a box is drawn
TURNED = (5, 6, 7, 8)  # values of EXIF's orientation that exchange width and height


@dataclass(frozen=True)
class Masks:
    """Where the object is in each of n photos, from what that is known, and the photos without it."""

    masks: np.ndarray  # bool (n, S, S); all False where it is not known
    sources: list[str]  # (n,) BACKGROUND, BOX or NONE
    hidden: np.ndarray  # uint8 (n, S, S, 3), the photos with the object hidden; as they are where it is not known

    @property
    def known(self) -> np.ndarray:
        """Whether the object's place is known, bool (n,)."""
        return np.array([source != NONE for source in self.sources], bool)

    @property
    def areas(self) -> np.ndarray:
        """The object's share of the picture (n,); NaN where it is not known."""
        return np.where(self.known, self.masks.mean((1, 2)), np.nan)

    @property
    def summary(self) -> str:
        """From what the objects' places are known, in a sentence."""
        n, known = len(self.sources), int(self.known.sum())
        if not known:
            return f"the object is found in none of {n:,} photos: no box, and no plain background"
        ways = [way for way in (BOX, BACKGROUND) if way in self.sources]
        counts = [f"by {way} in {self.sources.count(way):,}" for way in ways]
        how = f"by {ways[0]}" if len(ways) == 1 else ", ".join(counts)
        return f"the object is found in {known:,} of {n:,} photos, {how}"


def find(
    pictures: np.ndarray,
    boxes: list[np.ndarray | None] | None = None,
    seed: int = 0,
    labels: np.ndarray | None = None,
) -> Masks:
    """The object of each picture: its box where there is one, else what differs from a plain background.

    Args:
        boxes: for each picture, where its box is (bool (S, S), from `boxes_seen`), or None.
        seed: of the grain with which the object is hidden, and of `holes`.
        labels: classes (n,), so that an object is hidden by `holes`, whose form does not give its class away.
    """
    masks, found, rng = np.zeros(pictures.shape[:3], bool), [], np.random.default_rng(seed)
    backgrounds = {}
    for number, picture in enumerate(pictures):
        box = boxes[number] if boxes else None
        small = _small(picture)
        estimate = _Estimate.of(small, None if box is None else ~_resized(box, len(small[0])))
        mask = _differing(small, estimate) if box is None else box
        fits = mask is not None and estimate is not None and SMALLEST <= mask.mean() <= LARGEST
        if fits:
            masks[number] = _resized(mask, len(picture))
            backgrounds[number] = estimate.best
        found.append((BACKGROUND if box is None else BOX) if fits else NONE)
    known = np.array(list(backgrounds), int)
    forms = masks[known] if labels is None else holes(masks[known], labels[known], rng)
    hidden = pictures.copy()
    for number, form in zip(known, forms, strict=True):
        _hide(hidden[number], form, backgrounds[number], rng)
    return Masks(masks, found, hidden)


def holes(masks: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Forms under which to hide each object, bool (n, S, S), of their masks and classes (n,).

    A patch in the form of the object shows what it hides: where a stem was, there was a cherry. So each hole is the
    object's own mask together with that of one photo, drawn at random, of each other class. Holes of all classes are
    then alike, in the sense that they are drawn in the same way; with more than `OTHERS` other classes, of which some
    are drawn for each photo, nearly so.
    """
    forms, classes = masks.copy(), np.unique(labels)
    for number, label in enumerate(labels):
        others = classes[classes != label]
        for other in rng.permutation(others)[:OTHERS]:
            forms[number] |= masks[rng.choice(np.flatnonzero(labels == other))]
    return forms


def _small(picture: np.ndarray) -> np.ndarray:
    """The picture reduced and smoothed, colours first: float32 (3, s, s)."""
    if len(picture) > LOOK_AT:
        picture = cv2.resize(picture, (LOOK_AT, LOOK_AT), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(cv2.GaussianBlur(picture, (0, 0), 0.7).transpose(2, 0, 1), np.float32)


def _resized(mask: np.ndarray, side: int) -> np.ndarray:
    return cv2.resize(mask.astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST).astype(bool)


@functools.lru_cache(maxsize=4)
def _frame(side: int) -> tuple[np.ndarray, np.ndarray]:
    """The terms of a surface of second degree, (6, side, side), and the border that is looked at, bool (side, side)."""
    down, across = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j].astype(np.float32)
    terms = np.stack([np.ones_like(across), across, down, across * down, across**2, down**2])
    edge = np.ones((side, side), bool)
    edge[_band(side) : -_band(side), _band(side) : -_band(side)] = False
    return terms, edge


def _band(side: int) -> int:
    """How wide the border is that is looked at, in pixels."""
    return max(2, side // 32)


@dataclass(frozen=True)
class _Estimate:
    """Two estimates of a background (3, s, s), and how far pixels of the border are off from each, (k,) of 255.

    `surface` is of second degree in place, fitted without the pixels that are far from it: a fruit may touch the
    border. `by_rows` is, row by row, what lies between the row's two ends where these agree, with each other and with
    the picture's top or bottom: a wall above a table, but no fruit that touches both sides.
    """

    surface: np.ndarray
    by_rows: np.ndarray
    off: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, small: np.ndarray, free: np.ndarray | None) -> "_Estimate | None":
        """From the border (where it is `free` (s, s) of a box, if there is one); None where hardly any of it is."""
        side, (terms, edge) = len(small[0]), _frame(len(small[0]))
        if free is not None:
            edge = edge & free
            if edge.sum() < side:
                return None
        surface = np.tensordot(_robust_fit(terms[:, edge].T, small[:, edge].T), terms, axes=(0, 0))
        left, right = (np.median(part, axis=2) for part in (small[:, :, : _band(side)], small[:, :, -_band(side) :]))
        agree = (_far(left, right) <= STEPS) & _like_top_or_bottom(small, (left + right) / 2)
        if free is not None:
            agree &= free[:, 0] & free[:, -1]
        share = np.linspace(0, 1, side, dtype=np.float32)
        between = left[..., None] * (1 - share) + right[..., None] * share
        by_rows = np.where(agree[:, None], between, surface)
        return cls(surface, by_rows, tuple(_far(small, one)[edge] for one in (surface, by_rows)))

    @property
    def best(self) -> np.ndarray:
        """The smooth one, unless rows fit clearly better: rows of either kind would show as stripes."""
        return self.by_rows if self.off[1].mean() < 0.8 * self.off[0].mean() else self.surface


def _like_top_or_bottom(small: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Whether the colours of rows' ends (3, s) are those of most of the picture's upper or lower border, bool (s,)."""
    band = _band(len(ends[0]))
    borders = [np.median(part.reshape(3, -1), axis=1)[:, None] for part in (small[:, :band], small[:, -band:])]
    return np.minimum(*(_far(ends, one) for one in borders)) <= STEPS


def _far(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How far apart two pictures (3, …) are, in the colour in which they are furthest."""
    return np.maximum.reduce(list(np.abs(a - b)))


def _robust_fit(terms: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Least squares of values (k, 3) on terms (k, 6), repeated without those that are far off, the median's first."""
    off, limit = _far(values.T, np.median(values, axis=0)[:, None]), 2.0 * STEPS
    for _ in range(4):
        near = off <= max(limit, np.quantile(off, 0.3))  # some are always left to fit to
        some = terms[near]
        fitted = np.linalg.solve(some.T @ some + 1e-3 * np.eye(6, dtype=np.float32), some.T @ values[near])
        off = _far((terms @ fitted).T, values.T)
        limit = max(12, 2.5 * float(np.median(off)))
    return fitted


def _differing(small: np.ndarray, estimate: _Estimate) -> np.ndarray | None:
    """The object on a plain background, bool (s, s); None where the background is not plain, or holds nothing.

    Plain: three quarters of the border lie within 30 of 255 steps of an estimate. The object is what differs by more
    than most of the border does, and by more than half of Otsu's threshold (1979), which shadows and stems do, too; its
    holes are filled. Of several parts, such as joined cherries, those count that have a quarter of the area of the
    largest.
    """
    off = np.minimum(*estimate.off)
    if (off <= STEPS).mean() < PLAIN:
        return None
    difference = np.minimum(_far(small, estimate.surface), _far(small, estimate.by_rows))
    steps = difference.clip(0, 255).astype(np.uint8)
    otsu, _ = cv2.threshold(steps, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    differs = difference > max(0.5 * otsu, 3 * np.median(off), 12)
    mask = _large_parts(_without_holes(differs.astype(np.uint8)))
    return mask if mask.any() else None


def _without_holes(mask: np.ndarray) -> np.ndarray:
    """Background that the mask (uint8) encloses becomes part of it."""
    _, parts, facts, _ = cv2.connectedComponentsWithStats(1 - mask, connectivity=4)
    high, wide = mask.shape
    left, top, across, down = facts[:, :4].T
    enclosed = (left > 0) & (top > 0) & (left + across < wide) & (top + down < high)
    enclosed[0] = False  # the mask itself
    return np.maximum(mask, enclosed[parts].astype(np.uint8))


def _large_parts(mask: np.ndarray) -> np.ndarray:
    count, parts, facts, _ = cv2.connectedComponentsWithStats(mask)
    if count < 2:
        return np.zeros(mask.shape, bool)
    areas = facts[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    return (areas >= max(PART * areas.max(), 1))[parts]


def _hide(picture: np.ndarray, mask: np.ndarray, background: np.ndarray, rng: np.random.Generator) -> None:
    """Replace the part `mask` (S, S) of uint8 (S, S, 3) by its estimated background (3, s, s), in place.

    The mask is widened first. The estimate comes from the border, so that no rim of the object enters it, and
    gets the border's grain. On a background with a pattern the patch is still seen, hence `holes`.
    """
    side = len(picture)
    grow = 2 * max(1, round(GROW * side)) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (grow, grow))
    wide = cv2.dilate(mask.astype(np.uint8), kernel).astype(bool)
    background = np.ascontiguousarray(background.transpose(1, 2, 0))
    if len(background) != side:
        background = cv2.resize(background, (side, side), interpolation=cv2.INTER_LINEAR)
    edge = _frame(side)[1]
    edge = edge & ~wide if (edge & ~wide).any() else edge
    grain = picture[edge] - background[edge]
    off = _far(grain.T, np.zeros((3, 1), np.float32))
    grain = grain[off <= np.quantile(off, 0.8)]
    filling = background[wide] + grain[rng.integers(0, len(grain), int(wide.sum()))]
    picture[wide] = np.rint(filling.clip(0, 255)).astype(np.uint8)


def boxes_seen(folder: Path, paths: list[str], config: Config) -> list[np.ndarray | None]:
    """Where the box of each of a manifest's paths is in the square that models see, bool (S, S); None without a box.

    With `crop_to: object` None too: what is left of the photo is then not known without decoding it.
    """
    located = [sources.locate(folder, path) if "#xywh=" in path else (None, None) for path in paths]
    if config.crop_to == "object":
        return [None] * len(paths)
    return [_box_seen(file, box, config) if box else None for file, box in located]


def _box_seen(file: Path, box: tuple[int, int, int, int], config: Config) -> np.ndarray:
    with Image.open(file) as photo:
        size = photo.size[::-1] if photo.getexif().get(0x0112) in TURNED else photo.size
    shrink = min(1, LOOK_BOX / max(size))
    corners = tuple(shrink * number for number in (box[0], box[1], box[0] + box[2], box[1] + box[3]))
    empty = Image.new("RGB", tuple(max(1, round(shrink * number)) for number in size))
    empty.paste((255, 255, 255), tuple(round(number) for number in corners))
    area = geometry.central(geometry.region(empty, corners, config), config)
    return np.asarray(geometry.square(empty, area, config.resize, config.image_size))[..., 0] > 127
