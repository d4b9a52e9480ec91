"""Transfer: which part of a network learns in which epoch, and what a part that does not learn hands on."""

import torch
from torch import nn

from fruitlib.core.config import Config
from fruitlib.core.errors import InputError
from fruitlib.data import dataset
from fruitlib.data.dataset import Photos
from fruitlib.training import models
from fruitlib.training.models import Base, End2End, Ensemble, Normalized
from fruitlib.training.zoo import HEADS


def freeze_blocks(model: Normalized, config: Config, epoch: int = 1) -> list[str]:
    """Let learn what `freeze` and `unfreeze_every` allow in this epoch (from 1); returns its blocks and `head`.

    Gradual unfreezing starts from what `freeze` leaves and adds a block, from the head down, after every
    `unfreeze_every` epochs (Howard & Ruder 2018, ULMFiT, section 3.3).
    """
    blocks = blocks_of(model)
    still = {"none": 0, "backbone": len(blocks), "all_but_last_block": len(blocks) - 1}[config.freeze]
    if config.unfreeze_every:
        still = max(0, still - (epoch - 1) // config.unfreeze_every)
    for number, block in enumerate(blocks.values()):
        block.requires_grad_(number >= still)
    models.head_of(model).requires_grad_(True)
    return [*blocks, "head"][still:]


def set_modes(model: Normalized) -> None:
    """Training mode for what learns; frozen blocks in eval mode.

    So their BatchNorm uses the statistics it came with and leaves them as they are, and they drop nothing.
    """
    model.train()
    for block in blocks_of(model).values():
        block.train(any(p.requires_grad for p in block.parameters()))


@torch.no_grad()  # not inference_mode: the head is to learn from these
def backbone_features(model: Normalized, photos: Photos, batch_size: int = 64) -> torch.Tensor:
    """What the backbone, in eval mode, hands to the head for these photos: float32 (n, D) on the CPU."""
    caught: list[torch.Tensor] = []
    hook = models.head_of(model).register_forward_pre_hook(
        lambda module, inputs: caught.append(inputs[0].float().cpu())
    )
    device = next(model.parameters()).device
    model.eval()
    try:
        for pixels in dataset.in_parts(photos, batch_size, device):
            model(pixels)
    finally:
        hook.remove()
    return torch.cat(caught)


CONTAINERS = ("features", "trunk_output", "base")  # a row of parts, in torchvision's networks and in End2End
CAM_LAYERS = 4


def blocks_of(model: Normalized) -> dict[str, nn.Module]:
    """The backbone, from input to output: a block for each resolution, or for each layer of our own small networks.

    Each of the backbone's weights and BatchNorms is in exactly one block. Blocks by resolution make a block mean much
    the same in every family, whose parts number from 6 (ResNet) to 37 (VGG).
    """
    found = {}
    for stage in _stages(model.net):
        name = _block_name([name for name, part in stage.items() if _has_weights(part)])
        found[name] = next(iter(stage.values())) if len(stage) == 1 else nn.ModuleList(stage.values())
    return found


def target_layers(model: Normalized) -> dict[str, nn.Module]:
    """The layers Grad-CAM looks at, first to last: our convolutions; of larger networks the ends of the last 4 blocks.

    Raises:
        InputError: an ensemble, which has no layers that all members share.
    """
    if isinstance(model, Ensemble):
        raise InputError(f"an ensemble of {len(model.members)} models: Grad-CAM looks at single networks, at a run's")
    ends = [list(stage.items())[-1] for stage in _stages(model.net)]
    return dict([(name, part) for name, part in ends if not isinstance(part, nn.Linear)][-CAM_LAYERS:])


def _stages(net: nn.Module) -> list[dict[str, nn.Module]]:
    """The backbone's parts in running order, divided where a part lowers the resolution; only stages with weights."""
    stages: list[dict[str, nn.Module]] = []
    for name, part in _parts(net).items():
        if not stages or isinstance(net, (Base, End2End)) or _lowers_resolution(part):
            stages.append({})
        stages[-1][name] = part
    return [stage for stage in stages if any(map(_has_weights, stage.values()))]


def _parts(net: nn.Module) -> dict[str, nn.Module]:
    """The backbone's parts by name, in running order: the network's children, containers opened, pooling left out."""
    found = {}
    for name, child in net.named_children():
        if name in CONTAINERS:
            found |= {f"{name}{inner}" if inner.isdigit() else inner: part for inner, part in child.named_children()}
        elif name not in (*HEADS, "avgpool"):
            found[name] = child
    return found


def _lowers_resolution(part: nn.Module) -> bool:
    return any(getattr(module, "stride", 1) not in (1, (1, 1)) for module in part.modules())


def _has_weights(part: nn.Module) -> bool:
    return any(True for _ in part.parameters())


def _block_name(names: list[str]) -> str:
    """`layer1`, or `features6-8` for several parts; `stem` for a convolution and its BatchNorm."""
    if len(names) == 1:
        return names[0]
    if names in (["conv1", "bn1"], ["conv0", "norm0"]):
        return "stem"
    return f"{names[0]}-{names[-1].removeprefix('features')}"
