"""Losses, one value an image, so that the caller decides what to average over."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from fruitlib.config import Config

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of logits (n, C) and labels (n,), per image (n,)."""
    return F.cross_entropy(logits, labels, reduction="none")


def focal(logits: torch.Tensor, labels: torch.Tensor, gamma: float = 2.0) -> torch.Tensor:
    """Focal loss per image (n,): -(1 - p_t)^gamma · log(p_t), Lin et al. 2017, equation 4."""
    log_p = F.log_softmax(logits, dim=1).gather(1, labels[:, None]).squeeze(1)
    return -((1 - log_p.exp()) ** gamma) * log_p


def mix(logits: torch.Tensor, labels: torch.Tensor, focal_ratio: float, gamma: float = 2.0) -> torch.Tensor:
    """(1 - focal_ratio) · cross-entropy + focal_ratio · focal, per image (n,)."""
    ce = cross_entropy(logits, labels)
    return (1 - focal_ratio) * ce + focal_ratio * focal(logits, labels, gamma)


def build(config: Config, class_weights: torch.Tensor | None = None) -> Loss:
    """The loss that `config.loss` names, as a function of logits (n, C) and labels (n,), one value an image (n,).

    With `class_weights` (C,) each image's value is multiplied by the weight of its class. `balance.class_weights`
    average to 1 over the training photos, so that a plain mean over images keeps its scale.
    """
    loss = _named(config)
    if class_weights is None:
        return loss
    return lambda logits, labels: loss(logits, labels) * class_weights.to(logits)[labels]


def _named(config: Config) -> Loss:
    if config.loss == "ce":
        return cross_entropy
    if config.loss == "focal":
        return lambda logits, labels: focal(logits, labels, config.focal_gamma)
    return lambda logits, labels: mix(logits, labels, config.focal_ratio, config.focal_gamma)
