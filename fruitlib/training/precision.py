"""Precision, memory format and compilation of training; the first two are timed where the settings say auto.

Timings vary from minute to minute, and a run's numbers depend on the precision. So what `auto` becomes is timed once
per sweep, written to its `auto.json`, and read from there by every run and resumption.
"""

import contextlib
import itertools
import json
import math
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fruitlib.core import files, machine
from fruitlib.core.config import NETWORK_SETTINGS, Config
from fruitlib.core.errors import InputError
from fruitlib.training import group, models

GAIN = 1.3  # rounding costs a little accuracy, and numbers then differ between machines: only for a real gain
NEAR = 1.05  # differences below are noise
MOST_IMAGES = 64  # a larger batch gives the same order
WARM_UP, MEASURED = 2, 5  # rounds
STEP_SECONDS, ALL_SECONDS = 1.0, 8.0  # what one step and all of them may take, about
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
Pair = tuple[str, str]  # precision, memory format


@dataclass(frozen=True)
class Speed:
    """What training computes with, and how that was chosen."""

    precision: str  # fp32 | bf16 | fp16
    memory_format: torch.memory_format  # channels_last or contiguous_format
    step_ms: dict[str, float]  # "bf16 channels_last": least milliseconds of a step; empty where nothing was timed
    summary: str  # the same in one line

    @property
    def names(self) -> dict[str, str]:
        """The settings `precision` and `memory_format` with their values as text."""
        memory_format = next(name for name, value in FORMATS.items() if value == self.memory_format)
        return {"precision": self.precision, "memory_format": memory_format}


def choose(config: Config, num_classes: int, device: torch.device, folder: Path) -> Speed:
    """What the settings `precision` and `memory_format` name; `auto` becomes what is faster, timed once per folder.

    Steps of a fresh network (forward, backward, plain SGD) are timed on noise, for this process' share of a batch (at
    most 64 images, fewer where steps are slow), all candidates in turns. bf16 and fp16 are taken only where they are
    1.3 times as fast as fp32. `compile` is left out: compiling each candidate would take longer than it saves. Nor is
    a backbone timed that computes its features once. With several processes rank 0 decides for all. Torch's random
    state is left as it was.

    Raises:
        InputError: a precision this device does not have, an `auto.json` in `folder` that cannot be read.
    """
    candidates = _candidates(config, device)
    if len(candidates) == 1 or config.features_once:
        return _untimed(config, candidates[0])
    entry = None
    if machine.rank() == 0:
        entry = _once(config, num_classes, device, candidates, Path(folder))
    entry = group.from_first(entry)  # different machines would time, and then compute, different things
    entry = entry or _once(config, num_classes, device, candidates, Path(folder))
    precision, memory_format = entry["chosen"].split()
    return Speed(precision, FORMATS[memory_format], entry["step_ms"], _summary(entry))


def check_precision(config: Config, device: torch.device) -> None:
    """Refuse a precision that this device does not have (InputError)."""
    _candidates(config, device)


def speed_from_names(names: dict[str, str]) -> Speed:
    """The `Speed` of an interrupted training, from its `Speed.names`, to resume alike."""
    precision, memory_format = names["precision"], names["memory_format"]
    summary = f"precision {precision}, {memory_format}, as before the interruption"
    return Speed(precision, FORMATS[memory_format], {}, summary)


def autocast(speed: Speed, device: torch.device) -> contextlib.AbstractContextManager:
    """The context a forward pass runs in: torch's autocast, or nothing for fp32."""
    if speed.precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, DTYPES[speed.precision])


def _candidates(config: Config, device: torch.device) -> list[Pair]:
    """Precisions and memory formats the settings leave open, plain ones first."""
    lower = {name: _problem(name, device) for name in ("bf16", "fp16")}
    if problem := lower.get(config.precision):
        raise InputError(f"precision = {config.precision}: {problem}")
    precisions = ["fp32", *(name for name, problem in lower.items() if not problem)]
    precisions = precisions if config.precision == "auto" else [config.precision]
    formats = list(FORMATS) if config.memory_format == "auto" else [config.memory_format]
    return list(itertools.product(precisions, formats))


