"""Heat lies on what decides, in every family: noise with a red or a blue patch, networks tuned for a few steps.

The weights are random at first, with little weight beside the middle of each convolution, and in the transformer only
the last block mixes places: otherwise a network this fresh blurs the whole photo into each of its last places, and no
map could tell where the evidence lies.
"""

import numpy as np
import pytest
import torch
from torch import nn

from fruitlib.core import config
from fruitlib.explain import gradcam
from fruitlib.training import blocks, models

pytestmark = pytest.mark.slow
SIDE, PATCH = 64, 16
COLOURS = np.array([[0.9, 0.1, 0.1], [0.1, 0.1, 0.9]], np.float32)[:, :, None, None]
EVEN = (PATCH / SIDE) ** 2  # the share of heat that a patch has where heat is spread evenly
LARGE = 5_000_000  # weights in a matrix that stay as they were drawn, to save time


def scenes(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Noise (n, 3, S, S) with a patch in one of 16 places, its class by colour, and its row and column."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(0.35, 0.65, (n, 3, SIDE, SIDE)).astype(np.float32)
    labels, places = rng.integers(0, 2, n), rng.integers(0, SIDE // PATCH, (n, 2))
    for image, label, (row, column) in zip(images, labels, places * PATCH, strict=True):
        image[:, row : row + PATCH, column : column + PATCH] = COLOURS[label]
    return torch.from_numpy(images), torch.from_numpy(labels), places


def fresh(name: str) -> nn.Module:
    """A network of this family that mixes little of what lies in different places."""
    torch.manual_seed(0)
    settings = {"data": "none", "model": name, "image_size": SIDE, "val_per_class": 2, "test_per_class": 2}
    model = models.build(config.make(settings), 2)
    attention = [module for module in model.modules() if hasattr(module, "qkv")]
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size[0] > 1 and module.stride[0] == 1:
                side = module.kernel_size[0]
                middle = module.weight[:, :, side // 2, side // 2].clone()
                module.weight *= 0.1
                module.weight[:, :, side // 2, side // 2] = side * middle
        for module in attention[:-1]:
            module.proj.weight.zero_()
            module.requires_grad_(False)
        for module in attention[-1:]:
            nn.init.trunc_normal_(module.proj.weight, std=0.05)
    return model


def tune(model: nn.Module, steps: int, lr: float) -> nn.Module:
    """A few steps, then BatchNorm's statistics of the weights they lead to."""
    for large in (p for p in model.parameters() if p.numel() > LARGE):
        large.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr)
    model.train()
    for step in range(steps):
        images, labels, _ = scenes(8, step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        for seed in range(500, 503):
            model(scenes(16, seed)[0])
    return model.eval()


def shares(heat: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The share of each map's heat (n, S, S) on the patch at its place; of an empty map 0."""
    on = []
    for one, (row, column) in zip(heat, places * PATCH, strict=True):
        on.append(one[row : row + PATCH, column : column + PATCH].sum() / max(one.sum(), 1e-9))
    return np.array(on)


@pytest.mark.parametrize(
    ("name", "steps", "lr"),
    [
        ("resnet18", 8, 1e-3),
        ("vgg11_bn", 7, 3e-4),
        ("densenet121", 6, 1e-3),
        ("mobilenet_v3_small", 15, 3e-3),
        ("convnext_tiny", 8, 5e-4),
        ("timm:vit_tiny_patch16_224", 8, 1e-3),
    ],
)
def test_heat_lies_on_the_patch_and_not_elsewhere(name, steps, lr):
    model = tune(fresh(name), steps, lr)
    images, labels, places = scenes(18, 1000)
    maps = gradcam.heatmaps(model, images, blocks.target_layers(model), targets=labels)
    elsewhere = (places + [1, 2]) % (SIDE // PATCH)
    medians = {}
    for place, layer in enumerate(maps.layer_names):
        medians[layer] = [float(np.median(shares(maps.heatmap[:, place], where))) for where in (places, elsewhere)]
    on, beside = max(medians.values())
    assert on > 3 * EVEN and beside < EVEN, (EVEN, medians)
