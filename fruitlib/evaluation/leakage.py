"""Leakage: what a split that divides groups would overstate, and whether a test photo is in training as well.

scikit-learn is imported where it is used, so that this module costs nothing to import.
"""

import bisect
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from fruitlib.core import files, machine
from fruitlib.core.errors import InputError
from fruitlib.data import decoding, duplicates, photo_checks, sources, splits
from fruitlib.evaluation import intervals, significance

SIDE, COMPONENTS, FOLDS = 16, 40, 5
MAX_PHOTOS = 3000  # the probe's cost grows with the square; this many take about 4 seconds on one core
FEWEST_GROUPS = 3
MOST_THREADS = 4  # each holds a copy of most of the kernel: 72 MB of 3,000 photos


@dataclass(frozen=True)
class Leakage:
    """Accuracy under a random split and under a group-safe one, shares with 95 % intervals; `points` between them.

    `n` photos in `groups` groups, chosen from `total`. Where there is nothing to compare n and groups are 0, the
    numbers NaN, and `reason` is "one class", "no groups" or "few groups": then `scarcest_class` has
    `fewest_groups`.
    """

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
    total: int = 0
    reason: str = ""
    scarcest_class: str = ""
    fewest_groups: int = 0

    @property
    def measured(self) -> bool:
        """Whether there was something to compare."""
        return self.n > 0


def price_of_leakage(
    pictures: np.ndarray,
    labels: Iterable[str],
    groups: Iterable[str],
    seed: int = 0,
    repeats: int = 5,
    total: int | None = None,
) -> Leakage:
    """What a split that divides groups would overstate: a quick classifier's accuracy under both kinds of split.

    Out-of-fold accuracy under `StratifiedKFold` and under `StratifiedGroupKFold`, 5 folds or as many as the class with
    fewest groups allows, averaged over `repeats` divisions. Intervals speak of new groups: of each accuracy
    `intervals.new_group_interval`, of the paired difference per photo `significance.between_groups`. The price depends
    on the classifier: on 304 fruit photos of 49 varieties this one measures 15 points, small networks lost 10 to 24. It
    was chosen because it did best on unseen varieties with scikit-learn's own settings; classifiers that memorise
    single views (nearest neighbours, random forests) lose 30 to 35.

    Args:
        pictures: uint8 (n, S, S, 3); above 3,000 of them `probe_photos` chooses.
        labels: names of classes (n,).
        groups: a name for each photo, "" where it stands alone.
        seed: of the divisions.
        repeats: how many divisions of each kind.
        total: how many photos these were chosen from; thinned groups make the price smaller.
    """
    labels, groups = np.asarray(labels), list(groups)
    chosen = probe_photos(labels, groups, seed)
    total, labels, units = total or len(labels), labels[chosen], intervals.units([groups[i] for i in chosen])
    groups_of_class = pd.Series(units).groupby(labels).nunique()
    if missing := _nothing_to_compare(labels, units, groups_of_class):
        return missing
    alike, folds = _similarities(_small(pictures, chosen)), int(min(FOLDS, groups_of_class.min()))
    random, safe = (_hit_rates(alike, labels, units, folds, repeats, seed, kind) for kind in ("random", "safe"))
    sizes, numbers = np.bincount(units), {}
    for name, hits in {"random": random, "safe": safe}.items():
        low, high, _ = intervals.new_group_interval(np.bincount(units, hits), sizes)
        numbers |= {name: float(hits.mean()), f"{name}_low": low, f"{name}_high": high}
    points = 100 * (random - safe)
    low, high, _ = significance.between_groups(np.bincount(units, points), sizes)
    numbers |= {"points": float(points.mean()), "points_low": low, "points_high": high}
    return Leakage(len(labels), int(units.max()) + 1, total=total, **numbers)


def probe_photos(labels: np.ndarray, groups: list[str], seed: int = 0, most: int = MAX_PHOTOS) -> np.ndarray:
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


def _nothing_to_compare(labels: np.ndarray, units: np.ndarray, groups_of_class: pd.Series) -> Leakage | None:
    """A result without numbers where the two kinds of split cannot be compared."""
    if len(np.unique(labels)) < 2:
        return Leakage(reason="one class")
    if len(np.unique(units)) == len(units):
        return Leakage(reason="no groups")
    scarcest, fewest = str(groups_of_class.idxmin()), int(groups_of_class.min())
    if fewest < FEWEST_GROUPS:
        return Leakage(reason="few groups", scarcest_class=scarcest, fewest_groups=fewest)
    return None


