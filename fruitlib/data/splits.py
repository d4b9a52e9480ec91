"""The manifest: which photos are for training, validation and test; stratified, seeded, groups never divided."""

from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd

from fruitlib.core import files, source_code
from fruitlib.core.config import SPLIT_SETTINGS, Config
from fruitlib.core.errors import InputError
from fruitlib.core.progress import OnProgress
from fruitlib.core.texts import normal, printable
from fruitlib.data import cache, corrections, duplicates, photo_checks, sources
from fruitlib.data.stratify import assign_folds, assign_splits, subset, wanted_photos
from fruitlib.data.tables import photo_of

SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}  # as people call them
SPLITS = tuple(SPLIT_NAMES)
USABLE = ("ok", "sealed")
MOST_NOTES = 12  # notes on the terminal
COLUMNS = ("path", "label", "group", "split", "fold", "status", "reason", "decision")
COLUMNS += ("width", "height", "sha256", "phash", "bits")


def prepare_manifest(
    config: Config,
    sweep_dir: Path,
    progress: OnProgress | None = None,
    say: Callable[[str], None] | None = None,
    same_photos: bool = False,
) -> pd.DataFrame:
    """The sweep's manifest: loaded if it fits the data and the settings, else built and written.

    `manifest.json` beside `manifest.csv` holds its identity, the classes found (`listing`), and notes on what was left
    out or could not be met. Nothing is written unless all photos and classes allow the split. The identity covers the
    listed rows (of a table: their values), and size and time of every file in use.

    Args:
        say: called with each line for people: the classes found before a photo is opened, in the end the notes. Without
            it only what was divided before and is divided again is printed.
        same_photos: refuse a folder that holds a division of other photos than `data` names.

    Raises:
        InputError: no photos, a photo that does not open (`bad_photos: stop`), a class too small for the split.
    """
    if same_photos:
        _refuse_other_photos(config, sweep_dir)
    folder = sources.ready(config.data, progress, config.photos_dir)
    rows, notes = sources.scan(config)
    listing, say_anyway = sources.listing_text(rows), say or print
    say = say or (lambda line: None)
    for line in [listing, *_first(notes)]:
        say(line)
    manifest = _made_manifest(config, sweep_dir, (folder, rows, notes, listing), progress, say_anyway)
    for line in _first(load_record(sweep_dir)["notes"][len(notes) :]):
        say(line)
    return manifest


def _refuse_other_photos(config: Config, sweep_dir: Path) -> None:
    if not (sweep_dir / "manifest.json").is_file():
        return
    if (data := load_record(sweep_dir)["data"]) != config.data:
        where = files.display_path(sweep_dir)
        way_on = f"set data: {data} (and what else you set in 01) here too, or another run_dir"
        raise InputError(f"{where} holds a division of {data}, and data is {config.data} here: {way_on}", "data")


def _first(notes: list[str]) -> list[str]:
    more = [f"… and {len(notes) - MOST_NOTES:,} more notes, in manifest.json"] if len(notes) > MOST_NOTES else []
    return [*notes[:MOST_NOTES], *more]


def _made_manifest(
    config: Config, sweep_dir: Path, scanned: tuple, progress: OnProgress | None, say: Callable[[str], None]
) -> pd.DataFrame:
    """The manifest in the sweep's folder if it fits what was found, else a new one, which is written."""
    folder, rows, notes, listing = scanned
    rows = subset(rows, config.subset, config.split_seed)
    settings = config.model_dump(include=set(SPLIT_SETTINGS))
    settings["corrections"] = corrections.described(config, corrections.decisions(config))
    stamps = _stamps(folder, rows.loc[rows["status"] != "left_out", "path"])
    code = source_code.closure_fingerprint([__name__])
    identity = files.fingerprint(settings, notes, _digest(rows), stamps, code)
    made = all((sweep_dir / f"manifest.{kind}").is_file() for kind in ("json", "csv"))
    if made and load_record(sweep_dir)["identity"] == identity:
        return load_manifest(sweep_dir)
    if made:
        say(_what_changed(settings, load_record(sweep_dir).get("settings")))
    manifest, summary = build_manifest(folder, rows, config, progress)
    names = sorted(set(manifest.loc[manifest["status"].isin(USABLE), "label"]))
    facts = {"identity": identity, "data": config.data, "photos_dir": config.photos_dir}
    facts |= {"folds": config.folds, "repeats": config.repeats, "settings": settings, "listing": listing}
    facts |= {"notes": [*notes, *map(printable, summary)], "class_names": names}
    with files.lock(sweep_dir / ".manifest.lock"):  # of two sweeps that start at once, one writes
        made = all((sweep_dir / f"manifest.{kind}").is_file() for kind in ("json", "csv"))
        if made and load_record(sweep_dir)["identity"] == identity:
            return load_manifest(sweep_dir)
        # a kill between the two writes must not pair new with old
        (sweep_dir / "manifest.json").unlink(missing_ok=True)
        files.write_csv(sweep_dir / "manifest.csv", manifest)
        files.write_json(sweep_dir / "manifest.json", facts)
    return manifest


