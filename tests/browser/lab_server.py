"""A JupyterLab of its own for tests in the browser, as `make lab` starts it, with both kernels of this checkout."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

from support import ROOT, wait_until

from fruitlib.kernels import kernelspec, launcher

KERNELS = ("python3", kernelspec.NAME)
TOKEN = "secret"
SETTINGS = {  # of JupyterLab: no look at the news, all cells in the page
    "apputils-extension/notification": {"fetchNews": "false"},
    "notebook-extension/tracker": {"windowingMode": "none"},
}
RUN_ALL = '.lm-Menu-item[data-command="runmenu:run-all"]'


@contextlib.contextmanager
def jupyterlab(work: Path, place: Path, ignores_interrupts: bool = False, **environment: str):
    """A JupyterLab on the folder `work` that keeps what it writes in `place`: its process and its address.

    `ignores_interrupts`: started by a script that ignores them, so that what it starts ignores them from birth.
    """
    warm = [sys.executable, "-ISP", str(Path(launcher.__file__)), "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": warm, "display_name": "fruitlib (warm)", "language": "python", "interrupt_mode": "signal"}
    write(place / "data" / "kernels" / kernelspec.NAME / "kernel.json", spec)
    for name, content in SETTINGS.items():
        write(place / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings", content)
    folders = {f"JUPYTER_{name}_DIR": str(place / name.lower()) for name in ("CONFIG", "RUNTIME", "DATA")}
    folders |= {f"JUPYTERLAB_{name}_DIR": str(place / name.lower()) for name in ("SETTINGS", "WORKSPACES")}
    folders |= {"JUPYTER_PATH": str(place / "data"), "IPYTHONDIR": str(place / "ipython")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root"]
    options += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={work}"]
    options += ["--LabApp.extension_manager=readonly", *make_lab_options()]
    command = [sys.executable, "-m", "jupyterlab", *options]
    if ignores_interrupts:
        command = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *command]
    environment = os.environ | folders | {"PYTHONPATH": str(ROOT)} | environment
    with open(place / "log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until(lambda: server.poll() is not None or answers(f"http://127.0.0.1:{port}/api"))
        assert server.poll() is None, (place / "log").read_text()
        yield server, f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def make_lab_options() -> list[str]:
    """What `make lab` sets besides the folder and the first page."""
    recipe = re.search(r"^lab:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    options = re.findall(r"--\S+", recipe)
    return [option for option in options if "root_dir" not in option and "default_url" not in option]


def write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), "utf-8")


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


def write_notebook(path: Path, cells: list[str], kernel: str) -> None:
    """A notebook of code cells for a kernel."""
    common = {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": []}
    codes = [common | {"id": f"cell-{number}", "source": code} for number, code in enumerate(cells)]
    metadata = {"kernelspec": {"name": kernel, "display_name": kernel, "language": "python"}}
    write(path, {"cells": codes, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


def open_notebook(page, address: str, name: str) -> None:
    """Open a notebook, and wait until its kernel is there."""
    page.goto(f"{address}/lab/tree/{name}?reset&token={TOKEN}")
    page.get_by_text("| Idle").wait_for(timeout=120_000)


def run_all(page) -> None:
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator(RUN_ALL).click()


def end_kernels(page, address: str) -> None:
    """End the kernel of every notebook that is open."""
    options = {"headers": {"Authorization": f"token {TOKEN}"}}
    for session in page.request.get(f"{address}/api/sessions", **options).json():
        assert page.request.delete(f"{address}/api/sessions/{session['id']}", **options).status == 204
