"""`fruitlib predict`: which photos are meant, what it prints of each, what it writes, and every way it can go wrong."""

import csv
import io
import json
import re
import sys
import types

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from fruitlib import cli
from fruitlib.core import config
from fruitlib.core.errors import InputError
from fruitlib.data import geometry, preprocess, tree
from fruitlib.deploy import answers, export, heat, heat_pictures, named_photos, photo_files, predict
from fruitlib.deploy.predict_command import Request, run
from fruitlib.training import models

NAMES = ["apple", "=cherry", "Kürbis"]
SIDE = 32


@pytest.fixture(scope="module")
def settings():
    changed = {"center": 0.8, "brightness": 1.2, "contrast": 0.9, "saturation": 1.1, "sharpness": 1.3}
    return config.make({"image_size": SIDE, "model": "end2end", "resize": "pad", **changed})


@pytest.fixture(scope="module")
def make_file(tmp_path_factory, settings):
    """`make_file(answer_above="0.5")`: our small network's file, with such metadata, perhaps without heat."""
    torch.manual_seed(0)
    model = models.build(settings, len(NAMES)).eval()
    folder = tmp_path_factory.mktemp("files")
    graph = onnx.load(export.export_onnx(model, folder / "graph.onnx", SIDE, NAMES))
    found = heat.add_features(graph, model)
    prepared = settings.model_dump(include=set(config.PREPROCESS_SETTINGS))
    own = {entry.key: entry.value for entry in graph.metadata_props}

    def make(with_heat=True, name="model.onnx", change=None, **metadata):
        texts = own | {"preprocess": json.dumps(prepared | (change or {}))} | metadata
        return photo_files.write(graph, folder / name, prepared, 2.0, found if with_heat else None, texts)

    return make


@pytest.fixture(scope="module")
def file(make_file):
    return make_file(answer_above="0.334")


def draw(path, seed=0, size=(60, 40), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode).save(path, **options)
    return path


def rows_of(path) -> list[dict]:
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8"))))


@pytest.fixture
def photos(tmp_path):
    """Five photos in two class folders, one of them turned by EXIF, one in CMYK, and what is none."""
    folder = tmp_path / "photos"
    exif = Image.Exif()
    exif[0x0112] = 6
    draw(folder / "apple" / "a.jpg", 1, exif=exif)
    draw(folder / "apple" / "b.JPG", 2, mode="CMYK")
    draw(folder / "apple" / "deep er" / "c.png", 3)
    draw(folder / "Kürbis" / "a.jpg", 4)
    draw(folder / "Kürbis" / "d.webp", 5)
    draw(folder / ".hidden" / "x.jpg")
    draw(folder / "apple" / "@eaDir" / "x.jpg")
    draw(folder / "apple" / ".y.jpg")
    (folder / "notes.txt").write_text("no photo")
    return folder


# ---- which photos


def test_photos_are_named_by_folders_files_patterns_and_csvs(photos, tmp_path):
    listed = ["Kürbis/a.jpg", "Kürbis/d.webp", "apple/a.jpg", "apple/b.JPG", "apple/deep er/c.png"]
    found, notes = named_photos.find([str(photos)])
    assert [photo.below for photo in found] == listed and notes == []
    assert [photo.label for photo in found] == ["Kürbis"] * 2 + ["apple"] * 2 + ["deep er"]
    found, notes = named_photos.find([f"{photos}/*/a.jpg", str(photos / "apple" / "a.jpg"), f"{photos}/**/*.png"])
    assert [photo.file for photo in found] == [str(photos / name) for name in (listed[0], listed[2], listed[4])]
    assert notes == ["1 photo was named twice, and predicted once"]
    (tmp_path / "list.csv").write_text(
        "\ufefflabel;Filename\nx;photos/apple/a.jpg\n\ny;photos\\Kürbis\\a.jpg\n", "utf-8"
    )
    found, _ = named_photos.find([str(tmp_path / "list.csv")])
    assert [(photo.label, photo.below) for photo in found] == [
        ("x", "photos/apple/a.jpg"),
        ("y", "photos/Kürbis/a.jpg"),
    ]
    (tmp_path / "indexed.csv").write_text(",path\n0,photos/apple/a.jpg\n", "utf-8")  # as pandas writes an index
    assert [photo.label for photo in named_photos.find([str(tmp_path / "indexed.csv")])[0]] == ["apple"]


