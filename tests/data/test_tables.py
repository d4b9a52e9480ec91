"""Tables as the world writes them: encodings, blank rows, several labels; and photos that are not where they say."""

import io
import os

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fruitlib.core import config
from fruitlib.core.errors import InputError
from fruitlib.data import photo_paths, sources, table_labels, table_text


def scan(data, **settings):
    return sources.scan(config.make({"data": str(data), **settings}))


def touch(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"never opened here")


def table(folder, text, encoding="utf-8", name="photos.csv"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return folder / name


def refused(data, **settings):
    with pytest.raises(InputError) as problem:
        scan(data, **settings)
    assert "\n" not in str(problem.value)
    return str(problem.value)


# ---- text


@pytest.mark.parametrize(
    ("text", "encoding", "notes"),
    [
        ("path,label\na.jpg,사과\nb.jpg,y\n", "utf-16", ["photos.csv was read as UTF-16"]),
        ("path\tlabel\r\na.jpg\t사과\r\nb.jpg\ty\r\n", "utf-16", ["photos.csv was read as UTF-16"]),
        ("path,label\na.jpg,사과\nb.jpg,y\n", "utf-16-le", ["photos.csv was read as UTF-16"]),
        ("path,label\na.jpg,사과\nb.jpg,y\n", "utf-32", ["photos.csv was read as UTF-32"]),
        ("sep=;\npath;label\na.jpg;사과\nb.jpg;y\n", "utf-8", []),
        ('"sep=;"\r\npath;label\r\na.jpg;사과\r\nb.jpg;y\r\n', "utf-8-sig", []),
        ("sep=|\npath|label\na.jpg|사과\nb.jpg|y\n", "utf-8", []),
        ("path\tlabel\na.jpg\t사과\nb.jpg\ty\n", "utf-8", []),
        ("path,label\ra.jpg,사과\rb.jpg,y\r", "utf-8", []),
    ],
)
def test_encodings_and_separators_of_spreadsheets(tmp_path, text, encoding, notes):
    touch(tmp_path, "a.jpg", "b.jpg")
    rows, message = scan(table(tmp_path, text, encoding))
    assert rows["path"].tolist() == ["a.jpg", "b.jpg"] and rows["label"].tolist() == ["사과", "y"]
    assert message == notes


@pytest.mark.parametrize("label", ["café", "Größe", "Äpfel", "piña"])
def test_western_accents_are_read_with_a_note(tmp_path, label):
    touch(tmp_path, "a.jpg", "b.jpg")
    rows, notes = scan(table(tmp_path, f"path,label\na.jpg,{label}\nb.jpg,y\n", "cp1252"))
    assert rows["label"].tolist() == [label, "y"]
    assert notes == [f"photos.csv is not UTF-8 and was read as Windows-1252, with words such as {label}"]


@pytest.mark.parametrize(
    ("text", "encoding", "words"),
    [
        ("path,label\na,사과\nb,y\n", "cp949", "not UTF-8 text"),
        ("path,label\na,苹果\nb,y\n", "gbk", "not UTF-8 text"),
        ("path,label\na,яблоко\nb,y\n", "cp1251", "not UTF-8 text"),
        ("path,label\na,café\nb,y\n", "mac_roman", "not UTF-8 text"),
        (b"path,label\na,\x00\x01\x02\nb,y\n", "", "not a text file"),
        (b"PK\x03\x04rest", "", "a spreadsheet under the name of a table"),
        (b"\xff\xfea", "", "not a table in UTF-8"),
    ],
)
def test_other_encodings_are_refused(tmp_path, text, encoding, words):
    assert words in refused(table(tmp_path, text, encoding)) and "CSV UTF-8" in refused(tmp_path / "photos.csv")


def test_lines_are_counted_below_a_separator_line(tmp_path):
    touch(tmp_path, "a.jpg")
    path = table(tmp_path, "sep=;\npath;label\na.jpg;x\n\nb.jpg;\n")
    assert "photos.csv line 5: no label" in refused(path)
    assert "line 2: no column path; there are: file, label" in refused(table(tmp_path, "sep=;\nfile;label\na;b\n"))


@pytest.mark.parametrize("blank", ["\n", ",\n", " , \n", ",\n\n,\n", '"",""\n'])
def test_blank_rows_are_skipped_and_counted(tmp_path, blank):
    touch(tmp_path, "a.jpg", "b.jpg")
    rows, notes = scan(table(tmp_path, f"path,label\n{blank}a.jpg,x\n{blank}b.jpg,y\n{blank}{blank}"))
    assert rows["path"].tolist() == ["a.jpg", "b.jpg"]
    number = 4 * blank.count(",")
    assert notes == ([f"{number} blank rows of photos.csv: skipped"] if number else [])
    text = f"path,label,note\na.jpg,x,\n{blank}b.jpg,,\n"
    line = text.splitlines().index("b.jpg,,") + 1
    assert f"line {line}: no label" in refused(table(tmp_path, text))
    assert "line 3: no path" in refused(table(tmp_path, "path,label,note\na.jpg,x,\n,,lost\n"))


# ---- labels


def test_a_column_per_class_is_read(tmp_path):
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    text = "path,apple, sour cherry ,tomato,split\na.jpg,1,0,0,train\nb.jpg,0.0,1.0,0.0,train\nc.jpg,0,,1,train\n"
    rows, notes = scan(table(tmp_path, text))
    assert rows["label"].tolist() == ["apple", "sour cherry", "tomato"]
    assert notes == ["photos.csv: a column per class was read: apple, sour cherry, tomato"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("a,1,0\nb,0,1\nc,1,1\nd,1,1\n", "line 4 (and 1 more rows): several labels (apple, cherry): a photo has one"),
        ("a,1,0\n\nb,0,0\n", "line 4: none of the columns apple, cherry is 1: a photo needs one class"),
        ("a,1,0\nb,0,2\n", "line 1: no column label; there are: path, apple, cherry"),
    ],
)
def test_columns_of_classes_that_name_none_or_several_are_refused(tmp_path, rows, words):
    assert words in refused(table(tmp_path, f"path,apple,cherry\n{rows}"))


