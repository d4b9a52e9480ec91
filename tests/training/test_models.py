"""The networks: shapes, parts, heads, where weights come from, and what a checkpoint gives back."""

import contextlib
import functools
import json

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from fruitlib.core import config
from fruitlib.core.errors import InputError
from fruitlib.core.model_names import BASE_CLASSES, MODELS, OURS
from fruitlib.explain import gradcam
from fruitlib.training import models, proof
from fruitlib.training.blocks import blocks_of, target_layers
from fruitlib.training.weights import MEAN, STD, Facts, Origin, load_checkpoint

THEIRS = [name for name in MODELS if name not in OURS]
# The smallest of each of torchvision's families
FAMILIES = ["resnet18", "vgg11", "densenet121", "efficientnet_b0", "mobilenet_v2", "mobilenet_v3_small"]
FAMILIES += ["convnext_tiny", "regnet_y_400mf", "shufflenet_v2_x0_5"]
SMALL = ["mobilenet_v3_small", "shufflenet_v2_x0_5"]  # quick to build


def make(name: str, classes: int = 3, **settings) -> models.Normalized:
    return models.build(config.make({"model": name, **settings}), classes)


@functools.cache
def hollow(name: str) -> models.Normalized:
    """The model without memory or arithmetic (shapes only), so that the largest take as long as the smallest."""
    block_params = torchvision.models.regnet.BlockParams
    computed = block_params.from_init_params

    def on_cpu(*args, **kwargs):  # RegNet computes its widths in torch, and needs them
        with torch.device("cpu"):
            return computed(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        patch.setattr(block_params, "from_init_params", on_cpu)
        return make(name, BASE_CLASSES).eval()


@contextlib.contextmanager
def watching(layers: dict[str, nn.Module], blocks: dict[str, nn.Module] | None = None):
    """Gives a dict of what each layer hands on, and a list of blocks as they begin to run, filled by a forward pass."""
    outputs: dict[str, torch.Tensor] = {}
    begun: list[str] = []
    hooks = [
        layer.register_forward_hook(lambda module, inputs, output, name=name: outputs.__setitem__(name, output))
        for name, layer in layers.items()
    ]
    hooks += [
        module.register_forward_pre_hook(lambda module, inputs, name=name: begun.append(name))
        for name, block in (blocks or {}).items()
        for module in block.modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    yield outputs, begun
    for hook in hooks:
        hook.remove()


# ---- every model ----


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_and_batchnorm_is_in_one_block_or_in_the_head(name):
    model = hollow(name)
    parts = [*blocks_of(model).values(), models.head_of(model)]
    for kind in ("parameters", "buffers"):
        held = [id(tensor) for part in parts for tensor in getattr(part, kind)()]
        wanted = [id(tensor) for tensor in getattr(model.net, kind)()]
        assert sorted(held) == sorted(wanted)
    assert 3 <= len(blocks_of(model)) <= 5


@pytest.mark.parametrize("name", MODELS)
def test_blocks_run_one_after_the_other_and_layers_for_cams_lose_resolution(name):
    model, images = hollow(name), torch.empty(2, 3, 96, 96, device="meta")
    layers, blocks = target_layers(model), blocks_of(model)
    with watching(layers, blocks) as (outputs, begun), torch.no_grad():
        assert model(images).shape == (2, BASE_CLASSES)
    assert list(dict.fromkeys(begun)) == list(blocks)
    assert list(outputs) == list(layers) and 3 <= len(layers) <= 5
    assert all(output.ndim == 4 for output in outputs.values())
    sides = [output.shape[2] for output in outputs.values()]
    assert sides == sorted(set(sides), reverse=True)


@pytest.mark.parametrize("name", THEIRS)
def test_sides_are_those_the_weights_were_made_at(name):
    expects = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    assert [MODELS[name]] == expects.crop_size
    if name != "efficientnet_v2_l":  # the one that is why weights bring mean and spread of their own
        assert (tuple(expects.mean), tuple(expects.std)) == (Facts.mean, Facts.std)


def test_models_are_all_of_torchvisions_common_convolutional_ones():
    families = ("resne", "wide_resnet", "vgg", "densenet", "efficientnet", "mobilenet", "convnext", "regnet", "shuffle")
    known = {name for name in torchvision.models.list_models(torchvision.models) if name.startswith(families)}
    assert known - set(THEIRS) == {"regnet_y_128gf"}  # 2.6 GB of weights, and larger photos than we take


@pytest.mark.parametrize(
    ("name", "blocks", "layers"),
    [
        ("end2end", "conv1 conv2 conv3 fc", "conv1 conv2 conv3"),
        ("base", "conv1 conv2 conv3", "conv1 conv2 conv3"),
        ("resnet50", "stem layer1 layer2 layer3 layer4", "layer1 layer2 layer3 layer4"),
        (
            "densenet121",
            "stem denseblock1 transition1-denseblock2 transition2-denseblock3 transition3-norm5",
            "denseblock1 denseblock2 denseblock3 norm5",
        ),
        (
            "efficientnet_b0",
            "features0-1 features2 features3 features4-5 features6-8",
            "features2 features3 features5 features8",
        ),
    ],
)
def test_names_of_blocks_and_layers(name, blocks, layers):
    assert list(blocks_of(hollow(name))) == blocks.split()
    assert list(target_layers(hollow(name))) == layers.split()


@pytest.fixture
def unproven(monkeypatch):
    """Weights that a test draws at random are taken for pretrained ones, which their proof would refuse."""
    verdict = lambda sha256, net, facts, model, head: proof.Verdict("not looked at", facts.mean, facts.std)  # noqa: E731
    monkeypatch.setattr(proof, "kept", verdict)


# ---- one of each family ----


@pytest.mark.parametrize("name", ["end2end", *SMALL, "resnet18"])
@pytest.mark.parametrize("size", [32, 72])
def test_models_give_a_logit_per_class(name, size):
    assert make(name).eval()(torch.rand(2, 3, size, size)).shape == (2, 3)


def test_end2end_is_head_of_act_of_base():
    model = make("end2end").eval().net
    images = torch.rand(4, 3, 64, 64)
    logits = model.base(images)
    assert logits.shape == (4, 5)
    torch.testing.assert_close(model(images), model.head(model.act(logits)))
    assert sum(isinstance(m, nn.Conv2d) for m in model.base.modules()) == 3


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "vgg11"])  # half a gigabyte
def test_torchvisions_own_file_gives_torchvisions_own_answers(name, tmp_path, unproven):
    """Its classifier stays, whatever stands before its last layer, and so does the normalisation it was made with."""
    torch.manual_seed(5)
    net = torchvision.models.get_model(name, weights=None).eval()
    torch.save(net.state_dict(), tmp_path / "published.pth")
    model = make(name, 3, weights=str(tmp_path / "published.pth")).eval()
    original, ours = ([m for m in one.modules() if isinstance(m, nn.Linear)][-1] for one in (net, model))
    assert ours.out_features == 3 and not torch.equal(ours.weight, original.weight[:3])
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        ours.weight.copy_(original.weight[:3])
        ours.bias.copy_(original.bias[:3])
        expected = net((images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None])
        torch.testing.assert_close(model(images), expected[:, :3])
        channels_last = model.to(memory_format=torch.channels_last)
        rearranged = channels_last(images.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(rearranged, expected[:, :3], rtol=1e-3, atol=1e-5)
    assert "published.pth" in model.origin.summary and "fresh head" in model.origin.summary


@pytest.mark.parametrize("name", FAMILIES)
def test_activations_in_place_do_not_change_heatmaps(name, monkeypatch):
    """ReLUs that overwrite what Grad-CAM watches: the same maps as from a model in which none does."""
    torch.manual_seed(0)
    model, images = make(name, head="gap_bn"), torch.rand(4, 3, 64, 64)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0  # statistics of these images: those of fresh deep networks let hardly any signal pass
    model.train()(images)
    maps = gradcam.heatmaps(model, images, target_layers(model), targets=[0, 1, 2, 0])
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    monkeypatch.setattr(torchvision.models.densenet.F, "relu", lambda x, inplace=False: torch.relu(x))
    again = gradcam.heatmaps(model, images, target_layers(model), targets=[0, 1, 2, 0])
    np.testing.assert_allclose(maps.heatmap, again.heatmap, atol=1e-4)
    np.testing.assert_allclose(maps.peak, again.peak, rtol=1e-3, atol=1e-7)
    assert (maps.peak.max(axis=0) > 1e-4).all()


# ---- heads ----


def kinds(model: models.Normalized) -> list[str]:
    return [type(part).__name__ for part in models.head_of(model).modules() if not isinstance(part, nn.Sequential)]


@pytest.mark.parametrize(
    ("name", "auto", "dropped"),
    [
        ("resnet18", "Linear", "Dropout Linear"),
        ("efficientnet_b0", "Dropout Linear", "Dropout Linear"),
        ("mobilenet_v3_small", "Linear Hardswish Dropout Linear", "Linear Hardswish Dropout Linear"),
        ("convnext_tiny", "Unflatten LayerNorm2d Flatten Linear", "Unflatten LayerNorm2d Flatten Dropout Linear"),
    ],
)
def test_a_linear_head_is_torchvisions_with_dropout_as_wanted(name, auto, dropped):
    assert kinds(make(name)) == auto.split()
    model = make(name, dropout=0.7)
    assert kinds(model) == dropped.split()
    assert {part.p for part in models.head_of(model).modules() if isinstance(part, nn.Dropout)} == {0.7}


def test_dropout_sets_every_dropout_of_vggs_classifier():
    with torch.device("meta"):
        heads = [models.head_of(make("vgg11", dropout=d)) for d in ("auto", 0.1)]
    assert [[part.p for part in head if isinstance(part, nn.Dropout)] for head in heads] == [[0.5, 0.5], [0.1, 0.1]]


@pytest.mark.parametrize("name", FAMILIES)
def test_gap_bn_stands_on_average_pooled_features(name):
    """Channel means of the last layer for CAMs (after what DenseNet and VGG still do to it), one for each channel."""
    model, images = make(name, head="gap_bn").eval(), torch.rand(2, 3, 64, 64)
    seen: list[torch.Tensor] = []
    models.head_of(model).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    last = list(target_layers(model).items())[-1]
    with torch.no_grad(), watching(dict([last])) as (outputs, _):
        model(images)
    after = {"densenet121": torch.relu, "vgg11": nn.MaxPool2d(2)}.get(name, nn.Identity())
    torch.testing.assert_close(seen[0], after(outputs[last[0]]).mean((2, 3)), rtol=1e-4, atol=1e-6)
    assert kinds(model) == ["BatchNorm1d", "Dropout", "Linear"] and models.head_of(model)[1].p == 0.5


def test_gap_bn_with_a_hidden_layer():
    model = make("resnet18", head="gap_bn", head_width=20, dropout=0.25)
    assert kinds(model) == ["BatchNorm1d", "Linear", "ReLU", "BatchNorm1d", "Dropout", "Linear"]
    head = models.head_of(model)
    assert (head[1].in_features, head[1].out_features, head[-1].in_features, head[-2].p) == (512, 20, 20, 0.25)


# ---- weights ----


def trained(path, name="mobilenet_v3_small", classes="abc", seed=3, **settings) -> models.Normalized:
    """A model of ours in a file, other in every number from a fresh one."""
    torch.manual_seed(seed)
    cfg = config.make({"model": name, **settings})
    model = models.build(cfg, len(classes))
    for tensor in (*model.parameters(), *(b for b in model.net.buffers() if b.is_floating_point())):
        tensor.data.add_(0.01)
    torch.save(models.checkpoint(model, cfg, list(classes), epoch=7), path)
    return model


def backbone(model: models.Normalized) -> dict[str, torch.Tensor]:
    blocks = blocks_of(model).items()
    return {f"{name}.{key}": value for name, block in blocks for key, value in block.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.6}])
