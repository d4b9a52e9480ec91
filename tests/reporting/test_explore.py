"""What the report's script works with, and the sheets of pictures: right, small, harmless whatever the files hold."""

import json
import re
import shutil

import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from report_sweep import CLASSES, write_report_sweep

from fruitlib.core import files
from fruitlib.reporting import explore, site, site_checks, site_photos, sprites
from fruitlib.reporting.explore import RunPhotos
from fruitlib.reporting.pages import Page

RUN, OTHER = "lr=0.001,optimizer=adam", "lr=0.001,optimizer=sgd"


def photos_of(labels: str, predicted: str, groups: list[str] | None = None) -> RunPhotos:
    """Photos of classes a, b, c, as letters; the first is least sure, the last most."""
    n = len(labels)
    table = pd.DataFrame(
        {"path": [f"{at}.jpg" for at in range(n)], "label": list(labels), "predicted": list(predicted)}
    )
    probs = np.full((n, 3), 0.0)
    for at, letter in enumerate(predicted):
        sure = 0.5 + 0.4 * at / n
        probs[at] = (1 - sure) / 2
        probs[at, "abc".index(letter)] = sure
    return RunPhotos(table, probs, list("abc"), groups or [""] * n)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = write_report_sweep(tmp_path_factory.mktemp("sweep"))
    site.build_site(folder)
    return folder


# ---- predictions


def test_what_is_wrong_and_how_sure():
    photos = photos_of("aabbc", "abbac")
    assert photos.mistakes.tolist() == [3, 1] and photos.least_sure[0] == 0
    assert photos.confidence.tolist() == [500000, 580000, 660000, 740000, 820000]
    found = explore.confusion_of(photos)
    assert found.matrix == [[1, 1, 0], [1, 1, 0], [0, 0, 1]] and found.pairs == [(0, 1, 1), (1, 0, 1)]


@pytest.mark.parametrize(
    ("above", "n", "correct"), [(0.0, 5, 3), (0.5, 4, 2), (0.58, 3, 2), (0.579999, 4, 2), (0.82, 0, 0)]
)
def test_answered_above_a_confidence_excludes_it(above, n, correct):
    found = explore.answered(photos_of("aabbc", "abbac"), above)
    assert (found["n"], found["correct"]) == (n, correct) and found["coverage"] == n / 5


def test_the_grid_counts_mistakes_of_each_group_and_leaves_out_photos_alone():
    grid = explore.group_grid(photos_of("aabbc", "abbac", ["x", "x", "y", "y", ""]))
    assert sorted(grid.rows) == [("x", 2, 1, [0, 1]), ("y", 2, 1, [1, 0])] and grid.classes == [0, 1]


def test_many_classes_are_left_out_of_tables_and_counted():
    n = 60
    names = [f"c{at:02d}" for at in range(n)]
    claimed = [names[(at + 1) % n] for at in range(n)] + names[30:40]  # 30 to 39 are claimed twice
    labels = [*names, *names[:10]]
    table = pd.DataFrame({"path": [f"{at}.jpg" for at in range(len(labels))], "label": labels, "predicted": claimed})
    photos = RunPhotos(table, np.full((len(labels), n), 1 / n), names, ["x"] * len(labels))
    confusion, grid = explore.confusion_of(photos), explore.group_grid(photos)
    assert len(confusion.pairs) == explore.MOST_PAIRS and confusion.more_pairs == 70 - explore.MOST_PAIRS
    assert len(grid.classes) == explore.MOST_CLASSES and grid.classes_left_out == n - explore.MOST_CLASSES
    assert set(range(30, 40)) <= set(grid.classes) and grid.classes == sorted(grid.classes)


