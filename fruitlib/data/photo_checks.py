"""Opens every photo once: is it a photo, how large is it, what is odd about it, and what does it look like?

Nothing is rewritten. A photo that cannot be used is quarantined with a reason; one that can be used, but differs from
what its name or kind says, is `ok` and its reason says what is odd. Test photos of a predefined split are listed, not
opened ("sealed").

Threads do the work: decoding, hashing and reading let other threads run, and unlike processes they start at once, in
notebooks and plain scripts alike.
"""

import contextlib
import hashlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from fruitlib.core.config import Config
from fruitlib.core.errors import InputError
from fruitlib.core.progress import OnProgress
from fruitlib.data import decoding, sources
from fruitlib.data.decoding import Decoded

COLUMNS = ["status", "reason", "width", "height", "sha256", "phash", "bits"]
UNOPENED = (0, 0, "", "", 0)  # width, height, sha256, phash and bits of a photo that was not opened
CHUNK = 16  # photos a thread takes at a time
Facts = tuple[str, str, int, int, str, str, int]  # as in COLUMNS


def check_photos(
    folder: Path,
    rows: pd.DataFrame,
    min_side: int = 16,
    progress: OnProgress | None = None,
    workers: int | None = None,
    megapixels: float = decoding.FULL_SCALE / 1e6,
) -> pd.DataFrame:
    """Open every photo that may be opened; adds status, reason, width, height, sha256, phash and bits.

    `bits` is how many the values use of a file that holds more than 8 a channel, else 0. Photos of a shorter side below
    `min_side` pixels, or of more than `megapixels` million, are quarantined.

    Predefined test photos become `sealed`, and rows whose status is `left_out` keep it; neither is opened. A
    file with several boxes is decoded once. `progress(done, total)` is called from this thread, every few photos. The
    table is the same whatever the number of `workers` (threads; as many as processors by default).
    """
    paths = rows["path"].tolist()
    left_out = (rows["status"] == "left_out").to_numpy() if "status" in rows else np.zeros(len(rows), bool)
    closed = left_out | (rows["split"] == "test").to_numpy()
    why = rows["reason"].tolist() if "reason" in rows else [""] * len(rows)
    facts = [
        ("left_out", text, *UNOPENED) if out else ("sealed", "", *UNOPENED)
        for text, out in zip(why, left_out, strict=True)
    ]
    to_open = sorted(np.flatnonzero(~closed).tolist(), key=paths.__getitem__)
    places = ((position, *sources.locate(folder, paths[position])) for position in to_open)
    by_file = ([*rows_of_one] for _, rows_of_one in itertools.groupby(places, key=lambda place: place[1]))
    done = 0
    work = ((chunk, min_side, megapixels) for chunk in _chunks(by_file))
    with contextlib.closing(_in_threads(_inspect_chunk, work, workers or os.cpu_count() or 1)) as results:
        for chunk in results:
            for position, fact in chunk:
                facts[position] = fact
            done += len(chunk)
            if progress:
                progress(done, len(to_open))
    checked = pd.DataFrame(facts, columns=COLUMNS, index=rows.index)
    return pd.concat([rows.drop(columns=COLUMNS, errors="ignore"), checked], axis=1)


def _chunks(items: Iterator) -> Iterator[list]:
    return iter(lambda: list(itertools.islice(items, CHUNK)), [])


def _in_threads(work: Callable, jobs: Iterable[tuple], workers: int) -> Iterator:
    """`work(*job)` for every job, in order; few are queued at a time, for memory and for Ctrl-C."""
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque()
        for job in jobs:
            waiting.append(pool.submit(work, *job))
            if len(waiting) >= 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _inspect_chunk(files: list[list[tuple]], min_side: int, megapixels: float) -> list[tuple[int, Facts]]:
    """(row, facts) of every place in some files; a place is (row, file, box)."""
    results = []
    for places in files:
        facts = _inspect(places[0][1], [box for _, _, box in places], min_side, megapixels)
        results += [(position, fact) for (position, _, _), fact in zip(places, facts, strict=True)]
    return results


def inspect(
    file: Path,
    box: tuple[int, int, int, int] | None = None,
    min_side: int = 16,
    megapixels: float = decoding.FULL_SCALE / 1e6,
) -> Facts:
    """(status, reason, width, height, sha256, phash, bits) of a photo, or of a box (x, y, width, height) in it.

    Width and height are the whole upright photo's, sha256 the file's, phash the box's. The file is read once and
    decoded completely, a large JPEG file at a reduced scale if no box is given.
    """
    return _inspect(Path(file), [box], min_side, megapixels)[0]


