"""The alarm rings for a test photo planted in training, for changed and lost photos, and is silent otherwise."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import draw_shapes

from fruitlib import cli
from fruitlib.core import config
from fruitlib.core.errors import InputError
from fruitlib.data import splits
from fruitlib.evaluation import leakage
from fruitlib.training import train


@pytest.fixture
def divided(tmp_path, shapes):
    """A sweep folder over a copy of the shapes, with its photos' folder."""
    photos = shutil.copytree(shapes, tmp_path / "photos")
    settings = {"data": str(photos), "val_per_class": 4, "test_per_class": 4}
    splits.prepare(config.make(settings), tmp_path / "sweep")
    return tmp_path / "sweep", photos


def of(sweep: Path, split: str) -> str:
    manifest = splits.read(sweep)
    return manifest["path"][manifest["split"] == split].iloc[0]


def test_silence_where_nothing_is_wrong(divided):
    found = leakage.check_sweep(divided[0])
    assert found.n == 48 and found.alarms == []


def test_a_test_photo_in_training_rings(divided, capsys):
    sweep, photos = divided
    test, train = of(sweep, "test"), of(sweep, "train")
    shutil.copyfile(photos / test, photos / train)
    alarms = leakage.check_sweep(sweep).alarms
    assert f"{test} (test) is found in train: {train}, the same file" in alarms
    assert f"{train}: another picture than the one that was divided" in alarms
    assert cli.main(["check", str(sweep)]) == 1
    assert "ALARM" in capsys.readouterr().out


def test_a_resaved_copy_is_a_look_alike(divided):
    sweep, photos = divided
    test, train = of(sweep, "test"), of(sweep, "train")
    picture = np.asarray(Image.open(photos / test)).astype(int) + 1
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(photos / train)
    found = leakage.check_sweep(sweep)
    assert any(test in note and train in note and "looks like" in note for note in found.notes)


def test_a_lost_photo_rings_and_a_wrong_folder_is_refused(divided, tmp_path, capsys):
    sweep, photos = divided
    (photos / (lost := of(sweep, "val"))).unlink()
    assert any(alarm.startswith(lost) for alarm in leakage.check_sweep(sweep).alarms)
    with pytest.raises(InputError, match="no manifest"):
        leakage.check_sweep(tmp_path)
    assert cli.main(["check", str(tmp_path)]) == 2
    assert "no manifest.json" in capsys.readouterr().err


def test_from_shuffled_labels_nothing_is_learnt(make_run, tmp_path):
    """Chance is 1 in 3 of 24 validation photos; the epoch is chosen on them, so somewhat more is no alarm."""
    accuracy, photos = {}, str(draw_shapes(tmp_path / "many", per_class=32))
    for labels in ("given", "shuffled"):
        run = make_run(
            labels,
            data=photos,
            train_labels=labels,
            epochs=20,
            lr=0.003,
            val_per_class=8,
            test_per_class=1,
            batch_size=8,
        )
        train.fit(run)
        table = run.predictions("val")
        assert set(table["label"]) == set(run.rows("val")["label"]) and len(table) == 24
        accuracy[labels] = (table["label"] == table["predicted"]).mean()
    assert accuracy["given"] > 0.75 > 0.65 > accuracy["shuffled"]
