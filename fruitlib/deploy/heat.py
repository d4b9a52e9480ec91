"""Where a network looked, as an output of its graph: `heat`, computed with the answer, without gradients.

Where logits are a linear function of the means of the last feature maps, each logit is a sum over places, and that sum
is the map: the class activation map (Zhou et al. 2016, equation 2), exact for every head that is linear in the means,
whatever it was fitted by; where several views are averaged, exact for the view that is shown. Our own networks are
linear in the features place by place, but for one leaky ReLU of the five base logits, whose slope is 1 or 0.1; their
map is exact, too. Elsewhere heat is how strongly the last maps respond at all, the same for every class.

An ensemble averages its members' probabilities, so that none counts more because its logits are larger. Its heat is the
mean of the members' maps, each divided by its mean absolute value for the photo; maps of different scale are commonly
normalized before they are averaged (Mahlau and Nolde 2022, arXiv 2207.01565, compare ways). The mean absolute value is
over all classes and places: a member that sees little of a class adds little to its map, and one hot place does not
decide a member's scale, as it would by the greatest value. The mean is multiplied by the members' mean scale, so that
an ensemble of one has the map of its member.
"""

from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from fruitlib.training import views
from fruitlib.training.models import Base, End2End, Ensemble, Normalized

FEATURES = "features"  # the name that a graph's last feature maps get as an output
CLASS_MAP, STRENGTH = "class activation map", "strength of the last feature maps, the same for every class"
POOLS = ("GlobalAveragePool", "AveragePool", "ReduceMean")
LEAST_SCALE = 1e-9  # of a member's map, in logits; one that is zero everywhere stays zero


@dataclass(frozen=True)
class Heat:
    """How heat follows from the feature maps (N, K, h, w) of a graph, or from those of an ensemble's members."""

    kind: str  # CLASS_MAP or STRENGTH
    weights: np.ndarray | None = None  # (C, K) of CLASS_MAP; of our own networks (C, B), of their B base logits
    base: np.ndarray | None = None  # (B, K, g, g) of our own networks: what a place of each cell adds to base logits
    cell: int = 1  # the side of a cell, in places
    bias: np.ndarray | None = None  # (B,)
    slope: float = 1.0  # of the base logits below zero
    view: int = 0  # the view of a photo that heat shows, where the graph passes several through the network
    members: tuple["Heat", ...] = ()  # of an ensemble, all of the same kind

    @property
    def words(self) -> str:
        """What heat is, in words."""
        if not self.members:
            return self.kind
        return f"{self.kind}; the mean over {len(self.members)} models, whose maps are scaled to count alike"


def add_features(core: onnx.ModelProto, model: torch.nn.Module) -> Heat | None:
    """Make the last feature maps outputs of a graph; returns how heat follows from them.

    The output is `features`, of an ensemble `member0/features` and so on.

    Args:
        core: "images" (n, 3, S, S) -> "logits"; changed in place.
        model: the network that it was exported from, or an ensemble.

    Returns:
        None where nothing is pooled over places, as in transformers that answer by a class token, and of ensembles
        whose members' last maps differ in size. Where the class map of one member is not known, the ensemble's heat is
        strength.
    """
    shaped = onnx.shape_inference.infer_shapes(core)
    if isinstance(model, Normalized):
        found = [_found(shaped, model, "logits")]
        outputs = [FEATURES]
    elif isinstance(model, Ensemble) and len(answers := _members_logits(core)) == len(model.members):
        found = [_found(shaped, member, logits) for member, logits in zip(model.members, answers, strict=True)]
        outputs = [_of_member(place, FEATURES) for place in range(len(found))]
    else:
        return None
    if None in found or len({tuple(_shape(shaped, name)[2:]) for name, _ in found}) > 1:
        return None
    for (name, _), output in zip(found, outputs, strict=True):
        core.graph.node.append(helper.make_node("Identity", [name], [output], name=f"{output}_as_output"))
        core.graph.output.append(
            helper.make_tensor_value_info(output, TensorProto.FLOAT, ["views", "channels", "rows", "columns"])
        )
    heats = tuple(heat for _, heat in found)
    return heats[0] if isinstance(model, Normalized) else _together(heats)


def _together(members: tuple[Heat, ...]) -> Heat:
    """The heat of an ensemble: strength, where it is all that is known of one of them."""
    if any(member.kind == STRENGTH for member in members):
        members = tuple(Heat(STRENGTH, view=member.view) for member in members)
    return Heat(members[0].kind, members=members)


def _of_member(place: int, name: str) -> str:
    """The name of a tensor that each member of an ensemble has."""
    return f"member{place}/{name}"


def _members_logits(core: onnx.ModelProto) -> list[str]:
    """What enters the log-softmax of each member of an ensemble, in their order."""
    makers = {name: node for node in core.graph.node for name in node.output}
    found, waiting = [], ["logits"]
    for name in waiting:  # which grows by what the members' answers are averaged from
        node = makers.get(name)
        if node is not None and node.op_type == "LogSoftmax":
            found.append(node.input[0])
        elif node is not None:
            waiting.extend(node.input)
    return found


def _found(core: onnx.ModelProto, model: Normalized, logits: str) -> tuple[str, Heat] | None:
    """The last feature maps of a network whose answer is `logits`, and how heat follows from them."""
    pools = [node for node in _before(core, logits) if node.op_type in POOLS and _pools_places(core, node)]
    if not pools:
        return None
    found = Heat(STRENGTH)
    if isinstance(model.net, (Base, End2End)):
        found = _of_our_own(model, core)
    elif (weights := _linear_weights(core, pools[-1].output[0], logits, views.COUNT[model.views])) is not None:
        found = Heat(CLASS_MAP, weights)
    return (pools[-1].input[0], replace(found, view=views.SHOWN[model.views])) if found else None


