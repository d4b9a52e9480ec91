"""Balancing: exact counts, each photo in its place, draws that depend on seed and epoch alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from fruitlib.core.errors import InputError
from fruitlib.data import balance

LABELS = torch.tensor([0] * 7 + [1] * 3 + [2] * 12)[torch.randperm(22, generator=torch.Generator().manual_seed(0))]


def per_class(slots: torch.Tensor, labels: torch.Tensor = LABELS) -> list[int]:
    return torch.bincount(labels[slots]).tolist()


def times(slots: torch.Tensor) -> np.ndarray:
    """How often each photo occurs."""
    return torch.bincount(slots, minlength=len(LABELS)).numpy()


@pytest.mark.parametrize("method", ["none", "class_weights", "smote"])
def test_methods_that_leave_the_photos_alone_take_each_once(method):
    assert times(balance.slots(LABELS, method)).tolist() == [1] * 22


def test_oversample_repeats_every_class_to_the_largest_and_evenly():
    slots = balance.slots(LABELS, "oversample")
    assert per_class(slots) == [12, 12, 12]
    occurs = times(slots)
    for name, allowed in ((0, {1, 2}), (1, {4}), (2, {1})):
        assert set(occurs[name == LABELS].tolist()) == allowed


def test_undersample_takes_as_many_of_each_class_and_none_twice():
    slots = balance.slots(LABELS, "undersample")
    assert per_class(slots) == [3, 3, 3] and times(slots).max() == 1
    seen = {i for epoch in range(60) for i in balance.slots(LABELS, "undersample", seed=1, epoch=epoch).tolist()}
    assert len(seen) == 22  # no photo is left out in every epoch


def test_augment_to_keeps_every_photo_in_its_place_and_tops_up_the_rare():
    slots = balance.slots(LABELS, "augment_to", augment_to=10)
    assert slots[:22].tolist() == list(range(22))
    assert per_class(slots) == [10, 10, 12]
    assert set(times(slots)[LABELS == 1].tolist()) == {3, 4}


def test_the_weighted_sampler_draws_classes_and_photos_equally_often():
    drawn = torch.cat([balance.slots(LABELS, "weighted_sampler", epoch=epoch) for epoch in range(2000)])
    assert len(drawn) == 2000 * 22
    wanted = torch.utils.data.WeightedRandomSampler((1 / torch.bincount(LABELS))[LABELS], 22).weights
    share = times(drawn) / len(drawn)
    assert share == pytest.approx((wanted / wanted.sum()).numpy(), rel=0.12)
    assert np.array(per_class(drawn)) / len(drawn) == pytest.approx([1 / 3] * 3, abs=0.01)


@pytest.mark.parametrize("method", ["weighted_sampler", "oversample", "undersample", "augment_to"])
def test_draws_depend_on_seed_and_epoch_alone(method):
    def draw(seed, epoch):
        torch.manual_seed(int(torch.randint(1000, ())))
        return balance.slots(LABELS, method, augment_to=10, seed=seed, epoch=epoch).tolist()

    assert draw(3, 5) == draw(3, 5)
    assert draw(3, 5) != draw(3, 6) and draw(3, 5) != draw(4, 5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=50), st.sampled_from(list(balance.METHODS)), st.integers(0, 60))
def test_any_labels_give_indexes_of_photos_and_lose_no_class(labels, method, augment_to):
    labels = torch.tensor(labels)
    slots = balance.slots(labels, method, augment_to)
    assert slots.dtype == torch.int64 and slots.min() >= 0 and slots.max() < len(labels)
    if method != "weighted_sampler":
        assert set(labels[slots].tolist()) == set(labels.tolist())


def test_an_unknown_method_is_refused():
    with pytest.raises(InputError, match="balance = smoot"):
        balance.slots(LABELS, "smoot")


def test_class_weights_are_scikit_learns_and_average_to_one():
    weights = balance.class_weights(LABELS, "abc")
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS.numpy())
    assert weights.numpy() == pytest.approx(expected)
    assert weights[LABELS].mean().item() == pytest.approx(1)
    with pytest.raises(InputError, match="balance = class_weights: class plum has no training photos"):
        balance.class_weights(LABELS, ["apple", "cherry", "tomato", "plum"])


def features(labels: torch.Tensor) -> torch.Tensor:
    return torch.randn(len(labels), 6, generator=torch.Generator().manual_seed(1)) + 10 * labels[:, None]


def test_smote_evens_the_classes_with_points_between_two_of_the_same():
    given = features(LABELS)
    more, labels = balance.smote(given, LABELS, "abc", seed=2)
    assert torch.equal(more[:22], given) and torch.equal(labels[:22], LABELS)
    assert torch.bincount(labels).tolist() == [12, 12, 12] and more.dtype == given.dtype
    for point, label in zip(more[22:].double(), labels[22:], strict=True):
        own = given[label == LABELS].double()
        legs = torch.cdist(point[None], own)[0]
        detour = (legs[:, None] + legs[None] - torch.cdist(own, own)).fill_diagonal_(torch.inf)
        assert detour.min() < 1e-4  # on a segment the two legs make up its length


def test_smote_is_seeded_and_makes_do_with_few_photos():
    few = torch.tensor([0] * 6 + [1] * 2)
    first, again, other = (balance.smote(features(few), few, "ab", seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert "neighbours looked at: 1" in balance.summary(few, ["a", "b"], "smote")
    even = torch.tensor([0, 0, 1, 1])
    assert torch.equal(balance.smote(features(even), even, "ab")[1], even)


def test_smote_cannot_mix_a_single_photo():
    lone = torch.tensor([0, 0, 0, 1])
    with pytest.raises(InputError, match="balance = smote: class cherry has one training photo"):
        balance.smote(features(lone), lone, ["apple", "cherry"])


def test_the_summary_says_what_a_method_does_in_numbers():
    names = ["apple", "cherry", "tomato"]
    assert "an epoch has 36 (apple 12, cherry 12, tomato 12) from 22 photos" in balance.summary(
        LABELS, names, "oversample"
    )
    assert "weights apple 1.05, cherry 2.44, tomato 0.61" in balance.summary(LABELS, names, "class_weights")
    assert "1 of 3 classes have more than 10 and stay whole" in balance.summary(LABELS, names, "augment_to", 10)
