"""Draws the practice photographs, apples, cherries, tomatoes (and lemons, pears), so that no download is needed.

A fruit is a radius over the directions from its centre; stems and leaves are swept spheres; all is lit once, before a
camera with the usual faults. Varieties share colours across fruits: dimple, stem, calyx and skin tell them apart.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from fruitlib.core import errors, files
from fruitlib.core.progress import OnProgress

VERSION = 1  # increased whenever a seed gives other pictures than before
COUNTS = {"apple": 127, "cherry": 127, "tomato": 50, "lemon": 100, "pear": 100}
FRUITS = ("apple", "cherry", "tomato")
FIVE = ("apple", "cherry", "tomato", "lemon", "pear")


class Variety(NamedTuple):
    """A kind of fruit: its weight in the draw, two skin colours (sRGB, 0–1), how they lie together, and its form."""

    often: int
    ground: tuple
    blush: tuple
    cover: float = 0.3  # share of the skin under the blush
    streak: float = 0.0  # how much the blush breaks into meridians
    speckle: float = 0.0  # strength of the pale dots
    russet: float = 0.0  # strength of the corky brown net
    shoulder: float = 0.0  # strength of the green round the stem
    tall: float = 1.0  # height over width
    ribs: float = 0.0  # depth of the furrows, in radii


RED, DARK, ORANGE, YELLOW = (0.78, 0.07, 0.05), (0.32, 0.02, 0.06), (0.92, 0.42, 0.06), (0.92, 0.75, 0.22)
CRIMSON, GREEN, BROWN, LEAF = (0.62, 0.06, 0.12), (0.58, 0.68, 0.22), (0.52, 0.36, 0.17), (0.25, 0.48, 0.12)

VARIETIES = {
    ("apple", "red"): Variety(5, CRIMSON, (0.36, 0.03, 0.08), 0.4, 0.8, 0.7),
    ("apple", "green"): Variety(4, GREEN, (0.70, 0.74, 0.34), 0.4, 0.4, 0.8),
    ("apple", "yellow"): Variety(3, (0.88, 0.78, 0.36), (0.80, 0.42, 0.25), 0.25, 0.6, 0.7),
    ("apple", "bicolour"): Variety(5, (0.88, 0.74, 0.36), CRIMSON, 0.55, 1.0, 0.6),
    ("apple", "russet"): Variety(2, (0.70, 0.55, 0.24), (0.68, 0.30, 0.16), 0.3, 0.5, 0.7, russet=0.8),
    ("cherry", "dark"): Variety(5, DARK, (0.20, 0.01, 0.05), 0.4),
    ("cherry", "red"): Variety(5, RED, (0.52, 0.02, 0.05), 0.4),
    ("cherry", "rainier"): Variety(3, YELLOW, RED, 0.4),
    ("cherry", "orange"): Variety(2, (0.88, 0.30, 0.08), RED, 0.3),
    ("tomato", "red"): Variety(6, RED, (0.85, 0.18, 0.05), 0.4, tall=0.86, ribs=0.01),
    ("tomato", "orange"): Variety(4, ORANGE, (0.88, 0.26, 0.05), 0.3, tall=0.86, ribs=0.02),
    ("tomato", "yellow"): Variety(2, (0.95, 0.74, 0.12), (0.94, 0.60, 0.10), 0.3, tall=0.9, ribs=0.02),
    ("tomato", "maroon"): Variety(2, (0.50, 0.10, 0.07), (0.36, 0.22, 0.06), 0.3, shoulder=0.8, tall=0.8, ribs=0.03),
    ("tomato", "beefsteak"): Variety(4, RED, ORANGE, 0.3, shoulder=0.4, tall=0.68, ribs=0.09),
    ("tomato", "plum"): Variety(3, (0.80, 0.11, 0.05), ORANGE, 0.2, tall=1.3),
    ("lemon", "yellow"): Variety(4, (0.93, 0.80, 0.16), (0.90, 0.68, 0.10), 0.4, tall=1.25),
    ("lemon", "green"): Variety(1, (0.70, 0.72, 0.16), GREEN, 0.5, tall=1.25),
    ("pear", "green"): Variety(3, GREEN, (0.66, 0.70, 0.28), 0.4, 0.0, 0.7, russet=0.15),
    ("pear", "yellow"): Variety(3, YELLOW, ORANGE, 0.2, 0.1, 0.7, russet=0.2),
    ("pear", "russet"): Variety(2, (0.64, 0.48, 0.20), BROWN, 0.4, 0.0, 0.6, russet=0.8),
}
PROFILE = {  # taper to the top; radius added at the stem, within an angle; the same at the base; gloss
    "apple": (0.07, -0.42, 0.42, -0.16, 0.35, 0.3),
    "cherry": (0.04, -0.20, 0.32, -0.02, 0.30, 1.0),
    "tomato": (0.0, -0.16, 0.35, -0.05, 0.30, 1.0),
    "lemon": (0.0, 0.18, 0.20, 0.28, 0.22, 0.35),
    "pear": (0.0, 0.80, 0.50, -0.10, 0.30, 0.2),
}
ROWS, COLUMNS = 384, 512  # of a form's table, over polar angle from the stem and azimuth


class Canvas:
    """What the ray through each of n × n points (`xy` in [-1, 1]) meets: depth, normal, linear colour, gloss."""

    def __init__(self, n: int):
        axis = ((np.arange(n) + 0.5) / n * 2 - 1).astype(np.float32)
        self.n, self.xy = n, np.stack([np.tile(axis, n), np.repeat(-axis, n)], 1)
        self.depth, self.gloss = np.full(n * n, -9, np.float32), np.zeros(n * n, np.float32)
        self.normal, self.colour = np.zeros((2, n * n, 3), np.float32)

    def put(self, where, depth, normal, colour, gloss) -> None:
        """Write surface points at the flat indices `where`, if nearer than what is there."""
        near = depth > self.depth[where]
        where = where[near]
        self.depth[where], self.normal[where], self.colour[where] = depth[near], normal[near], colour[near]
        self.gloss[where] = gloss


def mix(linear, colour, share) -> np.ndarray:
    """Linear light where `share` is 0, going over to `colour` (sRGB, 0–1) where it is 1."""
    return linear + (np.asarray(colour, np.float32) ** 2.2 - linear) * np.asarray(share, np.float32)[..., None]


def ramp(value, low, high):
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def unit(vectors) -> np.ndarray:
    """Vectors (…, 3) at length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)


