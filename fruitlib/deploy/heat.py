"""Where a network looked, as an output of its graph: `heat`, computed with the answer, without gradients.

Where logits are a linear function of the means of the last feature maps, each logit is a sum over places, and that sum
is the map: the class activation map (Zhou et al. 2016, equation 2), exact for every head that is linear in the means,
whatever it was fitted by; where several views are averaged, exact for the view that is shown. Our own networks are
linear in the features place by place, but for one leaky ReLU of the five base logits, whose slope is 1 or 0.1; their
map is exact, too. Elsewhere heat is how strongly the last maps respond at all, the same for every class.
"""

from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from fruitlib.training import views
from fruitlib.training.models import Base, End2End, Normalized

FEATURES = "features"  # the name that a graph's last feature maps get as an output
CLASS_MAP, STRENGTH = "class activation map", "strength of the last feature maps, the same for every class"
POOLS = ("GlobalAveragePool", "AveragePool", "ReduceMean")


@dataclass(frozen=True)
class Heat:
    """How heat follows from the feature maps (N, K, h, w) of a graph."""

    kind: str  # CLASS_MAP or STRENGTH
    weights: np.ndarray | None = None  # (C, K) of CLASS_MAP; of our own networks (C, B), of their B base logits
    base: np.ndarray | None = (
        None  # (B, K, g, g): what each place of a cell adds to the base logits of our own networks
    )
    cell: int = 1  # the side of a cell, in places
    bias: np.ndarray | None = None  # (B,)
    slope: float = 1.0  # of the base logits below zero
    view: int = 0  # the view of a photo that heat shows, where the graph passes several through the network


def add_features(core: onnx.ModelProto, model: torch.nn.Module) -> Heat | None:
    """Make the last feature maps an output of a graph, `features`; returns how heat follows from them.

    Args:
        core: "images" (n, 3, S, S) -> "logits"; changed in place.
        model: the network that it was exported from.

    Returns:
        None where nothing is pooled over places, as in transformers that answer by a class token; of ensembles.
    """
    pools = [node for node in core.graph.node if node.op_type in POOLS and _pools_places(core, node)]
    if not pools or not isinstance(model, Normalized):
        return None
    features, found = pools[-1].input[0], Heat(STRENGTH)
    if isinstance(model.net, (Base, End2End)):
        found = _of_our_own(model, core)
    elif (weights := _linear_weights(core, pools[-1].output[0], views.COUNT[model.views])) is not None:
        found = Heat(CLASS_MAP, weights)
    if found:
        found = replace(found, view=views.SHOWN[model.views])
        core.graph.node.append(helper.make_node("Identity", [features], [FEATURES], name="features_as_output"))
        core.graph.output.append(
            helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["views", "channels", "rows", "columns"])
        )
    return found