def _problem(precision: str, device: torch.device) -> str:
    """Why this device cannot train with bf16 or fp16, and what to set; nothing where it can."""
    if torch.device(device).type == "cpu":
        return "needs a CUDA device, training runs on the CPU; use bf16 or fp32" if precision == "fp16" else ""
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return f"{torch.cuda.get_device_name(device)} does not support it; use fp16 or fp32"
    return ""


def _untimed(config: Config, pair: Pair) -> Speed:
    """What needs no timing: only one candidate, or a frozen backbone, which sees each photo only once."""
    precision, memory_format = pair
    why = "as set" if config.precision != "auto" else "a frozen backbone computes its features once"
    why_format = "as set" if config.memory_format != "auto" else "the usual one for convolutions"
    summary = f"precision {precision} ({why}), {memory_format} ({why_format}): nothing was timed"
    return Speed(precision, FORMATS[memory_format], {}, summary)


def images_per_step(config: Config) -> int:
    """Images a process computes at a time: its share of a batch, capped by a `micro_batch` that is a number."""
    share = math.ceil(config.batch_size / machine.world_size())
    return share if config.micro_batch == "auto" else min(share, config.micro_batch)


def _once(config: Config, num_classes: int, device: torch.device, candidates: list[Pair], folder: Path) -> dict:
    """The entry of `auto.json` for this network on this machine; timed and added where it is missing.

    Batch size, processes and threads change the timings, too, but a grid over them should run in one precision.
    """
    facts = {
        **config.model_dump(include={*NETWORK_SETTINGS, "image_size", "precision", "memory_format"}),
        "device": f"{torch.device(device).type}: {machine.hardware()}",
        "torch": str(torch.__version__),
    }
    key, path = files.fingerprint(facts), folder / "auto.json"
    with files.lock(folder / ".auto.lock"):
        entries = _read(path)
        if key not in entries:
            timed, images = step_times(config, num_classes, device, candidates)
            step_ms = {" ".join(pair): round(1000 * seconds, 3) for pair, seconds in timed.items()}
            entries[key] = {
                "chosen": " ".join(fastest(timed)),
                "step_ms": step_ms,
                "timed_images": images,
                "for": facts,
            }
            files.write_json(path, entries)
    return entries[key]


def _read(path: Path) -> dict:
    """The entries by key; none yet where there is no file."""
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        for entry in entries.values():
            _summary(entry)
    except (ValueError, KeyError, TypeError, AttributeError):
        where = files.display_path(path)
        raise InputError(
            f"{where}: not timings that fruitlib wrote; remove the file, and they are measured again"
        ) from None
    return entries


def fastest(timed: dict[Pair, float]) -> Pair:
    """The (precision, memory format) to train with, from their times.

    fp32, unless bf16 or fp16 is `GAIN` times as fast; fp16 only where it beats bf16 clearly, as it needs loss scaling;
    then the faster memory format, channels_last where the two are within 5 %.
    """
    by_precision = {name: min(t for (p, _), t in timed.items() if p == name) for name, _ in timed}
    precision = _first_of_near(by_precision, [name for name in ("bf16", "fp16") if name in by_precision])
    if "fp32" in by_precision and (not precision or by_precision["fp32"] < GAIN * by_precision[precision]):
        precision = "fp32"
    by_format = {name: t for (p, name), t in timed.items() if p == precision}
    return precision, _first_of_near(by_format, [name for name in FORMATS if name in by_format])


def _first_of_near(times: dict[str, float], preferred: list[str]) -> str:
    """The first of the preferred whose time is within 5 % of the least; empty where none is there."""
    least = min((times[name] for name in preferred), default=0)
    return next((name for name in preferred if times[name] <= NEAR * least), "")


