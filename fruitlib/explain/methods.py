"""Class activation maps of each layer by itself, by pytorch-grad-cam, which averages layers; the model left unchanged.

What is done differently from the library, and why:

    order       it pairs layers with recordings by position, which mislabels layers not listed in running order
    scale       it stretches every map to full heat, even one of rounding noise; here the peak is given, and 0 is empty
    eval, grad  it leaves the model in eval mode and its `.grad` changed; `frozen_in_eval_mode` puts both back
    EigenCAM    its sign is arbitrary, and its full decomposition takes gigabytes for an early layer
    Score-CAM   it prints a progress bar, and runs the network once for each channel, 13 seconds for resnet18
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from pytorch_grad_cam import EigenCAM, GradCAM, GradCAMPlusPlus, LayerCAM, ScoreCAM
from pytorch_grad_cam.activations_and_gradients import ActivationsAndGradients
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch.nn.functional import interpolate

from fruitlib.core.errors import InputError
from fruitlib.explain.layout import Layout

NOISE = 1e-6  # float32 holds 7 digits, so a peak this small beside the terms it sums is their rounding
SCORED = 64  # channels that Score-CAM tries, at most
SCORED_AT_ONCE = 16  # of them


@contextlib.contextmanager
def frozen_in_eval_mode(model: torch.nn.Module) -> Iterator[None]:
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


def on_device(images: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    """A copy of the images, since a layer may change its input in place."""
    return images.detach().to(next(model.parameters()).device, torch.float32, copy=True)


def answers(logits: torch.Tensor) -> dict[str, np.ndarray]:
    """`predicted` (n,) and `probs` (n, C) of logits (n, C)."""
    return {"predicted": logits.argmax(1).numpy(), "probs": logits.softmax(1).numpy()}


class Recorder(ActivationsAndGradients):
    """Records by layer name, as maps; copies activations, since an in-place ReLU that follows would overwrite them.

    The graph for gradients begins at the first of the layers: what comes before costs a forward pass alone.
    """

    def __init__(self, model: torch.nn.Module, target_layers: dict[str, torch.nn.Module]):
        self.names = {layer: name for name, layer in target_layers.items()}
        super().__init__(model, list(target_layers.values()), None)
        self.layout, self.n, self.paused = Layout.of(model), 0, False

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """The logits; afterwards `activation` and `gradient` give what was recorded."""
        self.activations, self.gradients, self.n = {}, {}, len(images)
        logits = self.model(images)
        for name in self.names.values():
            self.activation(name)  # or it says that the layer does not run
        if torch.is_grad_enabled() and not logits.requires_grad:
            self.gradient(next(iter(self.names.values())))
        return logits

    def save_activation(self, module, inputs, output):
        """The hook of a layer: records what it gives, and begins the graph there."""
        if self.paused:
            return None
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
        """The hook of a layer: records its gradient when there is one."""
        own, name = _tensor_of(output), self.names[module]
        if own.requires_grad and not self.paused:
            own.register_hook(lambda grad: self.gradients.__setitem__(name, self._array(grad, name)))

    def _array(self, tensor: torch.Tensor, name: str) -> np.ndarray:
        return np.ascontiguousarray(self.layout.maps(tensor, self.n, name).float().cpu().numpy())

    def activation(self, name: str) -> np.ndarray:
        """What the layer gave, (n, channels, h, w)."""
        if name not in self.activations:
            raise InputError(f"target_layers: {name!r} does not run in this model; name a layer that does")
        return self.activations[name]

    def gradient(self, name: str) -> np.ndarray:
        """Its gradient, of the same shape."""
        if name not in self.gradients:
            raise InputError(f"target_layers: the logits do not depend on {name!r}; name a layer they do")
        return self.gradients[name]


def _tensor_of(output) -> torch.Tensor | None:
    """What a layer gives; the first of several, as in blocks that pass the size of their grid on."""
    own = output[0] if isinstance(output, tuple) and output else output
    return own if isinstance(own, torch.Tensor) else None


class _EachLayer:
    """Before one of the library's methods: maps of each layer by itself."""

    def __init__(self, model: torch.nn.Module, target_layers: dict[str, torch.nn.Module]):
        super().__init__(model, [])
        self.activations_and_grads = Recorder(model, target_layers)
        self.layer_names = list(target_layers)

    def explain(self, images: torch.Tensor, targets: np.ndarray | None) -> dict[str, np.ndarray]:
        """What `Heatmaps` holds, for one batch."""
        own_targets = None if targets is None else [_Logit(int(t)) for t in targets]
        with torch.set_grad_enabled(self.uses_gradients):
            heatmap, peak = self(on_device(images, self.model), own_targets)
        found = answers(self.outputs.detach().float().cpu())
        chosen = found["predicted"] if targets is None else targets
        return {"heatmap": heatmap, "peak": peak, "targets": chosen} | found

    def compute_cam_per_layer(self, input_tensor, targets, eigen_smooth):
        return [self._scaled(name, input_tensor, targets) for name in self.layer_names]

    def aggregate_multi_layers(self, cam_per_target_layer):
        return tuple(np.stack(part, axis=1) for part in zip(*cam_per_target_layer, strict=True))

    def _scaled(self, name: str, images: torch.Tensor, targets: list) -> tuple[np.ndarray, np.ndarray]:
        """One layer's maps (n, S, S) and their peaks (n,); divided by the map's maximum, minimum not subtracted."""
        recorder = self.activations_and_grads
        activation = recorder.activation(name)
        gradient = recorder.gradient(name) if self.uses_gradients else None
        maps, terms = self._maps(images, targets, activation, gradient)
        maps = np.maximum(maps, 0)
        peak = maps.max(axis=(1, 2))
        peak[peak <= NOISE * terms.max(axis=(1, 2))] = 0
        large = interpolate(torch.from_numpy(maps)[:, None], images.shape[-2:], mode="bilinear")[:, 0].numpy()
        highest = large.max(axis=(1, 2), keepdims=True)
        heat = np.divide(large, highest, out=np.zeros_like(large), where=peak[:, None, None] > 0)
        return heat, peak

    def _maps(self, images, targets, activation, gradient) -> tuple[np.ndarray, np.ndarray]:
        """The maps (n, h, w), and as much as their terms add up to without regard to signs."""
        maps = self.get_cam_image(images, None, targets, activation, gradient, False)
        return maps, self.get_cam_image(images, None, targets, np.abs(activation), np.abs(gradient), False)