@pytest.mark.parametrize("epochs", [1, 8, explore.MOST_EPOCHS, 399, 1000])
def test_a_curve_begins_and_ends_as_its_training(tmp_path, epochs):
    steps = np.arange(1, epochs + 1)
    pd.DataFrame({"epoch": steps, "val_loss": 1 / steps}).to_csv(tmp_path / "history.csv", index=False)
    shown = explore.load_history(tmp_path)["epoch"]
    assert len(shown) == min(epochs, explore.MOST_EPOCHS) and (shown[0], shown[-1]) == (1, epochs)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.assign(predicted="other"),
        lambda table: table.assign(p_bar=2.0),
        lambda table: table.assign(p_bar=np.nan),
        lambda table: table.assign(path="same"),
        lambda table: table.drop(columns="label"),
        lambda table: table[:0],
    ],
)
def test_predictions_that_are_odd_are_no_photos(sweep, tmp_path, change):
    table = pd.read_csv(sweep / RUN / "predictions_val.csv")
    change(table).to_csv(tmp_path / "predictions_val.csv", index=False)
    assert explore.load_photos(tmp_path, {}) is None
    table.to_csv(tmp_path / "predictions_val.csv", index=False)
    assert len(explore.load_photos(tmp_path, {}).table) == 30


def test_the_map_keeps_what_is_alike_together_and_takes_features_where_there_are_some(tmp_path):
    photos = photos_of("aaabbbccc", "aaabbbccc")
    places, of_what = explore.flat_map(photos.probs)
    within = np.linalg.norm(places[:3] - places[:3].mean(0), axis=1).max()
    between = np.linalg.norm(places[:3].mean(0) - places[3:6].mean(0))
    assert of_what == "probabilities" and within < between / 3 and places.min() >= 0 and places.max() == 1000
    paths = photos.table["path"].tolist()
    arrays = {"paths": np.array(paths[::-1]), "features": np.arange(18.0).reshape(9, 2), "trained": ""}
    np.savez(tmp_path / "features_val.npz", **arrays)
    features = explore.load_features(tmp_path, paths)
    assert features[0].tolist() == [16, 17] and explore.flat_map(photos.probs, features)[1] == "features"
    assert explore.load_features(tmp_path, ["unknown.jpg"]) is None


def test_many_features_lie_on_the_plane_where_they_vary_most():
    rng = np.random.default_rng(0)
    places = rng.uniform(-1, 1, (400, 2)) * (3, 1)
    axes = np.linalg.qr(rng.normal(size=(500, 2)))[0].T
    found, _ = explore.flat_map(np.empty((400, 0)), places @ axes + rng.normal(0, 0.001, (400, 500)))
    for dimension in (0, 1):
        assert abs(np.corrcoef(found[:, dimension], places[:, dimension])[0, 1]) > 0.99


def test_one_photo_or_equal_ones_have_a_map():
    assert explore.flat_map(np.full((1, 3), 1 / 3))[0].tolist() == [[500, 500]]
    assert explore.flat_map(np.full((4, 2), 0.5))[0].tolist() == [[500, 500]] * 4


def test_runs_beyond_the_limit_are_left_out_and_counted():
    a, b = photos_of("aabb", "abbb"), photos_of("aab", "aab")
    found, left = explore.paired_runs([("a", a), ("none", None), ("b", b)], at_most=5)
    assert list(found["predictions"]) == ["a"] and left == 1
    found, left = explore.paired_runs([("b", b), ("a", a)])
    assert found["predictions"]["b"]["photos"] == [0, 1, 2] and found["predictions"]["a"]["photos"] is None and not left


@pytest.mark.parametrize("text", ["</script><script>", "<!--", "\u2028", "\ud800", "&lt;", '"\\'])
def test_data_in_a_page_is_no_markup(text):
    shown = str(explore.as_script_data({"a": [text]}))
    assert not set("<>&\u2028\u2029") & set(shown)
    assert json.loads(shown)["a"][0] in (text, "?")


# ---- pictures