def _of_our_own(model: Normalized, core: onnx.ModelProto) -> Heat | None:
    """The heat of the three convolutions, averaged in cells of a grid; None where these differ in size."""
    own = model.net
    base = own.base if isinstance(own, End2End) else own
    side, cells = (_image_side(core) + 1) // 2 // 4, base.grid.output_size  # a stride and two poolings
    if side % cells:
        return None
    shape = (base.fc.out_features, base.conv3.out_channels, cells, cells)
    by_cell = base.fc.weight.detach().cpu().numpy().reshape(shape) / (side // cells) ** 2
    found = Heat(CLASS_MAP, base=by_cell, cell=side // cells, bias=base.fc.bias.detach().cpu().numpy())
    if base is own:
        return replace(found, weights=np.eye(shape[0]))
    return replace(found, weights=own.head.weight.detach().cpu().numpy(), slope=own.act.negative_slope)


def _image_side(core: onnx.ModelProto) -> int:
    return core.graph.input[0].type.tensor_type.shape.dim[-1].dim_value


def _pools_places(core: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Whether a node means over height and width, or over the cells of a grid of these."""
    if node.op_type in ("GlobalAveragePool", "AveragePool"):
        return True
    held = {tensor.name: tensor for tensor in core.graph.initializer}
    if len(node.input) < 2 or node.input[1] not in held:
        return False
    return sorted(numpy_helper.to_array(held[node.input[1]]).tolist()) in ([2, 3], [-2, -1])


def _linear_weights(core: onnx.ModelProto, pooled: str, views: int) -> np.ndarray | None:
    """The matrix (C, K) by which logits follow from the pooled means `pooled`; None where they do not, linearly."""
    try:
        tail, shape = _tail(core, pooled)
        session = onnxruntime.InferenceSession(tail.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception:  # the means are used elsewhere too, so that they do not decide alone
        return None
    channels, is_flat = shape[1] if len(shape) > 1 else 0, len(shape) == 2
    if not channels or (not is_flat and shape[2:] != [1, 1]):  # VGG's pooling leaves 7 x 7 places
        return None

    def logits(means: np.ndarray) -> np.ndarray:
        means = np.tile(means.astype(np.float32), (views, 1))
        return session.run(["logits"], {pooled: means if is_flat else means[:, :, None, None]})[0]

    zero = logits(np.zeros((1, channels)))
    weights = (logits(np.eye(channels)) - zero).T
    tried = np.random.default_rng(0).random((4, channels))
    expected, found = zero + tried @ weights.T, logits(tried)
    return weights if np.abs(expected - found).max() <= 1e-3 * max(1.0, np.abs(found).max()) else None


def _tail(core: onnx.ModelProto, pooled: str) -> tuple[onnx.ModelProto, list[int]]:
    """The part of a graph behind the means, and their shape; 0 where a size is not known."""
    whole = onnx.ModelProto()
    whole.CopyFrom(core)
    whole = onnx.shape_inference.infer_shapes(whole)
    dims = next(info.type.tensor_type.shape.dim for info in whole.graph.value_info if info.name == pooled)
    return onnx.utils.Extractor(whole).extract_model([pooled], ["logits"]), [dim.dim_value for dim in dims]


def heat_nodes(heat: Heat) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes and constants for `features` and `logits` -> `heat` (N, C, h, w), or (N, 1, h, w) of STRENGTH.

    Of a graph with several views of each photo, which come one after the other, `heat.view` counts.
    """
    constants = {"heat_view": np.array([heat.view], np.int64), "heat_axis": np.array([0], np.int64)}
    steps = [
        ("Shape", ["logits"], "heat_photos", {"start": 0, "end": 1}),
        ("Mul", ["heat_photos", "heat_view"], "heat_from", {}),
        ("Add", ["heat_from", "heat_photos"], "heat_to", {}),
        ("Slice", [FEATURES, "heat_from", "heat_to", "heat_axis"], "heat_features", {}),
    ]
    source = "heat_features"
    if heat.kind == STRENGTH:
        constants["heat_channel"] = np.array([1], np.int64)
        steps += [
            ("Abs", [source], "heat_strength", {}),
            ("ReduceMean", ["heat_strength", "heat_channel"], "heat", {"keepdims": 1}),
        ]
    else:
        if heat.base is not None:
            steps += _base_steps(heat, constants)
            source = "heat_bent"
        constants["heat_weights"] = heat.weights[:, :, None, None].astype(np.float32)
        steps.append(("Conv", [source, "heat_weights"], "heat", {}))
    nodes = [helper.make_node(kind, inputs, [output], **options) for kind, inputs, output, options in steps]
    return nodes, [numpy_helper.from_array(value, name) for name, value in constants.items()]


def _base_steps(heat: Heat, constants: dict[str, np.ndarray]) -> list[tuple[str, list[str], str, dict]]:
    """What each place adds to the base logits, times the slope at the logit that all places make."""
    count, channels, grid, _ = heat.base.shape
    constants |= {"heat_base": heat.base.astype(np.float32), "heat_places": np.array([2, 3], np.int64)}
    constants["heat_cells"] = np.array([-1, channels, grid, heat.cell, grid, heat.cell], np.int64)
    constants["heat_whole"] = np.array([-1, count, grid * heat.cell, grid * heat.cell], np.int64)
    constants |= {"heat_bias": heat.bias[None, :, None, None].astype(np.float32)}
    constants |= {"heat_zero": np.float32(0), "heat_one": np.float32(1), "heat_slope": np.float32(heat.slope)}
    return [
        ("Reshape", ["heat_features", "heat_cells"], "heat_by_cell", {}),
        ("Einsum", ["heat_by_cell", "heat_base"], "heat_added", {"equation": "nkgyhx,bkgh->nbgyhx"}),
        ("Reshape", ["heat_added", "heat_whole"], "heat_base_maps", {}),
        ("ReduceSum", ["heat_base_maps", "heat_places"], "heat_base_sums", {"keepdims": 1}),
        ("Add", ["heat_base_sums", "heat_bias"], "heat_base_logits", {}),
        ("Greater", ["heat_base_logits", "heat_zero"], "heat_is_above", {}),
        ("Where", ["heat_is_above", "heat_one", "heat_slope"], "heat_slopes", {}),
        ("Mul", ["heat_base_maps", "heat_slopes"], "heat_bent", {}),
    ]


def enlarged(maps: np.ndarray, side: int) -> np.ndarray:
    """Maps (n, h, w) at `side` x `side`, bilinear."""
    grown = torch.nn.functional.interpolate(torch.from_numpy(maps)[:, None], (side, side), mode="bilinear")
    return grown[:, 0].numpy()