def test_a_checkpoint_of_the_same_model_gives_all_its_weights(tmp_path, changes):
    model = trained(tmp_path / "best.pt")
    started = make("mobilenet_v3_small", 3, weights=str(tmp_path / "best.pt"), **changes)
    assert models.fingerprint(started) == models.fingerprint(model)
    assert started.origin.summary == f"all weights from {tmp_path / 'best.pt'} (classes a, b, c)"


@pytest.mark.parametrize(("classes", "settings"), [(4, {}), (3, {"head": "gap_bn"})])
def test_of_another_head_the_backbone_alone_is_taken_and_that_is_said(tmp_path, classes, settings):
    model = trained(tmp_path / "best.pt")
    started = make("mobilenet_v3_small", classes, weights=str(tmp_path / "best.pt"), **settings)
    assert same(backbone(started), backbone(model))
    head = models.head_of(model).state_dict()  # no part of it, hidden layers neither
    own = models.head_of(started).state_dict()
    assert not any(key in head and torch.equal(own[key], head[key]) for key in own)
    assert started.origin.summary.startswith("backbone from ") and "fresh head" in started.origin.summary


def test_our_own_networks_start_from_a_path_too(tmp_path):
    model = trained(tmp_path / "best.pt", "end2end")
    started = make("end2end", 4, weights=str(tmp_path / "best.pt"))
    assert same(started.net.base.state_dict(), model.net.base.state_dict())
    assert models.head_of(started).out_features == 4


