"""`Config`: every knob with its type, range, default and help; params files, grids and run names.

A params file is YAML. Its top level sets knobs; `grid:` maps knobs to lists of values, of which every combination
is a run; `list:` names combinations one by one; `title`, `test` and `choose_by` belong to the sweep as a whole.
With `folds`, every combination is trained once per fold and repeat, each time from fresh weights.
"""

import ast
import difflib
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fruitlib.runtime import InputError, fingerprint


class Config(BaseModel):
    """All knobs of one run. Unknown names, wrong types and values out of range are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    data: str = Field("sample", min_length=1, description="sample, sample5, a folder of photos, or a CSV or TSV table")
    columns: dict[str, str] = Field({}, description="a table's names for path, label, group, split, x, y, w, h …")
    group_pattern: str = Field("", description="file names with the group first: <variety>__<view>; empty: none")
    bad_photos: Literal["quarantine", "stop"] = Field(
        "quarantine", description="a photo that does not open: quarantine | stop"
    )
    min_side: int = Field(16, ge=1, description="photos with a shorter side are quarantined, pixels")
    near_duplicates: Literal["group", "ignore"] = Field(
        "group", description="photos that look alike: group (never divided) | ignore"
    )
    subset: float = Field(1.0, gt=0, le=1, description="share of the photos to use, whole groups, of every class")
    val_per_class: int | float = Field(10, gt=0, description="validation photos per class; below 1: a share of them")
    test_per_class: int | float = Field(10, ge=0, description="test photos per class; below 1: a share; 0: no test")
    folds: int = Field(0, ge=0, le=100, description="cross-validation: parts that validate in turn; 0: one split")
    repeats: int = Field(1, ge=1, le=100, description="how often the photos are divided into folds anew")
    split_seed: int = Field(0, ge=0, description="which photos fall where")

    model: Literal["end2end", "base", "resnet18", "efficientnet_b0"] = Field(
        "end2end", description="end2end | base | resnet18 | efficientnet_b0"
    )
    base_weights: str = Field("", description="best.pt of a trained base model to start end2end from; empty: fresh")
    weights: Literal["none", "DEFAULT"] = Field("none", description="torchvision's pretrained weights: none | DEFAULT")
    freeze: Literal["none", "backbone"] = Field("none", description="weights that stay as they are: none | backbone")

    lr: float = Field(0.001, gt=0, le=10, description="peak learning rate")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="adam | adamw | sgd")
    weight_decay: float = Field(0.0001, ge=0, le=1, description="L2 penalty (adam, sgd) or decoupled decay (adamw)")
    scheduler: Literal["step", "exponential", "cosine"] = Field("cosine", description="step | exponential | cosine")
    batch_size: int = Field(16, ge=2, le=65536, description="images per optimizer step, over all processes")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="initial weights, order of photos, augmentation")
    epochs: int = Field(20, ge=1, le=100000, description="passes over the training photos")
    loss: Literal["ce", "focal", "mix"] = Field("ce", description="ce | focal | mix")
    focal_ratio: float = Field(0.5, ge=0, le=1, description="share of focal loss in mix")
    focal_gamma: float = Field(2.0, ge=0, le=20, description="focusing parameter of focal loss")
    fold: int = Field(1, ge=1, description="the fold this run validates on; a sweep runs them all")
    repeat: int = Field(1, ge=1, description="the division into folds this run uses; a sweep runs them all")

    image_size: int = Field(96, ge=32, le=1024, description="side of the square the model sees, pixels")
    crop_to: Literal["box", "object", "none"] = Field(
        "box", description="box (where a table gives one) | object (found on a plain background) | none"
    )
    crop_margin: float = Field(0.1, ge=0, le=2, description="margin around box or object, as a share of its side")
    resize: Literal["crop", "pad", "squash"] = Field(
        "crop", description="how a photo becomes square: crop | pad | squash"
    )
    brightness: float = Field(1.0, gt=0, le=10, description="factor on every photo; 1: as it is")
    contrast: float = Field(1.0, gt=0, le=10, description="factor on every photo; 1: as it is")
    saturation: float = Field(1.0, ge=0, le=10, description="factor on every photo; 1: as it is, 0: grey")
    sharpness: float = Field(1.0, ge=0, le=10, description="factor on every photo; 1: as it is, below: blurred")

    augment: Literal["none", "crop", "geometric", "colour", "full", "trivial", "randaugment"] = Field(
        "geometric", description="none | crop | geometric | colour | full | trivial | randaugment"
    )
    mixing: Literal["none", "mixup", "cutmix"] = Field("none", description="none | mixup | cutmix, pairs of photos")
    mixing_alpha: float = Field(0.4, gt=0, le=10, description="how evenly pairs are mixed: Beta(alpha, alpha)")
    balance: Literal[
        "none", "class_weights", "weighted_sampler", "oversample", "undersample", "augment_to", "smote"
    ] = Field(
        "none",
        description="none | class_weights | weighted_sampler | oversample | undersample | augment_to | smote",
    )
    augment_to: int = Field(0, ge=0, description="photos per class after augmented children joined (augment_to)")
    cache: Literal["auto", "ram", "disk", "stream"] = Field(
        "auto",
        description="decoded photos: auto | ram (mapped, read ahead) | disk (mapped) | stream (every epoch anew)",
    )
    cam_every: int = Field(5, ge=0, description="keep Grad-CAM pictures every so many epochs; 0: never")
    processes: int = Field(1, ge=1, le=1024, description="training processes; more than one starts torchrun")

    calibration_images: int = Field(100, ge=1, description="training photos that set the INT8 ranges")
    int8_agreement: float = Field(
        0.9, ge=0, le=1, description="share of validation photos INT8 must label as fp32 does"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_truth_values(cls, values):
        """YAML's true and yes would pass as the number 1; no knob is a truth value, so refuse them."""
        for name, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, bool):
                raise ValueError(f"{name} = {str(value).lower()}: a truth value, where {knob_kind(name)} is wanted")
        return values

    @field_validator("processes")
    @classmethod
    def _enough_for_each(cls, processes, info):
        batch_size = info.data.get("batch_size", 2)
        if processes > 1 and batch_size < 2 * processes:
            raise ValueError(f"batch_size {batch_size} is too small for {processes} processes (at least 2 images each)")
        return processes

    @model_validator(mode="after")
    def _fits_together(self):
        if self.base_weights and self.model != "end2end":
            raise ValueError(f"base_weights starts model end2end only, not {self.model}")
        if self.weights != "none" and self.model in ("end2end", "base"):
            raise ValueError(f"weights {self.weights} exists for torchvision's models only, not {self.model}")
        if self.freeze != "none" and not self.base_weights and self.weights == "none":
            raise ValueError("freeze = backbone keeps random weights: name weights (torchvision) or base_weights")
        return self

    @model_validator(mode="after")
    def _folds_fit_together(self):
        if self.folds == 1:
            raise ValueError("folds = 1: one part cannot both teach and validate; 0 for one split, else 2 or more")
        if self.fold > max(self.folds, 1):
            raise ValueError(f"fold = {self.fold}: there are folds = {self.folds}")
        if self.repeat > self.repeats:
            raise ValueError(f"repeat = {self.repeat}: there are repeats = {self.repeats}")
        if self.repeats > 1 and not self.folds:
            raise ValueError(f"repeats = {self.repeats} repeats folds: set folds to 2 or more")
        for name in ("val_per_class", "test_per_class"):
            if (wanted := getattr(self, name)) > 1 and wanted != int(wanted):
                raise ValueError(f"{name} = {wanted}: a whole number of photos, or a share below 1")
        return self

    @model_validator(mode="after")
    def _balance_fits(self):
        if (self.balance == "augment_to") != bool(self.augment_to):
            raise ValueError("balance = augment_to and augment_to = N (photos per class) go together: set both")
        if self.balance == "augment_to" and self.augment == "none":
            raise ValueError("balance = augment_to adds augmented children: set augment, to geometric for example")
        if self.balance == "smote" and not self.features_once:
            raise ValueError(
                "balance = smote mixes frozen features: set freeze: backbone with weights: DEFAULT (or base_weights), "
                "augment: none and mixing: none"
            )
        return self

    @property
    def features_once(self) -> bool:
        """Whether every epoch would compute the same features, so that once will do."""
        return self.freeze == "backbone" and self.augment == "none" and self.mixing == "none"


