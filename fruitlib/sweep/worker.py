"""A run's notebooks, executed by a process of its own.

    python -m fruitlib.sweep.worker RUN_FOLDER STAGE… --settings '{"lr": 0.01}'

The run's settings come with the command; `params.yaml` in the folder holds those that its results were made with, and
is written when the run begins. The folder's lock, which this process holds, decides which process works on it; what is
complete is not repeated. The exit code says how it ended (`CODES`), `outcome.json` in the folder why. So it does not
matter what starts this process, or where: `executors` does it on this machine or another one.

Killed at any moment, it leaves what the next one resumes from. With `--tied` it ends, and its kernel with it, when its
standard input does: so it never outlives the process that started it.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

from fruitlib.core import config as configs
from fruitlib.core import files, machine, progress
from fruitlib.core.config import Config
from fruitlib.core.errors import InputError, first_line
from fruitlib.data import splits
from fruitlib.kernels import kernelspec, launcher
from fruitlib.runs.run import OUTCOME, STOP, WORKING, Busy, Run, create_run
from fruitlib.runs.stages import code_fingerprint
from fruitlib.sweep.notebook import KernelLost, NotebookFailed, NotebookPruned, execute_notebook, kernel_folders

# argparse uses 2; any other code: the process was killed. disk_full is no fault of the run: it can be resumed later.
CODES = {"complete": 0, "failed": 1, "pruned": 3, "lost": 4, "disk_full": 5, "busy": 75}
FULL = 1 << 16  # bytes free, or fewer: torch reports a full disk as a RuntimeError without an errno
HEARTBEAT = 2.0  # seconds
SPLIT, BESIDE = "01_split", "05_quantize"
COMPARISON_STAGES = ("07_compare", "08_insight")  # over all of a sweep's runs
SWEEP_STAGES = (SPLIT, *COMPARISON_STAGES)  # they belong to a sweep's folder, not to a run's


def execute_stages(folder: Path, stages: list[str], settings: dict | None, kernel: str = "python3") -> str:
    """Execute those of a folder's notebooks that are not complete; returns a word of `CODES`.

    `settings` are those that differ from their defaults; None: those in the folder's `params.yaml`.
    """
    marker = _Marker(folder)
    try:
        kernel = _installed(kernel)
        if stages[0] in SWEEP_STAGES:
            with files.lock(folder / lock_of(stages), timeout=0):
                _execute_sweep_stage(folder, stages[0], configs.make(settings or {}), kernel, marker)
        else:
            run = Run(folder, None if settings is None else configs.make(settings))
            with run.locked():
                _clear_outcome(run, stages)
                _execute_run_stages(run, stages, kernel, marker)
        return "complete"
    except (Busy, files.Locked):
        return "busy"
    except NotebookPruned as problem:
        return _record_outcome(folder, "pruned", marker.stage, str(problem))
    except KernelLost as problem:
        return _record_outcome(folder, "lost", marker.stage, str(problem))
    except (NotebookFailed, InputError) as problem:
        disk_failure = getattr(problem, "disk_failure", False) or files.is_disk_failure(problem) or _is_full(folder)
        return _record_outcome(folder, "disk_full" if disk_failure else "failed", marker.stage, str(problem))
    except OSError as problem:
        state = "disk_full" if files.is_disk_failure(problem) else "failed"
        return _record_outcome(folder, state, marker.stage, files.os_error_text(problem))
    finally:
        marker.remove()


def lock_of(stages: Sequence[str]) -> str:
    """The lock file of whoever executes these stages in a folder."""
    return f".{stages[0]}.lock" if stages[0] in SWEEP_STAGES else ".lock"


def _is_full(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).free < FULL
    return True


def _installed(kernel: str) -> str:
    """The kernel, put into this machine's environment where it is a warm one; an ordinary one where it cannot be."""
    if kernel == kernelspec.NAME:
        try:
            kernelspec.install()
        except OSError as problem:
            print(f"kernels: cold: {files.os_error_text(problem)}", flush=True)
            return "python3"
    return kernel


