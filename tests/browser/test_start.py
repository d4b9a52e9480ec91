"""00 in a real JupyterLab: the list, the form at work, and a sweep that outlives the kernel and the server."""

import json
import shutil
from pathlib import Path

import lab_server
import pytest
import yaml
from support import ROOT, TINY, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def project(finished_copy) -> Path:
    """A project folder with a finished sweep, notebook 00 and no params file."""
    (finished_copy / "notebooks").unlink()
    shutil.copytree(ROOT / "notebooks", finished_copy / "notebooks")
    (finished_copy / "params").mkdir()
    return finished_copy


@pytest.fixture
def lab(project, tmp_path):
    """JupyterLab on that folder, as `make lab` starts it: its process and address."""
    with lab_server.jupyterlab(project, tmp_path, FRUITLIB_HOME=str(project)) as started:
        yield started


def test_the_form_starts_a_sweep_that_outlives_kernel_and_server(browser, lab, project, shapes):
    server, address = lab
    page = browser.new_page(viewport={"width": 1300, "height": 1400})
    lab_server.open_notebook(page, address, "notebooks/00_start.ipynb")
    lab_server.run_all(page)
    button = page.locator("button.jupyter-button", has_text="Start")
    button.wait_for(timeout=120_000)
    report = page.locator(".widget-html a", has_text="report").first
    assert report.get_attribute("href") == "/files/executed/tiny/index.html"
    with page.expect_popup() as opened:
        report.click()
    opened.value.wait_for_load_state()
    style = "getComputedStyle(document.querySelector('.answer')).borderLeftWidth"
    assert opened.value.evaluate(style) == "4px" and opened.value.locator(".sort").count()  # its style, its script
    opened.value.close()

    def row(name: str):
        return page.locator(f'.widget-hbox:has(> .widget-html b:text-is("{name}"))').last

    row("lr").locator("input").fill("0.003, fast")
    row("lr").get_by_text("lr = 'fast'").wait_for()
    assert button.is_disabled()
    row("lr").locator("input").fill("0.003")
    row("data").locator("input").fill(str(shapes))
    others = {name: value for name, value in TINY.items() if name not in ("title", "image_size", "batch_size")}
    row("more").locator("textarea").fill(yaml.safe_dump(others | {"epochs_": 0}))
    row("more").get_by_text("unknown setting epochs_").wait_for()
    row("more").locator("textarea").fill(yaml.safe_dump(others | {"probe": "none"}))
    for name, value in {"image_size": "32", "epochs": "2", "name": "by hand"}.items():
        row(name).locator("input").fill(value)
    page.get_by_text("1 run", exact=True).wait_for()
    button.click()
    page.get_by_text("which goes on if this kernel ends").wait_for()
    wait_until((project / "executed" / "by hand" / "sweep.json").is_file, 150)
    page.close()
    server.terminate()
    server.wait(30)
    log = project / "executed" / ".logs" / "by hand.log"
    wait_until(lambda: "report: executed/by hand/index.html" in log.read_text(), 200)
    assert yaml.safe_load((project / "params" / "by hand.yaml").read_text())["lr"] == 0.003


def test_it_opens_with_the_warm_kernel_too(browser, lab, project):
    path = project / "notebooks" / "00_start.ipynb"
    notebook = json.loads(path.read_text("utf-8"))
    notebook["metadata"]["kernelspec"] = {"name": lab_server.KERNELS[1], "display_name": "", "language": "python"}
    lab_server.write(path, notebook)
    page = browser.new_page(viewport={"width": 1300, "height": 1400})
    lab_server.open_notebook(page, lab[1], "notebooks/00_start.ipynb")
    assert page.locator(".jp-Toolbar-kernelName").inner_text() == "fruitlib (warm)"
    lab_server.run_all(page)
    page.locator("button.jupyter-button", has_text="Start").wait_for(timeout=120_000)
    assert page.locator(".widget-html a", has_text="report").count() == 1
    page.close()
