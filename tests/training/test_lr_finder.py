"""The learning-rate finder: it trains as `train` would, on rates it says, and leaves everything as it was."""

import math
import random
import threading

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from fruitlib.core.errors import InputError
from fruitlib.reporting import style, training_figures
from fruitlib.training import lr_finder


def curve(losses: list[float]) -> pd.DataFrame:
    """A table of these losses, lr rising from 1e-6 by 10 at each."""
    return pd.DataFrame({"lr": [1e-6 * 10.0**k for k in range(len(losses))], "loss": losses})


def test_the_lr_rises_by_the_same_factor_from_a_thousandth_until_the_loss_blows_up(make_run):
    table = lr_finder.find_lr(make_run(lr=0.01), 60)
    assert list(table.columns) == ["lr", "loss"]
    assert table["lr"].to_numpy() == pytest.approx(1e-5 * 1e6 ** (np.arange(len(table)) / 59))
    assert table["loss"].iloc[0] == pytest.approx(math.log(3), abs=0.7)  # fresh, of three classes
    assert len(table) < 60 and np.isfinite(table).all(axis=None)
    assert (table["loss"] <= 4 * table["loss"].cummin()).all()


def test_what_it_learns_lowers_the_loss_and_a_good_rate_is_suggested(make_run):
    table = lr_finder.find_lr(make_run(lr=0.001, augment="none"), 120)
    assert table["loss"].min() < 0.9 * table["loss"].iloc[:10].mean()
    assert 1e-5 < lr_finder.suggest(table) < 1e-1


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "soft_f1", "optimizer": "sgd", "layer_decay": 0.5, "clip_norm": 1.0},
        {"mixing": "mixup", "augment": "trivial", "balance": "class_weights", "micro_batch": 3},
    ],
)
def test_it_leaves_the_run_and_all_random_states_as_they_were(make_run, settings):
    run = make_run(**settings)
    files = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    first = lr_finder.find_lr(run, 20)
    assert files == {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), str(np.random.get_state())) == states[1:]
    assert not [thread for thread in threading.enumerate() if thread.name == "fruitlib-ahead"]
    torch.manual_seed(99)
    pd.testing.assert_frame_equal(lr_finder.find_lr(run, 20), first)  # nor do they change the curve


def test_slices_of_a_batch_give_the_curve_of_the_whole(make_run):
    whole, sliced = (lr_finder.find_lr(make_run(micro_batch=size, lr=1e-4), 20)[:8] for size in ("auto", 3))
    np.testing.assert_allclose(sliced, whole, rtol=1e-3)


def test_layers_keep_the_ratios_of_their_rates(make_run, monkeypatch):
    seen = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self: (seen.append([g["lr"] for g in self.param_groups]), step(self))
    )
    table = lr_finder.find_lr(make_run(optimizer="sgd", layer_decay=0.5), 20)
    for lr, rates in zip(table["lr"], seen[10:], strict=False):
        assert rates[-1] == pytest.approx(lr) and rates[0] == pytest.approx(lr * 0.5**4)  # conv1 of four blocks


def test_the_suggestion_is_a_tenth_of_the_lr_of_the_least_loss():
    assert lr_finder.suggest(curve([1.1, 1.0, 0.7, 0.5, 0.9])) == pytest.approx(1e-3 / 10)
    assert math.isnan(lr_finder.suggest(curve([1.1, 1.2, 1.3, 9.0])))  # it never fell
    assert math.isnan(lr_finder.suggest(curve([])))


def test_too_few_steps_are_refused(make_run):
    with pytest.raises(InputError, match="lr_find = 5: a curve needs at least 20 steps"):
        lr_finder.find_lr(make_run(), 5)


def test_the_figure_marks_both_rates():
    style.use_style()
    figure = training_figures.lr_finder_curve(curve([1.1] * 8 + [1.0, 0.7, 0.5, 0.9, 40.0]), 1e-4, 0.003)
    ax = figure.axes[0]
    assert ax.get_xscale() == "log"
    assert [line.get_xdata()[0] for line in ax.lines[1:]] == [1e-4, 0.003]
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[1:] == ["suggested, a tenth of the lowest point's: 0.0001", "lr of this run: 0.003"]
    assert ax.get_ylim()[1] < 40  # the fall is still to be seen
    figure.canvas.draw()
    assert not [tick.get_text() for tick in ax.get_xticklabels() if "$" in tick.get_text()]
    training_figures.lr_finder_curve(curve([]), float("nan"), 0.003).canvas.draw()
    none = training_figures.lr_finder_curve(curve([1.1, 1.2]), float("nan"), 0.003).axes[0]
    assert len(none.lines) == 2 and none.get_title() == "No learning rate lowers the loss"
    plt.close("all")
