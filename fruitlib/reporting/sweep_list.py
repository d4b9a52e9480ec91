"""00: the sweeps there are, how far each is, and links to its report and notebooks.

A Jupyter server shows a report's page without what lies beside it, the sheets of photos and heat: it confines the page
to an origin of its own (`Content-Security-Policy: sandbox allow-scripts`), a browser sends no login cookie (SameSite)
with what such a page asks for, and the server answers with its login page. To lift that would let the scripts of any
HTML file use the server. So a button opens the report as the file that it is, where there is a desktop.
"""

import html
import json
import os
import sys
import time
import webbrowser
from pathlib import Path
from urllib.parse import quote

from ipywidgets import HTML, Button, Dropdown, HBox, Layout, VBox

from fruitlib.core import files
from fruitlib.core.errors import InputError
from fruitlib.core.texts import printable
from fruitlib.runs.status import STALE, SweepStatus, load_status

NOTEBOOKS = ("01_split", "07_compare", "08_insight")


def sweeps() -> list[Path]:
    """The folders of executed/ that hold a sweep, the one that changed last first."""
    folders = [path.parent for path in (files.home() / "executed").glob("*/sweep.json")]
    return sorted(folders, key=lambda folder: (folder / "sweep.json").stat().st_mtime, reverse=True)


def followed(name: str = "") -> Path | None:
    """The folder of the sweep of that name; without a name of the one that changed last, None where there is none.

    Raises:
        InputError: no such sweep.
    """
    there = sweeps()
    if not name:
        return there[0] if there else None
    if found := [folder for folder in there if folder.name == name]:
        return found[0]
    names = ", ".join(folder.name for folder in there) or "none"
    raise InputError(f"sweep: no {name!r} in executed/; there are: {names}")


def state(status: SweepStatus, changed: float) -> str:
    """How far a sweep is, in words; `changed`: the seconds since its record was written."""
    waiting = status.count("pending") or status.total > len(status.runs)
    if status.elapsed is not None or status.count("running") or (waiting and changed < STALE):
        return f"running: {status.line}" + (f", {status.doing}" if status.doing and not waiting else "")
    if waiting:
        return f"stopped: {status.line}; start it again, and it goes on"
    return f"complete: {status.line}"


def show() -> VBox:
    """A row per sweep (name, title, how far it is, links), and a button that opens a report."""
    reports = {folder.name: folder / "index.html" for folder in sweeps() if (folder / "index.html").is_file()}
    choice, message = Dropdown(options=list(reports), layout=Layout(width="16em")), HTML()
    button = Button(description="Open its report", disabled=not reports, layout=Layout(width="11em"))
    button.on_click(lambda _: setattr(message, "value", html.escape(open_report(reports[choice.value]))))
    return VBox([HTML(table()), HBox([choice, button, message], layout=Layout(flex_flow="row wrap"))])


def open_report(page: Path) -> str:
    """Open a page in the browser of this machine, with all its photos; returns what was done, or what to do instead."""
    desktop = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if desktop and webbrowser.open(page.as_uri()):
        return f"opened: {files.display_path(page)}"
    way = f"copy {files.display_path(page.parent)} to yours and open index.html there"
    return f"no browser can be opened on this machine: {way}; the link shows the page without its photos"


def table() -> str:
    """The sweeps as an HTML table."""
    rows = "".join(map(_row, sweeps()))
    head = "".join(
        f"<th style='text-align:left;padding-right:1.5em'>{name}</th>" for name in ("sweep", "asks", "state")
    )
    if not rows:
        return "<p>no sweep yet: start one below, or with <code>make demo</code></p>"
    return f"<table style='line-height:1.4'><tr>{head}</tr>{rows}</table>"


def _row(folder: Path) -> str:
    status = load_status(folder)
    changed = time.time() - (folder / "sweep.json").stat().st_mtime
    report = _link(folder / "index.html", "report")
    notebooks = " ".join(filter(None, (_link(folder / f"{stem}.ipynb", stem[:2]) for stem in NOTEBOOKS)))
    texts = [html.escape(printable(text)) for text in (folder.name, status.title, state(status, changed))]
    cells = [f"<b>{texts[0]}</b>", *texts[1:], report, notebooks and f"notebooks {notebooks}"]
    return "<tr>" + "".join(f"<td style='padding-right:1.5em'>{cell}</td>" for cell in cells) + "</tr>"


def _link(path: Path, name: str) -> str:
    """A link that the Jupyter server of this notebook answers; "" where there is no such file."""
    if not path.is_file():
        return ""
    kind = "files" if path.suffix == ".html" else "lab/tree"
    style = "color:var(--jp-content-link-color, #1565c0);text-decoration:underline"
    return f"<a style='{style}' href='{html.escape(address(path, kind), quote=True)}' target='_blank'>{name}</a>"


def address(path: Path, kind: str) -> str:
    """The address of a file at the server that this kernel belongs to: `files` to look at it, `lab/tree` to open it.

    Without a server, from the folder of notebooks.
    """
    for server in _servers():
        root = Path(str(server.get("root_dir") or "/")).expanduser().resolve()
        if path.is_relative_to(root):  # a link in it is the server's to follow
            return f"{server.get('base_url', '/')}{kind}/{quote(path.relative_to(root).as_posix())}"
    return quote(os.path.relpath(path, files.home() / "notebooks"))


def _servers() -> list[dict]:
    """The Jupyter servers of this person, the one that started this kernel first."""
    from jupyter_core.paths import jupyter_runtime_dir

    found = []
    for path in Path(jupyter_runtime_dir()).glob("jpserver-*.json"):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):  # written or removed just now
            continue
    mine = os.environ.get("JPY_PARENT_PID")
    return sorted(found, key=lambda server: str(server.get("pid")) != mine)
