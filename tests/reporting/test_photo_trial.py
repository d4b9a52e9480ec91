"""What the file to use says of single photos, in stills and in the widget."""

import io
from datetime import datetime
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import onnx
import pytest
from PIL import Image

from fruitlib.core.errors import InputError
from fruitlib.data import dataset
from fruitlib.deploy import export, model_files, predict, verify
from fruitlib.reporting import photo_trial, widgets
from fruitlib.runs.run import Run
from fruitlib.training import train


@pytest.fixture(scope="module")
def exported(tmp_path_factory, shapes) -> Run:
    from fruitlib.core import config
    from fruitlib.data import splits
    from fruitlib.runs.run import create_run

    folder = tmp_path_factory.mktemp("trial")
    settings = {"data": str(shapes), "val_per_class": 4, "test_per_class": 4, "image_size": 32, "epochs": 2}
    cfg = config.make(settings | {"batch_size": 8, "cam_every": 0, "precision": "fp32"})
    splits.prepare_manifest(cfg, folder)
    run = create_run(folder / "run", cfg)
    train.fit(run)
    with pytest.MonkeyPatch.context() as patch:
        latency = export.latency_ms
        patch.setattr(export, "latency_ms", lambda runners, **how: latency(runners, **how | {"repeats": 5}))
        verify.export_run(run)
    return run


def with_threshold(trial: photo_trial.PhotoTrial, above: str) -> photo_trial.PhotoTrial:
    trial.metadata["answer_above"] = above
    return trial


def shipped(run: Run):
    return run.path / {"fp32": model_files.FP32, "int8": model_files.INT8}[verify.load_export_record(run).shipped]


def of_first_photo(run: Run) -> tuple[bytes, np.ndarray]:
    """The bytes of the first validation photo, and the square that the network sees."""
    photos = dataset.load_photos(run, "val")
    return (Path(run.config.data) / photos.paths[0]).read_bytes(), dataset.to_pictures(photos.images)[0]


def test_a_photo_file_is_answered_as_the_prepared_photo_is(exported):
    content, square = of_first_photo(exported)
    answer = photo_trial.PhotoTrial(exported).of_file("own.png", content)
    np.testing.assert_array_equal(answer.photo, square)
    logits = predict.run_onnx(shipped(exported), square[None])
    assert exported.class_names[int(logits.argmax())] in answer.text
    assert answer.heat.shape == square.shape and (answer.heat != square).any()


@pytest.mark.parametrize(
    ("above", "start", "end"),
    [
        ("none", "", "; a person should look"),
        ("0.999999", "unsure, most likely ", ""),
        ("0.000001", "", ""),
        ("", "", ""),
    ],
    ids=["nothing proven", "below", "above", "unknown"],
)
def test_whether_the_model_may_answer_alone_is_said(exported, above, start, end):
    _, square = of_first_photo(exported)
    (answer,) = with_threshold(photo_trial.PhotoTrial(exported), above).answers(square[None])
    name = exported.class_names[int(predict.run_onnx(shipped(exported), square[None]).argmax())]
    assert answer.text.startswith(f"{start}{name} (") and answer.text.endswith(f"%){end}")


def test_a_file_without_heat_shows_the_photo(exported, tmp_path):
    path, trial = tmp_path / "plain.onnx", photo_trial.PhotoTrial(exported)
    model = onnx.load(shipped(exported))
    del model.graph.output[2:]
    onnx.save(model, path)
    trial.session, trial.outputs = predict.open_session(path), ["probabilities"]
    _, square = of_first_photo(exported)
    (answer,) = trial.answers(square[None])
    np.testing.assert_array_equal(answer.heat, square)


def test_stills_show_a_validation_photo_of_each_class(exported):
    figure = photo_trial.PhotoTrial(exported).examples()
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert [name.split(":")[0] for name in shown if ":\n" in name] == exported.class_names
    assert len(figure.axes[0].images) == 2 * len(exported.class_names)
    assert "Validation photos" in figure.axes[0].get_title() + str(figure.get_suptitle())
    plt.close(figure)


def upload(box, name: str, content: bytes) -> None:
    facts = {"name": name, "type": "image/png", "size": len(content), "last_modified": datetime.now()}
    box.children[0].value = ({**facts, "content": memoryview(content)},)


def test_the_widget_answers_a_photo_and_says_what_is_none(exported):
    box = widgets.try_photo(photo_trial.PhotoTrial(exported).of_file)
    _, message, pictures = box.children
    upload(box, "no<b>.png", b"text")
    assert message.value == "no&lt;b&gt;.png: text, not an image; choose another photo" and not pictures.children
    upload(box, "own.png", of_first_photo(exported)[0])
    assert "(own.png)" in message.value and len(pictures.children) == 2
    assert Image.open(io.BytesIO(pictures.children[1].value)).size == (320, 320)


def test_a_run_that_was_not_exported_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="execute 05_quantize first"):
        photo_trial.PhotoTrial(Run(tmp_path))
