"""Does a network look at the object? Masks where the object is known, curves of known networks, a watermark planted.

Of twenty networks of `trained_net` trained on photos of which one class had a mark, and of twenty on the same photos
without, seeds 0 to 19, the mark was found in twenty and in none: with the object hidden, the corrected answer was right
on 0.55 to 0.72 of 60 photos, and on 0.27 to 0.35. (Seeds 0 to 9 were at hand when the rule was made.) Two seeds are
repeated here.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from torch import nn

from fruitlib.core import config
from fruitlib.core.errors import InputError
from fruitlib.data import practice_photos, preprocess
from fruitlib.evaluation import shortcut_findings as findings
from fruitlib.explain import gradcam, insertion, object_masks, shortcuts
from fruitlib.explain.object_masks import BACKGROUND, BOX, NONE

SIDE, NAMES = 64, ("apple", "cherry", "tomato")


def disc(x=32, y=32, radius=14, colour=(200, 30, 20), background=(230, 230, 225), wall=None, seed=0) -> np.ndarray:
    """A disc on a background with a little grain, darker to the right; above `wall` pixels it is another one."""
    picture = Image.new("RGB", (SIDE, SIDE), background)
    pen = ImageDraw.Draw(picture)
    if wall:
        pen.rectangle((0, 0, SIDE, wall), fill=(90, 120, 90))
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    shaded = np.asarray(picture) * np.linspace(1, 0.85, SIDE)[None, :, None]
    grain = np.random.default_rng(seed).normal(0, 2, shaded.shape)
    return np.clip(shaded + grain, 0, 255).astype(np.uint8)


def inside(x=32, y=32, radius=14) -> np.ndarray:
    down, across = np.mgrid[:SIDE, :SIDE]
    return (across - x) ** 2 + (down - y) ** 2 <= radius**2


def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


# ---- where the object is ----


@pytest.mark.parametrize(
    "drawn",
    [
        {},
        {"colour": (240, 200, 60)},
        {"background": (40, 60, 90)},
        {"wall": 12},
        {"x": 4, "y": 40},  # over the left border
        {"x": 20, "y": 25, "radius": 8},
        {"radius": 28},
    ],
    ids=str,
)
def test_the_object_is_found_and_hidden(drawn):
    picture, truth = disc(**drawn), inside(**{name: drawn[name] for name in ("x", "y", "radius") if name in drawn})
    found = object_masks.find(picture[None])
    assert found.sources == [BACKGROUND] and found.known.all()
    assert (found.masks[0] & truth).sum() / (found.masks[0] | truth).sum() > 0.7
    assert found.areas[0] == pytest.approx(truth.mean(), rel=0.4)
    empty = disc(**drawn | {"radius": 0, "colour": (230, 230, 225)}).astype(int)
    left = np.abs(found.hidden[0].astype(int) - (empty if drawn.get("background") is None else found.hidden[0])).max(2)
    assert np.median(left[truth]) < 15  # where the disc was, the background is
    far = ~_near(found.masks[0], 8)
    np.testing.assert_array_equal(found.hidden[0][far], picture[far])


def _near(mask: np.ndarray, reach: int) -> np.ndarray:
    down, across = np.nonzero(mask)
    near = np.zeros_like(mask)
    for y, x in zip(down, across, strict=True):
        near[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1] = True
    return near


def test_a_fruit_from_side_to_side_is_no_background():
    picture = disc(radius=28)
    picture[26:38] = (200, 30, 20)
    found = object_masks.find(picture[None])
    assert (
        found.sources == [BACKGROUND] and found.masks[0, 32].all() and (found.hidden[0, 32, :, 1] > 150).all()
    )  # no red row is left


def test_a_mark_in_the_corner_is_not_the_object():
    picture = disc()
    picture[2:9, 2:9] = (20, 60, 230)
    found = object_masks.find(picture[None])
    assert not found.masks[0, 2:9, 2:9].any() and found.masks[0, 32, 32]
    np.testing.assert_array_equal(found.hidden[0, 2:9, 2:9], picture[2:9, 2:9])


@pytest.mark.parametrize(
    "picture",
    [noise(), np.full((SIDE, SIDE, 3), 200, np.uint8), disc(radius=0), disc(radius=60)],
    ids=["noise", "one colour", "grain alone", "all object"],
)
def test_where_no_object_can_be_told_none_is_claimed(picture):
    found = object_masks.find(picture[None])
    assert found.sources == [NONE] and not found.masks.any() and np.isnan(found.areas).all()
    np.testing.assert_array_equal(found.hidden[0], picture)
    assert found.summary == "the object is found in none of 1 photos: no box, and no plain background"


def test_a_box_goes_before_the_background():
    box = np.zeros((SIDE, SIDE), bool)
    box[10:50, 12:52] = True
    found = object_masks.find(np.stack([disc(), disc(), noise(), disc()]), [box, None, box, np.ones_like(box)])
    assert found.sources == [BOX, BACKGROUND, BOX, NONE]  # a box that is the whole picture says nothing
    np.testing.assert_array_equal(found.masks[0], box)
    assert found.summary == "the object is found in 3 of 4 photos, by its box in 2, by a plain background in 1"


def test_the_form_of_a_hole_does_not_give_the_class_away():
    """Masks of three sizes, one for each class: holes are as large in one class as in another."""
    labels, places = np.repeat([0, 1, 2], 50), np.random.default_rng(0).integers(24, 40, (150, 2))
    masks = np.stack([inside(*place, 6 + 6 * label) for label, place in zip(labels, places, strict=True)])
    forms = object_masks.holes(masks, labels, np.random.default_rng(1))
    assert not (masks & ~forms).any()  # each object is hidden
    areas = [forms[labels == label].mean((1, 2)) for label in range(3)]
    spread = np.std(np.concatenate(areas)) / np.sqrt(50)
    assert np.ptp([own.mean() for own in areas]) < 4 * spread < np.ptp([masks[labels == i].mean() for i in range(3)])


@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
@pytest.mark.parametrize("crop_to", ["none", "box"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_box_is_found_in_the_square_that_models_see(tmp_path, resize, crop_to, turned):
    picture = Image.new("RGB", (90, 60))
    picture.paste((255, 255, 255), (20, 15, 50, 45))
    exif = picture.getexif()
    if turned:  # as a camera held upright writes it: the viewer turns it by a quarter to the right
        picture = picture.transpose(Image.Transpose.ROTATE_90)
        exif[0x0112] = 6
    picture.save(tmp_path / "one.png", exif=exif)
    cfg = config.make(
        {"data": str(tmp_path), "image_size": 48, "resize": resize, "crop_to": crop_to, "crop_margin": 0.4}
    )
    path = "one.png#xywh=20,15,30,30"
    mask = object_masks.boxes_seen(tmp_path, [path, "one.png"], cfg)
    assert mask[1] is None
    white = preprocess.decode(tmp_path, path, cfg)[..., 0] > 127
    assert 0 < white.mean() < 1 and (mask[0] & white).sum() / (mask[0] | white).sum() > 0.85


# ---- hiding by heat ----


@pytest.mark.parametrize("share", [0.25, 0.75])
@pytest.mark.parametrize("scattered", [True, False])
def test_hidden_pixels_are_near_the_exact_solution_of_road(share, scattered):
    images = torch.from_numpy(practice(2, 7, 96)[0][::2].copy()).permute(0, 3, 1, 2).float() / 255
    ranks = torch.from_numpy(np.random.default_rng(0).permutation(144) if scattered else np.roll(np.arange(144), 40))
    hidden = insertion._cells_first(ranks.repeat(len(images), 1), np.array([share]), 96)[0]
    assert hidden.float().mean() == pytest.approx(share, abs=0.01)
    exact = torch.stack([NoisyLinearImputer(0.0)(x, (~h[0]).float()) for x, h in zip(images, hidden, strict=True)])
    found = insertion.filled(images, hidden)
    everywhere = hidden.expand_as(found)
    assert torch.equal(found[~everywhere], images[~everywhere])
    assert (found - exact)[everywhere].abs().mean() < (0.03 if scattered else 0.06)


class Corner(nn.Module):
    """Says 1 in so far as the left upper quarter is bright, and nothing else counts."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        quarter = images.shape[-1] // 4
        bright = images[:, :, :quarter, :quarter].mean((1, 2, 3))
        return torch.stack([torch.zeros_like(bright), 8 * bright - 6], 1)


