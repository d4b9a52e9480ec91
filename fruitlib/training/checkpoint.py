"""`last.pt`: all that an interrupted training needs to resume as if it had never stopped.

It is written whole after every epoch and removed when training is complete. Random states are not in it: every epoch
seeds them from (seed, epoch, rank).
"""

from dataclasses import dataclass, field, fields
from typing import Any

import torch

from fruitlib.core import files
from fruitlib.core.config import TRAIN_SETTINGS
from fruitlib.core.errors import InputError
from fruitlib.runs import changes
from fruitlib.runs.run import Run
from fruitlib.training.weights import load_checkpoint

NAME = "last.pt"
NEXT_BEST = ("best.next.pt", "predictions_val.next.csv")  # written in this order, renamed in the other


@dataclass
class TrainingState:
    """How far a training has come."""

    epoch: int = 0  # the last one completed
    history: list[dict[str, float]] = field(default_factory=list)  # a row per epoch
    best: tuple[float, float] = (float("-inf"), float("-inf"))  # monitored score and -val_loss of the best epoch
    kept_epoch: int = 0  # the one whose weights are in best.pt; 0: none yet
    reference: float = float("-inf")  # early stopping waits for a score that exceeds this one by min_delta
    waited: int = 0  # epochs since it was
    micro_batch: int | None = None  # images at a time; None: a whole share of a batch
    val_probs: list[torch.Tensor] = field(default_factory=list)  # float16 (n, C) by epoch, of the validation photos


def save(run: Run, identity: str, state: TrainingState, parts: dict[str, Any], speed: dict[str, str]) -> None:
    """Write `last.pt`; then `best.next.pt`, where there is one, replaces `best.pt`.

    Args:
        parts: objects with a `state_dict`, by name.
        speed: `Speed.names`, the precision and memory format.
    """
    content = {
        "speed": speed,
        "identity": identity,
        "settings": run.config.model_dump(include=set(TRAIN_SETTINGS)),
        "data_fingerprint": run.data_fingerprint,
        "progress": {entry.name: getattr(state, entry.name) for entry in fields(state)},
        "parts": {name: part.state_dict() for name, part in parts.items()},
    }
    with files.replacing(run.path / NAME) as partial:
        torch.save(content, partial)
    settle(run, state)


def settle(run: Run, state: TrainingState) -> None:
    """Rename `best.next.pt` to `best.pt`, and its predictions likewise, if they are of `state.kept_epoch`.

    A training killed between writing `last.pt` and renaming does the renaming here. A next best that `last.pt` does not
    know is removed: its epoch comes again, on a GPU perhaps not quite as it was, and the best before it still holds.
    """
    weights, predictions = run.path / NEXT_BEST[0], run.path / NEXT_BEST[1]
    if not weights.is_file() or load_checkpoint(weights)["epoch"] != state.kept_epoch:
        weights.unlink(missing_ok=True)
        predictions.unlink(missing_ok=True)
        return
    if predictions.is_file():
        predictions.replace(run.path / "predictions_val.csv")
    weights.replace(run.path / "best.pt")


def load_unfinished(run: Run, identity: str) -> tuple[dict | None, str]:
    """What `last.pt` holds, if it is of this very training; else None. And a line that says which it was.

    A file that is damaged, or of other settings, photos or code, is reported, and training restarts. A disk that
    cannot be read raises OSError.
    """
    path = run.path / NAME
    if not path.is_file():
        return None, ""
    where = files.display_path(path)
    try:
        content = load_checkpoint(path)
        same = content["identity"] == identity
    except (InputError, KeyError, TypeError):
        return None, f"{where} is damaged and cannot be resumed; restarting training"
    if not same:
        return None, f"{where} is of another training ({_difference(content, run)}); restarting training"
    epochs = content["progress"]["epoch"]
    return content, f"resumed after epoch {epochs} of {run.config.epochs}, from {where}"


def _difference(content: dict, run: Run) -> str:
    """How a checkpoint's training differs from this one, in words."""
    same_photos = content.get("data_fingerprint") == run.data_fingerprint
    return changes.words(content.get("settings", {}), run.config, same_photos)


def restore(content: dict, parts: dict[str, Any]) -> TrainingState:
    """Load the states that `last.pt` holds into `parts`; returns how far the training had come."""
    for name, part in parts.items():
        part.load_state_dict(content["parts"][name])
    state = TrainingState(**content["progress"])
    state.best = tuple(state.best)
    return state