def test_facts_of_0_and_1_beside_a_column_of_labels_are_no_classes(tmp_path):
    data = table(tmp_path, "path,Species,sharp,indoors\na,x,1,0\nb,y,0,1\n")
    assert "no column label; there are: path, Species, sharp, indoors" in refused(data)
    assert refused(data).endswith("columns: {label: Species}")


def test_a_field_that_is_no_0_or_1_far_down_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(table_labels, "LOOKED_AT", 2)
    text = "path,apple,cherry\na,1,0\nb,0,1\nc,x,1\n"
    assert "line 4: a field that is not 0 or 1 in one of the columns apple, cherry" in refused(table(tmp_path, text))


@pytest.mark.parametrize(
    ("labels", "several"),
    [
        (["apple|cherry", "apple", "cherry"], {"apple|cherry"}),
        (["apple|cherry", "cherry|apple", "kiwi"], {"apple|cherry", "cherry|apple"}),
        (["apple|cherry", "cherry|kiwi"], {"apple|cherry", "cherry|kiwi"}),
        (["apple;cherry", "cherry"], {"apple;cherry"}),
        (["apple, cherry", "apple", "cherry"], {"apple, cherry"}),
        (["apple, cherry", "cherry, apple"], {"apple, cherry", "cherry, apple"}),
        (["['apple', 'cherry']", "['apple']"], {"['apple', 'cherry']"}),
        (["[apple, cherry]", "kiwi"], {"[apple, cherry]"}),
        (["Pepper, bell", "Corn, maize"], set()),
        (["Pepper, bell healthy", "Pepper, bell scab", "Pepper"], set()),
        (["salt and pepper", "salt", "pepper"], set()),
        (["cherry tomato", "cherry", "tomato"], set()),
        (["fruit|apple", "fruit|cherry"], set()),
        (["a|", "|b", "[x]", "(", "[", "[]]"], set()),
    ],
)
def test_several_labels_in_a_cell_are_told_from_names(labels, several):
    assert set(table_labels.several_in_a_cell(labels)) == several


