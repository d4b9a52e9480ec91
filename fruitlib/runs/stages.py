"""The stages of a run, and what each one's result depends on: its identity.

A stage is complete when its record, `stages/<stage>.json`, bears the identity that the stage would have now: a
fingerprint of the settings, sources and data it depends on. The sources are the import closure of the stage's entry
module, or of what its notebook imports; so a change in a figure redraws, and does not retrain.
"""

import json
from collections.abc import Sequence
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
        configs.TRAIN_SETTINGS, "fruitlib.training.train", outputs=("best.pt", "history.csv", "predictions_val.csv")
    ),
    "export": Stage(
        configs.EXPORT_SETTINGS,
        "fruitlib.deploy.model_files",
        after="train",
        outputs=("model.fp32.onnx", "model.int8.onnx"),
    ),
    "test": Stage(entry="fruitlib.deploy.test_set", after="export", outputs=("predictions_test.csv",)),
    "02_train": Stage(configs.SHOW_SETTINGS, after="train", notebook=True),
    "03_metrics": Stage(after="train", outputs=("metrics.json", "doubtful_labels.csv"), notebook=True),
    "04_gradcam": Stage(after="train", notebook=True),
    "05_quantize": Stage(after="export", outputs=("export.json",), notebook=True),
    "06_test_accuracy": Stage(after="test", outputs=("test.json",), notebook=True),
}
PAGES_DO_NOT_DEPEND_ON = ("kernels", "sweep")


def notebook_path(stage: str) -> Path:
    """The notebook a stage is named after."""
    return files.home() / "notebooks" / f"{stage}.ipynb"


def notebook_source(stage: str) -> list[str]:
    """The text of its cells; outputs and counts, which JupyterLab saves too, change no result."""
    return [text for _, text in _cells(stage)]


def code_of(stage: str) -> Sequence[bytes | list[str]]:
    """The code that a stage of a run, or a notebook over a whole sweep, depends on; for fingerprints."""
    if stage in STAGES and not STAGES[stage].notebook:
        return source_code.closure_source([STAGES[stage].entry])
    code = "\n".join(text for kind, text in _cells(stage) if kind == "code")
    imported = source_code.modules_imported_by(code)
    return [notebook_source(stage), *source_code.closure_source(imported, PAGES_DO_NOT_DEPEND_ON)]


def _cells(stage: str) -> list[tuple[str, str]]:
    """Kind and text of a notebook's cells."""
    cells = json.loads(notebook_path(stage).read_text(encoding="utf-8"))["cells"]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