# ---- what is printed of each


@pytest.mark.parametrize("change", [{}, {"deep_bits": 10}, {"crop_to": "object", "crop_margin": 0.2}], ids=str)
def test_photos_are_prepared_as_in_training(make_file, photos, settings, change):
    deep = np.random.default_rng(6).integers(0, 4096, (40, 60)).astype(np.uint16)
    Image.fromarray(deep).save(photos / "deep.png")
    framed = np.full((50, 70, 3), 240, np.uint8)
    framed[10:30, 20:50] = (200, 30, 30)
    Image.fromarray(framed).save(photos / "framed.png")
    model, settings = (
        answers.open_model(make_file(name="prepared.onnx", change=change)),
        settings.model_copy(update=change),
    )
    found, _ = named_photos.find([str(photos)])
    for answer in answers.answers(model, found, heat=True):
        expected = preprocess.decode(photos, answer.photo.below, settings)
        assert np.array_equal(answer.square, expected)
        probabilities, heats = predict.outputs(model.session, expected[None], ("probabilities", "heat"))
        np.testing.assert_allclose(answer.probabilities, probabilities[0], atol=1e-6)
        np.testing.assert_allclose(answer.heat, heats[0, probabilities[0].argmax()], atol=1e-6)


def test_the_table_holds_a_row_per_photo_and_broken_ones_are_skipped(file, photos, tmp_path, capsys):
    content = (photos / "apple" / "a.jpg").read_bytes()
    (photos / "apple" / "cut.jpg").write_bytes(content[: len(content) // 2])
    (photos / "apple" / "page.jpg").write_text("<html>")
    assert run(Request(file, [str(photos)], csv=tmp_path / "out.csv", labels=True)) == 1
    rows = rows_of(tmp_path / "out.csv")
    chances = [f"p_{name}" for name in ("apple", "=cherry", "Kürbis")]
    assert list(rows[0]) == ["path", "label", "predicted", "confidence", *chances, "state", "reason"]
    skipped = [row for row in rows if row["state"] == "skipped"]
    assert [(row["path"].rpartition("/")[2], row["reason"], row["predicted"]) for row in skipped] == [
        ("cut.jpg", "cut off: the end of the picture is missing", ""),
        ("page.jpg", "a web page, not an image", ""),
    ]
    for row in rows:
        if row not in skipped:
            values = [float(row[name]) for name in chances]
            assert sum(values) == pytest.approx(1, abs=1e-5) and float(row["confidence"]) == max(values)
            assert row["predicted"].removeprefix("'") == NAMES[int(np.argmax(values))]
            assert row["state"] == ("answer" if max(values) > 0.334 else "unsure")
    assert "'=cherry" not in list(rows[0]) and {row["label"] for row in rows} == {"apple", "Kürbis", "deep er"}
    out = capsys.readouterr().out
    assert "cut.jpg: skipped: cut off" in out and "skipped: 2" in out and " of 4 (" in out
    assert "1 photo has a label that the file does not know: deep er" in out


@pytest.mark.parametrize(
    ("above", "state", "message"),
    [
        ("none", "unsure", "every photo is unsure"),
        ("", "", "no photo has a state"),
        ("0.999999", "unsure", "answered alone: 0; unsure: 5"),
        ("0.100000", "answer", "answered alone: 5; unsure: 0"),
    ],
)
def test_a_photo_is_unsure_where_its_probability_is_not_above_the_proven_one(
    make_file, photos, tmp_path, capsys, above, state, message
):
    file = make_file(name="other.onnx", **({"answer_above": above} if above else {}))
    assert run(Request(file, [str(photos)], csv=tmp_path / "out.csv")) == 0
    assert {row["state"] for row in rows_of(tmp_path / "out.csv")} == {state}
    assert capsys.readouterr().out.count(message) == 1


def test_many_photos_keep_their_order_and_few_are_held(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(answers, "MOST_PHOTOS", 4)
    for number in range(30):
        draw(tmp_path / "many" / f"{number:02d}.png", number, size=(4000, 3000) if number == 5 else (20, 20))
    taken = []
    found, _ = named_photos.find([str(tmp_path / "many")])
    for done, answer in enumerate(answers.answers(answers.open_model(file), (taken.append(p) or p for p in found))):
        assert answer.photo == found[done] and len(taken) <= done + 4 * 4
    assert cli.main(["predict", str(file), str(tmp_path / "many")]) == 0
    out = capsys.readouterr().out
    assert out.count(".png: ") == 20 and "of 30 photos, the first 20 are shown" in out


def test_stopped_by_ctrl_c_it_keeps_what_it_has(file, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(answers, "MOST_PHOTOS", 1)
    once = answers._answered

    def stops(model, batch, heat):
        if batch[0][0].below == "apple/b.JPG":
            raise KeyboardInterrupt
        return once(model, batch, heat)

    monkeypatch.setattr(answers, "_answered", stops)
    assert run(Request(file, [str(photos)], csv=tmp_path / "out.csv")) == 130
    assert len(rows_of(tmp_path / "out.csv")) == 3
    assert "stopped after 3 of 5 photos" in capsys.readouterr().out


def test_a_reader_that_leaves_costs_no_row(file, photos, tmp_path, monkeypatch):
    def gone(text, file=None):
        raise BrokenPipeError

    monkeypatch.setattr("fruitlib.deploy.predict_command.show", gone)
    with pytest.raises(BrokenPipeError):
        run(Request(file, [str(photos)], csv=tmp_path / "out.csv"))
    assert len(rows_of(tmp_path / "out.csv")) == 5


def test_numbers_that_are_none_are_no_answer(file, photos, monkeypatch):
    monkeypatch.setattr(predict, "outputs", lambda session, squares, names: [np.full((len(squares), 3), np.nan)])
    found, _ = named_photos.find([str(photos)])
    reasons = {(answer.state, answer.reason) for answer in answers.answers(answers.open_model(file), found)}
    assert reasons == {("skipped", "the model's answer is not a number")}


# ---- pictures and the page


def test_each_photo_gets_a_picture_of_where_the_file_looked(file, photos, tmp_path):
    assert run(Request(file, [str(photos)], cam=tmp_path / "cams")) == 0
    written = sorted(path.relative_to(tmp_path / "cams").as_posix() for path in (tmp_path / "cams").rglob("*.*"))
    assert written == sorted(f"{photo.below}.png" for photo in named_photos.find([str(photos)])[0])
    with Image.open(tmp_path / "cams" / "apple" / "a.jpg.png") as picture:
        assert picture.size == (2 * heat_pictures.SMALLEST + heat_pictures.GAP, heat_pictures.SMALLEST)


def test_hot_places_are_yellow_and_cold_ones_blue():
    heats = np.full((4, 4), -5.0, np.float32)
    heats[0, 0] = 3
    shown = np.asarray(heat_pictures.picture(np.full((32, 32, 3), 100, np.uint8), heats), int)
    right = shown[:, heat_pictures.SMALLEST + heat_pictures.GAP :]
    assert (np.abs(shown[:, : heat_pictures.SMALLEST] - 100) <= 1).all()
    hot, cold = right[5, 5], right[-5, -5]
    assert hot[0] > hot[2] + 80 and cold[2] > cold[0] and hot.sum() > cold.sum()
    flat = np.asarray(heat_pictures.picture(np.zeros((8, 8, 3), np.uint8), np.zeros((2, 2), np.float32)))
    assert np.isfinite(flat).all() and flat[5, -5, 2] > flat[5, -5, 0]


def test_a_page_is_written_with_photos_or_without(file, photos, tmp_path, monkeypatch):
    written = []
    page = types.SimpleNamespace(write=lambda model, path: written.append((model, path)) or path)
    page.run_by_browser = lambda model: model
    monkeypatch.setitem(sys.modules, "fruitlib.deploy.web_page", page)
    monkeypatch.setattr("fruitlib.deploy.web_page", page, raising=False)
    assert run(Request(file, [], html=tmp_path / "page.html")) == 0
    assert run(Request(file, [str(photos)], html=tmp_path / "page.html")) == 0
    assert written == [(file, tmp_path / "page.html")] * 2


# ---- what can be wrong


def foreign(folder, **change):
    """Somebody else's ONNX file, which takes floats."""
    node = onnx.helper.make_node("Flatten", ["x"], ["y"])
    ends = [
        onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", [1, 3, 8, 8]), ("y", [1, 192]))
    ]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", ends[:1], ends[1:]),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.helper.set_model_props(model, change)
    onnx.save(model, folder / "foreign.onnx")
    return folder / "foreign.onnx"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file, folder: foreign(folder), "has no class names"),
        (lambda file, folder: foreign(folder, class_names='["a", "b"]'), "does not take photos"),
        (lambda file, folder: foreign(folder, class_names="[", preprocess="{}"), "class names are damaged"),
        (lambda file, folder: folder / "gone.onnx", "no such file"),
        (lambda file, folder: folder, "no such file"),
    ],
    ids=["foreign", "other inputs", "damaged names", "missing", "folder"],
)
def test_a_file_that_is_not_ours_is_refused_in_one_line(change, message, file, photos, tmp_path, capsys):
    assert cli.main(["predict", str(change(file, tmp_path)), str(photos)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and re.search(message, err)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_a_truncated_file_is_refused(file, photos, tmp_path, capsys, share):
    content = file.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: int(share * len(content))])
    assert cli.main(["predict", str(tmp_path / "cut.onnx"), str(photos)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"answer_above": "high"}, "metadata are damaged"),
        ({"preprocess": "{}"}, "metadata are damaged"),
        ({"preprocess": "[1"}, "metadata are damaged"),
        ({"preprocess": "[1]"}, "metadata are damaged"),
        ({"change": {"image_size": "32"}}, "metadata are damaged"),
        ({"change": {"resize": "fold"}}, "metadata are damaged"),
        ({"change": {"contrast": None}}, "metadata are damaged"),
        ({"class_names": '["a"]'}, "1 class names for 3 classes"),
        ({"class_names": '{"a": 1, "b": 2, "c": 3}'}, "class names are damaged"),
    ],
)
def test_damaged_metadata_are_named(make_file, metadata, message):
    with pytest.raises(InputError, match=message):
        answers.open_model(make_file(name="damaged.onnx", **metadata))


