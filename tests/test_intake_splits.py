"""From a folder of photos to a split one may trust."""

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fruitlib import config, intake, splits
from fruitlib.runtime import InputError


def photo(path, colour=(200, 30, 30), size=(40, 40), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)


@pytest.fixture
def collection(tmp_path):
    """Two classes of twelve, each photo of its own colour; a Korean and a spaced name among them."""
    for c, label in enumerate(["사과", "sour cherry"]):
        for i in range(12):
            photo(tmp_path / "photos" / label / f"한 장 {i:02d}.png", (20 * i, 100 * c, 7))
    return tmp_path / "photos"


def knobs(folder, **others):
    return config.make({"data": str(folder), "val_per_class": 3, "test_per_class": 3, **others})


def test_counts_are_met_and_bytes_are_the_same_for_a_seed(collection, tmp_path):
    first = splits.prepare(knobs(collection), tmp_path / "a")
    splits.prepare(knobs(collection), tmp_path / "b")
    other = splits.prepare(knobs(collection, split_seed=1), tmp_path / "c")
    assert splits.counts(first).loc["사과"].tolist() == [6, 3, 3]
    assert (tmp_path / "a/manifest.csv").read_bytes() == (tmp_path / "b/manifest.csv").read_bytes()
    assert first["split"].tolist() != other["split"].tolist()
    assert splits.read(tmp_path / "a").equals(first)
    assert set(first["path"]) == {p.relative_to(collection).as_posix() for p in collection.rglob("*.png")}


def test_hidden_files_and_folders_are_no_photos_and_no_classes(collection, tmp_path):
    photo(collection / ".ipynb_checkpoints" / "copy.png")
    photo(collection / "사과" / ".thumbnails" / "small.png")
    (collection / "사과" / "notes.txt").write_text("mine")
    manifest = splits.prepare(knobs(collection), tmp_path / "a")
    assert len(manifest) == 24
    assert "2 files that are hidden or no photos were passed over" in splits.record(tmp_path / "a")["notes"]


def test_folders_inside_a_class_are_groups_and_never_divided(tmp_path):
    for label in ("apple", "cherry"):
        for variety in range(6):
            for view in range(4):
                photo(tmp_path / "photos" / label / f"variety {variety}" / f"{view}.png", (variety, view, len(label)))
    manifest = splits.prepare(knobs(tmp_path / "photos", val_per_class=4, test_per_class=6), tmp_path / "a")
    assert manifest.groupby("group")["split"].nunique().max() == 1
    assert splits.counts(manifest).loc["apple"].tolist() == [12, 4, 8]
    notes = splits.record(tmp_path / "a")["notes"]
    assert "apple: 8 test photos, not 6, since groups are never divided" in notes


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((40, 40), 128 * 256, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert intake.open_photo(tmp_path / "deep.png").getpixel((5, 5)) == (128, 128, 128)


@pytest.mark.parametrize(
    "parts", [["train", "test", "extra"], ["Training", "train", "test"], ["train"], ["test", "val"]]
)
def test_a_division_that_is_not_clear_is_refused(tmp_path, parts):
    for part in parts:
        for label in ("a", "b"):
            photo(tmp_path / part / label / "0.png")
    with pytest.raises(InputError, match="a division into parts needs one train"):
        intake.scan(tmp_path)


def test_train_and_val_without_test_take_the_test_from_train(tmp_path):
    for part, count in (("train", 8), ("valid", 3)):
        for label in ("a", "b"):
            for i in range(count):
                photo(tmp_path / "photos" / part / label / f"{i}.png", (i, len(part), ord(label)))
    manifest = splits.prepare(knobs(tmp_path / "photos"), tmp_path / "s")
    assert splits.counts(manifest).loc["a"].tolist() == [5, 3, 3]


def test_links_are_followed_and_broken_ones_are_bad_photos(collection, tmp_path):
    (collection / "사과" / "group").symlink_to(collection / "sour cherry")
    (collection / "stray.png").write_bytes(b"in no class")
    assert splits.counts(splits.prepare(knobs(collection), tmp_path / "a")).loc["사과"].sum() == 24
    assert "1 files" in splits.record(tmp_path / "a")["notes"][-1]
    (collection / "사과" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match=r"gone\.png"):
        splits.prepare(knobs(collection), tmp_path / "b")


def test_a_file_name_that_is_no_text_is_named(collection):
    with open(os.fsencode(collection / "사과") + b"/caf\xe9.png", "wb"):
        pass
    with pytest.raises(InputError, match=r"caf.*is not valid UTF-8"):
        intake.scan(collection)


def test_a_predefined_test_part_is_kept_and_not_opened(tmp_path):
    for part in ("Training", "Test"):
        for label in ("Apple", "Cherry"):
            for i in range(9):
                photo(tmp_path / "photos" / part / label / f"{part} variety {i // 3}" / f"{i}.png", (i, len(label), 3))
    (tmp_path / "photos" / "Test" / "Apple" / "Test variety 0" / "0.png").write_bytes(b"never to be decoded")
    manifest = splits.prepare(knobs(tmp_path / "photos"), tmp_path / "a")
    test = manifest[manifest["path"].str.startswith("Test/")]
    assert set(test["split"]) == {"test"} and set(test["status"]) == {"sealed"} and set(test["sha256"]) == {""}
    assert splits.counts(manifest).loc["Apple"].tolist() == [6, 3, 9]


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda c: shutil.rmtree(c), "no such folder of photos"),
        (lambda c: (c / "empty").mkdir(), "an empty class folder"),
        (lambda c: shutil.rmtree(c / "사과"), "found 1 class folders"),
        (lambda c: [p.unlink() for p in sorted((c / "사과").iterdir())[6:]], "class 사과 has 6 photos, at least 7"),
        (lambda c: (c / "사과" / "한 장 03.png").write_bytes(b""), r"한 장 03\.png: the file is empty \(0 bytes\)"),
        (lambda c: (c / "사과" / "bad.jpg").write_bytes(b"no image"), r"bad\.jpg: not an image that can be read"),
        (lambda c: truncate(c / "사과" / "한 장 03.png"), r"한 장 03\.png: .*truncated"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(collection, tmp_path, break_it, words):
    break_it(collection)
    with pytest.raises(InputError, match=words) as problem:
        splits.prepare(knobs(collection), tmp_path / "a")
    assert "\n" not in str(problem.value)
    assert not (tmp_path / "a").exists()


def truncate(path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:3000])


