"""The baseline that training has to beat: logistic regression on the features of a pretrained network, left as it is.

The network is the run's own as its training starts, at its own image size; or, where that has random weights, the best
one that is installed as a package. It learns from the run's training photos and predicts its validation photos.
"""

import os
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fruitlib.core import config as configs
from fruitlib.core import files, machine, model_names, source_code
from fruitlib.core.config import PREPROCESS_SETTINGS, Config
from fruitlib.core.model_names import OURS
from fruitlib.data import cache, dataset, photo_checks
from fruitlib.evaluation import metrics
from fruitlib.runs.run import Run
from fruitlib.training import evaluate, features, fitted, models, packaged
from fruitlib.training.messages import say_from_any_rank

MOST_PHOTOS = 20_000  # with more, extracting features would take longer than a baseline is worth


@dataclass(frozen=True)
class Probe:
    """What the baseline is, in words, and its predictions: path, label, predicted, p_<class> …, backend."""

    name: str
    predictions: pd.DataFrame


def of_run(run: Run, tell: bool = True) -> Probe | None:
    """The baseline of a run with validation photos, written to its `predictions_probe.csv`; None where there is none.

    `reason` says why there is none. Features are computed once per photo, and predictions once for all runs that ask
    for the same: the same network, training photos, labels and validation photos. `tell`: print how it was made, where
    it was made now.

    Raises:
        InputError: weights or photos that cannot be read.
    """
    if reason(run):
        return None
    file, probs = files.cache_dir() / f"{_identity(run)}.probe.csv", None
    try:
        with files.lock(file.with_suffix(".lock")):
            probs = _read(file, run)
            if probs is None:
                probs = _predict(run, tell)
                _write(file, probs)
    except OSError:  # the disk is full, or read-only; what cannot be kept is computed by each
        probs = _predict(run, tell) if probs is None else probs
    return Probe(_name(run), run.write_predictions("probe", {"probe": probs}, run.rows("val")))


def reason(run: Run) -> str:
    """Why a run has no such baseline, in a line; empty where it has one."""
    config = run.config
    if config.probe == "none":
        return "no baseline of frozen features: probe = none"
    if _is_pretrained(config) and config.head == "logistic":
        return "the run is itself logistic regression on frozen features"
    if not (photos := len(run.rows("val"))):
        return "no baseline of frozen features: there are no validation photos"
    if (photos := photos + len(run.rows("train"))) > MOST_PHOTOS:
        return f"no baseline of frozen features: {photos:,} photos are more than {MOST_PHOTOS:,}"
    if not _is_pretrained(config) and packaged.best() is None:
        return f"no baseline of frozen features: {packaged.MISSING}"
    return ""


def _is_pretrained(config: Config) -> bool:
    return config.weights != "none" and config.model not in OURS


def _network(run: Run) -> tuple[str, str]:
    """The baseline's model and weights."""
    config = run.config
    return (config.model, config.weights) if _is_pretrained(config) else (packaged.best(), "package")


def _name(run: Run) -> str:
    model, weights = _network(run)
    weights = weights if weights in ("package", "DEFAULT") else files.display_path(weights)
    return f"logistic regression on frozen features of {model} ({weights})"


def _config(run: Run) -> Config:
    """Settings of the baseline: the run's photos, prepared alike, and the frozen network."""
    settings = run.config.model_dump(include={"data", "columns", "photos_dir", *PREPROCESS_SETTINGS})
    model, weights = _network(run)
    if not _is_pretrained(run.config):
        settings["image_size"] = model_names.own_view(model)[0]
    fixed = {"head": "logistic", "cache": "stream", "views": _views(run)}
    return configs.make(settings | {"model": model, "weights": weights} | fixed)


def _views(run: Run) -> str:
    """Those that the run's network averages, if it is the baseline's too; another's are one."""
    return run.config.views if _is_pretrained(run.config) else "one"


def _identity(run: Run) -> str:
    """Changes with what the predictions depend on; found without importing the network's library, which takes long."""
    own = photo_checks.with_bits(run.config, run.manifest)
    prepared = own if _is_pretrained(own) else own.model_copy(update={"image_size": 0})  # 0: the network's own
    weights = files.resolve(run.config.weights)
    libraries = [torch.__version__, *(metadata.version(name) for name in ("torchvision", "timm") if find_spec(name))]
    code = source_code.closure_fingerprint([__name__])
    rows = pd.concat([run.rows(split).assign(split=split) for split in ("train", "val")])
    content = rows[["path", "sha256", "label", "group", "split"]].to_csv(index=False).encode()
    parts = [_network(run), _views(run), cache.preparation(prepared), code, libraries, run.class_names, content]
    return f"probe-{files.fingerprint(*parts, weights if weights.is_file() else '')}"


@dataclass(frozen=True)
class _Divided:
    """A run's photos and classes, with the settings of the baseline; see `dataset.DividedPhotos`."""

    config: Config
    run: Run

    @property
    def class_names(self) -> list[str]:
        return self.run.class_names

    @property
    def manifest(self) -> pd.DataFrame:
        return self.run.manifest

    def rows(self, split: str) -> pd.DataFrame:
        return self.run.rows(split)

    def groups(self, paths) -> list[str]:
        return self.run.groups(paths)


def _predict(run: Run, tell: bool) -> np.ndarray:
    """Probabilities (n, C) of the validation photos."""
    config = _config(run)
    divided = _Divided(config, run)
    train_photos, val_photos = dataset.load_photos(divided, "train"), dataset.load_photos(divided, "val")
    with torch.random.fork_rng(devices=[]):
        model = models.build(config, len(run.class_names)).to(machine.device())
    found = features.of_photos(model, train_photos, config.views)
    head = fitted.fit_last(divided, model, train_photos, found.values, "logistic")
    fitted.put_last(model, head.module.to(machine.device()))
    if tell:
        say_from_any_rank(f"baseline: {_name(run)}", found.summary, head.summary)
    logits = evaluate.of_features(model, features.of_photos(model, val_photos, config.views).values)
    return metrics.softmax(logits.numpy().astype(np.float64))


def _read(file: Path, run: Run) -> np.ndarray | None:
    """The probabilities kept in a file; None where there is none, or none that fits."""
    if not file.is_file() or not file.stat().st_size:
        return None
    try:
        probs = np.loadtxt(file, delimiter=",", ndmin=2)
    except ValueError:
        probs = np.empty((0, 0))
    if probs.shape != (len(run.rows("val")), len(run.class_names)):
        return None
    os.utime(file)
    return probs


def _write(file: Path, probs: np.ndarray) -> None:
    with files.replacing(file) as partial:
        np.savetxt(partial, probs, fmt="%.9g", delimiter=",")
