"""Whether the weights that timm would download can be had: huggingface_hub itself tries for most of a minute."""

from pathlib import Path

import torch

from fruitlib.core import model_names
from fruitlib.core.errors import InputError, first_line
from fruitlib.core.model_names import TIMM

SECONDS = 10  # that a server may take to answer
FILES = ("model.safetensors", "pytorch_model.bin")
ELSE = "set weights: package (see `fruitlib.training.packaged`), the path of a file you have, or none"


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
        raise InputError(f"weights DEFAULT of {model}: {reason}; {ELSE}", "weights") from None
