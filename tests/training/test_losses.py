"""Losses against their papers' equations and torch's own; shares of parts and processes sum to the batch's loss."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch.nn.parallel import DistributedDataParallel

from fruitlib.core import config
from fruitlib.core.errors import InputError
from fruitlib.data import balance
from fruitlib.data.batch import Batch
from fruitlib.training import losses

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [-2.0, 1.0, 4.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 2, 1])
WEIGHTS = torch.tensor([0.5, 2.0, 1.2], dtype=torch.float64)
ALL = ("ce", "focal", "mix", "soft_f1")


def batch_of(labels, other_labels=None, share=1.0, inputs=None) -> Batch:
    inputs = torch.zeros(len(labels), 3, 2, 2) if inputs is None else inputs
    return Batch(inputs, labels, other_labels, share, len(labels))


def loss_of(logits, batch, class_weights=None, **settings) -> torch.Tensor:
    return losses.build(config.make(settings), class_weights)(logits, batch)


def one_hot(labels) -> torch.Tensor:
    return F.one_hot(labels, 3).double()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal_is_equation_4_of_lin_et_al(gamma):
    p_t = LOGITS.softmax(1)[torch.arange(3), LABELS]
    expected = -((1 - p_t) ** gamma) * p_t.log()
    torch.testing.assert_close(losses.focal(LOGITS, one_hot(LABELS), gamma), expected)
    loss = loss_of(LOGITS, batch_of(LABELS), loss="focal", focal_gamma=gamma)
    torch.testing.assert_close(loss, expected.mean())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_stays_finite_where_the_model_is_certain(gamma):
    certain = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    loss = losses.focal(certain, torch.eye(2)[[0, 0]], gamma)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(certain.grad).all()
    assert loss.tolist() == pytest.approx([0, 400])


def test_mix_runs_from_cross_entropy_to_focal():
    batch = batch_of(LABELS)
    ce, focal = F.cross_entropy(LOGITS, LABELS), loss_of(LOGITS, batch, loss="focal", focal_gamma=3.0)
    for ratio in (0.0, 0.25, 1.0):
        loss = loss_of(LOGITS, batch, loss="mix", focal_ratio=ratio, focal_gamma=3.0)
        torch.testing.assert_close(loss, (1 - ratio) * ce + ratio * focal)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_cross_entropy_and_its_smoothing_are_torchs(smoothing):
    loss = loss_of(LOGITS, batch_of(LABELS), loss="ce", label_smoothing=smoothing)
    torch.testing.assert_close(loss, F.cross_entropy(LOGITS, LABELS, label_smoothing=smoothing))


def test_labels_and_their_distributions_have_the_same_gradient_to_the_last_bit():
    logits = torch.randn(16, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.arange(16) % 3
    of_labels = loss_of(logits, batch_of(labels))
    of_rows = losses.cross_entropy(logits, one_hot(labels).float()).sum() / 16
    torch.testing.assert_close(of_labels, of_rows)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (of_labels, of_rows)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("name", ["ce", "focal", "mix"])
def test_class_weights_multiply_each_images_loss_by_its_labels_weight(name):
    loss = loss_of(LOGITS, batch_of(LABELS), WEIGHTS, loss=name, label_smoothing=0.2)
    alone = [
        loss_of(LOGITS[[i]], batch_of(LABELS[[i]]), loss=name, label_smoothing=0.2) * WEIGHTS[LABELS[i]]
        for i in range(3)
    ]
    torch.testing.assert_close(loss, torch.stack(alone).mean())  # the mean over images, not over their weights
    if name == "ce":
        sums = F.cross_entropy(LOGITS, LABELS, weight=WEIGHTS, reduction="sum")
        torch.testing.assert_close(loss_of(LOGITS, batch_of(LABELS), WEIGHTS, loss="ce"), sums / 3)


def test_weighted_loss_keeps_its_scale():
    """Averaged over the training photos the weights are 1, so a classifier that knows nothing has the same loss."""
    labels = torch.tensor([0] * 20 + [1] * 7 + [2] * 3)
    weights = balance.class_weights(labels, "abc")
    ignorant = torch.zeros(30, 3)
    plain, weighted = (loss_of(ignorant, batch_of(labels), w, loss="ce") for w in (None, weights))
    torch.testing.assert_close(weighted, plain)


@pytest.mark.parametrize("name", ["ce", "focal", "mix"])
def test_mixed_pairs_count_both_labels_in_their_shares(name):
    other = torch.tensor([1, 2, 0])
    mixed = loss_of(LOGITS, batch_of(LABELS, other, 0.3), WEIGHTS, loss=name, label_smoothing=0.1)
    first, second = (
        loss_of(LOGITS, batch_of(labels), WEIGHTS, loss=name, label_smoothing=0.1) for labels in (LABELS, other)
    )
    torch.testing.assert_close(mixed, 0.3 * first + 0.7 * second)
    soft = 0.3 * one_hot(LABELS) + 0.7 * one_hot(other)
    torch.testing.assert_close(loss_of(LOGITS, batch_of(LABELS, other, 0.3), loss="ce"), F.cross_entropy(LOGITS, soft))


def soft_f1_by_hand(probs, wanted, classes) -> float:
    scores = []
    for c in classes:
        overlap = sum(float(p[c] * y[c]) for p, y in zip(probs, wanted, strict=True))
        size = sum(float(p[c] + y[c]) for p, y in zip(probs, wanted, strict=True))
        scores.append(2 * overlap / size)
    return 1 - sum(scores) / len(scores)


def test_soft_f1_is_its_formula_over_the_classes_that_occur():
    labels = torch.tensor([0, 2, 0])
    expected = soft_f1_by_hand(LOGITS.softmax(1), one_hot(labels), [0, 2])
    assert loss_of(LOGITS, batch_of(labels), loss="soft_f1").item() == pytest.approx(expected)
    smooth = 0.7 * one_hot(labels) + 0.1  # smoothing puts some of class 1 into every image, yet it does not occur
    loss = loss_of(LOGITS, batch_of(labels), loss="soft_f1", label_smoothing=0.3)
    assert loss.item() == pytest.approx(soft_f1_by_hand(LOGITS.softmax(1), smooth, [0, 2]))
    mixed = 0.75 * one_hot(labels) + 0.25 * one_hot(torch.tensor([0, 0, 1]))
    loss = loss_of(LOGITS, batch_of(labels, torch.tensor([0, 0, 1]), 0.75), loss="soft_f1")
    assert loss.item() == pytest.approx(soft_f1_by_hand(LOGITS.softmax(1), mixed, [0, 1, 2]))


def test_soft_f1_of_certain_answers_is_one_minus_macro_f1():
    from sklearn.metrics import f1_score

    labels, answers = torch.tensor([0, 0, 1, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 1, 2, 2, 0])
    certain = torch.full((7, 3), -500.0).scatter(1, answers[:, None], 500.0).requires_grad_()
    loss = loss_of(certain, batch_of(labels), loss="soft_f1")
    assert loss.item() == pytest.approx(1 - f1_score(labels, answers, average="macro"))
    absent = loss_of(certain, batch_of(torch.zeros(7, dtype=torch.long)), loss="soft_f1")  # 0 / 0 must not leak in
    absent.backward()
    assert torch.isfinite(certain.grad).all()


def test_soft_f1_refuses_slices_of_a_batch_and_class_weights():
    part = replace(batch_of(LABELS), size=7)
    with pytest.raises(InputError, match=r"whole batch \(7 images\) at once and got 3"):
        loss_of(LOGITS, part, loss="soft_f1")
    with pytest.raises(InputError, match="class_weights"):
        losses.build(config.make({"loss": "soft_f1"}), WEIGHTS)


@examples(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.sampled_from(["ce", "focal", "mix"]), st.floats(0, 0.9), st.booleans())
def test_accumulated_slices_have_the_gradient_of_the_whole_batch(micro_batch, name, smoothing, mixed):
    """Why each slice's sum is divided by the size of the whole batch, not of the slice: slices differ in size."""
    torch.manual_seed(0)
    inputs, labels, other = torch.randn(9, 4).double(), torch.randint(3, (9,)), torch.randint(3, (9,))
    batch = batch_of(labels, other if mixed else None, 0.6 if mixed else 1.0, inputs)
    settings = {"loss": name, "label_smoothing": smoothing}
    layer = torch.nn.Linear(4, 3).double()
    whole = loss_of(layer(inputs), batch, WEIGHTS, **settings)
    expected = torch.autograd.grad(whole, layer.weight)[0]
    total = 0.0
    for part in batch.parts(micro_batch):
        share = loss_of(layer(part.images), part, WEIGHTS, **settings)
        share.backward()
        total += share.item()
    assert total == pytest.approx(whole.item())
    torch.testing.assert_close(layer.weight.grad, expected)


