"""The page of a run's validation photos, and what is gathered for it: predictions, groups, sheets of pictures."""

from pathlib import Path

from fruitlib.core.errors import first_line
from fruitlib.core.files import changed_at, fingerprint, is_disk_failure
from fruitlib.data import splits
from fruitlib.evaluation.wording import plural_of
from fruitlib.reporting import explore, sprites
from fruitlib.reporting.explore import RunPhotos
from fruitlib.reporting.site_index import Seen, is_under_way
from fruitlib.reporting.sprites import NOTHING, Sheet
from fruitlib.runs.run import Run

PAGE = "photos"  # name of the page, without .html
KEPT_ROWS = 400_000  # predictions of all runs together that are held
HEAT_ROWS = 2500  # photos on the sheets with heat of every photo, of all runs together: some 15 MB at most
LISTED = 24  # mistakes that stand on the page without script


def see(sweep_dir: Path, sweep: dict) -> Seen:
    """The predictions of the complete runs, and the sheets that show their photos and heat, made where they changed."""
    seen, rows = Seen(), 0
    groups = explore.load_groups(sweep_dir)
    for run in sweep["runs"]:
        folder = sweep_dir / run["name"]
        if run["state"] != "complete" or folder.is_symlink():
            continue
        photos = explore.load_photos(folder, groups)
        if photos is None:
            continue
        if rows + len(photos.table) > KEPT_ROWS:
            seen.left_out += 1
            continue
        rows += len(photos.table)
        seen.photos[run["name"]] = photos
    runs = {name: run for name in seen.photos if (run := sprites.run_of(sweep_dir / name))}
    if runs:
        first = next((run for name, run in runs.items() if name == sweep["shipped"]), next(iter(runs.values())))
        seen.sheet = _photo_sheet(sweep_dir, first, seen, sweep)
    for name in sorted(runs, key=lambda name: name != sweep["shipped"]):
        try:
            _heat(name, runs[name], seen)
        except (OSError, ValueError, KeyError) as problem:  # the photos are elsewhere: no heat over them
            if is_disk_failure(problem):
                raise
    seen.pages = {name for name in seen.photos if not (sweep_dir / name / f"{PAGE}.ipynb").exists()}
    return seen


def _heat(name: str, run: Run, seen: Seen) -> None:
    photo = sprites.seen_by(run)
    seen.heat[name] = sprites.heat_sheet(run.path, photo)
    if sum(len(sheet.cells) for sheet in seen.every.values()) < HEAT_ROWS:
        seen.every[name] = sprites.heat_sheet(run.path, photo, sprites.EVERY)


def _photo_sheet(sweep_dir: Path, run: Run, seen: Seen, sweep: dict) -> Sheet:
    """The sheet of all validation photos; of too many those that are most often mistaken, once the sweep is over."""
    try:
        manifest = run.manifest
        parts = ["train", "val"] if run.config.folds else ["val"]
        usable = manifest["status"].isin(splits.USABLE) & manifest["split"].isin(parts)
        paths = manifest.loc[usable, "path"].tolist()
    except (OSError, ValueError, KeyError, TypeError) as problem:
        return Sheet("", 1, 1, {}, note=f"The photos cannot be shown: {first_line(problem)}")
    if len(paths) <= sprites.MOST:
        return sprites.photo_sheet(sweep_dir, run, paths)
    if is_under_way(sweep):
        return Sheet("", 1, 1, {}, note="The photos are shown once the sweep is complete.")
    wrong = dict.fromkeys(paths, 0)
    for photos in seen.photos.values():
        for path in photos.table["path"].iloc[photos.mistakes]:
            wrong[path] = wrong.get(path, 0) + 1
    chosen = sorted(paths, key=lambda path: -wrong[path])[: sprites.MOST]
    note = f"Of {len(paths):,} photos the {sprites.MOST:,} are shown that runs most often get wrong."
    return sprites.photo_sheet(sweep_dir, run, chosen, note)


def stamp(folder: Path, title: str, appearance: str, seen: Seen, beside: tuple) -> str:
    """Changes when the page of a run's photos would."""
    times = [changed_at(folder / name) for name in (explore.PREDICTIONS, explore.FEATURES_FILE)]
    stamps = [sheets.get(folder.name, NOTHING).stamp for sheets in (seen.heat, seen.every)]
    return fingerprint(title, appearance, times, seen.sheet.stamp, seen.sheet.note, stamps, beside)


def content(folder: Path, seen: Seen, sweep: dict) -> dict:
    """What the template shows on the page of a run's photos."""
    photos, heat = seen.photos[folder.name], seen.heat.get(folder.name, NOTHING)
    many = len(photos.table) > explore.MOST_PHOTOS
    features = None if many else explore.load_features(folder, photos.table["path"].tolist())
    data = {} if many else explore.run_data(photos, seen.sheet, heat, features, seen.every.get(folder.name, NOTHING))
    wrong = photos.mistakes
    word = f"{sweep.get('group_word') or 'group'}"
    grouped = len(set(filter(None, photos.groups))) < sum(map(bool, photos.groups))
    same = f"; for more photos of these same {plural_of(word)}" if grouped else ""
    return {
        "photos": photos,
        "data": explore.as_script_data(data | {"groupWord": word, "same": same}),
        "many": many,
        "most": explore.MOST_PHOTOS,
        "confusion": explore.confusion_of(photos),
        "all": explore.answered(photos, 0),
        "grid": explore.group_grid(photos),
        "group_word": word,
        "group_words": plural_of(word),
        "grouped": grouped,
        "wrong": [_listed(photos, int(at), seen.sheet) for at in wrong[:LISTED]],
        "wrong_in_all": len(wrong),
        "sheet": explore.sheet_data(seen.sheet, "../assets/"),
        "heat": heat,
        "note": seen.sheet.note,
        "map_of": data.get("mapOf", ""),
    }


def _listed(photos: RunPhotos, at: int, sheet: Sheet) -> dict:
    row = photos.table.iloc[at].to_dict()
    return row | {"p": photos.confidence[at] / explore.MILLION, "at": sheet.cells.get(row["path"], -1)}


def neighbours(names: list[str], name: str) -> tuple[str, str]:
    """The names before and after one in a list; "" at its ends."""
    at = names.index(name)
    return names[at - 1] if at else "", names[at + 1] if at + 1 < len(names) else ""
