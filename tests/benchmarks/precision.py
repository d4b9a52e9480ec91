"""How many times as fast a training step is in bf16 as in fp32, by network: the source of `precision.BF16_GAIN`.

A step is forward, backward and Adam on a batch held in memory, 16 images of 96 pixels, channels last. Both precisions
take turns; the least time counts. Prints a row per network, and JSON as its last line.

    python tests/benchmarks/precision.py [NETWORK …]
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import fruitlib  # noqa: F401  (sets how torch's threads wait, before torch loads)

# isort: split
import torch

from fruitlib.core import config, machine
from fruitlib.training import models, optim

NETWORKS = ["end2end", "resnet18", "resnet50", "vgg11_bn", "squeezenet1_1", "densenet121"]
NETWORKS += ["convnext_tiny", "resnext50_32x4d", "regnet_y_400mf", "shufflenet_v2_x1_0", "mobilenet_v3_small"]
NETWORKS += [
    "efficientnet_b0",
    "timm:tf_efficientnet_lite0",
    "timm:mobilenetv4_conv_small",
    "timm:deit_tiny_patch16_224",
]
BATCH, SIDE, CLASSES = 16, 96, 3
SECONDS, FEWEST = 4.0, 4  # for each network


def stepper(
    model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, settings: config.Config, precision: str
):
    """A call that takes one step in `precision` and returns its seconds."""
    optimizer = optim.build(settings, model)

    def step() -> float:
        started = time.perf_counter()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = model(images)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if images.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return step


def compared(name: str) -> dict:
    """Milliseconds of a step in fp32 and bf16, and their ratio."""
    settings = config.make({"model": name, "image_size": SIDE, "weights": "none"})
    device = machine.device()
    model = models.build(settings, CLASSES).to(device, memory_format=torch.channels_last).train()
    images = torch.rand(BATCH, 3, SIDE, SIDE, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(BATCH, device=device) % CLASSES
    steps = {kind: stepper(model, images, labels, settings, kind) for kind in ("fp32", "bf16")}
    times, until = {kind: [] for kind in steps}, time.perf_counter() + SECONDS
    for step in steps.values():
        step()
    while time.perf_counter() < until or len(times["fp32"]) < FEWEST:
        for kind, step in steps.items():
            times[kind].append(step())
    least = {kind: 1000 * min(found) for kind, found in times.items()}
    return {"fp32_ms": least["fp32"], "bf16_ms": least["bf16"], "ratio": least["fp32"] / least["bf16"]}


def main(names: list[str]) -> None:
    found = {}
    print(f"{machine.hardware()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in names:
        torch.manual_seed(0)
        found[name] = compared(name)
        ms = "   ".join(f"{kind} {found[name][f'{kind}_ms']:8.1f} ms" for kind in ("fp32", "bf16"))
        print(f"{name:32} {ms}   {found[name]['ratio']:.2f}", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:] or NETWORKS)
