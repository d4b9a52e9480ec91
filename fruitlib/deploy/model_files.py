"""A run's two exported files, from its best weights. The `export` stage depends on this module and what it imports."""

import json
from pathlib import Path

import onnx

from fruitlib.core import files
from fruitlib.data import dataset, photo_checks
from fruitlib.data.dataset import Photos
from fruitlib.deploy import export, heat, photo_files, quantize
from fruitlib.evaluation import answering
from fruitlib.runs.run import Run

FP32, INT8 = "model.fp32.onnx", "model.int8.onnx"


def calibration_photos(run: Run) -> Photos:
    """The training photos that set the INT8 ranges: `calibration_images` of them, spread over all."""
    return dataset.spread(dataset.load_photos(run, "train"), run.config.calibration_images)


def build_model_files(run: Run, model, checkpoint: dict) -> tuple[dict[str, Path], str]:
    """Write `model.fp32.onnx` and `model.int8.onnx` from what `models.restore` returns.

    Both take photos and hold in their metadata what a user has to know (`predict.read_metadata`).

    Returns:
        their paths by backend, and why there is no INT8 file: "" where there is one.

    Raises:
        ExportError: torch's exporter does not take this network.
    """
    preprocess, facts = checkpoint["preprocess"], metadata(run, checkpoint)
    temperature = float(facts.pop("temperature", 1))
    with files.folder_beside(run.path / FP32) as folder:
        graphs = {"fp32": folder / "fp32.onnx", "int8": folder / "int8.onnx"}
        side = run.config.image_size
        export.export_onnx(model, graphs["fp32"], side, run.class_names, facts, checkpoint["network"])
        found = _with_features(graphs["fp32"], model)
        why = ""
        try:
            quantize.quantize(graphs["fp32"], graphs["int8"], dataset.to_array(calibration_photos(run).images))
        except quantize.QuantizeError as problem:
            why = str(problem)
            (run.path / INT8).unlink(missing_ok=True)  # of an earlier network
        paths = {"fp32": run.path / FP32} | ({} if why else {"int8": run.path / INT8})
        for backend, path in paths.items():
            graph = onnx.load(graphs[backend])
            own = {entry.key: entry.value for entry in graph.metadata_props}
            photo_files.write(graph, path, preprocess, temperature, found, own)
    return paths, why


def _with_features(path: Path, model) -> heat.Heat | None:
    """Add the output that heat is computed from to a graph."""
    graph = onnx.load(path)
    found = heat.add_features(graph, model)
    onnx.save(graph, path)
    return found


def metadata(run: Run, checkpoint: dict) -> dict[str, str]:
    """What the files say of themselves besides classes, input and output; `temperature` where it is known."""
    bits = photo_checks.with_bits(run.config, run.manifest).deep_bits
    record, weights = run.params["record"], run.record("train").get("weights", {})
    facts = {
        "preprocess": json.dumps(checkpoint["preprocess"] | {"deep_bits": bits}),
        "settings": json.dumps(run.config.model_dump(exclude_defaults=True), ensure_ascii=False, default=str),
        "data": run.data_fingerprint,
        "licence": weights.get("licence", ""),
        "versions": json.dumps(record.get("versions", {})),
    }
    return facts | answering.metadata(run)
