"""The networks: a three-convolution base, `End2End` around it, torchvision's by name; each with its CAM layers.

Every model takes float images (N, 3, S, S) in [0, 1] and gives logits (N, num_classes); normalisation is inside,
so that an exported file needs no instructions.
"""

from pathlib import Path

import torch
import torchvision
from torch import nn

from fruitlib import images, runtime
from fruitlib.config import BASE_CLASSES, Config
from fruitlib.images import Photos
from fruitlib.runtime import InputError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which torchvision's weights expect


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
    """A network preceded by `(x - mean) / std` per channel."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) in [0, 1] -> logits (N, num_classes)."""
        return self.net((images - self.mean) / self.std)


def build(config: Config, num_classes: int) -> Normalized:
    """The network that `config.model` names, freshly initialised or from the weights that the knobs name.

    Raises:
        InputError: weights that cannot be loaded, a base model for other than five classes.
    """
    if config.model == "base":
        if num_classes != BASE_CLASSES:
            raise InputError(f"model base has {BASE_CLASSES} classes, the photos have {num_classes}: use model end2end")
        return Normalized(Base())
    if config.model == "end2end":
        return Normalized(End2End(_trained_base(config.base_weights), num_classes))
    return Normalized(_from_torchvision(config.model, config.weights, num_classes))


def _trained_base(base_weights: str) -> Base:
    base = Base()
    if not base_weights:
        return base
    path = runtime.resolve(base_weights)
    if not path.is_file():
        raise InputError(f"base_weights {path}: no such file; `fruitlib sweep params/base_model.yaml` trains one")
    checkpoint = load_checkpoint(path)
    if checkpoint.get("model") != "base":
        raise InputError(f"base_weights {path}: holds model {checkpoint.get('model')}, not a base model")
    prefix = "net."
    base.load_state_dict({k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items()})
    return base


def _from_torchvision(name: str, weights: str, num_classes: int) -> nn.Module:
    chosen = torchvision.models.get_model_weights(name).DEFAULT if weights == "DEFAULT" else None
    try:
        net = torchvision.models.get_model(name, weights=chosen)
    except OSError as problem:  # no network, a full disk, a broken download
        raise InputError(f"weights DEFAULT of {name}: download failed ({problem}); weights none starts fresh") from None
    if name.startswith("resnet"):
        net.fc = nn.Linear(net.fc.in_features, num_classes)
    else:
        net.classifier[-1] = nn.Linear(net.classifier[-1].in_features, num_classes)
    return net


def load_checkpoint(path: Path) -> dict:
    """A checkpoint's dictionary of tensors, numbers and text (`weights_only`), on the CPU.

    Raises:
        InputError: a file that is no checkpoint.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:
        reason = str(problem).splitlines()[0][:120]
        raise InputError(f"{path}: not a checkpoint that can be read ({reason})") from None


def restore(path: Path) -> tuple[Normalized, dict]:
    """The trained model a checkpoint holds, in eval mode, and the checkpoint itself."""
    checkpoint = load_checkpoint(path)
    class_names = checkpoint["class_names"]
    config = Config(model=checkpoint["model"], image_size=checkpoint["image_size"])
    model = build(config, len(class_names))
    model.load_state_dict(checkpoint["state_dict"])
    return model.eval(), checkpoint


def target_layers(model: Normalized) -> dict[str, nn.Module]:
    """The layers Grad-CAM looks at, first to last: each convolution of the base, each stage of the larger nets."""
    net = model.net
    base = net.base if isinstance(net, End2End) else net
    if isinstance(base, Base):
        return {"conv1": base.conv1, "conv2": base.conv2, "conv3": base.conv3}
    if isinstance(net, torchvision.models.ResNet):
        return {name: getattr(net, name) for name in ("layer1", "layer2", "layer3", "layer4")}
    stages = [
        2,
        3,
        5,
        8,
    ]  # EfficientNet: the last stage at each of its resolutions, then the closing convolution
    return {f"features{index}": net.features[index] for index in stages}


def head(model: Normalized) -> nn.Module:
    """The last part, which turns features into logits; what stands before it is the backbone."""
    net = model.net
    names = ("head", "fc", "classifier")  # End2End; Base and ResNet; EfficientNet
    return next(getattr(net, name) for name in names if hasattr(net, name))


def freeze(model: Normalized, config: Config) -> None:
    """With `freeze: backbone`, only the head's weights learn."""
    if config.freeze == "backbone":
        model.requires_grad_(False)
        head(model).requires_grad_(True)


def learning(model: Normalized, config: Config) -> None:
    """Training mode; a frozen backbone stays in eval mode, so that its BatchNorm statistics stay as they are too."""
    model.train(config.freeze == "none")
    head(model).train()


@torch.no_grad()  # not inference_mode: the head is to learn from these
def features(model: Normalized, photos: Photos, batch_size: int = 64) -> torch.Tensor:
    """What the backbone hands to the head for these photos: float32 (n, D) on the CPU."""
    caught: list[torch.Tensor] = []
    hook = head(model).register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0].float().cpu()))
    device = next(model.parameters()).device
    model.eval()
    try:
        for pixels in images.in_parts(photos, batch_size, device):
            model(pixels)
    finally:
        hook.remove()
    return torch.cat(caught)


def fingerprint(model: nn.Module) -> str:
    """Twelve hex digits of all weights and buffers; tells fresh weights from those of another run."""
    tensors = [tensor.detach().cpu().contiguous().numpy().tobytes() for tensor in model.state_dict().values()]
    return runtime.fingerprint(*model.state_dict(), *tensors)


def num_parameters(model: nn.Module) -> int:
    """How many numbers training may change."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
