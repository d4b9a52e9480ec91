"""`fruitlib predict`: new photos through an exported file; a line, a CSV row and a picture for each.

Needs what `pip install fruitlib` brings, and no more.
"""

import collections
import contextlib
import csv
import errno
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fruitlib.core import files, progress
from fruitlib.core.errors import InputError
from fruitlib.core.texts import show, some
from fruitlib.deploy import answers, heat_pictures, named_photos
from fruitlib.deploy.answers import ANSWER, SKIPPED, UNSURE, Answer, Model
from fruitlib.deploy.named_photos import Photo

SHOWN = 20  # photos with a line each
STOPPED = 130


@dataclass(frozen=True)
class Request:
    """What is asked for: see the options of `fruitlib predict`."""

    model: Path
    photos: list[str]
    csv: Path | None = None
    cam: Path | None = None
    html: Path | None = None
    labels: bool = False
    threads: int = 0


def run(request: Request) -> int:
    """Predict the photos; returns 0 if all were read, 1 if any was skipped, 130 if it was stopped by Ctrl-C.

    Raises:
        InputError: bad input or an output that cannot be written; before the work begins, wherever that can be known.
    """
    if not request.photos and (request.csv or request.cam or not request.html):
        raise InputError("no photos: name files, folders, patterns such as 'photos/*.jpg', or a CSV file of paths")
    if request.threads < 0:
        raise InputError(f"--threads {request.threads}: a number of threads is wanted, 0 for as many as cores")
    _check_outputs(request)
    model = answers.open_model(request.model, request.threads)
    if request.cam and not model.has_heat:
        raise InputError(f"--cam: {files.display_path(request.model)} has no heat: leave --cam out")
    photos, notes = named_photos.find(request.photos)
    _check_overwriting(request, photos)
    places = {}
    if request.cam:
        places = heat_pictures.places(request.cam, photos)
        heat_pictures.check_folder(request.cam, request.photos)
    if request.html:
        from fruitlib.deploy import web_page  # most calls want none

        page, ran = web_page.write(request.model, request.html), web_page.run_by_browser(request.model)
        show(files.display_path(page))
        if ran != request.model:
            show(f"note: the page runs {ran.name}: browsers round {request.model.name} differently from Python")
    if not photos:
        return 0
    for line in [*notes, *_threshold_notes(model), *_cut_notes(model)]:
        show(f"note: {line}")
    return _predict(request, model, photos, places)


def _predict(request: Request, model: Model, photos: list[Photo], places: dict[Photo, Path]) -> int:
    """The work itself; what is known when it is stopped is written all the same."""
    report, tell = _Report(model, request.labels), _meter()
    with _table(request, model) as write:
        try:
            with contextlib.closing(answers.answers(model, photos, bool(request.cam), request.threads)) as found:
                for answer in found:
                    if request.cam and answer.heat is not None:
                        heat_pictures.write(places[answer.photo], answer.square, answer.heat)
                    write(answer)
                    report.add(answer)
                    tell(report.photos, len(photos))
        except KeyboardInterrupt:
            report.stopped = True
    report.end(len(photos))
    return STOPPED if report.stopped else int(report.states[SKIPPED] > 0)


def _check_outputs(request: Request) -> None:
    """No output may replace another."""
    taken = {}
    for option in ("csv", "cam", "html"):
        if file := getattr(request, option):
            other = taken.setdefault(os.path.normcase(os.path.realpath(file)), option)
            if other != option:
                raise InputError(f"--{other} and --{option} both name {file}: name another file for one of them")


def _check_overwriting(request: Request, photos: list[Photo]) -> None:
    """No output may replace what is read."""
    for option in ("csv", "html"):
        file = getattr(request, option)
        if not file:
            continue
        here = os.path.abspath(file)
        read = itertools.chain([request.model, *request.photos], (photo.file for photo in photos))
        if any(os.path.abspath(name) == here for name in read):
            raise InputError(f"--{option} {file}: is among what is read: name another file")


def _threshold_notes(model: Model) -> list[str]:
    if model.answer_above is None:
        return ["the file does not say above which probability it may answer alone: no photo has a state"]
    if model.answer_above > 1:
        return ["no probability is proven above which the file may answer alone: every photo is unsure, look at all"]
    return []


def _cut_notes(model: Model) -> list[str]:
    if model.cut_to != "box":
        return []
    return ["the training photos were cut to their boxes: cut yours likewise, or the answers may be wrong"]


