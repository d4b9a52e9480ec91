"""Training batches that depend on (seed, epoch, slot) alone, prepared while the network computes.

Neither processes, threads, nor where the photos are kept change which photos a step trains on, or how they look.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch

from fruitlib.core.config import Config
from fruitlib.data import augment, balance
from fruitlib.data.augment import Draws, Mix
from fruitlib.data.batch import Batch
from fruitlib.data.dataset import Photos, to_float, to_pictures

POLICIES = get_args(Config.model_fields["augment"].annotation)[1:]  # all but none
MIXINGS = get_args(Config.model_fields["mixing"].annotation)[1:]
MIXED_EVENLY = 20.0  # alpha for example pictures: shares near a half show what mixing does
PREFETCH_BYTES = 32e6  # of decoded photos that a thread prepares at a time
PREFETCH_BATCHES = 8


def batches(count: int, batch_size: int, seed: int, epoch: int) -> list[torch.Tensor]:
    """An epoch's shuffled batches of indexes. A remainder under half a batch, or under 3, joins the last batch.

    So no photo is left out, no step rests on one or two photos, and every process has a share of every batch.
    """
    order = torch.randperm(count, generator=augment.generator(seed, epoch, augment.ORDER))
    parts = list(order.split(batch_size))
    if len(parts) > 1 and len(parts[-1]) < max(3, batch_size / 2):
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


@dataclass(frozen=True)
class _Prepared:
    """A process's share of a batch before `_finish`: each photo it needs once, and its positions in the batch."""

    pictures: torch.Tensor  # uint8 (u, S, S, 3)
    draws: Draws | None  # augmentation that `_finish` must still apply
    mine: torch.Tensor  # int64 (k,), positions among the pictures
    partners: torch.Tensor | None  # int64 (k,)
    labels: torch.Tensor  # int64 (u,)
    mix: Mix | None
    size: int


class _Epochs:
    """How long an epoch is, from a feed's `slots` and `config`."""

    def __len__(self) -> int:
        """How many photos an epoch shows, over all processes."""
        return len(self.slots(epoch=1))

    @property
    def steps(self) -> int:
        """How many batches an epoch has."""
        return len(batches(len(self), self.config.batch_size, self.config.seed, epoch=1))


