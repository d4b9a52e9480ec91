"""Two million rows: divided, assigned to folds, written, loaded and counted: within 2 GiB and about a minute."""

import json
import os
import subprocess
import sys

PROGRAM = """
import json, resource, sys, time
from pathlib import Path

import numpy as np
import pandas as pd

from fruitlib.core import config
from fruitlib.data import splits, stratify

rows, folder, seconds, last = 2_000_000, Path(sys.argv[1]), {}, time.perf_counter()

def done(what):
    global last
    now = time.perf_counter()
    seconds[what], last = round(now - last, 1), now

rng = np.random.default_rng(0)
label = np.array(["apple", "cherry", "tomato"], dtype=object)[np.searchsorted([0.5, 0.85], rng.random(rows))]
session = rng.integers(0, 150_000, rows)
grouped = rng.random(rows) < 0.3  # 30 % of the photos lie in sessions, nearly all of which hold several classes
frame = pd.DataFrame({
    "path": pd.Series([f"{n // 5000:04d}/photo {n:07d}.jpg" for n in range(rows)], dtype=str),
    "label": pd.Series(label, dtype=str),
    "group": pd.Series(np.where(grouped, np.char.add("s", session.astype(str)).astype(object), ""), dtype=str),
    "split": pd.Series("", range(rows), dtype=str),
})
del label, session, grouped
done("made")
frame = stratify.subset(frame, 0.95, 0)
done("subset")
digits = pd.Series([f"{n:064x}" for n in range(rows)], dtype=str)
frame = frame.assign(reason="", width=640, height=480, sha256=digits, phash=digits.str[-16:])
del digits
done("columns of checked photos")
settings = {"val_per_class": 0.1, "test_per_class": 0.1, "folds": 5 if sys.argv[2] == "folds" else 0}
frame, notes = splits.divide(frame, config.make(settings))
done("divided")
manifest = frame[list(splits.COLUMNS)]
del frame
if settings["folds"]:  # the rest is the same for shares
    manifest.to_csv(folder / "manifest.csv", index=False)
    done("written")
    before = splits.fingerprint(manifest)
    done("fingerprint")
    del manifest
    manifest = splits.load_manifest(folder)
    done("loaded")
    assert splits.fingerprint(manifest) == before
    done("fingerprint again")
sizes = {split: len(splits.part(manifest, split, fold=2 if settings["folds"] else 1)) for split in splits.SPLITS}
done("parts")
counts = splits.counts(manifest).loc["all"].to_dict()
folds = splits.fold_counts(manifest).to_numpy().tolist() if settings["folds"] else []
done("counts")
leaks = len(splits.leaks(manifest))
done("leaks")
sample = len(splits.some_of_each(manifest, "train", 8))
done("sample")
status = Path("/proc/self/status")  # its own peak; ru_maxrss begins with that of the process it was forked from
lines = status.read_text().splitlines() if status.is_file() else []
own = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
peak = (own or [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss])[0] / 2**20
print(json.dumps({"peak_gib": round(peak, 2), "seconds": seconds, "total": round(sum(seconds.values()), 1),
    "sizes": sizes, "counts": counts, "folds": folds, "leaks": leaks, "sample": sample, "notes": notes}))
"""


def measured(folder, kind) -> dict:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(folder), kind]
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr
    print(found.stdout)
    return json.loads(found.stdout.splitlines()[-1])


def test_two_million_rows_are_divided_within_two_gibibytes(tmp_path):
    found = measured(tmp_path, "shares")
    assert found["peak_gib"] < 2 and found["total"] < 300
    assert found["leaks"] == 0 and found["sample"] == 24 and found["notes"] == []
    assert abs(found["counts"]["left_out"] - 100_000) < 100
    for split in ("val", "test"):
        assert abs(found["sizes"][split] - 190_000) < 20
    assert sum(found["counts"].values()) == 2_000_000


def test_two_million_rows_are_assigned_to_folds(tmp_path):
    found = measured(tmp_path, "folds")
    assert found["peak_gib"] < 2 and found["total"] < 300
    assert found["leaks"] == 0 and found["sizes"]["test"] == found["counts"]["test"]
    *classes, everything = found["folds"]
    assert all(max(photos) - min(photos) < 10 for photos in classes)
    assert sum(everything) == found["counts"]["train"] == found["sizes"]["train"] + found["sizes"]["val"]
