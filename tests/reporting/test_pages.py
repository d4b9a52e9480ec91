"""A notebook of any kind has a page, and a folder of any kind a site that stays inside it."""

import base64
import io
import json
import os
from pathlib import Path

import nbformat
import pytest
from nbformat import v4
from PIL import Image

from fruitlib.core.errors import InputError
from fruitlib.evaluation.sweep_answers import INSIGHT
from fruitlib.reporting import pages, pictures, site

SVG = '<svg xmlns="http://www.w3.org/2000/svg"><circle r="5"/></svg>'
ENTITIES = f'<!DOCTYPE svg [<!ENTITY a "b">]>{SVG}'


def svg(content: str) -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:x="http://www.w3.org/1999/xlink">{content}</svg>'


def levels(of: str, draws: str, count: int = 9) -> str:
    """An SVG in which each of `count` elements draws the one before it ten times."""
    parts = [f'<{of} id="a0"><circle r="5"/></{of}>']
    parts += [f'<{of} id="a{n}">{draws.format(n - 1) * 10}</{of}>' for n in range(1, count)]
    return svg(f"<defs>{''.join(parts)}</defs>{draws.format(count - 1)}")


DOT = '<circle id="dot" r="5"/>'


def encoded(kind: str, size: tuple[int, int] = (3, 2)) -> str:
    buffer = io.BytesIO()
    Image.new("L", size).save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


LARGE = base64.b64encode(b"\x89PNG\r\n\x1a\n" + os.urandom(70_000)).decode()
PIXELS = encoded("PNG")
WIDE = encoded("PNG", (20_000, 2_100))


@pytest.mark.parametrize(
    ("mime", "content", "starts"),
    [
        *((mime, encoded(kind), f"data:{mime};base64,") for mime, kind in pictures.RASTER.items()),
        ("image/png", encoded("JPEG"), "data:image/jpeg;base64,"),  # its bytes say what it is
        ("image/png", "\n".join(encoded("PNG")), "data:image/png;base64,"),
        ("image/svg+xml", SVG, "data:image/svg+xml,%3C"),
        ("image/svg+xml", svg(DOT + '<use x:href="#dot"/>' * 60_000), "data:image/svg+xml,%3C"),  # many points
        ("image/svg+xml", levels("g", '<use href="#a{}"/>', 4), "data:image/svg+xml,%3C"),
        ("image/svg+xml", svg(f'<image x:href="data:image/png;base64,\n{PIXELS}"/>'), "data:image/svg+xml,%3C"),
    ],
)
def test_a_picture_is_embedded_as_what_it_is(mime, content, starts):
    assert pictures.embedded(mime, content).startswith(starts)


@pytest.mark.parametrize(
    ("mime", "content", "why"),
    [
        ("image/png", '"><script>f()</script>', "not encoded as base64"),
        ("image/png", encoded("PNG")[:-9] + "é", "not encoded as base64"),
        ("image/png", "", "no PNG, JPEG, GIF or WebP"),
        ("image/png", encoded("PNG")[:60], "no PNG, JPEG, GIF or WebP"),
        ("image/png", LARGE, "no PNG, JPEG, GIF or WebP"),
        ("image/jpeg", encoded("BMP"), "no PNG, JPEG, GIF or WebP"),
        ("image/png", WIDE, "20,000 x 2,100 pixels"),
        ("image/svg+xml", "<svg", "no SVG"),
        ("image/svg+xml", "<p>a</p>", "no SVG"),
        ("image/svg+xml", ENTITIES, "entities"),
        ("image/svg+xml", levels("g", '<use href="#a{}"/>'), "drawn [0-9,]+ times"),
        ("image/svg+xml", levels("symbol", '<use x:href="#%61{}"/>'), "drawn"),
        ("image/svg+xml", levels("pattern", '<rect fill="url(#a{})"/>'), "drawn"),
        ("image/svg+xml", levels("pattern", '<rect style="stroke:#fff;fill:url( &quot;#a{}&quot; )"/>'), "drawn"),
        ("image/svg+xml", levels("pattern", '<g fill="url(#a{})"><path/></g>'), "drawn"),
        ("image/svg+xml", levels("mask", '<rect mask="url(#a{})"/>'), "drawn"),
        ("image/svg+xml", levels("mask", r'<rect mask="u\72l(#a{})"/>'), "CSS escapes"),
        (
            "image/svg+xml",
            svg('<g filter="url(#f)">' * 300 + "</g>" * 300 + '<filter id="f"><feFlood/></filter>'),
            "drawn",
        ),
        (
            "image/svg+xml",
            svg(f'<marker id="m">{DOT}</marker><path marker-mid="url(#m)" d="{"H1" * 99_999}"/>'),
            "drawn",
        ),
        ("image/svg+xml", svg('<g id="a"><use href="#a"/></g>'), "contains itself"),
        ("image/svg+xml", svg('<style>.a { fill: url("#a") }</style>'), "style sheet"),
        ("image/svg+xml", svg('<use><set attributeName="href" to="#a"/></use>'), "moves"),
        ("image/svg+xml", svg('<g id="a)"/>'), "name of an element"),
        ("image/svg+xml", svg('<image href="data:image/svg+xml;base64,AAAA"/>'), "another kind"),
        ("image/svg+xml", svg(f'<image href="data:image/png;base64,{WIDE}"/>'), "20,000 x 2,100 pixels"),
        ("image/svg+xml", svg("<g>" * 5000 + "</g>" * 5000), "nested too deep"),
    ],
)
def test_what_is_no_picture_says_why(mime, content, why):
    with pytest.raises(pictures.NotShown, match=why):
        pictures.embedded(mime, content)


