"""The time left of a sweep: over everything it does, and without surprises."""

import json
import os
from dataclasses import dataclass, field, replace

import pytest

from fruitlib.runs import outlook
from fruitlib.runs.outlook import Job, Outlook
from fruitlib.runs.status import RunStatus

PAGES = ("03_metrics", "04_gradcam", "05_quantize")
EVERY = ("02_train", *PAGES)
# Measured: seconds of the five runs of params/demo.yaml on two cores, in the order of their stages
SMALL, PRETRAINED = (22.0, 3.5, 4.5, 6.5), (4.8, 3.1, 18.3, 29.7)


@pytest.mark.parametrize(
    ("phases", "places", "seconds"),
    [
        ([[3, 2, 2]], 2, 4),
        ([[3, 2, 2]], 1, 7),
        ([[5], [], [1, 1], [2]], 2, 8),
        ([], 2, 0),
        ([[1]], 0, 1),
    ],
)
def test_jobs_share_places_and_phases_follow_each_other(phases, places, seconds):
    assert outlook.time_left(phases, places) == seconds


@dataclass
class Simulated:
    """A sweep whose stages take the seconds that it is given, watched by an `Outlook`.

    `runs`: for each run, in its order, the seconds of its stages; `ending`: of what follows, one after the other.
    """

    folder: object
    runs: dict[str, tuple[Job, tuple[float, ...]]]
    ending: dict[str, float]
    places: int = 2
    events: list = field(default_factory=list)  # (begin, end, name, stage)

    def schedule(self) -> float:
        """When each stage begins and ends; returns the end of the sweep."""
        free = [1.0] * self.places
        for name, (job, seconds) in self.runs.items():
            place = free.index(min(free))
            for stage, took in zip(job.stages, seconds, strict=True):
                self.events.append((free[place], free[place] + took, name, stage))
                free[place] += took
        now = max(free)
        for stage, took in self.ending.items():
            self.events.append((now, now + took, stage, stage))
            now += took
        return now

    def write_ended(self, now: float) -> None:
        for begin, end, name, stage in self.events:
            folder = self.folder / "stages" if name == stage else self.folder / name / "stages"
            if end <= now and not (path := folder / f"{stage}.json").exists():
                folder.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps({"seconds": end - begin}))
                os.utime(path, (end, end))

    def statuses(self, now: float) -> list[RunStatus]:
        return [self._status(name, job, now) for name, (job, _) in self.runs.items()]

    def _status(self, name: str, job: Job, now: float) -> RunStatus:
        stages = [event for event in self.events if event[2] == name]
        if now < stages[0][0] or now >= stages[-1][1]:
            return RunStatus(name, "pending" if now < stages[0][0] else "complete", epochs=job.epochs)
        begin, end, _, stage = next(event for event in stages if event[0] <= now < event[1])
        status = RunStatus(name, "running", stage, epochs=job.epochs, since=begin)
        if stage == "02_train":
            each = (end - begin - 2) / job.epochs  # two seconds around the training
            status.epoch = min(job.epochs, max(0, int((now - begin - 1) / each)))
            status.seconds = [each * (number + 1) for number in range(status.epoch)]
            status.changed = begin + 1 + each * status.epoch
        else:
            status.epoch, status.seconds = job.epochs, [1.0] * job.epochs
        return status


def watched(sweep: Simulated, phases: list[list[Job]]) -> list[tuple[float, float]]:
    """(now, the end that is shown) every second, from when an end is shown."""
    end, look, shown = sweep.schedule(), Outlook(sweep.folder, sweep.places), []
    look.plan(phases)
    for now in range(1, int(end)):
        sweep.write_ended(now)
        begun = [(begin, stage) for begin, stop, name, stage in sweep.events if name == stage and begin <= now < stop]
        look.doing, look.since = ("report", begun[0][0]) if begun and begun[0][1] == "report" else ("", 0)
        left, _ = look.left(sweep.statuses(now), now)
        if left is not None:
            shown.append((now, now + left))
    return shown


def demo(folder) -> tuple[Simulated, list[list[Job]]]:
    """The demo sweep: four small runs, a pretrained one, and what follows."""
    jobs = {f"lr={n}": (Job(f"lr={n}", EVERY, "end2end linear 96", 30), SMALL) for n in range(4)}
    jobs["pretrained"] = (Job("pretrained", EVERY, "lite0 logistic 224", 1, 224), PRETRAINED)
    ending = {"06_test_accuracy": 6.2, "07_compare": 1.3, "08_insight": 4.0, "report": 4.0}
    return Simulated(folder, jobs, ending), _phases(jobs, ending)