def test_quarantine_keeps_the_bad_photo_in_the_manifest_with_its_reason(collection, tmp_path):
    (collection / "사과" / "bad.jpg").write_bytes(b"no image")
    manifest = splits.prepare(knobs(collection, bad_photos="quarantine"), tmp_path / "a")
    bad = manifest[manifest["status"] == "quarantined"]
    assert bad["path"].tolist() == ["사과/bad.jpg"] and bad["reason"].iloc[0] and bad["split"].iloc[0] == ""
    assert splits.counts(manifest).loc["사과", "quarantined"] == 1


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side, as a phone does
    photo(tmp_path / "phone.jpg", size=(40, 20), exif=exif)
    assert intake.inspect(tmp_path / "phone.jpg")[:4] == ("ok", "", 20, 40)


def test_a_change_in_the_photos_makes_a_new_split(collection, tmp_path):
    splits.prepare(knobs(collection), tmp_path / "a")
    before = splits.fingerprint(splits.read(tmp_path / "a"))
    photo(collection / "사과" / "new.png", (1, 2, 3))
    assert len(splits.prepare(knobs(collection), tmp_path / "a")) == 25
    assert splits.fingerprint(splits.read(tmp_path / "a")) != before


def test_leaks_are_found():
    rows = [("a/1", "train", "", "x"), ("a/2", "test", "", "x"), ("b/1", "val", "g", "y"), ("b/2", "train", "g", "z")]
    manifest = pd.DataFrame(rows, columns=["path", "split", "group", "sha256"])
    assert splits.leaks(manifest).values.tolist() == [["group", "g", "train + val"], ["sha256", "x", "test + train"]]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=5, max_size=25),
    wanted=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 5),
)
def test_any_split_puts_each_photo_on_one_side_and_no_group_on_two(sizes, wanted, seed):
    rows = [(f"a/{g}/{i}", "a", f"a/{g}" if n > 1 else "", "") for g, n in enumerate(sizes) for i in range(n)]
    frame = pd.DataFrame(rows, columns=["path", "label", "group", "split"])
    try:
        found, notes = splits.assign(frame, *wanted, seed)
    except InputError as problem:
        assert "too few" in str(problem)
        return
    assert set(found) == {"train", "val", "test"}
    units = frame["group"].where(frame["group"] != "", frame["path"])
    assert found.groupby(units).nunique().max() == 1
    for split, count in zip(("val", "test"), wanted, strict=True):
        assert (found == split).sum() >= count
        assert (found == split).sum() == count or any(f" {split} photos, not {count}" in note for note in notes)


def test_the_record_is_valid_json_and_names_the_classes(collection, tmp_path):
    splits.prepare(knobs(collection), tmp_path / "a")
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["class_names"] == ["sour cherry", "사과"]
