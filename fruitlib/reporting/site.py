"""Executed notebooks -> an offline site: an index per sweep and a page beside every notebook.

The pages are plain HTML; but for sheets of photos, nothing is loaded. Each holds its style and one script of ours,
without which it can be read all the same. A Content-Security-Policy tells the browser that no other style or script
may count: it names the SHA-256 of both. This module decides which pages there are, `site_index` what
the index says, `pages` what a notebook's page says; `assets/report.html.j2` decides how, and escapes every value on the
way. Nothing is read or written through links.
"""

import base64
import contextlib
import functools
import hashlib
import os
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

import jinja2
from markupsafe import Markup, escape

from fruitlib.core import source_code, texts
from fruitlib.core.errors import InputError, first_line
from fruitlib.core.files import changed_at, fingerprint, is_disk_failure, os_error_text, resolve, write_text
from fruitlib.core.texts import number
from fruitlib.deploy import int8_verdict
from fruitlib.evaluation.wording import plural_of, probe_mark
from fruitlib.reporting import pages as notebooks
from fruitlib.reporting import site_index, site_photos
from fruitlib.reporting.pages import Page
from fruitlib.reporting.site_index import EXPECTED, LINK, NONE, Seen, fixed
from fruitlib.runs.status import read_sweep

# What the looks of a page depend on.
SHOWN_BY = ("pages", "page_figures", "pictures", "markup", "site_photos", "explore", "sprites")


def build_site(sweep_dir: Path, changed_only: bool = False) -> Path:
    """Write the site of one sweep and return its `index.html`.

    `changed_only` leaves the pages of folders in which no notebook changed since they were written.

    Every `.ipynb` in `sweep_dir` and its run folders gets an `.html` beside it.
    Notebooks and tables that are missing or unreadable, and links (`left_out`), are named on the index. A page that
    cannot be made is a short one that says why. A folder without a readable `sweep.json` raises `InputError`.
    """
    sweep_dir = resolve(sweep_dir)
    sweep = _read_sweep(sweep_dir)
    folders = _folders(sweep_dir)
    seen = site_photos.see(sweep_dir, sweep)
    pages = {}
    for path in folders:
        beside = _beside(folders, path)
        pages[path.name] = write_folder(path, sweep["title"], path.name, changed_only, beside, path.name in seen.pages)
    pages[""] = write_folder(sweep_dir, sweep["title"], "", changed_only)
    _write_photo_pages(sweep_dir, sweep, seen, changed_only)
    try:
        facts = site_index.facts(sweep_dir, sweep, pages, seen, left_out(sweep_dir))
        index = _template().render(root="", **_script(), **facts)
    except MemoryError:
        raise
    except Exception as problem:  # a file beside it that holds something else than expected
        index = _short_index(sweep_dir, pages, f"This overview could not be made: {first_line(problem)}")
    write_text(sweep_dir / "index.html", index)
    return sweep_dir / "index.html"


@functools.cache
def _asset(name: str) -> str:
    return files("fruitlib.reporting").joinpath(f"assets/{name}").read_text("utf-8")


def _script(name: str = "report.js") -> dict:
    """A page's script, and the hash by which a page's Content-Security-Policy allows it and no other.

    It stands within the page: beside it a policy could allow any file of the disk alone, as Chromium and Firefox do
    not check a hash of what they load from `file://`.
    """
    return {"script": Markup(_asset(name)), "script_hash": _sha256(_asset(name))}


def _style() -> str:
    """The style of every page. It stands within each, as a Jupyter server gives a page nothing that lies beside it."""
    return _asset("report.css") + _asset("pages.css")


