"""The code that a result depends on: a module with everything it imports, found by reading the sources.

A list kept by hand forgets a module sooner or later, and then a stale result counts as complete. What the import
closure has too much costs a training that was not needed; it is never stale.
"""

import ast
import functools
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
# Rooms that show, start or arrange what others compute; what a network learns cannot depend on them.
ARRANGING_ROOMS = ("reporting", "kernels", "sweep")


def import_closure(modules: Iterable[str], excluded_rooms: Iterable[str] = ARRANGING_ROOMS) -> list[str]:
    """These modules of fruitlib and all that they import, directly or not, as sorted dotted names.

    Imports inside functions count; modules of `excluded_rooms`, and what only they import, do not.
    """
    skipped = tuple(f"fruitlib.{room}." for room in excluded_rooms)
    found, waiting = set(), list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found and not name.startswith(skipped):
            found.add(name)
            waiting += imported_modules(module_path(name))
    return sorted(found)


def closure_source(modules: Iterable[str], excluded_rooms: Iterable[str] = ARRANGING_ROOMS) -> list[bytes]:
    """The code of `import_closure`, module by module; for fingerprints."""
    return [module_source(name) for name in import_closure(modules, excluded_rooms)]


def module_source(name: str) -> bytes:
    """A module's code without comments and docstrings, whose change changes no result."""
    path = module_path(name)
    return _code(path, path.stat().st_mtime_ns)


def module_path(name: str) -> Path:
    """The file of a module of fruitlib, by its dotted name."""
    return PACKAGE.joinpath(*name.split(".")[1:]).with_suffix(".py")


def imported_modules(path: Path) -> list[str]:
    """The modules of fruitlib that a file imports, as dotted names."""
    return _imported(path, path.stat().st_mtime_ns)


def modules_imported_by(source: str) -> list[str]:
    """The modules of fruitlib that a piece of code imports, inside functions too, as dotted names."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in found if name.startswith("fruitlib.") and module_path(name).is_file()]


@functools.cache  # a run's identities ask for fifty modules, twelve times
def _imported(path: Path, time: int) -> list[str]:
    return modules_imported_by(path.read_text(encoding="utf-8"))


@functools.cache
def _code(path: Path, time: int) -> bytes:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0].value.value = None
    return ast.dump(tree).encode()
