"""Augmentation is drawn from (seed, epoch, slot) alone, does what its policy says, and is the same on CPU and GPU."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fruitlib.data import augment

OURS = ("none", "crop", "geometric", "colour", "full")
ALL = (*OURS, "trivial", "randaugment")


@pytest.fixture(scope="module")
def pictures():
    """Sixteen smooth pictures, as photographs are, with a sharp edge in each."""
    rng = np.random.default_rng(0)
    rough = torch.from_numpy(rng.integers(0, 256, (16, 3, 6, 6))).float()
    smooth = torch.nn.functional.interpolate(rough, size=(48, 48), mode="bilinear").byte()
    smooth[:, :, 10:20, 12:30] = 255 - smooth[:, :, 10:20, 12:30]
    return smooth.permute(0, 2, 3, 1).contiguous().numpy()


def draw(policy, count, seed, epoch, side=48):
    return augment.draw(policy, count, seed, epoch, side)


def look(pictures, policy, count=None, seed=0, epoch=1):
    return augment.apply(pictures, draw(policy, count or len(pictures), seed, epoch).pick(range(len(pictures))))


@pytest.mark.parametrize("policy", ALL)
def test_draws_depend_on_seed_epoch_and_slot_alone(policy, pictures):
    torch.manual_seed(1)
    first = look(pictures, policy)
    torch.manual_seed(2)  # torch's global state does not matter, and is left as it was
    state = torch.get_rng_state()
    assert np.array_equal(look(pictures, policy), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(look(pictures, policy, count=50), first)  # nor does the number of slots
    draws = draw(policy, 16, 0, 1)
    some = [9, 3, 3]
    assert np.array_equal(augment.apply(pictures[some], draws.pick(some)), first[some])
    for other in (look(pictures, policy, seed=1), look(pictures, policy, epoch=2)):
        changed = (other != first).any((1, 2, 3)).mean()
        assert changed == 0 if policy == "none" else changed > 0.7


def test_geometric_mirrors_turns_scales_shifts_and_distorts_within_its_limits():
    draws = draw("geometric", 4000, seed=0, epoch=1)
    assert draws.colours is None  # colour is part of the label
    bend = np.tile(np.eye(3), (4000, 1, 1))
    bend[:, 2, :2] = draws.warps[:, 2, :2]
    flat = draws.warps @ np.linalg.inv(bend)  # without its foreshortening: an affine map
    scale = np.sqrt(np.abs(np.linalg.det(flat[:, :2, :2])))
    assert 0.8 <= scale.min() < 0.805 and 1.095 < scale.max() <= 1.1001
    mirrored = np.linalg.det(flat[:, :2, :2]) < 0
    assert 0.46 < mirrored.mean() < 0.54
    turn = np.rad2deg(np.arctan2(flat[:, 1, 0], flat[:, 0, 0]) + np.where(mirrored, np.pi, 0))
    turn = (turn + 180) % 360 - 180
    assert 29.5 < turn.max() <= 30.001 and -30.001 <= turn.min() < -29.5
    assert 0.099 < np.abs(flat[:, :2, 2]).max() <= 0.1  # of 2, so 5 % of the side
    assert 0.049 < np.abs(draws.warps[:, 2, :2]).max() <= 0.05


def test_crop_takes_a_third_or_more_from_inside_the_picture():
    side = 1000
    left, top, width, height, mirrored = draw("crop", 4000, seed=0, epoch=1, side=side).crops.T
    area = width * height / side**2
    assert 0.349 < area.min() < 0.36 and 0.95 < area.max() <= 1
    assert 0.74 < (width / height).min() < 0.76 and 1.32 < (width / height).max() < 1.34
    assert min(left.min(), top.min()) == 0 and (left + width).max() == (top + height).max() == side
    assert 0.46 < mirrored.mean() < 0.54


def test_a_crop_is_the_part_enlarged_and_mirrored(pictures):
    crops = np.array([[4, 10, 24, 12, mirrored] for mirrored in (0, 1)])
    part = torch.from_numpy(pictures[:2, 10:22, 4:28]).permute(0, 3, 1, 2).float()
    wanted = torch.nn.functional.interpolate(part, size=(48, 48), mode="bilinear").permute(0, 2, 3, 1).numpy()
    wanted[1] = wanted[1, :, ::-1]
    assert np.abs(augment.apply(pictures[:2], augment.Draws(crops=crops)) - wanted).max() < 1.5
    whole = augment.Draws(crops=np.array([[0, 0, 48, 48, 0]] * 16))
    assert np.array_equal(augment.apply(pictures, whole), pictures)


@pytest.mark.parametrize("policy", ["crop", "geometric"])
def test_warps_keep_colours(policy):
    flat = np.full((32, 40, 40, 3), (200, 60, 20), np.uint8)
    assert np.array_equal(look(flat, policy), flat)  # borders reflect: nothing dark comes in


def test_colour_leaves_places_and_greys_keep_no_hue(pictures):
    warm = look(pictures, "colour").astype(int)
    assert draw("colour", 4, 0, 1).warps is None
    grey = np.repeat(pictures[..., :1], 3, axis=3)
    assert np.ptp(look(grey, "colour"), axis=3).max() <= 1
    assert 4 < np.abs(warm - pictures).mean() < 40
    mid = np.full((200, 4, 4, 3), 128, np.uint8)  # contrast turns around mid-grey, so brightness alone moves it
    seen = look(mid, "colour")[:, 0, 0, 0] / 128
    assert 0.75 < seen.min() < 0.85 and 1.15 < seen.max() < 1.25


def test_large_epochs_are_drawn_in_parts_without_a_seam(monkeypatch):
    whole = draw("full", 100, 0, 1)
    monkeypatch.setattr(augment, "ROWS", 32)
    parts = draw("full", 100, 0, 1)
    assert np.array_equal(parts.warps, whole.warps) and np.array_equal(parts.colours, whole.colours)
    assert len(draw("full", 0, 0, 1).warps) == 0


def test_full_is_geometric_and_colour(pictures):
    full, geometric, colour = (draw(policy, 16, 3, 2) for policy in ("full", "geometric", "colour"))
    assert np.array_equal(full.warps, geometric.warps) and np.array_equal(full.colours, colour.colours)
    both = augment.apply(augment.apply(pictures, geometric), colour)
    assert np.array_equal(augment.apply(pictures, full), both)


def test_the_identity_leaves_a_photo_alone(pictures):
    still = augment.Draws(warps=np.tile(np.eye(3), (16, 1, 1)), colours=np.tile(np.eye(3, 4), (16, 1, 1)))
    assert np.array_equal(augment.apply(pictures, still), pictures)
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(augment.apply_batch(images, still), images, atol=1e-4, rtol=0)
    assert augment.apply(pictures, draw("none", 16, 0, 1)) is pictures


def test_a_mirror_and_a_shift_of_whole_pixels_are_exact(pictures):
    mirror, shift = np.eye(3), np.eye(3)
    mirror[0, 0], shift[0, 2] = -1, 2 * 5 / 48  # taken from 5 pixels further right
    draws = augment.Draws(warps=np.tile(mirror, (16, 1, 1)))
    assert np.array_equal(augment.apply(pictures, draws), pictures[:, :, ::-1])
    moved = augment.apply(pictures, augment.Draws(warps=np.tile(shift, (16, 1, 1))))
    assert np.array_equal(moved[:, :, :-5], pictures[:, :, 5:])
    assert np.array_equal(moved[:, :, -5:], pictures[:, :, :-6:-1])  # reflected


@pytest.mark.parametrize("policy", OURS)
def test_one_by_one_and_all_at_once_agree(policy, pictures):
    draws = draw(policy, 16, seed=5, epoch=3)
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    once = augment.apply_batch(images, draws).permute(0, 2, 3, 1).numpy() * 255
    apart = np.abs(once - augment.apply(pictures, draws))
    assert apart.mean() < 0.6 and (apart > 4).mean() < 0.01  # rounding to bytes alone is 0.25 on average


@pytest.mark.parametrize("policy", OURS)
def test_a_picture_does_not_depend_on_those_augmented_beside_it(policy, pictures):
    draws = draw(policy, 16, seed=5, epoch=3)
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    apart = [augment.apply_batch(images[[i]], draws.pick([i])) for i in range(16)]
    assert torch.equal(augment.apply_batch(images, draws), torch.cat(apart))


@pytest.mark.parametrize("policy", ["trivial", "randaugment"])
def test_torchvisions_policies_vary_from_photo_to_photo(policy):
    same = np.tile(np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8), (12, 1, 1, 1))
    assert len({picture.tobytes() for picture in look(same, policy)}) > 6


def mix(kind, seed=0, number=0, size=16, side=48, alpha=0.4):
    return augment.pairs(kind, alpha, size, side, seed, 1, number)


@given(st.integers(0, 10**6), st.integers(0, 50), st.sampled_from([1, 4, 33, 96]), st.sampled_from([0.1, 1, 5]))
def test_cutmix_counts_exactly_the_pixels_it_took(seed, number, side, alpha):
    drawn = mix("cutmix", seed, number, 3, side, alpha)
    images = augment.mixed(torch.zeros(3, 3, side, side), torch.ones(3, 3, side, side), drawn)
    assert 1 - images[1].mean(dtype=torch.float64).item() == pytest.approx(drawn.share, abs=1e-9)
    assert 0 <= drawn.share <= 1 and sorted(drawn.partners) == [0, 1, 2]


def test_mixup_is_the_weighted_mean():
    drawn = mix("mixup", alpha=2)
    first, second = torch.rand(16, 3, 8, 8), torch.rand(16, 3, 8, 8)
    expected = drawn.share * first + (1 - drawn.share) * second
    torch.testing.assert_close(augment.mixed(first.clone(), second, drawn), expected)
    assert drawn.box is None and 0 < drawn.share < 1 and mix("none") is None


def test_shares_follow_the_beta_distribution():
    shares = np.array([mix("mixup", number=number, alpha=0.4).share for number in range(3000)])
    assert abs(shares.mean() - 0.5) < 0.03 and abs(shares.var() - 1 / (4 * 1.8)) < 0.01
    assert len({mix("mixup", number=number).share for number in range(20)}) == 20
    assert mix("cutmix", seed=4, number=2).box == mix("cutmix", seed=4, number=2).box