def _what_changed(settings: dict, before: dict | None) -> str:
    """A sentence on why photos that were divided before are divided again."""
    changed = [name for name, value in settings.items() if before and before.get(name) != value]
    texts = [f"{name} was {before.get(name)} and is {settings[name]}" for name in changed]
    why = "; ".join(texts) or "photos, their list or the code that divides them have changed"
    return f"the photos are divided again, and what rests on their division is made again: {why}"


def build_manifest(
    folder: Path, rows: pd.DataFrame, config: Config, progress: OnProgress | None = None
) -> tuple[pd.DataFrame, list[str]]:
    """Check the photos of `subset`'s rows and divide them; returns the manifest and notes, sentences for people."""
    if (decided := corrections.decisions(config)).empty:
        divide(rows, config)  # report what cannot be divided before minutes of decoding
    with cache.squares_while_checking(folder, len(rows), config, files.cache_dir()) as squares:
        most = config.max_megapixels
        manifest = photo_checks.check_photos(folder, rows, config.min_side, progress, megapixels=most, squares=squares)
    manifest, notes = corrections.apply(manifest, decided, config)
    bad = manifest[manifest["status"] == "quarantined"]
    if len(bad) and config.bad_photos == "stop":
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        reason = f"{folder / bad['path'].iloc[0]}: {bad['reason'].iloc[0]}{more}"
        raise InputError(f"{reason}: repair or remove it, or set bad_photos: quarantine to continue without it")
    manifest, summary = duplicates.resolve(manifest, near=config.near_duplicates == "group")
    if left_out := (manifest["status"] == "left_out").sum():
        notes.append(f"{len(rows) - left_out:,} of {len(rows):,} photos are used (subset: {config.subset:g})")
    if len(bad := manifest[manifest["status"] == "quarantined"]):
        first = f"{bad['path'].iloc[0]}: {bad['reason'].iloc[0]}"
        notes.append(f"{len(bad):,} of the photos are quarantined, manifest.csv says why; the first is {first}")
    manifest, more = divide(manifest, config)
    return manifest[list(COLUMNS)], [*notes, *photo_checks.depth_notes(manifest, config), *summary, *more]


def divide(manifest: pd.DataFrame, config: Config) -> tuple[pd.DataFrame, list[str]]:
    """Every usable row's split and fold, from the settings alone, and what could not be met; opens no file.

    With folds, `split` is train for all but test photos, and `fold` holds the fold number in each repeat.

    Raises:
        InputError: a class with too few photos or groups.
    """
    usable = manifest[manifest["status"].isin(USABLE)]
    notes = []
    if config.folds and (usable["split"] == "val").any():
        notes.append(f"{(usable['split'] == 'val').sum():,} photos of the predefined val part joined the folds")
        usable = usable.assign(split=usable["split"].replace("val", "train"))
    notes += _unused_settings_notes(config, set(usable["split"]))
    _check_sizes(usable, manifest, config)
    folds = pd.Series("", usable.index, dtype=str)
    placed = corrections.as_given(manifest, usable)
    try:
        val_per_class = 0 if config.folds else config.val_per_class
        splits, summary = assign_splits(placed, val_per_class, config.test_per_class, config.split_seed)
        if config.folds:
            pool = placed[splits == "train"]
            assigned, more = assign_folds(pool, config.folds, config.repeats, config.split_seed)
            folds, summary = assigned.reindex(usable.index, fill_value=""), [*summary, *more]
    except InputError as problem:
        raise InputError(f"{problem}{_subset_hint(config)}") from None
    sides = {"split": splits[usable.index], "fold": folds}
    given = (usable["split"] != "").any()
    manifest = manifest.assign(**{name: side.reindex(manifest.index, fill_value="") for name, side in sides.items()})
    if given and len(divided := leaks(manifest)):
        kinds = divided.groupby("kind", sort=False)["value"].agg(["size", "first"])
        counts_text = [f"{n:,} {kind}{'s' * (n > 1)}, such as {first}" for kind, n, first in kinds.itertuples()]
        notes.append(f"the given split divides what belongs together: {'; '.join(counts_text)}: see leaks")
    return manifest, [*notes, *summary]


