"""A run's processes: those that hang or were stopped are found and ended, those that work or wait are not."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest
from support import wait_until

from fruitlib.sweep import executors, watch

WORKS = "import time\nwhile True: sum(range(20000)); time.sleep(0.01)"
WRITES = """
import tempfile, time
with tempfile.TemporaryFile() as file:
    while True:
        file.write(bytes(1 << 21))
        file.seek(0)
        time.sleep(0.2)
"""
SLEEPS = "import time; time.sleep(60)"
# Forked off, as by the zygote, and so no descendant; it writes its pid into the run's folder.
REGISTERED = """
import os, subprocess, sys, time
says = "import os, time; open(os.environ['FRUITLIB_JOB'] + '/' + str(os.getpid()) + '.pid', 'w'); 'fruitlib'; "
code = says + sys.argv[1]
nothing = {name: subprocess.DEVNULL for name in ("stdin", "stdout", "stderr")}
subprocess.run(["sh", "-c", '"$0" -c "$1" &', sys.executable, code], **nothing)
time.sleep(60)
"""


@pytest.fixture
def perform(tmp_path, monkeypatch):
    """`perform(code, *arguments)`: how it ends in place of a run's process, with two seconds of patience."""
    monkeypatch.setenv("FRUITLIB_STALL_SECONDS", "2")
    monkeypatch.setattr(watch, "BUSY", 0.02)  # in two seconds a single tick of the clock would count
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    processes: list[subprocess.Popen] = []

    def run(code: str, *arguments: str, meanwhile=lambda process: None, **job):
        def start(job: dict, scratch: Path) -> subprocess.Popen:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            environment = os.environ | {"FRUITLIB_JOB": str(scratch)}
            processes.append(subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, **pipes))
            meanwhile(processes[-1])
            return processes[-1]

        monkeypatch.setattr(executors, "_start", start)
        started = time.monotonic()
        found = executors.perform({"folder": str(tmp_path), "stop": str(tmp_path / "stop"), **job})
        assert not list((tmp_path / "t").iterdir())  # nothing is left
        return found["code"], found["given_up"], time.monotonic() - started

    yield run
    for process in processes:
        process.kill()


def test_what_hangs_is_ended_and_said(perform):
    code, why, seconds = perform(SLEEPS)
    assert (code, why) == (-signal.SIGKILL, "it made no progress for 2 seconds") and seconds < 8


def test_what_was_stopped_is_ended_sooner(perform):
    code, why, seconds = perform(WORKS, meanwhile=lambda process: process.send_signal(signal.SIGSTOP))
    assert code == -signal.SIGKILL and why.startswith("a process of it was stopped (SIGSTOP)") and seconds < 2


@pytest.mark.parametrize("code", [WORKS, WRITES], ids=["computes", "writes"])
def test_what_works_is_not(perform, tmp_path, code):
    asked = threading.Timer(4, (tmp_path / "stop").touch)
    code, why, seconds = perform(code, meanwhile=lambda process: asked.start())
    assert not why and seconds > 3.5


def test_a_process_ends_when_the_folder_of_its_sweep_is_removed(perform, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    timer = threading.Timer(1, gone.rmdir)
    code, why, seconds = perform(WORKS, meanwhile=lambda process: timer.start(), stop=str(gone / "stop"))
    assert code != 0 and not why and seconds < 4


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found by their folder on Linux")
def test_what_was_forked_elsewhere_counts_and_is_ended_too(perform, tmp_path):
    """A kernel, say, whose parent is the zygote."""

    def forked() -> list[psutil.Process]:
        return [
            process for process in psutil.process_iter(["cmdline"]) if token in " ".join(process.info["cmdline"] or [])
        ]

    token = f"'{tmp_path}'"
    code, why, _ = perform(REGISTERED, f"time.sleep(60); {token}", meanwhile=lambda process: wait_until(forked, 10))
    assert code == -signal.SIGKILL and why.startswith("it made no progress")
    wait_until(lambda: not forked(), 5)
    asked = threading.Timer(4, (tmp_path / "stop").touch)
    code, why, seconds = perform(REGISTERED, f"{token}; any(iter(int, 1))", meanwhile=lambda process: asked.start())
    assert not why and seconds > 3.5
    wait_until(lambda: not forked(), 5)


def test_folders_of_killed_processes_are_removed_those_of_others_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with subprocess.Popen(["true"]) as over:
        pass
    names = [watch._prefix(over.pid) + "abc_1", watch._prefix(os.getppid()) + "abc_2", "fruit-1-zzzz-abc", "fruitabc"]
    for name in names:
        (tmp_path / name / "kernel").mkdir(parents=True)
    watch._remove_stale_folders.cache_clear()
    made = watch.new_folder()
    assert {path.name for path in tmp_path.iterdir()} == {*names[1:], made.name}
