"""The precision training computes in: by rule, so that it depends on the machine, never on its load. Compilation.

Weights, optimizer and validation stay in fp32; forward and backward pass run under torch's autocast.
"""

import contextlib
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fruitlib.core.config import Config
from fruitlib.core.errors import InputError
from fruitlib.training import group

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
# How many times as fast a training step in bf16 is as one in fp32, on a CPU that computes bf16: AMD EPYC with
# AVX512-BF16, one thread, torch 2.15, 16 images of 96 pixels (tests/benchmarks/precision.py). From 1.3 it is worth its
# rounding; a network of no family here gets fp32. Depthwise convolutions are slower in bf16: efficientnet_b0 0.55,
# mobilenet_v3 0.49, shufflenet_v2 0.76, tf_efficientnet_lite0 0.51; efficientnet_v2_s 1.25, timm's regnety 1.24,
# deit_tiny 1.02.
BF16_GAIN = {"end2end": 1.53, "base": 1.53, "resnet": 1.64, "wide_resnet": 1.64, "resnext": 1.63, "vgg": 1.65}
BF16_GAIN |= {"densenet": 1.60, "regnet_y": 1.54, "convnext": 1.50, "squeezenet": 1.47}


@dataclass(frozen=True)
class Speed:
    """What training computes in, and why."""

    precision: str  # fp32 | bf16 | fp16
    memory_format: torch.memory_format  # channels_last or contiguous_format
    summary: str  # the same in one line

    @property
    def names(self) -> dict[str, str]:
        """The settings `precision` and `memory_format` with their values as text."""
        memory_format = next(name for name, value in FORMATS.items() if value == self.memory_format)
        return {"precision": self.precision, "memory_format": memory_format}


def choose(config: Config, device: torch.device) -> Speed:
    """What the settings `precision` and `memory_format` name; with several processes the first one decides for all.

    `precision: auto` becomes bf16 on a GPU that has it, fp16 on one with tensor cores that has not (compute capability
    7), bf16 on a CPU that has it for the networks of `BF16_GAIN`, fp32 elsewhere.

    Raises:
        InputError: a precision that this device does not have.
    """
    check_precision(config, device)
    chosen, why = (config.precision, "as set") if config.precision != "auto" else _by_rule(config, device)
    chosen, why = group.from_first([chosen, why])
    return Speed(chosen, FORMATS[config.memory_format], f"precision {chosen} ({why}), {config.memory_format}")


def check_precision(config: Config, device: torch.device) -> None:
    """Refuse a precision that this device does not have (InputError)."""
    device = torch.device(device)
    if config.precision == "fp16" and device.type == "cpu":
        raise InputError("precision = fp16: needs a CUDA device, training runs on the CPU; use bf16 or fp32")
    if config.precision == "bf16" and device.type == "cuda" and not _has_bf16(device):
        name = torch.cuda.get_device_name(device)
        raise InputError(f"precision = bf16: {name} does not support it; use fp16 or fp32")


def _by_rule(config: Config, device: torch.device) -> tuple[str, str]:
    """What `auto` becomes, and why."""
    device = torch.device(device)
    if config.features_once:
        return "fp32", "auto: a frozen backbone computes its features once"
    if device.type == "cuda":
        if _has_bf16(device):
            return "bf16", "auto: this GPU computes it"
        tensor_cores = torch.cuda.get_device_capability(device) >= (7, 0)
        return (
            ("fp16", "auto: this GPU has no bf16") if tensor_cores else ("fp32", "auto: this GPU has nothing quicker")
        )
    if not _has_bf16(device):
        return "fp32", "auto: this CPU does not compute bf16"
    if known := family(config.model):
        return "bf16", f"auto: about {BF16_GAIN[known]:.1f} times as fast as fp32 on CPUs that compute it"
    return "fp32", "auto: this network is not known to be quicker in bf16 on CPUs"


def family(model: str) -> str:
    """The family of `BF16_GAIN` that a network of torchvision or timm is of; "" for none."""
    name = model.removeprefix("timm:")
    return next((known for known in BF16_GAIN if re.match(f"{known}(?![a-z])", name)), "")


def _has_bf16(device: torch.device) -> bool:
    """Whether the device computes bf16 itself; of CPUs older releases of torch cannot tell."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def speed_from_names(names: dict[str, str]) -> Speed:
    """The `Speed` of an interrupted training, from its `Speed.names`, to resume alike."""
    precision, memory_format = names["precision"], names["memory_format"]
    summary = f"precision {precision}, {memory_format}, as before the interruption"
    return Speed(precision, FORMATS[memory_format], summary)


def autocast(speed: Speed, device: torch.device) -> contextlib.AbstractContextManager:
    """The context a forward pass runs in: torch's autocast, or nothing for fp32."""
    if speed.precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, DTYPES[speed.precision])


def compile_model(model: nn.Module, config: Config) -> None:
    """With `compile: default`, the model's forward pass becomes a compiled one, in place; names of weights stay.

    Raises:
        InputError: what torch's compiler needs on this machine is missing.
    """
    if config.compile == "none":
        return
    if problem := compile_problem(next(model.parameters()).device):
        raise InputError(f"compile = {config.compile}: {problem}, or set compile: none")
    model.compile()


@contextlib.contextmanager
def uncompiled(model: nn.Module):
    """Inside, the model's own forward pass runs: the compiled one would not call hooks that were set after it."""
    kept, model._compiled_call_impl = model._compiled_call_impl, None
    try:
        yield
    finally:
        model._compiled_call_impl = kept


def compile_problem(device: torch.device) -> str:
    """What torch's compiler (inductor) lacks for this device, and what to do; empty where nothing."""
    from torch._inductor import cpp_builder, exc
    from torch.utils._triton import has_triton

    if torch.device(device).type == "cuda":
        return "" if has_triton() else "torch's compiler needs Triton for GPUs, which is not there; pip install triton"
    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        return "torch's compiler needs a C++ compiler, and there is none; install g++, or name one in $CXX"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "torch's compiler needs Python's header files; install them (python3-dev)"
    return ""
