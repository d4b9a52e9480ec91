"""Photos as tensors: upright, in order, and augmented by (seed, epoch, photo) alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from fruitlib import config, images
from fruitlib.runtime import InputError


def test_every_photo_is_in_exactly_one_batch_and_no_batch_is_tiny():
    for count in (16, 17, 31, 40, 234, 5):
        parts = images.batches(count, 16, seed=3, epoch=2)
        assert sorted(torch.cat(parts).tolist()) == list(range(count))
        assert min(map(len, parts)) >= min(8, count) and max(map(len, parts)) < 24
    assert sorted(map(len, images.batches(5, 2, seed=0, epoch=1))) == [2, 3]  # BatchNorm cannot learn from one


def test_order_and_augmentation_depend_on_seed_and_epoch_alone():
    def everything(seed, epoch):
        return torch.cat(images.batches(50, 8, seed, epoch)), images.augmentation(50, seed, epoch)

    torch.manual_seed(1)
    order, matrices = everything(0, 1)
    torch.manual_seed(2)  # torch's global state has no say
    again = everything(0, 1)
    assert torch.equal(order, again[0]) and torch.equal(matrices, again[1])
    for other in (everything(0, 2), everything(1, 1)):
        assert not torch.equal(order, other[0]) and not torch.equal(matrices, other[1])


def test_a_photo_is_augmented_alike_whoever_shares_its_batch():
    pixels = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8)
    matrices = images.augmentation(12, seed=0, epoch=4)
    whole = images.warp(images.to_float(pixels), matrices)
    halves = [images.warp(images.to_float(pixels[i::2]), matrices[i::2]) for i in (0, 1)]
    for i, half in enumerate(halves):
        torch.testing.assert_close(whole[i::2], half)


def test_augmentation_is_geometric_and_keeps_colours():
    draws = images.augmentation(4000, seed=0, epoch=1)
    scale = torch.linalg.det(draws[:, :, :2]).abs().sqrt()
    assert 0.8 <= scale.min() < 0.82 and 1.08 < scale.max() <= 1.1001
    assert 0.45 < (torch.linalg.det(draws[:, :, :2]) < 0).float().mean() < 0.55  # half are mirrored
    turn = torch.rad2deg(torch.atan2(-draws[:, 0, 1], draws[:, 1, 1]))
    assert 29 < turn.max() <= 30.001 and -30.001 <= turn.min() < -29
    flat = torch.full((4, 3, 32, 32), 0.3)
    flat[:, 0] = 0.8
    torch.testing.assert_close(images.warp(flat, draws[:4]), flat)  # borders reflect: nothing dark comes in


def test_identity_matrix_leaves_the_photo_alone():
    pixels = torch.rand(2, 3, 33, 33)
    identity = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(2, 2, 3)
    torch.testing.assert_close(images.warp(pixels, identity), pixels, atol=1e-5, rtol=0)


def test_photos_are_decoded_upright_square_and_rgb(tmp_path):
    picture = Image.new("RGB", (60, 30), "blue")
    picture.paste("red", (15, 0, 45, 30))  # the central square is red
    exif = Image.Exif()
    exif[0x0112] = 8
    picture.save(tmp_path / "wide.jpg", quality=95, exif=exif)
    decoded = images.decode_photo(tmp_path / "wide.jpg", 32)
    assert decoded.shape == (3, 32, 32) and decoded.dtype == np.uint8
    assert decoded[0, 2:-2, 2:-2].min() > 240 and decoded[2, 2:-2, 2:-2].max() < 15
    Image.new("LA", (40, 40), 128).save(tmp_path / "grey.png")
    assert images.decode_photo(tmp_path / "grey.png", 32).shape == (3, 32, 32)


def test_a_photo_that_vanished_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.jpg: does not open"):
        images.decode_photo(tmp_path / "gone.jpg", 32)


def test_spread_keeps_the_proportions_of_the_classes():
    labels = torch.tensor([0] * 107 + [1] * 107 + [2] * 30)
    photos = images.Photos(torch.zeros(244, 3, 4, 4, dtype=torch.uint8), labels, [str(i) for i in range(244)])
    found = torch.bincount(images.spread(photos, 100).labels)
    assert found.sum() == 100 and (found - torch.tensor([44, 44, 12])).abs().max() <= 1
    assert len(images.spread(photos, 9999)) == 244


def test_arrays_and_pictures_hold_the_same_pixels():
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    np.testing.assert_allclose(images.to_array(pixels), images.to_float(pixels).numpy(), atol=1e-7)
    assert images.to_pictures(pixels)[1, 2, 3].tolist() == pixels[1, :, 2, 3].tolist()


def test_example_batch_shows_what_training_sees():
    cfg = config.make({"augment": "none", "batch_size": 4})
    pixels = torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8)
    photos = images.Photos(pixels, torch.zeros(9, dtype=torch.long), list("abcdefghi"))
    first = images.batches(9, 4, 0, 1)[0]
    assert np.array_equal(images.example_batch(photos, cfg), images.to_pictures(pixels[first]))
