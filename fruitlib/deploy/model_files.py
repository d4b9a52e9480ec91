"""A run's two exported files, from its best weights. The `export` stage depends on this module and what it imports."""

import json
from pathlib import Path

from fruitlib.data import dataset, photo_checks
from fruitlib.data.dataset import Photos
from fruitlib.deploy import export, quantize
from fruitlib.runs.run import Run

FP32, INT8 = "model.fp32.onnx", "model.int8.onnx"


def calibration_photos(run: Run) -> Photos:
    """The training photos that set the INT8 ranges: `calibration_images` of them, spread over all."""
    return dataset.spread(dataset.load_photos(run, "train"), run.config.calibration_images)


def build_model_files(run: Run, model, checkpoint: dict) -> tuple[dict[str, Path], str]:
    """Write `model.fp32.onnx` and `model.int8.onnx` from what `models.restore` returns.

    The checkpoint's preprocessing goes into their metadata, so that a file alone says what photos it expects.

    Returns:
        their paths by backend, and why there is no INT8 file: "" where there is one.

    Raises:
        ExportError: torch's exporter does not take this network.
    """
    bits = photo_checks.with_bits(run.config, run.manifest).deep_bits
    extra = {"preprocess": json.dumps(checkpoint["preprocess"] | {"deep_bits": bits})}
    side, recipe = run.config.image_size, checkpoint["network"]
    fp32 = export.export_onnx(model, run.path / FP32, side, run.class_names, extra, recipe)
    try:
        images = dataset.to_array(calibration_photos(run).images)
        return {"fp32": fp32, "int8": quantize.quantize(fp32, run.path / INT8, images)}, ""
    except quantize.QuantizeError as problem:
        (run.path / INT8).unlink(missing_ok=True)  # of an earlier network
        return {"fp32": fp32}, str(problem)
