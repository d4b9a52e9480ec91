"""The label desk: what it lists and why; decisions are written at once and survive every change of the view."""

import os
import re
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fruitlib.core import config
from fruitlib.data import corrections, splits
from fruitlib.evaluation import label_errors
from fruitlib.reporting import label_desk


@pytest.fixture
def project(tmp_path, monkeypatch) -> config.Config:
    """Two classes of ten photos; one photo is there under both, one is a copy, one does not open."""
    monkeypatch.setenv("FRUITLIB_HOME", str(tmp_path))
    folder = tmp_path / "photos"
    for number in range(20):
        path = folder / ("apple" if number < 10 else "cherry") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((40, 30), Image.Resampling.NEAREST).save(path)
    shutil.copy(folder / "apple/00.png", folder / "cherry/twice.png")
    shutil.copy(folder / "apple/01.png", folder / "apple/z copy.png")
    near = Image.open(folder / "apple/02.png").convert("RGB").point(lambda value: min(255, value + 3))
    near.save(folder / "cherry/alike.png")
    (folder / "apple/broken.png").write_bytes(b"no photo at all")
    return config.make({"data": str(folder), "val_per_class": 2, "test_per_class": 0})


def divided(cfg: config.Config) -> pd.DataFrame:
    return splits.prepare_manifest(cfg, Path(cfg.data).parent / "sweep", say=lambda line: None)


DOUBTFUL = pd.DataFrame([("apple/03.png", "apple", "cherry", 0.9, 0.1)])
DOUBTFUL.columns = ["path", "label", "suggested", "probability", "quality"]


def test_it_lists_what_a_person_should_look_at_and_why(project):
    table = label_desk.cases(divided(project), DOUBTFUL).set_index("path")
    assert table["kinds"].to_dict() == {
        "apple/03.png": ["doubtful label"],
        "apple/02.png": ["conflict"],
        "cherry/alike.png": ["conflict"],
        "apple/00.png": ["conflict"],
        "cherry/twice.png": ["conflict"],
        "apple/broken.png": ["quarantined"],
        "apple/z copy.png": ["near-duplicate"],
    }
    assert table.loc["apple/03.png", "reasons"] == ["the model says cherry (90%)"]
    assert table.loc["cherry/alike.png", "reasons"] == ["looks like apple/02.png, labelled apple"]
    assert table["beside"].to_dict() == {
        "apple/02.png": "cherry/alike.png",
        "cherry/alike.png": "apple/02.png",
        "apple/z copy.png": "apple/01.png",
    } | dict.fromkeys(["apple/03.png", "apple/00.png", "cherry/twice.png", "apple/broken.png"], "")
    assert table["suggested"].loc[["apple/03.png", "cherry/alike.png", "cherry/twice.png"]].tolist() == [
        "cherry",
        "apple",
        "apple",
    ]


def desk(cfg: config.Config, **more) -> label_desk.LabelDesk:
    return label_desk.LabelDesk(cfg, divided(cfg), DOUBTFUL, **more)


def press(shown: label_desk.LabelDesk, path: str, decision: str, new: str = "") -> None:
    card = shown.cards[shown.shown.index(path)]
    if new:
        card.choice.value = new
    card.buttons[decision].click()


def states(shown: label_desk.LabelDesk) -> dict[str, str]:
    return {path: card.state.value for path, card in zip(shown.shown, shown.cards, strict=False)}


def test_decisions_are_written_at_once_and_survive_views_pages_and_kernels(project):
    one = desk(project, who="ann")
    assert (one.kind.value, one.state.value, one.shown) == ("doubtful label", "to decide", ["apple/03.png"])
    press(one, "apple/03.png", "relabel", "cherry")
    held = corrections.read(corrections.place(project))
    assert held[["path", "old", "decision", "new", "who"]].values.tolist() == [
        ["apple/03.png", "apple", "relabel", "cherry", "ann"]
    ]
    assert "relabelled: cherry" in states(one)["apple/03.png"]  # it stays in view, to be looked at again
    one.kind.value = "conflict"
    assert len(one.shown) == 4
    press(one, "cherry/twice.png", "set aside")
    press(one, "apple/02.png", "keep")
    one.kind.value, one.state.value = "", "decided"
    assert set(one.shown) == {"apple/03.png", "cherry/twice.png", "apple/02.png"}
    again = desk(project)  # another kernel, the photos divided anew
    again.state.value = "decided"
    assert set(again.shown) >= {"apple/03.png", "cherry/twice.png"}
    again.kind.value = ""
    assert {path: words.split("<b>")[1].split("<")[0] for path, words in states(again).items()} == {
        "apple/03.png": "relabelled: cherry",
        "cherry/twice.png": "set aside",
        "apple/02.png": "kept",
    }
    press(again, "apple/03.png", "undo")
    assert divided(project).set_index("path").loc["apple/03.png", ["label", "decision"]].tolist() == ["apple", ""]
    assert states(again)["apple/03.png"] == "not decided"