def test_a_longer_picture_than_a_webp_may_be_is_made_smaller():
    noisy = Image.effect_noise((17_000, 8), 90)
    buffer = io.BytesIO()
    noisy.save(buffer, "PNG")
    address = pictures.embedded("image/png", base64.b64encode(buffer.getvalue()).decode())
    shown = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    assert shown.format == "WEBP" and shown.width == pictures.MAX_SIDE


def shown(output: dict, folder: Path) -> str:
    """The evidence of a page with one output."""
    cell = nbformat.from_dict({"cell_type": "code", "source": "x", "metadata": {}, "outputs": [output]})
    page = pages.Page(folder / "a.ipynb", "a", [cell])
    return pages.content(page, folder)["evidence"]


def display(data: dict, metadata=None) -> dict:
    return {"output_type": "display_data", "data": data, "metadata": {} if metadata is None else metadata}


@pytest.mark.parametrize(
    ("output", "part"),
    [
        (display({"image/png": ["not", " base64"]}), "A picture could not be shown"),
        (display({"image/png": [encoded("PNG")[:8], encoded("PNG")[8:]]}), f"base64,{encoded('PNG')}"),
        (display({"image/png": 7}), "A picture could not be shown"),
        (display({"image/png": encoded("PNG")}, {"image/png": "odd"}), "<img"),
        (
            display({"image/png": encoded("PNG")}, {"image/png": {"width": 30, "height": "9e9", "alt": 3}}),
            ' width="30">',
        ),
        (display({"text/html": ["<b>", "bold</b>"]}), "<b>bold</b>"),
        (display({"text/html": {"a": 1}, "text/plain": "words"}), "words"),
        (display({"application/json": {"a": [1]}}), "type application/json"),
        (display({"image/bmp": "Qk0="}), "type image/bmp"),
        (display({"text/plain": "a"}, {"fruitlib": {"headline": ["odd"]}}), "<pre>a</pre>"),
        (display({"text/plain": "a"}, {"fruitlib": 3}), "<pre>a</pre>"),
        (display({"text/plain": "x" * 900_000}), "700,000 characters are in the notebook alone"),
        ({"output_type": "stream", "name": "stdout", "text": "y" * 900_000}, "700,000 characters"),
        (display({"text/html": "<i>" * 300_000}), "characters are in the notebook alone"),
    ],
)
def test_an_output_of_any_shape_is_shown_or_named(tmp_path, output, part):
    found = shown(output, tmp_path)
    assert part in found and len(found) < 2_500_000


def sweep_in(folder: Path, *runs: str, **changes) -> Path:
    folder.mkdir(exist_ok=True)
    for run in runs:
        (folder / run).mkdir()
        nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell("# Title\ntext")]), folder / run / "02_train.ipynb")
    listed = [{"name": name, "state": "complete"} for name in runs]
    (folder / "sweep.json").write_text(json.dumps({"title": "T", "runs": listed} | changes))
    return folder


