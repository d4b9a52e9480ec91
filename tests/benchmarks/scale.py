"""Millions of rows: divided; or assigned to folds, written, read and looked through: within 2 GiB and five minutes.

Each of the two ways is a process of its own, so that its peak of memory is its own. The last line is JSON: for each
way what it took and what it came to. What came out is asserted, at any number of rows; memory and time, at all of them.

    python tests/benchmarks/scale.py [--rows 2000000]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pandas as pd

from fruitlib.core import config
from fruitlib.data import splits

PEAK_GIB, SECONDS = 2, 300
WAYS = ("shares", "folds")


class Stopwatch:
    """Seconds of each step, from the end of the one before."""

    def __init__(self):
        self.seconds, self._last = {}, time.perf_counter()

    def done(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step], self._last = round(now - self._last, 1), now


def made(rows: int) -> pd.DataFrame:
    """Rows of three classes; 30 % of the photos lie in sessions, nearly all of which hold several classes."""
    rng = np.random.default_rng(0)
    label = np.array(["apple", "cherry", "tomato"], dtype=object)[np.searchsorted([0.5, 0.85], rng.random(rows))]
    session = rng.integers(0, rows * 3 // 40, rows)
    grouped = rng.random(rows) < 0.3
    return pd.DataFrame(
        {
            "path": pd.Series([f"{n // 5000:04d}/photo {n:07d}.jpg" for n in range(rows)], dtype=str),
            "label": pd.Series(label, dtype=str),
            "group": pd.Series(np.where(grouped, np.char.add("s", session.astype(str)).astype(object), ""), dtype=str),
            "split": pd.Series("", range(rows), dtype=str),
        }
    )


def work(rows: int, way: str, folder: Path) -> dict:
    """Divide so many rows in this process; what it took, and what it came to."""
    watch = Stopwatch()
    frame = made(rows)
    watch.done("made")
    frame = splits.subset(frame, 0.95, 0)
    watch.done("subset")
    digits = pd.Series([f"{n:064x}" for n in range(rows)], dtype=str)
    frame = frame.assign(reason="", width=640, height=480, sha256=digits, phash=digits.str[-16:], bits=0)
    del digits
    watch.done("columns of the photo checks")
    settings = {"val_per_class": 0.1, "test_per_class": 0.1, "folds": 5 if way == "folds" else 0}
    frame, notes = splits.divide(frame, config.make(settings))
    watch.done("divided")
    manifest = frame.assign(decision="")[list(splits.COLUMNS)]
    del frame
    if settings["folds"]:  # the rest is the same for shares
        manifest.to_csv(folder / "manifest.csv", index=False)
        watch.done("written")
        before = splits.fingerprint(manifest)
        watch.done("fingerprint")
        del manifest
        manifest = splits.load_manifest(folder)
        watch.done("read")
        assert splits.fingerprint(manifest) == before
        watch.done("fingerprint again")
    sizes = {split: len(splits.part(manifest, split, fold=2 if settings["folds"] else 1)) for split in splits.SPLITS}
    watch.done("parts")
    counts = splits.counts(manifest).loc["all"].to_dict()
    folds = splits.fold_counts(manifest).to_numpy().tolist() if settings["folds"] else []
    watch.done("counts")
    leaks = len(splits.leaks(manifest))
    watch.done("leaks")
    sample = len(splits.some_of_each(manifest, "train", 8))
    watch.done("sample")
    took = {"peak_gib": round(peak_gib(), 2), "seconds": watch.seconds, "total": round(sum(watch.seconds.values()), 1)}
    return took | {"sizes": sizes, "counts": counts, "folds": folds, "leaks": leaks, "sample": sample, "notes": notes}


def peak_gib() -> float:
    """This process's own peak; ru_maxrss begins with that of the process it was forked from."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    own = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return (own or [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss])[0] / 2**20


def measured(rows: int, way: str) -> dict:
    """The same in a process of its own, with what came out checked."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--rows", str(rows), "--way", way, "--folder", folder]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    check(result, rows, way)
    return result


def check(result: dict, rows: int, way: str) -> None:
    """No leak, no row lost, every part as large as was asked for; within the limits of memory and time."""
    assert result["peak_gib"] < PEAK_GIB and result["total"] < SECONDS, result
    assert result["leaks"] == 0, result
    assert sum(result["counts"].values()) == rows, result
    if way == "shares":
        assert result["sample"] == 24 and result["notes"] == [], result
        assert abs(result["counts"]["left_out"] - 0.05 * rows) < 100, result
        for split in ("val", "test"):
            assert abs(result["sizes"][split] - 0.095 * rows) < 20, result
        return
    assert result["sizes"]["test"] == result["counts"]["test"], result
    *classes, everything = result["folds"]
    assert all(max(photos) - min(photos) < 10 for photos in classes), result
    assert sum(everything) == result["counts"]["train"] == result["sizes"]["train"] + result["sizes"]["val"], result


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--rows", type=int, default=2_000_000)
    options.add_argument("--way", choices=WAYS, help="divide in this process, in one way, and check nothing")
    options.add_argument("--folder", type=Path, help="for the manifest of that way")
    options = options.parse_args()
    if options.way:
        print(json.dumps(work(options.rows, options.way, options.folder)))
        return
    results = {way: measured(options.rows, way) for way in WAYS}
    for way, result in results.items():
        steps = ", ".join(f"{step} {seconds} s" for step, seconds in result["seconds"].items())
        print(f"{options.rows} rows, {way}: {result['peak_gib']} GiB, {result['total']} s: {steps}")
    kept = {way: {name: result[name] for name in ("peak_gib", "total", "leaks")} for way, result in results.items()}
    print(json.dumps({"rows": options.rows, **kept}))


if __name__ == "__main__":
    main()
