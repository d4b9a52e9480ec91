"""timm's networks: features as timm computes them, heads, blocks, image sizes, and what is known of their weights."""

import pytest
import timm
import torch
from torch import nn

from fruitlib.core import config
from fruitlib.core.errors import InputError
from fruitlib.training import blocks, models, packaged, timm_zoo, zoo
from fruitlib.training.train import fit

LITE, VIT = "timm:tf_efficientnet_lite0", "timm:vit_tiny_patch16_224"


def make(model: str, **settings) -> models.Normalized:
    return models.build(config.make({"model": model, **settings}), 3)


def hollow(name: str) -> models.Normalized:
    """The model without memory or arithmetic, shapes only."""
    with torch.device("meta"):
        return make(f"timm:{name}", image_size="auto").eval()


# ---- one of each kind ----

# Each with what Grad-CAM's layers give: maps (N, C, H, W), maps with channels last, or tokens
FAMILIES = {
    "resnet18": 4,
    "tf_efficientnet_lite0": 4,
    "mobilenetv4_conv_small": 4,
    "convnext_atto": 4,
    "vgg11_bn": 4,
    "mobilevit_xxs": 4,
    "nfnet_l0": 4,
    "coat_lite_tiny": 3,
    "levit_128s": 3,
    "deit_tiny_distilled_patch16_224": 3,
    "mixer_s16_224": 3,
    "swin_tiny_patch4_window7_224": 4,
}


@pytest.mark.parametrize(("name", "dims"), FAMILIES.items())
def test_a_network_is_divided_into_blocks_that_run_one_after_the_other(name, dims):
    """Each weight and BatchNorm is in one of them or in the head, gradients reach all, and Grad-CAM's layers run."""
    model = hollow(name)
    parts, layers = blocks.blocks_of(model), blocks.target_layers(model)
    for kind in ("parameters", "buffers"):
        held = [id(tensor) for part in (*parts.values(), models.head_of(model)) for tensor in getattr(part, kind)()]
        assert sorted(held) == sorted(id(tensor) for tensor in getattr(model.net, kind)())
    begun, outputs = [], {}
    for block, part in parts.items():
        for module in part.modules():
            if any(True for _ in module.parameters(recurse=False)):
                module.register_forward_pre_hook(lambda module, inputs, block=block: begun.append(block))
    for layer, part in layers.items():
        part.register_forward_hook(lambda module, inputs, output, layer=layer: outputs.__setitem__(layer, output))
    with torch.device("meta"):
        logits = model(torch.empty(2, 3, *[zoo.facts(f"timm:{name}").side] * 2))
        logits.sum().backward()
    assert logits.shape == (2, 3)
    assert list(dict.fromkeys(begun)) == list(parts) and 3 <= len(parts) <= 5
    assert list(outputs) == list(layers) and 3 <= len(layers) <= 4
    assert {output.ndim for output in outputs.values()} == {dims}
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize(
    ("name", "names", "layers"),
    [
        ("resnet18", "stem layer1 layer2 layer3 layer4", "layer1 layer2 layer3 layer4"),
        (
            "tf_efficientnet_lite0",
            "conv_stem-blocks.0 blocks.1 blocks.2 blocks.3-4 blocks.5-bn2",
            "blocks.1 blocks.2 blocks.4 blocks.6",
        ),
        (
            "vit_tiny_patch16_224",
            "patch_embed-blocks.2 blocks.3-5 blocks.6-8 blocks.9-norm",
            "blocks.2.norm1 blocks.5.norm1 blocks.8.norm1 blocks.11.norm1",
        ),
        ("levit_128s", "stem-stages.0 stages.1 stages.2", "stages.0 stages.1 stages.2"),
        (
            "pit_ti_224",  # resolution changes, and a class token decides
            "patch_embed-transformers.0 transformers.1 transformers.2-norm",
            "transformers.0.blocks.1.norm1 transformers.1.blocks.5.norm1 transformers.2.blocks.3.norm1",
        ),
    ],
)  # fmt: skip
def test_names_of_blocks_and_layers(name, names, layers):
    assert list(blocks.blocks_of(hollow(name))) == names.split()
    assert list(blocks.target_layers(hollow(name))) == layers.split()


# ---- features and heads ----


