"""Trees of folders as people and public sets have them: what is a class, a part, a group; or one line why not."""

import pytest

from fruitlib.core import config
from fruitlib.core.errors import InputError
from fruitlib.data import part_names, sources

TWO = ("apple", "cherry")


def classes(*above):
    """Two class folders in each of some folders."""
    return [f"{folder}/{name}" for folder in above for name in TWO]


def make(folder, places):
    """Two photos in every place; a place that ends in / stays empty."""
    for place in places:
        (folder / place).mkdir(parents=True, exist_ok=True)
        for number in range(0 if place.endswith("/") else 2):
            (folder / place / f"{number}.jpg").write_bytes(b"never opened here")
    return folder


def scan(folder):
    return sources.scan(config.make({"data": str(folder)}))


def found(folder):
    """The photos of each (split, label), and the notes."""
    rows, notes = scan(folder)
    return rows.groupby(["split", "label"]).size().to_dict(), "; ".join(notes)


@pytest.mark.parametrize(
    ("places", "splits", "note"),
    [
        (classes("training_set", "test_set"), "train test", ""),
        ([*classes("seg_train/seg_train", "seg_test/seg_test"), "seg_pred/seg_pred"], "train test", "seg_pred has no"),
        (classes("train_images", "val_images"), "train val", ""),
        (classes("Training", "Testing"), "train test", ""),
        (classes("train", "dev"), "train val", ""),
        (classes("train", "eval"), "train val", ""),
        (classes("trainset", "valid", "testset"), "train val test", ""),
        (classes("fruit_train", "fruit_test"), "train test", ""),
        (classes("train", "seg_test"), "train test", ""),
        ([*classes("TrainImages", "TestImages"), "annotations/x/"], "train test", "skipped: annotations"),
        (classes("images/train", "images/val"), "train val", "the folder images was looked into"),
        (classes("set/pictures/train", "set/pictures/test"), "train test", "the folder set/pictures was looked into"),
        (classes("train/images", "test/images"), "train test", ""),
        ([f"{name}/{part}" for name in TWO for part in ("train", "val", "test")], "train val test", ""),
        ([f"data/{name}/{part}" for name in TWO for part in ("Train", "Test")], "train test", "data was looked into"),
        (
            ["apple/t1/train", "apple/t2/test", "apple/t2/train", "cherry/t1/train", "cherry/t2/test"],
            "train test",
            "taken as groups",
        ),
        ([*classes("train"), "test"], "", "test has no class folders, so its photos have no label: 2 photos are not"),
        ([*classes("train"), "test/images"], "", "only the train part has class folders: its photos are divided"),
        ([*classes("train", "val"), "test"], "train val", "test has no class folders"),
        (classes("train"), "", "the folder train was looked into: it is the only one with photos"),
        ([*classes("train"), "test/"], "", "folders without photos were skipped: test"),
        (classes("photos"), "", "the folder photos was looked into"),
        (classes("archive/Fruit photos"), "", "the folder archive/Fruit photos was looked into"),
        ([*classes("images"), "labels/apple/"], "", "folders without photos were skipped: labels"),
        ([*classes("dataset"), "splits/"], "", "folders without photos were skipped: splits"),
        (["apple/images", "cherry/images"], "", "the folders images within the class folders are no groups"),
        (["apple/train", "cherry/train"], "", "the folders train within the class folders are no groups"),
        ([*TWO, "unlabeled"], "", "unlabeled has no class folders"),
        (
            [*classes("train", "test"), "papers/", "odd fruit"],
            "train test",
            "the parts were skipped: odd fruit, papers",
        ),
    ],
)
def test_parts_are_honoured_at_any_level_and_folders_too_many_are_looked_into(tmp_path, places, splits, note):
    counts, notes = found(make(tmp_path, places))
    assert set(counts) == {(split, label) for split in splits.split() or [""] for label in TWO}
    assert (note in notes) if note else notes == ""


