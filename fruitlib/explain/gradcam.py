"""Where a model looks: Grad-CAM heatmaps and feature maps, the model left unchanged.

pytorch-grad-cam implements the method. Two things are done differently here: it pairs layers with recordings
by position, which mislabels layers not listed in running order, and it scales every map to full heat, even one
of rounding noise.
"""

import contextlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import matplotlib
import numpy as np
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.activations_and_gradients import ActivationsAndGradients
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch.nn.functional import interpolate

from fruitlib.core.errors import InputError
from fruitlib.core.files import display_path, replacing
from fruitlib.data.augment import LUMA
from fruitlib.explain.layout import Layout

NOISE = 1e-6  # float32 holds 7 digits, so a peak this small beside the terms it sums is their rounding


@dataclass
class Heatmaps:
    """Grad-CAM of n images in several layers.

    `heatmap` is scaled to a largest value of 1 per map, or all 0 where nothing in the layer supports the
    target. `peak` is that largest value before scaling, in logits, which distinguishes weak maps from strong ones.
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
) -> Heatmaps:
    """Grad-CAM of `images` (n, 3, S, S) in [0, 1], all `target_layers` in one forward and backward pass.

    `targets`: a class index per image; by default each image's predicted class. A layer gives what `Layout.maps`
    takes, and runs once per pass. Of a model that averages `views` the maps are those of the image itself, while
    `predicted` and `probs` are the model's; without `all_views`, which is quicker, they too are those of the image.
    Frozen models and callers in `inference_mode` are fine. Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from
    Deep Networks via Gradient-based Localization", equations 1 and 2.

    Raises:
        InputError: images, layers or targets do not fit the model.
    """
    _check_inputs(model, images, target_layers)
    targets = None if targets is None else _checked_targets(targets, len(images))
    with torch.inference_mode(False), torch.enable_grad(), _frozen_in_eval_mode(model):
        voted = _voted_logits(model, images, batch_size) if all_views else None
        if targets is None and voted is not None:
            targets = voted.argmax(1).numpy()
        with _one_view(model):
            joined = _in_batches(model, images, target_layers, targets, batch_size)
    if voted is not None:
        joined |= _answers(voted)
    return Heatmaps(**joined, layer_names=list(target_layers))


def _in_batches(model, images, target_layers, targets, batch_size: int) -> dict[str, np.ndarray]:
    """What `Heatmaps` holds but for the names of the layers, by name."""
    cam, parts = _LayerCAM(model, target_layers), []
    try:
        for start in range(0, len(images), batch_size):
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
    return torch.cat([model(_on_device(part, model)).float().cpu() for part in images.split(batch_size)])


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


def _on_device(images: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    """A copy of the images, since a layer may change its input in place."""
    return images.detach().to(next(model.parameters()).device, torch.float32, copy=True)


def _answers(logits: torch.Tensor) -> dict[str, np.ndarray]:
    return {"predicted": logits.argmax(1).numpy(), "probs": logits.softmax(1).numpy()}


def feature_maps(
    model: torch.nn.Module, images: torch.Tensor, target_layers: dict[str, torch.nn.Module], top: int = 8
) -> dict[str, np.ndarray]:
    """Per layer, the activations (n, top, h, w) float32 of its strongest channels, strongest first.

    Strength is the mean absolute activation over all `images`, so that a column is one channel throughout.
    A layer with fewer channels than `top` gives all it has. One pass: meant for a handful of images.
    """
    _check_inputs(model, images, target_layers)
    with torch.inference_mode(False), torch.no_grad(), _frozen_in_eval_mode(model), _one_view(model):
        recorder = _Recorder(model, target_layers)
        try:
            recorder(_on_device(images, model))
            activations = {name: recorder.activation(name) for name in target_layers}
        finally:
            recorder.release()
    return {name: _strongest(activation, top) for name, activation in activations.items()}


def _strongest(activation: np.ndarray, top: int) -> np.ndarray:
    order = np.argsort(-np.abs(activation).mean(axis=(0, 2, 3)), kind="stable")
    return activation[:, order[:top]]


@contextlib.contextmanager
def _frozen_in_eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode and frozen parameters inside; afterwards every flag and `.grad` as before."""
    training = [(module, module.training) for module in model.modules()]
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        model.eval()
        for p, _, _ in parameters:
            p.requires_grad_(False)
            p.grad = None  # pytorch-grad-cam calls zero_grad
        yield
    finally:
        for module, flag in training:
            module.training = flag
        for p, flag, grad in parameters:
            p.requires_grad_(flag)
            p.grad = grad


