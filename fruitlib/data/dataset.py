"""Decoded photos in order, with their labels, as arrays and tensors."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import torch

from fruitlib.core import files
from fruitlib.core.config import Config
from fruitlib.core.errors import InputError
from fruitlib.core.progress import OnProgress
from fruitlib.data import cache, photo_checks, sources
from fruitlib.data.cache import Store


@dataclass(frozen=True)
class Photos:
    """Some of a store's photos: their positions in it int64 (n,), labels int64 (n,), and the manifest's paths."""

    store: Store
    index: np.ndarray
    labels: torch.Tensor
    paths: list[str]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def images(self) -> torch.Tensor:
        """All of them, gathered on each call: uint8 (n, 3, S, S), channels last in memory."""
        return torch.from_numpy(self.take(np.arange(len(self)))).permute(0, 3, 1, 2)

    def take(self, positions) -> np.ndarray:
        """The photos at these positions, as new uint8 (k, S, S, 3)."""
        return self.store.take(self.index[np.asarray(positions, dtype=np.int64)])

    def pick(self, positions) -> "Photos":
        """The photos at these positions, still in their store."""
        positions = np.asarray(positions, dtype=np.int64)
        labels = self.labels[torch.from_numpy(positions)]
        return Photos(self.store, self.index[positions], labels, [self.paths[i] for i in positions])


class DividedPhotos(Protocol):
    """What `load_photos` reads from a run: its settings, its classes, the sweep's manifest, and the rows of a split."""

    config: Config
    class_names: list[str]
    manifest: pd.DataFrame

    def rows(self, split: str) -> pd.DataFrame:
        """The usable photos of train, val or test."""


def load_photos(
    run: DividedPhotos, split: str, progress: OnProgress | None = None, rows: pd.DataFrame | None = None
) -> Photos:
    """The photos of a run's train, val or test part, or only those of its `rows`.

    Training and validation share one store, of all usable photos of the sweep outside the test part, whatever the
    fold. Test photos have their own store, which is made when they are first loaded.

    Raises:
        InputError: a row that the manifest does not allow to be used, or an unknown label.
    """
    rows, pool = run.rows(split) if rows is None else rows, run.manifest
    pool = rows if split == "test" else pool[(pool["status"] == "ok") & (pool["split"] != "test")]
    folder = sources.root(run.config.data, run.config.photos_dir)
    paths, keys = pool["path"].tolist(), pool["sha256"].tolist()
    store = cache.open_store(
        folder, paths, keys, photo_checks.with_bits(run.config, run.manifest), files.cache_dir(), progress
    )
    index = pd.Index(paths).get_indexer(rows["path"])
    if (index < 0).any():  # -1 would silently select the last photo
        raise InputError(f"{rows['path'][int(index.argmin())]}: in the {split} part, but not usable: split again")
    return Photos(store, index, _labels(rows, run.class_names), rows["path"].tolist())


def pictures(folder: Path, paths: Iterable[str], config: Config, side: int | None = None) -> np.ndarray:
    """The photos at a manifest's paths as models see them, or at `side` pixels: uint8 (n, S, S, 3), for figures."""
    if side:
        config = config.model_copy(update={"image_size": side})
    store = cache.decode_all(folder, list(paths), config)
    return store.take(range(len(store)))


def _labels(rows: pd.DataFrame, class_names: list[str]) -> torch.Tensor:
    """Class numbers int64 (n,) of the rows."""
    numbers = pd.Index(class_names).get_indexer(rows["label"])
    if (numbers < 0).any():
        row = rows.iloc[int((numbers < 0).argmax())]
        raise InputError(f"{row['path']}: label {row['label']} is not among the classes {', '.join(class_names)}")
    return torch.from_numpy(numbers.astype(np.int64))


def spread(photos: Photos, count: int) -> Photos:
    """At most `count` photos, evenly spaced through the list, so in the proportions of the classes."""
    return photos.pick(np.unique(np.linspace(0, len(photos) - 1, min(count, len(photos))).round().astype(int)))


def to_float(images: torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
    """uint8 (n, 3, S, S) -> float32 in [0, 1], channels last (the faster layout for convolutions on CPU and GPU)."""
    return images.to(device).float().div_(255).contiguous(memory_format=torch.channels_last)


def on_device(photos: Photos, device: torch.device, at_a_time: int) -> torch.Tensor:
    """All photos in order as uint8 (n, S, S, 3) on a device, sent in parts of about `at_a_time` bytes."""
    side = photos.store.config.image_size
    kept = torch.empty((len(photos), side, side, 3), dtype=torch.uint8, device=device)
    step = max(1, at_a_time // (3 * side**2))
    for start in range(0, len(photos), step):
        part = kept[start : start + step]
        part.copy_(torch.from_numpy(photos.take(range(start, start + len(part)))))
    return kept


def in_parts(photos: Photos, batch_size: int, device: torch.device) -> Iterator[torch.Tensor]:
    """All photos in order, `batch_size` at a time, as a network takes them: float32 (k, 3, S, S) on the device."""
    for start in range(0, len(photos), batch_size):
        part = photos.take(range(start, min(start + batch_size, len(photos))))
        yield to_float(torch.from_numpy(part).permute(0, 3, 1, 2), device)


def to_array(images: torch.Tensor) -> np.ndarray:
    """uint8 (n, 3, S, S) -> float32 array in [0, 1] of the same shape, as ONNX Runtime takes it."""
    return images.numpy().astype(np.float32, order="C") / 255


def to_pictures(images: torch.Tensor) -> np.ndarray:
    """uint8 (n, 3, S, S) -> uint8 array (n, S, S, 3), as figures take it."""
    return images.permute(0, 2, 3, 1).numpy()
