"""What a refused setting is called in an error: its name, its value, what is wanted, the nearest known name."""

import difflib
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from fruitlib.core.errors import InputError

# What other libraries call them
ALIASES = {"learning_rate": "lr", "early_stopping": "patience", "bs": "batch_size", "wd": "weight_decay"}
ALIASES |= {"gradient_clip_val": "clip_norm", "ema_decay": "ema", "smoothing": "label_smoothing", "arch": "model"}
ALIASES |= {"pretrained": "weights", "backbone": "model", "tta": "views"}
ALIASES |= {"max_epochs": "epochs", "accumulate_grad_batches": "micro_batch", "img_size": "image_size"}


def setting_kind(name: str, fields: dict[str, FieldInfo]) -> str:
    """What a setting holds, in words: a whole number, a number, one of a few words, or text."""
    field = fields.get(name)
    if field is None:
        return "a setting's value"
    kinds = str(field.annotation)
    words = {"float": "a number", "int": "a whole number", "Literal": "a word"}
    return next((word for kind, word in words.items() if kind in kinds), "text")


def choices(name: str, fields: dict[str, FieldInfo]) -> list[str]:
    """The words that a setting may be; none where it is no choice between words."""
    field = fields.get(name)
    literals = [field.annotation, *get_args(field.annotation)] if field else []
    return [str(word) for kind in literals if get_origin(kind) is Literal for word in get_args(kind)]


def nearest(name: str, known) -> str:
    """` (did you mean ...?)` where a known name is close, else nothing."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def explain(error: dict, fields: dict[str, FieldInfo]) -> tuple[str, str]:
    """One pydantic error in one line (the setting, its value, what is wanted), and the setting's name."""
    refused = error.get("ctx", {}).get("error")
    if isinstance(refused, InputError):  # by a validator of `Config`
        return refused.message, refused.setting
    name = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        close = f" (did you mean {ALIASES[name]}?)" if name in ALIASES else nearest(name, fields)
        return f"unknown setting {name}{close}; params/base.yaml lists them all", name
    if not name:
        return error["msg"], ""
    field, given = fields[name], error["input"]
    if isinstance(given, (list, dict)) and not isinstance(field.default, (list, dict)):
        example = f"grid: {{{name}: [..., ...]}}"
        return f"{name} = {given!r}: several values belong under grid:, as in '{example}'", name
    message = error["msg"][0].lower() + error["msg"][1:].removesuffix(", got a number with a fractional part")
    is_mapping = isinstance(field.default, dict)
    shown = ".".join(map(str, error["loc"])) if is_mapping else name  # of a union, pydantic would name the branch
    return f"{shown} = {given!r}: {message}; wanted: {field.description}", name
