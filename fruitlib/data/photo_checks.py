"""Opens every photo once: is it a photo, how large is it, what is odd about it, and what does it look like?

Nothing is rewritten. A photo that cannot be used is quarantined with a reason; one that can be used, but differs from
what its name or kind says, is `ok` and its reason says what is odd. Test photos of a predefined split are listed, not
opened ("sealed").

Threads do the work for a few photos, processes for many (`processes`).
"""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from fruitlib.core import machine
from fruitlib.core.config import Config
from fruitlib.core.progress import OnProgress
from fruitlib.data import decoding, inspection, processes, sources
from fruitlib.data.first_squares import FirstSquares
from fruitlib.data.inspection import Found

COLUMNS = ["status", "reason", "width", "height", "sha256", "phash", "bits"]
UNOPENED = (0, 0, "", "", 0)  # width, height, sha256, phash and bits of a photo that was not opened


def check_photos(
    folder: Path,
    rows: pd.DataFrame,
    min_side: int = 16,
    progress: OnProgress | None = None,
    workers: int | None = None,
    megapixels: float = decoding.FULL_SCALE / 1e6,
    squares: FirstSquares | None = None,
) -> pd.DataFrame:
    """Open every photo that may be opened; adds status, reason, width, height, sha256, phash and bits.

    `bits` is how many the values use of a file that holds more than 8 a channel, else 0. Photos of a shorter side below
    `min_side` pixels, or of more than `megapixels` million, are quarantined.

    Predefined test photos become `sealed`, and rows whose status is `left_out` keep it; neither is opened. A
    file with several boxes is decoded once. `squares` takes what models see, where one decoding gives both.
    `progress(done, total)` is called from this thread, every few photos. The table is the same whatever the number of
    `workers` (processes for many photos, threads for few; as many as there are cores by default).
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
    workers, done = min(workers or machine.usable_cores(), processes.MOST), 0
    job = min_side, megapixels, squares and squares.places
    with contextlib.closing(_checked(places, job, workers, len(to_open))) as results:
        for chunk in results:
            for position, (fact, made) in chunk:
                facts[position] = fact
                if squares and fact[0] == "ok":
                    squares.add(position, sources.box_of(paths[position]), fact[4], made)
            done += len(chunk)
            if progress:
                progress(done, len(to_open))
    checked = pd.DataFrame(facts, columns=COLUMNS, index=rows.index)
    return pd.concat([rows.drop(columns=COLUMNS, errors="ignore"), checked], axis=1)


def _checked(places: Iterator[tuple], job: tuple, workers: int, photos: int) -> Iterator[list]:
    """Lists of (row, found) of places, (row, file, box) in the order of files; each file is opened once.

    `job` is what `inspection.inspect_file` takes beside a file and its boxes.
    """
    by_file = ([*rows_of_one] for _, rows_of_one in itertools.groupby(places, key=lambda place: place[1]))
    chunks = iter(lambda: list(itertools.islice(by_file, processes.CHUNK)), [])
    with processes.briefly(processes.pool_for(photos, workers)) as pool:

        def check(chunk: list[list[tuple]]) -> list[tuple[int, Found]]:
            files = [(places[0][1], [(row, box) for row, _, box in places]) for places in chunk]
            work = inspection.inspect_files, files, *job
            found = pool.do(*work) if pool else work[0](*work[1:])
            results = []
            for (file, boxes), of_file in zip(files, found, strict=True):
                of_file = of_file or inspection.inspect_file(file, boxes, *job)  # too large for a process
                results += [(row, one) for (row, _), one in zip(boxes, of_file, strict=True)]
            return results

        with contextlib.closing(processes.in_order(check, ((chunk,) for chunk in chunks), workers)) as results:
            yield from results


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
