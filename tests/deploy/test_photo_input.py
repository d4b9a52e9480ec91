"""A graph makes of a photo what `data.preprocess` makes of it."""

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from fruitlib.core import config
from fruitlib.data import geometry
from fruitlib.deploy import photo_input

SIDE = 64
SETTINGS = ("image_size", "resize", "center", *photo_input.FACTORS)
ENHANCED = {"brightness": 1.2, "contrast": 0.8, "saturation": 1.3, "sharpness": 1.5}


def photo(height: int, width: int) -> Image.Image:
    """Coloured patches with soft edges."""
    patches = np.random.default_rng(0).integers(0, 256, (max(2, height // 9), max(2, width // 9), 3), np.uint8)
    return Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC)


def session(cfg: config.Config) -> onnxruntime.InferenceSession:
    graph = photo_input.input_graph({name: getattr(cfg, name) for name in SETTINGS})
    return onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


def apart(run: onnxruntime.InferenceSession, cfg: config.Config, picture: Image.Image) -> np.ndarray:
    """How far each pixel of the graph is from ours, in steps of 255."""
    area = geometry.central((0, 0, *picture.size), cfg)
    ours = geometry.enhance(geometry.square(picture, area, cfg.resize, SIDE), cfg)
    images = run.run(None, {"photos": np.asarray(picture)[None]})[0]
    return np.abs(255 * images[0].transpose(1, 2, 0) - np.asarray(ours, float))


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
@pytest.mark.parametrize("center", [1.0, 0.875])
def test_pixels_are_within_two_steps_of_ours(resize, center):
    cfg = config.make({"image_size": SIDE, "resize": resize, "center": center})
    run = session(cfg)
    for height, width in ((50, 50), (100, 80), (33, 170), (300, 201), (380, 390), (1000, 700), (700, 2001), (9, 3)):
        found = apart(run, cfg, photo(height, width))
        assert found.max() <= 2.001 and (found > 1.001).mean() < 0.01, (height, width)


def test_enhanced_pixels_are_too():
    """Factors above 1 enlarge a step of rounding: here to at most four, of few pixels."""
    cfg = config.make({"image_size": SIDE, **ENHANCED})
    run = session(cfg)
    for height, width in ((50, 50), (300, 201), (1000, 700)):
        found = apart(run, cfg, photo(height, width))
        assert found.max() <= 4.001 and (found > 2.001).mean() < 0.05, (height, width)


def test_a_photo_of_the_networks_own_side_is_taken_as_it_is():
    cfg = config.make({"image_size": SIDE, "center": 0.5, "brightness": 0.5})
    pixels = np.asarray(photo(SIDE, SIDE))
    images = session(cfg).run(None, {"photos": pixels[None]})[0]
    np.testing.assert_allclose(images[0].transpose(1, 2, 0), pixels / 255, atol=1e-6)


def test_photos_of_one_size_go_together():
    cfg = config.make({"image_size": SIDE})
    run, pixels = session(cfg), [np.asarray(photo(90, 120)), np.asarray(photo(90, 120))[::-1]]
    both = run.run(None, {"photos": np.stack(pixels)})[0]
    each = [run.run(None, {"photos": one[None]})[0] for one in pixels]
    np.testing.assert_array_equal(both, np.concatenate(each))