@pytest.mark.parametrize("name", ALL)
def test_validation_is_judged_by_the_same_loss_without_smoothing(name):
    value = losses.build_validation_loss(config.make({"loss": name, "label_smoothing": 0.4}))(LOGITS, LABELS)
    assert isinstance(value, float)
    assert value == pytest.approx(loss_of(LOGITS, batch_of(LABELS), loss=name).item())


@pytest.mark.parametrize("name", ALL)
def test_half_precision_logits_lose_nothing_more(name):
    half = LOGITS.bfloat16()
    loss = loss_of(half, batch_of(LABELS), loss=name)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, loss_of(half.float(), batch_of(LABELS), loss=name))


# ---- two real processes ----

CASES = [
    {"loss": "soft_f1"},
    {"loss": "soft_f1", "label_smoothing": 0.2},
    {"loss": "focal", "label_smoothing": 0.1},
    {"loss": "ce", "balance": "class_weights"},
]


def a_batch(rank: int, world_size: int) -> Batch:
    """A process's share of seven mixed pairs; class 2 occurs in rank 0's share alone (positions 0, 2, 4, 6)."""
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(7, 4, generator=random, dtype=torch.float64)
    labels, other = torch.tensor([0, 0, 1, 1, 2, 0, 0]), torch.tensor([0, 1, 1, 0, 1, 1, 0])
    mine = slice(rank, None, world_size)
    return Batch(inputs[mine], labels[mine], other[mine], 0.7, 7)


def learn(rank: int, world_size: int) -> list[tuple[float, torch.Tensor]]:
    """For each case this process's share of the loss, and the gradient as the recipe computes it."""
    results = []
    for settings in CASES:
        layer = torch.nn.Linear(4, 3).double()
        with torch.no_grad():
            layer.weight.copy_(torch.arange(12).reshape(3, 4) / 10)
            layer.bias.zero_()
        network = DistributedDataParallel(layer) if world_size > 1 else layer
        weights = WEIGHTS if "balance" in settings else None
        batch = a_batch(rank, world_size)
        share = loss_of(network(batch.images), batch, weights, **settings)
        (share * world_size).backward()  # DDP averages over processes
        results.append((share.item(), layer.weight.grad.clone()))
    return results


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        torch.save(learn(rank, 2), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_processes_have_the_loss_and_the_gradient_of_one(tmp_path):
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    shares = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for (loss, gradient), *both, settings in zip(learn(0, 1), *shares, CASES, strict=True):
        assert sum(share for share, _ in both) == pytest.approx(loss), settings
        for _, summed in both:
            torch.testing.assert_close(summed, gradient, msg=str(settings))
