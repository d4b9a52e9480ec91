"""Fetches a public data set by git, resumably; a folder under its final name is always complete.

The pictures arrive in batches into `.<name>.part` beside the final folder: git's objects in `git`, the photos in
`photos`. What a batch brought is never fetched again. Only when the counts are right do the photos get their name.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fruitlib.core import files
from fruitlib.core.errors import InputError
from fruitlib.core.progress import duration

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
BATCH = 500  # photos per request: what a killed fetch can lose
PINNED = "refs/fruitlib/fetching"  # the commit being fetched; a resumed fetch goes on with it
OWN = ("GIT_SSL", "GIT_SSH", "GIT_PROXY", "GIT_HTTP", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM")
SETTINGS = {
    "protocol.version": "2",
    "fetch.negotiationAlgorithm": "noop",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "http.lowSpeedLimit": "1000",
    "http.lowSpeedTime": "60",  # a dead connection ends after a minute, not never
    "remote.origin.promisor": "true",
    "remote.origin.partialclonefilter": "blob:none",
}
Progress = Callable[[str, int, int], None]


def fetch(
    name: str,
    url: str | None = None,
    to: str | os.PathLike | None = None,
    counts: dict[str, int] | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
    batch: int = BATCH,
) -> Path:
    """Bring the data set `name` into `data/<name>` of the project (or the folder `to`); returns that folder.

    Killed at any moment and called again, it goes on where it was: photos come in batches of `batch`. A server that
    cannot send parts (no partial clone) sends all at once, and only that one answer is asked for again.

    Args:
        url: another address of the same repository.
        counts: photos expected in each part, instead of the known ones.
        progress: called with (class folder, photos here so far, photos in all) after every batch that came.
        say: told in sentences what is done, and at the end licence and citation.

    Raises:
        InputError: no git, no network, a full disk, another repository or other counts, a folder that holds else.
    """
    known = DATASETS[name]
    url, counts = url or known["url"], counts or known["counts"]
    folder = Path(to).expanduser().resolve() if to else files.home() / "data" / name
    where, part = files.display_path(folder), folder.with_name(f".{folder.name}.part")
    if not shutil.which("git"):
        raise InputError("git is not installed: install it (https://git-scm.com/downloads) and run this again")
    try:
        with files.lock(part.with_suffix(".lock"), timeout=0):
            if complete(folder, counts):
                say(f"{where} is complete: {_counted(counts)}")
            else:
                say(f"asking {url} for its list of photos")
                commit = _bring(part, url, counts, progress, batch)
                facts = {"name": name, "url": url, "commit": commit, "counts": counts}
                files.write_json(part / "photos" / RECORD, facts | {key: known[key] for key in ("licence", "citation")})
                if folder.exists():
                    folder.rmdir()  # an empty one, as `complete` made sure
                os.replace(part / "photos", folder)
                say(f"{where}: {_counted(counts)}")
            shutil.rmtree(part, ignore_errors=True)
            part.with_suffix(".lock").unlink(missing_ok=True)
    except files.Locked:
        raise InputError(f"{where}: another process is fetching it; let it finish") from None
    except OSError as problem:
        raise InputError(f"{problem.filename or part}: {problem.strerror}; put that right and run this again") from None
    say(f"licence: {known['licence']}\ncitation: {known['citation']}")
    return folder


def complete(folder: Path, counts: dict[str, int]) -> bool:
    """Whether `folder` holds the data set; False if it is absent or empty, `InputError` if it holds else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if folder.is_dir() and (found := _on_disk(folder, counts)) == counts:
        return True
    held = _counted(found) if folder.is_dir() else "a file"
    where = files.display_path(folder)
    raise InputError(f"{where}: holds {held}, not {_counted(counts)}; remove it, or name another folder with --to")


def _on_disk(folder: Path, parts: dict[str, int]) -> dict[str, int]:
    """Photos below each part of a folder."""
    walks = {part: os.walk(folder / part) for part in parts}
    return {p: sum(name.lower().endswith(ENDINGS) for *_, names in walk for name in names) for p, walk in walks.items()}


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} photos in {part}" for part, count in counts.items())


# ---- the fetch itself


def _bring(part: Path, url: str, counts: dict[str, int], progress: Progress | None, batch: int) -> str:
    """Fill `part/photos`; returns the commit it came from."""
    git = part / "git"
    _prepare(git, url)
    commit = _pinned(git, url)
    photos = _listed(git, commit, counts, url)
    missing = _missing(git, commit)
    total, done = len(photos), 0
    for place, here in _by_class(photos):
        for start in range(0, len(here), batch):
            wanted = [(oid, path) for oid, path in here[start : start + batch] if not (part / "photos" / path).exists()]
            if absent := sorted({oid for oid, _ in wanted} & missing):
                _run(git, "fetch", "--quiet", "--no-tags", "--filter=blob:none", "origin", *absent, url=url)
            _write(git, wanted, part / "photos")
            done += len(here[start : start + batch])
            if progress and (wanted or done == total):
                progress(place, done, total)
    if (found := _on_disk(part / "photos", counts)) != counts:
        raise InputError(f"{part}: holds {_counted(found)}, not {_counted(counts)}: remove this folder and run again")
    return commit


