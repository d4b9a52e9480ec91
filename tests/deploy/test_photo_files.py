"""A file takes photos and says where it looked: what it gives is what its graph and its network give."""

import numpy as np
import onnx
import pytest
import torch

from fruitlib.core import config
from fruitlib.core.errors import InputError
from fruitlib.deploy import export, heat, photo_files, predict, quantize
from fruitlib.evaluation.metrics import softmax
from fruitlib.explain import gradcam
from fruitlib.training import blocks, models

NAMES = ["apple", "cherry", "tomato"]
SIDE = 64
SETTINGS = ("image_size", "resize", "center", "brightness", "contrast", "saturation", "sharpness")
PREPROCESS = config.make({"image_size": SIDE}).model_dump(include=set(SETTINGS))


@pytest.fixture(scope="module")
def photos():
    """Some (n, S, S, 3) with a bright square in one place each."""
    pixels = np.random.default_rng(0).integers(0, 90, (6, SIDE, SIDE, 3), np.uint8)
    for i in range(6):
        pixels[i, 8 * i : 8 * i + 20, 30 : 30 + 5 * i] = (250, 40 * i, 60)
    return pixels


def made(folder, model, images=None) -> tuple:
    """The file of a model, its INT8 version where `images` calibrate one, and how its heat follows."""
    graph_path = export.export_onnx(model, folder / "graph.onnx", SIDE, NAMES)
    graph = onnx.load(graph_path)
    found = heat.add_features(graph, model)
    onnx.save(graph, graph_path)
    files = [photo_files.write(graph, folder / "fp32.onnx", PREPROCESS, 1.5, found, {"class_names": "[]"})]
    if images is not None:
        int8 = quantize.quantize(graph_path, folder / "graph8.onnx", images)
        files.append(photo_files.write(onnx.load(int8), folder / "int8.onnx", PREPROCESS, 1.5, found))
    return found, files


def as_images(photos: np.ndarray) -> np.ndarray:
    return (photos.transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float32)


def network(name: str, **settings) -> models.Normalized:
    torch.manual_seed(0)
    return models.build(config.make({"model": name, "image_size": SIDE, **settings}), len(NAMES)).eval()


def test_logits_are_torchs_and_probabilities_calibrated(photos, tmp_path):
    model = network("end2end")
    _, (file,) = made(tmp_path, model)
    logits = predict.run_onnx(file, photos)
    np.testing.assert_allclose(logits, export.run_torch(model, as_images(photos)), atol=1e-4)
    (probs,) = predict.outputs(predict.open_session(file), photos, ("probabilities",))
    np.testing.assert_allclose(probs, softmax(logits / 1.5), atol=1e-6)
    metadata = predict.read_metadata(file)
    assert metadata["temperature"] == "1.5" and "uint8" in metadata["input"] and metadata["heat"] == heat.CLASS_MAP


@pytest.mark.parametrize("name", ["resnet18", "timm:test_efficientnet"])
def test_a_class_activation_map_adds_up_to_the_logits(name, photos, tmp_path):
    """Its mean over places, less that of another photo, is the difference of their logits, in fp32 and INT8."""
    found, files = made(tmp_path, network(name), as_images(photos))
    assert found.kind == heat.CLASS_MAP and found.weights.shape[0] == len(NAMES)
    for file in files:
        logits, maps = predict.outputs(predict.open_session(file), photos, ("logits", "heat"))
        means = maps.mean((2, 3))
        np.testing.assert_allclose(means - means[:1], logits - logits[:1], atol=1e-3)


def test_of_our_own_network_it_adds_up_where_the_slopes_are_the_same(photos, tmp_path):
    """Bent at five base logits, the map is exact up to the part that the bend moves into the bias."""
    model = network("end2end")
    found, (file,) = made(tmp_path, model)
    logits, maps = predict.outputs(predict.open_session(file), photos, ("logits", "heat"))
    base = model.net.base(normalised(model, photos)).detach()
    slopes = torch.where(base > 0, 1.0, found.slope).numpy()
    bias = (slopes * found.bias) @ found.weights.T + model.net.head.bias.detach().numpy()
    np.testing.assert_allclose(maps.sum((2, 3)) + bias, logits, atol=1e-4)


