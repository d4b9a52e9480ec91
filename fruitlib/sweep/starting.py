"""Settings as typed into a form -> a params file, checked; and its sweep as a process of its own.

A field holds one value, or several with commas between them, of which a grid is made. `more` holds lines of YAML as in
a params file, for all other settings.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from fruitlib.core import files
from fruitlib.core.config import Config
from fruitlib.core.errors import InputError, first_line
from fruitlib.core.setting_errors import explain
from fruitlib.core.texts import printable, shortened
from fruitlib.sweep import folder, params
from fruitlib.sweep.params import SWEEP_KEYS, Sweep

PLAIN = {"sort_keys": False, "allow_unicode": True, "width": 110}  # YAML as people write it
MORE, NAME = "more", "name"  # fields that are no settings
AS_TYPED = ("title", "data", "photos_dir", "group_pattern", "group_word", "corrections")  # a path may hold a comma
# What ipykernel sets for a notebook's own output
OF_KERNELS = re.compile("MPLBACKEND|JPY_.*|CLICOLOR|CLICOLOR_FORCE|FORCE_COLOR|TERM|PAGER|GIT_PAGER|FRUITLIB_JOB")


@dataclass(frozen=True)
class Checked:
    """What a form's texts mean: the params file's content and its plan, or what is wrong, a line for each field."""

    content: dict[str, Any] = field(default_factory=dict)
    plan: Sweep | None = None
    wrong: dict[str, str] = field(default_factory=dict)

    @property
    def runs(self) -> int:
        if self.plan is None:
            return 0
        return self.plan.search.trials if self.plan.search else len(self.plan.runs)

    @property
    def runs_text(self) -> str:
        """`6 runs: lr 3 x optimizer 2`; empty where the settings do not fit together."""
        grid = self.content.get("grid", {})
        lengths = {name: len(values) for name, values in grid.items() if isinstance(values, list)}
        if self.plan and self.plan.config.folds:
            lengths |= {"folds": self.plan.config.folds, "repeats": self.plan.config.repeats}
        factors = " × ".join(f"{name} {length}" for name, length in lengths.items() if length > 1)
        word = "trials" if self.plan and self.plan.search else "runs"
        number = "1 run" if self.runs == 1 else f"{self.runs:,} {word}"
        return f"{number}{': ' + factors if factors and self.runs > 1 else ''}" if self.plan else ""


def check(texts: Mapping[str, str]) -> Checked:
    """What was typed (by setting; and `more`) as a params file's content; nothing is written.

    Every value is checked for itself; where all are good, whether they go together, and how many runs they make.
    """
    content, wrong = _content(texts)
    grid = content.get("grid")
    tried = {name: [value] for name, value in content.items() if name in Config.model_fields}
    tried |= grid if isinstance(grid, dict) else {}
    for name, values in tried.items():
        if problem := _value_problem(name, values):
            wrong.setdefault(name if name in texts else MORE, problem)
    if wrong:
        return Checked(content, None, wrong)
    try:
        return Checked(content, params.plan_of(content, texts.get(NAME) or "form"))
    except InputError as problem:
        place = problem.setting if problem.setting in texts else MORE
        return Checked(content, None, {place: str(problem)})


def _content(texts: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The content of the params file, as far as the texts can be read, and what is wrong with the others."""
    content, grid, wrong = {}, {}, {}
    try:
        other = _lines(texts.get(MORE, ""))
    except InputError as problem:
        other, wrong[MORE] = {}, str(problem)
    typed = {name: text.strip() for name, text in texts.items() if text.strip() and name not in (MORE, NAME)}
    if twice := sorted(set(other) & set(typed)):
        wrong[MORE] = f"{twice[0]} has a field of its own: set it there"
    for name, text in [*typed.items(), *other.items()]:
        try:
            value = _listed(name, text)
        except InputError as problem:
            wrong[name if name in typed else MORE] = str(problem)
            continue
        if len(value) == 1:
            content[name] = value[0]
        elif name in SWEEP_KEYS:
            wrong[name if name in typed else MORE] = f"{name} is for the sweep as a whole: give one value"
        else:
            grid[name] = value
    if grid:
        given = content.get("grid")
        content["grid"] = {**(given if isinstance(given, dict) else {}), **grid}
    return content, wrong


def _listed(name: str, given: Any) -> list[Any]:
    """The values of a setting from its field's text, or from YAML, where a list stands for a grid as well."""
    if isinstance(given, str):
        return read_values(name, given)
    grid = isinstance(given, list) and given and name in Config.model_fields and not _is_list(name)
    return given if grid else [given]


