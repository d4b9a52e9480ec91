"""Shared fixtures. Real photographs are found through FRUITLIB_TEST_DATA; tests that need them skip visibly without."""

import os
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder holding `fruit304` and `fruits-360-3-body-problem`."""
    folder = os.environ.get("FRUITLIB_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real photographs not found: set FRUITLIB_TEST_DATA to the folder that holds fruit304")
    return Path(folder)
