"""Hostile text in every place of a notebook and of a sweep's files, in a browser: nothing runs, nothing loads."""

import base64
import http.server
import json
import re
import shutil
import subprocess
import threading
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat import v4

from fruitlib.reporting import site

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
FLAGS += " disable-component-update disable-sync virtual-time-budget=1000 dump-dom"
RUN = "document.title=`RAN`;document.documentElement.append(document.createElement(`ran-it`))"
NAME = f'"><img src=x onerror="{RUN}"><svg onload="{RUN}">'  # may be a file's name: no slash
REFRESH = '<meta http-equiv="refresh" content="0;url={}/refresh">'  # which no policy stops: the filter must


def payload(address: str) -> str:
    return f"""</pre></code></title></style></textarea>--></main>']]>"><script>{RUN}</script>
        <script src="{address}/script"></script><img src="{address}/img" onerror="{RUN}"><svg onload="{RUN}"></svg>
        <iframe src="{address}/frame" srcdoc="<script>top.{RUN}</script>"></iframe><base href="{address}/base">
        <link rel="stylesheet" href="{address}/css"><style>@import "{address}/import";</style><form action="{address}">
        <input autofocus onfocus="{RUN}"></form><object data="{address}/object"></object><embed src="{address}/embed">
        {REFRESH.format(address)}<video src="{address}/video" onerror="{RUN}"></video>
        <a href="javascript:{RUN}">go</a><a href="data:text/html,<script>{RUN}</script>">go</a>
        <p style="background:url({address}/style)" onclick="{RUN}">text</p><details open ontoggle="{RUN}">d</details>"""


def svg(address: str) -> str:
    return f"""<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" onload="{RUN}">
        <script>top.{RUN}</script><image xlink:href="{address}/svg-image"/><style>@import "{address}/svg-css";</style>
        <foreignObject><iframe xmlns="http://www.w3.org/1999/xhtml" src="{address}/svg-frame"/></foreignObject></svg>"""


def hostile_notebook(bad: str, address: str) -> nbformat.NotebookNode:
    pictures = [f"image/{name}" for name in ("png", "jpeg", "gif", "webp", "svg+xml", "bmp")]
    texts = ["text/html", "text/markdown", "text/latex", "text/plain", "application/javascript", "application/pdf"]
    texts += ["application/vnd.unknown", "text/x-unknown", "application/xhtml+xml"]
    bundles = [{mime: bad} for mime in pictures + texts]
    bundles += [{mime: base64.b64encode(bad.encode()).decode() * 90} for mime in pictures]  # a large one of each
    bundles += [{mime: {"a": bad}} for mime in ("application/json", "application/vnd.plotly.v1+json")]
    bundles += [{"image/svg+xml": svg(address)}, {bad: bad}, {"text/html": f"<table><tr><td>{bad}</table>"}]
    bundles += [{"application/vnd.jupyter.widget-view+json": {"model_id": bad}, "text/html": bad}]
    facts = {"alt": bad, "width": f'1"{NAME}', "height": bad}
    outputs = [v4.new_output("display_data", data, metadata=dict.fromkeys(data, facts)) for data in bundles]
    outputs += [v4.new_output("stream", name=name, text=f"\x1b[31m{bad}\x1b]0;x\x07") for name in ("stdout", "stderr")]
    outputs += [v4.new_output("error", ename=bad, evalue=bad, traceback=[bad])]
    numbers = {"fruitlib": {"headline": {"state": bad, "text": bad, "numbers": {bad: 1.0, "n": bad}}}}
    outputs += [v4.new_output("display_data", {"text/plain": bad}, metadata=numbers)]
    outputs += [v4.new_output("display_data", {"text/plain": bad}, metadata={"fruitlib": {"headline": [bad]}})]
    cells = [v4.new_markdown_cell(f"# {' '.join(bad.split())}\n{bad}"), v4.new_markdown_cell(f"## {NAME}\n\n{bad}")]
    settings = f"lr: float = {bad!r}  # {' '.join(bad.split())}"
    cells += [v4.new_code_cell(settings, metadata={"tags": ["parameters", NAME]}), v4.new_code_cell(bad)]
    return v4.new_notebook(cells=[*cells, v4.new_code_cell("show()", outputs=outputs)])


