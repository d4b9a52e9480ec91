"""Sweeps that are killed, stopped, short of disk space or shared: nothing lost, nothing done twice, the same numbers.

The kills are real ones. Numbers are those of one undisturbed sweep over the same runs (`reference`).
"""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from support import NUMBERS, TINY, House, link_notebooks, wait_until

from fruitlib.evaluation.study import load_study
from fruitlib.evaluation.sweep_answers import INSIGHT, write_effects

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="signals and kills as on Unix")
GRID = {"lr": [0.003, 0.01]}


@pytest.fixture(scope="module")
def house(tmp_path_factory, finished_sweep):
    """Params files on the photos of the finished sweep. Notebooks that write no number into results.csv are empty."""
    folder, sockets = tmp_path_factory.mktemp("house"), Path(f"/tmp/fruit-{os.getpid()}")
    sockets.mkdir()
    link_notebooks(folder, empty=("01_split", "04_gradcam", "07_compare", "08_insight"))
    settings = TINY | {"data": str(finished_sweep / "shapes"), "epochs": 40}
    space = {"lr": {"low": 0.001, "high": 0.01, "log": True}, "optimizer": ["adam", "sgd"]}
    search = {"trials": 3, "space": space, "pruner": "median"}
    plans = {
        "killed": settings | {"grid": GRID},
        "full_disk": settings | {"grid": {"lr": [0.01]}},
        "cluster": settings | {"grid": GRID},
        "search": settings | {"epochs": 10, "search": search},
    }
    for name, plan in plans.items():
        (folder / f"{name}.yaml").write_text(json.dumps(plan))  # which is YAML too
    house = House(folder, sockets)
    for name, place in {"TMPDIR": "t", "JUPYTER_RUNTIME_DIR": "j"}.items():  # paths of sockets must be short
        (sockets / place).mkdir()
        house.environment[name] = str(sockets / place)
    house.environment["FRUITLIB_STALL_SECONDS"] = "30"  # a fifth of it for what was stopped
    yield house
    for process in house.zygotes():
        process.kill()
    shutil.rmtree(sockets)


@pytest.fixture(scope="module")
def reference(finished_sweep) -> pd.DataFrame:
    """The two runs of the finished sweep that went well."""
    table = pd.read_csv(finished_sweep / "executed" / "tiny" / "results.csv")[NUMBERS]
    table = table[table["run"].isin(["lr=0.003", "lr=0.01"])].reset_index(drop=True)
    table["kept_epoch"] = table["kept_epoch"].astype(int)  # the third has none
    assert table["state"].tolist() == ["complete"] * 2 and table["test_accuracy"].notna().sum() == 1
    return table


def test_the_sweep_and_08_write_the_same_insight(finished_sweep, tmp_path):
    folder = shutil.copytree(finished_sweep / "executed" / "tiny", tmp_path / "tiny")
    of_sweep = (folder / INSIGHT).read_bytes()
    write_effects(load_study(folder))  # as 08 does
    assert (folder / INSIGHT).read_bytes() == of_sweep


def in_training(house, name: str) -> list[dict]:
    """Wait until a run trains, and has written at least one epoch."""
    return wait_until(
        lambda: [
            one for one in house.working(name) if one["stage"] == "02_train" and (one["run"] / "last.pt").is_file()
        ]
    )


def kill_what_works(house, name: str) -> set[Path]:
    """Kill the kernel of one run and the process of the other; returns when both are at work again."""
    first = in_training(house, name)[0]
    kernels = house.starters("ipykernel_launcher")
    mine = [kernel for kernel in kernels if kernel.environ().get("FRUITLIB_LOCK_HELD") == str(first["run"])]
    mine[0].kill()
    second = wait_until(lambda: [one for one in in_training(house, name) if one["run"] != first["run"]])[0]
    os.kill(second["pid"], signal.SIGKILL)
    for killed in (first, second):
        pid = killed["pid"]
        wait_until(
            lambda run=killed["run"], pid=pid: [
                one for one in house.working(name) if one["run"] == run and one["pid"] != pid
            ]
        )
    return {first["run"], second["run"]}


def stop_what_works(house, name: str) -> None:
    """Stop (SIGSTOP) the process of a run in training; returns when another one works on it."""
    stopped = in_training(house, name)[0]
    os.kill(stopped["pid"], signal.SIGSTOP)
    wait_until(
        lambda: [one for one in house.working(name) if one["run"] == stopped["run"] and one["pid"] != stopped["pid"]]
    )


def listening(house) -> set[str]:
    """The network addresses that the processes of a sweep listen on."""
    found: set[str] = set()
    for process in house.left() + house.zygotes():
        with contextlib.suppress(psutil.Error):
            found |= {one.laddr.ip for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN}
    return found


def left_behind(house, name: str) -> list[str]:
    """Temporary folders, connection files, and parts of files of a sweep."""
    places = [Path(house.environment[place]) for place in ("TMPDIR", "JUPYTER_RUNTIME_DIR")]
    left = [path.name for place in places for path in place.iterdir() if path.name.startswith(("fruit", "kernel", "k"))]
    hidden = [path.name for path in (house.folder / "executed" / name).rglob(".*")]
    return left + [text for text in hidden if not text.endswith(".lock")]


def share_to_the_end(house, name: str) -> tuple[list[str], dict]:
    """Two sweeps at once on one folder; returns what they printed, and who worked on each stage of each run."""
    both, pids = [house.start(name) for _ in range(2)], {}
    while any(process.poll() is None for process in both):
        for one in house.working(name):
            pids.setdefault((one["run"], one["stage"]), set()).add(one["pid"])
        time.sleep(0.05)
    printed = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    return printed, pids


