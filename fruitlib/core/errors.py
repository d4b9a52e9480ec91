"""Errors for people: one line that says what is wrong, where, and what to do."""

from typing import Any

from fruitlib.core.texts import printable, shortened

LONGEST = 600  # letters of a line; what was given may have any number


class InputError(ValueError):
    """Something a person can put right; in one line, safe to print: where, what is wrong, what to do.

    Attributes:
        message: what is wrong, and what to do.
        setting: the setting it is about; empty if it is about none.
        value: what was given for that setting.
        place: the file (and line) it is about; it begins the line that people see.
    """

    def __init__(self, message: str = "", setting: str = "", value: Any = None, place: str = ""):
        super().__init__(message)
        self.message, self.setting, self.value, self.place = message, setting, value, place

    def __str__(self) -> str:
        return shortened(printable(f"{self.place}: {self.message}" if self.place else self.message), LONGEST)

    def at(self, place: str) -> "InputError":
        """The same error, about another place."""
        return type(self)(self.message, self.setting, self.value, place)

    def _render_traceback_(self) -> list[str]:
        """Jupyter's own hook: show the line alone, without a traceback."""
        return [f"InputError: {self}"]


class Interrupted(KeyboardInterrupt):
    """A person stopped it; the message, one line, says how it goes on. Jupyter shows that line, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def first_line(problem: BaseException | str) -> str:
    """The first line of an exception or its text, short and safe to print; its name if it has no text."""
    text = str(problem).strip()
    if not text:
        return "no message" if isinstance(problem, str) else type(problem).__name__
    return shortened(printable(text.splitlines()[0]), LONGEST)
