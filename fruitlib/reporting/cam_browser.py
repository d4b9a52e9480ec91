"""04 and 07 in JupyterLab: a browser of what networks look at, photo by photo.

Nothing is computed before the browser is shown, and nothing while a sweep executes the notebook: a report cannot move.
Every control takes the arrow keys once it has been clicked, or reached with Tab (`keys_box`).
"""

import contextlib
import html
import re
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
from ipywidgets import (
    HTML,
    Button,
    Combobox,
    Dropdown,
    FloatSlider,
    HBox,
    IntSlider,
    Label,
    Layout,
    SelectionSlider,
)

from fruitlib.core import files, machine
from fruitlib.core.errors import InputError, first_line
from fruitlib.data.splits import SPLIT_NAMES
from fruitlib.evaluation.compare import Pair
from fruitlib.explain.methods import SCORED
from fruitlib.reporting import cam_pictures, cam_views
from fruitlib.reporting.cam_pictures import Shown
from fruitlib.reporting.cam_views import KEPT_BY, PREDICTED, TRUE
from fruitlib.reporting.keys_box import KEYS, KeysBox
from fruitlib.runs.run import Run, open_run

ANY, NOTHING = "any", "nothing else"
RIGHT, WRONG, DIFFER, FOLLOWED = "A is right", "A is wrong", "A and B differ", "followed during training"
SURE, UNSURE = "sure", "unsure"
SLOW = "Score-CAM"
TAKES_LONG = f"{SLOW}: the network runs once for each of up to {SCORED} channels; the kernel can be interrupted"
MANY = 2_000  # photos that are predicted for a filter, at most
MINUTES = "predicting them takes minutes; choose a class or a group first"


