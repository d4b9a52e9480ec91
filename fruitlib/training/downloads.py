"""Downloads that fail soon where there is no network, and say how far they are.

huggingface_hub itself tries for most of a minute (47 s and twelve lines, measured), torch.hub waits for ever.
"""

import contextlib
import importlib
import socket
from pathlib import Path

import torch

from fruitlib.core import model_names
from fruitlib.core.errors import InputError, first_line
from fruitlib.core.model_names import TIMM
from fruitlib.core.progress import meter
from fruitlib.training import messages, packaged

SECONDS = 10  # that a server may take to answer
FILES = ("model.safetensors", "pytorch_model.bin")


@contextlib.contextmanager
def limited():
    """Inside, connections that stay silent end after `SECONDS`: torch.hub itself waits for ever.

    What torch.hub and huggingface_hub draw as a bar is a line every few seconds, as of other long work.
    """
    before, modules = socket.getdefaulttimeout(), [torch.hub]
    with contextlib.suppress(ImportError):
        modules.append(importlib.import_module("huggingface_hub.utils.tqdm"))
    bars = [module.tqdm for module in modules]
    socket.setdefaulttimeout(SECONDS)
    try:
        for module, bar in zip(modules, bars, strict=True):
            module.tqdm = _reporting(bar)
        yield
    finally:
        for module, bar in zip(modules, bars, strict=True):
            module.tqdm = bar
        socket.setdefaulttimeout(before)


def _reporting(bar: type) -> type:
    """A library's bar that draws nothing and reports to `core.progress` instead, bytes as megabytes."""

    class Reporting(bar):
        def __init__(self, *things, **options):
            self._meter = meter("downloading weights", say=messages.say_from_any_rank, unit="MB")
            self._done, self._all = options.get("initial") or 0, options.get("total")
            super().__init__(*things, **options | {"disable": True})

        def update(self, more: float | None = 1):
            self._done += more or 0
            if self._all:
                self._meter(round(self._done / 1e6), round(self._all / 1e6))

    return Reporting


def check(model: str) -> None:
    """Refuse a timm model whose published weights are neither in the cache nor within reach, after one try.

    Raises:
        InputError: they cannot be had.
    """
    settings = model_names.timm_settings(model.removeprefix(TIMM)) or {} if model.startswith(TIMM) else {}
    repository, url = settings.get("hf_hub_id"), settings.get("url") or ""
    if not repository or Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1] or "?").is_file():
        return
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    names = [name for name in (settings.get("hf_hub_filename"), *FILES) if name]
    if any(isinstance(try_to_load_from_cache(repository, name), str) for name in names):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repository, names[0]), timeout=SECONDS)
    except EntryNotFoundError:  # the server answers, and has another file
        return
    except Exception as problem:  # of httpx, of the hub, of the system: in all of them nothing comes
        reason = f"no download from {repository} ({first_line(problem)[:120]})"
        package = "package" if model in packaged.MODELS else f"package with model: {packaged.MODELS[0]}"
        remedy = f"set weights: {package}, the path of a file you have, or none"
        raise InputError(f"weights DEFAULT of {model}: {reason}; {remedy}", "weights") from None