def cloud(rng, n: int, down: int, across: int) -> np.ndarray:
    """Smooth noise (n, n), about 0 to 1, with so many cells down and across."""
    grid = Image.fromarray(rng.random((down + 1, across + 1), dtype=np.float32))
    return np.asarray(grid.resize((n, n), Image.Resampling.BICUBIC))


def waves(points, rng, cells: float) -> np.ndarray:
    """Smooth noise, about 0 to 1, at points (points, 3) in space, some `cells` to a unit of length: a sum of sines."""
    directions = rng.normal(size=(3, 7)).astype(np.float32) * (2.2 * cells)
    return 0.5 + 0.1 * np.sin(points @ directions + rng.uniform(0, 7, 7).astype(np.float32)).sum(1)


def form(fruit: str, kind: Variety, rng) -> np.ndarray:
    """A fruit's radius (ROWS, COLUMNS) over polar angle θ from the stem and azimuth φ; about 1 at the equator."""
    theta = np.linspace(0, np.pi, ROWS, dtype=np.float32)[:, None]
    phi = np.linspace(0, 2 * np.pi, COLUMNS, endpoint=False, dtype=np.float32)[None]
    cos, sin = np.cos(theta), np.sin(theta)
    taper, top, top_width, base, base_width, _ = PROFILE[fruit]
    radius = 1 / np.hypot(sin, cos / (kind.tall * rng.uniform(0.94, 1.06))) * (1 + taper * rng.uniform(0.6, 1.4) * cos)
    radius = radius + top * rng.uniform(0.8, 1.15) * np.exp(-((theta / top_width) ** 2))
    radius = radius + base * rng.uniform(0.7, 1.3) * np.exp(-(((np.pi - theta) / base_width) ** 2))
    uneven = rng.uniform(0, 0.04) * np.cos(phi - rng.uniform(0, 6)) + rng.uniform(0, 0.03) * np.cos(2 * phi)
    if fruit == "cherry":
        uneven = uneven - 0.06 * np.exp(-(((phi - np.pi) / 0.25) ** 2))  # the seam
    furrow = np.abs(np.cos(phi * rng.integers(5, 9) / 2 + 0.35 * np.sin(phi + rng.uniform(0, 6)))) ** 0.7 - 1
    uneven = uneven + kind.ribs * furrow * (1 + cos)
    return (radius * (1 + uneven * sin)).astype(np.float32)