def test_base_weights_start_end2end_from_the_trained_base(tmp_path):
    model = trained(tmp_path / "best.pt", "base", "abcde")
    started = make("end2end", base_weights=str(tmp_path / "best.pt"))
    assert same(started.net.base.state_dict(), model.net.state_dict())
    assert "best.pt" in started.origin.summary


def state(name, classes=1000):
    with torch.device("meta"):
        names = torchvision.models.get_model(name, num_classes=classes).state_dict()
    return {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in names.items()}


def ensemble(path):
    cfg = config.make({"model": "resnet18"})
    pair = models.Ensemble([models.build(cfg, 2), models.build(cfg, 2)])
    torch.save(models.checkpoint(pair, cfg, ["a", "b"]), path)


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda path: None, "no such file; set none, DEFAULT, package or"),
        (lambda path: path.write_bytes(b"not a checkpoint"), "not a readable checkpoint"),
        (lambda path: torch.save([1, 2], path), "not a checkpoint but a list"),
        (lambda path: torch.save({"settings": {}, "parts": {}}, path), "neither a best.pt of fruitlib nor"),
        (lambda path: trained(path), "holds model mobilenet_v3_small, not resnet18"),
        (ensemble, "an ensemble of 2"),
        (
            lambda path: torch.save(state("resnet34"), path),
            r"another network \(122 of 122 entries fit, layer1.2.bn1.bias is unknown\).*model: resnet34",
        ),
        (
            lambda path: torch.save(state("resnet50"), path),
            r"another network .*layer1.0.bn3.bias is unknown.*model: resnet50",
        ),
        (
            lambda path: torch.save(dict(list(state("resnet18").items())[:9]), path),
            r"another network \(9 of 122 entries fit, layer1.0.bn1.running_mean is missing",
        ),
    ],
)
def test_wrong_weights_are_named(tmp_path, prepare, words):
    prepare(tmp_path / "best.pt")
    with pytest.raises(InputError, match=words) as problem:
        make("resnet18", weights=str(tmp_path / "best.pt"))
    assert "best.pt" in str(problem.value) and "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b"not a checkpoint"), "not a readable checkpoint"),
        (lambda path: trained(path), "holds model mobilenet_v3_small, not base"),
        (lambda path: torch.save(state("resnet18"), path), "neither a best.pt of fruitlib nor"),
    ],
)
def test_wrong_base_weights_are_named(tmp_path, prepare, words):
    prepare(tmp_path / "best.pt")
    with pytest.raises(InputError, match=words) as problem:
        make("end2end", base_weights=str(tmp_path / "best.pt"))
    assert "best.pt" in str(problem.value) and "\n" not in str(problem.value)


