"""INT8 by static quantization: what a graph is calibrated to once, and the graph in INT8 by one recipe."""

import contextlib
import functools
import logging
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnxruntime import quantization as ort
from onnxruntime.quantization import registry
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from fruitlib.core import progress
from fruitlib.core.errors import InputError, first_line
from fruitlib.core.files import folder_beside, replacing
from fruitlib.deploy.export import check_images
from fruitlib.deploy.predict import open_session, read_metadata

OP_TYPES = ("Conv", "Gemm", "MatMul", "Relu", "Clip")
ALL_OP_TYPES = tuple(sorted({*registry.QLinearOpsRegistry, *registry.QDQRegistry}))
WITH_WEIGHTS = ("Conv", "Gemm", "MatMul")
PERCENTILE = 99.99  # of a tensor's values lie below the upper end of its range, and as many above the lower
SAMPLED = 2048  # values of a tensor kept of each batch, for percentiles


class QuantizeError(InputError):
    """There is no INT8 file of this network; its message is one line."""


@dataclass(frozen=True)
class Recipe:
    """How a graph becomes INT8: static, QDQ, weights signed, a scale for each channel.

    The last layers with weights stay fp32 (`last_layers`): they are small, and a linear head over features of very
    different spread loses most by rounding (of a frozen EfficientNet-Lite0 on 204 fruit photos, INT8 gave fp32's label
    on 94 % with these rules, on 36 % without).
    """

    op_types: tuple[str, ...] = OP_TYPES  # what becomes INT8: layers with weights, and the ReLU or ReLU6 after them
    percentile: bool = False  # ranges hold `PERCENTILE` % of the values seen, not all
    fp32: tuple[str, ...] = ()  # nodes that stay fp32 besides the last
    signed: bool = False  # activations from -128 to 127 around 0, as ARM computes best, not from 0 to 255
    narrow: bool = False  # weights in 7 bits: without VNNI, x86 saturates sums of 8-bit products

    @property
    def name(self) -> str:
        """The recipe in words."""
        ops = "all operators" if self.op_types == ALL_OP_TYPES else "/".join(self.op_types)
        ranges = f"percentile {PERCENTILE:g}" if self.percentile else "MinMax"
        kept = f", {len(self.fp32)} layers in fp32" if self.fp32 else ""
        types = f"{'S8' if self.signed else 'U8'}/S{7 if self.narrow else 8}"
        return f"{ops}, {ranges}, {types}{kept}"


@dataclass(frozen=True)
class Calibrated:
    """A graph ready for quantization, and what its tensors hold of the calibration images."""

    graph: onnx.ModelProto  # of named nodes, shapes inferred
    ranges: dict[str, np.ndarray]  # of a tensor: least, low percentile, high percentile, greatest value; float32 (4,)
    images: int  # how many calibrated it


def quantize(fp32: Path, int8: Path, calibration_images: np.ndarray, recipe: Recipe | None = None) -> Path:
    """Write the INT8 version of `fp32` to `int8`, calibrated on images (n, 3, S, S) float32 in [0, 1].

    The metadata is kept, "quantization" added. `int8_search` finds the recipe that suits a network.

    Raises:
        QuantizeError: ONNX Runtime does not quantize this network, or does not run what it made of it.
    """
    recipe, calibrated = recipe or Recipe(), calibrate(fp32, calibration_images)
    return write(quantized(calibrated, recipe), int8, read_metadata(fp32), note(recipe, calibrated.images))


def note(recipe: Recipe, images: int) -> str:
    """What the metadata say of a file in INT8."""
    return f"static QDQ: {recipe.name}, the last layer in fp32, calibrated on {images} images"


def write(graph: onnx.ModelProto, path: Path, metadata: dict[str, str], quantization: str) -> Path:
    """Write a graph in INT8 with its metadata."""
    onnx.helper.set_model_props(graph, metadata | {"quantization": quantization})
    with replacing(path) as partial:
        onnx.save(graph, partial)
    return Path(path)


