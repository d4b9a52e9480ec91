"""torchvision's networks by name, with their published weights and a head for the classes at hand."""

import math
import pickle
import re
from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision.models import VGG, ConvNeXt

from fruitlib.core import files
from fruitlib.core.config import Config
from fruitlib.core.errors import InputError, first_line
from fruitlib.training.weights import take_weights

Triple = tuple[float, float, float]  # a number for red, green and blue
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
HEADS = ("head", "fc", "classifier")  # what torchvision and End2End call the last part
GAP_DROPOUT = 0.5  # of the gap_bn head with `dropout: auto`


def build_torchvision(
    config: Config, num_classes: int, path: Path, state: dict[str, torch.Tensor]
) -> tuple[nn.Module, Triple, Triple, str]:
    """torchvision's network with a new last layer or head; the rest fresh, DEFAULT, or as in `state`.

    Returns:
        the network, the mean and standard deviation to normalise its input with, where its weights come from.
    """
    name, published = config.model, torchvision.models.get_model_weights(config.model).DEFAULT
    pretrained = config.weights == "DEFAULT"
    net = load_published(name, published) if pretrained else torchvision.models.get_model(name, weights=None)
    new = "last layer" if config.head == "linear" else "head"
    origin = f"torchvision's {published}, fresh {new}" if pretrained else "fresh weights"
    if state:
        # DenseNet's published files still have the dots that its modules' names have lost
        state = {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=\d)", r"\1", key): state[key] for key in state}
        take_weights(net, state, f"weights {path}", f"{head_name(net)}.")
        origin = f"weights from {files.display_path(path)}, fresh {new}"
    _replace_head(net, config, num_classes)
    if not pretrained and not state:
        return net, MEAN, STD, origin
    # Weights need the mean and spread they were trained with, which are not ImageNet's for every model.
    transforms = published.transforms()
    return net, transforms.mean, transforms.std, origin


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


def _replace_head(net: nn.Module, config: Config, num_classes: int) -> None:
    """Replace torchvision's head with the one that the settings describe; its input becomes features (N, D)."""
    name = head_name(net)
    parts = list(old) if isinstance(old := getattr(net, name), nn.Sequential) else [old]
    width = next(part.in_features for part in parts if isinstance(part, nn.Linear))
    if isinstance(net, ConvNeXt):  # the only one whose features are (N, D, 1, 1)
        net.avgpool = nn.Sequential(net.avgpool, nn.Flatten())
        parts.insert(0, nn.Unflatten(1, (width, 1, 1)))
    if config.head == "linear":
        new = _linear_head(parts, config.dropout, num_classes)
    else:
        if isinstance(net, VGG):  # the only one that pools to several cells
            width //= math.prod(net.avgpool.output_size)
            net.avgpool = nn.AdaptiveAvgPool2d(1)
        new = _gap_bn_head(width, config, num_classes)
    setattr(net, name, new[0] if len(new) == 1 else nn.Sequential(*new))


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
