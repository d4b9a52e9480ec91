"""The form of 00: settings as one types them -> a params file, checked at every key, and its sweep started."""

import html
import subprocess
import threading

from ipywidgets import HTML, Button, Combobox, HBox, Layout, Text, Textarea, VBox, Widget

from fruitlib.core import files
from fruitlib.core.config import Config
from fruitlib.core.errors import InputError
from fruitlib.core.setting_errors import choices
from fruitlib.data import sources
from fruitlib.reporting import widgets
from fruitlib.reporting.keys_box import KeysBox
from fruitlib.sweep import starting
from fruitlib.sweep.starting import MORE, NAME

# The settings that people turn most; any other goes below
FIELDS = ("title", "data", "folds", "model", "weights", "head", "image_size", "epochs", "lr", "optimizer")
FIELDS += ("batch_size", "augment", "balance", "loss", "seed")
MODELS = ("end2end", "resnet18", "mobilenet_v3_small", "efficientnet_b0", "timm:tf_efficientnet_lite0")
HELP = {
    "title": "what this sweep asks",
    MORE: "any other setting of params/base.yaml, a line each: momentum: 0.9, 0.95",
}
HELP |= {NAME: "of the params file and of its folder in executed/"}


class StartForm:
    """The widget: a field for each of `FIELDS`, one for all others, what they make, and a button that starts it."""

    def __init__(self):
        self.fields: dict[str, Widget] = {name: _field(name) for name in FIELDS}
        self.fields[MORE] = Textarea(placeholder=HELP[MORE], rows=4)
        self.fields[NAME] = Text(placeholder="mine")
        self.notes = {name: HTML() for name in self.fields}
        self.found, self.message = HTML(), HTML()
        self.button = Button(description="Start", button_style="primary", icon="play")
        self.process: subprocess.Popen | None = None
        self.checked = starting.Checked()
        for field in self.fields.values():
            field.observe(lambda _: self.check(), names="value")
        self.button.on_click(lambda _: self.start())
        self.widget = self._arranged()
        self.check()

    def _arranged(self) -> VBox:
        rows = [self._row(name) for name in self.fields]
        self.below = VBox([])
        last = HBox([self.button, self.found], layout=Layout(flex_flow="row wrap", align_items="center"))
        return KeysBox([self._begin(), *rows, last, self.message, self.below])

    def _row(self, name: str) -> HBox:
        """Name, field, and what the setting is or what is wrong with it."""
        label = HTML(f"<b>{name}</b>", layout=Layout(width="7em"))
        self.fields[name].layout = Layout(width="24em")
        self.notes[name].layout = Layout(flex="1 1 24em")
        return HBox([label, self.fields[name], self.notes[name]], layout=Layout(flex_flow="row wrap"))

    def _begin(self) -> HBox:
        """Buttons that fill the form from a params file that is there."""
        names = sorted(path.stem for path in (files.home() / "params").glob("*.yaml") if path.stem != "base")
        self.copied = Combobox(options=names, placeholder="demo", ensure_option=True, layout=Layout(width="16em"))
        fill = Button(description="Copy its settings", layout=Layout(width="11em"))
        fill.on_click(lambda _: self.copy(self.copied.value))
        return HBox([HTML("Begin with params/"), self.copied, fill], layout=Layout(flex_flow="row wrap"))

    def copy(self, name: str) -> None:
        """Fill the form from a params file; its name stays free to choose."""
        try:
            texts = starting.texts_of(starting.file_of(name), list(FIELDS))
        except (InputError, OSError) as problem:
            is_named = getattr(problem, "place", "")  # with its line, where there is one
            self.message.value = _wrong(str(problem) if is_named else f"params/{name}.yaml: {problem}")
            return
        self.message.value = ""
        for field in (*FIELDS, MORE):
            self.fields[field].value = texts.get(field, "")

    def texts(self) -> dict[str, str]:
        """What is typed, by field; a name that is not given is `mine`."""
        texts = {name: field.value for name, field in self.fields.items()}
        return texts | {NAME: texts[NAME] or "mine"}

    def check(self) -> None:
        """Say beside every field what is wrong with it, and in the end how many runs it makes."""
        texts = self.texts()
        self.checked = checked = starting.check(texts)
        wrong = dict(checked.wrong)
        if problem := starting.name_problem(texts[NAME], checked.content, checked.plan):
            wrong[NAME] = problem
        for name, line in self.notes.items():
            line.value = _wrong(wrong[name]) if name in wrong else f"<small>{html.escape(_help(name))}</small>"
        self.found.value = f"<b>{html.escape(checked.runs_text)}</b>"
        self.button.disabled = bool(wrong)

    def start(self) -> None:
        """Write the params file, start its sweep, and show its table."""
        self.check()
        if self.button.disabled:
            return
        name = self.texts()[NAME]
        if self.process and self.process.poll() is None:
            self.message.value = _wrong(
                f"the sweep that was started here runs still: wait, or end process {self.process.pid}"
            )
            return
        try:
            self.process, log = starting.start(name, self.checked.content)
        except OSError as problem:
            self.message.value = _wrong(files.os_error_text(problem))
            return
        path = files.display_path(starting.file_of(name))
        self.message.value = (
            f"started: <code>fruitlib sweep {html.escape(path)}</code>, which goes on if this kernel ends; "
        )
        self.message.value += f"what it prints is in <code>{html.escape(files.display_path(log))}</code>"
        self.below.children = [widgets.live(f"executed/{name}")]
        threading.Thread(target=self._wait, args=(self.process, log), daemon=True).start()

    def _wait(self, process: subprocess.Popen, log) -> None:
        code, line = process.wait(), starting.last_line(log)
        self.message.value = f"over: {html.escape(line)}" if code == 0 else _wrong(line or f"ended with code {code}")


def _field(name: str) -> Widget:
    default = "" if name not in Config.model_fields else str(Config.model_fields[name].default)
    if options := _options(name):
        return Combobox(options=options, placeholder=default)
    return Text(placeholder=default)


def _help(name: str) -> str:
    return HELP.get(name) or Config.model_fields[name].description


def _options(name: str) -> list[str]:
    """What a field proposes; anything else may be typed."""
    if name == "data":
        return [*sources.NAMES]
    return list(MODELS) if name == "model" else choices(name, Config.model_fields)


def _wrong(line: str) -> str:
    style = "color:var(--jp-error-color1, #c62828);line-height:1.3;padding:4px 0;white-space:normal"
    return f"<div style='{style}'>{html.escape(line)}</div>"
