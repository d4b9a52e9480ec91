"""Every network that timm knows, divided and run without memory or arithmetic: which work, and why others do not.

Half an hour for all; `python tests/benchmarks/timm_networks.py 20` takes every twentieth. For a new version of timm.
"""

import sys

import timm
import torch

from fruitlib.core import config
from fruitlib.training import blocks, models, zoo


def problem(name: str) -> str:
    """What is wrong with a network of timm; empty where it works."""
    model_name = f"timm:{name}"
    try:
        with torch.device("meta"):
            model = models.build(config.make({"model": model_name, "image_size": "auto"}), 3).eval()
            layers, outputs = blocks.target_layers(model), {}
            for layer, part in layers.items():
                part.register_forward_hook(lambda module, inputs, out, layer=layer: outputs.__setitem__(layer, out))
            logits = model(torch.empty(2, 3, *[zoo.facts(model_name).side] * 2))
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    parts = blocks.blocks_of(model)
    for kind in ("parameters", "buffers"):
        held = [id(tensor) for part in (*parts.values(), models.head_of(model)) for tensor in getattr(part, kind)()]
        if sorted(held) != sorted(id(tensor) for tensor in getattr(model.net, kind)()):
            return f"{kind} in several blocks, or in none"
    if not 3 <= len(parts) <= 5 or logits.shape != (2, 3):
        return f"{len(parts)} blocks, logits {tuple(logits.shape)}"
    odd = [layer for layer in layers if not isinstance(outputs.get(layer), torch.Tensor)]
    return f"no tensor for Grad-CAM from {', '.join(odd)}" if odd else ""


def main(every: int) -> None:
    """Print a line for each network that does not work, and how many do."""
    names = timm.list_models()[::every]
    problems = {name: found for name in names if (found := problem(name))}
    for name, found in problems.items():
        print(f"{name}: {found}")
    print(f"{len(names) - len(problems)} of {len(names)} networks work")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
