"""Photos that are the same, or nearly: kept on one side of the split by a common group, never removed.

Two photos are compared by their hash, `inspection.looks`. Their distance is the larger of two numbers: how many of
the 64 shape bits differ, and half the greatest difference of any of the 27 cell colours (in levels of 255). Up to
NEAR = 8 they count as near-duplicates: 8 bits, and 16 levels in every cell. All members of a group of
near-duplicates lie within NEAR of each other (complete linkage), so that views of a turning fruit do not chain into
one long group.

NEAR was chosen on Fruits-360 (3-body problem, 2025.06.18.3): 5,880 training photos of 49 varieties, labels apple,
cherry and tomato, without groups. Views of a variety a few degrees apart are near-duplicates, different varieties
are not.

    NEAR   photos in a group   of these, in one with another variety   grouped pairs that cross varieties
       4              69.0 %                     0 %   (as named: 1.2 %)                0 %   (0.8 %)
       6              83.7 %                     0 %              (2.1 %)                0 %   (1.3 %)
       8              89.8 %                     0 %              (3.2 %)                0 %   (2.1 %)
      10              93.2 %                     0 %              (3.6 %)                0 %   (2.1 %)
      12              95.7 %                   0.1 %              (3.8 %)             0.05 %   (2.2 %)
      16              98.3 %                   1.0 %              (4.9 %)              0.2 %   (2.1 %)

The first shares count the folders Cherry 2 and Cherry 4 as one variety: they show the same fruit (the same crack and
spots, at the same angles). The shares in brackets take all 49 folders as they are named. Up to 10, no other two
varieties share a group.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from fruitlib.core.errors import InputError
from fruitlib.data.tables import photo_of

NEAR = 8
MOST_PAIRS = 5_000_000  # at most so many pairs are kept; beyond, the most distant are dropped, with a note
BLOCK = 2**19  # comparisons at a time
PAIRS = ["path_a", "path_b", "label_a", "label_b", "distance", "kind"]


def resolve(manifest: pd.DataFrame, near: bool) -> tuple[pd.DataFrame, list[str]]:
    """Give photos that belong together a common group, and quarantine a photo that has two labels.

    Exact copies (same sha256 and, where given, same box) of one label join into one group, across given groups too;
    so do the boxes of one photo. Copies with different labels are all quarantined. With `near`, near-duplicates of one
    label form groups where none is given, or join the given group that they resemble; two given groups stay apart.
    Only rows of status `ok` count. The order of rows makes no difference, and a second pass changes nothing.

    Returns:
        the manifest with new `group`, `status` and `reason`, rows in the same order; and notes, sentences for people.

    Raises:
        InputError: a phash that this version did not write.
    """
    rows = manifest.reset_index(drop=True)
    ok = _usable(rows)
    twice = _labelled_twice(ok)
    ok = ok[~ok.index.isin(twice.index)]
    units, parent, given = _units(ok)
    for same in _repeated(ok["sha256"]):
        for row in same[1:]:
            _unite(parent, given, units[same[0]], units[row])
    notes = _exact_notes(ok, len(twice))
    alike = set()
    if near and len(ok):
        alike, more = _join_alike(ok, units, parent, given)
        notes += more
    rows.loc[ok.index, "group"] = _names(ok, units, parent, given, alike)
    rows.loc[twice.index, "status"] = "quarantined"
    rows.loc[twice.index, "reason"] = twice
    return rows.set_index(manifest.index), notes


def pairs(manifest: pd.DataFrame, max_distance: int = NEAR, most: int = 1_000_000) -> pd.DataFrame:
    """Pairs of usable photos no further than `max_distance` apart, closest first, then by path.

    Where there are more than `most`, those of the greatest distances are left out.

    Returns:
        path_a, path_b, label_a, label_b, distance (0 to 128) and kind: `exact` (the same bytes and box) or `near`.
    """
    return _pairs(_usable(manifest), max_distance, most, other_labels=False)


def conflicts(manifest: pd.DataFrame, most: int = 1_000_000) -> pd.DataFrame:
    """Photos that look alike and are labelled differently, closest first, for a person to look at: as `pairs`, no kind.

    Exact copies with different labels are not among them: `resolve` has quarantined those.
    """
    return _pairs(_usable(manifest), NEAR, most, other_labels=True).drop(columns="kind")


def _usable(manifest: pd.DataFrame) -> pd.DataFrame:
    """The rows of status ok, by path, with `box`: what follows the file in `path`."""
    rows = manifest[manifest["status"] == "ok"].sort_values("path")
    files = photo_of(rows["path"])
    boxes = [path[len(file) :] for path, file in zip(rows["path"], files, strict=True)]
    return rows.assign(file=files, box=boxes)


def _labelled_twice(rows: pd.DataFrame) -> pd.Series:
    """By index, why rows that show one photo under several labels are quarantined: another of its labels and paths."""
    same = rows[(rows["sha256"] != "") & rows.duplicated(["sha256", "box"], keep=False)]
    labels = same.groupby(["sha256", "box"])["label"].transform("nunique")
    reasons = {}
    for _, copies in same[labels > 1].groupby(["sha256", "box"]):
        firsts = copies.drop_duplicates("label")
        for index, label in copies["label"].items():
            other = firsts[firsts["label"] != label].iloc[0]
            reasons[index] = f"the same photo is labelled {other['label']} as {other['path']}"
    return pd.Series(reasons, dtype=object)


def _repeated(values: pd.Series) -> Iterator[np.ndarray]:
    """Positions of the rows that share a value, for every value that several have."""
    several = np.flatnonzero((values != "") & values.duplicated(keep=False))
    return (several[places] for places in values.iloc[several].groupby(values.iloc[several]).indices.values())


def _units(rows: pd.DataFrame) -> tuple[np.ndarray, list[int], list[int]]:
    """What is never divided: a given group, or a photo without one.

    Returns:
        the unit of every row, numbered by first appearance; a forest over units for `_find`; and for each unit its own
        number where its group is given, else -1.
    """
    grouped = (rows["group"] != "").to_numpy()
    units, _ = pd.factorize(rows["group"].where(grouped, "\0" + rows["path"]))
    given = np.full(units.max(initial=-1) + 1, -1)
    given[units[grouped]] = units[grouped]
    return units, list(range(len(given))), given.tolist()


def _find(parent: list[int], unit: int) -> int:
    """The root of the units united with this one: the first of them.

    scipy's DisjointSet takes twice the time, and its roots are not the first units.
    """
    while parent[unit] != unit:
        parent[unit] = unit = parent[parent[unit]]
    return unit


def _roots(units: np.ndarray, parent: list[int]) -> np.ndarray:
    return np.array([_find(parent, unit) for unit in units.tolist()], dtype=int)


def _unite(parent: list[int], given: list[int], a: int, b: int) -> None:
    """Make two units one, under the name of the first given group among them."""
    first, second = sorted((_find(parent, a), _find(parent, b)))
    parent[second] = first
    given[first] = min((unit for unit in (given[first], given[second]) if unit >= 0), default=-1)


def _names(rows: pd.DataFrame, units: np.ndarray, parent: list[int], given: list[int], alike: set[int]) -> np.ndarray:
    """The group of every row: a given one, or `same/` or `near/` and its first photo, or "" if it has no copies."""
    roots = _roots(np.arange(len(parent)), parent)
    first_rows = np.unique(units, return_index=True)[1]
    groups, files = rows["group"].to_numpy(), rows["file"].to_numpy()
    near = {_find(parent, unit) for unit in alike}
    united = np.bincount(roots, minlength=len(roots)) > 1
    names = np.full(len(roots), "", dtype=object)
    for root in np.unique(roots):
        if given[root] >= 0:
            names[root] = groups[first_rows[given[root]]]
        elif united[root]:
            names[root] = f"{'near' if root in near else 'same'}/{files[first_rows[root]]}"
    return names[roots[units]]


def _join_alike(rows: pd.DataFrame, units, parent: list[int], given: list[int]) -> tuple[set[int], list[str]]:
    """Unite near-duplicates of one label, closest first; returns units so united, and notes."""
    at = np.flatnonzero(rows["phash"] != "")
    before = np.array(given)[_roots(units, parent)]
    owner = before[at]
    label = pd.factorize(rows["label"].iloc[at])[0]
    looks = pd.factorize(rows["phash"].iloc[at])[0]
    keys = pd.DataFrame({"label": label, "looks": looks, "owner": owner})
    node, firsts = keys.groupby(list(keys), sort=False).ngroup().to_numpy(), np.flatnonzero(~keys.duplicated())
    alike = set()
    for row, first in zip(at.tolist(), at[firsts[node]].tolist(), strict=True):
        if _find(parent, units[row]) != _find(parent, units[first]):  # their hashes are equal
            _unite(parent, given, units[row], units[first])
            alike.add(int(units[first]))
    weight, owner, label = np.bincount(node), owner[firsts], label[firsts]
    bits, colours = _vectors(rows["phash"].iloc[at[firsts]].tolist())
    a, b, _, reached = _search(bits, colours, NEAR, MOST_PAIRS)
    same, apart = label[a] == label[b], (owner[a] >= 0) & (owner[b] >= 0) & (owner[a] != owner[b])
    free = np.isin(label, label[owner < 0])  # labels all of whose photos have a group keep those
    joined = same & free[a]
    alike |= _link(bits, colours, a[joined], b[joined], units[at[firsts]].tolist(), parent, given)
    roots = _roots(units, parent)
    after = np.array(given)[roots]
    united = roots[np.isin(roots, [_find(parent, unit) for unit in alike]) & (after < 0)]
    many = [int((weight[a] * weight[b])[chosen].sum()) for chosen in (same & apart, ~same)]
    between = _most_alike(rows["group"].to_numpy(), units, owner[a[same & apart]], owner[b[same & apart]])
    return alike, _near_notes(united, roots[(before < 0) & (after >= 0)], *many, reached, between)


def _most_alike(groups: np.ndarray, units: np.ndarray, one: np.ndarray, other: np.ndarray) -> str:
    """For a note, the names of the two given groups that share most pairs; `one`, `other`: the units of each pair."""
    if not len(one):
        return ""
    both, counts = np.unique(np.sort(np.stack([one, other]), axis=0), axis=1, return_counts=True)
    names = [groups[np.argmax(units == unit)] for unit in both[:, counts.argmax()]]
    return f"; for example {names[0]} and {names[1]}: the same thing under two names?"


def _link(bits, colours, a, b, unit: list[int], parent: list[int], given: list[int]) -> set[int]:
    """Complete linkage over pairs of nodes, closest first: clusters join if all their members lie within NEAR.

    Clusters of two given groups never join. Unites the units of what joins, and returns them.
    """
    cluster, members, refused, united = list(range(len(unit))), {}, set(), set()
    for one, other in zip(a.tolist(), b.tolist(), strict=True):
        p, q = sorted((cluster[one], cluster[other]))
        if p == q or (p, q) in refused:  # clusters only grow, so those too far apart stay so
            continue
        left, right = members.get(p, [p]), members.get(q, [q])
        roots = {_find(parent, unit[p]), _find(parent, unit[q])}
        if len({given[root] for root in roots} - {-1}) > 1 or _apart(bits, colours, left, right):
            refused.add((p, q))
            continue
        members[p] = left + right
        for node in members.pop(q, right):
            cluster[node] = p
        if len(roots) > 1:
            _unite(parent, given, *roots)
            united.add(min(roots))
    return united


def _apart(bits: np.ndarray, colours: np.ndarray, left: list[int], right: list[int]) -> bool:
    """Whether any member of one cluster lies further than NEAR from any of the other."""
    if (np.bitwise_count(bits[left][:, None] ^ bits[right]) > NEAR).any():
        return True
    fewer, more = sorted((left, right), key=len)
    return any(_colour_distance(colours[more], colours[node]).max() > NEAR for node in fewer)


def _vectors(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """`inspection.looks` as numbers: shape bits uint64 (n,) and cell colours uint8 (n, 27)."""
    try:
        raw = np.frombuffer(bytes.fromhex("".join(texts)), np.uint8).reshape(len(texts), 35)
    except ValueError:
        raise InputError(
            "manifest.csv: a phash was written by another version: remove the file and split again"
        ) from None
    return raw[:, :8].copy().view(np.uint64).ravel(), raw[:, 8:]


def _colour_distance(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Half the greatest difference of any cell colour, rounded up; uint8 (n, 27) each -> (n,)."""
    return (np.maximum(some, others) - np.minimum(some, others)).max(axis=-1).astype(np.int16) + 1 >> 1


