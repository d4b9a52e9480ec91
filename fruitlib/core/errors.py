"""Errors for people: one line that says what is wrong, where, and what to do."""


class InputError(ValueError):
    """Something a person can put right. Its message is one line: what is wrong, where, and what to do."""

    def _render_traceback_(self) -> list[str]:
        """Jupyter's own hook: show the line alone, without a traceback."""
        return [f"InputError: {self}"]


def first_line(problem: BaseException) -> str:
    """What an exception says, in one line: its first one, or its name where it says nothing."""
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]