def _record_outcome(folder: Path, state: str, stage: str, error: str) -> str:
    """Write down why a run is not complete, and say it where even that cannot be written."""
    finished = datetime.now().isoformat(timespec="seconds")
    try:
        files.write_json(folder / OUTCOME, {"state": state, "stage": stage, "error": error, "finished": finished})
    except OSError:
        print(f"{error} (and this cannot be written down)", file=sys.stderr, flush=True)
    return state


def _clear_outcome(run: Run, stages: list[str]) -> None:
    """What an earlier attempt left behind."""
    (run.path / OUTCOME).unlink(missing_ok=True)
    if "02_train" in stages and not run.is_complete("train"):
        (run.path / STOP).unlink(missing_ok=True)
    files.remove_stale_partials(run.path)


def _execute_run_stages(run: Run, stages: list[str], kernel: str, marker: "_Marker") -> None:
    """Execute those that are not complete, in their order; with more than one core 05, the longest, beside 03 and 04.

    An error in one of two that are executed side by side is raised when both have ended.
    """

    def execute(some: list[str]) -> None:
        for stage in some:
            if not run.is_complete(stage):
                try:
                    _execute_stage(run, stage, kernel, marker)
                except BaseException:
                    marker.stage = stage  # which failed, whatever else is worked on
                    raise

    first = [stage for stage in stages if stage in ("02_train", "metrics")]
    pages = [stage for stage in stages if stage not in (*first, BESIDE)]
    execute(first)
    if BESIDE in stages and pages and machine.requested_threads("OMP_NUM_THREADS") > 1:
        with ThreadPoolExecutor(1) as beside:
            other = beside.submit(execute, [BESIDE])
            execute(pages)
        other.result()
    else:
        execute([stage for stage in stages if stage not in first])


def _execute_stage(run: Run, stage: str, kernel: str, marker: "_Marker") -> None:
    if stage == "02_train" and (gone := cut_off(run)):
        print(f"{run.name}: training was cut off after epoch {gone} and goes on from there", flush=True)
    if run.is_complete("train"):  # notebooks after 02 read the settings from params.yaml, and some may be new
        create_run(run.path, run.config)
    marker.begins(stage)
    if stage == "metrics":
        _compute_metrics(run)
        return
    identity = run.identity(stage)
    facts = execute_notebook(
        stage, run.path / f"{stage}.ipynb", run.config, kernel, run_dir=files.display_path(run.path)
    )
    if facts["kernel"].startswith("cold: "):
        print(f"{run.name}: {stage} had a cold kernel ({facts['kernel'][6:]})", flush=True)
    run.complete(stage, identity, **facts)
    if stage == "02_train":
        (run.path / STOP).unlink(missing_ok=True)  # it came too late


def _compute_metrics(run: Run) -> None:
    """The numbers that 03 shows, without its page.

    Raises:
        InputError: they could not be computed; the message begins with the kind of the error.
    """
    from fruitlib.training import scores  # after the settings and the lock: torch takes seconds to import

    try:
        with progress.recorded(run.path):
            scores.of_run(run, tell=False)
    except (InputError, OSError, MemoryError):
        raise
    except Exception as problem:
        raise InputError(f"metrics: {type(problem).__name__}: {first_line(problem)}") from problem


def cut_off(run: Run) -> int:
    """The epochs done by a training of this run, with these settings, that was cut off; 0 where there is none."""
    if not (run.path / "last.pt").is_file() or not (run.path / "params.yaml").is_file():
        return 0
    held, settings = Run(run.path).params["settings"], run.config.model_dump()
    return len(run.history()) if all(held.get(name) == settings[name] for name in configs.TRAIN_SETTINGS) else 0


