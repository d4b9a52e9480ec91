"""What goes out after a cross-validation: made of what was chosen, from all photos it may learn from, and no other."""

import contextlib
import io
import json
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from support import link_notebooks

from fruitlib.core import config
from fruitlib.core.errors import InputError
from fruitlib.data import dataset, splits
from fruitlib.deploy import export, quantize
from fruitlib.evaluation import crossval, metrics
from fruitlib.reporting import site
from fruitlib.runs.run import Run, clear_run, create_run, open_run
from fruitlib.sweep import final_model, params, worker
from fruitlib.sweep.driver import run_sweep
from fruitlib.training import evaluate, models, train

SETTINGS = {
    "folds": 2,
    "test_per_class": 4,
    "image_size": 32,
    "epochs": 2,
    "batch_size": 8,
    "cam_every": 0,
    "lr": 0.003,
}
SETTINGS |= {"precision": "fp32", "memory_format": "channels_last", "title": "Two folds"}
SETTINGS |= {"int8_speedup": 0}  # whether INT8 is delivered depends on no stopwatch


def plan_of(folder: Path, **settings) -> params.Sweep:
    (folder / "story.yaml").write_text(yaml.safe_dump({**SETTINGS, **settings}))
    return params.read_params(folder / "story.yaml")


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    """The folder of a sweep of two folds, both really trained, and the data setting."""
    folder = tmp_path_factory.mktemp("sweep")
    plan = plan_of(folder, data=str(shapes))
    splits.prepare_manifest(plan.config, folder)
    for name, cfg in plan.runs.items():
        train.fit(create_run(folder / name, cfg))
    return folder, str(shapes)


def folds_of(trained, tmp_path, ship: str, **settings) -> tuple[params.Sweep, list[Run], Run]:
    """A plan that ships so, its complete folds, and the run that is to be shipped."""
    folder, data = trained
    plan = plan_of(tmp_path, data=data, ship=ship, **settings)
    folds = [Run(folder / name, cfg) for name, cfg in plan.runs.items()]
    return plan, folds, final_model.plan_final(plan, folds)


# ---- refit


def test_a_refit_learns_from_all_photos_of_the_folds_and_from_none_of_the_test(trained, tmp_path):
    _, folds, run = folds_of(trained, tmp_path, "refit")
    train_paths, pool = set(run.rows("train")["path"]), {path for fold in folds for path in fold.rows("val")["path"]}
    assert train_paths == pool and len(train_paths) == 36 and run.rows("val").empty
    assert len(run.rows("test")) == 12 and not train_paths & set(run.rows("test")["path"])
    run = create_run(run.path, run.config)
    history = train.fit(run)
    record = run.record("train")
    assert record["photos_per_epoch"] == 36 and "val_loss" not in history
    assert record["kept_epoch"] == record["epochs"] == 2  # nothing was chosen
    assert record["initial_weights"] == folds[0].record("train")["initial_weights"]
    assert run.predictions("val").empty and run.is_complete("train")


def test_a_refit_has_the_settings_of_the_folds(trained, tmp_path):
    plan, folds, run = folds_of(trained, tmp_path, "refit")
    ours, theirs = run.config.model_dump(), folds[1].config.model_dump()
    assert {name for name in ours if ours[name] != theirs[name]} == {"fold"}
    assert (ours["fold"], run.name, final_model.stages(run)) == (0, "ship=refit", ("02_train", "05_quantize"))
    assert "all 36 photos of the folds, for 2 epochs; the last is kept" in final_model.origin_summary(plan, run, folds)
    _, folds, run = folds_of(trained, tmp_path, "refit", model="resnet18", head="knn")
    made = final_model.origin_summary(plan, run, folds)
    assert made == "its head fitted once more, on all 36 photos of the folds; no photo is left to validate on"


@pytest.mark.parametrize(("best", "epochs"), [([3, 9], 6), ([4, 9], 7), ([1, 1], 1)])
def test_after_early_stopping_a_refit_takes_the_median_of_the_folds_best_epochs(shapes, tmp_path, best, epochs):
    plan = plan_of(tmp_path, data=str(shapes), epochs=50, patience=5, warmup_epochs=6)
    splits.prepare_manifest(plan.config, tmp_path)
    folds = [Run(tmp_path / name, cfg) for name, cfg in plan.runs.items()]
    for fold, epoch in zip(folds, best, strict=True):
        fold.complete("train", fold.identity("train"), kept_epoch=epoch, epochs=epoch + 5)
    found = final_model.plan_final(plan, folds)
    assert (found.config.epochs, found.config.patience) == (epochs, 0)
    assert found.config.warmup_epochs == min(6, epochs - 1)
    output = final_model.origin_summary(plan, found, folds)
    assert f"for {epochs} epoch" in output and "the median of the epochs that the folds kept" in output
    assert ("the warm-up is cut" in output) == (epochs <= 6)


