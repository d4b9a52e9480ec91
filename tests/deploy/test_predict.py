"""An exported file works where only the base dependencies are installed."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch

from fruitlib.core.errors import InputError
from fruitlib.deploy import export, photo_files, predict

NAMES = ["apple", "Kürbis"]
PLAIN = {"resize": "crop", "center": 1.0, "brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "sharpness": 1.0}
# Everything that a bare `pip install fruitlib` leaves out, as far as it is imported anywhere in the package.
FORBIDDEN = "torch torchvision pandas scipy pydantic yaml filelock psutil matplotlib onnx cv2 sklearn seaborn IPython"
BASE = {"fruitlib", "numpy", "PIL", "onnxruntime"}

LIGHT = """
import json, sys
sys.modules.update(dict.fromkeys(sys.argv[3].split()))  # importing a module that is None raises ImportError
import numpy as np
from fruitlib.deploy import predict
logits = predict.run_onnx(sys.argv[1], np.load(sys.argv[2]))
print(json.dumps([predict.class_names(sys.argv[1]), logits.tolist()]))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A linear model's file, whose photos become images of 4 by 4 pixels."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 2))
    folder = tmp_path_factory.mktemp("light")
    graph = onnx.load(export.export_onnx(model, folder / "graph.onnx", 4, NAMES))
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    return photo_files.write(graph, folder / "model.onnx", PLAIN | {"image_size": 4}, metadata=metadata)


def test_a_file_is_used_where_only_the_base_dependencies_are_installed(exported, tmp_path):
    photos = np.random.default_rng(0).integers(0, 256, (3, 7, 5, 3), np.uint8)
    np.save(tmp_path / "photos.npy", photos)
    command = [sys.executable, "-c", LIGHT, str(exported), str(tmp_path / "photos.npy"), FORBIDDEN]
    names, logits = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert names == NAMES
    np.testing.assert_allclose(logits, predict.run_onnx(exported, photos), atol=1e-6)


def test_the_module_itself_imports_nothing_but_the_base_dependencies():
    """Apart from what NumPy and ONNX Runtime import themselves."""
    code = """
import sys, numpy, PIL, onnxruntime
before = set(sys.modules)
import fruitlib.deploy.predict
print(*{name.partition('.')[0] for name in set(sys.modules) - before})
"""
    added = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert added - BASE - sys.stdlib_module_names == set()


def test_a_file_without_class_names_is_refused(exported, tmp_path):
    proto = onnx.load(exported)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "foreign.onnx")
    with pytest.raises(InputError, match=r"foreign\.onnx: has no class names"):
        predict.class_names(tmp_path / "foreign.onnx")
