"""What only a GPU can show. Every test here skips without one; the same paths are tested on the CPU by their rooms."""

import contextlib

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from fruitlib.core import config, machine
from fruitlib.core.errors import InputError
from fruitlib.data import augment, cache, dataset, loader
from fruitlib.training import distributed, evaluate, losses, micro_batch, models, optim, precision, tracking, train
from fruitlib.training.checkpoint import TrainingState

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("default"),  # of another machine's libraries
]

DEVICE, SIDE, COUNT = torch.device("cuda", 0), 32, 40
NUMBERS = ["train_loss", "val_loss", "val_accuracy"]


@pytest.fixture(scope="module")
def photos() -> dataset.Photos:
    """Smooth random pictures, no two alike, in three classes."""
    rough = np.random.default_rng(0).integers(0, 256, (COUNT, 3, 5, 5)).astype(np.float32)
    smooth = torch.nn.functional.interpolate(torch.from_numpy(rough), (SIDE, SIDE), mode="bilinear")
    pixels = smooth.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    paths, cfg = [str(number) for number in range(COUNT)], config.make({"image_size": SIDE})
    store = cache.Store(pixels, None, paths, cfg, "ram", "")
    return dataset.Photos(store, np.arange(COUNT), torch.arange(COUNT) % 3, paths)


def settings(**values) -> config.Config:
    return config.make({"image_size": SIDE, "batch_size": 8, **values})


