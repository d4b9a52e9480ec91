"""On real photographs: the network learns from them, and a predefined test part stays closed until 06."""

import shutil

import pytest

from fruitlib.core import config
from fruitlib.core.errors import InputError
from fruitlib.data import splits
from fruitlib.deploy import test_set, verify
from fruitlib.runs.run import Run, create_run
from fruitlib.training import train

pytestmark = pytest.mark.real


def test_a_network_learns_fruit304(real_data, tmp_path):
    """A plain loop of 20 epochs reached 0.75 to 0.78 in accuracy with such a network."""
    cfg = config.make({"data": str(real_data / "fruit304"), "lr": 0.003, "epochs": 30, "cam_every": 0})
    manifest = splits.prepare_manifest(cfg, tmp_path)
    assert splits.counts(manifest).loc["tomato"].tolist() == [30, 10, 10]
    history = train.fit(create_run(tmp_path / "run", cfg))
    assert history["val_macro_f1"].max() > 0.7


@pytest.fixture
def three_bodies(real_data, tmp_path):
    """Three training varieties a class and one for the test, ten views each, in the repository's own layout."""
    source, target = real_data / "fruits-360-3-body-problem", tmp_path / "photos"
    for part, count in (("Training", 3), ("Test", 1)):
        for class_folder in sorted((source / part).iterdir()):
            for variety in sorted(class_folder.iterdir())[:count]:
                (target / part / class_folder.name / variety.name).mkdir(parents=True)
                for photo in sorted(variety.iterdir())[:10]:
                    shutil.copy(photo, target / part / class_folder.name / variety.name)
    return target


def exported_run(photos, tmp_path) -> Run:
    """Everything that comes before 06, from the split to both ONNX files."""
    cfg = config.make({"data": str(photos), "epochs": 2, "image_size": 64, "val_per_class": 5, "int8_speedup": 0})
    splits.prepare_manifest(cfg, tmp_path)
    run = create_run(tmp_path / "run", cfg)
    train.fit(run)
    verify.export_run(run)
    return run


def test_varieties_stay_whole_and_test_predictions_cover_the_test_part(three_bodies, tmp_path):
    run = exported_run(three_bodies, tmp_path)
    assert run.manifest.groupby("group")["split"].nunique().max() == 1
    assert splits.counts(run.manifest).loc["Apple"].tolist() == [20, 10, 10]
    predictions = test_set.predict_test_photos(run)
    assert predictions.groupby("backend").size().to_dict() == {"torch": 30, "fp32": 30, "int8": 30}
    assert predictions["path"].str.startswith("Test/").all()
    assert len(run.test_openings()) == 1
    test_set.predict_test_photos(run)
    assert len(run.test_openings()) == 1  # read, not opened
    photo = next((three_bodies / "Test").rglob("*.jpg"))
    photo.write_bytes(photo.read_bytes() + b" ")
    test_set.predict_test_photos(run)
    assert len(run.test_openings()) == 2  # another photo, another test


def test_without_this_models_onnx_files_the_test_stays_closed(three_bodies, tmp_path):
    run = exported_run(three_bodies, tmp_path)
    (run.path / "model.int8.onnx").unlink()
    with pytest.raises(InputError, match="execute 05_quantize first"):
        test_set.predict_test_photos(run)
    assert len(run.test_openings()) == 0


def test_no_test_photo_is_opened_before_06(three_bodies, tmp_path):
    """Test photos that cannot be decoded cause no error until 06 opens them."""
    for photo in (three_bodies / "Test").rglob("*.jpg"):
        photo.write_bytes(b"not to be opened")
    run = exported_run(three_bodies, tmp_path)
    assert len(run.test_openings()) == 0
    with pytest.raises(InputError, match=r"no test photo can be used: Test.*not an image"):
        test_set.predict_test_photos(run)
    assert len(run.test_openings()) == 0


def test_a_broken_test_photo_and_a_copy_of_a_training_photo_are_counted(three_bodies, tmp_path, capsys):
    broken, copy, *_ = sorted((three_bodies / "Test").rglob("*.jpg"))
    run = exported_run(three_bodies, tmp_path)
    before = run.identity("train")
    broken.write_bytes(b"not an image at all")
    shutil.copy(three_bodies / run.rows("train")["path"][0], copy)
    predictions = test_set.predict_test_photos(run)
    assert len(predictions) == 3 * 29 and run.identity("train") == before
    output = capsys.readouterr().out
    assert (
        "1 test photos are left out" in output and "1 test photos are copies of training or validation photos" in output
    )