BASE_CLASSES = 5  # what model base tells apart
SPLIT_KNOBS = tuple(itertools.takewhile(lambda name: name != "model", Config.model_fields))
EXPORT_KNOBS = ("calibration_images", "int8_agreement")
PLACE_KNOBS = ("cache",)  # where photos are kept changes no result
TRAIN_KNOBS = tuple(name for name in Config.model_fields if name not in SPLIT_KNOBS + EXPORT_KNOBS + PLACE_KNOBS)
FACTORS = ("brightness", "contrast", "saturation", "sharpness")
PREPROCESS_KNOBS = ("image_size", "crop_to", "crop_margin", "resize", *FACTORS)
FOLD_KNOBS = ("fold", "repeat")  # set by a sweep with `folds`, one run each
SWEEP_KEYS = ("title", "test", "choose_by", "grid", "list")


@dataclass(frozen=True)
class Sweep:
    """A params file, read and checked: its runs by name, each with its `Config` and the knobs that differ."""

    name: str
    source: str
    title: str
    test: str
    choose_by: str
    config: Config
    runs: dict[str, Config]
    differs: dict[str, dict[str, Any]]

    @property
    def knobs(self) -> list[str]:
        """The knobs in which any of the runs differ."""
        return list(dict.fromkeys(knob for differing in self.differs.values() for knob in differing))

    def combinations(self) -> dict[str, list[str]]:
        """The runs of each combination of knobs, which differ in fold and repeat alone; one run each without folds."""
        found: dict[str, list[str]] = {}
        for run, differing in self.differs.items():
            rest = {name: value for name, value in differing.items() if name not in FOLD_KNOBS}
            name = run_name(rest) if self.config.folds else run
            found.setdefault(name, []).append(run)
        return found


