"""Grad-CAM: exact where it can be derived by hand, on the object where it was planted, and without a trace after."""

import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torchvision
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection
from torch import nn

from fruitlib.core.errors import InputError
from fruitlib.explain import gradcam, methods

SIZE, PATCH = 48, 12


def small_net(classes: int = 2, inplace: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, classes),
    )


def planted(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Noise with a striped patch at a random place: stripes lie in class 0 and stand in class 1."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(0.3, 0.7, (n, 3, SIZE, SIZE)).astype(np.float32)
    labels, corners = rng.integers(0, 2, n), rng.integers(0, SIZE - PATCH, (n, 2))
    stripes = np.tile(np.repeat([0.0, 1.0], 2), PATCH // 4)[:, None] * np.ones(PATCH)
    for image, label, (y, x) in zip(images, labels, corners, strict=True):
        image[:, y : y + PATCH, x : x + PATCH] = stripes.T if label else stripes
    return torch.from_numpy(images), torch.from_numpy(labels), corners


@pytest.fixture(scope="module")
def trained() -> nn.Sequential:
    model = small_net()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for step in range(60):
        images, labels, _ = planted(32, step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval()


def last_relu(model: nn.Sequential) -> dict[str, nn.Module]:
    return {"conv2": model[6]}


def share_inside(heat: np.ndarray, corner: np.ndarray, margin: int = 4) -> float:
    (top, left), side = np.maximum(corner - margin, 0), PATCH + margin
    inside = heat[top : corner[0] + side, left : corner[1] + side].sum()
    return inside / heat.sum()


# ---- meaning ----


def test_heat_lands_on_the_planted_patch(trained):
    images, labels, corners = planted(24, seed=1000)
    maps = gradcam.heatmaps(trained, images, last_relu(trained), targets=labels)
    assert (maps.predicted == labels.numpy()).mean() >= 0.95
    shares = [share_inside(heat, corner) for heat, corner in zip(maps.heatmap[:, 0], corners, strict=True)]
    chance = (PATCH + 8) ** 2 / SIZE**2
    assert chance < 0.18
    assert min(shares) > 0.6 and np.median(shares) > 0.8


def test_equals_the_formula_worked_out_by_hand():
    model = small_net(classes=3).eval()
    images = torch.rand(4, 3, 16, 16)
    maps = gradcam.heatmaps(model, images, last_relu(model), targets=[0, 1, 2, 1])
    with torch.no_grad():
        activation = model[:7](images)
    # behind average pooling and a linear layer, a channel's mean gradient is its weight over the number of cells
    weights = model[9].weight.detach()[[0, 1, 2, 1]] / 64
    raw = torch.einsum("nk,nkhw->nhw", weights, activation).relu()
    assert maps.peak[:, 0] == pytest.approx(raw.amax((1, 2)).numpy(), rel=1e-4)
    large = nn.functional.interpolate(raw[:, None], (16, 16), mode="bilinear")[:, 0]
    expected = large / large.amax((1, 2), keepdim=True)
    np.testing.assert_allclose(maps.heatmap[:, 0], expected.numpy(), atol=1e-4)


def test_layers_keep_their_names_in_any_order_and_alone():
    model, images = small_net().eval(), torch.rand(2, 3, 16, 16)
    layers = {"last": model[6], "first": model[2], "middle": model[4]}
    together = gradcam.heatmaps(model, images, layers, targets=[0, 1])
    assert together.layer_names == ["last", "first", "middle"]
    for index, (name, layer) in enumerate(layers.items()):
        alone = gradcam.heatmaps(model, images, {name: layer}, targets=[0, 1])
        np.testing.assert_allclose(together.heatmap[:, index], alone.heatmap[:, 0], atol=1e-6)
    assert np.abs(together.heatmap[:, 0] - together.heatmap[:, 1]).max() > 0.1


def test_inplace_relu_after_a_target_layer_changes_nothing():
    images = torch.rand(2, 3, 16, 16)
    maps = []
    for inplace in (True, False):
        model = small_net(inplace=inplace).eval()
        layers = {"bn1": model[1], "bn2": model[5]}
        maps.append(gradcam.heatmaps(model, images, layers, targets=[0, 1]).heatmap)
        assert gradcam.feature_maps(model, images, layers)["bn1"].min() < 0
    np.testing.assert_array_equal(*maps)
    assert maps[0].max() == 1


def test_batches_do_not_matter():
    model, images = small_net().eval(), torch.rand(7, 3, 16, 16)
    whole = gradcam.heatmaps(model, images, last_relu(model))
    parts = gradcam.heatmaps(model, images, last_relu(model), batch_size=3)
    np.testing.assert_allclose(whole.heatmap, parts.heatmap, atol=1e-5)
    np.testing.assert_allclose(whole.probs, parts.probs, atol=1e-6)


def test_predicted_class_is_the_default_target(trained):
    images, _, _ = planted(6, seed=7)
    maps = gradcam.heatmaps(trained, images, last_relu(trained))
    with torch.no_grad():
        logits = trained(images)
    np.testing.assert_array_equal(maps.predicted, logits.argmax(1))
    np.testing.assert_array_equal(maps.targets, maps.predicted)
    np.testing.assert_allclose(maps.probs, logits.softmax(1), atol=1e-6)
    given = gradcam.heatmaps(trained, images, last_relu(trained), targets=maps.predicted)
    np.testing.assert_array_equal(maps.heatmap, given.heatmap)


# ---- methods ----


@pytest.mark.parametrize("method", list(methods.METHODS))
def test_every_method_finds_the_planted_patch_and_leaves_the_model_unchanged(trained, method):
    images, labels, corners = planted(8, seed=1001)
    before = traces(trained)
    maps = gradcam.heatmaps(trained, images, last_relu(trained), targets=labels, method=method)
    assert traces(trained) == before
    shares = [share_inside(heat, corner) for heat, corner in zip(maps.heatmap[:, 0], corners, strict=True)]
    assert np.median(shares) > 0.5 and maps.heatmap.max() == 1  # an even spread has less than 0.18 there


@pytest.mark.parametrize("method", ["Grad-CAM", "Grad-CAM++", "LayerCAM", "Score-CAM"])
def test_the_library_gives_the_same_map_but_for_its_scale(method, capsys):
    model, images = small_net(classes=3).eval(), torch.rand(2, 3, 16, 16)
    own = gradcam.heatmaps(model, images, last_relu(model), targets=[2, 0], method=method).heatmap[:, 0]
    assert not any(capsys.readouterr())  # no progress bar
    theirs = {"Grad-CAM": "GradCAM", "Grad-CAM++": "GradCAMPlusPlus", "Score-CAM": "ScoreCAM"}.get(method, method)
    cam = getattr(pytorch_grad_cam, theirs)(model, [model[6]])
    others = cam(images, targets=[ClassifierOutputTarget(2), ClassifierOutputTarget(0)])
    for mine, other in zip(own, others, strict=True):
        assert np.corrcoef(mine.ravel(), other.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("shape", [(16, 5, 5), (40, 5, 5)])
def test_eigencam_is_the_librarys_but_for_its_sign(shape):
    activation = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    theirs, own = get_2d_projection(activation[None])[0], methods._first_component(activation)
    np.testing.assert_allclose(np.abs(own), np.abs(theirs), atol=1e-4)
    assert np.isclose(np.abs(np.corrcoef(own.ravel(), theirs.ravel())[0, 1]), 1)


def test_eigencam_has_one_sign_for_a_spot_however_it_is_written():
    spot = np.zeros((6, 5, 5), np.float32)
    spot[2, 1, 3] = 4
    for activation in (spot, spot[::-1].copy(), np.repeat(spot, 9, axis=0)):
        found = methods._first_component(activation)
        assert np.unravel_index(found.argmax(), found.shape) == (1, 3) and found.max() > -found.min()
    assert not methods._first_component(np.ones((4, 3, 3), np.float32)).any()


def test_scorecam_of_many_channels_tries_those_that_vary(monkeypatch):
    model, images = small_net().eval(), torch.rand(1, 3, 16, 16)
    calls = []
    model[0].register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    monkeypatch.setattr(methods, "SCORED", 5)
    gradcam.heatmaps(model, images, last_relu(model), method="Score-CAM", all_views=False)
    assert sum(calls) == 1 + 5


def test_a_method_that_is_none_is_refused():
    model = small_net()
    with pytest.raises(InputError, match=r"method: 'CAM' .* Grad-CAM\+\+"):
        gradcam.heatmaps(model, torch.rand(1, 3, 16, 16), last_relu(model), method="CAM")


# ---- magnitude ----


def silenced(weight: float) -> nn.Sequential:
    """A model in which every channel speaks for class 0 and, by `weight`, against class 1."""
    model = small_net().eval()
    with torch.no_grad():
        model[9].weight[0], model[9].weight[1] = 1, weight
    return model


@pytest.mark.parametrize("weight", [-1.0, 0.0])
def test_a_layer_without_evidence_stays_cold(weight):
    model = silenced(weight)
    maps = gradcam.heatmaps(model, torch.rand(3, 3, 16, 16), last_relu(model), targets=[1, 1, 0])
    assert not maps.heatmap[:2].any() and not maps.peak[:2].any()
    assert maps.heatmap[2].max() == 1 and maps.peak[2, 0] > 0
    assert np.isfinite(maps.heatmap).all()


def test_rounding_noise_is_no_heat():
    model = small_net().eval()
    with torch.no_grad():  # channels come in pairs that cancel, but for the last digit
        model[4].weight[8:], model[4].bias[8:] = model[4].weight[:8].clone(), model[4].bias[:8].clone()
        model[9].weight[0, :8] = torch.rand(8)
        model[9].weight[0, 8:] = -model[9].weight[0, :8] * (1 - 1e-7)
    images = torch.rand(2, 3, 16, 16)
    assert not gradcam.heatmaps(model, images, last_relu(model), targets=[0, 0]).heatmap.any()
    with torch.no_grad():
        model[9].weight[0, 8:] *= 0.999
    assert gradcam.heatmaps(model, images, last_relu(model), targets=[0, 0]).heatmap.max() == 1


def test_peak_tells_a_weak_map_from_a_strong_one():
    images, maps = torch.rand(2, 3, 16, 16), []
    for weight in (1.0, 1e-4):
        model = silenced(weight)
        maps.append(gradcam.heatmaps(model, images, last_relu(model), targets=[1, 1]))
    strong, weak = maps
    np.testing.assert_allclose(weak.heatmap, strong.heatmap, atol=1e-5)
    np.testing.assert_allclose(weak.peak, 1e-4 * strong.peak, rtol=1e-3)


# ---- the model unchanged ----


def traces(model: nn.Module) -> list:
    """Everything about a model that a caller could see changed."""
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return [
        [m.training for m in model.modules()],
        hooks,
        [p.requires_grad for p in model.parameters()],
        [id(p.grad) for p in model.parameters()],
        [None if p.grad is None else p.grad.sum().item() for p in model.parameters()],
        {name: tensor.sum().item() for name, tensor in tensors.items()},
    ]


@pytest.fixture
def used() -> nn.Sequential:
    """In the middle of training: gradients there, one layer frozen, one BatchNorm fixed by hand."""
    model = small_net().train()
    model(torch.rand(4, 3, 16, 16)).sum().backward()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[9].bias.grad = None
    model[2].register_forward_hook(lambda module, inputs, output: None)
    return model


def test_model_is_left_unchanged(used):
    images, before = torch.rand(3, 3, 16, 16), traces(used)
    original = images.clone()
    gradcam.heatmaps(used, images, {"a": used[2], "b": used[6]})
    assert traces(used) == before
    gradcam.feature_maps(used, images, {"a": used[2], "b": used[6]})
    assert traces(used) == before
    assert torch.equal(images, original) and not images.requires_grad


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_model_is_left_unchanged_after_an_exception(used, where, monkeypatch):
    def fail(*args, **kwargs):
        raise IndexError("planted")  # pytorch-grad-cam's own context manager would swallow this one

    monkeypatch.setattr(used[9] if where == "forward" else torch.Tensor, where, fail)
    before, images = traces(used), torch.rand(3, 3, 16, 16)
    with pytest.raises(IndexError, match="planted") as caught:
        gradcam.heatmaps(used, images, last_relu(used))
    assert traces(used) == before
    if where == "forward":
        with pytest.raises(IndexError, match="planted"):
            gradcam.feature_maps(used, images, last_relu(used))
        assert traces(used) == before
    del caught  # until here its traceback kept every local alive, so that no hook went by garbage collection


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_frozen_model_and_callers_without_gradients(mode):
    model = small_net().eval()
    expected = gradcam.heatmaps(model, torch.full((1, 3, 16, 16), 0.5), {"a": model[2]}, targets=[1])
    model.requires_grad_(False)
    with mode():
        images = torch.full((1, 3, 16, 16), 0.5)
        maps = gradcam.heatmaps(model, images, {"a": model[2]}, targets=[1])
        gradcam.feature_maps(model, images, {"a": model[2]})
        assert not torch.is_grad_enabled()
    np.testing.assert_array_equal(maps.heatmap, expected.heatmap)
    assert not any(p.requires_grad for p in model.parameters())


# ---- refusals ----


@pytest.mark.parametrize(
    "targets", [[0], [0, 1, 0, 1], [0, 1, 2], [0, 1, -1], [0.0, 1.0, 0.0], [True, False, True], [[0], [1], [0]], 1]
)
def test_targets_that_do_not_fit_are_refused(targets):
    model = small_net()
    before = traces(model)
    with pytest.raises(InputError, match="targets"):
        gradcam.heatmaps(model, torch.rand(3, 3, 16, 16), last_relu(model), targets=targets)
    assert traces(model) == before


class Odd(nn.Module):
    """One layer runs twice, one never, one for nothing."""

    def __init__(self):
        super().__init__()
        self.twice, self.never, self.idle = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images):
        self.idle(images)
        return self.head(self.twice(self.twice(images)))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("twice", "more than once"),
        ("never", "does not run"),
        ("idle", "do not depend"),
        ("head", "not .n, channels"),
        (None, "not a layer"),
    ],
)
def test_layers_that_do_not_fit_are_refused(layer, message):
    model = Odd()
    layers = {"wanted": getattr(model, layer) if layer else nn.Conv2d(3, 3, 1)}
    with pytest.raises(InputError, match=message):
        gradcam.heatmaps(model, torch.rand(1, 3, 8, 8), layers)
    assert not any(m._forward_hooks for m in model.modules())


def test_no_images_no_layers_and_doubled_layers_are_refused():
    model, images = small_net(), torch.rand(1, 3, 16, 16)
    for some_images, layers in [
        (images[:0], last_relu(model)),
        (images[0], last_relu(model)),
        (images, {}),
        (images, {"a": model[2], "b": model[2]}),
    ]:
        with pytest.raises(InputError):
            gradcam.heatmaps(model, some_images, layers)


# ---- real architectures ----


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_torchvision_models(name):
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None, num_classes=3).to(memory_format=torch.channels_last)
    if name == "resnet18":
        layers = {f"layer{i}": getattr(model, f"layer{i}") for i in range(1, 5)}
    else:
        layers = {f"features.{i}": model.features[i] for i in (2, 3, 5, 8)}
    images, before = torch.rand(2, 3, 64, 64), traces(model)
    maps = gradcam.heatmaps(model, images, layers, targets=torch.tensor([2, 0]))
    assert maps.heatmap.shape == (2, 4, 64, 64) and maps.heatmap.dtype == np.float32
    assert maps.peak.shape == (2, 4) and maps.probs.shape == (2, 3)
    np.testing.assert_array_equal(maps.heatmap.max(axis=(2, 3)), maps.peak > 0)
    assert maps.heatmap.min() >= 0 and maps.heatmap.any()
    features = gradcam.feature_maps(model, images, layers, top=5)
    assert [f.shape[:2] for f in features.values()] == [(2, 5)] * 4
    assert [f.shape[2] for f in features.values()][::3] == [16, 2]
    assert traces(model) == before