def _inspect(file: Path, boxes: list, min_side: int, megapixels: float) -> list[Facts]:
    """`inspect` for several boxes of one file."""
    sha256 = ""
    try:
        with decoding.contents(file) as content:
            sha256 = hashlib.sha256(content).hexdigest()
            with decoding.opened(content, file.suffix, megapixels, small=boxes == [None]) as photo:
                return [_facts(photo, sha256, box, min_side) for box in boxes]
    except InputError as problem:
        return [("quarantined", str(problem), 0, 0, sha256, "", 0)] * len(boxes)


def _facts(photo: Decoded, sha256: str, box: tuple[int, int, int, int] | None, min_side: int) -> Facts:
    """The facts of a photo that opened, or of one box in it."""
    if wrong := _wrong_size(photo.size, box, min_side):
        return "quarantined", wrong, *photo.size, sha256, "", 0
    area = (0, 0, *photo.image.size) if box is None else photo.area(box)
    small, odd = photo.image.resize((32, 32), Image.Resampling.BOX, area), photo.odd
    if _flat(small) and _flat(photo.image.crop(area)):
        odd = [*odd, "a single flat colour"]
    return "ok", "; ".join(odd), *photo.size, sha256, looks(small), photo.bits


def _wrong_size(size: tuple[int, int], box: tuple | None, min_side: int) -> str:
    """Why a photo of this size, or a box in it, cannot be used; "" where it can."""
    if box is None:
        return f"{size[0]} x {size[1]} pixels: the shorter side is below {min_side}" if min(size) < min_side else ""
    x, y, width, height = box
    named = f"the box {x},{y},{width},{height}"
    if min(box) < 0:
        return f"{named} is negative"
    if min(width, height) == 0:
        return f"{named} is empty"
    if x + width > size[0] or y + height > size[1]:
        return f"{named} reaches beyond the photo of {size[0]} x {size[1]} pixels"
    return f"{named}: its shorter side is below {min_side} pixels" if min(width, height) < min_side else ""


def _flat(photo: Image.Image) -> bool:
    return all(high - low <= 2 for low, high in photo.getextrema())  # JPEG's rounding may add a level or two


def looks(small: Image.Image) -> str:
    """What a photo looks like, as 70 hex digits: 16 of shape, 54 of colour. From the photo squashed to 32 x 32, RGB.

    Shape is imagehash's pHash, the signs of the 8 x 8 lowest frequencies of the luminance's cosine transform against
    their median (Zauner, 2010, "Implementation and benchmarking of perceptual image hash functions"). It is the same
    for a yellow apple and a red one, so colour follows: the mean red, green and blue of 3 x 3 cells, a byte each.
    """
    import imagehash  # here, so that training on checked photos does without it

    return str(imagehash.phash(small)) + small.resize((3, 3), Image.Resampling.BOX).tobytes().hex()


def bits_in_use(manifest: pd.DataFrame) -> int:
    """The most bits that a training or validation photo uses whose file holds more than 8 a channel; 0: there is none.

    Photos of a predefined test part are not opened, and test photos have no say.
    """
    learned_from = manifest["split"].isin(["train", "val"])
    return int(manifest.loc[learned_from, "bits"].max()) if "bits" in manifest and learned_from.any() else 0


def with_bits(config: Config, manifest: pd.DataFrame) -> Config:
    """The settings with a number for `deep_bits: auto`, if there are photos of more than 8 bits: `bits_in_use`.

    All photos are scaled by it, so that a dark one stays dark beside a bright one; what exceeds it is white.
    """
    found = bits_in_use(manifest) if config.deep_bits == "auto" else 0
    return config.model_copy(update={"deep_bits": found}) if found else config


def depth_notes(manifest: pd.DataFrame, config: Config) -> list[str]:
    """How photos of more than 8 bits are shown, in a sentence, where there are any."""
    bits = with_bits(config, manifest).deep_bits
    deep = manifest[manifest["bits"] > 0]
    if deep.empty or bits == "auto":
        return []
    photos = "1 photo has" if len(deep) == 1 else f"{len(deep):,} photos have"
    why = "as deep_bits says" if config.deep_bits != "auto" else "the range that the training and validation photos use"
    notes = [f"{photos} more than 8 bits: shown as {bits} bits, 0 to {2**bits - 1:,} ({why})"]
    usual = int(deep["bits"].median())
    if config.deep_bits == "auto" and usual <= bits - 4:  # the others would have a sixteenth of the grey levels
        most = f"half of them use {usual} at most: if a few bright pixels are to blame, set deep_bits: {usual}"
        notes.append(f"{(deep['bits'] > usual).sum():,} of these photos use more than {usual} bits; {most}")
    return notes
