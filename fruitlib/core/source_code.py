"""The code that a result depends on: a module with everything it imports, found by reading the sources.

A list kept by hand forgets a module sooner or later, and then a stale result counts as complete. A module too many in
the import closure costs a training that was not needed, but nothing is ever stale.

A sweep asks for thousands of fingerprints. So a file is parsed once, and again after an edit; a closure is followed
once, and again after an edit of one of its files.
"""

import ast
import functools
import os
from collections.abc import Iterable
from pathlib import Path

from fruitlib.core.files import fingerprint

PACKAGE = Path(__file__).resolve().parent.parent
# Rooms that show, start or arrange what others compute; what a network learns cannot depend on them.
ARRANGING_ROOMS = ("reporting", "kernels", "sweep")

Stamp = tuple[int, int]  # of a file: when it was modified, in nanoseconds, and its size
_closures: dict[tuple, tuple[dict[str, Stamp], str]] = {}


def closure_fingerprint(modules: Iterable[str], excluded_rooms: Iterable[str] = ARRANGING_ROOMS) -> str:
    """The fingerprint of the code of `import_closure`; comments and docstrings do not count."""
    key = (PACKAGE, tuple(modules), tuple(excluded_rooms))
    stamps, known = _closures.get(key, ({}, ""))
    if not stamps or any(file_stamp(path) != stamp for path, stamp in stamps.items()):
        stamps = _follow_imports(*key[1:])
        known = fingerprint(*(_parse(path, stamp)[1] for path, stamp in sorted(stamps.items())))
        _closures[key] = stamps, known
    return known


def import_closure(modules: Iterable[str], excluded_rooms: Iterable[str] = ARRANGING_ROOMS) -> list[str]:
    """These modules of fruitlib and all that they import, directly or not, as sorted dotted names.

    Imports inside functions count; modules of `excluded_rooms`, and what only they import, do not.
    """
    paths = (Path(path).relative_to(PACKAGE).with_suffix("") for path in _follow_imports(modules, excluded_rooms))
    return sorted(".".join(("fruitlib", *path.parts)) for path in paths)


def _follow_imports(modules: Iterable[str], excluded_rooms: Iterable[str]) -> dict[str, Stamp]:
    """The files of an import closure, each with its stamp from before it was read."""
    excluded = tuple(f"fruitlib.{room}." for room in excluded_rooms)
    stamps: dict[str, Stamp] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = str(module_path(name))
        if path not in stamps and not name.startswith(excluded):
            stamps[path] = file_stamp(path)
            waiting += _parse(path, stamps[path])[0]
    return stamps


def module_fingerprint(name: str) -> str:
    """The fingerprint of a module's code without comments and docstrings, whose change changes no result."""
    path = str(module_path(name))
    return _parse(path, file_stamp(path))[1]


def parse_all() -> None:
    """Parse every module now, so that processes forked later need not: it takes each a second."""
    for path in PACKAGE.glob("*/*.py"):
        _parse(str(path), file_stamp(str(path)))


def module_path(name: str) -> Path:
    """The file of a module of fruitlib, by its dotted name."""
    return PACKAGE.joinpath(*name.split(".")[1:]).with_suffix(".py")


def imported_modules(path: Path) -> list[str]:
    """The modules of fruitlib that a file imports, as dotted names."""
    return list(_parse(str(path), file_stamp(str(path)))[0])


def modules_imported_by(source: str) -> list[str]:
    """The modules of fruitlib that a piece of code imports, inside functions too, as dotted names."""
    return _imports(list(ast.walk(ast.parse(source))))


def assigned_names(source: str) -> set[str]:
    """The names that a piece of code, such as a notebook cell, assigns at its top level."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return set()
    targets = [t for node in body if isinstance(node, ast.Assign) for t in node.targets]
    targets += [node.target for node in body if isinstance(node, ast.AnnAssign)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def file_stamp(path: str) -> Stamp:
    """What shows that a file was edited."""
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size


@functools.cache
def _parse(path: str, stamp: Stamp) -> tuple[tuple[str, ...], str]:
    """The modules of fruitlib that a file imports, and the fingerprint of its code, as the file was at `stamp`."""
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    imports = tuple(_imports(nodes))
    for node in nodes:
        _blank_docstring(node)
    return imports, fingerprint(ast.dump(tree).encode())


def _imports(nodes: list[ast.AST]) -> list[str]:
    names = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.startswith("fruitlib.") and module_path(name).is_file()]


def _blank_docstring(node: ast.AST) -> None:
    body = getattr(node, "body", None)
    first = body[0] if isinstance(body, list) and body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        first.value.value = None