def test_the_sheets_hold_each_photo_and_its_heat(sweep):
    record = json.loads((sweep / "assets/photos.json").read_text())
    with Image.open(sweep / "assets/photos.webp") as sheet:
        assert sheet.size == (20 * 160, 2 * 160) and len(record["cells"]) == 30
        at = record["cells"]["bar/003.png"]
        cell = np.asarray(sheet.convert("RGB").crop((at % 20 * 160, 0, (at % 20 + 1) * 160, 160)), float)
    with Image.open(sweep.parent / "photos/bar/003.png") as photo:
        original = np.asarray(photo.convert("RGB").resize((160, 160)), float)
    assert np.abs(cell - original).mean() < 12
    heat = json.loads((sweep / RUN / "heat.json").read_text())
    assert [(layer["epoch"], layer["layer"]) for layer in heat["layers"]][-1] == (5, "conv2") and heat["columns"] == 5
    with Image.open(sweep / RUN / "heat.webp") as sheet:
        opacity = np.asarray(sheet.getchannel("A"))[:96, 96 * 4 : 96 * 5]
    assert opacity[60:85, 60:85].min() > 180 and opacity[:40].max() < 40  # conv2's heat, at the right place


def test_sheets_are_made_again_only_where_something_changed(sweep):
    files = [sweep / "assets/photos.webp", sweep / RUN / "heat.webp"]
    before = [file.stat().st_mtime_ns for file in files]
    site.build_site(sweep, changed_only=True)
    assert [file.stat().st_mtime_ns for file in files] == before
    (sweep / RUN / "cams/epoch_0001.npz").touch()
    site.build_site(sweep, changed_only=True)
    after = [file.stat().st_mtime_ns for file in files]
    assert after[0] == before[0] and after[1] > before[1]


def test_without_its_photos_the_report_says_so_and_has_its_numbers(tmp_path):
    folder = write_report_sweep(tmp_path)
    (tmp_path / "photos/bar/001.png").write_bytes(b"no picture")
    site.build_site(folder)
    assert "1 photos cannot be shown" in (folder / RUN / "photos.html").read_text("utf-8")
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    (folder / "assets/photos.json").unlink()
    site.build_site(folder)
    page = (folder / RUN / "photos.html").read_text("utf-8")
    assert "30 photos cannot be shown" in page and 'id="matrix"' in page


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: b"no zip", lambda whole: with_zeros(whole)])
def test_damaged_heatmaps_are_left_out(sweep, tmp_path, damage):
    whole = (sweep / RUN / "cams/epoch_0001.npz").read_bytes()
    (tmp_path / "cams").mkdir()
    (tmp_path / "cams/epoch_0001.npz").write_bytes(damage(whole))
    assert sprites.heat_sheet(tmp_path, lambda path, side: np.zeros((side, side, 3), np.uint8)) is sprites.NOTHING


def with_zeros(whole: bytes) -> bytes:
    """A zip file whose compressed data are damaged, not its list of files."""
    at = whole.index(b"heatmap.npy") + 40
    return whole[:at] + bytes(20) + whole[at + 20 :]


def test_heat_does_not_lie_over_a_photo_that_has_changed(tmp_path):
    folder = write_report_sweep(tmp_path, runs=1)
    table = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    table["sha256"] = [files.sha256(tmp_path / "photos" / path) for path in table["path"]]
    table.to_csv(folder / "manifest.csv", index=False)
    photo = sprites.seen_by(sprites.run_of(folder / RUN))
    first, *others = sprites.heat_sheet(folder / RUN, photo).cells
    shutil.copy(tmp_path / "photos/disc/001.png", tmp_path / "photos" / first)
    (folder / RUN / "heat.json").unlink()
    assert list(sprites.heat_sheet(folder / RUN, photo).cells) == others


def test_a_page_of_photos_that_cannot_be_written_costs_itself_alone(tmp_path):
    folder = write_report_sweep(tmp_path, runs=2)
    (folder / RUN / "photos.html").mkdir()
    text = site.build_site(folder).read_text("utf-8")
    assert f"{RUN}: photos.html cannot be written: " in text and f"{RUN}/photos.html" not in text
    assert len([*folder.glob("*/photos.html")]) == 2