def test_cropping_to_the_object_needs_opencv(make_file, photos, monkeypatch):
    file = make_file(name="object.onnx", change={"crop_to": "object"})
    assert run(Request(file, [str(photos)])) == 0
    monkeypatch.setitem(sys.modules, "fruitlib.data.objects", None)
    with pytest.raises(InputError, match="needs OpenCV: pip install"):
        run(Request(file, [str(photos)]))


def same_names(folder):
    draw(folder / "x" / "a.jpg")
    draw(folder / "y" / "a.jpg")
    return [str(folder / "x" / "a.jpg"), str(folder / "y" / "a.jpg")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda at: {"photos": []}, "no photos: name files"),
        (lambda at: {"photos": [], "html": at / "page.html", "csv": at / "out.csv"}, "no photos: name files"),
        (lambda at: {"photos": [f"{at}/gone"]}, "gone: no such file or folder"),
        (lambda at: {"photos": [f"{at}/*.xyz"]}, "no file matches"),
        (lambda at: {"photos": [f"{at}/empty"]}, "empty: no photos in this folder"),
        (lambda at: {"photos": [f"{at}/no_column.csv"]}, "no column named path, file.*its columns are: a, b"),
        (lambda at: {"photos": [f"{at}/no_rows.csv"]}, "names no photos"),
        (lambda at: {"photos": [f"{at}/latin.csv"]}, "not UTF-8"),
        (lambda at: {"csv": at / "empty"}, "--csv .*empty: cannot be written .it is a folder"),
        (lambda at: {"csv": at / "no_rows.csv" / "out.csv"}, "--csv .*out.csv: cannot be written"),
        (lambda at: {"csv": at / "photos" / "apple" / "a.jpg"}, "--csv .*a.jpg: is among what is read"),
        (lambda at: {"cam": at / "photos" / "cams"}, "--cam .*cams: lies among the photos"),
        (lambda at: {"cam": at / "no_rows.csv"}, "--cam .*no_rows.csv: cannot be written"),
        (lambda at: {"photos": same_names(at), "cam": at / "cams"}, "a.jpg and .*a.jpg would both be"),
        (lambda at: {"csv": at / "out", "html": at / "new" / ".." / "out"}, "--csv and --html both name .*out: name"),
        (lambda at: {"csv": at / "out", "cam": at / "out"}, "--csv and --cam both name"),
        (lambda at: {"cam": at / "out", "html": at / "out"}, "--cam and --html both name"),
        (lambda at: {"threads": -1}, "--threads -1"),
    ],
)
def test_bad_input_is_named_before_the_work_begins(file, photos, tmp_path, monkeypatch, options, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "no_column.csv").write_text("a,b\n1,2\n")
    (tmp_path / "no_rows.csv").write_text("path\n")
    (tmp_path / "latin.csv").write_bytes(b"path\nK\xfcrbis.jpg\n")
    monkeypatch.setattr(answers, "answers", lambda *arguments: pytest.fail("the work began"))
    with pytest.raises(InputError, match=message):
        run(Request(**({"model": file, "photos": [str(photos)]} | options(tmp_path))))