def test_a_refit_by_a_schedule_that_watches_validation_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(InputError, match=r"story.yaml: ship: refit .* plateau .* set ship: ensemble"):
        final_model.check_final(plan_of(tmp_path, scheduler="plateau"))
    with pytest.raises(InputError, match="plateau"):
        final_model.check_final(plan_of(tmp_path, grid={"scheduler": ["cosine", "plateau"]}))
    final_model.check_final(plan_of(tmp_path, scheduler="plateau", ship="ensemble"))
    final_model.check_final(plan_of(tmp_path, scheduler="plateau", folds=0))


# ---- ensemble


@pytest.fixture(scope="module")
def ensemble(trained, tmp_path_factory):
    _, folds, run = folds_of(trained, tmp_path_factory.mktemp("ensemble"), "ensemble")
    return final_model.assemble(run, folds), folds


def test_an_ensembles_logits_are_the_log_of_the_members_mean_softmax(ensemble):
    run, folds = ensemble
    photos = dataset.load_photos(run, "test")
    members = [models.restore(fold.path / "best.pt")[0] for fold in folds]
    alone = [evaluate.predict(member, photos).numpy().astype(float) for member in members]
    assert np.abs(alone[0] - alone[1]).max() > 0.01  # two models, not one twice
    logits = evaluate.predict(models.restore(run.path / "best.pt")[0], photos).numpy()
    np.testing.assert_allclose(logits, np.log(np.mean([metrics.softmax(one) for one in alone], axis=0)), atol=1e-5)


def test_an_ensembles_onnx_files_answer_as_it_does(ensemble, tmp_path):
    run, _ = ensemble
    model, _ = models.restore(run.path / "best.pt")
    photos = dataset.to_array(dataset.load_photos(run, "train").images)
    fp32 = export.export_onnx(model, tmp_path / "fp32.onnx", run.config.image_size, run.class_names)
    int8 = quantize.quantize(fp32, tmp_path / "int8.onnx", photos)
    logits = export.run_torch(model, photos)
    parity = [export.parity(logits, export.run_graph(path, photos)) for path in (fp32, int8)]
    export.check_parity(parity[0])
    assert parity[1]["agreement"] >= run.config.int8_agreement, parity


def test_an_ensemble_may_learn_no_more_and_is_judged_by_no_validation(ensemble):
    run, folds = ensemble
    assert run.name == "ship=ensemble" and [member.name for member in run.members] == [fold.name for fold in folds]
    assert run.is_complete("train") and final_model.stages(run) == ("05_quantize",)
    assert open_run(run.path).rows("val").empty and len(open_run(run.path).rows("train")) == 36
    assert run.history().empty and run.predictions("val").empty


def test_an_ensemble_is_made_anew_when_a_member_was_trained_anew_and_not_otherwise(trained, tmp_path):
    plan, folds, run = folds_of(trained, tmp_path, "ensemble")
    final_model.assemble(run, folds)
    written = (run.path / "best.pt").stat().st_mtime_ns
    assert final_model.assemble(final_model.plan_final(plan, folds), folds).is_complete("train")
    assert (run.path / "best.pt").stat().st_mtime_ns == written
    time.sleep(1)  # times of completion are kept in seconds
    clear_run(folds[1])
    train.fit(create_run(folds[1].path, folds[1].config))
    before = final_model.plan_final(plan, folds)
    assert not before.is_complete("train") and before.record("train")
    assert final_model.assemble(before, folds).is_complete("train")
    assert (run.path / "best.pt").stat().st_mtime_ns > written


def test_a_member_that_cannot_be_read_is_named(trained, tmp_path):
    folder, _ = trained
    _, folds, _ = folds_of(trained, tmp_path, "ensemble")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "best.pt").write_text("not a checkpoint")
    broken = Run(tmp_path / "broken", folds[0].config)
    with pytest.raises(InputError, match=r"broken/best\.pt: not a readable checkpoint"):
        final_model.assemble(Run(folder / "another", config.make(folds[0].config.model_dump())), [folds[0], broken])


# ---- which runs get pages


def test_with_pages_best_all_folds_of_the_best_combination_get_them_and_one_of_the_next_two(tmp_path):
    plan = plan_of(tmp_path, pages="best", grid={"lr": [0.1, 0.2, 0.3, 0.4]})
    ranking = ["lr=0.3", "lr=0.1", "lr=0.4", "lr=0.2"]
    assert sorted(plan.combinations()) == sorted(ranking)
    found = final_model.with_pages(plan, ranking)
    assert found == ["fold=1,lr=0.3", "fold=2,lr=0.3", "fold=1,lr=0.1", "fold=1,lr=0.4"]
    assert final_model.with_pages(replace(plan, pages="chosen"), ranking) == ["fold=1,lr=0.3"]
    assert final_model.with_pages(replace(plan, pages="every"), ranking) == []
    assert final_model.with_pages(plan, []) == []  # nothing is complete


