"""When the model may answer alone: the bound, the search, the sets, and what goes into the file."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta

from fruitlib.evaluation import answering, run_wording
from tests.simulations import answering as simulation

FEW = 3  # repetitions of the simulation


def network(n: int, wrong_from: float = 0.8, seed: int = 0):
    """Probabilities (n, 3) and labels; every second photo is wrong below a confidence, none above."""
    rng = np.random.default_rng(seed)
    labels, confidence = np.arange(n) % 3, rng.uniform(0.5, 1, n).round(6)
    wrong = (confidence < wrong_from) & (rng.random(n) < 0.5)
    predicted = np.where(wrong, (labels + 1) % 3, labels)
    rest = (1 - confidence[:, None]) / 2
    return np.where(np.eye(3)[predicted] > 0, confidence[:, None], rest), labels


def test_fifty_nine_photos_without_a_mistake_are_needed():
    assert answering.units_needed(0.05) == 59
    assert answering.wrong_at_most(np.ones(59), np.arange(59), False) <= 0.05
    assert answering.wrong_at_most(np.ones(58), np.arange(58), False) > 0.05
    assert answering.wrong_at_most(np.arange(100) > 2, np.arange(100), False) == pytest.approx(beta.ppf(0.95, 4, 97))
    groups = answering.units_needed(0.05, 20)
    assert groups > 59 / 20 and answering.units_needed(0.05, 40) <= groups
    text = run_wording.alone_text(answering.answer_alone(*network(30), 0.05))
    assert text == "30 photos cannot show that at most 5% are wrong: 59 without a mistake would be needed"


def test_the_threshold_is_the_lowest_that_is_proven():
    probs, labels = network(1000)
    found = answering.answer_alone(probs, labels, 0.05)
    assert 0.7 < found.above < 0.8 and 0.4 < found.answered < 0.6 and found.bound <= 0.05
    answered = probs.max(1) > found.above
    assert found.answered == answered.mean()
    assert found.wrong == (probs.argmax(1) != labels)[answered].sum()
    after = found.curve[found.curve["photos"] > answered.sum()].iloc[0]
    assert after["bound"] > 0.05
    assert f"it answers {found.answered:.0%} of photos" in run_wording.alone_text(found)


def test_a_network_that_is_never_wrong_answers_all_and_one_that_often_is_none():
    probs, labels = network(300, wrong_from=0)
    found = answering.answer_alone(probs, labels, 0.05)
    assert (found.above, found.answered, found.wrong) == (0, 1, 0) and "it may answer all" in run_wording.alone_text(
        found
    )
    found = answering.answer_alone(*network(300, wrong_from=1), 0.05)
    assert not found.proven and "it errs too often" in run_wording.alone_text(found)
    assert "above" not in found.record() and found.record()["needed"] == 59


def test_in_groups_it_speaks_of_new_ones():
    probs, labels = network(960)
    groups = np.repeat(np.arange(8), 120).astype(str)
    found = answering.answer_alone(probs, labels, 0.05, groups)
    assert not found.proven and found.groups == 8
    assert run_wording.alone_text(found, "variety").startswith("8 varieties cannot show that at most 5% are wrong")


def test_tied_confidences_are_answered_together():
    probs, labels = network(200, wrong_from=0)
    probs[:120] = np.eye(3)[labels[:120]]  # as in files, where 0.9999999 is written 1.0
    found = answering.answer_alone(probs, labels, 0.05)
    assert 1.0 not in found.curve["above"].to_numpy() and found.curve["photos"].is_monotonic_increasing
    assert found.curve["photos"].iloc[0] >= 120


def test_conformal_thresholds_are_the_order_statistics():
    probs, labels = network(90)
    found = answering.conformal_sets(probs, labels, "abc")
    own = np.sort(probs[labels == 0, 0])[::-1]
    assert found.thresholds["a"] == own[27]  # ceil(0.9 · 31) = 28th largest of 30
    thresholds = np.array(list(found.thresholds.values()))
    assert found.mean_size == pytest.approx((probs >= thresholds).sum(1).mean())
    assert answering.conformal_sets(probs[:26], labels[:26], "abc") is None
    nine = answering.conformal_sets(probs[:27], labels[:27], "abc")
    assert nine.thresholds["b"] == probs[:27][labels[:27] == 1, 1].min()
    assert "too small (4 groups)" in run_wording.conformal_text(found, 4)


def test_what_is_promised_holds():
    """The simulation of the docstring, in short: three standard errors."""
    found = simulation.table(FEW)
    more = found.loc["more wrong than promised"].to_numpy(float)
    assert more.mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / (FEW * more.size))
    assert found.loc["sets hold the class"].to_numpy(float).mean() >= 0.9 - 0.01
    assert found.loc[("threshold found", "very easy"), "1000 photos"] == 1


@pytest.fixture
def judged(make_run):
    """A run whose model is used where most photos are discs."""
    return make_run("judged", deploy_shares={"bar": 1, "cross": 1, "disc": 8})


def test_the_threshold_goes_into_the_file(judged, tmp_path):
    probs, labels = network(300)
    names = judged.class_names
    rows = pd.DataFrame({"path": [f"p{i}" for i in range(300)], "label": [names[i] for i in labels]})
    judged.write_predictions("val", {"torch": probs}, rows)
    found = answering.evaluate(judged)
    found.write(judged)
    content = judged.read_json("answering.json")
    assert content["above"] == found.alone.above and content["pooled"] is False
    assert found.other_shares and "where the model is used they are" in run_wording.answering_text(found)
    metadata = answering.metadata(judged)
    assert float(metadata["answer_above"]) == pytest.approx(found.alone.above) and metadata["max_error"] == "0.05"
    assert json.loads(metadata["conformal"]) == found.conformal.thresholds
    assert float(metadata["temperature"]) == pytest.approx(found.temperature, rel=1e-5)
    assert json.loads(metadata["class_shares"]) == found.photo_shares
