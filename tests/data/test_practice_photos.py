"""The practice photographs: the same for a seed, complete or absent, distinguished by shape rather than by colour."""

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fruitlib.core.errors import InputError
from fruitlib.data import practice_photos


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """The three-fruit set at a quarter of the pixels, drawn once."""
    return practice_photos.draw(tmp_path_factory.mktemp("data") / "three", size=64)


@pytest.fixture
def few(monkeypatch):
    """Sets of two photographs a fruit, for what does not depend on how many."""
    monkeypatch.setattr(practice_photos, "COUNTS", dict.fromkeys(practice_photos.FIVE, 2))


def pictures(folder):
    """{class/name: bytes} of the photographs under `folder`."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.glob("*/*.jpg"))}


def accuracy(features, labels):
    """Five-fold accuracy of a logistic regression on standardised features."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01 if features.shape[1] > 3 else 1, max_iter=500))
    return cross_val_score(model, features, labels, cv=5).mean()


@pytest.fixture(scope="module")
def arrays(three):
    """Pixels (304, 64, 64, 3) in [0, 1] and labels (304,)."""
    paths = sorted(three.glob("*/*.jpg"))
    pixels = np.stack([np.asarray(Image.open(path), float) / 255 for path in paths])
    return pixels, np.array([path.parent.name for path in paths])


def test_counts_names_and_size(three):
    files = {fruit: sorted((three / fruit).iterdir()) for fruit in practice_photos.FRUITS}
    assert {fruit: len(paths) for fruit, paths in files.items()} == {"apple": 127, "cherry": 127, "tomato": 50}
    assert {path.name for path in three.iterdir()} == {*practice_photos.FRUITS, "sample.json"}
    for fruit, paths in files.items():
        varieties, numbers = zip(*(path.stem.split("__") for path in paths), strict=True)
        assert set(varieties) == {name for of, name in practice_photos.VARIETIES if of == fruit}
        assert len(set(numbers)) == len(paths)
        with Image.open(paths[0]) as image:
            assert (image.size, image.mode, image.format) == ((64, 64), "RGB", "JPEG")


def test_same_bytes_for_a_seed_and_others_for_another(few, tmp_path):
    first = pictures(practice_photos.draw(tmp_path / "a", size=32, seed=3))
    again = pictures(practice_photos.draw(tmp_path / "b", size=32, seed=3))
    other = pictures(practice_photos.draw(tmp_path / "c", size=32, seed=4))
    assert len(first) == 6 and first == again
    assert not set(first.values()) & set(other.values())


def test_a_picture_does_not_depend_on_how_many_are_drawn(few, tmp_path, monkeypatch):
    two = pictures(practice_photos.draw(tmp_path / "two", size=32))
    monkeypatch.setattr(practice_photos, "COUNTS", dict.fromkeys(practice_photos.FIVE, 1))
    one = pictures(practice_photos.draw(tmp_path / "one", size=32))
    assert len(one) == 3 and one.items() <= two.items()


def test_five_has_all_fruits_and_none_of_the_pictures_of_three(few, tmp_path):
    five, three = (
        practice_photos.draw(tmp_path / "5", five=True, size=32),
        practice_photos.draw(tmp_path / "3", size=32),
    )
    assert {path.name for path in five.iterdir() if path.is_dir()} == set(practice_photos.FIVE)
    assert not set(pictures(five).values()) & set(pictures(three).values())


def test_five_asks_for_a_hundred_lemons_and_pears():
    assert [practice_photos.COUNTS[fruit] for fruit in practice_photos.FIVE] == [127, 127, 50, 100, 100]


def test_a_drawn_folder_is_left_alone(three):
    before = {path: path.stat().st_mtime_ns for path in three.rglob("*")}
    assert practice_photos.draw(three, size=64) == three
    assert {path: path.stat().st_mtime_ns for path in three.rglob("*")} == before
    assert json.loads((three / "sample.json").read_text())["seed"] == 0


@pytest.mark.parametrize("asked", [{"seed": 1, "size": 64}, {"five": True, "size": 64}, {"size": 32}])
def test_a_folder_with_another_set_is_refused(three, asked):
    with pytest.raises(InputError, match=r"three: holds .*'seed': 0.*remove it or name another"):
        practice_photos.draw(three, **asked)


def test_photographs_of_an_older_drawing_are_not_taken_for_todays(three, monkeypatch):
    monkeypatch.setattr(practice_photos, "VERSION", practice_photos.VERSION + 1)
    with pytest.raises(InputError, match="remove it or name another"):
        practice_photos.draw(three, size=64)


def test_a_folder_with_other_files_is_refused_and_kept(tmp_path):
    (tmp_path / "mine.jpg").write_text("a photo")
    with pytest.raises(InputError, match="holds other files"):
        practice_photos.draw(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jpg"]


def test_a_damaged_record_is_one_line(tmp_path):
    (tmp_path / "sample.json").write_text("{")
    with pytest.raises(InputError, match=r"sample\.json: damaged"):
        practice_photos.draw(tmp_path)


def test_an_interrupted_draw_leaves_nothing(few, tmp_path):
    def stop(done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        practice_photos.draw(tmp_path / "set", size=32, progress=stop)
    assert not list(tmp_path.iterdir())
    assert len(pictures(practice_photos.draw(tmp_path / "set", size=32))) == 6


def test_a_set_drawn_by_another_process_meanwhile_is_kept(few, tmp_path):
    def another(done, total):
        if done == total:
            practice_photos.draw(tmp_path / "set", size=32)

    practice_photos.draw(tmp_path / "set", size=32, progress=another)
    assert len(pictures(tmp_path / "set")) == 6 and [path.name for path in tmp_path.iterdir()] == ["set"]


def test_progress_counts_every_picture(few, tmp_path):
    seen = []
    practice_photos.draw(tmp_path / "set", size=32, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 6) for done in range(1, 7)]


@pytest.mark.parametrize(("fruit", "variety"), list(practice_photos.VARIETIES))
def test_every_variety_shows_a_fruit_that_stands_out(fruit, variety):
    image = practice_photos.photograph(fruit, np.random.default_rng(5), 64, variety)
    pixels = np.asarray(image, float)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    far = np.linalg.norm(pixels - np.median(border, axis=0), axis=2) > 40
    assert 0.05 < far.mean() < 0.9


def test_mean_colour_alone_does_not_classify_the_fruit(arrays):
    pixels, labels = arrays
    assert accuracy(pixels.mean((1, 2)), labels) < 0.65


def test_shape_classifies_the_fruit_better_than_colour(arrays):
    """Histograms of edge directions in a coarse grid (after Dalal and Triggs 2005), grey only."""
    pixels, labels = arrays
    down, across = np.gradient(pixels.mean(3), axis=(1, 2))
    strength = np.hypot(down, across)
    sector = (np.arctan2(down, across) % np.pi / np.pi * 8).astype(int) % 8
    edges = np.stack([np.where(sector == k, strength, 0) for k in range(8)], -1)
    cells = np.sqrt(edges.reshape(len(labels), 8, 8, 8, 8, 8).mean((2, 4)).reshape(len(labels), -1))
    by_shape = accuracy(cells, labels)
    assert by_shape > 0.75 and by_shape > accuracy(pixels.mean((1, 2)), labels) + 0.1
