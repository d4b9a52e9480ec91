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
from fruitlib.evaluation import leakage, wording
from fruitlib.training import train


@pytest.fixture
def divided(tmp_path, shapes):
    """A sweep folder over a copy of the shapes, with its photos' folder."""
    photos = shutil.copytree(shapes, tmp_path / "photos")
    settings = {"data": str(photos), "val_per_class": 4, "test_per_class": 4}
    splits.prepare_manifest(config.make(settings), tmp_path / "sweep")
    return tmp_path / "sweep", photos


def first_photo(sweep: Path, split: str) -> str:
    manifest = splits.load_manifest(sweep)
    return manifest["path"][manifest["split"] == split].iloc[0]


def test_silence_where_nothing_is_wrong(divided):
    check = leakage.check_sweep(divided[0])
    assert check.n == 48 and not check.alarming and wording.alarm_lines(check) == []


def test_a_test_photo_in_training_rings(divided, capsys):
    sweep, photos = divided
    test, train = first_photo(sweep, "test"), first_photo(sweep, "train")
    shutil.copyfile(photos / test, photos / train)
    alarms = wording.alarm_lines(leakage.check_sweep(sweep))
    assert f"{test} (test) is found in train: {train}, the same file" in alarms
    assert f"{train}: the file has changed since the split" in alarms
    assert cli.main(["check", str(sweep)]) == 1
    assert "ALARM" in capsys.readouterr().out


def test_a_resaved_copy_is_a_look_alike(divided):
    sweep, photos = divided
    test, train = first_photo(sweep, "test"), first_photo(sweep, "train")
    picture = np.asarray(Image.open(photos / test)).astype(int) + 1
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(photos / train)
    check = leakage.check_sweep(sweep)
    assert (test, train) in [(pair["path_b"], pair["path_a"]) for pair in check.look_alikes]
    assert any(test in note and train in note and "looks like" in note for note in wording.note_lines(check))


def test_a_lost_photo_rings_and_a_wrong_folder_is_refused(divided, tmp_path, capsys):
    sweep, photos = divided
    (photos / (lost := first_photo(sweep, "val"))).unlink()
    assert list(leakage.check_sweep(sweep).unreadable) == [lost]
    with pytest.raises(InputError, match="no manifest"):
        leakage.check_sweep(tmp_path)
    assert cli.main(["check", str(tmp_path)]) == 2
    assert "no manifest.json" in capsys.readouterr().err


def test_a_damaged_record_is_one_line(divided, capsys):
    (divided[0] / "manifest.json").write_text('{"data": ')
    assert cli.main(["check", str(divided[0])]) == 2
    assert "manifest.json: damaged" in capsys.readouterr().err


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
