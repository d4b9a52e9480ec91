"""Photos listed as people have them: folders, parts, tables and names; nothing is opened, nothing silently dropped."""

import os
import re
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fruitlib.core import config
from fruitlib.core.errors import InputError
from fruitlib.data import sources, table_text


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"never opened here")


def scan(data, **settings):
    return sources.scan(config.make({"data": str(data), **settings}))


def listed(data, column="path", **settings):
    return scan(data, **settings)[0][column].tolist()


@pytest.fixture
def collection(tmp_path):
    """Two classes of three; a Korean and a spaced name among them."""
    for label in ("사과", "sour cherry"):
        touch(*(tmp_path / "photos" / label / f"한 장 {i:02d}.png" for i in range(3)))
    return tmp_path / "photos"


@pytest.fixture
def parts(tmp_path):
    """Training and Test of two classes, each photo in a folder of its variety."""
    for part in ("Training", "Test"):
        for label in ("Apple", "Cherry"):
            touch(*(tmp_path / "set" / part / label / f"{part} variety {i // 2}" / f"{i}.jpg" for i in range(4)))
    return tmp_path / "set"


def table(folder, text, name="photos.csv", encoding="utf-8"):
    """A table; and beside it the photos that these tests name in theirs."""
    touch(*(folder / photo.strip(" /") for photo in re.findall(r"[\w/ ]+\.jpg|\b[abc]\b", text.replace("\\", "/"))))
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


# ---- folders


def test_every_photo_is_listed_once_in_order_and_unopened(collection):
    rows, notes = scan(collection)
    assert list(rows.columns) == ["path", "label", "group", "split"]
    assert rows["path"].tolist() == sorted(p.relative_to(collection).as_posix() for p in collection.rglob("*.png"))
    assert rows["label"].value_counts().to_dict() == {"사과": 3, "sour cherry": 3}
    assert set(rows["group"]) == set(rows["split"]) == {""} and notes == []


def test_hidden_files_and_folders_are_neither_photos_nor_classes(collection):
    touch(collection / ".ipynb_checkpoints" / "copy.png", collection / "사과" / ".thumbnails" / "s" / "small.png")
    touch(collection / "사과" / "notes.txt", collection / "사과" / "._0.png", collection / "stray.png")
    rows, notes = scan(collection)
    assert len(rows) == 6
    assert "3 files are hidden or not photos: skipped" in notes
    assert "1 photo lies beside the class folders, without a class: not used; the first is stray.png" in notes
    assert any(".txt 1" in note for note in notes)


@pytest.mark.parametrize(
    "name", ["a.JPG", "a.jfif", "a.jpe", "a.tif", "a.avif", "a.heic", "b.c.webp", "a#1.jpg", "a.PPM", "a.jp2"]
)
def test_photos_of_phones_and_scanners_are_listed(collection, name):
    touch(collection / "사과" / name)
    assert f"사과/{name}" in listed(collection)


def test_folders_inside_a_class_are_groups(tmp_path):
    for label in ("apple", "cherry"):
        touch(
            tmp_path / label / "old" / "tree 1" / "0.jpg",
            tmp_path / label / "old" / "1.jpg",
            tmp_path / label / "2.jpg",
        )
    groups = scan(tmp_path)[0].set_index("path")["group"].to_dict()
    assert groups["apple/old/tree 1/0.jpg"] == "apple/old/tree 1"
    assert groups["apple/old/1.jpg"] == "apple/old" and groups["apple/2.jpg"] == ""


def test_links_are_followed_and_broken_ones_are_listed(collection, tmp_path_factory):
    place = tmp_path_factory.mktemp("elsewhere") / "cherries"
    shutil.copytree(collection / "sour cherry", place)
    (collection / "사과" / "group").symlink_to(place)
    (collection / "사과" / "gone.png").symlink_to(collection / "nowhere.png")
    rows, _ = scan(collection)
    assert (rows["group"] == "사과/group").sum() == 3
    assert "사과/gone.png" in rows["path"].tolist()


def test_a_link_upwards_is_no_loop_and_brings_no_other_class_in(collection):
    (collection / "사과" / "again").symlink_to(collection / "사과")
    (collection / "사과" / "all").symlink_to(collection)
    (collection / "사과" / "itself").symlink_to(collection / "사과" / "itself")
    rows, notes = scan(collection)
    assert len(rows) == 6
    assert "links to folders that are read already were not followed: 사과/again, 사과/all" in notes


