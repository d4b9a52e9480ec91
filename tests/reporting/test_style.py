"""Figures show the numbers they are given; widgets react."""

import base64
import json
import re
import time
from types import SimpleNamespace
from urllib.parse import unquote

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from nbformat import v4
from PIL import Image

from fruitlib.evaluation import intervals, leakage
from fruitlib.reporting import (
    export_figures,
    metrics_figures,
    pages,
    pictures,
    split_figures,
    training_figures,
    widgets,
)
from fruitlib.reporting import style as style_room
from fruitlib.reporting.style import InteractiveShell, save_figure, use_style

NAMES = ["apple", "sour $_1$ cherry", "tomato"]
MATRIX = np.array([[9, 1, 0], [2, 8, 0], [0, 0, 0]])  # a class without photos must not break a figure


@pytest.fixture(autouse=True)
def style():
    use_style()
    yield
    plt.close("all")


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_split_counts_shows_each_number_once():
    table = pd.DataFrame({"train": [107, 30], "val": [10, 10], "test": [10, 0]}, index=["apple", "tomato"])
    ax = split_figures.split_counts(table)
    assert sorted(filter(None, texts(ax)), key=int) == ["10", "10", "10", "30", "107"]


def test_confusion_shows_counts_and_shares():
    assert texts(metrics_figures.confusion(MATRIX, NAMES))[:3] == ["9\n90%", "1\n10%", "0\n0%"]


def test_class_counts_and_rates_name_their_fractions():
    heights = [bar.get_height() for bars in metrics_figures.class_counts(MATRIX, NAMES).containers for bar in bars]
    assert heights == [9, 8, 0, 1, 2, 0, 2, 1, 0]  # tp, fn, fp
    cells = np.repeat(np.arange(9), MATRIX.ravel())
    labels, predicted = cells // 3, cells % 3
    figure = metrics_figures.class_rates(labels, predicted, NAMES, [""] * len(labels))
    axes = figure.axes
    assert "for new photos" in figure.get_supxlabel()
    trees = metrics_figures.class_rates(labels, predicted, NAMES, [f"t{i % 5}" for i in range(len(labels))], "tree")
    assert "for new trees" in trees.get_supxlabel()
    assert texts(axes[0]) == ["9/11", "8/9", "no photos"] and texts(axes[1])[:2] == ["9/10", "8/10"]


def test_shares_stand_where_they_should_and_say_of_what_they_speak():
    alone = {name: intervals.share_of(np.arange(30) < k) for name, k in {"torch": 27, "int8": 15}.items()}
    ax = metrics_figures.shares(alone, "accuracy")
    dots = [line.get_xdata()[0] for line in ax.lines if len(np.atleast_1d(line.get_xdata())) == 1]
    assert dots == [0.9, 0.5] and texts(ax) == ["27/30", "15/30"] and ax.get_xlabel().endswith("new photos")
    trees = {"torch": intervals.share_of(np.arange(30) < 27, [f"tree {i // 5}" for i in range(30)])}
    ax = metrics_figures.shares(trees, "accuracy", "tree")
    assert ax.get_xlabel().endswith("new trees; thick: these trees")


