"""Sheets of small pictures beside the pages: the validation photos of a sweep, and where a run looks.

A sheet is one WebP file of square cells, row by row; pages show a cell by moving the sheet behind a window, so that 72
runs share each photo and nothing is fetched. `assets/photos.webp` and `heat.webp` in a run's folder, each with a JSON
file that says which cell is what.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from fruitlib.core.errors import InputError, first_line
from fruitlib.core.files import fingerprint, read_json, read_npz, replacing, write_json
from fruitlib.data import photo_checks, preprocess, sources
from fruitlib.reporting.pictures import encoded
from fruitlib.runs.run import Run

PHOTOS = "photos"  # name of the sheet, without its ending
FOLLOWED, EVERY = "epoch", "validation"  # heat of the photos that training follows, and of each validation photo
HEAT = {FOLLOWED: "heat", EVERY: "heat_all"}
LARGE, SMALL = 160, 96  # pixels of a photo's side, of few photos and of many
FEW, MOST = 400, 2000  # photos that are large; photos on a sheet
MAX_ROWS = 100  # photos whose heat is shown, of a run
MAX_COLUMNS = 100  # layers times epochs
HEAT_SIDE = 96
MAX_UNPACKED = 2_000_000_000  # bytes of the heatmaps of one epoch
VERSION = 2  # of what the sheets look like


@dataclass(frozen=True)
class Sheet:
    """Where a picture is on a sheet: cell k lies in row k // columns and column k % columns."""

    name: str  # of the file, beside its JSON record
    side: int  # pixels of a cell
    columns: int
    cells: dict[str, int]  # by photo: its cell; of heat, its row
    layers: list[dict] = field(default_factory=list)  # of heat: layer and epoch of each column after the first
    note: str = ""  # what is not on the sheet, and why
    stamp: str = ""


NOTHING = Sheet("", 1, 1, {})


def photo_sheet(sweep_dir: Path, run: Run | None, paths: Sequence[str], note: str = "") -> Sheet:
    """`assets/photos.webp` with the photos at a manifest's `paths`, as `run` sees them; made anew where these changed.

    `NOTHING` with a `note` where the photos cannot be found. One that no longer opens is left out.
    """
    if run is None or not len(paths) or (sweep_dir / "assets").is_symlink():
        return NOTHING
    side = LARGE if len(paths) <= FEW else SMALL
    try:
        config = run.config.model_copy(update={"image_size": side})
        config = photo_checks.with_bits(config, run.manifest)
        folder = sources.root(config.data, config.photos_dir)
        sums = run.manifest.set_index("path")["sha256"].reindex(paths).fillna("").tolist()
    except (OSError, ValueError, KeyError) as problem:  # InputError is a ValueError
        return Sheet("", 1, 1, {}, note=f"The photos cannot be shown: {first_line(problem)}")
    settings = [getattr(config, name) for name in ("crop_to", "crop_margin", "resize", "center", "deep_bits")]
    stamp = fingerprint(VERSION, side, settings, list(paths), sums)
    record = sweep_dir / "assets" / f"{PHOTOS}.json"
    if known := _known(record, stamp):
        return known
    pictures = {}
    for path, digest in zip(paths, sums, strict=True):
        with contextlib.suppress(OSError, ValueError):  # moved, changed or damaged since: the others are shown
            pictures[path] = preprocess.decode(folder, path, config, digest)
    if missing := len(paths) - len(pictures):
        note = f"{note} {missing:,} photos cannot be shown: moved, changed or damaged since the sweep.".strip()
    if not pictures:
        return Sheet("", 1, 1, {}, note=note)
    columns = min(20 if side == LARGE else 40, len(pictures))
    sheet = Sheet(f"{PHOTOS}.webp", side, columns, {path: at for at, path in enumerate(pictures)}, [], note, stamp)
    return _written(record, sheet, _tiled(list(pictures.values()), columns))