def test_links_side_by_side_do_not_multiply_and_what_lies_there_goes_before_links(collection):
    for number in range(14):
        (collection / "사과" / f"{number}").mkdir()
        for name in "ab":
            (collection / "사과" / f"{number}" / name).symlink_to(collection / "사과" / f"{number + 1}")
    (collection / "a cherry").symlink_to(collection / "sour cherry")
    rows, notes = scan(collection)
    assert len(rows) == 6 and set(rows["label"]) == {"사과", "sour cherry"}
    assert any("were not followed: a cherry, 사과/0/a" in note and "and " in note for note in notes)


def test_a_file_name_that_is_no_text_is_named(collection):
    with open(os.fsencode(collection / "사과") + b"/caf\xe9.png", "wb"):
        pass
    with pytest.raises(InputError, match=r"caf.*is not valid UTF-8"):
        scan(collection)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda c: shutil.rmtree(c), "no such folder of photos"),
        (lambda c: (c / "empty").mkdir(), "empty class folders: empty"),
        (lambda c: shutil.rmtree(c / "사과"), ": 1 class folders"),
    ],
)
def test_folders_that_are_no_classes_are_refused(collection, break_it, words):
    break_it(collection)
    with pytest.raises(InputError, match=words) as problem:
        scan(collection)
    assert "\n" not in str(problem.value)


# ---- parts


def test_parts_give_the_split(parts):
    rows, _ = scan(parts)
    assert set(rows["split"][rows["path"].str.startswith("Test/")]) == {"test"}
    assert rows["split"].value_counts().to_dict() == {"train": 8, "test": 8}
    assert rows["group"].iloc[0] == "Apple/Test variety 0"


def test_what_a_clone_holds_beside_the_parts_is_skipped_with_a_note(parts):
    touch(parts / "papers" / "paper.pdf", parts / "test-multiple_fruits" / "many.jpg", parts / ".git" / "HEAD")
    rows, notes = scan(parts)
    assert len(rows) == 16
    assert "folders beside the parts were skipped: papers, test-multiple_fruits" in notes


@pytest.mark.parametrize(("part", "split"), [("Test", "test"), ("Training", "train")])
def test_a_class_that_one_part_lacks_is_named(parts, part, split):
    shutil.rmtree(parts / part / "Cherry")
    with pytest.raises(InputError, match=f"the {split} part has no class folder Cherry"):
        scan(parts)


# ---- tables


@pytest.mark.parametrize(
    ("text", "name", "encoding"),
    [
        ("path,label\na.jpg,01\n\nsub\\b.jpg, 02 \n./c.jpg,01\n", "photos.csv", "utf-8"),
        ("path;label\r\na.jpg;01\r\nsub\\b.jpg;02\r\nc.jpg;01\r\n", "photos.csv", "utf-8-sig"),
        ("label\tnote\tpath\n01\t\ta.jpg\n02\tx, y\tsub/b.jpg\n01\t\tc.jpg\n", "photos.tsv", "utf-8-sig"),
        ('"path","label"\n"a.jpg","01"\n"sub/b.jpg","02"\n"c.jpg","01"', "PHOTOS.CSV", "utf-8"),
    ],
)
def test_tables_are_read_as_spreadsheets_write_them(tmp_path, text, name, encoding):
    rows, notes = scan(table(tmp_path, text, name, encoding))
    assert rows["path"].tolist() == ["a.jpg", "c.jpg", "sub/b.jpg"]
    assert rows["label"].tolist() == ["01", "01", "02"]
    assert set(rows["group"]) == set(rows["split"]) == {""} and notes == []


def test_columns_may_have_other_names_and_odd_words_are_text(tmp_path):
    text = "file,class,tree,part\nNA.jpg,nan,007,Training\nb.jpg,true,,VAL\nc.jpg,nan,,val\nd.jpg,true,,\n"
    names = {"path": "file", "label": "class", "group": "tree", "split": "part"}
    rows, _ = scan(table(tmp_path, text), columns=names)
    assert rows.values.tolist()[0] == ["NA.jpg", "nan", "007", "train"]
    assert rows["split"].tolist() == ["train", "val", "val", ""]


def test_boxes_travel_with_the_path_rounded_outwards_and_as_given(tmp_path):
    rows = "a.jpg,x,10,20,30,40\nb.jpg,y,1.2,2.5,3.1,4\nc.jpg,x,-5,0,-3,0\nd.jpg,y,,,,\ne.jpg,y,8.1,0,0.9,7\n"
    paths = listed(table(tmp_path, f"path,label,x,y,w,h\n{rows}"))
    assert paths[:3] == ["a.jpg#xywh=10,20,30,40", "b.jpg#xywh=1,2,4,5", "c.jpg#xywh=-5,0,-3,0"]
    assert paths[3:] == ["d.jpg", "e.jpg#xywh=8,0,1,7"]


