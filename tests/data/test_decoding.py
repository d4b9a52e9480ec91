"""Photos of more than 8 bits, large photos, memory, HEIC; what is odd about files is in test_photo_checks."""

import struct
import threading
import types
import zlib

import cv2
import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image

from fruitlib.core import config
from fruitlib.core.errors import InputError
from fruitlib.data import cache, dataset, decoding, inspection, memory, photo_checks, preprocess, rgb


def noise(size=(60, 40), seed=0, channels=3, top=256, kind=np.uint8):
    shape = (*size[::-1], channels) if channels > 1 else size[::-1]
    return np.random.default_rng(seed).integers(0, top, shape).astype(kind)


def write_deep(file, values):
    """A PNG or TIFF file of 16 bits a channel; Pillow writes no colours of 16 bits."""
    assert cv2.imwrite(str(file), values[..., ::-1] if values.ndim == 3 else values)


def checked(folder, names, splits):
    rows = pd.DataFrame({"path": names, "label": "a", "group": "", "split": ""})
    return photo_checks.check_photos(folder, rows).assign(split=splits)


# ---- more than 8 bits


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("top", "bits"), [(1024, 10), (4096, 12), (65536, 16), (200, 8)])
def test_the_bits_in_use_are_found_and_scaled_to_eight(tmp_path, name, channels, top, bits):
    values = noise(channels=channels, top=top, kind=np.uint16)
    values[0, 0] = top - 1
    write_deep(tmp_path / name, values)
    facts = inspection.inspect(tmp_path / name)
    message = "16 bits scaled to 8" if bits == 16 else f"uses {bits} of its 16 bits"
    assert facts[:2] == ("ok", message) and facts[-1] == bits
    shown = np.asarray(decoding.open_photo(tmp_path / name))
    expected = values >> (bits - 8)
    assert np.array_equal(shown, expected if channels == 3 else np.repeat(expected[..., None], 3, axis=2))


def test_deep_photos_are_shown_by_the_range_that_training_and_validation_use(tmp_path):
    tops = {"bright.png": 1023, "dark.png": 100, "test.png": 60000}
    for name, top in tops.items():
        values = noise(channels=1, top=50, kind=np.uint16)
        values[:, 20:] = top
        write_deep(tmp_path / name, values)
    Image.fromarray(noise()).save(tmp_path / "plain.jpg")
    manifest = checked(tmp_path, [*tops, "plain.jpg"], ["train", "val", "test", "train"])
    assert manifest["bits"].tolist() == [10, 8, 16, 0]
    auto = config.make({"image_size": 32, "resize": "squash"})
    assert photo_checks.depth_notes(manifest, auto) == [
        "3 photos have more than 8 bits: shown as 10 bits, 0 to 1,023 (the range that the training and validation "
        "photos use)"
    ]
    settings = photo_checks.with_bits(auto, manifest)
    assert settings.deep_bits == 10
    right = {name: int(preprocess.decode(tmp_path, name, settings)[5, 25, 0]) for name in tops}
    assert right == {"bright.png": 255, "dark.png": 25, "test.png": 255}  # what exceeds the range is white
    keys = manifest["sha256"].tolist()
    names = [cache.identity(tmp_path, manifest["path"], keys, one) for one in (auto, settings)]
    assert names[0] != names[1]


def test_a_few_bright_pixels_are_named_as_what_may_darken_all_others(tmp_path):
    for name in ("a.png", "b.png", "hot.png"):
        values = noise(channels=1, top=1020, kind=np.uint16)
        values[0, 0] = 65535 if name == "hot.png" else 1020
        write_deep(tmp_path / name, values)
    manifest = checked(tmp_path, ["a.png", "b.png", "hot.png"], ["train"] * 3)
    assert photo_checks.depth_notes(manifest, config.make({}))[1] == (
        "1 of these photos use more than 10 bits; half of them use 10 at most: if a few bright pixels are to blame, "
        "set deep_bits: 10"
    )


def test_a_set_of_plain_photos_has_no_bits_and_the_setting_wins_over_what_is_found(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "plain.jpg")
    write_deep(tmp_path / "deep.png", noise(channels=1, top=1024, kind=np.uint16))
    auto, twelve = config.make({}), config.make({"deep_bits": 12})
    plain = checked(tmp_path, ["plain.jpg"], ["train"])
    assert photo_checks.with_bits(auto, plain) == auto and photo_checks.depth_notes(plain, auto) == []
    both = checked(tmp_path, ["plain.jpg", "deep.png"], ["train", "val"])
    assert photo_checks.with_bits(twelve, both) == twelve
    assert photo_checks.depth_notes(both, twelve) == [
        "1 photo has more than 8 bits: shown as 12 bits, 0 to 4,095 (as deep_bits says)"
    ]


