"""The gradients of a batch, computed in parts that fit the device."""

import contextlib

import torch
from torch.nn.parallel import DistributedDataParallel

from fruitlib.core import machine
from fruitlib.core.config import Config
from fruitlib.core.errors import InputError
from fruitlib.data.batch import Batch
from fruitlib.training import losses, precision
from fruitlib.training.checkpoint import TrainingState
from fruitlib.training.messages import say
from fruitlib.training.precision import Speed


def gradients(
    network: torch.nn.Module,
    batch: Batch,
    objective: losses.Objective,
    speed: Speed,
    scaler: torch.amp.GradScaler,
    state: TrainingState,
    config: Config,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the gradients of a batch's loss to the network's, at most `state.micro_batch` images at a time.

    Where a GPU's memory does not suffice and the setting is auto, the micro-batch is halved and the batch repeated.
    (BatchNorm's statistics and dropout's random state keep what the first attempt changed.)

    Returns:
        this process's share of the loss, logits (k, C) float32.
    """
    while True:
        try:
            return _gradients(network, batch.parts(state.micro_batch), objective, speed, scaler)
        except torch.OutOfMemoryError:
            pass  # until here the error keeps the attempt's tensors, so that their memory could not be freed
        except ValueError as problem:
            if "more than 1 value per channel" not in str(problem):
                raise
            raise InputError("BatchNorm needs at least 2 images at a time: raise micro_batch or batch_size") from None
        state.micro_batch = halve_micro_batch(state.micro_batch or len(batch.labels), config)
        network.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        say(f"GPU memory ran out: micro_batch is {state.micro_batch} from now on")


def _gradients(network, parts: list[Batch], objective, speed: Speed, scaler) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the gradients of all parts; returns what `gradients` does."""
    shares, outputs, processes = [], [], machine.world_size()
    for part in parts:
        inputs = part.images
        if inputs.ndim == 4:  # features of a frozen backbone have two
            inputs = inputs.contiguous(memory_format=speed.memory_format)
        exchange_later = isinstance(network, DistributedDataParallel) and part is not parts[-1]  # once per batch
        with network.no_sync() if exchange_later else contextlib.nullcontext():
            with precision.autocast(speed, inputs.device):
                logits = network(inputs)
            loss = objective(logits.float(), part)
            # DDP averages gradients over processes where the loss asks for their sum, hence the factor.
            whole = loss * processes if processes > 1 else loss
            scaler.scale(whole).backward()
        shares.append(loss.detach())
        outputs.append(logits.detach().float())
    if len(parts) == 1:  # the usual case: a small network's steps are so short that two calls less are felt
        return shares[0], outputs[0]
    return torch.stack(shares).sum(), torch.cat(outputs)


def halve_micro_batch(images_at_a_time: int, config: Config) -> int:
    """Half as many images at a time, after a GPU's memory ran out.

    Raises:
        InputError: fewer are not possible, or not up to one process; names the setting to change.
    """
    ran_out = f"GPU memory ran out with {images_at_a_time} images at a time"
    if images_at_a_time <= 2:  # BatchNorm needs two
        raise InputError(f"{ran_out}: lower image_size, or take a smaller model") from None
    if config.loss == "soft_f1":
        raise InputError(f"{ran_out}, and loss soft_f1 needs the whole batch at once: lower batch_size") from None
    half = -(-images_at_a_time // 2)
    if config.micro_batch != "auto" or machine.world_size() > 1:
        raise InputError(f"{ran_out}: set micro_batch: {half}, or lower image_size") from None
    return half
