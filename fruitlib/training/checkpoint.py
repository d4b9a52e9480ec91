"""`last.pt`: all that a training which was cut off needs in order to go on as if it had not been.

It is written whole after every epoch and removed when training is complete. Random states are not in it: every epoch
seeds them anew from (seed, epoch, rank), so that they are known without having been kept.
"""

from dataclasses import dataclass, field, fields
from typing import Any

import torch

from fruitlib.core import files
from fruitlib.core.config import TRAIN_SETTINGS
from fruitlib.core.errors import InputError
from fruitlib.runs.run import Run
from fruitlib.training.weights import load_checkpoint

NAME = "last.pt"
NEXT_BEST = ("best.next.pt", "predictions_val.next.csv")  # written in this order, renamed in the other


@dataclass
class TrainingState:
    """How far a training has come."""

    epoch: int = 0  # the last one completed
    history: list[dict[str, float]] = field(default_factory=list)  # a row per epoch
    best: tuple[float, float] = (float("-inf"), float("-inf"))  # monitored score and -val_loss of the epoch kept
    best_epoch: int = 0
    reference: float = float("-inf")  # the score that early stopping wants exceeded by min_delta
    waited: int = 0  # epochs since it was
    micro_batch: int | None = None  # images at a time; None: a whole share of a batch


def save(run: Run, identity: str, progress: TrainingState, parts: dict[str, Any], speed: dict[str, str]) -> None:
    """Write `last.pt`: the progress, the state of each of `parts` (whatever has a `state_dict`), and in what precision
    and memory format they came about. Then the new best, kept aside so far, takes the place of the old one."""
    content = {
        "speed": speed,
        "identity": identity,
        "settings": run.config.model_dump(include=set(TRAIN_SETTINGS)),
        "data_fingerprint": run.data_fingerprint,
        "progress": {entry.name: getattr(progress, entry.name) for entry in fields(progress)},
        "parts": {name: part.state_dict() for name, part in parts.items()},
    }
    with files.replacing(run.path / NAME) as partial:
        torch.save(content, partial)
    settle(run, progress)


def settle(run: Run, progress: TrainingState) -> None:
    """Let the best epoch kept aside become `best.pt` and `predictions_val.csv`, if it is the one `progress` names.

    Killed between the two, a training finds here what it was about to do. One that `last.pt` does not know is
    dropped: its epoch comes again, on a GPU perhaps not quite as it was, and the best before it still stands.
    """
    weights, predictions = run.path / NEXT_BEST[0], run.path / NEXT_BEST[1]
    if not weights.is_file() or load_checkpoint(weights)["epoch"] != progress.best_epoch:
        weights.unlink(missing_ok=True)
        predictions.unlink(missing_ok=True)
        return
    if predictions.is_file():
        predictions.replace(run.path / "predictions_val.csv")
    weights.replace(run.path / "best.pt")


def load_unfinished(run: Run, identity: str) -> tuple[dict | None, str]:
    """What `last.pt` holds, if it is of this very training; else None. And in words, what was found.

    A file that is damaged, or of other settings, photos or code, is named as such: training then starts anew. A disk
    that cannot be read is another matter (OSError).
    """
    path = run.path / NAME
    if not path.is_file():
        return None, ""
    where = files.display_path(path)
    try:
        content = load_checkpoint(path)
        found = content["identity"]
    except (InputError, KeyError, TypeError):
        return None, f"{where} is damaged and cannot be gone on from: training starts anew"
    if found != identity:
        return None, f"{where} is of another training ({_difference(content, run)}): training starts anew"
    epochs = content["progress"]["epoch"]
    return content, f"resumed after epoch {epochs} of {run.config.epochs}, from {where}"


def _difference(content: dict, run: Run) -> str:
    """What tells a checkpoint's training from this one, in words."""
    settings = run.config.model_dump(include=set(TRAIN_SETTINGS))
    held = content.get("settings", {}).items()
    if differing := [
        f"{name} = {value}, here {settings[name]}" for name, value in held if settings.get(name, value) != value
    ]:
        return "; ".join(differing)
    if content.get("data_fingerprint") != run.data_fingerprint:
        return "other photos, labels or split"
    return "by other code, or from other starting weights"


def restore(content: dict, parts: dict[str, Any]) -> TrainingState:
    """Put the states `last.pt` holds into `parts`; returns how far the training had come."""
    for name, part in parts.items():
        part.load_state_dict(content["parts"][name])
    progress = TrainingState(**content["progress"])
    progress.best = tuple(progress.best)
    return progress
