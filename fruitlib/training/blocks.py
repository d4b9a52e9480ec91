"""A network's blocks: which of them train in which epoch, and which layers Grad-CAM looks at."""

from torch import nn

from fruitlib.core.config import Config
from fruitlib.core.errors import InputError
from fruitlib.training import models
from fruitlib.training.models import Base, End2End, Ensemble, Normalized
from fruitlib.training.timm_zoo import TimmNet
from fruitlib.training.zoo import HEADS


def freeze_blocks(model: Normalized, config: Config, epoch: int = 1) -> list[str]:
    """Unfreeze what `freeze` and `unfreeze_every` let train in this epoch (from 1), freeze the rest.

    Gradual unfreezing starts from what `freeze` leaves and adds a block, from the head down, after every
    `unfreeze_every` epochs (Howard & Ruder 2018, ULMFiT, section 3.3).

    Returns:
        the names of the blocks that train, and `head`.
    """
    blocks = blocks_of(model)
    frozen = {"none": 0, "backbone": len(blocks), "all_but_last_block": len(blocks) - 1}[config.freeze]
    if config.unfreeze_every:
        frozen = max(0, frozen - (epoch - 1) // config.unfreeze_every)
    for number, block in enumerate(blocks.values()):
        block.requires_grad_(number >= frozen)
    models.head_of(model).requires_grad_(True)
    return [*blocks, "head"][frozen:]


def set_modes(model: Normalized, config: Config) -> None:
    """Training mode for what trains; frozen blocks in eval mode.

    Their BatchNorm then uses its statistics without changing them, and dropout is off. What holds blocks, and may
    itself drop features, trains where one of them does. With `head_start: logistic` BatchNorm keeps its statistics
    everywhere: batches of few photos would replace them by others, to which the head was not fitted.
    """
    model.train()
    for module in model.net.modules():
        if _has_weights(module):
            module.training = _learns(module)
    for part in (*blocks_of(model).values(), models.head_of(model)):
        part.train(_learns(part))
    if config.head_start == "logistic":  # that head was fitted to features by the pretrained statistics
        for module in model.net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _learns(part: nn.Module) -> bool:
    return any(p.requires_grad for p in part.parameters())


CONTAINERS = ("features", "trunk_output", "base")  # of parts in a row, in torchvision's networks and in End2End
CAM_LAYERS = 4


def blocks_of(model: Normalized) -> dict[str, nn.Module]:
    """The backbone, from input to output: a block for each resolution, or for each layer of our own small networks.

    A transformer whose resolution stays is divided evenly. Each of the backbone's weights and BatchNorms is in exactly
    one block. Divided by resolution, blocks are comparable between families, whose parts number from 6 (ResNet) to 37
    (VGG).
    """
    blocks = {}
    for stage in _stages(model.net):
        name = _block_name([name for name, part in stage.items() if name and _has_weights(part)])
        blocks[name] = next(iter(stage.values())) if len(stage) == 1 else nn.ModuleList(stage.values())
    return blocks


def target_layers(model: Normalized) -> dict[str, nn.Module]:
    """The layers Grad-CAM looks at, first to last: our convolutions; of larger networks the ends of the last 4 blocks.

    They give (N, C, H, W), of timm also (N, H, W, C) or (N, tokens, C).

    Raises:
        InputError: an ensemble, which has no layers that all members share.
    """
    if isinstance(model, Ensemble):
        raise InputError(f"an ensemble of {len(model.members)} models: Grad-CAM looks at single networks, at a run's")
    if isinstance(model.net, TimmNet):
        return dict(list(model.net.cam_layers().items())[-CAM_LAYERS:])
    ends = [list(stage.items())[-1] for stage in _stages(model.net)]
    return dict([(name, part) for name, part in ends if not isinstance(part, nn.Linear)][-CAM_LAYERS:])


def _stages(net: nn.Module) -> list[dict[str, nn.Module]]:
    """The backbone's parts in running order, divided where a part lowers the resolution; only stages with weights."""
    stages: list[dict[str, nn.Module]] = net.stages() if isinstance(net, TimmNet) else []
    for name, part in _parts(net).items() if not stages else ():
        if not stages or isinstance(net, (Base, End2End)) or _lowers_resolution(part):
            stages.append({})
        stages[-1][name] = part
    return [stage for stage in stages if any(map(_has_weights, stage.values()))]


def _parts(net: nn.Module) -> dict[str, nn.Module]:
    """The backbone's parts by name, in running order: the network's children, containers opened, pooling left out."""
    parts = {}
    for name, child in net.named_children():
        if name in CONTAINERS:
            parts |= {f"{name}{inner}" if inner.isdigit() else inner: part for inner, part in child.named_children()}
        elif name not in (*HEADS, "avgpool"):
            parts[name] = child
    return parts


def _lowers_resolution(part: nn.Module) -> bool:
    return any(getattr(module, "stride", 1) not in (1, (1, 1)) for module in part.modules())


def _has_weights(part: nn.Module) -> bool:
    return any(True for _ in part.parameters())


def _block_name(names: list[str]) -> str:
    """`layer1`, or `features6-8`, `blocks.4-5` for several parts; `stem` for a convolution and its BatchNorm."""
    if len(names) == 1:
        return names[0]
    if names in (["conv1", "bn1"], ["conv0", "norm0"]):
        return "stem"
    within = "".join(names[0].rpartition(".")[:2]) or "features"
    return f"{names[0]}-{names[-1].removeprefix(within)}"
