"""The exported files compute what the model computes, stand alone, and are refused when they do not."""

import time

import numpy as np
import onnx
import pytest
import torch
import torchvision
from torch import nn

from fruitlib.core import config
from fruitlib.core.errors import InputError
from fruitlib.deploy import export, predict, quantize
from fruitlib.training import models
from fruitlib.training import views as seen

NAMES = ["apple", "cherry", "tomato"]


class Net(nn.Module):
    """A small convolutional net with its normalisation inside, as the project's models have."""

    def __init__(self, width: int = 16):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.SiLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(2 * width, 3),
        )

    def forward(self, images):
        return self.body((images - 0.5) / 0.25)


def separable(n: int, seed: int, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images whose class is the colour channel that is a little brighter in one quarter."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(0, 0.8, (n, 3, size, size)).astype(np.float32)
    labels = rng.integers(0, 3, n)
    for image, label, (y, x) in zip(images, labels, rng.integers(0, size // 2, (n, 2)), strict=True):
        image[label, y : y + size // 2, x : x + size // 2] += 0.2
    return images, labels


def structured(size: int) -> np.ndarray:
    """Black, white, ramps, a checkerboard and a dot: where random noise averages out, these do not."""
    ramp = np.linspace(0, 1, size, dtype=np.float32)
    board = (np.indices((size, size)).sum(0) // 4 % 2).astype(np.float32)
    dot = np.zeros((size, size), np.float32)
    dot[size // 2, size // 2] = 1
    planes = [np.zeros_like(dot), np.ones_like(dot), np.tile(ramp, (size, 1)), np.tile(ramp, (size, 1)).T]
    planes += [board, dot, 1 - board]
    return np.stack([np.stack([plane, plane[::-1], 1 - plane]) for plane in planes])


def with_batchnorm_statistics(model: nn.Module, size: int) -> nn.Module:
    """BatchNorm statistics other than 0 and 1, so that a wrong folding shows."""
    model.train()
    with torch.no_grad():
        for seed in range(5):
            torch.manual_seed(seed)
            model(torch.rand(8, 3, size, size) * (0.4 + seed / 10))
    return model.eval()


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for step in range(60):
        images, labels = separable(32, step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.from_numpy(images)), torch.from_numpy(labels)).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def fp32(trained, tmp_path_factory):
    return export.export_onnx(trained, tmp_path_factory.mktemp("fp32") / "model.fp32.onnx", 32, NAMES, {"run": "lr=é"})


@pytest.fixture(scope="module")
def int8(fp32, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    return quantize.quantize(fp32, folder / "model.int8.onnx", separable(64, 500)[0])


# ---- fp32 ----


@pytest.mark.parametrize("name", ["small", "resnet18", "efficientnet_b0"])
def test_fp32_computes_what_torch_computes(name, tmp_path):
    size = 32 if name == "small" else 64
    torch.manual_seed(0)
    model = Net() if name == "small" else getattr(torchvision.models, name)(weights=None, num_classes=3)
    model = with_batchnorm_statistics(model, size).to(memory_format=torch.channels_last)
    path = export.export_onnx(model, tmp_path / "model.onnx", size, NAMES)
    noise = np.random.default_rng(1).random((7, 3, size, size), np.float32)
    for images in (noise, structured(size), noise[:1], structured(size)[4:5]):
        with torch.no_grad():
            reference = model(torch.from_numpy(images)).numpy()
        parity = export.parity(reference, export.run_graph(path, images))
        assert parity["max_abs_diff"] < 1e-4 and parity["agreement"] == 1 and parity["n"] == len(images)
    assert np.ptp(reference) > 0
    np.testing.assert_allclose(export.run_torch(model, images, batch_size=2), reference, atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("views", ["flip", "five"])
def test_views_are_averaged_inside_the_files_which_hold_the_network_once(views, tmp_path):
    torch.manual_seed(0)
    model = models.build(config.make({"model": "base", "image_size": 32, "views": views}), 5).eval()
    fp32 = export.export_onnx(model, tmp_path / "fp32.onnx", 32, [*"abcde"])
    images = np.concatenate([structured(32), np.random.default_rng(0).random((4, 3, 32, 32), np.float32)])
    for some in (images, images[:1]):
        parity = export.parity(export.run_torch(model, some), export.run_graph(fp32, some))
        assert parity["max_abs_diff"] < 1e-4
    each = torch.stack([model.net((view - model.mean) / model.std) for view in seen.of(torch.tensor(images), views)])
    np.testing.assert_allclose(export.run_torch(model, images), each.mean(0).detach(), atol=1e-5)
    int8 = quantize.quantize(fp32, tmp_path / "int8.onnx", images)
    assert export.size_mb(int8) < 0.4 * export.size_mb(fp32)  # half, if each view had weights of its own


def test_one_file_that_says_what_it_is(fp32):
    assert [p.name for p in fp32.parent.iterdir()] == ["model.fp32.onnx"]
    proto = onnx.load(fp32, load_external_data=False)
    onnx.checker.check_model(proto)
    assert all(t.data_location == onnx.TensorProto.DEFAULT for t in proto.graph.initializer)
    (images,), (logits,) = proto.graph.input, proto.graph.output
    assert (images.name, logits.name) == ("images", "logits")
    shape = images.type.tensor_type.shape.dim
    assert shape[0].dim_param == "batch" and [d.dim_value for d in shape[1:]] == [3, 32, 32]
    assert predict.class_names(fp32) == NAMES
    metadata = predict.read_metadata(fp32)
    assert metadata["image_size"] == "32" and metadata["run"] == "lr=é"


def test_no_source_paths_in_the_files(fp32, int8):
    for path in (fp32, int8):
        content = path.read_bytes()
        assert b"site-packages" not in content and b'.py"' not in content


def test_the_model_is_left_unchanged(tmp_path, capfd, caplog):
    model = Net().train()
    model(torch.rand(4, 3, 32, 32)).sum().backward()
    model.body[1].eval()
    model.body[0].weight.requires_grad_(False)
    flags = [m.training for m in model.modules()]
    grads = [id(p.grad) for p in model.parameters()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(5)
    random_state = torch.get_rng_state()
    export.export_onnx(model, tmp_path / "a.onnx", 32, NAMES)
    with torch.inference_mode():
        export.export_onnx(model, tmp_path / "b.onnx", 32, NAMES)
    assert [m.training for m in model.modules()] == flags
    assert [id(p.grad) for p in model.parameters()] == grads
    assert [p.requires_grad for p in model.parameters()] == [i > 0 for i in range(len(grads))]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert capfd.readouterr() == ("", "") and not [r for r in caplog.records if r.levelname != "DEBUG"]


def test_names_and_metadata_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(InputError, match="2 names for 3 logits"):
        export.export_onnx(Net(), tmp_path / "model.onnx", 32, NAMES[:2])
    with pytest.raises(InputError, match="image_size"):
        export.export_onnx(Net(), tmp_path / "model.onnx", 32, NAMES, {"image_size": "64"})
    assert not list(tmp_path.iterdir())


def test_a_failed_export_keeps_the_earlier_file(tmp_path):
    class Unexportable(Net):
        def forward(self, images):
            return super().forward(images) if images.sum() > 0 else images

    path = tmp_path / "model.onnx"
    path.write_text("earlier")
    with pytest.raises(Exception, match="export"):
        export.export_onnx(Unexportable(), path, 32, NAMES)
    assert path.read_text() == "earlier" and len(list(tmp_path.iterdir())) == 1


# ---- INT8 ----


def test_int8_is_smaller_and_agrees(trained, fp32, int8):
    images, labels = separable(200, 900)
    reference, logits = export.run_torch(trained, images), export.run_graph(int8, images)
    assert (reference.argmax(1) == labels).mean() > 0.9
    parity = export.parity(reference, logits)
    assert parity["agreement"] >= 0.97
    assert 0 < parity["mean_abs_diff"] < 0.1 * reference.std()
    assert export.size_mb(int8) < export.size_mb(fp32)
    single = np.concatenate([export.run_graph(int8, images[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(single, logits[:5], atol=1e-5)


def test_large_layers_shrink_to_about_a_quarter(tmp_path):
    fp32 = export.export_onnx(Net(width=128), tmp_path / "a.onnx", 32, NAMES)
    int8 = quantize.quantize(fp32, tmp_path / "b.onnx", separable(4, 0)[0])
    assert export.size_mb(int8) < 0.3 * export.size_mb(fp32)


def test_int8_is_what_the_docstring_says(int8):
    graph = onnx.load(int8).graph
    made_by = {output: node for node in graph.node for output in node.output}
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    shapes = {tensor.name: tensor.dims for tensor in graph.initializer}
    *heavy, head = [node for node in graph.node if node.op_type in quantize.WITH_WEIGHTS]
    assert len(heavy) == 2 and not any(node.op_type == "BatchNormalization" for node in graph.node)
    for node in heavy:
        activation, weight = (made_by[name] for name in node.input[:2])
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        assert types[activation.input[2]] == onnx.TensorProto.UINT8
        assert types[weight.input[0]] == onnx.TensorProto.INT8
        assert list(shapes[weight.input[1]]) == [max(3, shapes[weight.input[0]][0])]
    assert types[head.input[1]] == onnx.TensorProto.FLOAT
    sigmoid = next(node for node in graph.node if node.op_type == "Sigmoid")
    product = next(node for node in graph.node if sigmoid.output[0] in node.input)
    assert product.op_type == "Mul"


def test_metadata_survives_quantizing(fp32, int8):
    metadata = predict.read_metadata(int8)
    assert "Conv/Gemm/MatMul/Relu/Clip" in metadata.pop("quantization") and metadata == predict.read_metadata(fp32)


def test_the_order_of_calibration_images_does_not_matter(fp32, tmp_path):
    images, _ = separable(20, 3)
    one = quantize.quantize(fp32, tmp_path / "one.onnx", images)
    other = quantize.quantize(fp32, tmp_path / "other.onnx", images[::-1])
    darker = quantize.quantize(fp32, tmp_path / "darker.onnx", images / 4)
    test_images, _ = separable(20, 4)
    np.testing.assert_allclose(export.run_graph(one, test_images), export.run_graph(other, test_images), atol=1e-6)
    assert np.abs(export.run_graph(one, test_images) - export.run_graph(darker, test_images)).max() > 0.1


def test_quantizing_is_quiet_and_leaves_nothing_behind(fp32, tmp_path, monkeypatch, capfd, caplog):
    work, scratch, out = (tmp_path / name for name in ("work", "scratch", "out"))
    work.mkdir(), scratch.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    quantize.quantize(fp32, out / "model.int8.onnx", separable(4, 0)[0])
    assert [p.name for p in out.iterdir()] == ["model.int8.onnx"]
    assert not list(work.iterdir()) and not list(scratch.iterdir())
    assert [p.name for p in fp32.parent.iterdir()] == ["model.fp32.onnx"]
    assert capfd.readouterr() == ("", "") and not [r for r in caplog.records if r.levelname != "DEBUG"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda images: images[:0],
        lambda images: images[0],
        lambda images: images[:, :, :16],
        lambda images: images.astype(np.float64),
        lambda images: (255 * images).astype(np.uint8),
        lambda images: 255 * images,
        lambda images: images * np.float32("nan"),
    ],
)
def test_images_that_do_not_fit_are_refused(fp32, tmp_path, spoil):
    with pytest.raises(InputError, match="calibration_images"):
        quantize.quantize(fp32, tmp_path / "model.onnx", spoil(separable(2, 0)[0]))
    with pytest.raises(InputError, match="images"):
        export.run_graph(fp32, spoil(separable(2, 0)[0]))
    assert not list(tmp_path.iterdir())


def test_missing_and_broken_files_are_named(tmp_path):
    images, _ = separable(1, 0)
    with pytest.raises(InputError, match=r"gone\.onnx: no such file"):
        export.run_graph(tmp_path / "gone.onnx", images)
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(InputError, match=r"broken\.onnx: not a readable"):
        export.run_graph(tmp_path / "broken.onnx", images)


# ---- the gate ----


def test_parity_is_what_it_says():
    reference = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 3.0]])
    other = reference + [[0.1, 0], [0, 0], [-2.5, 0], [0, 0]]
    parity = export.parity(reference, other)
    assert parity == {"max_abs_diff": 2.5, "mean_abs_diff": pytest.approx(2.6 / 8), "agreement": 0.75, "n": 4}
    for shapes in [((2, 3), (3, 3)), ((2, 3), (2, 1)), ((0, 3), (0, 3)), ((3,), (3,))]:
        with pytest.raises(InputError):
            export.parity(*(np.zeros(shape) for shape in shapes))


def test_a_broken_file_is_caught(trained, fp32, tmp_path):
    images, _ = separable(50, 6)
    reference = export.run_torch(trained, images)
    good = export.parity(reference, export.run_graph(fp32, images))
    export.check_parity(good)
    proto = onnx.load(fp32)
    bias = next(tensor for tensor in proto.graph.initializer if tensor.name.endswith("10.bias"))
    moved = onnx.numpy_helper.to_array(bias) + np.array([0, 0.002, 0], np.float32)
    bias.CopyFrom(onnx.numpy_helper.from_array(moved, bias.name))
    onnx.save(proto, tmp_path / "nudged.onnx")
    nudged = export.parity(reference, export.run_graph(tmp_path / "nudged.onnx", images))
    with pytest.raises(export.ExportError, match=r"off by 0\.002"):
        export.check_parity(nudged)
    export.check_parity(nudged, tolerance=0.01)


def test_large_logits_may_differ_in_proportion():
    assert export.tolerance(np.array([[3.0, -9.0]])) == pytest.approx(1e-3)
    assert export.tolerance(np.array([[3.0, -50.0]])) == pytest.approx(5e-3)
    assert not export.tolerance(np.array([[np.nan, 1.0]])) > 1e-3


def test_nan_never_passes():
    with np.errstate(invalid="ignore"):
        bad = export.parity(np.zeros((2, 3)), np.array([[0, np.nan, 0], [0, 0, 0]]))
    with pytest.raises(export.ExportError):
        export.check_parity(bad)


# ---- latency ----


def test_latency_orders_and_interleaves():
    calls = []

    def sleeper(name: str, seconds: float):
        def call():
            calls.append(name)
            time.sleep(seconds)

        return call

    times = export.latency_ms({"slow": sleeper("s", 0.006), "fast": sleeper("f", 0.002)}, repeats=10, warmup=2)
    assert "".join(calls) == "fssf" * 6
    assert 2 <= times["fast"]["least"] <= times["fast"]["median"]
    assert times["slow"]["least"] >= 6 and times["fast"]["least"] < 6
    assert times["slow"]["n"] == 10
    with pytest.raises(InputError, match="repeats"):
        export.latency_ms({}, repeats=0)


def test_latency_leaves_warmup_out_and_threads_restored():
    state = {"calls": 0}

    def slow_at_first():
        state["calls"] += 1
        state["threads"] = torch.get_num_threads()
        time.sleep(0.05 if state["calls"] <= 2 else 0)

    def fail():
        raise RuntimeError("planted")

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        times = export.latency_ms({"a": slow_at_first}, repeats=3, warmup=2)["a"]
        assert times["median"] < 25 and times["n"] == 3
        assert state["threads"] == 1 and torch.get_num_threads() == 2
        with pytest.raises(RuntimeError, match="planted"):
            export.latency_ms({"a": fail})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_runners_compute_the_logits(trained, fp32, int8):
    images, _ = separable(1, 8)
    trained.train()
    runners = {"torch": export.torch_runner(trained, images), "fp32": export.onnx_runner(fp32, images)}
    assert trained.training
    trained.eval()
    np.testing.assert_allclose(runners["torch"](), runners["fp32"](), atol=1e-4)
    runners["int8"] = export.onnx_runner(int8, images)
    times = export.latency_ms(runners, repeats=5, warmup=1)
    assert list(times) == ["torch", "fp32", "int8"] and all(v["least"] > 0 for v in times.values())
