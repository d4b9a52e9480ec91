"""Where a model looks: heatmaps by Grad-CAM and its relatives, and feature maps, the model left unchanged."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch.nn.functional import interpolate

from fruitlib.core import files, progress
from fruitlib.core.errors import InputError
from fruitlib.data.augment import LUMA
from fruitlib.explain import methods


@dataclass
class Heatmaps:
    """Maps of n images in several layers.

    `heatmap` is scaled to a largest value of 1 per map, or all 0 where nothing in the layer supports the
    target. `peak` is that largest value before scaling, of Grad-CAM in logits, which distinguishes weak maps from
    strong ones.
    """

    heatmap: np.ndarray  # (n, layers, S, S) float32 in [0, 1], as large as the images
    peak: np.ndarray  # (n, layers) float32, 0 or more
    predicted: np.ndarray  # (n,) int, the class of the largest logit
    probs: np.ndarray  # (n, num_classes) float32
    targets: np.ndarray  # (n,) int, the class the maps explain
    layer_names: list[str]


def heatmaps(
    model: torch.nn.Module,
    images: torch.Tensor,
    target_layers: dict[str, torch.nn.Module],
    targets=None,
    batch_size: int = 32,
    all_views: bool = True,
    method: str = "Grad-CAM",
) -> Heatmaps:
    """Maps of `images` (n, 3, S, S) in [0, 1] by one of `methods.METHODS`, all `target_layers` in one pass.

    `targets`: a class index per image; by default each image's predicted class. A layer gives what `Layout.maps`
    takes, and runs once per pass. Of a model that averages `views` the maps are those of the image itself, while
    `predicted` and `probs` are the model's; without `all_views`, which is quicker, they too are those of the image.
    Frozen models and callers in `inference_mode` are fine. Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from
    Deep Networks via Gradient-based Localization", equations 1 and 2.

    Raises:
        InputError: images, layers or targets do not fit the model, or there is no such method.
    """
    _check_inputs(model, images, target_layers)
    if method not in methods.METHODS:
        raise InputError(f"method: {method!r} is not one; use {', '.join(methods.METHODS)}")
    targets = None if targets is None else _checked_targets(targets, len(images))
    with torch.inference_mode(False), torch.enable_grad(), methods.frozen_in_eval_mode(model):
        voted = _voted_logits(model, images, batch_size) if all_views else None
        if targets is None and voted is not None:
            targets = voted.argmax(1).numpy()
        with _one_view(model):
            cam = methods.METHODS[method](model, target_layers)
            joined = _in_batches(cam, images, targets, batch_size)
    if voted is not None:
        joined |= methods.answers(voted)
    return Heatmaps(**joined, layer_names=list(target_layers))


def _in_batches(cam, images, targets, batch_size: int) -> dict[str, np.ndarray]:
    """What `Heatmaps` holds but for the names of the layers, by name."""
    parts = []
    try:
        starts = range(0, len(images), batch_size)
        for start in progress.through(starts, len(starts), "heat"):
            batch = slice(start, start + batch_size)
            parts.append(cam.explain(images[batch], None if targets is None else targets[batch]))
    finally:
        cam.activations_and_grads.release()
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@torch.no_grad()
def _voted_logits(model: torch.nn.Module, images: torch.Tensor, batch_size: int) -> torch.Tensor | None:
    """The logits of a model that averages `views`; None of any other, whose pass for Grad-CAM gives them."""
    if getattr(model, "views", "one") == "one":
        return None
    return torch.cat([model(methods.on_device(part, model)).float().cpu() for part in images.split(batch_size)])


@contextlib.contextmanager
def _one_view(model: torch.nn.Module) -> Iterator[None]:
    """Inside, a model that averages `views` sees the image alone."""
    views = getattr(model, "views", "one")
    try:
        if views != "one":
            model.views = "one"
        yield
    finally:
        if views != "one":
            model.views = views


def feature_maps(
    model: torch.nn.Module, images: torch.Tensor, target_layers: dict[str, torch.nn.Module], top: int = 8
) -> dict[str, np.ndarray]:
    """Per layer, the activations (n, top, h, w) float32 of its strongest channels, strongest first.

    Strength is the mean absolute activation over all `images`, so that a column is one channel throughout.
    A layer with fewer channels than `top` gives all it has. One pass: meant for a handful of images.
    """
    _check_inputs(model, images, target_layers)
    with torch.inference_mode(False), torch.no_grad(), methods.frozen_in_eval_mode(model), _one_view(model):
        recorder = methods.Recorder(model, target_layers)
        try:
            recorder(methods.on_device(images, model))
            activations = {name: recorder.activation(name) for name in target_layers}
        finally:
            recorder.release()
    return {name: _strongest(activation, top) for name, activation in activations.items()}


def _strongest(activation: np.ndarray, top: int) -> np.ndarray:
    order = np.argsort(-np.abs(activation).mean(axis=(0, 2, 3)), kind="stable")
    return activation[:, order[:top]]


def _check_inputs(model: torch.nn.Module, images: torch.Tensor, target_layers: dict[str, torch.nn.Module]) -> None:
    if images.ndim != 4 or len(images) == 0:
        raise InputError(f"images: shape {tuple(images.shape)}; give at least one, as (n, 3, S, S)")
    if not target_layers:
        raise InputError("target_layers: none given; name at least one layer")
    if len(set(target_layers.values())) < len(target_layers):
        raise InputError("target_layers: a layer has two names; give each once")
    inside = set(model.modules())
    for name, layer in target_layers.items():
        if layer not in inside:
            raise InputError(f"target_layers: {name!r} is not a layer of this model; take it from the model")


def _checked_targets(targets, n: int) -> np.ndarray:
    targets = np.asarray(targets.cpu() if isinstance(targets, torch.Tensor) else targets)
    if targets.shape != (n,) or not np.issubdtype(targets.dtype, np.integer):
        raise InputError(f"targets: {targets.dtype} of shape {targets.shape} for {n} images; give an int for each")
    return targets.astype(np.int64)


def overlay(image: np.ndarray, heatmap: np.ndarray, alpha: float = 0.7) -> np.ndarray:
    """`image` (H, W, 3) in [0, 1], in grey, under `heatmap` (h, w) in [0, 1], as uint8 (H, W, 3).

    Colours are matplotlib's inferno, perceptually uniform and readable to the colour-blind. Heat is also the
    opacity, `alpha` at the hottest place. The photo is grey, as heat would not show on red and yellow fruit.
    """
    if image.ndim != 3 or image.shape[2] != 3 or heatmap.ndim != 2:
        raise InputError(f"overlay: shapes {image.shape} and {heatmap.shape}; give (H, W, 3) and (h, w)")
    heat = torch.from_numpy(np.ascontiguousarray(heatmap, np.float32))[None, None]
    heat = interpolate(heat, image.shape[:2], mode="bilinear")[0, 0].clamp(0, 1).numpy()
    opacity = alpha * heat[..., None]
    grey = (image @ LUMA)[..., None]
    mixed = (1 - opacity) * grey + opacity * matplotlib.colormaps["inferno"](heat)[..., :3]
    return np.rint(255 * mixed.clip(0, 1)).astype(np.uint8)


@dataclass(frozen=True)
class CentralShares:
    """How much of each photo's heat lies in the central square of half the side, a quarter of the area."""

    shares: np.ndarray  # (n,) 0 to 1; NaN where a photo has no heat

    @property
    def numbers(self) -> dict[str, float]:
        """The median share of the photos that have heat, how many these are, and how many lie below an even spread."""
        held = self.shares[~np.isnan(self.shares)]
        median = {"median_central_share": float(np.median(held))} if len(held) else {}
        return median | {
            "n": len(self.shares),
            "without_heat": len(self.shares) - len(held),
            "below_even": int((held < 0.25).sum()),
        }

    @property
    def summary(self) -> str:
        """All of it in a sentence."""
        found = self.numbers
        empty = f"; without any heat: {found['without_heat']} of {found['n']}" if found["without_heat"] else ""
        if "median_central_share" not in found:
            return f"none of {found['n']} validation photos has heat in the last layer"
        held = found["n"] - found["without_heat"]
        share = f"half of {held} validation photos have {found['median_central_share']:.0%} of their heat or more"
        return (
            f"{share} in the central quarter of the picture, {found['below_even']} less than an even spread has{empty}"
        )


