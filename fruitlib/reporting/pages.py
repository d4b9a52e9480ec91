"""An executed notebook -> what its page says: the answer, the settings, and the cells with their outputs.

Whatever stands in a notebook, a page comes of it: text is escaped, markup filtered (`markup`), pictures are opened
(`pictures`, `page_figures`), and what is very long is cut. What cells tagged `log` print is folded at the end.
"""

import ast
import functools
import io
import itertools
import math
import re
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from markupsafe import escape
from nbconvert.filters import Highlight2HTML, ansi2html, markdown2html, strip_ansi
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

from fruitlib.core import texts
from fruitlib.core.errors import InputError, Interrupted, first_line
from fruitlib.reporting import page_figures, pictures
from fruitlib.reporting.markup import clean_markup, readable_tables
from fruitlib.runs.headline import named

WIDGET = "application/vnd.jupyter.widget-view+json"
MAX_FILE = 200_000_000  # bytes of a notebook that is read
MAX_TEXT, MAX_MARKUP = 200_000, 500_000  # characters of an output that are shown


@dataclass
class Page:
    """One executed notebook."""

    path: Path
    title: str
    cells: list = field(default_factory=list)
    headline: dict = field(default_factory=dict)
    failure: str = ""  # one line: why it stopped, or why it or its page cannot be read

    @property
    def state(self) -> str:
        if self.headline.get("state") == "pruned":
            return "pruned"
        return "failed" if self.failure else self.headline.get("state", "running")


def load(path: Path) -> Page:
    """The notebook in a file; one that cannot be read has no cells, and says why."""
    try:
        return _read(path)
    except MemoryError:
        raise
    except Exception as problem:  # whatever stands in the file, the other pages are written
        reason = f"{type(problem).__name__}: {first_line(problem)}" if isinstance(problem, KeyError) else problem
        return Page(path, path.stem, failure=f"{path.name} cannot be read: {texts.shortened(first_line(reason), 200)}")


def _read(path: Path) -> Page:
    if not path.is_file():
        raise InputError("it is no file")
    if (size := path.stat().st_size) > MAX_FILE:
        raise InputError(f"it has {size / 1e6:,.0f} MB, above {MAX_FILE / 1e6:.0f}: clear some outputs")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    marked = "papermill-error-cell-tag"  # papermill's own notice; the page has a better one
    page = Page(path, path.stem, [cell for cell in notebook.cells if cell.source.strip() and marked not in _tags(cell)])
    for output in (output for cell in page.cells for output in cell.get("outputs", [])):
        page.headline = _headline(output) or page.headline
        if output.output_type == "error":
            page.failure = page.failure or _stopped_by(output)
    first = page.cells[0] if page.cells else None
    if first and first.cell_type == "markdown" and first.source.lstrip().startswith("# "):
        title, _, first.source = first.source.lstrip()[2:].partition("\n")
        page.title = texts.shortened(texts.printable(re.sub(r"[`*]", "", title).strip()), 300)
    return page


@dataclass
class _Writing:
    """What is known while a page's cells are written."""

    heading: str  # the last one
    clean: Callable  # foreign markup -> harmless markup
    numbers: Iterator[int]  # of the page's figures
    log: list = field(default_factory=list)  # what cells tagged `log` printed

    def shown(self, markup: str) -> str:
        """Foreign markup as it stands on the page."""
        return readable_tables(self.clean(markup), self.heading)


def content(page: Page, root: Path) -> dict:
    """Lede, evidence and settings of a page, for the template. Links and pictures may lead to files in `root`."""
    parameter_cells, cells = [], []
    for cell in page.cells:
        settings = _tags(cell) & {"parameters", "injected-parameters"} and _assignments(cell.source)
        (parameter_cells if settings else cells).append(cell)
    opening = 1 if cells and cells[0].cell_type == "markdown" else 0
    clean = functools.partial(clean_markup, folder=page.path.parent, root=root)
    writing = _Writing(page.title, clean, itertools.count(1))
    lede, evidence = _evidence(cells[:opening], writing), _evidence(cells[opening:], writing)
    if writing.log:
        evidence += _fold("log", f"<pre>{ansi2html(_cut(''.join(writing.log)))}</pre>")
    return {"page": page, "lede": lede, "evidence": evidence, "settings": _settings(parameter_cells)}


def _tags(cell) -> set[str]:
    return set(cell.metadata.get("tags", []))


def _headline(output) -> dict:
    """The answer (`runs.headline`) in an output; empty where there is none, or none of its shape."""
    found = output.get("metadata")
    for name in ("fruitlib", "headline"):
        found = found.get(name) if isinstance(found, dict) else None
    if not isinstance(found, dict) or not all(isinstance(found.get(name), str) for name in ("state", "text")):
        return {}
    numbers = found.get("numbers")
    numbers = numbers if isinstance(numbers, dict) else {}
    kept = {name: x for name, x in numbers.items() if isinstance(x, int | float) and abs(x) < math.inf}
    return {"state": found["state"], "text": found["text"], "numbers": kept, "named": named(kept)}


def _stopped_by(error) -> str:
    return _one_line(error) if error.ename == Interrupted.__name__ else f"Stopped by {_one_line(error)}"


