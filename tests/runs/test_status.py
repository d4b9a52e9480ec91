"""How far a run is, read from its folder."""

import json
import os
import time

import pytest

from fruitlib.core import progress
from fruitlib.runs.run import WORKING
from fruitlib.runs.status import load_run_status

HISTORY = "epoch,val_macro_f1,seconds\n1,0.9,2.0\n2,0.7,4.0\n3,0.6,6.0\n"


@pytest.mark.parametrize(("record", "score"), [({"kept_epoch": 3}, 0.6), ({"kept_epoch": 2}, 0.7), ({}, 0.6)])
def test_the_score_of_a_trained_run_is_that_of_the_epoch_it_keeps(tmp_path, record, score):
    """An epoch that was better on validation and is not kept says nothing of the model that is there."""
    (tmp_path / "history.csv").write_text(HISTORY)
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "train.json").write_text(json.dumps(record))
    found = load_run_status(tmp_path, {"name": "a", "state": "complete", "epochs": 3}, "macro_f1")
    assert (found.epoch, found.score) == (3, score)


@pytest.mark.parametrize("text", ["epoch,val_macro_f1\n1,0.9\n", "epoch,val_macro_f1,seconds\n1,0.9,\n", "epoch\n", ""])
def test_of_a_history_without_times_no_epoch_is_shown(tmp_path, text):
    """The time left is guessed from both: one without the other would end the thread that draws the table."""
    (tmp_path / "history.csv").write_text(text)
    found = load_run_status(tmp_path, {"name": "a", "state": "complete", "epochs": 3}, "macro_f1")
    assert (found.epoch, found.seconds, found.score) == (0, [], None)


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
