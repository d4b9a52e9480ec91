"""The stages of a run, and what each one's result depends on: its identity.

A stage is complete when its record, `stages/<stage>.json`, holds the identity that the stage would have now: a
fingerprint of the settings, sources and data it depends on. The sources are the import closure of the stage's entry
module, or of what its notebook imports; so a change in a figure redraws, and does not retrain.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from fruitlib.core import config as configs
from fruitlib.core import files, source_code


@dataclass(frozen=True)
class Stage:
    """What a stage's result depends on: settings, an entry module or a notebook, the stage before it; its files."""

    settings: tuple[str, ...] = ()
    entry: str = ""
    after: str = ""
    outputs: tuple[str, ...] = ()
    notebook: bool = False


STAGES = {
    "train": Stage(
        configs.TRAIN_SETTINGS,
        "fruitlib.training.train",
        outputs=("best.pt", "history.csv", "predictions_val.csv", "predictions_epochs.npz"),
    ),
    "export": Stage(
        configs.EXPORT_SETTINGS,
        "fruitlib.deploy.model_files",
        after="train",
        outputs=("model.fp32.onnx", "model.int8.onnx"),
    ),
    "test": Stage(entry="fruitlib.deploy.test_set", after="export", outputs=("predictions_test.csv",)),
    "02_train": Stage(configs.SHOW_SETTINGS, after="train", notebook=True),
    "metrics": Stage(configs.REPORT_SETTINGS, "fruitlib.training.scores", after="train", outputs=("metrics.json",)),
    "03_metrics": Stage(
        configs.REPORT_SETTINGS,
        after="metrics",
        outputs=("answering.json", "doubtful_labels.csv"),
        notebook=True,
    ),
    "04_gradcam": Stage(after="train", notebook=True),
    "05_quantize": Stage(configs.REPORT_SETTINGS, after="export", outputs=("export.json",), notebook=True),
    "06_test_accuracy": Stage(configs.REPORT_SETTINGS, after="test", outputs=("test.json",), notebook=True),
}
NOTEBOOKS_EXCLUDE = ("kernels", "sweep")  # what a notebook shows depends on reporting, too


def notebook_path(stage: str) -> Path:
    """The notebook a stage is named after."""
    return files.home() / "notebooks" / f"{stage}.ipynb"


def code_fingerprint(stage: str) -> str:
    """The fingerprint of the code that a stage of a run, or a notebook over a whole sweep, depends on.

    Of a notebook, the text of its cells counts; outputs and counts, which JupyterLab saves too, change no result.
    """
    if stage in STAGES and not STAGES[stage].notebook:
        return source_code.closure_fingerprint([STAGES[stage].entry])
    path = str(notebook_path(stage))
    cells, imported = _read_notebook(path, source_code.file_stamp(path))
    return files.fingerprint(cells, source_code.closure_fingerprint(imported, NOTEBOOKS_EXCLUDE))


@functools.cache
def _read_notebook(path: str, stamp: source_code.Stamp) -> tuple[str, tuple[str, ...]]:
    """The fingerprint of a notebook's cells and the modules that its code imports, as the file was at `stamp`."""
    cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    code = "\n".join(text for cell, text in zip(cells, texts, strict=True) if cell["cell_type"] == "code")
    return files.fingerprint(texts), tuple(source_code.modules_imported_by(code))
