"""Dividing labelled rows: subset, train, val, test and folds; stratified, seeded, whole units, no files.

A unit is what stays together: a group, also one that spans classes, the boxes of one photo, or a photo alone.
"""

import zlib

import numpy as np
import pandas as pd

from fruitlib import sources
from fruitlib.runtime import InputError

SIDES = ("train", "test", "val")  # what a unit's side 0, 1, 2 means: the test is served first
EXACT = 200_000  # steps that may go into meeting both counts of a class at once: a tenth of a second
LONG = 20_000_000  # steps, of vectors, that may go into meeting one count
MANY = 20  # classes named one by one in a note
TRIES = 20  # random orders tried where groups span classes


def subset(rows: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """The rows with a column `status`: "ok", or "left_out" (and split "") beyond the share that is to be used.

    Of every class, and of each predefined part of it, units (whole groups) are taken in random order up to the
    number of photos closest to the share, at least one unit; a group spanning classes counts where most of it is.
    """
    if share == 1:
        return rows.assign(status="ok")
    ordered = _by_path(rows)
    stratum = pd.factorize(ordered["split"] + "/" + ordered["label"], sort=True)[0]
    unit = _units(ordered)
    units, strata, photos = _pairs(unit, stratum)
    at_home = np.lexsort((-photos, units))[np.unique(units, return_index=True)[1]]
    home, size = strata[at_home], np.bincount(units, photos)
    shuffled = np.random.default_rng([seed, zlib.crc32(b"subset")]).permutation(len(home))
    order = shuffled[np.argsort(home[shuffled], kind="stable")]
    queue = pd.Series(size[order])
    middle = queue.groupby(home[order]).cumsum() - queue / 2
    kept = np.zeros(len(home), bool)
    kept[order] = middle <= share * np.bincount(home, size, strata.max() + 1)[home[order]]
    rank = np.argsort(shuffled)
    for lacking in np.setdiff1d(strata, strata[kept[units]]):  # as a class that only groups homed elsewhere hold
        mine = units[strata == lacking]
        kept[mine[rank[mine].argmin()]] = True
    used = pd.Series(kept[unit], ordered.index).reindex(rows.index)
    return rows.assign(status=np.where(used, "ok", "left_out"), split=rows["split"].where(used, ""))


def assign(rows: pd.DataFrame, val_per_class: float, test_per_class: float, seed: int) -> tuple[pd.Series, list[str]]:
    """A split for every row: a number or share of each class for validation and test, the rest for training.

    A unit (a group, or a photo that stands alone) falls on one side as a whole, also a group that spans classes;
    where that makes an exact number impossible, more is taken and a note says so. A predefined split is kept, and
    its groups draw their rows without one along.

    Counts are met whenever whole units of one class allow, if units x (test + 1) x (val + 1) is at most `EXACT` in
    that class; beyond it, test and then val are met as closely as a search among at least 400 units finds. Groups
    spanning classes are drawn first, each with the share of its photos that a side is to have, where it fits, in up
    to `TRIES` random orders; what they leave is filled up, and where a class is still short, the group is added that
    overshoots least.

    Raises:
        InputError: too few units of a class to keep the sides apart.
    """
    ordered = _by_path(rows)
    splits, unit = ordered["split"].copy(), _units(ordered)
    held = splits.isin(["val", "test"]).to_numpy()
    drawn_along = pd.Series(splits[held].to_numpy(), unit[held]).groupby(level=0).first().reindex(unit).to_numpy()
    splits = splits.mask((splits == "").to_numpy() & pd.notna(drawn_along), drawn_along)
    pool = splits.isin(["", "train"]).to_numpy()
    names, label = np.unique(ordered["label"][pool].to_numpy(dtype=object), return_inverse=True)
    pairs = _pairs(np.unique(unit[pool], return_inverse=True)[1], label)
    total = np.bincount(label).astype(int)
    per_class = {"test": test_per_class, "val": val_per_class}
    given = set(splits)
    wanted = np.array([wanted_photos(0 if s in given else count, total) for s, count in per_class.items()])
    side = _place(pairs, wanted, names, seed)
    splits[pool] = np.array(SIDES, dtype=object)[side[np.unique(unit[pool], return_inverse=True)[1]]]
    return splits.reindex(rows.index), _unmet(pairs, side, wanted, names, per_class)


def _place(pairs, wanted: np.ndarray, names: np.ndarray, seed: int) -> np.ndarray:
    """The side of each unit (0 train, 1 test, 2 val) for (2, C) wanted photos of test and val; see `assign`."""
    units, classes, photos = pairs
    mixed = np.bincount(units)[units] > 1
    found = []
    for attempt in range(TRIES if mixed.any() and units.max() < 10_000 else 1):
        side = _attempt(pairs, mixed, wanted, names, [seed, attempt])
        has = np.array([np.bincount(classes, photos * (side[units] == s), len(names)) for s in range(3)])
        lack = (has[1:] < wanted).any(0) | (has[0] == 0)
        found.append((lack.sum(), (has[1:] - wanted).sum(), attempt, side))
        if not lack.any() and (has[1:] == wanted).all():
            break
    *_, side = min(found, key=lambda one: one[:3])
    has = np.array([np.bincount(classes, photos * (side[units] == s), len(names)) for s in range(3)])
    for c in np.flatnonzero((has[1:] < wanted).any(0) | (has[0] == 0)):
        apart = " and ".join(split for s, split in enumerate(SIDES[1:]) if wanted[s, c]) + " apart from train"
        raise InputError(
            f"class {names[c]} has {_groups((classes == c).sum())}, too few to keep {apart}: "
            "add groups or put the photos straight into the class folder"
        )
    return side


def _attempt(pairs, mixed: np.ndarray, wanted: np.ndarray, names: np.ndarray, seeds: list[int]) -> np.ndarray:
    """One placing of all units: groups spanning classes drawn, single-class units filling up, groups for the rest."""
    units, classes, photos = pairs
    side, left = np.zeros(units.max() + 1, np.int8), wanted.copy()
    spanning, rng = tuple(part[mixed] for part in pairs), np.random.default_rng(seeds)
    alone = np.bincount(classes[~mixed], photos[~mixed], len(names)).astype(int)
    if mixed.any():
        _draw(spanning, side, left, np.bincount(classes, photos), rng)
        _top_up(spanning, side, left, np.array([alone, np.maximum(alone - np.maximum(left[0], 0), 0)]), alone, rng)
    in_train = np.bincount(classes, photos * (mixed & (side[units] == 0)), len(names))
    by_class = np.flatnonzero(~mixed)[np.argsort(classes[~mixed], kind="stable")]
    for mine in np.split(by_class, np.flatnonzero(np.diff(classes[by_class])) + 1):
        for c in classes[mine[:1]]:
            own = np.random.default_rng([*seeds, zlib.crc32(str(names[c]).encode())])
            mine = own.permutation(mine)
            side[units[mine]] = found = _fill(photos[mine], *np.maximum(left[:, c], 0).tolist(), in_train[c] > 0)
            left[:, c] -= [photos[mine][found == s].sum() for s in (1, 2)]
            alone[c] = photos[mine][found == 0].sum()
    if mixed.any():
        _top_up(spanning, side, left, np.zeros_like(left), alone, rng)
    return side


def _draw(spanning, side: np.ndarray, left: np.ndarray, total: np.ndarray, rng) -> None:
    """Offer groups that span classes to test or val at random, as often as these are to have of their photos."""
    units, classes, photos = spanning
    share = np.array([np.bincount(units, photos * (left[s] / total)[classes]) for s in (0, 1)])
    share = share / np.maximum(np.bincount(units, photos), 1)
    luck, order = rng.random(len(share[0])), rng.permutation(np.unique(units))
    start, end = np.searchsorted(units, order), np.searchsorted(units, order, "right")
    drawn = np.where(luck < share[0], 1, np.where(luck < share.sum(0), 2, 0))[order]
    for i in np.flatnonzero(drawn):
        held, s = classes[start[i] : end[i]], drawn[i]
        if (photos[start[i] : end[i]] <= left[s - 1, held]).all():
            side[order[i]] = s
            left[s - 1, held] -= photos[start[i] : end[i]]


def _top_up(spanning, side: np.ndarray, left: np.ndarray, enough: np.ndarray, alone: np.ndarray, rng) -> None:
    """While a side lacks more of a class than is `enough` elsewhere, move there the group that overshoots least.

    No class is taken out of train: `alone` are its photos there outside these groups.
    """
    units, classes, photos = spanning
    rank = rng.permutation(len(side))
    for s in (0, 1):
        while (short := left[s] > enough[s]).any():
            here = side[units] == 0
            train = alone + np.bincount(classes[here], photos[here], len(alone))
            last = np.bincount(units, here & (photos >= train[classes]), len(side)) > 0
            helps = np.bincount(units, here & short[classes], len(side)) > 0
            over = np.bincount(units, np.maximum(photos - np.maximum(left[s], 0)[classes], 0), len(side))
            candidates = np.flatnonzero(helps & ~last)
            if not len(candidates):
                break
            chosen = candidates[np.lexsort((rank[candidates], over[candidates]))[0]]
            side[chosen] = s + 1
            left[s, classes[units == chosen]] -= photos[units == chosen]


def _fill(sizes: np.ndarray, test: int, val: int, spare: bool) -> np.ndarray:
    """The sides of one class's units (their photos, in random order), so that test and val get what they lack.

    `spare`: train has the class from elsewhere, so that all units may go.
    """
    side, lack = _first_fit(sizes, test, val)
    if not any(lack):
        return side
    if min(len(sizes) * (test + 1) * (val + 1), 3.0 ** min(len(sizes), 99)) <= EXACT:
        return _both(sizes, test, val, spare)
    side = np.zeros(len(sizes), np.int8)
    for s, count in ((1, test), (2, val)):
        free = np.flatnonzero(side == 0)
        side[free[_one(sizes[free], count, spare)]] = s
    return side


def _first_fit(sizes: np.ndarray, test: int, val: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Units in their order, each to test, else to val, where it fits; how many photos either then lacks."""
    side, sizes = np.zeros(len(sizes), np.int8), sizes.tolist()
    for i, size in enumerate(sizes):
        if size <= test:
            side[i], test = 1, test - size
        elif size <= val:
            side[i], val = 2, val - size
    return side, (test, val)


def _both(sizes: np.ndarray, test: int, val: int, spare: bool) -> np.ndarray:
    """Sides with the least overshoot over both counts together: a subset sum in two dimensions.

    Of each pair of photos in test and val, counted up to what is wanted, the least overshoot seen so far is kept,
    with the chain of choices that led there.
    """
    best = {(0, 0): (0, None)}
    for i, size in enumerate(sizes.tolist()):
        if best.get((test, val), (1,))[0] == 0:
            break
        for (a, b), (over, chain) in list(best.items()):
            for s, now, want in ((1, a, test), (2, b, val)):
                if now < want:
                    key = (min(now + size, want), b) if s == 1 else (a, min(now + size, want))
                    beyond = over + max(now + size - want, 0)
                    if key not in best or beyond < best[key][0]:
                        best[key] = (beyond, (chain, i, s))
    allowed = sizes.sum() - (not spare)
    ends = [(a + b, -over, chain) for (a, b), (over, chain) in best.items() if a + b + over <= allowed]
    chain = max(ends, key=lambda end: end[:2])[2] if ends else None
    side = np.zeros(len(sizes), np.int8)
    while chain:
        chain, i, s = chain
        side[i] = s
    return side


def _one(sizes: np.ndarray, count: int, spare: bool) -> np.ndarray:
    """The units (positions) that sum to `count`, or to the least above it: a subset sum.

    Where that would take more than `LONG` steps, units are taken as they come until about twenty of them are wanting,
    and the sum is searched for among 400 of the others.
    """
    taken, rest = np.array([], int), np.arange(len(sizes))
    if len(sizes) * count > LONG:
        side, _ = _first_fit(sizes, max(count - 20 * int(np.median(sizes) + 1), 0), 0)
        taken, rest = np.flatnonzero(side), np.flatnonzero(side == 0)
        count, spare = count - sizes[taken].sum(), spare or len(rest) > 400
        rest = np.union1d(rest[:200], rest[np.argsort(sizes[rest], kind="stable")[:200]])
    if not len(rest):
        return taken
    pool = sizes[rest]
    first = np.full(count + pool.max(), -1)  # by which unit a sum was reached first
    sums = np.zeros(1, int)
    for i, size in enumerate(pool):
        fresh = sums[sums < count] + size
        fresh = fresh[first[fresh] < 0]
        first[fresh], sums = i, np.append(sums, fresh)
        if count == 0 or first[count] >= 0:
            break
    sums = sums[sums <= pool.sum() - (not spare)]
    total = sums[sums >= count].min(initial=first.size)
    total, chosen = total if total < first.size else sums.max(initial=0), []
    while total:
        chosen.append(first[total])
        total -= pool[chosen[-1]]
    return np.concatenate([taken, rest[np.array(chosen, int)]])


def _groups(count: int) -> str:
    return "1 group" if count == 1 else f"{count} groups"


def _unmet(pairs, side: np.ndarray, wanted: np.ndarray, names: np.ndarray, per_class: dict) -> list[str]:
    """What the split could not meet, and where judging rests on few groups, a sentence each."""
    units, classes, photos = pairs
    notes = []
    for s, split in enumerate(SIDES[1:]):
        on_it = side[units] == s + 1
        got, groups = np.bincount(classes, photos * on_it).astype(int), np.bincount(classes, on_it).astype(int)
        others = [
            f"{names[c]}: {got[c]} {split} photos, not {wanted[s, c]}, since groups are never divided"
            for c in np.flatnonzero(got != wanted[s])
        ]
        few = []
        for c in np.flatnonzero((groups > 0) & (groups < 5) & (got >= 5 * groups)):
            count = "one" if groups[c] == 1 else groups[c]
            advice = f"a share such as {split}_per_class: 0.2 takes several"
            advice = advice if per_class[split] >= 1 else "more groups would judge better"
            held = f"{names[c]}: the {got[c]} {split} photos are {_groups(groups[c])}"
            few.append(f"{held}, so they count for little more than {count}: {advice}")
        for said in (others, few):
            more = [f"and so for {len(said) - MANY:,} other classes in {split}"] if len(said) > MANY else []
            notes += said[:MANY] + more
    return notes


def deal(pool: pd.DataFrame, folds: int, repeats: int, seed: int) -> tuple[pd.Series, list[str]]:
    """Each row's fold in every repeat ("3 1" for two repeats), of about equal size and equal in classes.

    Photos that stand alone are dealt by scikit-learn's StratifiedKFold. Groups are dealt whole, larger ones first
    (by powers of two, in random order among like), each to the fold that has least of its classes. scikit-learn's
    StratifiedGroupKFold goes strictly by size, so that every repeat comes out the same where sizes differ, and it
    takes ten seconds for 100,000 groups.

    Raises:
        InputError: a class of fewer units (groups, or photos that stand alone) than folds.
    """
    ordered = _by_path(pool)
    names, label = np.unique(ordered["label"].to_numpy(dtype=object), return_inverse=True)
    unit = _units(ordered)
    pairs = _pairs(unit, label)
    there = np.bincount(pairs[1])
    if there.min() < folds:
        c = there.argmin()
        raise InputError(
            f"class {names[c]} has {_groups(there[c])}, fewer than folds {folds}: lower folds or add groups"
        )
    dealt, notes = [], []
    for repeat in range(1, repeats + 1):
        fold = _deal_once(unit, label, pairs, folds, [seed, repeat], names)
        sizes = np.bincount(fold)
        if sizes.max() > 1.05 * sizes.min() and sizes.max() - sizes.min() > len(names):
            notes.append((sizes.max() / sizes.min(), sizes.max(), sizes.min()))
        dealt.append(np.arange(folds + 1).astype(str).astype(object)[fold + 1])
    text = dealt[0] if repeats == 1 else np.array([" ".join(row) for row in zip(*dealt, strict=True)], dtype=object)
    said = [
        f"folds differ in size: the largest holds {big:,}, the smallest {small:,} photos, as groups are never divided"
        for _, big, small in sorted(notes)[-1:]
    ]
    return pd.Series(text, ordered.index, dtype=str).reindex(pool.index), said


def _deal_once(unit, label, pairs, folds: int, seeds: list[int], names: np.ndarray) -> np.ndarray:
    """The fold (from 0) of every row; drawn anew, up to `TRIES` times, while a fold lacks a class."""
    from sklearn.model_selection import StratifiedKFold

    for attempt in range(TRIES):
        state = np.random.SeedSequence([*seeds, attempt])
        if pairs[0].max() + 1 == len(unit):
            parts = StratifiedKFold(folds, shuffle=True, random_state=int(state.generate_state(1)[0]))
            fold = np.zeros(len(unit), int)
            for number, (_, part) in enumerate(parts.split(unit, label)):
                fold[part] = number
        else:
            fold = _deal_groups(pairs, folds, np.random.default_rng(state))[unit]
        held = np.bincount(fold * len(names) + label, minlength=folds * len(names)).reshape(folds, len(names))
        if held.all():
            return fold
    lacking = names[(held == 0).any(0).argmax()]
    raise InputError(f"folds {folds}: in {TRIES} draws a fold held no {lacking}: lower folds or add groups of it")


def _deal_groups(pairs, folds: int, rng: np.random.Generator) -> np.ndarray:
    """The fold (from 0) of every unit."""
    units, classes, photos = pairs
    starts = np.searchsorted(units, np.arange(units.max() + 2)).tolist()
    order = np.lexsort((rng.permutation(len(starts) - 1), -np.floor(np.log2(np.bincount(units, photos)))))
    weight = (photos / np.bincount(classes, photos)[classes] ** 2).tolist()
    held, total = [[0] * folds for _ in range(classes.max() + 1)], [0] * folds
    fold, classes, photos = np.zeros(len(order), int), classes.tolist(), photos.tolist()
    for unit in order.tolist():
        span = range(starts[unit], starts[unit + 1])
        if len(span) == 1:
            cost = held[classes[span[0]]]
        else:
            cost = [sum(weight[p] * held[classes[p]][f] for p in span) for f in range(folds)]
        least = min(cost)
        fold[unit] = chosen = min((total[f], f) for f in range(folds) if cost[f] == least)[1]
        for p in span:
            held[classes[p]][chosen] += photos[p]
            total[chosen] += photos[p]
    return fold


def wanted_photos(per_class: float, photos: np.ndarray) -> np.ndarray:
    """Photos wanted of each class: the number itself, or below 1 that share of the class, at least one."""
    if per_class == 0 or per_class >= 1:
        return np.full(len(photos), int(per_class))
    return np.maximum(1, np.floor(per_class * photos + 0.5).astype(int))


def _by_path(rows: pd.DataFrame) -> pd.DataFrame:
    return rows if rows["path"].is_monotonic_increasing else rows.sort_values("path")


def photo_of(paths: pd.Series) -> pd.Series:
    """The paths of the photos, without boxes."""
    return paths.str.replace(sources.FRAGMENT, "", regex=True)


def _units(rows: pd.DataFrame) -> np.ndarray:
    """A number for each row (sorted by path), the same for rows that stay together: a group, the boxes of a photo."""
    unit = np.arange(len(rows))
    bonds = [pd.factorize(rows["group"].where(rows["group"] != "", None))[0]]
    if rows["path"].str.contains("#xywh=", regex=False).any():
        bonds.append(pd.factorize(photo_of(rows["path"]))[0])
    before = None
    while before is None or (before != unit).any():  # groups may be chained through the boxes of one photo
        before = unit.copy()
        for bond in bonds:
            held = bond >= 0
            first = np.full(bond.max(initial=-1) + 1, len(rows))
            np.minimum.at(first, bond[held], unit[held])
            unit[held] = first[bond[held]]
    return np.unique(unit, return_inverse=True)[1]


def _pairs(unit: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(unit, class, photos) wherever a unit holds photos of a class, sorted by unit."""
    classes = label.max() + 1
    found, photos = np.unique(unit * classes + label, return_counts=True)
    return found // classes, found % classes, photos