def _lines(text: str) -> dict[str, Any]:
    """The settings of `more`."""
    try:
        content = yaml.safe_load(text) if text.strip() else {}
    except (yaml.YAMLError, ValueError, RecursionError) as problem:
        why = first_line(getattr(problem, "problem", None) or problem)
        raise InputError(f"not valid YAML ({why}): write lines such as 'momentum: 0.95'") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError("write lines such as 'momentum: 0.95'")
    return content


def read_values(name: str, text: str) -> list[Any]:
    """The values of a field: `0.01, 0.003` are two numbers; a path stays the text that it is.

    Raises:
        InputError: brackets or quotation marks that are not closed, or nothing between two commas.
    """
    if name in AS_TYPED or not text.strip():
        return [text]
    mapping = text.lstrip().startswith("{")
    try:
        values = [yaml.safe_load(text)] if mapping else yaml.safe_load(f"[{text}]")
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InputError(f"{name} = {shortened(text, 60)}: write one value, or several with commas between") from None
    if not mapping and values and isinstance(values[0], list) and len(values) == 1:
        values = values[0]
    if not mapping and _is_list(name):
        values = [values]
    return [_number(value) for value in values]


def _is_list(name: str) -> bool:
    """Whether a setting's own value is a list, as that of `track`."""
    return name in Config.model_fields and isinstance(Config.model_fields[name].default, list)


def _number(value: Any) -> Any:
    """`1e-3`, which YAML 1.1 takes for a text, as a number."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?e[+-]?\d+", value, re.IGNORECASE):
        return float(value)
    return value


def _value_problem(name: str, values: Any) -> str:
    """What is wrong with the first of some values that the setting cannot have whatever the others are; "" if none."""
    for value in values if isinstance(values, list) and name in Config.model_fields else ():
        try:
            Config(**{name: value})
        except ValidationError as problems:
            own = [error for error in problems.errors() if error["loc"] or isinstance(value, bool)]
            for message, setting in (explain(error, Config.model_fields) for error in own):
                if setting == name:
                    return shortened(printable(message.partition("; wanted: ")[0]), 200)  # the form says what
    return ""


def params_text(content: Mapping[str, Any]) -> str:
    """A params file."""
    ordered = {name: content[name] for name in sorted(content, key=lambda name: name in SWEEP_KEYS and name != "title")}
    return yaml.safe_dump(ordered, default_flow_style=None, **PLAIN)


def texts_of(path: Path, fields: list[str]) -> dict[str, str]:
    """What a form's fields, and `more`, hold for an existing params file.

    Raises:
        InputError: it cannot be read, or its settings are wrong.
    """
    content = params.read_content(path)[0]
    params.plan_of(content, path.stem)
    grid = content.pop("grid", None) or {}
    shown = {name: grid.pop(name) for name in list(grid) if name in fields and isinstance(grid[name], list)}
    texts = {name: ", ".join(map(_shown, values)) for name, values in shown.items()}
    texts |= {name: _shown(content.pop(name)) for name in list(content) if name in fields}
    rest = content | ({"grid": grid} if grid else {})
    return texts | {MORE: yaml.safe_dump(rest, default_flow_style=False, **PLAIN) if rest else ""}


def _shown(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6).strip()
    return str(value)


def file_of(name: str) -> Path:
    """The params file of this name."""
    return files.home() / "params" / f"{name}.yaml"


def name_problem(name: str, content: Mapping[str, Any], plan: Sweep | None) -> str:
    """Why the params file and its sweep cannot have this name; "" if they can. Its own file may be there already."""
    if plan is None:
        return ""
    try:
        folder.sweep_folder(plan, None, name)
        folder.refuse_other_results(plan, files.home() / "executed" / name)
    except InputError as problem:
        text = str(problem).replace("with --out, such as --out ", "such as ")
        return text.replace("another --out", "another name").replace("--out ", "name ")
    path = file_of(name)
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") != params_text(content):
        return f"{files.display_path(path)} is there already, with other settings: give another name"
    return ""


def start(name: str, content: Mapping[str, Any]) -> tuple[subprocess.Popen, Path]:
    """Write the params file and execute its sweep, as `fruitlib sweep` does, in a process that outlives this kernel.

    Returns:
        the process, and the file that what it prints goes to.
    """
    path, log = file_of(name), files.home() / "executed" / ".logs" / f"{name}.log"
    files.write_text(path, params_text(content))
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if not OF_KERNELS.fullmatch(key)}
    environment["FRUITLIB_HOME"] = str(files.home())
    command = [sys.executable, "-m", "fruitlib.cli", "sweep", str(path)]
    with open(log, "wb") as output:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
    return process, log


def last_line(log: Path) -> str:
    """The last line that a sweep has printed."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    return next((printable(line.strip()) for line in reversed(lines) if line.strip()), "")