class _GradCAM(_EachLayer, GradCAM):
    pass


class _GradCAMPlusPlus(_EachLayer, GradCAMPlusPlus):
    pass


class _LayerCAM(_EachLayer, LayerCAM):
    pass


class _EigenCAM(_EachLayer, EigenCAM):
    """The sign is chosen so that the largest deviation from the mean is heat (Chung and Ying 2025, equation 13)."""

    def _maps(self, images, targets, activation, gradient):
        return np.stack([_first_component(one) for one in activation]), np.abs(activation).sum(1)


def _first_component(activation: np.ndarray) -> np.ndarray:
    """The projection (h, w) of activations (channels, h, w), centred over places, on their first component."""
    places = activation.reshape(len(activation), -1).T.astype(np.float64)
    places -= places.mean(axis=0)
    if len(places) > len(activation):
        found = places @ np.linalg.eigh(places.T @ places)[1][:, -1]
    else:  # the smaller matrix has the same component
        values, directions = np.linalg.eigh(places @ places.T)
        found = directions[:, -1] * np.sqrt(max(values[-1], 0))
    found = found if found.max() >= -found.min() else -found
    return found.reshape(activation.shape[1:]).astype(np.float32)


class _ScoreCAM(_EachLayer, ScoreCAM):
    """Of many channels the `SCORED` that vary most over the photo are tried, as in Faster-Score-CAM."""

    def _maps(self, images, targets, activation, gradient):
        order = np.argsort(-activation.var(axis=(2, 3)), axis=1, kind="stable")[:, :SCORED]
        tried = np.take_along_axis(activation, order[:, :, None, None], 1)
        recorder = self.activations_and_grads
        recorder.paused = True
        try:
            scores = [self._scores(*one) for one in zip(images, targets, tried, strict=True)]
        finally:
            recorder.paused = False
        weights = torch.stack(scores).softmax(1).cpu().numpy()[:, :, None, None]
        return (weights * tried).sum(1), (weights * np.abs(tried)).sum(1)

    def _scores(self, image: torch.Tensor, target: "_Logit", tried: np.ndarray) -> torch.Tensor:
        """The target's logit (k,) of an image (3, S, S) seen through each channel (k, h, w), from 0 to 1."""
        masks = torch.from_numpy(tried).to(image.device)[:, None]
        masks = interpolate(masks, image.shape[-2:], mode="bilinear")
        low, high = masks.amin((1, 2, 3), keepdim=True), masks.amax((1, 2, 3), keepdim=True)
        masks = (masks - low) / (high - low).clamp(min=1e-8)
        parts = [self.model(image * part) for part in masks.split(SCORED_AT_ONCE)]
        return torch.stack([target(logits) for part in parts for logits in part]).float()


class _Logit(ClassifierOutputTarget):
    def __call__(self, model_output):
        if not 0 <= self.category < len(model_output):
            raise InputError(f"targets: {self.category} is not a class index; use 0 to {len(model_output) - 1}")
        return super().__call__(model_output)


METHODS = {
    "Grad-CAM": _GradCAM,  # Selvaraju et al. 2017, arXiv 1610.02391
    "Grad-CAM++": _GradCAMPlusPlus,  # Chattopadhyay et al. 2018, arXiv 1710.11063
    "LayerCAM": _LayerCAM,  # Jiang et al. 2021, IEEE TIP 30
    "EigenCAM": _EigenCAM,  # Muhammad and Yeasin 2020, arXiv 2008.00299; the same for every class
    "Score-CAM": _ScoreCAM,  # Wang et al. 2020, arXiv 1910.01279
}
