"""A sweep's folder in executed/: how it may be called, whose results are in it, whether it is still there."""

import contextlib
import json
import os
import shlex
from pathlib import Path

from fruitlib.core import files, texts
from fruitlib.core.errors import InputError
from fruitlib.data import sources
from fruitlib.runs.run import WORKING, Busy, Run
from fruitlib.sweep import summary
from fruitlib.sweep.params import Sweep
from fruitlib.sweep.summary import SUMMARY

LONGEST = 150  # bytes of a sweep's name; files in its folder are named after it, and a file system allows 255
LOCK = ".manifest.lock"  # as of `splits`
RESERVED = {"dev": "notebooks that are opened by hand write there", "example": "it holds the demo's report"}


def sweep_folder(plan: Sweep, data: str | None, out: str | None) -> Path:
    """The folder in executed/ that a sweep writes to: `--out`, else named after the params file (and photos).

    Raises:
        InputError: a name that leads out of executed/, is hidden, reserved or too long.
    """
    name = sweep_name(plan, data) if out is None else out
    if problem := _name_problem(name):
        shown = texts.printable(name.encode(errors="backslashreplace").decode())[:80]
        given = shown if out is None else f"--out {shown}"
        raise InputError(
            f"{given}: {problem}: give a plain name with --out, such as --out {plan.name[:40] or 'mine'}-2"
        )
    return files.home() / "executed" / name


def sweep_name(plan: Sweep, data: str | None) -> str:
    """The params file's name, and the photos' when they come from the command line: results never mix."""
    return f"{plan.name}-{Path(data).name}" if data and data not in sources.SAMPLES else plan.name


def command(plan: Sweep, data: str | None, out: str | None) -> str:
    """What to type to execute this sweep again, on the same photos into the same folder."""
    words = ["fruitlib", "sweep", files.display_path(Path(plan.source).resolve())]
    if data:
        words += ["--data", data if data in sources.NAMES else files.display_path(Path(data))]
    return shlex.join(words + (["--out", out] if out else []))


def _name_problem(name: str) -> str:
    """Why a text cannot name a sweep's folder; empty if it can."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "not text in UTF-8"
    if not name.strip():
        return "an empty name"
    if "/" in name or "\\" in name:
        return "a name is wanted, not a path: sweeps lie side by side in executed/"
    if name[0] in ".-":
        return f"a name that begins with {name[0]}"
    if name != name.strip() or texts.printable(name) != name:
        return "a name with spaces around it or control characters"
    if size > LONGEST:
        return f"{size} bytes long, at most {LONGEST}"
    reserved = RESERVED.get(name.lower())
    return f"a reserved name ({reserved})" if reserved else ""


def refuse_other_results(plan: Sweep, sweep_dir: Path) -> None:
    """Refuse a folder that holds something else than earlier results of this params file on these photos.

    A sweep is known by its params file, whatever has changed in it: run again, what changed is repeated, and runs that
    were added are executed. A file that was moved, renamed or copied is the same one; another file's results stay as
    they are, and so do results without a record of their params file.

    Raises:
        InputError: other files, another sweep's results, other photos; the message says what is there.
    """
    where = files.display_path(sweep_dir)
    if not sweep_dir.is_dir():
        if os.path.lexists(sweep_dir):
            raise InputError(f"{where} is a file, where a sweep's folder is wanted: give this sweep another --out")
        return
    visible = {path.name for path in sweep_dir.iterdir() if not path.name.startswith(".")}
    ours = {SUMMARY, "manifest.json", "manifest.csv", *plan.runs}
    if visible and not visible & ours:
        there = texts.printable(min(visible))
        raise InputError(f"{where} holds files that are no sweep's, such as {there}: give this sweep another --out")
    held, manifest = _read_record(sweep_dir / SUMMARY), _read_manifest(sweep_dir)
    other = str(held.get("params_file") or "")
    if not other and _has_results(sweep_dir):
        lost = f"{where} holds results, but no {SUMMARY} that says of which params file"
        raise InputError(f"{lost}: put {SUMMARY} back, or give this sweep another --out")
    if other and not _is_same_file(plan, held):
        count = len(list(held.get("runs") or []))
        what = texts.printable(f"{other} ({held.get('title', '')}; {count} run{'s' * (count != 1)})")
        raise InputError(f"{where} holds the results of {what}: give this sweep another --out, or remove that folder")
    earlier = str(manifest.get("data") or held.get("data") or plan.config.data)
    if not _is_same_data(earlier, plan.config.data):
        photos = texts.printable(earlier)
        gone = "" if earlier in sources.NAMES or _place(earlier).exists() else ", which are no longer there"
        way = f"give this sweep another name with --out{', or rename them back' if gone else ''}"
        raise InputError(f"{where} holds results on other photos ({photos}{gone}): {way}")


def earlier_data(plan: Sweep, sweep_dir: Path) -> str:
    """The plan's photos as an earlier sweep in this folder wrote them: `photos`, say, where it is `./photos` now.

    Results are known by this text, too: written in another way, everything would be repeated.
    """
    earlier = str(_read_manifest(sweep_dir).get("data") or plan.config.data)
    return earlier if _is_same_data(earlier, plan.config.data) else plan.config.data


def _read_manifest(sweep_dir: Path) -> dict:
    path = sweep_dir / "manifest.json"
    record = _read_record(path, "remove it, and it is made again from the photos")
    if path.is_file() and not {"identity", "data"} <= set(record):
        raise InputError(f"{files.display_path(path)}: damaged: remove it, and it is made again from the photos")
    return record


def _read_record(path: Path, way: str = "put it back as it was, or give this sweep another --out") -> dict:
    """A JSON file of a sweep; empty where there is none. `way`: what to do about one that is damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("runs", []), list):
        raise InputError(f"{files.display_path(path)}: damaged: {way}")
    return record


