"""The answer on top of an executed notebook."""

import html

from fruitlib.core import files
from fruitlib.core.errors import Interrupted, first_line
from fruitlib.runs.run import Pruned

INTERRUPTED = "interrupted: execute this notebook again, by hand or by the same sweep; what is complete is kept"
# The numbers a page shows beside the answer, the first three that there are: name -> words, format, factor.
# The others are kept for programs, under their names.
NAMED = {
    "leaks": ("groups or files on two sides", ".0f", 1),
    "test_accuracy": ("test accuracy", ".3f", 1),
    "test_macro_f1": ("test macro-F1", ".3f", 1),
    "test_n": ("test photos", ".0f", 1),
    "heat_on_object": ("share of heat on the object", ".2f", 1),
    "hidden_corrected": ("accuracy with the object hidden", ".2f", 1),
    "hidden_chance": ("that of the best constant answer", ".2f", 1),
    "accuracy": ("validation accuracy", ".3f", 1),
    "macro_f1": ("validation macro-F1", ".3f", 1),
    "seconds": ("seconds of training", ".3g", 1),
    "int8_costs_at_most": ("INT8 costs at most, points", ".1f", 100),
    "latency_ms_int8": ("INT8, ms a photo", ".2f", 1),
    "size_mb_int8": ("INT8, MB", ".2f", 1),
    "latency_ms_fp32": ("fp32, ms a photo", ".2f", 1),
    "size_mb_fp32": ("fp32, MB", ".2f", 1),
    "accuracy_difference": ("points of accuracy B has more", ".1f", 100),
    "disagree": ("photos they predict differently", ".0f", 1),
    "p": ("p of the test", ".2g", 1),
    "questions": ("questions asked", ".0f", 1),
    "significant": ("significant answers", ".0f", 1),
    "runs": ("runs", ".0f", 1),
    "n": ("photos", ".0f", 1),
}


def named(numbers: dict[str, float], at_most: int = 3) -> dict[str, str]:
    """The few numbers of a headline that a person reads: words -> the number as text."""
    there = [name for name in NAMED if name in numbers][:at_most]
    shown = {}
    for words, style, factor, number in ((*NAMED[name], numbers[name]) for name in there):
        text = format(factor * number, style)
        shown[words] = text.lstrip("-") if float(text) == 0 else text  # -0.0 is nothing
    return shown


class Headline:
    """The answer on top of an executed notebook: *running* until `answer` fills it in, or an error ends it."""

    def __init__(self):
        self._shown, self._state = None, "running"

    @classmethod
    def start(cls) -> "Headline":
        """Put a headline where the cell stands; call its `answer` in the notebook's last cell."""
        return cls().show()

    def show(self) -> "Headline":
        """Display it."""
        from IPython import get_ipython
        from IPython.display import display

        data, metadata = _bundle("running", "running …", {})
        self._shown = display(data, raw=True, metadata=metadata, display_id=True)
        if shell := get_ipython():
            shell.events.register("post_run_cell", self._watch)
            shell.set_custom_exc((KeyboardInterrupt,), _show_interrupted)
        return self

    def _watch(self, result) -> None:
        """After a cell that ended in an error: show the error on top, and record whether a disk caused it."""
        problem = result.error_in_exec or result.error_before_exec
        if problem is None or self._shown is None or self._state == "answered":
            return
        if isinstance(problem, Pruned):
            data, metadata = _bundle("pruned", str(problem), {})
        else:
            text = f"stopped: {type(problem).__name__}: {first_line(problem)}"
            text = str(_interrupted(problem)) if isinstance(problem, KeyboardInterrupt) else text
            data, metadata = _bundle("failed", text, {})
            metadata["fruitlib"]["headline"]["disk_failure"] = files.is_disk_failure(problem)
        self._state = metadata["fruitlib"]["headline"]["state"]
        self._shown.update(data, raw=True, metadata=metadata)

    def answer(self, text: str, **numbers: float) -> None:
        """Put the answer on top of the notebook; `numbers` are kept beside it for programs to read."""
        from IPython.display import display

        self._state = "answered"
        data, metadata = _bundle("answered", text, numbers)
        if self._shown is None:  # outside Jupyter
            display(data, raw=True, metadata=metadata)
        else:
            self._shown.update(data, raw=True, metadata=metadata)


def _interrupted(problem: KeyboardInterrupt) -> Interrupted:
    """An interrupt with the line to show: its own, or where it came anywhere else, how to go on."""
    return problem if isinstance(problem, Interrupted) else Interrupted(INTERRUPTED)


def _show_interrupted(shell, _, problem: KeyboardInterrupt, trace, tb_offset=None) -> None:
    """Show an interrupt as that line, not as a traceback through whatever library was at work."""
    shown = _interrupted(problem)
    shell.showtraceback((type(shown), shown, trace))


def _bundle(state: str, text: str, numbers: dict) -> tuple[dict, dict]:
    style = "font-size:1.25em;font-weight:600;padding:.5em .8em;border-left:5px solid #0072b2"
    shown = {"text/html": f'<div style="{style}">{html.escape(text)}</div>', "text/plain": text}
    values = {name: _rounded(float(value)) for name, value in numbers.items()}
    return shown, {"fruitlib": {"headline": {"state": state, "text": text, "numbers": values}}}


def _rounded(value: float) -> float:
    """Six decimals; three digits of a number that would lose more, such as a p of 1e-9."""
    return round(value, 6) if abs(value) >= 0.001 else float(f"{value:.3g}")