def _summary(entry: dict) -> str:
    """`precision bf16, channels_last: 7.9 ms a step of 16 images, fp32 takes 15.3 (timed once for this sweep)`."""
    timed = {tuple(name.split()): ms for name, ms in entry["step_ms"].items()}
    precision, memory_format = chosen = tuple(entry["chosen"].split())
    others = {name: min(t for (p, _), t in timed.items() if p == name) for name, _ in timed if name != precision}
    if not others:  # the settings name the precision
        others = {name: ms for (_, name), ms in timed.items() if name != memory_format}
    rest = "".join(f", {name} takes {ms:.1f}" for name, ms in others.items())
    why = f"; less than {GAIN} times as fast" if precision == "fp32" and "bf16" in others else ""
    took = f"{timed[chosen]:.1f} ms a step of {entry['timed_images']} images"
    return f"precision {precision}, {memory_format}: {took}{rest}{why} (timed once for this sweep)"


def step_times(
    config: Config, num_classes: int, device: torch.device, candidates: list[Pair]
) -> tuple[dict[Pair, float], int]:
    """Least seconds of a training step by candidate, and how many images the steps had.

    Where GPU memory runs out, half the images are used; at least two, which BatchNorm after the last pooling needs.
    """
    device = torch.device(device)
    fresh = {"weights": "none", "base_weights": "", "freeze": "none", "unfreeze_every": 0}
    most = min(images_per_step(config), MOST_IMAGES)
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        network = models.build(config.model_copy(update=fresh), num_classes).to(device).train()
        while True:
            try:
                step = _stepper(network, config.image_size, num_classes, device, max(2, most))
                return _measured(step, candidates, max(2, most))
            except torch.OutOfMemoryError:
                if most <= 2:
                    raise
                most //= 2
            finally:
                network.zero_grad(set_to_none=True)
                if device.type == "cuda":
                    torch.cuda.empty_cache()


def _stepper(network: nn.Module, side: int, num_classes: int, device: torch.device, most: int) -> Callable:
    """`step(pair, images)`: takes one optimizer step on noise, returns its seconds."""
    noise = torch.Generator().manual_seed(0)
    pixels = torch.rand(most, 3, side, side, generator=noise).to(device)
    labels = torch.randint(num_classes, (most,), generator=noise).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6)

    def step(pair: Pair, images: int) -> float:
        precision, memory_format = pair
        network.to(memory_format=FORMATS[memory_format])
        inputs = pixels[:images].contiguous(memory_format=FORMATS[memory_format])
        scaler = torch.amp.GradScaler(device.type, init_scale=1.0, enabled=precision == "fp16")
        started = _now(device)
        with torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
            loss = nn.functional.cross_entropy(network(inputs), labels[:images])
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return _now(device) - started

    return step


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _measured(step: Callable, candidates: list[Pair], most: int) -> tuple[dict[Pair, float], int]:
    """The least time by candidate, taken in turns: other work on the machine only adds to it, and affects all alike."""
    seconds_for_two = min(step(candidates[0], 2) for _ in range(4))  # the first ones are slow
    images = max(2, min(most, int(2 * STEP_SECONDS / seconds_for_two)))
    deadline = time.perf_counter() + ALL_SECONDS
    times: dict[Pair, list[float]] = {pair: [] for pair in candidates}
    for turn in range(WARM_UP + MEASURED):
        for pair, taken in times.items():
            taken.append(step(pair, images))
        if turn == 1:  # bf16 where it is only emulated
            least = min(taken[-1] for taken in times.values())
            times = {pair: taken for pair, taken in times.items() if taken[-1] <= max(1.0, 3 * least)}
        if turn and time.perf_counter() > deadline:
            break
    return {pair: min(taken[min(WARM_UP, len(taken) - 1) :]) for pair, taken in times.items()}, images


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
