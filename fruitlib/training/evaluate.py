"""An epoch in numbers: its training batches tallied, validation photos predicted, each exactly once."""

from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist

from fruitlib.data import dataset
from fruitlib.data.batch import Batch
from fruitlib.data.dataset import Photos
from fruitlib.evaluation import metrics
from fruitlib.training import group, models, precision

KEPT_VALUES = 2**25  # probabilities of all epochs, 64 MB; where there are more, choosing an epoch adds nothing


class Tally:
    """Loss and confusion matrix of an epoch's training batches, this process's share; `row` sums all shares.

    Batches are counted many at a time: one by one, a small network's took 2 % of its training.
    """

    def __init__(self, num_classes: int, device: torch.device):
        self.matrix = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=device)
        self.loss = torch.zeros((), dtype=torch.float64, device=device)  # batches weigh by their images
        self.images, self.num_classes, self.counted, self.waiting = 0, num_classes, 0, []

    @property
    def batches(self) -> int:
        """How many were added."""
        return self.counted + len(self.waiting)

    def add(self, loss: torch.Tensor, logits: torch.Tensor, batch: Batch) -> None:
        """Take one batch: this process's share of its loss, and logits (k, C)."""
        labels = batch.labels if batch.share >= 0.5 else batch.other_labels
        self.waiting.append((loss, labels, logits, batch.size))
        self.images += batch.size

    def first_bad(self) -> int | None:
        """The number, from 1, of the first batch whose loss is not finite, of those added since the last call."""
        start, losses = self.counted, self._count()
        bad = torch.nonzero(~torch.isfinite(losses))
        return start + bad[0].item() + 1 if len(bad) else None

    def _count(self) -> torch.Tensor:
        """Count the batches that wait; returns their losses, float64 (b,)."""
        if not self.waiting:
            return self.loss.new_empty(0)
        losses, labels, logits, sizes = zip(*self.waiting, strict=True)
        self.counted, self.waiting = self.batches, []
        losses = torch.stack(losses).double()
        self.loss += (losses * torch.tensor(sizes, device=losses.device)).sum()
        cells = torch.cat(labels) * self.num_classes + torch.cat(logits).argmax(1)
        self.matrix.index_add_(0, cells, torch.ones_like(cells))  # bincount would make a GPU wait
        return losses

    def row(self, prefix: str) -> dict[str, float]:
        """<prefix>_loss, _accuracy … over all processes' shares of the epoch."""
        self._count()
        sums = torch.cat([self.loss[None], self.matrix.double()]).cpu()
        if dist.is_initialized():
            dist.all_reduce(sums)
        matrix = sums[1:].reshape(self.num_classes, -1).numpy().astype(np.int64)
        return _row(prefix, sums[0].item() / self.images, matrix)


def logits_row(prefix: str, logits: torch.Tensor, labels: torch.Tensor, loss_of: Callable) -> dict[str, float]:
    """<prefix>_loss, _accuracy … of logits (n, C) for labels (n,)."""
    matrix = metrics.confusion_matrix(labels.numpy(), logits.argmax(1).numpy(), logits.shape[1])
    return _row(prefix, loss_of(logits, labels), matrix)


def half_probs(logits: torch.Tensor) -> torch.Tensor:
    """Probabilities float16 (n, C) of logits (n, C); of two that round alike, the predicted class is ahead."""
    probs = metrics.softmax(logits.numpy().astype(np.float64)).astype(np.float16)
    predicted = logits.argmax(1).numpy()
    for photo in np.flatnonzero(probs.argmax(1) != predicted):
        probs[photo, predicted[photo]] = np.nextafter(probs[photo].max(), np.float16(2))
    return torch.from_numpy(probs)


def _row(prefix: str, loss: float, matrix: np.ndarray) -> dict[str, float]:
    scores = metrics.scores(matrix)
    names = ("accuracy", "balanced_accuracy", "macro_f1")
    return {f"{prefix}_loss": float(loss)} | {f"{prefix}_{name}": float(scores[name]) for name in names}


@torch.inference_mode()
def predict(model: torch.nn.Module, photos: Photos, batch_size: int = 64) -> torch.Tensor:
    """Logits float32 (n, C) on the CPU for these photos, the model in eval mode."""
    device = next(model.parameters()).device
    model.eval()
    with precision.uncompiled(model):  # compiling for other sizes than training's costs more than it saves
        parts = [model(pixels).float().cpu() for pixels in dataset.in_parts(photos, batch_size, device)]
    return torch.cat(parts)


@torch.inference_mode()
def of_features(model: torch.nn.Module, features: np.ndarray) -> torch.Tensor:
    """Logits float32 (n, C) on the CPU of features (n, views, D) by the model's head: the mean over the views."""
    head, device = models.head_of(model).eval(), next(model.parameters()).device
    logits = [head(torch.from_numpy(features[:, view]).to(device)) for view in range(features.shape[1])]
    return torch.stack(logits).mean(0).float().cpu()


def predict_shared(model: torch.nn.Module, photos: Photos, features: np.ndarray | None = None) -> torch.Tensor:
    """`predict` with the photos divided among the processes, each photo to exactly one; all get all logits.

    (torch's DistributedSampler would repeat photos to make the shares equal, and count some of them twice.)
    Where their features (n, views, D) are given, only the head is computed.
    """
    if features is not None:
        return of_features(model, features)
    if not dist.is_initialized():
        return predict(model, photos)
    for buffer in model.buffers():  # BatchNorm's statistics differ by process; rank 0's are kept
        dist.broadcast(buffer, src=0)
    shares = [range(rank, len(photos), dist.get_world_size()) for rank in range(dist.get_world_size())]
    own = shares[dist.get_rank()]
    predicted = predict(model, photos.pick(own)) if own else None
    gathered = group.all_rows(predicted, [len(share) for share in shares])
    logits = torch.empty(len(photos), gathered[0].shape[1])
    for share, rows in zip(shares, gathered, strict=True):
        logits[list(share)] = rows
    return logits