def test_feature_maps_are_the_strongest_channels_strongest_first():
    model, images = small_net().eval(), torch.rand(3, 3, 16, 16)
    maps = gradcam.feature_maps(model, images, {"first": model[2], "second": model[6]}, top=10)
    assert maps["first"].shape == (3, 8, 16, 16) and maps["second"].shape == (3, 10, 8, 8)
    with torch.no_grad():
        all_channels = model[:7](images).numpy()
    strength = maps["second"].mean(axis=(0, 2, 3))
    assert (np.diff(strength) <= 0).all()
    assert strength == pytest.approx(np.sort(all_channels.mean(axis=(0, 2, 3)))[::-1][:10])


# ---- pictures and files ----


def test_overlay_keeps_cold_regions_photograph_in_grey():
    image = np.random.default_rng(0).random((32, 48, 3))
    grey = image @ np.array([0.299, 0.587, 0.114])
    photo = np.rint(255 * np.repeat(grey[..., None], 3, axis=2)).astype(np.uint8)
    assert np.array_equal(gradcam.overlay(image, np.zeros((4, 4))), photo)
    heat = np.zeros((4, 6))
    heat[:, :2] = 1
    mixed = gradcam.overlay(image, heat, alpha=0.5)
    assert mixed.dtype == np.uint8 and mixed.shape == (32, 48, 3)
    assert np.array_equal(mixed[:, 24:], photo[:, 24:])
    hottest = np.array([252, 255, 164])  # inferno's upper end
    assert np.abs(mixed[:, :8] - (0.5 * photo[:, :8] + 0.5 * hottest)).max() <= 1
    assert np.abs(gradcam.overlay(image, np.ones((1, 1)), alpha=1) - hottest).max() <= 1


