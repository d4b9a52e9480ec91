"""Params files: YAML that sets settings for a sweep, and the runs it asks for.

The top level sets settings; `grid:` maps settings to lists of values, of which every combination is a run (`lr` may
have a list for each optimizer); `list:` names combinations one by one; `random:` draws some from a space; `search:` has
Optuna propose them, one after the other. `title`, `test`, `choose_by`, `ship` and `pages` belong to the sweep as a
whole. With `folds`, every combination is trained once per fold and repeat, each time from fresh weights.

    random: {runs: 20, seed: 0, space: {lr: {low: 0.0001, high: 0.03, log: true}, optimizer: [adam, sgd]}}
    search: {trials: 40, metric: macro_f1, sampler: tpe, pruner: median, seed: 0, space: {…}}
"""

import itertools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fruitlib.core import yaml_files
from fruitlib.core.config import FOLD_SETTINGS, SPLIT_SETTINGS, Config, make
from fruitlib.core.errors import InputError
from fruitlib.core.files import fingerprint
from fruitlib.core.idle_settings import settings_without_effect
from fruitlib.core.texts import printable
from fruitlib.sweep import space as spaces
from fruitlib.sweep.space import Space

MOST_BYTES = 240  # of a folder's name; a file system allows 255
MOST_RUNS = 10_000  # of one sweep: a folder each, and a row in every table
MOST_WITH_PAGES = 12  # runs that all get pages, unless `pages` says otherwise
SWEEP_KEYS = ("title", "test", "choose_by", "ship", "pages", "grid", "list", "random", "search")
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
    pages: str  # which runs get 03, 04 and 05 besides their numbers: every | best | chosen
    config: Config
    runs: dict[str, Config]  # a search adds to these as it goes
    differs: dict[str, dict[str, Any]]
    search: Search | None = None
    digest: str = ""  # of the file as it was read
    command: str = ""  # that executes this sweep again, as it stands in the report

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
        combinations, keys = {}, {}
        for run, differing in self.differs.items():
            rest = {name: value for name, value in differing.items() if name not in FOLD_SETTINGS}
            name, key = run_name(rest), fingerprint(rest)
            if keys.setdefault(name, key) != key:  # another one that reads alike
                name = f"{name}-{key}"
            combinations.setdefault(name, []).append(run)
        return combinations


def read_params(path: Path, settings: dict[str, Any] | None = None) -> Sweep:
    """Read a params file; `settings` (from the command line) win over the file's.

    Raises:
        InputError: missing or broken file, unknown or wrong setting, a combination that is impossible or given twice;
            the message begins with file and line.
    """
    content, lines = read_content(path)
    settings = settings or {}
    try:
        return replace(_plan(content, settings, path), digest=fingerprint(path))
    except InputError as problem:
        in_file = problem.setting not in settings
        raise problem.at(lines.place(problem.setting, problem.value) if in_file else str(path)) from None


def plan_of(content: dict[str, Any], name: str) -> Sweep:
    """The sweep that a params file of this content would ask for.

    Raises:
        InputError: as `read_params`, with the setting and without a place.
    """
    return _plan(dict(content), {}, Path(f"{name}.yaml"))


