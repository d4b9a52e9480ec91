"""How fast `fruitlib predict` is, beside decoding and ONNX Runtime alone on the same cores.

For 1,000 photos, small and large, prints a table, and as its last line JSON:
    small, large            photos/s of `fruitlib predict` / of decoding, then ONNX Runtime, each alone (>= 0.85)
    small_cpu, large_cpu    the same of the processor time that all threads take
    memory_mb               by how much 1,000 large photos raise the process's memory above what 100 do
Alone means: Pillow's decoding and resizing in one thread a core; then the network, in batches of 32 prepared squares,
by ONNX Runtime as it comes. On a busy machine the ratio of processor time says more. Both sides are measured in turn
in one run; medians are shown.

    python tests/benchmarks/predict_speed.py [FOLDER_OF_PHOTOS] [--network resnet18] [--side 224] [--turns 3]
"""

import argparse
import contextlib
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import fruitlib  # noqa: F401  (sets how torch's threads wait, before torch loads)

# isort: split
import numpy as np
import onnx
import torch
from PIL import Image

from fruitlib.core import config, machine
from fruitlib.deploy import export, photo_files, predict, predict_command
from fruitlib.training import models

COUNT, BATCH = 1000, 32


def exported(folder: Path, network: str, side: int) -> Path:
    """A network of three classes as a file that takes photos."""
    torch.manual_seed(0)
    settings = config.make({"model": network, "weights": "none", "image_size": side})
    model = models.build(settings, 3).eval()
    graph = onnx.load(export.export_onnx(model, folder / "graph.onnx", side, ["apple", "cherry", "tomato"]))
    preprocess = settings.model_dump(include=set(config.PREPROCESS_SETTINGS))
    metadata = {entry.key: entry.value for entry in graph.metadata_props} | {"preprocess": json.dumps(preprocess)}
    return photo_files.write(graph, folder / "model.onnx", preprocess, metadata=metadata)


def repeated(folder: Path, photos: list[Path], enlarged: int = 0) -> list[Path]:
    """`COUNT` files in a folder, made of some photos, perhaps enlarged to so many pixels a side."""
    folder.mkdir()
    if enlarged:
        photos = photos[:20]
    contents = []
    for photo in photos:
        content = photo.read_bytes()
        if enlarged:
            stream = io.BytesIO()
            Image.open(photo).convert("RGB").resize((enlarged, enlarged * 3 // 4), 2).save(stream, "JPEG", quality=90)
            content = stream.getvalue()
        contents.append(content)
    files = [folder / f"{number:04d}.jpg" for number in range(COUNT)]
    for number, file in enumerate(files):
        file.write_bytes(contents[number % len(contents)])
    return files


def drawn(folder: Path) -> list[Path]:
    """A few photos of noise, where no folder of photos is given."""
    folder.mkdir()
    for number in range(50):
        rough = np.random.default_rng(number).integers(0, 256, (12, 12, 3), np.uint8)
        Image.fromarray(rough).resize((100, 100), 2).save(folder / f"{number}.jpg", quality=90)
    return sorted(folder.iterdir())


def decoded(file: Path, side: int) -> np.ndarray:
    """As plainly as Pillow allows."""
    photo = Image.open(file).convert("RGB")
    kept = min(photo.size)
    left, top = (photo.width - kept) / 2, (photo.height - kept) / 2
    box = (left, top, left + kept, top + kept)
    return np.asarray(photo.resize((side, side), Image.Resampling.BILINEAR, box=box, reducing_gap=3))


def alone(model: Path, files: list[Path], side: int) -> tuple[float, float, float]:
    """Seconds of decoding, and of ONNX Runtime, one after the other; and of the processor."""
    begin, used = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(machine.usable_cores()) as pool:
        squares = list(pool.map(lambda file: decoded(file, side), files))
    middle = time.perf_counter()
    session = predict.open_session(model)
    for part in predict.in_batches(np.stack(squares), BATCH):
        predict.outputs(session, part, ("probabilities",))
    return middle - begin, time.perf_counter() - middle, time.process_time() - used


def ours(model: Path, folder: Path) -> tuple[float, float]:
    """Seconds of the command, CSV file included; and of the processor."""
    begin, used = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        code = predict_command.run(predict_command.Request(model, [str(folder)], csv=folder.with_suffix(".csv")))
    assert code == 0
    return time.perf_counter() - begin, time.process_time() - used


CHILD = """
import sys
from fruitlib import cli
cli.main(["predict", *sys.argv[1:]])
print("".join(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def memory(model: Path, files: list[Path]) -> float:
    """By how many MB 1,000 photos raise a process's peak of memory above that of 100 (Linux)."""
    peaks = []
    for count in (100, COUNT):
        command = [sys.executable, "-c", CHILD, str(model), *map(str, files[:count])]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        peaks.append(int(re.search(r"VmHWM:\s+(\d+) kB", out)[1]) / 1024)
    print(f"peak of memory: {peaks[0]:.0f} MB for 100 large photos, {peaks[1]:.0f} MB for {COUNT}")
    return peaks[1] - peaks[0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        model = exported(place, options.network, options.side)
        photos = sorted(options.folder.rglob("*.jpg")) if options.folder else drawn(place / "drawn")
        sets = {"small": repeated(place / "small", photos), "large": repeated(place / "large", photos, 1600)}
        found = {"memory_mb": round(memory(model, sets["large"]), 1)}
        load = f"{machine.hardware()}, {os.getloadavg()[0]:.1f} processes"
        print(f"{COUNT} photos, {options.network} at {options.side}, {load}")
        for name, files in sets.items():
            turns = [(*ours(model, place / name), *alone(model, files, options.side)) for _ in range(options.turns)]
            mine, _, decoding, running, _ = (statistics.median(column) for column in zip(*turns, strict=True))
            ratios = [(turn[2] + turn[3]) / turn[0] for turn in turns]
            found[f"{name}_cpu"] = round(statistics.median(turn[4] / turn[1] for turn in turns), 3)
            found[name] = round(statistics.median(ratios), 3)
            print(
                f"{name}: fruitlib predict {COUNT / mine:.1f} photos/s; alone: decoding {decoding:.1f} s, "
                f"ONNX Runtime {running:.1f} s, {COUNT / (decoding + running):.1f} photos/s; "
                f"ratio {found[name]} ({min(ratios):.3f} to {max(ratios):.3f}), of CPU time {found[f'{name}_cpu']}"
            )
        print(json.dumps(found))


if __name__ == "__main__":
    main()
