"""Fifty kills at random moments over sweeps of a small grid and a small search: none lost, none doubled, nothing left.

Each time, a sweep is started and, some seconds later, something of it gets a signal, mostly SIGKILL: the sweep itself,
a run's process, a kernel's stand-in, the zygote that all are forked from or one of its children, or all of them. Then
it is started again. A grid that gets through must have the numbers of an undisturbed one, and is begun anew; the search
goes on through all kills, and in the end each of its trials must stand in the journal once, with the score in its run
folder. After each kill no process may be left but one zygote, and in the end no temporary folder and no socket.

    python tests/soak.py [--kills 50] [--seed 0]
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import optuna
import pandas as pd
import psutil
import yaml
from support import House, draw_shapes

ROOT = Path(__file__).resolve().parents[1]
VICTIMS = ("sweep", "run", "kernel", "zygote", "everything")
GENTLE = {"sweep": ("SIGTERM", "SIGINT"), "run": ("SIGSTOP", "SIGTERM"), "kernel": ("SIGSTOP", "SIGINT")}
GENTLE |= {"zygote": ("SIGSTOP", "SIGTERM"), "everything": ()}
STALL = "100"  # seconds without progress until a run is given up; a tenth of them for a process that was stopped


def prepare(folder: Path) -> House:
    """A project folder with a grid and a search of seconds-long runs."""
    (folder / "notebooks").symlink_to(ROOT / "notebooks")
    (folder / "r").mkdir()
    photos = draw_shapes(folder / "shapes")
    settings = {
        "val_per_class": 4,
        "test_per_class": 4,
        "image_size": 32,
        "epochs": 15,
        "batch_size": 8,
        "cam_every": 0,
    }
    settings |= {"data": str(photos)}
    grid = settings | {"grid": {"lr": [0.003, 0.01], "seed": [0, 1]}}
    for name in ("undisturbed", "grid"):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(grid))
    space = {"lr": {"low": 0.001, "high": 0.01, "log": True}, "optimizer": ["adam", "sgd"]}
    write_search(folder, settings | {"search": {"trials": 1000, "space": space, "pruner": "median"}})
    return House(folder, folder / "r")


def write_search(folder: Path, settings: dict) -> None:
    (folder / "search.yaml").write_text(yaml.safe_dump(settings))


def victims(house: House, name: str, sweep: subprocess.Popen, kind: str) -> list[int]:
    """The processes to kill: one, or all there are."""
    found = {"sweep": [sweep.pid], "run": [p.pid for p in house.starters("fruitlib.sweep.worker")]}
    found["kernel"] = [p.pid for p in house.starters("ipykernel_launcher")]
    found["zygote"] = [p.pid for p in house.zygotes()]
    if kind == "everything":
        return [pid for pids in found.values() for pid in pids]
    return random.sample(found[kind], 1) if found[kind] else []


def disturbed(house: House, name: str) -> tuple[bool, int]:
    """Start a sweep, kill something of it, and wait for its end; (whether it got through, kills)."""
    sweep = house.start(name)
    wait, kind, kills = random.uniform(1, 15), random.choice(VICTIMS), 0
    name_of_signal = random.choice(("SIGKILL", "SIGKILL", *GENTLE[kind]))
    try:
        sweep.wait(timeout=wait)
    except subprocess.TimeoutExpired:
        for pid in victims(house, name, sweep, kind):
            try:
                os.kill(pid, getattr(signal, name_of_signal))
                kills = 1
            except ProcessLookupError:
                continue
        if name == "search" and kind not in ("sweep", "everything"):
            time.sleep(random.uniform(1, 6))
            sweep.kill()  # it would go on for a thousand trials
    output, _ = sweep.communicate(timeout=600)
    assert "Traceback" not in output, output
    assert sweep.returncode in (0, 1, 130, -signal.SIGKILL, -signal.SIGTERM), output
    deadline = time.monotonic() + 10
    while (left := house.left()) or len(house.zygotes()) > 1:
        assert time.monotonic() < deadline, f"left behind: {left}, zygotes: {house.zygotes()}"
        time.sleep(0.1)
    what = name_of_signal if kills else "nothing to kill"
    print(f"{name}: {kind} after {wait:.1f} s: {what}, {sweep.returncode}", flush=True)
    return sweep.returncode == 0, kills


def check_grid(house: House, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(house.results("grid"), expected, check_exact=True)
    openings = pd.read_csv(house.folder / "executed" / "grid" / "test_openings.csv")
    assert len(openings) <= 2, openings  # a kill between the look and its record may cost a second one
    shutil.rmtree(house.folder / "executed" / "grid")
    print("grid: complete, with the numbers of the undisturbed one", flush=True)


def check_search(house: House) -> None:
    """Let the search end with the trials it has begun, and compare journal, folders and results."""
    folder = house.folder / "executed" / "search"
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "search.journal"))
    from fruitlib.sweep import search

    search.repair(folder / "search.journal")
    begun = len(optuna.load_study(study_name="fruitlib", storage=optuna.storages.JournalStorage(backend)).trials)
    settings = yaml.safe_load((house.folder / "search.yaml").read_text())
    settings["search"]["trials"] = begun
    write_search(house.folder, settings)
    house.sweep("search")
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "search.journal"))
    study = optuna.load_study(study_name="fruitlib", storage=optuna.storages.JournalStorage(backend))
    assert [trial.number for trial in study.trials] == list(range(begun))
    assert {trial.state.name for trial in study.trials} <= {"COMPLETE", "PRUNED"}
    table = pd.read_csv(folder / "results.csv").set_index("run")
    names = sorted(path.name for path in folder.glob("trial=*"))
    assert sorted(table.index) == names and len(names) == begun
    for trial in study.trials:
        row = table.loc[next(name for name in names if name.startswith(f"trial={trial.number},"))]
        if trial.state.name == "COMPLETE":
            assert abs(trial.value - row["macro_f1"]) < 1e-9, (trial.number, trial.value, row["macro_f1"])
    print(f"search: {begun} trials, each once", flush=True)


def check_nothing_left(house: House) -> None:
    """No temporary folder or connection file, no stop file or part of a file; with the zygote goes its socket."""
    left = [path for name in ("t", "j") for path in (house.folder / name).iterdir()]
    assert not [path for path in left if path.name.startswith(("fruit", "tmp", "kernel"))], left
    hidden = [path.name for path in (house.folder / "executed").rglob(".*") if not path.name.endswith(".lock")]
    assert not hidden, hidden
    for path in (house.folder / "r").rglob("*.sock"):
        path.unlink()  # the zygote leaves
    psutil.wait_procs(house.zygotes(), timeout=20)
    assert not house.zygotes() and not list((house.folder / "r").rglob("*.sock"))


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--kills", type=int, default=50)
    options.add_argument("--seed", type=int, default=0)
    options = options.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell starts in its background
    random.seed(options.seed)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="fs", ignore_cleanup_errors=True) as made:
        house, kills, grids, started = prepare(Path(made)), 0, 0, time.monotonic()
        os.environ["FRUITLIB_CACHE"] = house.environment["FRUITLIB_CACHE"] = f"{made}/cache"
        own = {"TMPDIR": f"{made}/t", "JUPYTER_RUNTIME_DIR": f"{made}/j", "FRUITLIB_STALL_SECONDS": STALL}
        house.environment |= own
        for name in ("t", "j"):
            (house.folder / name).mkdir()
        house.sweep("undisturbed")
        expected = house.results("undisturbed")
        while kills < options.kills:
            name = random.choice(["grid", "search"])
            through, killed = disturbed(house, name)
            kills += killed
            if name == "grid" and through:
                check_grid(house, expected)
                grids += 1
        house.sweep("grid")
        check_grid(house, expected)
        check_search(house)
        check_nothing_left(house)
        minutes = (time.monotonic() - started) / 60
        print(f"{kills} kills in {minutes:.0f} minutes, {grids + 1} grids whole, nothing lost, nothing doubled")


if __name__ == "__main__":
    main()