def test_several_labels_in_a_cell_are_refused_with_the_line(tmp_path):
    text = 'path,label\na,apple\nb,cherry\nc,"apple, cherry"\nd,"apple, cherry"\n'
    line = refused(table(tmp_path, text))
    assert "photos.csv line 4 (and 1 more rows): several labels (apple, cherry): a photo has one class here" in line
    assert "keep its main one, or give each object a row with its box (x, y, w, h); if it is the name of one" in line


def test_labels_in_brackets_or_made_of_others_are_said(tmp_path):
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    text = "path,label\na.jpg,['cherry']\nb.jpg,tomato\nc.jpg,cherry tomato\n"
    rows, notes = scan(table(tmp_path, text))
    assert rows["label"].tolist() == ["cherry", "tomato", "cherry tomato"]
    assert notes == ["photos.csv: labels in brackets, such as ['cherry'], were read without them"]


def test_numbers_and_odd_spaces_are_one_class_and_one_group(tmp_path):
    touch(tmp_path, *(f"{name}.jpg" for name in "abcd"))
    text = "path,label,group\na.jpg,1,t 1\nb.jpg,1.0,t\u00a01\nc.jpg,2,caf\u00e9\nd.jpg,2,cafe\u0301\n"
    rows, notes = scan(table(tmp_path, text))
    assert rows["label"].tolist() == ["1", "1", "2", "2"] and rows["group"].nunique() == 2
    assert len(notes) == 1 and "the same number" in notes[0]


def test_a_label_of_nothing_visible_is_none(tmp_path):
    assert "line 3: no label" in refused(table(tmp_path, "path,label\na,x\nb,\u200b\u00a0\n"))


@pytest.mark.parametrize(
    ("word", "split"), [("Training", "train"), ("valid", "val"), ("dev", "val"), ("TEST", "test"), ("testing", "test")]
)
def test_parts_are_known_by_many_words(tmp_path, word, split):
    touch(tmp_path, *(f"{number}.jpg" for number in range(4)))
    text = f"path,label,split\n0.jpg,x,train\n1.jpg,y,train\n2.jpg,x,{word}\n3.jpg,y,{word}\n"
    assert scan(table(tmp_path, text))[0]["split"].tolist() == ["train", "train", split, split]


@pytest.mark.parametrize(
    ("header", "hint"),
    [
        ("image_id,breed", "columns: {path: image_id, label: breed}"),
        ("Filename,label", "columns: {path: Filename}"),
        ("path,species", "columns: {label: species}"),
        ("x1,y1", "columns: {path: its title}"),
        ("filename,class,xmin,ymin,xmax,ymax", "path: filename, label: class, x1: xmin, y1: ymin, x2: xmax, y2: ymax}"),
    ],
)
def test_a_missing_column_is_named_with_the_one_that_may_be_meant(tmp_path, header, hint):
    assert hint in refused(table(tmp_path, f"{header}\na,b\nc,d\n"))


def test_titles_may_be_in_capitals(tmp_path):
    touch(tmp_path, "a.jpg", "b.jpg")
    rows, notes = scan(table(tmp_path, "Path;LABEL;X;Y;W;H\na.jpg;x;1;2;3;4\nb.jpg;y;;;;\n"))
    assert rows["path"].tolist() == ["a.jpg#xywh=1,2,3,4", "b.jpg"] and notes == []
    assert "two columns are named path" in refused(table(tmp_path, "path,path,label\na.jpg,b.jpg,x\n"))
    assert "no column path; there are: Path, PATH, label" in refused(table(tmp_path, "Path,PATH,label\na,b,x\n"))


def test_boxes_under_other_titles_are_said(tmp_path):
    touch(tmp_path, "a.jpg", "b.jpg")
    data = table(tmp_path, "path,label,xmin,ymin,xmax,ymax\na.jpg,x,1,2,3,4\nb.jpg,y,1,2,3,4\n")
    names = {"x1": "xmin", "y1": "ymin", "x2": "xmax", "y2": "ymax"}
    listed_as = ", ".join(f"{name}: {title}" for name, title in names.items())
    note = f"photos.csv: whole photos were taken; for their boxes, set columns: {{{listed_as}}}"
    assert scan(data)[1] == [note]
    rows, notes = scan(data, columns=names)
    assert rows["path"].tolist() == ["a.jpg#xywh=1,2,2,2", "b.jpg#xywh=1,2,2,2"] and notes == []


