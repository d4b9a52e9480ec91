"""The label desk of 01 in a real JupyterLab: decisions by clicks and keys survive another view and another kernel."""

import json
import shutil

import lab_server
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from support import ROOT

from fruitlib.core.files import write_csv

pytestmark = pytest.mark.slow
WORDS = {"apple/03.png": "relabelled: cherry", "cherry/alike.png": "✓ set aside", "apple/copy.png": "✓ kept"}
DOUBTS = ["path", "label", "suggested", "probability", "quality"]
CARD = ".fruitlib-keys .widget-vbox:has(> .widget-html img:first-child[alt='{}'])"


@pytest.fixture
def project(tmp_path):
    """A project folder: photos with a near-copy and a pair in conflict; a run has doubted a label."""
    photos = tmp_path / "house" / "photos"
    for number in range(24):
        path = photos / ("apple" if number < 12 else "cherry") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((60, 60), Image.Resampling.NEAREST).save(path)
    shutil.copy(photos / "apple/01.png", photos / "apple/copy.png")
    Image.open(photos / "apple/02.png").point(lambda value: min(255, value + 3)).save(photos / "cherry/alike.png")
    notebook = json.loads((ROOT / "notebooks" / "01_split.ipynb").read_text("utf-8"))
    cell = next(cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", []))
    values = {"data": str(photos), "val_per_class": 3, "test_per_class": 0, "sweep_dir": "executed/desk"}
    cell["source"] = "".join(cell["source"]) + "".join(f"\n{name} = {value!r}" for name, value in values.items())
    lab_server.write(tmp_path / "house" / "notebooks" / "01_split.ipynb", notebook)
    run = tmp_path / "house" / "executed" / "desk" / "lr=0.01"
    run.mkdir(parents=True)
    write_csv(
        run / "doubtful_labels.csv", pd.DataFrame([["apple/03.png", "apple", "cherry", 0.9, 0.1]], columns=DOUBTS)
    )
    return tmp_path / "house"


def open_desk(browser, address: str):
    page = browser.new_page(viewport={"width": 1300, "height": 1500})
    lab_server.open_notebook(page, address, "notebooks/01_split.ipynb")
    lab_server.run_all(page)
    page.locator(".fruitlib-keys").wait_for(timeout=120_000)
    return page


def card(page, path: str):
    return page.locator(CARD.format(path))


def corrections(project) -> list[list[str]]:
    (file,) = (project / "data" / "corrections").glob("*.csv")
    table = pd.read_csv(file, keep_default_na=False)
    return table[["path", "decision", "new"]].values.tolist()


def test_decisions_survive_another_view_and_another_kernel(project, browser, tmp_path):
    with lab_server.jupyterlab(project, tmp_path, FRUITLIB_HOME=str(project)) as (_, address):
        page = open_desk(browser, address)
        doubted = card(page, "apple/03.png")
        assert "desk/lr=0.01" in doubted.inner_text() and "says cherry (90%)" in doubted.inner_text()
        doubted.get_by_role("button", name="relabel").click()  # as the run says
        doubted.get_by_text("relabelled: cherry").wait_for()
        page.get_by_label("Show", exact=True).select_option("conflict")
        pair = card(page, "cherry/alike.png")
        pair.get_by_text("right: apple").wait_for()
        pictures = pair.locator("img").evaluate_all("all => all.map(image => [image.naturalWidth, image.src])")
        assert len(pictures) == 2 and pictures[0][1] != pictures[1][1] and pictures[0][0] == pictures[1][0] == 176
        page.locator(".fruitlib-keys").screenshot(path=tmp_path / "desk.png")
        aside = pair.get_by_role("button", name="set aside")
        aside.focus()
        page.keyboard.press("Enter")  # which JupyterLab takes elsewhere
        pair.get_by_text("✓ set aside").wait_for()
        page.get_by_label("Show", exact=True).press("End")
        near = card(page, "apple/copy.png")
        near.get_by_role("button", name="keep").click()
        near.get_by_text("✓ kept").wait_for()
        page.get_by_label("Show", exact=True).select_option("doubtful label")
        page.get_by_label("that are").select_option("decided")
        card(page, "apple/03.png").get_by_text("relabelled: cherry").wait_for()
        decided = [["apple/03.png", "relabel", "cherry"], ["cherry/alike.png", "set aside", ""]]
        assert corrections(project) == [*decided, ["apple/copy.png", "keep", ""]]
        lab_server.end_kernels(page, address)
        page.close()
        page = open_desk(browser, address)  # divides the photos anew
        page.get_by_label("that are").select_option("decided")
        page.get_by_label("Show", exact=True).select_option(label="all kinds")
        for path, words in WORDS.items():
            card(page, path).get_by_text(words).wait_for()
        card(page, "apple/03.png").get_by_role("button", name="undo").click()
        card(page, "apple/03.png").get_by_text("not decided").wait_for()
        assert corrections(project)[3:] == [["apple/03.png", "undo", ""]]
        page.close()
