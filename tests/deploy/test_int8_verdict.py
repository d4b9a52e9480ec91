"""INT8's verdict: the numbers of the published formulas, groups, and the photos of all folds."""

import threading

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from fruitlib.core import config, files
from fruitlib.deploy import int8_verdict
from fruitlib.deploy.int8_verdict import BROKEN, PROVEN, UNPROVEN, judge_int8
from fruitlib.evaluation import intervals
from fruitlib.runs.run import Run, create_run
from fruitlib.sweep import final_model


def photos(n: int, lost: int = 0, won: int = 0, moved: int = 0) -> pd.DataFrame:
    """n photos; of them INT8 loses some that torch has right, wins some, and is wrong otherwise than torch on some."""
    torch, int8 = ["a"] * n, ["a"] * n
    for i in range(lost):
        int8[i] = "b"
    for i in range(lost, lost + won):
        torch[i] = "b"
    for i in range(lost + won, lost + won + moved):
        torch[i], int8[i] = "b", "c"
    table = pd.DataFrame({"path": [f"{i}.jpg" for i in range(n)], "label": "a", "torch": torch})
    return table.assign(int8=int8)


@given(st.integers(1, 400), st.integers(0, 20), st.integers(0, 20))
@settings(max_examples=50, deadline=None)
def test_the_bound_is_the_largest_share_that_makes_so_few_losses_likely(n, lost, won):
    lost, won = min(lost, n), min(won, n - min(lost, n))
    found = judge_int8(photos(n, lost, won))
    assert (found.n, found.lost, found.won, found.same) == (n, lost, won, n - lost - won)
    if lost < n:
        assert binom.cdf(lost, n, found.costs_at_most) == pytest.approx(0.05)
    if found.same < n and found.state == BROKEN:
        assert binom.cdf(found.same, n, 0.9) < 0.025


@pytest.mark.parametrize(
    ("table", "state", "text"),
    [
        (
            photos(30),
            UNPROVEN,
            "INT8 is not broken, its cost unproven: 0 of 30 validation photos lost: at most 9.5 points",
        ),
        (photos(30, moved=5), UNPROVEN, "0 of 30 validation photos lost"),
        (
            photos(30, moved=8),
            BROKEN,
            "INT8 is broken: it predicts torch's label on 22 of 30 validation photos; use fp32",
        ),
        (photos(100), PROVEN, "INT8 is proven: 0 of 100 validation photos lost: at most 3.0 points of accuracy"),
        (photos(300, lost=3, won=4), PROVEN, "3 of 300 validation photos lost: at most 2.6 points"),
        (photos(0), UNPROVEN, "no validation photos, and no fold was exported"),
    ],
)
def test_three_verdicts(table, state, text):
    found = judge_int8(table)
    assert found.state == state and text in found.summary


def test_photos_of_few_groups_prove_little():
    table = photos(800, lost=1)
    alone, grouped = judge_int8(table), judge_int8(table, [f"g{i % 8}" for i in range(800)], group_word="variety")
    assert alone.state == PROVEN and grouped.state == UNPROVEN
    assert grouped.costs_at_most > 0.1 and grouped.same_groups_at_most == alone.costs_at_most
    assert "on new varieties (8); 0.6 points on more photos of these" in grouped.summary
    each = judge_int8(table.head(60), [f"g{i}" for i in range(60)])
    assert each.summary == judge_int8(table.head(60)).summary and each.groups == 0


def test_the_group_bound_holds():
    """In worlds where varieties lose 1 to 20 % of their photos, alike or not."""
    rng, held, times = np.random.default_rng(0), 0, 300
    for _ in range(times):
        mean, alike = rng.uniform(0.01, 0.2), rng.uniform(0.05, 0.5)
        share = rng.beta(mean * (1 / alike - 1), (1 - mean) * (1 / alike - 1), 12)
        unit = np.repeat(np.arange(12), rng.choice([10, 40], 12))
        lost = rng.random(len(unit)) < share[unit]
        held += intervals.new_group_share_at_most(lost, unit) >= mean
    assert held / times > 0.95 - 3 * np.sqrt(0.95 * 0.05 / times)


@pytest.fixture
def folds(make_run):
    """Three folds of one combination, one of another, and one of the second repeat; all but the third are exported."""
    runs = [make_run(f"fold={i}", folds=3, repeats=2, fold=i) for i in (1, 2, 3)]
    runs += [
        make_run("lr", folds=3, repeats=2, fold=1, lr=0.5),
        make_run("again", folds=3, repeats=2, fold=1, repeat=2),
    ]
    for i, run in enumerate(runs):
        if i != 2:
            files.write_csv(run.path / "int8_photos.csv", photos(20, lost=i))
            files.write_json(run.path / "export.json", {})
    return runs


