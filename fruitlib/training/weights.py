"""Weights from files: read without running code in them, and loaded only where they fit."""

import io
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from fruitlib.core.errors import InputError, first_line

Triple = tuple[float, float, float]  # a number for red, green and blue
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


@dataclass(frozen=True)
class Facts:
    """What a library says about a network's published weights.

    `mean` and `std` normalise images in [0, 1]; `side` is in pixels, `center` the share of it that their evaluation
    kept; `licence` is "" where the library names none; `url` says where they come from, `choice` which of several
    they are.
    """

    mean: Triple = MEAN
    std: Triple = STD
    side: int = 224
    center: float = 1.0
    licence: str = ""
    url: str = ""
    choice: str = ""


@dataclass(frozen=True)
class Origin:
    """Where a network's weights come from, and the normalisation they need; `summary` is one line for people.

    `source` is fresh, DEFAULT, package, file or checkpoint. `taken` counts the entries that were loaded, `left` names
    those that were not. `proof` says what shows that they are right.
    """

    summary: str = "fresh weights"
    mean: Triple = MEAN
    std: Triple = STD
    source: str = "fresh"
    file: str = ""
    sha256: str = ""
    taken: int = 0
    left: tuple[str, ...] = ()
    licence: str = ""
    proof: str = ""

    def record(self) -> dict:
        """All of it by name, for a run's record."""
        return asdict(self)


def take_weights(
    module: nn.Module, state: dict[str, torch.Tensor], where: str, head_prefix: str | tuple = ()
) -> tuple[str, ...]:
    """Load `state` into `module`: what fits of its head, and all of the rest.

    Returns:
        the names of entries that were left: of a head for other classes.

    Raises:
        InputError: a tensor is missing, unknown or of another shape: these are another network's weights.
    """
    own = module.state_dict()
    fit = {name: tensor for name, tensor in state.items() if name in own and own[name].shape == tensor.shape}
    # older files lack BatchNorm's count of batches, which nothing here reads
    excused = [name for name in {*own, *state} if name.startswith(head_prefix) or name.endswith("num_batches_tracked")]
    if wrong := sorted({*own, *state} - {*fit, *excused}):
        reason = "is missing" if wrong[0] not in state else "is unknown" if wrong[0] not in own else "has another shape"
        count = f"{len(fit)} of {len(own)} entries fit, {wrong[0]} {reason}"
        raise InputError(f"{where}: weights of another network ({count}); name a file of this model")
    module.load_state_dict(own | fit)
    return tuple(name for name in state if name not in fit)


def load_checkpoint(path: Path) -> dict:
    """A checkpoint's dictionary of tensors, numbers and text (`weights_only`), on the CPU.

    Raises:
        InputError: not a checkpoint.
        OSError: the file cannot be read at the moment.
    """
    data = io.BytesIO(Path(path).read_bytes())  # torch.load itself raises OSError for some files that are cut short
    try:
        content = torch.load(data, map_location="cpu", weights_only=True)
    except MemoryError:  # not the file's fault
        raise
    except Exception as problem:
        raise InputError(
            f"{path}: not a readable checkpoint ({first_line(problem)[:120]}); name another file"
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a checkpoint but a {type(content).__name__}; name a best.pt or a state_dict")
    return content
