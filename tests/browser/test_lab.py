"""04 in a real JupyterLab: opened with either kernel, run as a whole; clicks and keys change what its browser shows."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from fruitlib.kernels import kernelspec, launcher

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PICTURE = ".jp-Notebook figure img"  # the photo, then a picture for A and one for B
RUN_ALL = '.lm-Menu-item[data-command="runmenu:run-all"]'
SETTINGS = {  # of JupyterLab: no look at the news, a light or dark look, all cells in the page
    "apputils-extension/notification": {"fetchNews": "false"},
    "notebook-extension/tracker": {"windowingMode": "none"},
}


@pytest.fixture(scope="module")
def chosen(finished_sweep) -> Path:
    """A trained run beside another one."""
    return next(path.parent for path in sorted((finished_sweep / "executed" / "tiny").glob("lr=0.01*/best.pt")))


@pytest.fixture(scope="module")
def lab(tmp_path_factory, finished_sweep, chosen):
    """The address of a JupyterLab that knows both kernels of this checkout, on copies of 04 for each."""
    root = tmp_path_factory.mktemp("lab")
    (root / "work").mkdir()
    for name in ("python3", kernelspec.NAME):
        notebook = json.loads((ROOT / "notebooks" / "04_gradcam.ipynb").read_text("utf-8"))
        cell = next(cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", []))
        cell["source"] = [f"run_dir: str = {str(chosen)!r}"]
        notebook["metadata"]["kernelspec"] = {"name": name, "display_name": name, "language": "python"}
        (root / "work" / f"{name}.ipynb").write_text(json.dumps(notebook), "utf-8")
    warm = [sys.executable, "-ISP", str(Path(launcher.__file__)), "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": warm, "display_name": "fruitlib (warm)", "language": "python", "interrupt_mode": "signal"}
    write(root / "data" / "kernels" / kernelspec.NAME / "kernel.json", spec)
    for name, content in SETTINGS.items():
        write(root / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings", content)
    folders = {f"JUPYTER_{name}": str(root / name.lower()) for name in ("CONFIG_DIR", "RUNTIME_DIR", "DATA_DIR")}
    folders |= {f"JUPYTERLAB_{name}_DIR": str(root / name.lower()) for name in ("SETTINGS", "WORKSPACES")}
    folders |= {"JUPYTER_PATH": str(root / "data"), "IPYTHONDIR": str(root / "ipython")}
    environment = os.environ | folders | {"FRUITLIB_HOME": str(finished_sweep), "PYTHONPATH": str(ROOT)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root", "--ServerApp.token=secret"]
    options += [f"--ServerApp.root_dir={root / 'work'}", "--LabApp.extension_manager=readonly"]
    with open(root / "log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], env=environment, stdout=log, stderr=log
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/api?token=secret", server, root / "log")
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}.ipynb?reset&token=secret"
    finally:
        server.terminate()
        server.wait(30)


def write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(120):
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.25)
    raise AssertionError(log.read_text())


class Page:
    """The browser of 04 on a page of JupyterLab."""

    def __init__(self, page):
        self.page = page

    def pictures(self) -> list[str]:
        return [image.get_attribute("src") for image in self.page.locator(PICTURE).all()]

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


@pytest.mark.parametrize("kernel", ["python3", kernelspec.NAME])
def test_clicks_and_keys_change_what_is_shown(lab, browser, chosen, kernel):
    context = browser.new_context(viewport={"width": 1400, "height": 1100})
    page = context.new_page()
    page.goto(lab.format(kernel))
    page.get_by_text("| Idle").wait_for(timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator(RUN_ALL).click()
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
    shown.click("save what is shown")
    assert shown.soon(lambda: "saved:" in page.locator(".jp-Notebook [role=status]").inner_text())
    assert list((chosen / "cams").glob("shown_*.png")) and list((chosen / "cams").glob("shown_*.json"))
    context.close()
