"""Figures for any number of classes with any names: none is too large, none fails, each says what it shows."""

import functools
import io
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image

from fruitlib.core.config import Config
from fruitlib.evaluation import calibration, intervals, metrics
from fruitlib.explain import gradcam
from fruitlib.reporting import (
    compare_figures,
    gradcam_sheets,
    labels,
    metrics_figures,
    photo_sheets,
    row_sheets,
    split_figures,
    style,
)

LONG = "a name of a class that nobody would have thought to be so very long, but here it is"
NAMES = [
    "_unknown",
    "$5 apples$",
    "a_b$",
    LONG,
    "x\x1b[31m\ny",
    "",
    " ",
    "사과",
    "ไทย",
    "हिन्दी",
    "عربي",
    "😀",
    "\\frac{1",
]


@pytest.fixture(autouse=True)
def look(monkeypatch):
    style.use_style()
    monkeypatch.setattr(labels, "_unknown_scripts", set())
    yield
    plt.close("all")


def names(count: int) -> list[str]:
    return [f"{NAMES[n % len(NAMES)]} {n}" if n >= len(NAMES) else NAMES[n] for n in range(count)]


@functools.cache
def figures(classes: int) -> dict:
    """Every figure that names classes, of so many."""
    rng, called = np.random.default_rng(0), names(classes)
    true = np.arange(min(4 * classes, 1200)) % classes
    probs = metrics.softmax(rng.normal(size=(len(true), classes)) + 4 * np.eye(classes)[true])
    predicted = probs.argmax(1)
    groups = [f"{called[n // 2 % classes]} {n // 2}" for n in range(len(true))]
    matrix = metrics.confusion_matrix(true, predicted, classes)
    table = pd.DataFrame({"label": [called[n] for n in true], "predicted": [called[n] for n in predicted]})
    counts = pd.DataFrame(rng.integers(1, 90, (classes, 3)), index=called, columns=["train", "val", "test"])
    manifest = table.assign(status="ok", group=groups)
    curves = calibration.threshold_curves(probs, true, called[:30])
    pixels = rng.integers(0, 255, (classes, 6, 6, 3), dtype=np.uint8)
    maps = np.zeros((classes, 2, 6, 6), np.float32)
    heat = gradcam.Heatmaps(maps, maps[:, :, 0, 0], true[:classes], probs[:classes], predicted[:classes], ["a", "_b"])
    pair = {"path": called[0], "label": called[0], "a": called[0], "b": called[-1]}
    pair |= {f"p_a_{name}": 1 / classes for name in called}
    return {
        "counts": metrics_figures.class_counts(matrix, called),
        "rates": metrics_figures.class_rates(true, predicted, called, groups),
        "confusion": metrics_figures.confusion(matrix, called),
        "thresholds": metrics_figures.threshold_curves(curves),
        "by group": metrics_figures.by_group(intervals.accuracy_by_group(table, groups)),
        "split": split_figures.split_counts(counts),
        "folds": split_figures.fold_counts(counts),
        "sizes": split_figures.group_sizes(manifest),
        "contact": photo_sheets.contact_sheet(pixels, called, title="photos"),
        "layers": gradcam_sheets.heatmaps_by_layer(pixels / 255, heat, called, called),
        "epochs": gradcam_sheets.heatmaps_by_epoch(pixels / 255, dict.fromkeys(range(17), heat), called, called),
        "disagree": compare_figures.disagreements(pd.DataFrame([pair]), called),
    }


@pytest.mark.parametrize("classes", [3, 1000])
def test_any_number_of_classes_with_any_names_is_drawn_in_bounds(classes, tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        drawn = figures(classes)
        for name, figure in drawn.items():
            style.save_figure(getattr(figure, "figure", figure), tmp_path / f"{name}.png")
    printed = capsys.readouterr().err
    assert "could not be drawn:" not in printed
    for name in drawn:
        width, height = size(tmp_path / f"{name}.png")
        assert 200 < height < 7500 and 400 < width < 5000, (name, width, height)  # two pixels for each of a page


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def words_of(figure) -> str:
    figure = getattr(figure, "figure", figure)
    return " ".join(text.get_text() for text in figure.findobj(plt.Text))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("counts", "the 20 of 1,000 classes with most errors"),
        ("rates", "the 40 of 1,000 classes with the lowest F1"),
        ("confusion", "most frequent of"),
        ("thresholds", "The 8 of 30 classes with the lowest average precision"),
        ("by group", "the worst 30 of"),
        ("split", "the 20 largest and 20 smallest of 1,000 classes"),
        ("folds", "the 20 largest and 20 smallest of 1,000 classes"),
        ("sizes", "the 20 largest and 20 smallest of 1,000 classes"),
        ("contact", "the first 96 of 1,000"),
        ("layers", "12 of 1,000 photos"),
        ("epochs", "12 of 1,000 photos"),
    ],
)
def test_a_figure_that_shows_some_says_which(name, says):
    assert says in words_of(figures(1000)[name])