def normalised(model: models.Normalized, photos: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(as_images(photos)) - model.mean) / model.std


def test_it_agrees_with_grad_cam(photos, tmp_path):
    """Grad-CAM of the layer before the pooling is that map, cut at zero and scaled."""
    model = network("resnet18")
    _, (file,) = made(tmp_path, model)
    (maps,) = predict.outputs(predict.open_session(file), photos, ("heat",))
    layer = dict([list(blocks.target_layers(model).items())[-1]])
    targets = [0, 1, 2, 0, 1, 2]
    found = gradcam.heatmaps(model, torch.from_numpy(as_images(photos)), layer, targets=targets).heatmap[:, 0]
    own = np.maximum(maps[np.arange(6), targets], 0)
    for ours, theirs in zip(heat.enlarged(own, SIDE), found, strict=True):
        if ours.max() > 0 and theirs.max() > 0:
            assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.95


def test_heads_that_are_not_linear_show_strength_and_transformers_nothing(tmp_path, photos):
    found, (file,) = made(tmp_path, network("timm:test_convnext"))
    assert found.kind == heat.STRENGTH
    (maps,) = predict.outputs(predict.open_session(file), photos, ("heat",))
    assert maps.shape[:2] == (6, 1) and (maps >= 0).all()
    (tmp_path / "vit").mkdir()
    found, (file,) = made(tmp_path / "vit", network("timm:test_vit", image_size=160))
    assert found is None and "heat" not in [output.name for output in predict.open_session(file).get_outputs()]


