"""Is an exported file whole, the one its card describes, and does it still give what its run recorded?"""

from pathlib import Path

import numpy as np
import pandas as pd

from fruitlib.core import files
from fruitlib.core.errors import InputError
from fruitlib.core.files import display_path
from fruitlib.data import dataset
from fruitlib.deploy import gate, predict
from fruitlib.deploy.model_card import CARD_FILE
from fruitlib.evaluation import metrics
from fruitlib.runs.run import Run

MOST_PHOTOS = 100
CLOSE = 0.02  # of probability: where the two highest are closer, another processor may round to the other


def check(path: Path) -> tuple[list[str], bool]:
    """What is found of a file, a line each, and whether all is well.

    Raises:
        InputError: not a file that fruitlib exported, or not readable.
    """
    names, session = predict.class_names(path), predict.open_session(path)
    if [part.name for part in session.get_inputs()] != ["photos"]:
        again = "of an earlier version of fruitlib, which took no photos; execute 05_quantize again"
        raise InputError(f"{display_path(path)}: {again}")
    outputs = ", ".join(output.name for output in session.get_outputs())
    lines = [f"{display_path(path)}: takes photos, gives {outputs}; classes: {', '.join(names)}"]
    well = _compare_with_card(path, lines)
    run = Run(path.parent)
    if not (run.path / "params.yaml").is_file():
        lines.append("no run's folder: it was not compared with what its run recorded")
        return lines, well
    return lines, _compare_with_run(path, run, lines) and well


def _compare_with_card(path: Path, lines: list[str]) -> bool:
    card = path.parent / CARD_FILE
    if not card.is_file():
        lines.append(f"no {CARD_FILE} beside it")
        return True
    found = files.sha256(path) in card.read_text(encoding="utf-8")
    lines.append(
        f"{CARD_FILE} describes this file" if found else f"ALARM: {CARD_FILE} describes other files: sha256 differs"
    )
    return found


def _compare_with_run(path: Path, run: Run, lines: list[str]) -> bool:
    """Photos from disk against training's pixels, and predictions against the recorded ones of this file."""
    try:
        photos = dataset.load_photos(run, "val")
        photos = photos if len(photos) else dataset.spread(dataset.load_photos(run, "train"), MOST_PHOTOS)
        lines.append(gate.check_file(run, path, photos).summary)
    except InputError as problem:
        lines.append(f"ALARM: {problem}")
        return False
    recorded = _recorded(path, run)
    if recorded.empty:
        lines.append("no predictions of this file are recorded: execute 06_test_accuracy for them")
        return True
    rows = run.rows("test").set_index("path").loc[recorded["path"]].reset_index()
    pictures = dataset.to_pictures(dataset.load_photos(run, "test", rows=rows).images)
    probs = metrics.softmax(predict.run_onnx(path, pictures))
    differs = np.array(run.class_names)[probs.argmax(1)] != recorded["predicted"].to_numpy()
    ordered = np.sort(probs, 1)
    differs &= ordered[:, -1] - ordered[:, -2] > CLOSE
    word = "ALARM: " if differs.any() else ""
    lines.append(f"{word}{len(differs) - differs.sum()} of {len(differs)} test photos are predicted as recorded")
    return not differs.any()


def _recorded(path: Path, run: Run) -> pd.DataFrame:
    """The recorded test predictions of this file, `MOST_PHOTOS` at most; empty where there are none."""
    if not run.is_complete("test"):
        return pd.DataFrame()
    table = run.predictions("test")
    backend = path.name.removeprefix("model.").removesuffix(".onnx")
    return table[table["backend"] == backend].head(MOST_PHOTOS)
