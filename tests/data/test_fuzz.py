"""Layouts, tables and texts nobody thought of: rows or one line, never a traceback, never a part as class."""

import itertools
import os
import shutil
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fruitlib.core import config, texts
from fruitlib.core.errors import InputError
from fruitlib.data import labels, sources, splits, stratify
from fruitlib.evaluation import compare, wording

PARTS = {
    "train": ["train", "Training", "train_images", "seg_train", "trainset"],
    "val": ["val", "Valid", "dev", "eval_set"],
    "test": ["test", "Testing", "seg_test", "test data"],
}
PART_OF = {name: part for part, names in PARTS.items() for name in names}
CLASSES = ["apple", "Apple", "cherry", "bus", "tram", "1", "1.0", "01", "nan", "None", "null", "true", "_unknown", "a"]
ODD = [
    "\u00c4pfel",
    "A\u0308pfel",
    "red\u00a0apple",
    "red apple",
    "apple\u200b",
    "\u200b",
    "\uc0ac\uacfc",
    "\x1b[2J",
    "\n",
]
OTHERS = ["images", "photos", "all", "dataset", "splits", "labels", "pred", "unlabeled", ".git", "__MACOSX", "x" * 200]
NAMES = st.sampled_from([*PART_OF, *CLASSES, *ODD, *OTHERS])
FILES = [
    "1.jpg",
    "2.PNG",
    "3.jpeg",
    "\u00e9.jpg",
    "e\u0301.jpg",
    ".hidden.jpg",
    "notes.txt",
    "a#xywh=1,2,3,4.jpg",
    "no ending",
]
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "val_per_class": st.sampled_from([0.2, 1, 3]),
        "test_per_class": st.sampled_from([0, 1]),
        "folds": st.sampled_from([0, 2]),
        "group_pattern": st.sampled_from(["", "<a>", "<a>_<b>"]),
        "subset": st.sampled_from([0.5, 1.0]),
    },
)


def fuzzed(examples):
    """The same examples every time, as many."""
    no_limits = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=no_limits
    )


