"""The networks: a three-convolution base, `End2End` around it, ensembles; built from the settings, saved and loaded.

Every model takes float images (N, 3, S, S) in [0, 1] and gives logits (N, num_classes); normalisation is inside,
so that an exported file needs no instructions. A model is a backbone, whose blocks (`blocks`) run one after the other,
and a head, which turns the backbone's features (N, D) into logits. torchvision's and timm's networks come from `zoo`;
`weights` reads files and fits what they hold to a network.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fruitlib.core import files, machine
from fruitlib.core.config import NETWORK_SETTINGS, PREPROCESS_SETTINGS, Config, make
from fruitlib.core.errors import InputError
from fruitlib.core.model_names import BASE_CLASSES, OURS
from fruitlib.training import downloads, heads, start, views, weight_files, zoo
from fruitlib.training.weight_files import WeightFile
from fruitlib.training.weights import Origin, load_checkpoint, take_weights
from fruitlib.training.zoo import head_name

FRESH = Origin()

machine.keep_freed_memory()  # of batches, whoever computes them


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
    """A network preceded by `(x - mean) / std` per channel, kept in its state.

    `origin` says where its weights come from. In evaluation mode its logits are the mean over the `views` of an image.
    """

    def __init__(self, net: nn.Module, origin: Origin = FRESH, views: str = "one"):
        super().__init__()
        self.net, self.origin, self.views = net, origin, views
        self.register_buffer("mean", torch.tensor(origin.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(origin.std).view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) in [0, 1] -> logits (N, num_classes)."""
        images = self._normalized(images)
        if self.training or self.views == "one":
            return self.net(images)
        seen = views.of(images, self.views)  # in one pass, so that an exported file holds the network once
        return self.net(torch.cat(seen)).unflatten(0, (len(seen), -1)).mean(0)

    def _normalized(self, images: torch.Tensor) -> torch.Tensor:
        rows_lie_together = images.is_contiguous(memory_format=torch.channels_last) and not images.requires_grad
        if not (self.training and rows_lie_together):
            return (images - self.mean) / self.std
        # The same numbers a row at a time: broadcasting over three values in turn takes three to six times as long.
        count, channels, height, width = images.shape
        rows = images.permute(0, 2, 3, 1).reshape(count, height, width * channels)
        mean, std = (values.flatten().expand(width, 3).flatten() for values in (self.mean, self.std))
        rows = (rows - mean).div_(std)
        return rows.view(count, height, width, channels).permute(0, 3, 1, 2)


