"""Features of photos by a network without its head: computed once per photo, kept for all runs that ask for them.

They are kept in `files.cache_dir()`, by photo (its bytes and box), preparation, network and view. So folds, seeds,
sweeps and notebooks share them, and only new photos are computed. A file holds the photos of one computation.
"""

import hashlib
import importlib.metadata
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torchvision
from torch import nn

from fruitlib.core import files, machine, source_code
from fruitlib.core.progress import OnProgress, meter
from fruitlib.data import cache, dataset
from fruitlib.data.dataset import Photos
from fruitlib.training import messages, models, precision, views, zoo
from fruitlib.training.models import Normalized

Part = tuple[str, int]  # one view of a photo: a kind of `views.of`, and its place among that kind's
PARTS: dict[str, list[Part]] = {"one": [("one", 0)], "flip": [("one", 0), ("flip", 1)]}
PARTS["five"] = [("five", number) for number in range(5)]
MOST_BYTES = 2e9  # features of one computation that are kept; more would fill the disk and be slow to read
CODE = [f"fruitlib.training.{name}" for name in ("features", "models", "zoo", "timm_zoo", "views")]


@dataclass(frozen=True)
class Features:
    """`values` float32 (n, views, D), and a line on how many came from where."""

    values: np.ndarray
    summary: str


def of_photos(model: Normalized, photos: Photos, kind: str = "one") -> Features:
    """The features that the model's head takes, of each view (`Config.views`) of these photos, in eval mode.

    Processes that ask for the same at once compute it once. Where nothing can be written, nothing is kept, and the
    summary says so.
    """
    if not len(photos):
        return Features(np.empty((0, len(PARTS[kind]), 1), np.float32), "")
    parts = PARTS[kind]
    keys, first, places = np.unique(_keys(photos), return_index=True, return_inverse=True)
    identity = _identity(model, photos)
    folder = files.cache_dir()
    try:
        with files.lock(folder / f"{identity}.lock"):
            found, summary = _complete(model, photos.pick(first), keys, parts, identity, folder)
    except OSError as problem:
        found = compute(model, photos.pick(first), parts, _meter())
        summary = f"{len(keys):,} computed and not kept ({files.os_error_text(problem)})"
    views_text = "" if len(parts) == 1 else f", {len(parts)} views each"
    return Features(np.stack(found, 1)[places], f"features of {len(photos):,} photos{views_text}: {summary}")


def _complete(
    model: Normalized, photos: Photos, keys: np.ndarray, parts: list[Part], identity: str, folder: Path
) -> tuple[list[np.ndarray], str]:
    """The features of each part, read, computed where they are missing, and kept; and where they came from."""
    kept = [_read(folder, f"{identity}-{kind}{number}", keys) for kind, number in parts]
    lacking = np.any([np.isnan(values[:, 0]) for values in kept], axis=0)
    if not lacking.any():
        return kept, "all from the cache"
    wanted = [place for place, values in enumerate(kept) if np.isnan(values[:, 0]).any()]
    new = compute(model, photos.pick(np.flatnonzero(lacking)), [parts[place] for place in wanted], _meter())
    summary = f"{(~lacking).sum():,} from the cache, {lacking.sum():,} computed"
    size = sum(values.nbytes for values in new)
    if size > MOST_BYTES:
        summary += f" and not kept, since they take {cache.in_words(size)} (limit {cache.in_words(int(MOST_BYTES))})"
    for place, values in zip(wanted, new, strict=True):
        kind, number = parts[place]
        if size <= MOST_BYTES:
            try:
                _write(folder, f"{identity}-{kind}{number}", keys[lacking], values)
            except OSError as problem:  # the disk is full
                summary += f" and not kept ({files.os_error_text(problem)})"
        if kept[place].shape[1] != values.shape[1]:
            kept[place] = np.empty((len(keys), values.shape[1]), np.float32)
        kept[place][lacking] = values
    return kept, summary


