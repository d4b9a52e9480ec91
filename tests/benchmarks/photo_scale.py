"""Many photos, small ones and some of 12 million pixels: checked, split, decoded once, and shown in a first epoch.

Beside what decoding them alone costs: by Pillow, at full scale, in as many processes as there are cores. Then photos
that are decoded every time, beside torchvision's DataLoader with two workers. The last line is JSON:

    vs_decoding      seconds of decoding alone / seconds of checking, splitting, caching and the first epoch (>= 0.8)
    vs_dataloader    photos/s of ours, streamed / photos/s of theirs (>= 1)
    peak_gib         in memory, of this process and its helpers together, pages of the mapped cache included
    two_million_h    hours that two million photos take, worked out from the rates of this run

    python tests/benchmarks/photo_scale.py [--photos 50000] [--large 1000]
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import fruitlib  # noqa: F401  (sets how torch's threads wait, before torch loads)

# isort: split
import numpy as np
import psutil
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from fruitlib.core import config as settings
from fruitlib.core import machine
from fruitlib.data import cache, dataset, sources, splits
from fruitlib.data.loader import Feed

SIDE, BATCH, LARGE, CLASSES = 96, 64, (4000, 3000), ("apple", "cherry", "tomato")
STREAMED = 1200  # photos of a turn
LARGE_KINDS = 8  # different large photos; the others are copies of these with a comment of their own


def drawn(folder: Path, photos: int, large: int) -> None:
    """A folder of class folders: photos of 100 pixels that all differ, and `large` of 12 million pixels."""
    rng = np.random.default_rng(0)
    coarse = [encoded(patches(LARGE, rng), 88) for _ in range(min(large, LARGE_KINDS))]
    for number in range(photos):
        content = coarse[number % LARGE_KINDS] if number < large else encoded(patches((100, 100), rng), 90)
        comment = b"\xff\xfe\x00\x0a" + f"{number:08d}".encode()
        file = folder / CLASSES[number % 3] / f"{number:06d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content[:2] + comment + content[2:])


def patches(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Soft colours, with grain and, where there is room, detail."""
    picture = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = Image.fromarray(rng.integers(96, 160, (*size[::-1],), dtype=np.uint8)).convert("RGB")
    return Image.blend(picture, grain, 0.15)


def encoded(picture: Image.Image, quality: int) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def decode(files: list[Path]) -> int:
    """Decoding and nothing else, in a process of its own."""
    for file in files:
        with Image.open(file) as photo:
            photo.load()
    return len(files)


def decoding_alone(files: list[Path]) -> float:
    """Seconds of all cores; the processes have started and imported before."""
    chunks = [files[start : start + 16] for start in range(0, len(files), 16)]
    with multiprocessing.get_context("spawn").Pool(machine.usable_cores()) as pool:
        pool.map(decode, chunks[: machine.usable_cores()], chunksize=1)
        started = time.perf_counter()
        assert sum(pool.imap_unordered(decode, chunks)) == len(files)
        return time.perf_counter() - started


def prepared(folder: Path, cache_dir: Path) -> tuple[dict[str, float], dataset.Photos]:
    """Seconds of each step from the folder to the end of the first epoch; and the photos, in their cache."""
    seconds, last = {}, time.perf_counter()

    def done(step: str) -> None:
        nonlocal last
        seconds[step], last = time.perf_counter() - last, time.perf_counter()

    os.environ["FRUITLIB_CACHE"] = str(cache_dir)
    config = settings.make({"data": str(folder), "image_size": SIDE, "batch_size": BATCH, "test_per_class": 10})
    rows, _ = sources.scan(config)
    done("listed")
    manifest, _ = splits.build_manifest(folder, splits.subset(rows, 1, 0), config)
    done("checked and split")
    pool = manifest[(manifest["status"] == "ok") & (manifest["split"] != "test")]
    paths, keys = pool["path"].tolist(), pool["sha256"].tolist()
    store = cache.open_store(folder, paths, keys, config, cache_dir)
    done("decoded into the cache")
    photos = dataset.Photos(store, np.arange(len(paths)), torch.zeros(len(paths), dtype=torch.int64), paths)
    shown = sum(len(batch.images) for batch in Feed(photos, config, "cpu").epoch(1))
    done("first epoch")
    assert shown == len(paths) and len(manifest) == len(rows)
    return seconds, photos


def streamed(folder: Path, photos: dataset.Photos, turns: int) -> tuple[list[float], list[float]]:
    """Photos per second (ours, theirs), each decoded for its batch; turns alternate, the first does not count."""
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(SIDE, scale=(0.35, 1), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    config = photos.store.config.model_copy(update={"augment": "crop", "cache": "stream"})
    store = cache.open_store(folder, photos.store.paths, photos.store.keys, config, Path(os.devnull))
    some = np.random.default_rng(0).permutation(len(photos))[:STREAMED]
    feed = Feed(dataset.Photos(store, photos.index, photos.labels, photos.paths).pick(some), config, "cpu")
    theirs_too = ImageFolder(folder, transform)
    number = {path: place for place, (path, _) in enumerate(theirs_too.samples)}
    theirs_too = Subset(theirs_too, [number[str(folder / photos.paths[place])] for place in some])
    loader = DataLoader(theirs_too, BATCH, shuffle=True, num_workers=2, persistent_workers=True)
    epochs, ours, theirs = iter(range(1, 1000)), [], []

    def timed(batches, size) -> float:
        started = time.perf_counter()
        return sum(map(size, batches)) / (time.perf_counter() - started)

    for _ in range(turns + 1):
        ours.append(timed(feed.epoch(next(epochs)), lambda batch: len(batch.images)))
        theirs.append(timed(loader, lambda batch: len(batch[0])))
    return ours[1:], theirs[1:]


@contextlib.contextmanager
def peak_of_memory() -> Iterator[list[float]]:
    """GiB that this process and those it starts have in memory together, at most; seen ten times a second."""
    peak, over = [0.0], threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            held = 0
            for process in (me := psutil.Process(), *me.children(recursive=True)):
                with contextlib.suppress(psutil.Error):  # it has just ended
                    held += process.memory_info().rss
            peak[0] = max(peak[0], round(held / 2**30, 2))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def measured(photos: int, large: int, turns: int = 3) -> dict:
    with tempfile.TemporaryDirectory() as made:
        made = Path(made)
        drawn(made / "photos", photos, large)
        files = sorted((made / "photos").rglob("*.jpg"))
        before = decoding_alone(files)
        with peak_of_memory() as peak:
            seconds, ready = prepared(made / "photos", made / "cache")
        alone = (before + decoding_alone(files)) / 2
        ours, theirs = streamed(made / "photos", ready, turns)
    total = sum(seconds.values())
    steps = {step: round(value, 2) for step, value in seconds.items()}
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return {
        "photos": photos,
        "large": large,
        "decoding_alone_s": round(alone, 2),
        "seconds": steps,
        "vs_decoding": round(alone / total, 3),
        "streamed_per_s": round(statistics.median(ours), 1),
        "vs_dataloader": round(ratio, 3),
        "peak_gib": peak[0],
        "two_million_h": round(2e6 / photos * total / 3600, 2),
    }


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--photos", type=int, default=4000)
    options.add_argument("--large", type=int, default=80)
    options = options.parse_args()
    result = measured(options.photos, options.large)
    for step, seconds in (("decoding alone", result["decoding_alone_s"]), *result["seconds"].items()):
        print(f"{step:<30}{seconds:>10,.2f} s")
    print(json.dumps(result | {"hardware": machine.hardware()}))


if __name__ == "__main__":
    main()