@contextlib.contextmanager
def nothing_waits():
    """Inside, a call that makes the CPU wait for the GPU raises RuntimeError."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.fixture
def tf32():
    """Products of matrices may be rounded to TF32, whose three digits must move no pixels."""
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


# ---- photos and batches


@pytest.mark.parametrize("policy", ["crop", "geometric", "colour", "full"])
def test_a_gpu_makes_the_same_pictures(policy, photos, tf32):
    images = dataset.to_float(photos.images)
    draws = augment.draw(policy, COUNT, seed=5, epoch=3, side=images.shape[-1])
    there = augment.apply_batch(images.cuda(), draws).cpu()
    torch.testing.assert_close(there, augment.apply_batch(images, draws), atol=2e-3, rtol=0)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("policy", ["none", "full"])
def test_a_gpu_is_fed_the_same(policy, resident, photos):
    cfg = settings(augment=policy, mixing="mixup")
    here = loader.Feed(photos, cfg, torch.device("cpu"), resident=False)
    here.augment_in_loop = True
    there = loader.Feed(photos, cfg, DEVICE, resident=resident)
    for expected, batch in zip(here.epoch(1), there.epoch(1), strict=True):
        assert batch.images.device.type == batch.labels.device.type == "cuda"
        assert torch.equal(expected.labels, batch.labels.cpu())
        torch.testing.assert_close(batch.images.cpu(), expected.images, atol=0 if policy == "none" else 2e-3, rtol=0)


def test_torchvisions_policies_come_from_the_host(photos):
    feed = loader.Feed(photos, settings(augment="trivial"), DEVICE)
    assert feed.resident is None and "augment = trivial" in feed.summary
    assert all(batch.images.is_cuda for batch in feed.epoch(1))


@pytest.mark.parametrize("mixing", ["none", "cutmix"])
@pytest.mark.parametrize("resident", [True, False])
def test_feeding_never_waits_for_the_gpu(resident, mixing, photos):
    feed = loader.Feed(photos, settings(augment="full", mixing=mixing), DEVICE, resident=resident)
    with nothing_waits():
        assert sum(len(batch.labels) for batch in feed.epoch(1)) == COUNT


def test_feeding_features_never_waits_either(photos):
    feed = loader.FeatureFeed(torch.randn(COUNT, 8, device=DEVICE), photos.labels, settings())
    with nothing_waits():
        assert sum(len(batch.labels) for batch in feed.epoch(1)) == COUNT


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_a_training_step_never_waits_for_the_gpu(name, photos):
    cfg = settings(model="end2end", precision=name, balance="class_weights")
    model = models.build(cfg, 3).to(DEVICE, memory_format=torch.channels_last).train()
    speed = precision.speed_from_names({"precision": name, "memory_format": "channels_last"})
    optimizer, objective = optim.build(cfg, model), losses.build(cfg, torch.ones(3))
    scaler, tally = torch.amp.GradScaler("cuda", enabled=False), evaluate.Tally(3, DEVICE)
    feed = loader.Feed(photos, cfg, DEVICE)

    def step(batch) -> None:
        loss, logits = micro_batch.gradients(model, batch, objective, speed, scaler, TrainingState(), cfg)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        tally.add(loss, logits, batch)

    for batch in feed.epoch(1):  # what waits only once
        step(batch)
    with nothing_waits():
        for batch in feed.epoch(2):
            step(batch)
    assert tally.first_bad() is None


# ---- whole trainings


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_training_learns_in_every_precision(name, make_run, capsys):
    if name == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bf16")
    run = make_run(cam_every=0, epochs=12, precision=name, keep="last")
    history = train.fit(run)
    assert np.isfinite(history[NUMBERS]).all(axis=None)
    assert history["train_loss"].iloc[-1] < 0.8 * history["train_loss"].iloc[0]
    assert run.record("train")["precision"] == name
    assert "photos are kept on the GPU" in capsys.readouterr().out
    assert history["gpu_gb"].max() > 0


def test_a_gpu_learns_what_the_cpu_learns(make_run, monkeypatch):
    there = train.fit(make_run("there", cam_every=0, augment="none", epochs=2))
    monkeypatch.setattr(machine, "device", lambda: torch.device("cpu"))
    here = train.fit(make_run("here", cam_every=0, augment="none", epochs=2))
    np.testing.assert_allclose(there["train_loss"], here["train_loss"], rtol=0.02)  # convolutions may round to TF32


@pytest.mark.parametrize("name", ["fp32", "fp16"])
def test_an_interrupted_training_resumes_to_the_same_end(name, make_run):
    def interrupt(history):
        if len(history) == 2:
            raise KeyboardInterrupt

    whole = train.fit(make_run("whole", cam_every=0, precision=name, epochs=4))
    run = make_run("halves", cam_every=0, precision=name, epochs=4)
    with pytest.raises(KeyboardInterrupt):
        train.fit(run, interrupt)
    np.testing.assert_allclose(train.fit(run)["train_loss"], whole["train_loss"], rtol=0.05)


def test_too_little_memory_halves_the_micro_batch(make_run, capsys):
    """The process may take two thirds of what the whole batch takes."""
    large = {"model": "resnet18", "image_size": 224, "batch_size": 36, "cam_every": 0, "epochs": 1, "augment": "none"}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    train.fit(make_run("whole", **large))
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    try:
        torch.cuda.set_per_process_memory_fraction(2 / 3 * peak / torch.cuda.get_device_properties(DEVICE).total_memory)
        run = make_run("parts", **large)
        assert np.isfinite(train.fit(run)[NUMBERS]).all(axis=None)
        assert run.record("train")["micro_batch"] in (18, 9, 5, 3, 2)
        assert "GPU memory ran out: micro_batch is" in capsys.readouterr().out
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1e-4)
        with pytest.raises(InputError, match="GPU memory ran out"):
            train.fit(make_run("none", **large))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def test_meters_give_the_peak_of_gpu_memory_since_the_last_read():
    meters = tracking.Meters(DEVICE)
    kept = torch.empty(250_000_000, device="cuda")
    assert meters.read()["gpu_gb"] >= 1
    del kept
    meters.read()
    values = meters.read()
    assert values["gpu_gb"] < 1
    assert ("gpu_percent" in values) != bool(meters.summary)


# ---- several processes, of which one GPU takes one


def test_one_process_exchanges_gradients_by_nccl(tmp_path, photos):
    cfg = settings(model="resnet18", augment="none")
    batch = next(loader.Feed(photos, cfg, DEVICE).epoch(1))
    objective = losses.build(cfg)
    speed = precision.speed_from_names({"precision": "fp32", "memory_format": "channels_last"})
    scaler = torch.amp.GradScaler("cuda", enabled=False)

    def found(network, model) -> list[torch.Tensor]:
        model.zero_grad(set_to_none=True)
        micro_batch.gradients(network, batch, objective, speed, scaler, TrainingState(micro_batch=3), cfg)
        return [weight.grad.clone() for weight in model.parameters()]

    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1)
    try:
        model = models.build(cfg, 3).to(DEVICE, memory_format=torch.channels_last).train()
        alone = found(model, model)
        for one, other in zip(alone, found(DistributedDataParallel(model), model), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3 * float(one.abs().max()) + 1e-6)
    finally:
        dist.destroy_process_group()


def test_a_group_of_one_process_is_started_and_ends(make_run):
    run, seen = make_run(cam_every=0, epochs=2), []
    distributed.launch(run, lambda history: seen.append(len(history)))
    assert seen == [1, 2] and run.is_complete("train")