def stand(pitch: float, roll: float, rng) -> np.ndarray:
    """Rotation (3, 3) from a fruit's axes (stem along y) to the world's (z to the camera); radians, yaw drawn."""
    stem = np.array([-np.sin(roll) * np.cos(pitch), np.cos(roll) * np.cos(pitch), np.sin(pitch)])
    side = unit(np.cross(stem, rng.normal(size=3)))
    return np.stack([side, stem, np.cross(side, stem)], 1).astype(np.float32)


def locate(local):
    """Row and column in a form's table, and the distance from the centre, of points (points, 3) in the fruit's axes."""
    length = np.sqrt(np.einsum("ij,ij->i", local, local)) + 1e-6
    row = np.arccos(np.clip(local[:, 1] / length, -1, 1)) * ((ROWS - 1) / np.pi)
    column = np.arctan2(local[:, 2], local[:, 0]) * (COLUMNS / (2 * np.pi))
    return (row + 0.5).astype(np.int32), column.astype(np.int32) % COLUMNS, length


def surface(canvas, table, pose, centre, scale):
    """Where parallel rays first meet a solid (sphere tracing, Hart 1996): flat indices, points (k, 3) in its axes."""
    reach = table.max()
    across = (canvas.xy - centre[:2].astype(np.float32)) / np.float32(scale)
    toward = reach * reach - (across * across).sum(1)
    where = np.flatnonzero(toward > 0)
    local = np.column_stack([across[where], np.sqrt(toward[where])]) @ pose
    for _ in range(26):
        row, column, length = locate(local)
        gap = length - table[row, column]
        # Three quarters of the gap: a radius is no distance, and a full step could pass through.
        local -= (0.75 * gap + 0.001 * (gap > 0.002))[:, None] * pose[2]
    hit = np.abs(gap) < 0.02
    return where[hit], local[hit]


def normals(table, local) -> np.ndarray:
    """Unit normals (points, 3) of the solid at points in its own axes: the gradient of |p| − R(θ, φ)."""
    row, column, length = locate(local)
    by_theta = np.gradient(table, np.pi / (ROWS - 1), axis=0)[row, column] / length
    by_phi = (np.roll(table, -1, 1) - np.roll(table, 1, 1))[row, column] * (COLUMNS / (4 * np.pi)) / length
    x, y, z = (local / length[:, None]).T
    ring = np.maximum(np.hypot(x, z), 0.05)
    along_theta, along_phi = np.stack([y * x / ring, -ring, y * z / ring]), np.stack([-z, 0 * z, x]) / ring
    return unit((np.stack([x, y, z]) - along_theta * by_theta - along_phi * by_phi / ring).T)