def _search(bits, colours, limit: int, most: int, labels: np.ndarray | None = None) -> tuple:
    """All pairs a < b of rows within `limit` of each other, closest first, with `labels` (n,) only pairs of two labels.

    Returns:
        a, b, distance, and the limit up to which all are there: lowered where there would be more than `most` pairs,
        -1 where these are not even all of distance 0.
    """
    blocks, count = [np.empty((3, 0), np.int32)], 0
    for block in _near(bits, colours, limit, labels):
        if limit < 0:
            break
        blocks.append(block[:, block[2] <= limit])
        count += blocks[-1].shape[1]
        while count > most and limit >= 0:
            limit -= 1
            kept = np.concatenate(blocks, axis=1)
            blocks = [kept[:, kept[2] <= limit] if limit >= 0 else kept[:, :most]]
            count = blocks[0].shape[1]
    a, b, distance = np.concatenate(blocks, axis=1)
    order = np.lexsort((b, a, distance))
    return a[order], b[order], distance[order], limit


def _near(bits, colours, limit: int, labels: np.ndarray | None) -> Iterator[np.ndarray]:
    """Blocks (3, k) of a < b and their distance, for all pairs within `limit`.

    Exact: rows are sorted by the cell colour that varies most, and compared only with those near enough in it.
    """
    key = colours[:, colours[:: 1 + len(colours) // 20000].std(axis=0).argmax()] if len(colours) else np.empty(0, int)
    order = np.argsort(key, kind="stable").astype(np.int32)
    ends = np.searchsorted(key[order], key[order].astype(int) + 2 * limit, side="right")
    bits, colours, start = bits[order], colours[order], 0
    while start < len(order):
        stop = min(start + int(np.clip(BLOCK // (ends[start] - start), 1, 512)), len(order))
        distance = np.bitwise_count(bits[start:stop, None] ^ bits[start : ends[stop - 1]])
        places = np.flatnonzero(distance <= limit)  # np.nonzero, along two axes, took nearly half of the search
        one, other = np.divmod(places, distance.shape[1])
        above = one < other
        one, other, distance = one[above] + start, other[above] + start, distance.ravel()[places[above]]
        if labels is not None:
            differ = labels[order[one]] != labels[order[other]]
            one, other, distance = one[differ], other[differ], distance[differ]
        distance = np.maximum(distance, _colour_distance(colours[one], colours[other]))
        pair = np.stack([order[one], order[other]])
        yield np.vstack([pair.min(axis=0), pair.max(axis=0), distance])[:, distance <= limit]
        start = stop


def _pairs(rows: pd.DataFrame, limit: int, most: int, other_labels: bool) -> pd.DataFrame:
    """`pairs` and `conflicts`: rows of status ok, by path."""
    rows = rows[rows["phash"] != ""]
    labels = pd.factorize(rows["label"])[0] if other_labels else None
    a, b, distance, _ = _search(*_vectors(rows["phash"].tolist()), limit, most, labels)
    one, other = rows.iloc[a].reset_index(drop=True), rows.iloc[b].reset_index(drop=True)
    exact = (one["sha256"] == other["sha256"]) & (one["box"] == other["box"]) & (one["sha256"] != "")
    kind = np.where(exact, "exact", "near")
    columns = [one["path"], other["path"], one["label"], other["label"], distance, kind]
    return pd.DataFrame(dict(zip(PAIRS, columns, strict=True)))


def _exact_notes(rows: pd.DataFrame, twice: int) -> list[str]:
    read = rows[rows["sha256"] != ""].drop_duplicates("path")
    copies = int(read.duplicated(["sha256", "box"]).sum())
    boxes = int((read.drop_duplicates(["sha256", "box"]).groupby("sha256").size() > 1).sum())
    return [
        *_note(
            copies,
            "is an exact copy of another; it shares its group",
            "are exact copies of others; they share their group",
        ),
        *_note(
            boxes, "has several boxes, which share a group", "have several boxes; the boxes of a photo share its group"
        ),
        *_note(
            twice,
            "is the same as another of a different label; it is quarantined",
            "are the same as others of a different label; they are quarantined",
        ),
    ]


def _near_notes(united, joined, apart: int, conflicting: int, reached: int, between: str) -> list[str]:
    """Notes from the group (root) of every row in a new group, of every row that joined one, and counts of pairs."""
    groups, listed = len(np.unique(united)), "; 01 shows them side by side"
    notes = [f"{len(united)} photos resemble another closely and form {groups} group{'s' * (groups > 1)}"] * (
        groups > 0
    )
    join = "resembles one of a given group closely and joins it", "resemble one of a given group closely and join it"
    notes += _note(len(joined), *join)
    stay = f" in two given groups of a label, which stay as they are{between}"
    notes += _note(apart, "lies" + stay, "lie" + stay, "near-duplicate pair")
    notes += _note(
        conflicting, "has different labels" + listed, "have different labels" + listed, "near-duplicate pair"
    )
    if reached < NEAR:
        kept = f"only those up to distance {max(0, reached)}, not {NEAR}, count"
        notes.append(f"more than {MOST_PAIRS:,} near-duplicate pairs: {kept}")
    return notes


def _note(count: int, one: str, many: str, what: str = "photo") -> list[str]:
    return [f"1 {what} {one}" if count == 1 else f"{count} {what}s {many}"] if count else []