class _Recorder(ActivationsAndGradients):
    """Records by layer name, as maps; copies activations, since an in-place ReLU that follows would overwrite them.

    The graph for gradients begins at the first of the layers: what comes before costs a forward pass alone.
    """

    def __init__(self, model: torch.nn.Module, target_layers: dict[str, torch.nn.Module]):
        self.names = {layer: name for name, layer in target_layers.items()}
        super().__init__(model, list(target_layers.values()), None)
        self.layout, self.n = Layout.of(model), 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.activations, self.gradients, self.n = {}, {}, len(images)
        logits = self.model(images)
        for name in self.names.values():
            self.activation(name)  # or it says that the layer does not run
        if torch.is_grad_enabled() and not logits.requires_grad:
            self.gradient(next(iter(self.names.values())))
        return logits

    def save_activation(self, module, inputs, output):
        name, own = self.names[module], _tensor_of(output)
        if own is None:
            raise InputError(f"target_layers: {name!r} gives no tensor; name a convolution or a block")
        if name in self.activations:
            raise InputError(f"target_layers: {name!r} runs more than once per image; name one that runs once")
        self.activations[name] = self._array(own.detach(), name).copy()
        if not torch.is_grad_enabled() or own.requires_grad:
            return None
        start = own.detach().requires_grad_().clone()  # a clone, as a leaf cannot be changed in place
        return (start, *output[1:]) if isinstance(output, tuple) else start

    def save_gradient(self, module, inputs, output):
        own, name = _tensor_of(output), self.names[module]
        if own.requires_grad:
            own.register_hook(lambda grad: self.gradients.__setitem__(name, self._array(grad, name)))

    def _array(self, tensor: torch.Tensor, name: str) -> np.ndarray:
        return np.ascontiguousarray(self.layout.maps(tensor, self.n, name).float().cpu().numpy())

    def activation(self, name: str) -> np.ndarray:
        if name not in self.activations:
            raise InputError(f"target_layers: {name!r} does not run in this model; name a layer that does")
        return self.activations[name]

    def gradient(self, name: str) -> np.ndarray:
        if name not in self.gradients:
            raise InputError(f"target_layers: the logits do not depend on {name!r}; name a layer they do")
        return self.gradients[name]


def _tensor_of(output) -> torch.Tensor | None:
    """What a layer gives; the first of several, as in blocks that pass the size of their grid on."""
    own = output[0] if isinstance(output, tuple) and output else output
    return own if isinstance(own, torch.Tensor) else None


class _LayerCAM(GradCAM):
    """Grad-CAM of each layer by itself; the library would average the layers' maps."""

    def __init__(self, model: torch.nn.Module, target_layers: dict[str, torch.nn.Module]):
        super().__init__(model, [])
        self.activations_and_grads = _Recorder(model, target_layers)
        self.layer_names = list(target_layers)

    def explain(self, images: torch.Tensor, targets: np.ndarray | None) -> dict[str, np.ndarray]:
        """What `Heatmaps` holds, for one batch."""
        heatmap, peak = self(
            _on_device(images, self.model), None if targets is None else [_Logit(int(t)) for t in targets]
        )
        answers = _answers(self.outputs.detach().float().cpu())
        chosen = answers["predicted"] if targets is None else targets
        return {"heatmap": heatmap, "peak": peak, "targets": chosen} | answers

    def compute_cam_per_layer(self, input_tensor, targets, eigen_smooth):
        return [self._scaled(name, input_tensor.shape[-2:]) for name in self.layer_names]

    def aggregate_multi_layers(self, cam_per_target_layer):
        return tuple(np.stack(part, axis=1) for part in zip(*cam_per_target_layer, strict=True))

    def _scaled(self, name: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """One layer's maps (n, *size) and their peaks (n,); divided by the map's maximum, minimum not subtracted."""
        recorder = self.activations_and_grads
        activation, gradient = recorder.activation(name), recorder.gradient(name)
        maps = np.maximum(self.get_cam_image(None, None, None, activation, gradient), 0)
        terms = self.get_cam_image(None, None, None, np.abs(activation), np.abs(gradient))
        peak = maps.max(axis=(1, 2))
        peak[peak <= NOISE * terms.max(axis=(1, 2))] = 0
        large = interpolate(torch.from_numpy(maps)[:, None], size, mode="bilinear")[:, 0].numpy()
        highest = large.max(axis=(1, 2), keepdims=True)
        heat = np.divide(large, highest, out=np.zeros_like(large), where=peak[:, None, None] > 0)
        return heat, peak


class _Logit(ClassifierOutputTarget):
    def __call__(self, model_output):
        if not 0 <= self.category < len(model_output):
            raise InputError(f"targets: {self.category} is not a class index; use 0 to {len(model_output) - 1}")
        return super().__call__(model_output)


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
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **arrays, **own | {"heatmap": own["heatmap"].astype(np.float16)})


def load_heatmaps(path: Path) -> tuple[Heatmaps, dict[str, np.ndarray]]:
    """What `save` wrote: the heatmaps (heat in float32) and the other arrays by name."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        own = {field.name: arrays.pop(field.name) for field in fields(Heatmaps)}
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{display_path(path)}: not readable as heatmaps; run notebook 04 again") from error
    own |= {"heatmap": own["heatmap"].astype(np.float32), "layer_names": own["layer_names"].tolist()}
    return Heatmaps(**own), arrays
