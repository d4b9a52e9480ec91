"""A batch of training images as the recipe and the losses see it."""

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Batch:
    """What one process trains on in a step: its share of a batch of `size` photos over all processes."""

    images: torch.Tensor  # float32 (k, 3, S, S) in [0, 1], channels last, on the device
    labels: torch.Tensor  # int64 (k,), on the device
    other_labels: torch.Tensor | None  # of the photos mixed in
    share: float  # weight of `labels`; 1 - share is that of `other_labels`
    size: int

    def parts(self, size: int | None) -> list["Batch"]:
        """This share in nearly equal slices of at most `size` images.

        One image more where a slice would hold a single one: BatchNorm cannot train on one image.
        """
        count = 1 if size is None else -(-len(self.labels) // size)
        if size is not None and size > 1:
            count = max(1, min(count, len(self.labels) // 2))
        if count == 1:
            return [self]
        others = [None] * count if self.other_labels is None else self.other_labels.tensor_split(count)
        pieces = zip(self.images.tensor_split(count), self.labels.tensor_split(count), others, strict=True)
        return [replace(self, images=images, labels=labels, other_labels=other) for images, labels, other in pieces]
