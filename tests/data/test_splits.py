"""From photos to a split: counts, whole groups, folds, subset, leaks, and what is written."""

import itertools
import json
import os
import shutil
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image

from fruitlib.core import config
from fruitlib.core.errors import InputError
from fruitlib.data import sources, splits, stratify

HASHES = itertools.count()


def photo(path, seed=None, size=(40, 40), **options):
    """A photo of noise that no hash confuses with another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(next(HASHES) if seed is None else seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.NEAREST).save(path, **options)


@pytest.fixture
def collection(tmp_path):
    """Two classes of twelve; a Korean and a spaced name among them."""
    for label in ("사과", "sour cherry"):
        for i in range(12):
            photo(tmp_path / "photos" / label / f"한 장 {i:02d}.png")
    return tmp_path / "photos"


def settings(folder, **others):
    return config.make({"data": str(folder), "val_per_class": 3, "test_per_class": 3, **others})


def rows_of(units, label="a"):
    """Rows of units, each {class: photos}; a unit of one photo stands alone."""
    rows = [
        (f"{name}/{number:05d}/{i:04d}", name, f"g{number}" if sum(unit.values()) > 1 else "", "")
        for number, unit in enumerate(units)
        for name, photos in unit.items()
        for i in range(photos)
    ]
    return pd.DataFrame(rows, columns=["path", "label", "group", "split"])


def manifest_of(rows, **columns):
    """A manifest as it is after the checks."""
    blank = {"fold": "", "status": "ok", "reason": "", "width": 40, "height": 40, "sha256": rows["path"], "phash": ""}
    return rows.assign(**{**blank, **columns})


def divided(rows, **others):
    return splits.divide(manifest_of(rows), config.make({"val_per_class": 3, "test_per_class": 3, **others}))


# ---- from a folder to a manifest


def test_counts_are_met_and_bytes_are_the_same_for_a_seed(collection, tmp_path):
    first = splits.prepare_manifest(settings(collection), tmp_path / "a")
    splits.prepare_manifest(settings(collection), tmp_path / "b")
    other = splits.prepare_manifest(settings(collection, split_seed=1), tmp_path / "c")
    assert splits.counts(first).loc["사과"].tolist() == [6, 3, 3]
    assert (tmp_path / "a/manifest.csv").read_bytes() == (tmp_path / "b/manifest.csv").read_bytes()
    assert first["split"].tolist() != other["split"].tolist()
    pd.testing.assert_frame_equal(splits.load_manifest(tmp_path / "a"), first, check_dtype=False)
    assert splits.fingerprint(splits.load_manifest(tmp_path / "a")) == splits.fingerprint(first)
    assert set(first["path"]) == {p.relative_to(collection).as_posix() for p in collection.rglob("*.png")}


def test_folders_inside_a_class_are_groups_and_never_divided(tmp_path):
    for label in ("apple", "cherry"):
        for variety in range(6):
            for view in range(4):
                photo(tmp_path / "photos" / label / f"variety {variety}" / f"{view}.png")
    manifest = splits.prepare_manifest(settings(tmp_path / "photos", val_per_class=4, test_per_class=6), tmp_path / "a")
    assert manifest.groupby("group")["split"].nunique().max() == 1
    assert splits.counts(manifest).loc["apple"].tolist() == [12, 4, 8]
    notes = splits.load_record(tmp_path / "a")["notes"]
    assert "apple: 8 test photos, not 6, since groups are never divided" in notes


def test_train_and_val_without_test_take_the_test_from_train(tmp_path):
    for part, count in (("train", 8), ("valid", 3)):
        for label in ("a", "b"):
            for i in range(count):
                photo(tmp_path / "photos" / part / label / f"{i}.png")
    manifest = splits.prepare_manifest(settings(tmp_path / "photos"), tmp_path / "s")
    assert splits.counts(manifest).loc["a"].tolist() == [5, 3, 3]


def test_a_predefined_test_part_is_kept_and_not_opened(tmp_path):
    for part in ("Training", "Test"):
        for label in ("Apple", "Cherry"):
            for i in range(9):
                photo(tmp_path / "photos" / part / label / f"{part} variety {i // 3}" / f"{i}.png")
    (tmp_path / "photos" / "Test" / "Apple" / "Test variety 0" / "0.png").write_bytes(b"never to be decoded")
    cfg = settings(tmp_path / "photos")
    manifest = splits.prepare_manifest(cfg, tmp_path / "a")
    test = manifest[manifest["path"].str.startswith("Test/")]
    assert set(test["split"]) == {"test"} and set(test["status"]) == {"sealed"} and set(test["sha256"]) == {""}
    assert splits.counts(manifest).loc["Apple"].tolist() == [6, 3, 9]
    before = splits.sealed_files(cfg, manifest)
    assert splits.sealed_files(cfg, manifest) == before
    (tmp_path / "photos" / "Test" / "Apple" / "Test variety 0" / "0.png").write_bytes(b"another")
    assert splits.sealed_files(cfg, manifest) != before


def test_links_are_followed_and_broken_ones_are_bad_photos(collection, tmp_path):
    (collection / "사과" / "group").symlink_to(collection / "sour cherry")
    (collection / "사과" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match=r"gone\.png"):
        splits.prepare_manifest(settings(collection, bad_photos="stop"), tmp_path / "b")


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (shutil.rmtree, "no such folder of photos"),
        (lambda c: (c / "empty").mkdir(), "empty class folders: empty"),
        (lambda c: shutil.rmtree(c / "사과"), ": 1 class folders"),
        (lambda c: [p.unlink() for p in sorted((c / "사과").iterdir())[6:]], "class 사과 has 6 photos, at least 7"),
        (lambda c: (c / "사과" / "한 장 03.png").write_bytes(b""), r"한 장 03\.png: the file is empty \(0 bytes\)"),
        (lambda c: (c / "사과" / "bad.jpg").write_bytes(b"\1\2\3"), r"bad\.jpg: not an image"),
        (lambda c: os.truncate(c / "사과" / "한 장 03.png", 60), r"한 장 03\.png: "),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(collection, tmp_path, break_it, words):
    break_it(collection)
    with pytest.raises(InputError, match=words) as problem:
        splits.prepare_manifest(settings(collection, bad_photos="stop"), tmp_path / "a")
    assert "\n" not in str(problem.value)
    assert not (tmp_path / "a").exists()


def test_quarantine_keeps_the_bad_photo_in_the_manifest_with_its_reason(collection, tmp_path):
    (collection / "사과" / "bad.jpg").write_bytes(b"no image")
    manifest = splits.prepare_manifest(settings(collection), tmp_path / "a")
    bad = manifest[manifest["status"] == "quarantined"]
    assert bad["path"].tolist() == ["사과/bad.jpg"] and bad["reason"].iloc[0] and bad["split"].iloc[0] == ""
    assert splits.counts(manifest).loc["사과", "quarantined"] == 1
    assert any("1 of the photos are quarantined" in note for note in splits.load_record(tmp_path / "a")["notes"])
    assert "사과/bad.jpg" not in set(pd.concat([splits.part(manifest, s) for s in splits.SPLITS])["path"])


def test_too_few_photos_after_quarantine_are_refused_by_name_and_number(collection, tmp_path):
    for file in sorted((collection / "사과").iterdir())[:6]:
        file.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"class 사과 has 6 photos \(6 more are .*not an image\), at least 7"):
        splits.prepare_manifest(settings(collection), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_change_in_the_photos_makes_a_new_split_and_no_change_makes_none(collection, tmp_path):
    splits.prepare_manifest(settings(collection), tmp_path / "a")
    before = splits.fingerprint(splits.load_manifest(tmp_path / "a"))
    written = (tmp_path / "a/manifest.csv").stat().st_mtime_ns
    splits.prepare_manifest(settings(collection), tmp_path / "a")
    assert (tmp_path / "a/manifest.csv").stat().st_mtime_ns == written
    photo(collection / "사과" / "한 장 00.png", size=(44, 44))  # another under the same name
    splits.prepare_manifest(settings(collection), tmp_path / "a")
    changed = splits.fingerprint(splits.load_manifest(tmp_path / "a"))
    photo(collection / "사과" / "new.png")
    assert len(splits.prepare_manifest(settings(collection), tmp_path / "a")) == 25
    assert len({splits.fingerprint(splits.load_manifest(tmp_path / "a")), changed, before}) == 3


def test_a_tables_labels_boxes_and_splits_count(collection, tmp_path):
    table = pd.DataFrame({"path": [p.relative_to(collection).as_posix() for p in sorted(collection.rglob("*.png"))]})
    table["label"] = ["1"] * 12 + ["2"] * 12
    table["split"] = (["test"] * 2 + ["train"] * 10) * 2
    table[["x", "y", "w", "h"]] = [0, 0, 20, 20]
    second = table.iloc[[5]].assign(x=20)
    pd.concat([table, second]).to_csv(collection / "photos.csv", index=False)
    cfg = settings(collection / "photos.csv")
    manifest = splits.prepare_manifest(cfg, tmp_path / "a")
    boxes = manifest[manifest["path"].str.startswith(table["path"][5])]
    assert len(boxes) == 2 and boxes["split"].nunique() == 1
    assert splits.counts(splits.load_manifest(tmp_path / "a")).loc["2"].tolist() == [7, 3, 2]
    assert splits.load_record(tmp_path / "a")["class_names"] == ["1", "2"]
    pd.concat([table.assign(label="7").iloc[:12], table.iloc[12:]]).to_csv(collection / "photos.csv", index=False)
    assert set(splits.prepare_manifest(cfg, tmp_path / "a")["label"]) == {"7", "2"}


def test_the_record_is_valid_json_and_names_classes_and_folds(collection, tmp_path):
    splits.prepare_manifest(settings(collection, folds=3, repeats=2), tmp_path / "a")
    record = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert record["class_names"] == ["sour cherry", "사과"]
    assert (record["folds"], record["repeats"]) == (3, 2)


def test_the_classes_are_said_before_a_photo_is_opened_and_what_was_lost_afterwards(collection, tmp_path):
    (collection / "사과" / "notes.txt").touch()
    (collection / "사과" / "broken.png").write_bytes(b"text")
    lines = []

    def progress(done, total):
        lines.append("photos are opened")

    wanted = settings(collection, bad_photos="quarantine")
    splits.prepare_manifest(wanted, tmp_path / "a", progress, lines.append)
    opened = lines.index("photos are opened")
    assert lines[0] == "2 classes: sour cherry 12, 사과 13"
    assert any("not a photo: skipped" in line for line in lines[1:opened])
    assert any("1 of the photos are quarantined" in line and "사과/broken.png" in line for line in lines[opened:])
    record = splits.load_record(tmp_path / "a")
    assert record["listing"] == lines[0] and set(lines) == {
        *record["notes"],
        record["listing"],
        "photos are opened",
    }
    before, lines[:] = set(lines), []
    splits.prepare_manifest(wanted, tmp_path / "a", progress, lines.append)  # nothing is opened, all is printed again
    assert set(lines) == before - {"photos are opened"}


@pytest.mark.parametrize(
    ("labels", "columns", "words"),
    [
        (["b", "a", "b"], {}, "2 classes: a 1, b 2"),
        (["a", "b"], {"group": ["g", ""]}, "2 classes: a 1, b 1; 1 group"),
        (["a", "b", "b"], {"split": ["train", "test", ""]}, "2 classes: a 1, b 2; given parts: train 1, test 1, in no"),
        (["a\x1b[2J", "b"], {}, "2 classes: a\\x1b[2J 1, b 1"),
        ([f"c{i:03d}" for i in range(120)] * 2 + ["c000"], {}, "c009 2, … and 110 more; smallest: c001 2"),
        (["x" * 99, "y"], {}, "2 classes: " + "x" * 26 + "…" + "x" * 13 + " 1, y 1"),
    ],
)
def test_the_classes_found_fit_in_a_line(labels, columns, words):
    rows = pd.DataFrame({"path": "p", "label": labels, "group": "", "split": ""}).assign(**columns)
    assert words in sources.listing_text(rows) and len(sources.listing_text(rows)) < 400


def test_of_many_notes_the_first_are_said(collection, tmp_path, monkeypatch):
    monkeypatch.setattr(splits, "MOST_NOTES", 1)
    (collection / "사과" / "notes.txt").touch()
    lines = []
    splits.prepare_manifest(settings(collection), tmp_path, say=lines.append)
    assert lines[2] == "… and 1 more notes, in manifest.json"


def test_photos_left_out_are_not_opened_and_stay_in_the_manifest(collection, tmp_path):
    first = splits.prepare_manifest(
        settings(collection, subset=0.75, val_per_class=2, test_per_class=2), tmp_path / "a"
    )
    left_out = first[first["status"] == "left_out"]
    assert len(left_out) == 6 and set(left_out["split"]) == set(left_out["sha256"]) == {""}
    assert splits.counts(first).loc["사과"].tolist() == [5, 2, 2, 3]
    assert "18 of 24 photos are used (subset: 0.75)" in splits.load_record(tmp_path / "a")["notes"]
    for path in left_out["path"]:
        (collection / path).write_bytes(b"never opened")
    again = splits.prepare_manifest(
        settings(collection, subset=0.75, val_per_class=2, test_per_class=2, bad_photos="stop"), tmp_path / "b"
    )
    assert again["split"].tolist() == first["split"].tolist()


def test_numbers_as_names_stay_text(tmp_path):
    rows = pd.DataFrame({"path": ["1", "2"], "label": ["03", "NA"], "group": ["1e5", ""], "split": ["train", "val"]})
    manifest_of(rows, fold="1").to_csv(tmp_path / "manifest.csv", index=False)
    manifest = splits.load_manifest(tmp_path)
    assert manifest["label"].tolist() == ["03", "NA"] and manifest["group"].tolist() == ["1e5", ""]
    assert manifest["fold"].tolist() == ["1", "1"] and manifest["path"].tolist() == ["1", "2"]
    assert manifest["width"].sum() == 80


# ---- train, val and test


def exact_is_possible(sizes, test, val):
    """By trying every way to put units into train, test and val."""
    sums = {(0, 0)}
    for size in sizes:
        sums |= {(t + size, v) for t, v in sums} | {(t, v + size) for t, v in sums}
    return (test, val) in sums


@examples(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=4, max_size=14),
    wanted=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 5),
)
def test_counts_are_met_whenever_whole_groups_allow_it(sizes, wanted, seed):
    rows = rows_of([{"a": size} for size in sizes])
    val, test = wanted
    possible = val + test < sum(sizes) and exact_is_possible(sizes, test, val)
    try:
        split_of_row, notes = stratify.assign_splits(rows, val, test, seed)
    except InputError as problem:
        assert "too few" in str(problem) and not possible
        return
    assert set(split_of_row) == {"train", "val", "test"}
    assert split_of_row.groupby(rows["group"].where(rows["group"] != "", rows["path"])).nunique().max() == 1
    got = split_of_row.value_counts()
    assert possible == (got["val"] == val and got["test"] == test)
    for split, count in (("val", val), ("test", test)):
        assert got[split] >= count
        assert (got[split] != count) == any(f"{split} photos, not {count}," in note for note in notes)


@examples(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=10), count=st.integers(1, 60), spare=st.booleans())
def test_one_count_is_met_or_passed_by_the_least(sizes, count, spare):
    sums = {sum(some) for n in range(len(sizes) + 1) for some in itertools.combinations(sizes, n)}
    sums -= set() if spare else {sum(sizes)}
    chosen = stratify._subset_sum(np.array(sizes), count, spare)
    assert len(set(chosen.tolist())) == len(chosen)
    assert np.array(sizes)[chosen].sum() == min((s for s in sums if s >= count), default=max(sums))


def test_large_groups_and_many_groups_meet_their_shares_too():
    rng = np.random.default_rng(0)
    for sizes in (rng.integers(1500, 3500, 60), rng.integers(20, 60, 5000)):
        rows = rows_of([{"a": int(size)} for size in sizes])
        split_of_row, notes = stratify.assign_splits(rows, 0.2, 0.1, 0)
        assert split_of_row.groupby(rows["group"]).nunique().max() == 1 and notes == []
        assert (split_of_row == "val").sum() == int(0.2 * len(rows) + 0.5)
        assert (split_of_row == "test").sum() == int(0.1 * len(rows) + 0.5)


@examples(max_examples=150, deadline=None)
@given(
    units=st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(1, 5), min_size=1), min_size=6, max_size=20),
    wanted=st.tuples(st.sampled_from([1, 3, 0.2]), st.sampled_from([0, 2, 0.3])),
    seed=st.integers(0, 3),
)
def test_groups_that_span_classes_stay_whole_and_order_does_not_matter(units, wanted, seed):
    rows = rows_of(units)
    try:
        split_of_row, _ = stratify.assign_splits(rows, *wanted, seed)
    except InputError as problem:
        assert "too few" in str(problem)
        return
    assert split_of_row.groupby(rows["group"].where(rows["group"] != "", rows["path"])).nunique().max() == 1
    table = pd.crosstab(rows["label"], split_of_row)
    assert (table["train"] > 0).all() and ("test" in table) == (wanted[1] > 0)
    total = rows["label"].value_counts()
    for label, count in table["val"].items():
        assert count >= (wanted[0] if wanted[0] >= 1 else max(1, int(0.2 * total[label] + 0.5)))
    shuffled = rows.sample(frac=1, random_state=seed)
    assert stratify.assign_splits(shuffled, *wanted, seed)[0].sort_index().equals(split_of_row)


def test_mixed_groups_that_fit_leave_the_counts_exact():
    """Sessions of two apples and a cherry, and single photos of both: every count can be met, and is."""
    rows = rows_of([{"apple": 2, "cherry": 1}] * 12 + [{"apple": 1}] * 20 + [{"cherry": 1}] * 20)
    for seed in range(10):
        split_of_row, notes = stratify.assign_splits(rows, 10, 8, seed)
        assert pd.crosstab(rows["label"], split_of_row)[["val", "test"]].values.tolist() == [[10, 8], [10, 8]]
        assert notes == []


def test_mixed_groups_reach_every_side_about_as_often_as_their_share():
    rows = rows_of([{"apple": 2, "cherry": 2}] * 100 + [{"apple": 1}] * 800 + [{"cherry": 1}] * 800)
    split_of_row, _ = stratify.assign_splits(rows, 0.2, 0.2, 0)
    test = (split_of_row[rows["group"] != ""] == "test").sum()
    assert split_of_row.value_counts().tolist() == [1200, 400, 400]
    assert 40 <= test <= 120  # 80 of 400


def test_other_seeds_divide_otherwise_and_the_same_seed_alike():
    rows = rows_of([{"a": 1}] * 30 + [{"b": 3}] * 20)
    split_of_row = [tuple(stratify.assign_splits(rows, 6, 6, seed)[0]) for seed in (0, 0, 1, 2)]
    assert split_of_row[0] == split_of_row[1] and len(set(split_of_row)) == 3


def test_a_share_is_rounded_to_the_nearest_and_is_at_least_one():
    rows = rows_of([{"a": 1}] * 33 + [{"b": 1}] * 4 + [{"c": 1}] * 38)
    split_of_row, notes = stratify.assign_splits(rows, 0.2, 0.1, 0)
    assert pd.crosstab(rows["label"], split_of_row)[["val", "test"]].values.tolist() == [[7, 3], [1, 1], [8, 4]]
    assert notes == []


def test_a_side_resting_on_one_group_is_noted_with_what_to_do():
    rows = rows_of([{"Apple": 120}] * 10 + [{"Cherry": 1}] * 150)
    _, notes = stratify.assign_splits(rows, 120, 0, 0)
    wanted = "Apple: the 120 val photos are 1 group, so they count for little more than one: a share such as"
    assert len([note for note in notes if "Apple" in note]) == 1
    assert notes[0] == f"{wanted} val_per_class: 0.2 may take more of them"


def test_photos_chained_through_groups_and_boxes_stay_together():
    """Two boxes of photo 2 are in different groups: all photos of both groups are one unit."""
    rows = rows_of([{"a": 1}] * 6)
    chain = [("z/1.jpg", "x"), ("z/2.jpg#xywh=0,0,9,9", "x"), ("z/2.jpg#xywh=9,0,9,9", "y"), ("z/3.jpg", "y")]
    chain += [("z/4.jpg#xywh=0,0,9,9", ""), ("z/4.jpg#xywh=5,0,9,9", "")]
    rows = pd.concat([rows, pd.DataFrame([(p, "a", g, "") for p, g in chain], columns=rows.columns)], ignore_index=True)
    for seed in range(20):
        split_of_row, _ = stratify.assign_splits(rows, 2, 2, seed)
        assert len(set(split_of_row[6:10])) == 1 and len(set(split_of_row[10:])) == 1


def test_rows_without_a_split_follow_their_group_into_a_predefined_part():
    rows = rows_of([{"a": 3}] * 2 + [{"a": 1}] * 10)
    rows.loc[0, "split"] = "test"
    split_of_row, _ = stratify.assign_splits(rows, 2, 5, 0)
    assert (
        (split_of_row[:3] == "test").all()
        and (split_of_row == "test").sum() == 3
        and (split_of_row == "val").sum() == 2
    )


def test_a_given_split_that_divides_a_group_is_kept_with_a_note():
    rows = rows_of([{"a": 2}] * 3 + [{"a": 1}] * 12 + [{"b": 1}] * 12)
    rows.loc[[0, 1, 14], "split"] = ["train", "test", "test"]
    manifest, notes = divided(rows, val_per_class=1)
    assert manifest["split"].tolist()[:2] == ["train", "test"] or manifest["split"].tolist()[:2] == ["val", "test"]
    assert notes[-1] == "the given split divides what belongs together: 1 group, such as g0: see leaks"
    assert splits.leaks(manifest)["value"].tolist() == ["g0"]


# ---- folds


@examples(max_examples=80, deadline=None)
@given(
    units=st.lists(st.dictionaries(st.sampled_from("ab"), st.integers(1, 4), min_size=1), min_size=8, max_size=30),
    folds=st.integers(2, 4),
    repeats=st.integers(1, 3),
    test=st.sampled_from([0, 2]),
)
def test_every_photo_of_the_pool_validates_once_per_repeat(units, folds, repeats, test):
    rows = rows_of(units)
    try:
        manifest, _ = divided(rows, test_per_class=test, folds=folds, repeats=repeats)
    except InputError as problem:
        assert "fold" in str(problem) or "too few" in str(problem)
        return
    assert splits.leaks(manifest).empty
    pool = set(manifest.loc[manifest["split"] == "train", "path"])
    assert pool == set(rows["path"]) - set(splits.part(manifest, "test")["path"])
    for repeat in range(1, repeats + 1):
        validated = Counter()
        for fold in range(1, folds + 1):
            train, val = (splits.part(manifest, split, fold, repeat) for split in ("train", "val"))
            assert set(train["path"]) == pool - set(val["path"])
            assert set(val["label"]) == set(train["label"]) == set(rows["label"])
            assert not (set(train["group"]) & set(val["group"])) - {""}
            validated.update(val["path"])
        assert validated == Counter(pool)
        table = splits.fold_counts(manifest, repeat)
        assert table.loc["all"].sum() == len(pool) and list(table) == list(range(1, folds + 1))


def test_repeats_and_seeds_give_other_folds_and_folds_are_even():
    rows = rows_of([{"a": 1}] * 40 + [{"b": 3}] * 20 + [{"c": size} for size in range(5, 25)])
    manifest, _ = divided(rows, test_per_class=0, folds=5, repeats=4)
    folds = manifest["fold"].str.split(expand=True)
    for one, other in itertools.combinations(folds, 2):
        assert len(manifest.groupby([folds[one], folds[other]])) > 5  # another division, not only other names
    assert splits.fold_counts(manifest, 3).loc["a"].tolist() == [8] * 5
    assert splits.fold_counts(manifest, 3).loc["b"].tolist() == [12] * 5
    sizes = splits.fold_counts(manifest).loc["c"]
    assert sizes.max() < 1.5 * sizes.min()
    assert divided(rows, test_per_class=0, folds=5, repeats=4)[0]["fold"].equals(manifest["fold"])
    assert not divided(rows, test_per_class=0, folds=5, split_seed=1)[0]["fold"].equals(folds[0])


def test_uneven_folds_are_noted():
    _, notes = divided(rows_of([{"a": size} for size in (60, 9, 8)] + [{"b": 9}] * 3), test_per_class=0, folds=3)
    assert notes == ["folds differ in size: the largest holds 69, the smallest 17 photos, as groups are never divided"]


def test_a_class_of_fewer_groups_than_folds_is_refused():
    rows = rows_of([{"Apple": 4}] * 3 + [{"Cherry": 1}] * 20)
    with pytest.raises(InputError, match="class Apple has 3 groups, fewer than folds 4: lower folds or add groups"):
        divided(rows, test_per_class=0, folds=4)
    with pytest.raises(
        InputError, match="class a has 5 photos, at least 7 are needed for folds 4 and test_per_class 3"
    ):
        divided(rows_of([{"a": 1}] * 5 + [{"b": 1}] * 9), folds=4)


def test_folds_that_no_draw_can_fill_are_refused():
    """Three classes in two groups each, of which every pair shares a class: two folds cannot keep them all apart."""
    rows = rows_of([{"x": 1, "y": 1}, {"y": 1, "z": 1}, {"z": 1, "x": 1}])
    with pytest.raises(InputError, match=r"folds 2: in 20 draws a fold held no [xyz]: lower folds or add groups"):
        divided(rows, test_per_class=0, folds=2)


def test_a_predefined_val_part_joins_the_folds_with_a_note():
    rows = rows_of([{"a": 1}] * 12 + [{"b": 1}] * 12)
    rows.loc[[0, 1, 12, 13], "split"] = "val"
    rows.loc[[2, 14], "split"] = "test"
    manifest, notes = divided(rows, folds=2)
    assert notes[0] == "4 photos of the predefined val part joined the folds"
    assert notes[1:] == ["the photos bring their own test part: test_per_class is not used"]
    assert (manifest["fold"] != "").sum() == 22 and splits.counts(manifest).loc["all"].tolist() == [22, 0, 2]
    assert manifest.loc[[2, 14], "fold"].tolist() == ["", ""]


def test_an_unknown_fold_or_repeat_is_refused():
    manifest, _ = divided(rows_of([{"a": 1}] * 12 + [{"b": 1}] * 12), folds=3)
    for fold, repeat, words in ((4, 1, "fold = 4: .*1 to 3"), (-1, 1, "fold = -1"), (1, 2, "repeat = 2")):
        with pytest.raises(InputError, match=words):
            splits.part(manifest, "val", fold, repeat)
    assert len(splits.some_of_each(manifest, "val", 2)) == 4


# ---- subset


@examples(max_examples=80, deadline=None)
@given(
    units=st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(1, 5), min_size=1), min_size=3, max_size=25),
    share=st.sampled_from([0.01, 0.3, 0.5, 0.9]),
    seed=st.integers(0, 3),
)
def test_a_subset_takes_whole_groups_of_every_class(units, share, seed):
    rows = rows_of(units)
    chosen = stratify.subset(rows, share, seed)
    assert set(chosen["status"]) <= {"ok", "left_out"} and len(chosen) == len(rows)
    assert set(chosen.loc[chosen["status"] == "ok", "label"]) == set(rows["label"])
    assert chosen.groupby(rows["group"].where(rows["group"] != "", rows["path"]))["status"].nunique().max() == 1
    shuffled = rows.sample(frac=1, random_state=seed)
    assert stratify.subset(shuffled, share, seed).sort_index().equals(chosen)


def test_a_subset_comes_close_to_its_share_in_every_class_and_part():
    rows = rows_of([{"a": 1}] * 200 + [{"b": 5}] * 40 + [{"c": 1}] * 7)
    rows.loc[rows.index[:100], "split"] = "test"
    chosen = stratify.subset(rows, 0.1, 0)
    used = chosen[chosen["status"] == "ok"].groupby(["label", "split"]).size()
    assert used.to_dict() == {("a", ""): 10, ("a", "test"): 10, ("b", ""): 20, ("c", ""): 1}
    assert set(chosen.loc[chosen["status"] == "left_out", "split"]) == {""}
    assert not stratify.subset(rows, 0.1, 1)["status"].equals(chosen["status"])
    assert stratify.subset(rows, 1, 0)["split"].equals(rows["split"])


# ---- what leaks, and the fingerprint


def test_leaks_are_listed():
    rows = [("a/1", "train", "", "x"), ("a/2", "test", "", "x"), ("b/1", "val", "g", "y"), ("b/2", "train", "g", "z")]
    rows += [("c#xywh=0,0,1,1", "train", "", "p"), ("c#xywh=1,0,1,1", "val", "", "q"), ("d", "", "g", "y")]
    manifest = pd.DataFrame(rows, columns=["path", "split", "group", "sha256"]).assign(fold="")
    expected = [["group", "g", "train + val"], ["sha256", "x", "test + train"], ["photo", "c", "train + val"]]
    assert splits.leaks(manifest).values.tolist() == expected


def test_leaks_across_folds_are_listed_in_any_repeat():
    manifest = manifest_of(rows_of([{"a": 2}, {"a": 2}]), split="train", fold=["1 1", "1 2", "2 2", "2 2"])
    assert splits.leaks(manifest).values.tolist() == [["group", "g0", "fold 1 + fold 2"]]


def test_a_random_split_leaks_near_identical_photos_and_ours_does_not():
    """Bursts of five shots of one fruit: a plain random split puts near-copies of training photos into the test."""
    rows = rows_of([{label: 5} for label in "ab" for _ in range(20)])
    ours, _ = divided(rows, val_per_class=20, test_per_class=20)
    drawn = np.random.default_rng(0).permutation(["train"] * 120 + ["val"] * 40 + ["test"] * 40)
    assert len(splits.leaks(ours.assign(split=drawn))) > 30
    assert splits.leaks(ours).empty


@pytest.mark.parametrize("column", ["path", "label", "split", "fold", "status", "sha256"])
def test_the_fingerprint_depends_on_what_training_depends_on(column):
    manifest, _ = divided(rows_of([{"a": 1}] * 12 + [{"b": 1}] * 12), folds=3)
    changed = manifest.copy()
    changed.loc[5, column] = "other"
    assert splits.fingerprint(changed) != splits.fingerprint(manifest)
    assert splits.fingerprint(manifest.assign(reason="odd")) == splits.fingerprint(manifest)


def test_the_fingerprint_is_the_same_everywhere():
    rows = pd.DataFrame({"path": ["사과/1.png"], "label": ["사과"], "group": [""], "split": ["train"]})
    assert splits.fingerprint(manifest_of(rows)) == "4492343def4c"


def test_an_empty_side_shows_no_photos():
    manifest, _ = divided(rows_of([{"a": 1}] * 12 + [{"b": 1}] * 12), test_per_class=0)
    assert splits.part(manifest, "test").empty and splits.some_of_each(manifest, "test", 3).empty
    assert splits.some_of_each(manifest, "train", 3)["label"].tolist() == ["a"] * 3 + ["b"] * 3


def test_train_share_keeps_whole_groups_nests_and_touches_no_other_class():
    rows = pd.DataFrame({"label": ["a"] * 40 + ["b"] * 20, "split": "train", "status": "ok"})
    rows["group"] = [f"{label}{i // 4}" for i, label in enumerate(rows["label"])]
    rows["path"] = [f"{label}/{i}.png" for i, label in enumerate(rows["label"])]
    settings = {"train_share": 0.5, "share_class": "a", "seed": 3}
    half = splits.training_rows(rows, config.make(settings))
    assert half["label"].value_counts().to_dict() == {"a": 20, "b": 20}
    sizes = half[half["label"] == "a"].groupby("group").size()
    assert (sizes == 4).all()
    fifth = splits.training_rows(rows, config.make(settings | {"train_share": 0.2}))
    assert set(fifth["path"]) < set(half["path"]) and (fifth["label"] == "a").sum() == 8
    other = splits.training_rows(rows, config.make(settings | {"seed": 4}))
    assert set(other["path"]) != set(half["path"])
    assert splits.training_rows(rows, config.make({"train_share": 0.6}))["label"].value_counts().to_dict() == {
        "a": 24,
        "b": 12,
    }
    with pytest.raises(InputError, match="share_class = c: no such class"):
        splits.training_rows(rows, config.make({"train_share": 0.5, "share_class": "c"}))


def test_shuffled_labels_are_the_same_ones_elsewhere():
    rows = pd.DataFrame({"label": list("ab" * 30), "path": [str(i) for i in range(60)]})
    shuffled = splits.training_rows(rows, config.make({"train_labels": "shuffled"}))
    assert sorted(shuffled["label"]) == sorted(rows["label"]) and shuffled["path"].tolist() == rows["path"].tolist()
    assert 10 < (shuffled["label"] != rows["label"]).sum() < 50


def test_a_division_is_made_anew_only_with_a_word(collection, tmp_path, capsys):
    """Other settings or changed photos: a note names what has changed. Other photos: 02 refuses."""
    splits.prepare_manifest(settings(collection), tmp_path / "a")
    splits.prepare_manifest(settings(collection), tmp_path / "a")
    assert capsys.readouterr().out == ""
    splits.prepare_manifest(settings(collection, split_seed=7), tmp_path / "a")
    assert "divided again" in (line := capsys.readouterr().out) and "split_seed was 0 and is 7" in line
    splits.prepare_manifest(settings(collection, split_seed=7), tmp_path / "a", same_photos=True)
    with pytest.raises(InputError, match=r"holds a division of .*, and data is sample here: set data: "):
        splits.prepare_manifest(settings("sample"), tmp_path / "a", same_photos=True)
