"""What the peers' scripts share: arguments, networks, the clock. Needs torch and torchvision alone.

    python with_NAME.py FOLDER --network resnet18 --batch 64 --side 96 --epochs 3 --precisions fp32 bf16

FOLDER holds train/CLASS and val/CLASS. A script trains for so many epochs, validates after each, saves the weights, and
does so once for each precision. Its last line is JSON: for each precision the photos and the seconds of every epoch's
training, from before its first batch is asked for to after its last step; or under "why" the reason why it cannot.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable

import torch
import torchvision
from torch import nn

WORKERS = 2  # processes that load photos, where there are any
LR = 1e-3
CROP = (0.35, 1.0)  # share of the photo's area that a random crop has
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
THREE_CONVOLUTIONS = "3-conv"


class NotOffered(Exception):
    """The library does not offer this."""


class ThreeConvolutions(nn.Module):
    """The network of fruitlib's `model: end2end`, in plain torch."""

    def __init__(self, classes: int):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 5, stride=2, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(128 * 16, 5), nn.LeakyReLU(0.1), nn.Linear(5, classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) normalised -> logits (N, classes)."""
        return self.head(self.features(images).flatten(1))


def network(name: str, classes: int) -> nn.Module:
    """The network with random weights, channels last: the faster format for convolutions."""
    if name == THREE_CONVOLUTIONS:
        built = ThreeConvolutions(classes)
    else:
        built = torchvision.models.get_model(name, weights=None, num_classes=classes)
    return built.to(memory_format=torch.channels_last)


class Clock:
    """Photos and seconds of each epoch's training."""

    def __init__(self):
        self.photos, self.seconds, self.started = [], [], 0.0

    def start(self) -> None:
        """An epoch starts; its first batch has not been asked for yet."""
        self.started = time.perf_counter()
        self.photos.append(0)
        self.seconds.append(0.0)

    def step(self, photos: int) -> None:
        """A step on so many photos is done."""
        self.photos[-1] += photos
        self.seconds[-1] = time.perf_counter() - self.started


def main(train: Callable[[argparse.Namespace, str, Clock], None]) -> None:
    """Read the arguments, train once for each precision, print what the clocks say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--network", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--side", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--precisions", nargs="+", required=True)
    parser.add_argument("--weights", required=True, help="the file that the trained weights are saved to")
    options, found = parser.parse_args(), {}
    for precision in options.precisions:
        clock = Clock()
        try:
            took = train(options, precision, clock)
            found[precision] = {"photos": clock.photos, "seconds": clock.seconds} | (took or {})
        except NotOffered as why:
            found[precision] = {"why": str(why)}
    sys.stdout.flush()
    print(json.dumps(found))
