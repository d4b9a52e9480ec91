"""Params files: YAML that sets settings for a sweep, and the runs it asks for.

The top level sets settings; `grid:` maps settings to lists of values, of which every combination is a run (`lr` may
have a list for each optimizer); `list:` names combinations one by one; `random:` draws some from a space; `search:` has
Optuna propose them, one after the other. `title`, `test`, `choose_by` and `ship` belong to the sweep as a whole. With
`folds`, every combination is trained once per fold and repeat, each time from fresh weights.

    random: {runs: 20, seed: 0, space: {lr: {low: 0.0001, high: 0.03, log: true}, optimizer: [adam, sgd]}}
    search: {trials: 40, metric: macro_f1, sampler: tpe, pruner: median, seed: 0, space: {…}}
"""

import contextlib
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fruitlib.core.config import FOLD_SETTINGS, SPLIT_SETTINGS, Config, inert, make
from fruitlib.core.errors import InputError
from fruitlib.core.files import fingerprint
from fruitlib.sweep import space as spaces
from fruitlib.sweep.space import Space

SWEEP_KEYS = ("title", "test", "choose_by", "ship", "grid", "list", "random", "search")
METRICS = ("macro_f1", "accuracy", "balanced_accuracy")
SAMPLERS = ("tpe", "random", "gp", "qmc")
PRUNERS = ("none", "median", "successive_halving", "hyperband")


@dataclass(frozen=True)
class Search:
    """What `search:` asks for: a space, and how Optuna is to go through it."""

    space: Space
    trials: int
    metric: str = "macro_f1"
    direction: str = "maximize"
    sampler: str = "tpe"
    pruner: str = "none"
    seed: int = 0
    storage: str = ""  # an Optuna URL; empty: a journal in the sweep's folder
    fixed: dict[str, Any] = field(default_factory=dict)  # the settings all trials share
    corners: list[Config] = field(default_factory=list)  # what trials may have, at the corners of the space


@dataclass(frozen=True)
class Sweep:
    """A params file, read and checked: its runs by name, each with its `Config` and the settings that differ."""

    name: str
    source: str
    title: str
    test: str
    choose_by: str
    ship: str
    config: Config
    runs: dict[str, Config]  # a search adds to these as it goes
    differs: dict[str, dict[str, Any]]
    search: Search | None = None

    @property
    def settings(self) -> list[str]:
        """The settings in which any of the runs differ."""
        return list(dict.fromkeys(setting for differing in self.differs.values() for setting in differing))

    def combinations(self) -> dict[str, list[str]]:
        """The runs of each combination of settings, which differ in fold and repeat alone.

        One run each without folds.
        """
        if not self.config.folds:
            return {run: [run] for run in self.runs}
        found, keys = {}, {}
        for run, differing in self.differs.items():
            rest = {name: value for name, value in differing.items() if name not in FOLD_SETTINGS}
            name, key = run_name(rest), fingerprint(rest)
            if keys.setdefault(name, key) != key:  # another one that reads alike
                name = f"{name}-{key}"
            found.setdefault(name, []).append(run)
        return found


def read_params(path: Path, settings: dict[str, Any] | None = None) -> Sweep:
    """Read a params file; `settings` (from the command line) win over the file's.

    Raises:
        InputError: missing or broken file, unknown or wrong setting, a combination that is impossible or given twice;
            the message begins with file and line.
    """
    content, lines = _read_yaml(path)
    with lines.named():
        meta = {key: content.pop(key) for key in SWEEP_KEYS if key in content}
        fixed = {**content, **(settings or {})}
        config = make(fixed, str(path))
        search = _search(meta, fixed, path)
        if "ship" in meta and not config.folds:
            raise InputError(f"{path}: ship says which model goes out after folds; set folds: 5, or remove it")
        runs, differs = {}, {}
        for combination in [] if search else _with_folds(_combinations(meta, path), config, path):
            run_config = make({**fixed, **combination}, str(path))
            _refuse_inert(path, combination, run_config)
            shown = set(combination) - ({"repeat"} if config.repeats == 1 else set())
            differing = {name: getattr(run_config, name) for name in sorted(shown)}
            name = run_name(differing)
            if run_config in runs.values():
                raise InputError(f"{path}: the combination {name} is given twice: remove one")
            if name in runs:  # two values that read alike as a folder's name
                name = f"{name}-{fingerprint(differing)}"
            runs[name], differs[name] = run_config, differing
        metric = search.metric if search and search.metric in METRICS else METRICS[0]
        return Sweep(
            name=path.stem,
            source=str(path),
            title=str(meta.get("title", path.stem)),
            test=_choice(meta, "test", ("chosen", "every"), path),
            choose_by=_choice(meta, "choose_by", METRICS, path, default=metric),
            ship=_choice(meta, "ship", ("refit", "ensemble", "fold"), path),
            config=config,
            runs=runs,
            differs=differs,
            search=search,
        )