@pytest.mark.parametrize(("corner", "sign"), [(1, 1), (0, -1)], ids=["heat on the corner", "heat everywhere else"])
def test_hiding_what_counts_changes_more_than_hiding_at_random(corner, sign):
    images = torch.zeros(8, 3, SIDE, SIDE)
    images[:, :, :16, :16] = 1
    heat = np.full((8, SIDE, SIDE), 1 - corner, np.float32)
    heat[:, :16, :16] = corner
    curves = insertion.curves(Corner().eval(), images, heat, np.ones(8, int))
    for name, gains in curves.gains().items():
        assert gains.shape == (8,)
        assert sign * gains.mean() > 0.02, (name, gains)
    whole = curves.by_heat["deletion"][:, 0]
    np.testing.assert_allclose(whole, torch.sigmoid(torch.tensor(2.0)).item(), rtol=1e-5)
    np.testing.assert_array_equal(curves.by_heat["insertion"][:, -1], whole)  # both orders begin and end alike
    for name in ("deletion", "insertion"):
        for end in (0, -1):
            np.testing.assert_array_equal(curves.by_heat[name][:, end], curves.at_random[name][:, end])


@pytest.mark.parametrize(
    ("groups", "known"), [(None, True), (list("aabbccddeeff"), True), (list("aaaabbbbcccc"), False)]
)
def test_a_gains_interval_respects_groups(groups, known):
    values = np.repeat([0.1, 0.3, 0.2, 0.25, 0.15, 0.2], 2)
    found = findings.gain("ROAD", values, groups)
    assert found.value == pytest.approx(0.2) and found.n == 12
    assert (found.low < 0.2 < found.high) is known
    text = findings.gains_text([found, found, found], groups or [""] * 12, "tree")
    assert text.startswith("places that are hot count" if known else "too few trees for intervals: ROAD +0.20, ROAD")
    if groups and known:  # two photos of a group that say the same are one piece of evidence
        alone = findings.gain("ROAD", values, None)
        assert found.high - found.low > 1.3 * (alone.high - alone.low)