def _execute_sweep_stage(folder: Path, stage: str, config: Config, kernel: str, marker: "_Marker") -> None:
    """Execute a notebook on the whole sweep, unless it was executed on the same manifest, runs and code already."""
    (folder / OUTCOME).unlink(missing_ok=True)
    if sweep_stage_is_complete(folder, stage, config):
        return
    marker.begins(stage)
    identity = _sweep_identity(folder, stage, config)
    facts = execute_notebook(stage, folder / f"{stage}.ipynb", config, kernel, sweep_dir=files.display_path(folder))
    finished = {"identity": identity, "finished": datetime.now().isoformat(timespec="seconds")}
    files.write_json(folder / "stages" / f"{stage}.json", finished | facts)


def sweep_stage_is_complete(folder: Path, stage: str, config: Config) -> bool:
    """Whether the notebook was executed on the manifest, and for 07 and 08 on the runs, as they are."""
    record = folder / "stages" / f"{stage}.json"
    there = (folder / f"{stage}.ipynb").is_file() and record.is_file()
    return there and _sweep_identity(folder, stage, config) in record.read_text(encoding="utf-8")


def _sweep_identity(folder: Path, stage: str, config: Config) -> str:
    rests_on = [splits.load_record(folder)["identity"]]
    if stage in COMPARISON_STAGES:
        chosen = Run(folder).read_json("sweep.json").get("chosen")
        rests_on += [(folder / "results.csv").read_text(encoding="utf-8"), chosen]
        rests_on.append(config.model_dump(include=set(configs.REPORT_SETTINGS)))
    else:
        rests_on.append(config.model_dump(include={*configs.SPLIT_SETTINGS, *configs.PREPROCESS_SETTINGS}))
    return files.fingerprint(*rests_on, code_fingerprint(stage))


class _Marker:
    """`.working.json`: which stage is being worked on, here and now; touched every other second while it is true."""

    def __init__(self, folder: Path):
        self.path, self.stage, self._gone = folder / WORKING, "", threading.Event()

    def begins(self, stage: str) -> None:
        """A stage begins."""
        first, self.stage = not self.stage, stage
        facts = {"stage": stage, "host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        files.write_json(self.path, facts)
        if first:
            threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while not self._gone.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def remove(self) -> None:
        """Nothing is being worked on any more."""
        self._gone.set()
        if self.stage:
            self.path.unlink(missing_ok=True)


def _leave_with_starter(folder: Path) -> None:
    """Wait for the end of standard input, or a signal, and then end this process and its kernels at once."""

    def leave(*_) -> None:
        import psutil

        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
        for left in (folder / WORKING, *folder.glob(f".*.{files.owner()}.*")):
            with contextlib.suppress(OSError):
                left.unlink(missing_ok=True)
        for place in {*kernel_folders, os.environ.get(launcher.JOB)} - {None}:
            shutil.rmtree(place, ignore_errors=True)
        os._exit(1 << 7)

    def wait() -> None:
        while os.read(0, 1):
            pass
        leave()

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    threading.Thread(target=wait, daemon=True).start()


def main() -> int:
    """One run's process."""
    parser = argparse.ArgumentParser(prog="python -m fruitlib.sweep.worker", description="Execute one run's notebooks.")
    parser.add_argument("folder", type=Path, help="a run's folder")
    parser.add_argument("stages", nargs="+", metavar="stage", help="02_train, 03_metrics …, in this order")
    words = "the settings that differ from their defaults, as JSON (default: those in the folder's params.yaml)"
    parser.add_argument("--settings", type=json.loads, metavar="JSON", help=words)
    parser.add_argument("--kernel", default="python3", help="python3, or fruitlib-warm (default: python3)")
    parser.add_argument("--tied", action="store_true", help="end when standard input does")
    options = parser.parse_args()
    folder = options.folder.resolve()
    if options.tied:
        _leave_with_starter(folder)
    return CODES[execute_stages(folder, options.stages, options.settings, options.kernel)]


if __name__ == "__main__":
    sys.exit(main())
