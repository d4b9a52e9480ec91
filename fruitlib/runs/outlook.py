"""When a sweep will be over: all that it still does, at the pace of what it has done.

A sweep is phases one after the other (01 and its runs; pages and the model that is shipped; 06; 07; 08; the report), a
phase is jobs that share the places to execute them, a job is stages one after the other. A stage that waits takes the
mean of those like it (same network, head and image size), or else of all, corrected for the size of the images. Where
none has ended yet, it takes a fixed number of seconds, corrected by how long other stages took beside theirs, and at
least a share of the run's training. Training itself is measured by its epochs; before the first one there is no guess.
"""

import contextlib
import heapq
import itertools
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from fruitlib.core import files
from fruitlib.runs.status import RunStatus

TRAIN, REPORT, BESIDE = "02_train", "report", "05_quantize"
# Seconds of a small network at 96 pixels with 300 photos on two cores, and the least share of its run's training
STARTING = {"01_split": 4, "metrics": 3, "03_metrics": 4, "04_gradcam": 6, "05_quantize": 8, "06_test_accuracy": 6}
STARTING |= {"07_compare": 2, "08_insight": 5, REPORT: 5}
LEAST = {"03_metrics": 0.03, "04_gradcam": 0.1, "05_quantize": 0.1}
# 04 and 05 took 3.8 and 4.8 times as long with EfficientNet-Lite0 at 224 pixels; (224 / 96) ** 1.7 is 4.2
SIDE, GROWTH, GROWING = 96, 1.7, (TRAIN, "04_gradcam", BESIDE)
FEW_EPOCHS = 3  # in which a training is measured by those like it that have ended, if there are any
AROUND_TRAINING = 2.0  # seconds that 02 takes beside its training
OVERDUE = 0.2  # of the time expected, or passed, that a stage is given still when it is late


@dataclass(frozen=True)
class Job:
    """Stages that one process executes one after the other."""

    name: str  # of the run, or of the sweep's own notebook; "": it is not known yet which run
    stages: tuple[str, ...]
    alike: str = ""  # jobs with the same text take about as long
    epochs: int = 1
    side: int = SIDE  # pixels of an image

    def growth(self, stage: str) -> float:
        """How much longer a stage takes for the size of the images, about."""
        return (self.side / SIDE) ** GROWTH if stage in GROWING else 1.0


def time_left(phases: Iterable[Sequence[float]], places: int) -> float:
    """Seconds until the end: jobs (seconds each, those that run first) begin in their order in the first free place."""
    total = 0.0
    for phase in phases:
        ends = [0.0] * max(1, places)
        for seconds in phase:
            heapq.heapreplace(ends, ends[0] + seconds)
        total += max(ends)
    return total


