"""Labels that are one class though they are not written alike: joined, with a note."""

import re
from collections.abc import Collection, Mapping
from decimal import Decimal

import pandas as pd

from fruitlib.core.texts import normal

_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{0,15})?")  # 01 is a code, not a number
SHORTEST_WORD = 3  # A and a, Co and CO are different things: case is overlooked in words of so many characters


def unify(labels: pd.Series, known: Collection[str] = ()) -> tuple[pd.Series, list[str]]:
    """The labels, each class in one spelling; and notes, sentences that say which spellings were joined.

    Joined are texts that look equal (`texts.normal`), numbers that are equal (`1` and `1.0`), and words that differ in
    upper and lower case alone (the more frequent spelling stays). A blank label stays blank.

    Args:
        labels: texts, one a photo.
        known: spellings that stay, and that others get which are the same class.
    """
    written, notes = {label: label for label in labels.unique()}, []
    for key, chosen, why in (
        (normal, _as_seen, "look the same"),
        (_number, _shortest, "are the same number"),
        (_folded, _most_frequent, "differ in case"),
    ):
        counts = labels.map(written).value_counts()
        alike: dict[str, list[str]] = {}
        for label in sorted({*counts.index, *known}):
            alike.setdefault(key(label), []).append(label)
        spelling = chosen(alike, counts)
        for same in alike.values():
            fixed = next((label for label in same if label in known), None)
            if fixed is not None:
                spelling |= {label: label if label in known else fixed for label in same}
        notes += _joined(counts, spelling, why)
        written = {label: spelling[now] for label, now in written.items()}
    return labels.map(written).astype(str), notes


def _as_seen(alike: dict[str, list[str]], _: pd.Series) -> dict[str, str]:
    """Every label in normal form."""
    return {label: seen for seen, same in alike.items() for label in same}


def _number(label: str) -> str:
    """A number in its shortest form, other text as it is."""
    return f"{Decimal(label).normalize() + 0:f}" if _NUMBER.fullmatch(label) else label


def _shortest(alike: dict[str, list[str]], _: pd.Series) -> dict[str, str]:
    """Where two labels are one number, every number in its shortest form; else all as they are."""
    any_joined = any(len(same) > 1 for same in alike.values())
    return {label: number if any_joined else label for number, same in alike.items() for label in same}


def _folded(label: str) -> str:
    """What words that differ in case alone have in common; a label too short to tell stays as it is."""
    return label.casefold() if len(label) >= SHORTEST_WORD else label


def _most_frequent(alike: dict[str, list[str]], counts: pd.Series) -> dict[str, str]:
    """Words that differ in case alone, as the most frequent of them is written."""
    best = {key: max(same, key=lambda label: counts.get(label, 0)) for key, same in alike.items()}
    return {label: best[key] for key, same in alike.items() for label in same}


def too_alike(names: Collection[str]) -> str:
    """What is wrong with two classes that are hard to tell apart by their names, and what to do; "" where none are."""
    for key, why in ((str.casefold, "differ only in upper and lower case"), (_as_code, "are the same number")):
        seen: dict[str, str] = {}
        for name in sorted(names):
            if (other := seen.setdefault(key(name), name)) != name:
                return (
                    f"the classes {other} and {name} {why}: if they are one class, give both one name, else rename one"
                )
    return ""


def _as_code(name: str) -> str:
    """A number without leading zeros."""
    return name.lstrip("0") or "0" if name.isascii() and name.isdigit() else name


def _joined(counts: pd.Series, spelling: Mapping[str, str], why: str) -> list[str]:
    """A note on the labels that now share one spelling; none where no two do."""
    alike: dict[str, list[str]] = {}
    for label in sorted(counts.index):
        alike.setdefault(spelling[label], []).append(label)
    joined = {name: labels for name, labels in alike.items() if len(labels) > 1}
    if not joined:
        return []
    texts = []
    for name, labels in list(joined.items())[:3]:
        others = ", ".join(f"{label} ({counts[label]:,})" for label in labels)
        texts.append(name if why == "look the same" else f"{name} is {others}")
    more = f"; and {len(joined) - 3} more" if len(joined) > 3 else ""
    return [f"classes whose names {why} were joined: {'; '.join(texts)}{more}"]