# ---- a tie, checks


def test_the_index_says_among_the_best_where_there_is_a_tie(tmp_path):
    folder = write_report_sweep(tmp_path, runs=2)
    table = pd.read_csv(folder / "results.csv").assign(macro_f1=1.0)
    table.to_csv(folder / "results.csv", index=False)
    text = site.build_site(folder).read_text("utf-8")
    assert "It is a tie with " in text and "among the best by macro-F1" in text and "the best macro-F1" not in text


def pooled_sweep(tmp_path, scores: list[float]):
    """Two runs that are the folds of combination a; a and b are compared by what the folds predict together."""
    folder = write_report_sweep(tmp_path, runs=2, chosen="b", shipped=RUN)
    runs = sorted(path.parent for path in folder.glob("*/predictions_val.csv"))
    parts = [pd.read_csv(run / "predictions_val.csv").iloc[at::2] for at, run in enumerate(runs)]
    one = pd.concat([part.assign(run=run.name, fold=fold) for part, run, fold in zip(parts, runs, (1, 2), strict=True)])
    right = one.assign(predicted=one["label"])
    tables = [one.assign(combination="b", repeat=1), right.assign(combination="b", repeat=2)]
    pd.concat([*tables, right.assign(combination="a", repeat=1)]).to_csv(folder / "predictions_oof.csv", index=False)
    rows = [
        {"combination": name, "macro_f1": f1, "n": 30, "repeats": 2, "folds": 2}
        for name, f1 in zip("ab", scores, strict=True)
    ]
    pd.DataFrame(rows).to_csv(folder / "results_oof.csv", index=False)
    pd.read_csv(folder / "results.csv").assign(combination="b").to_csv(folder / "results.csv", index=False)
    return folder, int((one["label"] != one["predicted"]).sum())


def test_after_folds_confusion_and_mistakes_are_those_of_the_pooled_photos(tmp_path):
    folder, wrong = pooled_sweep(tmp_path, [0.7, 0.9])
    photos = explore.load_pooled(folder, "b", {})
    assert len(photos.table) == 30 and len(photos.mistakes) == wrong > 0
    assert explore.load_pooled(folder, "c", {}) is None and explore.load_pooled(tmp_path, "b", {}) is None
    strip = site.build_site(folder).read_text("utf-8").partition('aria-label="Four pictures"')[2]
    cells = re.findall(r'<td class="(?:right|wrong|none)">(\d+)</td>', strip)
    assert list(map(int, cells)) == [n for row in explore.confusion_of(photos).matrix for n in row]
    assert "Confusion on 30 photos of <code" in strip and "a fold that was not trained on it" in strip
    assert f"of {wrong} mistakes in 30 photos" in strip


@pytest.mark.parametrize(("scores", "tie"), [((0.9, 0.9), True), ((0.7, 0.9), False)])
def test_a_tie_of_combinations_is_said_too(tmp_path, scores, tie):
    folder, _ = pooled_sweep(tmp_path, scores)
    text = site.build_site(folder).read_text("utf-8")
    sentence = "It is a tie with a: the same macro-F1, 0.900. Of equals the first of the sweep was taken."
    assert (sentence in text) is tie and ("among the best by" in text) is tie
    table = text.partition("<h2>Combinations, by cross-validation</h2>")[2]
    assert re.findall(r'<code class="run">(.)</code>', table)[:2] == ["b", "a"]  # the chosen one first


LOOKED = {"grey_accuracy": 0.5, "hidden_corrected": 0.4, "hidden_chance": 0.33}
NO_SHORTCUT = "No shortcut beside the object"