def _prepare(git: Path, url: str) -> None:
    """A bare repository with our settings; locks and halves that a killed git left are removed."""
    git.parent.mkdir(parents=True, exist_ok=True)
    for left in (*git.glob("*.lock"), *git.glob("refs/**/*.lock"), *git.glob("objects/pack/tmp_*")):
        left.unlink(missing_ok=True)
    _run(git, "init", "--quiet", "--bare", "--template=", str(git))
    before = _run(git, "config", "--get", "remote.origin.url", check=False).decode().strip()
    if before and before != url:
        _run(git, "update-ref", "-d", PINNED)
    for name, value in {**SETTINGS, "remote.origin.url": url}.items():
        _run(git, "config", name, value)


def _pinned(git: Path, url: str) -> str:
    """The commit to fetch: the one begun with, else the newest; its list of files is there afterwards."""
    commit = _run(git, "rev-parse", "--quiet", "--verify", PINNED, check=False).decode().strip()
    if not commit:
        options = ("--quiet", "--no-tags", "--depth=1", "--filter=blob:none")
        _run(git, "fetch", *options, "origin", f"+HEAD:{PINNED}", url=url)
        commit = _run(git, "rev-parse", "--verify", PINNED).decode().strip()
    return commit


def _listed(git: Path, commit: str, counts: dict[str, int], url: str) -> list[tuple[str, str]]:
    """(object, path) of every photo, in order; refused before the pictures come if it is not what was expected."""
    listed = _run(git, "ls-tree", "-r", "-z", commit).decode("utf-8", errors="surrogateescape")
    photos, found = [], dict.fromkeys(counts, 0)
    for facts, path in (entry.split("\t", 1) for entry in listed.split("\0") if entry):
        mode, _, oid = facts.split()
        pieces = path.split("/")
        if pieces[0] in counts and len(pieces) > 2 and mode.startswith("100") and path.lower().endswith(ENDINGS):
            if ".." in pieces:
                raise InputError(f"{url}: not the repository expected: it holds the path {path!a}")
            found[pieces[0]] += 1
            photos.append((oid, path))
    if not any(found.values()):
        raise InputError(f"{url}: not the repository expected: no photos in {' or '.join(counts)}")
    if found != counts:
        advice = "another version? Clone it by git and name that folder as data to use it as it is"
        raise InputError(f"{url}: found {_counted(found)}, expected {_counted(counts)}: {advice}")
    return photos


def _missing(git: Path, commit: str) -> set[str]:
    """The objects of a commit that are not here yet."""
    lines = _run(git, "rev-list", "--objects", "--missing=print", commit).splitlines()
    return {line[1:].decode() for line in lines if line.startswith(b"?")}


def _by_class(photos: list[tuple[str, str]]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Photos by their class folder, such as `Training/Apple`."""
    held: dict[str, list] = {}
    for oid, path in photos:
        held.setdefault("/".join(path.split("/")[:2]), []).append((oid, path))
    yield from held.items()


def _write(git: Path, photos: list[tuple[str, str]], folder: Path) -> None:
    """Write objects as files below `folder`, each whole or not at all, byte for byte as git holds them."""
    if not photos:
        return
    oids = "".join(f"{oid}\n" for oid, _ in photos)
    content, at = _run(git, "cat-file", "--batch", text=oids), 0
    for oid, path in photos:
        end = content.index(b"\n", at)
        fields = content[at:end].split()
        if len(fields) != 3:
            raise InputError(f"{git}: the photo {path} ({oid}) did not arrive: remove {git.parent} and run again")
        at = end + 1 + int(fields[2])
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = folder.parent / "writing"
        partial.write_bytes(content[end + 1 : at])
        os.replace(partial, target)
        at += 1


def _run(git: Path, *arguments: str, url: str = "", text: str = "", check: bool = True) -> bytes:
    """What a git command answers; git's own words in one line where it fails."""
    environment = {name: value for name, value in os.environ.items() if name[:4] != "GIT_" or name.startswith(OWN)}
    environment |= {"GIT_DIR": str(git), "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    answer = subprocess.run(["git", *arguments], input=text.encode(), capture_output=True, env=environment)
    if check and answer.returncode:
        summary = answer.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {answer.returncode}"]
        worst = [line for line in summary if line.startswith(("fatal:", "error:"))] or summary
        worst = [line for line in summary if "No space left" in line] or worst
        what = f"git could not fetch from {url}" if url else f"git {arguments[0]} failed in {git}"
        raise InputError(f"{what}: {worst[-1].strip()}; run this again when that is put right, it goes on")
    return answer.stdout


def meter(stream=None) -> Progress:
    """A `progress` that writes lines such as `Training/Apple: 4,500 of 49,236 photos, about 3 min left`.

    On a terminal one line is rewritten; elsewhere a line is written per class folder. The time left is judged by the
    photos that came since the start.
    """
    stream = sys.stderr if stream is None else stream
    began: dict[str, float] = {}
    places: list[str] = []

    def show(place: str, done: int, total: int) -> None:
        now = time.monotonic()
        came = done - began.setdefault("done", done)
        seconds = now - began.setdefault("time", now)
        left = f", about {duration(seconds / came * (total - done))} left" if came and done < total else ""
        line = f"{place}: {done:,} of {total:,} photos{left}"
        if stream.isatty():
            stream.write(f"\r\x1b[K{line}" + "\n" * (done == total))
        elif place not in places or done == total:
            stream.write(f"{line}\n")
        stream.flush()
        places.append(place)

    return show