def test_two_corners_are_the_same_box(tmp_path):
    text = "path,label,left,top,x2,y2\na.jpg,x,10,20,40.5,60\nb.jpg,y,,,,\n"
    paths = listed(table(tmp_path, text), columns={"x1": "left", "y1": "top"})
    assert paths == ["a.jpg#xywh=10,20,31,40", "b.jpg"]


def test_columns_that_make_no_box_are_ignored_with_a_note(tmp_path):
    rows, notes = scan(table(tmp_path, "path,label,w,h\na.jpg,x,640,480\nb.jpg,y,640,480\n"))
    assert rows["path"].tolist() == ["a.jpg", "b.jpg"] and notes == ["photos.csv: no boxes were read from w, h"]


def test_boxes_of_one_photo_share_a_group(tmp_path):
    text = (
        "path,label,x,y,w,h\nboth.jpg,a,0,0,5,5\nboth.jpg,b,9,9,5,5\none.jpg,a,1,1,5,5\none.jpg,b,,,,\ntwo.jpg,b,,,,\n"
    )
    rows, _ = scan(table(tmp_path, text))
    assert rows["group"].tolist() == ["both.jpg", "both.jpg", "one.jpg", "one.jpg", ""]


def test_groups_by_name_are_joined_where_a_photo_holds_boxes_of_two(tmp_path):
    boxes = "t1__0.jpg,a,0,0,5,5\nt1__0.jpg,b,9,9,5,5\n"
    text = f"path,label,x,y,w,h\n{boxes}t1__1.jpg,a,,,,\nt1__2.jpg,b,,,,\nt2__0.jpg,b,,,,\n"
    rows, _ = scan(table(tmp_path, text), group_pattern="<tree>__<view>")
    assert rows["group"].nunique() == 2 and rows["group"].iloc[:4].nunique() == 1


def test_rows_given_twice_are_kept_once_with_a_note(tmp_path):
    rows, notes = scan(table(tmp_path, "path,label\na.jpg,x\nb.jpg,y\na.jpg,x\n.\\a.jpg,x\n"))
    assert rows["path"].tolist() == ["a.jpg", "b.jpg"]
    assert notes == ["2 rows of photos.csv name a photo or box again: left out"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,label\na,x\n", r"line 1: no column path; there are: file, label; name .* columns: \{path: file\}"),
        ("path,label,label\na,x,y\n", "line 1: two columns are named label"),
        ("path,label\n", ": 0 classes"),
        ("path,label", ": 0 classes"),
        ("", "line 1: no column path; there are: none"),
        ("path,label\na,x\nb,y\n\n\nc, \n", "line 6: no label"),
        ("path,label\na,x\nb\n", "line 3: no label"),
        ('path,label\n"a\nb",x\n,y\n', "line 4: no path"),
        ("path,label\na,x\nb,c,y\n", "line 3: more fields"),
        ("path,label\na,x,y\nb,c\n", "line 2: more fields"),
        ("path,label\na,x\nb,y\nb,c,y,z\n", "line 4: more fields"),
        ('path,label\na,x\nb,"y\nc,x\n', "line 3: a quotation mark is opened"),
        ("path,label,split\na,x,train\nb,y,holdout\n", "line 3: split holdout: wanted train, val or test"),
        ("path,label,split\na,x,train\nb,y,train\nc,x,test\n", "the test part has no photos of class y"),
        ("path,label,split\na,x,train\nb,y,test\nc,x,test\n", "the train part has no photos of class y"),
        ("path,label\na,x\nb,x\n", ": 1 classes"),
        ("path,label\na,A\nb,a\nc,x\n", "the classes A and a differ only in upper and lower case: if they are one"),
        ("path,label\na,01\nb,1\nc,x\n", "the classes 01 and 1 are the same number: if they are one class"),
        ("path,label\na,x\nb,y\n\na,y\n", "lines 2 and 5: a has two labels, 'x' and 'y'"),
        ("path,label,split\na,x,train\nb,y,train\na,x,test\n", "lines 2 and 4: a has two splits"),
        ("path,label,group,x,y,w,h\na,x,1,1,1,1,1\na,x,2,2,2,2,2\nb,y,,,,,\n", "lines 2 and 3: a has two groups"),
        ("path,label,x,y,w,h\na,x,1,2,3,4\nb,y,1,,3,4\n", "line 3: half a box: give all of x, y, w, h"),
        ("path,label,x,y,w,h\na,x,1,2,3,4\nb,y,1,2,wide,4\n", "line 3: a box that is not four numbers"),
        ("path,label,x,y,w,h\na,x,1,2,3,4\nb,y,1,2,nan,4\n", "line 3: a box that is not four numbers"),
        ("path,label,x,y,w,h\na,x,1,2,3,4\nb,y,1,2,inf,4\n", "line 3: a box that is not four numbers"),
        ("path,label,x,y,w,h\na,x,0.1,0.2,0.3,0.4\nb,y,,,,\n", "line 2: a box in shares of the picture"),
    ],
)
def test_a_wrong_table_is_one_line_with_its_place(tmp_path, text, words):
    with pytest.raises(InputError, match=words) as problem:
        scan(table(tmp_path, text))
    assert "photos.csv" in str(problem.value) and "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"lable": "class"}, r"columns: unknown name lable \(did you mean label\?\)"),
        ({"label": "class"}, "no column class; there are: path, label, x, y"),
        ({"x": "x"}, "columns: a box needs x, y, w, h"),
    ],
)
def test_wrong_names_of_columns_are_refused(tmp_path, columns, words):
    with pytest.raises(InputError, match=words):
        scan(table(tmp_path, "path,label,x,y\na,x,1,1\nb,y,1,1\n"), columns=columns)


