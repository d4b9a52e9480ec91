"""INT8 over many networks: which quantize, by which recipe, how much of fp32 is left, and how quick it is.

Two or three minutes for all; `python tests/benchmarks/int8_zoo.py resnet18 vgg16_bn` takes those named. Weights are
random but for EfficientNet-Lite0's from its package, and the head is fitted to drawn images: labels and noise show what
rounding does to a network, not what it costs in accuracy. Prints a line for each network, and JSON last.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from fruitlib.core import config
from fruitlib.core.errors import InputError
from fruitlib.deploy import export, int8_search
from fruitlib.training import models

NETWORKS = {  # side of the image
    "end2end": 64,
    "resnet18": 224,
    "efficientnet_b0": 128,
    "timm:tf_efficientnet_lite0": 224,
    "resnext50_32x4d": 96,
    "densenet121": 96,
    "vgg16_bn": 64,
    "mobilenet_v3_small": 128,
    "efficientnet_b4": 96,
    "convnext_tiny": 96,
    "timm:deit_tiny_patch16_224": 224,
}
CLASSES = 3
CALIBRATING, TRIED = 16, 32  # images


def pictures(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth coloured patches, float32 (n, 3, side, side) in [0, 1], and their classes: a channel that is brighter."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, CALIBRATING + TRIED)
    images = np.zeros((len(labels), 3, side, side), np.float32)
    for step, mode in ((4, "bilinear"), (8, "nearest"), (16, "bilinear")):
        coarse = torch.from_numpy(rng.random((len(images), 3, step, step), np.float32))
        images += torch.nn.functional.interpolate(coarse, (side, side), mode=mode).numpy() * 0.25
    images[np.arange(len(labels)), labels, : side // 2] += 0.2
    return images, labels


@torch.inference_mode()
def network(name: str, side: int, images: np.ndarray, labels: np.ndarray) -> torch.nn.Module:
    """The network with a head fitted to the images by ridge regression on its features, so that labels mean something.

    Where its weights are random, BatchNorm's statistics are those of the images.
    """
    torch.manual_seed(0)
    pretrained = {"weights": "package"} if name.endswith("lite0") else {}
    model, given = models.build(config.make({"model": name, "image_size": side, **pretrained}), CLASSES), []
    if not pretrained:
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the mean of all batches
        model.train()(torch.from_numpy(images))
    head = [module for module in model.eval().modules() if isinstance(module, torch.nn.Linear)][-1]
    hook = head.register_forward_hook(lambda module, inputs, output: given.append(inputs[0]))
    model(torch.from_numpy(images))
    hook.remove()
    features = given[0].double()
    mean, wanted = features.mean(0), torch.nn.functional.one_hot(torch.from_numpy(labels)).double()
    gram = (features - mean) @ (features - mean).T
    ridge = gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    weight = (features - mean).T @ torch.linalg.solve(ridge, 10 * (wanted - wanted.mean(0)))
    head.weight.copy_(weight.T)
    head.bias.copy_(-mean @ weight)
    return model


def measured(name: str, side: int) -> dict:
    """What INT8 comes to for a network, or why there is none."""
    start, (images, labels) = time.perf_counter(), pictures(side)
    try:
        model = network(name, side, images, labels)
        with tempfile.TemporaryDirectory() as folder:
            fp32, int8 = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
            export.export_onnx(model, fp32, side, [str(label) for label in range(CLASSES)])
            found = int8_search.search(fp32, int8, images[:CALIBRATING], images[CALIBRATING:])
            fp32_mb = export.size_mb(fp32)
    except InputError as problem:
        return {"network": name, "why": str(problem)}
    best = found.chosen or (found.tried[0] if found.tried else None)
    row = {"network": name, "side": side, "why": found.why}
    if best:
        row |= {"recipe": best.recipe.name, "agreement": best.agreement, "sqnr_db": round(best.sqnr, 1)}
        row |= {"ms_fp32": round(best.ms_fp32, 2), "ms_int8": round(best.ms, 2)}
        row |= {"speedup": round(best.ms_fp32 / best.ms, 2), "size": round(best.mb / fp32_mb, 3)}
    return row | {"tried": len(found.tried), "seconds": round(time.perf_counter() - start, 1)}


def main(names: list[str]) -> None:
    """Print what was measured of each network, and all of it as JSON."""
    rows = []
    for name in names:
        rows.append(measured(name, NETWORKS[name]))
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items() if value != ""), flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main(sys.argv[1:] or list(NETWORKS))
