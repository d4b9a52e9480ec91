"""A space of settings to draw from: lists of values and ranges of numbers. `random:` draws evenly, `search:` by Optuna.

lr: {low: 0.0001, high: 0.03, log: true}     # a number between, evenly on a logarithmic scale
head_width: {low: 0, high: 512, step: 64}    # whole numbers, where the setting is one
optimizer: [adam, sgd]                       # one of these
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fruitlib.core.config import Config
from fruitlib.core.errors import InputError

MOST_CHECKED = 512  # combinations of a space's corners that are tried before anything runs
MOST_VALUES = 1000  # in all lists of a space; each is tried before anything runs
LARGEST = 1e15
DIGITS = 3  # significant ones of a number drawn at random: its name is then its value


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included; `step` is the distance between them, or None."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Whether its numbers are whole."""
        return isinstance(self.low, int)

    def draw(self, generator: np.random.Generator) -> float:
        """One of them, evenly, or evenly in the logarithm; three significant digits."""
        if self.step is not None:
            steps = math.floor((self.high - self.low) / self.step + 1e-9)
            value = self.low + self.step * int(generator.integers(steps + 1))
        elif self.log:
            value = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = (
                generator.integers(self.low, self.high + 1) if self.whole else generator.uniform(self.low, self.high)
            )
        value = round(value) if self.whole else float(f"{value:.{DIGITS}g}")
        return min(max(value, self.low), self.high)


Space = dict[str, "list | Range"]


def read_space(content: Any, where: str) -> Space:
    """A space from a params file's mapping.

    Raises:
        InputError: no mapping, an empty list, low not below high, …; the message begins with `where`.
    """
    if not isinstance(content, dict) or not content:
        raise InputError(
            f"{where}: space maps settings to lists of values or ranges, as in 'lr: {{low: 0.001, high: 0.1}}'", "space"
        )
    if wrong := [name for name in content if not isinstance(name, str)]:
        raise InputError(f"{where}: space: {wrong[0]!r} is not a setting; params/base.yaml lists them all", "space")
    lengths = {name: len(choice) for name, choice in content.items() if isinstance(choice, list)}
    if sum(lengths.values()) > MOST_VALUES:
        longest = max(lengths, key=lambda name: lengths[name])
        message = (
            f"{where}: space: {sum(lengths.values()):,} values, most of them of {longest}; at most {MOST_VALUES:,}"
        )
        raise InputError(f"{message}: give a range, {{low: …, high: …}}", longest)
    return {name: _read_one(name, choice, f"{where}: space {name}") for name, choice in content.items()}


def _read_one(name: str, choice: Any, where: str) -> "list | Range":
    if isinstance(choice, list) and choice:
        return choice
    if not isinstance(choice, dict) or not {"low", "high"} <= set(choice) <= {"low", "high", "log", "step"}:
        raise InputError(
            f"{where}: wanted a list of values, or {{low: …, high: …}} with log: true or step: … if need be", name
        )
    kind = str(Config.model_fields[name].annotation) if name in Config.model_fields else ""
    whole = "int" in kind and "float" not in kind  # some take a word besides
    try:
        low, high = (_number(choice[end], whole) for end in ("low", "high"))
        step = None if choice.get("step") is None else _number(choice["step"], whole)
    except (TypeError, ValueError, OverflowError):
        kind = "whole numbers" if whole else "numbers"
        raise InputError(f"{where}: low, high and step are {kind}", name) from None
    log = choice.get("log", False)
    if not all(abs(end) < LARGEST for end in (low, high)):
        raise InputError(f"{where}: low and high are numbers below {LARGEST:g}", name)
    if low >= high or log not in (True, False) or (log and (low <= 0 or step is not None)):
        raise InputError(
            f"{where}: low must be below high, log is true or false and needs low above 0 and no step", name
        )
    if step is not None and not 0 < step <= high - low:
        raise InputError(f"{where}: step must be above 0 and not wider than the range", name)
    return Range(low, high, bool(log), step)


def _number(value: Any, whole: bool) -> float:
    """The value as a number; ValueError where it is `whole` and has a fraction, which int() would cut off."""
    number = float(value)
    if whole and not number.is_integer():
        raise ValueError(value)
    return int(number) if whole else number


def corners(space: Space) -> list[dict[str, Any]]:
    """The combinations that a space is most likely to fail at.

    All listed values and the ends of ranges combined, up to 512; each of them once beside the others' first; and some
    from within.
    """
    ends = {name: choice if isinstance(choice, list) else [choice.low, choice.high] for name, choice in space.items()}
    first = {name: values[0] for name, values in ends.items()}
    rows = itertools.islice(itertools.product(*ends.values()), MOST_CHECKED)
    rows_to_check = [dict(zip(ends, row, strict=True)) for row in rows]
    rows_to_check += [{**first, name: value} for name, values in ends.items() for value in values]
    rows_to_check += draw(space, 16, seed=0)
    return list({repr(row): row for row in rows_to_check}.values())


def draw(space: Space, count: int, seed: int) -> list[dict[str, Any]]:
    """So many combinations at random (fewer, where there are no more different ones); the same ones for a seed."""
    generator = np.random.default_rng(seed)
    drawn: dict[str, dict[str, Any]] = {}
    for _ in range(20 * count):
        row = {
            name: choice[generator.integers(len(choice))] if isinstance(choice, list) else choice.draw(generator)
            for name, choice in space.items()
        }
        drawn.setdefault(repr(row), row)
        if len(drawn) == count:
            break
    return list(drawn.values())
