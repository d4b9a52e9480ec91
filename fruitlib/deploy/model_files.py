"""A run's two exported files, from its best weights. The `export` stage depends on this module and what it imports."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from fruitlib.core import files, progress
from fruitlib.data import dataset, photo_checks
from fruitlib.data.dataset import Photos
from fruitlib.deploy import export, heat, int8_search, photo_files
from fruitlib.deploy.int8_search import Gate, Search
from fruitlib.evaluation import answering
from fruitlib.runs.run import Run

FP32, INT8 = "model.fp32.onnx", "model.int8.onnx"
FILES = {"fp32": FP32, "int8": INT8}  # by backend
PLACES = ("data", "photos_dir", "base_weights", "weights")  # settings that name folders of this machine: not in a file
MOST_TRIED = 32  # training photos that INT8 recipes are tried on


def calibration_photos(run: Run) -> Photos:
    """The training photos that set the INT8 ranges: `calibration_images` of them, of each class as many as of others.

    Where a class has too few, the others have more.
    """
    photos = dataset.load_photos(run, "train")
    labels, left = photos.labels.numpy(), run.config.calibration_images
    classes = sorted((np.flatnonzero(labels == label) for label in np.unique(labels)), key=len)
    chosen = []
    for done, places in enumerate(classes):
        count = min(len(places), -(-left // (len(classes) - done)))
        chosen.append(places[np.linspace(0, len(places) - 1, count).round().astype(int)])
        left -= count
    return photos.pick(np.sort(np.concatenate(chosen)))


def photos_beside_calibration(run: Run, most: int) -> Photos:
    """At most so many training photos that did not calibrate INT8; of all, where every one did."""
    photos = dataset.load_photos(run, "train")
    used = set(calibration_photos(run).paths)
    others = [position for position, path in enumerate(photos.paths) if path not in used]
    return dataset.spread(photos.pick(others) if others else photos, most)


def build_model_files(run: Run, model, checkpoint: dict) -> tuple[dict[str, Path], Search]:
    """Write `model.fp32.onnx` and `model.int8.onnx` from what `models.restore` returns.

    Both take photos and hold in their metadata what a user has to know (`predict.read_metadata`).

    Returns:
        their paths by backend, and what was tried for INT8: where it chose nothing, there is no INT8 file.

    Raises:
        ExportError: torch's exporter does not take this network.
    """
    preprocess, facts = checkpoint["preprocess"], metadata(run, checkpoint)
    temperature = float(facts.pop("temperature", 1))
    with files.folder_beside(run.path / FP32) as folder:
        graphs = {"fp32": folder / "fp32.onnx", "int8": folder / "int8.onnx"}
        side = run.config.image_size
        progress.step("the ONNX file")
        export.export_onnx(model, graphs["fp32"], side, run.class_names, facts, checkpoint["network"])
        found = _with_features(graphs["fp32"], model)
        found_int8 = _int8(run, graphs)
        paths = {name: run.path / file for name, file in FILES.items() if name == "fp32" or found_int8.chosen}
        for backend, path in paths.items():
            graph = onnx.load(graphs[backend])
            own = {entry.key: entry.value for entry in graph.metadata_props}
            photo_files.write(graph, path, preprocess, temperature, found, own)
    return paths, found_int8


def _int8(run: Run, graphs: dict[str, Path]) -> Search:
    """Search an INT8 graph for the run's network; writes what was tried."""
    gate = Gate(run.config.int8_agreement, run.config.int8_speedup)
    photos = (calibration_photos(run), photos_beside_calibration(run, MOST_TRIED))
    found = int8_search.search(
        graphs["fp32"], graphs["int8"], *(dataset.to_array(each.images) for each in photos), gate
    )
    found = replace(found, apart=not set(photos[0].paths) & set(photos[1].paths))
    files.write_csv(run.path / int8_search.TRIED_FILE, found.table)
    if not found.chosen:
        (run.path / INT8).unlink(missing_ok=True)  # of an earlier network
    return found


def graph_fingerprint(path: Path) -> str:
    """The fingerprint of what a file computes: INT8's recipe may be another one when it is searched again."""
    proto = onnx.load(path)
    del proto.metadata_props[:]
    return files.fingerprint(hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest())


def _with_features(path: Path, model) -> heat.Heat | None:
    """Add the output that heat is computed from to a graph."""
    graph = onnx.load(path)
    found = heat.add_features(graph, model)
    onnx.save(graph, path)
    return found


def _cut_to(run: Run) -> str:
    """What training photos were cut to before the network saw them: object, box or none. A file cuts nothing."""
    if run.config.crop_to == "box" and not run.rows("train")["path"].str.contains("#xywh=", regex=False).any():
        return "none"
    return run.config.crop_to


def metadata(run: Run, checkpoint: dict) -> dict[str, str]:
    """What the files say of themselves besides classes, input and output; `temperature` where it is known."""
    bits = photo_checks.with_bits(run.config, run.manifest).deep_bits
    record, weights = run.params["record"], run.record("train").get("weights", {})
    settings = run.config.model_dump(exclude_defaults=True, exclude=set(PLACES))
    facts = {
        "preprocess": json.dumps(checkpoint["preprocess"] | {"deep_bits": bits}),
        "settings": json.dumps(settings, ensure_ascii=False, default=str),
        "data": run.data_fingerprint,
        "licence": weights.get("licence", ""),
        "cut_to": _cut_to(run),
        "versions": json.dumps(record.get("versions", {})),
    }
    return facts | answering.metadata(run)
