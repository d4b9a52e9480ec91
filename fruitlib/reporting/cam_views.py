"""What the Grad-CAM browser asks: the network of a run, or its INT8 file, about one photo at a time; answers are kept.

Probabilities are those the network itself gives, before calibration, so that torch and INT8 compare.
"""

import functools
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fruitlib.core import files
from fruitlib.core.errors import InputError
from fruitlib.data import dataset
from fruitlib.deploy import heat as heats
from fruitlib.deploy import model_files, predict
from fruitlib.evaluation import answering, metrics
from fruitlib.explain import gradcam, methods
from fruitlib.runs.run import Run
from fruitlib.training import blocks, models

PREDICTED, TRUE = "the class predicted", "the true class"  # targets, beside the classes' names
OWN_SCALE = "scaled within this picture: full heat"
KEPT_BY = "Grad-CAM"  # the method of the maps kept during training, for the true class
KEPT_LOOKS, KEPT_MODELS = 256, 4  # 256 maps of 224 x 224 pixels are 50 MB
AT_ONCE = 32  # photos predicted
SURE = 0.9  # confidence from which an answer counts as sure, where no threshold is proven


@dataclass(frozen=True)
class Look:
    """A photo, and where a network looks on it."""

    photo: np.ndarray  # uint8 (S, S, 3), as the network gets it
    heat: np.ndarray  # float32 (S, S) from 0 to 1; all 0 where there is none
    probs: np.ndarray  # (C,)
    how: str  # the method and the layer, in words
    scale: str  # what full heat means, or why there is no heat
    target: str = ""  # the class that the heat is for; "": the same for every class

    @property
    def empty(self) -> bool:
        """Whether there is no heat at all."""
        return not self.heat.any()


