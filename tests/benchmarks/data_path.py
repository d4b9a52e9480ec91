"""How fast photos get from the folder into training steps, beside torchvision's ImageFolder and DataLoader.

Prints a table, and as its last line JSON:
    vs_imagefolder       photos/s of ours / photos/s of theirs, same photos, batches and kind of augmentation (>= 3)
    share_of_step        share of a training step spent on its photos: (fed - fixed) / fed (< 0.10)
    intake_photos_per_s  photos checked per second before the first split
Both sides of a ratio are measured in turn in one run; medians are shown, with the quartiles over the turns.

    python tests/benchmarks/data_path.py
"""

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import fruitlib  # noqa: F401  (sets how torch's threads wait, before torch loads)

# isort: split
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from fruitlib.core import machine
from fruitlib.core.config import Config
from fruitlib.data import cache, dataset, photo_checks
from fruitlib.data.batch import Batch
from fruitlib.data.loader import Feed
from fruitlib.training import losses, models

BATCH, SIDE, CLASSES = 16, 96, ("apple", "cherry", "tomato")


def drawn(folder: Path, count: int = 304, first: int = 0) -> Path:
    """A folder of class folders with `count` noisy JPEGs of 100 x 100 pixels, some 4 kB each.

    Another `first` draws other photos.
    """
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        rough = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((100, 100), 2)
        noisy = np.asarray(rough, dtype=int) + rng.integers(-8, 9, (100, 100, 3))
        file = folder / CLASSES[number % 3] / f"{number:04d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, quality=90)
    return folder


def photos_in(folder: Path, config: Config, cache_dir: Path) -> dataset.Photos:
    """All photos of a folder of class folders, from a cache file."""
    files = sorted(file for file in folder.glob("*/*") if file.suffix == ".jpg")
    paths = [file.relative_to(folder).as_posix() for file in files]
    names = sorted({file.parent.name for file in files})
    labels = torch.tensor([names.index(file.parent.name) for file in files])
    store = cache.open_store(folder, paths, [""] * len(paths), config, cache_dir)
    print(f"photos: {store.summary}")
    return dataset.Photos(store, np.arange(len(paths)), labels, paths)


def in_turn(turns: int, *sides) -> list[list[float]]:
    """Each side's figures over so many turns, after one that does not count; the order alternates."""
    for side in sides:
        side()
    found = [[] for _ in sides]
    for turn in range(turns):
        for number in range(len(sides)) if turn % 2 else reversed(range(len(sides))):
            found[number].append(sides[number]())
    return found


def vs_imagefolder(folder: Path, photos: dataset.Photos, config: Config) -> tuple[list[float], list[float]]:
    """Photos per second (ours, theirs), as float batches; theirs with two worker processes that stay."""
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(SIDE, scale=(0.35, 1), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    loader = DataLoader(ImageFolder(folder, transform), BATCH, shuffle=True, num_workers=2, persistent_workers=True)
    feed, epochs = Feed(photos, config, "cpu"), iter(range(1, 1000))

    def ours() -> float:
        started = time.perf_counter()
        seen = sum(len(batch.images) for _ in range(10) for batch in feed.epoch(next(epochs)))
        return seen / (time.perf_counter() - started)

    def theirs() -> float:
        started = time.perf_counter()
        seen = sum(len(pixels) for pixels, _ in loader)
        return seen / (time.perf_counter() - started)

    return in_turn(9, ours, theirs)


def steps(photos: dataset.Photos, config: Config) -> tuple[list[float], list[float]]:
    """Milliseconds of a training step (fed, with a batch held fixed) of the three-convolution model.

    A turn is one epoch, so that other work on the machine falls on both sides alike.
    """
    torch.manual_seed(0)
    model = models.build(config, 3).to(memory_format=torch.channels_last).train()
    optimizer, loss_of = torch.optim.Adam(model.parameters(), lr=1e-4), losses.build(config)
    feed, epochs = Feed(photos, config, "cpu"), iter(range(1, 1000))
    held = next(iter(feed.epoch(1)))

    def learn(batch: Batch) -> None:
        loss_of(model(batch.images), batch).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def timed(batches) -> float:
        started = time.perf_counter()
        done = [learn(batch) for batch in batches]
        return (time.perf_counter() - started) / len(done) * 1000

    def fed() -> float:
        return timed(feed.epoch(next(epochs)))

    def fixed() -> float:
        return timed([held] * (len(photos) // BATCH))

    return in_turn(40, fed, fixed)


def intake_rate(folder: Path, many: Path, count: int = 2000) -> float:
    """Photos checked per second, of `count` different ones."""
    originals = [file.read_bytes() for file in sorted(folder.glob("*/*.jpg"))[:300]]
    many.mkdir()
    for number in range(count):  # an empty comment of its own makes each a different file
        content = originals[number % len(originals)]
        comment = f"{number:08d}".encode()
        (many / f"{number:05d}.jpg").write_bytes(content[:2] + b"\xff\xfe\x00\x0a" + comment + content[2:])
    names = [file.name for file in sorted(many.iterdir())]
    rows = pd.DataFrame({"path": names, "label": "apple", "group": "", "split": ""})
    started = time.perf_counter()
    checked = photo_checks.check_photos(many, rows)
    assert (checked["status"] == "ok").all(), checked["reason"].unique()
    return count / (time.perf_counter() - started)


def line(what: str, figures: list[float], unit: str) -> None:
    low, median, high = statistics.quantiles(figures, n=4) if len(figures) > 1 else figures * 3
    print(f"{what:<45}{median:>10,.2f} {unit:<9} ({low:,.2f} to {high:,.2f})")


def main() -> None:
    real = os.environ.get("FRUITLIB_TEST_DATA")
    with tempfile.TemporaryDirectory() as made:
        made = Path(made)
        folder = Path(real) / "fruit304" if real else drawn(made / "photos")
        config = Config(image_size=SIDE, batch_size=BATCH, augment="crop")
        photos = photos_in(folder, config, made / "cache")
        ours, theirs = vs_imagefolder(folder, photos, config)
        fed, fixed = steps(photos, config.model_copy(update={"augment": "geometric"}))
        checked = intake_rate(folder, made / "many")
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    shares = [(a - b) / a for a, b in zip(fed, fixed, strict=True)]
    line("fruitlib, cached, crop and mirror", ours, "photos/s")
    line("ImageFolder, 2 workers, crop and mirror", theirs, "photos/s")
    line("fruitlib / ImageFolder", ratios, "times")
    line("training step, fed", fed, "ms")
    line("training step, the same batch again", fixed, "ms")
    line("share of the step spent on photos", shares, "")
    line("intake", [checked], "photos/s")
    figures = {"vs_imagefolder": statistics.median(ratios), "share_of_step": statistics.median(shares)}
    figures["intake_photos_per_s"] = checked
    print(json.dumps({name: round(value, 3) for name, value in figures.items()} | {"hardware": machine.hardware()}))


if __name__ == "__main__":
    main()