@pytest.mark.parametrize(
    "names",
    [
        ("bus", "train", "tram"),
        ("bus/a", "bus/b", "train/c", "train/d", "tram"),
        ("valid", "invalid"),
        ("test tube", "train station"),
        ("steam train", "freight train", "train", "bus"),
        ("image", "text"),
        ("fold", "flat"),
    ],
)
def test_a_class_may_be_named_as_a_part_where_no_other_part_is(tmp_path, names):
    rows, _ = scan(make(tmp_path, names))
    assert set(rows["label"]) == {name.split("/")[0] for name in names} and set(rows["split"]) == {""}


@pytest.mark.parametrize(
    ("places", "words"),
    [
        (["bus", "train", "test"], "test, train are parts but hold no class folders.*if they are classes, rename"),
        (["train", "test"], "test, train are parts but hold no class folders"),
        (["train", "seg_test"], "seg_test, train are parts but hold no class folders"),
        (["fruit_train", "seg_test"], "fruit_train, seg_test are parts but hold no class folders"),
        (["train/images", "val/images", "train/labels/", "val/labels/"], "hold no class folders"),
        ([*TWO, "test"], "test stands beside apple, cherry: is it a part or a class.* a class needs another name"),
        ([*TWO, "train_images"], "train_images stands beside apple, cherry: is it"),
        ([*classes("train"), "misc"], "train stands beside misc: is it"),
        ([*classes("train"), "extra/apple", "more/pear"], "train stands beside extra, more: is it"),
        ([*classes("train", "test", "extra")], "extra beside them holds the same classes: move it away"),
        ([*classes("train", "test"), "apple"], "apple beside them holds the same classes"),
        (classes("Training", "train", "test"), "Training and train are both the train part"),
        (classes("train", "dev", "eval"), "dev and eval are both the val part"),
        (classes("test", "val"), "needs one train and one test .or val. folder.*add train"),
        (classes("train", "test", "pred"), "pred holds folders: which classes are they"),
        ([f"train/{name}/{part}" for name in TWO for part in ("train", "test")] + classes("test"), "once more"),
        (["apple/train", "apple/test", "cherry"], "cherry holds photos outside parts such as those of apple"),
        (["apple/train", "apple/test", "apple/old", "cherry/train", "cherry/test"], "old beside the parts that apple"),
        (["apple/train", "cherry/test"], "the class folders hold test, train, one each"),
        (["apple/train", "apple/test", "cherry/train"], "the test part has no class folder cherry: add photos of it"),
        ([*classes("train"), "test/apple"], "test part has no class folder cherry.*move them out of the parts"),
        ([*classes("train"), "test/apple", "test/cherry/"], "empty class folders: test/cherry: add photos of it there"),
        ([*TWO, "kiwi/"], "empty class folders: kiwi: add photos, or remove"),
        (["apple/tree 1", "apple/tree 2", "cherry/"], "empty class folders: cherry"),
        ([*TWO, "all"], "all: a name for a collection of photos"),
        ([*TWO, "splits"], "splits: a name for a collection"),
        (classes("fold_1", "fold 2"), "fold 2, fold_1: folds are not read from folders"),
        (classes("images", "masks"), "images stands beside masks: which holds the class folders"),
        (classes("a/b/c"), "1 class folders with photos"),
        ([""], "photos, but no class folders: put the photos of each class"),
        ([], "no photos in it or below it"),
        (["\u200b", "apple"], "the name of a class folder shows nothing"),
        (["A", "a"], "the classes A and a differ only in upper and lower case"),
    ],
)
def test_a_layout_that_is_not_clear_is_refused_in_one_line(tmp_path, places, words):
    with pytest.raises(InputError, match=words) as problem:
        scan(make(tmp_path, places))
    assert str(tmp_path) in str(problem.value) and "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("one", "other", "label", "note"),
    [
        ("\u00c4pfel", "A\u0308pfel", "\u00c4pfel", "look the same were joined: \u00c4pfel"),
        ("red apple", "red\u00a0apple", "red apple", "look the same were joined: red apple"),
        ("Apple/tree", "apple/tree", "Apple", "differ in case were joined: Apple is Apple (2), apple (2)"),
        ("1", "1.0", "1", "same number were joined: 1 is 1 (2), 1.0 (2)"),
    ],
)
def test_class_folders_that_look_equal_are_one_class_and_their_groups_one_group(tmp_path, one, other, label, note):
    rows, notes = scan(make(tmp_path, [one, other, "cherry"]))
    assert rows["label"].value_counts().to_dict() == {label: 4, "cherry": 2}
    assert note in "; ".join(notes)
    assert set(rows["group"]) == ({"", "Apple/tree"} if "/" in one else {""})
    assert all((tmp_path / path).is_file() for path in rows["path"])  # as the disk spells them


