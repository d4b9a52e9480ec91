"""The drawn network: a row per operator, what is used further down, the error of each layer; large ones by block."""

import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fruitlib.reporting import graph_figure, style


def network_file(path, blocks: int):
    """Blocks of two convolutions with a shortcut, between what prepares photos and what only counts them."""
    nodes = [helper.make_node("Cast", ["photos"], ["images"], to=TensorProto.FLOAT)]
    nodes += [helper.make_node("Shape", ["images"], ["count"]), helper.make_node("Relu", ["images"], ["x0"], "start")]
    weights = []
    for n in range(blocks):
        for conv in ("a", "b"):
            weights.append(helper.make_tensor(f"model.net.b{n}.{conv}.weight", 1, [4, 4, 3, 3], np.zeros(144)))
        nodes += [
            helper.make_node("Conv", [f"x{n}", weights[-2].name], [f"a{n}"], f"conv_a{n}"),
            helper.make_node("Relu", [f"a{n}"], [f"r{n}"], f"relu_a{n}"),
            helper.make_node("Conv", [f"r{n}", weights[-1].name], [f"c{n}"], f"conv_b{n}"),
            helper.make_node("Add", [f"c{n}", f"x{n}"], [f"s{n}"], f"add{n}"),
            helper.make_node("Relu", [f"s{n}"], [f"x{n + 1}"], f"relu_b{n}"),
        ]
    nodes += [helper.make_node("Reshape", [f"x{blocks}", "count"], ["logits"], "flat")]
    nodes += [helper.make_node("Softmax", ["logits"], ["probabilities"])]
    values = [helper.make_tensor_value_info(name, 1, None) for name in ("photos", "logits", "probabilities")]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], weights)), path)
    return path


def test_a_row_per_operator_with_its_activation_and_its_error(tmp_path):
    graph = onnx.load(network_file(tmp_path / "a.onnx", 1)).graph
    rows = graph_figure.rows_of(graph, {"b0.a": 30.0, "conv_b0": 12.0})
    assert [(row.name, row.words, row.after) for row in rows] == [
        ("", ["Relu"], set()),
        ("b0.a", ["Conv 4, 3×3", "Relu"], {0}),
        ("b0.b", ["Conv 4, 3×3"], {1}),
        ("", ["Add", "Relu"], {0, 2}),
    ]
    assert [row.error for row in rows] == pytest.approx([np.nan, 30, 12, np.nan], nan_ok=True)


def test_a_large_network_is_drawn_by_block_with_the_lowest_error_of_each(tmp_path):
    errors = {f"b{n}.{conv}": 20.0 + n + 5 * (conv == "a") for n in range(30) for conv in "ab"}
    every = graph_figure.rows_of(onnx.load(network_file(tmp_path / "a.onnx", 30)).graph, errors)
    rows = graph_figure.merged(every)
    assert len(every) == 91 and [row.name for row in rows] == ["", *(f"b{n}" for n in range(30))]
    assert [row.error for row in rows[1:]] == [20.0 + n for n in range(30)]
    assert all(row.after == {place} for place, row in enumerate(rows[1:]))
    assert rows[1].words == ["Conv 4, 3×3", "Relu", "Conv 4, 3×3", "Add", "Relu"]


@pytest.mark.parametrize("blocks", [0, 2, 30])
def test_the_picture_names_its_rows_and_its_table_has_them_all(tmp_path, blocks):
    style.use_style()
    figure = graph_figure.network(network_file(tmp_path / "a.onnx", blocks), {"b0.a": 30.0, "b0.b": -np.inf})
    table = figure.fruitlib_table
    assert len(table) == (1 + 3 * blocks if blocks < 20 else 31)
    style.save_figure(figure, tmp_path / "a.svg")
    words = set(re.findall(">([^<>]+)</text>", (tmp_path / "a.svg").read_text()))
    assert {name for name in table["layer"] if name} <= words and "dB of signal over INT8's error" in words
    assert any("could not be drawn" in one for one in words) is False