def _one_line(error) -> str:
    first = strip_ansi(error.evalue).strip().splitlines()[:1]
    name = [] if first and error.ename == Interrupted.__name__ else [error.ename]  # its line says all
    return texts.shortened(texts.printable(": ".join([*name, *first])), 1000)


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
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError):  # MemoryError: nested too deep
        return {}
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    assignments = {}
    for node in tree.body:
        for target in [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", []):
            if isinstance(target, ast.Name) and node.value is not None:
                text = node.value.value if isinstance(node.value, ast.Constant) else ""
                text = text if isinstance(text, str) and text else ast.unparse(node.value)
                assignments[target.id] = (text, comments.get(node.end_lineno, ""))
    return assignments


def _evidence(cells: list, writing: _Writing) -> str:
    """Markdown and outputs in order; code folded, that of several cells without output into one fold."""
    parts, code = [], []
    absent = _absent(cells)
    for place, cell in enumerate(cells):
        if place in absent:
            code += [_cut(cell.source, MAX_TEXT)] if cell.cell_type == "code" else []
        elif cell.cell_type == "markdown":
            headings = re.findall(r"^#+ +(.+)$", cell.source, re.MULTILINE)
            writing.heading = (headings or [writing.heading])[-1]
            parts += [_code(code), writing.shown(markdown2html(_cut(cell.source, MAX_MARKUP)))]
            code = []
        elif cell.cell_type == "code":
            code.append(_cut(cell.source, MAX_TEXT))
            if shown := _outputs(cell, writing):
                parts += [_code(code), f'<div class="outputs">{shown}</div>']
                code = []
    return "\n".join(part for part in [*parts, _code(code)] if part)


def _absent(cells: list) -> set[int]:
    """The cells of sections, from a heading of level 2 to the next, that say they do not apply (`style.leave_out`)."""
    starts = [
        place for place, cell in enumerate(cells) if cell.cell_type == "markdown" and "\n## " in f"\n{cell.source}"
    ]
    absent = set()
    for start, end in itertools.pairwise([*starts, len(cells)]):
        outputs = [output for cell in cells[start:end] for output in cell.get("outputs", [])]
        failed = any(output.output_type == "error" for output in outputs)
        marked = any((output.get("metadata") or {}).get("fruitlib_absent") is True for output in outputs)
        absent |= set(range(start, end)) if marked and not failed else set()
    return absent


def _code(sources: list[str]) -> str:
    return _fold("code", Highlight2HTML()("\n\n".join(sources))) if sources else ""


def _fold(name: str, content: str) -> str:
    return f'<details class="fold"><summary>{name}</summary>{content}</details>'


def _outputs(cell, writing: _Writing) -> str:
    cell, _ = CoalesceStreamsPreprocessor().preprocess_cell(cell, {}, 0)
    outputs = cell.outputs
    if "log" in _tags(cell):
        writing.log += [output.text for output in outputs if output.output_type == "stream"]
        outputs = [output for output in outputs if output.output_type != "stream"]
    return "\n".join(filter(None, (_output(output, writing) for output in outputs)))


def _output(output, writing: _Writing) -> str:
    if output.output_type == "stream":
        text = f"<pre>{ansi2html(_cut(output.text))}</pre>" if output.text.strip() else ""
        return _fold("messages", text) if text and output.name == "stderr" else text
    if output.output_type == "error":
        lines, line = _cut("\n".join(output.traceback)), _one_line(output)
        more = strip_ansi(lines).strip() != line  # our own errors have one line
        trace = _fold("traceback", f"<pre>{ansi2html(lines)}</pre>") if more else ""
        return f'<div class="answer failed" id="failure"><p>{escape(line)}</p>{trace}</div>'
    return "" if _headline(output) else _display(output, writing)


def _display(output, writing: _Writing) -> str:
    """The richest form of an output that needs neither script nor network; pictures before HTML."""
    data, facts = output.get("data", {}), page_figures.facts_of(output)
    for mime in pictures.TYPES:
        if mime in data:
            own = output.get("metadata", {}).get(mime)
            facts = (own if isinstance(own, dict) else {}) | facts
            return page_figures.markup(mime, _text(data[mime]), facts, writing.heading, next(writing.numbers))
    if facts and (svg := page_figures.svg_in_html(_text(data.get("text/html")))):
        return page_figures.markup(pictures.SVG, svg, facts, writing.heading, next(writing.numbers))
    if WIDGET in data:
        data = {mime: value for mime, value in data.items() if mime not in (WIDGET, "text/plain")}
    found = _cut(_text(data.get("text/html")), MAX_MARKUP) or markdown2html(_cut(_text(data.get("text/markdown"))))
    if shown := writing.shown(found):
        return shown
    plain = _text(data.get("text/latex")) or _text(data.get("text/plain"))
    if not plain and data:
        return f'<p class="note">An output of type {escape(texts.some(data))} is in the notebook alone.</p>'
    return f"<pre>{ansi2html(_cut(plain))}</pre>" if plain else ""


def _text(value) -> str:
    """A MIME type's text, which files hold as a string or as a list of them; "" where it is something else."""
    lines = [value] if isinstance(value, str) else value
    return "".join(lines) if isinstance(lines, list) and all(isinstance(line, str) for line in lines) else ""


def _cut(text: str, limit: int = MAX_TEXT) -> str:
    """The text, without its middle where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n… {len(text) - 2 * half:,} characters are in the notebook alone …\n{text[-half:]}"