def test_what_runs_load_is_scaled_by_the_manifest(tmp_path, monkeypatch):
    monkeypatch.setenv("FRUITLIB_CACHE", str(tmp_path / "cache"))
    for name, top in (("a.png", 1023), ("b.png", 511)):
        write_deep(tmp_path / name, np.full((40, 40), top, np.uint16))
    manifest = checked(tmp_path, ["a.png", "b.png"], ["train", "val"])

    settings = config.make({"data": str(tmp_path), "image_size": 32})
    run = types.SimpleNamespace(config=settings, class_names=["a"], manifest=manifest)
    val = manifest[manifest["split"] == "val"]
    assert dataset.load_photos(run, "val", rows=val).images.unique().tolist() == [127]


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(
    ("name", "options"),
    [("a.png", [])] + [(f"{kind}.tif", [cv2.IMWRITE_TIFF_COMPRESSION, kind]) for kind in (1, 5, 8)],
)
def test_all_sixteen_bits_are_read_as_opencv_reads_them(tmp_path, name, options, channels):
    values = noise(channels=channels, top=1024, kind=np.uint16)
    values[..., 3:] = np.where(values[..., 3:] > 300, 65535, 0)
    cv2.imwrite(str(tmp_path / name), values, options)
    read = cv2.imread(str(tmp_path / name), cv2.IMREAD_UNCHANGED)
    shown = np.where(read[..., 3:].any(2, keepdims=True) | (channels == 3), read[..., 2::-1] >> 2, 255)
    with decoding.opened((tmp_path / name).read_bytes()) as photo:
        assert photo.bits == 10 and np.array_equal(np.asarray(photo.image), shown)


def test_the_colour_that_a_deep_png_calls_transparent_is_white(tmp_path):
    values = noise(channels=3, top=1020, kind=np.uint16)
    values[:5] = clear = (3, 260, 1021)
    write_deep(tmp_path / "a.png", values)
    content = (tmp_path / "a.png").read_bytes()
    chunk = b"tRNS" + struct.pack(">3H", *clear)
    chunk = struct.pack(">I", 6) + chunk + struct.pack(">I", zlib.crc32(chunk))
    with decoding.opened(content.replace(content[33:], chunk + content[33:])) as photo:  # behind the header
        pixels = np.asarray(photo.image)
    assert (pixels[:5] == 255).all() and np.array_equal(pixels[5:], values[5:] >> 2)


def test_transparent_deep_colours_are_shown_on_white(tmp_path):
    values = np.zeros((40, 60, 4), np.uint16)
    values[..., :3], values[:, 30:, 3] = 1023, 65535
    values[:, :, 0] = 0
    assert cv2.imwrite(str(tmp_path / "a.png"), values)  # blue first
    photo = decoding.open_photo(tmp_path / "a.png")
    assert photo.getpixel((5, 5)) == (255, 255, 255) and photo.getpixel((50, 5)) == (255, 255, 0)


# ---- large photos

LARGE = [("a.jpg", "RGB"), ("a.png", "RGB"), ("a.png", "RGBA"), ("a.tif", "CMYK"), ("a.webp", "RGB"), ("a.png", "P")]


@pytest.fixture
def reduced(monkeypatch):
    """Photos above 20,000 pixels are large, and strips are of 5,000."""
    monkeypatch.setattr(decoding, "FULL_SCALE", 20_000)
    monkeypatch.setattr(rgb, "STRIP", 5_000)


@pytest.mark.parametrize(("name", "mode"), LARGE)
def test_large_photos_are_read_at_a_reduced_scale_with_boxes_in_place(tmp_path, reduced, name, mode):
    picture = Image.new("RGB", (300, 200), "white")
    picture.paste("red", (201, 50, 261, 130))
    picture.convert(mode).save(tmp_path / name)
    with decoding.opened((tmp_path / name).read_bytes()) as photo:
        assert photo.size == (300, 200) and photo.image.size == (150, 100)
    small = preprocess.decode(tmp_path, f"{name}#xywh=206,56,48,68", config.make({"image_size": 32, "crop_margin": 0}))
    assert (np.abs(small.astype(int) - [255, 0, 0]) < 40).all()
    message = inspection.inspect(tmp_path / name, (210, 60, 40, 60))[1]
    assert message == ("" if name == "a.jpg" else "a single flat colour")  # JPEG's edges reach into their neighbourhood
    assert inspection.inspect(tmp_path / name)[:4] == ("ok", "", 300, 200)


