"""Labels that are one class though they are not written alike."""

import pandas as pd
import pytest

from fruitlib.data.labels import unify


@pytest.mark.parametrize(
    ("given", "wanted", "note"),
    [
        (["\u00c4pfel", "A\u0308pfel"], ["\u00c4pfel"] * 2, "look the same were joined: \u00c4pfel"),
        (["red\u00a0apple", "red apple", " red  apple"], ["red apple"] * 3, "look the same were joined: red apple"),
        (["apple\u200b", "\ufeffapple"], ["apple"] * 2, "look the same were joined: apple"),
        (["1", "1.0", "2.0", "2.50", "x"], ["1", "1", "2", "2.5", "x"], "same number were joined: 1 is 1 (1), 1.0 (1)"),
        (["1.0", "2.0"], ["1.0", "2.0"], ""),
        (["01", "1", "1.0"], ["01", "1", "1"], "1 is 1 (1), 1.0 (1)"),
        (["Apple", "apple", "apple"], ["apple"] * 3, "differ in case were joined: apple is Apple (1), apple (2)"),
        (["Apple", "apple"], ["Apple"] * 2, "differ in case"),
        (["A", "a", "Co", "CO"], ["A", "a", "Co", "CO"], ""),
        (["e\u0301t\u00e9", "\u00c9T\u00c9"], ["\u00c9T\u00c9"] * 2, "differ in case"),
        (["nan", "None", "NA", "true", ""], ["nan", "None", "NA", "true", ""], ""),
        ([], [], ""),
    ],
)
def test_labels_that_are_one_class_get_one_spelling_and_a_note(given, wanted, note):
    labels, notes = unify(pd.Series(given, dtype=str, index=range(5, 5 + len(given))))
    assert labels.tolist() == wanted and labels.index.tolist() == list(range(5, 5 + len(given)))
    assert (note in "; ".join(notes)) if note else notes == []
