"""An exported file in use: its class names, its logits. Needs NumPy and onnxruntime only.

`pip install fruitlib` installs what this module needs, and neither torch nor pandas:

    from fruitlib.deploy import predict

    names = predict.class_names("model.int8.onnx")
    logits = predict.run_onnx("model.int8.onnx", images)  # images: float32 (n, 3, S, S) in [0, 1]
    print([names[i] for i in logits.argmax(1)])
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime

from fruitlib.core.errors import InputError
from fruitlib.core.files import display_path


def open_session(path: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU for the file `path`; `threads` 0 leaves their number to ONNX Runtime.

    Raises:
        InputError: no such file, or not an ONNX file.
    """
    if not Path(path).is_file():
        raise InputError(f"{display_path(path)}: no such file; export the model first")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own classes, many and undocumented
        raise InputError(f"{display_path(path)}: not a readable ONNX file; export the model again") from error


def read_metadata(path: Path) -> dict[str, str]:
    """The file's metadata: "class_names" (a JSON list), "image_size", and the `extra` of `export.export_onnx`.

    In files of 05 also "preprocess" (JSON: how a photo becomes an image; in photos of more than 8 bits a channel,
    2**deep_bits - 1 is white), "answer_above" (the confidence above which the model may answer alone, or "none"),
    "max_error" (the share wrong that this allows) and "conformal" (JSON: class -> probability that puts it into a
    photo's set).
    """
    return open_session(path).get_modelmeta().custom_metadata_map


def class_names(path: Path) -> list[str]:
    """The classes in the order of the logits.

    Raises:
        InputError: not a file that `export.export_onnx` wrote.
    """
    metadata = read_metadata(path)
    if "class_names" not in metadata:
        raise InputError(f"{display_path(path)}: has no class names; use a file that fruitlib exported")
    return json.loads(metadata["class_names"])


def run_onnx(path: Path, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Logits (n, C) float32 of `images` (n, 3, S, S) float32 in [0, 1], by ONNX Runtime on the CPU.

    Raises:
        InputError: images of another shape, type or range than the file takes.
    """
    session = open_session(path)
    images = check_images(path, session, images, "images")
    parts = [session.run(["logits"], {"images": batch})[0] for batch in in_batches(images, batch_size)]
    return np.concatenate(parts)


def check_images(path: Path, session: onnxruntime.InferenceSession, images: np.ndarray, name: str) -> np.ndarray:
    """`images` as an array that the file takes; `name` is what the error calls them.

    Raises:
        InputError: images of another shape, type or range than the file takes.
    """
    images, shape = np.asarray(images), tuple(session.get_inputs()[0].shape[1:])
    if images.ndim != 4 or images.shape[1:] != shape or len(images) == 0:
        raise InputError(f"{name}: shape {images.shape}; {display_path(path)} takes (n > 0, *{shape})")
    if images.dtype != np.float32:
        raise InputError(f"{name}: {images.dtype}; convert them to float32 in [0, 1]")
    if not (images.min() >= 0 and images.max() <= 1):  # NaN is refused, too
        raise InputError(f"{name}: values from {images.min():g} to {images.max():g}; scale them to [0, 1]")
    return images


def in_batches(images: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Views of `images`, each of at most `batch_size` of them."""
    return [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
