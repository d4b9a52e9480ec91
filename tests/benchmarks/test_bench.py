"""The table and the comparisons of `make bench`, on made-up figures: no peer and no environment is needed."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import bench
import bench_figures as figures
import pytest

SPEED = {
    "3-conv, batch 16, fp32": {
        "torch": [300.0, 290.0, 310.0],
        "fastai": [None, None, None],
        "fruitlib": [500.0, 250.0, 540.0],  # the second round was slow for all
        "limit": [600.0, 300.0, 600.0],
    },
    "3-conv, batch 16, bf16": {"torch": [310.0], "fruitlib": [800.0], "limit": [1000.0]},
}
WHOLE = {"640 photos": {"torch": [50.0, 40.0], "timm": [60.0, 20.0], "fruitlib, all pages": [40.0, 60.0]}}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ([3.0, 1.0, 2.0], [1.5, 2.0, 2.5]),
        ([7.0], [7.0, 7.0, 7.0]),
        ([None, 4.0, None], [4.0, 4.0, 4.0]),
        ([None], None),
        ([], None),
    ],
)
def test_quartiles_are_those_of_the_rounds_that_gave_a_figure(given, found):
    assert figures.quartiles(given) == found


@pytest.mark.parametrize(
    ("above", "below", "found"),
    [
        ([500.0, 250.0, 540.0], [600.0, 300.0, 600.0], 500 / 600),
        ([10.0, 100.0, 30.0], [20.0, 100.0, 10.0], 1.0),  # by rounds 0.5, 1, 3; the medians' would be 1.5
        ([None, 8.0], [2.0, 4.0], 2.0),
        ([8.0], [None], None),
        ([], [1.0], None),
    ],
)
def test_a_ratio_is_taken_round_by_round(above, below, found):
    assert figures.ratio(above, below) == (None if found is None else pytest.approx(found))


def test_what_is_compared_is_our_speed_by_the_limit_and_the_quickest_peers_seconds_by_ours():
    assert figures.ratios(SPEED, WHOLE) == {
        "3-conv, batch 16, fp32: fruitlib / limit": 0.833,
        "3-conv, batch 16, bf16: fruitlib / limit": 0.8,
        "640 photos: quickest peer's seconds / ours": 0.917,
    }
    assert figures.ratios({"row": {"fruitlib": [1.0]}}, {"row": {"fruitlib, all pages": [1.0]}}) == {}


@pytest.mark.parametrize(
    ("kept", "now", "named"),
    [
        ({"a": 0.90}, {"a": 0.90}, []),
        ({"a": 0.80}, {"a": 0.681}, []),
        ({"a": 0.80}, {"a": 0.679}, ["a has fallen from 0.80 to 0.68"]),
        ({"a": 0.80}, {"a": 1.20}, []),
        ({"a": 0.80, "b": 0.5}, {"b": 0.5, "c": 0.1}, []),  # not measured this time; not measured before
        ({"a": 0.80, "b": 0.5}, {"a": 0.1, "b": 0.4}, ["a has fallen from 0.80 to 0.10", "b has fallen from 0.50"]),
    ],
)
def test_a_fall_of_more_than_15_percent_is_a_line(kept, now, named):
    lines = figures.fallen(kept, now)
    assert len(lines) == len(named)
    assert all(line.startswith(beginning) for line, beginning in zip(lines, named, strict=True))


def test_the_tables_have_a_row_per_task_medians_with_quartiles_and_the_ratio():
    found = {"photos_per_s": figures.summary(SPEED), "seconds": figures.summary(WHOLE)}
    assert figures.tables(found | {"ratios": figures.ratios(SPEED, WHOLE)}) == [
        "| photos/s, median (quartiles) | torch | fruitlib | limit | fruitlib / limit |\n"
        "|---|---|---|---|---|\n"
        "| 3-conv, batch 16, fp32 | 300 (295–305) | 500 (375–520) | 600 (450–600) | 0.83 |\n"
        "| 3-conv, batch 16, bf16 | 310 | 800 | 1,000 | 0.80 |",
        "| seconds from command to end | torch | timm | fruitlib, all pages | quickest peer's seconds / ours |\n"
        "|---|---|---|---|---|\n"
        "| 640 photos | 45 (42–48) | 40 (30–50) | 50 (45–55) | 0.92 |",
    ]
    one_row = {"row": {"limit": [1.0, 1.0, 1.0], "fruitlib": [2.0, 2.0, 2.0]}, "other": {"timm": [3.0, 3.0, 3.0]}}
    assert figures.tables({"photos_per_s": one_row, "seconds": {}, "ratios": {}})[0].splitlines()[2:] == [
        "| row | – | 2 | 1 | – |",
        "| other | 3 | – | – | – |",
    ]


def test_the_kept_tables_are_quoted():
    """README.md beside the benchmarks quotes all; the front page what one gets without a setting."""
    if not bench.RESULTS.is_file():
        pytest.skip("no figures are kept: make bench BENCH=--keep")
    places = (Path(__file__).parent, bench.ROOT)
    own, front = ((folder / "README.md").read_text(encoding="utf-8").splitlines() for folder in places)
    speeds, whole = figures.tables(json.loads(bench.RESULTS.read_text(encoding="utf-8")))
    lines = [*speeds.splitlines(), *whole.splitlines()]
    assert not [line for line in lines if line not in own], "bench.py --show prints what it has to quote"
    by_default = [line for line in speeds.splitlines()[2:] if not re.match(r".*, (fp32|bf16) \|", line)]
    peers = cells(speeds.splitlines()[0])[1:-3]
    assert by_default and not [line for line in by_default if beside_the_quickest(line, peers) not in front]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def beside_the_quickest(line: str, peers: list[str]) -> str:
    """A row of the table of speeds with the quickest peer alone, by its name."""
    task, *speeds, ours, limit, share = cells(line)
    measured = {peer: speed for peer, speed in zip(peers, speeds, strict=True) if speed != "–"}
    quickest = max(measured, key=lambda peer: float(measured[peer].split()[0].replace(",", "")))
    task = task.removesuffix(", as they come")
    return f"| {task} | {quickest} {measured[quickest]} | {ours} | {limit} | {share} |"


@pytest.mark.parametrize(("default", "ours"), [("fp32", [500.0, 250.0, 540.0]), ("bf16", [800.0])])
def test_as_they_come_is_our_default_beside_peers_in_fp32_and_the_higher_limit(default, ours):
    row = figures.as_they_come(SPEED, "3-conv, batch 16", default)
    assert row["torch"] == [300.0, 290.0, 310.0]
    assert row["fruitlib"] == ours
    assert row["limit"] == [1000.0]


def results(limit_ratio: float, machine: str = "this", **no_figure: str) -> dict:
    ratios = {"3-conv: fruitlib / limit": limit_ratio}
    return {"date": "2026-01-01", "machine": machine, "ratios": ratios, "no_figure": no_figure}


@pytest.mark.parametrize(
    ("kept", "now", "code", "message"),
    [
        (results(0.9), results(0.88), 0, "no ratio is more than 15% below those of 2026-01-01"),
        (results(0.9), results(0.7), 1, "3-conv: fruitlib / limit has fallen from 0.90 to 0.70"),
        (results(0.9, "another"), results(0.7), 0, "the kept ones are of another machine (another)"),
        (None, results(0.7), 0, "nothing to compare with"),
        (results(0.9), results(0.9, timm="exit code 1"), 0, "no ratio is more"),
        (results(0.9), results(0.9, fruitlib="exit code 1: boom"), 1, "fruitlib gave no figure: exit code 1: boom"),
    ],
)
def test_results_are_compared_with_the_kept_ones(kept, now, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results.json")
    if kept:
        bench.RESULTS.write_text(json.dumps(kept))
    assert bench.compared(now) == code
    assert message in capsys.readouterr().out


def test_results_are_kept_unless_ours_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results.json")
    assert bench.kept(results(0.9, fruitlib="boom")) == 1
    assert not bench.RESULTS.exists()
    assert bench.kept(results(0.9, timm="boom")) == 0
    assert json.loads(bench.RESULTS.read_text()) == results(0.9, timm="boom")
    assert bench.compared(results(0.9)) == 0


def test_a_rate_leaves_out_the_first_epoch_where_there_are_several(tmp_path, capsys):
    measuring = bench.Bench(SimpleNamespace(quick=True), tmp_path, tmp_path)
    assert measuring.rate("torch", {"photos": [100, 100, 100], "seconds": [50.0, 4.0, 1.0]}) == 40
    assert measuring.rate("limit", {"photos": [16], "seconds": [0.5]}) == 32
    assert measuring.rate("fastai, bf16", {"why": "not offered"}) is None
    assert measuring.rate("timm, fp32", None) is None
    assert measuring.failures == {"fastai, bf16": "not offered"}
    assert capsys.readouterr().out == "fastai, bf16: not offered\n"


def test_a_process_gets_our_variables_alone_and_its_failure_is_one_line(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("FRUITLIB_KERNELS", "cold")
    code = "import os; print(os.environ.get('OMP_NUM_THREADS'), os.environ.get('FRUITLIB_KERNELS'))"
    assert bench.finished([bench.sys.executable, "-c", code], {"OMP_NUM_THREADS": "2"}) == "2 None\n"
    with pytest.raises(bench.Failed, match=r"^exit code 1: ValueError: no$"):
        bench.finished([bench.sys.executable, "-c", "raise ValueError('no')"], {})
