"""Photos decoded once into one file of bytes, mapped by every process that reads it, or decoded again each time."""

import contextlib
import hashlib
import itertools
import mmap
import os
import shutil
import time
import types
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import psutil

from fruitlib.core import files, machine, source_code
from fruitlib.core.config import PREPROCESS_SETTINGS, Config
from fruitlib.core.errors import InputError
from fruitlib.core.progress import OnProgress
from fruitlib.data import decoding, first_squares, geometry, objects, photo_square, preprocess, processes, rgb, sources
from fruitlib.data.first_squares import FirstSquares

KEEP_DAYS = 7  # a file not used for so long is removed when another is made
# Of files: decoded photos, features of them, predictions by features, proofs of weights
KINDS = ("*.npy", "*.npz", "*.squares", "*.probe.csv", "proofs/*.json")


@dataclass(frozen=True)
class Store:
    """Decoded photos by position: their bytes where they are kept, else what is needed to decode them again.

    `kind` is ram, disk or stream; `summary` is one line: how many photos there are, their size, and where they are.
    """

    pixels: np.ndarray | None  # uint8 (m, S, S, 3), usually mapped from a file; None: stream
    folder: Path
    paths: list[str]
    config: Config
    kind: str
    summary: str
    keys: Sequence[str] = ()  # sha256 of the files' bytes, "" or none at all where not known
    pool: processes.Pool | None = None  # of many photos that are decoded every time
    rows: np.ndarray | None = None  # int64 (n,), where each photo is in `pixels`; None: in that order

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indexes) -> np.ndarray:
        """The photos at the positions `indexes` (k,), in that order, as new uint8 (k, S, S, 3)."""
        indexes = np.asarray(indexes, dtype=np.int64)
        if self.pixels is not None:
            return self.pixels.take(indexes if self.rows is None else self.rows[indexes], axis=0)
        once, back = np.unique(indexes, return_inverse=True)
        paths, keys = ([names[i] for i in once] if names else () for names in (self.paths, self.keys))
        return stacked(self.folder, paths, self.config, keys, self.pool)[back]


def open_store(
    folder: Path, paths: list[str], keys: list[str], config: Config, cache_dir: Path, progress: OnProgress | None = None
) -> Store:
    """The photos at `paths` as `config` prepares them, from the cache: from what was made while they were checked, or
    from a file of their own, which is made if it is missing.

    `keys` are the sha256 of the files' bytes when they were checked, "" where not known; photos that have changed since
    are not decoded. Processes that ask for the same photos at once decode them once. `cache = auto` keeps up to a
    quarter of the available memory in memory, up to half of the free disk on the disk, and decodes more than that every
    time. `progress(done, total)` is called while a file is made.

    Raises:
        InputError: a photo no longer opens, or has changed; `ram` or `disk` is set and there is no room.
    """
    shape = (len(paths), config.image_size, config.image_size, 3)
    size = int(np.prod(shape, dtype=np.int64))

    def store(kind: str, where: str, pixels: np.ndarray | None = None, rows: np.ndarray | None = None) -> Store:
        summary = f"{len(paths):,} photos, {in_words(size)} decoded, {where}"
        pool = processes.pool_for(len(paths)) if kind == "stream" else None
        return Store(pixels, folder, paths, config, kind, summary, keys, pool, rows)

    if not paths:
        return store("ram", "in memory", np.empty(shape, np.uint8))
    if config.cache == "stream":
        return store("stream", "decoded every time, since cache = stream")
    keys = [key or _sha256(sources.locate(folder, path)[0]) for path, key in zip(paths, keys, strict=True)]
    file, first = cache_dir / f"{identity(folder, paths, keys, config)}.npy", _first_file(folder, config, cache_dir)
    photos = ((sources.box_of(path), key) for path, key in zip(paths, keys, strict=True))
    try:
        remove_partials(cache_dir)
        with files.lock(first.with_suffix(".lock")), first_squares.found(first, config.image_size, photos) as found:
            kind, where = place(config.cache, size, 0 if found or file.exists() else size, cache_dir)
            if kind != "stream" and found:
                _decode_the_rest(found, folder, paths, keys, config, progress)
                whole = (len(found.entries), *shape[1:])
                return store(kind, where, mapped(found.content, whole, 0, read_ahead=kind == "ram"), found.rows)
        if kind == "stream":
            return store(kind, where)
        with files.lock(file.with_suffix(".lock")):
            if not is_whole(file, shape):
                with processes.briefly(processes.pool_for(len(paths))) as pool:
                    write(file, shape, decoded(folder, paths, config, keys, pool), progress)
            with file.open("rb") as content:
                start = file.stat().st_size - size
                return store(kind, where, mapped(content, shape, start, read_ahead=kind == "ram"))
    except OSError as problem:  # the disk is full, or read-only
        reason = f"{files.display_path(cache_dir)}: {problem.strerror or problem}"
        if config.cache != "auto":
            raise InputError(f"cache = {config.cache}: {reason}; make room there or set cache: stream") from None
        return store("stream", f"decoded every time, since no file could be written ({reason})")


