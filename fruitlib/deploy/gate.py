"""What a delivered file makes of photos as they lie on disk, beside what training makes of them; and where it looks."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from fruitlib.core.config import FACTORS
from fruitlib.core.errors import InputError
from fruitlib.data import dataset, decoding, geometry, photo_checks, sources
from fruitlib.data.dataset import Photos
from fruitlib.deploy import heat, predict
from fruitlib.deploy.export import ExportError
from fruitlib.explain import gradcam
from fruitlib.runs.run import Run
from fruitlib.training import blocks
from fruitlib.training.models import Ensemble, Normalized

MOST_PHOTOS = 8  # straight from their files
HEAT_PHOTOS = 8  # compared with Grad-CAM, which takes a pass back through the network
STEPS = 2.0  # of 255 that a pixel may be off: both passes round, ties either way; a factor above 1 enlarges them


@dataclass(frozen=True)
class FileCheck:
    """How a file treats photos as they lie on disk."""

    n: int  # photos tried
    pixels_off: float  # the largest difference to training's pixels, in steps of 255; NaN where the reader crops
    logits_off: float  # the largest difference to the logits of training's pixels
    same_labels: int  # of the n photos

    @property
    def summary(self) -> str:
        """What was found, in a sentence."""
        if not self.n:
            return "photos are cropped, or prepared already, before the file sees them, so that no pixels are compared"
        pixels = f"pixels at most {self.pixels_off:.1f} of 255 off training's"
        labels = f"the same label on {self.same_labels} of {self.n}"
        return f"{self.n} photos straight from their files: {pixels}, logits at most {self.logits_off:.2g}, {labels}"


def check_file(run: Run, path: Path, photos: Photos) -> FileCheck:
    """Give a file whole photos from disk, and compare with the squares that training makes of them.

    Raises:
        ExportError: a pixel is off by more than `limit`.
    """
    pixels, session = _pixels_of(path), predict.open_session(path)
    off, logits_off, same = [], [], []
    for position, photo in _whole_photos(run, photos):
        square = photos.take([position])
        (images,) = predict.outputs(pixels, photo[None], ("images",))
        off.append(float(np.abs(255 * images[0].transpose(1, 2, 0) - square[0]).max()))
        ours, its = (predict.outputs(session, one, ("logits",))[0][0] for one in (square, photo[None]))
        logits_off.append(float(np.abs(ours - its).max()))
        same.append(ours.argmax() == its.argmax())
    if not off:
        return FileCheck(0, math.nan, math.nan, 0)
    if not max(off) <= limit(run) + 0.01:  # of a step, for float32
        which = f"{path.name} makes other pixels of a photo than training did"
        raise ExportError(f"{which}: {max(off):.1f} of 255 (limit {limit(run):.1f}): use best.pt, and report this")
    return FileCheck(len(off), max(off), max(logits_off), int(sum(same)))


def limit(run: Run) -> float:
    """By how many steps of 255 a pixel may be off."""
    return STEPS * math.prod(max(1.0, getattr(run.config, name)) for name in FACTORS)


def heat_agreement(paths: dict[str, Path], model, photos: Photos) -> dict[str, float]:
    """The correlation of each file's heat with Grad-CAM of the last layer by torch, for each photo's predicted class.

    The mean over the photos in which both show something. Files without heat are left out, and all where Grad-CAM
    finds no layer. An ensemble's is compared with the mean of its members' Grad-CAMs, each scaled to a largest value of
    1. Grad-CAM gives each channel one weight; of our own networks, whose weights differ by place, the
    files' heat is the exact map, and Grad-CAM the coarser one.
    """
    sessions = {backend: predict.open_session(path) for backend, path in paths.items()}
    with_heat = {name: one for name, one in sessions.items() if "heat" in [part.name for part in one.get_outputs()]}
    if not with_heat or not len(photos):
        return {}
    some = dataset.spread(photos, HEAT_PHOTOS)
    pictures = dataset.to_pictures(some.images)
    answers = {name: predict.outputs(one, pictures, ("logits", "heat")) for name, one in with_heat.items()}
    targets = next(iter(answers.values()))[0].argmax(1)
    members = model.members if isinstance(model, Ensemble) else [model]
    try:
        reference = np.mean(
            [_grad_cam(one, dataset.to_float(some.images), targets.tolist()) for one in members], axis=0
        )
    except InputError:  # no layer that gives maps
        return {}
    return {name: _correlation(maps, targets, reference) for name, (_, maps) in answers.items()}


def _grad_cam(model: Normalized, images: torch.Tensor, targets: list[int]) -> np.ndarray:
    """Grad-CAM (n, S, S) of a network's last layer, from 0 to 1.

    Raises:
        InputError: no layer that gives maps.
    """
    last = dict([list(blocks.target_layers(model).items())[-1]])
    return gradcam.heatmaps(model, images, last, targets, all_views=False).heatmap[:, 0]


def _correlation(maps: np.ndarray, targets: np.ndarray, reference: np.ndarray) -> float:
    """The mean correlation of heat (n, C or 1, h, w) of the targets with maps (n, S, S); NaN where nothing is shown."""
    own = maps[np.arange(len(targets)), targets if maps.shape[1] > 1 else 0]
    pairs = zip(heat.enlarged(np.maximum(own, 0), reference.shape[-1]), reference, strict=True)
    found = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs if a.std() > 0 and b.std() > 0]
    return float(np.mean(found)) if found else math.nan


def _pixels_of(path: Path) -> onnxruntime.InferenceSession:
    """A file that also gives the network's images, "images"."""
    proto = onnx.load(path)
    shape = ["batch", 3, "side", "side"]
    proto.graph.output.append(onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, shape))
    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


def _whole_photos(run: Run, photos: Photos) -> Iterator[tuple[int, np.ndarray]]:
    """Some of the photos as uint8 (h, w, 3), with their positions; without those that the reader crops."""
    config = photo_checks.with_bits(run.config, run.manifest)
    folder = sources.root(config.data, config.photos_dir)
    changes = config.center != 1 or any(getattr(config, name) != 1 for name in FACTORS)
    for position in range(0, len(photos), max(1, len(photos) // MOST_PHOTOS)):
        file, box = sources.locate(folder, photos.paths[position])
        if config.crop_to == "object" or (box and config.crop_to == "box"):
            continue
        with decoding.contents(file) as content:
            opened = decoding.opened(content, megapixels=config.max_megapixels, bits=geometry.bits(config), known=True)
            with opened as photo:
                if changes and photo.image.size == (config.image_size, config.image_size):
                    continue  # which the file takes as prepared already
                yield position, np.asarray(photo.image)