def test_relabelling_twice_speaks_of_the_label_that_the_folder_gives(project):
    for new in ("cherry", "apple"):
        shown = desk(project)
        shown.state.value = "all"
        press(shown, "apple/03.png", "relabel", new)
    rows = corrections.read(corrections.place(project))
    assert rows[["old", "decision", "new"]].values.tolist() == [["apple", "relabel", "cherry"], ["apple", "keep", ""]]
    manifest = divided(project)
    assert corrections.confirmed(manifest) == {"apple/03.png"}
    assert corrections.unconfirmed(DOUBTFUL, manifest).empty


def test_a_pair_that_was_kept_is_no_longer_a_conflict(project):
    shown = desk(project)
    shown.kind.value = "conflict"
    for path in ("apple/02.png", "cherry/alike.png"):
        press(shown, path, "keep")
    table = label_desk.cases(divided(project))
    assert not {"apple/02.png", "cherry/alike.png"} & set(table["path"])


def test_the_photo_that_one_looks_like_is_shown_beside_it(project):
    shown = desk(project)
    card = shown.cards[0]
    assert (card.path, card.pictures.value.count("<img"), card.widget.layout.width) == ("apple/03.png", 1, "21em")
    shown.kind.value = "near-duplicate"
    first, second = re.findall("src='(.*?)'", card.pictures.value)
    assert card.path == "apple/z copy.png" and first == second  # a copy, byte by byte
    assert "right: <b>apple</b> · apple/01.png" in card.pictures.value
    shown.kind.value = "conflict"
    card = shown.cards[shown.shown.index("cherry/alike.png")]
    assert re.findall('alt="(.*?)"', card.pictures.value) == ["cherry/alike.png", "apple/02.png"]


def test_a_test_photo_is_neither_listed_nor_shown(project):
    manifest = divided(project)
    manifest.loc[manifest["path"] == "cherry/alike.png", "split"] = "test"
    table = label_desk.cases(manifest).set_index("path")
    assert "cherry/alike.png" not in table.index and table.loc["apple/02.png", "beside"] == ""


