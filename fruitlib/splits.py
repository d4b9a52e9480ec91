"""Which photos may teach and which may judge: the manifest, stratified, seeded, groups never divided."""

import json
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from fruitlib import intake, runtime
from fruitlib.config import SPLIT_KNOBS, Config
from fruitlib.runtime import InputError

SPLITS = ("train", "val", "test")


def prepare(config: Config, sweep_dir: Path, progress: Callable[[int, int], None] | None = None) -> pd.DataFrame:
    """The sweep's manifest: read where it fits the data and the knobs, made and written where not.

    Beside `manifest.csv` stands `manifest.json`: its identity, and in words what could not be met. Nothing is written
    unless all photos and classes allow the split.

    Raises:
        InputError: no photos, a photo that does not open (`bad_photos: stop`), a class too small for the split.
    """
    folder = intake.ready(config.data, progress)
    rows, passed_over = intake.scan(folder)
    knobs = config.model_dump(include=set(SPLIT_KNOBS))
    files = _stamps(folder, rows["path"])
    identity = runtime.fingerprint(knobs, files, Path(__file__), Path(intake.__file__))
    made = all((sweep_dir / f"manifest.{kind}").is_file() for kind in ("json", "csv"))
    if made and record(sweep_dir)["identity"] == identity:
        return read(sweep_dir)
    manifest, notes = build(folder, rows, config, progress)
    if passed_over:
        notes.append(f"{passed_over} files that are hidden or no photos were passed over")
    with runtime.replacing(sweep_dir / "manifest.csv") as partial:
        manifest.to_csv(partial, index=False)
    facts = {"identity": identity, "data": config.data, "notes": notes}
    runtime.write_json(sweep_dir / "manifest.json", facts | {"class_names": sorted(set(manifest["label"]))})
    return manifest


def build(folder: Path, rows: pd.DataFrame, config: Config, progress=None) -> tuple[pd.DataFrame, list[str]]:
    """Check the photos and assign each its split; returns the manifest and what could not be met, in words."""
    _check_sizes(rows, config)  # before minutes of decoding
    manifest = intake.check(folder, rows, progress)
    bad = manifest[manifest["status"] == "quarantined"]
    if len(bad) and config.bad_photos == "stop":
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        reason = f"{folder / bad['path'].iloc[0]}: {bad['reason'].iloc[0]}{more}"
        raise InputError(f"{reason}: repair or remove it, or set bad_photos: quarantine to go on without")
    usable = manifest[manifest["status"] != "quarantined"]
    _check_sizes(usable, config)
    splits, notes = assign(usable, config.val_per_class, config.test_per_class, config.split_seed)
    if len(bad):
        notes.append(f"{len(bad)} photos do not open and are quarantined")
    return manifest.assign(split=splits.reindex(manifest.index, fill_value="")), notes


def _check_sizes(rows: pd.DataFrame, config: Config) -> None:
    predefined = set(rows["split"]) - {""}
    wanted = 1 + config.val_per_class * ("val" not in predefined) + config.test_per_class * ("test" not in predefined)
    for label, photos in rows[rows["split"].isin(["", "train"])].groupby("label"):
        if len(photos) < wanted:
            raise InputError(
                f"class {label} has {len(photos)} photos, at least {wanted} are needed for val_per_class "
                f"{config.val_per_class} and test_per_class {config.test_per_class}: add photos or lower these knobs"
            )


def assign(rows: pd.DataFrame, val_per_class: int, test_per_class: int, seed: int) -> tuple[pd.Series, list[str]]:
    """A split for every row, class by class: a fixed number each for validation and test, the rest for training.

    A group (or a photo that stands alone) falls on one side as a whole; where that makes an exact number
    impossible, the smallest sufficient number is taken and a note says so. A predefined split is kept.
    """
    splits, notes = rows["split"].copy(), []
    predefined = set(splits) - {""}
    wanted = {"test": test_per_class, "val": val_per_class}
    for label, photos in rows[rows["split"].isin(["", "train"])].groupby("label"):
        units = photos["group"].where(photos["group"] != "", photos["path"])
        rng = np.random.default_rng([seed, zlib.crc32(label.encode())])
        remaining = rng.permutation(np.array(sorted(set(units)), dtype=object)).tolist()
        sizes = units.value_counts()
        splits[photos.index] = "train"
        for split in [name for name in wanted if name not in predefined]:
            chosen = _take([(unit, int(sizes[unit])) for unit in remaining], wanted[split])
            if len(chosen) >= len(remaining):
                raise InputError(
                    f"class {label} has {len(sizes)} groups, too few to keep {split} apart from train: "
                    "add groups or put the photos straight into the class folder"
                )
            remaining = [unit for unit in remaining if unit not in chosen]
            splits[units.index[units.isin(chosen)]] = split
            if (got := int(sizes[list(chosen)].sum())) != wanted[split]:
                notes.append(f"{label}: {got} {split} photos, not {wanted[split]}, since groups are never divided")
    return splits, notes


