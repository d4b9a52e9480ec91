"""Sheets of pictures: each where its name says, whole, in its own shape, and none over another."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest

from fruitlib.reporting import photo_sheets
from fruitlib.reporting.style import save_figure, use_style

NAMES = ["apple", "sour $_1$ cherry", "tomato"]


@pytest.fixture(autouse=True)
def style():
    use_style()
    yield
    plt.close("all")


def boxes(figure) -> list[tuple[float, float, float, float]]:
    """Where its pictures lie: left, right, upper and lower edge in inches."""
    extents = (image.get_extent() for image in figure.axes[0].images)
    return [(left, right, upper, lower) for left, right, lower, upper in extents]


def words(figure) -> dict[str, tuple[float, float]]:
    return {text.get_text(): text.get_position() for text in figure.axes[0].texts}


def apart(figure) -> bool:
    """Whether no picture and no text lies over another, as drawn."""
    found = boxes(figure)
    figure.canvas.draw()
    to_inches = figure.axes[0].transData.inverted()
    for text in figure.axes[0].texts:
        (left, y0), (right, y1) = to_inches.transform(text.get_window_extent().get_points())
        found.append((left, right, *sorted((y0, y1))))
    return not any(
        min(one[1], other[1]) - max(one[0], other[0]) > 0.01 and min(one[3], other[3]) - max(one[2], other[2]) > 0.01
        for one, other in itertools.combinations(found, 2)
    )


def test_a_contact_sheet_has_each_title_above_its_photo():
    photos = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((8, 8, 3), np.uint8)
    figure = photo_sheets.contact_sheet(photos, ["a", "b\nsecond line", "c", "d", "e"], columns=3, title="Five")
    assert [int(image.get_array().max()) for image in figure.axes[0].images] == [0, 1, 2, 3, 4]
    for (x, y), (left, right, upper, _) in zip(words(figure).values(), boxes(figure), strict=True):
        assert x == pytest.approx((left + right) / 2) and 0 < upper - y < 0.1
    rows = [round(upper, 3) for _, _, upper, _ in boxes(figure)]
    assert rows[0] == rows[1] == rows[2] < rows[3] == rows[4] and apart(figure)
    assert figure.get_suptitle() == "Five"
    assert len(boxes(photo_sheets.contact_sheet(photos[:0], []))) == 0


def test_long_titles_and_captions_are_wrapped_and_cut():
    photos, name = np.zeros((4, 8, 8, 3), np.uint8), "Apple Red Delicious 1 (45 %) called\nCherry Wax Black 2"
    assert apart(photo_sheets.contact_sheet(photos, [name] * 4, columns=2))
    layers = ["features.denseblock3.denselayer24.norm2"] * 4
    assert apart(photo_sheets.picture_table([list(photos)] * 2, ["a", "b"], layers, "CAM"))
    endless = "fruit/" + "_".join(["a_long_name"] * 30) + ".jpg\nwhat is wrong"
    for figure in (
        photo_sheets.quarantine_sheet([photos[0]] * 8, [endless] * 8),
        photo_sheets.pair_sheet([photos[:2]] * 4, [endless] * 4),
    ):
        assert apart(figure) and {text.get_text().count("\n") for text in figure.axes[0].texts} == {5}


def test_a_table_of_pictures_names_rows_and_columns():
    photo = np.random.default_rng(0).random((16, 16, 3))
    figure = photo_sheets.picture_table([[photo, photo]] * 3, NAMES, ["photo", "conv1"], "CAM")
    found, pictures = words(figure), boxes(figure)
    for name, (left, right, upper, _) in zip(["photo", "conv1"], pictures[:2], strict=True):
        assert found[name][0] == pytest.approx((left + right) / 2) and found[name][1] < upper
    for name, (left, _, upper, lower) in zip(NAMES, pictures[::2], strict=True):
        assert found[name][0] < left and found[name][1] == pytest.approx((upper + lower) / 2)
    assert apart(figure)


@pytest.mark.parametrize("columns", [4, 8, 12])
def test_a_page_shows_all_columns_of_a_table_and_of_feature_maps(columns):
    photo, rows = np.random.default_rng(0).random((16, 16, 3)), ["cherry, predicted\ntomato (98%)"] * 2
    names = ["photo", *(f"epoch {5 * number}" for number in range(1, columns))]
    figure = photo_sheets.picture_table([[photo] * columns] * 2, rows, names, "CAM")
    assert apart(figure) and figure.get_tightbbox().width <= 9.4
    maps = photo_sheets.feature_maps({"layer1": np.ones((min(columns, 8), 4, 4))}, photo, "maps")
    maps.canvas.draw()
    assert maps.get_tightbbox().width <= 9.4


def test_feature_maps_have_a_row_a_layer_beside_the_photo():
    photo = np.random.default_rng(0).random((16, 16, 3))
    maps = {"conv1": np.ones((4, 8, 8)), "conv2": np.ones((3, 4, 4))}
    figure = photo_sheets.feature_maps(maps, photo, "maps")
    (_, right, *_), *rest = boxes(figure)
    assert len(rest) == 4 + 3 and right < min(box[0] for box in rest) and apart(figure)
    for name, row in zip(["conv1\n8 × 8", "conv2\n4 × 4"], (rest[:4], rest[4:]), strict=True):
        assert all(words(figure)[name][1] == pytest.approx((upper + lower) / 2) for *_, upper, lower in row)


def test_the_quarantine_sheet_shows_what_can_be_shown_and_names_the_rest():
    titles = [f"apple/a_rather_long_file_name_{i}.jpg\nthe file is empty (0 bytes)" for i in range(20)]
    figure = photo_sheets.quarantine_sheet([None, np.zeros((9, 30, 3), np.uint8)] * 10, titles)
    ax = figure.axes[0]
    assert figure.get_suptitle() == "20 quarantined photos, the first 18" and len(ax.images) == 18
    assert len(ax.lines) == 2 * 9  # a cross where there is no picture
    caption = ax.texts[3].get_text()
    assert caption.replace("\n", "").startswith("apple/a_rather_long_file_name_3.jpg") and "empty" in caption
    assert max(map(len, caption.splitlines())) <= 24 and apart(figure)
    left, right, upper, lower = boxes(figure)[1]
    assert (right - left) / (lower - upper) == pytest.approx(30 / 9)
    assert photo_sheets.quarantine_sheet(None, titles[:1]).get_suptitle() == "1 quarantined photo"


def test_the_pair_sheet_sets_two_of_any_size_side_by_side():
    pair = (np.zeros((9, 30, 3), np.uint8), np.zeros((20, 20, 3), np.uint8))
    figure = photo_sheets.pair_sheet([pair] * 14, [f"pair {i}" for i in range(14)], title="near duplicates")
    assert len(boxes(figure)) == 2 * 12 and list(words(figure)) == [f"pair {i}" for i in range(12)]
    left, right = boxes(figure)[:2]
    assert left[1] < right[0] and left[2] == right[2] and apart(figure)


def test_the_policy_sheet_has_a_row_a_policy_and_the_originals_on_top():
    originals, changed = np.zeros((3, 8, 8, 3), np.uint8), np.full((3, 8, 8, 3), 255, np.uint8)
    figure = photo_sheets.policy_sheet(originals, {"crop": originals, "full": changed})
    named = [name for name in words(figure) if name]
    assert named == ["original", "crop", "full"]
    assert [int(image.get_array().max()) for image in figure.axes[0].images] == [0] * 6 + [255] * 3


def test_what_stands_beyond_the_sheet_is_saved_too(tmp_path):
    photo = np.zeros((8, 8, 3), np.uint8)
    sizes = []
    for name in ("a", "a very long name of a row of pictures"):
        path = tmp_path / "sheet.png"
        save_figure(photo_sheets.picture_table([[photo]], [name], ["photo"], ""), path)
        sizes.append(plt.imread(path).shape)
    assert sizes[1][0] == pytest.approx(sizes[0][0], abs=3) and sizes[1][1] > sizes[0][1] + 100