def _small(pictures: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The chosen pictures averaged down to 16 × 16 pixels, float32 (k, 768) in [0, 1]."""
    small = [Image.fromarray(pictures[i]).resize((SIDE, SIDE), Image.Resampling.BOX) for i in chosen]
    return np.stack([np.asarray(picture, np.float32).ravel() for picture in small]) / 255


def _hit_rates(alike, labels, units, folds: int, repeats: int, seed: int, kind: str) -> np.ndarray:
    """How often each photo is recognised while left out, share (n,) of `repeats` divisions; kind is random or safe."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    divide, parts = StratifiedGroupKFold if kind == "safe" else StratifiedKFold, []
    for number in np.random.SeedSequence([seed, 2]).generate_state(repeats) >> 1:
        division = divide(folds, shuffle=True, random_state=number)
        parts += division.split(alike, labels, units if kind == "safe" else None)
    hits = np.zeros(len(labels))
    with ThreadPoolExecutor(min(MOST_THREADS, machine.usable_cores())) as pool:  # libsvm lets other threads run
        for (_, val), answers in zip(parts, pool.map(lambda part: _probe(alike, labels, *part), parts), strict=True):
            hits[val] += answers == labels[val]
    return hits / repeats


def _similarities(features: np.ndarray) -> np.ndarray:
    """The kernel of `_probe`'s classifier between all photos, float (n, n): computed once for all divisions.

    Gaussian, of whitened principal components, of the width that scikit-learn's SVC takes. The components are those of
    all photos: they know no labels, and both kinds of split have the same. Components of each
    training part alone gave prices of 15.5 points on 304 fruit photos and 25.3 on 2,989 of Fruits-360; these give 15.3
    and 26.5, in less than half of the time.
    """
    from sklearn.decomposition import PCA
    from sklearn.metrics.pairwise import rbf_kernel

    components = PCA(min(COMPONENTS, len(features) - 1), whiten=True, random_state=0)
    with np.errstate(invalid="ignore", divide="ignore"):  # pictures that are all alike vary by 0
        found = np.nan_to_num(components.fit_transform(features))
    spread = found.shape[1] * found.var()
    return rbf_kernel(found, gamma=1 / spread if spread > 0 else 1.0)


def _probe(alike: np.ndarray, labels: np.ndarray, train: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """Class indexes for the `unseen` positions by `SVC` as scikit-learn sets it, fitted at the positions `train`."""
    from sklearn.svm import SVC

    if len(np.unique(labels[train])) < 2:  # groups that hold several classes can leave a fold with one
        return np.full(len(unseen), labels[train[0]])
    fitted = SVC(kernel="precomputed").fit(alike[np.ix_(train, train)], labels[train])
    return fitted.predict(alike[np.ix_(unseen, train)])


# ---------------------------------------------------------------- a sweep's photos as they are on the disk


@dataclass(frozen=True)
class LeakageCheck:
    """What became of the `n` photos of a sweep since they were split, and which are on both sides of the split.

    `unreadable` gives the reason by path; `changed` are paths. `copies` and `look_alikes` are pairs across the split:
    path_a, split_a, path_b, split_b, distance (of 128), the training photo first.
    """

    n: int
    unreadable: dict[str, str]
    changed: list[str]
    copies: list[dict]
    look_alikes: list[dict]

    @property
    def alarming(self) -> bool:
        """Whether a result of this sweep should not be trusted; look-alikes are for a person to look at."""
        return bool(self.unreadable or self.changed or self.copies)


def check_sweep(sweep_dir: Path, progress: Callable[[int, int], None] | None = None) -> LeakageCheck:
    """Read every photo of a sweep's manifest as it is on the disk today, test photos too, and compare the splits.

    Nothing is predicted or chosen, so this is no opening of the test.

    Raises:
        InputError: there is no manifest, or the photos are gone.
    """
    if not (sweep_dir / "manifest.json").is_file():
        raise InputError(f"{files.display_path(sweep_dir)}: no manifest.json; give a sweep's folder, executed/<sweep>")
    record, manifest = splits.load_record(sweep_dir), splits.load_manifest(sweep_dir)
    used = manifest[manifest["status"].isin(splits.USABLE)].reset_index(drop=True)
    unchecked = used.assign(split="", status="", reason="")
    folder, largest = sources.root(record["data"], record.get("photos_dir", "")), decoding.MOST_MEGAPIXELS
    today = photo_checks.check_photos(folder, unchecked, 1, progress, megapixels=largest).assign(split=used["split"])
    bad = today["status"] != "ok"
    unreadable = dict(zip(today["path"][bad], today["reason"][bad], strict=True))
    changed = today["path"][(used["sha256"] != "") & (used["sha256"] != today["sha256"]) & ~bad].tolist()
    pairs = _across_splits(duplicates.pairs(today), today)
    exact, near = (pairs[pairs["kind"] == kind].to_dict("records") for kind in ("exact", "near"))
    return LeakageCheck(len(used), unreadable, changed, exact, near)


def _across_splits(pairs: pd.DataFrame, photos: pd.DataFrame) -> pd.DataFrame:
    """The pairs whose photos are in different splits, train before val before test.

    All photos of a division into folds count as train.
    """
    split = photos.set_index("path")["split"]
    pairs = pairs.assign(split_a=pairs["path_a"].map(split), split_b=pairs["path_b"].map(split))
    rank = {"train": 0, "val": 1, "test": 2}
    swapped = pairs["split_a"].map(rank) > pairs["split_b"].map(rank)
    for name in ("path", "split"):
        one, other = f"{name}_a", f"{name}_b"
        pairs.loc[swapped, [one, other]] = pairs.loc[swapped, [other, one]].to_numpy()
    return pairs[pairs["split_a"] != pairs["split_b"]]
