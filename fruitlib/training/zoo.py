"""Networks of torchvision and timm by name, what is known of their weights, and a head for the classes at hand."""

import math
import pickle
from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision.models import VGG, ConvNeXt, SqueezeNet

from fruitlib.core.config import Config
from fruitlib.core.errors import InputError, first_line
from fruitlib.core.model_names import TIMM
from fruitlib.training import heads, timm_zoo
from fruitlib.training.weights import Facts

HEADS = ("head", "fc", "classifier")  # what torchvision and End2End call the last part
LICENCE = "bsd-3-clause"  # torchvision's; it says of none of these weights that they have another
GAP_DROPOUT = 0.5  # of the gap_bn head with `dropout: auto`


def facts(model: str) -> Facts:
    """What torchvision or timm says about the weights of `config.model`; fresh weights are normalised likewise."""
    if model.startswith(TIMM):
        return timm_zoo.facts(model.removeprefix(TIMM))
    published = torchvision.models.get_model_weights(model).DEFAULT
    transforms = published.transforms()
    side = transforms.crop_size[0]
    center = side / transforms.resize_size[0]
    return Facts(tuple(transforms.mean), tuple(transforms.std), side, center, LICENCE, published.url)


def create(model: str, published: bool = False) -> nn.Module:
    """The network as its library makes it, with its own head; with its `published` weights, or fresh ones.

    Raises:
        InputError: the published weights cannot be downloaded or read.
    """
    if model.startswith(TIMM):
        return timm_zoo.create(model.removeprefix(TIMM), published)
    if published:
        return load_published(model, torchvision.models.get_model_weights(model).DEFAULT)
    return torchvision.models.get_model(model, weights=None)


def load_published(name: str, weights: torchvision.models.WeightsEnum) -> nn.Module:
    """torchvision's network with its published weights, from its cache or downloaded into it."""
    try:
        return torchvision.models.get_model(name, weights=weights)
    except OSError as problem:  # no network, a full disk
        file = Path(torch.hub.get_dir(), "checkpoints", weights.url.rsplit("/", 1)[1])
        remedy = f"put {file.name} into {file.parent}, or set weights: none"
        raise InputError(f"weights DEFAULT of {name}: download failed ({problem}); {remedy}") from None
    except (RuntimeError, EOFError, pickle.UnpicklingError) as problem:
        file = Path(torch.hub.get_dir(), "checkpoints", weights.url.rsplit("/", 1)[1])
        raise InputError(
            f"weights DEFAULT of {name}: {file} is broken ({first_line(problem)[:120]}); remove it and try again"
        ) from None


def with_head(net: nn.Module, config: Config, num_classes: int, keep: bool = True) -> nn.Module:
    """The network for images of `config.image_size`, with the head of the settings, whose input is features (N, D).

    Args:
        keep: whether its weights matter; fresh ones are drawn again where a network must be made again for its size.

    Raises:
        InputError: a network of timm that cannot take images of that size, or whose weights cannot.
    """
    if config.model.startswith(TIMM):
        net = timm_zoo.for_side(net, config.model.removeprefix(TIMM), config.image_size, keep)
        net = timm_zoo.TimmNet(net)
        net.head = _one(_new_head([nn.Linear(net.width, num_classes)], net.width, config, num_classes))
        return net
    if isinstance(net, SqueezeNet):
        net = _LinearSqueezeNet(net)
    name = head_name(net)
    parts = list(old) if isinstance(old := getattr(net, name), nn.Sequential) else [old]
    width = next(part.in_features for part in parts if isinstance(part, nn.Linear))
    if isinstance(net, ConvNeXt):  # the only one whose features are (N, D, 1, 1)
        net.avgpool = nn.Sequential(net.avgpool, nn.Flatten())
        parts.insert(0, nn.Unflatten(1, (width, 1, 1)))
    if config.head == "gap_bn" and isinstance(net, VGG):  # the only one that pools to several cells
        width //= math.prod(net.avgpool.output_size)
        net.avgpool = nn.AdaptiveAvgPool2d(1)
    setattr(net, name, _one(_new_head(parts, width, config, num_classes)))
    return net


class _LinearSqueezeNet(nn.Module):
    """SqueezeNet with the average before its classifier, which is then linear and not a convolution."""

    def __init__(self, net: SqueezeNet):
        super().__init__()
        self.features, self.avgpool = net.features, nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(net.classifier[1].in_channels, net.num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) normalised -> logits (N, num_classes)."""
        return self.classifier(self.avgpool(self.features(images)).flatten(1))


def _one(parts: list[nn.Module]) -> nn.Module:
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)


def _new_head(parts: list[nn.Module], width: int, config: Config, num_classes: int) -> list[nn.Module]:
    """The head `config.head`; `parts` are the library's own, `width` the features that come in."""
    if config.head == "gap_bn":
        return _gap_bn_head(width, config, num_classes)
    parts = _linear_head(parts, config.dropout, num_classes)
    if config.head == "knn":
        parts[-1] = heads.Knn(parts[-1].in_features, num_classes)
    return parts


def _linear_head(parts: list[nn.Module], dropout: float | str, num_classes: int) -> list[nn.Module]:
    """torchvision's classifier with a new last layer, its Dropouts set to `dropout`; one is added if there is none."""
    parts = [*parts[:-1], nn.Linear(parts[-1].in_features, num_classes)]
    if dropout == "auto":
        return parts
    if not any(isinstance(part, nn.Dropout) for part in parts):
        parts.insert(-1, nn.Dropout())
    for part in parts:
        if isinstance(part, nn.Dropout):
            part.p = dropout
    return parts


def _gap_bn_head(width: int, config: Config, num_classes: int) -> list[nn.Module]:
    """BatchNorm, dropout and a linear layer over pooled features; with `head_width` a hidden layer before them."""
    parts: list[nn.Module] = [nn.BatchNorm1d(width)]
    if hidden := config.head_width:
        parts += [nn.Linear(width, hidden), nn.ReLU(), nn.BatchNorm1d(hidden)]
    dropout = GAP_DROPOUT if config.dropout == "auto" else config.dropout
    return [*parts, nn.Dropout(dropout), nn.Linear(hidden or width, num_classes)]


def head_name(net: nn.Module) -> str:
    """The attribute that holds the network's last part."""
    return next(name for name in HEADS if hasattr(net, name))
