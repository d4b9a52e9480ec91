"""timm's networks by name, through what timm makes public: created, described, and divided into features and a head.

timm is imported where it is used: most runs name none of its networks.
"""

import warnings
from collections.abc import Iterator

import torch
from torch import nn

from fruitlib.core import model_names
from fruitlib.core.errors import InputError, first_line
from fruitlib.training.weights import Facts

MOST_STAGES = 5
QUARTERS = 4  # a network whose resolution stays is divided evenly
# What a network raises when it is made for, or shown, a size it cannot take
WRONG_SIZE = (RuntimeError, AssertionError, ValueError, TypeError, IndexError, ArithmeticError)
# timm's file on GCViT says that NVIDIA's weights of it are, its configuration names the licence of the code
LICENCES = {"gcvit": "cc-by-nc-sa-4.0"}


class TimmNet(nn.Module):
    """A network of timm without its head, and `head`, which turns its features (N, `width`) into logits."""

    def __init__(self, body: nn.Module):
        super().__init__()
        body.reset_classifier(0)
        self.body, self.width, self.head = body, body.head_hidden_size, nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) normalised -> logits (N, num_classes)."""
        return self.head(self.body.forward_head(self.body.forward_features(images), pre_logits=True))

    def stages(self) -> list[dict[str, nn.Module]]:
        """The body's parts by name, in running order, divided after each of `_ends`; what is last has no end."""
        ends, stages = set(_ends(self.body)), [{}]
        for name, part in _each_once(list(_parts(self.body, ends))):
            stages[-1][name] = part
            if name in ends:
                stages.append({})
        if ends:
            rest = stages.pop()
            stages[-1] |= rest
        return stages

    def cam_layers(self) -> dict[str, nn.Module]:
        """The layers that Grad-CAM looks at: the ends of the stages.

        Where the resolution stays, each end is a block of a transformer. Then it is the block's first norm: what comes
        out of the last block has a gradient on the class token alone (as pytorch-grad-cam advises for transformers).
        """
        layers = {}
        for name in _ends(self.body):
            part = self.body.get_submodule(name)
            while isinstance(part, nn.ModuleList):  # which never runs itself
                name, part = f"{name}.{len(part) - 1}", part[-1]
            if len(_by_resolution(self.body)) < 3 and isinstance(getattr(part, "norm1", None), nn.Module):
                name, part = f"{name}.norm1", part.norm1
            layers[name] = part
        return layers


class _Own(nn.Module):
    """What a module holds itself, outside its parts: class token, position embeddings."""

    def __init__(self, owner: nn.Module):
        super().__init__()
        for name, parameter in owner.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in owner.named_buffers(recurse=False):
            self.register_buffer(name, buffer)


def _by_resolution(body: nn.Module) -> list[str]:
    """The last module at each resolution, in running order, as timm's `feature_info` tells them.

    Names that are no modules are left out.
    """
    known = dict(body.named_modules())
    ends = {info["reduction"]: info["module"] for info in body.feature_info if info["module"] in known}
    return [name for name in ends.values() if name]


