"""Two photos prove pretrained weights: real ones pass; wrong normalisations, orders and fresh weights do not."""

import functools
from collections import defaultdict

import pytest
import timm
import torch

from fruitlib.core import config
from fruitlib.core.errors import InputError
from fruitlib.training import models, packaged, proof, zoo
from fruitlib.training.weights import MEAN, STD, Facts

LITE = "timm:tf_efficientnet_lite0"
HALVES, ZEROS, ONES, BYTES = ((value,) * 3 for value in (0.5, 0.0, 1.0, 1 / 255))


@functools.cache
def loaded(model: str) -> torch.nn.Module:
    net = zoo.create(model)
    net.load_state_dict(packaged.load(model, net.state_dict()).content)
    return net


def state() -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in loaded(LITE).state_dict().items()}


def made_for(mean, std) -> dict[str, torch.Tensor]:
    """lite0 as if it had been trained on images with that normalisation: the first layer takes over the difference."""
    made, weight = state(), state()["conv_stem.weight"]
    made["conv_stem.weight"] = weight * torch.tensor(std).view(1, 3, 1, 1) / 0.5
    made["bn1.running_mean"] -= weight.sum((2, 3)) @ ((torch.tensor(mean) - 0.5) / 0.5)
    return made


def scrambled() -> dict[str, torch.Tensor]:
    """Every entry has its shape, and the numbers of the last one with that shape, and so on."""
    made, same = state(), defaultdict(list)
    for name, tensor in made.items():
        same[tensor.shape].append(name)
    original = state()
    for names in same.values():
        made |= {name: original[other] for name, other in zip(names, reversed(names), strict=True)}
    return made


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Builds lite0 from a file with these weights."""
    monkeypatch.setenv("FRUITLIB_CACHE", str(tmp_path / "cache"))

    def from_file(content) -> models.Normalized:
        torch.save(content, tmp_path / "weights.pth")
        settings = {"model": LITE, "weights": str(tmp_path / "weights.pth"), "image_size": "auto"}
        return models.build(config.make(settings), 3)

    return from_file


@pytest.mark.parametrize("model", packaged.MODELS)
def test_packaged_weights_are_proven(model, tmp_path, monkeypatch):
    monkeypatch.setenv("FRUITLIB_CACHE", str(tmp_path))
    origin = models.build(config.make({"model": model, "weights": "package", "image_size": "auto"}), 3).origin
    assert origin.proof.startswith("proven: names scikit-learn's photos (china.jpg: ") and "bell cote" in origin.proof
    assert ("BatchNorm fits mean 0.5, sd 0.5 (0.0" in origin.proof) == (model != "squeezenet1_1")
    assert ("not proven: no BatchNorm" in origin.proof) == (model == "squeezenet1_1")
    assert (origin.source, len(origin.sha256), origin.left) == ("package", 64, ())
    assert origin.taken == len(zoo.create(model).state_dict())


@pytest.mark.parametrize(("mean", "std"), [(MEAN, STD), (ZEROS, ONES), (ZEROS, BYTES)])
def test_a_wrong_normalisation_is_refused_of_a_package_and_corrected_of_a_file(build, monkeypatch, mean, std):
    wrong = Facts(mean, std)
    monkeypatch.setattr(zoo, "facts", lambda model: wrong)
    with pytest.raises(InputError, match=r"package of timm:.*BatchNorm fits mean 0.5, sd 0.5 .*and not .*report this"):
        models.build(config.make({"model": LITE, "weights": "package", "image_size": "auto"}), 3)
    model = build(state())
    assert model.origin.mean == model.origin.std == HALVES
    assert torch.equal(model.mean.flatten(), torch.tensor(HALVES)) and torch.equal(model.std, model.mean)
    assert "normalisation corrected" in model.origin.summary and model.origin.record()["mean"] == HALVES


@pytest.mark.parametrize(("mean", "std"), [(MEAN, STD), (ZEROS, ONES), (MEAN, BYTES)])
def test_a_file_made_with_another_normalisation_gets_that_one(build, mean, std):
    model = build(made_for(mean, std))
    assert (model.origin.mean, model.origin.std) == (mean, std)
    assert model.origin.proof.startswith("proven: names") and "and not mean 0.5, sd 0.5" in model.origin.proof


@pytest.mark.parametrize("content", [scrambled, lambda: timm.create_model("tf_efficientnet_lite0").state_dict()])
def test_scrambled_and_fresh_weights_are_refused(build, content):
    with pytest.raises(InputError, match=r"no pretrained weights of .*does not name .*fits no normalisation.*another"):
        build(content())


def test_a_scrambled_package_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("FRUITLIB_CACHE", str(tmp_path))
    file = packaged.WeightFile(tmp_path / "lite0.pth", scrambled(), "0" * 64)
    monkeypatch.setattr(packaged, "load", lambda model, own: file)
    with pytest.raises(InputError, match=r"weights package: these are no pretrained weights"):
        models.build(config.make({"model": LITE, "weights": "package", "image_size": "auto"}), 3)


def test_without_imagenets_head_batchnorm_alone_proves(build):
    made = {name: tensor for name, tensor in state().items() if not name.startswith("classifier")}
    proven = build(made).origin.proof
    assert proven.startswith("proven: not named: no head for ImageNet's 1000 classes; BatchNorm fits mean 0.5")
    bare = {name: tensor for name, tensor in scrambled().items() if not name.startswith("classifier")}
    assert build(bare).origin.proof.startswith("not proven: not named: ")


@pytest.mark.parametrize(
    ("wrong", "facts", "words"),
    [
        (lambda w: w.copy_(w.flip(1)), Facts(), "in doubt: it names them more surely with blue first"),
        (lambda w: None, Facts(ZEROS, BYTES), "in doubt: with mean 0, sd 0.00392 it is quite sure"),
        (lambda w: w.normal_(), Facts(), "does not name"),
    ],
)
def test_names_tell_gross_faults_where_there_is_no_batchnorm(wrong, facts, words):
    net = zoo.create("squeezenet1_1")
    net.load_state_dict(loaded("squeezenet1_1").state_dict())
    torch.manual_seed(0)
    wrong(net.features[0].weight.data)
    verdict = proof.prove(net, facts, head=True)
    assert words in verdict.text and verdict.opening == "not proven"


def test_where_nothing_can_be_proven_that_is_said():
    verdict = proof.prove(loaded("squeezenet1_1"), Facts(), head=False)
    assert (verdict.opening, verdict.named, verdict.fits, verdict.failed) == ("not proven", None, "", False)


def test_a_proof_changes_nothing_and_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("FRUITLIB_CACHE", str(tmp_path))
    net, before, drawn = loaded(LITE).train(), state(), torch.get_rng_state()
    facts = Facts(HALVES, HALVES)
    first = proof.kept("abc", net, facts, LITE, head=True)
    assert net.training and torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    prove, made = proof.prove, []
    monkeypatch.setattr(proof, "prove", lambda *given: made.append(given) or prove(*given))
    assert proof.kept("abc", net, facts, LITE, head=True) == first and made == []
    next((tmp_path / "proofs").iterdir()).write_text("{")  # as a full disk may leave it
    assert proof.kept("abc", net, facts, LITE, head=True) == first and len(made) == 1
    proof.kept("abd", net, facts, LITE, head=True)
    assert len(made) == 2


def test_a_sweep_says_before_it_starts_where_its_weights_come_from(tmp_path, monkeypatch):
    monkeypatch.setenv("FRUITLIB_CACHE", str(tmp_path))
    state_before = torch.get_rng_state()
    line = models.check_start_weights(config.make({"model": LITE, "weights": "package", "image_size": "auto"}))
    assert line.startswith("weights from package efficientnet-lite0") and "; proven: " in line and "\n" not in line
    assert torch.equal(state_before, torch.get_rng_state())
