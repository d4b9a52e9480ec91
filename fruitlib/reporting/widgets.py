"""What moves in a notebook: live training curves, a sweep under way, a photo tried.

Reports cannot move, so each widget's notebook shows a still picture of the same thing beside it.
"""

import html
import threading
import time
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display
from ipywidgets import HTML, FileUpload, HBox, Image, VBox
from PIL import Image as Pillow

from fruitlib.core import files, machine
from fruitlib.core.errors import InputError
from fruitlib.reporting import training_figures
from fruitlib.reporting.pictures import encoded
from fruitlib.runs.status import SweepStatus, in_order, load_status


class LiveCurves:
    """Training curves redrawn in place, every `seconds` at most: call it with the history so far.

    A training shorter than that shows none, nor does one that a sweep executes, where nobody watches: the notebook
    draws its whole history below.
    """

    def __init__(self, epochs: int, seconds: float = 3):
        self.epochs, self.seconds = epochs, seconds
        self._shown, self._drawn = None, time.monotonic()

    def __call__(self, history: pd.DataFrame) -> None:
        """Show or refresh the figure; a history without rows is ignored."""
        early = time.monotonic() - self._drawn < self.seconds  # drawing must not outweigh training
        if not history.empty and not early and not machine.in_sweep():
            self._draw(history)

    def finish(self) -> None:
        """Take the figure away: the notebook shows the whole history below, with the epoch that is kept."""
        if self._shown is not None:
            self._shown.update({"text/plain": ""}, raw=True)

    def _draw(self, history: pd.DataFrame) -> None:
        figure = training_figures.training_curves(history, self.epochs)
        if self._shown is None:
            self._shown = display(figure, display_id=True)
        else:
            self._shown.update(figure)
        plt.close(figure)
        self._drawn = time.monotonic()


def live(sweep_dir: str, seconds: float = 2) -> HTML:
    """The table that `fruitlib sweep` shows on its terminal, of a sweep that runs anywhere: `live("executed/demo")`.

    It is read from the sweep's folder every `seconds`, until the sweep is over.
    """
    folder, shown = files.resolve(sweep_dir), HTML()

    def refresh() -> bool:
        status = load_status(folder)
        shown.value = _status_table(folder.name, status)
        to_come = status.count("pending") + status.count("running") + max(0, status.total - len(status.runs))
        return bool(status.runs) and not to_come and status.elapsed is None  # 07, 08 and the report come after the runs

    def follow() -> None:
        while not refresh():
            time.sleep(seconds)

    if not refresh():
        threading.Thread(target=follow, daemon=True).start()
    return shown


def _status_table(name: str, status: SweepStatus) -> str:
    """The status of the sweep of this name as an HTML table: the runs that are under way first."""
    if not status.runs:
        return "no sweep has begun here yet"
    head = "".join(
        f"<th style='text-align:left;padding-right:1.5em'>{html.escape(heading)}</th>" for heading in status.headings
    )
    rows = []
    for run in in_order(status):
        cells = "".join(f"<td style='padding-right:1.5em'>{html.escape(cell)}</td>" for cell in run.row)
        weight = "600" if run.state == "running" else "400"
        rows.append(f"<tr style='font-weight:{weight}'>{cells}</tr>")
    line = " · ".join(part for part in (status.line, status.times) if part)
    return f"<p><b>{html.escape(name)}</b> · {html.escape(line)}</p><table><tr>{head}</tr>{''.join(rows)}</table>"


def try_photo(answer_of: Callable) -> VBox:
    """Choose a photo file of one's own, and see what is answered and where the network looked.

    `answer_of` gives the answer for a file's name and bytes: `photo_trial.PhotoTrial.of_file`.
    """
    upload = FileUpload(accept="image/*", description="Choose a photo")
    message, pictures = HTML(), HBox([])

    def look(_=None) -> None:
        if not upload.value:
            return
        chosen = upload.value[0]
        try:
            answer = answer_of(chosen["name"], bytes(chosen["content"]))
        except InputError as problem:
            message.value, pictures.children = html.escape(str(problem)), ()
            return
        message.value = f"<b>{html.escape(answer.text)}</b> ({html.escape(chosen['name'])})"
        pictures.children = [_enlarged(one) for one in (answer.photo, answer.heat)]

    upload.observe(look, names="value")
    return VBox([upload, message, pictures])


def _enlarged(picture: np.ndarray) -> Image:
    larger = Pillow.fromarray(picture).resize((320, 320), Pillow.Resampling.BILINEAR)
    return Image(value=encoded(larger, "PNG"), width=320)
