"""The report in a browser without network: tables, curves, pairs, the photos of a run, numbers equal to Python's."""

import json
import math
import re

import numpy as np
import pytest
from report_sweep import CLASSES, write_report_sweep

from fruitlib.evaluation.metrics import confusion_matrix, wilson
from fruitlib.reporting import explore, site

RUNS = ["lr=0.001,optimizer=adam", "lr=0.001,optimizer=sgd", "lr=0.002,optimizer=adam", "lr=0.002,optimizer=sgd"]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = write_report_sweep(tmp_path_factory.mktemp("report"))
    paths = explore.load_photos(folder / RUNS[2], {}).table["path"].tolist()[1:3]  # as 04 keeps heat of all photos
    arrays = {"paths": np.array(paths), "heatmap": np.ones((2, 1, 48, 48), np.float16), "layer_names": ["conv2"]}
    np.savez(folder / RUNS[2] / "cams" / "validation_0008.npz", **arrays)
    site.build_site(folder)
    return folder


@pytest.fixture
def index(offline, report):
    offline.set_default_timeout(5000)
    offline.goto((report / "index.html").as_uri())
    return offline


@pytest.fixture
def photos(offline, report):
    offline.set_default_timeout(5000)
    offline.goto((report / RUNS[1] / "photos.html").as_uri())
    return offline


def shown_runs(page) -> list[str]:
    return page.eval_on_selector_all("#runs tbody tr:not([hidden])", "rows => rows.map((row) => row.dataset.run)")


def column(page, key: str):
    return page.locator(f'#runs th[data-key="{key}"]')


def menu(page, name: str):
    return page.get_by_role("combobox", name=name, exact=True)


# ---- the index


def test_a_click_sorts_by_a_column_and_a_second_click_turns_it_round(index):
    column(index, "latency_ms_fp32").get_by_role("button").click()
    assert shown_runs(index) == RUNS and column(index, "latency_ms_fp32").get_attribute("aria-sort") == "descending"
    column(index, "latency_ms_fp32").get_by_role("button").click()
    assert (
        shown_runs(index) == RUNS[::-1] and column(index, "latency_ms_fp32").get_attribute("aria-sort") == "ascending"
    )
    assert index.locator("th[aria-sort]").count() == 1


def test_with_script_the_table_says_what_it_says_without(index, browser, report):
    context = browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto((report / "index.html").as_uri())
    cells = "cells => cells.map((cell) => cell.textContent.split(/\\s+/).join(' ').trim())"
    shown = [page.eval_on_selector_all("#runs tr > :not([hidden])", cells) for page in (plain, index)]
    context.close()
    assert shown[0] == shown[1] and "Macro-F1" in shown[0]


def test_the_keyboard_sorts_and_a_row_without_a_number_stays_last(index):
    index.locator("#runs tbody tr").nth(0).evaluate("row => { row.cells[1].dataset.value = '–'; }")
    empty = shown_runs(index)[0]
    for _ in range(2):
        column(index, "accuracy").get_by_role("button").focus()
        index.keyboard.press("Enter")
        assert shown_runs(index)[-1] == empty


def test_a_setting_and_a_state_filter_the_runs(index):
    menu(index, "optimizer").select_option("sgd")
    assert sorted(shown_runs(index)) == [RUNS[1], RUNS[3]] and "2 of 5 runs" in index.inner_text("#runs-shown")
    menu(index, "lr").select_option("0.002")
    assert shown_runs(index) == [RUNS[3]]
    menu(index, "optimizer").select_option("")
    menu(index, "lr").select_option("")
    menu(index, "State").select_option("failed")
    assert shown_runs(index) == [] and index.locator(".unfinished li:visible").count() == 1


