"""timm's networks by name, through what timm makes public: created, described, and divided into features and a head.

timm is imported where it is used: most runs name none of its networks.
"""

import torch
from torch import nn

from fruitlib.core import model_names
from fruitlib.core.errors import InputError, first_line
from fruitlib.training.weights import Facts


class TimmNet(nn.Module):
    """A network of timm without its head, and `head`, which turns its features (N, `width`) into logits."""

    def __init__(self, body: nn.Module):
        super().__init__()
        body.reset_classifier(0)
        self.body, self.width, self.head = body, body.head_hidden_size, nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) normalised -> logits (N, num_classes)."""
        return self.head(self.body.forward_head(self.body.forward_features(images), pre_logits=True))


def facts(name: str) -> Facts:
    """What timm says about the published weights of a network."""
    settings = model_names.timm_settings(name) or {}
    side = settings.get("input_size", (3, 224, 224))[-1]
    mean, std = (tuple(settings[key]) if key in settings else getattr(Facts, key) for key in ("mean", "std"))
    url = settings.get("url") or settings.get("hf_hub_id") or ""
    return Facts(mean, std, side, settings.get("crop_pct", 1.0), settings.get("license") or "", url)


def create(name: str, published: bool) -> nn.Module:
    """timm's network with its own head, and its published weights or fresh ones.

    Raises:
        InputError: they cannot be downloaded or read.
    """
    import timm

    try:
        return timm.create_model(name, pretrained=published)
    except (OSError, RuntimeError, ValueError) as problem:
        if not published:
            raise
        remedy = "set weights: none, package, or the path of a file you have"
        raise InputError(f"weights DEFAULT of timm:{name}: {first_line(problem)[:160]}; {remedy}") from None
