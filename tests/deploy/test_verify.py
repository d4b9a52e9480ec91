"""A run exported, checked and measured, and its test predictions scored: every key of `export.json` and `test.json`."""

import json

import numpy as np
import onnx
import pytest

from fruitlib.core import source_code
from fruitlib.core.errors import InputError
from fruitlib.deploy import export, graphs, model_files, predict, quantize, test_scores, test_set, verify
from fruitlib.evaluation import metrics
from fruitlib.runs.run import Run
from fruitlib.training import train

EXPORT_KEYS = ["size_mb_fp32", "latency_ms_torch", "latency_ms_fp32", "fp32_agreement", "mflops"]
EXPORT_KEYS += ["int8_state", "pixels_off"]
INT8_KEYS = ["size_mb_int8", "latency_ms_int8", "int8_agreement"]
INT8_KEYS += [f"int8_{name}" for name in ("photos", "n", "same", "lost", "won", "costs_at_most")]
TEST_KEYS = ["test_accuracy", "test_macro_f1", "test_n", "test_low", "test_high", "test_groups"]
TEST_KEYS += ["test_same_low", "test_same_high", "test_correct_torch", "test_correct_fp32", "test_correct_int8"]
TEST_KEYS += ["test_macro_f1_low", "test_macro_f1_high"]


@pytest.fixture
def run(make_run) -> Run:
    run = make_run(epochs=2, cam_every=0)
    train.fit(run)
    return run


@pytest.fixture
def exported(run, monkeypatch) -> verify.Export:
    latency = export.latency_ms
    monkeypatch.setattr(export, "latency_ms", lambda runners, **how: latency(runners, repeats=5))
    return verify.export_run(run)


def test_the_record_says_what_the_files_are(run, exported):
    record = exported.record
    for backend in ("fp32", "int8"):
        path = run.path / f"model.{backend}.onnx"
        assert exported.sizes_mb[backend] == path.stat().st_size / 1e6
        assert json.loads(predict.read_metadata(path)["preprocess"])["image_size"] == 32
    assert record.fp32_agreement == 1 and record.int8_same == round(record.int8_agreement * record.int8_n)
    assert 0 < record.latency_ms_fp32 <= exported.median_ms["fp32"] and record.mflops > 1
    val = run.predictions("val")
    assert exported.shares["torch"].correct == (val["label"] == val["predicted"]).sum()
    assert exported.n == len(val) == record.int8_n and exported.on_validation
    assert exported.shares["int8"].correct - exported.shares["torch"].correct == record.int8_won - record.int8_lost
    assert exported.verdict.summary in exported.summary and record.shipped == "int8"


def test_the_export_is_on_disk_key_by_key_and_complete(run, exported):
    content = json.loads((run.path / "export.json").read_text())
    assert list(content) == EXPORT_KEYS + INT8_KEYS
    assert verify.load_export_record(run) == exported.record == verify.ExportRecord(**content)
    assert run.is_complete("export")


def test_a_file_that_computes_something_else_completes_nothing(run, monkeypatch):
    def wrong(model, path, *rest):
        export_onnx(model, path, *rest)
        graph = onnx.load(path)
        bias = next(part for part in graph.graph.initializer if part.name.endswith("bias"))
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1, bias.name))
        onnx.save(graph, path)
        return path

    export_onnx = export.export_onnx
    monkeypatch.setattr(export, "export_onnx", wrong)
    with pytest.raises(export.ExportError):
        verify.export_run(run)
    assert not run.is_complete("export") and not (run.path / "export.json").exists()


def failing(*args, **kwargs):
    raise NotImplementedError("no kernel for\nthis operator")


def test_without_an_int8_file_fp32_is_delivered_and_tested_and_it_is_said(run, monkeypatch):
    (run.path / "model.int8.onnx").write_text("of an earlier network")
    monkeypatch.setattr(quantize, "QDQQuantizer", failing)
    exported = verify.export_run(run)
    why = "ONNX Runtime does not quantize this network (NotImplementedError: no kernel for); use fp32"
    assert exported.agreement_summary == f"no INT8 file: {why}" and exported.summary.startswith(f"no INT8 file: {why};")
    content = json.loads((run.path / "export.json").read_text())
    assert list(content) == [*EXPORT_KEYS, "int8_why"] and content["int8_state"] == "not made"
    assert exported.record.shipped == "fp32" and set(exported.sizes_mb) == {"fp32"}
    assert not (run.path / "model.int8.onnx").exists() and not (run.path / "int8_photos.csv").exists()
    assert run.is_complete("export") and verify.load_export_record(run) == exported.record
    predictions = test_set.predict_test_photos(run)
    assert set(predictions["backend"]) == {"torch", "fp32"} and run.is_complete("test")
    result = test_scores.evaluate_test(run, predictions)
    assert result.record.shipped == "fp32" and "test_correct_int8" not in result.record.numbers
    assert set(test_scores.by_backend(run, predictions)) == {"torch", "fp32"} and "int8" not in result.summary
    (run.path / "model.fp32.onnx").unlink()
    assert not run.is_complete("export")