def test_of_a_refit_the_fold_that_04_looked_at_speaks():
    fold = {"name": "fold=1", "row": LOOKED | {"combination": "a", "shortcut": 1}}
    other = {"name": "other", "row": LOOKED | {"combination": "b", "shortcut": 0}}
    shipped = {"name": "ship=refit", "row": {"combination": "a", "grey_accuracy": float("nan")}}
    assert site_checks._looked_at([other, fold, shipped], shipped) is fold["row"]
    assert site_checks._looked_at([other, fold], {"name": "x", "row": {}}) == {}


def checks_of(tmp_path, row: dict, train: dict, leaks=None, settings=None) -> dict:
    (tmp_path / "r/stages").mkdir(parents=True)
    (tmp_path / "r/stages/train.json").write_text(json.dumps(train))
    numbers = {} if leaks is None else {"leaks": leaks}
    page = Page(tmp_path / "01_split.ipynb", "01", headline={"numbers": numbers})
    run = {"name": "r", "state": "complete", "row": row, "settings": settings or {}}
    return {check.name: check.state for check in site_checks.checks(tmp_path, [page], [run], run)}


@pytest.mark.parametrize(
    ("row", "train", "leaks", "settings", "found"),
    [
        ({}, {}, None, {}, {}),
        ({}, {"weights": {"proof": ""}}, 0.0, {}, {"No leak": "passed"}),
        ({}, {"weights": 3}, 2.0, {}, {"No leak": "failed"}),
        ({"fp32_agreement": 1.0}, {}, None, {}, {"Same answers once exported": "passed"}),
        ({"fp32_agreement": 0.97}, {}, None, {}, {"Same answers once exported": "failed"}),
        ({"int8_state": "broken"}, {}, None, {}, {"INT8": "failed"}),
        ({"int8_state": "not made"}, {}, None, {}, {"INT8": "open"}),
        ({"int8_state": "costs at most the margin", "int8_costs_at_most": 0.02}, {}, None, {}, {"INT8": "passed"}),
        ({"int8_state": "not broken; cost unproven", "int8_costs_at_most": 0.1}, {}, None, {}, {"INT8": "open"}),
        (LOOKED | {"shortcut": 0.0}, {}, None, {}, {NO_SHORTCUT: "passed"}),
        (LOOKED | {"shortcut": 1.0, "hidden_corrected": 0.8}, {}, None, {}, {NO_SHORTCUT: "failed"}),
        (LOOKED, {}, None, {}, {NO_SHORTCUT: "open"}),
        ({"grey_accuracy": 0.5, "hidden_corrected": float("nan")}, {}, None, {}, {NO_SHORTCUT: "open"}),
        ({}, {"weights": {"proof": "proven: names photos"}}, None, {}, {"Pretrained weights": "passed"}),
        ({}, {"weights": {"proof": "not proven: names none"}}, None, {}, {"Pretrained weights": "open"}),
        (
            {"accuracy": 0.4, "accuracy_low": 0.3, "majority_accuracy": 0.33},
            {},
            None,
            {"train_labels": "shuffled"},
            {"Shuffled labels": "passed"},
        ),
        (
            {"accuracy": 0.8, "accuracy_low": 0.7, "majority_accuracy": 0.33},
            {},
            None,
            {"train_labels": "shuffled"},
            {"Shuffled labels": "failed"},
        ),
    ],
)
def test_checks_come_from_records_and_are_absent_without(tmp_path, row, train, leaks, settings, found):
    assert checks_of(tmp_path, row, train, leaks, settings) == found


def test_the_footer_says_what_it_was_made_with(tmp_path):
    folder = write_report_sweep(tmp_path, runs=1, command="fruitlib sweep params/shapes.yaml --data photos")
    (folder / RUN / "stages").mkdir()
    record = {"data_fingerprint": "abc123", "weights": {"sha256": "5793", "licence": "apache-2.0"}}
    (folder / RUN / "stages/train.json").write_text(json.dumps(record))
    footer = site.build_site(folder).read_text("utf-8").partition("<footer>")[2]
    assert all(text in footer for text in ("sweep params/shapes.yaml --data photos<", "abc123", "5793", "apache-2.0"))


