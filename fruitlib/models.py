"""The networks: a three-convolution base, `End2End` around it, torchvision's by name; their weights and checkpoints.

Every model takes float images (N, 3, S, S) in [0, 1] and gives logits (N, num_classes); normalisation is inside,
so that an exported file needs no instructions. A model is a backbone, whose `blocks` run one after the other, and a
`head`, which turns the backbone's features (N, D) into logits.
"""

import io
import math
import pickle
import re
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models import VGG, ConvNeXt

from fruitlib.core import files
from fruitlib.core.config import BASE_CLASSES, NETWORK_KNOBS, OURS, PREPROCESS_KNOBS, Config, make
from fruitlib.core.errors import InputError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
HEADS = ("head", "fc", "classifier")  # what torchvision and End2End call the last part
CONTAINERS = ("features", "trunk_output", "base")  # a row of parts, in torchvision's networks and in End2End
CAM_LAYERS = 4
GAP_DROPOUT = 0.5  # of the gap_bn head, where `dropout` leaves it to the model


class Base(nn.Module):
    """Three convolutions, a 4 by 4 average pooling, five classes.

    No BatchNorm, so that one process and many compute the same; sixteen cells rather than one average, since where a
    stem or a calyx sits tells fruits apart.
    """

    def __init__(self, num_classes: int = BASE_CLASSES):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 128, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.grid = nn.AdaptiveAvgPool2d(4)
        self.fc = nn.Linear(128 * 16, num_classes)
        for conv in (self.conv1, self.conv2, self.conv3):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) normalised -> logits (N, num_classes)."""
        x = self.pool(torch.relu(self.conv1(images)))
        x = self.pool(torch.relu(self.conv2(x)))
        x = torch.relu(self.conv3(x))
        return self.fc(self.grid(x).flatten(1))


class End2End(nn.Module):
    """`head(act(base(x)))`: a base model's logits, an activation, and a linear head for the classes at hand."""

    def __init__(self, base: nn.Module, num_classes: int, base_classes: int = BASE_CLASSES):
        super().__init__()
        self.base = base
        self.act = nn.LeakyReLU(0.1)  # a plain ReLU can shut off all of so few units for good
        self.head = nn.Linear(base_classes, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) -> logits (N, num_classes)."""
        return self.head(self.act(self.base(images)))


class Normalized(nn.Module):
    """A network preceded by `(x - mean) / std` per channel, kept in its state; `said` tells where its weights began."""

    def __init__(self, net: nn.Module, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD):
        super().__init__()
        self.net = net
        self.said = ""
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) in [0, 1] -> logits (N, num_classes)."""
        return self.net((images - self.mean) / self.std)