def _search(meta: dict, fixed: dict, path: Path) -> Search | None:
    """The search a params file asks for, its space tried at all corners; None where it asks for none."""
    if "search" not in meta:
        return None
    wanted, where = meta["search"], f"{path}: search"
    if clash := {"grid", "list", "random"} & set(meta):
        raise InputError(f"{path}: search proposes the runs itself: remove {min(clash)}, or search")
    if fixed.get("folds"):
        raise InputError(f"{path}: folds and search do not go together: remove folds, and cross-validate what it finds")
    if not isinstance(wanted, dict):
        raise InputError(f"{where} wants space, trials, and perhaps metric, direction, sampler, pruner, seed, storage")
    wanted = dict(wanted)
    space = spaces.read_space(wanted.pop("space", None), where)
    known = {"trials", "metric", "direction", "sampler", "pruner", "seed", "storage"}
    if unknown := sorted(set(map(str, wanted)) - known):
        raise InputError(f"{where}: unknown key {unknown[0]}; known: space, {', '.join(sorted(known))}")
    trials, seed = wanted.get("trials"), wanted.get("seed", 0)
    if not _is_count(trials) or trials < 1 or not _is_count(seed):
        raise InputError(f"{where}: trials = {trials!r}, seed = {seed!r}: whole numbers are wanted, at least one trial")
    chosen = {
        key: _choice(wanted, key, allowed, path)
        for key, allowed in (
            ("metric", (*METRICS, "loss")),
            ("direction", ("maximize", "minimize")),
            ("sampler", SAMPLERS),
            ("pruner", PRUNERS),
        )
    }
    if (chosen["metric"] == "loss") != (chosen["direction"] == "minimize"):
        raise InputError(
            f"{where}: metric = {chosen['metric']}, direction = {chosen['direction']}: that looks for the worst runs"
        )
    storage, tried = str(wanted.get("storage") or ""), _corners(space, fixed, path)
    return Search(space, trials, seed=seed, storage=storage, fixed=fixed, corners=tried, **chosen)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _corners(space: Space, fixed: dict, path: Path) -> list[Config]:
    """The `Config` at each corner of a space; refuses one that holds combinations no run can have."""
    _refuse_divided(space, path)
    return [make({**fixed, **corner}, str(path)) for corner in spaces.corners(space)]


def _refuse_divided(settings: Iterable[str], path: Path) -> None:
    """Refuse settings that decide which photos teach: the runs of a sweep share one split."""
    if clash := set(settings) & {*SPLIT_SETTINGS, *FOLD_SETTINGS}:
        raise InputError(f"{path}: {min(clash)} cannot differ within a sweep (its runs share one split)")


def _refuse_inert(path: Path, combination: dict[str, Any], config: Config) -> None:
    """Refuse a setting that differs between runs and does nothing in one: that would compare a run with itself."""
    idle = [name for name in combination if name in inert(config) and combination[name] != Config().model_dump()[name]]
    if idle:
        where = run_name(combination)
        raise InputError(f"{path}: {idle[0]} does nothing in the run {where}: name the runs one by one under list:")


