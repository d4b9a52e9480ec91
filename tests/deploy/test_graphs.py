"""A kept graph is filled with the weights at hand, and made anew wherever it might compute something else."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from fruitlib.core import files
from fruitlib.deploy import export, graphs, predict

NAMES = ["apple", "cherry"]
RECIPE = {"model": "small", "head": "linear"}


class Small(nn.Module):
    """Its normalisation is computed with when it is exported: it is no weight that can be filled in."""

    def __init__(self, seed: int, mean: float = 0.5):
        super().__init__()
        torch.manual_seed(seed)
        self.register_buffer("mean", torch.full((1, 3, 1, 1), mean))
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.norm.running_mean.normal_()
        self.scale = 1

    def forward(self, images):
        return self.head(torch.relu(self.norm(self.conv(images - self.mean / 2))).mean((2, 3))) * self.scale


@pytest.fixture
def made(monkeypatch, tmp_path) -> list:
    """The models that the exporter was given; the cache is the test's own."""
    monkeypatch.setenv("FRUITLIB_CACHE", str(tmp_path / "cache"))
    given, exported = [], graphs.exported
    monkeypatch.setattr(graphs, "exported", lambda model, images: given.append(model) or exported(model, images))
    return given


def agrees(model: nn.Module, path, recipe: dict | None = RECIPE) -> bool:
    images = np.random.default_rng(1).random((3, 3, 8, 8), np.float32)
    export.export_onnx(model.eval(), path, 8, NAMES, {"note": "é"}, recipe)
    assert predict.read_metadata(path).keys() == {"note", "class_names", "image_size"}
    return export.parity(export.run_torch(model, images), export.run_graph(path, images))["max_abs_diff"] < 1e-5


def test_other_weights_of_the_same_network_are_filled_in(made, tmp_path):
    one, other = tmp_path / "one.onnx", tmp_path / "other.onnx"
    assert agrees(Small(0), one) and agrees(Small(1), other) and len(made) == 1
    assert one.read_bytes() != other.read_bytes()
    (kept,) = (files.cache_dir() / "graphs").glob("*.onnx")
    assert Small(0).conv.weight.detach().numpy().tobytes() not in kept.read_bytes()
    assert agrees(Small(0), other) and one.read_bytes() == other.read_bytes() and len(made) == 1


def test_what_may_compute_something_else_is_exported_anew(made, tmp_path):
    assert agrees(Small(0), tmp_path / "a.onnx") and len(made) == 1
    assert agrees(Small(0, mean=0.25), tmp_path / "a.onnx") and len(made) == 1
    assert agrees(Small(0), tmp_path / "a.onnx", RECIPE | {"head": "other"}) and len(made) == 2
    odd = Small(0)
    odd.scale = 2  # which neither a setting nor a weight says
    assert agrees(odd, tmp_path / "a.onnx") and len(made) == 3


def test_a_damaged_graph_is_made_again(made, tmp_path):
    assert agrees(Small(0), tmp_path / "a.onnx")
    (kept,) = (files.cache_dir() / "graphs").glob("*.onnx")
    kept.write_bytes(kept.read_bytes()[:100])
    assert agrees(Small(1), tmp_path / "a.onnx") and len(made) == 2
    assert agrees(Small(2), tmp_path / "a.onnx") and len(made) == 2


def test_without_room_for_it_nothing_is_kept(made, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert agrees(Small(0), tmp_path / "a.onnx") and len(made) == 1


def test_what_torch_warns_of_its_own_exporter_is_not_shown(monkeypatch):
    real = torch.onnx.export

    def deprecated(*args, **options):
        warnings.warn("LeafSpec is deprecated", FutureWarning, stacklevel=2)  # as torch 2.11 does
        return real(*args, **options)

    monkeypatch.setattr(torch.onnx, "export", deprecated)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always", FutureWarning)
        assert graphs.exported(Small(1).eval(), torch.zeros(2, 3, 8, 8)).graph.node
    assert [entry for entry in shown if entry.category is FutureWarning] == []
