"""Tasks, executors and processes: what is busy is waited for, what is lost is tried once more, GPUs are shared out."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from concurrent.futures import Future

import pytest

from fruitlib.core import files, machine
from fruitlib.core.errors import InputError
from fruitlib.runs.run import OUTCOME, WORKING
from fruitlib.sweep import executors, worker
from fruitlib.sweep.queue import Engine, Outcome, PlacementLost, Task


class Scripted:
    """An executor that executes nothing: each folder's processes end with the codes it was given, in turn."""

    def __init__(self, codes: dict[str, list], width: int = 2):
        self.codes, self.width, self.jobs = codes, width, []

    def say(self, line):
        raise AssertionError("remarks were printed already")

    def submit(self, function, job):
        assert function is executors.perform
        self.jobs.append(job)
        future, code = Future(), self.codes[job["folder"].rsplit("/", 1)[-1]].pop(0)
        if code == "cancelled":
            future.cancel()
            future.set_running_or_notify_cancel()
        else:
            given_up = code if isinstance(code, str) else ""
            found = {"code": -9 if given_up else code, "remarks": [], "error": "last words", "given_up": given_up}
            future.set_result(found)
        return future


@pytest.fixture
def engine_of(tmp_path):
    def make(**codes):
        output: list[str] = []
        made = Engine(Scripted(codes), tmp_path, lambda: "python3", output.append)
        for name in codes:
            (tmp_path / name).mkdir()
            made.add(Task(name, tmp_path / name, ("02_train",)))
        return made, output

    return make


def ended(made: Engine) -> dict[str, Outcome]:
    return {task.name: outcome for task, outcome in made.outcomes()}


def test_outcomes_follow_exit_codes_and_what_was_written_down(engine_of, tmp_path):
    made, _ = engine_of(good=[0], bad=[1], crashed=[1], pruned=[3], blind=[None])
    for name in ("bad", "pruned"):
        (tmp_path / name / OUTCOME).write_text(json.dumps({"error": f"why {name}"}))
    assert ended(made) == {
        "good": Outcome("complete"),
        "bad": Outcome("failed", "why bad"),
        "crashed": Outcome("failed", "last words"),
        "pruned": Outcome("pruned", "why pruned"),
        "blind": Outcome("failed", "last words"),
    }


def test_a_free_place_is_filled_before_summary_and_pages_are_written(engine_of):
    made, _ = engine_of(first=[0], second=[0], third=[0])
    made.executor.width, begun = 1, []
    for _ in made.outcomes(lambda: begun.append(len(made.executor.jobs))):
        pass
    assert begun == [2, 3, 3]


def test_what_is_lost_is_tried_once_more_and_then_told(engine_of):
    made, output = engine_of(unlucky=[-9, 0], doomed=[-9, worker.CODES["lost"]])
    found = ended(made)
    assert found["unlucky"] == Outcome("complete") and found["doomed"].state == "lost"
    assert "unlucky: its process was lost (killed by SIGKILL; often too little memory): last words; once more" in output
    assert len(made.executor.jobs) == 4


def test_what_hangs_is_started_again_once_and_said(engine_of):
    stuck = "it made no progress for 10 min"
    made, output = engine_of(once=[stuck, 0], twice=[stuck, stuck])
    found = ended(made)
    assert found == {"once": Outcome("complete"), "twice": Outcome("lost", stuck)}
    assert sorted(output) == [f"{name}: {stuck}; it is started again" for name in ("once", "twice")]


def test_a_stopped_process_of_another_sweep_is_named(engine_of, tmp_path):
    made, output = engine_of(busy=[worker.CODES["busy"], 0])
    looks = []

    def idle():
        looks.append(1)
        if len(looks) == 3:
            held.close()

    with subprocess.Popen(["sleep", "60"]) as holder, contextlib.ExitStack() as held:
        held.callback(holder.kill)
        held.enter_context(files.lock(tmp_path / "busy" / ".lock"))
        facts = {"stage": "02_train", "host": socket.gethostname(), "pid": holder.pid}
        (tmp_path / "busy" / WORKING).write_text(json.dumps(facts))
        holder.send_signal(signal.SIGSTOP)
        assert [outcome for _, outcome in made.outcomes(idle)] == [Outcome("complete")]
    line = f"busy: process {holder.pid} works on it and was stopped: kill -CONT {holder.pid}, or kill -9 {holder.pid}"
    assert output == ["busy: another process is working on it", line]  # once


def test_a_run_that_another_process_holds_is_waited_for(engine_of, tmp_path):
    made, output = engine_of(busy=[worker.CODES["busy"], 0])
    looks = []

    def idle():
        looks.append(len(made.executor.jobs))
        if len(looks) == 3:
            held.close()  # the other process is done

    with contextlib.ExitStack() as held:
        held.enter_context(files.lock(tmp_path / "busy" / ".lock"))
        found = [(task.name, outcome) for task, outcome in made.outcomes(idle)]
    assert found == [("busy", Outcome("complete"))] and output == ["busy: another process is working on it"]
    assert looks[:3] == [1, 1, 1] and looks[-1] == 2  # not handed over again while it was held


