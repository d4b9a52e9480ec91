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
from fruitlib.data import augment, balance, cache, dataset
from fruitlib.data.augment import Draws, Mix
from fruitlib.data.batch import Batch
from fruitlib.data.dataset import Photos, to_float, to_pictures

POLICIES = get_args(Config.model_fields["augment"].annotation)[1:]  # all but none
MIXINGS = get_args(Config.model_fields["mixing"].annotation)[1:]
MIXED_EVENLY = 20.0  # alpha for example pictures: shares near a half show what mixing does
PREFETCH_BYTES = 32e6  # of decoded photos that a thread prepares at a time
PREFETCH_BATCHES = 8
RESIDENT_SHARE = 4  # photos are kept on a GPU where they take at most this part of its free memory: a quarter
UPLOAD_BYTES = 256e6  # of photos sent there at a time
GROUP_BYTES = 32e6  # of float images made there at a time: a small batch takes longer to ask for than to make


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
class _Share:
    """What a process needs of a batch: slots, each once, and where among them its own and their partners stand."""

    slots: np.ndarray  # int64 (u,), as positions in the epoch's list
    mine: np.ndarray | None  # int64 (k,); None: the slots themselves
    partners: np.ndarray | None  # int64 (k,)
    mix: Mix | None
    size: int  # of the whole batch


@dataclass(frozen=True)
class _Prepared:
    """A process's share of a batch before `_finish`."""

    share: _Share
    pictures: torch.Tensor  # uint8 (u, S, S, 3)
    draws: Draws | None  # augmentation that `_finish` must still apply
    labels: torch.Tensor  # int64 (u,)


