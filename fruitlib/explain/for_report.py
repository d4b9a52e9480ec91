"""What 04 keeps of the validation photos for the report, from the one pass that it makes anyway: features and heat."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn.functional import interpolate

from fruitlib.core.errors import InputError
from fruitlib.core.files import replacing
from fruitlib.core.progress import recorded
from fruitlib.explain import gradcam
from fruitlib.explain.gradcam import Heatmaps
from fruitlib.runs.run import Run

FEATURES_FILE = "features_val.npz"
LARGEST = 60_000  # about float16's
EVERY = 100  # validation photos whose heat the report shows, at most: of more, that of the followed ones alone
SIDE = 48  # pixels of their maps


@contextlib.contextmanager
def keeping_features(run: Run, head: nn.Module, paths: Sequence[str]) -> Iterator[None]:
    """Inside, the photos at `paths` pass through the head once, in this order; then `features_val.npz` is written.

    It holds paths, features (n, D) in float16, and which training they are of.

    Raises:
        InputError: another number of photos passed.
    """
    with inputs_of(head) as seen, recorded(run.path):
        yield
    features = np.concatenate(seen) if seen else np.empty((0, 1), np.float32)
    if len(features) != len(paths):
        raise InputError(f"{FEATURES_FILE}: {len(features)} features of {len(paths)} photos; give one pass of all")
    features = features.astype(np.float16 if np.abs(features).max(initial=0) < LARGEST else np.float32)
    trained = run.record("train").get("identity", "")
    with replacing(run.path / FEATURES_FILE) as partial, open(partial, "wb") as file:
        np.savez(file, paths=np.array(paths), features=features, trained=np.array(trained))


@contextlib.contextmanager
def inputs_of(head: nn.Module) -> Iterator[list[np.ndarray]]:
    """A list to which each pass through `head` (`models.head_of`) adds what it is given, float32 (n, D)."""
    seen: list[np.ndarray] = []

    def keep(_, given: tuple[torch.Tensor]) -> None:
        seen.append(given[0].detach().float().cpu().numpy())

    handle = head.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def save_heat(run: Run, paths: Sequence[str], heatmaps: Heatmaps) -> None:
    """Write small maps of all validation photos to `cams/validation_EPOCH.npz`; where there are over `EVERY`, none."""
    if len(paths) > EVERY:
        return
    heat = interpolate(torch.from_numpy(heatmaps.heatmap), (SIDE, SIDE), mode="area").numpy()
    path = run.path / "cams" / f"validation_{run.record('train').get('kept_epoch', 1):04d}.npz"
    gradcam.save_heatmaps(path, replace(heatmaps, heatmap=heat), paths=np.array(paths))