def skin(kind: Variety, local, rng) -> np.ndarray:
    """Linear colours (points, 3) at points in a fruit's axes: ground, streaked blush, shoulder, russet, dots, spots."""
    row, column, _ = locate(local)
    streaks = cloud(rng, COLUMNS, 5, 90)[row, column]
    lit = 0.5 + 0.32 * (local @ unit(rng.normal(size=3)).astype(np.float32)) + 0.5 * (waves(local, rng, 1.0) - 0.5)
    lit, edge = lit + kind.streak * 0.75 * (streaks - 0.5), 0.2 - 0.12 * kind.streak
    colour = mix(np.float32(kind.ground) ** 2.2, kind.blush, ramp(lit, 1 - kind.cover - edge, 1 - kind.cover + edge))
    ring = np.exp(-((row / ROWS * np.pi / 0.6) ** 2)) * (0.6 + 0.6 * streaks)
    colour = mix(colour, (0.45, 0.52, 0.14), np.clip(kind.shoulder * ring, 0, 0.9))
    colour = mix(colour, BROWN, kind.russet * ramp(waves(local, rng, 4) + waves(local, rng, 1.2), 0.8, 1.25))
    colour = mix(colour, (0.88, 0.80, 0.58), 0.6 * kind.speckle * ramp(waves(unit(local), rng, 9), 0.84, 0.98))
    for _ in range(rng.integers(0, 3)):
        far = np.linalg.norm(unit(local) - unit(rng.normal(size=3)), axis=1) + 0.05 * waves(local, rng, 4)
        colour = mix(colour, (0.30, 0.20, 0.10), rng.uniform(0.2, 0.7) * (1 - ramp(far, 0.04, 0.13)))
    return (colour * rng.uniform(0.9, 1.1, 3) * rng.uniform(0.8, 1.2)).astype(np.float32)


def sweep(canvas, start, towards, end, radii, colour, flat: float = 1.0) -> None:
    """Paint a sphere of `radii` (k,) moved along a Bézier curve (control: `towards`); `flat` < 1: a veined blade."""
    t = np.linspace(0, 1, len(radii))[:, None]
    points = ((1 - t) ** 2 * start + 2 * t * (1 - t) * towards + t * t * end).astype(np.float32)
    low, high = points[:, :2].min(0) - radii.max(), points[:, :2].max(0) + radii.max()
    where = np.flatnonzero((canvas.xy > low).all(1) & (canvas.xy < high).all(1))
    across = (canvas.xy[where, None] - points[:, :2]) / np.float32(radii)[:, None]
    far = np.hypot(across[..., 0], across[..., 1])
    best, far = far.argmin(1), far.min(1)
    on = np.flatnonzero(far < 1)
    where, best, across, far = where[on], best[on], across[on, best[on]], far[on]
    rise = np.sqrt(1 - far * far)
    normal = unit(np.column_stack([across * flat, rise + 1 - flat]))
    colour = np.asarray(colour) ** 2.2 * (1 + 1.2 * (1 - flat) * (1 - ramp(far, 0.04, 0.16)))[:, None]
    canvas.put(where, points[best, 2] + rise * radii[best] * flat, normal, colour, 0.2)


def leaf(canvas, start, length, rng) -> None:
    """A leaf to the left or right of `start`, drooping at its tip."""
    t, heading = np.linspace(0, 1, 48), length * np.array([rng.choice([-1, 1]), rng.uniform(-0.3, 0.4), 0.2])
    radii = (0.02 + np.sin(np.pi * t**0.8) ** 0.8 * rng.uniform(0.2, 0.28)) * length * (1 - 0.3 * t)
    droop, green = np.array([0, 0.13 * length, 0]), np.array(LEAF) * rng.uniform(0.8, 1.2)
    sweep(canvas, start, start + heading * 0.5 + droop, start + heading - droop, radii, green, 0.45)


def stem(canvas, start, axis, length, thick, colour, rng, end=None) -> np.ndarray:
    """A bent stick from `start` along `axis`, or to `end`; returns where it ends."""
    end = start + length * unit(axis + rng.uniform(-1, 1, 3) * [0.5, 0.1, 0.2]) if end is None else end
    radii = thick * (1 + 0.7 * np.linspace(1, 0, 90) ** 12 + 0.8 * np.linspace(0, 1, 90) ** 10)
    sweep(canvas, start, start + axis * length * 0.6, end, radii, np.array(colour) * rng.uniform(0.8, 1.2))
    return end


