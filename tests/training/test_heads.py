"""Fitted heads compute in torch what scikit-learn computes; strengths are compared by whole groups."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from fruitlib.core.errors import InputError
from fruitlib.training import heads

KINDS = ("logistic", "svm", "knn", "prototypes")


def clusters(photos=90, views=1, classes=3, width=20, spread=1.0, seed=0):
    """Features (n, views, D) around a centre for each class, class indexes (n,), groups of three photos."""
    rng = np.random.default_rng(seed)
    labels = np.arange(photos) % classes
    centres = rng.normal(size=(classes, width))
    features = centres[labels][:, None] + spread * rng.normal(size=(photos, views, width))
    return (
        features.astype(np.float32),
        labels,
        [f"g{place // (3 * classes)}c{place % classes}" for place in range(photos)],
    )


def logits_of(head: heads.Fitted, features: np.ndarray) -> torch.Tensor:
    with torch.inference_mode():
        return head.module(torch.from_numpy(features.reshape(-1, features.shape[-1])))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("width", [20, 200])  # fewer and more features than photos
@pytest.mark.parametrize("method", ["none", "class_weights"])
def test_the_logistic_head_is_scikit_learns_to_a_hundred_thousandth(classes, width, method):
    features, labels, groups = clusters(classes=classes, width=width, spread=2)
    keep = (labels != 1) | (np.arange(90) % 4 == 1)  # class 1 is rarer
    features, labels, groups = features[keep], labels[keep], np.array(groups)[keep].tolist()
    head = heads.fit("logistic", features, labels, groups, "abc"[:classes], method)
    rows = features[:, 0].astype(float)
    deviations = rows.std(0)
    scaled = (rows - rows.mean(0)) / np.maximum(deviations, np.median(deviations))
    weight = "balanced" if method == "class_weights" else None
    model = LogisticRegression(C=head.strength, class_weight=weight, tol=1e-8, max_iter=10_000).fit(scaled, labels)
    factor = next(row["factor"] for row in head.table if row["strength"] == head.strength)
    scores = model.decision_function(scaled) * factor
    wanted = 1 / (1 + np.exp(-scores)) if classes == 2 else torch.from_numpy(scores).softmax(1).numpy()
    found = logits_of(head, features).softmax(1).numpy()
    np.testing.assert_allclose(found[:, 1] if classes == 2 else found, wanted, atol=1e-5)
    assert isinstance(head.module, torch.nn.Linear)


def test_the_nearest_neighbours_head_is_scikit_learns_with_one_vote_more():
    features, labels, groups = clusters(spread=3)
    asked = clusters(spread=3, seed=1)[0]
    head = heads.fit("knn", features, labels, groups, "abc")
    rows = features[:, 0].astype(float)
    scale = np.maximum(rows.std(0), np.median(rows.std(0)))
    k = int(head.strength)
    model = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp(-distance / heads.CLOSENESS))
    shares = model.fit((rows - rows.mean(0)) / scale, labels).predict_proba((asked[:, 0] - rows.mean(0)) / scale)
    wanted = (k * shares + 1 / 3) / (k + 1)
    np.testing.assert_allclose(logits_of(head, asked).exp().numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_head_learns_from_ten_photos_a_class_and_its_probabilities_are_honest(kind):
    features, labels, groups = clusters(photos=30, width=100, spread=1.5)
    head = heads.fit(kind, features, labels, groups, "abc")
    new, answers, _ = clusters(photos=300, width=100, spread=1.5)
    logits = logits_of(head, new)
    assert (logits.argmax(1).numpy() == answers).mean() > 0.85
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(answers)).item()
    assert loss < 0.6  # of even guessing 1.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_without_training_photos_is_never_the_answer(kind):
    features, labels, groups = clusters()
    head = heads.fit(kind, features, np.where(labels == 1, 3, labels), groups, "abcde")
    probs = logits_of(head, features).softmax(1)
    assert probs.shape == (90, 5) and probs[:, [1, 4]].max() < 0.1
    assert set(probs.argmax(1).tolist()) == {0, 2, 3}
    one = heads.fit(kind, features, np.full(90, 2), groups, "abc")
    assert set(logits_of(one, features).argmax(1).tolist()) == {2} and "one class" in one.summary


def test_groups_stay_together_where_strengths_are_compared():
    """Each group has features of its own, which say the label only to those who have seen the group."""
    rng = np.random.default_rng(0)
    groups = np.arange(120) // 6
    features = (rng.normal(size=(20, 50))[groups] + 0.1 * rng.normal(size=(120, 50))).astype(np.float32)[:, None]
    labels = rng.integers(2, size=20)[groups]
    honest = heads.fit("logistic", features, labels, [f"g{group}" for group in groups], "ab")
    leaking = heads.fit("logistic", features, labels, [""] * 120, "ab")
    assert max(row["accuracy"] for row in honest.table) < 0.8 < max(row["accuracy"] for row in leaking.table)


@pytest.mark.parametrize(("groups", "folds"), [(["a", "b", "c"] * 30, "no folds"), ([""] * 90, "5 folds")])
def test_where_a_class_has_one_group_the_strength_is_the_usual_one_and_that_is_said(groups, folds):
    features, labels, _ = clusters()
    head = heads.fit("logistic", features, labels, groups, "abc")
    if folds == "5 folds":
        assert folds in head.summary and head.table
    else:
        assert (head.strength, head.table) == (1.0, []) and "too few groups" in head.summary


def test_many_rows_are_compared_on_a_sample_of_whole_photos_and_that_is_said():
    features, labels, groups = clusters(photos=900, views=2)
    head = heads.fit("logistic", features, labels, groups, "abc")
    assert "on 500 of them" in head.summary and "900 photos, 2 views each" in head.summary


def test_smote_adds_rows_of_the_rare_class_and_needs_two():
    features, labels, _ = clusters(photos=60, classes=2, spread=3)
    keep = (labels == 0) | (np.arange(60) < 12)
    plain, smote = (
        heads.fit("logistic", features[keep], labels[keep], [""] * keep.sum(), "ab", method)
        for method in ("none", "smote")
    )
    rare = [logits_of(head, features).argmax(1).float().mean() for head in (plain, smote)]
    assert rare[0] < rare[1] and "SMOTE" in smote.summary
    with pytest.raises(InputError, match="balance = smote: class cherry has one training photo and needs two"):
        heads.fit("logistic", features, np.r_[np.zeros(59, int), 1], [""] * 60, ["apple", "cherry"], "smote")


def test_features_that_hardly_vary_are_not_enlarged():
    features, labels, groups = clusters(width=20)
    features[:, :, 3] = 1e-6 * features[:, :, 3]
    features[:, :, 4] = 7
    weights = heads.fit("logistic", features, labels, groups, "abc").module.weight
    assert weights.isfinite().all() and weights.abs().max() < 10 * weights.abs().median()


def test_nearest_neighbours_are_loaded_whatever_their_number():
    features, labels, groups = clusters()
    head = heads.fit("knn", features, labels, groups, "abc")
    other = torch.nn.Sequential(torch.nn.Identity(), heads.Knn(20, 3))
    state = {f"1.{name}": tensor for name, tensor in head.module.state_dict().items()}
    heads.resize(other, state)
    other.load_state_dict(state)
    torch.testing.assert_close(other(torch.from_numpy(features[:, 0])), logits_of(head, features))
