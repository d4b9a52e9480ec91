"""The recipe of a run whose head is fitted: features of a frozen network, a head by scikit-learn, the same files.

And the first weights of a head that is trained: those of the fitted logistic regression.
"""

import time

import numpy as np
import pandas as pd
import torch
from torch import nn

from fruitlib.core import files, machine
from fruitlib.core.errors import InputError
from fruitlib.core.progress import meter
from fruitlib.data import dataset
from fruitlib.data.dataset import Photos
from fruitlib.evaluation import metrics
from fruitlib.runs.run import Run
from fruitlib.training import (
    blocks,
    cams,
    evaluate,
    features,
    heads,
    losses,
    messages,
    models,
    precision,
    tracking,
    zoo,
)
from fruitlib.training.distributed import OnEpoch
from fruitlib.training.messages import say
from fruitlib.training.models import Normalized


def train_head(run: Run, on_epoch: OnEpoch) -> None:
    """All of it, from first line to last: features, a head fitted on them, validation photos predicted.

    What is written is what `train.train` writes after one epoch, and in the record the fitted head besides.
    """
    config, identity, started = run.config, run.identity("train"), time.perf_counter()
    class_names, device = run.class_names, machine.device()
    if config.processes > 1:
        say(f"processes = {config.processes}: of no use to head {config.head}, which one process fits")
    decoding = meter("photos decoded", say=messages.say_from_any_rank)
    train_photos, val_photos = dataset.load_photos(run, "train", decoding), dataset.load_photos(run, "val")

    # The network, frozen, and the features of all photos.
    machine.seed_everything(config.seed)
    model = models.build(config, len(class_names)).to(device, memory_format=torch.channels_last)
    initial_weights = models.fingerprint(model)
    blocks.freeze_blocks(model, config)
    say(f"photos: {train_photos.store.summary}", model.origin.summary)
    train_features = features.of_photos(model, train_photos, config.views)
    val_features = features.of_photos(model, val_photos, config.views)
    say(train_features.summary, f"{val_features.summary} (validation)" if len(val_photos) else "")

    # The head.
    head = fit_last(run, model, train_photos, train_features.values, config.head)
    put_last(model, head.module.to(device))
    say(head.summary)
    if model.origin.source == "fresh":
        say("weights = none: the frozen network is random; weights: package or DEFAULT would be pretrained ones")

    # Evaluate, as the model does: the mean over the views.
    loss_of = losses.build_validation_loss(config)
    logits = evaluate.of_features(model, train_features.values)
    row = {"epoch": 1} | evaluate.logits_row("train", logits, train_photos.labels, loss_of)
    logits = logits[:0]
    if len(val_photos):
        logits = evaluate.of_features(model, val_features.values)
        row |= evaluate.logits_row("val", logits, val_photos.labels, loss_of)
    seconds = time.perf_counter() - started
    row |= {"photos_per_second": len(train_photos) / seconds, "seconds": seconds}

    # Keep.
    tracking.write_history(run, [row])
    with tracking.Mirrors(run, []) as mirrors:
        mirrors.log(row)
    run.write_predictions("val", {"torch": metrics.softmax(logits.numpy().astype(np.float64))}, run.rows("val"))
    epochs = 1 if logits.numel() <= evaluate.KEPT_VALUES else 0
    run.write_epoch_predictions(evaluate.half_probs(logits).numpy()[None][:epochs])
    if config.cam_every and len(val_photos):
        cams.keep_cams(run, model, val_photos, epoch=1)
    with files.replacing(run.path / "best.pt") as partial:
        torch.save(models.checkpoint(model, config, class_names, epoch=1), partial)
    on_epoch(pd.DataFrame([row]))
    speed = precision.choose(config, device)
    run.complete(
        "train", identity, keep="last", kept_epoch=1, epochs=1, seconds=seconds,
        parameters=models.num_parameters(model), total_parameters=sum(weight.numel() for weight in model.parameters()),
        processes=1, data_fingerprint=run.data_fingerprint, initial_weights=initial_weights,
        weights=model.origin.record(), cache=train_photos.store.kind, train_photos=len(train_photos),
        photos_per_epoch=len(train_photos), **speed.names, speed="features once, the head fitted by scikit-learn",
        micro_batch="whole", head=head.record(),
    )  # fmt: skip


def start_head(run: Run, model: Normalized, photos: Photos) -> str:
    """Give a linear head the weights of the logistic regression on the network's features; a line on it.

    A fresh head's first gradients would change features that fit already ("linear probing, then fine-tuning", Kumar et
    al. 2022). Every process of a training may call this: the first one computes.
    """
    found = features.of_photos(model, photos, run.config.views)
    head = fit_last(run, model, photos, found.values, "logistic")
    last = parts_of(model)[-1]
    with torch.no_grad():
        last.weight.copy_(head.module.weight)
        last.bias.copy_(head.module.bias)
    return f"{found.summary}\nfirst weights of the head: {head.summary.removeprefix('head ')}"


def fit_last(run: Run, model: Normalized, photos: Photos, values: np.ndarray, kind: str) -> heads.Fitted:
    """A head of this kind for the place of the model's last layer, from features (n, views, D) of these photos.

    Layers that the library's own head has before its last one stay as they are, in evaluation mode.
    """
    before = nn.Sequential(*parts_of(model)[:-1]).eval()
    flat = torch.from_numpy(values.reshape(-1, values.shape[-1]))
    if len(before):
        device = next(model.parameters()).device
        with torch.no_grad():
            flat = torch.cat([before(part.to(device)).cpu() for part in flat.split(4096)])
    values, config, method = flat.reshape(*values.shape[:2], -1).numpy(), run.config, run.config.balance
    if not np.isfinite(values).all():
        what = f"weights {config.weights}: the network's features are NaN or infinite"
        raise InputError(f"{what}; name another file, or another model", "weights")
    if config.head != kind and method != "none":  # the start of a training, whatever it does in its batches
        method = "class_weights"
    groups = run.groups(photos.paths)
    return heads.fit(kind, values, photos.labels.numpy(), groups, run.class_names, method, config.seed)


def parts_of(model: Normalized) -> list[nn.Module]:
    """The layers of the model's head; the last one gives logits."""
    head = models.head_of(model)
    return list(head) if isinstance(head, nn.Sequential) else [head]


def put_last(model: Normalized, module: nn.Module) -> None:
    """Make `module` the last layer of the model's head, and the only one that counts as trained."""
    parts = [*parts_of(model)[:-1], module]
    for part in parts[:-1]:
        part.requires_grad_(False)
    setattr(model.net, zoo.head_name(model.net), parts[0] if len(parts) == 1 else nn.Sequential(*parts))