def _ends(body: nn.Module) -> list[str]:
    """The modules after which the body is divided: where the resolution changes, or after each quarter of the blocks.

    Where `feature_info` names too few of either, the blocks are those of the container that holds the most weights.
    """
    if len(ends := _by_resolution(body)) >= 3:
        return ends[-MOST_STAGES:]
    known = dict(body.named_modules())
    blocks = list(dict.fromkeys(info["module"] for info in body.feature_info if info["module"] in known))
    if len(blocks) < 3:
        blocks = _largest_container(body)
    count = min(QUARTERS, len(blocks))
    return [blocks[len(blocks) * quarter // count - 1] for quarter in range(1, count + 1)]


def _largest_container(body: nn.Module) -> list[str]:
    """The names of what the container with the most weights holds, of those that hold at least four; or none."""
    containers = {
        name: module
        for name, module in body.named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) >= QUARTERS
    }
    if not containers:
        return []
    name = max(containers, key=lambda name: sum(weight.numel() for weight in containers[name].parameters()))
    return [f"{name}.{inner}" for inner, _ in containers[name].named_children()]


def _parts(module: nn.Module, ends: set[str], prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """A module's parts by name, in the order they are registered; one is opened where it holds an end.

    What an opened module holds itself comes first.
    """
    own = _Own(module)
    if any(True for _ in own.parameters()) or any(True for _ in own.buffers()):
        yield prefix and f"{prefix}own", own
    for name, child in module.named_children():
        name = prefix + name
        if any(end.startswith(f"{name}.") for end in ends):
            yield from _parts(child, ends, f"{name}.")
        else:
            yield name, child


def _each_once(parts: list[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
    """The parts without those whose weights all belong to later ones too, as CoaT's embeddings do to its blocks."""
    kept, held = [], set()
    for name, part in reversed(parts):
        weights = {id(weight) for weight in part.parameters()}
        if not weights or not weights <= held:
            kept.append((name, part))
        held |= weights
    return kept[::-1]


def facts(name: str) -> Facts:
    """What timm says about the published weights of a network."""
    settings = model_names.timm_settings(name) or {}
    side, center = model_names.own_view(f"{model_names.TIMM}{name}")
    mean, std = (tuple(settings[key]) if key in settings else getattr(Facts, key) for key in ("mean", "std"))
    url = settings.get("hf_hub_id") or settings.get("url") or ""
    licence = LICENCES.get(name.partition("_")[0]) or settings.get("license") or ""
    return Facts(mean, std, side, center, licence, url, _which_tag(name, settings))


def _which_tag(name: str, settings: dict) -> str:
    """Which of several published weights these are, where the name does not say it; or nothing."""
    tags = model_names.timm_tags(name)
    if "." in name or len(tags) < 2:
        return ""
    others = ", ".join(tag for tag in tags if tag != settings.get("tag"))
    return f"timm's default, {settings.get('tag')}; it also has {others}"


def create(name: str, published: bool) -> nn.Module:
    """timm's network with its own head, for images of its own size, and its published weights or fresh ones.

    Raises:
        InputError: there are none, or they cannot be downloaded or read.
    """
    import timm

    if published and not timm.get_pretrained_cfg(name).has_weights:
        others = [f"{name.partition('.')[0]}.{tag}" for tag in model_names.timm_tags(name)]
        others = [other for other in others if timm.get_pretrained_cfg(other).has_weights]
        remedy = f"name timm:{others[0]}" if others else "set weights: none, or name another network"
        raise InputError(f"weights DEFAULT of timm:{name}: timm publishes none; {remedy}", "weights")
    try:
        return timm.create_model(name, pretrained=published)
    except (OSError, RuntimeError, ValueError) as problem:
        if not published:
            raise
        remedy = "set weights: none, package, or the path of a file you have"
        raise InputError(f"weights DEFAULT of timm:{name}: {first_line(problem)[:160]}; {remedy}") from None


def for_side(net: nn.Module, name: str, side: int, keep: bool = True) -> nn.Module:
    """The network for images of `side` pixels, where it is not its own size: made again if timm makes it for one size.

    Its weights go along where they are to `keep` (else it has fresh ones): timm resamples position embeddings as it
    reads weights, so it is given the network's own to read.

    Raises:
        InputError: the network cannot take that size, or its weights cannot.
    """
    own = facts(name).side
    if side == own:
        return net
    try:
        if _is_for_one_size(name):
            net = _made_again(net, name, side, keep)
        _show(net, side)
        return net
    except WRONG_SIZE as problem:
        reason = first_line(problem)[:120] or type(problem).__name__
    if keep and _takes(name, side):
        message = f"timm cannot carry the weights of timm:{name} over from {own} pixels; set image_size: auto ({own})"
        raise InputError(f"image_size = {side}: {message}", "image_size")
    others = "".join(f", {other}" for other in _nearby_sides(net, name, side) if other != own)
    message = f"timm:{name} does not take it ({reason}); it takes {own} (auto){others}"
    raise InputError(f"image_size = {side}: {message}", "image_size")


def _is_for_one_size(name: str) -> bool:
    return bool((model_names.timm_settings(name) or {}).get("fixed_input_size"))


def _made_again(net: nn.Module, name: str, side: int, keep: bool) -> nn.Module:
    """timm's network for another size, with the weights of `net` or fresh ones."""
    import timm

    if not keep:
        return timm.create_model(name, img_size=side)
    state = net.state_dict()
    given = {"state_dict": state, "num_classes": net.num_classes, "label_offset": 0, "custom_load": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's, about how timm interpolates
        made = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=given, img_size=side)
    del made.pretrained_cfg["state_dict"]  # a second copy of all weights
    for key, tensor in made.state_dict().items():
        same = key in state and state[key].shape == tensor.shape
        if same and not tensor.is_meta and not torch.equal(state[key], tensor):
            raise ValueError(f"{key} does not keep its weights")
    return made


def _show(net: nn.Module, side: int) -> None:
    """Show the network an image of `side` pixels, which raises where it cannot take one."""
    if side % (patch := _patch(net)):
        raise ValueError(f"not a multiple of its patches of {patch} pixels")
    device, training = next(net.parameters()).device, net.training
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, side, side, device=device))
    net.train(training)


def _patch(net: nn.Module) -> int:
    """The side of the patches that an image is cut into, in pixels; 1 where the network cuts none."""
    size = getattr(getattr(net, "patch_embed", None), "patch_size", 1)
    return size[0] if isinstance(size, tuple) else size


def _nearby_sides(net: nn.Module, name: str, side: int) -> list[int]:
    """The next sides below and above `side` that the network takes with fresh weights; tried without memory."""
    step = _patch(net) if _patch(net) >= 8 else 32
    below = side // step * step
    return [other for other in (below, below + step) if other not in (0, side) and _takes(name, other)]


def _takes(name: str, side: int) -> bool:
    import timm

    size = {"img_size": side} if _is_for_one_size(name) else {}
    try:
        with torch.device("meta"):
            _show(timm.create_model(name, **size), side)
    except WRONG_SIZE:
        return False
    return True