class CamBrowser(KeysBox):
    """Choose a photo, a network, a class, a method, a layer and an epoch, and see where it looks.

    The controls are attributes, each an ipywidget: `split`, `label`, `answer`, `confidence`, `group`, `photo`, `a`,
    `b`, `target`, `method`, `layer`, `epoch`, `opacity`, and the buttons `previous`, `next` and `save`.
    """

    def __init__(self, run: Run | str | Path, other: Run | None = None, paths: dict[str, str] | None = None):
        """A is `run` at first, a trained run or its folder; B is `other`, or nothing.

        Args:
            paths: only these photos, in this order, each with its path in the sweep of `other`; None: all.

        Raises:
            InputError: no trained run.
        """
        self.run = run if isinstance(run, Run) else open_run(run)
        self._other_run, self._paths = other, paths or {}
        self._quiet, self._found, self._message = True, [], ""
        super().__init__()

    def _repr_mimebundle_(self, **options):
        if machine.in_sweep():
            return {"text/plain": "The browser works in JupyterLab: open this notebook there."}
        if self._quiet and not self.children:
            self._start()
        return super()._repr_mimebundle_(**options)

    # ---- controls

    def _start(self) -> None:
        """Make the controls, and show the first photo."""
        runs = [run for run in (self.run, self._other_run) if run]
        self._views = cam_views.views_of({run.sweep_dir for run in runs})
        names = [next((name for name, view in self._views.items() if view.run.path == run.path), "") for run in runs]
        if not all(names):
            where = files.display_path(runs[names.index("")].path)
            raise InputError(f"{where}: no network of it to look at; execute 02_train on it first")
        networks = list(self._views)
        self.a = _list("A", networks, names[0], "40em")
        self.b = _list("B", [NOTHING, *networks], names[1] if len(names) > 1 else NOTHING, "40em")
        self.split, self.label = _list("photos"), _list("class")
        self.answer, self.confidence = _list("answer"), _list("confidence")
        self.group = Combobox(placeholder=ANY, description="group", continuous_update=False, layout=_wide("16em"))
        self.photo = IntSlider(1, 1, 1, description="photo", layout=_wide("30em"))
        self.count = Label()
        self.previous, self.next = _button("previous", "arrow-left"), _button("next", "arrow-right")
        self.target, self.method = _list("heat for"), _list("method")
        self.layer, self.epoch = _steps("layer"), _steps("epoch of A")
        self.opacity = FloatSlider(0.7, min=0, max=1, step=0.05, description="opacity", layout=_wide("22em"))
        self.save = _button("save what is shown", "save", "14em")
        self.picture, self.message = HTML(), HTML()
        self.children = self._rows()
        self._watch()
        self._react(self._network_changed)

    def _rows(self) -> list:
        rows = [
            [self.split, self.label, self.answer, self.confidence, self.group],
            [self.previous, self.photo, self.count, self.next],
            [self.a, self.b],
            [self.target, self.method],
            [self.layer, self.epoch, self.opacity],
            [self.save, HTML(KEYS)],
        ]
        boxes = [HBox(row, layout=Layout(flex_flow="row wrap")) for row in rows]
        return [*boxes, self.message, self.picture]

    def _watch(self) -> None:
        handlers = {
            self._network_changed: [self.a],
            self._split_changed: [self.split],
            self._filter_changed: [self.label, self.answer, self.confidence, self.group],
            self._b_changed: [self.b],
            self._show: [self.photo, self.target, self.method, self.layer, self.epoch, self.opacity],
        }
        for handler, controls in handlers.items():
            for control in controls:
                control.observe(lambda _, handler=handler: self._react(handler), names="value")
        self.previous.on_click(lambda _: self._step(-1))
        self.next.on_click(lambda _: self._step(1))
        self.save.on_click(lambda _: self._react(self._save, keep_message=True))
        self._quiet = False

    def _react(self, handler, keep_message: bool = False) -> None:
        """Call it, unless a control was changed by the browser itself; what goes wrong is shown in a line."""
        if self._quiet:
            return
        self._say("" if not keep_message else self._message)
        try:
            handler()
        except Exception as problem:  # a callback's error would go to a log that nobody reads
            kind = "" if isinstance(problem, InputError) else f"{type(problem).__name__}: "
            self._say(f"{kind}{first_line(problem)}")
            self.picture.value = ""

    @contextlib.contextmanager
    def _unheard(self):
        """Inside, controls change without being heard."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    def _say(self, words: str) -> None:
        self._message = words
        self.message.value = f"<span role='status'>{html.escape(words)}</span>"

    def _step(self, by: int) -> None:
        """The next photo, or the one before; from the last to the first."""
        if self._found:
            self.photo.value = (self.photo.value - 1 + by) % len(self._found) + 1

    # ---- which photos

    @property
    def view(self) -> cam_views.TorchView:
        """The network A."""
        return self._views[self.a.value]

    @property
    def other(self) -> cam_views.TorchView | None:
        """The network B, if any."""
        return self._views.get(self.b.value)

    def _network_changed(self) -> None:
        """A has other layers, methods, and another part of the photos."""
        with self._unheard():
            _offer(self.split, {SPLIT_NAMES[split]: split for split in self.view.splits})
            _offer(self.method, list(self.view.methods))
            _offer(self.layer, list(self.view.layers), self.view.layers[-1])
            _offer(self.target, [PREDICTED, TRUE, *self.view.class_names])
            _offer(self.confidence, {ANY: ANY, f"{SURE}: {self.view.sure_above[1]}": SURE, UNSURE: UNSURE})
        self._split_changed()

    def _split_changed(self) -> None:
        rows = self.view.rows(self.split.value)
        if self._paths:
            rows = rows.set_index("path").reindex(list(self._paths)).dropna(subset="label").reset_index()
        self._rows_of_split = rows
        with self._unheard():
            _offer(self.label, [ANY, *(name for name in self.view.class_names if name in set(rows["label"]))])
            groups = sorted(set(rows["group"]) - {""})
            self.group.options, self.group.value = groups, ""
            self.group.layout.display = None if groups else "none"
        self._b_changed()

    def _b_changed(self) -> None:
        with self._unheard():
            offered = {ANY: True, RIGHT: True, WRONG: True, DIFFER: self.other, FOLLOWED: self.view.followed}
            _offer(self.answer, [answer for answer, applies in offered.items() if applies])
        self._filter_changed()

    def _filter_changed(self) -> None:
        before = self._found[self.photo.value - 1] if self._found else ""
        self._take(self._rows_of_split[:0])  # should the filter be refused, nothing of another view may stay
        self._take(self._filtered(self._rows_of_split), before)
        self._show()

    def _take(self, rows: pd.DataFrame, before: str = "") -> None:
        """Step through these photos from now on, beginning with `before` where it is among them."""
        self._found = rows["path"].tolist()
        self._labels = dict(zip(rows["path"], rows["label"], strict=True))
        self._groups = dict(zip(rows["path"], rows["group"], strict=True))
        with self._unheard():
            self.photo.value = self.photo.min
            self.photo.max = max(1, len(self._found))
            self.photo.value = self._found.index(before) + 1 if before in self._found else 1
            self.count.value = f"of {len(self._found):,}"
            for control in (self.photo, self.previous, self.next, self.save):
                control.disabled = not self._found

    def _filtered(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The rows that all filters let through."""
        if self.label.value != ANY:
            rows = rows[rows["label"] == self.label.value]
        if self.group.value:
            rows = rows[rows["group"] == self.group.value]
        if self.answer.value == FOLLOWED:
            rows = rows[rows["path"].isin(self.view.followed)]
        if not len(rows) or (self.answer.value in (ANY, FOLLOWED) and self.confidence.value == ANY):
            return rows
        probs = self._probs(self.view, rows["path"].tolist())
        if self.confidence.value != ANY:
            sure = self.view.sure(probs) == (self.confidence.value == SURE)
            rows, probs = rows[sure], probs[sure]
        if self.answer.value in (ANY, FOLLOWED):
            return rows
        predicted = pd.Series([self.view.class_names[i] for i in probs.argmax(1)], index=rows.index, dtype=str)
        if self.answer.value == DIFFER:
            return rows[predicted != self._predicted_by_b(rows)]
        return rows[(predicted == rows["label"]) == (self.answer.value == RIGHT)]

    def _predicted_by_b(self, rows: pd.DataFrame) -> pd.Series:
        paths = [self._path_at(self.other, path) for path in rows["path"]]
        probs = self._probs(self.other, paths)
        return pd.Series([self.other.class_names[i] for i in probs.argmax(1)], index=rows.index, dtype=str)

    def _probs(self, view: cam_views.TorchView, paths: list[str]) -> np.ndarray:
        """Probabilities (n, C) by one of the networks.

        Raises:
            InputError: it has not predicted more than `MANY` of these photos yet.
        """
        split = self.split.value
        if (missing := len(view.not_predicted(split, paths))) > MANY:
            raise InputError(f"{view.name}: {missing:,} {SPLIT_NAMES[split]} photos are not predicted yet: {MINUTES}")
        return view.probs(split, paths)

    # ---- what is shown

    def _show(self) -> None:
        if not self._found:
            self.picture.value = "No photo passes these filters."
            return
        with self._unheard():
            kept = self.view.epochs(self._path)
            number = self.view.run.record("train").get("kept_epoch")
            now = f"kept: {number}" if number else "kept"
            _offer(self.epoch, {str(epoch): epoch for epoch in kept} | {now: 0}, 0)
            self.target.disabled = self.method.disabled = bool(self.epoch.value)
        if slow := self._asked[1] == SLOW:
            self._say(TAKES_LONG)
        sides = self._sides()
        if slow:
            self._say("")
        self.picture.value = cam_pictures.page(self._title, self._true, sides, self.opacity.value)

    @property
    def _path(self) -> str:
        return self._found[self.photo.value - 1]

    def _path_at(self, view: cam_views.TorchView, path: str) -> str:
        """The path of a photo of A's sweep in the sweep of another network."""
        return path if view.run.sweep_dir == self.view.run.sweep_dir else self._paths.get(path, path)

    @property
    def _true(self) -> str:
        return self._labels[self._path]

    @property
    def _title(self) -> str:
        group = f", group {self._groups[self._path]}" if self._groups[self._path] else ""
        return f"{self._path}: {SPLIT_NAMES[self.split.value]} photo, true class {self._true}{group}"

    @property
    def _asked(self) -> tuple[str, str]:
        """The target and the method: those by which maps were kept, where an epoch is chosen."""
        return (TRUE, KEPT_BY) if self.epoch.value else (self.target.value, self.method.value)

    def _sides(self) -> list[Shown]:
        chosen = {"A": self.view} | ({"B": self.other} if self.other else {})
        return [self._side(letter, view) for letter, view in chosen.items()]

    def _side(self, letter: str, view: cam_views.TorchView) -> Shown:
        path = self._path_at(view, self._path)
        layer = view.layer_like(self.layer.value, list(self.view.layers))
        target, method = self._asked
        method = method if method in view.methods else view.methods[0]
        epoch = self.epoch.value if letter == "A" else 0
        look = view.look(path, target, method, layer, epoch, self._true)
        learned = path in view.trained_on
        note = f"{letter} was trained on this photo" if learned and self.split.value != "train" else ""
        return Shown(letter, (self.a if letter == "A" else self.b).value, look, view.class_names, note)

    # ---- keeping it

    def _save(self) -> None:
        """Write a PNG and its settings into A's `cams/`; never over another."""
        sides, folder = self._sides(), self.view.run.path / "cams"
        epoch = f"epoch-{self.epoch.value}" if self.epoch.value else ""
        words = [Path(self._path).stem, self._asked[1], self.layer.value, sides[0].look.target, epoch]
        stem = "shown_" + "_".join(filter(None, (re.sub(r"[^\w+-]+", "-", word)[:40] for word in words)))
        path, number = folder / f"{stem}.png", 1
        while path.exists():
            number += 1
            path = folder / f"{stem}_{number}.png"
        with files.replacing(path) as partial:
            cam_pictures.figure(self._title, self._true, sides, self.opacity.value).savefig(partial, dpi=150)
        files.write_json(path.with_suffix(".json"), self._settings(sides))
        self._say(f"saved: {files.display_path(path)}, and its settings beside it in {stem}.json")

    def _settings(self, sides: list[Shown]) -> dict:
        """All that is needed to show it again, and its messages."""
        chosen = {"photo": self._path, "split": self.split.value, "true": self._true, "opacity": self.opacity.value}
        chosen |= dict(zip(("heat_for", "method"), self._asked, strict=True)) | {"layer": self.layer.value}
        chosen |= {"epoch": self.epoch.value or "kept", "saved": datetime.now().isoformat(timespec="seconds")}
        for side in sides:
            probs = dict(zip(side.class_names, side.look.probs.astype(float).round(6).tolist(), strict=True))
            chosen[side.letter] = {"network": side.name, "predicted": side.predicted, "probabilities": probs}
            chosen[side.letter] |= {"how": side.look.how, "heat_is_for": side.look.target, "scale": side.look.scale}
            chosen[side.letter] |= {"empty": bool(side.look.empty), "note": side.note}
        return chosen