def test_few_classes_are_all_shown_and_none_vanishes_from_a_legend():
    drawn = figures(3)
    for name in ("counts", "rates", "confusion", "split", "folds", "sizes"):
        shown = words_of(drawn[name])
        assert "_unknown" in shown and "$5 apples$" in shown and " of " not in shown.replace("share of", ""), name
    (legend,) = drawn["thresholds"].legends  # of both curves
    assert sum("_unknown" in text.get_text() for text in legend.get_texts()) == 1


@pytest.mark.parametrize(("classes", "numbers"), [(20, 400), (21, 0), (60, 0)])
def test_a_matrix_has_numbers_as_long_as_they_can_be_read(classes, numbers):
    ax = metrics_figures.confusion(np.eye(classes, dtype=int), [f"c{n}" for n in range(classes)])
    assert len(ax.texts) == numbers and len(ax.get_yticklabels()) == classes


@pytest.mark.parametrize(
    ("text", "letters", "shown"),
    [
        ("apple", 9, "apple"),
        ("Apple Red Delicious 1", 12, "Apple Re…s 1"),
        ("사과사과사과", 12, "사과사과사과"),
        ("사과사과사과", 9, "사과사…과"),
        ("_unknown", 9, "\u200b_unknown"),
        ("a\x1b[31mb", 20, "a\\x1b[31mb"),
        ("", 5, ""),
        ("a" + "\u0301" * 999 + "bcdefgh", 6, "a" + "\u0301" * 15 + "bcd…h"),
        (7, 5, "7"),
    ],
)
def test_a_label_is_short_and_harmless(text, letters, shown, capsys):
    assert labels.label(text, letters) == shown


def test_the_most_confused_pairs_stand_in_place_of_a_large_matrix():
    matrix = np.diag(np.full(61, 9))
    matrix[3, 5], matrix[7, 2] = 4, 1
    ax = metrics_figures.confusion(matrix, [f"c{n}" for n in range(61)])
    assert [text.get_text() for text in ax.get_yticklabels()] == ["c3 → c5", "c7 → c2"]
    assert [text.get_text() for text in ax.texts] == ["4 of 13", "1 of 10"]
    right = metrics_figures.confusion(np.diag(np.full(61, 9)), [f"c{n}" for n in range(61)])
    assert "0 most frequent of 0 confusions" in right.get_title()


def test_sheets_of_many_classes_read_few_photos(monkeypatch, tmp_path):
    read = []

    def pictures(folder, paths, config):
        read.append(len(paths))
        return np.zeros((len(paths), 8, 8, 3), np.uint8)

    monkeypatch.setattr(row_sheets.dataset, "pictures", pictures)
    rows = pd.DataFrame({"label": np.repeat(names(120), 8), "path": "p.jpg"})
    sheet = row_sheets.labelled_photos(tmp_path, rows, Config(), "train photos")
    assert sheet.get_suptitle() == "train photos: 96 of 960, 96 of 120 classes"
    sheet = row_sheets.augmented_photos(tmp_path, rows, Config())
    few = pd.DataFrame({"label": np.repeat(["a", "b", "c"], 40), "path": "p.jpg"})
    assert "96 of 120, 3 of 3 classes" in row_sheets.labelled_photos(tmp_path, few, Config(), "x").get_suptitle()
    assert read == [96, 12, 96] and gradcam_sheets.one_of_each(names(3) * 2) == [0, 1, 2]
    assert len(gradcam_sheets.one_of_each(names(120))) == 12


@pytest.mark.parametrize(
    "problem", [ValueError("no\nluck"), ZeroDivisionError(), FileNotFoundError(2, "gone", "a.jpg")]
)
def test_a_figure_that_cannot_be_drawn_says_why_and_nothing_stops(problem, tmp_path, capsys):
    @style.drawing
    def accuracy():
        plt.figure()
        raise problem

    figure = accuracy()
    style.save_figure(figure.figure, tmp_path / "a.png")
    assert size(tmp_path / "a.png")[0] > 300 and not plt.get_fignums()
    assert f"figure accuracy could not be drawn: {type(problem).__name__}: " in capsys.readouterr().err


