"""What a sweep ends with on the terminal."""

import io
import json
import time

import pandas as pd
import pytest
from rich.console import Console

from fruitlib.sweep import params, terminal


@pytest.mark.parametrize(("other", "tied"), [(0.9, True), (0.8, False)])
def test_the_end_says_that_the_best_is_a_tie_and_how_it_was_broken(tmp_path, capsys, other, tied):
    (tmp_path / "two.yaml").write_text("grid:\n  lr: [0.1, 0.01]\n")
    plan = params.read_params(tmp_path / "two.yaml")
    numbers = {"state": "complete", "n": 30, "accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 0.95}
    rows = [numbers | {"run": "lr=0.1", "macro_f1": other, "val_loss": 0.4, "train_seconds": 3}]
    rows.append(numbers | {"run": "lr=0.01", "macro_f1": 0.9, "val_loss": 0.3, "train_seconds": 3})
    pd.DataFrame(rows).to_csv(tmp_path / "results.csv", index=False)
    terminal.print_results(plan, tmp_path, {"chosen": "lr=0.01", "shipped": "lr=0.01", "runs": []})
    printed = capsys.readouterr().out
    how = "Of equals the one with the lowest validation loss was taken (0.300 against 0.400)."
    assert "* chosen on validation" in printed
    assert (f"It is a tie with lr=0.1: the same macro-F1, 0.900. {how}" in printed) == tied


@pytest.mark.parametrize("part", ["screen", "status"])
def test_an_error_of_the_drawing_is_said_once_and_the_sweep_goes_on(tmp_path, monkeypatch, part):
    def broken(*_):
        calls.append(part)
        raise TypeError("no such column")

    (tmp_path / "two.yaml").write_text("grid:\n  lr: [0.1, 0.01]\n")
    calls, out = [], io.StringIO()
    shown = terminal.Terminal(params.read_params(tmp_path / "two.yaml"), tmp_path)
    shown._console = Console(file=out, force_terminal=True, width=100, height=20)
    monkeypatch.setattr(*((shown, "status") if part == "status" else (terminal, "screen")), broken)
    monkeypatch.setattr(terminal, "PRINT_EVERY", 0)
    with shown:
        _wait_for(lambda: "without it" in out.getvalue())
        if part == "screen":  # lines take the place of the table, and other processes still read how far it is
            _wait_for(lambda: "0/2 runs" in out.getvalue())
            assert json.loads((tmp_path / terminal.PROGRESS).read_text())["share"] == 0
        else:
            _wait_for(lambda: len(calls) > 2)
        shown.say("a run ended")
    said = "progress cannot be shown (TypeError: no such column); the sweep goes on without it"
    assert out.getvalue().count(said) == 1 and "a run ended" in out.getvalue()


def _wait_for(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