@pytest.mark.parametrize("model", [LITE, VIT, "timm:mobilenetv3_small_050"])
def test_features_are_timms_own(model):
    """Of a network that nothing of ours has touched, with the same weights and the same normalisation."""
    torch.manual_seed(3)
    net = timm.create_model(model.removeprefix("timm:"))
    if model == LITE:
        net.load_state_dict(packaged.load(model, net.state_dict())[1])
    net.eval()
    images = torch.rand(3, 3, 224, 224)
    facts = zoo.facts(model)
    shown = (images - torch.tensor(facts.mean)[:, None, None]) / torch.tensor(facts.std)[:, None, None]
    cfg = config.make({"model": model, "image_size": "auto"})
    with torch.no_grad():
        expected = net.forward_head(net.forward_features(shown), pre_logits=True)
        ours = models.Normalized(zoo.with_head(net, cfg, 3), models.Origin(mean=facts.mean, std=facts.std)).eval()
        seen = []
        models.head_of(ours).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        logits = ours(images)
    torch.testing.assert_close(seen[0], expected, rtol=1e-5, atol=1e-5)
    assert expected.std(0).max() > 1e-3 and seen[0].shape[1] == ours.net.width
    assert logits.shape == (3, 3)


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        ({}, "Linear"),
        ({"dropout": 0.3}, "Dropout Linear"),
        ({"head": "gap_bn", "head_width": 8}, "BatchNorm1d Linear ReLU BatchNorm1d Dropout Linear"),
    ],
)
def test_the_head_is_the_settings_and_none_of_timms_is_left(settings, kinds):
    model = make("timm:mobilenetv3_small_050", **settings)
    parts = [part for part in models.head_of(model).modules() if not isinstance(part, nn.Sequential)]
    assert [type(part).__name__ for part in parts] == kinds.split()
    assert not any(isinstance(module, nn.Linear) for module in model.net.body.modules())


def test_a_network_is_restored_at_the_side_it_was_trained_at(tmp_path):
    cfg = config.make({"model": VIT, "image_size": 64})
    model = models.build(cfg, 3).eval()
    torch.save(models.checkpoint(model, cfg, list("abc")), tmp_path / "best.pt")
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        restored = models.restore(tmp_path / "best.pt")[0](images)
        torch.testing.assert_close(restored, model(images), rtol=0, atol=1e-5)  # last bits depend on where memory lies


# ---- image sizes ----


@pytest.mark.parametrize(
    ("name", "side", "resampled"),
    [
        ("vit_tiny_patch16_224", 96, "pos_embed"),
        ("swin_tiny_patch4_window7_224", 96, "relative_position_bias_table"),
        ("xcit_nano_12_p8_224", 96, ""),
        ("tf_efficientnet_lite0", 100, ""),
    ],
)
def test_another_size_keeps_all_weights_but_positions_which_timm_resamples(name, side, resampled):
    net = timm_zoo.create(name, published=False)
    for weight in net.parameters():
        weight.data.add_(0.5)
    made = timm_zoo.for_side(net, name, side)
    before, after = net.state_dict(), made.state_dict()
    other = {key for key in before if before[key].shape != after[key].shape}
    assert all(key.endswith(resampled) for key in other) and bool(other) == bool(resampled)
    assert all(torch.equal(before[key], after[key]) for key in before.keys() - other)
    assert all(0.3 < after[key].mean() < 0.7 for key in other)  # of the old ones, not fresh
    with torch.no_grad():
        assert made.eval()(torch.rand(1, 3, side, side)).shape == (1, 1000)


@pytest.mark.parametrize(
    ("name", "side", "words"),
    [
        ("vit_tiny_patch16_224", 100, "not a multiple of its patches of 16 pixels); it takes 224 (auto), 96, 112"),
        ("vit_small_patch14_dinov2", 96, "not a multiple of its patches of 14 pixels); it takes 518 (auto), 84, 98"),
        ("inception_v3", 32, "it takes 299 (auto)"),
        ("efficientformer_l1", 96, "it takes 224 (auto)"),
        ("mixer_s16_224", 96, "timm cannot carry the weights of timm:mixer_s16_224 over from 224 pixels"),
    ],
)
def test_a_size_that_a_network_or_its_weights_cannot_take_is_refused_in_one_line(name, side, words):
    with torch.device("meta"):
        net = timm_zoo.create(name, published=False)
        with pytest.raises(InputError, match=f"image_size = {side}: ") as problem:
            timm_zoo.for_side(net, name, side)
    assert words in str(problem.value) and "\n" not in str(problem.value)
    assert problem.value.setting == "image_size"