def test_the_table_says_of_each_run_what_is_left_without_the_object(tmp_path):
    folder = write_report_sweep(tmp_path, runs=2)
    table = pd.read_csv(folder / "results.csv")
    table.assign(hidden_corrected=[0.31, 0.78], hidden_chance=0.33, shortcut=[0, 1]).to_csv(folder / "results.csv")
    rows = re.findall(r"<tr data-run=.*?</tr>", site.build_site(folder).read_text("utf-8"), re.DOTALL)
    cells = {re.search('data-run="(.*?)"', row)[1]: row for row in rows}
    assert "0.31<small" in cells[RUN] and "constant: 0.33" in cells[RUN] and "a shortcut" not in cells[RUN]
    assert "0.78<small" in cells[OTHER] and "a shortcut" in cells[OTHER]


def test_a_pair_shows_heat_of_every_photo_of_which_it_was_kept(tmp_path):
    folder = write_report_sweep(tmp_path, runs=2)
    paths = explore.load_photos(folder / RUN, {}).table["path"].tolist()
    arrays = {"paths": np.array(paths), "heatmap": np.ones((30, 1, 48, 48), np.float16), "layer_names": ["conv2"]}
    np.savez(folder / RUN / "cams" / "validation_0008.npz", **arrays)
    text = site.build_site(folder).read_text("utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    heat = {run["name"]: run["heat"] for run in data["runs"]}
    assert len(heat[RUN]["of"]) == 30 and heat[RUN]["for"] == "predicted" and heat[RUN]["file"] == "heat_all.webp"
    assert len(heat[OTHER]["of"]) == 3 and heat[OTHER]["for"] == "true"


# ---- size


def test_heat_of_every_photo_is_left_out_where_the_runs_are_many(tmp_path, monkeypatch):
    folder = write_report_sweep(tmp_path, runs=3)
    names = sorted(path.parent.parent.name for path in folder.glob("*/cams/epoch_0001.npz"))
    for name in names:
        shutil.copy(folder / name / "cams/epoch_0001.npz", folder / name / "cams/validation_0001.npz")
    monkeypatch.setattr(site_photos, "HEAT_ROWS", 4)  # three photos a run
    site.build_site(folder)
    there = [name for name in names if (folder / name / "heat_all.webp").is_file()]
    chosen = json.loads((folder / "sweep.json").read_text())["chosen"]
    assert len(there) == 2 and chosen in there and (folder / names[0] / "heat.webp").is_file()


def test_seventy_two_runs_of_three_hundred_photos_are_small(tmp_path, monkeypatch):
    """What the report adds to the notebooks' pages. The photos are noise, so their plainness saves nothing."""
    folder = write_report_sweep(tmp_path, runs=72, per_class=100)
    monkeypatch.setattr(sprites.preprocess, "decode", noisy)
    for name in ("02_train", "03_metrics"):
        nbformat.write(nbformat.v4.new_notebook(), folder / RUN / f"{name}.ipynb")
    site.build_site(folder)
    pages = [*folder.rglob("*.html")]
    assert len(pages) == 1 + 72 + 2 and max(page.stat().st_size for page in pages) < 5_000_000
    made = [*pages, *folder.rglob("*.webp"), *folder.rglob("heat.json"), *(folder / "assets").iterdir()]
    assert sum(file.stat().st_size for file in set(made)) < 60_000_000
    data = json.loads(re.search(r'id="data">(.*?)</script>', (folder / "index.html").read_text("utf-8"), re.DOTALL)[1])
    assert len(data["predictions"]) == 72 and len(data["paths"]) == 300 and data["classes"] == CLASSES


def noisy(folder, path, config, sha256=""):
    """A picture that hardly compresses, as a photo of grass does."""
    rng = np.random.default_rng(len(path))
    side = config.image_size
    return rng.integers(0, 255, (side, side, 3), dtype=np.uint8)
