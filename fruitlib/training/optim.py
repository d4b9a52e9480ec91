"""How weights change: torch's optimizers with groups by block, learning rates step by step, averaged weights."""

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fruitlib.core.config import Config
from fruitlib.training import blocks, models

FLOOR = 0.01  # cosine and exponential end at this share of the peak
RISE = 0.3  # of one_cycle, as a share of all steps; with the two below it is torch's OneCycleLR
CYCLE_START, CYCLE_END = 1 / 25, 1 / 25e4  # shares of the peak


def build(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """torch's optimizer that `config.optimizer` names, over the parameters that train, in named groups.

    A group is a block of the backbone or the head, in two parts: weights, and biases and norms (one dimension or
    none), which are never decayed (He et al. 2019, "Bag of Tricks", section 3.1). The head learns at `lr`, the block
    before it at lr · layer_decay, the one before that at lr · layer_decay² … (Howard and Ruder 2018, section 3.2).
    Where layer_decay is 1, the whole network is one block: an optimizer works through its groups one by one, and ten of
    them took three times as long as two on our own network.

    Call it after `blocks.freeze_blocks`. With `unfreeze_every` everything is in it from the start: a frozen parameter
    has no gradient, and torch's optimizers leave such a parameter, and its momentum, alone. Fused optimizers change all
    weights in one call, which on small networks saves a twentieth of a step.
    """
    groups = parameter_groups(config, model)
    lr, momentum = config.lr, config.momentum
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr, momentum=momentum, nesterov=momentum > 0, fused=True)
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr, momentum=momentum)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[config.optimizer](groups, lr, fused=True)


def parameter_groups(config: Config, model: nn.Module) -> list[dict]:
    """The groups of `build`, input to output: name, params, lr, weight_decay of each. The last has the head's lr."""
    parts = {**blocks.blocks_of(model), "head": models.head_of(model)}
    if config.layer_decay == 1:
        parts = {"network": model}
    groups = []
    for distance, (name, part) in zip(reversed(range(len(parts))), parts.items(), strict=True):
        some = [p for p in part.parameters() if p.requires_grad or config.unfreeze_every]
        lr = config.lr * config.layer_decay**distance
        for label, decay, params in (
            (name, config.weight_decay, [p for p in some if p.squeeze().ndim > 1]),
            (f"{name}, biases and norms", 0.0, [p for p in some if p.squeeze().ndim <= 1]),
        ):
            if params:
                groups.append({"name": label, "params": params, "lr": lr, "weight_decay": decay})
    return groups


def factor(config: Config, step: int, steps_per_epoch: int) -> float:
    """The learning rate of optimizer step `step` (0 is the first) as a share of its peak, apart from plateau's cuts.

    Warm-up rises linearly over W = warmup_epochs · steps_per_epoch steps, (step + 1) / (W + 1), and meets the peak as
    it ends. Then, with t from 0 to 1 over the steps that remain:
    step: 0.1 ^ (thirds passed), in whole epochs; exponential: 0.01 ^ t; cosine: 0.01 + 0.99 · (1 + cos πt) / 2
    (Loshchilov and Hutter 2017, without restarts); constant and plateau: 1. one_cycle (Smith and Topin 2018, in
    torch's form) rises by itself: half a cosine from 1/25 to 1, and another down to 1/250,000; the rise takes 30 % of
    the steps, or the W of warm-up where those are given.
    """
    warm, last = config.warmup_epochs * steps_per_epoch, config.epochs * steps_per_epoch - 1
    if config.scheduler == "one_cycle":
        peak = warm or max(RISE * (last + 1) - 1, 0)
        if step < peak:
            return _half_cosine(CYCLE_START, 1, step / peak)
        return _half_cosine(1, CYCLE_END, _share(step - peak, last - peak))
    if step < warm:
        return (step + 1) / (warm + 1)
    t = _share(step - warm, last - warm)
    if config.scheduler == "step":
        third = math.ceil((config.epochs - config.warmup_epochs) / 3) * steps_per_epoch
        return 0.1 ** ((step - warm) // third)
    if config.scheduler == "exponential":
        return FLOOR**t
    return _half_cosine(1, FLOOR, t) if config.scheduler == "cosine" else 1.0


def _half_cosine(start: float, end: float, t: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * t)) / 2