def knob_kind(name: str) -> str:
    """What a knob holds, in words: a whole number, a number, one of a few words, or text."""
    field = Config.model_fields.get(name)
    kinds = {int: "a whole number", float: "a number", str: "text"}
    return kinds.get(field.annotation, "a word") if field else "a knob's value"


def nearest(name: str, known) -> str:
    """` (did you mean ...?)` where a known name is close, else nothing."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def make(knobs: dict[str, Any], source: str = "settings") -> Config:
    """A `Config` from knobs, or one line saying what is wrong with which.

    Raises:
        InputError: an unknown knob (with the nearest name), a wrong type, a value out of range.
    """
    try:
        return Config(**knobs)
    except ValidationError as problems:
        raise InputError(f"{source}: {_explain(problems.errors()[0])}") from None


def _explain(error: dict) -> str:
    """One pydantic error in one line: the knob, its value, what is wanted."""
    name = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        return f"unknown knob {name}{nearest(name, Config.model_fields)}; params/base.yaml lists them all"
    message = re.sub(r"^Value error, ", "", error["msg"])
    if not name or "=" in message:
        return message
    message = message[0].lower() + message[1:].removesuffix(", got a number with a fractional part")
    place = ".".join(map(str, error["loc"]))
    return f"{place} = {error['input']!r}: {message}; wanted: {Config.model_fields[name].description}"


def read_params(path: Path, knobs: dict[str, Any] | None = None) -> Sweep:
    """Read a params file; `knobs` (from the command line) win over the file's.

    Raises:
        InputError: missing or broken file, unknown or wrong knob, a combination given twice.
    """
    content = _read_yaml(path)
    meta = {key: content.pop(key) for key in SWEEP_KEYS if key in content}
    fixed = {**content, **(knobs or {})}
    config = make(fixed, str(path))
    runs, differs = {}, {}
    for combination in _with_folds(_combinations(meta, path), config, path):
        run_config = make({**fixed, **combination}, str(path))
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
        config=config,
        runs=runs,
        differs=differs,
    )


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
    if not isinstance(grid, dict) or not all(isinstance(v, list) and v for v in grid.values()):
        raise InputError(f"{path}: grid maps each knob to a list of values, as in 'lr: [0.001, 0.0003]'")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{path}: list holds one 'knob: value' mapping per run")
    for mapping in (grid, *entries):
        _check_names(mapping, path)
    if fixed_by_split := {*grid, *itertools.chain(*entries)} & set(SPLIT_KNOBS):
        raise InputError(f"{path}: {min(fixed_by_split)} cannot differ within a sweep (its runs share one split)")
    rows = itertools.product(*grid.values())
    return [{**entry, **dict(zip(grid, row, strict=True))} for row in rows for entry in entries]


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


def from_notebook(cells: dict[str, Any]) -> Config:
    """The `Config` a notebook's parameters describe: pass `globals()`.

    Knobs named in the parameters cell are taken, `overrides` adds others.

    Raises:
        InputError: whatever `make` refuses, or an injected name that is neither a knob nor in the parameters cell.
    """
    overrides = cells.get("overrides") or {}
    if not isinstance(overrides, dict):
        raise InputError("overrides: wanted a mapping such as {'weight_decay': 0.01}")
    check_injected(cells)
    knobs = {name: cells[name] for name in Config.model_fields if name in cells}
    return make({**knobs, **overrides}, "parameters")


def check_injected(cells: dict[str, Any]) -> None:
    """Refuse a name that papermill injected and nothing knows; papermill itself only warns. Pass `globals()`."""
    sources = [source for source in cells.get("In") or [] if source]
    injected = {name for source in sources if source.startswith("# Parameters") for name in assigned_names(source)}
    declared = assigned_names(sources[0]) if sources else set()
    known = {*Config.model_fields, "overrides"} if "overrides" in declared else declared
    if unknown := sorted(injected - known - declared):
        raise InputError(f"unknown parameter {unknown[0]}{nearest(unknown[0], known | declared)}")


def assigned_names(source: str) -> set[str]:
    """Names a cell assigns at its top level."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return set()
    targets = [t for node in body if isinstance(node, ast.Assign) for t in node.targets]
    targets += [node.target for node in body if isinstance(node, ast.AnnAssign)]
    return {target.id for target in targets if isinstance(target, ast.Name)}
