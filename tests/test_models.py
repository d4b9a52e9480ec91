"""The networks: shapes, the base's place inside End2End, weights really loaded, CAM layers really there."""

import pytest
import torch
import torchvision

from fruitlib import config, models
from fruitlib.runtime import InputError

NAMES = ["end2end", "resnet18", "efficientnet_b0"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [32, 72, 96])
def test_models_give_a_logit_per_class(name, size):
    model = models.build(config.make({"model": name}), 3).eval()
    assert model(torch.rand(2, 3, size, size)).shape == (2, 3)


def test_end2end_is_head_of_act_of_base():
    model = models.build(config.make({"model": "end2end"}), 3).eval().net
    images = torch.rand(4, 3, 64, 64)
    logits = model.base(images)
    assert logits.shape == (4, 5)
    torch.testing.assert_close(model(images), model.head(model.act(logits)))
    assert sum(isinstance(m, torch.nn.Conv2d) for m in model.base.modules()) == 3


def test_normalisation_is_inside():
    seen = []
    model = models.Normalized(torch.nn.Identity())
    seen = model(torch.stack([torch.full((8, 8), m) for m in models.MEAN])[None])
    assert seen.abs().max() < 1e-6


def checkpoint(path, **changes):
    torch.manual_seed(3)
    model = models.build(config.make({"model": "base"}), 5)
    content = {"model": "base", "image_size": 96, "class_names": list("abcde"), "epoch": 1}
    torch.save(content | {"state_dict": model.state_dict()} | changes, path)
    return model


def test_base_weights_start_end2end_from_the_trained_base(tmp_path):
    trained = checkpoint(tmp_path / "best.pt")
    torch.manual_seed(9)
    model = models.build(config.make({"base_weights": str(tmp_path / "best.pt")}), 3)
    for name, tensor in trained.net.state_dict().items():
        assert torch.equal(model.net.base.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b"not a checkpoint"), "not a checkpoint that can be read"),
        (lambda path: checkpoint(path, model="resnet18"), "holds model resnet18, not a base model"),
    ],
)
def test_wrong_base_weights_are_named(tmp_path, prepare, words):
    prepare(tmp_path / "best.pt")
    with pytest.raises(InputError, match=words) as problem:
        models.build(config.make({"base_weights": str(tmp_path / "best.pt")}), 3)
    assert "best.pt" in str(problem.value) and "\n" not in str(problem.value)


def test_base_wants_five_classes():
    with pytest.raises(InputError, match="has 5 classes, the photos have 3"):
        models.build(config.make({"model": "base"}), 3)


def test_restore_gives_back_the_model(tmp_path):
    trained = checkpoint(tmp_path / "best.pt").eval()
    restored, content = models.restore(tmp_path / "best.pt")
    images = torch.rand(2, 3, 96, 96)
    torch.testing.assert_close(restored(images), trained(images))
    assert not restored.training and content["class_names"] == list("abcde")


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_pretrained_weights_come_from_torchvisions_cache(name, tmp_path, monkeypatch):
    """The real loading code, on a file put where a download would have put it (none can be made here)."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = torchvision.models.get_model_weights(name).DEFAULT
    torch.manual_seed(7)
    net = torchvision.models.get_model(name, weights=None)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(net.state_dict(), tmp_path / "hub" / "checkpoints" / weights.url.rsplit("/", 1)[1])
    # torchvision compares the name's hash with the file's, which ours cannot have: load it, do not check it
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", unchecked(torch.hub.load_state_dict_from_url)
    )
    model = models.build(config.make({"model": name, "weights": "DEFAULT"}), 3)
    first = next(iter(net.state_dict()))
    assert torch.equal(model.net.state_dict()[first], net.state_dict()[first])
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 3)


def unchecked(load):
    return lambda url, *rest, **options: load(url, *rest, **{**options, "check_hash": False})


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(InputError, match=r"weights DEFAULT of resnet18: download failed .*weights none"):
        models.build(config.make({"model": "resnet18", "weights": "DEFAULT"}), 3)


def no_network(*_, **__):
    raise OSError("Network is unreachable")


@pytest.mark.parametrize("name", [*NAMES, "base"])
def test_target_layers_are_layers_of_the_model_in_order(name):
    classes = 5 if name == "base" else 3
    model = models.build(config.make({"model": name}), classes)
    layers = models.target_layers(model)
    order = list(model.modules())
    positions = [order.index(layer) for layer in layers.values()]
    assert positions == sorted(positions) and len(layers) >= 3
    if name in ("base", "end2end"):
        assert list(layers) == ["conv1", "conv2", "conv3"]
