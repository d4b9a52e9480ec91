"""A photo becomes the same upright square of bytes on every call, cropped and enhanced as the settings say."""

import cv2
import numpy as np
import pytest
from PIL import Image

from fruitlib.core import config
from fruitlib.core.errors import InputError
from fruitlib.data import decoding, geometry, objects, preprocess


def settings(**values):
    return config.make({"image_size": 32, **values})


def save(picture: Image.Image, file, **options) -> str:
    picture.save(file, **options)
    return file.name


@pytest.fixture
def wide(tmp_path):
    """60 x 30, blue, its central square red."""
    picture = Image.new("RGB", (60, 30), "blue")
    picture.paste("red", (15, 0, 45, 30))
    return save(picture, tmp_path / "wide.png")


def fruit_on(background, size=(200, 100), at=(120, 20, 160, 80), colour="red") -> Image.Image:
    picture = Image.new("RGB", size, background)
    picture.paste(colour, at)
    return picture


def test_photos_are_upright_square_rgb_and_the_same_every_time(tmp_path):
    picture = Image.new("RGB", (60, 30), "red")
    picture.paste("blue", (0, 0, 30, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: the left end comes out on top
    name = save(picture, tmp_path / "turned.jpg", quality=95, exif=exif)
    decoded = preprocess.decode(tmp_path, name, settings(resize="squash"))
    assert decoded.shape == (32, 32, 3) and decoded.dtype == np.uint8
    assert decoded[:14, :, 2].min() > 240 and decoded[18:, :, 0].min() > 240
    assert np.array_equal(decoded, preprocess.decode(tmp_path, name, settings(resize="squash")))
    grey = save(Image.new("LA", (40, 40), 128), tmp_path / "grey.png")
    assert preprocess.decode(tmp_path, grey, settings()).shape == (32, 32, 3)


def test_crop_keeps_the_centre_squash_and_pad_keep_everything(tmp_path, wide):
    crop, pad, squash = (
        preprocess.decode(tmp_path, wide, settings(resize=how)).astype(int) for how in ("crop", "pad", "squash")
    )
    assert (crop[:, 1:-1] == [255, 0, 0]).all()  # the outermost pixels may be touched by what lies beyond
    red, blue = (squash == [255, 0, 0]).all(2), (squash == [0, 0, 255]).all(2)
    assert red[:, 9:23].all() and blue[:, :7].all() and blue[:, 25:].all()
    assert np.array_equal(pad[:8], np.repeat(pad[8:9], 8, axis=0))  # the outermost row goes on
    assert (pad[16, 9:23] == [255, 0, 0]).all() and (pad[16, :7] == [0, 0, 255]).all()


@pytest.mark.parametrize("size", [(60, 31), (31, 60), (9, 180)])
def test_padding_is_opencvs_replicated_border(size):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))
    ours = np.asarray(geometry.square(picture, (0, 0, *size), "pad", 32))
    inner = max(1, round(32 * size[0] / max(size))), max(1, round(32 * size[1] / max(size)))
    resized = np.asarray(picture.resize(inner, Image.Resampling.BILINEAR))
    left, top = (32 - inner[0]) // 2, (32 - inner[1]) // 2
    edges = top, 32 - inner[1] - top, left, 32 - inner[0] - left
    assert np.array_equal(ours, cv2.copyMakeBorder(resized, *edges, cv2.BORDER_REPLICATE))