def test_a_state_dict_is_no_file_for_our_own_networks(tmp_path):
    torch.save(state("resnet18"), tmp_path / "published.pth")
    with pytest.raises(InputError, match=r"published.pth: not a checkpoint of end2end"):
        make("end2end", weights=str(tmp_path / "published.pth"))


def test_files_as_old_as_densenets_are_read(tmp_path):
    """With dots in names that have lost them since, and from before BatchNorm counted batches."""
    torch.manual_seed(2)
    new = torchvision.models.densenet121(num_classes=4).state_dict()
    old = {key.replace("norm1", "norm.1").replace("conv2", "conv.2"): value for key, value in new.items()}
    torch.save({key: value for key, value in old.items() if "num_batches" not in key}, tmp_path / "old.pth")
    started = make("densenet121", weights=str(tmp_path / "old.pth")).net.state_dict()
    assert torch.equal(
        started["features.denseblock1.denselayer2.norm1.weight"], new["features.denseblock1.denselayer2.norm1.weight"]
    )
    assert torch.equal(started["features.norm5.bias"], new["features.norm5.bias"])


def test_base_wants_five_classes():
    with pytest.raises(InputError, match="has 5 classes, the photos have 3"):
        make("base", 3)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Puts a model's weights where a download would have put them (none can be made here); gives them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    # torchvision compares the name's hash with the file's, which ours cannot have: load it, do not check it
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", unchecked(torch.hub.load_state_dict_from_url)
    )

    def publish(name: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(7)
        content = torchvision.models.get_model(name, weights=None).state_dict()
        (tmp_path / "hub" / "checkpoints").mkdir(parents=True, exist_ok=True)
        url = torchvision.models.get_model_weights(name).DEFAULT.url
        torch.save(content, tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[1])
        return content

    return publish


def unchecked(load):
    return lambda url, *rest, **options: load(url, *rest, **{**options, "check_hash": False})


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v3_small"])
def test_pretrained_weights_come_from_torchvisions_cache(name, published):
    content = published(name)
    model = make(name, weights="DEFAULT")
    first = next(iter(content))
    assert torch.equal(model.net.state_dict()[first], content[first])
    if name == "mobilenet_v3_small":  # the classifier's hidden layer is pretrained, too
        assert torch.equal(models.head_of(model)[0].weight, content["classifier.0.weight"])
    weights = torchvision.models.get_model_weights(name).DEFAULT
    assert model.origin.summary.startswith(f"weights from {weights.url}") and model.origin.source == "DEFAULT"
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 3)


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(
        InputError,
        match=r"weights DEFAULT of resnet18: download failed .*put resnet18-.*pth into .*, or set weights: none",
    ):
        make("resnet18", weights="DEFAULT")


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 half a file"])
def test_a_broken_download_is_named(tmp_path, monkeypatch, content):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / torchvision.models.ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[1]
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"weights DEFAULT of resnet18: {file} is broken .*remove it") as problem:
        make("resnet18", weights="DEFAULT")
    assert "\n" not in str(problem.value)