def _check_sizes(usable: pd.DataFrame, manifest: pd.DataFrame, config: Config) -> None:
    """Raise for a class with fewer photos than the settings need, one of them for training."""
    parts, classes = set(usable["split"]), set(manifest.loc[manifest["status"] != corrections.STATUS, "label"])
    for split in sorted(parts - {"", "train"}):
        missing = classes & set(manifest.loc[manifest["split"] == split, "label"])
        missing -= set(usable.loc[usable["split"] == split, "label"])
        if missing:
            label = min(missing)
            raise InputError(f"class {label} has no usable {split} photo{_why(manifest, label, split)}: add some")
    photos = usable.loc[usable["split"].isin(["", "train"]), "label"].value_counts()
    photos = photos.reindex(sorted(classes), fill_value=0)
    needed = np.zeros(len(photos), int) if "test" in parts else wanted_photos(config.test_per_class, photos.to_numpy())
    if config.folds:
        needed, setting = needed + config.folds, f"folds {config.folds}"
    else:
        needed = needed + 1 + (0 if "val" in parts else wanted_photos(config.val_per_class, photos.to_numpy()))
        setting = f"val_per_class {config.val_per_class}"
    lacking = np.flatnonzero(photos.to_numpy() < needed)
    if len(lacking):
        label, has, least = photos.index[lacking[0]], int(photos.iloc[lacking[0]]), needed[lacking[0]]
        held = f"{has} photo{'s' * (has != 1)}{_why(manifest, label)}"
        raise InputError(
            f"class {label} has {held}, at least {least} are needed for {setting} "
            f"and test_per_class {config.test_per_class}: add photos or lower these settings{_subset_hint(config)}"
        )


def _why(manifest: pd.DataFrame, label: str, split: str | None = None) -> str:
    """How many photos of a class (and part) are quarantined, and the first one's reason; "" where none is."""
    bad = manifest[manifest["status"].isin(["quarantined", corrections.STATUS]) & (manifest["label"] == label)]
    bad = bad if split is None else bad[bad["split"] == split]
    if bad.empty:
        return ""
    word = "quarantined" if set(bad["status"]) == {"quarantined"} else "quarantined or set aside"
    return f" ({len(bad)} more are {word}, the first is {bad['path'].iloc[0]}: {bad['reason'].iloc[0]})"


def _unused_settings_notes(config: Config, parts: set[str]) -> list[str]:
    """A note for each setting that the photos' own parts leave unused."""
    notes = []
    if "val" in parts and not config.folds:
        notes.append("the photos bring their own val part: val_per_class is not used")
    if "test" in parts:
        notes.append("the photos bring their own test part: test_per_class is not used")
    return notes


def _subset_hint(config: Config) -> str:
    return f" (subset: {config.subset:g} leaves out the others)" if config.subset < 1 else ""


