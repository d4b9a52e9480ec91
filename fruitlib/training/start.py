"""The weights a library's network starts from: loaded while it has its own head, proven, and described in a line."""

import hashlib
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from fruitlib.core import files, model_names
from fruitlib.core.config import Config
from fruitlib.core.errors import InputError
from fruitlib.core.model_names import MODELS, OURS
from fruitlib.training import packaged, proof, weight_files, zoo
from fruitlib.training.proof import Verdict
from fruitlib.training.weight_files import State, WeightFile
from fruitlib.training.weights import Facts, Origin, take_weights

WORD = re.compile("[a-z]+")
FAR = 1.5  # times the side that weights were trained at: photos of other sides are warned of


def take(net: nn.Module, config: Config, file: WeightFile | None) -> Origin:
    """Load the weights that the settings name into a library's network with its own head; where they come from.

    Raises:
        InputError: they belong to another network, or are proven wrong.
    """
    facts = zoo.facts(config.model)
    origin = Origin(mean=facts.mean, std=facts.std, licence=facts.licence)
    heads = _head_prefixes(net)
    if config.weights == "DEFAULT":
        own = net.state_dict()
        known = {"source": "DEFAULT", "file": facts.url, "sha256": _sha256(own), "taken": len(own)}
    elif config.weights == "package":
        file = packaged.load(config.model, net.state_dict())
        net.load_state_dict(file.content)
        known = {"source": "package", **_of_file(file), "taken": len(file.content)}
        known["licence"] = packaged.LICENCES.get(config.model) or facts.licence
    elif file is not None:
        state, left, entry = _fitted(net, file)
        left += _load(net, state, file, heads, config.model)
        known = {"source": "file", **_of_file(file), "taken": len(state.keys() - set(left)), "left": left}
        known |= {"entry": entry, "licence": ""}  # nobody knows who made them
    else:
        return replace(origin, licence="")
    origin = replace(origin, **known)
    head_loaded = not any(name.startswith(heads) for name in origin.left)
    head_loaded &= file is None or config.weights == "package" or any(name.startswith(heads) for name in state)
    shown = {name: t for name, t in net.state_dict().items() if head_loaded or not name.startswith(heads)}
    verdict = proof.kept(_sha256(shown), net, facts, config.model, head_loaded)
    _refuse(verdict, origin, config)
    origin = replace(origin, mean=verdict.mean, std=verdict.std, proof=f"{verdict.opening}: {verdict.text}")
    return replace(origin, summary=_summary(origin, verdict, facts, config))


def _load(net: nn.Module, state: State, file: WeightFile, heads: tuple[str, ...], model: str) -> tuple[str, ...]:
    """`take_weights`; of another network's weights it says which model they fit, if that is of the same family."""
    try:
        return take_weights(net, state, f"weights {file.path}", heads)
    except InputError as problem:
        fits = _relative(model, file)
        raise InputError(problem.message + (f", or set model: {fits}, which they fit" if fits else "")) from None


def _relative(model: str, file: WeightFile) -> str:
    """The model of torchvision that a file's weights fit, among those with the same first word; "" for none."""
    held, _ = weight_files.tensors(file.content, "")
    for other in MODELS:
        if other in (model, *OURS) or WORD.match(other)[0] != WORD.match(model)[0]:
            continue
        try:
            with torch.device("meta"):
                net = zoo.create(other)
        except (RuntimeError, NotImplementedError):  # RegNet computes its widths in torch
            continue
        excused = (*_head_prefixes(net), "num_batches_tracked")
        own = {name: tensor for name, tensor in net.state_dict().items() if not _is_of(name, excused)}
        state = weight_files.under_own_names(own, held)[0]
        rest = [name for name in state if name not in own and not _is_of(name, excused)]
        if weight_files.fitting(own, state) == len(own) and not rest:
            return other
    return ""


def _is_of(name: str, parts: tuple[str, ...]) -> bool:
    return name.startswith(parts) or name.endswith(parts)


def _of_file(file: WeightFile) -> dict:
    return {"file": files.display_path(file.path), "sha256": file.sha256}


def _sha256(state: State) -> str:
    """Of a state in memory: its names and numbers."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _head_prefixes(net: nn.Module) -> tuple[str, ...]:
    """What the names of the head's entries begin with: in timm's networks as timm says, else by its usual name."""
    heads = (getattr(net, "pretrained_cfg", None) or {}).get("classifier")
    if heads:
        return tuple(f"{name}." for name in ([heads] if isinstance(heads, str) else heads))
    return (f"{zoo.head_name(net)}.",)


def _fitted(net: nn.Module, file: WeightFile) -> tuple[State, tuple[str, ...], str]:
    """A file's weights under the network's names, what else stands beside them, and the entry that holds them."""
    held, entry = weight_files.tensors(file.content, f"weights {file.path}")
    own = net.state_dict()
    state, beside = weight_files.under_own_names(own, held)
    # timm knows the names and grids of other libraries' files of its networks
    convert = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    fits = weight_files.fitting(own, state)
    if convert is not None and fits < len(own):
        try:
            converted = convert(dict(held if beside and not fits else state), net)
        except Exception:  # made for other files than this one
            converted = {}
        if weight_files.fitting(own, converted) > fits:
            state = converted
    return state, tuple(beside), entry


def _refuse(verdict: Verdict, origin: Origin, config: Config) -> None:
    """Refuse weights that the photos speak against.

    A network's published weights are right where its library says so: an unnamed photo is then no error.
    """
    where = f"weights {config.weights}" if origin.source != "file" else f"weights {origin.file}"
    wrong = {"package": ("other", "unsure"), "DEFAULT": ("other",)}
    if verdict.fits in wrong.get(origin.source, ()):
        raise InputError(f"{where} of {config.model}: {verdict.text}; please report this to fruitlib's makers")
    if verdict.failed and origin.source != "DEFAULT":
        remedy = "name another file, or remove its head if its 1000 classes are not ImageNet's"
        raise InputError(f"{where}: these are no pretrained weights of {config.model} ({verdict.text}); {remedy}")


def _summary(origin: Origin, verdict: Verdict, facts: Facts, config: Config) -> str:
    counted = f"{origin.entry}: " if origin.entry else ""
    counted += f"{origin.taken} entries, sha256 {origin.sha256[:8]}…"
    if origin.left:
        more = f" and {len(origin.left) - 3} more" if len(origin.left) > 3 else ""
        counted += f"; left: {', '.join(origin.left[:3])}{more}"
    where = f"package {Path(origin.file).name}" if origin.source == "package" else origin.file or config.model
    parts = [f"weights from {where} ({counted})"]
    words = model_names.licence_words(origin.licence or facts.licence)
    parts[0] += f", {words}" if origin.source != "file" else f" ({words}, if they are the library's own)"
    if origin.source == "DEFAULT" and facts.choice:
        parts.append(facts.choice)
    parts.append(origin.proof)
    if verdict.fits == "other":
        parts.append("normalisation corrected to these")
    if max(facts.side, config.image_size) > FAR * min(facts.side, config.image_size):
        side = f"photos at {config.image_size} pixels, these weights were trained at {facts.side}"
        parts.append(f"{side} (image_size: auto)")
    return "; ".join([*parts, "fresh head"])
