"""Executed notebooks -> an offline site: an index per sweep and a page beside every notebook.

The pages are plain HTML with one stylesheet: no script, nothing fetched. What a notebook shows passes a filter
(`markup`) that keeps text, tables and embedded pictures and drops everything that runs or loads. This module
decides what a page says; `assets/report.html.j2` decides how, and escapes every value on the way.
"""

import ast
import base64
import functools
import io
import json
import math
import re
import tokenize
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

import jinja2
import nbformat
import pandas as pd
from markupsafe import escape
from nbconvert.filters import Highlight2HTML, ansi2html, markdown2html, strip_ansi
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from PIL import Image

from fruitlib.core import source_code
from fruitlib.core.errors import InputError
from fruitlib.core.files import fingerprint, resolve, write_text
from fruitlib.evaluation.effects_wording import leading_effects_text
from fruitlib.evaluation.selection import SelectionOptimism
from fruitlib.evaluation.sweep_answers import INSIGHT
from fruitlib.evaluation.wording import choice_text, plural_of
from fruitlib.reporting.markup import clean_markup

EXPECTED = ["02_train", "03_metrics", "04_gradcam", "05_quantize"]  # of a complete run that names no `stages`
WIDGET = "application/vnd.jupyter.widget-view+json"
LOWER_IS_BETTER = ("loss", "miss", "error", "latency", "seconds", "size")
MAX_PLOTTED = 20  # runs in the interval plot, best first
LARGE_PNG = 80_000  # base64 characters of a PNG: charts are smaller, sheets of photographs larger
NONE = "–"


@dataclass
class Page:
    """One executed notebook."""

    path: Path
    title: str
    cells: list = field(default_factory=list)
    headline: dict = field(default_factory=dict)
    failure: str = ""  # one line: why it stopped, or why it cannot be read

    @property
    def state(self) -> str:
        if self.headline.get("state") == "pruned":
            return "pruned"
        return "failed" if self.failure else self.headline.get("state", "running")


def build_site(sweep_dir: Path, changed_only: bool = False) -> Path:
    """Write the site of one sweep and return its `index.html`.

    `changed_only` leaves the pages of folders in which no notebook changed since they were written.

    Every `.ipynb` in `sweep_dir` and its run folders gets an `.html` beside it; `assets/report.css` is shared.
    Notebooks and tables that are missing or unreadable are named on the index. A folder without a readable
    `sweep.json` raises `InputError`.
    """
    sweep_dir = resolve(sweep_dir)
    sweep = _read_sweep(sweep_dir)
    folders = sorted(path for path in sweep_dir.iterdir() if path.is_dir() and not path.name.startswith("."))
    pages = {folder.name: write_folder(folder, sweep["title"], folder.name, changed_only) for folder in folders}
    pages[""] = write_folder(sweep_dir, sweep["title"], "", changed_only)
    write_text(
        sweep_dir / "assets/report.css", files("fruitlib.reporting").joinpath("assets/report.css").read_text("utf-8")
    )
    write_text(sweep_dir / "index.html", _template().render(root="", **_index(sweep_dir, sweep, pages)))
    return sweep_dir / "index.html"


def _read_sweep(sweep_dir: Path) -> dict:
    path = sweep_dir / "sweep.json"
    try:
        sweep = {"title": sweep_dir.name, "chosen": None, "choose_by": "macro_f1"} | json.loads(path.read_text("utf-8"))
        sweep.setdefault("shipped", sweep["chosen"])
        sweep["group_words"] = plural_of(sweep.get("group_word") or "group")
        sweep["runs"] = [{"state": "pending", "error": None, "name": run["name"] + ""} | run for run in sweep["runs"]]
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{sweep_dir} holds no sweep.json: give a sweep's folder, executed/<sweep>") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error!r}): run the sweep again to rewrite it") from None
    return sweep


@functools.cache
def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("fruitlib.reporting", "assets")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"quote": quote, "fixed": _fixed}
    environment.globals |= {"EXPECTED": EXPECTED, "NONE": NONE}
    return environment.get_template("report.html.j2")


def _number(value) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _fixed(value, digits: int) -> str:
    return f"{_number(value):.{digits}f}" if math.isfinite(_number(value)) else NONE


# ---------------------------------------------------------------- a notebook