def test_folders_with_the_same_names_in_all_classes_may_be_the_classes_and_that_is_said(tmp_path):
    _, notes = found(make(tmp_path, classes("colour", "grey")))
    assert "hold the folders apple, cherry: taken as groups; if they are the classes, rename the folders above" in notes


def test_a_table_beside_photos_without_class_folders_is_named(tmp_path):
    (make(tmp_path, ["train", "test"]) / "train.csv").touch()
    with pytest.raises(
        InputError, match=r"set data to a table with the columns path and label \(here lies train.csv\)"
    ):
        scan(tmp_path)


def test_groups_by_file_names_that_look_equal_are_one_group(tmp_path):
    for label, names in {"apple": ["\u00e9__1.jpg", "e\u0301__2.jpg"], "cherry": ["x__1.jpg"]}.items():
        (tmp_path / label).mkdir()
        for name in names:
            (tmp_path / label / name).touch()
    rows, _ = sources.scan(config.make({"data": str(tmp_path), "group_pattern": "<tree>__<view>"}))
    assert rows["group"].tolist() == ["apple/\u00e9", "apple/\u00e9", "cherry/x"]


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    make(tmp_path, TWO)
    monkeypatch.setattr("os.scandir", lambda folder: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(InputError, match=r"the folder cannot be read \(Permission denied\): check its permissions"):
        scan(tmp_path)


@pytest.mark.parametrize(
    "on_disk", ["caf\u00e9 1.jpg", "cafe\u0301 1.jpg", "caf\u00e9\u00a01.jpg", "caf\u00e9 1\u200b.jpg"]
)
@pytest.mark.parametrize("in_table", ["caf\u00e9 1.jpg", "cafe\u0301 1.jpg"])
def test_a_photo_is_found_however_the_disk_spells_its_name(tmp_path, on_disk, in_table):
    (tmp_path / "U\u0308bung").mkdir()
    (tmp_path / "U\u0308bung" / on_disk).touch()
    file, box = sources.locate(tmp_path, f"\u00dcbung/{in_table}#xywh=1,2,3,4")
    assert file.is_file() and box == (1, 2, 3, 4)
    missing = sources.locate(tmp_path, "\u00dcbung/other.jpg")[0]
    assert missing == tmp_path / "\u00dcbung" / "other.jpg"
    later = tmp_path / "U\u0308bung" / "other\u00a0one.jpg"
    later.touch()
    assert sources.locate(tmp_path, "\u00dcbung/other one.jpg")[0] == later  # made since the folder was read


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("TRAIN", "train"),
        ("val2017", "val"),
        ("Validation set", "val"),
        ("testImages", "test"),
        ("train_test", None),
        ("trainer", None),
        ("contest", None),
        ("training day", None),
        ("evaluation-data", "val"),
        ("un\u00e9 train", None),
    ],
)
def test_words_in_names_tell_parts(name, part):
    assert part_names.part_of(name) == part
