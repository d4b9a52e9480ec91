"""What learns in which epoch, what stays still meanwhile, and the starts that params/transfer.yaml shows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from fruitlib.core import config
from fruitlib.data import balance, dataset
from fruitlib.data.cache import Store
from fruitlib.data.dataset import Photos
from fruitlib.sweep import params
from fruitlib.training import blocks, models, optim
from fruitlib.training import features as features_of

ROOT = Path(__file__).parents[2]
RESNET = ["stem", "layer1", "layer2", "layer3", "layer4", "head"]


def fresh(name: str = "resnet18", **settings) -> tuple[models.Normalized, config.Config]:
    """A model with random weights, and settings that would have it start from trained ones."""
    cfg = config.make({"model": name, "weights": "somewhere.pt", **settings})
    torch.manual_seed(1)
    return models.build(cfg.model_copy(update={"weights": "none"}), 3), cfg


@pytest.fixture(scope="module")
def small() -> models.Normalized:
    return fresh("mobilenet_v3_small")[0]


def photos(count: int = 6, side: int = 64) -> Photos:
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    names = [f"{number}.png" for number in range(count)]
    store = Store(pixels, Path(), names, config.make({"image_size": side}), "ram", "")
    return Photos(store, np.arange(count), torch.arange(count) % 3, names)


def settled(model: models.Normalized, pixels: torch.Tensor) -> models.Normalized:
    """With BatchNorm statistics of these photos; those of fresh deep networks let hardly any signal pass."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(pixels)
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def learns(model: models.Normalized) -> list[str]:
    """The parts whose weights may change, all of them or none."""
    names = []
    for name, part in {**blocks.blocks_of(model), "head": models.head_of(model)}.items():
        flags = {p.requires_grad for p in part.parameters()}
        assert len(flags) == 1
        names += [name] * flags.pop()
    return names


# ---- freezing ----


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [("none", RESNET), ("all_but_last_block", ["layer4", "head"]), ("backbone", ["head"])],
)
def test_freeze_leaves_what_it_says_to_learn(freeze, expected):
    model, cfg = fresh(freeze=freeze)
    for epoch in (1, 2, 50):
        assert blocks.freeze_blocks(model, cfg, epoch) == expected == learns(model)


@pytest.mark.parametrize(
    ("freeze", "every", "learning_parts"),
    [("backbone", 1, [1, 2, 3, 4, 5, 6, 6]), ("backbone", 3, [1, 1, 1, 2, 2, 2, 3])]
    + [("all_but_last_block", 2, [2, 2, 3, 3, 4, 4, 5])],
)
def test_gradual_unfreezing_adds_a_block_from_the_head_down(freeze, every, learning_parts):
    model, cfg = fresh(freeze=freeze, unfreeze_every=every)
    for epoch, count in enumerate(learning_parts, start=1):
        assert blocks.freeze_blocks(model, cfg, epoch) == RESNET[-count:] == learns(model)


@examples(max_examples=30, deadline=None)
@given(
    freeze=st.sampled_from(["backbone", "all_but_last_block"]),
    every=st.integers(0, 4),
    epochs=st.lists(st.integers(1, 30), min_size=1, max_size=4),
)
def test_what_learns_depends_on_the_epoch_alone(small, freeze, every, epochs):
    """Not on what learnt before: a training that is resumed in any epoch goes on as it would have."""
    cfg = config.make({"model": "mobilenet_v3_small", "weights": "x.pt", "freeze": freeze, "unfreeze_every": every})
    by_epoch = {epoch: blocks.freeze_blocks(small, cfg, epoch) for epoch in range(1, 31)}
    for epoch in epochs:
        assert blocks.freeze_blocks(small, cfg, epoch) == by_epoch[epoch] == learns(small)
    counts = [len(parts) for parts in by_epoch.values()]
    assert counts == sorted(counts) and (every or len(set(counts)) == 1)