class Outlook:
    """What a sweep still does, and for how long.

    Attributes:
        phases: its jobs; the driver names them, and again when it knows more.
        places: how many jobs are executed at a time.
        beside: whether a run's 05 is executed beside its 03 and 04.
        doing: what the driver itself does, such as "report", and since when (`time.time`).
    """

    def __init__(self, sweep_dir: Path, places: int = 1, beside: bool = False):
        self.sweep_dir, self.places, self.beside = sweep_dir, places, beside
        self.phases: list[list[Job]] = []
        self.doing, self.since = "", 0.0
        self._ended: set[tuple[str, str]] = set()
        self._examples: dict[tuple[str, str], Job] = {}  # by name and stage: whose records are read
        self._before: dict[tuple[str, str], float] = {}  # when records that are not valid any more were written
        self._records: dict[Path, tuple[float, float]] = {}
        self._report_seconds: list[float] = []

    def plan(self, phases: list[list[Job]]) -> None:
        """What is to be done from now on. A record that a stage has now is an old one, which the stage replaces."""
        jobs = [job for job in itertools.chain.from_iterable(phases) if job.name]
        for job in jobs:
            for stage in job.stages:
                self._before.setdefault((job.name, stage), self._record(job.name, stage)[0])
        self.learn_from(jobs)
        self.phases = phases

    def learn_from(self, jobs: Iterable[Job]) -> None:
        """Jobs whose records say how long stages take: those planned, and those of earlier sweeps."""
        self._examples |= {(job.name, stage): job for job in jobs for stage in job.stages}

    def end(self, name: str, stages: Iterable[str]) -> None:
        """These stages of a job are over, however they ended."""
        self._ended |= {(name, stage) for stage in stages}

    @contextlib.contextmanager
    def does(self, what: str):
        """Around what the driver itself does; how long the last report took is the guess for the next."""
        self.doing, self.since = what, time.time()
        try:
            yield
        finally:
            if what == REPORT:
                self._report_seconds = [time.time() - self.since]
            self.doing = ""

    def left(self, runs: Sequence[RunStatus], now: float) -> tuple[float | None, dict[str, float]]:
        """Seconds until the end of the sweep, None before a training is measured; and of each run that is executed."""
        if not self.phases:
            return None, {}
        known = {run.name: run for run in runs}
        pace = _Pace(dict(self._examples), known, self._seconds_taken(), now)
        waits, of_runs = [], {}
        for phase in self.phases:
            running, waiting = [], []
            for job in phase:
                if not (missing := self._missing(job)):
                    continue
                run = known.get(job.name) if job.name else None
                works = run is not None and run.state == "running"
                seconds = self._job_seconds(job, missing, run if works else None, pace)
                if seconds is None:
                    return None, {}
                if missing == [REPORT] and self.doing == REPORT and not any(waits):  # else it is not the last report
                    seconds = _rest(seconds, now - self.since)
                (running if works else waiting).append(seconds)
                if works:
                    of_runs[job.name] = seconds
            waits.append(running + waiting)
        return time_left(waits, self.places), of_runs

    def _job_seconds(self, job: Job, missing: list[str], run: RunStatus | None, pace: "_Pace") -> float | None:
        """Seconds that the missing stages of a job take; None where that cannot be known yet."""
        seconds = {stage: pace.expected(stage, job) for stage in missing}
        if run and run.stage in seconds:
            if run.stage == TRAIN:
                seconds[TRAIN] = pace.training_left(run, job) if run.epoch or run.part else seconds[TRAIN]
            else:
                seconds[run.stage] = _rest(seconds[run.stage], pace.now - run.since)
        if None in seconds.values():
            return None
        alone = seconds.pop(BESIDE, 0.0) if self.beside else 0.0
        training = seconds.pop(TRAIN, 0.0)
        return training + max(alone, sum(seconds.values()))

    def _missing(self, job: Job) -> list[str]:
        if not job.name:
            return list(job.stages)
        left = [stage for stage in job.stages if (job.name, stage) not in self._ended]
        return [stage for stage in left if not self._is_recorded(job.name, stage)]

    def _is_recorded(self, name: str, stage: str) -> bool:
        """Whether a stage has ended since it was planned."""
        written = self._record(name, stage)[0]
        return bool(written) and written != self._before.get((name, stage), 0)

    def _record(self, name: str, stage: str) -> tuple[float, float]:
        """When a stage's record was written (0: there is none), and how long the stage took (0: it does not say)."""
        folder = self.sweep_dir if name == stage else self.sweep_dir / name
        path = folder / "stages" / f"{stage}.json"
        with contextlib.suppress(OSError, ValueError, TypeError):
            written = path.stat().st_mtime
            if self._records.get(path, (0, 0))[0] != written:
                self._records[path] = written, float(files.read_json(path).get("seconds") or 0)
            return self._records[path]
        return 0.0, 0.0

    def _seconds_taken(self) -> dict[tuple[str, str], list[float]]:
        """Seconds of the stages that have a record, by stage and by what their jobs have alike."""
        taken = defaultdict(list)
        for (name, stage), job in list(self._examples.items()):
            if seconds := self._record(name, stage)[1]:
                taken[stage, job.alike].append(seconds / (job.epochs if stage == TRAIN else 1))
        if self._report_seconds:
            taken[REPORT, ""] = self._report_seconds
        return taken


