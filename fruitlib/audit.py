"""What a person should know before trusting a number: leakage, doubtful labels.

scikit-learn and cleanlab are imported where they are used, so that this module costs nothing to import.
"""

import bisect
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from PIL import Image

from fruitlib import stats
from fruitlib.core.errors import InputError

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

    said: str
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
    total, labels, units = total or len(labels), labels[chosen], stats.units([groups[i] for i in chosen])
    groups_of_class = pd.Series(units).groupby(labels).nunique()
    if reason := _nothing_to_compare(labels, units, groups_of_class):
        return Leakage(said=reason)
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
    units, classes = stats.units(groups), pd.factorize(np.asarray(labels))[0]
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
    gap = said_points(numbers["points"], numbers["points_low"], numbers["points_high"])
    return f"a random split would claim {numbers['random']:.2f}; the group-safe one finds {numbers['safe']:.2f}: {gap}"


def said_points(points: float, low: float, high: float) -> str:
    """A difference with its interval, and whether it can be told from none: `17 points (…) are leakage`."""
    points, low, high = (round(number) for number in (points, low, high))
    verdict = "is leakage" if points == 1 else "are leakage"
    verdict = (
        verdict if low > 0 else "cannot be told from 0" if high >= 0 else "the other way: too few groups to judge by"
    )
    return f"{points} point{'s' * (points != 1)} (95 % interval {low} to {high}) {verdict}"


def doubtful_labels(predictions: pd.DataFrame, class_names: list[str]) -> pd.DataFrame:
    """Photos whose label is probably wrong, most doubtful first, by confident learning (Northcutt et al. 2021).

    Confident learning counts the photos that a model which has not seen them gives to another class with the
    confidence it usually has in that class; that many photos, those with the least probability of their own label,
    are listed (cleanlab's `low_self_confidence`: in simulation it found more planted errors and accused fewer right
    labels than the other filters). The list is as good as the model. In simulation, one right on 0.94 of the photos
    accused 1 right label in 100, one right on 0.76 ten; a linear model that was right on 0.63 of fruit of unseen
    varieties accused thirty, since it took whole varieties for another class. So someone should look, and `doubted`
    says how far to trust the list; nothing is changed.

    Args:
        predictions: out-of-sample rows with path, label, p_<class>…; several rows of a photo (repeats,
            backends) are averaged.
        class_names: the classes, in any order.

    Returns:
        path, label, suggested (the likelier class), probability (of it), quality (probability of the label as it
        is); empty where no label is in doubt or where fewer than two classes have photos.

    Raises:
        InputError: a column that is missing, a label that is no class, a probability that is not a number.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    photos, probs = _averaged(predictions, class_names)
    given = pd.Categorical(photos["label"], categories=class_names).codes.astype(int)
    present = np.unique(given)
    if len(present) < 2:
        return _doubts(photos[:0], [], [], [])
    shares = probs[:, present] / probs[:, present].sum(1, keepdims=True).clip(1e-12)  # only classes somebody gave
    codes = np.searchsorted(present, given)
    options = {"filter_by": "low_self_confidence", "return_indices_ranked_by": "self_confidence", "n_jobs": 1}
    order = find_label_issues(codes, shares, **options)
    order = order[shares[order].argmax(1) != codes[order]]  # a label that is the likeliest class is in no doubt
    quality = get_label_quality_scores(codes, shares, method="self_confidence")
    suggested = shares[order].argmax(1)
    names = [class_names[present[i]] for i in suggested]
    return _doubts(photos.iloc[order], names, shares[order, suggested], quality[order])


def doubted(doubts: pd.DataFrame, predictions: pd.DataFrame) -> str:
    """How many labels `doubtful_labels` doubts and how good the predictions behind it are, in one line."""
    n, agree = predictions["path"].nunique(), (predictions["label"] == predictions["predicted"]).mean()
    text = f"{len(doubts):,} of {n:,} labels are in doubt, by predictions that agree with {agree:.2f} of the labels"
    return text + ("; so weak a model doubts many right labels: look, and trust your eyes" if agree < 0.9 else "")


def _doubts(photos: pd.DataFrame, suggested, probability, quality) -> pd.DataFrame:
    columns = {"suggested": suggested, "probability": probability, "quality": quality}
    return photos[["path", "label"]].assign(**columns).reset_index(drop=True)


def _averaged(predictions: pd.DataFrame, class_names: list[str]) -> tuple[pd.DataFrame, np.ndarray]:
    """One row a photo: path and label, and probabilities (n, C) averaged over its rows, summing to 1."""
    columns = [f"p_{name}" for name in class_names]
    if missing := [name for name in ("path", "label", *columns) if name not in predictions]:
        raise InputError(f"predictions: no column {missing[0]}; doubtful labels need path, label and p_<class> of all")
    if strangers := set(predictions["label"]) - set(class_names):
        raise InputError(
            f"predictions: label {min(map(str, strangers))} is none of the classes {', '.join(class_names)}"
        )
    table = predictions.groupby(["path", "label"], sort=False)[columns].mean().reset_index()
    probs = table[columns].to_numpy(float)
    if not np.isfinite(probs).all():
        bad = table["path"][~np.isfinite(probs).all(1)].iloc[0]
        raise InputError(f"predictions: {bad} has a probability that is not a number: run that prediction again")
    return table, probs / probs.sum(1, keepdims=True).clip(1e-12)
