"""The notebooks: clean, tagged, agreeing with `Config`, and each executed on settings that take seconds."""

import ast
import json
import re
import subprocess
import sys
import tokenize
from io import StringIO
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest

from fruitlib.core import config
from fruitlib.deploy import predict
from fruitlib.kernels import kernelspec
from fruitlib.runs import stages
from fruitlib.runs.run import open_run
from fruitlib.sweep import driver, worker

ROOT = Path(__file__).parents[2]
ALL = sorted((ROOT / "notebooks").glob("*.ipynb"))
NOTEBOOKS = [path for path in ALL if path.stem != "00_start"]  # those that a sweep executes
PLACES = {"run_dir", "sweep_dir", "a", "b", "split", "backend_a", "backend_b", "columns_a", "columns_b", "measure"}
SHARES = {"val_per_class", "test_per_class"}  # int | float, which papermill cannot read


def cells(path: Path, kind: str) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def code_lines(source: str) -> int:
    """Lines of a cell that are not blank."""
    return sum(bool(line.strip()) for line in source.splitlines())


def parameter_lines(path: Path) -> dict[str, tuple[str, object, str]]:
    """name -> (annotation, default, comment) of the parameters cell."""
    source = next(cell.source for cell in cells(path, "code") if "parameters" in cell.metadata.get("tags", []))
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    return {
        node.target.id: (ast.unparse(node.annotation), ast.literal_eval(node.value), comments.get(node.lineno, ""))
        for node in ast.parse(source).body
    }


def test_there_are_the_notebooks_of_the_argument():
    expected = ["01_split", "02_train", "03_metrics", "04_gradcam", "05_quantize", "06_test_accuracy"]
    expected += ["07_compare", "08_insight"]
    assert [path.stem for path in ALL] == ["00_start", *expected]
    assert set(stages.STAGES) >= {*driver.RUN_STAGES, driver.TEST_STAGE}


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
class TestAll:
    def test_it_is_clean(self, path):
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        code = cells(path, "code")
        assert all(not cell.outputs and cell.execution_count is None for cell in code)
        assert notebook.metadata.kernelspec.name == "python3"
        assert subprocess.run([sys.executable, "-m", "nbstripout", "--verify", str(path)]).returncode == 0

    def test_code_is_short_and_defines_nothing(self, path):
        sources = [cell.source for cell in cells(path, "code")]
        lengths = [code_lines(source) for source in sources]
        assert sum(lengths) < 70
        assert max(lengths[2:], default=0) <= 5  # after the parameters and the imports
        assert not re.search(r"^\s*(def|class) ", "\n".join(sources), flags=re.MULTILINE)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestEach:
    def test_it_has_the_anatomy(self, path):
        notebook = nbformat.read(path, as_version=4)
        first, second, third = notebook.cells[:3]
        assert first.cell_type == "markdown" and re.match(rf"# {int(path.stem[:2])} · .+\?", first.source)
        assert "**Reads**" in first.source and "**Writes**" in first.source
        assert second.metadata.tags == ["parameters"]
        assert "headline = Headline.start()" in third.source
        assert "headline.answer(" in notebook.cells[-1].source
        questions = [cell for cell in cells(path, "markdown") if cell.source.startswith("## ")]
        assert len(questions) >= 2

    def test_parameters_agree_with_config(self, path):
        for name, (annotation, default, comment) in parameter_lines(path).items():
            assert comment, f"{name} has no comment"
            if name in PLACES or name == "overrides":
                continue
            field = config.Config.model_fields[name]
            plain = field.annotation in (int, float, str)
            expected = field.annotation.__name__ if plain else "str" if name not in SHARES else "float"
            assert (annotation, default, comment) == (expected, field.default, field.description)

    def test_papermill_sees_every_parameter(self, path):
        assert set(papermill.inspect_notebook(str(path))) == set(parameter_lines(path))


@pytest.fixture(scope="module")
def executed(shapes, tmp_path_factory):
    """All notebooks executed in order on tiny settings, as a person's papermill calls would."""
    folder = tmp_path_factory.mktemp("executed")
    tiny = {
        "data": str(shapes),
        "image_size": 32,
        "overrides": {"val_per_class": 4, "test_per_class": 4, "int8_speedup": 0},
    }
    settings = {
        "01_split": {"sweep_dir": str(folder), **tiny, "val_per_class": 4, "test_per_class": 4, "overrides": {}},
        "02_train": {"run_dir": str(folder / "run"), **tiny, "epochs": 4, "batch_size": 8, "lr": 0.003, "cam_every": 2},
    }
    settings |= {stage: {"sweep_dir": str(folder)} for stage in worker.COMPARISON_STAGES}
    kernelspec.install()
    for path in NOTEBOOKS:
        parameters = settings.get(path.stem, {"run_dir": str(folder / "run")})
        options = {"kernel_name": kernelspec.NAME, "progress_bar": False}
        papermill.execute_notebook(path, folder / path.name, parameters, **options)
    return folder


def outputs(path: Path) -> list:
    return [output for cell in cells(path, "code") for output in cell.outputs]


def headline(path: Path) -> dict:
    headlines = [o.metadata["fruitlib"]["headline"] for o in outputs(path) if "fruitlib" in o.get("metadata", {})]
    assert len(headlines) == 1
    return headlines[0]


