"""Paths, atomic writes, locks, fingerprints."""

import contextlib
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
from pathlib import Path


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
    allows, one that was there keeps its permissions.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path, path.suffix)
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # less the umask, by the system
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
    folder = _beside(path)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _beside(path: Path, suffix: str = "") -> Path:
    """A new hidden name beside `path` that holds this process, for `remove_stale_partials`."""
    stem = path.stem if suffix else path.name
    return path.with_name(f".{stem}.{os.getpid()}@{_host()}.{secrets.token_hex(4)}{suffix}")


def remove_stale_partials(folder: Path) -> None:
    """Remove, in a folder and below it, what killed processes left: of `replacing` and `folder_beside`.

    It is stale if its process has ended; if that was on another machine, once it is an hour old.
    """
    for path in list(folder.rglob(".*@*")):
        _remove_if_stale(path)


def _remove_if_stale(path: Path) -> None:
    owner = re.match(r"\..+\.(\d+)@(.+)\.\w{8}(\.\w+)?$", path.name)
    if owner is None:
        return
    with contextlib.suppress(OSError):
        pid, host = int(owner[1]), owner[2]
        if _has_ended(pid) if host == _host() else path.stat().st_mtime < time.time() - 3600:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def _host() -> str:
    return socket.gethostname()[:40]


def _has_ended(pid: int) -> bool:
    import psutil

    return not psutil.pid_exists(pid)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_csv(path: str | os.PathLike, table) -> None:
    """Write a table (a pandas DataFrame) without its index, atomically."""
    with replacing(path) as partial:
        table.to_csv(partial, index=False)


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
