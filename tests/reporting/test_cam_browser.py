"""The Grad-CAM browser: its filters, what it shows of every network, what it keeps; nothing before somebody looks."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fruitlib.core import config
from fruitlib.core.errors import InputError
from fruitlib.data import dataset, splits
from fruitlib.deploy import export, model_files, predict, verify
from fruitlib.evaluation import compare
from fruitlib.explain import gradcam
from fruitlib.reporting import cam_browser, cam_pictures, cam_views
from fruitlib.reporting.cam_browser import CamBrowser
from fruitlib.runs.run import Run, create_run
from fruitlib.training import blocks, models, train


@pytest.fixture(scope="module")
def runs(tmp_path_factory, shapes) -> tuple[Run, Run]:
    """Two short trainings on the same photos, the first with maps kept and an INT8 file."""
    folder = tmp_path_factory.mktemp("browsed")
    settings = {"data": str(shapes), "val_per_class": 6, "test_per_class": 4, "batch_size": 8, "precision": "fp32"}
    settings |= {"int8_speedup": 0, "lr": 0.003}
    made = []
    for name, own in {"one": {"image_size": 32, "epochs": 4, "cam_every": 2}, "two": {"image_size": 48}}.items():
        cfg = config.make(settings | {"epochs": 1, "cam_every": 0} | own)
        splits.prepare_manifest(cfg, folder)
        made.append(create_run(folder / name, cfg))
        train.fit(made[-1])
    with pytest.MonkeyPatch.context() as patch:
        latency = export.latency_ms
        patch.setattr(export, "latency_ms", lambda runners, **how: latency(runners, **how | {"repeats": 5}))
        verify.export_run(made[0])
    return made[0], made[1]


@pytest.fixture
def shown(runs) -> CamBrowser:
    """A browser of the first run, on its first photo."""
    return displayed(CamBrowser(runs[0]))


def displayed(browser: CamBrowser) -> CamBrowser:
    assert "application/vnd.jupyter.widget-view+json" in browser._repr_mimebundle_()
    return browser


def messages(browser: CamBrowser) -> str:
    return browser.message.value


def paths(browser: CamBrowser) -> list[str]:
    """The photos found, as stepping through them shows them."""
    found = []
    for _ in range(browser.photo.max):
        found.append(browser.picture.value.split("<b>")[1].split(":")[0])
        browser.next.click()
    return found


# ---- before somebody looks


def test_nothing_is_computed_before_it_is_shown_nor_in_a_sweep(runs, monkeypatch):
    monkeypatch.setattr(cam_views, "views_of", lambda folders: pytest.fail("looked at runs"))
    monkeypatch.setenv("FRUITLIB_JOB", "x")
    assert list(CamBrowser(runs[0])._repr_mimebundle_()) == ["text/plain"]


def test_a_folder_without_a_trained_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="no trained run"):
        CamBrowser(tmp_path)


# ---- which photos


CHOICES = {
    "class": ({"label": "bar"}, lambda t: t["label"] == "bar"),
    "right": ({"answer": cam_browser.RIGHT}, lambda t: t["label"] == t["predicted"]),
    "wrong": ({"answer": cam_browser.WRONG}, lambda t: t["label"] != t["predicted"]),
    "sure": ({"confidence": "sure"}, lambda t: t["highest"] > 0.6),
    "unsure, wrong": (
        {"confidence": "unsure", "answer": cam_browser.WRONG},
        lambda t: (t["highest"] <= 0.6) & (t["label"] != t["predicted"]),
    ),
    "group": ({"group": "g1"}, lambda t: np.arange(len(t)) % 2 == 1),
    "differ": ({"b": "two", "answer": cam_browser.DIFFER}, lambda t: t["predicted"] != t["of_two"]),
    "followed": ({"answer": cam_browser.FOLLOWED}, lambda t: t.groupby("label").cumcount() < 2),
}


@pytest.mark.parametrize("name", CHOICES)
def test_filters_find_what_the_predictions_say(runs, name, monkeypatch):
    monkeypatch.setattr(cam_views.TorchView, "sure_above", (0.6, "above 0.60"))
    rows = cam_views.TorchView.rows
    grouped = lambda view, split: rows(view, split).assign(group=lambda t: [f"g{i % 2}" for i in range(len(t))])  # noqa: E731
    monkeypatch.setattr(cam_views.TorchView, "rows", grouped)
    shown = displayed(CamBrowser(runs[0]))
    table = runs[0].predictions("val")
    table["highest"] = table[[f"p_{one}" for one in runs[0].class_names]].max(axis=1)
    table["of_two"] = runs[1].predictions("val").set_index("path").loc[table["path"], "predicted"].to_numpy()
    chosen, expected = CHOICES[name]
    for control, value in chosen.items():
        getattr(shown, control).value = value
    wanted = table.loc[expected(table), "path"].tolist()
    assert shown.photo.disabled != bool(wanted)
    assert (paths(shown) if wanted else []) == wanted, messages(shown)
    if not wanted:
        assert shown.picture.value == "No photo passes these filters."


def test_training_photos_are_predicted_when_a_filter_needs_it(runs, shown):
    shown.split.value = "train"
    assert shown.photo.max == len(runs[0].rows("train"))
    right = {}
    for answer in (cam_browser.RIGHT, cam_browser.WRONG):
        shown.answer.value = answer
        right[answer] = 0 if shown.photo.disabled else shown.photo.max
    assert sum(right.values()) == len(runs[0].rows("train"))
    photos = dataset.load_photos(runs[0], "train")
    model, _ = models.restore(runs[0].path / "best.pt")
    correct = model(dataset.to_float(photos.images)).argmax(1) == photos.labels
    assert right[cam_browser.RIGHT] == int(correct.sum())


def test_many_training_photos_are_not_predicted_at_once(shown, monkeypatch):
    monkeypatch.setattr(cam_browser, "MANY", 5)
    shown.split.value = "train"
    shown.answer.value = cam_browser.WRONG
    assert "choose a class or a group first" in messages(shown)
    assert shown.picture.value == "" and shown.photo.disabled and shown.save.disabled
    shown.next.click()
    assert shown.picture.value == ""  # no photo of the view before stands under the name of this one


def test_nor_are_many_validation_photos_by_an_int8_file(shown, monkeypatch):
    monkeypatch.setattr(cam_browser, "MANY", 5)
    shown.answer.value = cam_browser.WRONG
    assert messages(shown) == "<span role='status'></span>"  # torch's answers are written down
    shown.b.value = "one, INT8 file"
    shown.answer.value = cam_browser.DIFFER
    assert "one, INT8 file: 18 validation photos are not predicted yet" in messages(shown)


def test_maps_that_a_later_training_kept_are_read_again(runs, shown):
    file, path = runs[0].path / "cams" / "epoch_0002.npz", shown._path
    whole, before = file.read_bytes(), shown.view._kept(2)[0].heatmap
    try:
        maps, others = gradcam.load_heatmaps(file)
        gradcam.save_heatmaps(file, replace(maps, heatmap=1 - maps.heatmap), **others)
        after, places = displayed(CamBrowser(runs[0])).view._kept(2)
        assert path in places and not np.array_equal(before, after.heatmap)
    finally:
        file.write_bytes(whole)


def test_test_photos_are_offered_after_06_and_the_look_is_written_down(runs, shown):
    assert "test" not in [split for _, split in shown.split.options]
    run, rows = runs[0], runs[0].rows("test")
    probs = np.tile([0.2, 0.5, 0.3], (len(rows), 1))
    run.write_predictions("test", {"torch": probs, "int8": probs}, rows)
    try:
        cam_views._record_test_opening.cache_clear()
        again = displayed(CamBrowser(run))
        assert run.test_openings().empty
        again.split.value = "test"
        again.next.click()
        assert run.test_openings()["photos"].tolist() == [len(rows)] and again.photo.max == len(rows)
    finally:
        (run.path / "predictions_test.csv").unlink()
        (run.sweep_dir / "test_openings.csv").unlink()


def test_stepping_goes_round(shown):
    first = shown.picture.value
    shown.previous.click()
    assert shown.photo.value == shown.photo.max and shown.picture.value != first
    shown.next.click()
    assert shown.photo.value == 1 and shown.picture.value == first


# ---- what is shown


def look(browser: CamBrowser, letter: str = "A") -> cam_views.Look:
    return next(side.look for side in browser._sides() if side.letter == letter)


@pytest.mark.parametrize(
    ("chosen", "target"),
    [
        ({}, None),
        ({"target": cam_views.TRUE}, "label"),
        ({"target": "cross", "layer": "conv1"}, "cross"),
        ({"target": "bar", "method": "LayerCAM", "layer": "conv2"}, "bar"),
        ({"method": "EigenCAM"}, None),
        ({"a": "two", "target": "disc"}, "disc"),
    ],
)
def test_the_heat_is_that_of_the_network_layer_method_and_class(runs, shown, chosen, target):
    for control, value in chosen.items():
        getattr(shown, control).value = value
    run = runs[1] if "a" in chosen else runs[0]
    photos = dataset.load_photos(run, "val").pick([0])
    model, _ = models.restore(run.path / "best.pt")
    layers = {name: blocks.target_layers(model)[name] for name in [shown.layer.value]}
    name = run.rows("val")["label"].iloc[0] if target == "label" else target
    targets = None if name is None else [run.class_names.index(name)]
    expected = gradcam.heatmaps(model, dataset.to_float(photos.images), layers, targets, method=shown.method.value)
    found = look(shown)
    np.testing.assert_allclose(found.heat, expected.heatmap[0, 0], atol=1e-5)
    np.testing.assert_array_equal(found.photo, dataset.to_pictures(photos.images)[0])
    np.testing.assert_allclose(found.probs, expected.probs[0], atol=1e-5)
    assert f"{found.photo.shape[0]} × " in shown.picture.value and messages(shown).count("Error") == 0


def test_a_kept_epoch_shows_what_was_kept(runs, shown):
    kept, others = gradcam.load_heatmaps(runs[0].path / "cams" / "epoch_0002.npz")
    files = sorted((runs[0].path / "cams").glob("epoch_*.npz"))
    assert list(dict(shown.epoch.options).values()) == [*(int(file.stem[-4:]) for file in files), 0] and len(files) > 1
    shown.layer.value, shown.epoch.value = "conv2", 2
    place = others["paths"].tolist().index(shown._path)
    np.testing.assert_array_equal(look(shown).heat, kept.heatmap[place, kept.layer_names.index("conv2")])
    assert shown.target.disabled and "as kept at epoch 2" in shown.picture.value
    shown.photo.value = 3  # the third photo of the first class was not followed
    assert shown.epoch.value == 0 and not shown.target.disabled


def test_torch_beside_the_int8_file(runs, shown):
    shown.b.value, shown.target.value = "one, INT8 file", "bar"
    found = look(shown, "B")
    session = predict.open_session(runs[0].path / model_files.INT8)
    logits, heat = predict.outputs(session, found.photo[None], ("logits", "heat"))
    own = np.maximum(heat[0, runs[0].class_names.index("bar")], 0)
    assert np.argmax(found.probs) == logits.argmax()
    assert found.empty == (not own.any())
    if own.any():  # the hottest place of the file's map is the hottest of the enlarged one
        scale = len(found.photo) / len(own)
        hottest = np.array(np.unravel_index(found.heat.argmax(), found.heat.shape)) / scale
        np.testing.assert_allclose(hottest, np.unravel_index(own.argmax(), own.shape), atol=1)
    assert "INT8 file: class activation map" in shown.picture.value


def test_a_layer_that_b_does_not_have_is_replaced_by_the_one_as_deep():
    view = SimpleNamespace(layers=["layer3", "layer4"])
    like = cam_views.TorchView.layer_like
    assert like(view, "layer4", ["layer4"]) == "layer4"
    assert like(view, "conv3", ["conv1", "conv2", "conv3"]) == "layer4"
    assert like(view, "conv1", ["conv1", "conv2", "conv3"]) == "layer3"


def test_what_was_seen_is_not_computed_again(shown, monkeypatch):
    shown.next.click()
    calls, heatmaps = [], gradcam.heatmaps
    monkeypatch.setattr(gradcam, "heatmaps", lambda *given, **how: calls.append(1) or heatmaps(*given, **how))
    shown.previous.click()
    shown.opacity.value = 0.3
    assert not calls
    shown.layer.value = "conv1"
    assert len(calls) == 1


def test_a_method_that_takes_long_says_so_while_it_works(shown, monkeypatch):
    said, heatmaps = [], gradcam.heatmaps

    def listening(*given, **how):
        said.append(messages(shown))
        return heatmaps(*given, **how)

    monkeypatch.setattr(gradcam, "heatmaps", listening)
    shown.method.value = "Grad-CAM++"
    shown.method.value = "Score-CAM"
    assert "Score-CAM" not in said[0] and "up to 64 channels" in said[1]
    assert "channels" not in messages(shown) and "Score-CAM" in shown.picture.value


def side(heat: float = 0.0, name: str = "apple", probs=(0.75, 0.25)) -> cam_pictures.Shown:
    photo = np.full((8, 8, 3), 100, np.uint8)
    scale = "full heat" if heat else cam_views._no_heat(name)
    found = cam_views.Look(photo, np.full((8, 8), heat, np.float32), np.array(probs), "Grad-CAM, last", scale, name)
    return cam_pictures.Shown("A", "run", found, [name, "other"])


def test_an_empty_map_is_said_to_be_empty():
    empty, warm = (cam_pictures.page("photo", "apple", [side(heat)], 0.7) for heat in (0.0, 1.0))
    assert "no heat: nothing here counts for apple" in empty and "linear-gradient" not in empty
    assert "heat for apple" in warm and "linear-gradient" in warm


def test_names_are_harmless_in_the_page():
    hostile = "<script>alert(1)</script>\"'"
    page = cam_pictures.page(hostile, hostile, [side(1.0, hostile)], 0.7)
    assert "<script" not in page and 'alert(1)"' not in page


def test_what_fails_is_said_in_a_line(shown, monkeypatch):
    def fail(*given, **how):
        raise InputError("photos/1.jpg: gone; put it back")

    monkeypatch.setattr(gradcam, "heatmaps", fail)
    shown.method.value = "LayerCAM"
    assert "photos/1.jpg: gone; put it back" in messages(shown) and shown.picture.value == ""
    monkeypatch.undo()
    shown.next.click()
    assert "gone" not in messages(shown) and "<img" in shown.picture.value


def test_a_network_that_was_trained_on_the_photo_is_named(runs, shown, monkeypatch):
    shown.b.value = "two"
    assert "was trained on this photo" not in shown.picture.value
    shown.other.trained_on = {shown._path}
    shown.opacity.value = 0.5
    assert "B was trained on this photo" in shown.picture.value


# ---- keeping it


def test_saving_writes_a_picture_and_its_settings_and_never_over_another(runs, shown):
    shown.b.value, shown.target.value = "two", "bar"
    shown.save.click()
    first = sorted((runs[0].path / "cams").glob("shown_*"))
    assert [path.suffix for path in first] == [".json", ".png"]
    assert f"cams/{first[1].name}" in messages(shown)
    with Image.open(first[1]) as picture:
        assert picture.width > 1000
    kept = json.loads(first[0].read_text())
    assert (kept["photo"], kept["heat_for"], kept["layer"]) == (shown._path, "bar", "conv3")
    assert kept["A"]["network"] == "one" and kept["B"]["network"] == "two"
    assert list(kept["A"]["probabilities"].values()) == pytest.approx(look(shown).probs, abs=1e-5)
    assert list(kept["A"]["probabilities"]) == runs[0].class_names and kept["opacity"] == 0.7
    shown.save.click()
    assert len(list((runs[0].path / "cams").glob("shown_*"))) == 4
    for path in (runs[0].path / "cams").glob("shown_*"):
        path.unlink()


# ---- 07


def test_the_browser_of_a_pair_shows_the_photos_on_which_they_disagree(runs):
    pair = compare.pair_of_sweep(runs[0].sweep_dir, "one", "two")
    differing = compare.disagreements(pair)
    browser = displayed(cam_browser.of_pair(pair, differing))
    assert (browser.a.value, browser.b.value) == ("one", "two")
    assert paths(browser) == differing["path"].tolist()
    for letter, name in (("A", "a"), ("B", "b")):
        found = next(side for side in browser._sides() if side.letter == letter)
        assert found.predicted == differing[name].iloc[0]


def test_why_there_is_no_browser_of_a_pair_is_said(runs, tmp_path, capsys):
    table = runs[1].predictions("val")
    table.assign(predicted=table["label"]).to_csv(tmp_path / "other.csv", index=False)
    pair = compare.pair_of_sweep(runs[0].sweep_dir, "one", str(tmp_path / "other.csv"))
    assert cam_browser.of_pair(pair, compare.disagreements(pair)) is None
    assert "is a table of predictions, not a run" in capsys.readouterr().out
    assert cam_browser.of_pair(pair, pd.DataFrame()) is None
    assert "they disagree on no photo" in capsys.readouterr().out
