"""Where things are and what runs them: paths, safe writes, seeds, device, rank, versions.

Nothing here imports torch until a function that needs it is called.
"""

import ast
import contextlib
import errno
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import random
import re
import socket
import tempfile
import time
from pathlib import Path


class InputError(ValueError):
    """Something a person can put right. Its message is one line: what is wrong, where, and what to do."""

    def _render_traceback_(self) -> list[str]:
        """Jupyter's own hook: show the line alone, without a traceback."""
        return [f"InputError: {self}"]


def home() -> Path:
    """The project folder: `$FRUITLIB_HOME`, else the checkout this package lies in, else the working directory."""
    if folder := os.environ.get("FRUITLIB_HOME"):
        return Path(folder).expanduser().resolve()
    checkout = Path(__file__).resolve().parent.parent
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

    A reader therefore sees the old file or the new one, never a part of one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.stem}.{os.getpid()}@{_host()}."  # whose it is, for `tidy`
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=path.suffix)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def tidy(folder: Path) -> None:
    """Remove what processes killed inside `replacing` have left in a folder and the folders in it.

    A file is theirs if its process is gone; if it was another machine's, once it is an hour old.
    """
    for path in list(folder.rglob(".*@*")):
        owner = re.match(r"\..+\.(\d+)@(.+)\.\w{8}(\.\w+)?$", path.name)
        with contextlib.suppress(OSError):
            if owner and (_gone(int(owner[1])) if owner[2] == _host() else path.stat().st_mtime < time.time() - 3600):
                path.unlink()


def _host() -> str:
    return socket.gethostname()[:40]


def _gone(pid: int) -> bool:
    import psutil

    return not psutil.pid_exists(pid)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


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


def meter(what: str, every: float = 5):
    """A `progress(done, total)` that prints `photos checked: 4,500 of 49,236, 3 min left` every so many seconds.

    Work that is over sooner prints nothing.
    """
    started = spoken = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal spoken
        if (now := time.monotonic()) - spoken < every or not done:
            return
        left = (now - started) / done * (total - done)
        print(f"{what}: {done:,} of {total:,}, {duration(left)} left", flush=True)
        spoken = now

    return show


def module_source(module: str) -> bytes:
    """A module's code without comments and docstrings, whose change changes no result."""
    path = Path(__file__).parent / f"{module}.py"
    return _code(path, path.stat().st_mtime_ns)


@functools.cache  # a run's identities ask for twenty modules, twelve times
def _code(path: Path, time: int) -> bytes:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0].value.value = None
    return ast.dump(tree).encode()


def duration(seconds: float) -> str:
    """`80 s`, `3 min`: as exact as a guess of the time left deserves."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def first_line(problem: BaseException) -> str:
    """What an exception says, in one line: its first one, or its name where it says nothing."""
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]


def file_trouble(problem: OSError) -> str:
    """What the system says of a file or disk, in one line that names it."""
    where = f"{display_path(problem.filename)}: " if problem.filename else ""
    return f"{where}{problem.strerror or problem}"


def disk_is_to_blame(problem: OSError) -> bool:
    """Whether a disk is full, over its quota, read-only or broken: passing trouble, no fault of what was done."""
    return problem.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EROFS, errno.EIO)


def rank() -> int:
    """This process's number among torchrun's workers; 0 without torchrun."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many torchrun workers there are; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1))


def device():
    """The device training runs on: this worker's GPU where there is one, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return torch.device("cpu")


def threads() -> int:
    """The threads torch computes with, on which a result's last digits depend."""
    import torch

    return torch.get_num_threads()


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (weights' initial values, dropout)."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seed_of(*numbers: int) -> int:
    """One seed below 2**32 from several numbers, such as seed, epoch and rank."""
    import numpy as np

    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def hardware() -> str:
    """The machine in words, for the results table: GPU if any, else processor and cores."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return f"{model}, {os.cpu_count()} cores"


def versions() -> dict[str, str]:
    """Versions of what a result depends on, for the run's record."""
    names = ["fruitlib", "torch", "torchvision", "onnx", "onnxruntime", "grad-cam", "numpy", "pillow"]
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
