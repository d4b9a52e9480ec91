"""What several test files share: drawn photos, project folders to sweep in, groups of forked processes."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
TINY = {"val_per_class": 4, "test_per_class": 4, "image_size": 32, "batch_size": 8, "cam_every": 0, "title": "Tiny"}
TINY |= {"int8_speedup": 0}  # whether INT8 is delivered depends on no stopwatch
WILD = "lr=10.0,momentum=0.99,optimizer=sgd"  # the run of the finished sweep that diverges
# Columns of results.csv that are equal, to the last bit, however often a sweep was killed.
NUMBERS = ["run", "state", "accuracy", "macro_f1", "val_loss", "kept_epoch", "int8_agreement", "test_accuracy"]


def draw_shapes(folder: Path, per_class: int = 16, size: int = 40) -> Path:
    """Three classes distinguished by shape at random places and colours, which a small network learns in seconds."""
    for label, shape in enumerate(("disc", "bar", "cross")):
        (folder / shape).mkdir(parents=True)
        for number in range(per_class):
            rng = np.random.default_rng([label, number])
            picture = Image.new("RGB", (size, size), tuple(int(v) for v in rng.integers(0, 90, 3)))
            pen, colour = ImageDraw.Draw(picture), tuple(int(v) for v in rng.integers(150, 255, 3))
            x, y = (int(v) for v in rng.integers(size // 3, size * 2 // 3, 2))
            r = size // 4
            if shape == "disc":
                pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
            if shape in ("bar", "cross"):
                pen.rectangle((x - 3, y - r, x + 3, y + r), fill=colour)
            if shape == "cross":
                pen.rectangle((x - r, y - 3, x + r, y + 3), fill=colour)
            picture.save(folder / shape / f"{number:03d}.png")
    return folder


def assert_table_in_docstring(function: Callable, table: pd.DataFrame, times: int) -> None:
    """Every row of a simulated table of shares stands in the docstring, within what so many repetitions can show.

    That is three standard errors, and the two digits of the docstring.
    """
    lines = [line.strip() for line in (function.__doc__ or "").splitlines()]
    for label, row in table.iterrows():
        found = [line.removeprefix(str(label)).split() for line in lines if line.startswith(f"{label}  ")]
        assert any(len(numbers) == len(row) and _near(numbers, row, times) for numbers in found), (label, list(row))


def _near(texts: list[str], row: pd.Series, times: int) -> bool:
    published, found = np.array(texts, float), row.to_numpy(float)
    error = np.sqrt(np.maximum(published * (1 - published), 0.02) / times)
    return bool((np.abs(published - found) <= 3 * error + 0.01).all())


def wait_until(condition: Callable, seconds: float = 90):
    """The condition's value as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} seconds"
        time.sleep(0.02)
    return value


# ---- project folders


def link_notebooks(folder: Path, empty: tuple[str, ...] = ()) -> None:
    """Put the real notebooks into a project folder; `empty` names those that are replaced by a notebook of one cell.

    A sweep executes a dozen notebooks. Where a test is about something else, those that write no number into
    results.csv may be empty.
    """
    (folder / "notebooks").mkdir(exist_ok=True)
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        link = folder / "notebooks" / path.name
        link.unlink(missing_ok=True)
        if path.stem in empty:
            empty_notebook(link)
        else:
            link.symlink_to(path)


def empty_notebook(path: Path) -> None:
    """A notebook that takes any parameters and does nothing."""
    import nbformat  # two seconds, which processes that tests fork need not spend

    cell = nbformat.v4.new_code_cell("pass", metadata={"tags": ["parameters"]})
    kernel = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel}), path)