class Ensemble(nn.Module):
    """Several models that answer together: the mean of their softmax (Lakshminarayanan et al. 2017, section 2.4)."""

    def __init__(self, members: list[Normalized]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) in [0, 1] -> log of the mean probabilities (N, num_classes), whose softmax is that mean."""
        answers = torch.stack([member(images).log_softmax(1) for member in self.members])
        return answers.logsumexp(0) - math.log(len(self.members))


# ---- building ----


def build(config: Config, num_classes: int) -> Normalized:
    """The network that `config.model` names, freshly initialised or from the weights that the knobs name.

    `weights`: none; DEFAULT, torchvision's own, from its cache or downloaded into it; or a path, to a checkpoint of
    the same model (its head is taken where it has the same shape) or to a state_dict of torchvision's. Fresh weights
    are drawn from torch's global generator. What was loaded is told in `.said`.

    Raises:
        InputError: weights that cannot be loaded or belong to another model, a base model for other than five classes.
    """
    path, content = _start(config)
    ours = "network" in content
    if config.model in OURS:
        model = _ours(config, num_classes)
        if content and not ours:
            raise InputError(f"weights {path}: no checkpoint of {config.model} written by fruitlib")
    else:
        model = _from_torchvision(config, num_classes, path, {} if ours else content)
    if ours:
        model.said = _continue(model, content, path)
    return model


def _ours(config: Config, num_classes: int) -> Normalized:
    if config.model == "base":
        if num_classes != BASE_CLASSES:
            raise InputError(f"model base has {BASE_CLASSES} classes, the photos have {num_classes}: use model end2end")
        return _said(Normalized(Base()), "fresh weights")
    base, said = Base(), "fresh weights"
    if config.base_weights:
        path = files.resolve(config.base_weights)
        if not path.is_file():
            raise InputError(f"base_weights {path}: no such file; `fruitlib sweep params/base_model.yaml` trains one")
        content = _own_checkpoint(load_checkpoint(path), "base", f"base_weights {path}")
        state = content["state_dict"]
        state = {name.removeprefix("net."): tensor for name, tensor in state.items() if name.startswith("net.")}
        _take(base, state, f"base_weights {path}")
        said = f"base from {files.display_path(path)}, fresh head"
    return _said(Normalized(End2End(base, num_classes)), said)


def _said(model: Normalized, said: str) -> Normalized:
    model.said = said
    return model


def _from_torchvision(config: Config, num_classes: int, path: Path, state: dict[str, torch.Tensor]) -> Normalized:
    """torchvision's network with a new last layer or head; the rest fresh, DEFAULT, or as in `state`."""
    name, published = config.model, torchvision.models.get_model_weights(config.model).DEFAULT
    chosen = config.weights == "DEFAULT"
    net = _pretrained(name, published) if chosen else torchvision.models.get_model(name, weights=None)
    new = "last layer" if config.head == "linear" else "head"
    said = f"torchvision's {published}, fresh {new}" if chosen else "fresh weights"
    if state:
        # DenseNet's published files still have the dots that its modules' names have lost
        state = {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=\d)", r"\1", key): state[key] for key in state}
        _take(net, state, f"weights {path}", f"{_head_name(net)}.")
        said = f"weights from {files.display_path(path)}, fresh {new}"
    _replace_head(net, config, num_classes)
    # Weights want the mean and spread they were trained with, which are not ImageNet's for every model.
    expects = published.transforms() if chosen or state else None
    return _said(Normalized(net, expects.mean, expects.std) if expects else Normalized(net), said)


def _pretrained(name: str, weights: torchvision.models.WeightsEnum) -> nn.Module:
    """torchvision's network with its published weights, from its cache or downloaded into it."""
    try:
        return torchvision.models.get_model(name, weights=weights)
    except OSError as problem:  # no network, a full disk
        file = Path(torch.hub.get_dir(), "checkpoints", weights.url.rsplit("/", 1)[1])
        cure = f"put {file.name} into {file.parent}, or set weights: none"
        raise InputError(f"weights DEFAULT of {name}: download failed ({problem}); {cure}") from None
    except (RuntimeError, EOFError, pickle.UnpicklingError) as problem:
        file = Path(torch.hub.get_dir(), "checkpoints", weights.url.rsplit("/", 1)[1])
        raise InputError(
            f"weights DEFAULT of {name}: {file} is broken ({_reason(problem)}); remove it and try again"
        ) from None


def _replace_head(net: nn.Module, config: Config, num_classes: int) -> None:
    """Put the head that the knobs describe in the place of torchvision's, and flat features before it."""
    name = _head_name(net)
    parts = list(old) if isinstance(old := getattr(net, name), nn.Sequential) else [old]
    width = next(part.in_features for part in parts if isinstance(part, nn.Linear))
    if isinstance(net, ConvNeXt):  # alone in handing on (N, D, 1, 1)
        net.avgpool = nn.Sequential(net.avgpool, nn.Flatten())
        parts.insert(0, nn.Unflatten(1, (width, 1, 1)))
    if config.head == "linear":
        new = _linear_head(parts, config.dropout, num_classes)
    else:
        if isinstance(net, VGG):  # alone in pooling to several cells
            width //= math.prod(net.avgpool.output_size)
            net.avgpool = nn.AdaptiveAvgPool2d(1)
        new = _gap_bn_head(width, config, num_classes)
    setattr(net, name, new[0] if len(new) == 1 else nn.Sequential(*new))