# ---- where the photos are


NAMES = ["apple/1.jpg", "apple/2.jpg", "cherry/3.jpg", "cherry/4.jpg"]


def listing(folder, names):
    """A table of these photos, the first half apples."""
    lines = [f"{name},{'apple' if place < len(names) / 2 else 'cherry'}" for place, name in enumerate(names)]
    return table(folder, "\n".join(["path,label", *lines]))


@pytest.mark.parametrize(
    ("named", "there", "photos_dir", "found"),
    [
        (["1", "2", "3", "4"], ["train_images/1.jpg", "train_images/2.JPG", "train_images/3.png", "train_images/4.jpg"],
         "train_images", ["1.jpg", "2.JPG", "3.png", "4.jpg"]),
        (["1.jpg", "2.jpg", "3.jpg", "4.jpg"], ["a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg"],
         ".", ["a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg"]),
        ([f"/home/joe/data/{name}" for name in NAMES], [f"photos/{name}" for name in NAMES], "photos", NAMES),
        ([f"C:\\Users\\joe\\{name}" for name in NAMES], [f"deep/er/{name}" for name in NAMES], "deep/er", NAMES),
        ([f"gs://bucket/{name}" for name in NAMES], [f"photos/x/{name}" for name in NAMES], "photos/x", NAMES),
        ([f"../other/{name}" for name in NAMES], [f"photos/{name}" for name in NAMES], "photos", NAMES),
        (["train/1.jpg", "train/2.jpg", "val/3.jpg", "val/4.jpg"], ["all/1.jpg", "all/2.jpg", "all/3.jpg", "all/4.jpg"],
         "all", ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]),
        (["1", "2", "3", "4"], ["1.jpg", "2.jpg", "3.jpg", "4.jpg", "1.txt"],
         ".", ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]),
    ],
)  # fmt: skip
def test_photos_elsewhere_are_named_with_the_setting_that_finds_them(tmp_path, named, there, photos_dir, found):
    touch(tmp_path / "set", *there)
    data = listing(tmp_path / "set", named)
    line = refused(data)
    folder = (tmp_path / "set" / photos_dir).resolve()
    assert f"none of its 4 photos was found; looked for {'/' if named[0][0] == '/' else tmp_path}" in line
    assert line.endswith(f"; with photos_dir: {folder} all would be")
    for setting in {str(folder), str(folder) if photos_dir == "." else photos_dir}:
        rows, notes = scan(data, photos_dir=setting)
        assert rows["path"].tolist() == found and rows["label"].tolist() == ["apple", "apple", "cherry", "cherry"]
        assert sources.root(str(data), setting).samefile(folder)
        assert all(sources.locate(folder, path)[0].is_file() for path in rows["path"])
        assert named == found or notes == [] or "looked up in" in notes[0]


def test_a_folder_beside_the_tables_folder_is_found_too(tmp_path):
    touch(tmp_path / "set", *(f"images/{name}" for name in NAMES))
    data = listing(tmp_path / "set" / "annotations" / "csv", NAMES)
    assert "set photos_dir to the folder that holds them" in refused(data)  # two folders up: not searched
    data = listing(tmp_path / "set" / "csv", NAMES)
    assert refused(data).endswith(f"; with photos_dir: {tmp_path}/set/images all would be")


@pytest.mark.parametrize(
    ("named", "there", "words"),
    [
        (["1", "2"], ["a/1.jpg", "b/1.jpg", "a/2.jpg"], "1 is not clear in {}: a/1.jpg and b/1.jpg both fit"),
        (["1", "2"], ["1.jpg", "1.png", "2.jpg"], "1 is not clear in {}: 1.jpg and 1.png both fit"),
        (["x/1.jpg", "y/1.jpg"], ["z/1.jpg"], "y/1.jpg is not clear in {}: x/1.jpg would be the same file, z/1.jpg"),
        (["5", "6"], ["a/1.jpg"], "none of its 2 photos was found in {} or below it, such as 5: correct photos_dir"),
    ],
)
def test_a_name_that_fits_two_files_or_none_is_refused(tmp_path, named, there, words):
    touch(tmp_path / "photos", *there)
    line = refused(listing(tmp_path, named), photos_dir=str(tmp_path / "photos"))
    assert words.format(tmp_path / "photos") in line