def calyx(canvas, table, pose, centre, scale, rng) -> None:
    """A tomato's green star: five to seven pointed sepals that follow the skin and lift at their tips, and a stub."""
    count, length, lift = rng.integers(5, 8), rng.uniform(0.75, 1.15), rng.uniform(0.05, 0.3)
    green, t = np.array(LEAF) * rng.uniform(0.85, 1.25), np.linspace(0, 1, 28)
    for number in range(count):
        angle = 2 * np.pi * (number + rng.uniform(-0.2, 0.2)) / count + np.array([0, 0.5, 1]) * rng.uniform(-0.4, 0.4)
        theta = 0.06 + np.array([0, 0.5, 1]) * length * rng.uniform(0.8, 1.15)
        out = np.stack([np.sin(theta) * np.cos(angle), np.cos(theta), np.sin(theta) * np.sin(angle)], 1)
        height = table[locate(out)[:2]] + np.array([0.02, 0.08, 0.04 + lift * rng.uniform(0.3, 1.3)])
        first, middle, last = (out * height[:, None]) @ pose.T * scale + centre
        radii = scale * 0.14 * (1 - t) ** 0.7 * (0.55 + t) + 0.006
        sweep(canvas, first, 2 * middle - (first + last) / 2, last, radii, green, 0.6)
    start, stub = centre + pose[:, 1] * scale * table[0, 0], scale * rng.uniform(0.12, 0.4)
    stem(canvas, start, pose[:, 1], stub, scale * 0.05, green * 0.9, rng)


def grow(canvas, fruit, kind, pose, centre, scale, rng, end=None):
    """Paint one whole fruit; returns where its stem ends (given as `end` to the second of two joined cherries)."""
    table = form(fruit, kind, rng)
    where, local = surface(canvas, table, pose, centre, scale)
    normal = normals(table, local)
    if fruit == "lemon":  # pores
        normal = unit(normal + 0.35 * (waves(local, rng, 15)[:, None] - 0.5) * unit(rng.normal(size=3)))
    depth, gloss = centre[2] + local @ pose[2] * scale, PROFILE[fruit][-1] * rng.uniform(0.7, 1.2)
    canvas.put(where, depth, normal @ pose.T, skin(kind, local, rng), gloss)
    start = centre + pose[:, 1] * scale * (table[0, 0] - 0.03)
    if fruit == "tomato" and rng.random() < 0.88:
        calyx(canvas, table, pose, centre, scale, rng)
    if fruit in ("apple", "cherry", "pear") and rng.random() < 0.88:
        length, thick = (rng.uniform(1.8, 2.9), 0.06) if fruit == "cherry" else (rng.uniform(0.45, 0.8), 0.04)
        colour = (0.38, 0.46, 0.12) if fruit == "cherry" and rng.random() < 0.6 else (0.40, 0.27, 0.13)
        end = stem(canvas, start, pose[:, 1], scale * length, max(scale * thick, 0.016), colour, rng, end)
    if end is not None and rng.random() < 0.1:
        leaf(canvas, end * 0.8 + start * 0.2, rng.uniform(0.3, 0.5), rng)
    return end


def arrange(canvas, fruit, kind, height: float, rng) -> list:
    """Place and paint one fruit, or two joined cherries; returns [(centre, scale)] for the shadows."""
    pitch, roll = height + rng.uniform(-0.2, 0.2), rng.uniform(-0.44, 0.44)
    scale = rng.uniform(*{"cherry": (0.28, 0.46), "pear": (0.42, 0.56)}.get(fruit, (0.50, 0.76))) / max(kind.tall, 1)
    centre = np.array([*rng.uniform(-0.55, 0.55, 2) * (0.95 - scale), 0])
    centre[1] -= 0.35 * scale if fruit in ("cherry", "pear") else 0
    sides = (-1, 1) if fruit == "cherry" and rng.random() < 0.5 else (0,)
    apart, end = scale * np.array([rng.uniform(0.9, 1.25), rng.uniform(-0.2, 0.2), 0.3]), None
    for side in sides:
        pose = stand(pitch, roll * (0.4 if side else 1) + side * rng.uniform(0, 0.25), rng)
        end = grow(canvas, fruit, kind, pose, centre + side * apart, scale, rng, end)
    return [(centre + side * apart, scale) for side in sides]