class Feed(_Epochs):
    """The batches of training: which photos, in what order, augmented, balanced and mixed as the settings say.

    A thread gathers (and where they are not kept, decodes) photos some batches ahead. It also augments them, unless
    there is a GPU, which augments a batch at once, or the policy is torchvision's.
    """

    def __init__(self, photos: Photos, config: Config, device: torch.device, rank: int = 0, world_size: int = 1):
        self.photos, self.config, self.device = photos, config, torch.device(device)
        self.rank, self.world_size = rank, world_size
        # torchvision's policies draw from torch's global random state, so they run in the loop's own thread: in another
        # thread they would change the state that dropout draws from.
        torchvision_draws = config.augment in augment.TORCHVISION_POLICIES
        self.augment_in_loop = self.device.type != "cpu" or torchvision_draws

    def slots(self, epoch: int) -> torch.Tensor:
        """The photos of an epoch, int64 (m,), before they are shuffled; a slot is a place in this list."""
        config = self.config
        return balance.slots(self.photos.labels, config.balance, config.augment_to, config.seed, epoch)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """This process's share of each of the epoch's batches."""
        config, slots = self.config, self.slots(epoch)
        draws = augment.draw(config.augment, len(slots), config.seed, epoch)
        order = batches(len(slots), config.batch_size, config.seed, epoch)

        def prepare(number: int) -> _Prepared:
            return self._prepare(epoch, number, order[number], slots, draws)

        share = 3 * config.image_size**2 * config.batch_size / self.world_size
        depth = int(np.clip(PREFETCH_BYTES // share, 1, PREFETCH_BATCHES))
        for prepared in prefetch(prepare, len(order), depth):
            yield self._finish(prepared)

    def _prepare(self, epoch: int, number: int, batch: torch.Tensor, slots: torch.Tensor, draws: Draws) -> _Prepared:
        """The work done in the prefetch thread, in NumPy and OpenCV (torch would start a second pool of threads)."""
        config, batch = self.config, batch.numpy()
        seeds = (config.seed, epoch, number)
        mix = augment.pairs(config.mixing, config.mixing_alpha, len(batch), config.image_size, *seeds)
        mine = np.arange(self.rank, len(batch), self.world_size)
        wanted = mine if mix is None else np.concatenate([mine, mix.partners[mine]])
        needed, places = np.unique(wanted, return_inverse=True)
        which, draws = slots.numpy()[batch[needed]], draws.pick(batch[needed])
        pictures = self.photos.take(which)
        if not self.augment_in_loop:
            pictures, draws = augment.apply(pictures, draws), None
        places = torch.from_numpy(places)
        return _Prepared(
            pictures=_pinned(torch.from_numpy(pictures), self.device),
            draws=draws,
            mine=places[: len(mine)],
            partners=places[len(mine) :] if mix else None,
            labels=self.photos.labels[torch.from_numpy(which)],
            mix=mix,
            size=len(batch),
        )

    def _finish(self, prepared: _Prepared) -> Batch:
        """The remaining work, on the device and in the loop's thread."""
        pictures, draws, mix = prepared.pictures, prepared.draws, prepared.mix
        if draws and draws.torchvision_policy:
            pictures, draws = torch.from_numpy(augment.apply(pictures.numpy(), draws)), None
        images = to_float(pictures.to(self.device, non_blocking=True).permute(0, 3, 1, 2))
        if draws:
            images = augment.apply_batch(images, draws).contiguous(memory_format=torch.channels_last)
        labels, other_labels, share = prepared.labels.to(self.device), None, 1.0
        if mix:
            mine, partners = prepared.mine.to(self.device), prepared.partners.to(self.device)
            images = augment.mixed(images[mine], images[partners], mix)
            labels, other_labels, share = labels[mine], labels[partners], mix.share
        return Batch(images, labels, other_labels, share, prepared.size)


class FeatureFeed(_Epochs):
    """As `Feed`, over features (n, D) that a frozen backbone computed once: nothing to decode or augment."""

    def __init__(
        self, features: torch.Tensor, labels: torch.Tensor, config: Config, rank: int = 0, world_size: int = 1
    ):
        self.features, self.labels, self.config = features, labels, config
        self.rank, self.world_size = rank, world_size

    def slots(self, epoch: int) -> torch.Tensor:
        """The features of an epoch, int64 (m,), before they are shuffled."""
        return balance.slots(self.labels, self.config.balance, 0, self.config.seed, epoch)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """This process's share of each of the epoch's batches, on the features' device."""
        slots = self.slots(epoch)
        for batch in batches(len(slots), self.config.batch_size, self.config.seed, epoch):
            mine = slots[batch[self.rank :: self.world_size]].to(self.features.device)
            yield Batch(self.features[mine], self.labels.to(mine.device)[mine], None, 1.0, len(batch))


def _pinned(pictures: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copied to pinned memory for a CUDA device, so that the transfer does not block; else as they are."""
    return pictures.pin_memory() if device.type == "cuda" else pictures


def prefetch(work: Callable, count: int, depth: int) -> Iterator:
    """`work(0)`, `work(1)` … `work(count - 1)`, done up to 2 · `depth` ahead of the caller in a thread.

    A thread does `depth` of them and ends; the next one starts when the first of these are fetched. So no thread
    outlives a loop that was left early, even while a traceback keeps this generator alive. An exception in `work` is
    raised here.
    """
    leave = threading.Event()

    def begin(start: int) -> list[Future]:
        results = [Future() for _ in range(start, min(start + depth, count))]
        thread = threading.Thread(target=do, args=(start, tuple(results)), name="fruitlib-prefetch")
        threads.append(thread)
        thread.start()
        return results

    def do(start: int, results: tuple[Future, ...]) -> None:
        for number, result in enumerate(results, start):
            if leave.is_set():
                return
            try:
                result.set_result(work(number))
            except BaseException as problem:  # for the loop to raise
                result.set_exception(problem)
                return

    threads: deque[threading.Thread] = deque(maxlen=2)  # the one before has ended when the next begins
    try:
        coming = begin(0)
        for start in range(depth, count + depth, depth):
            ready, coming = coming, begin(start) if start < count else []
            while ready:
                yield ready.pop(0).result()
    finally:
        leave.set()
        for thread in threads:
            thread.join()


def examples(pictures: np.ndarray, policy: str, seed: int) -> np.ndarray:
    """What an augmentation policy, or mixup or cutmix, makes of pictures uint8 (n, S, S, 3) in the first epoch."""
    if policy in MIXINGS:
        side = pictures.shape[1]
        mix = augment.pairs(policy, MIXED_EVENLY, len(pictures), side, seed, 1, 0)
        inputs = to_float(torch.from_numpy(pictures).permute(0, 3, 1, 2))
        return _as_pictures(augment.mixed(inputs.clone(), inputs[mix.partners], mix))
    return augment.apply(pictures, augment.draw(policy, len(pictures), seed, epoch=1))


def _as_pictures(inputs: torch.Tensor) -> np.ndarray:
    """float (n, 3, S, S) in [0, 1] -> uint8 (n, S, S, 3)."""
    return to_pictures((inputs * 255).round().clamp(0, 255).to(torch.uint8))


def example_batch(photos: Photos, config: Config) -> np.ndarray:
    """The first batch of the first epoch as pictures uint8 (n, S, S, 3), as training sees it; 16 at most."""
    feed = Feed(photos, config, torch.device("cpu")).epoch(1)
    try:
        inputs = next(feed).images[:16]
    finally:
        feed.close()
    return _as_pictures(inputs)
