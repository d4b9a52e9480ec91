"""A delivered file makes of photos on disk what training made of them, or is refused."""

import numpy as np
import onnx
import pytest
import torch

from fruitlib.core import config, files
from fruitlib.core.errors import InputError
from fruitlib.data import dataset
from fruitlib.deploy import check_file, export, gate, heat, model_files, photo_files, predict
from fruitlib.training import models, train


@pytest.fixture(scope="module")
def exported(made_once):
    """A trained run with both files, its model, and its validation photos."""
    run = made_once(epochs=2, cam_every=0, image_size=32, resize="pad")
    train.fit(run)
    model, checkpoint = models.restore(run.path / "best.pt")
    paths, _ = model_files.build_model_files(run, model, checkpoint)
    return run, model, checkpoint, paths, dataset.load_photos(run, "val")


@pytest.fixture(scope="module")
def made_once(shapes, tmp_path_factory):
    from fruitlib.data import splits
    from fruitlib.runs.run import create_run

    def make(**settings):
        folder = tmp_path_factory.mktemp("gate")
        cfg = config.make({"data": str(shapes), "val_per_class": 4, "test_per_class": 4, "batch_size": 8, **settings})
        splits.prepare_manifest(cfg, folder)
        return create_run(folder / "run", cfg)

    return make


def test_photos_from_disk_give_trainings_pixels_and_labels(exported):
    run, _, _, paths, photos = exported
    for path in paths.values():
        found = gate.check_file(run, path, photos)
        assert found.n == len(photos) and found.pixels_off <= 1 and found.same_labels >= found.n - 1
        assert "straight from their files: pixels at most" in found.summary


def test_a_file_that_prepares_photos_otherwise_is_refused_with_the_distance(exported, tmp_path):
    run, model, checkpoint, _, photos = exported
    graph = onnx.load(export.export_onnx(model, tmp_path / "graph.onnx", 32, run.class_names))
    wrong = photo_files.write(graph, tmp_path / "wrong.onnx", checkpoint["preprocess"] | {"brightness": 1.2})
    with pytest.raises(InputError, match=r"wrong\.onnx makes other pixels .*: \d+\.\d of 255 \(limit 2\.0\)"):
        gate.check_file(run, wrong, photos)


def test_heat_from_both_files_agrees_with_grad_cam(made_once):
    run = made_once(model="resnet18", epochs=1, cam_every=0, image_size=64)
    train.fit(run)
    model, checkpoint = models.restore(run.path / "best.pt")
    paths, _ = model_files.build_model_files(run, model, checkpoint)
    photos = dataset.load_photos(run, "val")
    found = gate.heat_agreement(paths, model, photos)
    assert found["fp32"] > 0.99 and found.get("int8", 1) > 0.9


def test_an_ensembles_heat_agrees_with_the_mean_of_its_members_grad_cams(made_once, tmp_path):
    """Nearly: Grad-CAM scales a member's map by its peak, and cuts what speaks against a class; here nothing does."""
    run = made_once(model="timm:test_resnet", image_size=128)
    torch.manual_seed(0)
    members = [models.build(run.config, len(run.class_names)).eval() for _ in range(2)]
    with torch.no_grad():
        for member in members:
            models.head_of(member).weight.abs_()
    together = models.Ensemble(members).eval()
    graph = onnx.load(export.export_onnx(together, tmp_path / "graph.onnx", 128, run.class_names))
    found = heat.add_features(graph, together)
    preprocess = run.config.model_dump(include=set(config.PREPROCESS_SETTINGS))
    paths = {"fp32": photo_files.write(graph, tmp_path / "file.onnx", preprocess, heat=found)}
    photos = dataset.load_photos(run, "val")
    own, *alone = [gate.heat_agreement(paths, model, photos)["fp32"] for model in (together, *members)]
    assert own > 0.9 and own > max(alone)


@pytest.mark.parametrize(("side", "compared"), [(32, 12), (40, 0)])
def test_photos_as_large_as_the_networks_are_left_out_where_preparing_changes_them(made_once, side, compared):
    """A file takes photos of 40 pixels, which all are, as prepared already if its network takes 40."""
    run = made_once(epochs=1, cam_every=0, image_size=side, contrast=1.3)
    train.fit(run)
    model, checkpoint = models.restore(run.path / "best.pt")
    paths, _ = model_files.build_model_files(run, model, checkpoint)
    assert gate.check_file(run, paths["fp32"], dataset.load_photos(run, "val")).n == compared


def test_photos_that_the_reader_crops_are_not_compared(exported):
    run, _, _, paths, photos = exported
    cropped = run.config.model_copy(update={"crop_to": "object"})
    other = type(run)(run.path, cropped)
    found = gate.check_file(other, paths["fp32"], photos)
    assert found.n == 0 and np.isnan(found.pixels_off) and "cropped" in found.summary


def test_a_file_is_checked_against_its_card_and_its_run(exported, tmp_path):
    run, _, _, paths, _ = exported
    lines, well = check_file.check(paths["fp32"])
    assert well and any("straight from their files" in line for line in lines)
    assert any("no model.md beside it" in line for line in lines)
    (run.path / "model.md").write_text("a card of another file, sha256 0000")
    lines, well = check_file.check(paths["fp32"])
    assert not well and any("describes other files" in line for line in lines)
    (run.path / "model.md").write_text(f"sha256 {files.sha256(paths['fp32'])}")
    assert check_file.check(paths["fp32"])[1]


def test_a_file_alone_or_of_others_is_told_apart(exported, tmp_path):
    _, _, _, paths, _ = exported
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(paths["fp32"].read_bytes())
    lines, well = check_file.check(alone)
    assert well and any("no run's folder" in line for line in lines)
    graph = onnx.load(alone)
    del graph.metadata_props[:]
    onnx.save(graph, tmp_path / "other.onnx")
    with pytest.raises(InputError, match=r"other\.onnx: has no class names"):
        check_file.check(tmp_path / "other.onnx")
    assert predict.read_metadata(alone)["heat"] == heat.CLASS_MAP
