"""What `precision: auto` becomes, by rule: machine and network; autocast; compiled equals plain."""

import pytest
import torch
from torch import nn

from fruitlib.core import config
from fruitlib.core.errors import InputError
from fruitlib.core.model_names import MODELS
from fruitlib.training import precision
from fruitlib.training.precision import (
    BF16_GAIN,
    Speed,
    autocast,
    choose,
    compile_model,
    compile_problem,
    family,
    speed_from_names,
    uncompiled,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def settings(**changed):
    return config.make({"image_size": 32, "batch_size": 4, **changed})


def cpu_with(monkeypatch, **capabilities):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)


@pytest.mark.parametrize(
    ("model", "known"),
    [
        ("end2end", "end2end"),
        ("resnet18", "resnet"),
        ("wide_resnet50_2", "wide_resnet"),
        ("resnext50_32x4d", "resnext"),
        ("vgg11_bn", "vgg"),
        ("convnext_tiny", "convnext"),
        ("regnet_y_400mf", "regnet_y"),
        ("timm:resnet26d", "resnet"),
        ("timm:resnetv2_50", ""),
        ("timm:convnextv2_tiny", ""),
        ("timm:tf_efficientnet_lite0", ""),
        ("efficientnet_b0", ""),
        ("mobilenet_v3_small", ""),
    ],
)
def test_a_network_s_family(model, known):
    assert family(model) == known


def test_every_family_of_the_table_has_a_network_and_is_worth_it():
    assert {family(model) for model in MODELS} - {""} == set(BF16_GAIN)
    assert min(BF16_GAIN.values()) >= 1.3


@pytest.mark.parametrize(
    ("capabilities", "changed", "becomes"),
    [
        ({"avx512_bf16": True}, {}, "bf16 (auto: about 1.5 times as fast as fp32"),
        ({"amx_bf16": True}, {"model": "resnet18"}, "bf16 (auto: about 1.6 times"),
        ({"avx512_bf16": True}, {"model": "efficientnet_b0"}, "fp32 (auto: this network is not known to be quicker"),
        ({"avx512_bf16": False, "avx512_vnni": True}, {}, "fp32 (auto: this CPU does not compute bf16)"),
        ({}, {}, "fp32 (auto: this CPU does not compute bf16)"),
        ({"avx512_bf16": True}, {"precision": "fp32"}, "fp32 (as set)"),
        ({}, {"precision": "bf16"}, "bf16 (as set)"),
        (
            {"avx512_bf16": True},
            {"model": "resnet18", "weights": "DEFAULT", "freeze": "backbone", "augment": "none"},
            "fp32 (auto: a frozen backbone computes its features once)",
        ),
    ],
)
def test_on_a_cpu(monkeypatch, capabilities, changed, becomes):
    cpu_with(monkeypatch, **capabilities)
    speed = choose(settings(**changed), CPU)
    assert speed.summary.startswith(f"precision {becomes}") and speed.summary.endswith("), channels_last")
    assert "\n" not in speed.summary and speed.precision == becomes.split()[0]


@pytest.mark.parametrize(
    ("bf16", "capability", "becomes"), [(True, (8, 0), "bf16"), (False, (7, 5), "fp16"), (False, (6, 1), "fp32")]
)
def test_on_a_gpu(monkeypatch, bf16, capability, becomes):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old card")
    assert choose(settings(model="efficientnet_b0"), GPU).precision == becomes
    if not bf16:
        with pytest.raises(InputError, match=r"^precision = bf16: Old card does not support it; use fp16 or fp32$"):
            choose(settings(precision="bf16"), GPU)


def test_a_torch_that_cannot_tell_gets_fp32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert choose(settings(), CPU).precision == "fp32"


def test_a_training_that_was_cut_off_goes_on_as_it_began():
    assert speed_from_names(Speed("bf16", torch.contiguous_format, "as set").names).precision == "bf16"
    names = {"precision": "fp32", "memory_format": "contiguous"}
    assert speed_from_names(names).memory_format == torch.contiguous_format


@pytest.mark.parametrize("memory_format", ["channels_last", "contiguous"])
def test_fp16_on_a_cpu_is_refused(memory_format):
    with pytest.raises(InputError, match=r"^precision = fp16: needs a CUDA device.*; use bf16 or fp32$"):
        choose(settings(precision="fp16", memory_format=memory_format), CPU)


def test_in_a_group_rank_0_decides(monkeypatch):
    """Another rank takes what rank 0 sends, whatever its own machine does fastest."""
    cpu_with(monkeypatch)
    monkeypatch.setattr(precision.group, "from_first", lambda value: ["bf16", "auto: as rank 0"])
    assert choose(settings(), CPU).precision == "bf16"


def test_autocast_computes_in_the_chosen_precision():
    layer, inputs = nn.Linear(4, 2), torch.rand(3, 4)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(Speed(name, torch.channels_last, ""), CPU):
            assert layer(inputs).dtype == dtype
    assert layer(inputs).dtype == torch.float32


def test_compiled_gives_the_same_logits_and_uncompiled_calls_hooks(request):
    if problem := compile_problem(CPU):
        pytest.skip(problem)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    images, names = torch.rand(2, 3, 4, 4), list(model.state_dict())
    plain = model(images)
    request.addfinalizer(torch._dynamo.reset)
    compile_model(model, settings())
    assert model._compiled_call_impl is None  # compile: none
    compile_model(model, settings(compile="default"))
    torch.testing.assert_close(model(images), plain, rtol=1e-4, atol=1e-6)
    assert list(model.state_dict()) == names
    seen = []
    hook = model[0].register_forward_hook(lambda *_: seen.append(1))
    with uncompiled(model):
        assert torch.equal(model(images), plain)
    hook.remove()
    assert seen == [1]
    assert model._compiled_call_impl is not None


def test_without_a_compiler_it_says_what_to_install(monkeypatch):
    from torch._inductor import config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(InputError, match=r"^compile = default: .*C\+\+ compiler.* install g\+\+.*compile: none$"):
        compile_model(nn.Linear(2, 2), settings(compile="default"))
