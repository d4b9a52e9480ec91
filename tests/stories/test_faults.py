"""Sweeps that are killed, stopped, starved of disk or shared: nothing lost, nothing done twice, the same numbers.

The kills are real ones. Numbers are those of one undisturbed sweep of the same params file (`reference`).
"""

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
import yaml

from fruitlib.sweep.worker import COMPARISON_STAGES

HOME = Path(__file__).parents[2]
NUMBERS = ["run", "state", "accuracy", "macro_f1", "val_loss", "best_epoch", "int8_agreement", "test_accuracy"]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="signals and kills as on Unix")


class House:
    """A project folder of its own with the real notebooks, in whose environment sweeps are started."""

    def __init__(self, folder: Path, sockets: Path):
        self.folder = folder
        self.environment = os.environ | {"FRUITLIB_HOME": str(folder), "XDG_RUNTIME_DIR": str(sockets)}
        self.environment |= {"OMP_NUM_THREADS": "1", "FRUITLIB_KERNELS_IDLE": "120"}

    def start(self, name: str, *options: str) -> subprocess.Popen:
        """`fruitlib sweep NAME.yaml` as from a terminal."""
        command = [sys.executable, "-m", "fruitlib.cli", "sweep", str(self.folder / f"{name}.yaml"), *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=self.environment, start_new_session=True, **pipes)

    def sweep(self, name: str, *options: str) -> str:
        """The same, to its end; what it said."""
        process = self.start(name, *options)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        return output

    def results(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.folder / "executed" / name / "results.csv")[NUMBERS]

    def working(self, name: str) -> list[dict]:
        """What run processes say they are doing."""
        found = []
        for path in (self.folder / "executed" / name).glob("lr=*/.working.json"):
            try:
                found.append(json.loads(path.read_text()) | {"run": path.parent})
            except OSError:
                continue
        return found

    def starters(self, word: str = "") -> list[psutil.Process]:
        """Processes that bear this house's environment: sweeps, and the stand-ins of runs and kernels; with a word on
        their command line, if need be."""
        found = []
        for process in psutil.process_iter():
            try:
                words = " ".join(process.cmdline())
                mine = process.environ().get("FRUITLIB_HOME") == str(self.folder)
                if mine and word in words and "fruitlib.kernels.zygote" not in words:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def zygotes(self) -> list[psutil.Process]:
        mine = self.environment["XDG_RUNTIME_DIR"]
        return [p for p in psutil.process_iter(["cmdline"]) if any(mine in word for word in p.info["cmdline"] or [])]

    def left(self) -> list[psutil.Process]:
        """Whatever still runs on a sweep's behalf: but for the zygotes, which stay for the next one."""
        found, zygotes = self.starters(), self.zygotes()
        for process in zygotes:  # and their children, which bear the same name
            try:
                found += [process] if process.ppid() in {zygote.pid for zygote in zygotes} else []
            except psutil.Error:
                continue
        return found


def wait_until(condition, seconds: float = 90):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def house(tmp_path_factory, shapes):
    folder, sockets = tmp_path_factory.mktemp("house"), Path(f"/tmp/fruit-{os.getpid()}")
    sockets.mkdir()
    (folder / "notebooks").symlink_to(HOME / "notebooks")
    settings = {
        "val_per_class": 4,
        "test_per_class": 4,
        "image_size": 32,
        "epochs": 40,
        "batch_size": 8,
        "cam_every": 0,
    }
    settings |= {"title": "Tiny", "data": str(shapes), "grid": {"lr": [0.003, 0.01]}}
    for name in ("reference", "once_more", "stopped", "shared", "starved", "cluster"):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    del settings["grid"]
    space = {"lr": {"low": 0.001, "high": 0.01, "log": True}, "optimizer": ["adam", "sgd"]}
    settings |= {"epochs": 10, "search": {"trials": 4, "space": space, "pruner": "median"}}
    (folder / "search.yaml").write_text(yaml.safe_dump(settings))
    house = House(folder, sockets)
    yield house
    for process in house.zygotes():
        process.kill()
    shutil.rmtree(sockets)


@pytest.fixture(scope="module")
def reference(house):
    house.sweep("reference")
    found = house.results("reference")
    assert found["state"].tolist() == ["complete"] * 2 and found["test_accuracy"].notna().sum() == 1
    folder = house.folder / "executed" / "reference"
    assert all((folder / f"{stage}.html").is_file() for stage in COMPARISON_STAGES)
    assert (folder / "effects.csv").read_bytes() == (folder / "insight.csv").read_bytes()  # the index and 08 agree
    return found


