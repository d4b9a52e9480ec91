"""model.md: every number in it stands in a file of the run; its code runs."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fruitlib.core import config, files
from fruitlib.core.errors import InputError
from fruitlib.data import splits
from fruitlib.deploy import export, int8_verdict, model_card, predict, test_scores, test_set, verify
from fruitlib.evaluation import answering
from fruitlib.runs import run as runs
from fruitlib.runs.run import Run
from fruitlib.training import scores, train

MODULES = [os.environ.get("FRUITLIB_NODE_MODULES", ""), files.home() / "executed" / ".cache" / "node_modules"]
NODE_MODULES = next((Path(path) for path in MODULES if path and (Path(path) / "onnxruntime-node").is_dir()), None)


@pytest.fixture(scope="module")
def run(tmp_path_factory, shapes) -> Run:
    """A run that was exported, and nothing else."""
    folder = tmp_path_factory.mktemp("card")
    settings = {"data": str(shapes), "val_per_class": 4, "test_per_class": 4, "image_size": 32, "epochs": 3}
    settings |= {"batch_size": 8, "cam_every": 0, "precision": "fp32", "probe": "none", "int8_speedup": 0}
    cfg = config.make(settings)
    splits.prepare_manifest(cfg, folder)
    made = runs.create_run(folder / "run", cfg)
    train.fit(made)
    with pytest.MonkeyPatch.context() as patch:
        latency = export.latency_ms
        patch.setattr(export, "latency_ms", lambda runners, **how: latency(runners, **how | {"repeats": 5}))
        verify.export_run(made)
    return made


@pytest.fixture
def copied(run, tmp_path) -> Run:
    """A copy of it, to change."""
    shutil.copytree(run.sweep_dir, tmp_path / "sweep")
    return Run(tmp_path / "sweep" / run.name)


def section(card: str, title: str) -> str:
    return card.split(f"## {title}\n")[1].split("\n## ")[0]


def code(card: str, language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", card, re.DOTALL)[1]


def test_an_exported_run_has_a_card_without_the_numbers_that_it_lacks(run):
    card = model_card.write(run).read_text("utf-8")
    assert card.startswith("# Model card: run\n") and "- Classes (3): bar, cross, disc" in card
    assert "trained from fresh ones" in card and "| all photos | 24 | 12 | 12 |" in card
    assert section(card, "How good it is").count("\n- ") == 1 and "accuracy:" not in card.lower()
    assert "06 was not executed" in card and "Fewer than 10 validation photos each" in card
    for name, digest in re.findall(r"`(model\S+onnx)` \|[^`]*`(\w{64})`", card):
        assert digest == hashlib.sha256((run.path / name).read_bytes()).hexdigest()
    assert f"{run.read_json('export.json')['latency_ms_int8']:.2f} ms" in section(card, "Files")
    lines = [code(card, language).strip().splitlines() for language in ("python", "js")]
    assert max(len([line for line in one if line and "import " not in line]) for one in lines) <= 10


def test_numbers_stand_there_once_03_and_06_were_executed(copied):
    scores.of_run(copied)
    answering.evaluate(copied).write(copied)
    result = test_scores.evaluate_test(copied, test_set.predict_test_photos(copied))
    result.record.write(copied)
    card = model_card.write(copied).read_text("utf-8")
    metrics, test = copied.read_json("metrics.json"), copied.read_json("test.json")["numbers"]
    numbers = section(card, "How good it is")
    for accuracy, low, high, n in (
        (metrics["accuracy"], metrics["accuracy_low"], metrics["accuracy_high"], metrics["n"]),
        (test["test_accuracy"], test["test_low"], test["test_high"], test["test_n"]),
    ):
        assert f"{accuracy:.3f} (95 % interval {low:.2f}–{high:.2f}, n = {n})" in numbers
    assert "From validation predictions: 12 photos cannot show" in card and "06 was not executed" not in card
    files.write_json(copied.path / "stages" / "test.json", {"identity": "that of other files"})
    card = model_card.write(copied).read_text("utf-8")
    assert "Test accuracy" not in card and "06 was not executed" in card


def test_a_combination_of_folds_has_its_out_of_fold_accuracy(copied, monkeypatch):
    row = {"combination": "a", "n": 90, "accuracy": 0.8, "accuracy_low": 0.6, "accuracy_high": 0.9, "groups": 30}
    row |= {"correlation": 0.5, "same_low": 0.71, "same_high": 0.87}
    files.write_csv(copied.sweep_dir / "results_oof.csv", pd.DataFrame([row | {"combination": "b", "n": 7}, row]))
    pooled = (pd.DataFrame({"combination": ["a"]}), True)
    monkeypatch.setattr(model_card.crossval, "out_of_sample", lambda run: pooled)
    text = section(model_card.write(copied).read_text("utf-8"), "How good it is")
    assert "Out-of-fold accuracy: 0.800 on new groups (95 % interval 0.60–0.90; 30 groups, 90 photos;" in text
    assert "Validation accuracy" not in text


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ({"answer_above": "none"}, "No probability is proven above which at most 5 % of its answers are wrong"),
        ({"answer_above": "0.871234"}, "may answer alone where its probability is above 0.871: at most 5 %"),
        ({"class_shares": '{"bar": 0.5, "cross": 0.3, "disc": 0.2}'}, "bar 50%, cross 30%, disc 20%. The temperature"),
        ({"answer_above": None}, None),
    ],
    ids=["nothing proven", "threshold", "shares", "unknown"],
)
def test_when_it_may_answer_alone_is_what_the_file_says(copied, monkeypatch, words, shown):
    metadata = predict.read_metadata(copied.path / "model.int8.onnx") | words
    metadata = {name: text for name, text in metadata.items() if text is not None}
    monkeypatch.setattr(model_card.predict, "read_metadata", lambda path: metadata)
    card = model_card.write(copied).read_text("utf-8")
    assert shown in section(card, "When it may answer alone") if shown else "## When it may answer" not in card


@pytest.mark.parametrize(
    ("numbers", "shown"),
    [
        ({"int8_state": int8_verdict.NOT_MADE, "int8_why": "a <b>"}, "There is no INT8 file: a \\<b\\>"),
        ({"int8_state": int8_verdict.BROKEN, "int8_n": 9, "int8_same": 2, "int8_costs_at_most": 0.5}, "Use fp32."),
        ({"int8_state": int8_verdict.PROVEN, "int8_n": 90, "int8_same": 89, "int8_costs_at_most": 0.021}, "2.1 points"),
        ({"int8_state": int8_verdict.UNPROVEN, "int8_n": 0}, "INT8: not broken; cost unproven."),
    ],
)
def test_the_verdict_on_int8_is_in_it(numbers, shown):
    assert shown in model_card.int8_text(numbers)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("green apple", "green apple"),
        ("a\n# b", "a \\# b"),
        ("<script>|[x](y)", "\\<script\\>\\|\\[x\\](y)"),
        ("_a_b_ c_d", "\\_a_b\\_ c_d"),
        ("`*", "\\`\\*"),
    ],
)
def test_names_have_no_meaning_in_markdown(text, shown):
    assert model_card.escaped(text) == shown


def test_a_run_that_was_not_exported_has_no_card_and_a_new_training_removes_it(copied):
    model_card.write(copied)
    runs.clear_run(copied)
    assert not (copied.path / "model.md").exists()
    with pytest.raises(InputError, match="execute 05_quantize first"):
        model_card.write(copied)


def test_a_file_of_an_earlier_version_has_to_be_exported_again(copied, monkeypatch):
    monkeypatch.setattr(model_card.predict, "read_metadata", lambda path: {"class_names": "[]"})
    with pytest.raises(InputError, match=r"model.int8.onnx: of an earlier version .* execute 05_quantize again"):
        model_card.write(copied)


# ---- its code


@pytest.fixture(scope="module")
def place(run, tmp_path_factory) -> tuple[Path, str, np.ndarray]:
    """A folder with the file and a photo that is stored on its side, the card, and the probabilities expected."""
    folder = tmp_path_factory.mktemp("use")
    card = model_card.write(run).read_text("utf-8")
    model = run.path / re.search(r"The file to use is `(\S+)`", card)[1]
    shutil.copy(model, folder)
    stored, exif = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)), Image.Exif()
    exif[0x0112] = 6
    stored.save(folder / "photo.jpg", exif=exif)
    upright = np.asarray(Image.open(folder / "photo.jpg").transpose(Image.Transpose.ROTATE_270))
    probabilities = predict.outputs(predict.open_session(model), upright[None], ("probabilities",))[0][0]
    return folder, card, probabilities


def check_answer(command: list, place: tuple, names: list[str]) -> None:
    """That a program prints the class and its probability."""
    folder, _, expected = place
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    name, probability = done.stdout.split()
    assert name == names[int(expected.argmax())] and float(probability) == pytest.approx(expected.max(), abs=1e-3)


def test_the_python_of_the_card_runs(run, place):
    check_answer([sys.executable, "-c", code(place[1], "python")], place, run.class_names)


@pytest.mark.skipif(
    shutil.which("node") is None or NODE_MODULES is None,
    reason="no Node.js, or no onnxruntime-node and sharp: npm install them, and name node_modules in "
    "FRUITLIB_NODE_MODULES",
)
def test_the_javascript_of_the_card_runs_in_node(run, place):
    folder, card, _ = place
    (folder / "node_modules").symlink_to(NODE_MODULES)
    (folder / "use.mjs").write_text(code(card, "js"))
    check_answer(["node", "use.mjs"], place, run.class_names)


def test_the_classes_in_its_code_are_those_of_the_file(run, place):
    listed = re.findall(r"classes(?:\[\])? = [\[{](.*)[\]}];", place[1])
    assert [json.loads(f"[{one}]") for one in listed] == 3 * [run.class_names]
