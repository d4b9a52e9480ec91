"""Executed notebooks -> an offline site: an index per sweep and a page beside every notebook.

The pages are plain HTML with one stylesheet: no script, nothing fetched; a Content-Security-Policy says so to the
browser. This module decides which pages there are and what the index says, `pages` what a notebook's page says;
`assets/report.html.j2` decides how, and escapes every value on the way. Nothing is read or written through links.
"""

import contextlib
import functools
import math
import os
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from fruitlib.core import source_code, texts
from fruitlib.core.errors import InputError, first_line
from fruitlib.core.files import fingerprint, is_disk_failure, os_error_text, read_csv, read_json, resolve, write_text
from fruitlib.evaluation.effects_wording import leading_effects_text
from fruitlib.evaluation.selection import SelectionOptimism
from fruitlib.evaluation.sweep_answers import INSIGHT
from fruitlib.evaluation.wording import choice_text, plural_of, probe_mark
from fruitlib.reporting import pages as notebooks
from fruitlib.reporting.pages import Page
from fruitlib.runs.status import read_sweep

EXPECTED = ["02_train", "03_metrics", "04_gradcam", "05_quantize"]  # of a complete run that names no `stages`
LOWER_IS_BETTER = ("loss", "miss", "error", "latency", "seconds", "size")
MAX_PLOTTED = 20  # runs in the interval plot, best first
NONE = "–"
LINK = "is a link and is left out: put what it leads to there"


def build_site(sweep_dir: Path, changed_only: bool = False) -> Path:
    """Write the site of one sweep and return its `index.html`.

    `changed_only` leaves the pages of folders in which no notebook changed since they were written.

    Every `.ipynb` in `sweep_dir` and its run folders gets an `.html` beside it; `assets/report.css` is shared.
    Notebooks and tables that are missing or unreadable, and links (`left_out`), are named on the index. A page that
    cannot be made is a short one that says why. A folder without a readable `sweep.json` raises `InputError`.
    """
    sweep_dir = resolve(sweep_dir)
    sweep = _read_sweep(sweep_dir)
    folders = _folders(sweep_dir)
    pages = {path.name: write_folder(path, sweep["title"], path.name, changed_only) for path in folders}
    pages[""] = write_folder(sweep_dir, sweep["title"], "", changed_only)
    style = _asset("report.css") + _asset("pages.css")
    if not (sweep_dir / "assets").is_symlink():
        write_text(sweep_dir / "assets/report.css", style)
    try:
        index = _template().render(root="", **_index(sweep_dir, sweep, pages))
    except MemoryError:
        raise
    except Exception as problem:  # a file beside it that holds something else than expected
        index = _short_index(sweep_dir, pages, f"This overview could not be made: {first_line(problem)}")
    write_text(sweep_dir / "index.html", index)
    return sweep_dir / "index.html"


def left_out(sweep_dir: Path) -> list[str]:
    """A line for each link to a folder or notebook, in a sweep's folder or a run's: nothing goes through it."""
    sweep_dir = resolve(sweep_dir)
    found = [path for folder in [sweep_dir, *_folders(sweep_dir)] for path in _links(folder)]
    return [f"{path.relative_to(sweep_dir)} {LINK}" for path in found]


