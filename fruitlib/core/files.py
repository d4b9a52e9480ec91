"""Paths, atomic writes, locks, fingerprints."""

import contextlib
import csv
import errno
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import time
import zipfile
from pathlib import Path

from fruitlib.core.errors import InputError, first_line

AGAIN = "remove it, and run the same command again"  # the way on from a damaged file that fruitlib wrote


def home() -> Path:
    """The project folder: `$FRUITLIB_HOME`, else the checkout this package lies in, else the working directory."""
    if folder := os.environ.get("FRUITLIB_HOME"):
        return Path(folder).expanduser().resolve()
    checkout = Path(__file__).resolve().parent.parent.parent
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


def resolve(path: str | os.PathLike) -> Path:
    """An absolute path; a relative one is taken from `home()`, so that notebooks work from any directory."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else home() / path


def cache_dir() -> Path:
    """Where decoded photos are kept, for all sweeps: `$FRUITLIB_CACHE` (a fast disk, say), else `executed/.cache`."""
    folder = os.environ.get("FRUITLIB_CACHE")
    return Path(folder).expanduser().resolve() if folder else home() / "executed" / ".cache"


def display_path(path: str | os.PathLike) -> str:
    """`path` as people should read it: relative to `home()` where it lies inside."""
    path = Path(path)
    return str(path.relative_to(home())) if path.is_relative_to(home()) else str(path)


@contextlib.contextmanager
def replacing(path: str | os.PathLike):
    """Yield a temporary path beside `path`, moved onto it when the block succeeds and removed when it fails.

    A reader therefore sees the old file or the new one, never a part of one. A new file may be read by whom the umask
    allows, one that was there keeps its permissions, and nobody else may read what is being written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = beside(path, path.suffix)
    allowed = 0o666
    with contextlib.suppress(FileNotFoundError):
        allowed &= os.stat(path).st_mode | 0o600  # its owner must write it
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, allowed))  # less the umask, by the system
    try:
        yield partial
        with contextlib.suppress(FileNotFoundError):
            os.chmod(partial, stat.S_IMODE(os.stat(path).st_mode))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_beside(path: str | os.PathLike):
    """Yield a new temporary folder beside `path`, removed in the end; what others left there by being killed, too."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_over in path.parent.glob(f".{glob.escape(path.name)}.*@*"):
        _remove_if_stale(left_over)
    folder = beside(path)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def beside(path: Path, suffix: str = "") -> Path:
    """A new hidden name beside `path` that holds this process, for `remove_stale_partials`."""
    stem = path.stem if suffix else path.name
    return path.with_name(f".{stem}.{owner()}.{secrets.token_hex(4)}{suffix}")


def remove_stale_partials(folder: Path) -> None:
    """Remove, in a folder and below it, what killed processes left: whatever `beside` named.

    It is stale if its process has ended; if that was on another machine, or in another container, once it is an hour
    old.
    """
    for path in list(folder.rglob(".*@*")):
        _remove_if_stale(path)


def _remove_if_stale(path: Path) -> None:
    found = re.match(r"\..+\.(\d+)@(.+)\.\w{8}(\.\w+)?$", path.name)
    if found is None:
        return
    with contextlib.suppress(OSError):
        pid, host = int(found[1]), found[2]
        if _has_ended(pid) if host == _host() else path.stat().st_mtime < time.time() - 3600:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def owner() -> str:
    """This process, as names of temporary files hold it: `pid@place`."""
    return f"{os.getpid()}@{_host()}"


def _host() -> str:
    """This machine and, on Linux, the space in which its pids count: containers may share a name, but not pids."""
    space = ""
    with contextlib.suppress(OSError):
        space = f"-{os.stat('/proc/self/ns/pid').st_ino}"
    return socket.gethostname()[:40] + space


def _has_ended(pid: int) -> bool:
    """Whether a process writes no more: it is gone, or killed and not yet collected by its parent."""
    import psutil

    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike, default: dict | None = None) -> dict:
    """The mapping in a JSON file; `default`, if one is given, where there is no such file.

    Raises:
        FileNotFoundError: there is none, and no default.
        InputError: it cannot be read, is damaged, nested too deep, or holds something other than a mapping.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if default is None:
            raise
        return default
    except OSError as problem:
        if is_disk_failure(problem):
            raise
        raise InputError(f"cannot be read ({problem.strerror})", place=display_path(path)) from None
    except (ValueError, RecursionError) as problem:
        raise InputError(f"damaged ({first_line(problem)}); {AGAIN}", place=display_path(path)) from None
    if not isinstance(content, dict):
        raise InputError(f"damaged (a mapping was expected); {AGAIN}", place=display_path(path))
    return content


# What a spreadsheet computes ("CSV injection" by OWASP, with its full-width signs); not a number, which stays one.
# A field begins behind ; too, or a line break, where the program that reads the file takes ; for the separator.
_START = r"(?:^|(?<=[;\t\r\n]))"
_FORMULA = r"'*(?![+-]?[\d.,]+(?:e[+-]?\d+)?(?:[;\t\r\n]|$))\s*[=+@\t\r\n\uff0b\uff0d\uff1d\uff20-]"
_BARE = re.compile(f"{_START}({_FORMULA})", re.IGNORECASE)
_MARKED = re.compile(f"{_START}'({_FORMULA})", re.IGNORECASE)
_MAY_BE = re.compile(r"['=+@\uff0b\uff0d\uff1d\uff20\s-]|[^;\t\r\n]*[;\t\r\n]")  # quick: what most texts are not