def test_every_notebook_answers_its_question(executed):
    for path in NOTEBOOKS:
        answer = headline(executed / path.name)
        assert answer["state"] == "answered" and answer["numbers"], path.stem
        assert not [o for o in outputs(executed / path.name) if o.output_type == "error"]


def test_no_notebook_complains(executed):
    for path in NOTEBOOKS:
        noise = [o.text for o in outputs(executed / path.name) if o.output_type == "stream" and o.name == "stderr"]
        assert noise == [], path.stem


def test_every_figure_is_shown_once_and_saved(executed):
    for path in NOTEBOOKS:
        shown = [o["data"] for o in outputs(executed / path.name) if "data" in o]
        pictures = [data[mime] for data in shown for mime in ("image/png", "image/jpeg") if mime in data]
        pictures += [data["text/html"] for data in shown if "data:image/svg+xml" in data.get("text/html", "")]
        alone = path.stem == "08_insight"  # of a single run there is nothing to compare
        assert (pictures or alone) and len(pictures) == len(set(pictures)), path.stem
    saved = {figure.stem for figure in (executed / "run" / "figures").iterdir()}
    assert {"history", "class_counts", "class_rates", "confusion", "cam_layers", "cam_epochs", "latency"} <= saved


def test_the_numbers_on_top_are_those_in_the_files(executed):
    run = open_run(executed / "run")
    predictions = run.predictions("val")
    accuracy = (predictions["label"] == predictions["predicted"]).mean()
    assert headline(executed / "03_metrics.ipynb")["numbers"]["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert run.read_json("metrics.json")["accuracy"] == pytest.approx(accuracy)
    test = run.predictions("test")
    assert test.groupby("backend").size().to_dict() == {"torch": 12, "fp32": 12, "int8": 12}
    assert set(test["path"]) == set(run.rows("test")["path"])


def test_frozen_features_stand_beside_the_network(executed):
    run = open_run(executed / "run")
    network, probe = run.predictions("val"), run.predictions("probe")
    assert probe["path"].tolist() == network["path"].tolist() and set(probe["backend"]) == {"probe"}
    right = (probe["label"] == probe["predicted"]).mean()
    assert run.read_json("metrics.json")["probe_accuracy"] == pytest.approx(right)
    printed = "".join(o.text for o in outputs(executed / "03_metrics.ipynb") if o.output_type == "stream")
    assert "baseline: logistic regression on frozen features of " in printed
    assert f"compared with frozen features: accuracy {headline_accuracy(executed):.3f} against {right:.3f}, " in printed


def headline_accuracy(executed: Path) -> float:
    return headline(executed / "03_metrics.ipynb")["numbers"]["accuracy"]


def test_the_exported_file_says_what_its_photos_must_be(executed):
    run = open_run(executed / "run")
    output = json.loads(predict.read_metadata(run.path / "model.int8.onnx")["preprocess"])
    assert output == run.config.model_dump(include=set(config.PREPROCESS_SETTINGS))  # deep_bits: no photo needs it


def test_the_test_set_is_opened_once_and_that_is_on_record(executed):
    assert len(pd.read_csv(executed / "test_openings.csv")) == 1
    parameters = {"run_dir": str(executed / "run")}
    path = ROOT / "notebooks" / "06_test_accuracy.ipynb"
    papermill.execute_notebook(path, executed / "06_again.ipynb", parameters, progress_bar=False)
    assert len(pd.read_csv(executed / "test_openings.csv")) == 1  # the same model: read, not opened again
    assert headline(executed / "06_again.ipynb")["text"] == headline(executed / "06_test_accuracy.ipynb")["text"]


def test_papermill_with_two_processes_as_it_stands(executed, shapes):
    """`papermill notebooks/02_train.ipynb out.ipynb -p lr 0.0003 -p optimizer sgd -p processes 2`."""
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(ROOT / "notebooks" / "02_train.ipynb"),
        str(executed / "out.ipynb"),
    ]
    command += ["-p", "lr", "0.0003", "-p", "optimizer", "sgd", "-p", "processes", "2", "-p", "image_size", "32"]
    command += ["-p", "epochs", "2", "-p", "data", str(shapes), "-p", "run_dir", str(executed / "two" / "run")]
    command += ["-y", "overrides: {val_per_class: 4, test_per_class: 3}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = open_run(executed / "two" / "run")
    assert (run.config.lr, run.config.optimizer, run.record("train")["processes"]) == (0.0003, "sgd", 2)
    text = "".join(o.text for o in outputs(executed / "out.ipynb") if o.output_type == "stream")
    assert "epoch 2/2" in text


def test_an_unknown_parameter_stops_the_notebook_with_one_line(executed):
    path = ROOT / "notebooks" / "02_train.ipynb"
    with pytest.raises(
        papermill.PapermillExecutionError, match=r"unknown parameter optimiser \(did you mean optimizer"
    ):
        papermill.execute_notebook(path, executed / "bad.ipynb", {"optimiser": "sgd"}, progress_bar=False)
    error = next(o for o in outputs(executed / "bad.ipynb") if o.output_type == "error")
    assert len(error.traceback) == 1  # the line alone