def _linear_head(parts: list[nn.Module], dropout: float | str, num_classes: int) -> list[nn.Module]:
    """torchvision's classifier with a new last layer, its Dropouts as wanted; one is added where there is none."""
    parts = [*parts[:-1], nn.Linear(parts[-1].in_features, num_classes)]
    if dropout == "auto":
        return parts
    if not any(isinstance(part, nn.Dropout) for part in parts):
        parts.insert(-1, nn.Dropout())
    for part in parts:
        if isinstance(part, nn.Dropout):
            part.p = dropout
    return parts


def _gap_bn_head(width: int, config: Config, num_classes: int) -> list[nn.Module]:
    """BatchNorm, dropout and a linear layer over pooled features; with `head_width` a hidden layer before them."""
    parts: list[nn.Module] = [nn.BatchNorm1d(width)]
    if hidden := config.head_width:
        parts += [nn.Linear(width, hidden), nn.ReLU(), nn.BatchNorm1d(hidden)]
    dropout = GAP_DROPOUT if config.dropout == "auto" else config.dropout
    return [*parts, nn.Dropout(dropout), nn.Linear(hidden or width, num_classes)]


# ---- weights from files ----


def check_start(config: Config) -> None:
    """Refuse weights that could not be started from, before anything is trained; DEFAULT ones are downloaded now.

    Raises:
        InputError: as `build` does.
    """
    _start(config)
    if config.base_weights:
        _ours(config, num_classes=2)
    if config.weights == "DEFAULT":
        _pretrained(config.model, torchvision.models.get_model_weights(config.model).DEFAULT)


def _start(config: Config) -> tuple[Path, dict]:
    """The file that `weights` names and what it holds: a checkpoint of ours of this model, a state_dict, or nothing."""
    if config.weights in ("none", "DEFAULT"):
        return Path(), {}
    path = files.resolve(config.weights)
    if not path.is_file():
        raise InputError(f"weights {path}: no such file; wanted: none, DEFAULT or a checkpoint's path")
    content = load_checkpoint(path)
    if content and all(isinstance(value, torch.Tensor) for value in content.values()):
        return path, content
    return path, _own_checkpoint(content, config.model, f"weights {path}")


def _own_checkpoint(content: dict, model: str, where: str) -> dict:
    """`content` where it is a checkpoint of a single `model`; anything else is named."""
    if "network" not in content:
        raise InputError(f"{where}: neither a best.pt of this fruitlib nor a state_dict; name one of them")
    if (held := content["network"]["model"]) != model:
        raise InputError(f"{where}: holds model {held}, not {model}: set model: {held}, or name another file")
    if "members" in content:
        raise InputError(f"{where}: an ensemble of {len(content['members'])}; name the best.pt of one of its runs")
    return content


def _continue(model: Normalized, content: dict, path: Path) -> str:
    """Take a checkpoint's weights, its head only where every shape is the same; says which of the two it was."""
    own, state, head_prefix = model.state_dict(), content["state_dict"], f"net.{_head_name(model.net)}."
    heads = {name for name in {*own, *state} if name.startswith(head_prefix)}
    same = all(name in own and name in state and own[name].shape == state[name].shape for name in heads)
    kept = {name: tensor for name, tensor in state.items() if same or name not in heads}
    _take(model, kept, f"weights {path}", head_prefix)
    part, rest = ("all weights", "") if same else ("backbone", ", fresh head: the file's has another shape")
    return f"{part} from {files.display_path(path)} (classes {', '.join(content['class_names'])}){rest}"