def _plan(content: dict, settings: dict[str, Any], path: Path) -> Sweep:
    """The sweep that a params file's content asks for, with the settings of the command line."""
    _check_names(content)
    meta = {key: content.pop(key) for key in SWEEP_KEYS if key in content}
    fixed = {**content, **settings}
    config = make(_first_model(meta) | fixed)
    search = _search(meta, fixed)
    if "ship" in meta and not config.folds:
        raise InputError("ship says which model goes out after folds; set folds: 5, or remove it", "ship")
    runs, differs, seen = {}, {}, set()
    for combination in [] if search else _with_folds(_combinations(meta, config), config):
        run_config = make({**fixed, **combination})
        _refuse_without_effect(combination, run_config)
        shown = set(combination) - ({"repeat"} if config.repeats == 1 else set())
        differing = {name: getattr(run_config, name) for name in sorted(shown)}
        name = run_name(differing)
        identity = fingerprint(run_config.model_dump())
        if identity in seen:
            last = max(differing, default="list")
            message = f"the combination {name} is given twice: remove one"
            raise InputError(message, last, differing.get(last))
        if name in runs:  # two values that read alike as a folder's name
            name = f"{name}-{fingerprint(differing)}"
        seen.add(identity)
        runs[name], differs[name] = run_config, differing
    metric = search.metric if search and search.metric in METRICS else METRICS[0]
    return Sweep(
        name=path.stem,
        source=str(path),
        title=str(meta.get("title", path.stem)),
        test=_choice(meta, "test", ("chosen", "every")),
        choose_by=_choice(meta, "choose_by", METRICS, default=metric),
        ship=_choice(meta, "ship", ("refit", "ensemble", "fold")),
        pages=_pages(meta, search.trials if search else len(runs)),
        config=config,
        runs=runs,
        differs=differs,
        search=search,
    )


def _pages(meta: dict, runs: int) -> str:
    """Which runs get pages; where the file does not say: every one of a few, the best of many."""
    wanted = _choice(meta, "pages", ("auto", "every", "best", "chosen"))
    if meta.get("test") == "every" and wanted in ("best", "chosen"):
        needed = "test: every needs the files that 05 writes for each run"
        raise InputError(f"{needed}: set pages: every, not {wanted}", "pages")
    if wanted != "auto":
        return wanted
    return "every" if runs <= MOST_WITH_PAGES or meta.get("test") == "every" else "best"


def _search(meta: dict, fixed: dict) -> Search | None:
    """The search a params file asks for, its space tried at all corners; None where it asks for none."""
    if "search" not in meta:
        return None
    wanted = meta["search"]
    if clash := {"grid", "list", "random"} & set(meta):
        raise InputError(f"search proposes the runs itself: remove {min(clash)}, or search", min(clash))
    if fixed.get("folds"):
        raise InputError("folds and search do not go together: remove folds, cross-validate the best trial", "folds")
    if not isinstance(wanted, dict):
        keys = "metric, direction, sampler, pruner, seed, storage"
        raise InputError(f"search: wanted space and trials, optionally {keys}", "search")
    wanted = dict(wanted)
    space = spaces.read_space(wanted.pop("space", None), "search")
    known = {"trials", "metric", "direction", "sampler", "pruner", "seed", "storage"}
    if unknown := sorted(set(map(str, wanted)) - known):
        known_keys = ", ".join(sorted(known))
        raise InputError(f"search: unknown key {unknown[0]}; known: space, {known_keys}", unknown[0])
    trials, seed = wanted.get("trials"), wanted.get("seed", 0)
    _check_count("search", "trials", trials, least=1)
    _check_count("search", "seed", seed)
    chosen = {
        key: _choice(wanted, key, allowed)
        for key, allowed in (
            ("metric", (*METRICS, "loss")),
            ("direction", ("maximize", "minimize")),
            ("sampler", SAMPLERS),
            ("pruner", PRUNERS),
        )
    }
    if (chosen["metric"] == "loss") != (chosen["direction"] == "minimize"):
        pair = f"metric = {chosen['metric']}, direction = {chosen['direction']}"
        key = "direction" if "direction" in wanted else "metric"
        raise InputError(f"search: {pair}: this looks for the worst runs; set the other direction", key, chosen[key])
    storage, tried = str(wanted.get("storage") or ""), _corners(space, fixed)
    return Search(space, trials, seed=seed, storage=storage, fixed=fixed, corners=tried, **chosen)


