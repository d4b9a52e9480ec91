"""The command line: what it prints cannot steer the terminal, and a line stays a line."""

import subprocess
import sys

import pytest

from fruitlib import __version__, cli
from fruitlib.core.errors import InputError, first_line

ESCAPE = "red\x1b[31m\x1b]0;title\x07\r\nfruitlib: all is well\u202e"


@pytest.mark.parametrize(
    "shown",
    [
        lambda: str(InputError("no photo", place=ESCAPE)),
        lambda: str(InputError(f"class {ESCAPE}")),
        lambda: InputError(ESCAPE)._render_traceback_()[0],
        lambda: first_line(ValueError(ESCAPE)),
        lambda: first_line(f"text {ESCAPE}"),
    ],
)
def test_an_errors_line_shows_control_characters(shown):
    assert "red\\x1b[31m" in shown() and not set("\x1b\x07\r\n\u202e") & set(shown())


def test_the_name_of_a_folder_reaches_the_terminal_as_text(tmp_path, capsys):
    folder = tmp_path / "a\x1b[2Jb"
    assert cli.main(["report", str(folder)]) == 2
    printed = capsys.readouterr()
    assert "\\x1b[2J" in printed.err and printed.err.count("\n") == 1
    assert "\x1b" not in printed.out + printed.err


def test_the_photos_on_which_two_differ_are_a_line_each(tmp_path, capsys):
    for name, predicted in (("a", "x"), ("b", "y\x1b[5m")):
        rows = "".join(f'"p{i}\x1b]0;t\x07q",x,{predicted}\n' for i in range(8))
        (tmp_path / f"{name}.csv").write_text(f"path,label,predicted\n{rows}")
    assert cli.main(["compare", str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]) == 0
    out = capsys.readouterr().out
    assert sum(line.startswith("  p") and "B says y\\x1b[5m" in line for line in out.splitlines()) == 8
    assert "\x1b" not in out


def test_the_version_is_said(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"fruitlib {__version__}\n"


@pytest.mark.parametrize("jobs", ["0", "-2"])
def test_no_runs_at_a_time_is_refused(capsys, jobs):
    assert cli.main(["sweep", "params/demo.yaml", "--jobs", jobs]) == 2
    assert capsys.readouterr().err.startswith(f"fruitlib: --jobs {jobs}: give how many runs")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sweep", "nothing.yaml"], "reading nothing.yaml"),
        (["report", "executed/nothing"], "writing the pages of executed/nothing"),
        (["check", "nothing"], "checking nothing"),
        (["check", "nothing.onnx"], "checking nothing.onnx"),
        (["compare", "a", "b"], "reading the predictions of a and b"),
        (["predict", "nothing.onnx", "a.jpg"], "opening nothing.onnx"),
        (["data", "sample"], "sample: photos are drawn where there are none yet"),
        (["data", "fetch", "fruits-360-3-body"], "fetching fruits-360-3-body"),
    ],
)
def test_the_first_words_come_before_the_imports_that_take_time(arguments, words):
    """The process is stopped at its first words: what takes long is not imported by then."""
    code = (
        "import sys\n"
        "from fruitlib import cli\n"
        "def stop(text, file=None):\n"
        "    slow = {'torch', 'pandas', 'numpy', 'onnxruntime', 'matplotlib', 'PIL', 'yaml'} & set(sys.modules)\n"
        "    sys.exit(f'{text} | {sorted(slow)}')\n"
        "cli.show, sys.stderr.isatty = stop, lambda: True\n"
        f"cli.main({arguments!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == f"{words} | []"