def heat_sheet(folder: Path, photo: Callable[[str, int], np.ndarray], kind: str = FOLLOWED) -> Sheet:
    """`heat.webp` of a run: a row per photo whose heatmaps are in `cams/`: the photo, then each layer at each epoch.

    `kind` EVERY: `heat_all.webp`, of each validation photo the last layer, as 04 looked at it.
    Heat is inferno's colour, and as opaque as it is hot. `photo` gives the photo at a path as the network saw it, uint8
    (S, S, 3). `NOTHING` where there are no heatmaps, or none that can be read.
    """
    files = [path for path in sorted((folder / "cams").glob(f"{kind}_*.npz")) if not path.is_symlink()]
    if not files or (folder / "cams").is_symlink():
        return NOTHING
    stamp = fingerprint(VERSION, [[path.name, path.stat().st_mtime_ns, path.stat().st_size] for path in files])
    if known := _known(folder / f"{HEAT[kind]}.json", stamp):
        return known
    kept = [(number, *found) for path in files if (number := _epoch(path)) and (found := _heatmaps(path))]
    if not kept:
        return NOTHING
    rows = kept[-1][1][:MAX_ROWS].tolist()
    columns = [(epoch, layer) for epoch, _, _, layers in kept for layer in range(len(layers))][-MAX_COLUMNS:]
    by_epoch = {epoch: (list(paths), heat) for epoch, paths, heat, _ in kept}
    names = {epoch: layers for epoch, _, _, layers in kept}
    cells, shown = [], {}
    for path in rows:
        with contextlib.suppress(OSError, ValueError):
            cells.append(_resized(Image.fromarray(photo(path, HEAT_SIDE)).convert("RGBA")))
            shown[path] = len(shown)
            cells += [_heat_cell(*by_epoch[epoch], path, layer) for epoch, layer in columns]
    if not shown:
        return NOTHING
    layers = [{"epoch": epoch, "layer": str(names[epoch][layer])} for epoch, layer in columns]
    sheet = Sheet(f"{HEAT[kind]}.webp", HEAT_SIDE, 1 + len(columns), shown, layers, "", stamp)
    return _written(folder / f"{HEAT[kind]}.json", sheet, _tiled(cells, 1 + len(columns)))


def seen_by(run: Run) -> Callable[[str, int], np.ndarray]:
    """A function of a path and a side in pixels that gives the photo as the run's network saw it, uint8 (S, S, 3).

    It raises InputError for a photo that has changed since.
    """
    config = photo_checks.with_bits(run.config, run.manifest)
    folder = sources.root(config.data, config.photos_dir)
    sums = dict(zip(run.manifest["path"], run.manifest["sha256"].fillna(""), strict=True))

    def photo(path: str, side: int) -> np.ndarray:
        return preprocess.decode(folder, path, config.model_copy(update={"image_size": side}), sums.get(path, ""))

    return photo


def _known(record: Path, stamp: str) -> Sheet | None:
    """The sheet that was made before, where it shows the same."""
    try:
        known = Sheet(**read_json(record))
    except (OSError, ValueError, TypeError):
        return None
    there = (record.parent / known.name).is_file() and not record.is_symlink()
    return known if there and known.stamp == stamp else None


def _epoch(path: Path) -> int:
    digits = path.stem.rpartition("_")[2]
    return int(digits) if digits.isascii() and digits.isdigit() else 0


def _heatmaps(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Paths (n,), heat (n, layers, S, S) and the layers' names of a file of `gradcam.save_heatmaps`; None if damaged.

    Read without `explain.gradcam`, which imports torch.
    """
    with contextlib.suppress(OSError, InputError, KeyError, TypeError):
        stored = read_npz(path, MAX_UNPACKED)
        paths, heat, layers = stored["paths"], stored["heatmap"], stored["layer_names"]
        if heat.ndim == 4 and heat.shape[:2] == (len(paths), len(layers)) and np.isfinite(heat).all():
            return paths, heat, layers
    return None


def _heat_cell(paths: list, heat: np.ndarray, path: str, layer: int) -> Image.Image:
    """One map in inferno's colours, as opaque as it is hot; empty where this epoch has none of the photo."""
    if path not in paths or layer >= heat.shape[1]:
        return Image.new("RGBA", (HEAT_SIDE, HEAT_SIDE))
    values = np.clip(heat[paths.index(path), layer].astype(float), 0, 1)
    colours = matplotlib.colormaps["inferno"](values)
    colours[..., 3] = values
    return _resized(Image.fromarray(np.rint(255 * colours).astype(np.uint8), "RGBA"))


def _resized(picture: Image.Image) -> Image.Image:
    return picture.resize((HEAT_SIDE, HEAT_SIDE), Image.Resampling.BILINEAR)


def _tiled(pictures: list, columns: int) -> Image.Image:
    """Pictures of one size in a grid, row by row."""
    tiles = [tile if isinstance(tile, Image.Image) else Image.fromarray(tile) for tile in pictures]
    side = tiles[0].width
    sheet = Image.new(tiles[0].mode, (side * columns, side * -(-len(tiles) // columns)))
    for at, tile in enumerate(tiles):
        sheet.paste(tile, (at % columns * side, at // columns * side))
    return sheet


def _written(record: Path, sheet: Sheet, picture: Image.Image) -> Sheet:
    # opacity in fewer steps: else it takes most of the file
    content = encoded(picture, "WEBP", quality=60 if sheet.layers else 80, alpha_quality=60, method=4)
    record.parent.mkdir(parents=True, exist_ok=True)
    with replacing(record.parent / sheet.name) as partial:
        partial.write_bytes(content)
    write_json(record, asdict(sheet))
    return sheet


def run_of(folder: Path) -> Run | None:
    """The run in a folder, if its settings can be read."""
    run = Run(folder)
    with contextlib.suppress(OSError, InputError, ValueError):
        return run if run.config and not (folder / "params.yaml").is_symlink() else None
    return None