def _list(description: str, options=(), value=None, width: str = "20em") -> Dropdown:
    """A list to choose from."""
    return Dropdown(options=options, value=value, description=description, layout=_wide(width))


def _steps(description: str) -> SelectionSlider:
    """A list to step through by arrow keys."""
    return SelectionSlider(options=[""], description=description, layout=_wide("24em"))


def _wide(width: str) -> Layout:
    return Layout(width=width, max_width="98%")


def _button(words: str, icon: str, width: str = "7em") -> Button:
    return Button(description=words, icon=icon, tooltip=words, layout=_wide(width))


def _offer(control: Dropdown | SelectionSlider, options: list | dict, value=None) -> None:
    """Other options; what was chosen stays chosen where it is among them."""
    before = control.value
    pairs = list(options.items()) if isinstance(options, dict) else [(name, name) for name in options]
    values = [one for _, one in pairs]
    if list(control.options) != pairs:
        control.options = pairs
    control.value = before if before in values else values[0] if value is None else value


def of_pair(pair: Pair, photos: pd.DataFrame) -> CamBrowser | None:
    """07: a browser of the photos on which two runs disagree, rows of `Pair.table`; A's network beside B's.

    None, and a line says why, where there are no such photos, where a side is no run of which a network is kept, and
    for test photos and pooled folds: the latter were each predicted by another network.
    """
    if why := _not_to_browse(pair, photos):
        print(f"no browser: {why}")
        return None
    return CamBrowser(pair.a.run, pair.b.run, dict(zip(photos["path"], photos["path_b"], strict=True)))


def _not_to_browse(pair: Pair, photos: pd.DataFrame) -> str:
    """Why there is nothing to browse; empty where there is."""
    if not len(photos):
        return "they disagree on no photo"
    for side in (pair.a, pair.b):
        if side.run is None:
            return f"{side.name} is a table of predictions, not a run"
        if side.part != "val":
            return {"test": "test photos are not opened here"}.get(side.part, "each fold has a network of its own")
        if not (side.run.path / "best.pt").is_file():
            return f"no network of {side.name} is kept"
    return ""