def no_network(*_, **__):
    raise OSError("Network is unreachable")


# ---- normalisation ----


def test_normalisation_is_inside():
    model = models.Normalized(nn.Identity())
    seen = model(torch.stack([torch.full((8, 8), m) for m in MEAN])[None])
    assert seen.abs().max() < 1e-6


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_training_normalises_to_the_bit_as_evaluation_does(memory_format):
    model = models.Normalized(nn.Identity(), Origin(mean=(0.1, 0.5, 0.7), std=(0.2, 0.3, 0.4)))
    images = torch.rand(3, 3, 5, 7).contiguous(memory_format=memory_format)
    trained = model.train()(images)
    assert torch.equal(trained, model.eval()(images)) and trained.is_contiguous(memory_format=memory_format)


def test_weights_bring_the_normalisation_they_were_made_with(published, unproven, monkeypatch, tmp_path):
    """As efficientnet_v2_l's do (mean and spread 0.5), which is too large for a test."""
    name, halves = "mobilenet_v3_small", torch.full((1, 3, 1, 1), 0.5)
    content = published(name)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    expects = functools.partial(weights.transforms, mean=(0.5,) * 3, std=(0.5,) * 3)
    with monkeypatch.context() as patch:
        patch.setattr(weights.value, "transforms", expects)
        model = make(name, weights="DEFAULT")
        torch.save(content, tmp_path / "published.pth")
        from_file = make(name, weights=str(tmp_path / "published.pth"))
        fresh = make(name)
    assert all(torch.equal(m.mean, halves) and torch.equal(m.std, halves) for m in (model, from_file, fresh))
    torch.save(models.checkpoint(model, config.make({"model": name}), list("abc")), tmp_path / "best.pt")
    restored, _ = models.restore(tmp_path / "best.pt")
    started = make(name, 5, weights=str(tmp_path / "best.pt"))
    assert all(torch.equal(m.mean, halves) and torch.equal(m.std, halves) for m in (restored, started))