# ---- the sentences about it


def test_without_folds_or_with_ship_fold_a_run_of_the_plan_is_shipped_as_it_is(trained, tmp_path):
    plan, folds, run = folds_of(trained, tmp_path, "fold")
    assert run is folds[0] and final_model.stages(run) == final_model.RUN_STAGES
    assert (
        final_model.origin_summary(plan, run, folds)
        == "the first fold's model as it is, which learnt from 18 of 36 photos"
    )
    plain = plan_of(tmp_path, folds=0)
    assert (
        final_model.plan_final(plain, folds[1:]) is folds[1]
        and final_model.origin_summary(plain, folds[1], folds[1:]) == ""
    )
    assert final_model.expected(plain, "run", "run", pd.DataFrame()) == {}


def test_what_is_expected_of_it_is_its_combinations_out_of_fold_numbers(trained, tmp_path):
    folder, _ = trained
    plan, folds, run = folds_of(trained, tmp_path, "refit")
    table, _ = crossval.pool_folds({fold.name: fold for fold in folds}, plan.combinations(), folder)
    found = final_model.expected(plan, run.name, "run", crossval.pooled_results(table, run.class_names, {}))
    right = (table["label"] == table["predicted"]).mean()
    assert (found["shipped"], found["oof_n"], found["oof_accuracy"]) == ("refit", 36, pytest.approx(right))
    assert found["oof_low"] < right < found["oof_high"] and found["agreement_on"] == "training photos"
    assert "accuracy" not in found  # nothing measured on itself
    assert not [name for name in found if "probe" in name]
    beside = crossval.pooled_results(table.assign(probe=table["label"]), run.class_names, {})
    found = final_model.expected(plan, run.name, "run", beside)
    assert found["oof_probe_accuracy"] == 1 and found["oof_over_probe"] == pytest.approx(right - 1)


# ---- a whole sweep, three times: its folds are trained once


@pytest.fixture(scope="module")
def swept(tmp_path_factory, shapes):
    """What the same two folds end in by fold, refit, refit again, and ensemble: (house, what was printed, times).

    In this process, which has imported already what each of four commands would have to. The first sweep makes pages
    of one fold. 07 and 08 look back on folds in the second one; else they are empty: they would show the same again.
    """
    house, output, times = tmp_path_factory.mktemp("house"), [], []
    for ship, pages in (("fold", "chosen"), ("refit", "every"), ("refit", "every"), ("ensemble", "every")):
        link_notebooks(house, empty=() if ship == "refit" else worker.COMPARISON_STAGES)
        plan_of(house, data=str(shapes), ship=ship, pages=pages)
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
            patch.setenv("FRUITLIB_HOME", str(house))
            assert run_sweep(house / "story.yaml") == 0, printed.getvalue()
        output.append(printed.getvalue())
        (house / f"{ship}.csv").write_bytes((house / "executed/story/results.csv").read_bytes())
        (house / f"{ship}.html").write_bytes((house / "executed/story/index.html").read_bytes())
        files = [path for path in (house / "executed/story").rglob("*") if path.suffix in {".ipynb", ".pt", ".onnx"}]
        files = [
            path for path in files if path.stem not in worker.COMPARISON_STAGES
        ]  # executed again for each shipped model
        times.append({path: path.stat().st_mtime_ns for path in files})
    return house, output, times


def test_what_is_complete_is_not_repeated(swept):
    _, output, times = swept
    assert times[1] == times[2] and output[1].split("\n\n")[1:] == output[2].split("\n\n")[1:]
    assert times[0].items() <= times[1].items() <= times[3].items()


def test_pages_of_the_chosen_run_alone_leave_the_others_their_numbers(swept):
    house, output, times = swept
    executed = {(path.parent.name, path.stem) for path in times[0] if path.suffix == ".ipynb"}
    of_folds = {("fold=1", stage) for stage in (*final_model.RUN_STAGES, "06_test_accuracy")} | {("fold=2", "02_train")}
    assert {found for found in executed if found[0].startswith("fold=")} == of_folds
    first, second = (pd.read_csv(house / f"{ship}.csv").set_index("run") for ship in ("fold", "refit"))
    numbers = ["accuracy", "accuracy_low", "macro_f1", "val_loss", "temperature", "probe_accuracy", "over_probe_p"]
    folds = ["fold=1", "fold=2"]
    pd.testing.assert_frame_equal(first.loc[folds, numbers], second.loc[folds, numbers])  # with 03 and without
    assert first["size_mb_int8"].notna().tolist() == [True, False] and second["size_mb_int8"].notna().all()
    assert (
        "fold=1: 05_quantize and 03_metrics and 04_gradcam" in output[0]
        and "is missing" not in (house / "fold.html").read_text()
    )


