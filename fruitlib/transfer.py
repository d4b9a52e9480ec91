"""Transfer: which part of a network learns in which epoch, and what a part that does not learn hands on."""

import torch

from fruitlib import models
from fruitlib.core.config import Config
from fruitlib.data import dataset
from fruitlib.data.dataset import Photos
from fruitlib.models import Normalized


def freeze(model: Normalized, config: Config, epoch: int = 1) -> list[str]:
    """Let learn what `freeze` and `unfreeze_every` allow in this epoch (from 1); returns its blocks and `head`.

    Gradual unfreezing starts from what `freeze` leaves and adds a block, from the head down, after every
    `unfreeze_every` epochs (Howard & Ruder 2018, ULMFiT, section 3.3).
    """
    blocks = models.blocks(model)
    still = {"none": 0, "backbone": len(blocks), "all_but_last_block": len(blocks) - 1}[config.freeze]
    if config.unfreeze_every:
        still = max(0, still - (epoch - 1) // config.unfreeze_every)
    for number, block in enumerate(blocks.values()):
        block.requires_grad_(number >= still)
    models.head(model).requires_grad_(True)
    return [*blocks, "head"][still:]


def learning(model: Normalized) -> None:
    """Training mode for what learns; frozen blocks in eval mode.

    So their BatchNorm uses the statistics it came with and leaves them as they are, and they drop nothing.
    """
    model.train()
    for block in models.blocks(model).values():
        block.train(any(p.requires_grad for p in block.parameters()))


@torch.no_grad()  # not inference_mode: the head is to learn from these
def features(model: Normalized, photos: Photos, batch_size: int = 64) -> torch.Tensor:
    """What the backbone, in eval mode, hands to the head for these photos: float32 (n, D) on the CPU."""
    caught: list[torch.Tensor] = []
    hook = models.head(model).register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0].float().cpu()))
    device = next(model.parameters()).device
    model.eval()
    try:
        for pixels in dataset.in_parts(photos, batch_size, device):
            model(pixels)
    finally:
        hook.remove()
    return torch.cat(caught)