def _take(units: list[tuple[str, int]], count: int) -> set[str]:
    """Units whose sizes sum to `count`, or to the least above it that whole units allow (subset sum)."""
    reached: dict[int, tuple[int, str]] = {0: (0, "")}  # a sum -> the sum before it, and the unit added to that
    for unit, size in units:
        for total in [t for t in reached if t < count]:
            reached.setdefault(total + size, (total, unit))
        if count in reached:
            break
    total, chosen = min((t for t in reached if t >= count), default=0), set()
    while total:
        total, unit = reached[total]
        chosen.add(unit)
    return chosen or {unit for unit, _ in units}


def fingerprint(manifest: pd.DataFrame) -> str:
    """Changes when a photo, a label or the split does; what training depends on."""
    return runtime.fingerprint(manifest[["path", "label", "split", "status", "sha256"]].values.tolist())


def sealed_files(config: Config, manifest: pd.DataFrame) -> list[tuple]:
    """(path, bytes, time of change) of sealed photos: all that can be known of them without opening them."""
    return _stamps(intake.root(config.data), manifest.loc[manifest["status"] == "sealed", "path"])


def _stamps(folder: Path, paths: Iterable[str]) -> list[tuple]:
    """(path, bytes, time of change) of each file; the path alone where there is none (a broken link)."""
    files = [(path, folder / path) for path in paths]
    return [(path, f.stat().st_size, f.stat().st_mtime_ns) if f.is_file() else (path,) for path, f in files]


def read(sweep_dir: Path) -> pd.DataFrame:
    """The manifest of a sweep folder; a row per photo, text columns never NaN."""
    if not (sweep_dir / "manifest.csv").is_file():
        raise InputError(f"{runtime.display_path(sweep_dir)}: no manifest.csv; execute 01_split first")
    return pd.read_csv(sweep_dir / "manifest.csv", dtype={"label": str, "sha256": str}, keep_default_na=False)


def record(sweep_dir: Path) -> dict:
    """What stands beside the manifest: identity, data, class_names, notes."""
    return json.loads((sweep_dir / "manifest.json").read_text(encoding="utf-8"))


def counts(manifest: pd.DataFrame) -> pd.DataFrame:
    """Photos per class (rows) and split (columns), with totals; quarantined ones in a column of their own."""
    where = manifest["split"].where(manifest["status"] != "quarantined", "quarantined")
    table = pd.crosstab(manifest["label"], where)
    order = [*SPLITS, "quarantined"] if "quarantined" in table else list(SPLITS)
    table = table.reindex(columns=order, fill_value=0)
    table.loc["all"] = table.sum()
    return table.rename_axis(index="label", columns=None)


def leaks(manifest: pd.DataFrame) -> pd.DataFrame:
    """Groups and identical files (sha256) found on more than one side; empty when the split is clean."""
    usable = manifest[manifest["split"] != ""]
    found = []
    for kind in ("group", "sha256"):
        sides = usable[usable[kind] != ""].groupby(kind)["split"].agg(lambda split: " + ".join(sorted(set(split))))
        found += [(kind, value, side) for value, side in sides.items() if "+" in side]
    return pd.DataFrame(found, columns=["kind", "value", "stands in"])


def some_of_each(manifest: pd.DataFrame, split: str, count: int) -> pd.DataFrame:
    """`count` usable photos of each class in a split, evenly spaced through its list, for a contact sheet."""
    rows = manifest[(manifest["split"] == split) & (manifest["status"] == "ok")]
    chosen = [
        photos.iloc[np.unique(np.linspace(0, len(photos) - 1, count).round().astype(int))]
        for _, photos in rows.sort_values("path").groupby("label")
    ]
    return pd.concat(chosen, ignore_index=True)
