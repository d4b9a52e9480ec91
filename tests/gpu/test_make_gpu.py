"""`make gpu` itself, on the CPU: what it asks for, what it says, and the benchmark's path."""

import importlib.util
import os
import shutil
import stat
import subprocess
import sys

import pytest
import torch
from support import ROOT


def module(path: str):
    spec = importlib.util.spec_from_file_location(path.replace("/", "_"), ROOT / f"{path}.py")
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found  # dataclasses look their module up
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def program():
    return module("tests/gpu/__main__")


@pytest.fixture(scope="module")
def benchmark():
    return module("tests/benchmarks/gpu")


def test_it_asks_for_what_training_imports_and_nothing_else(program):
    blocked = module("tests/training/test_few_packages").BLOCKED.split()
    assert program.missing(program.NEEDED) == []
    assert not set(program.NEEDED) & set(blocked)


def test_missing_packages_are_named_in_one_line(program, monkeypatch, capfd):
    monkeypatch.setattr(program, "NEEDED", {"torch": "torch", "no_such_module": "such-a-package"})
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert "cannot be imported here: such-a-package; install them, or" in str(ended.value)
    assert "pip install --target FOLDER such-a-package" in str(ended.value) and "\n" not in str(ended.value)


def test_without_pytest_the_benchmark_follows(program, monkeypatch, capfd):
    called = []
    monkeypatch.setattr(program, "TESTED", {"no_pytest": "pytest"})
    monkeypatch.setattr(program, "call", lambda command, seconds: called.append(command) or 0)
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 0 and [command[0] for command in called] == ["tests/benchmarks/gpu.py"]
    assert "tests left out, since pytest cannot be imported; the benchmark follows" in capfd.readouterr().out


@pytest.mark.parametrize(("tests", "figures", "code"), [(0, 0, 0), (5, 0, 0), (1, 0, 1), (124, 0, 124), (0, 3, 3)])
def test_a_failure_of_either_part_is_the_programs(tests, figures, code, program, monkeypatch):
    monkeypatch.setattr(program, "call", lambda command, seconds: tests if "pytest" in command else figures)
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == code


def test_a_part_that_takes_too_long_is_ended(program, capfd):
    assert program.call(["-c", "import time; time.sleep(60)"], seconds=0.5) == 124
    assert "ended after 0 s" in capfd.readouterr().out


def test_make_takes_an_interpreter_that_has_torch_as_it_is(tmp_path):
    """A stand-in for Python, which notes what it is asked; nothing is installed, .venv is not touched."""
    if not shutil.which("make"):
        pytest.skip("make is not there")
    asked = tmp_path / "asked"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$1" >> {asked}\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    shutil.copy(ROOT / "Makefile", tmp_path)
    done = subprocess.run(
        ["make", "gpu", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    assert asked.read_text().split() == ["-c", "tests/gpu"] and not (tmp_path / ".venv").exists()


def test_the_benchmark_measures_what_training_does(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "TURNS", 1)
    monkeypatch.setattr(benchmark, "PRECISIONS", ["fp32", "fp16"])
    report = benchmark.Report(seconds=100)
    benchmark.measure_all([("end2end", 32, 8, 24)], torch.device("cpu"), report)
    (row,) = report.rows  # fp16 needs a GPU
    assert (row["network"], row["side"], row["batch"], row["precision"]) == ("end2end", 32, 8, "fp32")
    assert row["ratio"] == pytest.approx(row["fed"] / row["limit"], rel=0.1) and row["plain"] > 0
    assert "end2end 32 px, 8 a batch" in capsys.readouterr().out


def test_what_fails_or_has_no_time_is_reported(benchmark):
    def fails():
        raise RuntimeError("no such kernel\nand more")

    report = benchmark.Report(seconds=10)
    report.measure({"network": "a"}, fails, expected=1)
    report.measure({"network": "b"}, fails, expected=99)
    assert report.rows == []
    assert report.not_measured == ["a: RuntimeError: no such kernel", "b: no time left"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_benchmark_says_so(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    benchmark.main()
    assert capsys.readouterr().out.startswith("no CUDA device, so there is nothing to measure")
