"""The test photos: opened, checked, and predicted once by every file of the model."""

import pandas as pd

from fruitlib.core.errors import InputError
from fruitlib.core.files import display_path
from fruitlib.data import corrections, dataset, photo_checks, sources
from fruitlib.deploy.export import run_torch
from fruitlib.deploy.model_files import FILES
from fruitlib.deploy.predict import run_onnx
from fruitlib.evaluation import metrics
from fruitlib.runs.run import Run
from fruitlib.training import models


def predict_test_photos(run: Run) -> pd.DataFrame:
    """Open the test photos and write `predictions_test.csv`: torch, fp32 and INT8 (where 05 made it) on every photo.

    Sealed photos are opened now. Those that cannot be used are left out and counted; copies of training or validation
    photos are counted. If the same model was tested before, its predictions are read from the file instead.

    Raises:
        InputError: the ONNX files are missing or are not those of this model; no test photo can be used.
    """
    if run.is_complete("test"):
        summary = run.record("test").get("summary", [])
        print("tested before: predictions are read from predictions_test.csv, no photo is opened", *summary, sep="\n")
        return run.predictions("test")
    if not run.is_complete("export"):
        raise InputError(f"{display_path(run.path)}: no ONNX files of this model; execute 05_quantize first")
    identity = run.identity("test")
    rows, summary = open_test_photos(run)
    print(*summary, sep="\n", end="\n" if summary else "")
    run.record_test_opening(len(rows))
    model, _ = models.restore(run.path / "best.pt")
    images = dataset.load_photos(run, "test", rows=rows).images
    pictures = dataset.to_pictures(images)
    not_made = run.record("export").get("not_made", ())
    logits = {"torch": run_torch(model, dataset.to_array(images))}
    logits |= {name: run_onnx(run.path / file, pictures) for name, file in FILES.items() if file not in not_made}
    table = run.write_predictions("test", {name: metrics.softmax(values) for name, values in logits.items()}, rows)
    run.complete("test", identity, summary=summary)
    return table


def open_test_photos(run: Run) -> tuple[pd.DataFrame, list[str]]:
    """The test photos that can be used, sealed ones opened and checked; and remarks about them, a line each.

    Raises:
        InputError: none of them can be used.
    """
    rows = run.rows("test")
    folder = sources.root(run.config.data, run.config.photos_dir)
    limits = run.config.min_side, run.config.max_megapixels
    checked = photo_checks.check_photos(folder, rows.assign(split=""), limits[0], megapixels=limits[1])
    sealed = rows["status"] == "sealed"
    checked, summary = corrections.apply_to_sealed(checked, sealed, run.config, run.class_names)
    bad = checked[checked["status"] == "quarantined"]
    if len(bad):
        summary.append(
            f"{len(bad)} test photos are left out; the first is {bad['path'].iloc[0]}: {bad['reason'].iloc[0]}"
        )
    if len(bad) == len(rows):
        raise InputError(f"no test photo can be used: {bad['path'].iloc[0]}: {bad['reason'].iloc[0]}")
    seen = run.manifest.loc[run.manifest["split"].isin(["train", "val"]), "sha256"]
    rows = rows.assign(**checked[["label", "sha256", "bits"]])  # what is predicted is what was checked
    rows = rows[(checked["status"] == "ok").to_numpy()].reset_index(drop=True)
    if copies := checked.loc[checked["status"] == "ok", "sha256"].isin(set(seen) - {""}).sum():
        summary.append(f"{copies} test photos are copies of training or validation photos: the result is optimistic")
    return rows, summary