class TorchView:
    """The network of a trained run, by torch."""

    backend = "torch"
    methods = tuple(methods.METHODS)

    def __init__(self, run: Run):
        self.run, self.class_names = run, run.class_names
        self.look = functools.lru_cache(KEPT_LOOKS)(self._look)
        self._photos, self._places = functools.cache(self._open_photos), functools.cache(self._find_places)
        self._known: dict[str, np.ndarray] = {}

    @property
    def name(self) -> str:
        """The run, and what computes its answers."""
        return self.run.name

    @functools.cached_property
    def layers(self) -> list[str]:
        """The layers that can be looked at, first to last."""
        return list(blocks.target_layers(self._model))

    @property
    def _model(self):
        path = self.run.path / "best.pt"
        return _restored(path, path.stat().st_mtime_ns)

    # ---- photos

    @property
    def splits(self) -> list[str]:
        """The parts whose photos may be looked at: test only where 06 has opened it."""
        tested = (self.run.path / "predictions_test.csv").is_file()
        return ["val", "train", "test"] if tested else ["val", "train"]

    def rows(self, split: str) -> pd.DataFrame:
        """path, label, group of a part's photos."""
        rows = self.run.rows(split)[["path", "label", "group"]]
        return rows.assign(group=rows["group"].fillna("")).reset_index(drop=True)

    def photo(self, path: str) -> np.ndarray:
        """The photo at a manifest's path as the network gets it, uint8 (S, S, 3).

        Raises:
            InputError: no such photo, or its file is gone.
        """
        for split in ("val", "test") if "test" in self.splits else ("val",):
            places = self._places(split)
            if path in places:
                return self._photos(split).take([places[path]])[0]
        raise InputError(f"{path}: not among the photos of {self.name} that may be shown; choose another")

    def _open_photos(self, split: str) -> dataset.Photos:
        """Training and validation photos of any fold (val), or the test photos."""
        if split == "test":
            _record_test_opening(self.run.path)
            return dataset.load_photos(self.run, "test")
        pool = self.run.manifest
        rows = pool[(pool["status"] == "ok") & (pool["split"] != "test")]
        return dataset.load_photos(self.run, "val", rows=rows)

    def _find_places(self, split: str) -> dict[str, int]:
        return {path: place for place, path in enumerate(self._photos(split).paths)}

    @functools.cached_property
    def trained_on(self) -> set[str]:
        """The paths of its training photos."""
        return set(self.run.rows("train")["path"])

    # ---- answers

    def probs(self, split: str, paths: list[str]) -> np.ndarray:
        """Probabilities (n, C) of a part's photos: those that were written down, else predicted now and kept."""
        missing, known = self.not_predicted(split, paths), self._known[split]
        for start in range(0, len(missing), AT_ONCE):
            part = missing[start : start + AT_ONCE]
            known.update(zip(part, self._predict(np.stack([self.photo(path) for path in part])), strict=True))
        return np.stack([known[path] for path in paths]) if paths else np.empty((0, len(self.class_names)))

    def not_predicted(self, split: str, paths: list[str]) -> list[str]:
        """Which of these photos of a part it has not predicted yet."""
        if not self._known.get(split):
            self._known[split] = self._written(split)
        return [path for path in paths if path not in self._known[split]]

    def _written(self, split: str) -> dict[str, np.ndarray]:
        if split == "train":
            return {}
        table = self.run.predictions(split)
        table = table[table["backend"] == self.backend]
        probs, _ = self.run.probs(table)
        return dict(zip(table["path"], probs, strict=True))

    def _predict(self, photos: np.ndarray) -> np.ndarray:
        images = dataset.to_float(torch.from_numpy(photos).permute(0, 3, 1, 2))
        with torch.inference_mode():
            return metrics.softmax(self._model(images).numpy().astype(np.float64))

    @functools.cached_property
    def sure_above(self) -> tuple[float, str]:
        """The confidence above which an answer counts as sure, and in words where that number is from."""
        record = self.run.read_json(answering.ANSWERING_FILE)
        if "above" in record:
            return float(record["above"]), f"above {record['above']:.2f} (proven by 03)"
        return SURE, f"above {SURE:.2f} (nothing proven)"

    def sure(self, probs: np.ndarray) -> np.ndarray:
        """Which of the answers (n, C) are sure, by the calibrated probability of the class predicted."""
        temperature = self.run.read_json(answering.ANSWERING_FILE).get("temperature", 1.0)
        scaled = metrics.softmax(np.log(np.maximum(probs, 1e-12)) / temperature)
        return scaled.max(axis=1) > self.sure_above[0]

    # ---- where it looks

    def epochs(self, path: str) -> list[int]:
        """The epochs whose maps of this photo were kept during training; of few photos, by Grad-CAM."""
        return [epoch for epoch in self._kept_files if path in self._kept(epoch)[1]]

    def _kept(self, epoch: int) -> tuple[gradcam.Heatmaps, dict[str, int]]:
        file = self._kept_files[epoch]
        return _kept(file, file.stat().st_mtime_ns)

    @functools.cached_property
    def _kept_files(self) -> dict[int, Path]:
        return {int(file.stem[-4:]): file for file in sorted((self.run.path / "cams").glob("epoch_*.npz"))}

    @property
    def followed(self) -> set[str]:
        """The paths of the photos whose maps were kept during training."""
        return {path for epoch in self._kept_files for path in self._kept(epoch)[1]}

    def layer_like(self, name: str, others: list[str]) -> str:
        """Its own layer of this name; else the one as far from the end as `name` is among `others`."""
        if name in self.layers:
            return name
        return self.layers[-min(len(others) - others.index(name), len(self.layers))]

    def _look(self, path: str, target: str, method: str, layer: str, epoch: int = 0, label: str = "") -> Look:
        """Where it looks on a photo.

        Args:
            target: `PREDICTED`, `TRUE` (then `label` says which) or a class.
            epoch: 0: the weights that were kept; else one of `epochs`, by Grad-CAM for the true class.

        Raises:
            InputError: no such photo, layer or class.
        """
        photo = self.photo(path)
        if epoch:
            maps, places = self._kept(epoch)
            place, column = places[path], maps.layer_names.index(layer)
            how = f"{KEPT_BY}, {layer}, as kept at epoch {epoch}"
            return self._as_look(photo, maps, place, column, how, KEPT_BY)
        images = dataset.to_float(torch.from_numpy(photo[None]).permute(0, 3, 1, 2))
        number = self._number(target, label)
        targets = None if number is None else [number]
        layers = {layer: blocks.target_layers(self._model)[layer]}
        maps = gradcam.heatmaps(self._model, images, layers, targets, method=method)
        few = f" ({methods.SCORED} channels at most)" if method == "Score-CAM" else ""
        return self._as_look(photo, maps, 0, 0, f"{method}{few}, {layer}", method)

    def _number(self, target: str, label: str) -> int | None:
        """The number of the target's class; None: the class predicted."""
        if target == PREDICTED:
            return None
        name = label if target == TRUE else target
        if name not in self.class_names:
            raise InputError(f"{name}: not a class of {self.name}; choose another target")
        return self.class_names.index(name)

    def _as_look(self, photo, maps: gradcam.Heatmaps, place: int, column: int, how: str, method: str) -> Look:
        heat, peak = maps.heatmap[place, column], float(maps.peak[place, column])
        target = "" if method == "EigenCAM" else self.class_names[int(maps.targets[place])]
        full = f"{OWN_SCALE} is {peak:.2g} logits" if method == "Grad-CAM" else f"{OWN_SCALE} is its largest value"
        return Look(photo, heat, maps.probs[place], how, full if heat.any() else _no_heat(target), target)


