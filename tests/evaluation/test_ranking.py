"""The order of a sweep's runs is one, for its choice, 07, the terminal and the report."""

import json

import pandas as pd
import pytest

from fruitlib.evaluation import compare, ranking
from fruitlib.reporting import site_index
from fruitlib.runs.run import Run
from fruitlib.sweep import final_model, params, terminal

# As the grid goes: the last three tie but for rounding, and the loss tells which is better
SCORES = {"lr=0.4": (0.5, 0.1), "lr=0.3": (0.9 + 1e-13, 0.3), "lr=0.2": (0.9 + 2e-13, 0.4), "lr=0.1": (0.9, 0.2)}
BEST_FIRST = ["lr=0.1", "lr=0.3", "lr=0.2", "lr=0.4"]


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """A sweep chosen by balanced accuracy, whose runs have metrics and predictions; macro-F1 says the opposite."""
    (tmp_path / "four.yaml").write_text("choose_by: balanced_accuracy\ngrid:\n  lr: [0.4, 0.3, 0.2, 0.1]\n")
    monkeypatch.setattr(Run, "groups", lambda self, paths: ["" for _ in paths])
    monkeypatch.setattr(Run, "class_names", ["apple"])
    rows, predicted = [], pd.DataFrame({"path": ["a.jpg"], "label": "apple", "predicted": "apple", "backend": "torch"})
    for name, (score, loss) in SCORES.items():
        (tmp_path / name / "stages").mkdir(parents=True)
        (tmp_path / name / "stages" / "train.json").write_text('{"identity": "x"}')
        row = {"balanced_accuracy": score, "val_loss": loss, "macro_f1": 1 - score, "accuracy": 0.75}
        (tmp_path / name / "metrics.json").write_text(json.dumps(row))
        predicted.to_csv(tmp_path / name / "predictions_val.csv", index=False)
        rows.append({"run": name, "state": "complete", "n": 30, "accuracy_low": 0.7, "accuracy_high": 0.8, **row})
    pd.DataFrame(rows).assign(train_seconds=1).to_csv(tmp_path / "results.csv", index=False)
    return params.read_params(tmp_path / "four.yaml")


def test_the_choice_07_the_terminal_and_the_report_have_one_order(plan, tmp_path, capsys):
    work = {name: Run(tmp_path / name) for name in SCORES}
    states = {name: {"state": "complete"} for name in SCORES}
    assert final_model.ranked(plan, work, states, tmp_path) == BEST_FIRST
    sweep = {"runs": [{"name": name} for name in SCORES], "choose_by": plan.choose_by, "chosen": BEST_FIRST[0]}
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    pair = compare.pair_of_sweep(tmp_path)
    assert [side.run.name for side in (pair.a, pair.b)] == BEST_FIRST[:2]
    terminal.print_results(plan, tmp_path, {"chosen": BEST_FIRST[0], "shipped": BEST_FIRST[0], "runs": []})
    lines = [line[2:].split()[0] for line in capsys.readouterr().out.splitlines() if line[2:].startswith("lr=")]
    assert lines == BEST_FIRST
    rows = pd.read_csv(tmp_path / "results.csv").to_dict("records")
    runs = [{"name": row["run"], "row": row} for row in rows]
    found = site_index.ranked(runs, sweep | {"shipped": BEST_FIRST[0]})
    assert [run["name"] for run in found] == BEST_FIRST


def test_the_terminal_shows_what_the_sweep_chose_by(plan, tmp_path, capsys):
    terminal.print_results(plan, tmp_path, {"chosen": "lr=0.1", "shipped": "lr=0.1", "runs": []})
    head, first, *_ = capsys.readouterr().out.strip("\n").splitlines()
    assert first.startswith("* lr=0.1")
    end = head.index("balanced accuracy") + len("balanced accuracy")
    assert first[:end].endswith(" 0.900") and first[: head.index("macro-F1") + len("macro-F1")].endswith(" 0.100")


def test_a_row_without_the_number_is_last_and_the_chosen_one_first_of_equals():
    rows = [{"name": "none"}, {"name": "one", "f": 0.5}, {"name": "chosen", "f": 0.5}, {"name": "more", "f": 0.6}]
    found = sorted(rows, key=lambda row: ranking.place(row, "f", row["name"] == "chosen"))
    assert [row["name"] for row in found] == ["more", "chosen", "one", "none"]