def step(model: models.Normalized, cfg: config.Config) -> None:
    """One step of the optimizer, in which everything that may change does."""
    optimizer = optim.build(cfg, model)
    blocks.set_modes(model, cfg)
    torch.manual_seed(0)
    torch.nn.functional.cross_entropy(model(torch.rand(4, 3, 64, 64)), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()


TIMM = ["timm:tf_efficientnet_lite0", "timm:vit_tiny_patch16_224"]


@pytest.mark.parametrize("name", ["end2end", "resnet18", "mobilenet_v3_small", "densenet121", *TIMM])
@pytest.mark.parametrize("settings", [{"freeze": "backbone"}, {"freeze": "all_but_last_block", "unfreeze_every": 5}])
def test_a_step_changes_what_learns_and_nothing_else(name, settings):
    """Weights (of decay, too) and BatchNorm's running statistics."""
    model, cfg = fresh(name, lr=0.05, optimizer="adamw", weight_decay=0.5, image_size=64, **settings)
    parts = {**blocks.blocks_of(model), "head": models.head_of(model)}
    learning = blocks.freeze_blocks(model, cfg)
    before = {name: {key: value.clone() for key, value in part.state_dict().items()} for name, part in parts.items()}
    step(model, cfg)
    for part, tensors in before.items():
        changed = {key for key, value in parts[part].state_dict().items() if not torch.equal(value, tensors[key])}
        if part not in learning:
            assert changed == set()
        else:
            wanted = {key for key, p in parts[part].named_parameters() if p.grad is not None and p.grad.any()}
            assert wanted and changed >= wanted
            assert {key for key in tensors if key.endswith("running_mean")} <= changed


def test_batchnorm_keeps_the_statistics_that_a_fitted_head_was_fitted_to():
    model, cfg = fresh("resnet18", weights="x.pt", head_start="logistic")
    blocks.freeze_blocks(model, cfg)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    step(model, cfg)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    assert model.training and all(p.requires_grad for p in model.parameters())


def test_frozen_blocks_drop_nothing_and_the_head_does():
    """EfficientNet leaves out whole layers at random while it learns (stochastic depth)."""
    model, cfg = fresh("efficientnet_b0", freeze="backbone")
    images = torch.rand(4, 3, 64, 64)
    settled(model, images)
    blocks.freeze_blocks(model, cfg)
    blocks.set_modes(model, cfg)
    seen: list[torch.Tensor] = []
    models.head_of(model).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    first, second = model(images), model(images)
    assert torch.equal(*seen) and not torch.equal(first, second)
    thawed, free = fresh("efficientnet_b0")
    blocks.set_modes(thawed, free)
    assert not torch.equal(thawed(images), thawed(images)) and all(m.training for m in thawed.modules())


def test_layer_decay_goes_down_by_block_in_a_transformer_too():
    model, cfg = fresh(TIMM[1], lr=0.01, layer_decay=0.5, image_size=64)
    blocks.freeze_blocks(model, cfg)
    rates = {group["name"].partition(",")[0]: group["lr"] for group in optim.parameter_groups(cfg, model)}
    assert list(rates) == ["patch_embed-blocks.2", "blocks.3-5", "blocks.6-8", "blocks.9-norm", "head"]
    assert list(rates.values()) == pytest.approx([0.01 * 0.5**distance for distance in (4, 3, 2, 1, 0)])
    held = [id(p) for group in optim.parameter_groups(cfg, model) for p in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))


# ---- features ----


@pytest.mark.parametrize(
    "name", ["base", "end2end", "resnet18", "densenet121", "efficientnet_b0", "convnext_tiny", *TIMM]
)
@pytest.mark.parametrize("head", ["linear", "gap_bn"])
def test_the_head_of_the_features_is_the_model(name, head):
    if name in config.OURS and head != "linear":
        return
    some = photos()
    cfg = config.make({"model": name, "head": head, "image_size": 64})
    model = settled(models.build(cfg, 5), dataset.to_float(some.images))
    (features,) = map(torch.from_numpy, features_of.compute(model, some))
    assert features.ndim == 2 and not features.requires_grad and features.std(0).max() > 1e-3
    with torch.no_grad():
        expected = model(dataset.to_float(some.images))
        torch.testing.assert_close(models.head_of(model)(features), expected, atol=1e-5, rtol=1e-4)
    assert not models.head_of(model)._forward_pre_hooks


def test_smote_takes_the_features_of_every_family():
    """Flat ones, from ConvNeXt as well."""
    model = models.build(config.make({"model": "convnext_tiny"}), 3).eval()
    (features,) = map(torch.from_numpy, features_of.compute(model, photos(7)))
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    more, names = balance.smote(features, labels, "abc")
    assert models.head_of(model)(more).shape == (9, 3) and names.bincount().tolist() == [3, 3, 3]


# ---- the story in params/ ----


def test_every_way_of_params_transfer_starts_as_it_says():
    plan = params.read_params(ROOT / "params" / "transfer.yaml")
    sizes, ways = [], [cfg for cfg in plan.runs.values() if cfg.fold == 1]
    published = models.build(ways[0], 3).net.body.conv_stem.weight.detach().clone()
    for cfg in ways:
        model = models.build(cfg, 3)
        stem = model.net.body.conv_stem.weight
        assert torch.equal(stem, published) == (cfg.weights == "package")
        sizes.append(len(blocks.freeze_blocks(model, cfg)))
        step(model, cfg)
        assert torch.equal(stem, published) == (cfg.freeze != "none")
    every = 1 + len(blocks.blocks_of(model))
    assert sizes == [1, 2, every, every, 1, every]
    assert [cfg.features_once for cfg in ways] == [True] + 5 * [False]
    unfrozen = models.build(config.make({"model": ways[4].model}), 3)
    assert (
        len(blocks.freeze_blocks(unfrozen, ways[4], ways[4].epochs)) >= 3
    )  # gradual unfreezing has time to get somewhere


def test_params_models_sets_models_side_by_side():
    runs = params.read_params(ROOT / "params" / "models.yaml").runs.values()
    assert {"end2end", "squeezenet1_1", "timm:tf_efficientnet_lite0"} <= {cfg.model for cfg in runs}
    by_model = {cfg.model: {c.weights for c in runs if c.model == cfg.model} for cfg in runs}
    assert by_model["timm:tf_efficientnet_lite0"] == {"none", "package"}
