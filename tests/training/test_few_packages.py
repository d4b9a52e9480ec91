"""Training runs where only the packages are installed that it needs: no notebooks, no figures, no export."""

import os
import subprocess
import sys

from support import ROOT

# What `make gpu` asks for, too: everything else that pyproject.toml names is blocked here.
BLOCKED = """IPython ipykernel ipywidgets jupyter jupyterlab jupyter_client jupyter_core nbclient nbconvert nbformat
papermill traitlets tornado zmq nh3 jinja2 seaborn matplotlib pytorch_grad_cam onnx onnxscript onnxruntime imagehash
scipy sklearn cleanlab imblearn optuna rich threadpoolctl timm safetensors distributed dask pytest"""
TRAIN = """
import sys
sys.modules.update(dict.fromkeys({blocked}))
from fruitlib.runs.run import Run
from fruitlib.training import train
history = train.fit(Run(__import__("pathlib").Path({run!r})))
print("epochs", len(history))
"""


def test_a_run_trains_without_notebook_figure_and_export_packages(make_run):
    run = make_run(cam_every=0, epochs=2)
    code = TRAIN.format(blocked=BLOCKED.split(), run=str(run.path))
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "epochs 2"
    assert (run.path / "best.pt").is_file() and run.is_complete("train")
