"""Params files: YAML that sets knobs for a sweep, and the runs it asks for.

The top level sets knobs; `grid:` maps knobs to lists of values, of which every combination is a run (`lr` may have a
list for each optimizer); `list:` names combinations one by one; `title`, `test`, `choose_by` and `ship` belong to the
sweep as a whole. With `folds`, every combination is trained once per fold and repeat, each time from fresh weights.
"""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fruitlib.config import FOLD_KNOBS, SPLIT_KNOBS, Config, inert, make
from fruitlib.runtime import InputError, fingerprint

SWEEP_KEYS = ("title", "test", "choose_by", "ship", "grid", "list")


@dataclass(frozen=True)
class Sweep:
    """A params file, read and checked: its runs by name, each with its `Config` and the knobs that differ."""

    name: str
    source: str
    title: str
    test: str
    choose_by: str
    ship: str
    config: Config
    runs: dict[str, Config]
    differs: dict[str, dict[str, Any]]

    @property
    def knobs(self) -> list[str]:
        """The knobs in which any of the runs differ."""
        return list(dict.fromkeys(knob for differing in self.differs.values() for knob in differing))

    def combinations(self) -> dict[str, list[str]]:
        """The runs of each combination of knobs, which differ in fold and repeat alone; one run each without folds."""
        if not self.config.folds:
            return {run: [run] for run in self.runs}
        found, keys = {}, {}
        for run, differing in self.differs.items():
            rest = {name: value for name, value in differing.items() if name not in FOLD_KNOBS}
            name, key = run_name(rest), fingerprint(rest)
            if keys.setdefault(name, key) != key:  # another one that reads alike
                name = f"{name}-{key}"
            found.setdefault(name, []).append(run)
        return found


def read_params(path: Path, knobs: dict[str, Any] | None = None) -> Sweep:
    """Read a params file; `knobs` (from the command line) win over the file's.

    Raises:
        InputError: missing or broken file, unknown or wrong knob, a combination given twice.
    """
    content = _read_yaml(path)
    meta = {key: content.pop(key) for key in SWEEP_KEYS if key in content}
    fixed = {**content, **(knobs or {})}
    config = make(fixed, str(path))
    if "ship" in meta and not config.folds:
        raise InputError(f"{path}: ship says which model goes out after folds; set folds: 5, or remove it")
    runs, differs = {}, {}
    for combination in _with_folds(_combinations(meta, path), config, path):
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
    return Sweep(
        name=path.stem,
        source=str(path),
        title=str(meta.get("title", path.stem)),
        test=_choice(meta, "test", ("chosen", "every"), path),
        choose_by=_choice(meta, "choose_by", ("macro_f1", "accuracy", "balanced_accuracy"), path),
        ship=_choice(meta, "ship", ("refit", "ensemble", "fold"), path),
        config=config,
        runs=runs,
        differs=differs,
    )


def _refuse_inert(path: Path, combination: dict[str, Any], config: Config) -> None:
    """Refuse a knob that differs between runs and does nothing in one: that would compare a run with itself."""
    idle = [name for name in combination if name in inert(config) and combination[name] != Config().model_dump()[name]]
    if idle:
        where = run_name(combination)
        raise InputError(f"{path}: {idle[0]} does nothing in the run {where}: name the runs one by one under list:")


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: no such params file; params/ holds some to start from")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        mark = getattr(problem, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{where}: not valid YAML ({getattr(problem, 'problem', problem)})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected 'knob: value' lines")
    _check_names(content, path)
    return content


def _check_names(mapping: dict, path: Path) -> None:
    """Names are text; YAML reads an unquoted `on`, `yes` or `1` as something else."""
    for name in mapping:
        if not isinstance(name, str):
            raise InputError(f"{path}: {name!r} is no knob; params/base.yaml lists them all")


def _choice(meta: dict, key: str, allowed: tuple[str, ...], path: Path) -> str:
    value = meta.get(key, allowed[0])
    if value not in allowed:
        raise InputError(f"{path}: {key} = {value!r}: wanted {' | '.join(allowed)}")
    return value


def _combinations(meta: dict, path: Path) -> list[dict[str, Any]]:
    """Every combination of `grid:`, for every entry of `list:`; one empty combination when there is neither."""
    grid, entries = meta.get("grid") or {}, meta.get("list") or [{}]
    if not isinstance(grid, dict):
        raise InputError(f"{path}: grid maps each knob to a list of values, as in 'lr: [0.001, 0.0003]'")
    grid = dict(grid)
    choices = _by_optimizer(grid, path)
    if not all(isinstance(v, list) and v for v in grid.values()):
        raise InputError(f"{path}: grid maps each knob to a list of values, as in 'lr: [0.001, 0.0003]'")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{path}: list holds one 'knob: value' mapping per run")
    for mapping in (grid, *entries):
        _check_names(mapping, path)
    if fixed_by_split := {*grid, *itertools.chain(*entries)} & set(SPLIT_KNOBS):
        raise InputError(f"{path}: {min(fixed_by_split)} cannot differ within a sweep (its runs share one split)")
    rows = [dict(zip(grid, row, strict=True)) for row in itertools.product(*grid.values())]
    if choices:
        rows = [{**row, "lr": lr} for row in rows for lr in choices[row["optimizer"]]]
    return [{**entry, **row} for row in rows for entry in entries]


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
    if clash := {name for combination in combinations for name in combination} & set(FOLD_KNOBS):
        raise InputError(f"{path}: {min(clash)} is set by folds: {config.folds}; remove it from grid and list")
    repeats = range(1, config.repeats + 1)
    divisions = [{"repeat": r, "fold": fold} for r in repeats for fold in range(1, config.folds + 1)]
    return [combination | division for combination in combinations for division in divisions]


def run_name(differing: dict[str, Any]) -> str:
    """A folder name made of what differs, as in `lr=0.001,optimizer=adam`; `run` when nothing does."""
    parts = (f"{name}={value}" for name, value in differing.items())
    name = re.sub(r"[^\w=,.+-]+", "_", ",".join(parts)) or "run"
    return name if len(name) <= 120 else f"{name[:107]}-{fingerprint(differing)}"
