"""Files of weights as people have them: read once, without running code in them, and put under a network's own names.

Known are safetensors, torch's zip files and those from before them, with weights alone or beside a training's other
entries. What cannot be read is refused in a line that says what to do.
"""

import argparse
import hashlib
import io
import json
import pathlib
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fruitlib.core.errors import InputError, first_line

State = dict[str, torch.Tensor]
# Where trainings keep weights in their files; averaged ones first, which is what they evaluate (as timm does)
WEIGHTS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "teacher", "state_dict", "model_state_dict")
WEIGHTS += ("model_state", "model", "net", "network", "weights", "params_ema", "params", "module", "target_encoder")
WEIGHTS += ("encoder", "backbone", "student")
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod)\.")  # DataParallel's and torch.compile's
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=\d)")  # dots that its names have lost
SAVE = "load it where it was made and save model.state_dict()"
# What trainings keep beside weights; plain values, which run no code when they are read
HARMLESS = [argparse.Namespace, pathlib.PosixPath, np.ndarray, np.dtype]
HARMLESS += [np._core.multiarray.scalar, np._core.multiarray._reconstruct]
HARMLESS += [(np._core.multiarray.scalar, "numpy.core.multiarray.scalar")]
HARMLESS += [(np._core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct")]
HARMLESS += [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")]


class WeightFile(NamedTuple):
    """What a file holds, and the sha256 of its bytes."""

    path: Path
    content: dict
    sha256: str

    @property
    def is_ours(self) -> bool:
        """Whether it is a best.pt, which says what network it holds."""
        return "network" in self.content


def read(path: Path) -> WeightFile:
    """A file of weights, read once.

    Raises:
        InputError: it is of another kind, is damaged, or holds more than weights and plain values.
        OSError: it cannot be read at the moment.
    """
    data = path.read_bytes()
    if reason := _of_another_kind(path.name.lower(), data):
        raise InputError(f"weights {path}: {reason}")
    content = _safetensors(path, data) if _is_safetensors(data) else _torch(path, data)
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise InputError(f"weights {path}: not a checkpoint but a {kind}; name a best.pt or a state_dict")
    return WeightFile(path, content, hashlib.sha256(data).hexdigest())


def _of_another_kind(name: str, data: bytes) -> str:
    """What a file is that cannot hold weights for torch, and what to do; empty where it may hold them."""
    start = data[:200].lstrip()
    to_torch = "export its weights to PyTorch (a state_dict or safetensors), or name another file"
    starts = {
        b"version https://git-lfs": "a git-lfs pointer, not the file itself: run `git lfs pull` where it came from",
        b"<": "a web page, not weights: download the file itself",
        b"\x89HDF\r\n\x1a\n": f"a Keras (HDF5) file: {to_torch}",
        b"\x93NUMPY": f"a NumPy array: {to_torch}",
        b"\x1f\x8b": "a gzip archive: unpack it and name the file in it",
        b"BZh": "a bzip2 archive: unpack it and name the file in it",
        b"GGUF": f"a GGUF file: {to_torch}",
    }
    if not data:
        return "the file is empty: download or copy it again"
    for mark, reason in starts.items():
        if start.startswith(mark):
            return reason
    endings = {
        (".h5", ".hdf5", ".keras"): f"a Keras file: {to_torch}",
        (".onnx",): "an ONNX file, which holds a graph: name the weights it was exported from (.pt, .safetensors)",
        (".npz", ".npy"): f"NumPy or JAX arrays: {to_torch}",
        (".msgpack",): f"a Flax file: {to_torch}",
        (".pb", ".tflite", ".index", ".meta"): f"a TensorFlow file: {to_torch}",
    }
    names = [name, *_names_in_zip(data)]
    if re.search(r"\.data-\d+-of-\d+$", name):
        names.append("checkpoint.index")
    return next((reason for ends, reason in endings.items() if any(one.endswith(ends) for one in names)), "")


def _names_in_zip(data: bytes) -> list[str]:
    if not data.startswith(b"PK"):
        return []
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return []


def _is_safetensors(data: bytes) -> bool:
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") < 100_000_000


def _safetensors(path: Path, data: bytes) -> State:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError:
        remedy = "pip install 'fruitlib[weights]'"
        raise InputError(f"weights {path}: safetensors, which reads it, is not installed: {remedy}") from None
    try:
        return load(data)
    except (SafetensorError, json.JSONDecodeError, ValueError, KeyError) as problem:
        reason = f"a safetensors file that is cut short or damaged ({first_line(problem)[:120]})"
        raise InputError(f"weights {path}: {reason}; download or copy it again") from None


def _torch(path: Path, data: bytes):
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except MemoryError:  # not the file's fault
        raise
    except Exception as problem:
        raise InputError(f"weights {path}: {_why_not_read(str(problem), data)}") from None


def _why_not_read(message: str, data: bytes) -> str:
    """Why torch refuses a file, and what to do, from torch's `message`."""
    if "TorchScript" in message:
        return "a TorchScript archive: torch.jit.load it and save its state_dict()"
    found = re.search(r"(?:GLOBAL|class|global) `?([\w.]+\.[\w.]+)", message)
    if found is None:
        kind = "cut short, or not torch's" if data[:2] == b"PK" else "not torch's, or cut short"
        reason = f"not a readable checkpoint ({kind}: {first_line(message)[:100]})"
        return f"{reason}; download it again, or name another file"
    if b"pytorch-lightning_version" in data:
        remedy = "save its weights alone where it was made: torch.save(checkpoint['state_dict'], file)"
        return f"a Lightning checkpoint whose hyper-parameters hold {found[1]}: {remedy}"
    if b"state_dict" in data and not re.search(rb"_parameters|_modules", data):
        return f"holds a {found[1]} beside its weights: load it where it was made and save its state_dict alone"
    return f"a pickled module or other objects ({found[1]}), not weights: {SAVE}"


def tensors(content: dict, where: str) -> tuple[State, str]:
    """The weights in what a file holds, wherever a training keeps them, and the entry that holds them ("" for all).

    Raises:
        InputError: it holds none.
    """
    place: list[str] = []
    while not _is_state(content):
        name = next((key for key in WEIGHTS if isinstance(content.get(key), dict) and content[key]), None)
        if name is None:
            raise InputError(f"{where}: {_no_weights(content)}")
        content = content[name]
        place.append(name)
    return {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}, ".".join(place)


def _is_state(content: dict) -> bool:
    """Whether at least half of the entries are tensors, as in a state_dict with a few numbers beside."""
    return 2 * sum(isinstance(value, torch.Tensor) for value in content.values()) >= len(content) > 0


def _no_weights(content: dict) -> str:
    if {"param_groups", "optimizer", "optimizer_state_dict", "optimizer_states"} & content.keys():
        return "an optimizer's state without weights; name the file that holds the model's state_dict"
    held = ", ".join(str(key) for key in list(content)[:5]) or "nothing"
    return f"neither a best.pt of fruitlib nor a state_dict (it holds {held}); name one of them"


def under_own_names(own: State, state: State) -> tuple[State, list[str]]:
    """`state` under the names of `own`, a network's, and the entries beside it, which belong to something else.

    Whatever stands before the names (`module.`, `model.backbone.`) goes; of several networks in one file the one that
    fits best is taken, a `teacher` or averaged one before others.
    """
    state = _unwrapped(state)
    prefixes = sorted(_prefixes(own, state), key=lambda prefix: (not re.search("ema|teacher", prefix), len(prefix)))
    prefix = max(prefixes, key=lambda prefix: fitting(own, state, prefix), default="")
    taken = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    parts = {name.partition(".")[0] for name in own}
    beside = [name for name in state if not name.startswith(prefix)]
    if not prefix and fitting(own, state) > len(own) / 2:  # a loss or a metric: none of the network's parts
        beside = [name for name in state if name.partition(".")[0] not in parts]
    return {name: tensor for name, tensor in taken.items() if name not in beside}, beside


def _unwrapped(state: State) -> State:
    """The names as they are today, and without what DataParallel and torch.compile put into them."""
    renamed = {OLD_DENSENET.sub(r"\1", WRAPPERS.sub("", name)): tensor for name, tensor in state.items()}
    return renamed if len(renamed) == len(state) else state


def _prefixes(own: State, state: State) -> set[str]:
    """What may stand before a network's names in a file, from a few of these names."""
    names = list(own)
    found = {""}
    for name in {names[0], names[len(names) // 2], names[-3 if len(names) > 3 else 0]}:
        found |= {key.removesuffix(name) for key in state if key.endswith(f".{name}")}
    return found


def fitting(own: State, state: State, prefix: str = "") -> int:
    """How many of a network's entries are in `state` with their shape."""
    return sum(_has_shape(state.get(prefix + name), tensor.shape) for name, tensor in own.items())


def _has_shape(tensor: torch.Tensor | None, shape: Iterable[int]) -> bool:
    return tensor is not None and tensor.shape == shape