def _meter() -> progress.OnProgress:
    """Lines of progress on standard error, if a person reads it."""
    if not sys.stderr.isatty():
        return lambda done, total: None
    return progress.meter("photos", say=lambda line: show(line, file=sys.stderr))


@contextlib.contextmanager
def _table(request: Request, model: Model) -> Iterator[Callable[[Answer], None]]:
    """Writes an answer's row of the CSV file, which is in its place when the block ends.

    Raises:
        InputError: it cannot be written.
    """
    if not request.csv:
        yield lambda answer: None
        return
    with contextlib.ExitStack() as held:
        try:
            if request.csv.is_dir():
                raise IsADirectoryError(errno.EISDIR, "it is a folder")
            partial = held.enter_context(files.replacing(request.csv))
            how = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
            file = held.enter_context(open(partial, "w", **how))
        except OSError as problem:
            raise InputError(f"--csv {request.csv}: cannot be written ({problem.strerror})") from None
        table = csv.writer(file, lineterminator="\n")
        chances = [f"p_{name}" for name in model.names]
        label = ["label"] if request.labels else []
        table.writerow(map(files.guarded, ["path", *label, "predicted", "confidence", *chances, "state", "reason"]))
        yield lambda answer: table.writerow(map(files.guarded, _cells(answer, model, request.labels)))


def _cells(answer: Answer, model: Model, labels: bool) -> list[str]:
    found = [""] * (2 + len(model.names))
    if answer.probabilities is not None:
        best = answer.probabilities.argmax()
        chances = [f"{chance:.6f}" for chance in answer.probabilities]
        found = [model.names[best], chances[best], *chances]
    label = [answer.photo.label] if labels else []
    return [answer.photo.shown, *label, *found, answer.state, answer.reason]


class _Report:
    """What people read: a line for each of the first photos, then counts."""

    def __init__(self, model: Model, labels: bool):
        self._model, self._labels, self._pipe = model, labels, None
        self._predicted, self._unknown, self.states = (collections.Counter() for _ in range(3))
        self._right, self.photos, self.stopped = collections.Counter(), 0, False

    def add(self, answer: Answer) -> None:
        """Count an answer, and print it if it is among the first."""
        self.photos += 1
        self.states[answer.state] += 1
        text = f"skipped: {answer.reason}"
        if answer.probabilities is not None:
            best = int(answer.probabilities.argmax())
            name, label = self._model.names[best], answer.photo.label
            self._predicted[name] += 1
            self._unknown[label] += label not in self._model.names
            self._right[answer.state] += name == label
            unsure = " (unsure)" if answer.state == UNSURE else ""
            text = f"{name} {answer.probabilities[best]:.2f}{unsure}"
        if self.photos <= SHOWN or (answer.state == SKIPPED and self.states[SKIPPED] <= SHOWN):
            self._say(f"  {answer.photo.shown}: {text}")

    def _say(self, text: str) -> None:
        """Print, if somebody still reads; the files are written all the same."""
        if self._pipe is None:
            try:
                show(text)
            except BrokenPipeError as problem:
                self._pipe = problem

    def end(self, total: int) -> None:
        """Print the counts."""
        if self.photos > SHOWN:
            self._say(f"  of {self.photos:,} photos, the first {SHOWN} are shown")
        named = sorted(self._predicted.items(), key=lambda item: (-item[1], item[0]))
        self._say("predicted: " + (some([f"{name} {count:,}" for name, count in named], most=40) or "no photo"))
        if self.states[ANSWER] or self.states[UNSURE]:
            self._say(f"answered alone: {self.states[ANSWER]:,}; unsure: {self.states[UNSURE]:,}")
        if self.states[SKIPPED]:
            self._say(f"skipped: {self.states[SKIPPED]:,}")
        if self._labels:
            self._say_right()
        if self.stopped:
            self._say(f"stopped after {self.photos:,} of {total:,} photos; what was asked for is written for these")
        if self._pipe is not None:
            raise self._pipe

    def _say_right(self) -> None:
        """How many answers are the name of the photo's folder, or the label in its CSV."""
        read = sum(self._predicted.values())
        unknown = +self._unknown
        if unknown:
            photos = "1 photo has" if unknown.total() == 1 else f"{unknown.total():,} photos have"
            self._say(f"note: {photos} a label that the file does not know: {some(sorted(unknown))}")
        if known := read - unknown.total():
            self._say(f"right: {self._right.total():,} of {known:,} ({self._right.total() / known:.1%})")