def write_folder(folder: Path, title: str, run: str, changed_only: bool = False) -> list[Page]:
    """The pages of a folder's notebooks, beside them; of the sweep `title`; `run` names it ("": the sweep itself)."""
    pages = [_load(path) for path in sorted(folder.glob("*.ipynb")) if not path.name.startswith(".")]
    stamp = fingerprint(title, _appearance(), [[page.path.stem, page.path.stat().st_mtime_ns] for page in pages])
    shared = {"root": "../" if run else "", "title": title, "run": run, "pages": pages, "stamp": stamp}
    current = changed_only and all(_is_current(page.path.with_suffix(".html"), stamp) for page in pages)
    for number, page in enumerate([] if current else pages):
        write_text(page.path.with_suffix(".html"), _template().render(**shared, **_parts(page), number=number))
    for page in pages:
        page.cells = []  # all pictures of a sweep together may not fit in memory
    return pages


@functools.cache
def _appearance() -> str:
    """A fingerprint that changes when pages would look different."""
    template = files("fruitlib.reporting").joinpath("assets/report.html.j2").read_text("utf-8")
    return fingerprint(template, source_code.module_fingerprint(__name__))


def _is_current(page: Path, stamp: str) -> bool:
    """Whether a page was written from the notebooks as they are now."""
    return page.is_file() and f'content="{stamp}"'.encode() in page.read_bytes()[:1000]


def _load(path: Path) -> Page:
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, nbformat.ValidationError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        return Page(path, path.stem, failure=f"{path.name} cannot be read: {reason}")
    marked = "papermill-error-cell-tag"  # papermill's own notice; the page has a better one
    page = Page(path, path.stem, [cell for cell in notebook.cells if cell.source.strip() and marked not in _tags(cell)])
    for output in (output for cell in page.cells for output in cell.get("outputs", [])):
        page.headline = _headline(output) or page.headline
        if output.output_type == "error":
            page.failure = page.failure or f"Stopped by {_one_line(output)}"
    first = page.cells[0] if page.cells else None
    if first and first.cell_type == "markdown" and first.source.lstrip().startswith("# "):
        title, _, first.source = first.source.lstrip()[2:].partition("\n")
        page.title = re.sub(r"[`*]", "", title).strip()
    return page


def _tags(cell) -> set[str]:
    return set(cell.metadata.get("tags", []))


def _headline(output) -> dict:
    return output.get("metadata", {}).get("fruitlib", {}).get("headline", {})


def _one_line(error) -> str:
    return ": ".join([error.ename, *strip_ansi(error.evalue).strip().splitlines()[:1]])


def _parts(page: Page) -> dict:
    parameter_cells, cells = [], []
    for cell in page.cells:
        settings = _tags(cell) & {"parameters", "injected-parameters"} and _assignments(cell.source)
        (parameter_cells if settings else cells).append(cell)
    opening = 1 if cells and cells[0].cell_type == "markdown" else 0
    lede, evidence = _evidence(cells[:opening], page), _evidence(cells[opening:], page)
    return {"page": page, "lede": lede, "evidence": evidence, "settings": _settings(parameter_cells)}


def _settings(cells: list) -> list[tuple[str, str, str, str]]:
    """(name, value, default, meaning) of every setting in the parameters cells, an injected value over its default."""
    defaults, final = {}, {}
    for cell in cells:
        final |= _assignments(cell.source)
        defaults = defaults or dict(final)
    return [(name, value, *defaults.get(name, (value, ""))) for name, (value, _) in final.items()]