def _take(module: nn.Module, state: dict[str, torch.Tensor], where: str, head_prefix: str | tuple = ()) -> None:
    """Load `state` into `module`: of its head whatever fits, of everything else all.

    Raises:
        InputError: something lacks, is too much or has another shape: these are another network's weights.
    """
    own = module.state_dict()
    fit = {name: tensor for name, tensor in state.items() if name in own and own[name].shape == tensor.shape}
    # older files lack BatchNorm's count of batches, which nothing here reads
    excused = [name for name in {*own, *state} if name.startswith(head_prefix) or name.endswith("num_batches_tracked")]
    if wrong := sorted({*own, *state} - {*fit, *excused}):
        reason = "is missing" if wrong[0] not in state else "is unknown" if wrong[0] not in own else "has another shape"
        raise InputError(f"{where}: the weights of another network ({wrong[0]} {reason}); name a file of this model's")
    module.load_state_dict(own | fit)


def load_checkpoint(path: Path) -> dict:
    """A checkpoint's dictionary of tensors, numbers and text (`weights_only`), on the CPU.

    Raises:
        InputError: a file that is no checkpoint.
        OSError: a file that cannot be read just now.
    """
    data = io.BytesIO(Path(path).read_bytes())  # torch.load itself raises OSError for some files that are cut short
    try:
        content = torch.load(data, map_location="cpu", weights_only=True)
    except MemoryError:  # says nothing against the file
        raise
    except Exception as problem:
        raise InputError(f"{path}: not a checkpoint that can be read ({_reason(problem)})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a checkpoint but a {type(content).__name__}; name a best.pt or a state_dict")
    return content


def _reason(problem: Exception) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0][:120]


def checkpoint(model: Normalized | Ensemble, config: Config, class_names: list[str], **facts: Any) -> dict:
    """What a file needs to hold for `restore` to give the model back: network and photo knobs, classes, weights."""
    content = {
        "network": config.model_dump(include=set(NETWORK_KNOBS)),
        "image_size": config.image_size,
        "preprocess": config.model_dump(include=set(PREPROCESS_KNOBS)),
        "class_names": list(class_names),
        **facts,
    }
    if isinstance(model, Ensemble):
        return content | {"members": [_on_cpu(member) for member in model.members]}
    return content | {"state_dict": _on_cpu(model)}


def _on_cpu(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}


def restore(path: Path) -> tuple[Normalized | Ensemble, dict]:
    """The trained model (or ensemble) that a checkpoint holds, in eval mode, and the checkpoint itself.

    Raises:
        InputError: a file that is no checkpoint, or one of another version of fruitlib.
    """
    content = load_checkpoint(path)
    if "network" not in content:
        raise InputError(f"{path}: says nothing of its network (another version of fruitlib wrote it): train it again")
    states = content["members"] if "members" in content else [content["state_dict"]]
    members = []
    with torch.random.fork_rng(devices=[]):  # the fresh weights, soon replaced, are not to cost anybody's random state
        for state in states:
            members.append(build(make(content["network"], str(path)), len(content["class_names"])))
            _take(members[-1], state, str(path))
    for member in members:
        member.said = f"all weights from {files.display_path(path)}"
    model = Ensemble(members) if "members" in content else members[0]
    return model.eval(), content


# ---- parts of a network ----


def head(model: Normalized) -> nn.Module:
    """The last part, which turns features (N, D) into logits; what stands before it is the backbone."""
    return getattr(model.net, _head_name(model.net))


def _head_name(net: nn.Module) -> str:
    return next(name for name in HEADS if hasattr(net, name))


def blocks(model: Normalized) -> dict[str, nn.Module]:
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


def fingerprint(model: nn.Module) -> str:
    """Twelve hex digits of all weights and buffers; tells fresh weights from those of another run."""
    tensors = [tensor.detach().cpu().contiguous().numpy().tobytes() for tensor in model.state_dict().values()]
    return files.fingerprint(*model.state_dict(), *tensors)


def num_parameters(model: nn.Module) -> int:
    """How many numbers training may change."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