def test_folds_find_their_siblings(folds, make_run):
    assert [run.name for run in folds[0].sibling_folds()] == ["fold=2", "fold=3"]
    assert [run.name for run in folds[3].sibling_folds()] == [] == folds[4].sibling_folds()
    refit = make_run("refit", folds=3, repeats=2, fold=0, cam_every=0)
    assert [run.name for run in refit.sibling_folds()] == ["fold=1", "fold=2", "fold=3"]
    make_run("kept", folds=3, repeats=2, fold=1, keep="best")  # of a grid over keep: its photos would count twice
    assert [run.name for run in refit.sibling_folds()] == ["fold=1", "fold=2", "fold=3"]
    other = make_run("other", folds=3, repeats=2, fold=0, epochs=folds[0].config.epochs + 1)
    assert other.sibling_folds() == []
    ensemble = create_run(folds[0].sweep_dir / "ensemble", refit.config, members=[f.name for f in folds[:2]])
    assert [run.name for run in ensemble.sibling_folds()] == ["fold=1", "fold=2"]
    assert make_run("single").sibling_folds() == []


def test_a_refit_of_folds_that_stopped_early_is_judged_by_those_it_was_made_of(make_run):
    """Another combination differs in the planned epochs alone, which the refit has not."""
    settings = {"folds": 2, "repeats": 2, "patience": 2}
    made_of = [make_run(f"9,{i},{n}", epochs=9, fold=i, repeat=n, **settings) for i, n in ((1, 1), (2, 1), (1, 2))]
    for i in (1, 2):
        make_run(f"20,{i}", epochs=20, fold=i, **settings)
    refit = Run(made_of[0].sweep_dir / "refit", config.make(made_of[0].config.model_dump() | {"fold": 0, "epochs": 4}))
    final_model.name_folds(refit, made_of)
    refit = create_run(refit.path, refit.config)
    assert [run.name for run in refit.sibling_folds()] == ["9,1,1", "9,2,1"]


def test_a_verdict_rests_on_all_folds_that_were_exported(folds, make_run):
    verdict = int8_verdict.judge_run(folds[2], photos(20, lost=2), True, True)
    assert (verdict.n, verdict.lost, verdict.photos) == (60, 3, "out-of-fold photos of 3 folds")
    refit = make_run("refit", folds=3, repeats=2, fold=0, cam_every=0)
    verdict = int8_verdict.judge_run(refit, photos(36), False, True)
    assert (verdict.n, verdict.lost, verdict.photos) == (40, 1, "out-of-fold photos of 2 folds")
    broken = int8_verdict.judge_run(refit, photos(36, moved=30), False, True)
    assert broken.state == BROKEN and "6 of 36 training photos" in broken.summary
    assert "not finite" in int8_verdict.judge_run(refit, photos(36), False, False).summary


def test_a_model_without_validation_photos_waits_for_a_fold_that_is_exported_beside_it(folds, make_run):
    refit, late = make_run("refit", folds=3, repeats=2, fold=0, cam_every=0), folds[2]
    verdicts = []
    judge = threading.Thread(target=lambda: verdicts.append(int8_verdict.judge_run(refit, photos(36), False, True)))
    with files.lock(late.path / ".lock"):
        judge.start()
        judge.join(1)
        assert judge.is_alive()
        files.write_csv(late.path / "int8_photos.csv", photos(20, lost=2))
        files.write_json(late.path / "export.json", {})
    judge.join(60)
    assert (verdicts[0].n, verdicts[0].photos) == (60, "out-of-fold photos of 3 folds")


def test_a_fold_exported_later_makes_the_verdict_on_what_is_shipped_an_old_one(folds, make_run):
    refit = make_run("refit", folds=3, repeats=2, fold=0, cam_every=0)
    assert [name for name, _ in refit.int8_judges()] == ["fold=1", "fold=2"]
    for name in ("05_quantize.ipynb", "export.json"):
        files.write_text(refit.path / name, "{}")
    refit.complete("export", refit.identity("export"), judged_by=refit.int8_judges())
    refit.complete("05_quantize", refit.identity("05_quantize"))
    assert refit.is_complete("05_quantize")
    files.write_csv(folds[2].path / "int8_photos.csv", photos(20))
    assert not refit.is_complete("05_quantize")


def test_one_split_rests_on_its_validation_photos(make_run):
    verdict = int8_verdict.judge_run(make_run(), photos(30), True, True)
    assert (verdict.n, verdict.photos) == (30, "validation photos")
