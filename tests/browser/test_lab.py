"""04 in a real JupyterLab: opened with either kernel, run as a whole; clicks and keys change what its browser shows."""

import json
import re
import time
from pathlib import Path

import lab_server
import pytest
from support import ROOT

pytestmark = pytest.mark.slow
PICTURE = ".jp-Notebook figure img"  # the photo, then a picture for A and one for B


@pytest.fixture(scope="module")
def chosen(finished_sweep) -> Path:
    """A trained run beside another one."""
    return next(path.parent for path in sorted((finished_sweep / "executed" / "tiny").glob("lr=0.01*/best.pt")))


@pytest.fixture(scope="module")
def lab(tmp_path_factory, finished_sweep, chosen):
    """The address of a JupyterLab that knows both kernels of this checkout, on copies of 04 for each."""
    root = tmp_path_factory.mktemp("lab")
    for name in lab_server.KERNELS:
        notebook = json.loads((ROOT / "notebooks" / "04_gradcam.ipynb").read_text("utf-8"))
        cell = next(cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", []))
        cell["source"] = [f"run_dir: str = {str(chosen)!r}"]
        notebook["metadata"]["kernelspec"] = {"name": name, "display_name": name, "language": "python"}
        lab_server.write(root / "work" / f"{name}.ipynb", notebook)
    with lab_server.jupyterlab(root / "work", root, FRUITLIB_HOME=str(finished_sweep)) as (_, address):
        yield address


class Page:
    """The browser of 04 on a page of JupyterLab."""

    def __init__(self, page):
        self.page = page

    def pictures(self) -> list[str]:
        return self.page.locator(PICTURE).evaluate_all("all => all.map(image => image.src)")

    def captions(self) -> str:
        return " ".join(self.page.locator(".jp-Notebook figcaption").all_inner_texts())

    def changes(self, act, place: int) -> bool:
        """Whether the picture at `place` is another one soon after `act`."""
        before = self.pictures()
        act()
        return self.soon(lambda: len(now := self.pictures()) > place and now[place] not in before)

    def soon(self, holds, seconds: float = 15) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if holds():
                return True
            time.sleep(0.1)
        return False

    def choose(self, control: str, option: str) -> None:
        self.page.get_by_label(control, exact=True).select_option(option)

    def click(self, button: str) -> None:
        self.page.locator(".jp-Notebook button", has_text=button).click()


@pytest.mark.parametrize("kernel", lab_server.KERNELS)
def test_clicks_and_keys_change_what_is_shown(lab, browser, chosen, kernel):
    context = browser.new_context(viewport={"width": 1400, "height": 1100})
    page = context.new_page()
    lab_server.open_notebook(page, lab, f"{kernel}.ipynb")
    lab_server.run_all(page)
    page.locator(PICTURE).first.wait_for(timeout=60_000)
    shown = Page(page)
    assert len(shown.pictures()) == 2 and "predicts" in shown.captions()

    photo, layer = (page.locator(".jp-Notebook .noUi-handle").nth(place) for place in (0, 1))
    assert shown.changes(lambda: shown.click("next"), 0)
    assert shown.changes(lambda: photo.press("ArrowRight"), 0)
    assert shown.changes(lambda: shown.choose("class", "cross"), 0)
    other = "bar" if "predicts bar" not in shown.captions() else "disc"
    shown.choose("heat for", other)
    assert shown.soon(lambda: re.search(f"(heat|counts) for {other}", shown.captions()))
    layer.press("ArrowLeft")
    assert shown.soon(lambda: "Grad-CAM, conv2" in shown.captions())
    assert shown.changes(lambda: shown.choose("method", "EigenCAM"), 1)
    assert shown.changes(lambda: layer.press("ArrowLeft"), 1) and "EigenCAM, conv1" in shown.captions()
    assert shown.changes(lambda: shown.choose("B", "lr=0.003"), 2) and "B: lr=0.003" in shown.captions()

    def press(control: str, *keys: str) -> None:
        for key in keys:
            page.get_by_label(control, exact=True).press(key)

    cells = page.locator(".jp-Cell").count()
    assert shown.changes(lambda: press("class", "ArrowUp"), 0)
    assert shown.changes(lambda: press("class", "d"), 0)
    press("heat for", "d", "d")  # which deletes a cell where JupyterLab takes it
    assert shown.changes(lambda: press("A", "ArrowDown"), 1)
    assert page.locator(".jp-Cell").count() == cells
    shown.click("save what is shown")
    assert shown.soon(lambda: "saved:" in page.locator(".jp-Notebook [role=status]").inner_text())
    assert list((chosen / "cams").glob("shown_*.png")) and list((chosen / "cams").glob("shown_*.json"))
    context.close()
