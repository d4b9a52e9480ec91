"""Losses as objectives: each gives a part's share of its batch's loss, and the shares of all parts sum to that loss.

A part is what one process, or one slice of its images, sees of a batch. So neither processes nor accumulation change
a step: gradients of the shares sum to the gradient of the whole batch's loss. Targets are
distributions over the classes, which makes smoothed labels and mixed pairs nothing special.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F

from fruitlib.core.config import Config
from fruitlib.core.errors import InputError
from fruitlib.data.batch import Batch

Objective = Callable[[torch.Tensor, Batch], torch.Tensor]
ValidationLoss = Callable[[torch.Tensor, torch.Tensor], float]
SMALLEST = 1e-12  # below it, 1 - p is 0 as far as focal loss is concerned


def build(config: Config, class_weights: torch.Tensor | None = None) -> Objective:
    """The loss that `config.loss` names: from logits (k, C) and a batch's part of k images, its share, a scalar.

    The loss of a batch is the mean over its `size` images; each image's is multiplied by its class's weight where
    there are `class_weights` (C,) (`balance.class_weights` average to 1 over the training photos, so that the mean
    keeps its scale). soft_f1, no mean over images, counts over all processes; see `soft_f1`.

    Raises:
        InputError: class weights for soft_f1; and from the objective, a slice of a batch for soft_f1.
    """
    if config.loss == "soft_f1":
        if class_weights is not None:
            raise InputError(
                "loss = soft_f1 already weights all classes equally: use a balance other than class_weights"
            )
        return lambda logits, batch: _soft_f1_share(_in_float32(logits), batch, config.label_smoothing)
    per_image = _per_image(config)
    of_labels = config.loss == "ce" and not config.label_smoothing and class_weights is None

    def objective(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        nonlocal class_weights
        logits = _in_float32(logits)
        if of_labels and batch.other_labels is None:  # the same gradients in fewer calls
            return F.cross_entropy(logits, batch.labels, reduction="sum") / batch.size
        if class_weights is not None:
            class_weights = class_weights.to(logits)  # once: every copy to a GPU waits for it
        wanted = batch_targets(logits, batch, config.label_smoothing, class_weights)
        return per_image(logits, wanted).sum() / batch.size

    return objective


def build_validation_loss(config: Config) -> ValidationLoss:
    """The same loss for validation: a number from logits (n, C) and labels (n,), without class weights or smoothing."""
    per_image = _per_image(config)

    def validation_loss(logits: torch.Tensor, labels: torch.Tensor) -> float:
        logits = _in_float32(logits)
        wanted = targets(logits, labels)
        if config.loss == "soft_f1":
            return soft_f1(soft_counts(logits, wanted, wanted)).item()
        return per_image(logits, wanted).mean().item()

    return validation_loss


def targets(
    logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0, class_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Target distributions of labels (k,), for logits (k, C): (1 - smoothing) · one-hot + smoothing / C, as (k, C).

    Label smoothing is Szegedy et al.'s (2016, section 7). Weights (C,) multiply each row by that of its label; since
    the losses per image are linear in the targets, they multiply the loss likewise.
    """
    rows = F.one_hot(labels, logits.shape[1]).to(logits)
    if smoothing:
        rows = rows * (1 - smoothing) + smoothing / logits.shape[1]
    return rows if class_weights is None else rows * class_weights.to(logits)[labels][:, None]


def batch_targets(
    logits: torch.Tensor, batch: Batch, smoothing: float = 0.0, class_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """`targets` of a batch's part; of mixed pairs, both labels' in the shares of the mixture (mixup, equation 1)."""
    first = targets(logits, batch.labels, smoothing, class_weights)
    if batch.other_labels is None:
        return first
    return batch.share * first + (1 - batch.share) * targets(logits, batch.other_labels, smoothing, class_weights)


def cross_entropy(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of logits (n, C) and targets (n, C), per image (n,)."""
    return F.cross_entropy(logits, wanted, reduction="none")


def focal(logits: torch.Tensor, wanted: torch.Tensor, gamma: float = 2.0) -> torch.Tensor:
    """Focal loss of logits (n, C) and targets y (n, C), per image (n,): -Σ_c y_c · (1 - p_c)^gamma · log(p_c).

    For one-hot targets that is Lin et al. 2017, equation 4: -(1 - p_t)^gamma · log(p_t).
    """
    log_p = F.log_softmax(logits, dim=1)
    # expm1 keeps 1 - p exact where p is nearly 1; at 0, a power below 1 would have an infinite slope
    missing = (-torch.expm1(log_p)).clamp(min=SMALLEST)
    return -(wanted * missing**gamma * log_p).sum(1)


def mix(logits: torch.Tensor, wanted: torch.Tensor, focal_ratio: float, gamma: float = 2.0) -> torch.Tensor:
    """(1 - focal_ratio) · cross-entropy + focal_ratio · focal, per image (n,)."""
    return (1 - focal_ratio) * cross_entropy(logits, wanted) + focal_ratio * focal(logits, wanted, gamma)


def soft_counts(logits: torch.Tensor, wanted: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """What soft F1 is made of, (3, C): Σ p·y, Σ p + Σ y, and Σ present, over images; they add up over parts.

    `wanted` y (n, C) may be smoothed, which puts a little of every class into every image; `present` (n, C) is not,
    and says which classes occur.
    """
    p = logits.softmax(dim=1)
    return torch.stack([(p * wanted).sum(0), p.sum(0) + wanted.sum(0), present.sum(0)])


def soft_f1(counts: torch.Tensor) -> torch.Tensor:
    """1 - macro-F1 with probabilities in place of decisions, from `soft_counts` (3, C): a scalar from 0 to 1.

    F1 of a class is 2 Σ p·y / (Σ p + Σ y): the soft Dice coefficient of Milletari et al. 2016 without their squares,
    as a surrogate for F1 like that of Bénédict et al. 2022 (sigmoidF1). The mean is over the classes that occur.
    """
    overlap, sizes, _ = counts[:, counts[2] > 0]
    return 1 - (2 * overlap / sizes).mean()


def _soft_f1_share(logits: torch.Tensor, batch: Batch, smoothing: float) -> torch.Tensor:
    """This process's share of the soft F1 loss of a whole batch: its value is the loss / processes.

    The counts of all processes enter the value, and this process's own carry the gradient. That gradient is the
    loss's own, undivided: the processes' gradients then sum to the gradient of the loss, as those of a mean do.
    """
    processes = dist.get_world_size() if dist.is_initialized() else 1
    if abs(len(logits) * processes - batch.size) >= processes:
        raise InputError(
            f"loss = soft_f1 needs the whole batch ({batch.size} images) at once and got {len(logits)}: "
            "set micro_batch to auto and lower batch_size"
        )
    wanted, present = batch_targets(logits, batch, smoothing), batch_targets(logits, batch)
    own = soft_counts(logits, wanted, present)
    if processes == 1:
        return soft_f1(own)
    total = own.detach().clone()
    dist.all_reduce(total)
    loss = soft_f1(own + (total - own.detach()))
    return loss - loss.detach() * (1 - 1 / processes)


def _per_image(config: Config) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The part of `config.loss` that gives a value for each image."""
    if config.loss == "focal":
        return lambda logits, wanted: focal(logits, wanted, config.focal_gamma)
    if config.loss == "mix":
        return lambda logits, wanted: mix(logits, wanted, config.focal_ratio, config.focal_gamma)
    return cross_entropy


def _in_float32(logits: torch.Tensor) -> torch.Tensor:
    """Logits in at least float32: bf16 has three decimal digits, too few for a logarithm near 0."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
