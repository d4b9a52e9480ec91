"""Which learning rate? A range test: the loss of a fresh network while its learning rate rises step by step."""

import contextlib
import itertools
import random
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch

from fruitlib.core import machine
from fruitlib.core.errors import InputError
from fruitlib.core.model_names import FITTED_HEADS
from fruitlib.data import balance, dataset
from fruitlib.data.batch import Batch
from fruitlib.data.loader import Feed
from fruitlib.runs.run import Run
from fruitlib.training import blocks, fitted, losses, models, optim

BELOW, HIGHEST = 1000, 10.0  # from a thousandth of the run's lr to the largest lr the setting allows
FEWEST = 20  # steps; with fewer there is no curve to read
SMOOTHING, WARM_UP = 0.9, 10  # share of the old smoothed loss in the new: about ten steps; steps before the table
DIVERGED = 4.0  # times the smallest loss


def find_lr(run: Run, steps: int) -> pd.DataFrame:
    """The learning-rate range test (Smith 2017, "Cyclical Learning Rates", section 3.3): lr and loss, a row a step.

    A network as `train` would build it in the run's first epoch trains on the run's training batches while the lr
    rises geometrically, by the same factor each step, from lr / 1000 to 10 over `steps` steps. The loss is that of the
    batch before its step, smoothed exponentially (0.9 a step) and corrected for the start at 0 as in Kingma and Ba
    2015, section 3; ten steps at the lowest lr, not in the table, come first, so that its mean is of several batches
    from the start. It ends early where the loss is more than 4 times its smallest value, NaN or infinite.

    With `layer_decay` lr is the head's, and the blocks keep their ratios to it. A frozen backbone computes its
    features each time (`features_once` saves time over epochs, not here), so without SMOTE's points; all in float32
    and one process. Neither the run's folder nor any random state of Python, NumPy or torch is changed.

    Raises:
        InputError: fewer than 20 steps, a head that is fitted, or too little GPU memory.
    """
    if steps < FEWEST:
        raise InputError(f"lr_find = {steps}: a curve needs at least {FEWEST} steps; set 100, or 0 for no range test")
    config, device = run.config, machine.device()
    if config.head in FITTED_HEADS:
        raise InputError(f"lr_find = {steps}: head {config.head} is fitted without a learning rate; set lr_find: 0")
    train_photos, num_classes = dataset.load_photos(run, "train"), len(run.class_names)
    start = config.lr / BELOW
    rows, smoothed, best = [], 0.0, float("inf")
    with _own_randomness(config.seed), contextlib.closing(_batches(Feed(train_photos, config, device))) as feed:
        model = models.build(config, num_classes).to(device, memory_format=torch.channels_last)
        blocks.freeze_blocks(model, config)
        if config.head_start == "logistic":
            fitted.start_head(run, model, train_photos)
        blocks.set_modes(model, config)
        weights = (
            balance.class_weights(train_photos.labels, run.class_names) if config.balance == "class_weights" else None
        )
        objective, optimizer = losses.build(config, weights), optim.build(config, model)
        ratios = [group["lr"] / config.lr for group in optimizer.param_groups]
        for step, batch in zip(range(-WARM_UP, steps), feed, strict=False):
            lr = start * (HIGHEST / start) ** (max(step, 0) / (steps - 1))
            for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
                group["lr"] = lr * ratio
            try:
                loss = _step(model, batch, objective, optimizer, config)
            except torch.OutOfMemoryError:
                raise InputError(
                    "GPU memory ran out in the range test, in fp32: set micro_batch, or lr_find: 0"
                ) from None
            smoothed = SMOOTHING * smoothed + (1 - SMOOTHING) * loss
            shown = smoothed / (1 - SMOOTHING ** (step + WARM_UP + 1))
            if not np.isfinite(loss) or shown > DIVERGED * best:
                break
            if step >= 0:
                best = min(best, shown)
                rows.append({"lr": lr, "loss": shown})
    return pd.DataFrame(rows, columns=["lr", "loss"])


def suggest(table: pd.DataFrame) -> float:
    """A tenth of the lr at which the loss was smallest; NaN where it never fell.

    At the minimum the loss is about to rise, so that lr is too high already; a tenth is the rule of Howard and Gugger
    2020 ("Deep Learning for Coders", chapter 5).

    It is a starting point, and rather a low one. On fruit304 (End2End, 100 steps, two splits, three seeds)
    it named 0.0001 to 0.003 for adam and 0.0009 to 0.003 for sgd; trainings of 15 epochs did best around 0.003, and
    0.01 to 0.03. The other common rule, the steepest fall, varied 130-fold and 50-fold: with batches of a few photos,
    differences between neighbouring steps are mostly noise.
    """
    if len(table) == 0 or (lowest := int(table["loss"].to_numpy().argmin())) == 0:
        return float("nan")
    return float(table["lr"].iloc[lowest]) / 10


def _batches(feed: Feed) -> Iterator[Batch]:
    """Epoch after epoch, for ever; closing it ends the feed's thread."""
    for epoch in itertools.count(1):
        yield from feed.epoch(epoch)


def _step(model, batch: Batch, objective: losses.Objective, optimizer: torch.optim.Optimizer, config) -> float:
    """One step of training; the batch's loss before it."""
    optimizer.zero_grad(set_to_none=True)
    loss = 0.0
    for part in batch.parts(None if config.micro_batch == "auto" else config.micro_batch):
        share = objective(model(part.images), part)
        share.backward()
        loss += share.item()
    if config.clip_norm:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimizer.step()
    return loss


@contextlib.contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """Seed everything inside, and leave all random states as they were."""
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            machine.seed_everything(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
