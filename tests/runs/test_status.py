"""How far a run is, read from its folder."""

import json
import os
import time

import pytest

from fruitlib.core import progress
from fruitlib.runs.run import WORKING
from fruitlib.runs.status import load_run_status


@pytest.mark.parametrize(
    ("noted", "age", "state"),
    [
        ({"what": "INT8 recipe 2"}, 50, "INT8 recipe 2"),  # it may take long
        ({"what": "INT8 recipe 2"}, 90, "05_quantize"),  # of a stage before, which was killed
        ({"what": "heat", "share": 0.25}, 5, "heat 25%"),
        ({"what": "heat", "share": 0.25}, 50, "05_quantize"),  # whoever counted has ended
        ({"what": "epoch", "share": 0.5, "number": 1}, 5, "05_quantize"),
    ],
)
def test_the_state_says_what_a_stage_does_that_takes_long(tmp_path, noted, age, state):
    now = time.time()
    (tmp_path / WORKING).write_text(json.dumps({"stage": "05_quantize", "since": now - 60}))
    (tmp_path / progress.FILE).write_text(json.dumps(noted))
    os.utime(tmp_path / progress.FILE, (now - age, now - age))
    found = load_run_status(tmp_path, {"name": "a", "state": "pending", "epochs": 3}, "macro_f1")
    assert found.row[:2] == ("a", state)
