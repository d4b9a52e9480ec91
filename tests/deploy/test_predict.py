"""An exported file works where only the base dependencies are installed."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from fruitlib.core.errors import InputError
from fruitlib.deploy import export, photo_files, predict

NAMES = ["apple", "Kürbis"]
PLAIN = {"resize": "crop", "center": 1.0, "brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "sharpness": 1.0}
# Everything that a bare `pip install fruitlib` leaves out, as far as it is imported anywhere in the package.
FORBIDDEN = "torch torchvision pandas scipy pydantic yaml filelock psutil matplotlib onnx cv2 sklearn seaborn IPython"
BASE = {"fruitlib", "numpy", "PIL", "onnxruntime"}

WITHOUT = """
import json, sys
sys.modules.update(dict.fromkeys(sys.argv[1].split()))  # importing a module that is None raises ImportError
"""
LIGHT = """
import numpy as np
from fruitlib.deploy import predict
logits = predict.run_onnx(sys.argv[2], np.load(sys.argv[3]))
print(json.dumps([predict.class_names(sys.argv[2]), logits.tolist()]))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A linear model's file, whose photos become images of 4 by 4 pixels."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 2))
    folder = tmp_path_factory.mktemp("light")
    graph = onnx.load(export.export_onnx(model, folder / "graph.onnx", 4, NAMES))
    preprocess = PLAIN | {"image_size": 4}
    metadata = {entry.key: entry.value for entry in graph.metadata_props} | {"preprocess": json.dumps(preprocess)}
    return photo_files.write(graph, folder / "model.onnx", preprocess, metadata=metadata)


def without_extras(code: str, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", WITHOUT + code, FORBIDDEN, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_file_is_used_where_only_the_base_dependencies_are_installed(exported, tmp_path):
    photos = np.random.default_rng(0).integers(0, 256, (3, 7, 5, 3), np.uint8)
    np.save(tmp_path / "photos.npy", photos)
    names, logits = json.loads(without_extras(LIGHT, exported, tmp_path / "photos.npy").stdout)
    assert names == NAMES
    np.testing.assert_allclose(logits, predict.run_onnx(exported, photos), atol=1e-6)


COMMAND = "from fruitlib import cli; sys.exit(cli.main(sys.argv[2:]))"


def test_the_command_works_where_only_the_base_dependencies_are_installed(exported, tmp_path):
    for mode in ("RGB", "CMYK", "I;16"):
        Image.new(mode, (40, 30), 90).save(tmp_path / f"{mode[:3]}.tif")
    done = without_extras(COMMAND, "predict", exported, tmp_path, "--csv", tmp_path / "out.csv")
    assert (done.returncode, done.stderr) == (0, "")
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 4


def test_a_command_that_needs_more_says_what_to_install(tmp_path):
    done = without_extras(COMMAND, "report", tmp_path)
    assert done.returncode == 2 and re.fullmatch(
        r"fruitlib: \w+ is not installed: pip install 'fruitlib\[lab\]'\n", done.stderr
    )


@pytest.mark.slow
def test_the_command_works_in_a_fresh_environment(exported, tmp_path):
    """`pip install fruitlib` alone, where the packages can be had."""
    root, bin_of, folder = Path(__file__).parents[2], Path(sys.executable).parent, tmp_path / "env"
    uv = shutil.which("uv", path=f"{bin_of}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        pytest.skip("uv is not installed")
    shutil.copytree(root / "fruitlib", tmp_path / "source" / "fruitlib")  # the build leaves a folder there
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(root / name, tmp_path / "source")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", folder / "bin" / "python"]
    # with what was installed here before, where there is no network
    tries = ([*install, *how, tmp_path / "source"] for how in (["--offline"], []))
    if all(subprocess.run(command, capture_output=True).returncode for command in tries):
        pytest.skip("numpy, pillow and onnxruntime cannot be installed here")
    Image.new("RGB", (40, 30), 90).save(tmp_path / "a.png")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [folder / "bin" / "fruitlib", "predict", exported, tmp_path / "a.png"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (0, "") and "a.png: " in done.stdout
    names = {path.name.partition("-")[0] for path in (folder / "lib").glob("*/site-packages/*.dist-info")}
    assert {"fruitlib", "numpy", "pillow", "onnxruntime"} <= names
    assert not names & {"torch", "pandas", "pydantic", "filelock", "psutil", "opencv_python_headless"}


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
