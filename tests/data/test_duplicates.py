"""Photos that belong together stand together, and only those."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance

from fruitlib.core.errors import InputError
from fruitlib.data import duplicates, photo_checks

BLANK = 70 * "0"


def looks(bits=0, colour=0):
    """A phash text: a number's lowest bits as shape, one grey for all cells."""
    return f"{bits:016x}" + f"{colour:02x}" * 27


def manifest(*rows):
    """Rows of (path, label, group, sha256, phash), usable."""
    table = pd.DataFrame(rows, columns=["path", "label", "group", "sha256", "phash"])
    return table.assign(status="ok", reason="", split="")


def groups(table, near=True):
    resolved, _ = duplicates.resolve(table, near)
    return dict(zip(resolved["path"], resolved["group"], strict=True))


def distance(one, other):
    a, b = bytes.fromhex(one), bytes.fromhex(other)
    bits = (int.from_bytes(a[:8], "big") ^ int.from_bytes(b[:8], "big")).bit_count()
    return max(bits, -(-max(abs(x - y) for x, y in zip(a[8:], b[8:], strict=True)) // 2))


def fruit(colour, seed=0):
    """A drawn fruit with a pattern of its own on white."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (120, 120), "white")
    pen = ImageDraw.Draw(image)
    pen.ellipse((20, 25, 100, 105), fill=colour)
    for x, y, r in rng.integers((35, 40, 4), (80, 85, 14), (6, 3)).tolist():
        pen.ellipse((x, y, x + r, y + r), fill=tuple(value * 3 // 4 for value in colour))
    return image


@pytest.fixture
def checked(tmp_path):
    """Check what a test has saved in class folders."""

    def check(**photos):
        for name, image in photos.items():
            label, file = name.split("__")
            (tmp_path / label).mkdir(exist_ok=True)
            image.save(tmp_path / label / f"{file}.jpg", quality=85 if file.startswith("again") else 95)
        paths = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.jpg"))
        rows = pd.DataFrame({"path": paths, "label": [path.split("/")[0] for path in paths], "group": "", "split": ""})
        return photo_checks.check_photos(tmp_path, rows)

    return check


RED, YELLOW = (200, 30, 40), (230, 200, 40)


def test_resized_recompressed_and_slightly_brightened_copies_are_near_duplicates(checked):
    image = fruit(RED)
    brighter = ImageEnhance.Brightness(image).enhance(1.04)
    table = checked(
        apple__a=image, apple__again=image, apple__b=image.resize((300, 300)), apple__c=brighter, apple__d=fruit(RED, 1)
    )
    assert table["sha256"].nunique() == 5
    together = "near/apple/a.jpg"
    expected = {"apple/a.jpg": together, "apple/again.jpg": together, "apple/b.jpg": together, "apple/c.jpg": together}
    assert groups(table) == expected | {"apple/d.jpg": ""}
    assert set(groups(table, near=False).values()) == {""}


def test_the_same_shape_in_another_colour_is_another_photo(checked):
    table = checked(apple__red=fruit(RED), apple__yellow=fruit(YELLOW))
    assert set(groups(table).values()) == {""}
    assert duplicates.pairs(table).empty
    small = [Image.new("RGB", (120, 120), "white") for _ in range(2)]
    for image, colour in zip(small, (RED, YELLOW), strict=True):
        ImageDraw.Draw(image).ellipse((52, 52, 68, 68), fill=colour)
    assert set(groups(checked(cherry__red=small[0], cherry__yellow=small[1])).values()) == {""}


def test_exact_copies_share_a_group_named_after_the_first():
    table = manifest(
        ("a/1", "a", "", "x", looks(0)), ("a/2", "a", "", "y", looks(2**40 - 1)), ("a/3", "a", "", "x", looks(0))
    )
    resolved, notes = duplicates.resolve(table, near=True)
    assert resolved["group"].tolist() == ["same/a/1", "", "same/a/1"]
    assert notes == ["1 photo is an exact copy of another; it shares its group"]


def test_given_groups_that_share_a_photo_become_one():
    rows = [("a/1", "P", "x"), ("a/2", "", "y"), ("a/3", "Q", "x"), ("a/4", "Q", "y"), ("a/5", "R", "z")]
    table = manifest(*[(path, "a", group, sha, "") for path, group, sha in rows])
    assert groups(table, near=False) == {"a/1": "P", "a/2": "P", "a/3": "P", "a/4": "P", "a/5": "R"}


def test_one_photo_under_two_labels_is_quarantined_everywhere():
    rows = [("apple/1", "apple"), ("apple/2", "apple"), ("cherry/2.jpg", "cherry"), ("tomato/9", "tomato")]
    table = manifest(*[(path, label, "", "x", BLANK) for path, label in rows])
    resolved, notes = duplicates.resolve(table, near=True)
    assert set(resolved["status"]) == {"quarantined"} and set(resolved["group"]) == {""}
    assert resolved["reason"].tolist()[0] == "the same photo is labelled cherry as cherry/2.jpg"
    assert resolved["reason"].tolist()[2] == "the same photo is labelled apple as apple/1"
    assert notes == ["4 photos are the same as others of a different label; they are quarantined"]
    assert duplicates.conflicts(resolved).empty


def test_boxes_of_one_photo_share_a_group_and_may_differ_in_label():
    table = manifest(
        ("p/1.jpg#xywh=0,0,20,20", "apple", "", "x", looks(0)),
        ("p/1.jpg#xywh=50,0,20,20", "cherry", "", "x", looks(0, 200)),
        ("q/1.jpg#xywh=50,0,20,20", "cherry", "", "x", looks(0, 200)),
        ("p/2.jpg#xywh=0,0,20,20", "apple", "", "y", looks(2**30 - 1)),
        ("p/2.jpg#xywh=0,0,30,20", "apple", "", "z", looks(2**60 - 1)),
    )
    resolved, notes = duplicates.resolve(table, near=True)
    assert resolved["group"].tolist() == ["same/p/1.jpg"] * 3 + ["", ""]
    assert set(resolved["status"]) == {"ok"}
    assert "1 photo has several boxes, which share a group" in notes
    twice = table.assign(label=["apple", "cherry", "tomato", "apple", "apple"])
    assert duplicates.resolve(twice, near=True)[0]["status"].tolist() == [
        "ok",
        "quarantined",
        "quarantined",
        "ok",
        "ok",
    ]


def test_a_chain_whose_ends_are_far_apart_is_not_one_group():
    table = manifest(
        ("a/1", "a", "", "1", looks(0)),
        ("a/2", "a", "", "2", looks(2**6 - 1)),
        ("a/3", "a", "", "3", looks(2**11 - 1)),
    )
    assert groups(table) == {"a/1": "", "a/2": "near/a/2", "a/3": "near/a/2"}


def test_near_duplicates_join_a_given_group_but_never_two():
    table = manifest(
        ("a/1", "a", "P", "1", looks(0)),
        ("a/2", "a", "", "2", looks(1)),
        ("a/3", "a", "Q", "3", looks(7)),
        ("a/4", "a", "", "4", looks(2**50 - 1)),
        ("b/1", "b", "", "5", looks(0)),
    )
    resolved, notes = duplicates.resolve(table, near=True)
    assert resolved["group"].tolist() == ["P", "P", "Q", "", ""]
    assert notes == [
        "1 photo resembles one of a given group closely and joins it",
        "1 near-duplicate pair lies in two given groups of a label, which stay as they are; "
        "for example P and Q: the same thing under two names?",
        "3 near-duplicate pairs have different labels; 01 shows them side by side",
    ]


def test_conflicts_and_pairs_are_listed_closest_first():
    table = manifest(
        ("b/2", "b", "", "2", looks(3)), ("a/1", "a", "", "1", looks(0)), ("b/1", "b", "", "3", looks(1, 16)),
        ("a/2", "a", "", "1", looks(0)), ("c/1", "c", "", "6", looks(0, 17)),
    )  # fmt: skip
    pairs = duplicates.pairs(table)
    assert pairs.values.tolist()[0] == ["a/1", "a/2", "a", "a", 0, "exact"]
    assert [*pairs.columns] == duplicates.PAIRS and pairs["distance"].is_monotonic_increasing
    conflicts = duplicates.conflicts(table)
    assert conflicts.values.tolist()[:3] == [
        ["b/1", "c/1", "b", "c", 1], ["a/1", "b/2", "a", "b", 2], ["a/2", "b/2", "a", "b", 2],
    ]  # fmt: skip
    assert len(conflicts) == 5 and not (conflicts["label_a"] == conflicts["label_b"]).any()
    assert len(duplicates.pairs(table, max_distance=0)) == 1
    assert duplicates.pairs(table, most=3)["distance"].max() < pairs["distance"].max()
    assert len(duplicates.pairs(table.assign(phash=BLANK), most=3)) == 3


def random_rows(seed, count):
    """Rows (label, group, centre, bits that differ from it, grey), crowded enough to chain."""
    rng = np.random.default_rng(seed)
    return [
        (str(rng.choice(["a", "b"])), str(rng.choice(["", "", "", "P", "Q"])), int(rng.integers(3)))
        + (rng.integers(0, 24, rng.integers(0, 8)).tolist(), int(rng.integers(20)))
        for _ in range(count)
    ]


ROWS = st.builds(random_rows, st.integers(0, 2**32), st.integers(0, 40))


def drawn(rows):
    centres = [0, 2**64 - 1, 0x00FF00FF00FF00FF, 0x0F0F0F0F0F0F0F0F]
    return manifest(
        *[
            (
                f"{label}/{i:02d}",
                label,
                f"{label}/{group}" if group else "",
                f"{i}",
                looks(flipped(centres[c], bits), 9 + grey),
            )
            for i, (label, group, c, bits, grey) in enumerate(rows)
        ]
    )


def flipped(number, bits):
    for bit in set(bits):
        number ^= 1 << bit
    return number


@settings(max_examples=80, deadline=None)
@given(ROWS)
def test_any_new_group_is_of_one_label_and_no_wider_than_near(rows):
    table = drawn(rows)
    resolved, _ = duplicates.resolve(table, near=True)
    for group, members in resolved[resolved["group"].str.startswith("near/")].groupby("group"):
        texts = members["phash"].tolist()
        assert max(distance(a, b) for a in texts for b in texts) <= duplicates.NEAR
        assert members["label"].nunique() == 1 and len(members) > 1
        assert group == f"near/{members['path'].min()}"
    kept = table["group"] != ""
    assert resolved.loc[kept, "group"].equals(table.loc[kept, "group"])


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(0, 9))
def test_a_second_pass_and_another_order_of_rows_change_nothing(rows, seed):
    table = drawn(rows)
    resolved, notes = duplicates.resolve(table, near=True)
    assert duplicates.resolve(resolved, near=True)[0].equals(resolved)
    mixed, notes_mixed = duplicates.resolve(table.sample(frac=1, random_state=seed), near=True)
    assert mixed.sort_index().equals(resolved) and notes_mixed == notes


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(0, 8))
def test_the_search_finds_what_comparing_each_with_each_finds(rows, limit):
    table = drawn(rows)
    texts = dict(zip(table["path"], table["phash"], strict=True))
    every = {(a, b): distance(texts[a], texts[b]) for a in texts for b in texts if a < b}
    listed = duplicates.pairs(table, max_distance=limit)
    pairs = dict(
        zip(
            zip(listed["path_a"], listed["path_b"], strict=True),
            listed["distance"],
            strict=True,
        )
    )
    assert pairs == {pair: far for pair, far in every.items() if far <= limit}


def test_blocks_of_any_size_find_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    rows = [("a", "", int(c), rng.integers(0, 64, 3).tolist(), int(g)) for c, g in rng.integers(0, (4, 13), (300, 2))]
    whole = duplicates.pairs(drawn(rows))
    monkeypatch.setattr(duplicates, "BLOCK", 64)
    assert len(whole) > 1000 and duplicates.pairs(drawn(rows)).equals(whole)


def test_too_many_pairs_lower_the_limit_and_say_so(monkeypatch):
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 10)
    rows = [(f"a/{i:02d}", "a", "", str(i), looks(2 ** (i % 8) - 1, i // 8)) for i in range(40)]
    resolved, notes = duplicates.resolve(manifest(*rows), near=True)
    assert any(note.startswith("more than 10 near-duplicate pairs: only those up to distance") for note in notes)
    assert len(resolved) == 40


def test_thousands_that_look_the_same_are_one_group():
    table = manifest(*[(f"a/{i:04d}", "a", "", str(i), looks(5)) for i in range(4000)])
    assert set(groups(table).values()) == {"near/a/0000"}


def test_rows_that_are_not_ok_are_left_alone_and_none_at_all_is_fine():
    table = manifest(("a/1", "a", "", "x", BLANK), ("a/2", "a", "", "x", BLANK), ("a/3", "a", "", "", ""))
    table["status"] = ["left_out", "ok", "sealed"]
    resolved, notes = duplicates.resolve(table, near=True)
    assert resolved.equals(table) and notes == []
    assert duplicates.resolve(table.iloc[:0], near=True)[1] == [] and duplicates.pairs(table.iloc[:0]).empty


def test_a_foreign_hash_is_refused_in_one_line():
    with pytest.raises(InputError, match="a phash was written by another version"):
        duplicates.resolve(manifest(("a/1", "a", "", "x", "ffff")), near=True)


def false_merges(manifest: pd.DataFrame, truth: pd.Series) -> dict[str, float]:
    """How far the groups of a manifest agree with known ones (`truth`: by path), for photos of status `ok`.

    Returns:
        photos; groups (of two or more); grouped, photos in them, and as a share; mixed, photos in a group that holds
        more than one true group, and as a share of grouped; pairs within groups; false_pairs, those across true
        groups, and as a share. A share of nothing is 0.
    """
    rows = manifest.loc[manifest["status"] == "ok", ["path", "group"]]
    rows = rows.assign(truth=truth.reindex(rows["path"]).to_numpy())
    assert not rows["truth"].isna().any()
    sizes = rows.groupby("group")["path"].transform("size")
    grouped = rows[(rows["group"] != "") & (sizes > 1)]
    by_group = grouped.groupby("group")
    mixed = int((by_group["truth"].transform("nunique") > 1).sum())
    pairs = _count_pairs(by_group.size())
    false = pairs - _count_pairs(grouped.groupby(["group", "truth"]).size())
    counts = {"photos": len(rows), "groups": by_group.ngroups, "grouped": len(grouped), "mixed": mixed}
    shares = {"grouped_share": len(grouped) / max(1, len(rows)), "mixed_share": mixed / max(1, len(grouped))}
    return counts | {"pairs": pairs, "false_pairs": false} | shares | {"false_pairs_share": false / max(1, pairs)}


def _count_pairs(sizes: pd.Series) -> int:
    return int((sizes * (sizes - 1) // 2).sum())


def test_false_merges_are_counted_by_photo_and_by_pair():
    rows = [("1", "g"), ("2", "g"), ("3", "g"), ("4", "h"), ("5", "h"), ("6", ""), ("7", "")]
    table = manifest(*[(path, "a", group, path, BLANK) for path, group in rows])
    truth = pd.Series(dict(zip("1234567", "xxyzzzz", strict=True)))
    rates = false_merges(table, truth)
    assert (rates["grouped"], rates["mixed"], rates["pairs"], rates["false_pairs"]) == (5, 3, 4, 2)
    assert rates["grouped_share"] == 5 / 7 and rates["mixed_share"] == 3 / 5 and rates["false_pairs_share"] == 0.5


def rates(folder, paths, variety):
    """Rates of false merges as named, and with Cherry 2 and 4, which show the same fruit, as one."""
    rows = pd.DataFrame({"path": paths, "label": [path.split("/")[0] for path in paths], "group": "", "split": ""})
    resolved, _ = duplicates.resolve(photo_checks.check_photos(folder, rows), near=True)
    truth = pd.Series([variety(path) for path in paths], index=paths)
    one_fruit = truth.replace({"cherry_4": "cherry_2", "Cherry 4": "Cherry 2"})
    return false_merges(resolved, truth), false_merges(resolved, one_fruit)


@pytest.mark.real
def test_near_duplicates_of_fruit304_keep_varieties_apart(real_data):
    folder = real_data / "fruit304"
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))
    named, known = rates(folder, paths, lambda path: path.split("/")[1].split("__")[0])
    assert named["grouped"] >= 50 and named["mixed_share"] < 0.12 and known["mixed_share"] < 0.02


@pytest.mark.real
def test_views_of_a_turning_fruit_are_grouped_and_varieties_kept_apart(real_data):
    folder = real_data / "fruits-360-3-body-problem" / "Training"
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))
    named, known = rates(folder, paths, lambda path: path.split("/")[1])
    assert known["grouped_share"] > 0.85 and known["mixed_share"] < 0.005 and known["false_pairs_share"] < 0.005
    assert named["mixed_share"] < 0.04 and named["false_pairs_share"] < 0.03
