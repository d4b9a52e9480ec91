"""The offline site: what the pages say, that they need nothing from elsewhere, and that no input breaks them."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat import v4
from PIL import Image

from fruitlib.core.errors import InputError
from fruitlib.reporting import markup, pictures, site, site_index
from fruitlib.runs.status import load_status, read_sweep

BEST, WORSE, FAILED, PENDING = "lr=0.001,optimizer=adam", "과일 #1 사진,lr=0.0003", "lr=1.0,optimizer=sgd", "lr=0.1"


def png(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


PNG = png(Image.new("RGB", (2, 2), "red"))
WIDGET = {"application/vnd.jupyter.widget-view+json": {"model_id": "m", "version_major": 2, "version_minor": 0}}


class Markup(HTMLParser):
    """Addresses, text and tags of a page, with every element that must be closed checked against its opener."""

    def __init__(self, text: str):
        super().__init__()
        self.addresses, self.tags, self.words, self.open, self.script, self.style = [], [], [], [], "", ""
        self.feed(text)
        self.text = re.sub(r" ([,.])", r"\1", " ".join(" ".join(self.words).split()))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "data", "action")]
        if tag not in ("meta", "link", "img", "wbr", "br", "hr", "circle", "line", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("circle", "line", "path"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.script += data
        elif self.open[-1:] == ["style"]:
            self.style += data
        else:
            self.words.append(data)


def show(data: dict, metadata: dict | None = None):
    return v4.new_output("display_data", data, metadata=metadata or {})


def headline(text: str, state: str = "answered", **numbers):
    mark = {"fruitlib": {"headline": {"state": state, "text": text, "numbers": numbers}}}
    return show({"text/plain": "headline widget text"}, mark)


def code(source: str, *outputs, tag: str = ""):
    return v4.new_code_cell(source, outputs=list(outputs), metadata={"tags": [tag]} if tag else {})


def notebook(title: str, *cells, answer: str = "Accuracy 0.933 (95 % CI 0.79–0.98, n = 30)", **numbers):
    opening = v4.new_markdown_cell(f"# {title}\nWhy it matters.")
    defaults = code('lr: float = 0.001  # peak learning rate\noptimizer: str = "adam"', tag="parameters")
    injected = code("# Parameters\nlr = 0.0003\noptimizer = 'adam'", tag="injected-parameters")
    top = code("headline = runs.headline()", headline(answer, **numbers))
    return v4.new_notebook(cells=[opening, defaults, injected, top, *cells])


def evidence():
    table = pd.DataFrame({"recall": [0.25, 0.75]}, index=["apple", "<i>cherry</i>"])
    return [
        v4.new_markdown_cell(
            "## Which fruits?\n[Wilson](https://example.org/w), [next](04_gradcam.ipynb), [gone](no.csv)"
        ),
        code("plot()", show({"image/png": PNG, "text/plain": "<Figure>"})),
        code("table", show({"text/html": table.to_html(), "text/plain": str(table)})),
        code("browser()", show(WIDGET | {"text/plain": "HBox(children=(Dropdown(),))"})),
        code("browser()", show(WIDGET | {"image/png": PNG, "text/plain": "VBox()"})),
        code("log", v4.new_output("stream", name="stdout", text="1 %\r99 %\rdone\n<b>bold</b>\n")),
        code("warn", v4.new_output("stream", name="stderr", text="a warning\n")),
    ]


def write(path: Path, book) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)


def sweep_file(folder: Path, **changes) -> None:
    runs = [
        {"name": WORSE, "state": "complete", "settings": {"lr": 0.0003}, "error": None},
        {"name": BEST, "state": "complete", "settings": {"lr": 0.001}, "error": None},
        {"name": FAILED, "state": "failed", "settings": {"lr": 1.0}, "error": None},
        {"name": PENDING, "state": "pending", "settings": {"lr": 0.1}, "error": "waits for <a> device"},
    ]
    values = {"title": "A <b>bold</b> sweep", "params_file": "params/demo.yaml", "data": "sample", "runs": runs}
    values |= {"chosen": BEST, "choose_by": "macro_f1", "hardware": "two cores", "finished": "2026-11-22 03:00"}
    (folder / "sweep.json").write_text(json.dumps(values | {"versions": {"torch": "2.15.0"}} | changes))


def results(folder: Path, **changes) -> None:
    columns = {
        "run": [WORSE, BEST],
        "accuracy": [0.8, 0.93333],
        "accuracy_low": [0.627, 0.787],
        "accuracy_high": [0.907, 0.982],
        "n": [30, 30],
        "macro_f1": [0.7512, 0.9012],
        "test_accuracy": [None, 0.9],
        "test_low": [None, 0.744],
        "test_high": [None, 0.966],
        "test_n": [None, 30],
    }
    pd.DataFrame(columns | changes).to_csv(folder / "results.csv", index=False)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "a sweep"
    write(folder / "01_split.ipynb", notebook("1 · Which photos?", answer="304 photos, 0 leak"))
    for run in (BEST, WORSE):
        for stem in site.EXPECTED:
            write(
                folder / run / f"{stem}.ipynb",
                notebook(f"{stem} <u>asks</u>?", *evidence(), accuracy=0.93333, n=12345.0),
            )
    trouble = v4.new_output(
        "error", ename="OutOfMemoryError", evalue="no <room>\nat all", traceback=["\x1b[31mline 7\x1b[0m"]
    )
    notice = v4.new_markdown_cell("An Exception was encountered", metadata={"tags": ["papermill-error-cell-tag"]})
    broken = notebook("2 · What is learnt?", code("fit()", trouble))
    broken.cells[3].outputs = [headline("", state="running")]
    broken.cells.insert(0, notice)
    write(folder / FAILED / "02_train.ipynb", broken)
    sweep_file(folder)
    results(folder)
    return folder


def read(path: Path) -> Markup:
    return Markup(path.read_text("utf-8"))


def page(sweep: Path, run: str = BEST, stem: str = "03_metrics") -> Markup:
    return read(sweep / run / f"{stem}.html")


def test_every_page_is_whole_and_needs_nothing_from_elsewhere(sweep):
    assert site.build_site(sweep) == sweep / "index.html"
    pages = sorted(sweep.rglob("*.html"))
    assert len(pages) == 1 + 1 + 2 * 4 + 1
    for path in pages:
        markup = read(path)
        assert markup.open == []
        assert not {"link", "iframe", "object"} & set(markup.tags)
        digest = base64.b64encode(hashlib.sha256(markup.style.encode()).digest()).decode()
        assert markup.tags.count("style") == 1 and f"style-src 'sha256-{digest}';" in path.read_text("utf-8")
        assert markup.tags.count("script") == 1 + (path.name == "index.html")  # ours, and the index's data
        for address in markup.addresses:
            assert not address.startswith(("http:", "https:", "//")), path
            if not address.startswith(("#", "data:image/")):
                assert (path.parent / unquote(urlsplit(address).path)).is_file(), (path, address)


def test_a_page_reads_question_answer_settings_evidence(sweep):
    site.build_site(sweep)
    markup = page(sweep)
    order = [
        "03_metrics <u>asks</u>?",
        "Accuracy 0.933 (95 % CI 0.79–0.98, n = 30)",
        "validation accuracy 0.933",
        "12345",
        "peak learning rate",
        "Which fruits?",
    ]
    places = [markup.text.rindex(part) for part in order]
    assert places == sorted(places)
    assert "0.0003 default 0.001" in markup.text and "default adam" not in markup.text
    assert "Settings 1 of 2 differ from the default" in markup.text and "1 as by default" in markup.text
    assert "headline widget text" not in markup.text
    assert "u" not in markup.tags


def test_outputs_keep_pictures_and_tables_and_lose_widgets(sweep):
    site.build_site(sweep)
    markup = page(sweep)
    assert markup.addresses.count(f"data:image/png;base64,{PNG}") == 2
    assert "0.25" in markup.text and "<i>cherry</i>" in markup.text
    assert "HBox" not in markup.text and "VBox" not in markup.text
    assert "99 %" not in markup.text and "done <b>bold</b>" in markup.text
    assert "a warning" in markup.text[markup.text.index("messages") :]


def test_links_in_markdown_lead_to_pages_or_become_text(sweep):
    site.build_site(sweep)
    markup = page(sweep)
    assert "04_gradcam.html" in markup.addresses and "no.csv" not in markup.addresses
    assert "Wilson https://example.org/w" in markup.text


def test_neighbours_and_the_way_back(sweep):
    site.build_site(sweep)
    assert {"../index.html", "02_train.html", "04_gradcam.html"} <= set(page(sweep).addresses)
    first, last = page(sweep, stem="02_train").text, page(sweep, stem="05_quantize").text
    assert "←" not in first and "03_metrics <u>asks</u>? →" in first
    assert "→" not in last and "← 04_gradcam" in last


def test_the_index_states_the_result_and_its_uncertainty(sweep):
    site.build_site(sweep)
    text = read(sweep / "index.html").text
    assert "Test accuracy 0.900 (0.74–0.97), n = 30" in text
    assert "4 runs of params/demo.yaml on the data sample (2 complete, 1 failed, 1 pending), on two cores" in text
    assert "under way, last result 2026-11-22 03:00" in text
    assert "0.933 (0.79–0.98)" in text and "0.800 (0.63–0.91)" in text
    assert "304 photos, 0 leak" in text and "torch 2.15.0" in text
    assert "A <b>bold</b> sweep" in text and "b" not in read(sweep / "index.html").tags


@pytest.mark.parametrize(("choose_by", "first"), [("macro_f1", BEST), ("balanced_accuracy", WORSE)])
def test_the_best_run_comes_first(sweep, choose_by, first):
    sweep_file(sweep, choose_by=choose_by, chosen=first)
    results(sweep, balanced_accuracy=[0.9, 0.8])
    site.build_site(sweep)
    table = (sweep / "index.html").read_text("utf-8").partition('class="results"')[2]
    rows = table.partition("<tbody>")[2].split("</tr>")
    assert "chosen" in rows[0] and first.split(",")[0] in rows[0]
    assert "chosen" not in rows[1]


def test_the_scripts_settings_are_written_as_08_writes_them():
    """A setting without a value has a word, by which the script can filter."""
    values = {"weights": "", "fold": None, "lr": 1.0, "ema": False, "seed": 10**400}
    run = {"name": "a", "state": "pending", "settings": values}
    data, _ = site_index._data(Path("no folder"), [run], [], site_index.Seen())
    found = data["runs"][0]["settings"]
    assert list(found.values())[:-1] == ["empty", "empty", "1", "False"] and len(found["seed"]) == 60


def test_the_plot_places_each_interval_on_its_axis(sweep):
    runs = [
        {"row": {"accuracy": 0.8, "accuracy_low": 0.6, "accuracy_high": 1.0}},
        {"row": {"accuracy": 0.7}},
        {"row": {}},
    ]
    forest = site_index.forest(runs)
    axis = {label: place for place, label in forest["ticks"]}
    assert [mark[1:] for mark in forest["marks"]] == [(axis["0.80"], axis["0.60"], axis["1.00"]), (axis["0.70"],) * 3]
    site.build_site(sweep)
    assert read(sweep / "index.html").tags.count("circle") == 1  # the chosen run has a diamond


def test_a_failed_run_says_why(sweep):
    site.build_site(sweep)
    index, markup = read(sweep / "index.html").text, page(sweep, FAILED, "02_train")
    assert "Stopped by OutOfMemoryError: no <room>" in index and "waits for <a> device" in index
    assert "Stopped by OutOfMemoryError: no <room>" in markup.text and "#failure" in markup.addresses
    assert markup.text.rindex("no <room>") < markup.text.index("traceback line 7")
    assert "An Exception was encountered" not in markup.text and "2 · What is learnt?" in markup.text


def test_the_index_says_that_nothing_was_chosen_or_opened(sweep):
    sweep_file(sweep, chosen=None)
    site.build_site(sweep)
    text = read(sweep / "index.html").text
    assert "No test photo has been opened." in text and "No run has been chosen yet." in text


@pytest.mark.parametrize(("lost", "folded"), [(2, False), (9, True)])
def test_the_index_says_which_photos_were_found_and_what_was_lost(sweep, lost, folded):
    notes = [f"<b>{i}</b> photos of the table are not there" for i in range(lost)]
    (sweep / "manifest.json").write_text(json.dumps({"listing": "2 classes: a & b 1, c 2", "notes": notes}))
    site.build_site(sweep)
    page = read(sweep / "index.html")
    assert "2 classes: a & b 1, c 2" in page.text and all(note in page.text for note in notes)
    assert ("4 more notes" in page.text) == folded == ("details" in page.tags)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"notes": 3}', '{"notes": null, "listing": null}'])
def test_a_manifest_s_record_that_cannot_be_read_costs_its_section_alone(sweep, text):
    (sweep / "manifest.json").write_text(text)
    site.build_site(sweep)
    assert "The photos" not in read(sweep / "index.html").text


def test_what_makes_the_test_result_doubtful_stands_beside_it(sweep):
    record = json.loads((sweep / "sweep.json").read_text())
    remark = "12 test photos are copies of training or validation photos: the result is optimistic"
    (sweep / "sweep.json").write_text(json.dumps(record | {"test_remarks": [remark]}))
    site.build_site(sweep)
    assert remark in read(sweep / "index.html").text


@pytest.mark.parametrize(
    ("over", "p", "mark"), [(0.1, 0.01, "beaten"), (-0.1, 0.01, "better"), (0.1, 0.2, "not beaten")]
)
def test_the_index_says_which_runs_beat_frozen_features(sweep, over, p, mark):
    sentence = "Compared with frozen features: accuracy <b>0.9</b> against 0.7"
    sweep_file(sweep, beside_probe=sentence)
    results(sweep, over_probe=[None, over], over_probe_p=[None, p], probe_accuracy=[None, 0.7])
    site.build_site(sweep)
    text = read(sweep / "index.html").text
    assert f"{sentence}." in text and f"frozen 0.700: {mark}" in text
    assert text.count("frozen 0") == 1 and "paired test on the same photos" in text


@pytest.mark.parametrize(
    "odd", [{}, {"over_probe": ["<b>", "x"]}, {"over_probe": [0.1, 0.2]}, {"probe_accuracy": [1.0, 1.0]}]
)
def test_numbers_about_frozen_features_that_are_odd_or_missing_break_nothing(sweep, odd):
    results(sweep, **odd)
    site.build_site(sweep)
    text = read(sweep / "index.html").text
    assert "frozen 0" not in text and "frozen nan" not in text and "0.933 (0.79–0.98)" in text


def test_openings_are_listed(sweep):
    pd.DataFrame({"when": ["Monday", "Tuesday"], "run": [BEST, WORSE]}).to_csv(sweep / "test_openings.csv", index=False)
    site.build_site(sweep)
    text = read(sweep / "index.html").text
    assert "Opened 2 times" in text and "Tuesday" in text


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"nbformat": 4, "cells": 3}', "\xff"])
def test_a_broken_notebook_is_named_and_breaks_nothing(sweep, content):
    (sweep / BEST / "04_gradcam.ipynb").write_text(content, encoding="latin-1")
    (sweep / WORSE / "05_quantize.ipynb").unlink()
    site.build_site(sweep)
    index = read(sweep / "index.html").text
    assert f"{BEST}: 04_gradcam.ipynb cannot be read" in index
    assert f"{WORSE}: 05_quantize.ipynb is missing" in index
    assert "cannot be read" in page(sweep, stem="04_gradcam").text


@pytest.mark.parametrize("content", [None, "", "run\n", 'run,accuracy\n"a', "other\n3\n"])
def test_a_missing_or_broken_results_table_is_no_crash(sweep, content):
    (sweep / "results.csv").unlink()
    if content is not None:
        (sweep / "results.csv").write_text(content)
    site.build_site(sweep)
    text = read(sweep / "index.html").text
    assert "results.csv" in text and "02 train" in text


def test_hostile_output_neither_runs_nor_loads(sweep):
    hostile = """<script src="https://cdn.example/x.js">alert(1)</script><style>@import url(https://x)</style>
      <img src="https://x/y.png" onerror="alert(2)"><a href="javascript:alert(3)">go</a><div></div></section></main>
      <p style="color: red; background: url(https://x)">kept</p><img src='//cdn/z.png'><iframe src="//x"></iframe>"""
    write(sweep / BEST / "03_metrics.ipynb", notebook("3", code("x", show({"text/html": hostile}))))
    site.build_site(sweep)
    text = (sweep / BEST / "03_metrics.html").read_text("utf-8")
    assert "kept" in text and Markup(text).open == []
    assert not any(part in text for part in ("alert", "https:", "//cdn", "onerror", "url("))


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ('<p style="color: red; position: fixed">a</p>', '<p style="color:red">a</p>'),
        ('<p style="width: u\\72l(x)">a</p>', "<p>a</p>"),
        ('<p style="background-color: URL (//x)">a</p>', "<p>a</p>"),
        ("<a href='java\nscript:f()'>a</a>", "<a>a</a>"),
        ('<a href="data:text/html,x">a</a>', "<a>a</a>"),
        ('<a href="#place">a</a>', '<a href="#place">a</a>'),
        (f'<img src="data:image/png;base64,{PNG}" onload="f()">', f'<img src="data:image/png;base64,{PNG}">'),
        ('<img srcset="https://x/y.png">', "<img>"),
        ("<svg><script>f()</script></svg>a", "a"),
        ('<base href="https://x"><form action="https://x"><input>a</form>', "a"),
        ("a<script>f()", "a"),
    ],
)
def test_only_harmless_markup_passes_the_filter(tmp_path, given, left):
    assert markup.clean_markup(given, tmp_path) == left


BOX = '<div class="scroll" tabindex="0" role="group" aria-label="Table: A &amp; B">'


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("<table><tr><th></th><th>a</th>", f"{BOX}<table><tbody><tr><td></td><th>a</th></tr></tbody></table></div>"),
        (
            '<table><tr><th colspan="2"> &nbsp;',
            f'{BOX}<table><tbody><tr><td colspan="2"></td></tr></tbody></table></div>',
        ),
        (
            "<table><tr><td><table></table>b</table>c",
            f"{BOX}<table><tbody><tr><td><table></table>b</td></tr></tbody></table></div>c",
        ),
        ('<p title="<table>">a', '<p title="&lt;table&gt;">a</p>'),
    ],
)
def test_every_table_scrolls_by_keyboard_and_no_header_is_empty(tmp_path, given, left):
    assert markup.readable_tables(markup.clean_markup(given, tmp_path), "A & B") == left


def test_the_same_inputs_give_the_same_bytes(sweep):
    site.build_site(sweep)
    before = {path: path.read_bytes() for path in sweep.rglob("*") if path.suffix == ".html"}
    site.build_site(sweep)
    assert before == {path: path.read_bytes() for path in before}


def test_only_folders_with_a_changed_notebook_are_written_again_when_so_asked(sweep):
    site.build_site(sweep)
    pages = {run: sweep / run / "03_metrics.html" for run in (BEST, WORSE)}
    before = {run: page.stat().st_mtime_ns for run, page in pages.items()}
    write(sweep / WORSE / "02_train.ipynb", notebook("2 · Trained again?"))
    site.build_site(sweep, changed_only=True)
    assert pages[BEST].stat().st_mtime_ns == before[BEST] and pages[WORSE].stat().st_mtime_ns > before[WORSE]
    sweep_file(sweep, title="Another title")  # is on every page
    site.build_site(sweep, changed_only=True)
    assert "Another title" in pages[BEST].read_text("utf-8")


def test_the_index_lists_what_made_a_difference_to_the_score(sweep):
    rows = [("macro_f1", 3, "lr: it did"), ("train_seconds", 3, "took longer"), ("macro_f1", 1, "one seed")]
    table = pd.DataFrame(rows, columns=["measure", "seeds", "summary"]).assign(significant=True, setting="lr")
    table.to_csv(sweep / "insight.csv", index=False)
    site.build_site(sweep)
    text = read(sweep / "index.html").text
    assert "lr: it did" in text and "took longer" not in text and "one seed" not in text
    (sweep / "insight.csv").unlink()
    site.build_site(sweep)
    assert "made a difference" not in read(sweep / "index.html").text


def test_while_a_sweep_is_under_way_what_is_yet_to_come_is_not_missing(sweep):
    (sweep / "01_split.ipynb").unlink()
    site.build_site(sweep)
    assert "01_split.ipynb is missing" not in (sweep / "index.html").read_text("utf-8")  # a run is pending
    over = [{"name": BEST, "state": "complete", "settings": {}, "error": None}]
    sweep_file(sweep, runs=over)
    site.build_site(sweep)
    assert ", finished 2026-11-22 03:00" in read(sweep / "index.html").text
    assert "01_split.ipynb is missing" in (sweep / "index.html").read_text("utf-8")


def test_a_folder_that_is_no_sweep_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"sweep\.json"):
        site.build_site(tmp_path)
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"runs": 5}', '{"runs": [{}]}', '{"runs": [[]]}', '{"runs": [], "title": 5}', "[" * 100_000]
)
def test_a_damaged_sweep_file_is_one_line(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    for reader in (site.build_site, read_sweep):
        with pytest.raises(InputError, match=r"sweep\.json: damaged"):
            reader(tmp_path)
    assert load_status(tmp_path).runs == []


def test_an_odd_word_for_groups_is_shown_as_it_is(tmp_path):
    (tmp_path / "sweep.json").write_text('{"runs": [], "group_word": 5}')
    assert site.build_site(tmp_path).is_file()


def test_a_large_png_becomes_a_small_webp_that_looks_the_same():
    noise = np.random.default_rng(0).integers(0, 40, (150, 200, 3), dtype=np.uint8)
    noise[:, 100:] += 200
    content = png(Image.fromarray(noise))
    assert len(content) > pictures.LARGE_PNG
    mime, _, lighter = pictures.embedded("image/png", content).partition(";base64,")
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(lighter))), dtype=float)
    assert mime == "data:image/webp" and len(lighter) < len(content) / 2
    assert (
        abs(shown[:, :95].mean() - noise[:, :95].mean()) < 4 and abs(shown[:, 105:].mean() - noise[:, 105:].mean()) < 4
    )
    assert pictures.embedded("image/png", PNG) == f"data:image/png;base64,{PNG}"