def test_the_view_is_kept_in_the_address(index, offline):
    column(index, "macro_f1").get_by_role("button").click()
    menu(index, "optimizer").select_option("adam")
    index.locator(".columns summary").click()
    index.get_by_label("Latency").uncheck()
    index.get_by_label("lr", exact=True).last.check()
    index.locator(f'tr[data-run="{RUNS[0]}"] input').check()
    before, address = shown_runs(index), index.url
    index.goto("about:blank")
    index.goto(address)
    assert shown_runs(index) == before and set(before) == {RUNS[0], RUNS[2]}
    assert column(index, "macro_f1").get_attribute("aria-sort") == "descending"
    assert column(index, "latency_ms_fp32").is_hidden() and column(index, "set.lr").is_visible()
    assert index.locator(f'tr[data-run="{RUNS[0]}"] input').is_checked() and index.locator(".curves").count() == 1


def test_the_table_as_shown_can_be_copied_as_markdown(index):
    index.context.grant_permissions(["clipboard-read", "clipboard-write"])
    menu(index, "optimizer").select_option("sgd")
    index.get_by_role("button", name="Copy the table").click()
    index.get_by_role("button", name="Copied").wait_for()
    lines = index.evaluate("navigator.clipboard.readText()").splitlines()
    assert lines[0].startswith("| Run | Accuracy |") and len(lines) == 2 + 2
    assert lines[2].startswith(f"| {shown_runs(index)[0]} | 0.") and lines[2].count("|") == lines[1].count("|")


def test_curves_of_the_chosen_runs_are_drawn_one_over_the_other(index):
    for number in (0, 1, 3):
        index.locator(f'tr[data-run="{RUNS[number]}"] input').check()
    assert index.locator(".curves polyline").count() == 3 and index.locator("#pair").count() == 0
    labels = index.locator(".curves .legend li").all_inner_texts()
    assert [label.split()[0] for label in labels] == [RUNS[0], RUNS[1], RUNS[3]]
    points = index.locator(".curves polyline").first.get_attribute("points")
    menu(index, "Show").select_option("val_loss")
    assert index.locator(".curves polyline").first.get_attribute("points") != points


def test_two_runs_show_the_photos_where_they_disagree(index, report):
    a, b = (explore.load_photos(report / name, {}) for name in RUNS[:2])
    apart = a.table["path"][a.predicted != b.predicted]
    only_a = ((a.predicted == a.labels) & (b.predicted != b.labels)).sum()
    for name in RUNS[:2]:
        index.locator(f'tr[data-run="{name}"] input').check()
    text = index.inner_text("#pair")
    assert f"for {len(apart)} of 30 photos" in text and f"A alone is right on {only_a}" in text
    paths = index.locator(".pairs-of-photos .path").all_inner_texts()
    assert paths == apart.tolist() and len(paths) > 3
    first = index.locator(".pairs-of-photos li").first.inner_text()
    at = int(apart.index[0])
    for side, photos in (("A", a), ("B", b)):
        name, p = photos.table["predicted"][at], round(photos.confidence[at] / 1000) / 1000
        assert f"{side}: {name} {p:.2f}" in first
    followed = index.locator(".pairs-of-photos li", has=index.locator(".over"))
    assert all(f"A: heat for {text.split('/')[0]}" in text for text in followed.all_inner_texts())  # the true class
    assert index.locator(".pairs-of-photos .cell img").first.evaluate("image => image.naturalWidth") > 100


# ---- the photos of a run


@pytest.mark.parametrize("above", [0.0, 0.45, 0.6, 0.83, 0.99])
def test_the_slider_counts_what_python_counts(photos, report, above):
    run = explore.load_photos(report / RUNS[1], {})
    own = run.probs.max(1) > above
    matrix = confusion_matrix(run.labels[own], run.predicted[own], 3)
    photos.locator("#above").fill(str(above))
    found = photos.locator("#answered").evaluate("output => ({...output.dataset})")
    n, correct = int(own.sum()), int(matrix.trace())
    low, high = wilson(correct, n)
    numbers = {"n": n, "correct": correct, "coverage": own.mean(), "low": low, "high": high}
    numbers["accuracy"] = correct / n if n else math.nan
    for name, value in numbers.items():
        assert float(found[name]) == pytest.approx(value, abs=1e-12, nan_ok=True), name
    cells = photos.locator("#matrix tbody td").all_inner_texts()
    assert list(map(int, cells)) == matrix.ravel().tolist()
    assert explore.answered(run, above)["matrix"] == matrix.tolist()
    assert f"{n} of 30 photo" in photos.inner_text("#photos-shown")


