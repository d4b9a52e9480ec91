"""What a person should know before trusting a number: leakage, doubtful labels.

scikit-learn and cleanlab are imported where they are used, so that this module costs nothing to import.
"""

import bisect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from fruitlib.core import files
from fruitlib.core.errors import InputError
from fruitlib.data import duplicates, photo_checks, sources, splits
from fruitlib.evaluation import intervals

PROBE = "an RBF support vector machine on 40 principal components of 16 × 16 pixels"
SIDE, COMPONENTS, FOLDS = 16, 40, 5
MOST_PHOTOS = 3000  # the probe's cost grows with the square; this many take about 10 seconds on one core
FEWEST_GROUPS = 3
DRAWS = 2000  # bootstrap samples


@dataclass(frozen=True)
class Leakage:
    """Accuracy under a random split and under a group-safe one, shares with 95 % intervals; `points` between them.

    `n` photos in `groups` groups; both 0, and the rest NaN, where there is nothing to compare. `said` says it.
    """

    summary: str
    n: int = 0
    groups: int = 0
    random: float = np.nan
    random_low: float = np.nan
    random_high: float = np.nan
    safe: float = np.nan
    safe_low: float = np.nan
    safe_high: float = np.nan
    points: float = np.nan
    points_low: float = np.nan
    points_high: float = np.nan

    @property
    def measured(self) -> bool:
        """Whether there was something to compare."""
        return self.n > 0


def price_of_leakage(
    pictures: np.ndarray,
    labels: Iterable[int],
    groups: Iterable[str],
    seed: int = 0,
    repeats: int = 5,
    total: int | None = None,
) -> Leakage:
    """What a split that divides groups would overstate: a quick classifier's accuracy under both kinds of split.

    Out-of-fold accuracy under `StratifiedKFold` and under `StratifiedGroupKFold`, 5 folds or as many as the class with
    fewest groups allows, averaged over `repeats` divisions. The interval is the 95 % bootstrap over groups of the
    paired difference per photo (Efron 1979; Field and Welsh 2007 for clusters), so it tells what other groups of the
    same kind would give. Another classifier pays another price: on 304 fruit photos of 49 varieties this one finds 15
    points, small networks lost 10 to 24. It was chosen because it did best on unseen varieties with scikit-learn's
    own settings; what memorises single views (nearest neighbours, random forests) pays 30 to 35.

    Args:
        pictures: uint8 (n, S, S, 3); above 3,000 of them `probe_photos` chooses.
        labels: class indexes (n,).
        groups: a name for each photo, "" where it stands alone.
        seed: of the divisions and the bootstrap.
        repeats: how many divisions of each kind.
        total: how many photos these were chosen from, to be told; thinned groups make the price smaller.
    """
    labels, groups = np.asarray(labels), list(groups)
    chosen = probe_photos(labels, groups, seed)
    total, labels, units = total or len(labels), labels[chosen], intervals.units([groups[i] for i in chosen])
    groups_of_class = pd.Series(units).groupby(labels).nunique()
    if reason := _nothing_to_compare(labels, units, groups_of_class):
        return Leakage(summary=reason)
    features, folds = _small(pictures, chosen), int(min(FOLDS, groups_of_class.min()))
    random, safe = (_hit_rates(features, labels, units, folds, repeats, seed, kind) for kind in ("random", "safe"))
    found = {"random": random, "safe": safe, "points": 100 * (random - safe)}
    numbers = {}
    for name, values in found.items():
        low, high = _interval_over_groups(values, units, seed)
        numbers |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
    many = f"n = {len(labels):,}" + (f", thinned from {total:,}" if total > len(labels) else "")
    return Leakage(f"{_say(numbers)}, by {PROBE}, {many}", len(labels), int(units.max()) + 1, **numbers)


def probe_photos(labels: np.ndarray, groups: list[str], seed: int = 0, most: int = MOST_PHOTOS) -> np.ndarray:
    """Positions of the photos that `price_of_leakage` looks at, in order: all of them, or about `most`.

    Large groups are thinned at random first, to no fewer than 5 photos; if that does not do, whole groups are left
    out, at least 5 a class staying; if that does not do, whole classes. Call it before reading very many pictures.
    """
    units, classes = intervals.units(groups), pd.factorize(np.asarray(labels))[0]
    if len(units) <= most:
        return np.arange(len(units))
    order = np.random.default_rng([seed, 1]).permutation(len(units))
    table = pd.DataFrame({"unit": units, "class": classes}).iloc[order]
    sizes = np.bincount(units)
    cap = bisect.bisect_right(range(most + 1), most, key=lambda cap: np.minimum(sizes, cap).sum()) - 1
    table = table[table.groupby("unit").cumcount() < max(cap, FOLDS)]
    homes = table.drop_duplicates("unit")
    share = min(1, most / len(table))
    staying = np.maximum(FOLDS, homes["class"].map(homes["class"].value_counts()) * share)
    table = table[table["unit"].isin(homes["unit"][homes.groupby("class").cumcount() < staying])]
    many = table["class"].value_counts(sort=False).cumsum()
    return np.sort(table.index[table["class"].isin(many.index[(many <= 1.5 * most) | (np.arange(len(many)) < 2)])])


