"""What stands on top of a notebook: its numbers, and an interrupt."""

import pytest
from nbclient import NotebookClient
from nbformat import v4

from fruitlib.runs.headline import INTERRUPTED, named

START = "from fruitlib.runs.headline import Headline\nheadline = Headline.start()"
INTERRUPT = "import json, os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\njson.loads(time.sleep(20))"


def test_an_interrupt_anywhere_is_one_line_in_the_cell_and_on_top():
    notebook = v4.new_notebook(cells=[v4.new_code_cell(START), v4.new_code_cell(INTERRUPT), v4.new_code_cell("6 * 7")])
    NotebookClient(notebook, allow_errors=True, kernel_name="python3").execute()
    first, second, third = (cell.outputs for cell in notebook.cells)
    (error,) = second
    assert (error.output_type, error.ename, error.evalue) == ("error", "Interrupted", INTERRUPTED)
    assert error.traceback == [INTERRUPTED]
    headline = first[0].metadata["fruitlib"]["headline"]
    assert (headline["state"], headline["text"]) == ("failed", INTERRUPTED)
    assert third[0].data["text/plain"] == "42"  # the kernel goes on


@pytest.mark.parametrize(("p", "text"), [(3.2e-9, "3.2e-09"), (0.0004, "0.0004"), (0.25, "0.25")])
def test_a_small_p_does_not_become_0(p, text):
    numbers = headline_of(p=p, n=2_000_001)
    assert numbers == {"p": p, "n": 2_000_001} and named(numbers)["p of the test"] == text


def headline_of(**numbers) -> dict:
    """What is kept beside an answer."""
    notebook = v4.new_notebook(cells=[v4.new_code_cell(START), v4.new_code_cell(f"headline.answer('x', **{numbers})")])
    NotebookClient(notebook, kernel_name="python3").execute()
    return notebook.cells[0].outputs[0].metadata["fruitlib"]["headline"]["numbers"]