def _first_model(meta: dict) -> dict[str, Any]:
    """The first model of the grid or list, for the settings that all runs share: they are judged with one of them."""
    grid, entries = meta.get("grid"), meta.get("list")
    listed = grid.get("model") if isinstance(grid, dict) else None
    if isinstance(entries, list) and entries and isinstance(entries[0], dict) and not listed:
        listed = [entries[0]["model"]] if "model" in entries[0] else None
    return {"model": listed[0]} if isinstance(listed, list) and listed and isinstance(listed[0], str) else {}


def _check_count(where: str, key: str, value: Any, least: int = 0) -> None:
    """Refuse what is no whole number, or one below `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{where}: {key} = {value!r}: wanted a whole number, {least} or more", key, value)


def _corners(space: Space, fixed: dict) -> list[Config]:
    """The `Config` at each corner of a space; refuses one that holds combinations no run can have."""
    _refuse_split_settings(space)
    return [make({**fixed, **corner}) for corner in spaces.corners(space)]


def _refuse_split_settings(settings: Iterable[str], refused: Iterable[str] = SPLIT_SETTINGS + FOLD_SETTINGS) -> None:
    """Refuse settings that decide which photos are for training: the runs of a sweep share one split."""
    if clash := set(settings) & set(refused):
        raise InputError(f"{min(clash)} cannot differ within a sweep (its runs share one split)", min(clash))


def _refuse_without_effect(combination: dict[str, Any], config: Config) -> None:
    """Refuse a setting that differs between runs and does nothing in one: that would compare a run with itself."""
    without_effect = settings_without_effect(config)
    for name in combination:
        if name in without_effect and combination[name] != Config.model_fields[name].default:
            message = f"{name} does nothing in the run {run_name(combination)}: name the runs one by one under list:"
            raise InputError(message, name, combination[name])


def read_content(path: Path) -> tuple[dict[str, Any], yaml_files.Lines]:
    """What a params file sets, by name, and the lines where that stands; nothing is checked but that it is a mapping.

    Raises:
        InputError: no such file, not valid YAML, or no mapping.
    """
    if not path.exists():
        raise InputError("no such params file; params/ holds some to start from", place=printable(str(path)))
    content, lines = yaml_files.read(path)
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise InputError("expected 'setting: value' lines", place=str(path))
    return content, lines


def _check_names(mapping: dict) -> None:
    """Names are text; YAML reads an unquoted `on`, `yes` or `1` as something else."""
    for name in mapping:
        if not isinstance(name, str):
            raise InputError(f"{name!r} is not a setting; params/base.yaml lists them all", str(name))


def _choice(meta: dict, key: str, allowed: tuple[str, ...], default: str = "") -> str:
    value = meta.get(key, default or allowed[0])
    if value not in allowed:
        raise InputError(f"{key} = {value!r}: wanted {' | '.join(allowed)}", key, value)
    return value


def _combinations(meta: dict, config: Config) -> list[dict[str, Any]]:
    """Every combination of `grid:`, for every entry of `list:`; one empty combination when there is neither.

    Or those that `random:` draws.
    """
    if "random" in meta:
        return _drawn(meta, config)
    grid, entries = meta.get("grid") or {}, meta.get("list") or [{}]
    wanted = "grid maps each setting to a list of values, as in 'lr: [0.001, 0.0003]'"
    if not isinstance(grid, dict):
        raise InputError(wanted, "grid")
    grid = dict(grid)
    choices = _by_optimizer(grid)
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise InputError(wanted, str(name), values)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError("list holds one 'setting: value' mapping per run", "list")
    for mapping in (grid, *entries):
        _check_names(mapping)
    _refuse_split_settings({*grid, *itertools.chain(*entries)}, SPLIT_SETTINGS)
    lengths = {name: len(values) for name, values in grid.items()}
    if choices:
        lengths["lr"] = max(map(len, choices.values()))
    _refuse_too_many(lengths | {"list": len(entries)}, config)
    rows = [dict(zip(grid, row, strict=True)) for row in itertools.product(*grid.values())]
    if choices:
        rows = [{**row, "lr": lr} for row in rows for lr in choices[row["optimizer"]]]
    return [{**entry, **row} for row in rows for entry in entries]


def _refuse_too_many(lengths: dict[str, int], config: Config) -> None:
    """Refuse more runs than a sweep can hold, before any is made; `lengths`: how many values each list has."""
    lengths = lengths | ({"folds": config.folds, "repeats": config.repeats} if config.folds else {})
    if (count := math.prod(lengths.values())) <= MOST_RUNS:
        return
    longest = sorted(lengths, key=lambda name: lengths[name], reverse=True)[:3]
    factors = ", ".join(f"{name}: {lengths[name]:,}" for name in longest if lengths[name] > 1)
    message = f"{count:,} runs ({factors}), at most {MOST_RUNS:,} in a sweep: shorten the lists, or draw with random:"
    raise InputError(message, longest[0])


def _drawn(meta: dict, config: Config) -> list[dict[str, Any]]:
    """The combinations of `random:`, the same ones each time the file is read."""
    wanted = meta["random"]
    if clash := {"grid", "list"} & set(meta):
        raise InputError(f"random draws the runs itself: remove {min(clash)}, or random", min(clash))
    if not isinstance(wanted, dict) or not {"runs", "space"} <= set(wanted) <= {"runs", "space", "seed"}:
        raise InputError("random: wanted runs and space, optionally seed", "random")
    runs, seed = wanted["runs"], wanted.get("seed", 0)
    _check_count("random", "runs", runs, least=1)
    _check_count("random", "seed", seed)
    _refuse_too_many({"runs": runs}, config)
    space = spaces.read_space(wanted["space"], "random")
    _refuse_split_settings(space)
    rows = spaces.draw(space, runs, seed)
    if len(rows) < runs:
        message = f"random: runs = {runs}, but the space holds only {len(rows)} different combinations"
        raise InputError(message, "runs", runs)
    return rows


def _by_optimizer(grid: dict) -> dict[str, list]:
    """Take `lr: {adam: [...], sgd: [...]}` out of a grid: each optimizer has learning rates of its own."""
    if not isinstance(choices := grid.get("lr"), dict):
        return {}
    optimizers = grid.get("optimizer")
    if not isinstance(optimizers, list) or set(map(str, choices)) != set(map(str, optimizers)):
        raise InputError(f"grid lr names {', '.join(map(str, choices))}; optimizer must list the same ones", "lr")
    if not all(isinstance(values, list) and values for values in choices.values()):
        raise InputError("grid lr holds a list of values for each optimizer", "lr")
    del grid["lr"]
    return choices


def _with_folds(combinations: list[dict], config: Config) -> list[dict[str, Any]]:
    """Every combination once per repeat and fold; as they are without `folds`."""
    if not config.folds:
        return combinations
    if clash := {name for combination in combinations for name in combination} & set(FOLD_SETTINGS):
        raise InputError(f"{min(clash)} is set by folds: {config.folds}; remove it from grid and list", min(clash))
    repeats = range(1, config.repeats + 1)
    divisions = [{"repeat": r, "fold": fold} for r in repeats for fold in range(1, config.folds + 1)]
    return [combination | division for combination in combinations for division in divisions]


def run_name(differing: dict[str, Any]) -> str:
    """A folder name made of what differs, as in `lr=0.001,optimizer=adam`; `run` when nothing does."""
    parts = (f"{name}={value}" for name, value in differing.items())
    name = re.sub(r"[^\w=,.+-]+", "_", ",".join(parts)) or "run"
    if len(name) <= 120 and len(name.encode()) <= MOST_BYTES:
        return name
    start = name[:107].encode()[: MOST_BYTES - 13].decode(errors="ignore")  # a letter may have four bytes
    return f"{start}-{fingerprint(differing)}"