def part(manifest: pd.DataFrame, split: str, fold: int = 1, repeat: int = 1) -> pd.DataFrame:
    """The usable rows of train, val or test, index reset; with folds, val is that fold and train the others.

    For fold 0, val is empty and train holds the photos of all folds.

    Raises:
        InputError: no such fold or repeat.
    """
    rows = manifest[manifest["status"].isin(USABLE)]
    if split == "test" or not (rows["fold"] != "").any():
        return rows[rows["split"] == split].reset_index(drop=True)
    numbers = _numbers(rows["fold"], repeat)
    if not 0 <= fold <= numbers.max():
        raise InputError(f"fold = {fold}: the manifest holds folds 1 to {numbers.max()}, and 0 for all of them")
    chosen = numbers == fold if split == "val" else numbers != fold
    return rows[(numbers > 0) & chosen].reset_index(drop=True)


def training_rows(rows: pd.DataFrame, config: Config) -> pd.DataFrame:
    """The training rows after `train_share`, `share_class` and `train_labels`.

    Groups stay whole and are drawn by the run's seed; with one seed, a smaller share is part of a larger one.

    Raises:
        InputError: no such class.
    """
    if config.train_share < 1:
        wanted = normal(config.share_class)
        thinned = rows["label"] == wanted if wanted else rows["label"] == rows["label"]
        if not thinned.any():
            names = sorted(set(rows["label"]))
            listed = ", ".join(names[: sources.MOST_LISTED]) + " …" * (len(names) > sources.MOST_LISTED)
            raise InputError(f"share_class = {config.share_class}: no such class among {listed}")
        kept = subset(rows[thinned], config.train_share, config.seed)["status"] == "ok"
        rows = rows[kept.reindex(rows.index, fill_value=True)].reset_index(drop=True)
    if config.train_labels == "shuffled":
        order = np.random.default_rng([config.seed, 11]).permutation(len(rows))
        rows = rows.assign(label=rows["label"].to_numpy()[order])
    return rows


def _numbers(folds: pd.Series, repeat: int) -> np.ndarray:
    """The fold of each row in one repeat; 0 where it is in none."""
    codes, texts = pd.factorize(folds)
    if repeat < 1 or repeat > max((len(text.split()) for text in texts), default=0):
        raise InputError(f"repeat = {repeat}: the manifest holds no such division into folds")
    return np.array([int(text.split()[repeat - 1]) if text else 0 for text in texts])[codes]


def fingerprint(manifest: pd.DataFrame, sides: tuple[str, ...] = ("train", "val")) -> str:
    """Changes when a usable photo of these sides, its label, its side or its fold does: what training depends on."""
    rows = manifest[manifest["split"].isin(sides) & manifest["status"].isin(USABLE)]
    return _digest(rows[["path", "label", "split", "fold", "sha256"]])


def _digest(rows: pd.DataFrame) -> str:
    """Twelve hex digits of the table's text, column by column; the same on every system."""
    digest = sha256(f"{len(rows)} {list(rows)}".encode())
    for name in rows:
        for start in range(0, len(rows), 100_000):
            digest.update(("\0".join(rows[name].iloc[start : start + 100_000].astype(str)) + "\0").encode())
    return digest.hexdigest()[:12]


def sealed_files(config: Config, manifest: pd.DataFrame) -> str:
    """A digest of path, bytes and time of change of the sealed photos, which stay unopened, and of corrections."""
    sealed = manifest.loc[manifest["status"] == "sealed", "path"]
    stamps = _stamps(sources.root(config.data, config.photos_dir), sealed)
    decided = corrections.described(config, corrections.decisions(config)) if len(sealed) else "none"
    return stamps if decided == "none" else files.fingerprint(stamps, decided)


def _stamps(folder: Path, paths: Iterable[str]) -> str:
    """A digest of path, bytes and time of change of each file; of the path alone where the file is missing."""
    digest = sha256()
    for path in paths:
        file, _ = sources.locate(folder, path)
        try:
            facts = file.stat()
            digest.update(f"{path}\0{facts.st_size} {facts.st_mtime_ns}\0".encode())
        except (OSError, ValueError):  # a broken link, or a name that is not possible
            digest.update(f"{path}\0".encode())
    return digest.hexdigest()[:12]


def load_manifest(sweep_dir: Path) -> pd.DataFrame:
    """The manifest of a sweep folder; a row per photo, text columns never NaN."""
    if not (sweep_dir / "manifest.csv").is_file():
        raise InputError(f"{files.display_path(sweep_dir)}: no manifest.csv; execute 01_split first")
    texts = dict.fromkeys(set(COLUMNS) - {"width", "height", "bits"}, str)
    return files.read_csv(sweep_dir / "manifest.csv", dtype=texts, keep_default_na=False)