def _has_results(sweep_dir: Path) -> bool:
    """Whether a sweep has left anything there that took time."""
    there = any((sweep_dir / name).is_file() for name in ("manifest.csv", "manifest.json", "results.csv"))
    return there or any(sweep_dir.glob("*/stages/*.json"))


def _is_same_file(plan: Sweep, held: dict) -> bool:
    """Whether the plan's params file is the recorded one: at its place, moved (the old one is gone), or as it was."""
    earlier, mine = _place(str(held["params_file"])), Path(plan.source)
    if earlier == mine.resolve() or held.get("params_digest") == plan.digest:
        return True
    if not earlier.is_file():
        return earlier.name == mine.name
    return earlier.read_bytes() == mine.read_bytes()


def _is_same_data(one: str, other: str) -> bool:
    if one == other or {one, other} & set(sources.NAMES):
        return one == other
    return _place(one) == _place(other)


def _place(text: str) -> Path:
    """The file or folder that a record or a setting names; the name itself where no path can be so called."""
    try:
        return files.resolve(text).resolve()
    except (OSError, ValueError, RuntimeError):  # a null byte, ~nobody
        return Path(texts.printable(text))


@contextlib.contextmanager
def claimed(plan: Sweep, sweep_dir: Path):
    """Write down whose folder this is, before anything else is written; of two params files that meet, one is refused.

    The record lists the runs as pending. Where the block fails, as with photos that cannot be divided, a folder that
    was new is removed again.

    Raises:
        InputError: as `refuse_other_results`.
    """
    with files.lock(sweep_dir / LOCK):
        refuse_other_results(plan, sweep_dir)
        if is_new := not (held := _read_record(sweep_dir / SUMMARY)):
            work = {name: Run(sweep_dir / name, config) for name, config in plan.runs.items()}
            held = summary.sweep_record(plan, work, {name: {"state": "pending", "error": None} for name in work})
            held["total"] = plan.search.trials if plan.search else len(work)
            files.write_json(sweep_dir / SUMMARY, held | {"chosen": None, "shipped": None})
    try:
        yield
    except BaseException:
        if is_new and not _has_results(sweep_dir):
            with contextlib.suppress(OSError):  # another sweep of this params file may have begun in it
                for name in (SUMMARY, LOCK):
                    (sweep_dir / name).unlink(missing_ok=True)
                for folder in (sweep_dir, sweep_dir.parent):
                    folder.rmdir()
        raise


def remove_leftovers(sweep_dir: Path) -> None:
    """Remove what processes that have ended left: parts of files, and markers of runs that nobody works on any more."""
    files.remove_stale_partials(sweep_dir)
    for marker in sweep_dir.glob(f"*/{WORKING}"):
        with contextlib.suppress(OSError, Busy), Run(marker.parent).locked():
            marker.unlink()


class FolderLost(RuntimeError):
    """A sweep's folder was removed, moved or emptied while the sweep wrote into it."""


class Place:
    """A folder that holds a manifest now, to be distinguished from what is at its path later.

    Whoever writes a file makes its folder again where that is missing: without this, a sweep whose results were removed
    would go on, and write half a folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._was: tuple[int, int] | None = None
        self._was = self._look()

    def _look(self) -> tuple[int, int] | None:
        """Device and number of the folder; None where it is gone, or its manifest is."""
        try:
            os.stat(self.folder / "manifest.csv")
            status = os.stat(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:  # not to be seen just now, as when a network folder's server starts again
            return self._was
        return status.st_dev, status.st_ino

    @property
    def is_lost(self) -> bool:
        """Whether it was removed, moved or emptied."""
        return self._look() != self._was

    def check(self) -> None:
        """
        Raises:
            FolderLost: it was removed, moved or emptied.
        """
        if self.is_lost:
            raise FolderLost(files.display_path(self.folder))