@contextlib.contextmanager
def squares_while_checking(folder: Path, photos: int, config: Config, cache_dir: Path) -> Iterator[FirstSquares | None]:
    """Inside, so many photos are checked, and give what `open_store` would decode again; None: it shall do that."""
    size, squares = photos * config.image_size**2 * 3, None
    with contextlib.ExitStack() as held:
        with suppress(OSError):  # a read-only cache
            cache_dir.mkdir(parents=True, exist_ok=True)
            files.remove_stale_partials(cache_dir)
            tidy(cache_dir)
            if config.cache != "stream" and place("auto", size, size, cache_dir)[0] != "stream":
                how = types.SimpleNamespace(**config.model_dump(include={*PREPROCESS_SETTINGS}))
                file = _first_file(folder, config, cache_dir)
                squares = held.enter_context(first_squares.collected(file, photos, how))
        yield squares


def _first_file(folder: Path, config: Config, cache_dir: Path) -> Path:
    return cache_dir / f"{files.fingerprint(str(folder), *preparation(config))}.squares"


def _decode_the_rest(
    found: first_squares.Found,
    folder: Path,
    paths: list[str],
    keys: list[str],
    config: Config,
    progress: OnProgress | None,
) -> None:
    """Fill in the photos that the check's decoding did not do for; they are few, as a rule."""
    numbers = found.missing().tolist()
    some_paths, some_keys = ([names[number] for number in numbers] for names in (paths, keys))
    with (
        processes.briefly(processes.pool_for(len(numbers))) as pool,
        contextlib.closing(decoded(folder, some_paths, config, some_keys, pool)) as squares,
    ):
        found.fill(squares, lambda done: progress(done, len(numbers)) if progress else None)


def decode_all(folder: Path, paths: list[str], config: Config) -> Store:
    """A few photos, decoded into memory, without a cache file."""
    summary = f"{len(paths):,} photos, in memory"
    return Store(stacked(folder, paths, config), folder, paths, config, "ram", summary)


def identity(folder: Path, paths: list[str], keys: list[str], config: Config) -> str:
    """Twelve hex digits that change with the photos' bytes, boxes or order, the settings and the code that decodes."""
    content = hashlib.sha256()
    for path, key in zip(paths, keys, strict=True):
        content.update(photo_key(folder, path, key).encode())
    return files.fingerprint(content.hexdigest(), *preparation(config))


def photo_key(folder: Path, path: str, sha256: str = "") -> str:
    """A line that changes with a photo's bytes or box; `sha256` is that of the bytes, "" where not known."""
    file, box = sources.locate(folder, path)
    return first_squares.photo_line(box, sha256 or _sha256(file))


def preparation(config: Config) -> list:
    """All that decides how a photo's bytes become the pixels that models see: settings, code, libraries."""
    settings = {name: getattr(config, name) for name in PREPROCESS_SETTINGS}
    modules = rgb, decoding, preprocess, photo_square, geometry, objects
    code = [source_code.module_fingerprint(module.__name__) for module in modules]
    return [settings, *code, preprocess.LIBRARIES]


def _sha256(file: Path) -> str:
    try:
        with decoding.contents(file) as content:
            return hashlib.sha256(content).hexdigest()
    except InputError as problem:
        raise InputError(f"{file}: does not open ({problem}): repair or remove it, then split again") from None


def place(setting: str, size: int, to_write: int, cache_dir: Path) -> tuple[str, str]:
    """(kind, where as text) for `size` bytes, of which `to_write` must still be written to the disk.

    Raises:
        InputError: `ram` or `disk` is set and there is no room for it.
    """
    memory, disk = memory_budget(), disk_budget(cache_dir)
    budgets = f"memory budget {in_words(memory)}, disk budget {in_words(disk)}"
    if (setting == "ram" and size > memory) or (setting in ("ram", "disk") and to_write > disk):
        raise InputError(f"cache = {setting}: the photos take {in_words(size)} ({budgets}); set cache: auto")
    if to_write > disk:
        return "stream", f"decoded every time ({budgets})"
    if setting == "disk" or size > memory:
        return "disk", f"read from the disk ({budgets})"
    return "ram", f"in memory (budget {in_words(memory)})"


