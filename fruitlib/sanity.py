"""An alarm on demand: are photos that judge among those that taught, and are the photos still those that were divided?

The other check, that nothing is learnt from shuffled labels, is a sweep of its own: params/sanity.yaml.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fruitlib.core import files
from fruitlib.core.errors import InputError
from fruitlib.data import duplicates, photo_checks, sources, splits

SHOWN = 10  # photos or pairs named, at most
WORDS = {
    "exact": "{path_b} ({split_b}) is found in {split_a}: {path_a}, the same file",
    "near": "{path_b} ({split_b}) looks like {path_a} ({split_a}), distance {distance} of 128",
}


@dataclass(frozen=True)
class Checked:
    """What was found: `alarms` are reasons not to trust a result, `notes` are to be looked at; n photos were read."""

    n: int
    alarms: list[str]
    notes: list[str]


def check(sweep_dir: Path, progress: Callable[[int, int], None] | None = None) -> Checked:
    """Read every photo of a sweep's manifest as it lies on the disk today, test photos too, and compare the sides.

    No label is looked at but for its name, so this is no opening of the test: nothing is chosen by it.

    Raises:
        InputError: there is no manifest, or the photos are gone.
    """
    if not (sweep_dir / "manifest.json").is_file():
        raise InputError(f"{files.display_path(sweep_dir)}: no manifest.json; give a sweep's folder, executed/<sweep>")
    record, manifest = splits.record(sweep_dir), splits.read(sweep_dir)
    used = manifest[manifest["status"].isin(splits.USABLE)].reset_index(drop=True)
    found = photo_checks.check(sources.root(record["data"]), used.assign(split="", status="", reason=""), 1, progress)
    found = found.assign(split=used["split"])
    pairs = _across(duplicates.pairs(found), found).to_dict("records")
    said = {kind: [words.format(**pair) for pair in pairs if pair["kind"] == kind] for kind, words in WORDS.items()}
    return Checked(len(used), [*_changed(used, found), *_shown(said["exact"])], _shown(said["near"]))


def _changed(used: pd.DataFrame, found: pd.DataFrame) -> list[str]:
    """Photos that do not open, or are no longer what was divided."""
    bad = found["status"] != "ok"
    gone = [f"{path}: {reason}" for path, reason in zip(found["path"][bad], found["reason"][bad], strict=True)]
    other = (used["sha256"] != "") & (used["sha256"] != found["sha256"]) & ~bad
    changed = [f"{path}: another picture than the one that was divided" for path in found["path"][other]]
    return _shown(gone) + _shown(changed)


def _across(pairs: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """The pairs whose photos stand on two sides, the one that teaches first; a fold's photos all teach and judge."""
    side = found.set_index("path")["split"]
    pairs = pairs.assign(split_a=pairs["path_a"].map(side), split_b=pairs["path_b"].map(side))
    rank = {"train": 0, "val": 1, "test": 2}
    swapped = pairs["split_a"].map(rank) > pairs["split_b"].map(rank)
    for name in ("path", "split"):
        one, other = f"{name}_a", f"{name}_b"
        pairs.loc[swapped, [one, other]] = pairs.loc[swapped, [other, one]].to_numpy()
    return pairs[pairs["split_a"] != pairs["split_b"]]


def _shown(said: list[str]) -> list[str]:
    more = len(said) - SHOWN
    return said[:SHOWN] + ([f"and {more} more of these"] if more > 0 else [])
