"""Lines for people: printed as they are in one process, marked for the process that follows several."""

import pytest

from fruitlib.training import messages


def printed(capsys) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_without_a_starter_lines_are_printed_as_they_are(capsys, monkeypatch):
    """Also by several processes, where a person has started torchrun."""
    monkeypatch.delenv(messages.STARTER, raising=False)
    messages.say("one", "", "two\nthree")
    messages.epoch_done("epoch 1")
    messages.failed("no photos")
    assert printed(capsys) == ["one", "two", "three", "epoch 1", "no photos"]


def test_only_rank_0_prints_except_for_what_any_rank_may_do(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    messages.say("one")
    messages.say_from_any_rank("two")
    assert printed(capsys) == ["two"]


@pytest.mark.parametrize("before", ["", "45%|####", "epoch 1/3: "])
def test_a_starter_reads_kind_and_text_whatever_stands_before(capsys, monkeypatch, before):
    monkeypatch.setenv(messages.STARTER, "1:2")
    messages.say("any words: at all")
    messages.epoch_done("epoch 1")
    messages.failed("no photos")
    lines = capsys.readouterr().out.split("\n")[:-1]  # splitlines would split at the mark, too
    parsed = [messages.parse(before + line) for line in lines]
    assert parsed == [("line", "any words: at all"), ("epoch", "epoch 1"), ("error", "no photos")]


def test_a_librarys_line_is_no_message():
    assert messages.parse("epoch 1/3: something that only looks like ours\n") is None
