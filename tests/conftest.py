"""Shared fixtures. Real photographs are found through FRUITLIB_TEST_DATA; tests that need them skip visibly without."""

import os
import signal
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw

matplotlib.use("Agg")
# A shell that starts the tests in its background has them ignore Ctrl-C, and so all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


LONG = "stories/test_faults sweep/test_final_model stories/test_notebooks stories/test_scale sweep/test_driver"
LONG = [f"{name}.py" for name in f"{LONG} training/test_distributed stories/test_resume".split()]


def pytest_collection_modifyitems(items) -> None:
    """What takes minutes comes first, so that several processes end together (with `--no-loadscope-reorder`)."""
    folder = Path(__file__).parent
    assert all((folder / name).is_file() for name in LONG)
    places = {folder / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))


@pytest.fixture(scope="session", autouse=True)
def cache_of_tests(tmp_path_factory) -> None:
    """Decoded photos of tests go to a folder of theirs, in child processes too."""
    os.environ["FRUITLIB_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["FRUITLIB_KERNELS_IDLE"] = "120"  # the zygote that tests share leaves soon after them


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder holding `fruit304` and `fruits-360-3-body-problem`."""
    folder = os.environ.get("FRUITLIB_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real photographs not found: set FRUITLIB_TEST_DATA to the folder that holds fruit304")
    return Path(folder)


def draw_shapes(folder: Path, per_class: int = 16, size: int = 40) -> Path:
    """Three classes told apart by shape at random places and colours, which a small network learns in seconds."""
    for label, shape in enumerate(("disc", "bar", "cross")):
        (folder / shape).mkdir(parents=True)
        for number in range(per_class):
            rng = np.random.default_rng([label, number])
            picture = Image.new("RGB", (size, size), tuple(int(v) for v in rng.integers(0, 90, 3)))
            pen, colour = ImageDraw.Draw(picture), tuple(int(v) for v in rng.integers(150, 255, 3))
            x, y = (int(v) for v in rng.integers(size // 3, size * 2 // 3, 2))
            r = size // 4
            if shape == "disc":
                pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
            if shape in ("bar", "cross"):
                pen.rectangle((x - 3, y - r, x + 3, y + r), fill=colour)
            if shape == "cross":
                pen.rectangle((x - r, y - 3, x + r, y + 3), fill=colour)
            picture.save(folder / shape / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A folder of class folders with 3 x 16 small drawn shapes."""
    return draw_shapes(tmp_path_factory.mktemp("photos") / "shapes")


@pytest.fixture
def tiny(shapes) -> dict:
    """Settings of a run that takes about a second."""
    return {
        "data": str(shapes),
        "val_per_class": 4,
        "test_per_class": 4,
        "image_size": 32,
        "epochs": 3,
        "batch_size": 8,
        "cam_every": 2,
        "lr": 0.003,
        "precision": "fp32",
        "memory_format": "channels_last",
    }


@pytest.fixture
def make_run(tiny, tmp_path):
    """`make_run("name", lr=...)` prepares a run folder with those settings beside its manifest."""
    from fruitlib.core import config
    from fruitlib.data import splits
    from fruitlib.runs.run import create_run

    def make(name="run", **settings):
        cfg = config.make({**tiny, **settings})
        splits.prepare_manifest(cfg, tmp_path)
        return create_run(tmp_path / name, cfg)

    return make
