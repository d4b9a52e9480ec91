"""Corrected labels: written at once, honoured by every later division, taken back by a later row."""

import concurrent.futures
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fruitlib.core import config, files
from fruitlib.core.errors import InputError
from fruitlib.data import corrections, splits

HEADER = ",".join(corrections.COLUMNS)
SHA = "a" * 64


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """A project with two classes of eight photos, no two of which look alike."""
    monkeypatch.setenv("FRUITLIB_HOME", str(tmp_path))
    folder = tmp_path / "my photos"
    for number in range(16):
        draw(folder / ("apple" if number < 8 else "cherry") / f"{number:02d}.png", number)
    return folder


def draw(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((40, 40), Image.Resampling.NEAREST).save(path)
    return path


def settings(photos: Path, **more) -> config.Config:
    return config.make({"data": str(photos), "val_per_class": 2, "test_per_class": 2, **more})


def divide(cfg: config.Config, sweep: Path) -> tuple[pd.DataFrame, list[str]]:
    manifest = splits.prepare_manifest(cfg, sweep, say=lambda line: None)
    return manifest.set_index("path"), splits.load_record(sweep)["notes"]


def decide(cfg: config.Config, photos: Path, path: str, decision: str, new: str = "", **more) -> None:
    sha256, old = files.sha256(photos / path.partition("#")[0]), path.split("/")[0]
    row = {"sha256": sha256, "path": path, "old": old, "decision": decision, "new": new}
    corrections.decide(corrections.place(cfg), [row | more])


def test_every_later_division_honours_them_and_retrains(photos, tmp_path):
    cfg = settings(photos)
    before, notes = divide(cfg, tmp_path / "a")
    assert set(before["decision"]) == {""} and notes == []
    decide(cfg, photos, "apple/00.png", "relabel", "cherry")
    decide(cfg, photos, "cherry/08.png", "set aside")
    decide(cfg, photos, "apple/01.png", "keep")
    content = {path: path.read_bytes() for path in photos.rglob("*.png")}
    for sweep in ("a", "b"):  # the sweep that was there, and a new one
        manifest, notes = divide(cfg, tmp_path / sweep)
        assert len(manifest) == 16
        assert manifest.loc["apple/00.png", ["label", "status", "decision"]].tolist() == ["cherry", "ok", "relabel"]
        aside = manifest.loc["cherry/08.png"]
        assert (aside["status"], aside["reason"], aside["split"]) == ("set_aside", "set aside by hand", "")
        assert manifest.loc["apple/01.png", "decision"] == "keep"
        where = "data/corrections/my_photos.csv"
        assert notes == [f"labels corrected by hand ({where}): 1 relabelled, 1 set aside, 1 confirmed"]
    assert splits.fingerprint(manifest.reset_index()) != splits.fingerprint(before.reset_index())
    assert splits.counts(manifest.reset_index()).loc["cherry", "set_aside"] == 1
    assert content == {path: path.read_bytes() for path in photos.rglob("*.png")}
    assert {path.suffix for path in photos.rglob("*") if path.is_file()} == {".png"}


@pytest.mark.parametrize("folds", [{}, {"folds": 3, "repeats": 2}])
@pytest.mark.parametrize("decision", [("relabel", "cherry"), ("set aside", "")])
def test_no_other_photo_changes_sides(photos, tmp_path, folds, decision):
    cfg = settings(photos, **folds)
    before, _ = divide(cfg, tmp_path / "a")
    decide(cfg, photos, "apple/00.png", *decision)
    after, _ = divide(cfg, tmp_path / "b")
    others = before.index.drop("apple/00.png")
    assert after.loc[others, ["split", "fold"]].equals(before.loc[others, ["split", "fold"]])
    where = ["split", "fold"] if decision[0] == "relabel" else []
    assert after.loc["apple/00.png", where].equals(before.loc["apple/00.png", where])


def test_a_confirmed_label_retrains_nothing(photos, tmp_path):
    cfg = settings(photos)
    before, _ = divide(cfg, tmp_path / "a")
    decide(cfg, photos, "apple/00.png", "keep")
    after, _ = divide(cfg, tmp_path / "a")
    assert after.loc["apple/00.png", "decision"] == "keep"
    assert splits.fingerprint(after.reset_index()) == splits.fingerprint(before.reset_index())


def test_a_later_row_takes_an_earlier_one_back(photos, tmp_path):
    cfg = settings(photos)
    before, _ = divide(cfg, tmp_path / "a")
    identity = splits.load_record(tmp_path / "a")["identity"]
    decide(cfg, photos, "apple/00.png", "relabel", "cherry")
    decide(cfg, photos, "apple/00.png", "set aside")
    assert divide(cfg, tmp_path / "a")[0].loc["apple/00.png", "status"] == "set_aside"
    decide(cfg, photos, "apple/00.png", "undo")
    after, notes = divide(cfg, tmp_path / "a")
    pd.testing.assert_frame_equal(after, before)
    assert notes == [] and splits.load_record(tmp_path / "a")["identity"] == identity
    assert corrections.read(corrections.place(cfg))["decision"].tolist() == ["relabel", "set aside", "undo"]


def test_they_follow_a_photo_that_moves_and_not_one_that_changes(photos, tmp_path):
    cfg = settings(photos)
    decide(cfg, photos, "apple/00.png", "relabel", "cherry")
    decide(cfg, photos, "apple/01.png", "relabel", "cherry")
    (photos / "apple/00.png").rename(photos / "apple/other name.png")
    draw(photos / "apple/01.png", 99)
    shutil.move(photos, tmp_path / "elsewhere" / photos.name)
    manifest, notes = divide(settings(tmp_path / "elsewhere" / photos.name), tmp_path / "a")
    assert manifest.loc["apple/other name.png", "label"] == "cherry"
    assert manifest.loc["apple/01.png", "label"] == "apple"
    assert "1 relabelled" in notes[0]
    assert "1 correction matches no photo any more" in notes[1] and "line 3: apple/01.png, apple" in notes[1]


def test_what_corrections_mend_is_not_quarantined(photos, tmp_path):
    cfg = settings(photos)
    shutil.copy(photos / "apple/00.png", photos / "cherry/copy.png")
    (photos / "apple/broken.png").write_bytes(b"no photo")
    manifest, _ = divide(cfg, tmp_path / "a")
    assert (manifest["status"] == "quarantined").sum() == 3
    decide(cfg, photos, "cherry/copy.png", "relabel", "apple")
    decide(cfg, photos, "apple/broken.png", "set aside")
    manifest, _ = divide(settings(photos, bad_photos="stop"), tmp_path / "a")  # nothing is bad any more
    assert manifest.loc["cherry/copy.png", "label"] == "apple" and manifest["status"].value_counts()["ok"] == 17
    assert manifest.loc["cherry/copy.png", "group"] == manifest.loc["apple/00.png", "group"] != ""
    assert manifest.loc["apple/broken.png", "reason"].startswith("set aside by hand (")


def test_a_class_that_was_a_slip_of_the_pen_goes(photos, tmp_path):
    cfg = settings(photos)
    for number in (20, 21):
        draw(photos / "aple" / f"{number}.png", number)
    with pytest.raises(InputError, match="class aple has 2 photos"):
        divide(cfg, tmp_path / "a")
    decide(cfg, photos, "aple/20.png", "relabel", "apple")
    decide(cfg, photos, "aple/21.png", "set aside")
    manifest, notes = divide(cfg, tmp_path / "a")
    assert splits.load_record(tmp_path / "a")["class_names"] == ["apple", "cherry"] and len(manifest) == 18
    assert any(note.startswith("class aple has no photo left") for note in notes)


def test_boxes_of_one_photo_are_decided_one_by_one(photos, tmp_path):
    rows = [(f"apple/{n:02d}.png", "left", 0) for n in range(8)] + [
        (f"apple/{n:02d}.png", "right", 20) for n in range(8)
    ]
    table = pd.DataFrame(rows, columns=["path", "label", "x"]).assign(y=0, w=20, h=40)
    table.to_csv(photos / "boxes.csv", index=False)
    cfg = settings(photos / "boxes.csv")
    assert corrections.place(cfg).name == "my_photos-boxes.csv"
    decide(cfg, photos, "apple/00.png#xywh=20,0,20,40", "relabel", "left", old="right")
    manifest, _ = divide(cfg, tmp_path / "a")
    assert manifest.filter(like="apple/00.png", axis=0)["label"].tolist() == ["left", "left"]
    assert (manifest["decision"] == "relabel").sum() == 1


def test_sealed_test_photos_get_theirs_when_they_are_opened(photos):
    checked = pd.DataFrame({"path": ["apple/00.png", "apple/01.png"], "label": "apple", "status": "ok", "reason": ""})
    checked["sha256"] = [files.sha256(photos / path) for path in checked["path"]]
    cfg = settings(photos)
    for path in checked["path"]:
        decide(cfg, photos, path, "relabel", "cherry")
    sealed = pd.Series([True, False])
    after, notes = corrections.apply_to_sealed(checked, sealed, cfg, ["apple", "cherry"])
    assert after["label"].tolist() == ["cherry", "apple"]
    assert notes == ["labels corrected by hand (data/corrections/my_photos.csv): 1 relabelled"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,old,decision,new,when,who\n", ["line 1", "no column sha256", HEADER.replace(",", ", ")]),
        (f"{HEADER}\n{SHA},a.jpg,x,keep,,,\n12ab,a.jpg,x,keep,,,\n", ["line 3", "sha256 = '12ab'", "64"]),
        (f"{HEADER}\n{SHA},a.jpg,x,kepe,,,\n", ["line 2", "'kepe' (did you mean keep?)", "set aside"]),
        (f"{HEADER}\n{SHA},a.jpg,,keep,,,\n", ["line 2", "no old"]),
        (f"{HEADER}\n{SHA},a.jpg,x,relabel,,,\n", ["line 2", "relabel needs the new label"]),
        (f"{HEADER}\n{SHA},a.jpg,x,keep,y,,\n", ["line 2", "keep has no new label"]),
        (f'{HEADER}\n{SHA},"a\nb.jpg",x,keep,,,\n\n{SHA},a.jpg,x,,,,\n', ["line 5", "decision = ''"]),
        (f"{HEADER}\n{{sha}},apple/00.png,apple,relabel,chery,,\n", ["line 2", "'chery'", "did you mean cherry?"]),
    ],
)
def test_a_bad_row_is_named_by_its_line(photos, tmp_path, text, words):
    path = tmp_path / "mine.csv"
    path.write_text(text.replace("{sha}", files.sha256(photos / "apple/00.png")), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        divide(settings(photos, corrections=str(path)), tmp_path / "a")
    assert all(word in str(caught.value) for word in ["mine.csv", *words]), str(caught.value)
    assert "\n" not in str(caught.value) and not (tmp_path / "a" / "manifest.csv").exists()


def test_a_file_that_a_spreadsheet_saved_is_read_and_columns_of_others_are_kept(photos, tmp_path):
    path = tmp_path / "mine.csv"
    cfg = settings(photos, corrections=str(path))
    path.touch()  # an empty file is one to begin with
    decide(cfg, photos, "apple/00.png", "relabel", "cherry")
    table = pd.read_csv(path, dtype=str).assign(remark="seen twice", sha256=lambda t: t["sha256"].str.upper())
    table.to_csv(path, sep=";", index=False, encoding="utf-8-sig")
    decide(cfg, photos, "apple/01.png", "set aside")
    rows = corrections.read(path)
    assert rows["remark"].tolist() == ["seen twice", ""] and rows["decision"].tolist() == ["relabel", "set aside"]
    assert rows["when"].str.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ").all() and set(rows["who"]) == {""}
    assert divide(cfg, tmp_path / "a")[0]["decision"].value_counts()["relabel"] == 1


def test_classes_with_the_names_of_decisions_and_formulas_survive(photos, tmp_path):
    (photos / "cherry").rename(photos / "undo")
    (photos / "apple").rename(photos / "=1+2")
    cfg = settings(photos)
    decide(cfg, photos, "=1+2/00.png", "relabel", "undo")
    decide(cfg, photos, "undo/08.png", "relabel", "=1+2")
    manifest, _ = divide(cfg, tmp_path / "a")
    assert manifest.loc[["=1+2/00.png", "undo/08.png"], "label"].tolist() == ["undo", "=1+2"]


@pytest.mark.parametrize(
    ("named", "words"),
    [("none.csv", ["no such file", "set auto"]), ("mine.csv", ["leave one class, cherry", "undo some"])],
)
def test_what_cannot_be_is_refused(photos, tmp_path, named, words):
    cfg = settings(photos, corrections=str(tmp_path / "mine.csv"))
    (tmp_path / "mine.csv").touch()
    for path in sorted((photos / "apple").iterdir()):
        decide(cfg, photos, f"apple/{path.name}", "set aside")
    with pytest.raises(InputError) as caught:
        divide(settings(photos, corrections=str(tmp_path / named)), tmp_path / "a")
    assert all(word in str(caught.value) for word in words)
    assert divide(settings(photos, corrections="none"), tmp_path / "b")[1] == []


def _decide_many(path: Path, who: str) -> None:
    for number in range(10):
        row = {"sha256": SHA, "path": f"{number}.jpg", "old": f"{who}{number}", "decision": "keep"}
        corrections.decide(path, [row], who)


def test_of_two_writers_at_once_none_loses_a_row(tmp_path):
    path = tmp_path / "new" / "mine.csv"
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        list(pool.map(_decide_many, [path] * 2, "ab"))
    rows = corrections.read(path)
    assert sorted(rows["old"]) == sorted(f"{who}{number}" for who in "ab" for number in range(10))
    assert len(corrections.latest(rows)) == 20