# ---- changed photos ----


def test_colours_are_taken_away_and_turned():
    photo = np.array([[[[200, 30, 20], [10, 20, 30]]]], np.uint8)
    assert shortcuts.grey_of(photo).tolist() == [[[[80, 80, 80], [18, 18, 18]]]]
    assert shortcuts.turned_hue(photo).tolist() == [[[[20, 200, 30], [30, 10, 20]]]]  # red is green now
    only_first = shortcuts.turned_hue(photo, np.array([[[True, False]]]))
    assert only_first.tolist() == [[[[20, 200, 30], [10, 20, 30]]]]


def test_heat_on_the_object_counts_each_photo_once():
    masks = object_masks.find(np.stack([disc(), disc(), noise()]))
    heat = np.zeros((3, SIDE, SIDE), np.float32)
    heat[0] = 0.001 * masks.masks[0]
    found = shortcuts.heat_on_object(heat, masks)
    assert found.shares[0] == 1 and np.isnan(found.shares[1:]).all()  # no heat, and no object
    assert found.held.tolist() == [True, False, False] and found.below == 0
    assert found.median == (1.0, pytest.approx(masks.areas[0]))


def test_an_answer_to_empty_photos_is_judged_beyond_its_leaning():
    labels = np.repeat([0, 1, 2], 10)
    log_probs = np.tile(np.log([0.1, 0.1, 0.8]), (30, 1))
    log_probs[labels == 0, 0] += 1  # knows the first class, and still says the third
    found = findings.background(labels, labels, log_probs, NAMES, None)
    assert found.answered.value == pytest.approx(1 / 3) and found.corrected.accuracy >= 2 / 3
    assert found.shortcut and found.most == "apple" and (found.recall, found.others) == (1.0, 0.0)
    assert "apple most of all: 100% of its photos are taken for it, and 0% of the others" in found.verdict()


@pytest.mark.parametrize(
    ("labels", "groups", "starts"),
    [
        (np.repeat([0, 1], 4), None, "Too few to tell"),
        (np.repeat([0, 1], 10), list("aaaaabbbbbcccccddddd"), "Too few to tell"),
        (np.repeat([0, 1], 10), None, "It looks beside the object"),
        (np.random.default_rng(0).permutation(np.repeat([0, 1], 10)), None, "No shortcut found"),
    ],
    ids=["8 photos", "4 groups", "recognised", "not recognised"],
)
def test_the_verdict_needs_photos_and_groups(labels, groups, starts):
    log_probs = np.log(np.where(np.arange(len(labels))[:, None] < len(labels) / 2, [0.9, 0.1], [0.2, 0.8]))
    found = findings.background(labels, labels, log_probs, NAMES[:2], groups)
    assert found.verdict("tree").startswith(starts)
    assert found.open is starts.startswith("Too few") and found.shortcut is starts.startswith("It looks")


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([], "in no run is known"),
        ([{"run": "a", "shortcut": float("nan")}], "in no run is known"),
        ([{"run": "a", "shortcut": 0.0}, {"run": "b", "shortcut": 0.0}], "in none of 2 runs"),
        (
            [
                {"run": "a", "shortcut": 0.0},
                {"run": "b", "shortcut": 1.0, "hidden_corrected": 0.9, "hidden_chance": 0.5},
            ],
            "in 1 of 2 runs something beside the object gives the class away, most in b: with the object hidden and "
            "its leaning to some classes taken out, the network is right on 0.90 of photos, where the best constant "
            "answer is on 0.50",
        ),
    ],
)
def test_a_sweep_says_which_runs_look_beside(rows, text):
    assert findings.shortcuts_text(rows).startswith(text)