def test_stopping_lets_workers_see_the_stop_file_and_works_without_one(tmp_path):
    """Dask's futures can be cancelled at once, and then nobody would look; a full disk may refuse the file."""
    process = {"folder": str(tmp_path), "home": str(tmp_path), "environment": {}, "stages": ["x"], "kernel": "python3"}
    for folder in (tmp_path, tmp_path / "gone"):
        pool = executors.Local(1, print, threads=1)
        made = Engine(pool, folder, lambda: "python3", print)
        seen = []

        def waits(job, say, should_stop, seen=seen):
            deadline = time.monotonic() + 10
            while not should_stop() and time.monotonic() < deadline:
                time.sleep(0.01)
            seen.append(should_stop())
            return {"code": 128, "remarks": [], "error": ""}

        made.running = {pool.submit(waits, process): Task("run", folder, ("x",))}
        started = time.monotonic()
        made.stop()
        assert seen == [True] and time.monotonic() - started < 2
        made.close()
        assert not list(tmp_path.glob(".stop*"))


def test_an_executor_that_is_gone_is_told_apart_from_a_run_that_failed(engine_of):
    made, _ = engine_of(run=["cancelled"])
    with pytest.raises(PlacementLost):
        list(made.outcomes())


def test_a_machine_that_does_not_see_the_folder_says_so(tmp_path):
    outcome = executors.perform({"folder": str(tmp_path / "elsewhere")})
    assert outcome["code"] is None and f"does not see the folder {tmp_path / 'elsewhere'}" in outcome["error"]


@pytest.mark.parametrize(
    ("cores", "gpus", "wanted", "runs_", "processes", "width", "threads", "devices"),
    [
        (8, "", 0, 24, 1, 8, 1, None),
        (8, "", 0, 2, 1, 3, 4, None),  # both runs begin at once: a third place is for 01
        (2, "", 0, 1, 1, 2, 2, None),
        (8, "", 3, 24, 1, 3, 2, None),
        (8, "", 0, 24, 4, 2, 4, None),
        (1, "", 0, 24, 4, 1, 1, None),
        (8, "0,1,2,3", 0, 24, 1, 4, 2, ["0", "1", "2", "3"]),
        (8, "0,1,2,3", 0, 24, 2, 2, 4, ["0,1", "2,3"]),
        (8, "0,1", 4, 24, 1, 4, 2, ["0", "1", "0", "1"]),
    ],
)
def test_cores_and_gpus_are_shared_out(monkeypatch, cores, gpus, wanted, runs_, processes, width, threads, devices):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    pool, _ = executors.local(wanted, runs_, processes, print)
    slots = [pool._slots.get() for _ in range(width)]
    assert pool.width == width and {slot["OMP_NUM_THREADS"] for slot in slots} == {str(threads)}
    assert [slot.get("CUDA_VISIBLE_DEVICES") for slot in slots] == (devices or [None] * width)
    pool.shutdown()


def test_a_slot_goes_to_one_run_at_a_time(monkeypatch):
    pool = executors.Local(2, print, threads=1, gpus=["0", "1"])
    job = {"environment": {"MINE": "1"}}
    futures = [pool.submit(lambda job, say, should_stop: job["environment"], job) for _ in range(6)]
    found = [future.result() for future in futures]
    assert {env["CUDA_VISIBLE_DEVICES"] for env in found} <= {"0", "1"} and all(env["MINE"] == "1" for env in found)
    pool.shutdown()


def test_what_a_killed_sweep_left_of_its_stop_file_is_removed_with_its_partial_files(tmp_path):
    made = Engine(Scripted({}), tmp_path, lambda: "python3", print)
    with subprocess.Popen(["true"]) as over:
        pass
    mine, dead = made.stop_file, made.stop_file.name.replace(f".{os.getpid()}@", f".{over.pid}@")
    mine.touch()
    (tmp_path / dead).touch()
    files.remove_stale_partials(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [mine.name]


def test_no_dask_scheduler_is_one_clear_line(tmp_path):
    pytest.importorskip("distributed")
    with pytest.raises(InputError, match="--scheduler nonsense://x: no Dask scheduler answers there"):
        executors.cluster("nonsense://x", tmp_path)


def test_a_run_process_says_by_its_exit_code_how_it_ended(make_run, monkeypatch, tmp_path):
    run = make_run()
    settings = run.config.model_dump(exclude_defaults=True)
    assert worker.execute_stages(run.path, ["02_train"], {"lr": -1}) == "failed"
    assert run.read_json(OUTCOME)["error"].startswith("settings: lr = -1")
    with run.locked():
        monkeypatch.delenv("FRUITLIB_LOCK_HELD")  # as another process sees it
        assert worker.execute_stages(run.path, ["02_train"], settings) == "busy"

    def full(*_, **__):
        raise OSError(28, "No space left on device", str(run.path / "x"))

    monkeypatch.setattr(worker, "execute_notebook", full)
    assert worker.execute_stages(run.path, ["02_train"], settings) == "disk_full"
    assert run.read_json(OUTCOME)["error"].endswith("x: No space left on device")
    assert not (run.path / WORKING).exists()


@pytest.mark.parametrize(
    ("code", "words"),
    [(5, "it ended with exit code 5"), (-15, "killed by SIGTERM"), (-40, "killed by signal 40")],
)
def test_the_ending_of_a_process_in_words(code, words):
    assert machine.ending(code) == words


def test_what_a_job_takes_along(monkeypatch):
    monkeypatch.setenv("FRUITLIB_CACHE", "/somewhere")
    assert executors.environment() == {"FRUITLIB_CACHE": "/somewhere"}
    monkeypatch.delenv("FRUITLIB_CACHE")
    assert executors.environment() == {}
