"""The trained network as an ONNX graph: images in, logits out; its parity with torch, size, latency.

`photo_files` makes of it the file that others use, which takes photos. Parity is checked before use: fp32 that differs
from torch is an error.
"""

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch

from fruitlib.core.errors import InputError, first_line
from fruitlib.core.files import display_path, replacing
from fruitlib.deploy import graphs, predict
from fruitlib.deploy.predict import in_batches, open_session

RESERVED = {"class_names", "image_size", "quantization"}


class ExportError(InputError):
    """There is no file, or it does not compute what the model computes; its message is one line."""


def export_onnx(
    model: torch.nn.Module,
    path: Path,
    image_size: int,
    class_names: list[str],
    extra: dict | None = None,
    recipe: dict | None = None,
) -> Path:
    """Write `model` to `path` as one ONNX file: "images" (batch, 3, S, S) in [0, 1] -> "logits" (batch, C).

    The batch size is free, S is `image_size`. The metadata holds `class_names` (a JSON list), `image_size` and
    `extra` (text by name). What is exported is a copy on the CPU in evaluation mode, so `model` stays as it is.
    `recipe`: the settings the network is built from; with them its graph is exported once for all runs (`graphs`).

    Raises:
        ExportError: torch's exporter does not take this network.
        InputError: not one name per logit, or a reserved name in `extra`.
    """
    path, extra = Path(path), extra or {}
    if clash := RESERVED & extra.keys():
        raise InputError(f"extra: the metadata keys {sorted(clash)} are reserved; rename them")
    with torch.inference_mode(False), torch.no_grad():
        model, images = _cpu_copy(model), torch.full((2, 3, image_size, image_size), 0.5)
        width = model(images).shape[-1]
        if width != len(class_names):
            raise InputError(f"class_names: {len(class_names)} names for {width} logits; give one per logit")
        proto = _graph(model, images, recipe)
    names = json.dumps(list(class_names), ensure_ascii=False)
    onnx.helper.set_model_props(proto, extra | {"class_names": names, "image_size": str(image_size)})
    with replacing(path) as partial:
        onnx.save(proto, partial)
    return path