def test_a_network_that_the_exporter_does_not_take_is_one_line(run, monkeypatch):
    def refused(*args, **kwargs):
        try:
            failing()
        except NotImplementedError as problem:
            raise RuntimeError("Failed to export.\nA page of advice.") from problem

    monkeypatch.setattr(graphs, "exported", refused)
    monkeypatch.setattr(graphs, "_kept", lambda *rest: None)
    with pytest.raises(export.ExportError) as caught:
        verify.export_run(run)
    line = "end2end: no ONNX file, torch's exporter fails (NotImplementedError: no kernel for); best.pt works without"
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)
    assert isinstance(caught.value, InputError) and not run.is_complete("export")


def test_int8_that_changes_labels_is_not_shipped(run, monkeypatch):
    latency = export.latency_ms
    monkeypatch.setattr(export, "latency_ms", lambda runners, **how: latency(runners, repeats=2))
    run_onnx, signs = predict.run_onnx, {"model.fp32.onnx": 1, "model.int8.onnx": -1}
    monkeypatch.setattr(predict, "run_onnx", lambda path, *rest: signs[path.name] * run_onnx(path, *rest))
    exported = verify.export_run(run)
    assert exported.record.int8_state == "broken" and exported.record.shipped == "fp32"
    assert (
        exported.summary.startswith("INT8 is broken: it predicts torch's label on") and "use fp32" in exported.summary
    )


def test_without_validation_photos_others_than_those_of_calibration_are_tried(make_run):
    run = make_run(folds=2, fold=0, calibration_images=10)
    photos, on_validation = verify.photos_to_try(run)
    assert not on_validation and len(photos) == len(run.rows("train")) - 10
    assert not set(photos.paths) & set(model_files.calibration_photos(run).paths)
    every = make_run("every", folds=2, fold=0, calibration_images=1000)
    assert len(verify.photos_to_try(every)[0]) == len(every.rows("train"))


def test_no_export_is_refused_with_the_notebook_to_execute(make_run):
    with pytest.raises(InputError, match="05_quantize"):
        verify.load_export_record(make_run())


@pytest.mark.parametrize("keys", [EXPORT_KEYS[1:], [*EXPORT_KEYS, "unknown"]])
def test_an_export_of_another_version_is_refused_in_one_line(make_run, keys):
    run = make_run()
    (run.path / "export.json").write_text(json.dumps(dict.fromkeys(keys, 1)))
    with pytest.raises(InputError, match=r"export\.json: written by another version.*execute 05_quantize again"):
        verify.load_export_record(run)


def test_test_json_holds_the_shipped_files_numbers_and_what_each_backend_has_right(run, exported):
    predictions = test_set.predict_test_photos(run)
    result = test_scores.evaluate_test(run, predictions)
    result.record.write(run)
    content = json.loads((run.path / "test.json").read_text())
    assert list(content) == ["shipped", "numbers"] and list(content["numbers"]) == TEST_KEYS
    assert test_scores.TestRecord(shipped=content["shipped"], **content["numbers"]) == result.record
    own = predictions[predictions["backend"] == content["shipped"]]
    right = (own["label"] == own["predicted"]).sum()
    assert content["numbers"]["test_accuracy"] == right / 12 and content["numbers"]["test_n"] == 12
    assert (content["numbers"]["test_low"], content["numbers"]["test_high"]) == metrics.wilson(right, 12)
    assert content["numbers"][f"test_correct_{content['shipped']}"] == right == np.trace(result.matrix)


def test_validation_and_test_accuracy_stand_beside_each_other(run, exported):
    result = test_scores.evaluate_test(run, test_set.predict_test_photos(run))
    rows = test_scores.beside_validation(run, result)
    assert [name.split(",")[0] for name in rows] == ["validation", "test"]
    val = run.predictions("val")
    assert next(iter(rows.values())).value == (val["label"] == val["predicted"]).mean()
    torch = test_scores.by_backend(run, run.predictions("test"))["torch"]
    assert torch.correct == result.record.test_correct_torch and torch.n == 12
    (run.path / "predictions_val.csv").unlink()
    assert len(test_scores.beside_validation(run, result)) == 1  # no photos validated it


def test_scoring_differently_opens_no_test_photo_again(run, exported):
    test_set.predict_test_photos(run)
    assert len(run.test_openings()) == 1 and run.is_complete("test")
    closure = source_code.import_closure(["fruitlib.deploy.test_set"])
    assert "fruitlib.deploy.test_scores" not in closure and "fruitlib.deploy.verify" not in closure