def backdrop(n: int, rng, low: bool) -> np.ndarray:
    """Linear colours (n, n, 3), any hue, muted: plain, wood, cloth or stone; from a `low` camera, at times an edge."""
    wheel = np.clip(np.abs((rng.random((3, 1)) * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    first, second, wall = rng.uniform(0.5, 0.97, (3, 1)) * (1 - (1 - wheel) * 0.5 * rng.beta(1, 2.5, (3, 1)))
    down = np.linspace(0, 1, n, dtype=np.float32)[:, None]
    cells = ((2, 2), (int(rng.integers(20, 50)), 3), (60, 60), (40, 40))[rng.integers(4)]
    share = 0.25 * cloud(rng, n, *cells) + 0.25 * cloud(rng, n, 4, 4) + rng.choice([0, 0.7]) * (down - 0.3)
    colour = mix(first**2.2, second, share.T if rng.random() < 0.4 else share)
    if low and rng.random() < 0.5:
        edge = rng.uniform(0.12, 0.4) + 0.08 * rng.uniform(-1, 1) * (down.T - 0.5)
        colour = mix(colour, wall, 1 - ramp(down, edge - 0.02, edge + 0.02))
    return colour


def shadow(canvas, placed, light, height: float) -> np.ndarray:
    """Share of the light (n · n, 1) the fruits `placed` leave to the table; `height` is the camera's, in radians."""
    keep = np.ones(canvas.n**2, np.float32)
    for centre, scale in placed:
        foot = centre[:2] + scale * np.array([-0.5 * light[0], -0.75 * np.cos(height) - 0.15 * light[1]])
        dx, dy = ((canvas.xy - foot) / (scale * np.array([1, 0.3 + 0.7 * np.sin(height)]))).astype(np.float32).T
        keep *= 1 - 0.75 * np.exp(-(((dx + 0.35 * light[0] * np.abs(dx)) ** 2 + dy * dy) ** 1.3))
    return keep[:, None]


def shade(canvas, around, light, rng) -> np.ndarray:
    """Lit colours (n · n, 3): soft sun, sky above, the table's colour (`around`) below; Blinn's highlight; hollows."""
    n, normal, soft = canvas.n, canvas.normal, rng.uniform(0.1, 0.4)
    sun = np.clip((normal @ light + soft) / (1 + soft), 0, None)[:, None]
    sky = (0.32 + 0.18 * normal[:, 1:2]) * rng.uniform(0.7, 1.2)
    bounce = 0.35 * np.clip(-normal[:, 1:2], 0, 1) * around
    facing = normal @ unit(light + np.array([0, 0, 1], np.float32)) - 1
    rim = 0.08 * (1 - np.clip(normal[:, 2], 0, 1)) ** 3 * (1 + normal[:, 1])
    shine = 0.75 * np.exp(facing * rng.uniform(60, 220)) + 0.1 * np.exp(facing * 9) + rim
    seen = (canvas.depth > -8).astype(np.float32).reshape(n, n)
    depth = canvas.depth.reshape(n, n) * seen
    above = resample(depth, 12, n) / np.maximum(resample(seen, 12, n), 0.05) - depth
    openness = np.clip(1 - 4 * np.clip(above, 0, None), 0.35, 1).reshape(-1, 1)
    return canvas.colour * (0.95 * sun + sky + bounce) * openness + (shine * canvas.gloss)[:, None]


def resample(plane, pixels_each: float, size: int) -> np.ndarray:
    """A plane (n, n) at size × size, of which it keeps only details coarser than `pixels_each` of those pixels."""
    few = max(round(size / pixels_each), 4)
    image = Image.fromarray(np.ascontiguousarray(plane, np.float32)).resize((few, few), Image.Resampling.BOX)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def expose(scene, rng, size: int) -> Image.Image:
    """The photograph of a linear scene (n, n, 3): white balance, exposure, vignette, focus, sensor noise."""
    warm, blur = rng.uniform(-0.1, 0.1), max(rng.uniform(0.9, 2.1), 1.15)
    axis = np.linspace(-1, 1, len(scene), dtype=np.float32)[:, None] ** 2
    bright = 2 ** rng.uniform(-0.35, 0.3) * (1 - rng.uniform(0, 0.25) * (axis + axis.T) / 2)
    scene = scene * np.array([1 + warm, 1, 1 - warm], np.float32) * bright[..., None]
    scene = np.stack([resample(plane, blur, size) for plane in np.moveaxis(scene, 2, 0)], -1)
    grain = rng.normal(size=(size, size, 3)) + rng.normal(size=(size, size, 1))
    scene = np.clip(scene, 0, None) ** (1 / 2.2) + grain * rng.uniform(0.002, 0.01)
    return Image.fromarray((np.clip(scene, 0, 1) * 255 + 0.5).astype(np.uint8))


def pick(fruit: str, rng: np.random.Generator) -> str:
    """The name of a variety of `fruit`, common ones more often."""
    often = {name: kind.often for (kind_of, name), kind in VARIETIES.items() if kind_of == fruit}
    return str(rng.choice(list(often), p=np.array(list(often.values())) / sum(often.values())))


def photograph(fruit: str, rng: np.random.Generator, size: int = 128, variety: str | None = None) -> Image.Image:
    """One RGB picture, size × size, of a `fruit` in `FIVE`; its variety (see `VARIETIES`) is drawn unless given."""
    kind = VARIETIES[fruit, variety or pick(fruit, rng)]
    canvas, height = Canvas(2 * size), rng.uniform(0.1, 0.5) if fruit in ("lemon", "pear") else rng.uniform(0.3, 1.0)
    placed = arrange(canvas, fruit, kind, height, rng)
    light = unit(rng.uniform([-0.9, 0.2, 0.5], [0.9, 0.9, 1.0])).astype(np.float32)
    behind = backdrop(canvas.n, rng, height < 0.65).reshape(-1, 3)
    lit = shade(canvas, behind.mean(0), light, rng)
    scene = np.where(canvas.depth[:, None] > -8, lit, behind * shadow(canvas, placed, light, height))
    return expose(scene.reshape(canvas.n, canvas.n, 3), rng, size)


def draw(folder: Path, five: bool = False, seed: int = 0, size: int = 128, progress: OnProgress | None = None) -> Path:
    """Write `<folder>/<class>/<variety>__<number>.jpg` (127, 127, 50; with `five` also 100, 100); returns the folder.

    A picture depends on (seed, set, fruit, number) alone. `progress(done, total)` is called after each. A folder with
    this set is not changed; a folder with other files raises an `InputError`.
    """
    folder = files.resolve(folder)
    record = {"seed": int(seed), "five": bool(five), "size": int(size), "version": VERSION}
    if drawn(folder, record):
        return folder
    with files.folder_beside(folder) as beside:
        fill(beside / "set", record, progress)
        try:
            os.replace(beside / "set", folder)
        except OSError:  # another process may have drawn it in the meantime
            if not drawn(folder, record):
                raise
    return folder


def drawn(folder: Path, record: dict) -> bool:
    """Whether `folder` holds the set of `record`; False if absent or empty, `InputError` if it holds other files."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    on_disk = files.read_json(folder / "sample.json", {})
    if any(on_disk.get(key) != record[key] for key in record):
        raise errors.InputError(f"{folder}: holds {on_disk or 'other files'}, not {record}; remove it or name another")
    return True


def fill(folder: Path, record: dict, progress: OnProgress | None) -> None:
    """Draw every photograph of a set into `folder`, then its record."""
    jobs = [(fruit, number) for fruit in (FIVE if record["five"] else FRUITS) for number in range(COUNTS[fruit])]
    for done, (fruit, number) in enumerate(jobs, 1):
        rng = np.random.default_rng([record["seed"], int(record["five"]), FIVE.index(fruit), number])
        variety = pick(fruit, rng)
        path = folder / fruit / f"{variety}__{number + 1:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(fruit, rng, record["size"], variety).save(path, quality=92)
        if progress:
            progress(done, len(jobs))
    files.write_json(folder / "sample.json", record)
