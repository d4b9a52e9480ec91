"""The line that long work prints."""

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