def test_what_does_not_fit_is_refused_in_a_line():
    with pytest.raises(InputError, match=r"photos, labels, heatmaps and targets: \[0, 0, 0, 0\]"):
        shortcuts.look(Corner(), np.zeros((0, 8, 8, 3), np.uint8), np.zeros(0, int), np.zeros((0, 8, 8)), [], NAMES)


@pytest.mark.parametrize("heat", [0.0, 1.0], ids=["no heat", "even heat"])
def test_without_objects_it_says_that_it_cannot_tell(heat, tmp_path):
    pictures = np.random.default_rng(1).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    labels, maps = np.repeat([0, 1], 6), np.full((12, 32, 32), heat, np.float32)
    found = shortcuts.look(Corner(), pictures, labels, maps, np.ones(12, int), NAMES[:2])
    assert found.background is None and "is not known" in found.verdict
    assert found.hue_where == "of the whole photo" and not {"shortcut", "hidden_corrected"} & set(found.record)
    found.write(SimpleNamespace(path=tmp_path))
    written = json.loads((tmp_path / shortcuts.SHORTCUTS_FILE).read_text())
    assert written["summary"] == found.lines and written["grey_accuracy"] == found.changes["grey"].accuracy


# ---- a planted watermark ----


def practice(each: int, seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    draws = [(label, np.random.default_rng([seed, label, number])) for label in range(3) for number in range(each)]
    photos = [np.asarray(practice_photos.photograph(NAMES[label], rng, size)) for label, rng in draws]
    return np.array(photos), np.repeat(np.arange(3), each)


def with_mark(photos: np.ndarray, labels: np.ndarray, marked: int) -> np.ndarray:
    """The photos with a blue square of 6 pixels in the corner of those of one class."""
    photos = photos.copy()
    photos[labels == marked, 2:8, 2:8] = (20, 60, 230)
    return photos


def trained_net(photos: np.ndarray, labels: np.ndarray, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers, before = [], 3
    for width in (16, 32, 64):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        before = width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 3))
    optimizer, order = torch.optim.Adam(model.parameters(), 0.004), torch.Generator().manual_seed(seed)
    images, classes = torch.from_numpy(photos).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(labels)
    for epoch in range(25):
        for chosen in torch.randperm(len(images), generator=order).split(16):
            batch = images[chosen].flip(3) if epoch % 2 else images[chosen]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch), classes[chosen]).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def photos():
    return practice(30, 1, 40), practice(20, 2, 40)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("planted", [True, False], ids=["marked", "clean"])
def test_a_planted_watermark_is_found_and_none_is_found_without(photos, seed, planted):
    (train, train_labels), (pictures, labels) = photos
    marked = seed % 3
    if planted:
        train, pictures = with_mark(train, train_labels, marked), with_mark(pictures, labels, marked)
    model = trained_net(train, train_labels, seed)
    maps = gradcam.heatmaps(model, torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255, {"last": model[10]})
    found = shortcuts.look(model, pictures, labels, maps.heatmap[:, 0], maps.targets, NAMES)
    assert (found.predicted == labels).mean() > 0.6 and found.masks.known.mean() > 0.9
    low, own = found.heat.shares < found.heat.areas, labels == marked
    if planted:
        assert found.record["shortcut"] == 1 and found.record["hidden_corrected"] > found.record["hidden_chance"] + 0.15
        assert (
            found.verdict.startswith("It looks beside the object") and f", {NAMES[marked]} most of all" in found.verdict
        )
        assert low[own].mean() > 0.5 and NAMES[marked] in found.lines[1]  # little heat on the marked class's objects
    else:
        assert found.record["shortcut"] == 0 and found.verdict.startswith("No shortcut found")
        assert low.mean() < 0.25