def test_nothing_is_read_or_written_through_a_link(tmp_path):
    elsewhere, folder = sweep_in(tmp_path / "elsewhere", "b"), sweep_in(tmp_path / "sweep", "a")
    before = sorted(elsewhere.rglob("*"))
    (folder / "linked").symlink_to(elsewhere / "b")
    (folder / "assets").symlink_to(elsewhere)
    (folder / "a" / "03_metrics.ipynb").symlink_to(elsewhere / "b" / "02_train.ipynb")
    (folder / "a" / "04_gradcam.ipynb").symlink_to("04_gradcam.ipynb")  # to itself
    (elsewhere / "kept.html").write_text("theirs")
    (folder / "a" / "02_train.html").symlink_to(elsewhere / "kept.html")
    (folder / "index.html").symlink_to(elsewhere / "kept.html")
    tables = ["results.csv", "test_openings.csv", "results_oof.csv", INSIGHT]
    (elsewhere / "secret.csv").write_text("run,time,combination,measure,note\na,a,a,macro_f1,secret\n")
    (elsewhere / "secret.json").write_text('{"listing": "secret"}')
    for name in tables:
        (folder / name).symlink_to(elsewhere / "secret.csv")
    (folder / "manifest.json").symlink_to(elsewhere / "secret.json")
    before += [elsewhere / "secret.csv", elsewhere / "secret.json"]
    site.build_site(folder)
    assert sorted(elsewhere.rglob("*")) == sorted([*before, elsewhere / "kept.html"])
    assert (elsewhere / "kept.html").read_text() == "theirs"
    assert sorted(path.name for path in folder.rglob("*.html")) == ["02_train.html", "index.html"]
    text = (folder / "index.html").read_text("utf-8")
    for name in ("linked", "assets", "a/03_metrics.ipynb", "a/04_gradcam.ipynb", *tables):
        assert f"{name} is a link and is left out" in text
    assert "secret" not in text
    (folder / "sweep.json").unlink()
    (folder / "sweep.json").symlink_to(elsewhere / "sweep.json")
    with pytest.raises(InputError, match="is a link"):
        site.build_site(folder)


@pytest.mark.parametrize("name", ["../b", "..", ".", "", "/etc", "a/b", "a\\b"])
def test_a_run_that_no_folder_can_be_called_is_named_and_not_linked(tmp_path, name):
    folder = sweep_in(tmp_path / "sweep", "a", runs=[{"name": name, "state": "complete"}, {"name": "a"}], chosen=name)
    site.build_site(folder)
    text = (folder / "index.html").read_text("utf-8")
    assert "which no folder can be called" in text and 'href="..' not in text and 'href="/' not in text


def test_links_and_pictures_stay_inside_the_sweep(tmp_path):
    folder = sweep_in(tmp_path / "sweep", "a")
    (tmp_path / "secret.png").write_bytes(b"")
    (folder / "own.png").write_bytes(b"")
    words = (
        "![s](../../secret.png) ![o](../own.png) [s](../../secret.png) [o](../own.png) [n](\0) ![l](" + "a/" * 240 + ")"
    )
    nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell(words)]), folder / "a" / "03.ipynb")
    site.build_site(folder)
    text = (folder / "a" / "03.html").read_text("utf-8")
    assert "secret.png" not in text and text.count('"../own.png"') == 2


ODD = {
    "deep.ipynb": lambda path: path.write_text("[" * 100_000),
    "folder.ipynb": Path.mkdir,
    "pipe.ipynb": os.mkfifo,  # reading it would wait for ever
    "large.ipynb": lambda path: (path.touch(), os.truncate(path, pages.MAX_FILE + 1)),
    "bytes.ipynb": lambda path: path.write_bytes(b"\xff\x00\x80" * 30),
}


def test_an_odd_file_costs_its_own_page_alone(tmp_path):
    folder = sweep_in(tmp_path / "sweep", "a")
    for name, make in ODD.items():
        make(folder / "a" / name)
    (folder / "a" / "folder.html").mkdir()  # where a page should be written
    site.build_site(folder)
    text = (folder / "index.html").read_text("utf-8")
    assert all(f"a: {name} cannot be read" in text for name in ODD)
    assert "Title" in (folder / "a" / "02_train.html").read_text("utf-8")


def test_a_page_that_cannot_be_made_says_why_and_the_others_are_made(tmp_path, monkeypatch):
    folder, real = sweep_in(tmp_path / "sweep", "a", "b"), pages.content

    def failing(page, root):
        if page.path.parent.name == "a":
            raise RecursionError("too <deep>")
        return real(page, root)

    monkeypatch.setattr(site.notebooks, "content", failing)
    site.build_site(folder)
    assert "could not be made: RecursionError: too &lt;deep&gt;" in (folder / "a" / "02_train.html").read_text("utf-8")
    assert "<p>text</p>" in (folder / "b" / "02_train.html").read_text("utf-8")
    assert "could not be made" in (folder / "index.html").read_text("utf-8")