def central_shares(heat: np.ndarray) -> CentralShares:
    """The share of each map (n, H, W) in its centre; each photo counts the same, however much heat it has."""
    top, left = heat.shape[1] // 4, heat.shape[2] // 4
    middle = heat[:, top : heat.shape[1] - top, left : heat.shape[2] - left].sum((1, 2), dtype=float)
    whole = heat.sum((1, 2), dtype=float)
    return CentralShares(np.divide(middle, whole, out=np.full(len(heat), np.nan), where=whole > 0))


def save_heatmaps(path: Path, heatmaps: Heatmaps, **meta) -> None:
    """Write `heatmaps` and any arrays besides (paths, labels) as compressed npz; heat in float16."""
    arrays = {name: np.asarray(value) for name, value in meta.items()}
    own = {field.name: np.asarray(getattr(heatmaps, field.name)) for field in fields(Heatmaps)}
    for name, array in arrays.items():
        if name in own or array.dtype.hasobject:
            raise InputError(f"{name}: name in use, or not plain numbers or text; rename or convert it")
    with files.replacing(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **arrays, **own | {"heatmap": own["heatmap"].astype(np.float16)})


def load_heatmaps(path: Path) -> tuple[Heatmaps, dict[str, np.ndarray]]:
    """What `save_heatmaps` wrote: the heatmaps (heat in float32) and the other arrays by name.

    Raises:
        InputError: no such file, or it is damaged.
    """
    try:
        arrays = files.read_npz(path)
        own = {field.name: arrays.pop(field.name) for field in fields(Heatmaps)}
    except (OSError, InputError, KeyError):
        remedy = "remove it, and execute 02_train again where you want its maps"
        raise InputError(f"{files.display_path(path)}: not readable as heatmaps; {remedy}") from None
    own |= {"heatmap": own["heatmap"].astype(np.float32), "layer_names": own["layer_names"].tolist()}
    return Heatmaps(**own), arrays