@pytest.fixture(scope="module")
def place():
    """A folder to fill; each example empties it first."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "photos"


def in_one_line(problem: InputError) -> None:
    text = str(problem)
    assert text and text == texts.printable(text), repr(text)


def check_scan(data: Path, chosen: dict) -> pd.DataFrame | None:
    """What `sources.scan` and the division say of `data`; None where they refuse it."""
    settings = config.make({"data": str(data), "val_per_class": 1, "test_per_class": 0, **chosen})
    try:
        rows, notes = sources.scan(settings)
    except InputError as problem:
        in_one_line(problem)
        return None
    assert list(rows) == ["path", "label", "group", "split"] and rows["path"].is_unique
    assert all(note == texts.printable(note) for note in [*notes, sources.listing_text(rows)])
    classes = set(rows["label"])
    assert len(classes) > 1 and "" not in classes and {texts.normal(label) for label in classes} == classes
    assert len({label.casefold() for label in classes}) == len(classes)
    assert len({PART_OF.get(label) for label in classes} - {None}) < 2, classes
    for part, held in rows.groupby(rows["split"].replace("", "train"))["label"]:
        assert part in splits.SPLITS and set(held) == classes
    try:
        manifest, _ = splits.divide(stratify.subset(rows, settings.subset, 0), settings)
    except InputError as problem:
        in_one_line(problem)
    else:
        assert set(manifest.loc[manifest["status"] != "left_out", "split"]) <= set(splits.SPLITS)
        given = rows.set_index("path")["split"]
        sealed = set(given.index[given == "test"])
        assert not sealed & set(manifest.loc[manifest["split"].isin(["train", "val"]), "path"])
    return rows


def fill(folder: Path, places: list, links: list) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for names, held in places:
        inner = folder.joinpath(*names)
        try:
            inner.mkdir(parents=True, exist_ok=True)
            for name in held:
                (inner / name).touch()
        except OSError:  # a name too long, or a file of this name
            continue
    folders = [path for path in sorted(folder.rglob("*")) if path.is_dir()]
    for number, (start, end) in enumerate(links):
        if folders:
            (folders[start % len(folders)] / f"link {number}").symlink_to(folders[end % len(folders)])


# A level at a time, as people lay folders out, and anything in any place.
ANY = st.lists(st.tuples(st.lists(NAMES, max_size=4), st.lists(st.sampled_from(FILES), max_size=3)), max_size=4)
LINKS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=2)
LEVEL = {
    "one": st.sampled_from(OTHERS).map(lambda name: [name]),
    "parts": st.tuples(*(st.sampled_from(names) for names in PARTS.values())).map(list)
    | st.lists(st.sampled_from(list(PART_OF)), min_size=1, max_size=3, unique=True),
    "classes": st.sampled_from([CLASSES[2:5], ["Apple", "apple"], ["1", "1.0", "2"], ["nan", "None", "true"]])
    | st.lists(st.sampled_from(CLASSES + ODD), min_size=2, max_size=4, unique=True),
    "any": st.lists(NAMES, min_size=1, max_size=3, unique=True),
}
ORDERS = ["classes", "classes any", "parts classes", "one classes", "one parts classes", "parts one classes"]
ORDERS += ["classes parts", "classes one", "one classes parts", "parts", "parts parts", "parts classes any", "any any"]
LEVELS = st.sampled_from(ORDERS).flatmap(lambda order: st.tuples(*(LEVEL[name] for name in order.split())))


def product(levels: list[list[str]]) -> list[tuple[list[str], list[str]]]:
    """Two photos in every folder of every level below every one of the level above."""
    inner = [[]]
    for names in levels:
        inner = [[*above, name] for above in inner for name in names]
    return [(names, FILES[:2]) for names in inner]


@given(levels=LEVELS, more=ANY, links=LINKS, chosen=SETTINGS, mixed=st.sampled_from([False, False, True]))
@fuzzed(150)
def test_any_layout_gives_rows_or_one_line(place, levels, more, links, chosen, mixed):
    fill(place, [*product(levels), *(more if mixed else [])], links if mixed else [])
    rows = check_scan(place, chosen)
    if rows is not None:
        assert all((place / path).is_file() for path in rows["path"])
        again, _ = sources.scan(config.make({"data": str(place), **chosen}))
        pd.testing.assert_frame_equal(again, rows)


@pytest.mark.parametrize("inside", [[], ["apple", "cherry"], ["a", "images"]])
def test_no_two_parts_are_ever_two_classes(place, inside):
    """Every two names of different parts, with photos, with class folders and with other folders in them."""
    for one, other in itertools.combinations(PART_OF, 2):
        if PART_OF[one] != PART_OF[other]:
            fill(place, product([[one, other], inside] if inside else [[one, other]]), [])
            rows = check_scan(place, {})
            assert rows is None or set(rows["label"]) == set(inside), (one, other)
            if rows is not None and "train" in (PART_OF[one], PART_OF[other]):
                assert set(rows["split"]) == {PART_OF[one], PART_OF[other]}


TRUTH = ("path", "label", "predicted", "p_apple")
CELLS = st.one_of(
    st.sampled_from(
        [*CLASSES, *ODD, *PART_OF, "", " ", "a.jpg", "b.jpg", "x/\u00e9.jpg", "x/e\u0301.jpg", "0.5", "10", "-3"]
    ),
    st.sampled_from(
        ["NULL", "NaN", "#N/A", "1e9", "inf", '"', "'", "a,b", "a;b", "a\tb", "=1+2", "../x.jpg", "/etc/x.jpg"]
    ),
    st.text(max_size=4),
)
COLUMNS = st.lists(
    st.sampled_from(
        ["path", "label", "group", "split", "x", "y", "w", "h", "x1", "y1", "x2", "y2", "", "note", "\u00e9"]
    ),
    min_size=1,
    max_size=8,
)


WANTED = {
    "predicted": st.sampled_from(["apple", "cherry", "bus"]),
    "split": st.sampled_from(["train", "train", "", *PART_OF]),
    "p_apple": st.sampled_from(["0", "0.25", "1", ""]),
}


@st.composite
def tables(draw, columns=("path", "label")) -> tuple[str, bytes]:
    """A table's name and bytes: mostly with path and label, sometimes in odd encodings, cut or with bytes put in."""
    odd = draw(st.sampled_from([0, 0, 0, 1, 5]))  # how many tenths of it
    header = [*columns, *draw(st.lists(st.sampled_from(["group", "split", "note"]), max_size=1))]
    header = draw(COLUMNS) if odd == 5 else header
    separator, quote = draw(st.sampled_from(",,,;\t|" if odd else ",;\t")), draw(st.booleans())
    lines = [header]
    for row in range(draw(st.integers(0, 9))):
        label = ["apple", "cherry", "bus", "1"][row % 4]
        good = {"path": st.just(f"{row}.jpg"), "label": st.just(label), "group": st.just(""), **WANTED}
        lines.append([draw(CELLS if draw(st.integers(1, 10)) <= odd else good.get(name, CELLS)) for name in header])
    if odd and draw(st.booleans()):
        lines[-1].append(draw(CELLS))
    text = draw(st.sampled_from(["\n", "\r\n", "\r"])).join(separator.join(quoted(line, quote)) for line in lines)
    encoding = draw(st.sampled_from(["utf-8", "utf-16", "latin-1", "cp949"] if odd else ["utf-8", "utf-8-sig"]))
    content = text.encode(encoding, errors="replace")
    if odd and draw(st.booleans()):
        at = draw(st.integers(0, len(content)))
        content = content[:at] + draw(st.binary(max_size=3) | st.just(b"\0")) + content[at + draw(st.integers(0, 3)) :]
    return "t.tsv" if separator == "\t" else "t.csv", content