@pytest.mark.parametrize("changes", [{"versions": [1]}, {"optimism": {"odd": 1}}, {"total": "many"}])
def test_an_overview_that_cannot_be_made_says_why_and_leads_to_the_pages(tmp_path, changes):
    folder = sweep_in(tmp_path / "sweep", "a #1", **changes)
    site.build_site(folder)
    text = (folder / "index.html").read_text("utf-8")
    assert "This overview could not be made" in text and 'href="a%20%231/02_train.html"' in text


def test_a_full_disk_is_no_fault_of_a_page(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "x.html")

    monkeypatch.setattr(site, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        site.build_site(sweep_in(tmp_path / "sweep", "a"))


def test_the_page_of_an_interrupted_training_has_that_line_and_no_traceback(tmp_path):
    line = "training was interrupted after epoch 2 of 3: execute 02_train again, and it resumes with epoch 3"
    error = v4.new_output("error", ename="Interrupted", evalue=line, traceback=[line])
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell("train.fit(run)", outputs=[error])]), tmp_path / "a.ipynb")
    page = pages.load(tmp_path / "a.ipynb")
    evidence = pages.content(page, tmp_path)["evidence"]
    assert page.failure == line and evidence.count(line) == 1 and "traceback" not in evidence


@pytest.mark.parametrize("failed", [False, True])
def test_a_section_that_does_not_apply_is_absent_unless_it_failed(tmp_path, failed):
    outputs = [v4.new_output("display_data", {"text/plain": "no search"}, metadata={"fruitlib_absent": True})]
    outputs += [v4.new_output("error", ename="E", evalue="v", traceback=["t"])] if failed else []
    cells = [
        v4.new_markdown_cell("Opening"),
        *(v4.new_markdown_cell(f"## {words}\n\nwords of it") for words in ("First", "Optuna")),
        v4.new_code_cell("load_it()", outputs=outputs),
        v4.new_markdown_cell("## Last"),
        v4.new_code_cell("print(1)", outputs=[v4.new_output("stream", text="1")]),
    ]
    evidence = pages.content(pages.Page(tmp_path / "a.ipynb", "a", cells), tmp_path)["evidence"]
    assert ("Optuna" in evidence) == ("no search" in evidence) == failed
    assert evidence.index("First") < evidence.index("load_it") < evidence.index("<pre>1")


def test_what_a_cell_tagged_log_prints_is_folded_at_the_end(tmp_path):
    log = v4.new_code_cell("fit()", outputs=[v4.new_output("stream", text="epoch 1")], metadata={"tags": ["log"]})
    after = v4.new_code_cell("curves()", outputs=[v4.new_output("stream", text="the curves")])
    evidence = pages.content(pages.Page(tmp_path / "a.ipynb", "a", [log, after]), tmp_path)["evidence"]
    assert evidence.index("the curves") < evidence.index("<summary>log</summary>") < evidence.index("epoch 1")


def in_html(picture: str) -> dict:
    return {"text/html": f'<img src="data:image/svg+xml;base64,{base64.b64encode(picture.encode()).decode()}" alt="">'}


@pytest.mark.parametrize(
    "facts",
    [
        {"table": ["odd"], "least": "9px;background:red", "name": 3, "alt": {"a": 1}},
        {"table": "x" * 600_000, "least": -5, "name": '"><script>'},
        {"table": 'a\n"><script>alert(1)</script>', "least": 10**9, "alt": '"><script>'},
        "odd",
    ],
)
def test_what_a_notebook_says_of_a_figure_is_not_trusted(tmp_path, facts):
    for data in (in_html(SVG), {"image/png": PIXELS}):
        found = shown(display(data, {"fruitlib_figure": facts}), tmp_path)
        assert "<script>" not in found and "background" not in found and "--least" not in found


def test_a_script_in_an_svg_stays_in_the_picture_where_it_does_not_run(tmp_path):
    picture = SVG.replace("<circle", '<script>alert(1)</script><circle onload="alert(1)"')
    found = shown(display(in_html(picture), {"fruitlib_figure": {"alt": "a"}}), tmp_path)
    assert found.count("<img") == 1 and "<script" not in found and 'onload="' not in found
