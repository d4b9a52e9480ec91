"""Shared fixtures. Real photographs are found through FRUITLIB_TEST_DATA; tests that need them skip visibly without."""

import functools
import os
import shutil
import signal
from pathlib import Path

import matplotlib
import pytest
from filelock import FileLock
from support import draw_shapes, launch_by_fork, write_finished_sweep

matplotlib.use("Agg")
# A shell that starts the tests in its background has them ignore Ctrl-C, and so all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


LONG = "stories/test_faults sweep/test_final_model stories/test_notebooks training/test_distributed"
LONG = [f"{name}.py" for name in f"{LONG} sweep/test_driver kernels/test_zygote stories/test_resume".split()]


def pytest_collection_modifyitems(items) -> None:
    """What takes minutes comes first, so that several processes end together (with `--no-loadscope-reorder`)."""
    folder = Path(__file__).parent
    assert all((folder / name).is_file() for name in LONG)
    places = {folder / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `--dist loadscope`: tests of a file with fixtures of its own stay in one process, or each process would make
    them; any other test goes wherever there is room.

    The marks of `--dist loadgroup` would say the same, but pytest 9.2 does not let pytest-xdist 3.8 see them.
    """
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByFixtures(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", 1)[0]
            return file if _has_fixtures(config.rootpath / file) else nodeid

    return ByFixtures(config, log)


@functools.cache
def _has_fixtures(path: Path) -> bool:
    return 'scope="module"' in path.read_text("utf-8")


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


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A folder of class folders with 3 x 16 small drawn shapes."""
    return draw_shapes(tmp_path_factory.mktemp("photos") / "shapes")


@pytest.fixture(scope="session")
def finished_sweep(tmp_path_factory, worker_id) -> Path:
    """The project folder of `write_finished_sweep`: executed once, by the first process of the tests that wants it.

    Tests read it; one that changes it takes `finished_copy`.
    """
    common = tmp_path_factory.getbasetemp()
    common = common if worker_id == "master" else common.parent
    with FileLock(common / "finished_sweep.lock"):
        if not (common / "finished_sweep" / "output.json").is_file():
            shutil.rmtree(common / "finished_sweep", ignore_errors=True)  # an attempt that was interrupted
            write_finished_sweep(common / "finished_sweep")
    return common / "finished_sweep"


@pytest.fixture
def finished_copy(finished_sweep, tmp_path) -> Path:
    """A copy of it, on the same photos."""
    return shutil.copytree(finished_sweep, tmp_path / "house", symlinks=True)


@pytest.fixture
def forked_group(monkeypatch) -> None:
    """Runs with `processes` train in a group of forked processes, without the seconds that imports take."""
    monkeypatch.setattr("fruitlib.training.distributed.launch", launch_by_fork)


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
        "int8_speedup": 0,  # whether INT8 is delivered depends on no stopwatch
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