def test_of_several_photos_that_one_looks_like_the_first_is_shown_whose_label_is_suggested(project):
    manifest = divided(project)
    pairs = [("apple/02.png", "cherry/alike.png", "apple", "cherry"), ("apple/02.png", "pear/9.png", "apple", "pear")]
    pairs = pd.DataFrame(pairs, columns=["path_a", "path_b", "label_a", "label_b"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_desk.duplicates, "conflicts", lambda manifest: pairs)
        case = label_desk.cases(manifest).set_index("path").loc["apple/02.png"]
    assert (case["suggested"], case["beside"]) == ("cherry", "cherry/alike.png") and len(case["reasons"]) == 2


def test_a_photo_that_is_gone_changes_no_other_picture(project):
    manifest, paths = divided(project), ["apple/02.png", "apple/03.png", "cherry/11.png"]
    before = label_desk.Pictures(project, manifest).of(paths)
    (Path(project.data) / "apple/03.png").unlink()
    project = project.model_copy(update={"image_size": project.image_size + 1})  # nothing of it is cached
    after = label_desk.Pictures(project, manifest).of(paths)
    assert [after[path] == before[path] for path in paths] == [True, False, True]


def doubts(folder: Path, rows: list[tuple], hours_ago: float) -> None:
    """The list that 03 wrote for a run, so many hours ago."""
    folder.mkdir(parents=True)
    pd.DataFrame(rows, columns=DOUBTFUL.columns).to_csv(folder / "doubtful_labels.csv", index=False)
    time = datetime.now().timestamp() - 3600 * hours_ago
    os.utime(folder / "doubtful_labels.csv", (time, time))


def test_01_lists_what_runs_of_these_photos_have_doubted_the_newest_first(project, capsys):
    manifest, executed = divided(project), Path(project.data).parent
    tested = manifest["path"].eq("apple/04.png")
    manifest.loc[tested, "split"] = "test"
    row = ("apple/03.png", "apple", "cherry", 0.9, 0.1)
    doubts(executed / "sweep" / "old", [row, ("cherry/11.png", "cherry", "apple", 0.8, 0.2)], 50)
    doubts(executed / "sweep" / "new", [row, ("apple/04.png", "apple", "cherry", 0.9, 0.1)], 1)
    doubts(executed / "sweep" / "relabelled", [("apple/05.png", "cherry", "apple", 0.9, 0.1)], 1)
    doubts(executed / "other" / "run", [row], 2)  # another sweep, whose photo of this name is another one
    manifest.assign(sha256="0" * 64).to_csv(executed / "other" / "manifest.csv", index=False)
    doubts(executed / "same" / "run", [row], 3)
    manifest.to_csv(executed / "same" / "manifest.csv", index=False)
    doubts(executed / "broken" / "run", [row], 1)
    label_desk.show(project, manifest, sweep_dir=executed / "sweep")
    line = capsys.readouterr().out
    assert "doubtful labels: 2, from 03 of 3 runs" in line and line.count("\n") == 2
    assert "broken/run/doubtful_labels.csv is left out, it cannot be read: " in line and "no manifest.csv" in line
    listed, _ = label_errors.doubts_of_runs(executed / "sweep", manifest)
    assert listed[["path", "run"]].values.tolist() == [
        ["apple/03.png", "sweep/new"],
        ["apple/03.png", "same/run"],
        ["apple/03.png", "sweep/old"],
        ["cherry/11.png", "sweep/old"],
    ]
    reasons = label_desk.cases(manifest, listed).set_index("path")["reasons"]
    assert [reason.split(",")[0] for reason in reasons["apple/03.png"]] == ["sweep/new", "same/run", "sweep/old"]
    assert f"{datetime.now() - timedelta(hours=50):%Y-%m-%d}, says apple (80%)" in reasons["cherry/11.png"][0]


def test_what_cannot_be_read_can_only_be_set_aside(project):
    shown = desk(project)
    shown.kind.value = "quarantined"
    buttons = shown.cards[0].buttons
    assert [name for name, button in buttons.items() if button.disabled] == ["keep", "relabel", "undo"]
    press(shown, "apple/broken.png", "set aside")
    assert divided(project).set_index("path").loc["apple/broken.png", "status"] == "set_aside"


def test_pages_and_filters(project, monkeypatch):
    monkeypatch.setattr(label_desk, "CARDS", 3)
    shown = desk(project)
    shown.kind.value = ""
    assert shown.place.value == "7 photos, page 1 of 3" and shown.back.disabled and not shown.on.disabled
    first = shown.shown
    shown.on.click()
    assert len(shown.shown) == 3 and not set(first) & set(shown.shown)
    shown.on.click()
    assert [card.widget.layout.display for card in shown.cards] == ["flex", "none", "none"] and shown.on.disabled
    shown.label.value = "cherry"
    assert shown.place.value == "2 photos, page 1 of 1" and all(path.startswith("cherry") for path in shown.shown)
    assert all("data:image/jpeg;base64,/9j/" in card.pictures.value for card in shown.cards[:2])


def test_what_goes_wrong_is_said_in_the_desk(project):
    shown = desk(project)
    corrections.place(project).parent.mkdir(parents=True)
    corrections.place(project).write_text("nonsense\n1\n", encoding="utf-8")
    press(shown, "apple/03.png", "keep")
    assert "no column sha256" in shown.message.value


def test_it_shows_nothing_in_a_sweep_and_says_where_decisions_cannot_be_kept(project, monkeypatch):
    manifest = divided(project)
    none = project.model_copy(update={"corrections": "none"})
    assert "set corrections: auto" in label_desk.show(none, manifest).value
    monkeypatch.setenv("FRUITLIB_JOB", "1")
    assert label_desk.show(project, manifest) is None
