"""Names that look equal are equal; names that steer a terminal are shown."""

import pytest

from fruitlib.core import texts
from fruitlib.core.errors import InputError, first_line


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ("Pa\u0308ssi", "P\u00e4ssi"),
        ("red\u00a0apple", "red apple"),
        ("  red \t apple\n", "red apple"),
        ("\ufeffapple\u200b", "apple"),
        ("\u202eapple", "apple"),
        ("e\u200b\u0301", "\u00e9"),
        ("\u1112\u1161\u11ab", "\ud55c"),
    ],
)
def test_texts_that_look_equal_have_one_form(given, same):
    assert texts.normal(given) == same
    assert texts.normal(same) == same


def test_joiners_that_change_what_is_drawn_stay():
    family = "\U0001f468\u200d\U0001f469"
    assert texts.normal(family) == family
    assert texts.normal("Apple") != texts.normal("apple")


def test_what_is_printed_and_what_is_wrong_steer_no_terminal(capsys):
    texts.show("one\x1b[2J\ntwo")
    assert capsys.readouterr().out == "one\\x1b[2J\ntwo\n"
    assert str(InputError("a\nb\x1b", place="p\r")) == "p\\r: a\\nb\\x1b"


def test_control_characters_are_shown():
    assert texts.printable("a\x1b[31mb\r\u202ec\x9bd\u00e9\udce9") == "a\\x1b[31mb\\r\\u202ec\\x9bd\u00e9\\udce9"


@pytest.mark.parametrize(
    ("text", "most", "shown"),
    [
        ("apple", 5, "apple"),
        ("abcdefghij", 7, "abcd…ij"),
        ("사과사과사과", 7, "사과…과"),
        ("e\u0301" * 4, 4, "e\u0301" * 4),
    ],
)
def test_a_long_text_loses_its_middle(text, most, shown):
    assert texts.shortened(text, most) == shown


@pytest.mark.parametrize("letter", ["a", "사", "\u0301", "\x1b"])
def test_no_error_is_longer_than_a_few_lines(letter):
    for shown in (str(InputError(letter * 900_000, place="p")), first_line(letter * 900_000)):
        assert len(shown) <= 4 * 600 and "…" in shown


def test_of_many_names_some_are_shown():
    assert texts.some(["a", "b"]) == "a, b"
    assert texts.some((f"{n}" * 99 for n in range(2002)), 2, 5) == "000…0, 111…1 and 2,000 more"