def load_record(sweep_dir: Path) -> dict:
    """The record beside the manifest (`manifest.json`): identity, data, folds, repeats, listing, notes, class_names.

    Raises:
        FileNotFoundError: there is none.
        InputError: it is damaged.
    """
    return files.read_json(sweep_dir / "manifest.json")


def counts(manifest: pd.DataFrame) -> pd.DataFrame:
    """Photos per class (rows) and split (columns), with totals; those that are not used in columns of their own.

    With folds, the photos of all folds count as train; `fold_counts` has its folds.
    """
    outside = [
        status for status in ("quarantined", corrections.STATUS, "left_out") if (manifest["status"] == status).any()
    ]
    where = manifest["split"].mask(manifest["status"].isin(outside), manifest["status"])
    return _count(manifest["label"], where, [*SPLITS, *outside])


def fold_counts(manifest: pd.DataFrame, repeat: int = 1) -> pd.DataFrame:
    """Photos per class (rows) and fold (columns 1, 2 …) of one repeat, with totals."""
    pool = manifest[manifest["fold"] != ""]
    numbers = pd.Series(_numbers(pool["fold"], repeat), pool.index)
    return _count(pool["label"], numbers, range(1, numbers.max() + 1))


def _count(labels: pd.Series, where: pd.Series, order: Iterable) -> pd.DataFrame:
    table = pd.crosstab(labels, where).reindex(columns=list(order), fill_value=0)
    table.loc["all"] = table.sum()
    return table.rename_axis(index="label", columns=None)


def leaks(manifest: pd.DataFrame) -> pd.DataFrame:
    """Groups, identical files (sha256) and photos (under several boxes) on more than one side; empty when clean.

    With folds, the folds of each repeat are sides too. Columns: kind, value, sides.
    """
    usable = manifest[manifest["split"] != ""]
    kinds = {name: usable[name] for name in ("group", "sha256") if name in usable}
    if usable["path"].str.contains("#xywh=", regex=False).any():
        kinds["photo"] = photo_of(usable["path"])
    divided_keys = {}
    for sides in _sides(usable):
        names, side = np.unique(sides.to_numpy(dtype=object), return_inverse=True)
        for kind, keys in kinds.items():
            key, values = pd.factorize(keys.where(keys != "", None))
            pairs = np.unique(key[key >= 0] * len(names) + side[key >= 0])
            divided = np.bincount(pairs // len(names), minlength=1)[pairs // len(names)] > 1
            for value, places in pd.Series(names[pairs[divided] % len(names)]).groupby(
                values[pairs[divided] // len(names)]
            ):
                divided_keys.setdefault((kind, value), " + ".join(places))
    return pd.DataFrame([(*key, place) for key, place in divided_keys.items()], columns=["kind", "value", "sides"])


def _sides(usable: pd.DataFrame) -> list[pd.Series]:
    """The side of each row: its split, or its fold in every repeat."""
    if "fold" not in usable or not (in_folds := usable["fold"] != "").any():
        return [usable["split"]]
    repeats = len(usable.loc[in_folds, "fold"].iloc[0].split())
    numbers = [_numbers(usable["fold"], repeat) for repeat in range(1, repeats + 1)]
    return [usable["split"].mask(in_folds, pd.Series(n, usable.index).map("fold {}".format)) for n in numbers]


def some_of_each(manifest: pd.DataFrame, split: str, count: int) -> pd.DataFrame:
    """`count` opened photos of each class in a split, evenly spaced through its list, for a contact sheet.

    With folds, val is the first one and train the others. Empty where the split has none.
    """
    rows = part(manifest, split)
    rows = rows[rows["status"] == "ok"].sort_values("path")
    chosen = [
        photos.iloc[np.unique(np.linspace(0, len(photos) - 1, count).round().astype(int))]
        for _, photos in rows.groupby("label")
    ]
    return pd.concat(chosen, ignore_index=True) if chosen else rows
