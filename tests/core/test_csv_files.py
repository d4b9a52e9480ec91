"""Tables in files: what a spreadsheet would compute is text there, and comes back as it was."""

import pandas as pd
import pytest

from fruitlib.core import files

FORMULAS = [
    "=1+2",
    "+1+1",
    "-x",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    " =1+2",
    "＝1+2",
    '=HYPERLINK("http://x","y")',
    "-",
    "'=1",
]
NUMBERS = ["-1", "+2.5", "-1e-3", "1,000", "7"]
PLAIN = [
    "apple",
    "'quoted'",
    "'",
    "''",
    "a=b",
    "",
    "x\ry",
    "line\nbreak",
    'say "no"',
    "a,b",
    "과일",
    "'-1",
    "NA",
    "1.0",
]


BEHIND = [
    ("rot;=1+2", "rot;'=1+2"),
    ("a\t@b", "a\t'@b"),
    ("=1;=2", "'=1;'=2"),
    ("a\n=1", "a\n'=1"),
    ("a;'=1", "a;''=1"),
]


@pytest.mark.parametrize(("text", "written"), [*BEHIND, *((text, text) for text in ("a;b", "a;-1;2", "-1;x", "a\tb"))])
def test_no_formula_begins_where_another_program_may_divide_a_field(tmp_path, text, written):
    table = pd.DataFrame({"n": [1], text: [text]})
    files.write_csv(tmp_path / "t.csv", table)
    raw = pd.read_csv(tmp_path / "t.csv")
    assert raw.columns[1] == raw.iloc[0, 1] == written
    pd.testing.assert_frame_equal(files.read_csv(tmp_path / "t.csv"), table)


@pytest.mark.parametrize("text", [*FORMULAS, *NUMBERS, *PLAIN])
def test_a_text_comes_back_as_it_was_and_is_no_formula_in_the_file(tmp_path, text):
    table = pd.DataFrame({"label": [text, "apple"], "n": [-1, 2], f"p_{text}": [-0.5, 0.25], text or "x": ["=a", "b"]})
    files.write_csv(tmp_path / "t.csv", table)
    texts = {"label": str, text or "x": str}
    back = files.read_csv(tmp_path / "t.csv", dtype=texts, keep_default_na=False)
    pd.testing.assert_frame_equal(back, table)
    raw = pd.read_csv(tmp_path / "t.csv", dtype=str, keep_default_na=False)
    assert raw["label"].iloc[0] == (f"'{text}" if text in FORMULAS else text)
    assert raw.columns[-1] == (f"'{text}" if text in FORMULAS else text or "x")
    assert list(raw["n"]) == ["-1", "2"] and raw.iloc[0, -1] == "'=a"


def test_the_table_that_is_written_stays_as_it_is_and_missing_values_stay_missing(tmp_path):
    table = pd.DataFrame({"label": ["=x", None], "of": [{"a": 1}, 2.5], "n": [float("nan"), -2.0]})
    before = table.copy()
    files.write_csv(tmp_path / "t.csv", table)
    pd.testing.assert_frame_equal(table, before)
    back = files.read_csv(tmp_path / "t.csv")
    assert back["label"].iloc[0] == "=x" and back["label"].isna().tolist() == [False, True]
    assert back["n"].isna().tolist() == [True, False] and back["n"].iloc[1] == -2