def _read_yaml(path: Path) -> tuple[dict[str, Any], "_Lines"]:
    if not path.is_file():
        raise InputError(f"{path}: no such params file; params/ holds some to start from")
    try:
        text = path.read_text(encoding="utf-8")
        content, lines = yaml.safe_load(text) or {}, _Lines(path, yaml.compose(text, yaml.SafeLoader))
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as problem:  # such as a date that no calendar has
        mark = getattr(problem, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{where}: not valid YAML ({getattr(problem, 'problem', problem)})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected 'setting: value' lines")
    with lines.named():
        _check_names(content, path)
    return content, lines


class _Lines:
    """Where in a params file each name stands, for messages that speak of one."""

    def __init__(self, path: Path, node: yaml.Node | None):
        self.path, self.found = path, []
        if node is not None:
            self._walk(node)

    def _walk(self, node: yaml.Node, name: str = "") -> None:
        if isinstance(node, yaml.MappingNode):
            seen: dict[str, int] = {}
            for key, value in node.value:
                line, text = key.start_mark.line + 1, str(key.value)
                if text in seen and text != "<<":
                    raise InputError(
                        f"{self.path} line {line}: {text} is set already, in line {seen[text]}: remove one"
                    )
                seen[text] = line
                self.found.append((text, None, line))
                self._walk(value, text)
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                self._walk(item, name)
        elif name:
            self.found.append((name, str(node.value), node.start_mark.line + 1))

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Inside, an InputError that begins with the file and speaks of a name in it gets that name's line."""
        try:
            yield
        except InputError as problem:
            rest = str(problem).removeprefix(f"{self.path}: ")
            if rest == str(problem) or not (line := self._line(rest)):
                raise
            raise InputError(f"{self.path} line {line}: {rest}") from None

    def _line(self, message: str) -> int:
        """The line a message speaks of: that of a name with its value, else of the first name in it; 0 for none."""
        for name, value in re.findall(r"(\w+) ?= ?'?([^\s,':]+)", message):
            if lines := [line for known, text, line in self.found if known == name and text == value]:
                return lines[-1]  # of a combination given twice, the second
        known = {name: line for name, value, line in reversed(self.found) if value is None}
        return next((known[word] for word in re.findall(r"\w+", message) if word in known), 0)


def _check_names(mapping: dict, path: Path) -> None:
    """Names are text; YAML reads an unquoted `on`, `yes` or `1` as something else."""
    for name in mapping:
        if not isinstance(name, str):
            raise InputError(f"{path}: {name!r} is no setting; params/base.yaml lists them all")


def _choice(meta: dict, key: str, allowed: tuple[str, ...], path: Path, default: str = "") -> str:
    value = meta.get(key, default or allowed[0])
    if value not in allowed:
        raise InputError(f"{path}: {key} = {value!r}: wanted {' | '.join(allowed)}")
    return value


def _combinations(meta: dict, path: Path) -> list[dict[str, Any]]:
    """Every combination of `grid:`, for every entry of `list:`; one empty combination when there is neither.

    Or those that `random:` draws.
    """
    if "random" in meta:
        return _drawn(meta, path)
    grid, entries = meta.get("grid") or {}, meta.get("list") or [{}]
    if not isinstance(grid, dict):
        raise InputError(f"{path}: grid maps each setting to a list of values, as in 'lr: [0.001, 0.0003]'")
    grid = dict(grid)
    choices = _by_optimizer(grid, path)
    if not all(isinstance(v, list) and v for v in grid.values()):
        raise InputError(f"{path}: grid maps each setting to a list of values, as in 'lr: [0.001, 0.0003]'")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{path}: list holds one 'setting: value' mapping per run")
    for mapping in (grid, *entries):
        _check_names(mapping, path)
    if fixed_by_split := {*grid, *itertools.chain(*entries)} & set(SPLIT_SETTINGS):
        raise InputError(f"{path}: {min(fixed_by_split)} cannot differ within a sweep (its runs share one split)")
    rows = [dict(zip(grid, row, strict=True)) for row in itertools.product(*grid.values())]
    if choices:
        rows = [{**row, "lr": lr} for row in rows for lr in choices[row["optimizer"]]]
    return [{**entry, **row} for row in rows for entry in entries]


def _drawn(meta: dict, path: Path) -> list[dict[str, Any]]:
    """The combinations of `random:`, the same ones each time the file is read."""
    wanted, where = meta["random"], f"{path}: random"
    if clash := {"grid", "list"} & set(meta):
        raise InputError(f"{path}: random draws the runs itself: remove {min(clash)}, or random")
    if not isinstance(wanted, dict) or not {"runs", "space"} <= set(wanted) <= {"runs", "space", "seed"}:
        raise InputError(f"{where} wants runs and space, and perhaps seed")
    runs, seed = wanted["runs"], wanted.get("seed", 0)
    if not _is_count(runs) or runs < 1 or not _is_count(seed):
        raise InputError(f"{where}: runs = {runs!r}, seed = {seed!r}: whole numbers are wanted, at least one run")
    space = spaces.read_space(wanted["space"], where)
    _refuse_divided(space, path)
    found = spaces.draw(space, runs, seed)
    if len(found) < runs:
        raise InputError(f"{where}: runs = {runs}, but the space holds only {len(found)} different combinations")
    return found


def _by_optimizer(grid: dict, path: Path) -> dict[str, list]:
    """Take `lr: {adam: [...], sgd: [...]}` out of a grid: each optimizer has learning rates of its own."""
    if not isinstance(choices := grid.get("lr"), dict):
        return {}
    optimizers = grid.get("optimizer")
    if not isinstance(optimizers, list) or set(choices) != set(optimizers):
        raise InputError(f"{path}: grid lr names {', '.join(map(str, choices))}; optimizer must list the same ones")
    if not all(isinstance(values, list) and values for values in choices.values()):
        raise InputError(f"{path}: grid lr holds a list of values for each optimizer")
    del grid["lr"]
    return choices


def _with_folds(combinations: list[dict], config: Config, path: Path) -> list[dict[str, Any]]:
    """Every combination once per repeat and fold; as they are without `folds`."""
    if not config.folds:
        return combinations
    if clash := {name for combination in combinations for name in combination} & set(FOLD_SETTINGS):
        raise InputError(f"{path}: {min(clash)} is set by folds: {config.folds}; remove it from grid and list")
    repeats = range(1, config.repeats + 1)
    divisions = [{"repeat": r, "fold": fold} for r in repeats for fold in range(1, config.folds + 1)]
    return [combination | division for combination in combinations for division in divisions]


def run_name(differing: dict[str, Any]) -> str:
    """A folder name made of what differs, as in `lr=0.001,optimizer=adam`; `run` when nothing does."""
    parts = (f"{name}={value}" for name, value in differing.items())
    name = re.sub(r"[^\w=,.+-]+", "_", ",".join(parts)) or "run"
    return name if len(name) <= 120 else f"{name[:107]}-{fingerprint(differing)}"