def test_a_network_without_a_head_is_refused_in_one_line():
    with torch.device("meta"), pytest.raises(InputError, match="model = timm:gemma4_vit_167m_enc: it has no reset_cl"):
        timm_zoo.create("gemma4_vit_167m_enc", published=False)


def test_fresh_weights_take_a_size_that_published_ones_cannot():
    assert make("timm:mixer_s16_224", image_size=64).eval()(torch.rand(1, 3, 64, 64)).shape == (1, 3)


# ---- what is known of the weights ----


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tf_efficientnet_lite0", {"mean": (0.5,) * 3, "std": (0.5,) * 3, "side": 224, "center": 0.875}),
        ("resnet18", {"url": "timm/resnet18.a1_in1k", "licence": "apache-2.0", "side": 224, "center": 0.95}),
        ("resnet18.gluon_in1k", {"url": "timm/resnet18.gluon_in1k", "choice": ""}),
        ("convnextv2_atto", {"licence": "cc-by-nc-4.0"}),
        ("gcvit_tiny", {"licence": "cc-by-nc-sa-4.0"}),
        ("vit_small_patch14_dinov2", {"side": 518, "licence": "apache-2.0"}),
    ],
)
def test_facts_are_what_timm_says(name, expected):
    facts = timm_zoo.facts(name)
    assert {key: getattr(facts, key) for key in expected} == expected


def test_which_of_several_weights_is_the_default_is_said():
    choice = timm_zoo.facts("resnet18").choice
    assert choice.startswith("timm's default, a1_in1k; it also has a2_in1k, a3_in1k, ")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("coatnet_0_224", "weights DEFAULT of timm:coatnet_0_224: timm publishes none; set weights: none"),
        ("resnet18", "weights DEFAULT of timm:resnet18: no way there; set weights: none, package, or the path"),
    ],
)
def test_weights_that_cannot_be_had_are_refused_in_one_line(name, words, monkeypatch):
    def fails(*_, **__):
        raise OSError("no way there\nand why")

    monkeypatch.setattr(timm, "create_model", fails)
    with pytest.raises(InputError) as problem:
        timm_zoo.create(name, published=True)
    assert words in str(problem.value) and "\n" not in str(problem.value)


# ---- frozen means frozen ----


@pytest.mark.parametrize("freeze", ["backbone", "all_but_last_block"])
def test_two_epochs_of_training_change_nothing_that_is_frozen(freeze, make_run):
    settings = {"weights": "package", "augment": "geometric", "weight_decay": 0.5, "lr": 0.01, "cam_every": 0}
    run = make_run(model=LITE, freeze=freeze, **settings | {"epochs": 2})
    fit(run)
    trained, start = models.restore(run.path / "best.pt")[0], models.build(run.config, 3)
    learning = blocks.freeze_blocks(start, run.config)
    assert learning == (["head"] if freeze == "backbone" else ["blocks.5-bn2", "head"])
    for name, part in blocks.blocks_of(start).items():
        state, after = part.state_dict(), blocks.blocks_of(trained)[name].state_dict()
        changed = {key for key in state if not torch.equal(state[key], after[key])}
        statistics = {key for key in state if key.endswith("running_mean")}
        assert changed >= statistics if name in learning else changed == set()


@pytest.mark.parametrize("freeze", ["backbone", "all_but_last_block"])
def test_frozen_blocks_and_what_holds_them_drop_nothing(freeze):
    cfg = config.make({"model": VIT, "weights": "x.pt", "freeze": freeze, "image_size": 64})
    net = zoo.with_head(timm.create_model("vit_tiny_patch16_224", drop_path_rate=0.5, proj_drop_rate=0.5), cfg, 3)
    model = models.Normalized(net)
    learning = blocks.freeze_blocks(model, cfg)
    blocks.set_modes(model, cfg)
    for name, block in blocks.blocks_of(model).items():
        dropouts = [module for module in block.modules() if "Drop" in type(module).__name__]
        assert {module.training for module in dropouts} == {name in learning}
    assert net.body.training == (freeze != "backbone") and net.head.training and model.training