def _share(done: float, all_of_it: float) -> float:
    return min(done / all_of_it, 1.0) if all_of_it > 0 else 0.0


class Schedule:
    """Sets each group's learning rate: its peak · `factor` · plateau's cuts. Momentum stays what the setting says.

    The lr is a function of the steps taken, so a resumed schedule continues exactly. torch's own classes do not do:
    CosineAnnealingLR and OneCycleLR cannot end each group at a share of its own peak or follow a warm-up, SequentialLR
    refuses ReduceLROnPlateau, and all of them warn where fp16's scaler skips the first step. Tests hold `factor` to
    torch's curves where both exist.
    """

    def __init__(self, config: Config, optimizer: torch.optim.Optimizer, steps_per_epoch: int):
        """Take each group's lr, as `build` made it, as its peak, and set the lr of the first step."""
        self.config, self.optimizer, self.steps_per_epoch = config, optimizer, steps_per_epoch
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.taken = 0
        # torch's plateau lowers the lr of a stand-in from 1; the real ones follow it
        self.stand_in = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        patience = max(2, config.epochs // 10)
        self.plateau = ReduceLROnPlateau(
            self.stand_in, "max", patience=patience, threshold=config.min_delta, threshold_mode="abs"
        )
        self._set()

    def step(self) -> None:
        """Call after every optimizer step, also after one that fp16's scaler skipped."""
        self.taken += 1
        self._set()

    def end_epoch(self, score: float) -> None:
        """Call after every epoch with the monitored score, higher is better.

        plateau divides all rates by 10 after more than max(2, epochs // 10) epochs without a gain of `min_delta`;
        epochs of warm-up do not count. Other schedules ignore the score.
        """
        if self.config.scheduler == "plateau" and self.taken > self.config.warmup_epochs * self.steps_per_epoch:
            self.plateau.step(score)
            self._set()

    @property
    def lr(self) -> float:
        """The head's learning rate at the next step."""
        return self.optimizer.param_groups[-1]["lr"]

    def _set(self) -> None:
        share = factor(self.config, self.taken, self.steps_per_epoch) * self.stand_in.param_groups[0]["lr"]
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * share

    def state_dict(self) -> dict:
        """Steps taken, peaks, and plateau's state: numbers only."""
        plateau = {"plateau": self.plateau.state_dict(), "cut": self.stand_in.param_groups[0]["lr"]}
        return {"taken": self.taken, "peaks": self.peaks, **plateau}

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict`; sets the optimizer's rates, whether its own state is loaded before or after."""
        self.taken, self.peaks = state["taken"], list(state["peaks"])
        self.plateau.load_state_dict(state["plateau"])
        self.stand_in.param_groups[0]["lr"] = state["cut"]
        self._set()


class Average:
    """The exponential moving average of a model's weights, `model`, by torch's `AveragedModel` (Polyak and Juditsky
    1992 is the idea of averaging).

    After the first update it is a copy of the weights; update n + 1 makes it d · average + (1 - d) · weights with
    d = min(config.ema, (1 + n) / (10 + n)): short runs have too few steps for 0.999 to forget the first one
    (TensorFlow's ExponentialMovingAverage with num_updates). BatchNorm's statistics are averaged alike, as timm does:
    copied ones would belong to the newest weights, whose activations the averaged ones do not produce.
    """

    def __init__(self, config: Config, model: nn.Module):
        """Copy `model`, which must not be wrapped by DDP or anything else yet."""

        def average(averaged: list, current: list, updates: torch.Tensor) -> None:
            n = int(updates)
            get_ema_multi_avg_fn(min(config.ema, (1 + n) / (10 + n)))(averaged, current, n)

        self.live = model
        self.averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)

    @property
    def model(self) -> nn.Module:
        """The averaged model, which is evaluated and kept."""
        return self.averaged.module

    def update(self) -> None:
        """Average in the live model's weights: call after every optimizer step."""
        self.averaged.update_parameters(self.live)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The averaged weights and how many updates made them: tensors only."""
        return self.averaged.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from `state_dict`."""
        self.averaged.load_state_dict(state)
