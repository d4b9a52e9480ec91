"""A sweep's folder in executed/: how it may be called, whose results are in it, whether it is still there."""

import json
import os
from pathlib import Path

from fruitlib.core import files, texts
from fruitlib.core.errors import InputError
from fruitlib.data import sources
from fruitlib.sweep import summary
from fruitlib.sweep.params import Sweep
from fruitlib.sweep.summary import SUMMARY

LONGEST = 150  # bytes of a sweep's name; files in its folder are named after it, and a file system allows 255
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
    were added are executed. A file that was moved or copied is the same one; another file's results stay as they are.

    Raises:
        InputError: other files, another sweep's results, other photos; the message says what is there.
    """
    if not sweep_dir.is_dir():
        return
    where = files.display_path(sweep_dir)
    visible = {path.name for path in sweep_dir.iterdir() if not path.name.startswith(".")}
    ours = {SUMMARY, "manifest.json", "manifest.csv", *plan.runs}
    if visible and not visible & ours:
        there = texts.printable(min(visible))
        raise InputError(f"{where} holds files that are no sweep's, such as {there}: give this sweep another --out")
    held = _read_record(sweep_dir / SUMMARY)
    if (other := held.get("params_file")) and not _is_same_file(Path(plan.source), other):
        count = len(held.get("runs", []))
        what = texts.printable(f"{other} ({held.get('title', '')}; {count} run{'s' * (count != 1)})")
        raise InputError(f"{where} holds the results of {what}: give this sweep another --out, or remove that folder")
    earlier = _read_record(sweep_dir / "manifest.json").get("data", plan.config.data)
    if earlier != plan.config.data:
        photos = texts.printable(earlier)
        raise InputError(f"{where} holds results on other photos ({photos}): give this sweep another name with --out")


def _read_record(path: Path) -> dict:
    """A JSON file of a sweep; empty where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise InputError(f"{files.display_path(path)}: damaged; remove it, and it is written again") from None


def _is_same_file(params_file: Path, recorded: str) -> bool:
    """Whether this params file is the recorded one: at its place, moved (the old one is gone) or copied."""
    earlier = files.resolve(recorded)
    if earlier == params_file.resolve():
        return True
    if not earlier.is_file():
        return earlier.name == params_file.name
    return earlier.read_bytes() == params_file.read_bytes()


def claim(plan: Sweep, sweep_dir: Path) -> None:
    """Write down whose folder this is, before the first run begins; of two params files that meet, one is refused.

    Raises:
        InputError: as `refuse_other_results`.
    """
    with files.lock(sweep_dir / ".manifest.lock"):
        refuse_other_results(plan, sweep_dir)
        if not (sweep_dir / SUMMARY).is_file():
            files.write_json(
                sweep_dir / SUMMARY, summary.sweep_record(plan, {}, {}) | {"chosen": None, "shipped": None}
            )


class FolderLost(RuntimeError):
    """A sweep's folder was removed, moved or emptied while the sweep wrote into it."""


class Place:
    """A folder that holds a manifest now, to be told from what is at its path later.

    Whoever writes a file makes its folder anew where that is missing: without this, a sweep whose results were removed
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