def test_a_photo_exactly_at_the_threshold_is_not_answered(offline, report):
    run = explore.load_photos(report / RUNS[1], {})
    above = sorted(run.confidence)[10] / 1e6
    offline.goto(f"{(report / RUNS[1] / 'photos.html').as_uri()}#above={above}")
    assert offline.locator("#answered").get_attribute("data-n") == "19" == str(explore.answered(run, above)["n"])


def test_a_cell_of_the_confusion_table_leads_to_its_photos(photos, report):
    run = explore.load_photos(report / RUNS[1], {})
    true, predicted = ((run.labels[run.mistakes[0]]), (run.predicted[run.mistakes[0]]))
    photos.locator(f'#matrix [data-true="{true}"][data-predicted="{predicted}"] button').click()
    count = int(((run.labels == true) & (run.predicted == predicted)).sum())
    assert photos.locator(".photos-grid .photo").count() == count > 0
    assert f"{CLASSES[true]}, predicted {CLASSES[predicted]}" in photos.inner_text(".photos-grid")
    assert menu(photos, "Label").input_value() == str(true)


def test_keys_go_from_photo_to_photo_and_from_epoch_to_epoch(photos, report):
    run = explore.load_photos(report / RUNS[1], {})
    path = photos.locator("#detail .path")
    assert path.inner_text() == run.table["path"][0] and menu(photos, "Epoch").input_value() == "5"
    before = photos.locator("#detail .over .cell").last.get_attribute("style")
    photos.locator("#detail").focus()
    photos.keyboard.press("ArrowUp")
    assert menu(photos, "Epoch").input_value() == "1"
    assert photos.locator("#detail .over .cell").last.get_attribute("style") != before
    photos.keyboard.press("ArrowRight")
    photos.keyboard.press("ArrowRight")
    photos.keyboard.press("ArrowLeft")
    assert path.inner_text() == run.table["path"][1] and "001.png" in photos.url
    assert photos.locator("#detail .over").count() == 0  # of this photo no heat was kept


def test_the_same_photo_of_the_next_run_is_one_click_away(photos, report):
    photos.locator('[data-photo="7"]').first.click()
    photos.locator('.beside-runs a[rel="next"]').click()
    photos.wait_for_url("**/photos.html#*")
    assert photos.locator(".crumbs .run").inner_text() == RUNS[2]
    assert photos.locator("#detail .path").inner_text() == explore.load_photos(report / RUNS[2], {}).table["path"][7]


def test_heat_of_every_photo_is_shown_where_04_kept_it(offline, report):
    offline.goto((report / RUNS[2] / "photos.html").as_uri())
    numbers, notes = {0: 2, 1: 1, 3: 0}, {0: "for the true class", 1: "for the predicted class", 3: "No heat was kept"}
    for photo, layers in numbers.items():
        offline.locator(f'.photos-grid [data-photo="{photo}"]').click()
        assert offline.locator("#detail .over").count() == (layers > 0)
        assert notes[photo] in offline.inner_text("#detail")
        assert offline.get_by_label("Layer").locator("option").count() == layers
    offline.get_by_label("Heat", exact=True).first.select_option("yes")
    assert "5 of 30 photos" in offline.inner_text("#photos-shown")


def test_layer_and_opacity_change_what_lies_over_the_photo(photos):
    over = photos.locator("#detail .over .cell").last
    style = over.get_attribute("style")
    menu(photos, "Layer").select_option("conv1")
    assert over.get_attribute("style") != style
    photos.locator("#opacity").fill("0.25")
    assert "opacity: 0.25" in over.get_attribute("style")
    bare = photos.locator("#detail").screenshot()
    photos.locator("#opacity").fill("1")
    assert photos.locator("#detail").screenshot() != bare