def test_strips_give_the_pixels_that_the_whole_gives(tmp_path, monkeypatch):
    see_through = Image.fromarray(noise((97, 61), channels=4), "RGBA")
    see_through.save(tmp_path / "a.png")
    write_deep(tmp_path / "b.png", noise((97, 61), channels=1, top=4096, kind=np.uint16))
    whole = [np.asarray(decoding.open_photo(tmp_path / name)) for name in ("a.png", "b.png")]
    monkeypatch.setattr(rgb, "STRIP", 300)
    strips = [np.asarray(decoding.open_photo(tmp_path / name)) for name in ("a.png", "b.png")]
    assert all(map(np.array_equal, whole, strips))


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (0.05, "too large: 0.1 million pixels; set max_megapixels: 1 or more to read it at a reduced scale"),
        (0.06, ""),
        (2000, ""),
    ],
)
def test_the_setting_says_how_large_a_photo_may_be(tmp_path, limit, words):
    Image.fromarray(noise((300, 200))).save(tmp_path / "a.png")
    assert inspection.inspect(tmp_path / "a.png", megapixels=limit)[1] == words


def test_glimpses_of_large_photos_are_those_that_cost_little(tmp_path, reduced):
    Image.fromarray(noise((600, 400))).save(tmp_path / "a.jpg")
    Image.fromarray(noise((600, 400))).save(tmp_path / "a.png")
    assert decoding.glimpse(tmp_path / "a.jpg", 64).shape == (43, 64, 3)
    assert decoding.glimpse(tmp_path / "a.png", 64) is None


# ---- memory


def test_threads_wait_until_their_photos_fit_together(monkeypatch):
    monkeypatch.setattr(memory, "_available", lambda: 200)
    taken, held, most = memory.Memory(0.5), [], []
    lock = threading.Lock()

    def work(size):
        with taken.hold(size):
            with lock:
                held.append(size)
                most.append(list(held))
            pause.wait(0.005)
            with lock:
                held.remove(size)

    pause = threading.Event()
    threads = [threading.Thread(target=work, args=(size,)) for size in [60, 40, 150, 30] * 5]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(most) == 20
    assert all(sum(sizes) <= 100 or sizes == [150] for sizes in most)  # the one that is too large is alone
    assert max(map(len, most)) > 1


@pytest.mark.parametrize(("limit", "size"), [("max", 10**15), ("1000000", 2 * 10**6)])
def test_what_needs_more_memory_than_the_machine_has_is_not_begun(tmp_path, monkeypatch, limit, size):
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "memory.max")
    monkeypatch.setattr(memory, "total", memory.total.__wrapped__)
    memory.CGROUP.write_text(limit)
    taken = memory.Memory(0.5)
    with pytest.raises(InputError, match=r"takes .* GB of memory, .* GB are in this machine"), taken.hold(size):
        pass
    with taken.hold(1):  # and nothing stays counted
        assert taken._taken == 1


def test_no_photo_is_quarantined_because_others_take_the_memory(tmp_path, monkeypatch):
    free = psutil.virtual_memory()._replace(available=10)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    Image.fromarray(noise((3000, 2000))).save(tmp_path / "a.png")
    assert inspection.inspect(tmp_path / "a.png")[0] == "ok"


def test_the_bytes_of_files_are_counted_while_they_are_used(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "FILES", memory.Memory(0.5))
    Image.fromarray(noise((64, 48))).save(tmp_path / "a.bmp")
    size = (tmp_path / "a.bmp").stat().st_size
    with decoding.contents(tmp_path / "a.bmp") as content:
        assert memory.FILES._taken == len(content) == size
    assert memory.FILES._taken == 0


# ---- HEIC


def test_a_heic_photo_is_read_where_its_package_is_installed(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif", reason="pip install 'fruitlib[heic]'")
    image, exif = Image.fromarray(noise((64, 48), top=3) * 120), Image.Exif()
    exif[decoding.ORIENTATION] = 6
    pillow_heif.register_heif_opener()
    image.save(tmp_path / "a.heic", quality=-1, exif=exif.tobytes())
    assert inspection.inspect(tmp_path / "a.heic")[:4] == ("ok", "", 48, 64)
    (tmp_path / "half.heic").write_bytes((tmp_path / "a.heic").read_bytes()[:500])
    assert inspection.inspect(tmp_path / "half.heic")[0] == "quarantined"


def test_without_the_package_the_line_says_how_to_read_heic(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "heif_is_readable", lambda: False)
    (tmp_path / "iphone.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(90))
    expected = "HEIC: pip install 'fruitlib[heic]' to read it, or convert it to JPEG first"
    assert inspection.inspect(tmp_path / "iphone.jpg")[:2] == ("quarantined", expected)