class Ensemble(nn.Module):
    """Several models as one: the mean of their softmax (Lakshminarayanan et al. 2017, section 2.4)."""

    def __init__(self, members: list[Normalized]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) in [0, 1] -> log of the mean probabilities (N, num_classes), whose softmax is that mean."""
        log_probs = torch.stack([member(images).log_softmax(1) for member in self.members])
        return log_probs.logsumexp(0) - math.log(len(self.members))


def build(config: Config, num_classes: int) -> Normalized:
    """The network that `config.model` names, freshly initialised or from the weights that the settings name.

    `weights`: none; DEFAULT, the library's own, from its cache or downloaded into it; package, those of an installed
    package; or a path, to a checkpoint of the same model (its head is taken where it has the same shape) or to a file
    of weights (`weight_files`). Fresh weights are drawn from torch's global generator. `.origin` says what was loaded,
    and what proves it (`proof`).

    Raises:
        InputError: weights that cannot be loaded or belong to another model, a base model for other than five classes.
    """
    file = _start_weights(config)
    ours = file is not None and file.is_ours
    if config.model in OURS:
        model = _ours(config, num_classes)
        model.views = config.views
        if file and not ours:
            where = f"weights {file.path}"
            raise InputError(f"{where}: not a checkpoint of {config.model} written by fruitlib; name a best.pt")
    else:
        if config.weights == "DEFAULT":
            downloads.check(config.model)
        with downloads.limited():
            net = zoo.create(config.model, published=config.weights == "DEFAULT")
        origin = start.take(net, config, None if ours else file)
        model = Normalized(zoo.with_head(net, config, num_classes, keep=bool(origin.taken)), origin, config.views)
    if ours:
        model.origin = _load_own(model, file)
    return model


def _ours(config: Config, num_classes: int) -> Normalized:
    if config.model == "base":
        if num_classes != BASE_CLASSES:
            raise InputError(f"model base has {BASE_CLASSES} classes, the photos have {num_classes}: use model end2end")
        return Normalized(Base())
    base, origin = Base(), "fresh weights"
    if config.base_weights:
        path = files.resolve(config.base_weights)
        if not path.is_file():
            raise InputError(f"base_weights {path}: no such file; `fruitlib sweep params/base_model.yaml` trains one")
        content = _own_checkpoint(load_checkpoint(path), "base", f"base_weights {path}")
        state = content["state_dict"]
        state = {name.removeprefix("net."): tensor for name, tensor in state.items() if name.startswith("net.")}
        take_weights(base, state, f"base_weights {path}")
        origin = f"base from {files.display_path(path)}, fresh head"
    return Normalized(End2End(base, num_classes), Origin(origin))


def check_start_weights(config: Config) -> str:
    """Refuse weights that cannot be loaded, before anything is trained; DEFAULT ones are downloaded now.

    Returns:
        the line on where they come from.

    Raises:
        InputError: as `build` does.
    """
    if config.base_weights:
        return _ours(config, num_classes=2).origin.summary
    file = _start_weights(config)
    if file is not None and file.is_ours:  # its head is taken or not by the number of classes, which nobody knows yet
        return f"weights from {files.display_path(file.path)} (classes {', '.join(file.content['class_names'])})"
    with torch.random.fork_rng(devices=[]):
        return build(config, num_classes=2).origin.summary


def _start_weights(config: Config) -> WeightFile | None:
    """The file that `weights` names, a checkpoint of ours of this model or weights; None where it names no file."""
    if config.weights in ("none", "DEFAULT", "package"):
        return None
    path = files.resolve(config.weights)
    if not path.is_file():
        raise InputError(f"weights {path}: no such file; set none, DEFAULT, package or the path of a file")
    file = weight_files.read(path)
    if file.is_ours:
        _own_checkpoint(file.content, config.model, f"weights {path}")
    return file


def _own_checkpoint(content: dict, model: str, where: str) -> dict:
    """`content` if it is a checkpoint of a single `model`; else InputError."""
    if "network" not in content:
        raise InputError(f"{where}: neither a best.pt of fruitlib nor a state_dict; name one of them")
    if (held := content["network"]["model"]) != model:
        raise InputError(f"{where}: holds model {held}, not {model}; set model: {held}, or name another file")
    if "members" in content:
        raise InputError(f"{where}: an ensemble of {len(content['members'])}; name the best.pt of one of its runs")
    return content


def _load_own(model: Normalized, file: WeightFile) -> Origin:
    """Load a checkpoint's weights, its head only if all shapes match; returns where they come from."""
    path, content = file.path, file.content
    own, state, head_prefix = model.state_dict(), content["state_dict"], f"net.{head_name(model.net)}."
    heads = {name for name in {*own, *state} if name.startswith(head_prefix)}
    same = all(name in own and name in state and own[name].shape == state[name].shape for name in heads)
    kept = {name: tensor for name, tensor in state.items() if same or name not in heads}
    take_weights(model, kept, f"weights {path}", head_prefix)
    part, rest = ("all weights", "") if same else ("backbone", ", fresh head: the file's has another shape")
    where, normal = files.display_path(path), (tuple(buffer.flatten().tolist()) for buffer in (model.mean, model.std))
    summary = f"{part} from {where} (classes {', '.join(content['class_names'])}){rest}"
    left = tuple(name for name in state if name not in kept)
    return Origin(summary, *normal, "checkpoint", where, file.sha256, len(kept), left)


def checkpoint(model: Normalized | Ensemble, config: Config, class_names: list[str], **facts: Any) -> dict:
    """The content of a file that `restore` makes a model from: network and photo settings, classes, weights."""
    content = {
        "network": config.model_dump(include=set(NETWORK_SETTINGS)),
        "image_size": config.image_size,
        "preprocess": config.model_dump(include=set(PREPROCESS_SETTINGS)),
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
        InputError: a file that is not a checkpoint, or is of another version of fruitlib.
    """
    content = load_checkpoint(path)
    if "network" not in content:
        raise InputError(f"{path}: does not name its network (another version of fruitlib wrote it); train it again")
    states = content["members"] if "members" in content else [content["state_dict"]]
    members = []
    with torch.random.fork_rng(devices=[]):  # drawing fresh weights, soon replaced, must not change the random state
        for state in states:
            network = make(content["network"] | {"image_size": content["image_size"]}, str(path))
            members.append(build(network, len(content["class_names"])))
            heads.resize(members[-1], state)
            take_weights(members[-1], state, str(path))
    for member in members:
        member.origin = Origin(f"all weights from {files.display_path(path)}", source="checkpoint")
    model = Ensemble(members) if "members" in content else members[0]
    return model.eval().to(memory_format=torch.channels_last), content  # quicker for depthwise convolutions


def head_of(model: Normalized) -> nn.Module:
    """The last part, which turns features (N, D) into logits; everything before it is the backbone."""
    return getattr(model.net, head_name(model.net))


def fingerprint(model: nn.Module) -> str:
    """Twelve hex digits of all weights and buffers; differs between fresh weights and those of another run."""
    tensors = [tensor.detach().cpu().contiguous().numpy().tobytes() for tensor in model.state_dict().values()]
    return files.fingerprint(*model.state_dict(), *tensors)


def num_parameters(model: nn.Module) -> int:
    """How many numbers training can change."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
