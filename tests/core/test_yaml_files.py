"""YAML that people wrote: the lines of its settings, and one line for what is no YAML or would take a machine down."""

import os
import time

import pytest
import yaml

from fruitlib.core import yaml_files
from fruitlib.core.errors import InputError

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED = "m0: &m0 {lr: 1}\n" + "".join(f"m{n}: &m{n} {{<<: [{','.join([f'*m{n - 1}'] * 9)}]}}\n" for n in range(1, 12))


@pytest.fixture(params=["CSafeLoader", "SafeLoader"], autouse=True)
def loader(request, monkeypatch):
    """libyaml's and PyYAML's own, which takes its place where there is none."""
    if not hasattr(yaml, request.param):
        pytest.skip("PyYAML was built without libyaml")
    monkeypatch.setattr(yaml_files, "_LOADER", getattr(yaml, request.param))


def read(tmp_path, text: str | bytes):
    path = tmp_path / "some.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return yaml_files.read(path)


def test_content_and_lines_also_of_aliases_and_merged_mappings(tmp_path):
    text = "base: &base {lr: 0.1, epochs: 3}\nlist:\n  - {<<: *base, seed: 1}\n  - {<<: *base, seed: 2}\n"
    content, lines = read(tmp_path, text)
    assert content["list"] == [{"lr": 0.1, "epochs": 3, "seed": seed} for seed in (1, 2)]
    path = tmp_path / "some.yaml"
    assert lines.place("seed", 2) == f"{path} line 4" and lines.place("epochs", 3) == f"{path} line 1"
    assert lines.place("nowhere", 3) == str(path)


@pytest.mark.parametrize("text", ["", "# a remark\n", "\ufeff"])
def test_an_empty_file_is_none(tmp_path, text):
    content, lines = read(tmp_path, text)
    assert content is None and lines.place("lr", 1) == str(tmp_path / "some.yaml")


def test_utf16_as_some_editors_write_it(tmp_path):
    assert read(tmp_path, "title: Äpfel\n".encode("utf-16"))[0] == {"title": "Äpfel"}


@pytest.mark.parametrize(
    ("text", "words", "line"),
    [
        (LAUGHS, "more than 200,000 values with its aliases", True),
        (MERGED, "more than 200,000 values with its aliases", True),
        ("lr: " + "[" * 100_000, "nested more than 30 deep", True),
        ("".join(" " * depth + "a:\n" for depth in range(200)), "nested more than 30 deep", True),
        ("a: &a [*a]\n", "an alias (*) names the value that it stands in", True),
        ("title: " + "x" * 3_000_000, "larger than 2 MB", False),
        ("lr: 1\nepochs: 2\nlr: 3\n", "lr is set already, in line 1", True),
        ("list:\n- {lr: 1, lr: 2}\n", "lr is set already, in line 2", True),
        ("lr: \x00\n", "not valid YAML", False),
        ("lr: [\n", "not valid YAML", True),
        (b"title: \xff\xfe\xfd\n", "not valid YAML", False),
        ("lr: 2020-13-45\n", "not valid YAML (month must be in 1..12)", False),
        ("epochs: " + "9" * 5000, "a number of 5,000 characters, at most 100: write it shorter, or in quotes", True),
        ("epochs: 1" + ":1" * 200_000, "a number of 400,001 characters", True),  # sixties, in time by its square
        ("epochs: 0x" + "f" * 10_000, "a number of 10,002 characters", True),
        ("epochs: !!float " + "9" * 400, "a number of 400 characters", True),
        ("title: " + "x" * 10_001, "a text of 10,001 characters, at most 10,000: shorten it", True),
        ("x" * 10_001 + ": 1", "not valid YAML", True),  # a name has 1,024 at most
        ("x: !!python/object/apply:os.system ['true']\n", "could not determine a constructor", True),
        ("? [a]\n: 3\n", "not valid YAML", True),
    ],
)
def test_what_is_refused_is_one_line_at_once(tmp_path, text, words, line):
    started = time.process_time()
    with pytest.raises(InputError) as problem:
        read(tmp_path, text)
    assert time.process_time() - started < 3  # seconds; a thousandth of that with libyaml
    shown = str(problem.value)
    assert words in shown and "\n" not in shown and len(shown) < 500
    assert shown.startswith(f"{tmp_path / 'some.yaml'}{' line ' if line else ': '}")


def test_what_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        yaml_files.read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: a pipe or a device"):
        yaml_files.read(tmp_path / "pipe")


def test_a_value_is_found_among_numbers_that_no_computer_counts_with(tmp_path):
    _, lines = read(tmp_path, f"lr: [{'9' * 100}, .inf,\n -1]\n")
    assert lines.place("lr", -1).endswith("line 2") and lines.place("lr", 10**400).endswith("line 1")
