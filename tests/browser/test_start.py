"""00 in a real JupyterLab: the list, the form at work, and a sweep that outlives the kernel and the server."""

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml
from support import TINY, wait_until

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false"},
    "notebook-extension/tracker": {"windowingMode": "none"},
}


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
    folders = {name: tmp_path / name.lower() for name in ("CONFIG_DIR", "RUNTIME_DIR", "DATA_DIR")}
    environment = os.environ | {f"JUPYTER_{name}": str(folder) for name, folder in folders.items()}
    environment |= {f"JUPYTERLAB_{name}_DIR": str(tmp_path / name.lower()) for name in ("SETTINGS", "WORKSPACES")}
    environment |= {"IPYTHONDIR": str(tmp_path / "ipython"), "FRUITLIB_HOME": str(project), "PYTHONPATH": str(ROOT)}
    for name, content in SETTINGS.items():
        path = tmp_path / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root", "--IdentityProvider.token=secret"]
    options += [f"--ServerApp.root_dir={project}", "--LabApp.extension_manager=readonly"]
    options += ["--FileContentsManager.post_save_hook=fruitlib.kernels.saving.refresh_git"]
    command = [sys.executable, "-m", "jupyterlab", *options]
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/api"))
        yield server, f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


def test_the_form_starts_a_sweep_that_outlives_kernel_and_server(browser, lab, project, shapes):
    server, address = lab
    page = browser.new_page(viewport={"width": 1300, "height": 1400})
    page.goto(f"{address}/lab/tree/notebooks/00_start.ipynb?token=secret&reset")
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=120_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
    button = page.locator("button.jupyter-button", has_text="Start")
    button.wait_for(timeout=120_000)
    report = page.locator(".widget-html a", has_text="report").first
    assert report.get_attribute("href") == "/files/executed/tiny/index.html"

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