def large(folder) -> tuple[Simulated, list[list[Job]]]:
    """Twelve trainings of minutes, of which three get pages in the end, and what follows."""
    jobs = {}
    for number in range(12):
        job = Job(f"lr={number}", ("02_train", "metrics"), "resnet18 linear 224", 40, 224)
        jobs[job.name] = job, (400.0 + 7 * (5 * number % 12), 3.0)
    ending = {"05_quantize": 70.0, "04_gradcam": 60.0, "06_test_accuracy": 9.0}
    ending |= {"07_compare": 3.0, "08_insight": 9.0, "report": 14.0}
    return Simulated(folder, jobs, ending), _phases(jobs, ending)


def _phases(jobs, ending) -> list[list[Job]]:
    first = next(job for job, _ in jobs.values())
    after = [[replace(first, name=stage, stages=(stage,))] for stage in ending]
    return [[job for job, _ in jobs.values()], *after]


@pytest.mark.parametrize(("make", "later", "wrong"), [(demo, 0.12, 0.2), (large, 0.08, 0.1)])
def test_the_shown_end_moves_little_after_the_first_third(tmp_path, make, later, wrong):
    sweep, phases = make(tmp_path)
    shown = watched(sweep, phases)
    end = sweep.events[-1][1]
    assert shown[0][0] < end / 4  # it is soon shown
    settled = [expected for now, expected in shown if now >= end / 3]
    earliest, jump = settled[0], 0.0
    for expected in settled:
        jump, earliest = max(jump, expected - earliest), min(earliest, expected)
    assert jump <= later * end, f"the end moved {jump:.0f} s later, of {end:.0f} s"
    assert max(abs(expected - end) for expected in settled) <= wrong * end


def test_nothing_is_said_before_a_training_is_measured_nor_before_the_jobs_are_known(tmp_path):
    look = Outlook(tmp_path)
    assert look.left([], 0) == (None, {})
    look.plan([[Job("a", EVERY, epochs=10)], [outlook.Job("report", ("report",))]])
    assert look.left([RunStatus("a", "running", "02_train", epochs=10)], 5)[0] is None
    measured = RunStatus("a", "running", "02_train", epochs=10, part=0.5, since=0)
    left, of_runs = look.left([measured], 10)
    assert left > of_runs["a"] > 9.5 * 20  # half an epoch took ten seconds


def test_a_report_that_is_written_meanwhile_does_not_count_as_the_last_one(tmp_path):
    look = Outlook(tmp_path)
    look.plan([[Job("a", ("02_train",), epochs=10)], [Job("report", ("report",))]])
    trains = [RunStatus("a", "running", "02_train", epochs=10, part=0.5, since=0)]
    quiet, _ = look.left(trains, 10)
    look.doing, look.since = "report", 7
    assert look.left(trains, 10)[0] == quiet
    look.end("a", ("02_train",))
    assert look.left([], 10)[0] == outlook.STARTING["report"] - 3


def test_a_run_that_failed_leaves_nothing_and_an_old_record_counts_as_nothing_done(tmp_path):
    (tmp_path / "a" / "stages").mkdir(parents=True)
    (tmp_path / "a" / "stages" / "02_train.json").write_text('{"seconds": 100}')
    look = Outlook(tmp_path)
    look.plan([[Job("a", ("02_train",))]])
    assert look.left([], 0)[0] == 100  # it is trained again, and took 100 s then
    (tmp_path / "a" / "stages" / "02_train.json").unlink()
    look.end("a", ("02_train",))
    assert look.left([], 0)[0] == 0


def test_trainings_that_stop_early_shorten_those_to_come(tmp_path):
    look = Outlook(tmp_path)
    look.plan([[Job("b", ("02_train",), "x", 100)]])
    look.learn_from([Job("a", ("02_train",), "x", 100)])
    trains = RunStatus("b", "running", "02_train", 10, 100, seconds=[float(n + 1) for n in range(10)], changed=0)
    stopped = RunStatus("a", "complete", epoch=30, epochs=100)
    assert look.left([trains], 0)[0] == pytest.approx(92)
    assert look.left([trains, stopped], 0)[0] == pytest.approx(22)
