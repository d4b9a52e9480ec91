"""The search for an INT8 recipe: its order, its gate, what it says where nothing passes, and each layer's error."""

import shutil
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from fruitlib.deploy import export, int8_search, model_files, predict, quantize, verify
from fruitlib.deploy.int8_search import Gate, Tried
from fruitlib.deploy.quantize import ALL_OP_TYPES, Recipe
from fruitlib.reporting import export_figures
from fruitlib.training import train

FIRST = Recipe()
ALL = Recipe(op_types=ALL_OP_TYPES, percentile=True)
STEM = replace(FIRST, fp32=("node_conv2d",))
LAYERS = ["node_conv2d", *(f"layer{place}" for place in range(16))]


def images(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((n, 3, 16, 16), np.float32)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """A small network whose second convolution has one weight in each channel far beyond the others."""
    torch.manual_seed(0)
    convolutions = [
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        *[part for _ in range(3) for part in (nn.Conv2d(8, 8, 3), nn.ReLU())],
    ]
    model = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        model[2].weight *= 0.1
        model[2].weight[:, 0, 0, 0] = 10
    return export.export_onnx(model, tmp_path_factory.mktemp("uneven") / "fp32.onnx", 16, [*"abc"])


@pytest.mark.parametrize(
    ("values", "decibel"),
    [([3.0, -3.0], 100), ([3.3, -3.3], 20), ([2.97, -2.97], 40), ([0.0, 0.0], 0), ([6.0, np.nan], -np.inf)],
)
def test_noise_is_in_decibel(values, decibel):
    assert int8_search.sqnr(np.array([[3.0, -3.0]]), np.array([values]))[0] == pytest.approx(decibel)


@pytest.mark.parametrize(
    ("numbers", "right", "quick", "words"),
    [
        ((0.95, 21, 2.0, 3.0), True, True, "passes"),
        ((0.89, 21, 2.0, 3.0), False, True, "keeps fp32's label on 0.890 of the photos, not 0.9"),
        ((0.95, 15, 2.0, 3.0), False, True, "noise: 15.0 dB, not 20"),
        ((0.95, 21, 2.9, 3.0), True, False, "not 1.1 times as fast as fp32"),
        ((np.nan, -np.inf, 2.0, 3.0), False, True, "keeps fp32's label on nan"),
    ],
)
def test_the_gate_asks_for_labels_little_noise_and_speed(numbers, right, quick, words):
    agreement, sqnr, ms, ms_fp32 = numbers
    tried = Gate().verdict(Tried(FIRST, "", agreement, sqnr, ms, ms_fp32))
    assert (tried.right, tried.quick) == (right, quick) and tried.verdict.startswith(words)
    assert Gate(speedup=0).verdict(replace(tried, ms=1e9)).quick


def scripted(monkeypatch, outcome) -> None:
    """`outcome` gives (agreement, dB, ms) of a recipe, where fp32 takes 3.06 ms."""

    def of(trial, recipe):
        shutil.copy(trial.fp32, trial.path)
        return trial.gate.verdict(Tried(recipe, "", *outcome(recipe), 3.06, 1.0))

    monkeypatch.setattr(int8_search._Trial, "of", of)
    monkeypatch.setattr(int8_search._Trial, "errors_of", lambda *rest: dict.fromkeys(LAYERS, 30.0))


@pytest.mark.parametrize(
    ("outcome", "tried", "why"),
    [
        (lambda recipe: (1, 30, 2), [FIRST], ""),
        (lambda recipe: (1, 30, 2.7 if recipe.percentile else 3.08), [FIRST, ALL], ""),
        (lambda recipe: (1, 30 if recipe.fp32 else 18, 2), [FIRST, STEM], ""),
        (
            lambda recipe: (0.99 if len(recipe.fp32) >= 4 else 0.8, 20 + recipe.percentile, 2),
            [FIRST, STEM, ALL, *(replace(ALL, fp32=tuple(LAYERS[:count])) for count in (1, 2, 4))],
            "",
        ),
        (
            lambda recipe: (0.8, 20 + len(recipe.fp32), 2 + 0.5 * len(recipe.fp32)),
            [FIRST, STEM, ALL, replace(FIRST, fp32=("node_conv2d", "layer0"))],
            "no recipe computes what fp32 does; the best of 4, on 4 training photos: keeps fp32's label on 0.800",
        ),
        (
            lambda recipe: (1, 30, 3.08),
            [FIRST, ALL],
            "no recipe was 1.1 times as fast as fp32 (int8_speedup) and kept its labels: 3.08 against 3.06 ms",
        ),
    ],
)
def test_recipes_are_tried_in_order_until_one_passes(uneven, tmp_path, monkeypatch, outcome, tried, why):
    monkeypatch.setattr(int8_search, "_has_vnni", lambda: True)
    monkeypatch.setattr(int8_search, "_is_x86", lambda: True)
    scripted(monkeypatch, outcome)
    found = int8_search.search(uneven, tmp_path / "int8.onnx", images(2, 0), images(4, 1))
    assert [each.recipe for each in found.tried] == tried and found.why.startswith(why) and bool(why) == bool(found.why)
    assert (found.chosen is None) == bool(why) == (not (tmp_path / "int8.onnx").exists())
    assert found.table["verdict"].eq("chosen").sum() == (not why) and len(found.table) == len(tried)
    if found.chosen:
        note = predict.read_metadata(tmp_path / "int8.onnx")["quantization"]
        assert (
            found.chosen.recipe.name in note
            and "calibrated on 2 images, mean error taken off, tried on a CPU with VNNI" in note
        )


@pytest.mark.parametrize(
    ("x86", "vnni", "first", "last"),
    [
        (True, True, Recipe(), ALL),
        (True, False, Recipe(narrow=True), Recipe(signed=True)),
        (False, False, Recipe(signed=True), replace(ALL, signed=True)),
    ],
)
def test_the_processor_decides_on_the_types(uneven, tmp_path, monkeypatch, x86, vnni, first, last):
    monkeypatch.setattr(int8_search, "_has_vnni", lambda: vnni)
    monkeypatch.setattr(int8_search, "_is_x86", lambda: x86)
    scripted(monkeypatch, lambda recipe: (1, 30, 9))
    found = int8_search.search(uneven, tmp_path / "int8.onnx", images(2, 0), images(4, 1))
    assert (found.tried[0].recipe, found.tried[-1].recipe) == (first, last)


def test_an_uneven_layer_has_the_greatest_error_and_may_stay_fp32(uneven, tmp_path):
    calibrated, photos = quantize.calibrate(uneven, images(8, 0)), images(4, 1)
    errors = int8_search.layer_errors(calibrated, quantize.quantized(calibrated, FIRST), photos)
    heavy = [node.name for node in calibrated.graph.graph.node if node.op_type == "Conv"]
    assert sorted(errors) == sorted(heavy) and next(iter(errors)) == heavy[1]
    assert all(25 < error < 60 for error in errors.values())
    kept = quantize.quantized(calibrated, replace(FIRST, fp32=(heavy[1],)))
    others = int8_search.layer_errors(calibrated, kept, photos)
    assert others == {name: error for name, error in errors.items() if name != heavy[1]}
    weights = {node.name: node.input[1] for node in kept.graph.node if node.op_type == "Conv"}
    assert weights[heavy[1]].endswith("2.weight") and not weights[heavy[2]].endswith("4.weight")
    found = int8_search.search(uneven, tmp_path / "int8.onnx", images(8, 0), photos, Gate(speedup=0))
    assert found.chosen and next(iter(found.layers)) == "2"


def test_logits_are_shifted_by_what_they_lack_in_the_mean(uneven, tmp_path):
    given, gate = images(8, 0), Gate(speedup=0)
    plain = quantize.quantize(uneven, tmp_path / "plain.onnx", given)
    int8_search.search(uneven, tmp_path / "int8.onnx", given, images(4, 1), gate)
    exact, before, after = (export.run_graph(path, given) for path in (uneven, plain, tmp_path / "int8.onnx"))
    assert np.abs((before - exact).mean(0)).max() > 1e-5
    np.testing.assert_allclose((after - exact).mean(0), 0, atol=1e-6)


def test_ranges_are_those_of_the_values_seen(uneven):
    given = images(8, 0)
    given[0, 0, 0, 0] = 1
    calibrated = quantize.calibrate(uneven, given)
    low, low_percentile, high_percentile, high = calibrated.ranges["images"]
    assert (low, high) == (0, given.max()) and low <= low_percentile < high_percentile <= high
    logits = export.run_graph(uneven, given)
    np.testing.assert_allclose(
        calibrated.ranges["logits"][[0, 3]], [min(0, logits.min()), max(0, logits.max())], rtol=1e-4
    )


def test_dynamic_quantization_runs_or_says_why_not(uneven, tmp_path, monkeypatch):
    calibrated = quantize.calibrate(uneven, images(2, 0))
    onnx.save(quantize.dynamic(calibrated), tmp_path / "dynamic.onnx")
    given = images(4, 1)
    exact, rounded = (export.run_graph(path, given) for path in (uneven, tmp_path / "dynamic.onnx"))
    assert 0 < np.abs(exact - rounded).max() < np.abs(exact).max()
    monkeypatch.setattr(quantize.ort, "quantize_dynamic", lambda *rest, **how: 1 / 0)
    found = int8_search.search(uneven, tmp_path / "int8.onnx", given, given, Gate(0, 0, -100))
    assert found.chosen and found.dynamic is None and "ZeroDivisionError" in found.no_dynamic


@pytest.mark.parametrize(
    ("sizes", "wanted", "counts"),
    [
        ((20, 20, 20), 9, (3, 3, 3)),
        ((2, 20, 20), 12, (2, 5, 5)),
        ((2, 3, 40), 100, (2, 3, 40)),
        ((5, 5, 5), 2, (1, 1, 0)),
    ],
)
def test_calibration_photos_are_balanced_by_class(monkeypatch, sizes, wanted, counts):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    photos = SimpleNamespace(labels=torch.tensor(labels), pick=lambda places: places)
    monkeypatch.setattr(model_files.dataset, "load_photos", lambda *rest: photos)
    places = model_files.calibration_photos(SimpleNamespace(config=SimpleNamespace(calibration_images=wanted)))
    found = Counter(labels[places].tolist())
    assert tuple(found[label] for label in range(len(sizes))) == counts and len(set(places)) == len(places)


def test_where_no_recipe_is_quick_enough_fp32_is_delivered(make_run, monkeypatch):
    latency = export.latency_ms
    monkeypatch.setattr(export, "latency_ms", lambda runners, **how: latency(runners, repeats=3))
    run = make_run(epochs=1, cam_every=0, int8_speedup=1e6)
    train.fit(run)
    exported = verify.export_run(run)
    assert exported.record.shipped == "fp32" and "int8_speedup" in exported.record.int8_why
    assert exported.summary.startswith("no INT8 file: no recipe was 1e+06 times as fast as fp32")
    assert not (run.path / "model.int8.onnx").exists() and run.is_complete("export")
    table = (run.path / int8_search.TRIED_FILE).read_text().splitlines()
    assert len(table) == 1 + len(exported.search.tried) >= 3 and "chosen" not in "".join(table)
    backends = exported.latency.groupby(["photos", "threads"])["backend"].agg(list)
    assert all(names == ["torch", "fp32", "dynamic"] for names in backends) and exported.not_measured == ""


def test_the_worst_layers_are_drawn_the_worst_on_top():
    ax = export_figures.layer_bars({f"layer{place}": 50.0 - place for place in range(30)})
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert len(ax.patches) == 20 and labels[0] == "layer29"
    assert ax.yaxis_inverted()
