"""Divides labelled rows into subset, train, val, test and folds: stratified, seeded, units whole; reads no files.

A unit is what stays together: a group, also one that spans classes, the boxes of one photo, or a photo alone.
"""

import zlib

import numpy as np
import pandas as pd

from fruitlib.core.errors import InputError
from fruitlib.data.tables import photo_of

SIDES = ("train", "test", "val")  # the side 0, 1, 2 of a unit; test photos are taken first
EXACT_STEPS = 200_000  # at most so many steps to meet both counts of a class at once: a tenth of a second
LONG_STEPS = 20_000_000  # at most so many steps, vectorised, to meet one count
MOST_NAMED = 20  # at most so many classes are named one by one in the notes
TRIES = 20  # at most so many draws of folds until each holds every class
WAYS = 2_000_000  # up to so many ways to place groups that span classes, times classes, all are tried
ROUNDS = 300  # with more ways, so many times six of the groups are placed again


def subset(rows: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """The rows with a column `status`: "ok", or "left_out" (and split "") beyond the share to use.

    Units of every class (and each predefined part of it) are taken in random order up to the number of photos closest
    to the share, at least one unit. A group that spans classes belongs to the class of most of its photos.
    """
    if share == 1:
        return rows.assign(status="ok")
    ordered = _by_path(rows)
    stratum = pd.factorize(ordered["split"] + "/" + ordered["label"], sort=True)[0]
    units, strata, photos = _pairs(unit := _units(ordered), stratum)
    largest = np.lexsort((-photos, units))[np.unique(units, return_index=True)[1]]
    home, size = strata[largest], np.bincount(units, photos)
    shuffled = np.random.default_rng([seed, zlib.crc32(b"subset")]).permutation(len(home))
    order = shuffled[np.argsort(home[shuffled], kind="stable")]
    queue = pd.Series(size[order])
    middle = queue.groupby(home[order]).cumsum() - queue / 2
    kept = np.zeros(len(home), bool)
    kept[order] = middle <= share * np.bincount(home, size, strata.max() + 1)[home[order]]
    rank = np.argsort(shuffled)
    for lacking in np.setdiff1d(strata, strata[kept[units]]):  # such as a class that is never the largest of a group
        kept[min(units[strata == lacking], key=rank.__getitem__)] = True
    used = pd.Series(kept[unit], ordered.index).reindex(rows.index)
    return rows.assign(status=np.where(used, "ok", "left_out"), split=rows["split"].where(used, ""))


def assign_splits(
    rows: pd.DataFrame, val_per_class: float, test_per_class: float, seed: int
) -> tuple[pd.Series, list[str]]:
    """A split for every row: a number or share of each class for validation and test, the rest for training.

    A unit goes to one side as a whole, also a group that spans classes; where that makes an exact number impossible,
    more photos are taken and a note says so. A predefined split is kept; rows without one follow their group.

    Counts are met whenever whole units of one class allow, if units x (test + 1) x (val + 1) is at most `EXACT_STEPS`
    in that class; beyond it, test and then val are met as closely as a search among 400 units or more can. Groups that
    span classes are drawn first, each side with the probability of its share, where the group fits, and topped up;
    where that takes more photos than wanted, they are placed again so that the excess over all classes is least.

    Raises:
        InputError: too few units of a class to keep the sides apart.
    """
    ordered = _by_path(rows)
    splits, unit = ordered["split"].copy(), _units(ordered)
    held_out = splits.isin(["val", "test"]).to_numpy()
    of_group = pd.Series(splits[held_out].to_numpy(), unit[held_out]).groupby(level=0).first().reindex(unit).to_numpy()
    splits = splits.mask((splits == "").to_numpy() & pd.notna(of_group), of_group)
    pool = splits.isin(["", "train"]).to_numpy()
    names, label = np.unique(ordered["label"][pool].to_numpy(dtype=object), return_inverse=True)
    number = np.unique(unit[pool], return_inverse=True)[1]
    pairs, total = _pairs(number, label), np.bincount(label).astype(int)
    per_class, given = {"test": test_per_class, "val": val_per_class}, set(splits)
    wanted = np.array([wanted_photos(0 if s in given else count, total) for s, count in per_class.items()])
    side = _place(pairs, wanted, names, seed)
    splits[pool] = np.array(SIDES, dtype=object)[side[number]]
    return splits.reindex(rows.index), _unmet_notes(pairs, side, wanted, names, per_class)


def _place(pairs, wanted: np.ndarray, names: np.ndarray, seed: int) -> np.ndarray:
    """The side of each unit (0 train, 1 test, 2 val) for (2, C) wanted photos of test and val; see `assign_splits`."""
    units, classes, photos = pairs
    side, rng, mixed = np.zeros(units.max() + 1, np.int8), np.random.default_rng(seed), np.bincount(units)[units] > 1
    if mixed.any():
        left = _draw_spanning(
            tuple(part[mixed] for part in pairs), side, wanted.copy(), np.bincount(classes, photos), rng
        )
        alone = _counts(pairs, side, len(names), ~mixed)[0]
        _top_up(pairs, mixed, side, wanted, np.array([alone, np.maximum(alone - np.maximum(left[0], 0), 0)]), rng)
    _fill_classes(pairs, mixed, side, wanted, names, seed)
    _top_up(pairs, mixed, side, wanted, np.zeros_like(wanted), rng)
    side = _search_spanning(pairs, mixed, side, wanted, names, seed) if mixed.any() else side
    for c in np.flatnonzero(_excess(pairs, side, wanted)[1]):
        apart = " and ".join(split for s, split in enumerate(SIDES[1:]) if wanted[s, c]) + " apart from train"
        has, advice = _groups_text((classes == c).sum()), "add groups or put the photos straight into the class folder"
        raise InputError(f"class {names[c]} has {has}, too few to keep {apart}: {advice}")
    return side


def _counts(pairs, side: np.ndarray, count: int, chosen=1) -> np.ndarray:
    """(3, C) photos of each class on each side; only of the `chosen` pairs (a mask), where given."""
    units, classes, photos = pairs
    return np.array([np.bincount(classes, photos * chosen * (side[units] == s), count) for s in range(3)]).astype(int)


def _excess(pairs, side: np.ndarray, wanted: np.ndarray) -> tuple[float, np.ndarray]:
    """Photos beyond what is wanted, plus 1e12 for each class short on a side; and which (C,) classes are short."""
    has = _counts(pairs, side, wanted.shape[1])
    short = (has[1:] < wanted).any(0) | (has[0] == 0)
    return (has[1:] - wanted).sum() + 1e12 * short.sum(), short


def _draw_spanning(spanning, side: np.ndarray, left: np.ndarray, total: np.ndarray, rng) -> np.ndarray:
    """Groups that span classes to test or val, at random by the sides' shares; returns (2, C) photos still lacking."""
    units, classes, photos = spanning
    share = np.array([np.bincount(units, photos * (left[s] / total)[classes]) for s in (0, 1)])
    share = share / np.maximum(np.bincount(units, photos), 1)
    luck, order = rng.random(len(share[0])), rng.permutation(np.unique(units))
    drawn = np.where(luck < share[0], 1, np.where(luck < share.sum(0), 2, 0))
    for unit in order[drawn[order] > 0]:
        mine, s = slice(*np.searchsorted(units, [unit, unit + 1])), drawn[unit]
        if (photos[mine] <= left[s - 1, classes[mine]]).all():
            side[unit] = s
            left[s - 1, classes[mine]] -= photos[mine]
    return left


def _top_up(pairs, mixed: np.ndarray, side: np.ndarray, wanted: np.ndarray, enough: np.ndarray, rng) -> None:
    """While a side lacks more than `enough` (2, C), add the spanning group that overshoots least and train can lose."""
    (units, classes, photos), rank = pairs, rng.permutation(len(side))
    for s in (0, 1):
        while ((lack := wanted[s] - (has := _counts(pairs, side, wanted.shape[1]))[s + 1]) > enough[s]).any():
            here = mixed & (side[units] == 0)
            last = np.bincount(units, here & (photos >= has[0, classes]), len(side))
            helps = np.bincount(units, here & (lack > enough[s])[classes], len(side))
            over = np.bincount(units, np.maximum(photos - np.maximum(lack, 0)[classes], 0), len(side))
            candidates = np.flatnonzero((helps > 0) & (last == 0))
            if not len(candidates):
                break
            side[candidates[np.lexsort((rank[candidates], over[candidates]))[0]]] = s + 1


def _fill_classes(pairs, mixed: np.ndarray, side: np.ndarray, wanted: np.ndarray, names: np.ndarray, seed: int) -> None:
    """Place the units of one class, in random order, to supply what the groups that span classes do not."""
    units, classes, photos = pairs
    train, *has = _counts(pairs, side, len(names), mixed)
    left, alone = np.maximum(wanted - has, 0), np.flatnonzero(~mixed)
    alone = alone[np.argsort(classes[alone], kind="stable")]
    for mine in filter(len, np.split(alone, np.flatnonzero(np.diff(classes[alone])) + 1)):
        c = classes[mine[0]]
        mine = np.random.default_rng([seed, zlib.crc32(str(names[c]).encode())]).permutation(mine)
        side[units[mine]] = _class_sides(photos[mine], *left[:, c].tolist(), train[c] > 0)


def _search_spanning(
    pairs, mixed: np.ndarray, side: np.ndarray, wanted: np.ndarray, names: np.ndarray, seed: int
) -> np.ndarray:
    """Sides with the least overshoot over all ways to place the groups that span classes; ties are broken at random.

    Where there are too many ways, six groups at a time are placed again, a large neighbourhood search (Shaw 1998).
    Units of one class supply the rest of each way, best way first, until none can be better or 243 are tried.
    """
    (units, classes, photos), count, best = pairs, len(names), (_excess(pairs, side, wanted)[0], 0, side)
    groups, alone = np.unique(units[mixed]), np.bincount(classes[~mixed], photos[~mixed], count)
    rng, most = np.random.default_rng([seed, zlib.crc32(b"search")]), max(int(np.log(WAYS / count) / np.log(3)), 6)
    rounds, tried, some = (1, 243, len(groups)) if len(groups) <= most else (ROUNDS, 3, 6)
    for _ in range(rounds if best[0] and (rounds == 1 or len(side) <= 10_000) else 0):
        order = groups[
            np.lexsort((rng.random(len(groups)), best[2][groups] == 0))
        ]  # so that half of the six come from train
        free = np.sort(np.append(order[: some // 2], order[some // 2 - some :]))
        mine, held = np.isin(units, free), np.zeros((some, count), int)
        held[np.searchsorted(free, units[mine]), classes[mine]] = photos[mine]
        ways = np.indices((3,) * some, np.int8).reshape(some, -1).T
        fixed = _counts(pairs, best[2], count, mixed & ~mine)
        train, *got = [(ways == s) @ held + fixed[s] for s in range(3)]
        lack, over = (np.maximum(sign * (wanted[:, None] - got), 0) for sign in (1, -1))
        over, rank = over.sum((0, 2)), rng.permutation(len(ways))
        best = (best[0], len(ways) if best[0] else -1, best[2])
        fits = np.flatnonzero((lack.sum(0) + (train == 0) <= alone).all(1))
        for i in fits[np.lexsort((rank[fits], over[fits]))][:tried]:
            if (over[i], rank[i]) > best[:2]:  # units of one class can only add to the overshoot
                break
            side = best[2].copy()
            side[free] = ways[i]
            _fill_classes(pairs, mixed, side, wanted, names, seed)
            best = min(best, (_excess(pairs, side, wanted)[0], rank[i], side), key=lambda one: one[:2])
    return best[2]


def _class_sides(sizes: np.ndarray, test: int, val: int, spare: bool) -> np.ndarray:
    """Sides of one class's units (sizes in random order) for what test and val lack; `spare`: train may get none."""
    side, lack = _first_fit(sizes, test, val)
    if not any(lack):
        return side
    if min(len(sizes) * (test + 1) * (val + 1), 3.0 ** min(len(sizes), 99)) <= EXACT_STEPS:
        return _two_subset_sums(sizes, test, val, spare)
    side = np.zeros(len(sizes), np.int8)
    for s, count in ((1, test), (2, val)):
        free = np.flatnonzero(side == 0)
        side[free[_subset_sum(sizes[free], count, spare)]] = s
    return side


def _first_fit(sizes: np.ndarray, test: int, val: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Each unit in its order goes to test, else to val, where it fits; and how many photos each then lacks."""
    side, sizes = np.zeros(len(sizes), np.int8), sizes.tolist()
    for i, size in enumerate(sizes):
        if size <= test:
            side[i], test = 1, test - size
        elif size <= val:
            side[i], val = 2, val - size
    return side, (test, val)


def _two_subset_sums(sizes: np.ndarray, test: int, val: int, spare: bool) -> np.ndarray:
    """Sides with the least overshoot over both counts together: a subset sum in two dimensions.

    For each pair of counts in test and val, up to what is wanted, the least overshoot and its choices are kept.
    """
    best = {(0, 0): (0, None)}
    for i, size in enumerate(sizes.tolist()):
        if best.get((test, val), (1,))[0] == 0:
            break
        for (a, b), (over, chain) in list(best.items()):
            for s, now, want in ((1, a, test), (2, b, val)):
                key = (min(now + size, want), b) if s == 1 else (a, min(now + size, want))
                beyond = over + max(now + size - want, 0)
                if now < want and (key not in best or beyond < best[key][0]):
                    best[key] = (beyond, (chain, i, s))
    allowed = sizes.sum() - (not spare)
    ends = [(a + b, -over, chain) for (a, b), (over, chain) in best.items() if a + b + over <= allowed]
    chain = max(ends, key=lambda end: end[:2])[2] if ends else None
    side = np.zeros(len(sizes), np.int8)
    while chain:
        chain, i, s = chain
        side[i] = s
    return side


def _subset_sum(sizes: np.ndarray, count: int, spare: bool) -> np.ndarray:
    """The units (positions) that sum to `count`, or to the least above it: a subset sum.

    Where that takes more than `LONG_STEPS` steps, units are taken in order until about twenty are missing, and the sum
    is searched for among 400 of the others.
    """
    taken, rest = np.array([], int), np.arange(len(sizes))
    if len(sizes) * count > LONG_STEPS:
        side, _ = _first_fit(sizes, max(count - 20 * int(np.median(sizes) + 1), 0), 0)
        taken, rest = np.flatnonzero(side), np.flatnonzero(side == 0)
        count, spare = count - sizes[taken].sum(), spare or len(rest) > 400
        rest = np.union1d(rest[:200], rest[np.argsort(sizes[rest], kind="stable")[:200]])
    pool = sizes[rest]
    sums, first = np.zeros(1, int), np.full(count + pool.max(initial=0), -1)  # the unit that first reached each sum
    for i, size in enumerate(pool):
        fresh = sums[sums < count] + size
        fresh = fresh[first[fresh] < 0]
        first[fresh], sums = i, np.append(sums, fresh)
        if count == 0 or first[count] >= 0:
            break
    sums, chosen = sums[sums <= pool.sum() - (not spare)], []
    total = sums[sums >= count].min() if (sums >= count).any() else sums.max(initial=0)
    while total:
        chosen.append(first[total])
        total -= pool[chosen[-1]]
    return np.concatenate([taken, rest[np.array(chosen, int)]])


def _groups_text(count: int) -> str:
    return "1 group" if count == 1 else f"{count} groups"


def _unmet_notes(pairs, side: np.ndarray, wanted: np.ndarray, names: np.ndarray, per_class: dict) -> list[str]:
    """A sentence for each count that could not be met, and for each side of a class that rests on few groups."""
    (units, classes, photos), notes = pairs, []
    for s, split in enumerate(SIDES[1:]):
        on_it = side[units] == s + 1
        got, groups = np.bincount(classes, photos * on_it).astype(int), np.bincount(classes, on_it).astype(int)
        off, few = np.flatnonzero(got != wanted[s]), []
        why = "since groups are never divided"
        others = [f"{names[c]}: {got[c]} {split} photos, not {wanted[s, c]}, {why}" for c in off]
        share = f"a share such as {split}_per_class: 0.2 may take more of them"
        advice = share if per_class[split] >= 1 else "more groups would make the result more reliable"
        for c in np.flatnonzero((groups > 0) & (groups < 5) & (got >= 5 * groups)):
            held = f"{names[c]}: the {got[c]} {split} photos are {_groups_text(groups[c])}"
            count = "one" if groups[c] == 1 else groups[c]
            few.append(f"{held}, so they count for little more than {count}: {advice}")
        for summary in (others, few):
            more = f"and likewise {len(summary) - MOST_NAMED:,} other classes in {split}"
            notes += summary[:MOST_NAMED] + [more] * (len(summary) > MOST_NAMED)
    return notes


def assign_folds(pool: pd.DataFrame, folds: int, repeats: int, seed: int) -> tuple[pd.Series, list[str]]:
    """Each row's fold in every repeat ("3 1" for two repeats), of about equal size and class shares.

    Photos without groups are assigned by scikit-learn's StratifiedKFold. Groups are assigned whole, larger ones first
    (by powers of two, in random order within each), each to the fold that has least of its classes.
    StratifiedGroupKFold goes strictly by size, so that repeats hardly differ, and takes ten seconds for 100,000 groups.

    Raises:
        InputError: a class of fewer units (groups, or photos that stand alone) than folds.
    """
    ordered = _by_path(pool)
    names, label = np.unique(ordered["label"].to_numpy(dtype=object), return_inverse=True)
    pairs = _pairs(unit := _units(ordered), label)
    units_per_class = np.bincount(pairs[1])
    if (least := units_per_class.min()) < folds:
        name = names[units_per_class.argmin()]
        raise InputError(f"class {name} has {_groups_text(least)}, fewer than folds {folds}: lower folds or add groups")
    repeats_text, uneven = [], []
    for repeat in range(1, repeats + 1):
        fold = _folds_of_repeat(unit, label, pairs, folds, [seed, repeat], names)
        big, *_, small = sorted(np.bincount(fold).tolist(), reverse=True)
        if big > 1.05 * small and big - small > len(names):
            uneven.append((big / small, f"the largest holds {big:,}, the smallest {small:,}"))
        repeats_text.append(np.arange(folds + 1).astype(str).astype(object)[fold + 1])
    text = np.array([" ".join(row) for row in zip(*repeats_text, strict=True)], dtype=object)
    notes = [f"folds differ in size: {sizes} photos, as groups are never divided" for _, sizes in sorted(uneven)[-1:]]
    return pd.Series(text, ordered.index, dtype=str).reindex(pool.index), notes


def _folds_of_repeat(unit, label, pairs, folds: int, seeds: list[int], names: np.ndarray) -> np.ndarray:
    """The fold (from 0) of every row; drawn again, up to `TRIES` times, while a fold lacks a class."""
    from sklearn.model_selection import StratifiedKFold

    for attempt in range(TRIES):
        state = np.random.SeedSequence([*seeds, attempt])
        if pairs[0].max() + 1 == len(unit):
            parts = StratifiedKFold(folds, shuffle=True, random_state=int(state.generate_state(1)[0]))
            fold = np.zeros(len(unit), int)
            for number, (_, part) in enumerate(parts.split(unit, label)):
                fold[part] = number
        else:
            fold = _groups_to_folds(pairs, folds, np.random.default_rng(state))[unit]
        held = np.bincount(fold * len(names) + label, minlength=folds * len(names)).reshape(folds, len(names))
        if held.all():
            return fold
    lacking = names[(held == 0).any(0).argmax()]
    raise InputError(f"folds {folds}: in {TRIES} draws a fold held no {lacking}: lower folds or add groups of it")


def _groups_to_folds(pairs, folds: int, rng: np.random.Generator) -> np.ndarray:
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


def _units(rows: pd.DataFrame) -> np.ndarray:
    """A number for each row (sorted by path), the same for rows that stay together: a group, the boxes of a photo."""
    unit = np.arange(len(rows))
    bonds = [pd.factorize(rows["group"].where(rows["group"] != "", None))[0]]
    if rows["path"].str.contains("#xywh=", regex=False).any():
        bonds.append(pd.factorize(photo_of(rows["path"]))[0])
    before = None
    while before is None or (before != unit).any():  # groups may be joined through the boxes of one photo
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
    codes, photos = np.unique(unit * classes + label, return_counts=True)
    return codes // classes, codes % classes, photos