def test_a_table_that_is_missing_or_in_another_encoding_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such table"):
        scan(tmp_path / "none.csv")
    with pytest.raises(InputError, match=r"not UTF-8 text .*: save the table as CSV UTF-8"):
        scan(table(tmp_path, "path,label\na.jpg,사과\nb.jpg,y\n", encoding="cp949"))


def test_a_table_longer_than_a_chunk_keeps_its_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(table_text, "CHUNK", 7)
    rows = [f"{i:03d}.jpg,{i % 2}" for i in range(50)]
    assert listed(table(tmp_path, "\n".join(["path,label", *rows])))[-1] == "049.jpg"
    with pytest.raises(InputError, match="line 52: no label"):
        scan(table(tmp_path, "\n".join(["path,label", *rows, "x.jpg,"])))


# ---- groups by file name


def test_a_pattern_groups_photos_by_their_names(tmp_path):
    for label in ("apple", "cherry"):
        touch(*(tmp_path / label / name for name in ("red__1.jpg", "red__2.x.jpg", "a__b__3.png", "odd.jpg")))
        touch(tmp_path / label / "deep" / "red__1.jpg", tmp_path / label / "deep" / "odd.jpg")
    rows, notes = scan(tmp_path, group_pattern="<variety>__<view>")
    groups = rows.set_index("path")["group"].to_dict()
    assert groups["apple/red__1.jpg"] == groups["apple/red__2.x.jpg"] == "apple/red"
    assert groups["cherry/red__1.jpg"] == "cherry/red" and groups["apple/a__b__3.png"] == "apple/a"
    assert groups["apple/deep/red__1.jpg"] == "apple/deep/red"
    assert groups["apple/deep/odd.jpg"] == "apple/deep" and groups["apple/odd.jpg"] == ""
    assert notes == [
        "2 photos do not match group_pattern and stand alone",
        "2 photos do not match group_pattern and keep their folder as group",
    ]


@pytest.mark.parametrize(
    ("template", "stem", "group"),
    [
        ("<view>_<group>", "007_tree 1_a", "tree 1_a"),
        ("IMG(<a>)-<b>", "IMG(3)-4", "3"),
        ("<a>.<b>", "x.y", "x"),
        ("<session>", "all", "all"),
    ],
)
def test_the_field_named_group_else_the_first_is_the_group(tmp_path, template, stem, group):
    touch(tmp_path / "a" / f"{stem}.jpg", tmp_path / "b" / f"{stem}.jpg")
    assert listed(tmp_path, "group", group_pattern=template) == [f"a/{group}", f"b/{group}"]


@pytest.mark.parametrize("template", ["plain", "<a", "a>_<b>", "<a><b>", "<a>_<a>", "<>_x", "<<a>>"])
def test_a_pattern_that_is_none_is_refused(collection, template):
    with pytest.raises(InputError, match="group_pattern = "):
        scan(collection, group_pattern=template)


def test_a_pattern_that_matches_nothing_is_refused(collection):
    with pytest.raises(InputError, match="group_pattern <a>__<b> matches no file name, such as 한 장 00"):
        scan(collection, group_pattern="<a>__<b>")