def guarded(text: str) -> str:
    """The text with an apostrophe in front of what a spreadsheet would compute."""
    return _BARE.sub(r"'\1", text) if _MAY_BE.match(text) else text


def unguarded(text: str) -> str:
    """What `guarded` was given."""
    return _MARKED.sub(r"\1", text) if _MAY_BE.match(text) else text


def write_csv(path: str | os.PathLike, table) -> None:
    """Write a table (a pandas DataFrame) without its index, atomically; `read_csv` reads it.

    A text that a spreadsheet would compute, such as a class named `=1+2`, has an apostrophe in front in the file, also
    as the name of a column, and also behind a `;`, where some divide columns. Numbers stay, and texts that are numbers.
    """
    with replacing(path) as partial:
        _to_csv(table, partial)


def csv_text(table, **options) -> str:
    """A table (a pandas DataFrame) as `write_csv` writes it; `options` are those of pandas' `to_csv`."""
    return _to_csv(table, None, **options)


def _to_csv(table, file: Path | None, **options) -> str | None:
    table = _with_texts(table, guarded)
    broken = any("\r" in text for _, values in _text_columns(table) for text in values if isinstance(text, str))
    quoting = csv.QUOTE_NONNUMERIC if broken else csv.QUOTE_MINIMAL  # a lone \r would end the row
    return table.to_csv(file, index=False, quoting=quoting, **options)


def read_csv(path: str | os.PathLike, **options):
    """The table in a file of `write_csv` (a pandas DataFrame); `options` are those of `pandas.read_csv`."""
    import pandas as pd

    table = pd.read_csv(path, **options)
    table = table.copy() if table.shape[1] > 99 else table  # in one piece: pandas warns of a hundred pieces and more
    return _with_texts(table, unguarded)


def _text_columns(table) -> list[tuple[int, list]]:
    """(place, values) of the columns that may hold texts."""
    return [(at, table.iloc[:, at].tolist()) for at, kind in enumerate(table.dtypes) if kind.kind == "O"]


def _with_texts(table, change):
    """`table` with `change` applied to texts that may hold a formula, names of columns among them."""
    table = table.rename(columns=lambda name: change(name) if isinstance(name, str) else name)
    for at, values in _text_columns(table):
        found = [row for row, value in enumerate(values) if isinstance(value, str) and _MAY_BE.match(value)]
        if changes := {row: text for row in found if (text := change(values[row])) != values[row]}:
            table.isetitem(at, [changes.get(row, value) for row, value in enumerate(values)])
    return table


def read_npz(path: str | os.PathLike, most_bytes: int | None = None) -> dict:
    """The arrays of a file of `numpy.savez`, by name.

    Raises:
        OSError: there is none, or the disk cannot be read.
        InputError: it is damaged, holds something other than numbers and texts, or takes more than `most_bytes`.
    """
    import numpy as np

    where = display_path(path)
    try:
        with zipfile.ZipFile(path) as packed:
            size = sum(member.file_size for member in packed.infolist())
        if most_bytes is None or size <= most_bytes:
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
    except (OSError, MemoryError):
        raise
    except Exception as problem:  # zip, zlib and npy have many ways to be broken
        raise InputError(f"damaged ({first_line(problem)}); remove it", place=where) from None
    raise InputError(f"takes {size / 1e6:,.0f} MB of memory, above {most_bytes / 1e6:,.0f}", place=where)


class Locked(Exception):
    """Another process holds the lock."""


@contextlib.contextmanager
def lock(path: str | os.PathLike, timeout: float = -1):
    """Hold the lock file `path`; the system frees it when its holder ends, however that ends.

    Raises:
        Locked: another process holds it after `timeout` seconds (-1: wait for ever).
    """
    from filelock import FileLock, Timeout

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(path)
    try:
        held.acquire(timeout=timeout)
    except Timeout:
        raise Locked(f"{display_path(path)}: another process holds this lock") from None
    try:
        yield
    finally:
        held.release()


def fingerprint(*parts) -> str:
    """Twelve hex digits that change when any part does; parts are bytes, files (`Path`) or JSON values."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            part = part.read_bytes()
        if not isinstance(part, bytes):
            part = json.dumps(part, sort_keys=True, default=str).encode()
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:12]


def changed_at(path: str | os.PathLike) -> int:
    """When a file or folder was written last, in nanoseconds; 0 where there is none, or it was removed just now."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def os_error_text(problem: OSError) -> str:
    """The system's message about a file or disk, in one line that names the file."""
    where = f"{display_path(problem.filename)}: " if problem.filename else ""
    return f"{where}{problem.strerror or problem}"


DISK_ERRORS = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EROFS, errno.EIO)


def is_disk_failure(problem: BaseException | None) -> bool:
    """Whether a disk that is full, over its quota, read-only or broken caused this error.

    Such an error may pass and says nothing against the work that met it. An error that was raised while another one was
    handled has that one's cause.
    """
    while problem is not None:
        if isinstance(problem, OSError) and problem.errno in DISK_ERRORS:
            return True
        problem = problem.__cause__ or problem.__context__
    return False