class _Pace:
    """How long stages take, from those that have ended and the epochs of those that train."""

    def __init__(self, examples: dict[tuple[str, str], Job], runs: dict[str, RunStatus], taken: dict, now: float):
        self.taken, self.now = taken, now
        self._alike = {job.alike: job for job in examples.values()}
        trained = [(job, runs[name]) for (name, stage), job in examples.items() if stage == TRAIN and name in runs]
        self._stopping = _stopping(trained)
        others = {key: times for key, times in taken.items() if key[0] != TRAIN}
        usual = sum(
            len(times) * STARTING[stage] * self._alike[alike].growth(stage) for (stage, alike), times in others.items()
        )
        self._scale = sum(map(sum, others.values())) / usual if usual else 1.0
        self._training = self._whole_trainings(trained)

    def _whole_trainings(self, trained: list[tuple[Job, RunStatus]]) -> dict[str, list[float]]:
        """Seconds per planned epoch of each training, ended or under way, by what jobs have alike."""
        found = defaultdict(list)
        for (stage, alike), times in self.taken.items():
            if stage == TRAIN:
                found[alike] += times
        for job, run in trained:
            if run.state == "running" and run.stage == TRAIN and (left := self.training_left(run, job)) is not None:
                found[job.alike].append((run.seconds[-1] if run.seconds else 0) / job.epochs + left / job.epochs)
        return found

    def expected(self, stage: str, job: Job) -> float | None:
        """Seconds that a stage takes from its beginning; None: a training, before one is measured."""
        if stage == TRAIN:
            if times := self._training.get(job.alike):
                return fmean(times) * job.epochs
            every = self._of_others(TRAIN, {(TRAIN, alike): times for alike, times in self._training.items()})
            return fmean(every) * job.growth(TRAIN) * job.epochs if every else None
        if times := self.taken.get((stage, job.alike)):
            return fmean(times)
        if every := self._of_others(stage, self.taken):
            return fmean(every) * job.growth(stage)
        training = self.expected(TRAIN, job) if stage in LEAST else None
        return max(STARTING[stage] * self._scale * job.growth(stage), LEAST.get(stage, 0) * (training or 0))

    def _of_others(self, stage: str, taken: dict) -> list[float]:
        """Seconds of a stage in jobs of every kind, the mean of each kind, as if their images were of `SIDE` pixels."""
        kinds = {alike: times for (other, alike), times in taken.items() if other == stage}
        return [fmean(times) / self._alike[alike].growth(stage) for alike, times in kinds.items()]

    def training_left(self, run: RunStatus, job: Job) -> float | None:
        """Seconds that a training still takes; None before anything of it is measured."""
        if not run.epoch:
            if run.part < 0.05:
                return None
            whole = (self.now - run.since) / run.part
            return whole * (self._epochs(run, job) - run.part) + AROUND_TRAINING
        first, last = run.seconds[0], run.seconds[-1]
        each = (last - first) / (run.epoch - 1) if run.epoch > 1 else last  # the first one decodes the photos, too
        if run.epoch < FEW_EPOCHS and (ended := self.taken.get((TRAIN, job.alike))):
            each = fmean(ended)
        to_come = self._epochs(run, job) - run.epoch
        done = max(run.part * each, min(self.now - run.changed, (1 - OVERDUE) * each)) if to_come else 0
        return each * to_come - done + AROUND_TRAINING

    def _epochs(self, run: RunStatus, job: Job) -> int:
        """Epochs a training will have: as planned, or where those like it stopped early, their share of the plan."""
        planned = run.epochs or job.epochs
        share = self._stopping.get(job.alike, 1.0)
        return min(planned, max(run.epoch + 1, math.ceil(planned * share)))


def _stopping(trained: list[tuple[Job, RunStatus]]) -> dict[str, float]:
    """The mean share of their planned epochs that trainings had in the end, by what their jobs have alike."""
    shares = defaultdict(list)
    for job, run in trained:
        if run.epoch and run.epochs and run.stage != TRAIN and run.state in ("complete", "running"):
            shares[job.alike].append(run.epoch / run.epochs)
    return {alike: fmean(found) for alike, found in shares.items()}


def _rest(expected: float, passed: float) -> float:
    """Seconds left of a stage after those that have passed; what takes longer than expected takes longer still."""
    return max(expected - max(passed, 0), OVERDUE * max(expected, passed))
