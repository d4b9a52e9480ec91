"""Settings as a notebook's parameters cell has them, and as papermill injects them."""

from types import ModuleType
from typing import Any

from fruitlib.core import config
from fruitlib.core.config import Config
from fruitlib.core.errors import InputError
from fruitlib.core.model_names import FITTED_HEADS
from fruitlib.core.setting_errors import nearest
from fruitlib.core.source_code import assigned_names


def from_notebook(cells: dict[str, Any]) -> Config:
    """The `Config` a notebook's parameters describe: pass `globals()`.

    Settings named in the parameters cell are taken, `overrides` adds others.

    Raises:
        InputError: whatever `make` refuses, or an injected name that is neither a setting nor in the parameters cell.
    """
    overrides = cells.get("overrides") or {}
    if not isinstance(overrides, dict):
        raise InputError("overrides: wanted a mapping such as {'weight_decay': 0.01}")
    check_injected(cells)
    settings = {name: cells[name] for name in Config.model_fields if name in cells}
    settings = {name: value for name, value in settings.items() if not isinstance(value, ModuleType)}  # an import
    if settings.get("head") in FITTED_HEADS:  # the cell's defaults are for heads that are trained
        defaults = {name: Config.model_fields[name].default for name in ("freeze", "augment")}
        settings = {name: value for name, value in settings.items() if defaults.get(name, ...) != value}
    return config.make({**settings, **overrides}, "parameters")


def check_injected(cells: dict[str, Any]) -> None:
    """Refuse a name that papermill injected and nothing knows; papermill itself only warns. Pass `globals()`."""
    sources = [source for source in cells.get("In") or [] if source]
    injected = {name for source in sources if source.startswith("# Parameters") for name in assigned_names(source)}
    declared = assigned_names(sources[0]) if sources else set()
    known = {*Config.model_fields, "overrides"} if "overrides" in declared else declared
    if unknown := sorted(injected - known - declared):
        raise InputError(f"unknown parameter {unknown[0]}{nearest(unknown[0], known | declared)}")