class Int8View(TorchView):
    """The INT8 file of an exported run, which says itself where it looked."""

    backend = "int8"
    methods = ("the file's own map",)
    layers = ("the last feature maps",)

    @property
    def name(self) -> str:
        return f"{self.run.name}, INT8 file"

    @functools.cached_property
    def _session(self):
        path = self.run.path / model_files.INT8
        session = predict.open_session(path)
        if session.get_inputs()[0].type != "tensor(uint8)":
            where = files.display_path(path)
            raise InputError(f"{where}: takes no photos (another version of fruitlib wrote it); execute 05 again")
        return session

    def epochs(self, path: str) -> list[int]:
        return []

    @property
    def followed(self) -> set[str]:
        return set()

    def layer_like(self, name: str, others: list[str]) -> str:
        return self.layers[0]

    def _written(self, split: str) -> dict[str, np.ndarray]:
        return super()._written(split) if split == "test" else {}

    def _predict(self, photos: np.ndarray) -> np.ndarray:
        return metrics.softmax(predict.outputs(self._session, photos, ("logits",))[0].astype(np.float64))

    def _look(self, path: str, target: str, method: str, layer: str, epoch: int = 0, label: str = "") -> Look:
        photo, number = self.photo(path), self._number(target, label)
        has_heat = "heat" in [output.name for output in self._session.get_outputs()]
        wanted = ("logits", "heat") if has_heat else ("logits",)
        logits, *maps = predict.outputs(self._session, photo[None], wanted)
        probs = metrics.softmax(logits.astype(np.float64))[0]
        if not maps:
            cold = np.zeros(photo.shape[:2], np.float32)
            return Look(photo, cold, probs, "no map", "no heat: this file does not say where it looked")
        number = int(probs.argmax()) if number is None else number
        by_class = maps[0].shape[1] == len(probs)
        own = np.maximum(maps[0][:, number if by_class else 0], 0)
        heat = heats.enlarged(own / max(own.max(), 1e-12), len(photo))[0]
        name = self.class_names[number] if by_class else ""
        how = self._session.get_modelmeta().custom_metadata_map.get("heat") or self.methods[0]
        scale = f"{OWN_SCALE} is its largest value" if heat.any() else _no_heat(name)
        return Look(photo, heat, probs, f"INT8 file: {how}", scale, name)


def _no_heat(target: str) -> str:
    return f"no heat: nothing here counts for {target}" if target else "no heat: nothing here stands out"


@functools.cache
def _record_test_opening(path: Path) -> None:
    """Write down, once in a session, that a run's test photos are looked at."""
    run = Run(path)
    run.record_test_opening(len(run.rows("test")))


@functools.lru_cache(KEPT_MODELS)
def _restored(path: Path, time: int):
    """The model of a checkpoint, as the file was at `time`."""
    return models.restore(path)[0]


@functools.lru_cache(64)
def _kept(file: Path, time: int) -> tuple[gradcam.Heatmaps, dict[str, int]]:
    """Maps kept during training, as the file was at `time`, and the place of each path among them."""
    maps, others = gradcam.load_heatmaps(file)
    return maps, {path: place for place, path in enumerate(others["paths"].tolist())}


def views_of(sweep_dirs: Collection[Path]) -> dict[str, TorchView]:
    """Every trained run of one or several sweeps, and its INT8 file where there is one, by name.

    Of an ensemble, which has no layers that all members share, the file alone. Runs that were trained on other photos
    than their sweep has now are left out.
    """
    found = {}
    for folder in sorted(sweep_dirs):
        sweep = f"{folder.name}/" if len(sweep_dirs) > 1 else ""
        runs = [Run(path.parent) for path in sorted(folder.glob("*/params.yaml"))]
        found |= {sweep + view.name: view for run in runs for view in _views_of_run(run)}
    return found


def _views_of_run(run: Run) -> list[TorchView]:
    """The network of a run, and its INT8 file; none where it is not trained, or on other photos than are there now."""
    try:
        if run.record("train").get("data_fingerprint") != run.data_fingerprint:
            return []
        views = [TorchView(run)] if (run.path / "best.pt").is_file() and not run.members else []
    except InputError:  # damaged, or of another version
        return []
    return [*views, *([Int8View(run)] if (run.path / model_files.INT8).is_file() else [])]