@torch.no_grad()  # not inference_mode: a head trains on these
def compute(
    model: Normalized, photos: Photos, parts: Sequence[Part] = (("one", 0),), progress: OnProgress | None = None
) -> list[np.ndarray]:
    """The features of each part of these photos, float32 (n, D) each, by the model without its head, in eval mode."""
    name, device = zoo.head_name(model.net), next(model.parameters()).device
    head, own_views = models.head_of(model), model.views
    batch_size = max(4, min(64, 64 * 224**2 // photos.store.config.image_size**2))
    threads = torch.get_num_threads()
    rows: list[list[np.ndarray]] = [[] for _ in parts]
    model.eval()
    try:
        setattr(model.net, name, nn.Identity())
        model.views = "one"
        torch.set_num_threads(max(threads, machine.usable_cores()))  # the other runs of a sweep wait for these, too
        with precision.uncompiled(model):
            for start, pixels in enumerate(dataset.in_parts(photos, batch_size, device)):
                for part, (kind, number) in enumerate(parts):
                    rows[part].append(model(views.of(pixels, kind)[number]).float().cpu().numpy())
                if progress:
                    progress(min((start + 1) * batch_size, len(photos)), len(photos))
    finally:
        setattr(model.net, name, head)
        model.views = own_views
        torch.set_num_threads(threads)
    return [np.concatenate(values) for values in rows]


def network_fingerprint(model: Normalized) -> str:
    """Twelve hex digits of a network without its head: its layers, weights and normalisation."""
    name = zoo.head_name(model.net)
    layers = [f"{child}: {module}" for child, module in model.net.named_children() if child != name]
    state = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith(f"net.{name}.")}
    tensors = [tensor.detach().cpu().contiguous().numpy() for tensor in state.values()]
    return files.fingerprint(type(model.net).__name__, layers, list(state), *map(_bytes, tensors))


def _bytes(values: np.ndarray) -> bytes:
    return values.tobytes()


def _identity(model: Normalized, photos: Photos) -> str:
    """Changes with all that decides what features a photo has: network, preparation, code, libraries, device."""
    code = [source_code.module_fingerprint(name) for name in CODE]
    libraries = [torch.__version__, torchvision.__version__, _timm_version(model)]
    device = next(model.parameters()).device.type
    preparation = cache.preparation(photos.store.config)
    parts = [network_fingerprint(model), preparation, code, libraries, device]
    return f"features-{files.fingerprint(*parts)}"


def _timm_version(model: Normalized) -> str:
    if not isinstance(model.net, zoo.timm_zoo.TimmNet):
        return ""
    return importlib.metadata.version("timm")


def _keys(photos: Photos) -> np.ndarray:
    """A key of each photo, its bytes and box, bytes (n,)."""
    store = photos.store
    lines = [
        cache.photo_key(store.folder, store.paths[place], store.keys[place] if store.keys else "")
        for place in photos.index.tolist()
    ]
    return np.array([hashlib.sha256(line.encode()).hexdigest()[:24].encode() for line in lines], dtype="S24")


def _read(folder: Path, name: str, keys: np.ndarray) -> np.ndarray:
    """The features (n, D) kept of the photos `keys`, NaN where there are none; (n, 1) where there are none at all.

    Files that are damaged are removed. Reading counts as a use of a file.
    """
    values = np.full((len(keys), 1), np.nan, np.float32)
    for file in sorted(folder.glob(f"{name}.*.npz")):
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
                places = pd.Index(content["keys"]).get_indexer(keys)
                if (places < 0).all():
                    continue
                found = content["values"]
            if found.dtype != np.float32 or not np.isfinite(found).all():
                raise ValueError("not features")
            if values.shape[1] != found.shape[1]:
                values = np.full((len(keys), found.shape[1]), np.nan, np.float32)
            values[places >= 0] = found[places[places >= 0]]
        except (OSError, MemoryError):
            if file.exists():  # else another process has just removed it
                raise
        except Exception:  # zip and npy have many ways to be broken
            messages.say_from_any_rank(f"{files.display_path(file)}: damaged; removed, its features are computed again")
            file.unlink(missing_ok=True)
        else:
            with suppress(OSError):  # a read-only cache
                os.utime(file)
    return values


def _write(folder: Path, name: str, keys: np.ndarray, values: np.ndarray) -> None:
    """Keep the features of these photos in a file of their own, whole or not at all."""
    if not np.isfinite(values).all():  # a broken network: the training says so
        return
    cache.tidy(folder)
    with files.replacing(folder / f"{name}.{files.fingerprint(keys.tobytes())}.npz") as partial:
        np.savez(partial, keys=keys, values=values)


def _meter() -> OnProgress:
    return meter("features of photos computed", say=messages.say_from_any_rank)