def _nothing_to_compare(labels: np.ndarray, units: np.ndarray, fewest: pd.Series) -> str:
    if len(np.unique(labels)) < 2:
        return "fewer than two classes: nothing to compare"
    if len(np.unique(units)) == len(units):
        return "no groups: nothing to compare, each photo stands alone"
    if fewest.min() < FEWEST_GROUPS:
        few = f"class {fewest.idxmin()} has {fewest.min()} group{'s' * int(fewest.min() > 1)}"
        return f"{few}, too few to teach and judge by turns (at least {FEWEST_GROUPS}): nothing to compare"
    return ""


def _small(pictures: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The chosen pictures averaged down to 16 × 16 pixels, float32 (k, 768) in [0, 1]."""
    small = [Image.fromarray(pictures[i]).resize((SIDE, SIDE), Image.Resampling.BOX) for i in chosen]
    return np.stack([np.asarray(picture, np.float32).ravel() for picture in small]) / 255


def _hit_rates(features, labels, units, folds: int, repeats: int, seed: int, kind: str) -> np.ndarray:
    """How often each photo is recognised while left out, share (n,) of `repeats` divisions; kind is random or safe."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    hits = np.zeros(len(labels))
    for number in np.random.SeedSequence([seed, 2]).generate_state(repeats) >> 1:
        divide = StratifiedGroupKFold if kind == "safe" else StratifiedKFold
        parts = divide(folds, shuffle=True, random_state=number)
        for teach, judge in parts.split(features, labels, units if kind == "safe" else None):
            hits[judge] += _probe(features[teach], labels[teach], features[judge]) == labels[judge]
    return hits / repeats


def _probe(features: np.ndarray, labels: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """Class indexes for unseen features: whitened principal components, then `SVC` as scikit-learn sets it."""
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import SVC

    if len(np.unique(labels)) < 2:  # groups that hold several classes can leave a fold with one
        return np.full(len(unseen), labels[0])
    components = PCA(min(COMPONENTS, len(features) - 1), whiten=True, random_state=0)
    with np.errstate(invalid="ignore", divide="ignore"):  # pictures that are all alike vary by 0
        return make_pipeline(components, SVC()).fit(features, labels).predict(unseen)


def _interval_over_groups(values: np.ndarray, units: np.ndarray, seed: int) -> tuple[float, float]:
    """The ends of a 95 % interval: percentiles of the mean of `values` (n,) when whole groups are drawn anew."""
    rng = np.random.default_rng([seed, 3])
    sums, sizes = np.bincount(units, values), np.bincount(units)
    drawn = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=DRAWS)
    low, high = np.percentile(drawn @ sums / (drawn @ sizes), [2.5, 97.5])
    return float(low), float(high)


def _say(numbers: dict[str, float]) -> str:
    gap = points_text(numbers["points"], numbers["points_low"], numbers["points_high"])
    return f"a random split would claim {numbers['random']:.2f}; the group-safe one finds {numbers['safe']:.2f}: {gap}"


def points_text(points: float, low: float, high: float) -> str:
    """A difference with its interval, and whether it can be told from none: `17 points (…) are leakage`."""
    points, low, high = (round(number) for number in (points, low, high))
    verdict = "is leakage" if points == 1 else "are leakage"
    verdict = (
        verdict if low > 0 else "cannot be told from 0" if high >= 0 else "the other way: too few groups to judge by"
    )
    return f"{points} point{'s' * (points != 1)} (95 % interval {low} to {high}) {verdict}"


SHOWN = 10  # photos or pairs named, at most
WORDS = {
    "exact": "{path_b} ({split_b}) is found in {split_a}: {path_a}, the same file",
    "near": "{path_b} ({split_b}) looks like {path_a} ({split_a}), distance {distance} of 128",
}


@dataclass(frozen=True)
class LeakageCheck:
    """What was found: `alarms` are reasons not to trust a result, `notes` are to be looked at; n photos were read."""

    n: int
    alarms: list[str]
    notes: list[str]


def check_sweep(sweep_dir: Path, progress: Callable[[int, int], None] | None = None) -> LeakageCheck:
    """Read every photo of a sweep's manifest as it lies on the disk today, test photos too, and compare the sides.

    No label is looked at but for its name, so this is no opening of the test: nothing is chosen by it.

    Raises:
        InputError: there is no manifest, or the photos are gone.
    """
    if not (sweep_dir / "manifest.json").is_file():
        raise InputError(f"{files.display_path(sweep_dir)}: no manifest.json; give a sweep's folder, executed/<sweep>")
    record, manifest = splits.load_record(sweep_dir), splits.load_manifest(sweep_dir)
    used = manifest[manifest["status"].isin(splits.USABLE)].reset_index(drop=True)
    found = photo_checks.check_photos(
        sources.root(record["data"]), used.assign(split="", status="", reason=""), 1, progress
    )
    found = found.assign(split=used["split"])
    pairs = _across(duplicates.pairs(found), found).to_dict("records")
    summary = {kind: [words.format(**pair) for pair in pairs if pair["kind"] == kind] for kind, words in WORDS.items()}
    return LeakageCheck(len(used), [*_changed(used, found), *_shown(summary["exact"])], _shown(summary["near"]))


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


def _shown(summary: list[str]) -> list[str]:
    more = len(summary) - SHOWN
    return summary[:SHOWN] + ([f"and {more} more of these"] if more > 0 else [])
