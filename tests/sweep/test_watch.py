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
says = "import os, time; open(os.environ['FRUITLIB_JOB'] + '/' + str(os.getpid()) + '.pid', 'w'); "
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
    assert (code, why) == (-signal.SIGKILL, "it made no progress for 2 s") and seconds < 8


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
    names = [watch.prefix(over.pid) + "abc_1", watch.prefix(os.getppid()) + "abc_2", "fruit-1-zzzz-abc", "fruitabc"]
    for name in names:
        (tmp_path / name / "kernel").mkdir(parents=True)
    watch._remove_stale_folders.cache_clear()
    made = watch.new_folder()
    assert {path.name for path in tmp_path.iterdir()} == {*names[1:], made.name}


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """`scripted()` is a watch on this process, and a dict: its clock, what it has used, and its state."""

    def make() -> tuple[watch.Watch, dict]:
        now = {"clock": 0.0, "used": (0.0, 0, 0), "status": "sleeping"}
        monkeypatch.setattr(time, "monotonic", lambda: now["clock"])
        made = watch.Watch(os.getpid(), tmp_path)
        monkeypatch.setattr(made, "members", lambda: {psutil.Process()})
        monkeypatch.setattr(watch, "_used", lambda process: now["used"])
        monkeypatch.setattr(watch, "_status", lambda process: now["status"])
        return made, now

    return make


@pytest.mark.parametrize(
    ("step", "grows", "status", "given_up"),
    [
        (20.0, (0.0, 0, 0), "sleeping", "it made no progress for 10 min"),
        (20.0, (0.05, 0, 0), "sleeping", ""),
        (20.0, (0.0, 1 << 16, 0), "sleeping", ""),
        (20.0, (0.0, 0, 1 << 20), "sleeping", ""),  # photos of a slow network folder
        (20.0, (0.0, 0, 1 << 18), "sleeping", "it made no progress for 10 min"),
        (20.0, (0.1, 0, 0), psutil.STATUS_STOPPED, "a process of it was stopped (SIGSTOP) for 2 min"),
    ],
)
def test_what_counts_as_progress(scripted, step, grows, status, given_up):
    watched, now = scripted()
    now["status"] = status
    found = []
    for _ in range(40):
        now["clock"] += step
        now["used"] = tuple(had + more for had, more in zip(now["used"], grows, strict=True))
        found.append(watched.why_given_up())
    assert next(filter(None, found), "") == given_up


@pytest.mark.parametrize("status", ["sleeping", psutil.STATUS_STOPPED])
def test_time_in_which_the_sweep_was_frozen_too_does_not_count(scripted, status):
    """By `docker pause`, or with its batch job; a look while its processes are about to go on finds them stopped."""
    watched, now = scripted()
    for step in (20.0, 20.0, 36000.0, 0.1, 20.0):
        now["clock"] += step
        now["status"] = status if step < 36000 else psutil.STATUS_STOPPED
        assert watched.why_given_up() == ""


@pytest.mark.parametrize(("age", "found"), [(0, True), (60, False)], ids=["its own", "reused"])
def test_a_process_whose_pid_stands_in_an_old_file_is_not_the_runs(tmp_path, age, found):
    word = "fruitlib"  # in its command line, as of all that runs in a checkout of that name
    with subprocess.Popen(["sleep", "60"]) as root, subprocess.Popen([sys.executable, "-c", SLEEPS, word]) as other:
        file = tmp_path / f"{other.pid}.pid"
        file.touch()
        os.utime(file, (time.time() - age,) * 2)
        watch.Watch(root.pid, tmp_path).end()
        assert root.wait(10) == -signal.SIGKILL
        assert other.wait(10) == -signal.SIGKILL if found else other.poll() is None
        other.kill()


def test_what_a_run_leaves_running_is_ended_and_not_waited_for(perform):
    """It holds the standard output of the run's process, and is no descendant when that has ended."""
    leaves = "import os; print('done', flush=True); os.system('setsid sleep 20 & exit 0')"
    code, why, seconds = perform(leaves)
    assert (code, why) == (0, "") and seconds < 5
