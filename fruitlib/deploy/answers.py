"""Photo files -> a file's answers: decoded in threads beside ONNX Runtime, in batches, within bounded memory."""

import collections
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from fruitlib.core import machine
from fruitlib.core.errors import InputError
from fruitlib.core.files import display_path
from fruitlib.data import decoding, geometry, photo_square
from fruitlib.deploy import predict
from fruitlib.deploy.named_photos import Photo

ANSWER, UNSURE, SKIPPED = "answer", "unsure", "skipped"
MOST_PHOTOS, MOST_PIXELS = 32, 32 * 256**2  # of a batch
AGAIN = "export the model again, with this version of fruitlib"


@dataclass(frozen=True)
class Model:
    """An exported file in use.

    `answer_above` is the probability above which an answer stands alone: None where the file does not say, infinite
    where none is proven.
    """

    path: Path
    session: onnxruntime.InferenceSession
    names: list[str]
    preparation: geometry.Preparation
    answer_above: float | None
    has_heat: bool
    cut_to: str = "none"  # what its training photos were cut to: object, which is done here too, box or none


@dataclass(frozen=True)
class Answer:
    """What a file says of a photo.

    Attributes:
        state: ANSWER, UNSURE or SKIPPED; empty where the file does not say above which probability it may answer alone.
        reason: why it was skipped.
        probabilities: float32 (C,), calibrated; None if skipped.
        square: uint8 (S, S, 3), the photo as the network sees it; None if skipped.
        heat: float32 (h, w) of the predicted class, if asked for.
    """

    photo: Photo
    state: str
    reason: str = ""
    probabilities: np.ndarray | None = None
    square: np.ndarray | None = None
    heat: np.ndarray | None = None


def open_model(path: Path, threads: int = 0) -> Model:
    """The file with what it says of itself; `threads` 0: as many as there are cores.

    Raises:
        InputError: no such file, not an ONNX file, not one that this version of fruitlib exported, or one whose photos
            are prepared in a way that needs what is not installed.
    """
    where = display_path(path)
    session = predict.open_session(path, threads)
    outputs = {output.name: output.shape for output in session.get_outputs()}
    metadata = session.get_modelmeta().custom_metadata_map
    names = predict.names_in(metadata, path)
    inputs = [(part.type, len(part.shape)) for part in session.get_inputs()]
    if inputs != [("tensor(uint8)", 4)] or "probabilities" not in outputs or "preprocess" not in metadata:
        raise InputError(f"{where}: does not take photos as fruitlib's files do; {AGAIN}")
    if outputs["probabilities"][-1] != len(names):
        raise InputError(f"{where}: {len(names)} class names for {outputs['probabilities'][-1]} classes; {AGAIN}")
    try:
        preparation = geometry.Preparation.of(json.loads(metadata["preprocess"]))
        above = _threshold(metadata.get("answer_above", ""))
    except (AttributeError, TypeError, ValueError) as problem:
        raise InputError(f"{where}: its metadata are damaged ({problem}); {AGAIN}") from None
    if preparation.crop_to == "object":
        _check_opencv(where)
    cut = metadata.get("cut_to", "none")
    return Model(Path(path), session, names, preparation, above, "heat" in outputs, cut)


def _threshold(text: str) -> float | None:
    return None if not text else math.inf if text == "none" else float(text)


def _check_opencv(where: str) -> None:
    try:
        import fruitlib.data.objects  # noqa: F401
    except ImportError:
        needed = "its photos are cropped to the object (crop_to), which needs OpenCV"
        raise InputError(f"{where}: {needed}: pip install opencv-python-headless") from None


def answers(model: Model, photos: Iterable[Photo], heat: bool = False, threads: int = 0) -> Iterator[Answer]:
    """The file's answer to each photo, in their order; a photo that cannot be read is skipped, with the reason.

    While a batch is computed, the photos of the next two are decoded; no more of them are held.
    """
    side, waiting, batch = model.preparation.image_size, collections.deque(), []
    size = max(1, min(MOST_PHOTOS, MOST_PIXELS // side**2))
    pool, coming = ThreadPoolExecutor(threads or machine.usable_cores()), iter(photos)
    try:
        waiting.extend(pool.submit(_read, photo, model) for photo in itertools.islice(coming, 3 * size))
        while waiting:
            batch.append(waiting.popleft().result())
            waiting.extend(pool.submit(_read, photo, model) for photo in itertools.islice(coming, 1))
            if len(batch) == size or not waiting:
                yield from _answered(model, batch, heat)
                batch = []
    finally:
        pool.shutdown(cancel_futures=True)


def _read(photo: Photo, model: Model) -> tuple[Photo, np.ndarray | None, str]:
    """The photo with its square, or why there is none."""
    try:
        with decoding.contents(Path(photo.file)) as content:
            return photo, photo_square.read(content, model.preparation, decoding.MOST_MEGAPIXELS)[0], ""
    except InputError as problem:
        return photo, None, str(problem)


def _answered(model: Model, batch: list, heat: bool) -> list[Answer]:
    squares = [square for _, square, _ in batch if square is not None]
    wanted = ("probabilities", "heat") if heat else ("probabilities",)
    found = iter(())
    if squares:
        found = zip(*predict.outputs(model.session, np.stack(squares), wanted), strict=True)
    result = []
    for photo, square, reason in batch:
        if square is None:
            result.append(Answer(photo, SKIPPED, reason))
            continue
        probabilities, *maps = next(found)
        if not np.isfinite(probabilities).all():
            result.append(Answer(photo, SKIPPED, "the model's answer is not a number"))
            continue
        best = int(probabilities.argmax())
        shown = (maps[0][best] if len(maps[0]) > 1 else maps[0][0]) if maps else None
        result.append(Answer(photo, _state(model, probabilities[best]), "", probabilities, square, shown))
    return result


def _state(model: Model, highest: float) -> str:
    if model.answer_above is None:
        return ""
    return ANSWER if highest > model.answer_above else UNSURE
