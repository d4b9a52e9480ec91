"""What a sweep ends with on the terminal."""

import pandas as pd
import pytest

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
    assert (f"It is a tie with lr=0.1: the same macro F1, 0.900. {how}" in printed) == tied