def run_graph(path: Path, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Logits (n, C) float32 of `images` (n, 3, S, S) float32 in [0, 1], by a graph that `export_onnx` wrote.

    Raises:
        InputError: images of another shape, type or range than the graph takes.
    """
    session = open_session(path)
    images = check_images(path, session, images, "images")
    return np.concatenate([session.run(["logits"], {"images": part})[0] for part in in_batches(images, batch_size)])


def check_images(path: Path, session, images: np.ndarray, name: str) -> np.ndarray:
    """`images` as an array that a graph takes; `name` is what the error calls them.

    Raises:
        InputError: images of another shape, type or range than the graph takes.
    """
    images, shape = np.asarray(images), tuple(session.get_inputs()[0].shape[1:])
    if images.ndim != 4 or images.shape[1:] != shape or len(images) == 0:
        raise InputError(f"{name}: shape {images.shape}; {display_path(path)} takes (n > 0, *{shape})")
    if images.dtype != np.float32:
        raise InputError(f"{name}: {images.dtype}; convert them to float32 in [0, 1]")
    if not (images.min() >= 0 and images.max() <= 1):  # NaN is refused, too
        raise InputError(f"{name}: values from {images.min():g} to {images.max():g}; scale them to [0, 1]")
    return images


def _graph(model: torch.nn.Module, images: torch.Tensor, recipe: dict | None) -> onnx.ModelProto:
    try:
        return graphs.graph_of(model, images, recipe)
    except (MemoryError, OSError):
        raise
    except Exception as problem:  # the exporter's own classes, and whatever a network raises while it is traced
        name = (recipe or {}).get("model") or type(model).__name__
        remedy = "best.pt works without one; for a file choose another model"
        raise ExportError(f"{name}: no ONNX file, torch's exporter fails ({_cause(problem)}); {remedy}") from problem


def _cause(problem: BaseException) -> str:
    """The first line of what the exporter's error was raised from; its own text is a page of advice."""
    while problem.__cause__ is not None:
        problem = problem.__cause__
    return f"{type(problem).__name__}: {first_line(problem)[:160]}"


def _cpu_copy(model: torch.nn.Module) -> torch.nn.Module:
    return copy.deepcopy(model).cpu().eval()


def run_torch(model: torch.nn.Module, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Logits (n, C) by torch, the reference for `parity`: of a copy of `model` on the CPU in evaluation mode."""
    last = {"memory_format": torch.channels_last}  # twice as fast for depthwise convolutions
    model = _cpu_copy(model).to(**last)
    with torch.inference_mode():
        batches = [torch.from_numpy(batch).contiguous(**last) for batch in in_batches(images, batch_size)]
        return np.concatenate([model(batch).numpy() for batch in batches])


def parity(reference_logits: np.ndarray, logits: np.ndarray) -> dict:
    """How far `logits` are from `reference_logits`, both (n, C).

    max_abs_diff and mean_abs_diff in logits; agreement, the share of images with the same largest logit; n.
    """
    reference, logits = np.asarray(reference_logits, np.float64), np.asarray(logits, np.float64)
    if reference.shape != logits.shape or reference.ndim != 2 or reference.size == 0:
        raise InputError(f"logits: shapes {reference.shape} and {logits.shape}; give two of the same (n, C)")
    difference = np.abs(reference - logits)
    return {
        "max_abs_diff": float(difference.max()),
        "mean_abs_diff": float(difference.mean()),
        "agreement": float((reference.argmax(1) == logits.argmax(1)).mean()),
        "n": len(logits),
    }


def tolerance(reference_logits: np.ndarray) -> float:
    """How far fp32 may be from these logits: a thousandth, or 1e-4 of the largest where they go beyond ten.

    Rounding grows with them: a logistic head's reach 20, and two exact programs differ there by 3e-4.
    """
    return 1e-4 * max(10.0, float(np.abs(reference_logits).max()))


def check_parity(fp32_parity: dict, tolerance: float = 1e-3) -> None:
    """Whether the fp32 file computes what torch does, from its `parity` with it. NaN never passes.

    INT8 is approximate by nature: `int8_verdict` judges it by labels.

    Raises:
        ExportError: fp32 is further than `tolerance` logits from torch on some image.
    """
    worst = fp32_parity["max_abs_diff"]
    if not worst <= tolerance:
        raise ExportError(f"fp32 is off by {worst:.3g} logits (limit {tolerance:g}): do not use this file, but best.pt")


def size_mb(path: Path) -> float:
    """The file's size in MB of 10^6 bytes."""
    return Path(path).stat().st_size / 1e6


def onnx_runner(path: Path, photos: np.ndarray, threads: int = 1) -> Callable[[], np.ndarray]:
    """For `latency_ms`: a call that gives the logits of a file of `photos` uint8 (n, S, S, 3), of a graph of images."""
    session = open_session(path, threads, spin=True)
    if session.get_inputs()[0].name == "photos":
        photos = predict.check_photos(path, photos)
    else:
        photos = check_images(path, session, photos, "images")
    return lambda: predict.outputs(session, photos, ("logits",))[0]


def torch_runner(model: torch.nn.Module, image: np.ndarray) -> Callable[[], np.ndarray]:
    """For `latency_ms`: a call that runs a CPU copy of `model` on `image` (1, 3, S, S)."""
    model, image = _cpu_copy(model), torch.from_numpy(image)
    return torch.inference_mode()(lambda: model(image).numpy())


def latency_ms(
    runners: dict[str, Callable[[], object]],
    repeats: int = 200,
    warmup: int = 5,
    threads: int = 1,
    seconds: float = 1,
    fewest: int = 10,
) -> dict[str, dict]:
    """Per runner: least, median and 95th percentile of ms per call, and n, the calls.

    Those are `repeats`, or fewer if all take more than `seconds`, but `fewest` at least.

    What else the machine does can only add to a call, so the least of many is the program's own time (the reasoning of
    Python's `timeit`). Beside two trainings on two cores it moved by a tenth, the median up to fourfold. Runners take
    turns, every other round backwards, so that what disturbs them hits all alike.
    torch has `threads` threads meanwhile; one, as `onnx_runner` has too, is fair between the two.
    """
    if repeats < 1:
        raise InputError(f"repeats: {repeats} measures nothing; give at least 1")
    times, before = {name: [] for name in runners}, torch.get_num_threads()
    torch.set_num_threads(threads)
    enough = time.perf_counter() + seconds
    try:
        for turn in range(warmup + repeats):
            if turn >= warmup + fewest and time.perf_counter() > enough:
                break
            for name in sorted(runners, reverse=turn % 2 == 1):
                start = time.perf_counter()
                runners[name]()
                times[name].append(1e3 * (time.perf_counter() - start))
    finally:
        torch.set_num_threads(before)
    kept = {name: values[warmup:] for name, values in times.items()}
    return {
        name: {"least": min(ms), "median": float(np.median(ms)), "p95": float(np.quantile(ms, 0.95)), "n": len(ms)}
        for name, ms in kept.items()
    }


def mflops(model: torch.nn.Module, image: np.ndarray) -> float:
    """Millions of floating-point operations for one photo (1, 3, S, S): a multiplication and an addition count 2.

    Convolutions and matrix products, as `torch.utils.flop_counter` counts them; the rest is a few per cent.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run_torch(model, image)
    return counter.get_total_flops() / 1e6