def _before(core: onnx.ModelProto, name: str) -> list[onnx.NodeProto]:
    """The nodes that a tensor follows from, in the order in which they run."""
    wanted, nodes = {name}, []
    for node in reversed(core.graph.node):
        if wanted & set(node.output):
            wanted |= set(node.input)
            nodes.append(node)
    return nodes[::-1]


def _shape(core: onnx.ModelProto, name: str) -> list[int]:
    """The sizes of a tensor of a graph whose shapes are inferred; 0 where one is not known, none where all are not."""
    known = next((info for info in core.graph.value_info if info.name == name), None)
    return [dim.dim_value for dim in known.type.tensor_type.shape.dim] if known else []


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


def _linear_weights(core: onnx.ModelProto, pooled: str, answer: str, views: int) -> np.ndarray | None:
    """The matrix (C, K) by which the logits `answer` follow from the pooled means; None where they do not, linearly."""
    try:
        tail, shape = onnx.utils.Extractor(core).extract_model([pooled], [answer]), _shape(core, pooled)
        session = onnxruntime.InferenceSession(tail.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception:  # the means are used elsewhere too, so that they do not decide alone
        return None
    channels, is_flat = shape[1] if len(shape) > 1 else 0, len(shape) == 2
    if not channels or (not is_flat and shape[2:] != [1, 1]):  # VGG's pooling leaves 7 x 7 places
        return None

    def logits(means: np.ndarray) -> np.ndarray:
        means = np.tile(means.astype(np.float32), (views, 1))
        return session.run([answer], {pooled: means if is_flat else means[:, :, None, None]})[0]

    zero = logits(np.zeros((1, channels)))
    weights = (logits(np.eye(channels)) - zero).T
    tried = np.random.default_rng(0).random((4, channels))
    expected, found = zero + tried @ weights.T, logits(tried)
    return weights if np.abs(expected - found).max() <= 1e-3 * max(1.0, np.abs(found).max()) else None


Step = tuple[str, list[str], str, dict]  # an operator, its inputs, its output, its attributes


def heat_nodes(heat: Heat) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes and constants for `features` and `logits` -> `heat` (N, C, h, w), or (N, 1, h, w) of STRENGTH.

    Of a graph with several views of each photo, which come one after the other, `heat.view` counts.
    """
    steps, constants = _mean_steps(heat.members) if heat.members else _steps(heat)
    nodes = [helper.make_node(kind, inputs, [output], **options) for kind, inputs, output, options in steps]
    return nodes, [numpy_helper.from_array(value, name) for name, value in constants.items()]


def _mean_steps(members: tuple[Heat, ...]) -> tuple[list[Step], dict[str, np.ndarray]]:
    """The mean of the members' maps, each divided by its mean absolute value, times the mean of these values."""
    steps, constants = [], {"heat_all": np.array([1, 2, 3], np.int64), "heat_least": np.float32(LEAST_SCALE)}
    shared = {"logits", *constants}
    for place, member in enumerate(members):
        own, held = _steps(member)
        own += [
            ("Abs", ["heat"], "heat_sizes", {}),
            ("ReduceMean", ["heat_sizes", "heat_all"], "heat_size", {"keepdims": 1}),
            ("Max", ["heat_size", "heat_least"], "heat_scale", {}),
            ("Div", ["heat", "heat_scale"], "heat_even", {}),
        ]
        for kind, inputs, output, options in own:
            inputs = [name if name in shared else _of_member(place, name) for name in inputs]
            steps.append((kind, inputs, _of_member(place, output), options))
        constants |= {_of_member(place, name): value for name, value in held.items()}
    steps += [
        ("Mean", [_of_member(place, "heat_even") for place in range(len(members))], "heat_together", {}),
        ("Mean", [_of_member(place, "heat_scale") for place in range(len(members))], "heat_units", {}),
        ("Mul", ["heat_together", "heat_units"], "heat", {}),
    ]
    return steps, constants


def _steps(heat: Heat) -> tuple[list[Step], dict[str, np.ndarray]]:
    """Those of a single network."""
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
    return steps, constants


def _base_steps(heat: Heat, constants: dict[str, np.ndarray]) -> list[Step]:
    """What each place adds to the base logits, times the slope at the logit that all places make."""
    count, channels, grid, _ = heat.base.shape
    by_cell = heat.base.transpose(2, 3, 0, 1).astype(np.float32)  # an order in which Einsum takes half the time
    constants |= {"heat_base": by_cell, "heat_places": np.array([2, 3], np.int64)}
    constants["heat_cells"] = np.array([-1, channels, grid, heat.cell, grid, heat.cell], np.int64)
    constants["heat_whole"] = np.array([-1, count, grid * heat.cell, grid * heat.cell], np.int64)
    constants |= {"heat_bias": heat.bias[None, :, None, None].astype(np.float32)}
    constants |= {"heat_zero": np.float32(0), "heat_one": np.float32(1), "heat_slope": np.float32(heat.slope)}
    return [
        ("Reshape", ["heat_features", "heat_cells"], "heat_by_cell", {}),
        ("Einsum", ["heat_base", "heat_by_cell"], "heat_added", {"equation": "ghbk,nkgyhx->nbgyhx"}),
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
