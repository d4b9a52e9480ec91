"""A model as an ONNX graph, and graphs kept for all runs of the same network.

The exporter takes many seconds for what is the same in all runs of a network: its structure. A kept graph is one
without weights; those of the model at hand are filled in, and the result must compute what the model does.
"""

import hashlib
import json
import logging
import time
import warnings
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxscript import optimizer

from fruitlib.core import files, source_code

OPSET = 20
KEEP_DAYS = 30  # a graph not used for so long is removed when another is kept
FILLED, REST = "filled", "rest"  # metadata of a kept graph: the weights it lacks, and the digest of all others
LIBRARIES = ("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime")


class _Whole(torch.nn.Module):
    """The model as a part, so that its buffers have names that no operator's output has."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images)


def graph_of(model: torch.nn.Module, images: torch.Tensor, recipe: dict | None) -> onnx.ModelProto:
    """`model` (on the CPU, in evaluation mode) as an ONNX graph: "images" like `images`, but of any number -> "logits".

    Args:
        recipe: the settings that the network is built from. With them the graph comes from the cache, or is kept there.
    """
    # Channels last, a layout of memory, would be exported as gathering every value one by one.
    model = _Whole(model).eval().to(memory_format=torch.contiguous_format)
    if recipe is None:
        return finished(exported(model, images))
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    file = files.cache_dir() / "graphs" / f"{_identity(model, state, images, recipe)}.onnx"
    try:
        with files.lock(file.with_suffix(".lock")):
            kept = _kept(file, state, model, images)
            return kept or finished(_keep(file, state, exported(model, images)))
    except OSError:  # the disk is full, or read-only
        return finished(exported(model, images))


def exported(model: torch.nn.Module, images: torch.Tensor) -> onnx.ModelProto:
    """The graph by torch's exporter, each of the model's weights in it under its own name."""
    names = {"input_names": ["images"], "output_names": ["logits"]}
    batch = ({0: torch.export.Dim("batch")},)
    how = {"dynamo": True, "external_data": False, "opset_version": OPSET, "verbose": False, "optimize": False}
    shapes = logging.getLogger("torch.fx.experimental.symbolic_shapes")  # prints whole graphs of a knn head
    level = shapes.level
    shapes.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's, about what its own exporter does (2.11)
            return torch.onnx.export(model, (images,), dynamic_shapes=batch, **names, **how).model_proto
    finally:
        shapes.setLevel(level)


def finished(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with constants folded, without the exporter's notes: they quote source lines and folders."""
    proto = optimizer.optimize(proto)
    graph = proto.graph
    for part in [*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer, graph]:
        part.ClearField("metadata_props")
    return proto


def _identity(model: torch.nn.Module, state: dict[str, np.ndarray], images: torch.Tensor, recipe: dict) -> str:
    shapes = {name: (array.shape, str(array.dtype)) for name, array in state.items()}
    code = source_code.closure_fingerprint(["fruitlib.training.models", "fruitlib.deploy.graphs"])
    return files.fingerprint(recipe, repr(model), shapes, tuple(images.shape), OPSET, code, [*map(_version, LIBRARIES)])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _kept(file: Path, state: dict, model: torch.nn.Module, images: torch.Tensor) -> onnx.ModelProto | None:
    """The graph in the file with the weights filled in; None where there is none, or it does not fit them."""
    with suppress(Exception):  # damaged files fail in many ways
        proto = onnx.load(file)
        meta = {entry.key: entry.value for entry in proto.metadata_props}
        names = set(json.loads(meta[FILLED]))
        if meta[REST] != _digest({name: array for name, array in state.items() if name not in names}):
            return None
        for tensor in proto.graph.initializer:
            if tensor.name in names:
                tensor.CopyFrom(onnx.numpy_helper.from_array(state[tensor.name], tensor.name))
        del proto.metadata_props[:]
        proto = finished(proto)
        if _computes(proto, model, images):
            file.touch()
            return proto
    return None


def _keep(file: Path, state: dict, proto: onnx.ModelProto) -> onnx.ModelProto:
    """Write the graph without the weights that it holds under the model's own names; returns it with them."""
    kept = onnx.ModelProto()
    kept.CopyFrom(proto)
    names = [tensor.name for tensor in kept.graph.initializer if _is_weight(tensor, state)]
    for tensor in kept.graph.initializer:
        if tensor.name in names:
            tensor.ClearField("raw_data")
    rest = _digest({name: array for name, array in state.items() if name not in set(names)})
    onnx.helper.set_model_props(kept, {FILLED: json.dumps(names), REST: rest})
    _tidy(file.parent)
    with files.replacing(file) as partial:
        onnx.save(kept, partial)
    return proto


def _is_weight(tensor: onnx.TensorProto, state: dict[str, np.ndarray]) -> bool:
    if tensor.name not in state or not tensor.HasField("raw_data"):
        return False
    own, held = state[tensor.name], onnx.numpy_helper.to_array(tensor)
    return held.dtype == own.dtype and np.array_equal(held, own)


def _digest(arrays: dict[str, np.ndarray]) -> str:
    """Of what the exporter computed with: batches counted by BatchNorm, which nothing computes with, do not count."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _computes(proto: onnx.ModelProto, model: torch.nn.Module, images: torch.Tensor, tolerance: float = 1e-3) -> bool:
    """Whether the graph computes what the model does for two images of noise."""
    import onnxruntime

    noise = np.random.default_rng(0).random(tuple(images.shape), np.float32)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], {"images": noise})[0]
    reference = model(torch.from_numpy(noise)).numpy()
    return bool(np.abs(logits - reference).max() <= tolerance * max(1.0, np.abs(reference).max()))


def _tidy(folder: Path) -> None:
    """Remove graphs that were not used for `KEEP_DAYS`."""
    long_ago = time.time() - KEEP_DAYS * 24 * 3600
    for file in list(folder.glob("*.onnx")):
        with suppress(OSError):
            if file.stat().st_mtime < long_ago:
                file.unlink()