def memory_budget() -> int:
    """Bytes that decoded photos may take in memory: a quarter of what is available."""
    return psutil.virtual_memory().available // 4


def disk_budget(folder: Path) -> int:
    """Bytes that a new file may take on the disk: half of what is free."""
    return shutil.disk_usage(folder).free // 2


def in_words(size: int) -> str:
    """Bytes as text: `37 kB`, `2.1 GB`."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}" if size < 10 * unit else f"{size / unit:,.0f} {name}"
    return f"{size} bytes"


def decoded(
    folder: Path,
    paths: Sequence[str],
    config: Config,
    keys: Sequence[str] = (),
    pool: processes.Pool | None = None,
) -> Iterator[np.ndarray]:
    """The photos at `paths` one by one, each uint8 (S, S, 3), decoded by a thread per core, or by a pool."""
    at_once = pool.count if pool else min(processes.MOST, machine.usable_cores())
    how = types.SimpleNamespace(**config.model_dump(include={*PREPROCESS_SETTINGS, "max_megapixels"}))

    def decode(chunk: list[tuple[str, str]]) -> list[np.ndarray]:
        if pool is None:
            return [preprocess.decode(folder, path, config, key) for path, key in chunk]
        places = [(*sources.locate(folder, path), path, key) for path, key in chunk]
        found = pool.do(preprocess.decode_files, places, how)
        return [  # what is too large for a process is decoded here
            preprocess.decode_file(*place[:3], how, place[3]) if one is None else one
            for place, one in zip(places, found, strict=True)
        ]

    places = zip(paths, keys or [""] * len(paths), strict=True)
    step = max(1, min(processes.CHUNK, len(paths) // at_once))
    chunks = iter(lambda: list(itertools.islice(places, step)), [])
    with contextlib.closing(processes.in_order(decode, ((chunk,) for chunk in chunks), at_once)) as ready:
        for photos in ready:
            yield from photos


def stacked(
    folder: Path,
    paths: Sequence[str],
    config: Config,
    keys: Sequence[str] = (),
    pool: processes.Pool | None = None,
) -> np.ndarray:
    """The photos at `paths` as one uint8 array (n, S, S, 3)."""
    pixels = np.empty((len(paths), config.image_size, config.image_size, 3), np.uint8)
    for index, photo in enumerate(decoded(folder, paths, config, keys, pool)):
        pixels[index] = photo
    return pixels


def write(file: Path, shape: tuple[int, ...], photos: Iterator[np.ndarray], progress: OnProgress | None) -> None:
    """Write the photos as an .npy file of this shape, whole or not at all. The caller holds the file's lock.

    (Written, not mapped: writing to a memory map when the disk is full kills the process.)
    """
    tidy(file.parent)
    partial = file.with_suffix(".partial")
    try:
        with partial.open("wb") as out:
            np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for done, photo in enumerate(photos, 1):
                out.write(photo)
                if progress:
                    progress(done, shape[0])
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def tidy(cache_dir: Path) -> None:
    """Remove what killed writers left behind, and files that were not used for `KEEP_DAYS`."""
    remove_partials(cache_dir)
    long_ago = time.time() - KEEP_DAYS * 24 * 3600
    for file in [file for kind in KINDS for file in cache_dir.glob(kind)]:
        with suppress(OSError):
            if file.stat().st_mtime < long_ago:
                file.unlink()


def remove_partials(cache_dir: Path) -> None:
    """Remove what killed writers left behind; a living one holds its file's lock."""
    for file in list(cache_dir.glob("*.partial")):
        with suppress(OSError, files.Locked), files.lock(file.with_suffix(".lock"), timeout=0):
            file.unlink()


def is_whole(file: Path, shape: tuple[int, ...]) -> bool:
    """Whether the file is there with all the bytes that an array of this shape has."""
    with suppress(OSError, ValueError), file.open("rb") as content:
        np.lib.format.read_magic(content)
        stored_shape, _, _ = np.lib.format.read_array_header_1_0(content)
        return stored_shape == shape and file.stat().st_size == content.tell() + int(np.prod(shape, dtype=np.int64))
    return False


def mapped(content: BinaryIO, shape: tuple[int, ...], start: int, read_ahead: bool) -> np.ndarray:
    """The array of bytes at `start` of an open file, read-only, its pages shared among all processes; with `read_ahead`
    loaded at once.

    It counts as a use of the file.
    """
    with suppress(OSError):  # a read-only cache
        os.utime(content.fileno())
    whole = mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ)
    if read_ahead and hasattr(mmap, "MADV_WILLNEED"):
        whole.madvise(mmap.MADV_WILLNEED)
    return np.frombuffer(whole, np.uint8, int(np.prod(shape, dtype=np.int64)), start).reshape(shape)