def test_central_share_of_planted_heat():
    spot, even = np.zeros((2, 16, 16)), np.ones((3, 16, 16))
    spot[:, 6:9, 7] = 1
    np.testing.assert_array_equal(gradcam.central_shares(spot).shares, [1, 1])
    np.testing.assert_array_equal(gradcam.central_shares(even).shares, [0.25, 0.25, 0.25])
    assert np.isnan(gradcam.central_shares(np.zeros((1, 8, 8))).shares[0])


def test_each_photo_counts_the_same_and_those_without_heat_are_counted():
    """A photo with a thousand times the heat of others, all at its edge, moves the median no more than they do."""
    heat = np.zeros((4, 16, 16))
    heat[0, 0, :] = 1000
    heat[1:3, 7, 7] = 1
    found = gradcam.central_shares(heat)
    assert found.numbers == {"median_central_share": 1.0, "n": 4, "without_heat": 1, "below_even": 1}
    assert found.summary.startswith(
        "half of 3 validation photos have 100% of their heat or more in the central quarter"
    )
    assert found.summary.endswith("1 less than an even spread has; without any heat: 1 of 4")
    assert gradcam.central_shares(heat[3:]).summary == "none of 1 validation photos has heat in the last layer"


def test_overlay_refuses_other_shapes():
    with pytest.raises(InputError):
        gradcam.overlay(np.zeros((3, 8, 8)), np.zeros((8, 8)))
    with pytest.raises(InputError):
        gradcam.overlay(np.zeros((8, 8, 3)), np.zeros((2, 8, 8)))