class House:
    """A project folder of its own with notebooks, in whose environment sweeps are started."""

    def __init__(self, folder: Path, sockets: Path | None = None):
        self.folder = folder
        self.environment = os.environ | {"FRUITLIB_HOME": str(folder), "OMP_NUM_THREADS": "1"}
        self.environment |= {"FRUITLIB_KERNELS_IDLE": "120"}
        if sockets:  # with a zygote of its own, which may be killed
            self.environment |= {"XDG_RUNTIME_DIR": str(sockets)}

    def start(self, name: str, *options: str) -> subprocess.Popen:
        """`fruitlib sweep NAME.yaml` as from a terminal."""
        command = [sys.executable, "-m", "fruitlib.cli", "sweep", str(self.folder / f"{name}.yaml"), *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=self.environment, start_new_session=True, **pipes)

    def sweep(self, name: str, *options: str) -> str:
        """The same, to its end; returns what it printed."""
        process = self.start(name, *options)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        return output

    def results(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.folder / "executed" / name / "results.csv")[NUMBERS]

    def working(self, name: str) -> list[dict]:
        """What run processes write that they are doing: stage, pid, and the run's folder."""
        rows = []
        for path in (self.folder / "executed" / name).glob("*=*/.working.json"):
            try:
                rows.append(json.loads(path.read_text()) | {"run": path.parent})
            except (OSError, ValueError):
                continue
        return rows

    def starters(self, word: str = "") -> list[psutil.Process]:
        """Processes with this house's environment: sweeps, and the stand-ins of runs and kernels; those with a word on
        their command line, where one is given."""
        processes = []
        for process in psutil.process_iter():
            try:
                words = " ".join(process.cmdline())
                mine = process.environ().get("FRUITLIB_HOME") == str(self.folder)
                if mine and word in words and "fruitlib.kernels.zygote" not in words:
                    processes.append(process)
            except psutil.Error:
                continue
        return processes

    def zygotes(self) -> list[psutil.Process]:
        mine = self.environment["XDG_RUNTIME_DIR"]
        return [p for p in psutil.process_iter(["cmdline"]) if any(mine in word for word in p.info["cmdline"] or [])]

    def left(self) -> list[psutil.Process]:
        """Whatever still runs on a sweep's behalf: but for the zygotes, which stay for the next one."""
        processes, zygotes = self.starters(), self.zygotes()
        for process in zygotes:  # and their children, which have the same command line
            try:
                processes += [process] if process.ppid() in {zygote.pid for zygote in zygotes} else []
            except psutil.Error:
                continue
        return processes


def write_finished_sweep(folder: Path) -> None:
    """A project folder with one sweep, executed to its end: two runs that go well and one that diverges.

    `output.json` holds how the command ended and what it printed.
    """
    folder.mkdir()
    (folder / "notebooks").symlink_to(ROOT / "notebooks")
    wild = {"lr": 10.0, "optimizer": "sgd", "momentum": 0.99}
    settings = TINY | {"epochs": 40, "data": str(draw_shapes(folder / "shapes"))}
    settings["list"] = [{"lr": 0.003}, {"lr": 0.01}, wild]
    (folder / "tiny.yaml").write_text(json.dumps(settings))  # which is YAML too
    command = [sys.executable, "-m", "fruitlib.cli", "sweep", str(folder / "tiny.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, env=House(folder).environment)
    output = {"returncode": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
    (folder / "output.json").write_text(json.dumps(output))


# ---- groups of processes


def forkserver() -> multiprocessing.context.BaseContext:
    """Forks processes that have everything imported, and compute with one thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fruitlib.training.train"])
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        from multiprocessing.forkserver import ensure_running

        ensure_running()
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before:
            os.environ["OMP_NUM_THREADS"] = before
    return context


def train_as_rank(path: str, rank: int, processes: int, store: str, failures) -> None:
    """The life of one process of `launch_by_fork`."""
    import torch
    import torch.distributed as dist

    from fruitlib.runs.run import Run
    from fruitlib.training import train

    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ.update({name: str(number) for name, number in numbers.items()})
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=processes)
        train.train(Run(Path(path)), lambda history: None)
        dist.barrier()
        dist.destroy_process_group()
    except Exception as problem:
        failures.put(f"{type(problem).__name__}: {problem}")
        os._exit(1)


def launch_by_fork(run, on_epoch: Callable) -> None:
    """In place of `distributed.launch`: the same gloo group of workers, forked in a moment.

    For tests of what several processes compute. How they start, fail and end has its own.
    """
    context, processes = forkserver(), run.config.processes
    failures, store, seen = context.SimpleQueue(), run.path / ".store", 0
    store.unlink(missing_ok=True)
    workers = [
        context.Process(target=train_as_rank, args=(str(run.path), rank, processes, str(store), failures))
        for rank in range(processes)
    ]
    for worker in workers:
        worker.start()
    try:
        while any(worker.is_alive() for worker in workers):
            if len(history := run.history()) > seen:
                seen = len(history)
                on_epoch(history)
            if any(worker.exitcode for worker in workers):
                break
            time.sleep(0.01)
    finally:
        for worker in workers:
            worker.join(5)
            worker.kill()
            worker.join()
        store.unlink(missing_ok=True)
    if any(worker.exitcode for worker in workers):
        reason = failures.get() if not failures.empty() else "a process was lost"
        raise RuntimeError(f"training in {processes} processes failed: {reason}")
