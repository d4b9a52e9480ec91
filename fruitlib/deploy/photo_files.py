"""The file others use: an RGB photo in, logits, calibrated probabilities and heat out, and all it says of itself.

photos         uint8 (N, H, W, 3), RGB, upright, any size (`photo_input` makes it the square that the network takes)
logits         float32 (N, C)
probabilities  float32 (N, C): softmax(logits / temperature)
heat           float32 (N, C, h, w), or (N, 1, h, w): where the network looked (`heat`); absent if unknown
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from fruitlib.core.files import replacing
from fruitlib.deploy import heat as heats
from fruitlib.deploy.heat import Heat
from fruitlib.deploy.photo_input import input_graph

INPUT_RULE = "RGB photos as uint8 (N, height, width, 3), 0 to 255, upright (turned as EXIF says), no alpha channel"
OUTPUT_RULE = "logits (N, classes); probabilities (N, classes) = softmax(logits / temperature)"


def write(
    core: onnx.ModelProto,
    path: Path,
    preprocess: dict,
    temperature: float = 1.0,
    heat: Heat | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write the file that takes photos, from a graph "images" -> "logits" (and the features, where `heat` is given).

    Args:
        preprocess: the settings that make a photo the network's image, from the checkpoint.
        metadata: text by name; input, output and heat in words are added.
    """
    whole = compose.merge_models(_named(input_graph(preprocess), "input/"), core, io_map=[("images", "images")])
    graph = whole.graph
    graph.initializer.append(numpy_helper.from_array(np.float32(temperature), "temperature"))
    graph.node.append(helper.make_node("Div", ["logits", "temperature"], ["scaled_logits"]))
    graph.node.append(helper.make_node("Softmax", ["scaled_logits"], ["probabilities"], axis=-1))
    outputs = [output for output in graph.output if output.name == "logits"]
    shape = [dim.dim_param or dim.dim_value for dim in outputs[0].type.tensor_type.shape.dim]
    outputs.append(helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", shape[-1]]))
    if heat:
        nodes, constants = heats.heat_nodes(heat)
        graph.node.extend(nodes)
        graph.initializer.extend(constants)
        maps = shape[-1] if heat.kind == heats.CLASS_MAP else 1
        outputs.append(helper.make_tensor_value_info("heat", TensorProto.FLOAT, ["batch", maps, "rows", "columns"]))
    del graph.output[:]
    graph.output.extend(outputs)
    side = preprocess["image_size"]
    rule = f"{INPUT_RULE}; one of exactly {side} x {side} pixels is taken as prepared already"
    words = {"input": rule, "output": OUTPUT_RULE, "temperature": f"{temperature:.6g}"}
    words |= {"heat": heat.words} if heat else {}
    helper.set_model_props(whole, (metadata or {}) | words)
    onnx.checker.check_model(whole)
    with replacing(path) as partial:
        onnx.save(whole, partial)
    return path


def _named(model: onnx.ModelProto, prefix: str) -> onnx.ModelProto:
    """The graph with its inner names behind a prefix, so that they meet none of the network's."""
    ends = {part.name for part in [*model.graph.input, *model.graph.output]} | {""}

    def rename(graph: onnx.GraphProto) -> None:
        for part in [*graph.initializer, *(output for output in graph.output if output.name not in ends)]:
            part.name = prefix + part.name
        for node in graph.node:
            node.input[:] = [name if name in ends else prefix + name for name in node.input]
            node.output[:] = [name if name in ends else prefix + name for name in node.output]
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    rename(attribute.g)

    rename(model.graph)
    return model