def test_save_and_load_round_trip(tmp_path):
    model, path = small_net().eval(), tmp_path / "cams" / "val.npz"
    maps = gradcam.heatmaps(model, torch.rand(2, 3, 16, 16), {"a": model[2], "ß": model[6]})
    gradcam.save_heatmaps(path, maps, paths=["apple/1.jpg", "kirsche/ü.jpg"], labels=np.array([0, 1]))
    again, meta = gradcam.load_heatmaps(path)
    np.testing.assert_allclose(again.heatmap, maps.heatmap, atol=1e-3)
    assert again.heatmap.dtype == np.float32 and again.layer_names == ["a", "ß"]
    for name in ("peak", "predicted", "probs", "targets"):
        np.testing.assert_array_equal(getattr(again, name), getattr(maps, name))
    assert meta["paths"].tolist() == ["apple/1.jpg", "kirsche/ü.jpg"] and meta["labels"].tolist() == [0, 1]
    assert [p.name for p in path.parent.iterdir()] == ["val.npz"]


def test_files_that_do_not_fit_are_refused(tmp_path):
    model = small_net().eval()
    maps = gradcam.heatmaps(model, torch.rand(1, 3, 16, 16), last_relu(model))
    path = tmp_path / "cams.npz"
    with pytest.raises(InputError, match="paths"):
        gradcam.save_heatmaps(path, maps, paths=np.array([object()]))
    with pytest.raises(InputError, match="probs"):
        gradcam.save_heatmaps(path, maps, probs=np.zeros(1))
    with pytest.raises(InputError, match=r"cams\.npz"):
        gradcam.load_heatmaps(path)
    np.savez(path, heatmap=np.zeros(1))
    with pytest.raises(InputError, match=r"cams\.npz"):
        gradcam.load_heatmaps(path)
    path.write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(InputError, match=r"cams\.npz"):
        gradcam.load_heatmaps(path)