def _assignments(source: str) -> dict[str, tuple[str, str]]:
    """`name: type = value  # comment` lines -> {name: (value, comment)}; {} where the cell is not Python."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return {}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    assignments = {}
    for node in tree.body:
        for target in [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", []):
            if isinstance(target, ast.Name) and node.value is not None:
                text = node.value.value if isinstance(node.value, ast.Constant) else ""
                text = text if isinstance(text, str) and text else ast.unparse(node.value)
                assignments[target.id] = (text, comments.get(node.end_lineno, ""))
    return assignments


def _evidence(cells: list, page: Page) -> str:
    """Markdown and outputs in order; code folded, that of several cells without output into one fold."""
    parts, code, heading = [], [], page.title
    for cell in cells:
        if cell.cell_type == "markdown":
            parts += [_code(code), clean_markup(markdown2html(cell.source), page.path.parent)]
            code, heading = [], (re.findall(r"^#+ +(.+)$", cell.source, re.MULTILINE) or [heading])[-1]
        elif cell.cell_type == "code":
            code.append(cell.source)
            if shown := _outputs(cell, page.path.parent, heading):
                parts += [_code(code), f'<div class="outputs">{shown}</div>']
                code = []
    return "\n".join(part for part in [*parts, _code(code)] if part)


def _code(sources: list[str]) -> str:
    return _fold("code", Highlight2HTML()("\n\n".join(sources))) if sources else ""


def _fold(name: str, content: str) -> str:
    return f'<details class="fold"><summary>{name}</summary>{content}</details>'


def _outputs(cell, folder: Path, heading: str) -> str:
    cell, _ = CoalesceStreamsPreprocessor().preprocess_cell(cell, {}, 0)
    return "\n".join(filter(None, (_output(output, folder, heading) for output in cell.outputs)))


def _output(output, folder: Path, heading: str) -> str:
    if output.output_type == "stream":
        text = f"<pre>{ansi2html(output.text)}</pre>" if output.text.strip() else ""
        return _fold("messages", text) if text and output.name == "stderr" else text
    if output.output_type == "error":
        trace = _fold("traceback", f"<pre>{ansi2html(chr(10).join(output.traceback))}</pre>")
        return f'<div class="answer failed" id="failure"><p>{escape(_one_line(output))}</p>{trace}</div>'
    return "" if _headline(output) else _display(output, folder, heading)


def _display(output, folder: Path, heading: str) -> str:
    """The richest form of an output that needs neither script nor network; pictures before HTML."""
    data = {mime: data for mime, data in output.data.items() if WIDGET not in output.data or mime != "text/plain"}
    if "image/svg+xml" in data:
        data["image/svg+xml"] = base64.b64encode(data["image/svg+xml"].encode()).decode()
    for mime in ("image/svg+xml", "image/png", "image/jpeg"):
        if mime in data:
            return _picture(mime, data[mime], output.metadata.get(mime, {}), heading)
    shown = clean_markup(data.get("text/html") or markdown2html(data.get("text/markdown", "")), folder)
    plain = data.get("text/latex") or data.get("text/plain") or ""
    return f'<div class="scroll">{shown}</div>' if shown else f"<pre>{ansi2html(plain)}</pre>" if plain else ""


def _picture(mime: str, content: str, metadata: dict, heading: str) -> str:
    alt = escape(metadata.get("alt") or f"Figure: {heading}")
    size = "".join(f' {side}="{metadata[side]}"' for side in ("width", "height") if f"{metadata.get(side)}".isdigit())
    mime, content = _lighter(mime, "".join(content.split()))
    return f'<figure><img src="data:{mime};base64,{content}" alt="{alt}"{size}></figure>'


def _lighter(mime: str, content: str) -> tuple[str, str]:
    """A large PNG, which photographs make, as WebP: a tenth of the size. The notebook keeps the original."""
    if mime != "image/png" or len(content) < LARGE_PNG:
        return mime, content
    picture, buffer = Image.open(io.BytesIO(base64.b64decode(content))).convert("RGBA"), io.BytesIO()
    paper = Image.new("RGBA", picture.size, "white")
    Image.alpha_composite(paper, picture).convert("RGB").save(buffer, "WEBP", quality=85, method=4)
    return "image/webp", base64.b64encode(buffer.getvalue()).decode()


# ---------------------------------------------------------------- the index


def _index(sweep_dir: Path, sweep: dict, pages: dict[str, list[Page]]) -> dict:
    """Everything the template shows on the index."""
    results, no_results = _table(sweep_dir / "results.csv")
    openings, no_openings = _table(sweep_dir / "test_openings.csv")
    pooled, no_pooled = _table(sweep_dir / "results_oof.csv")
    effects, no_effects = _table(sweep_dir / INSIGHT)
    rows = {str(row.get("run")): row for row in results}
    runs = [run | {"row": rows.get(run["name"], {}), "pages": pages.get(run["name"], [])} for run in sweep["runs"]]
    complete = [run for run in runs if run["state"] == "complete"]
    ranked = _ranked(
        [run for run in complete if "stages" not in run], sweep
    )  # a run with stages was trained on the validation photos too
    shipped = next((run for run in runs if run["name"] == sweep["shipped"]), None)
    pooled.sort(key=lambda row: -_number(row.get(sweep["choose_by"])))
    winners = [row for row in pooled if shipped and row.get("combination") == shipped["row"].get("combination")]
    empty = "results.csv is missing or empty: no numbers to show" if complete and not results else ""
    problems = [no_results or empty, no_openings, no_pooled, no_effects]
    under_way = any(run["state"] == "pending" for run in runs) or sweep.get("total", 0) > len(runs)
    problems += _problems({"name": "", "pages": pages[""]}, [] if under_way else ["01_split"])
    problems += [text for run in complete for text in _problems(run, run.get("stages", EXPECTED))]
    grouped = any(_number(row.get("groups")) > 0 for row in [*results, *pooled])
    return {
        "page": None,
        "sweep": sweep | {"grouped": grouped},
        "complete": ranked,
        "unfinished": [run for run in runs if run["state"] != "complete"],
        "shipped": shipped,
        "winner": next(iter(winners + pooled), None),
        "shared": pages[""],
        "measured": {name for run in ranked for name, value in run["row"].items() if _fixed(value, 0) != NONE},
        "forest": _forest([] if pooled else ranked[:MAX_PLOTTED]),  # folds validate on different photos: no ranking
        "chosen_among": choice_text(SelectionOptimism(**sweep.get("optimism", {}))),
        "openings": openings,
        "pooled": pooled,
        "effects": leading_effects_text(pd.DataFrame(effects), sweep["choose_by"]),
        "under_way": under_way,
        "problems": [text for text in problems if text],
        "photos": _photos(sweep_dir),
    }


def _photos(sweep_dir: Path) -> dict:
    """The classes that were found (`listing`), and notes on what was left out; empty where 01 has not been executed."""
    try:
        record = json.loads((sweep_dir / "manifest.json").read_text("utf-8"))
        return {"listing": record.get("listing") or "", "notes": list(map(str, record.get("notes") or []))}
    except (OSError, ValueError, TypeError, AttributeError):
        return {"listing": "", "notes": []}


def _table(path: Path) -> tuple[list[dict], str]:
    """(rows, one line on why the file cannot be read or ""); a file that is not there has no rows."""
    try:
        return (pd.read_csv(path, dtype={"run": str}).to_dict("records"), "") if path.exists() else ([], "")
    except (OSError, ValueError) as error:
        return [], f"{path.name} cannot be read: {str(error).strip().splitlines()[0]}"


def _problems(run: dict, expected: list[str]) -> list[str]:
    where = f"{run['name']}: " if run["name"] else ""
    present = {page.path.stem for page in run["pages"]}
    missing = [f"{stem}.ipynb is missing" for stem in expected if stem not in present]
    return [where + text for text in missing + [page.failure for page in run["pages"] if page.failure]]


def _ranked(runs: list[dict], sweep: dict) -> list[dict]:
    """Best first by `choose_by`, the chosen one first among equals; runs without that number last."""
    sign = 1 if any(word in sweep["choose_by"] for word in LOWER_IS_BETTER) else -1

    def place(run: dict) -> tuple:
        value = sign * _number(run["row"].get(sweep["choose_by"]))
        return (1, 0.0) if math.isnan(value) else (0, value, run["name"] != sweep["shipped"])

    return sorted(runs, key=place)


def _forest(runs: list[dict]) -> dict:
    """Where each run's accuracy and interval lie, in per cent of a plot's width, and the axis's marks."""
    runs = [run for run in runs if _fixed(run["row"].get("accuracy"), 0) != NONE]
    points = [[_number(run["row"].get(f"accuracy{end}")) for end in ("", "_low", "_high")] for run in runs]
    points = [[row[0] if math.isnan(value) else value for value in row] for row in points]
    low, high = min(map(min, points), default=0), max(map(max, points), default=1)
    step = next((step for step in (0.01, 0.02, 0.05, 0.1) if high - low <= 6 * step), 0.2)
    first = math.floor(low / step + 1e-9)
    last = max(first + 1, math.ceil(high / step - 1e-9))

    def share(value: float) -> float:
        return round(5 + 90 * (value / step - first) / (last - first), 2)

    marks = [(run, *map(share, row)) for run, row in zip(runs, points, strict=True)]
    return {"marks": marks, "ticks": [(share(n * step), f"{n * step:.2f}") for n in range(first, last + 1)]}