def large(width, height):
    """Soft colourful patches, as a camera's photo has them."""
    rough = np.random.default_rng(0).integers(96, 160, (8, 8, 3), np.uint8)
    return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("size", "changes", "divided"),
    [
        ((1200, 904), {}, 4),
        ((1200, 904), {"resize": "squash"}, 4),
        ((1200, 904), {"resize": "pad", "center": 0.9}, 4),
        ((1200, 904), {"center": 0.4}, 1),
        ((1200, 904), {"crop_to": "object"}, 1),
        ((1202, 905), {}, 1),  # blocks that are not whole
        ((500, 400), {}, 2),
        ((190, 300), {}, 1),
    ],
)
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_large_jpeg_file_is_reduced_by_its_decoder_and_looks_as_at_full_scale(
    tmp_path, monkeypatch, size, changes, divided, orientation
):
    monkeypatch.setattr(geometry, "USUAL_SIDE", 32)
    exif, how = Image.Exif(), settings(**({"resize": "crop"} | changes))
    exif[decoding.ORIENTATION] = orientation
    large(*size).save(tmp_path / "a.jpg", quality=92, exif=exif)
    with decoding.opened((tmp_path / "a.jpg").read_bytes()) as photo:
        whole = geometry.prepared(photo.image, None, how)
    loaded = []
    real = decoding.rgb.convert
    monkeypatch.setattr(decoding.rgb, "convert", lambda photo, *rest: loaded.append(photo.size) or real(photo, *rest))
    square = preprocess.decode(tmp_path, "a.jpg", how)
    assert loaded == [(size[0] // divided, size[1] // divided)]
    assert np.abs(square.astype(int) - whole).max() <= (2 if divided > 1 else 0)


def drawing(width, height):
    """Edges between full colours, sharp to the pixel."""
    cells = np.random.default_rng(0).choice([0, 255], (height // 37 + 1, width // 37 + 1, 3)).astype(np.uint8)
    return Image.fromarray(np.kron(cells, np.ones((37, 37, 1), np.uint8))[:height, :width])


@pytest.mark.parametrize(("picture", "times"), [(large, 1), (drawing, 2)])
def test_drawings_are_decoded_in_full(tmp_path, monkeypatch, picture, times):
    monkeypatch.setattr(geometry, "USUAL_SIDE", 96)
    picture(1200, 1200).save(tmp_path / "a.jpg", quality=75)
    how = settings(image_size=96, resize="crop")
    with decoding.opened((tmp_path / "a.jpg").read_bytes()) as photo:
        whole = geometry.prepared(photo.image, None, how).astype(int)
    with decoding.opened((tmp_path / "a.jpg").read_bytes(), reducible=lambda size: 2) as photo:
        reduced = geometry.prepared(photo.image, None, how)
    assert (np.abs(reduced - whole).max() > 2) == (times == 2)
    loaded, real = [], decoding.rgb.convert
    monkeypatch.setattr(decoding.rgb, "convert", lambda photo, *rest: loaded.append(photo.size) or real(photo, *rest))
    assert np.abs(preprocess.decode(tmp_path, "a.jpg", how) - whole).max() <= 2
    assert loaded == [(600, 600), (1200, 1200)][:times]


def test_one_decoding_serves_all_networks_of_up_to_224_pixels():
    sizes = [(4000, 3000), (6000, 4000), (1600, 1200), (4001, 3000)]
    for how in (settings(image_size=96), settings(image_size=224)):
        assert [geometry.reducible(size, None, how) for size in sizes] == [2, 2, 1, 1]
    assert [geometry.usual(size) for size in sizes] == [2, 2, 1, 1]
    assert geometry.reducible((4000, 3000), None, settings(image_size=448)) == 1


def test_boxes_are_cut_out_of_reduced_photos_where_they_were(tmp_path):
    large(1600, 1200).save(tmp_path / "a.jpg", quality=92)
    with decoding.opened((tmp_path / "a.jpg").read_bytes()) as photo:
        whole = geometry.prepared(photo.image, (400, 200, 1000, 800), settings(crop_margin=0))
    inside = preprocess.decode(tmp_path, "a.jpg#xywh=400,200,600,600", settings(crop_margin=0))
    assert np.abs(inside.astype(int) - whole).max() <= 1
    assert geometry.reducible((1600, 1200), (400, 200, 1000, 800), settings(crop_margin=0)) == 2
    assert geometry.reducible((1600, 1200), (400, 200, 450, 250), settings(crop_margin=0)) == 1


def test_shrinking_averages_instead_of_picking_pixels(tmp_path):
    board = (np.indices((640, 640)).sum(0) % 2 * 255).astype(np.uint8)
    name = save(Image.fromarray(board), tmp_path / "board.png")
    decoded = preprocess.decode(tmp_path, name, settings())
    assert decoded.min() >= 120 and decoded.max() <= 135


def test_a_box_is_cut_out_with_its_margin_and_clipped_to_the_photo(tmp_path):
    save(fruit_on("white", at=(120, 20, 160, 60)), tmp_path / "a.png")
    inside = preprocess.decode(tmp_path, "a.png#xywh=120,20,40,40", settings(crop_margin=0))
    assert (inside[1:-1, 1:-1] == [255, 0, 0]).all()
    with_margin = preprocess.decode(tmp_path, "a.png#xywh=120,20,40,40", settings(crop_margin=0.5))
    assert 0.22 < (with_margin[:, :, 1] < 128).mean() < 0.28  # a quarter of it is fruit
    assert (with_margin[0] == 255).all() and (with_margin[16, 16] == [255, 0, 0]).all()
    corner = preprocess.decode(tmp_path, "a.png#xywh=190,90,40,40", settings(crop_margin=0))
    assert (corner == 255).all()
    whole = preprocess.decode(tmp_path, "a.png#xywh=120,20,40,40", settings(crop_to="none", resize="squash"))
    assert 0.05 < (whole[:, :, 1] < 128).mean() < 0.11
    with pytest.raises(InputError, match="lies outside the photo, 200 x 100"):
        preprocess.decode(tmp_path, "a.png#xywh=300,20,40,40", settings())


@pytest.mark.parametrize("size", [(200, 100), (800, 400)])
def test_an_object_on_a_plain_background_is_located(size):
    factor = size[0] // 200
    at = tuple(factor * n for n in (120, 20, 160, 80))
    rng = np.random.default_rng(0)
    for background in ("white", "black", (90, 120, 60)):
        pixels = np.asarray(fruit_on(background, size, at, "red"), dtype=int) + rng.integers(-6, 7, (*size[::-1], 3))
        extent = objects.find_object(pixels.clip(0, 255).astype(np.uint8))
        assert np.abs(np.subtract(extent, at)).max() <= factor + 1


def test_without_a_plain_background_the_whole_photo_is_kept(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (80, 80, 3), dtype=np.uint8)
    flat = np.full((80, 80, 3), 200, np.uint8)
    grainy = (flat + rng.integers(-8, 9, flat.shape)).astype(np.uint8)
    speck = np.asarray(fruit_on("white", (80, 80), (40, 40, 44, 44)))
    framed = np.asarray(fruit_on("white", (80, 80), (1, 1, 79, 79)))  # all but a line around it
    assert [objects.find_object(p) for p in (noise, flat, grainy, speck)] == [None] * 4
    assert objects.find_object(framed) == (1, 1, 79, 79)
    name = save(Image.fromarray(noise), tmp_path / "noise.png")
    assert np.array_equal(
        preprocess.decode(tmp_path, name, settings(crop_to="object")),
        preprocess.decode(tmp_path, name, settings(crop_to="none")),
    )


def test_an_object_is_cut_out_with_its_margin_inside_its_own_box(tmp_path):
    picture = fruit_on("white")
    picture.paste("green", (10, 10, 100, 90))  # a larger fruit beside it
    save(picture, tmp_path / "two.png")
    red = preprocess.decode(tmp_path, "two.png#xywh=105,5,90,90", settings(crop_to="object", crop_margin=0))
    assert (red[1:-1, 1:-1] == [255, 0, 0]).all()
    green = preprocess.decode(tmp_path, "two.png", settings(crop_to="object", crop_margin=0))
    assert (green[1:-1, 1:-1] == [0, 128, 0]).all()
    margin = preprocess.decode(tmp_path, "two.png", settings(crop_to="object", crop_margin=0.1, resize="squash"))
    assert 0.6 < (margin[:, :, 0] < 128).mean() < 0.78  # 1 / 1.2 of each side


def test_factors_change_what_they_name_and_one_changes_nothing(tmp_path):
    rng = np.random.default_rng(1)
    name = save(Image.fromarray(rng.integers(40, 200, (32, 32, 3), dtype=np.uint8)), tmp_path / "a.png")
    plain = preprocess.decode(tmp_path, name, settings()).astype(float)

    def decoded(**factor):
        return preprocess.decode(tmp_path, name, settings(**factor)).astype(float)

    assert abs(decoded(brightness=0.5).mean() / plain.mean() - 0.5) < 0.01
    assert abs(decoded(contrast=0.5).std(axis=(0, 1)).mean() / plain.std(axis=(0, 1)).mean() - 0.5) < 0.05
    assert np.ptp(decoded(saturation=0), axis=2).max() == 0
    assert decoded(sharpness=0).std() < plain.std() < decoded(sharpness=2).std()


def test_a_photo_that_vanished_or_broke_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.jpg: does not open"):
        preprocess.decode(tmp_path, "gone.jpg", settings())
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    with pytest.raises(InputError, match=r"broken\.jpg: does not open"):
        preprocess.decode(tmp_path, "broken.jpg", settings())