def test_photos_are_filtered_by_outcome_and_group_and_the_map_marks_the_wrong_ones(photos, report):
    run = explore.load_photos(report / RUNS[1], explore.load_groups(report))
    menu(photos, "Outcome").select_option("wrong")
    assert photos.locator(".photos-grid .photo").count() == len(run.mistakes)
    menu(photos, "Outcome").select_option("")
    menu(photos, "variety").select_option(label="bar 1")
    assert photos.locator(".photos-grid .photo").count() == run.groups.count("bar 1") == 5
    assert photos.locator("#map circle[data-photo]").count() == 30 - len(run.mistakes)
    assert photos.locator("#map path[data-photo]").count() == len(run.mistakes)
    menu(photos, "Colour").select_option("outcome")
    wrong = photos.locator("#map path[data-photo]").first.get_attribute("stroke")
    assert wrong != photos.locator("#map circle[data-photo]").first.get_attribute("fill")
    assert "no features saved" in photos.inner_text("#map")


def test_the_grid_of_groups_counts_mistakes_and_leads_to_them(photos, report):
    run = explore.load_photos(report / RUNS[1], explore.load_groups(report))
    cells = photos.locator("#grid [data-group] button")
    assert sum(map(int, cells.all_inner_texts())) == len(run.mistakes)
    number = int(cells.first.inner_text())
    cells.first.click()
    assert photos.locator(".photos-grid .photo").count() == number


# ---- how it reads


@pytest.mark.parametrize("name", ["index.html", f"{RUNS[1]}/photos.html"])
@pytest.mark.parametrize(("width", "scheme"), [(1300, "light"), (1300, "dark"), (390, "light")])
def test_pages_are_accessible_and_no_wider_than_the_screen(browser, report, name, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.goto((report / name).as_uri())
    if name == "index.html":
        for run in RUNS[:2]:
            page.locator(f'tr[data-run="{run}"] input').check()
    found = axe.run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_a_print_keeps_all_columns(browser, report):
    page = browser.new_page(viewport={"width": 700, "height": 900})  # A4 less margins
    page.goto((report / "index.html").as_uri())
    page.emulate_media(media="print")
    right = page.eval_on_selector_all(
        "#runs th:not([hidden])", "all => all.map((e) => e.getBoundingClientRect().right)"
    )
    assert len(right) >= 4 and max(right) <= 700
    assert page.eval_on_selector("#runs", "table => getComputedStyle(table.parentNode).overflowX") == "visible"
    page.close()


def test_without_script_the_pages_still_say_it(browser, report):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((report / "index.html").as_uri())
    assert page.locator("#runs tbody tr").count() == 4 and "Confusion" in page.inner_text(".strip")
    page.goto((report / RUNS[1] / "photos.html").as_uri())
    assert page.locator("#matrix td").count() == 1 + 9 and page.locator("#worst .cell img").count() > 0
    context.close()


def test_no_other_script_may_run(browser, report, tmp_path):
    (tmp_path / "other.js").write_text("document.title = 'RAN'")
    text = (report / "index.html").read_text("utf-8")
    policy = re.search(r"script-src '(sha256-[^']+)'", text)
    added = f"<script>document.title = 'RAN'</script><script src='{(tmp_path / 'other.js').as_uri()}'></script></body>"
    (tmp_path / "page.html").write_text(text.replace("</body>", added), "utf-8")
    page = browser.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    assert policy and page.title() == "Shapes" and page.locator("#runs-shown").count() == 1
    page.close()


def test_the_data_in_the_page_is_what_was_predicted(report):
    text = (report / RUNS[1] / "photos.html").read_text("utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    run = explore.load_photos(report / RUNS[1], {})
    assert data["predicted"] == run.predicted.tolist() and data["paths"] == run.table["path"].tolist()
    assert [p / 1e6 for p in data["confidence"]] == pytest.approx(run.probs.max(1))