def test_a_folder_without_rights_is_named(file, photos, monkeypatch, capsys):
    def forbidden(folder, seen):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(tree, "entries", forbidden)
    assert cli.main(["predict", str(file), str(photos)]) == 2
    assert (
        capsys.readouterr().err
        == f"fruitlib: {photos}: the folder cannot be read (Permission denied): check its permissions\n"
    )


def test_heat_that_a_file_does_not_have_is_not_asked_for(make_file, photos, tmp_path):
    with pytest.raises(InputError, match=r"--cam: .*cold\.onnx has no heat"):
        run(Request(make_file(with_heat=False, name="cold.onnx"), [str(photos)], cam=tmp_path / "cams"))
    assert not (tmp_path / "cams").exists()


def test_all_photos_broken_is_exit_code_1_and_so_is_a_missing_one(file, tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "list.csv").write_text("image\ngone.jpg\n")
    assert cli.main(["predict", str(file), str(tmp_path / "a.jpg"), str(tmp_path / "list.csv")]) == 1
    out = capsys.readouterr().out
    assert "a.jpg: skipped: the file is empty" in out and "gone.jpg: skipped: no such file" in out
    assert "predicted: no photo" in out


def test_a_files_preparation_has_the_settings_names(settings):
    ours = geometry.Preparation.of(settings.model_dump(include=set(config.PREPROCESS_SETTINGS)))
    assert {name: getattr(settings, name) for name in config.PREPROCESS_SETTINGS} == vars(ours)