@pytest.mark.parametrize(
    ("named", "there"),
    [
        (["a.jpg", "b.jpg"], ["a.JPG", "b.Jpg"]),
        (["Train/IMG_1.JPG", "Train/2.jpg"], ["train/img_1.jpg", "train/2.jpg"]),
        (["cafe\u0301/1.jpg", "b/한.jpg"], ["caf\u00e9/1.jpg", "b/\u1112\u1161\u11ab.jpg"]),
        (["a\u00a0b.jpg", "c.jpg"], ["a b.jpg", "c.jpg"]),
    ],
)
def test_names_that_differ_in_case_or_form_are_matched_with_a_note(tmp_path, named, there):
    touch(tmp_path, *there)
    rows, notes = scan(listing(tmp_path, named))
    assert rows["path"].tolist() == sorted(there)
    assert len(notes) == 1 and "found under a name that differs in case, accents or spaces" in notes[0]


def test_a_file_that_another_row_names_is_not_taken_for_one_in_other_case(tmp_path):
    touch(tmp_path, "a.jpg", "b.jpg")
    rows, notes = scan(listing(tmp_path, ["a.jpg", "A.jpg", "b.jpg"]))
    assert "A.jpg" in rows["path"].tolist()
    assert notes == [f"1 of 3 photos were not found in {tmp_path}; the first is A.jpg"]


def test_missing_photos_stay_and_are_said_with_their_part(tmp_path):
    touch(tmp_path, "0.jpg", "1.jpg", "2.jpg")
    lines = [f"{number}.jpg,{'xy'[number % 2]},{'train' if number < 2 else 'test'}" for number in range(6)]
    rows, notes = scan(table(tmp_path, "\n".join(["path,label,split", *lines])))
    assert len(rows) == 6
    assert notes == [f"3 of 6 photos were not found in {tmp_path} (of test 3); the first is 3.jpg"]


def test_some_missing_photos_that_lie_elsewhere_are_said_with_the_setting(tmp_path):
    touch(tmp_path, "1.jpg", "2.jpg", "more/3.jpg", "more/4.jpg")
    data = listing(tmp_path, ["1.jpg", "2.jpg", "3.jpg", "4.jpg"])
    begin = f"2 of 4 photos were not found in {tmp_path}; the first is 3.jpg"
    assert scan(data)[1] == [f"{begin}; with photos_dir: {tmp_path} all would be"]
    rows, _ = scan(data, photos_dir=str(tmp_path))
    assert rows["path"].tolist() == ["1.jpg", "2.jpg", "more/3.jpg", "more/4.jpg"]
    data = listing(tmp_path, ["a/3.jpg", "1.jpg"])  # 3.jpg of another folder is another photo
    assert scan(data)[1] == [f"1 of 2 photos were not found in {tmp_path}; the first is a/3.jpg"]


def test_boxes_stay_with_photos_that_are_found_elsewhere(tmp_path):
    touch(tmp_path, "photos/1.jpg", "photos/2.jpg")
    data = table(tmp_path, "path,label,x,y,w,h\n1,a,1,2,3,4\n1,b,5,6,7,8\n2,a,,,,\n")
    rows, _ = scan(data, photos_dir="photos")
    assert rows["path"].tolist() == ["1.jpg#xywh=1,2,3,4", "1.jpg#xywh=5,6,7,8", "2.jpg"]
    assert rows["group"].tolist() == ["1.jpg", "1.jpg", ""]


@pytest.mark.parametrize("data", ["sample", "folder"])
def test_photos_dir_is_for_lists_of_photos(tmp_path, monkeypatch, data):
    monkeypatch.setenv("FRUITLIB_HOME", str(tmp_path))
    touch(tmp_path, "folder/a/1.jpg", "folder/b/2.jpg", "data/sample/a/1.jpg", "data/sample/b/1.jpg")
    assert f"{data} is no table or annotations: leave it out" in refused(data, photos_dir="folder")