def test_a_pattern_groups_a_table_without_groups_and_leaves_one_with(tmp_path):
    plain = table(tmp_path, "path,label\nphotos/r__1.jpg,a\nr__2.jpg,b\n")
    assert listed(plain, "group", group_pattern="<v>__<i>") == ["a/r", "b/r"]
    given = table(tmp_path, "path,label,group\nr__1.jpg,a,g\nr__2.jpg,b,\n", "given.csv")
    rows, notes = scan(given, group_pattern="<v>__<i>")
    assert rows["group"].tolist() == ["g", ""] and notes == ["group_pattern was not used: given.csv gives groups"]


# ---- names, files and boxes


def test_names_are_folders_of_the_project(tmp_path, monkeypatch):
    monkeypatch.setenv("FRUITLIB_HOME", str(tmp_path))
    assert sources.root("sample") == tmp_path / "data" / "sample"
    assert sources.root("mine/photos.csv") == tmp_path / "mine"
    assert sources.root("mine") == tmp_path / "mine"
    with pytest.raises(InputError, match="run: fruitlib data fetch fruits-360-3-body"):
        scan("fruits-360-3-body")
    (tmp_path / "data" / "fruits-360-3-body").mkdir(parents=True)
    assert sources.ready("fruits-360-3-body") == tmp_path / "data" / "fruits-360-3-body"


def test_columns_without_a_table_are_noted(collection):
    assert scan(collection, columns={"path": "file"})[1] == ["columns was not used: data is not a table"]


@pytest.mark.parametrize("name", ["a#b.jpg", "a#xywh=1,2,3.jpg", "#xywh=1,2,3,4.jpg", "a#xywh=1,2,3,4x"])
def test_a_file_with_a_hash_in_its_name_is_a_file(tmp_path, name):
    assert sources.locate(tmp_path, f"c/{name}") == (tmp_path / "c" / name, None)


@given(name=st.text(min_size=1).filter(lambda t: "/" not in t), box=st.tuples(*[st.integers(-99, 10**6)] * 4))
def test_a_box_comes_back_as_it_was_written(tmp_path_factory, name, box):
    folder = tmp_path_factory.getbasetemp()
    assert sources.locate(folder, f"{name}#xywh={','.join(map(str, box))}") == (folder / name, box)


def test_the_real_photos_are_all_listed(real_data):
    rows, _ = scan(real_data / "fruit304", group_pattern="<variety>__<view>")
    assert rows["label"].value_counts().to_dict() == {"apple": 127, "cherry": 127, "tomato": 50}
    assert rows["group"].nunique() == 49
    rows, _ = scan(real_data / "fruits-360-3-body-problem")
    assert rows["split"].value_counts().to_dict() == {"train": 5880, "test": 960}


def test_folders_that_systems_leave_are_not_classes(collection):
    (collection / "__MACOSX" / "사과").mkdir(parents=True)
    (collection / "@eaDir").mkdir()
    rows, _ = scan(collection)
    assert rows["label"].nunique() == 2


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.xlsx", "PK", r"t\.xlsx: a file, but not a \.csv or \.tsv table: save a spreadsheet as CSV UTF-8"),
        (
            "t.csv",
            "path;label;x;y;w;h\na;b;1,5;2;3;4\nc;d;1,5;2;3;4\n",
            r"line 2 \(and 1 more rows\): .*decimal point",
        ),
    ],
)
def test_what_spreadsheets_make_is_explained(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        scan(tmp_path / name)


@pytest.mark.parametrize(
    ("names", "template"),
    [
        ([f"tree{tree}__{view}" for tree in range(3) for view in range(3)], "<group>__<photo>"),
        ([f"patient{one}_slice{part}" for one in range(4) for part in range(2)], "<group>_<photo>"),
        ([f"day {day}-{photo}" for day in range(3) for photo in range(4)], "<group>-<photo>"),
        ([f"IMG_{number}" for number in range(9)], ""),  # a camera's beginning, one for all
        ([f"apple_{kind}{number}" for kind in "ab" for number in range(5)], ""),
        ([f"{number}_photo" for number in range(9)], ""),  # each its own
        ([f"photo{number}" for number in range(9)], ""),
    ],
)
def test_file_names_that_look_like_groups_are_pointed_out(tmp_path, names, template):
    for label in ("a", "b"):
        touch(*(tmp_path / label / f"{name}.jpg" for name in names))
    notes = scan(tmp_path)[1]
    assert any(f"set group_pattern: {template}" in note for note in notes) if template else not notes
    if template:
        assert not any("set group_pattern" in note for note in scan(tmp_path, group_pattern=template)[1])