def test_killed_stopped_and_shared_a_sweep_ends_with_the_numbers_of_an_undisturbed_one(house, reference):
    """Kill -9 of a kernel and of a run's process, Ctrl-C; a stopped process, kill -9 of the sweep; then two sweeps at
    once, to the end.
    """
    process = house.start("killed")
    runs = kill_what_works(house, "killed")  # each is tried once more, in the same sweep
    assert listening(house) <= {"127.0.0.1"}  # ipykernel's, for what forked processes print

    slow = in_training(house, "killed")[0]
    os.kill(slow["pid"], signal.SIGSTOP)  # it cannot clean up after itself, as on a machine that is busy
    process.send_signal(signal.SIGINT)
    stopped = time.monotonic()
    output, _ = process.communicate(timeout=20)
    assert time.monotonic() - stopped < 8  # three seconds, on a machine that has nothing else to do
    assert process.returncode == 130 and "Traceback" not in output
    assert wait_until(lambda: not house.left(), 3)
    assert left_behind(house, "killed") == []

    process = house.start("killed")
    stop_what_works(house, "killed")
    process.kill()
    output, _ = process.communicate()
    assert "a process of it was stopped (SIGSTOP) for 6 s; it is started again" in output
    assert wait_until(lambda: not house.left(), 5)

    before = {run: pd.read_csv(run / "history.csv") for run in runs}
    printed, pids = share_to_the_end(house, "killed")
    assert not any("Traceback" in text for text in printed)
    assert all(len(workers) == 1 for workers in pids.values()), pids  # neither took the other's work for abandoned
    for run, history in before.items():
        with_checkpoint = len(history) - 1  # the last one's may not have been written any more
        kept = pd.read_csv(run / "history.csv")["seconds"].head(with_checkpoint)
        assert len(history) and kept.equals(history["seconds"].head(with_checkpoint))  # these were not trained again
    pd.testing.assert_frame_equal(house.results("killed"), reference, check_exact=True)
    assert len(pd.read_csv(house.folder / "executed" / "killed" / "test_openings.csv")) == 1
    assert left_behind(house, "killed") == []
    assert wait_until(lambda: not house.left(), 10)


def test_on_a_full_disk_a_sweep_says_so_and_goes_on_when_there_is_room(house, reference):
    folder = house.folder / "executed" / "full_disk"
    folder.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a disk that can be filled needs the right to mount one")
    try:
        process = house.start("full_disk")
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 1 and os.strerror(errno.ENOSPC) in output and "Traceback" not in output
        subprocess.run(["mount", "-o", "remount,size=100m", str(folder)], check=True)
        house.sweep("full_disk")
        numbers = [name for name in NUMBERS if name != "test_accuracy"]  # which the other run has there
        alone, expected = house.results("full_disk"), reference[reference["run"] == "lr=0.01"].reset_index(drop=True)
        pd.testing.assert_frame_equal(alone[numbers], expected[numbers], check_exact=True)
        assert alone["test_accuracy"].notna().all()
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def cluster(house, tmp_path):
    """A Dask scheduler and two workers, over TCP on loopback; the scheduler's process and address."""
    pytest.importorskip("distributed")
    where = tmp_path / "scheduler.json"
    options = {"env": house.environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    scheduler = subprocess.Popen([*command, "--no-dashboard", "--scheduler-file", str(where)], **options)

    def address_written():
        try:
            return json.loads(where.read_text())["address"]
        except (OSError, ValueError):  # not there, or half written
            return None

    started = [scheduler]
    try:
        address = wait_until(address_written)
        command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard"]
        for name in ("one", "two"):
            started.append(subprocess.Popen([*command, "--no-nanny", "--name", name], **options))
        yield scheduler, address
    finally:
        for process in started:
            process.kill()
            process.wait()


def workers_there(address: str) -> None:
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)


def test_a_cluster_gives_the_same_results_whatever_is_lost_of_it(house, reference, cluster):
    """A worker, which costs nothing; then the scheduler, which ends the sweep; the rest is done here."""
    scheduler, address = cluster
    workers_there(address)
    process = house.start("cluster", "--scheduler", address)
    lost = in_training(house, "cluster")[0]
    worker = house.starters("--name one")[0]
    worker.kill()
    wait_until(lambda: [one for one in in_training(house, "cluster") if one["pid"] != lost["pid"]])
    scheduler.kill()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in output
    assert "2 Dask workers" in output
    house.sweep("cluster")
    pd.testing.assert_frame_equal(house.results("cluster"), reference, check_exact=True)


def test_a_killed_search_loses_no_trial_and_doubles_none(house):
    import optuna

    process = house.start("search")
    journal = house.folder / "executed" / "search" / "search.journal"
    wait_until(lambda: list(journal.parent.glob("trial=1,*/.working.json")))
    process.kill()
    process.communicate()
    with journal.open("ab") as file:
        file.write(b'{"op_code": 5, "torn')  # as a kill in the midst of writing leaves it
    house.sweep("search")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    study = optuna.load_study(study_name="fruitlib", storage=optuna.storages.JournalStorage(backend))
    assert [trial.number for trial in study.trials] == [0, 1, 2]
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}
    folders = sorted(path.name for path in journal.parent.glob("trial=*"))
    table = pd.read_csv(journal.parent / "results.csv").set_index("run")
    assert sorted(table.index) == folders and len(folders) == 3
    for trial in study.trials:
        row = table.loc[next(name for name in folders if name.startswith(f"trial={trial.number},"))]
        assert trial.value == pytest.approx(row["macro_f1"]) and row["lr"] == pytest.approx(trial.params["lr"])
    before = {path: path.stat().st_mtime_ns for path in journal.parent.rglob("*.ipynb")}
    house.sweep("search")
    assert {path: path.stat().st_mtime_ns for path in journal.parent.rglob("*.ipynb")} == before  # nothing left to do