def test_a_photos_dir_that_is_missing_or_two_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("FRUITLIB_HOME", str(tmp_path))
    touch(tmp_path, "images/1.jpg", "set/images/1.jpg")
    data = listing(tmp_path / "set", ["1.jpg", "2.jpg"])
    assert "both are folders: give it in full" in refused(data, photos_dir="images")
    assert "photos_dir = none: no such folder; looked for" in refused(data, photos_dir="none")


@pytest.mark.parametrize(
    ("form", "photos_dir", "words"),
    [
        ("old/p{}/a.jpg", "../set", ""),
        ("P{}/a.jpg", "", ""),
        ("old/p{}/a.jpg", "", "set all would be"),
        ("q{}/a.jpg", "", "none of its 300 photos was found"),
    ],
)
def test_looking_for_names_that_end_alike_grows_with_their_number_alone(tmp_path, monkeypatch, form, photos_dir, words):
    touch(tmp_path / "set", *(f"p{number}/a.jpg" for number in range(300)))
    looks, lists, fold, scandir = [], [], photo_paths.fold, os.scandir
    monkeypatch.setattr(photo_paths, "fold", lambda name: looks.append(name) or fold(name))
    monkeypatch.setattr(photo_paths.os, "scandir", lambda folder: lists.append(folder) or scandir(folder))
    data = listing(tmp_path / "set", [form.format(number) for number in range(300)])
    if words:
        assert words in refused(data)
    else:
        assert len(scan(data, photos_dir=photos_dir)[0]) == 300
    assert len(looks) < 30 * 300 and len(lists) < 5 * 300


def test_a_search_ends_at_its_limits(tmp_path, monkeypatch):
    touch(tmp_path, *(f"a/{number}.jpg" for number in range(20)), "a/b/c/d/e/deep.jpg")
    assert len(list(photo_paths.walk(tmp_path, depth=1))) == 20
    limits = [photo_paths.Limit(10, 60), photo_paths.Limit(10**6, -1), photo_paths.Limit(10**6, 60)]
    assert [len(list(photo_paths.walk(tmp_path, limit=limit))) for limit in limits] == [9, 0, 21]
    assert [limit.reached for limit in limits] == [True, True, False]
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert len(list(photo_paths.walk(tmp_path))) == 21


# ---- anything


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.text("path,label\n;\t\"'|01[]\u00e9\u200b\0", max_size=60).map(str.encode)))
def test_any_bytes_are_a_table_or_one_line(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("any")
    for text in (content, b"path,label\n" + content, b"path,a,b\n" + content):
        _rows_or_one_line(table(folder, text))


def _rows_or_one_line(path):
    try:
        rows, _ = scan(path)
    except InputError as problem:
        assert len(str(problem).splitlines()) == 1
        return
    assert rows["label"].nunique() > 1 and (rows["path"] != "").all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.text(max_size=8), st.text(max_size=3)), max_size=6))
def test_any_labels_and_groups_are_rows_or_one_line(tmp_path_factory, rows):
    folder, text = tmp_path_factory.mktemp("any"), io.StringIO()
    touch(folder, "a", "b", "c")
    pd.DataFrame(rows, columns=["path", "label", "group"]).to_csv(text, index=False)
    _rows_or_one_line(table(folder, text.getvalue(), "utf-8"))


def test_two_encodings_of_one_table_give_the_same_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(table_text, "CHUNK", 3)
    text = "path,label\n" + "".join(
        f"{number}.jpg,\n" if number == 8 else f"{number}.jpg,thé\n" for number in range(10)
    )
    lines = {
        refused(table(tmp_path, text, encoding)).partition(" line ")[2] for encoding in ("utf-8", "utf-16", "cp1252")
    }
    assert lines == {"10: no label: every row needs one"}


def test_a_table_damaged_in_the_middle_is_refused_by_line(tmp_path):
    """A byte too few or too many shifts all of UTF-16."""
    path = tmp_path / "photos.csv"
    path.write_bytes(b"\xff\xfe" + "path|label\n".encode("utf-16-le") + b"\0\0\0" + "0.jpg|apple".encode("utf-16-le"))
    line = refused(str(path))
    assert "photos.csv: damaged after line" in line and "save it again as CSV UTF-8" in line
