"""The machine and this process's place on it: device, threads, seeds, rank, versions.

Nothing here imports torch until a function that needs it is called.
"""

import contextlib
import gc
import importlib.metadata
import os
import platform
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


def rank() -> int:
    """This process's number among those of one training; 0 where it is the only one."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Inside, imports take two thirds of their time, in a process that is ours alone.

    The garbage collector, which goes through ever more objects, waits; and jsonschema, which checks notebooks, does
    without a grammar for IRIs, which takes a second to build: no notebook's schema has any.
    """
    grammar = "rfc3987_syntax"
    sys.modules.setdefault(grammar, None)
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        if sys.modules[grammar] is None:
            del sys.modules[grammar]


def in_sweep() -> bool:
    """Whether a sweep executes this, so that nobody looks at it meanwhile."""
    return "FRUITLIB_JOB" in os.environ


def device():
    """The device training runs on: this process's GPU where there is one, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return torch.device("cpu")


def threads() -> int:
    """The threads torch computes with, on which a result's last digits depend."""
    import torch

    return torch.get_num_threads()


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def requested_threads(name: str) -> int:
    """The threads that a variable of the environment asks for, such as OMP_NUM_THREADS; 0 if it is not set."""
    first = os.environ.get(name, "").split(",")[0].strip()
    return int(first) if first.isdecimal() else 0


def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees, for its next batch; whether the C library here lets it.

    glibc gives large blocks back to the system at once, which then clears every page of the next batch again: features
    of 64 photos by EfficientNet-Lite0 took 2.3 times as long, a training step of resnet18 1.14 times.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    import ctypes

    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, 2**30) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (weights' initial values, dropout)."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seed_of(*numbers: int) -> int:
    """One seed below 2**32 from several numbers, such as seed, epoch and rank."""
    import numpy as np

    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def hardware() -> str:
    """The machine in words, for the results table: GPU if any, else processor and cores."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return f"{model}, {os.cpu_count()} cores"


def ending(code: int) -> str:
    """A process's exit code, below zero the signal that ended it, in words."""
    if code >= 0:
        return f"it ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"  # most have no name
    hint = "; often too little memory" if name == "SIGKILL" else ""
    return f"killed by {name}{hint}"


def versions() -> dict[str, str]:
    """Versions of what a result depends on, for the run's record."""
    names = ["fruitlib", "torch", "torchvision", "onnx", "onnxruntime", "grad-cam", "numpy", "pillow"]
    versions_by_name = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions_by_name[name] = importlib.metadata.version(name)
    return versions_by_name
