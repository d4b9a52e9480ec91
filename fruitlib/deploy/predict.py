"""An exported file used: its session, what it says of itself, its logits. NumPy and onnxruntime alone.

`pip install fruitlib` installs what this module needs, and neither torch nor pandas.
"""

from pathlib import Path

import numpy as np
import onnxruntime

from fruitlib.core.errors import InputError
from fruitlib.core.files import display_path


def in_batches(images: np.ndarray, batch_size: int) -> list[np.ndarray]:
    return [images[i : i + batch_size] for i in range(0, len(images), batch_size)]


def open_session(path: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU for the file `path`; `threads` 0 leaves their number to ONNX Runtime."""
    if not Path(path).is_file():
        raise InputError(f"{display_path(path)}: no such file; export the model first")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise InputError(f"{display_path(path)}: not a readable ONNX file; export the model again") from error


def read_metadata(path: Path) -> dict[str, str]:
    """What the file says of itself: "class_names" (a JSON list), "image_size", and what `extra` gave."""
    return open_session(path).get_modelmeta().custom_metadata_map


def run_onnx(path: Path, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Logits (n, C) float32 of `images` (n, 3, S, S) float32 in [0, 1], by ONNX Runtime on the CPU."""
    opened = open_session(path)
    images = check_images(path, opened, images, "images")
    return np.concatenate([opened.run(["logits"], {"images": b})[0] for b in in_batches(images, batch_size)])


def check_images(path: Path, opened, images: np.ndarray, name: str) -> np.ndarray:
    """`images` as the file takes them, or an InputError that says how they differ."""
    images, wanted = np.asarray(images), tuple(opened.get_inputs()[0].shape[1:])
    if images.ndim != 4 or images.shape[1:] != wanted or len(images) == 0:
        raise InputError(f"{name}: shape {images.shape}; {display_path(path)} takes (n > 0, *{wanted})")
    if images.dtype != np.float32 or not (images.min() >= 0 and images.max() <= 1):
        raise InputError(f"{name}: not float32 in [0, 1] but {images.dtype}; convert and scale them")
    return images