def test_the_shipped_run_has_its_notebooks_and_is_the_only_one_tested(swept):
    house, _, times = swept
    notebooks = [{p.stem for p in found if p.parent.name == "ship=refit" and p.suffix == ".ipynb"} for found in times]
    assert notebooks[1] == {"02_train", "05_quantize", "06_test_accuracy"}
    made = {path.relative_to(house / "executed/story") for path in times[3].keys() - times[1].keys()}
    names = ("05_quantize.ipynb", "06_test_accuracy.ipynb", "best.pt", "model.fp32.onnx", "model.int8.onnx")
    assert made == {Path("ship=ensemble", name) for name in names}
    openings = pd.read_csv(house / "executed/story/test_openings.csv")
    assert openings["run"].tolist() == ["fold=1", "ship=refit", "ship=ensemble"]


def test_05_claims_no_accuracy_on_photos_it_has_learnt_from(swept):
    folder = swept[0] / "executed/story"
    for name in ("ship=refit", "ship=ensemble"):
        shown = outputs(folder / name / "05_quantize.ipynb")
        assert "of 36 training photos" in shown and "no accuracy is claimed" in shown and "right on" not in shown
        assert "36 out-of-fold photos of 2 folds" in shown
        assert not (folder / name / "figures/backends_val.png").exists()
    assert "right on" in outputs(folder / "fold=1" / "05_quantize.ipynb")
    assert "Test accuracy of the ensemble of 2 models in" in outputs(
        folder / "ship=ensemble" / "06_test_accuracy.ipynb"
    )


def outputs(path: Path) -> str:
    """All text that an executed notebook shows."""
    found = [output for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in found)


@pytest.mark.parametrize("ship", ["refit", "ensemble"])
def test_the_results_name_the_shipped_run_with_its_test_and_its_expectation(swept, ship):
    house, _, _ = swept
    table = pd.read_csv(house / f"{ship}.csv").set_index("run")
    assert list(table.index) == ["fold=1", "fold=2", f"ship={ship}"] and (table["state"] == "complete").all()
    row, pooled = table.loc[f"ship={ship}"], pd.read_csv(house / "executed/story/results_oof.csv").iloc[0]
    assert row["shipped"] == ship and row["oof_accuracy"] == pooled["accuracy"] and row["oof_n"] == 36
    assert row["oof_probe_accuracy"] == pooled["probe_accuracy"] and row["oof_over_probe"] == pooled["over_probe"]
    assert row[["test_accuracy", "size_mb_int8"]].notna().all() and np.isnan(row["accuracy"])
    assert table.loc[["fold=1", "fold=2"], ["shipped", "oof_accuracy"]].isna().all(axis=None)
    assert table.loc[["fold=1", "fold=2"], "accuracy"].notna().all()


def test_terminal_and_report_say_which_model_is_shipped_and_what_to_expect(swept):
    house, output, _ = swept
    words = ["trained once more, on all 36 photos", "the mean probabilities of the 2 folds' models"]
    words += ["the first fold's model as it is"]
    shown = [output[2], output[3], output[0]]
    for text, ship, word in zip(shown, ("refit", "ensemble", "fold"), words, strict=True):
        page = (house / f"{ship}.html").read_text().replace("&#39;", "'")
        assert word in text and word in page and "expected accuracy: 0." in text
        line = next(line for line in text.splitlines() if line.startswith("Compared with frozen features: accuracy 0."))
        assert line in page and ": better</small>" in page
        assert ("The shipped model" in page) == (ship != "fold")
        assert f'href="{"fold%3D1" if ship == "fold" else f"ship%3D{ship}"}/06_test_accuracy.html"' in page
        assert "is missing" not in page


def test_a_shipped_run_that_failed_is_listed_and_not_praised(swept, tmp_path):
    """On the index of a sweep whose refit stopped with an error."""
    folder = tmp_path / "sweep"
    folder.mkdir()
    listed = [{"name": f"fold={n}", "state": "complete"} for n in (1, 2)]
    listed += [{"name": "ship=refit", "state": "failed", "error": "02_train: Diverged: no number"}]
    listed[-1] |= {"stages": [], "candidate": False}
    found = {"title": "t", "choose_by": "macro_f1", "chosen": "run", "shipped": "ship=refit", "runs": listed}
    (folder / "sweep.json").write_text(json.dumps(found | {"made": "trained once more"}))
    for name in ("results_oof.csv", "results.csv"):
        (folder / name).write_bytes((swept[0] / "executed/story" / name).read_bytes())
    page = site.build_site(folder).read_text()
    assert "02_train: Diverged: no number" in page and "The shipped model" not in page
