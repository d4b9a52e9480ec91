"""Figures of notebook pages in a browser: sharp, readable on a phone, enlarged by a link, their numbers copied."""

import re

import nbformat
import pandas as pd
import pytest
from nbformat import v4

from fruitlib.reporting import export_figures, page_figures, site, style

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJggg=="


@pytest.fixture
def page_file(tmp_path, monkeypatch):
    """A page with one figure, 6.5 inches wide, whose table has awkward cells."""
    outputs = []

    def display(data, metadata, raw):
        outputs.append(v4.new_output("display_data", data, metadata=metadata))

    monkeypatch.setattr(style, "display", display)
    monkeypatch.setattr(style.InteractiveShell, "initialized", lambda: True)
    style.use_style()
    figure = export_figures.cost_bars({"fp32": 0.4, "int8": 0.1}, "File size", "MB").figure
    style.keep_table(figure, pd.DataFrame({"file": ['a "b", c', "x|y"], "MB": [0.4, 0.1]}))
    style.save_figure(figure, tmp_path / "figures" / "size.svg")
    cells = [v4.new_markdown_cell("# A title"), v4.new_code_cell("plot()", outputs=outputs)]
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / "05.ipynb")
    site.write_folder(tmp_path, "T", "")
    return tmp_path / "05.html"


def without_script(page_file):
    """The page where scripts are switched off."""
    text = page_file.read_text("utf-8")
    other = page_file.with_name("plain.html")
    other.write_text(text[: text.index("<script>")] + "</body></html>", "utf-8")
    return other


def test_without_script_a_link_enlarges_and_closes_and_the_table_is_a_file(offline, page_file):
    offline.goto(without_script(page_file).as_uri())
    picture = offline.locator("figure img")
    before = picture.bounding_box()["width"]
    picture.click()
    assert picture.bounding_box()["width"] >= 960 > before and offline.locator("a.close").is_visible()
    offline.locator("a.close").click()
    assert picture.bounding_box()["width"] == before and not offline.locator("a.close").is_visible()
    with offline.expect_download() as download:
        offline.locator("a.table").click()
    assert download.value.suggested_filename == "size.csv"
    assert pd.read_csv(download.value.path())["file"].tolist() == ['a "b", c', "x|y"]


def test_a_phone_shows_a_figure_whole_and_a_tap_makes_its_letters_eleven_pixels_high(offline, page_file):
    offline.set_viewport_size({"width": 390, "height": 844})
    offline.goto(page_file.as_uri())
    picture, hint = offline.locator("figure img"), offline.get_by_text("Tap the figure to read its labels.")
    natural = float(picture.get_attribute("width"))
    assert picture.bounding_box()["width"] <= 358 < natural and hint.is_visible()
    assert offline.evaluate("document.documentElement.scrollWidth") <= 390
    picture.click()
    assert picture.bounding_box()["width"] / natural * 10 * 100 / 72 >= 10.9  # the labels of the bars, of 10 points
    assert offline.evaluate("document.documentElement.scrollWidth") <= 390 and not hint.is_visible()


def test_a_print_shows_all_of_a_figure(offline, page_file):
    text = page_file.read_text("utf-8")
    page_file.write_text(re.sub(r"--least: \d+px", "--least: 900px", text), "utf-8")  # as a sheet of many columns has
    offline.set_viewport_size({"width": 700, "height": 900})
    offline.goto(page_file.as_uri())
    assert offline.locator("figure img").bounding_box()["width"] == 900
    offline.emulate_media(media="print")
    assert offline.locator("figure img").bounding_box()["width"] <= 700


def test_no_hint_where_letters_are_large_enough_or_the_screen_is_wide(offline, page_file):
    text = page_file.read_text("utf-8")
    offline.goto(page_file.as_uri())
    assert not offline.locator(".hint").is_visible()
    least = int(re.search(r"--least: (\d+)px", text)[1])
    shown = page_figures.markup("image/png", PNG, {"least": 390}, "", 1)
    assert "hint" not in shown and least > 390 and "--least: 390px" in shown
    assert "figcaption" not in page_figures.markup("image/png", PNG, {"least": "3;x"}, "", 1)


def test_the_script_closes_by_escape_and_copies_markdown(offline, page_file):
    offline.goto(page_file.as_uri())
    picture = offline.locator("figure img")
    before = picture.bounding_box()["width"]
    for close in (lambda: offline.keyboard.press("Escape"), picture.click):
        picture.click()
        assert picture.bounding_box()["width"] > before
        close()
        assert picture.bounding_box()["width"] == before
    offline.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    offline.get_by_role("button", name="Copy as Markdown").click()
    offline.get_by_role("button", name="Copied").wait_for()
    lines = ["| file | MB |", "| --- | --- |", '| a "b", c | 0.4 |', "| x\\|y | 0.1 |", ""]
    assert offline.evaluate("window.copied") == "\n".join(lines)
