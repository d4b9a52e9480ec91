"""Photos decoded once into one array; order, batches and augmentation that depend on (seed, epoch, photo) alone."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from fruitlib import intake
from fruitlib.config import Config
from fruitlib.runs import Run
from fruitlib.runtime import InputError


@dataclass(frozen=True)
class Photos:
    """Decoded photos: images uint8 (n, 3, S, S), labels int64 (n,), and the manifest's paths."""

    images: torch.Tensor
    labels: torch.Tensor
    paths: list[str]

    def __len__(self) -> int:
        return len(self.paths)

    def pick(self, indexes) -> "Photos":
        """The photos at these positions."""
        indexes = torch.as_tensor(indexes, dtype=torch.long)
        return Photos(self.images[indexes], self.labels[indexes], [self.paths[i] for i in indexes.tolist()])


def load(folder: Path, rows: pd.DataFrame, class_names: list[str], image_size: int) -> Photos:
    """Decode the manifest's rows, each photo cropped to its central square and resized to `image_size`.

    Raises:
        InputError: a photo that does not open any more.
    """
    paths = rows["path"].tolist()
    images = torch.empty(len(paths), 3, image_size, image_size, dtype=torch.uint8)

    def decode(index: int) -> None:
        images[index] = torch.from_numpy(decode_photo(folder / paths[index], image_size))

    with ThreadPoolExecutor() as pool:
        list(pool.map(decode, range(len(paths))))
    labels = torch.tensor([class_names.index(label) for label in rows["label"]], dtype=torch.long)
    return Photos(images, labels, paths)


def of(run: Run, split: str) -> Photos:
    """The decoded photos of a run's train, val or test part."""
    return load(intake.root(run.config.data), run.rows(split), run.class_names, run.config.image_size)


def spread(photos: Photos, count: int) -> Photos:
    """At most `count` photos, evenly spaced through the list, so in the proportions of the classes."""
    return photos.pick(np.unique(np.linspace(0, len(photos) - 1, min(count, len(photos))).round().astype(int)))


def decode_photo(path: Path, image_size: int) -> np.ndarray:
    """One photo, upright RGB, central square, as uint8 (3, image_size, image_size)."""
    try:
        photo = intake.open_photo(path)
    except Exception as problem:
        raise InputError(f"{path}: does not open ({problem}): repair or remove it, then split again") from None
    square = ImageOps.fit(photo, (image_size, image_size), Image.Resampling.BILINEAR)
    return np.array(square).transpose(2, 0, 1)  # a copy: torch wants writable memory


def to_float(images: torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
    """uint8 (n, 3, S, S) -> float32 in [0, 1], channels last (the faster layout for convolutions on CPU and GPU)."""
    return images.to(device).float().div_(255).contiguous(memory_format=torch.channels_last)


def to_array(images: torch.Tensor) -> np.ndarray:
    """uint8 (n, 3, S, S) -> float32 array in [0, 1] of the same shape, as ONNX Runtime takes it."""
    return images.numpy().astype(np.float32) / 255


def to_pictures(images: torch.Tensor) -> np.ndarray:
    """uint8 (n, 3, S, S) -> uint8 array (n, S, S, 3), as figures take it."""
    return images.permute(0, 2, 3, 1).numpy()


def batches(count: int, batch_size: int, seed: int, epoch: int) -> list[torch.Tensor]:
    """An epoch's shuffled batches of indexes. A remainder under half a batch, or under 3, joins the batch before it.

    So no photo is left out, no step rests on one or two photos, and every process has a share of every batch.
    """
    order = torch.randperm(count, generator=_generator(seed, epoch, 0))
    parts = list(order.split(batch_size))
    if len(parts) > 1 and len(parts[-1]) < max(3, batch_size / 2):
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def augmentation(count: int, seed: int, epoch: int) -> torch.Tensor:
    """Geometric augmentation of an epoch as affine matrices (count, 2, 3), one a photo, for `F.affine_grid`.

    Flips left-right, rotates within ±30°, scales by 0.8 to 1.1 and shifts within ±5 % of the side. Colour stays:
    here it is part of the label. Row i belongs to photo i, whatever batch, process or worker asks for it.
    """
    draws = torch.rand(count, 5, generator=_generator(seed, epoch, 1))
    flip = torch.where(draws[:, 0] < 0.5, -1.0, 1.0)
    angle = (draws[:, 1] * 2 - 1) * torch.pi / 6
    scale = 0.8 + 0.3 * draws[:, 2]
    shift = (draws[:, 3:] * 2 - 1) * 0.1  # the grid runs from -1 to 1: 0.1 is 5 % of the side
    rows = [
        torch.stack([flip * scale * angle.cos(), -scale * angle.sin(), shift[:, 0]], 1),
        torch.stack([flip * scale * angle.sin(), scale * angle.cos(), shift[:, 1]], 1),
    ]
    return torch.stack(rows, 1)


def warp(images: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Apply affine matrices (n, 2, 3) to float images (n, 3, S, S), borders reflected."""
    grid = F.affine_grid(matrices.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def example_batch(photos: Photos, config: Config) -> np.ndarray:
    """The first batch of the first epoch as pictures uint8 (n, S, S, 3), augmented as in training; 16 at most."""
    batch = batches(len(photos), config.batch_size, config.seed, epoch=1)[0][:16]
    inputs = to_float(photos.images[batch])
    if config.augment == "geometric":
        inputs = warp(inputs, augmentation(len(photos), config.seed, epoch=1)[batch])
    return to_pictures((inputs * 255).round().clamp(0, 255).to(torch.uint8))


def _generator(seed: int, epoch: int, purpose: int) -> torch.Generator:
    """A random stream of its own for each (seed, epoch, purpose)."""
    words = np.random.SeedSequence([seed, epoch, purpose]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> 1))