# ---- checkpoints and ensembles ----


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("base", {}),
        ("end2end", {}),
        ("mobilenet_v3_small", {"dropout": 0.1}),
        ("resnet18", {"head": "gap_bn", "head_width": 8}),
        ("convnext_tiny", {"dropout": 0.2}),
    ],
)
def test_restore_gives_back_the_model(tmp_path, name, settings):
    model = trained(tmp_path / "best.pt", name, "abcde", image_size=64, **settings).eval()
    before = torch.get_rng_state()
    restored, content = models.restore(tmp_path / "best.pt")
    assert torch.equal(before, torch.get_rng_state())
    images, model = torch.rand(2, 3, 64, 64), model.to(memory_format=torch.channels_last)
    assert torch.equal(restored(images), model(images)) and not restored.training
    assert (content["class_names"], content["epoch"], content["image_size"]) == (list("abcde"), 7, 64)
    network = {"head": "linear", "head_width": 0, "dropout": "auto", "views": "one", "model": name} | settings
    assert content["network"] == network
    assert json.loads(json.dumps(content["preprocess"]))["resize"] == "crop"


def test_a_checkpoint_that_does_not_say_its_network_is_named(tmp_path):
    torch.save({"model": "resnet18", "state_dict": {}}, tmp_path / "best.pt")
    with pytest.raises(InputError, match=r"best.pt: does not name its network"):
        models.restore(tmp_path / "best.pt")


def test_an_ensembles_probabilities_are_the_mean_of_its_members(tmp_path):
    cfg = config.make({"model": "end2end"})
    members = [make("end2end").eval() for _ in range(3)]
    together, images = models.Ensemble(members).eval(), torch.rand(5, 3, 64, 64)
    with torch.no_grad():
        expected = torch.stack([member(images).double().softmax(1) for member in members]).mean(0)
        answer = together(images).double()
    torch.testing.assert_close(answer.exp(), expected, rtol=1e-4, atol=1e-6)  # logs, not just logits
    assert expected.std(0).max() > 0
    torch.save(models.checkpoint(together, cfg, list("abc")), tmp_path / "best.pt")
    restored, content = models.restore(tmp_path / "best.pt")
    assert len(content["members"]) == 3 and "state_dict" not in content
    assert models.fingerprint(restored) == models.fingerprint(together)
    with pytest.raises(InputError, match="an ensemble of 3 models: Grad-CAM looks at single networks"):
        target_layers(restored)


def test_an_ensemble_of_very_sure_members_stays_finite():
    sure = [nn.Identity(), nn.Identity()]
    logits = torch.tensor([[1000.0, -1000.0, 0.0]])
    answer = models.Ensemble(sure)(logits)
    assert torch.isfinite(answer).all() and answer[0, 0] == 0


@pytest.mark.parametrize("length", [0, 10, 1000, 19_999, 20_000, 20_001])
def test_a_checkpoint_cut_short_at_any_length_is_named(tmp_path, length):
    """Of some lengths torch says `[Errno 22] Invalid argument`, as if the disk were at fault."""
    whole, short = tmp_path / "whole.pt", tmp_path / "short.pt"
    torch.save({"state_dict": {"a": torch.zeros(20_000)}}, whole)
    short.write_bytes(whole.read_bytes()[:length])
    with pytest.raises(InputError, match=r"short\.pt: not a readable checkpoint"):
        load_checkpoint(short)


def test_weights_are_refused_before_anything_is_trained(tmp_path):
    best = tmp_path / "best.pt"
    model = models.build(config.make({}), 3)
    torch.save(models.checkpoint(model, config.make({}), list("abc")), best)
    models.check_start_weights(config.make({"weights": str(best)}))
    with pytest.raises(InputError, match="holds model end2end, not resnet18"):
        models.check_start_weights(config.make({"model": "resnet18", "weights": str(best)}))
    with pytest.raises(InputError, match="holds model end2end, not base"):
        models.check_start_weights(config.make({"base_weights": str(best)}))
