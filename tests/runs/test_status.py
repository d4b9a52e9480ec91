"""How far a run is, as its files say."""

import json

import pytest

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
