"""YAML that people wrote: read within limits of size, depth and aliases, with the line of every setting and value."""

import contextlib
import stat
from pathlib import Path
from typing import Any

import yaml

from fruitlib.core.errors import InputError, first_line

MOST_BYTES = 2_000_000  # a list of ten thousand runs has half of that
DEEPEST = 30  # lists and mappings within each other; a params file has about five
TOO_DEEP = f"nested more than {DEEPEST} deep: write it flat"
LONGEST_TEXT = 10_000  # characters of one value
LONGEST_NUMBER = 100  # `1:1:1:…`, sixties in YAML, takes a time that grows with its square; 0xfff… cannot be printed
MOST_VALUES = 200_000  # once its aliases are written out: a few lines of them may stand for billions
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast, and not in every build


class _Texts(_LOADER):
    """Every value is text: a class may be named no, or 01."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - as the class above declares it


def read(path: Path, texts: bool = False) -> tuple[Any, "Lines"]:
    """A YAML file's content (None where it is empty), and where each of its settings stands.

    With `texts` every value stays the text that stands there.

    Raises:
        InputError: the file cannot be read, is no YAML or beyond the limits above, or sets a name twice; the message
            begins with the file, and with the line where there is one.
    """
    try:
        if (kind := path.stat().st_mode) and not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise InputError("a pipe or a device, from which nothing is read: give a file", place=str(path))
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
    except OSError as problem:
        raise InputError(f"cannot be read ({problem.strerror or problem})", place=str(path)) from None
    if len(text) > MOST_BYTES:
        raise InputError(f"larger than {MOST_BYTES // 10**6} MB: this is no params file", place=str(path))
    try:
        _refuse_deep(text, path)
        loader = (_Texts if texts else _LOADER)(text)
        node = loader.get_single_node()
        if node is None:
            return None, Lines(path)
        _count_values(node, path, {})
        lines = Lines(path, node, loader)
        return loader.construct_document(node), lines
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as problem:  # such as a date that no calendar has
        why = first_line(getattr(problem, "problem", None) or problem)
        place = _place(path, getattr(problem, "problem_mark", None))
        if "nesting depth" in why:  # a limit of libyaml's own (PyYAML 6.0.4), which reads ahead of `_refuse_deep`
            raise InputError(TOO_DEEP, place=place) from None
        raise InputError(f"not valid YAML ({why})", place=place) from None


def _place(path: Path, mark: Any) -> str:
    return f"{path} line {mark.line + 1}" if mark else str(path)


def _refuse_deep(text: bytes, path: Path) -> None:
    """Refuse lists within lists within lists …, before anything recurses into them."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise InputError(TOO_DEEP, place=_place(path, event.start_mark))


def _count_values(node: yaml.Node, path: Path, known: dict[int, int]) -> int:
    """The values below a node with its aliases written out; refuses too many, and an alias of what it stands in."""
    if isinstance(node, yaml.ScalarNode):
        _refuse_long(node, path)
        return 1
    if id(node) not in known:
        known[id(node)] = 0  # being counted
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_count_values(part, path, known) for part in parts)
    if not known[id(node)]:
        raise InputError(
            "an alias (*) names the value that it stands in: remove it", place=_place(path, node.start_mark)
        )
    if known[id(node)] > MOST_VALUES:
        message = f"more than {MOST_VALUES:,} values with its aliases (*) written out: use fewer"
        raise InputError(message, place=_place(path, node.start_mark))
    return known[id(node)]


def _refuse_long(node: yaml.ScalarNode, path: Path) -> None:
    is_number = node.tag.endswith((":int", ":float"))
    most = LONGEST_NUMBER if is_number else LONGEST_TEXT
    if len(node.value) > most:
        way = "write it shorter, or in quotes if it is a text" if is_number else "shorten it"
        message = f"a {'number' if is_number else 'text'} of {len(node.value):,} characters, at most {most:,}: {way}"
        raise InputError(message, place=_place(path, node.start_mark))


class Lines:
    """The line of each setting in a YAML file, and of each of its values."""

    def __init__(self, path: Path, node: yaml.Node | None = None, loader: Any = None):
        """
        Raises:
            InputError: a name is set twice.
        """
        self.path = path
        self.names: dict[str, int] = {}
        self.values: list[tuple[tuple[str, ...], Any, int]] = []  # the names that enclose a value, the value, its line
        self._seen: set[int] = set()
        if node is not None:
            self._walk(node, (), loader)

    def _walk(self, node: yaml.Node, names: tuple[str, ...], loader: Any) -> None:
        if isinstance(node, yaml.ScalarNode):
            if names:
                self.values.append((names, loader.construct_object(node), node.start_mark.line + 1))
            return
        if id(node) in self._seen:  # an alias: its lines are known
            return
        self._seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                self._walk(item, names, loader)
            return
        lines: dict[str, int] = {}
        for key, value in node.value:
            line, name = key.start_mark.line + 1, str(key.value)
            if name in lines and name != "<<":
                place = f"{self.path} line {line}"
                raise InputError(f"{name} is set already, in line {lines[name]}: remove one", name, place=place)
            lines[name] = line
            self.names.setdefault(name, line)
            self._walk(value, (*names, name), loader)

    def place(self, setting: str, value: Any) -> str:
        """The file and the line that gives `setting` this value; else the line of its name, or the file alone.

        Where several lines give it this value, as in a combination that is given twice, the last of them.
        """
        lines = [line for names, given, line in self.values if setting in names and _same(given, value)]
        line = lines[-1] if lines else self.names.get(setting)
        return f"{self.path} line {line}" if line else str(self.path)


def _same(given: Any, value: Any) -> bool:
    """Whether a value in a file is this one, as it stands or as the number that it is taken for (`1e-1`: 0.1)."""
    if given == value:
        return True
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        return not isinstance(value, str) and float(given) == float(value)
    return False