def hostile_sweep(folder: Path, bad: str, address: str) -> Path:
    """A sweep's folder; returns that of its run."""
    for place in (folder, folder / NAME):
        place.mkdir()
        nbformat.write(hostile_notebook(bad, address), place / f"03{NAME}.ipynb")
    runs = [{"name": NAME, "state": "complete"}, {"name": "b", "state": bad, "error": bad}, {"name": bad}]
    words = dict.fromkeys(["title", "params_file", "data", "hardware", "finished", "population", "group_word"], bad)
    sweep = words | {"runs": runs, "chosen": NAME, "choose_by": bad, "versions": {bad: bad}, "made": bad, "total": 9}
    (folder / "sweep.json").write_text(json.dumps(sweep))
    numbers = {"accuracy": [0.5], "accuracy_low": 0.4, "accuracy_high": 0.6, "n": 9, "groups": 3, bad: 1.0}
    pd.DataFrame({"run": [NAME]} | numbers).to_csv(folder / "results.csv", index=False)
    pd.DataFrame({"time": [bad], bad: [bad]}).to_csv(folder / "test_openings.csv", index=False)
    effects = {"measure": [bad], "seeds": 3, "significant": True, "summary": bad, "setting": bad}
    pd.DataFrame(effects).to_csv(folder / "insight.csv", index=False)
    (folder / NAME / "broken.ipynb").write_text(bad)
    photos = {"path": [bad, f"{bad} 2"], "label": [bad, NAME], "predicted": [NAME, NAME]}
    photos |= {f"p_{bad}": [0.2, 0.3], f"p_{NAME}": [0.8, 0.7], "backend": "torch"}
    pd.DataFrame(photos).to_csv(folder / NAME / "predictions_val.csv", index=False)
    pd.DataFrame({"path": photos["path"], "group": bad}).to_csv(folder / "manifest.csv", index=False)
    (folder / NAME / "stages").mkdir()
    weights = {"proof": f"proven: {bad}", "licence": bad, "sha256": bad}
    (folder / NAME / "stages/train.json").write_text(json.dumps({"weights": weights, "data_fingerprint": bad}))
    return folder / NAME


@pytest.fixture
def server():
    """A web server on this machine, with the paths that were asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        running.asked, running.address = asked, f"http://127.0.0.1:{running.server_port}"
        yield running
        running.shutdown()


class Elements(HTMLParser):
    """Every element of a page with its attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.found, self.title = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def unsafe(text: str) -> list:
    """Elements that could run or load something; not the page's data, script and style, which the policy knows."""
    tags = {"script", "iframe", "object", "embed", "form", "base", "style", "video", "foreignobject", "image", "use"}
    found = []
    for tag, attributes in Elements(text).found:
        leads = [attributes.get(name) or "" for name in ("href", "src", "action", "data", "xlink:href")]
        away = any(re.match(r"\s*(?!data:image/)[\w+.-]+:|//", address) for address in leads)
        away |= attributes.get("http-equiv") == "refresh"
        ours = tag == "script" and attributes in ({}, {"type": "application/json", "id": "data"})
        ours |= tag == "style" and not attributes
        if (tag in tags and not ours) or away or any(name.startswith("on") for name in attributes):
            found.append((tag, attributes))
    return found


def in_browser(page: Path, profile: Path) -> str:
    """The page after a second in a browser, as HTML."""
    done = subprocess.run(
        [CHROMIUM, *(f"--{flag}" for flag in FLAGS.split()), f"--user-data-dir={profile}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip(), done.stderr
    return done.stdout


def ran(dom: str) -> bool:
    return "<ran-it" in dom or "<title>RAN" in dom


def test_hostile_text_in_every_place_is_text(tmp_path, server):
    folder, bad = tmp_path / "sweep", payload(server.address)
    run = hostile_sweep(folder, bad, server.address)
    index = site.build_site(folder)
    pages = [index, *folder.glob("*.html"), *run.glob("*.html")]
    assert len(pages) == 1 + 2 + 3  # the index, twice; a page of the sweep, three of the run
    for page in pages:
        text = page.read_text("utf-8")
        assert unsafe(text) == [] and text.count("<script") == 1 + (page.name in ("index.html", "photos.html"))
        assert text.count("<style") == 1
    notebook = (run / f"03{NAME}.html").read_text("utf-8")
    assert notebook.count("A picture could not be shown") == 10 and "data:image/svg+xml,%3C" in notebook
    if CHROMIUM is None:
        pytest.skip("no Chromium: what a browser does with the pages is not tried")
    tried = (index, run / f"03{NAME}.html", run / "photos.html")
    shown = [in_browser(page, tmp_path / "profile") for page in tried]
    assert not any(map(ran, shown)) and server.asked == []
    assert "could not be made" not in "".join(shown)
    assert "Columns</summary>" in shown[0] and 'id="answered"' in shown[2]  # our script did run


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_were_the_filter_broken_the_policy_would_still_hold(tmp_path, server):
    folder = tmp_path / "sweep"
    hostile_sweep(folder, "kind", server.address)
    index = site.build_site(folder)
    bad = payload(server.address).replace(REFRESH.format(server.address), "")
    page, text = folder / "page.html", index.read_text("utf-8").replace("</main>", bad)
    page.write_text(text, "utf-8")
    assert not ran(in_browser(page, tmp_path / "profile")) and server.asked == []
    page.write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text), "utf-8")
    assert ran(in_browser(page, tmp_path / "profile")) and len(server.asked) > 5  # else this test could not fail
