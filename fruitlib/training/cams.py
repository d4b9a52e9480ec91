"""Heatmaps of the same few photos, kept while a network trains.

What draws them is imported where it is used, so that training without `cam_every` does without pytorch-grad-cam.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from fruitlib.data import dataset
from fruitlib.data.dataset import Photos
from fruitlib.runs.run import Run
from fruitlib.training import blocks, precision

if TYPE_CHECKING:
    from fruitlib.explain import gradcam

CAM_PHOTOS_PER_CLASS = 2


def cam_photos(val_photos: Photos) -> Photos:
    """The validation photos whose heatmaps are followed through training: the first few of each class."""
    labels = val_photos.labels.numpy()
    rank_in_class = pd.Series(labels).groupby(labels).cumcount()
    return val_photos.pick(np.flatnonzero(rank_in_class < CAM_PHOTOS_PER_CLASS))


def keep_cams(run: Run, model: torch.nn.Module, val_photos: Photos, epoch: int) -> None:
    """Write this epoch's heatmaps of the `cam_photos`, for each photo's true class, to `cams/epoch_NNNN.npz`."""
    from fruitlib.explain import gradcam

    photos = cam_photos(val_photos)
    pixels = dataset.to_float(photos.images, next(model.parameters()).device)
    with precision.uncompiled(model):
        maps = gradcam.heatmaps(model, pixels, blocks.target_layers(model), targets=photos.labels.tolist())
    gradcam.save_heatmaps(run.path / "cams" / f"epoch_{epoch:04d}.npz", maps, paths=np.array(photos.paths))


def kept_cams(run: Run) -> dict[int, gradcam.Heatmaps]:
    """The heatmaps kept during training, by epoch; empty when `cam_every` is 0."""
    from fruitlib.explain import gradcam

    paths = sorted((run.path / "cams").glob("epoch_*.npz"))
    return {int(path.stem[-4:]): gradcam.load_heatmaps(path)[0] for path in paths}
