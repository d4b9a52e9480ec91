"""The line that long work prints."""

import json

import pytest

from fruitlib.core import progress


def test_the_meter_prints_every_five_seconds_with_the_time_left(monkeypatch, capsys):
    clock = iter([0.0, 3.0, 60.0, 100.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    on_progress = progress.meter("photos checked")
    for done in (100, 1000, 4500):
        on_progress(done, 4500)
    first, last = capsys.readouterr().out.splitlines()  # nothing after 3 seconds
    assert first == "photos checked: 1,000 of 4,500, 4 min left"  # 1,000 a minute
    assert last == "photos checked: 4,500 of 4,500, 0 s left"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (80, "80 s"), (200, "3 min")])
def test_durations_are_as_exact_as_a_guess(seconds, text):
    assert progress.duration(seconds) == text


def test_what_is_over_is_noted_no_more(tmp_path, monkeypatch):
    clock = iter([0.0, 3.0, 60.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.recorded(tmp_path):
        on_progress = progress.meter("photos decoded")
        on_progress(100, 4500)
        assert (tmp_path / progress.FILE).exists()
        on_progress(4500, 4500)  # long after the last note
        assert not (tmp_path / progress.FILE).exists()


def test_inside_recorded_steps_and_long_loops_are_noted_and_nothing_is_left(tmp_path, monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 4.0, 9.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))

    def noted() -> dict:
        return json.loads((tmp_path / progress.FILE).read_text())

    progress.step("the ONNX file")
    assert not list(tmp_path.iterdir())  # nobody watches
    with progress.recorded(tmp_path):
        progress.step("the ONNX file")
        assert noted() == {"what": "the ONNX file"}
        found = [noted() for _ in progress.through(range(4), 4, "heat")]
        assert [one.get("share") for one in found] == [None, 0.25, 0.25, 0.75] and found[-1]["what"] == "heat"
    assert not list(tmp_path.iterdir())