def test_a_figure_that_cannot_be_saved_is_replaced_and_a_huge_one_is_made_smaller(tmp_path, capsys):
    figure = plt.figure(figsize=(900, 3))
    style.save_figure(figure, tmp_path / "wide.png")
    assert size(tmp_path / "wide.png")[0] == pytest.approx(style.MAX_SIDE, abs=2)
    figure = plt.figure()
    figure.get_tightbbox = lambda: 1 / 0
    style.save_figure(figure, tmp_path / "broken.png")
    assert "figure broken could not be drawn: ZeroDivisionError" in capsys.readouterr().err
    assert size(tmp_path / "broken.png")[0] > 300 and not plt.get_fignums()


@pytest.mark.parametrize("problem", [MemoryError(), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_no_figure_is_to_blame_for_passes(problem):
    @style.drawing
    def accuracy():
        raise problem

    with pytest.raises(type(problem)):
        accuracy()


def font_with(letters: str, path, family: str = "Test Hangul") -> None:
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0)), pen.lineTo((500, 0)), pen.lineTo((500, 700)), pen.closePath()
    builder, order = FontBuilder(1000, isTTF=True), [".notdef", *(f"letter{n}" for n in range(len(letters)))]
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap({ord(letter): name for letter, name in zip(letters, order[1:], strict=True)})
    builder.setupGlyf(dict.fromkeys(order, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(order, (600, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


@pytest.fixture
def fonts(monkeypatch):
    """No font but matplotlib's own is installed, until one is added to this list."""
    installed, own = (
        [],
        [font for font in font_manager.fontManager.ttflist if font.name.startswith((labels.BASE, "Last"))],
    )
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: list(installed))
    monkeypatch.setattr(labels, "_found", {})
    return installed


def test_a_font_that_was_installed_since_is_found(fonts, tmp_path, capsys):
    damaged = tmp_path / "damaged.ttf"
    damaged.write_bytes(b"no font")
    font_with("사", tmp_path / "hangul.ttf")
    fonts += [str(damaged), str(tmp_path / "hangul.ttf")]
    assert labels.label("사사") == "사사" and plt.rcParams["font.family"] == [labels.BASE, "Test Hangul"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plt.figure().text(0, 0, labels.label("사"))
        plt.gcf().savefig(io.BytesIO())
    assert capsys.readouterr().out == ""


def test_a_rare_letter_costs_itself_alone_and_the_font_with_most_letters_is_taken(fonts, tmp_path, capsys):
    for name, letters in (("Few", "사"), ("Most", "사과"), ("Other", "배")):
        font_with(letters, tmp_path / f"{name}.ttf", name)
    fonts += [str(tmp_path / f"{name}.ttf") for name in ("Few", "Most", "Other")]
    labels.label("사뷁과배")
    assert plt.rcParams["font.family"] == [labels.BASE, "Most", "Other"]
    assert "뷁 (Hangul)" in capsys.readouterr().out
    font_with("감", tmp_path / "known.ttf", "Known")
    font_manager.fontManager.addfont(tmp_path / "known.ttf")
    labels.label("감뷁")
    assert plt.rcParams["font.family"][-1] == "Known" and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "script", "package"),
    [
        ("사과", "Hangul", "fonts-noto-cjk"),
        ("苹果", "Chinese characters", "fonts-noto-cjk"),
        ("แอปเปิล", "Thai", "fonts-noto-core"),
        ("सेब", "Devanagari", "fonts-noto-core"),
        ("🍎", "emoji", "fonts-symbola"),
    ],
)
def test_where_no_font_has_the_letters_a_line_says_once_what_to_install(fonts, text, script, package, capsys):
    for _ in range(3):
        labels.label(text)
    [line] = capsys.readouterr().out.splitlines()
    assert line.endswith(f" ({script}): install one that has them, such as {package}") and text[0] in line


@pytest.mark.parametrize("text", ["apple", "Äpfel", "яблоко", "μήλο", "تفاح", "תפוח", "😀 → ½ ’", "❤\ufe0f e\u0301"])
def test_what_the_font_of_matplotlib_has_needs_no_other(fonts, text, capsys):
    labels.label(text)
    assert capsys.readouterr().out == "" and plt.rcParams["font.family"] == [labels.BASE]
