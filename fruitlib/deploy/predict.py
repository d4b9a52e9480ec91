"""An exported file in use: its class names, its answers. Needs NumPy and onnxruntime only.

`pip install fruitlib` installs what this module needs, and neither torch nor pandas:

    import numpy as np
    from PIL import Image
    from fruitlib.deploy import predict

    names = predict.class_names("model.int8.onnx")
    photo = np.asarray(Image.open("photo.jpg").convert("RGB"))  # uint8 (height, width, 3), of any size
    logits = predict.run_onnx("model.int8.onnx", photo[None])
    print([names[i] for i in logits.argmax(1)])
"""

import contextlib
import json
from pathlib import Path

import numpy as np
import onnxruntime

from fruitlib.core.errors import InputError
from fruitlib.core.files import display_path


def open_session(path: Path, threads: int = 0, spin: bool = False) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU for the file `path`; `threads` 0 leaves their number to ONNX Runtime.

    With `spin`, ONNX Runtime's own default, its threads keep their cores busy while they wait, which is quicker
    where nothing else needs these.

    Raises:
        InputError: no such file, or not an ONNX file.
    """
    if not Path(path).is_file():
        raise InputError(f"{display_path(path)}: no such file; export the model first")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own classes, many and undocumented
        raise InputError(f"{display_path(path)}: not a readable ONNX file; export the model again") from error


def read_metadata(path: Path) -> dict[str, str]:
    """The file's metadata, text by name.

    `class_names` (a JSON list), `image_size`; `input`, `output` and `heat` in words; `preprocess` (JSON: how a photo
    becomes the network's image; in photos of more than 8 bits a channel, 2**deep_bits - 1 is white); `temperature`;
    `answer_above` (the probability above which the model may answer alone, or "none"), `max_error` (the share wrong
    that this allows), `conformal` (JSON: class -> probability that puts it into a photo's set), `class_shares` (JSON:
    those of the photos that all this was found on); `cut_to` (what photos have to be cut to first: object, box or
    none); `settings` (JSON), `data`, `licence`, `versions`, `quantization`.
    """
    return open_session(path).get_modelmeta().custom_metadata_map


def class_names(path: Path) -> list[str]:
    """The classes in the order of the logits.

    Raises:
        InputError: not a file that `export.export_onnx` wrote.
    """
    return names_in(read_metadata(path), path)


def names_in(metadata: dict[str, str], path: Path) -> list[str]:
    """`class_names` of a file whose metadata are read already."""
    if "class_names" not in metadata:
        raise InputError(f"{display_path(path)}: has no class names; use a file that fruitlib exported")
    with contextlib.suppress(ValueError):
        names = json.loads(metadata["class_names"])
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return names
    raise InputError(f"{display_path(path)}: its class names are damaged; export the model again")


def run_onnx(path: Path, photos: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Logits (n, C) float32 of `photos` uint8 (n, height, width, 3), RGB, by ONNX Runtime on the CPU.

    Raises:
        InputError: no such file, not one that takes photos, photos of another shape or type.
    """
    session = open_session(path)
    parts = in_batches(check_photos(path, photos), batch_size)
    return np.concatenate([outputs(session, part, ("logits",))[0] for part in parts])


def outputs(session: onnxruntime.InferenceSession, photos: np.ndarray, names: tuple[str, ...]) -> list[np.ndarray]:
    """The outputs `names` of one batch.

    ONNX Runtime computes the others, too: its option `only_execute_path_to_fetches` counts in training builds only
    (its issue 16013). Heat takes about 1 % of resnet18's time, and 12 % of that of our own small networks.
    """
    return session.run(list(names), {session.get_inputs()[0].name: photos})


def check_photos(path: Path, photos: np.ndarray) -> np.ndarray:
    """`photos` as an array that files take.

    Raises:
        InputError: photos of another shape or type.
    """
    photos = np.asarray(photos)
    if photos.dtype != np.uint8 or photos.ndim != 4 or photos.shape[-1] != 3 or 0 in photos.shape:
        given = f"{photos.dtype} {photos.shape}"
        raise InputError(f"photos: {given}; {display_path(path)} takes RGB photos as uint8 (n, height, width, 3)")
    return photos


def in_batches(images: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Views of `images`, each of at most `batch_size` of them."""
    return [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