def in_training(house, name: str) -> list[dict]:
    """Wait until a run trains, and has written at least one epoch."""
    return wait_until(
        lambda: [
            one for one in house.working(name) if one["stage"] == "02_train" and (one["run"] / "last.pt").is_file()
        ]
    )


def test_what_is_killed_under_a_sweep_is_tried_once_more(house, reference):
    """The kernel of one run, and then the process of the other."""
    process = house.start("once_more")
    first = in_training(house, "once_more")[0]["run"]
    kernels = [p for p in house.starters("ipykernel_launcher") if p.environ().get("FRUITLIB_LOCK_HELD") == str(first)]
    kernels[0].kill()
    other = wait_until(lambda: [one for one in in_training(house, "once_more") if one["run"] != first])
    os.kill(other[0]["pid"], signal.SIGKILL)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert output.count("; once more") == 2 and output.count("and goes on from there") == 2
    pd.testing.assert_frame_equal(house.results("once_more"), reference, check_exact=True)
    assert wait_until(lambda: not house.left(), 10)


def test_stopped_and_killed_a_sweep_leaves_nobody_behind_and_goes_on(house, reference):
    """Ctrl-C, then kill -9 of the sweep alone, then to the end."""
    process = house.start("stopped")
    in_training(house, "stopped")
    process.send_signal(signal.SIGINT)
    stopped = time.monotonic()
    output, _ = process.communicate(timeout=20)
    assert time.monotonic() - stopped < 4  # two seconds, on a machine that has nothing else to do
    assert process.returncode == 130 and "stopped. Run the same command again" in output and "Traceback" not in output
    assert wait_until(lambda: not house.left(), 3)
    process = house.start("stopped")
    in_training(house, "stopped")
    process.kill()
    process.communicate()
    assert wait_until(lambda: not house.left(), 5)
    assert "and goes on from there" in house.sweep("stopped")
    pd.testing.assert_frame_equal(house.results("stopped"), reference, check_exact=True)
    leftovers = [path.name for path in (house.folder / "executed" / "stopped").rglob(".*")]
    assert [name for name in leftovers if not name.endswith(".lock")] == []


def test_two_sweeps_on_one_folder_share_the_work(house, reference):
    both = [house.start("shared") for _ in range(2)]
    output = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], output
    assert any("another process is working on it" in text for text in output)
    pd.testing.assert_frame_equal(house.results("shared"), reference, check_exact=True)
    assert len(pd.read_csv(house.folder / "executed" / "shared" / "test_openings.csv")) == 1
    assert not any("cut off" in text or "once more" in text for text in output)


def test_a_full_disk_is_told_and_what_was_done_is_kept(house, reference):
    folder = house.folder / "executed" / "starved"
    folder.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a disk that can be filled needs the right to mount one")
    try:
        process = house.start("starved")
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 1 and "No space left on device" in output and "Traceback" not in output
        subprocess.run(["mount", "-o", "remount,size=100m", str(folder)], check=True)
        house.sweep("starved")
        pd.testing.assert_frame_equal(house.results("starved"), reference, check_exact=True)
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
    """A worker, which costs nothing; then the scheduler, which is told; the rest is done here."""
    scheduler, address = cluster
    workers_there(address)
    process = house.start("cluster", "--scheduler", address)
    lost = in_training(house, "cluster")[0]
    worker = house.starters("--name one")[0]
    worker.kill()
    wait_until(lambda: [one for one in in_training(house, "cluster") if one["pid"] != lost["pid"]])
    scheduler.kill()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "run the same command again" in output and "Traceback" not in output
    assert "2 at a time on 2 Dask workers" in output
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
    output = house.sweep("search")
    assert "4 trials in executed/search" in output
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    study = optuna.load_study(study_name="fruitlib", storage=optuna.storages.JournalStorage(backend))
    assert [trial.number for trial in study.trials] == [0, 1, 2, 3]
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}
    folders = sorted(path.name for path in journal.parent.glob("trial=*"))
    table = pd.read_csv(journal.parent / "results.csv").set_index("run")
    assert sorted(table.index) == folders and len(folders) == 4
    for trial in study.trials:
        row = table.loc[next(name for name in folders if name.startswith(f"trial={trial.number},"))]
        assert trial.value == pytest.approx(row["macro_f1"]) and row["lr"] == pytest.approx(trial.params["lr"])
    before = {path: path.stat().st_mtime_ns for path in journal.parent.rglob("*.ipynb")}
    house.sweep("search")
    assert {path: path.stat().st_mtime_ns for path in journal.parent.rglob("*.ipynb")} == before  # nothing left to do