def quoted(cells: list[str], always: bool) -> list[str]:
    return ['"' + cell.replace('"', '""') + '"' if always else cell for cell in cells]


@given(table=tables(), chosen=SETTINGS)
@fuzzed(150)
def test_any_table_gives_rows_or_one_line(place, table, chosen):
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    name, content = table
    (place / name).write_bytes(content)
    for number in range(9):
        (place / f"{number}.jpg").touch()
    check_scan(place / name, chosen)


@given(table=tables(TRUTH), other=tables(TRUTH))
@fuzzed(100)
def test_any_two_csvs_are_compared_or_refused_in_one_line(place, table, other):
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    sides = []
    try:
        for number, (_, content) in enumerate((table, other)):
            file = place / f"{number}.csv"
            file.write_bytes(content)
            sides.append(compare.load_predictions(file))
        pair = compare.match_photos(*sides)
    except InputError as problem:
        in_one_line(problem)
        return
    found = compare.compare_pair(pair)
    assert found.n == len(pair.table) > 0 and wording.match_text(pair) and wording.comparison_text(found)
    assert 0 <= found.accuracy.p <= 1 or found.accuracy.p != found.accuracy.p
    compare.disagreements(pair)


@given(st.text())
@fuzzed(300)
def test_a_text_has_one_form_and_prints_on_one_line(text):
    once = texts.normal(text)
    assert texts.normal(once) == once == texts.normal(f" {text}\u200b ")
    assert texts.printable(texts.printable(text)) == texts.printable(text)
    texts.printable(text).encode()
    assert len(texts.printable(text).splitlines()) <= 1 and "\x1b" not in texts.printable(text)


@given(st.lists(st.sampled_from([*CLASSES, *ODD]) | st.text(max_size=5), max_size=12))
@fuzzed(200)
def test_labels_are_unified_once_and_for_all(given_labels):
    one, notes = labels.unify(pd.Series(given_labels, dtype=str))
    again, none = labels.unify(one)
    assert again.tolist() == one.tolist() and none == []
    assert (len(set(one)) < len(set(given_labels))) == bool(notes)
    assert all(texts.normal(label) == label for label in one)
    known, _ = labels.unify(pd.Series(given_labels, dtype=str), set(given_labels[:2]))
    assert known.tolist()[:2] == given_labels[:2]


def test_a_folder_whose_name_is_no_text_is_refused_in_one_line(tmp_path):
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    with pytest.raises(InputError, match="not valid UTF-8") as problem:
        sources.scan(config.make({"data": str(tmp_path)}))
    in_one_line(problem.value)