def calibrate(fp32: Path, calibration_images: np.ndarray) -> Calibrated:
    """Prepare a graph, and run it on images (n, 3, S, S) float32 in [0, 1], one by one, for the ranges of its tensors.

    One pass gives both kinds of ranges. Percentiles are those of a sample: `SAMPLED` values of each tensor and image,
    drawn at random places.

    Raises:
        QuantizeError: ONNX Runtime does not prepare this network.
    """
    images = check_images(fp32, open_session(fp32), calibration_images, "calibration_images")
    with folder_beside(fp32) as folder, explained():
        ort.quant_pre_process(fp32, folder / "prepared.onnx", skip_symbolic_shape=True)
        graph = onnx.load(folder / "prepared.onnx")
        for place, node in enumerate(graph.graph.node):
            node.name = node.name or f"node_{place}"  # recipes name those that stay fp32
        return Calibrated(graph, _ranges(graph, images), len(images))


def quantized(calibrated: Calibrated, recipe: Recipe) -> onnx.ModelProto:
    """The graph in INT8 by a recipe. Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", equation 1 and section 3.

    Raises:
        QuantizeError: ONNX Runtime does not quantize this network so.
    """
    graph = onnx.ModelProto()
    graph.CopyFrom(calibrated.graph)
    ends = slice(1, 3) if recipe.percentile else slice(0, 4, 3)
    data = {name: tuple(values[ends]) for name, values in calibrated.ranges.items()}
    ranges = {name: TensorData(lowest=low, highest=high) for name, (low, high) in data.items()}
    activation = ort.QuantType.QInt8 if recipe.signed else ort.QuantType.QUInt8
    with explained(), _quiet():
        quantizer = QDQQuantizer(
            graph,
            per_channel=True,
            reduce_range=recipe.narrow,
            weight_qType=ort.QuantType.QInt8,
            activation_qType=activation,
            tensors_range=TensorsData(ort.CalibrationMethod.MinMax, ranges),
            nodes_to_quantize=[],
            nodes_to_exclude=[*last_layers(graph), *recipe.fp32],
            op_types_to_quantize=list(recipe.op_types),
            extra_options={"ActivationSymmetric": recipe.signed},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    return quantizer.model.model


def dynamic(calibrated: Calibrated) -> onnx.ModelProto:
    """The graph with weights in INT8 whose activations are rounded as they come, so that nothing calibrates it.

    Raises:
        QuantizeError: ONNX Runtime does not quantize this network so, or does not run what it made of it.
    """
    graph = onnx.ModelProto()
    graph.CopyFrom(calibrated.graph)
    del graph.graph.value_info[:]  # ONNX Runtime transposes weights of Gemm, and then trips over their old shapes
    with explained(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dynamic.onnx"
        ort.quantize_dynamic(graph, path, weight_type=ort.QuantType.QUInt8)
        made = onnx.load(path)
        session_of(made)
    return made


@contextlib.contextmanager
def _quiet():
    """Without ONNX Runtime's warnings, to the root logger, of weights that have no channels."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def explained():
    """Inside, what ONNX Runtime raises, classes of its own, many and undocumented, becomes a QuantizeError."""
    try:
        yield
    except (MemoryError, OSError, InputError):
        raise
    except Exception as problem:
        why = f"{type(problem).__name__}: {first_line(problem)[:160]}"
        raise QuantizeError(f"ONNX Runtime does not quantize this network ({why}); use fp32") from problem


def last_layers(proto: onnx.ModelProto) -> list[str]:
    """The names of the nodes with weights that none with weights follows: the head, of an ensemble each member's."""
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    nodes = list(proto.graph.node)[::-1]  # ONNX lists nodes in an order in which they can run
    return _ends(nodes, {node.name: [user for name in node.output for user in users.get(name, [])] for node in nodes})


def first_layers(proto: onnx.ModelProto) -> list[str]:
    """The names of the nodes with weights that follow none with weights: what sees the photo itself."""
    nodes = list(proto.graph.node)
    makers = {name: node for node in nodes for name in node.output}
    return _ends(nodes, {node.name: [makers[name] for name in node.input if name in makers] for node in nodes})


def _ends(nodes: list[onnx.NodeProto], neighbours: dict[str, list[onnx.NodeProto]]) -> list[str]:
    """The nodes with weights that none with weights is beyond, where a node's `neighbours` come before it."""
    beyond: dict[str, bool] = {}
    for node in nodes:
        beyond[node.name] = any(other.op_type in WITH_WEIGHTS or beyond[other.name] for other in neighbours[node.name])
    return [node.name for node in nodes if node.op_type in WITH_WEIGHTS and not beyond[node.name]]


def shifted(graph: onnx.ModelProto, shift: np.ndarray) -> onnx.ModelProto:
    """A copy of a graph whose logits are greater by `shift` (C,)."""
    copied = onnx.ModelProto()
    copied.CopyFrom(graph)
    for node in copied.graph.node:
        node.output[:] = ["unshifted" if name == "logits" else name for name in node.output]
    copied.graph.initializer.append(onnx.numpy_helper.from_array(shift.astype(np.float32), "shift"))
    copied.graph.node.append(onnx.helper.make_node("Add", ["unshifted", "shift"], ["logits"], "shift_logits"))
    return copied


def with_outputs(graph: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy of a graph whose outputs are the float tensors `names`."""
    copied = onnx.ModelProto()
    copied.CopyFrom(graph)
    del copied.graph.output[:]
    tensor = onnx.helper.make_tensor_value_info
    copied.graph.output.extend(tensor(name, onnx.TensorProto.FLOAT, None) for name in names)
    return copied


def _ranges(graph: onnx.ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    cut = _cut(graph)
    known = [*graph.graph.input, *graph.graph.value_info, *graph.graph.output]
    kinds = {value.name: value.type.tensor_type.elem_type for value in known}
    touched = {
        name for node in graph.graph.node if node.op_type in ALL_OP_TYPES for name in (*node.input, *node.output)
    }
    names = sorted(name for name in touched - {"images", *cut} if kinds.get(name) == onnx.TensorProto.FLOAT)
    session = session_of(with_outputs(graph, names))
    seen: dict[str, list] = {name: [] for name in ["images", *names]}
    for start in progress.through(range(len(images)), len(images), "INT8 calibration"):
        image = images[start : start + 1]
        for name, values in zip(seen, [image, *session.run(None, {"images": image})], strict=True):
            seen[name].append((values.min(initial=0), values.max(initial=0), _sample(values)))
    ranges = {}
    for name, parts in seen.items():
        lows, highs, samples = zip(*parts, strict=True)
        inner = np.quantile(np.concatenate(samples), [1 - PERCENTILE / 100, PERCENTILE / 100])
        ranges[name] = np.array([min(lows), *inner, max(highs)], np.float32)
    return ranges | {name: ranges[after] for name, after in cut.items() if after in ranges}


def _cut(graph: onnx.ModelProto) -> dict[str, str]:
    """Tensors that a ReLU or Clip alone takes, and what it makes of them: its range is theirs."""
    ends = [output.name for output in graph.graph.output]
    users = Counter([*ends, *(name for node in graph.graph.node for name in node.input)])
    cutting = [node for node in graph.graph.node if node.op_type in ("Relu", "Clip")]
    return {node.input[0]: node.output[0] for node in cutting if users[node.input[0]] == 1}


def _sample(values: np.ndarray) -> np.ndarray:
    return values.ravel()[_places(values.size)]


@functools.lru_cache
def _places(size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, max(size, 1), min(SAMPLED, size))


def session_of(graph: onnx.ModelProto, threads: int = 0):
    """ONNX Runtime for a graph in memory."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