def test_history_marks_the_kept_epoch():
    rows = {f"{s}_{m}": [0.5, 0.6] for s in ("train", "val") for m in ("loss", "accuracy", "macro_f1")}
    figure = training_figures.training_curves(pd.DataFrame({"epoch": [1, 2], **rows}), epochs=9, kept_epoch=2)
    assert [ax.get_title() for ax in figure.axes] == ["loss", "accuracy", "macro-F1"]
    assert figure.axes[0].get_xlim() == (0.5, 9.5)
    assert "kept (epoch 2)" in [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def a_figure():
    table = pd.DataFrame({"file": ["fp32, <b>", "=int8"], "MB": [0.4, 1 / 3]})
    figure = export_figures.cost_bars({"fp32": 0.4, "int8": 1 / 3}, 'Size of the "file"', "MB").figure
    style_room.keep_table(figure, table)
    return figure


@pytest.fixture
def notebook_outputs(monkeypatch):
    """What `save_figure` shows in a notebook: outputs as nbformat has them."""
    outputs = []

    def display(data, metadata, raw):
        outputs.append(v4.new_output("display_data", data, metadata=metadata))

    monkeypatch.setattr("fruitlib.reporting.style.display", display)
    monkeypatch.setattr(InteractiveShell, "initialized", lambda: True)
    return outputs


def encoded(path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def on_page(output, folder) -> str:
    page = pages.Page(folder / "a.ipynb", "a", [v4.new_code_cell("x", outputs=[output])])
    return pages.content(page, folder)["evidence"]


@pytest.mark.parametrize("kind", style_room.TYPES)
def test_save_shows_the_very_picture_that_it_writes_and_the_page_its_numbers(kind, tmp_path, notebook_outputs):
    path = tmp_path / "deep" / f"a figure{kind}"
    save_figure(a_figure(), path)
    assert not plt.get_fignums()  # it will not be shown a second time
    (output,) = notebook_outputs
    shown = output["data"].get("text/html") or "".join(output["data"].values())
    assert encoded(path) in shown
    figure = re.search("<figure.*</figure>", on_page(output, tmp_path))[0]
    address = pictures.embedded(style_room.TYPES[kind], path.read_text() if kind == ".svg" else encoded(path))
    assert f'<img src="{address}" alt="Size of the &#34;file&#34;" width="' in figure
    assert 'download="a_figure.csv"' in figure and "--least: " in figure
    table = unquote(re.search('href="data:text/csv;charset=utf-8,([^"]*)"', figure)[1])
    assert table == 'file,MB\n"fp32, <b>",0.4\n\'=int8,0.333333\n'  # a spreadsheet computes nothing of it


def test_outside_a_notebook_a_figure_is_only_written_sharp_for_photographs(tmp_path, monkeypatch):
    monkeypatch.setattr("fruitlib.reporting.style.display", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(InteractiveShell, "initialized", lambda: False)
    figure = plt.figure(figsize=(4, 3))
    figure.text(0, 0, "corner"), figure.text(0.9, 1, "corner")
    save_figure(figure, tmp_path / "figure.jpg")
    with Image.open(tmp_path / "figure.jpg") as picture:
        assert 700 < picture.width < 1000 and picture.format == "JPEG"


def test_an_svg_of_very_many_lines_becomes_pixels_with_words_as_they_were(tmp_path, monkeypatch):
    def saved(name):
        figure, ax = plt.subplots()
        ax.plot(np.random.default_rng(0).normal(size=(900, 200)))
        ax.set_title("words")
        save_figure(figure, tmp_path / name)
        return (tmp_path / name).read_text()

    monkeypatch.setattr(style_room, "MAX_SVG", 900_000)
    small = saved("a.svg")
    monkeypatch.setattr(style_room, "MAX_SVG", 10**9)
    full = saved("b.svg")
    assert "data:image/png" in small and "data:image/png" not in full and len(small) < len(full)
    assert small.count(">words</text>") == full.count(">words</text>") == 1
    assert pictures.embedded("image/svg+xml", small) and pictures.embedded("image/svg+xml", full)


def test_every_letter_has_eleven_pixels_at_the_least_width(tmp_path, notebook_outputs):
    figure = plt.figure(figsize=(8, 1))
    figure.text(0.1, 0.5, "small", fontsize=9)
    figure.text(0.1, 0.5, "unseen", fontsize=1, visible=False)
    save_figure(figure, tmp_path / "a.svg")
    facts = notebook_outputs[0]["metadata"]["fruitlib_figure"]
    assert facts["least"] / facts["width"] * 9 * 100 / 72 == pytest.approx(11, abs=0.1)


def shown(ax) -> str:
    return " ".join(text.replace("\n", " ") for text in texts(ax))


def test_left_out_and_quarantined_photos_have_their_colour():
    table = pd.DataFrame({"train": [100], "quarantined": [1], "left_out": [30]}, index=["apple"])
    ax = split_figures.split_counts(table)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["train", "quarantined", "left out"]
    assert texts(ax) == ["100", "", "30"]  # no number where it would not fit


def test_fold_counts_shows_rare_classes_as_large_as_common_ones():
    table = pd.DataFrame({1: [1400, 7, 1407], 2: [1400, 3, 1403]}, index=["apple", "cherry", "all"])
    ax = split_figures.fold_counts(table)
    assert texts(ax) == ["1,400", "7", "1,400", "3"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["apple (2,800)", "cherry (10)"]
    assert [bar.get_width() for bars in ax.containers for bar in bars] == pytest.approx([0.5, 0.7, 0.5, 0.3])


def test_group_sizes_counts_groups_and_photos_that_stand_alone():
    groups = {"apple": ["a"] * 4 + ["b"] * 4 + ["c"] * 2, "cherry": ["d", "", ""], "tomato": ["a"] * 2}
    rows = [(label, group, "ok") for label, names in groups.items() for group in names]
    ax = split_figures.group_sizes(
        pd.DataFrame([*rows, ("apple", "z", "quarantined")], columns=["label", "group", "status"])
    )
    assert [text for text in texts(ax) if "alone" in text] == [
        "3 groups\n0 alone",
        "0 groups\n3 alone",
        "1 group\n0 alone",
    ]
    discs = [(x, row) for scatter in ax.collections for x, row in scatter.get_offsets().tolist()]
    assert discs == [(2, 0), (4, 0), (6, 0), (1, 1), (6, 2)]  # group a spans apple and tomato: six photos


def test_group_sizes_takes_no_groups_and_hundreds():
    alone = pd.DataFrame({"label": ["a", "b"], "group": "", "status": "ok"})
    assert shown(split_figures.group_sizes(alone)) == "1 0 groups 1 alone 1 0 groups 1 alone"
    sizes = np.random.default_rng(0).integers(1, 900, 300)
    many = pd.DataFrame({"group": np.repeat([f"g{i}" for i in range(300)], sizes), "label": "a", "status": "ok"})
    ax = split_figures.group_sizes(many)
    assert f"{(sizes > 1).sum()} groups" in shown(ax) and ax.get_xscale() == "log"


def test_leakage_shows_both_accuracies_and_what_lies_between():
    leak = leakage.Leakage(274, 49, 0.86, 0.8, 0.9, 0.72, 0.6, 0.8, 14.2, 9.3, 19.1)
    ax = split_figures.leakage_bars(leak)
    assert "0.86" in texts(ax) and "0.72" in texts(ax) and "n = 274" in ax.get_xlabel()
    assert "14 points (95 % interval 9 to 19) are leakage" in ax.get_xlabel()
    assert [line.get_xdata().tolist() for line in ax.lines[::2]] == [[0.8, 0.9], [0.6, 0.8]]
    assert texts(split_figures.leakage_bars(leakage.Leakage(reason="no groups"))) == [
        "no groups: nothing to compare, each photo stands alone"
    ]


def test_live_curves_are_one_output_and_do_not_outweigh_training(monkeypatch):
    shown, updates = [], []

    class Handle:
        def update(self, figure, raw=False):
            updates.append(figure)

    monkeypatch.setattr(widgets, "display", lambda figure, display_id: shown.append(figure) or Handle())
    clock = [0.0]
    monkeypatch.setattr(widgets, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    rows = {f"{s}_{m}": 0.5 for s in ("train", "val") for m in ("loss", "accuracy", "macro_f1")}
    tables = [pd.DataFrame([{"epoch": e, **rows} for e in range(1, epoch + 1)]) for epoch in range(7)]
    live = widgets.LiveCurves(epochs=6, seconds=3)
    for clock[0], table in zip([3, 3.5, 4, 5, 6, 6.6, 7], tables, strict=True):
        live(table)
    assert (len(shown), len(updates)) == (1, 1)  # after 3.5 and 6.6 seconds; drawing must not outweigh training
    live.finish()
    assert updates[1] == {"text/plain": ""}  # it goes: the notebook draws the history below, once
    quick = widgets.LiveCurves(epochs=6, seconds=3)
    quick(tables[6])
    quick.finish()
    assert (len(shown), len(updates)) == (1, 2)  # over in a moment: the notebook draws all of it below
    monkeypatch.setenv("FRUITLIB_JOB", "somewhere")
    clock[0] = 0.0
    unseen = widgets.LiveCurves(epochs=6, seconds=3)
    for clock[0] in (4.0, 8.0):
        unseen(tables[6])
    unseen.finish()
    assert (len(shown), len(updates)) == (1, 2)  # executed by a sweep: nobody watches


def test_the_live_table_follows_a_sweep_from_its_files_until_it_is_over(tmp_path):
    states = {"a": "pending", "b": "complete"}

    def write():
        listed = [{"name": name, "state": state, "epochs": 4, "error": None} for name, state in states.items()]
        sweep = {"title": "T", "choose_by": "macro_f1", "runs": listed, "total": 3}
        (tmp_path / "sweep.json").write_text(json.dumps(sweep))

    assert widgets.live(str(tmp_path / "nothing")).value == "no sweep has begun here yet"
    write()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".working.json").write_text('{"stage": "02_train"}')
    (tmp_path / "a" / "history.csv").write_text("epoch,val_macro_f1,seconds\n1,0.25,2.0\n")
    shown = widgets.live(str(tmp_path), seconds=0.05)
    assert f"<b>{tmp_path.name}</b> · 1/3 runs, 1 running" in shown.value and "val macro-F1" in shown.value
    assert "0.250" in shown.value and "1/4" in shown.value
    (tmp_path / "a" / ".working.json").unlink()
    states["a"] = "failed"
    write()
    deadline = time.monotonic() + 10
    while "2/3 runs, 1 failed" not in shown.value:
        assert time.monotonic() < deadline, shown.value
        time.sleep(0.02)
