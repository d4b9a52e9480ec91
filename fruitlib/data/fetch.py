"""Fetches a public data set by git; a folder under its final name is always complete.

The repository is cloned into a temporary folder beside the final one. Only when its photos are counted and the counts
are as expected do they move to their final name. An interrupted fetch leaves at most the temporary folder, which the
next fetch removes.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from fruitlib.core import files
from fruitlib.core.errors import InputError
from fruitlib.core.progress import OnProgress

DATASETS = {
    "fruits-360-3-body": {
        "url": "https://github.com/fruits-360/fruits-360-3-body-problem",
        "counts": {"Training": 35426, "Test": 13810},
        "licence": "CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/)",
        "citation": "Mihai Oltean, Fruits-360: 3-body problem, version 2025.06.18.3, "
        "https://github.com/fruits-360/fruits-360-3-body-problem",
    }
}
RECORD = "fetched.json"
ENDINGS = (".jpg", ".jpeg", ".png")
RECEIVED = re.compile(r"Receiving objects: .*\((\d+)/(\d+)\)")
# variables of the user's that say how to reach a server; others, such as GIT_DIR, would redirect the clone
KEPT = ("GIT_SSL", "GIT_SSH", "GIT_PROXY", "GIT_HTTP", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM")
SETTINGS = {
    "core.autocrlf": "false",  # every byte as it was committed
    "core.symlinks": "false",  # no link may lead out of the folder
    "http.lowSpeedLimit": "1000",
    "http.lowSpeedTime": "60",  # a dead connection ends after a minute, not never
}


def fetch(
    name: str,
    url: str | None = None,
    to: str | os.PathLike | None = None,
    counts: dict[str, int] | None = None,
    progress: OnProgress | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Fetch the data set `name` into `data/<name>` of the project (or the folder `to`); returns that folder.

    Args:
        url: another address of the same repository.
        counts: photos expected in each part, instead of the known ones.
        progress: called with (objects received, objects in all) while git receives them.
        say: called with each sentence for the user, at the end with licence and citation.

    Raises:
        InputError: no git, no network, a full disk, another repository or other counts, a folder with other files.
    """
    known = DATASETS[name]
    url, counts = url or known["url"], counts or known["counts"]
    folder = Path(to).expanduser().resolve() if to else files.home() / "data" / name
    where, lock = files.display_path(folder), folder.with_name(f".{folder.name}.lock")
    if not shutil.which("git"):
        raise InputError("git is not installed: install it (https://git-scm.com/downloads) and run this again")
    try:
        with files.lock(lock, timeout=0):
            if complete(folder, counts):
                say(f"{where} is complete: {_counts_text(counts)}")
            else:
                say(f"cloning {url}")
                facts = {"name": name, "url": url, "licence": known["licence"], "citation": known["citation"]}
                _clone_into(folder, facts, counts, progress)
                say(f"{where}: {_counts_text(counts)}")
            lock.unlink(missing_ok=True)
    except files.Locked:
        raise InputError(f"{where}: another process is fetching it; wait until it has finished") from None
    except OSError as problem:
        raise InputError(f"{problem.filename or where}: {problem.strerror}; correct that and run this again") from None
    say(f"licence: {known['licence']}\ncitation: {known['citation']}")
    return folder


def complete(folder: Path, counts: dict[str, int]) -> bool:
    """Whether `folder` holds the data set; False if it is absent or empty, `InputError` if it holds other files."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if folder.is_dir() and (held := count_photos(folder, counts)) == counts:
        return True
    content = _counts_text(held) if folder.is_dir() else "a file"
    where = files.display_path(folder)
    raise InputError(f"{where}: holds {content}, not {_counts_text(counts)}; remove it, or name another with --to")


def count_photos(folder: Path, parts: dict[str, int]) -> dict[str, int]:
    """Photos in each of these parts of a folder, in all their subfolders."""
    counts = dict.fromkeys(parts, 0)
    for part in parts:
        for _, _, names in os.walk(folder / part):
            counts[part] += sum(name.lower().endswith(ENDINGS) for name in names)
    return counts


def _counts_text(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} photos in {part}" for part, count in counts.items())


def _clone_into(folder: Path, facts: dict, counts: dict[str, int], progress: OnProgress | None) -> None:
    """Clone beside `folder`, count, and move the parts and the record to `folder` at once."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = f".{folder.name}.part-"
    for left_over in folder.parent.glob(f"{beside}*"):  # by a fetch that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=beside, dir=folder.parent))
    try:
        clone, photos = temporary / "clone", temporary / "photos"
        _clone(facts["url"], clone, progress)
        commit = _git("-C", str(clone), "rev-parse", "HEAD").communicate()[0].strip()
        _check_counts(count_photos(clone, counts), counts, facts["url"])
        photos.mkdir()
        for part in counts:
            os.replace(clone / part, photos / part)
        files.write_json(photos / RECORD, {**facts, "commit": commit, "counts": counts})
        if folder.exists():
            folder.rmdir()  # it is empty: `complete` made sure
        os.replace(photos, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_counts(counts: dict[str, int], expected: dict[str, int], url: str) -> None:
    if not any(counts.values()):
        raise InputError(f"{url}: not the expected repository: no photos in {' or '.join(expected)}")
    if counts != expected:
        advice = "if it is another version, clone it with git and set data to that folder"
        raise InputError(f"{url}: {_counts_text(counts)}, expected {_counts_text(expected)}: {advice}")


def _clone(url: str, to: Path, progress: OnProgress | None) -> None:
    """The newest commit of a repository, checked out; what git reports as an error is raised as one line."""
    settings = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
    lines = []
    with _git(*settings, "clone", "--depth=1", "--no-tags", "--template=", "--progress", "--", url, str(to)) as process:
        try:
            for line in process.stderr:  # git ends a progress line with \r, which text mode reads as a line end
                if not (received := RECEIVED.search(line)):
                    lines.append(line.strip())
                elif progress:
                    progress(int(received[1]), int(received[2]))
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        errors = [line for line in lines if line.startswith(("fatal:", "error:"))] or lines or ["no message"]
        reason = next((line for line in lines if "No space left" in line), errors[-1])
        raise InputError(f"git could not clone {url}: {reason}; correct that and run this again")


def _git(*arguments: str) -> subprocess.Popen:
    """A running git command, its output and messages in English, without the caller's repository settings."""
    environment = {name: value for name, value in os.environ.items() if name[:4] != "GIT_" or name.startswith(KEPT)}
    environment |= {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(["git", *arguments], **pipes, env=environment, encoding="utf-8", errors="replace")
