"""Spaces of settings: read, refused with the setting's name, drawn evenly and alike each time."""

import numpy as np
import pytest

from fruitlib.core.errors import InputError
from fruitlib.sweep import space


def test_a_range_is_drawn_evenly_in_its_logarithm():
    lr = space.Range(1e-4, 1e-2, log=True)
    generator = np.random.default_rng(0)
    drawn = np.array([lr.draw(generator) for _ in range(4000)])
    assert drawn.min() >= 1e-4 and drawn.max() <= 1e-2
    assert np.mean(drawn < 1e-3) == pytest.approx(0.5, abs=0.03)
    assert all(value == float(f"{value:.3g}") for value in drawn[:50])


def test_whole_numbers_and_steps_reach_both_ends():
    generator = np.random.default_rng(0)
    widths = {space.Range(0, 256, step=64).draw(generator) for _ in range(200)}
    assert widths == {0, 64, 128, 192, 256} and all(isinstance(width, int) for width in widths)
    assert {space.Range(1, 3).draw(generator) for _ in range(100)} == {1, 2, 3}
    assert {space.Range(0.0, 0.3, step=0.1).draw(generator) for _ in range(100)} == {0.0, 0.1, 0.2, 0.3}


def test_draws_differ_from_each_other_and_repeat_with_their_seed():
    found = space.read_space({"optimizer": ["adam", "sgd"], "lr": {"low": 0.001, "high": 0.1, "log": True}}, "file")
    rows = space.draw(found, 20, seed=3)
    assert len({tuple(row.values()) for row in rows}) == 20 and rows == space.draw(found, 20, seed=3)
    assert rows != space.draw(found, 20, seed=4)
    assert len(space.draw({"optimizer": ["adam", "sgd"]}, 5, seed=0)) == 2


def test_corners_hold_every_listed_value_and_both_ends():
    found = space.corners({"optimizer": ["adam", "sgd", "rmsprop"], "lr": space.Range(0.1, 0.2)})
    assert {(row["optimizer"], row["lr"]) for row in found} >= {(o, e) for o in ("adam", "rmsprop") for e in (0.1, 0.2)}
    assert any(0.1 < row["lr"] < 0.2 for row in found)
    many = {f"setting{number}": [0, 1] for number in range(30)}
    assert len(found := space.corners(many)) < space.MOST_CHECKED + 100
    assert all({row[name] for row in found} == {0, 1} for name in many)


def test_a_setting_that_takes_a_word_besides_numbers_is_whole_all_the_same():
    found = space.read_space({"micro_batch": {"low": 4, "high": 64}, "dropout": {"low": 0, "high": 0.5}}, "file")
    assert found["micro_batch"].whole and not found["dropout"].whole


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (3, "wanted a list of values"),
        ([], "wanted a list of values"),
        ({"low": 1}, "wanted a list of values"),
        ({"low": 2, "high": 1}, "low must be below high"),
        ({"low": 0, "high": 1, "log": True}, "needs low above 0"),
        ({"low": "a", "high": 1}, "low, high and step are numbers"),
        ({"low": 0.1, "high": 1, "step": 5}, "step must be above 0"),
        ({"low": 0.1, "high": float("inf")}, "low and high are numbers below"),
    ],
)
def test_what_is_no_range_is_refused_by_name(choice, words):
    with pytest.raises(InputError, match=f"file: space lr: .*{words}"):
        space.read_space({"lr": choice}, "file")


@pytest.mark.parametrize("wrong", [{"low": 2.7}, {"high": 9.5}, {"step": 1.5}])
def test_a_fraction_of_an_epoch_is_refused_and_not_cut_off(wrong):
    with pytest.raises(InputError, match="space epochs: low, high and step are whole numbers"):
        space.read_space({"epochs": {"low": 2, "high": 9} | wrong}, "file")
    assert space.read_space({"epochs": {"low": 2.0, "high": 1e1}}, "file") == {"epochs": space.Range(2, 10)}