def _sha256(text: str) -> str:
    """What a Content-Security-Policy calls a text that stands in its page."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


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
    environment.filters |= {"quote": quote, "fixed": fixed, "beside_probe": _beside_probe}
    environment.globals |= {"EXPECTED": EXPECTED, "NONE": NONE, "BROKEN": int8_verdict.BROKEN}
    environment.globals |= {"PROVEN": int8_verdict.PROVEN, "measure_name": texts.measure_name}
    environment.globals |= {"style": Markup(_style()), "style_hash": _sha256(_style())}
    return environment.get_template("report.html.j2")


def _beside_probe(row: dict) -> str:
    """Whether the row of a results table beats frozen features, in a few words; empty where that was not asked."""
    return probe_mark({name: number(row.get(name)) for name in ("over_probe", "over_probe_p", "probe_accuracy")})


# ---------------------------------------------------------------- the pages of a folder


def write_folder(
    folder: Path, title: str, run: str, changed_only: bool = False, beside: dict | None = None, photos: bool = False
) -> list[Page]:
    """The pages of a folder's notebooks, beside them; of the sweep `title`; `run` names it ("": the sweep itself).

    `beside`: by a notebook's name, the runs before and after that have it too; `photos`: there is a page of photos.
    """
    pages = [notebooks.load(folder / f"{stem}.ipynb") for stem in _notebooks(folder)]
    times = [[page.path.stem, changed_at(page.path)] for page in pages]
    stamp = fingerprint(title, _appearance(), times, beside, photos)
    shared = {"root": "../" if run else "", "title": title, "run": run, "pages": pages, "stamp": stamp}
    shared |= {"beside": beside or {}, "has_photos": photos}
    current = changed_only and all(_is_current(page.path.with_suffix(".html"), stamp) for page in pages)
    for at, page in enumerate([] if current else pages):
        text = _rendered(page, folder.parent if run else folder, shared | {"number": at})
        try:
            write_text(page.path.with_suffix(".html"), text)
        except OSError as problem:
            if is_disk_failure(problem):
                raise
            page.failure = page.failure or f"its page cannot be written: {os_error_text(problem)}"
    for page in pages:
        page.cells = []  # all pictures of a sweep together may not fit in memory
    return pages


def _rendered(page: Page, root: Path, shared: dict) -> str:
    """A notebook's page; where it cannot be made, a short one that says why."""
    try:
        return _template().render(**shared, **_script("figures.js"), **notebooks.content(page, root))
    except MemoryError:
        raise
    except Exception as problem:  # one odd notebook must not cost the others' pages
        page.failure = page.failure or f"This page could not be made: {type(problem).__name__}: {first_line(problem)}"
        return _template().render(**shared, page=page, lede="", evidence="", settings=[])


@functools.cache
def _appearance() -> str:
    """A fingerprint that changes when pages would look different."""
    names = ("report.html.j2", "first_screen.html.j2", "photos.html.j2", "_settings.html.j2", "report.js", "figures.js")
    templates = [_asset(name) for name in names]
    modules = [__name__, *(f"fruitlib.reporting.{name}" for name in SHOWN_BY)]
    return fingerprint(templates, _style(), [source_code.module_fingerprint(module) for module in modules])


def _is_current(page: Path, stamp: str) -> bool:
    """Whether a page was written from the notebooks as they are now."""
    return page.is_file() and not page.is_symlink() and f'content="{stamp}"'.encode() in page.read_bytes()[:1000]


def _beside(folders: list[Path], folder: Path) -> dict[str, tuple[str, str]]:
    """By the name of each notebook of a folder: the folders before and after it that have the same one; "": none."""
    at, found = folders.index(folder), {}
    for path in folder.glob("*.ipynb"):
        before = (other.name for other in reversed(folders[:at]) if (other / path.name).is_file())
        after = (other.name for other in folders[at + 1 :] if (other / path.name).is_file())
        found[path.stem] = (next(before, ""), next(after, ""))
    return dict(sorted(found.items()))


# ---------------------------------------------------------------- the pages of photos


def _write_photo_pages(sweep_dir: Path, sweep: dict, seen: Seen, changed_only: bool) -> None:
    """`photos.html` in the folder of each run that has validation predictions."""
    names = sorted(seen.pages)
    for name in names:
        folder, beside = sweep_dir / name, site_photos.neighbours(names, name)
        stamp = site_photos.stamp(folder, sweep["title"], _appearance(), seen, beside)
        path = folder / f"{site_photos.PAGE}.html"
        if changed_only and _is_current(path, stamp):
            continue
        shared = {"root": "../", "title": sweep["title"], "run": name, "stamp": stamp, "pages": _notebooks(folder)}
        try:
            facts = site_photos.content(folder, seen, sweep) | {"view": site_photos.PAGE, "around": beside}
            text = _template().render(**shared, **_script(), **facts)
        except MemoryError:
            raise
        except Exception as problem:  # one odd table must not cost the others' pages
            page = Page(
                folder / "photos.ipynb", "Photos", failure=f"This page could not be made: {first_line(problem)}"
            )
            text = _template().render(**shared | {"pages": []}, page=page, lede="", evidence="", settings=[], number=0)
        try:
            write_text(path, text)
        except OSError as problem:
            if is_disk_failure(problem):
                raise
            seen.pages.discard(name)
            seen.problems.append(f"{name}: photos.html cannot be written: {os_error_text(problem)}")


def _notebooks(folder: Path) -> list[str]:
    """Names of the notebooks in a folder that have a page."""
    found = [path for path in sorted(folder.glob("*.ipynb")) if not (path.name.startswith(".") or path.is_symlink())]
    return [path.stem for path in found]