class _Epochs:
    """How long an epoch is, from a feed's `slots` and `config`."""

    summary = ""  # where a GPU takes its photos from

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
    there is a GPU, which augments a batch at once, or the policy is torchvision's. Where a GPU has room for all of
    the photos, they are kept there, and it gathers them, too: then there is no thread.
    """

    def __init__(
        self,
        photos: Photos,
        config: Config,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        resident: bool | None = None,
    ):
        """`resident`: whether the photos are kept on the device; None: on a GPU, where there is room for them."""
        self.photos, self.config, self.device = photos, config, torch.device(device)
        self.rank, self.world_size = rank, world_size
        # torchvision's policies draw from torch's global random state, so they run in the loop's own thread: in another
        # thread they would change the state that dropout draws from.
        torchvision_draws = config.augment in augment.TORCHVISION_POLICIES
        self.augment_in_loop = self.device.type != "cpu" or torchvision_draws
        if resident is None:
            resident, self.summary = _placed(photos, config, self.device)
        self.resident = dataset.on_device(photos, self.device, int(UPLOAD_BYTES)) if resident else None

    def slots(self, epoch: int) -> torch.Tensor:
        """The photos of an epoch, int64 (m,), before they are shuffled; a slot is a place in this list."""
        config = self.config
        return balance.slots(self.photos.labels, config.balance, config.augment_to, config.seed, epoch)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """This process's share of each of the epoch's batches."""
        config, slots = self.config, self.slots(epoch).numpy()
        draws = augment.draw(config.augment, len(slots), config.seed, epoch, config.image_size)
        order = batches(len(slots), config.batch_size, config.seed, epoch)

        def share(number: int) -> _Share:
            return self._share(epoch, number, order[number].numpy())

        along = self._from_device if self.resident is not None else self._from_host
        yield from along(share, len(order), slots, draws)

    def _share(self, epoch: int, number: int, batch: np.ndarray) -> _Share:
        """What this process needs of batch `number`, whose slots are `batch`."""
        config = self.config
        seeds = (config.seed, epoch, number)
        mix = augment.pairs(config.mixing, config.mixing_alpha, len(batch), config.image_size, *seeds)
        if mix is None:
            return _Share(batch[self.rank :: self.world_size], None, None, None, len(batch))
        mine = np.arange(self.rank, len(batch), self.world_size)
        needed, places = np.unique(np.concatenate([mine, mix.partners[mine]]), return_inverse=True)
        return _Share(batch[needed], places[: len(mine)], places[len(mine) :], mix, len(batch))

    # ---- photos on the host

    def _from_host(self, share: Callable, count: int, slots: np.ndarray, draws: Draws) -> Iterator[Batch]:
        def prepare(number: int) -> _Prepared:
            return self._prepare(share(number), slots, draws)

        config = self.config
        size = 3 * config.image_size**2 * config.batch_size / self.world_size
        depth = int(np.clip(PREFETCH_BYTES // size, 1, PREFETCH_BATCHES))
        for prepared in prefetch(prepare, count, depth):
            yield self._finish(prepared)

    def _prepare(self, share: _Share, slots: np.ndarray, draws: Draws) -> _Prepared:
        """The work done in the prefetch thread, in NumPy and OpenCV (torch would start a second pool of threads)."""
        which, draws = slots[share.slots], draws.pick(share.slots)
        pictures = self.photos.take(which)
        if not self.augment_in_loop:
            pictures, draws = augment.apply(pictures, draws), None
        pictures, labels = torch.from_numpy(pictures), self.photos.labels[torch.from_numpy(which)]
        return _Prepared(share, _pinned(pictures, self.device), draws, _pinned(labels, self.device))

    def _finish(self, prepared: _Prepared) -> Batch:
        """The remaining work, on the device and in the loop's thread."""
        pictures, draws = prepared.pictures, prepared.draws
        if draws and draws.torchvision_policy:
            pictures, draws = torch.from_numpy(augment.apply(pictures.numpy(), draws)), None
        images = self._images(pictures.to(self.device, non_blocking=True), draws)
        return self._batch(prepared.share, images, prepared.labels.to(self.device, non_blocking=True))

    # ---- photos on the device

    def _from_device(self, share: Callable, count: int, slots: np.ndarray, draws: Draws) -> Iterator[Batch]:
        """Several batches at a time, gathered and augmented as one.

        Nothing here waits for a GPU, and its kernels are launched once for all these batches.
        """
        size = 4 * 3 * self.config.image_size**2 * self.config.batch_size / self.world_size
        at_a_time = max(1, int(GROUP_BYTES // size))
        for start in range(0, count, at_a_time):
            shares = [share(number) for number in range(start, min(start + at_a_time, count))]
            needed = np.concatenate([one.slots for one in shares])
            which, sizes = torch.from_numpy(slots[needed]), [len(one.slots) for one in shares]
            labels = _sent(self.photos.labels[which], self.device)
            images = self._images(self.resident.index_select(0, _sent(which, self.device)), draws.pick(needed))
            for one, some, their in zip(shares, images.split(sizes), labels.split(sizes), strict=True):
                yield self._batch(one, some, their)

    # ---- both

    def _images(self, pictures: torch.Tensor, draws: Draws | None) -> torch.Tensor:
        """uint8 (u, S, S, 3) on the device -> float32 (u, 3, S, S) in [0, 1], channels last, augmented by `draws`."""
        images = to_float(pictures.permute(0, 3, 1, 2))
        if draws:
            draws = draws.sent(lambda values: _sent(values, self.device))
            images = augment.apply_batch(images, draws).contiguous(memory_format=torch.channels_last)
        return images

    def _batch(self, share: _Share, images: torch.Tensor, labels: torch.Tensor) -> Batch:
        """The batch that a process's share is, of its slots' images and labels."""
        if share.mix is None:
            return Batch(images, labels, None, 1.0, share.size)
        mine, partners = (_sent(torch.from_numpy(some), self.device) for some in (share.mine, share.partners))
        images = augment.mixed(images[mine], images[partners], share.mix)
        return Batch(images, labels[mine], labels[partners], share.mix.share, share.size)


class FeatureFeed(_Epochs):
    """As `Feed`, over features (n, D) that a frozen backbone computed once: nothing to decode or augment."""

    def __init__(
        self, features: torch.Tensor, labels: torch.Tensor, config: Config, rank: int = 0, world_size: int = 1
    ):
        self.features, self.labels, self.config = features, labels, config
        self.labels_there = labels.to(features.device)  # once: every copy makes a GPU wait
        self.rank, self.world_size = rank, world_size

    def slots(self, epoch: int) -> torch.Tensor:
        """The features of an epoch, int64 (m,), before they are shuffled."""
        return balance.slots(self.labels, self.config.balance, 0, self.config.seed, epoch)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """This process's share of each of the epoch's batches, on the features' device."""
        slots = self.slots(epoch)
        for batch in batches(len(slots), self.config.batch_size, self.config.seed, epoch):
            mine = _sent(slots[batch[self.rank :: self.world_size]], self.features.device)
            yield Batch(self.features[mine], self.labels_there[mine], None, 1.0, len(batch))


def _placed(photos: Photos, config: Config, device: torch.device) -> tuple[bool, str]:
    """Whether a device keeps the photos itself, and why; the CPU, which has them already, does not."""
    if device.type == "cpu":
        return False, ""
    if photos.store.pixels is None:
        return False, "photos come from the host: they are decoded every time"
    if config.augment in augment.TORCHVISION_POLICIES:
        return False, f"photos come from the host: augment = {config.augment} works on single ones"
    size, room = 3 * config.image_size**2 * len(photos), _free_bytes(device) // RESIDENT_SHARE
    sizes = f"{cache.in_words(size)} (room for {cache.in_words(room)}, a quarter of the GPU's free memory)"
    if size > room:
        return False, f"photos come from the host: they take {sizes}"
    return True, f"photos are kept on the GPU and take {sizes}"


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0]


def _pinned(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copied to pinned memory for a CUDA device, so that the transfer does not block; else as they are."""
    return values.pin_memory() if device.type == "cuda" else values


def _sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On the device, without waiting for it."""
    return _pinned(values, device).to(device, non_blocking=True)


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
    return augment.apply(pictures, augment.draw(policy, len(pictures), seed, 1, pictures.shape[1]))


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