def test_pooling_that_leaves_places_shows_strength(tmp_path, photos):
    """As VGG's does, to 7 x 7."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 5, stride=4), torch.nn.AdaptiveAvgPool2d(3), torch.nn.Flatten())
    model = models.Normalized(net.append(torch.nn.Linear(72, 3))).eval()
    found, (file,) = made(tmp_path, model)
    assert found.kind == heat.STRENGTH
    np.testing.assert_allclose(predict.run_onnx(file, photos), export.run_torch(model, as_images(photos)), atol=1e-4)


def test_of_several_views_heat_shows_the_photo_as_it_is(photos, tmp_path):
    one = made(tmp_path, network("timm:test_resnet"))[1][0]
    (tmp_path / "flip").mkdir()
    flip = made(tmp_path / "flip", network("timm:test_resnet", views="flip"))[1][0]
    (maps,), (same,) = (predict.outputs(predict.open_session(file), photos, ("heat",)) for file in (one, flip))
    np.testing.assert_allclose(maps, same, atol=1e-4)


# ---- ensembles


def heats(file, photos: np.ndarray) -> np.ndarray:
    return predict.outputs(predict.open_session(file), photos, ("heat",))[0]


def mean_of(maps: list[np.ndarray]) -> np.ndarray:
    """The mean of maps that count alike, in their mean unit."""
    scales = [np.maximum(np.abs(one).mean((1, 2, 3), keepdims=True), 1e-9) for one in maps]  # of dark photos 0
    return np.mean([one / scale for one, scale in zip(maps, scales, strict=True)], 0) * np.mean(scales, 0)


def detector(strength: float, *, stride: int = 4, bent: bool = False, views: str = "one") -> models.Normalized:
    """A network whose class is the colour, of red, green and blue, that the photo has most of."""
    look = torch.nn.Conv2d(3, 3, 5, stride=stride, padding=2)
    answer = torch.nn.Linear(3, 3)
    with torch.no_grad():
        look.weight.copy_((2 * torch.eye(3) - 1)[:, :, None, None].expand(3, 3, 5, 5) / 25)
        look.bias.fill_(-4)  # nothing where it is dark
        answer.weight.copy_(strength * torch.eye(3))
        answer.bias.zero_()
    parts = [look, torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    parts += [torch.nn.Linear(3, 3), torch.nn.Tanh(), answer] if bent else [answer]
    return models.Normalized(torch.nn.Sequential(*parts), views=views).eval()


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda strength: network("end2end"), heat.CLASS_MAP),
        (lambda strength: detector(strength, views="flip"), heat.CLASS_MAP),
        (lambda strength: detector(strength, bent=True), heat.STRENGTH),
    ],
    ids=["end2end", "several views", "not linear"],
)
def test_an_ensembles_heat_is_the_mean_of_its_members(make, kind, photos, tmp_path):
    """In fp32, and nearly so in INT8; a member of larger logits counts as the others do."""
    members = [make(1), make(20)]
    with torch.no_grad():
        for weights in members[1].parameters():
            weights.add_(0.1 * weights.std(correction=0) * torch.randn_like(weights))
    alone = []
    for place, member in enumerate(members):
        (tmp_path / str(place)).mkdir()
        alone.append(heats(made(tmp_path / str(place), member)[1][0], photos))
    found, files = made(tmp_path, models.Ensemble(members).eval(), as_images(photos))
    expected = mean_of(alone)
    np.testing.assert_allclose(heats(files[0], photos), expected, atol=1e-4 * np.abs(expected).max())
    assert np.corrcoef(heats(files[1], photos).ravel(), expected.ravel())[0, 1] > 0.98
    assert found.kind == kind and predict.read_metadata(files[1])["heat"] == found.words
    assert found.words.startswith(f"{kind}; the mean over 2 models")


def test_it_lies_on_the_planted_patch(tmp_path):
    patches = np.full((3, SIDE, SIDE, 3), 20, np.uint8)
    for colour in range(3):
        patches[colour, 8:24, 32:56, colour] = 250
    _, (file,) = made(tmp_path, models.Ensemble([detector(1), detector(50)]).eval())
    logits, maps = predict.outputs(predict.open_session(file), patches, ("logits", "heat"))
    assert logits.argmax(1).tolist() == [0, 1, 2]
    for colour in range(3):
        warm = np.maximum(maps[colour, colour], 0)
        assert warm[2:7, 8:15].sum() > 0.99 * warm.sum() > 0


@pytest.mark.parametrize("members", [1, 2], ids=["one", "twins, which the exporter merges"])
def test_an_ensemble_of_equals_has_the_map_of_one(members, photos, tmp_path):
    (tmp_path / "alone").mkdir()
    one = detector(3)
    alone = heats(made(tmp_path / "alone", one)[1][0], photos)
    found, (file,) = made(tmp_path, models.Ensemble([one] * members).eval())
    assert len(found.members) == members and np.abs(alone).max() > 0
    np.testing.assert_allclose(heats(file, photos), alone, atol=1e-6)


@pytest.mark.parametrize(
    ("other", "kind"), [({"bent": True}, heat.STRENGTH), ({"stride": 8}, None)], ids=["no class map", "other sizes"]
)
def test_members_of_several_kinds_show_what_all_have(other, kind, photos, tmp_path):
    found, (file,) = made(tmp_path, models.Ensemble([detector(1), detector(1, **other)]).eval())
    assert (found.kind if found else None) == kind
    assert ("heat" in [output.name for output in predict.open_session(file).get_outputs()]) == bool(kind)
    if kind:
        assert heats(file, photos).shape[:2] == (6, 1) and "strength" in predict.read_metadata(file)["heat"]


# ---- photos


@pytest.mark.parametrize(
    "photos", [np.zeros((1, 3, 8, 8), np.uint8), np.zeros((1, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8)]
)
def test_what_is_no_photo_is_refused(tmp_path, photos):
    _, (file,) = made(tmp_path, network("end2end"))
    with pytest.raises(InputError, match=r"takes RGB photos as uint8 \(n, height, width, 3\)"):
        predict.run_onnx(file, photos)
