"""timm: its datasets, loaders with prefetcher, networks, optimizer, and the loop of its train script.

As that script with --channels-last, and --amp --amp-dtype bfloat16 for bf16; colour jitter and smoothing are off.
"""

from contextlib import nullcontext
from functools import partial

import common
import timm
import torch
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from timm.utils import AverageMeter, accuracy
from torch import nn


def loaders(options) -> tuple:
    """Batches to train on, and to validate on."""
    alike = {
        "input_size": (3, options.side, options.side),
        "batch_size": options.batch,
        "num_workers": common.WORKERS,
        "device": torch.device("cpu"),
        "interpolation": "bilinear",
    }
    train = create_dataset("", options.folder, split="train", is_training=True)
    val = create_dataset("", options.folder, split="val")
    augmented = {"scale": common.CROP, "hflip": 0.5, "color_jitter": None}
    return (
        create_loader(train, is_training=True, **augmented, **alike),
        create_loader(val, is_training=False, crop_pct=1.0, **alike),
    )


def train(options, precision: str, clock: common.Clock) -> None:
    """Train, validate after every epoch, save."""
    torch.manual_seed(0)
    train_loader, val_loader = loaders(options)
    classes = len(train_loader.dataset.reader.class_to_idx)
    if options.network == common.THREE_CONVOLUTIONS:  # not one of timm's
        model = common.network(options.network, classes)
    else:
        model = timm.create_model(options.network, num_classes=classes).to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, opt="adam", lr=common.LR, weight_decay=0.0)
    loss_of = nn.CrossEntropyLoss()
    bf16 = partial(torch.autocast, device_type="cpu", dtype=torch.bfloat16)
    autocast = bf16 if precision == "bf16" else nullcontext
    for epoch in range(options.epochs):
        model.train()
        losses, right = AverageMeter(), AverageMeter()
        clock.start()
        for images, labels in train_loader:
            images = images.contiguous(memory_format=torch.channels_last)
            with autocast():
                loss = loss_of(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.update(loss.item(), len(images))
            clock.step(len(images))
        validate(model.eval(), val_loader, autocast, right)
        print(f"epoch {epoch + 1}: loss {losses.avg:.3f}, val accuracy {right.avg / 100:.3f}")
    torch.save(model.state_dict(), options.weights)


@torch.inference_mode()
def validate(model: nn.Module, loader, autocast, right: AverageMeter) -> None:
    """Add the accuracy on the validation photos."""
    for images, labels in loader:
        with autocast():
            logits = model(images.contiguous(memory_format=torch.channels_last))
        right.update(accuracy(logits, labels)[0].item(), len(images))


if __name__ == "__main__":
    common.main(train)