def _links(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:  # many runs have many files: no look at each
        links = [entry for entry in entries if entry.is_symlink()]
        return sorted(Path(link.path) for link in links if link.name.endswith(".ipynb") or os.path.isdir(link.path))
    return []  # it is gone, or closed to us


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted; neither hidden ones nor links, which may lead out of it."""
    with os.scandir(folder) as entries:
        own = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    return [folder / name for name in sorted(own) if not name.startswith(".")]


def _short_index(sweep_dir: Path, pages: dict[str, list[Page]], reason: str) -> str:
    """An index that says why there is none, with the pages that there are."""
    links = [
        f'<li><a href="{quote(page.path.with_suffix(".html").relative_to(sweep_dir).as_posix())}">'
        f"{escape(f'{run}: ' if run else '')}{escape(page.title)}</a></li>"
        for run, own in pages.items()
        for page in own
    ]
    page = Page(sweep_dir / "index.ipynb", sweep_dir.name, failure=reason)
    shown = {"page": page, "lede": "", "evidence": Markup(f"<ul>{''.join(links)}</ul>"), "settings": []}
    return _template().render(root="", title=sweep_dir.name, run="", pages=[], stamp="", number=0, **shown)


def _read_sweep(sweep_dir: Path) -> dict:
    if (path := sweep_dir / "sweep.json").is_symlink():
        raise InputError(f"{path} {LINK}")
    try:
        sweep = {"title": sweep_dir.name, "chosen": None, "choose_by": "macro_f1"} | read_sweep(sweep_dir)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{sweep_dir} holds no sweep.json: give a sweep's folder, executed/<sweep>") from None
    sweep.setdefault("shipped", sweep["chosen"])
    sweep["group_words"] = plural_of(str(sweep.get("group_word") or "group"))
    runs = [{"state": "pending", "error": None} | run for run in sweep["runs"]]
    sweep["runs"] = [run for run in runs if _names_a_folder(run["name"])]
    refused = [texts.shortened(repr(run["name"]), 200) for run in runs if not _names_a_folder(run["name"])]
    sweep["refused"] = [f"sweep.json lists a run {name}, which no folder can be called" for name in refused]
    return sweep


def _names_a_folder(name: str) -> bool:
    return Path(name).name == name and name not in ("", "..") and "\\" not in name


@functools.cache
def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("fruitlib.reporting", "assets")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"quote": quote, "fixed": _fixed, "beside_probe": _beside_probe}
    environment.globals |= {"EXPECTED": EXPECTED, "NONE": NONE}
    return environment.get_template("report.html.j2")


def _asset(name: str) -> str:
    return files("fruitlib.reporting").joinpath(f"assets/{name}").read_text("utf-8")


def _number(value) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _fixed(value, digits: int) -> str:
    return f"{_number(value):.{digits}f}" if math.isfinite(_number(value)) else NONE


def _beside_probe(row: dict) -> str:
    """Whether the row of a results table beats frozen features, in a few words; empty where that was not asked."""
    return probe_mark({name: _number(row.get(name)) for name in ("over_probe", "over_probe_p", "probe_accuracy")})


# ---------------------------------------------------------------- the pages of a folder


def write_folder(folder: Path, title: str, run: str, changed_only: bool = False) -> list[Page]:
    """The pages of a folder's notebooks, beside them; of the sweep `title`; `run` names it ("": the sweep itself)."""
    found = [path for path in sorted(folder.glob("*.ipynb")) if not (path.name.startswith(".") or path.is_symlink())]
    pages = [notebooks.load(path) for path in found]
    stamp = fingerprint(title, _appearance(), [[page.path.stem, _time(page.path)] for page in pages])
    shared = {"root": "../" if run else "", "title": title, "run": run, "pages": pages, "stamp": stamp}
    current = changed_only and all(_is_current(page.path.with_suffix(".html"), stamp) for page in pages)
    for number, page in enumerate([] if current else pages):
        text = _rendered(page, folder.parent if run else folder, shared | {"number": number})
        try:
            write_text(page.path.with_suffix(".html"), text)
        except OSError as problem:
            if is_disk_failure(problem):
                raise
            page.failure = page.failure or f"its page cannot be written: {os_error_text(problem)}"
    for page in pages:
        page.cells = []  # all pictures of a sweep together may not fit in memory
    return pages


def _time(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def _rendered(page: Page, root: Path, shared: dict) -> str:
    """A notebook's page; where it cannot be made, a short one that says why."""
    try:
        return _template().render(**shared, **notebooks.content(page, root))
    except MemoryError:
        raise
    except Exception as problem:  # one odd notebook must not cost the others' pages
        page.failure = page.failure or f"This page could not be made: {type(problem).__name__}: {first_line(problem)}"
        return _template().render(**shared, page=page, lede="", evidence="", settings=[])


@functools.cache
def _appearance() -> str:
    """A fingerprint that changes when pages would look different."""
    template = _asset("report.html.j2") + _asset("_settings.html.j2")
    modules = [__name__, *(f"fruitlib.reporting.{name}" for name in ("pages", "page_figures", "pictures", "markup"))]
    return fingerprint(template, [source_code.module_fingerprint(module) for module in modules])


def _is_current(page: Path, stamp: str) -> bool:
    """Whether a page was written from the notebooks as they are now."""
    return page.is_file() and not page.is_symlink() and f'content="{stamp}"'.encode() in page.read_bytes()[:1000]


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
    # a run that was made to be shipped was trained on the validation photos too
    ranked = _ranked([run for run in complete if run.get("candidate", "stages" not in run)], sweep)
    shipped = next((run for run in runs if run["name"] == sweep["shipped"]), None)
    pooled.sort(key=lambda row: -_number(row.get(sweep["choose_by"])))
    winners = [row for row in pooled if shipped and row.get("combination") == shipped["row"].get("combination")]
    empty = "results.csv is missing or empty: no numbers to show" if complete and not results else ""
    problems = [no_results or empty, no_openings, no_pooled, no_effects, *sweep["refused"], *left_out(sweep_dir)]
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
        record = {} if (path := sweep_dir / "manifest.json").is_symlink() else read_json(path)
        return {"listing": record.get("listing") or "", "notes": list(map(str, record.get("notes") or []))}
    except (OSError, ValueError, TypeError):
        return {"listing": "", "notes": []}


def _table(path: Path) -> tuple[list[dict], str]:
    """(rows, one line on why the file is not read or ""); a file that is not there has no rows."""
    if path.is_symlink():
        return [], f"{path.name} {LINK}"
    try:
        return (read_csv(path, dtype={"run": str}).to_dict("records"), "") if path.is_file() else ([], "")
    except (OSError, ValueError) as error:
        return [], f"{path.name} cannot be read: {first_line(error)}"


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
