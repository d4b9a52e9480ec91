"""Precision and memory format: chosen by rule, timed once a sweep, the same for every run; compiled equals plain."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fruitlib.core import config
from fruitlib.core.errors import InputError
from fruitlib.training.precision import (
    FORMATS,
    GAIN,
    NEAR,
    Speed,
    _measured,
    autocast,
    choose,
    compile_model,
    compile_problem,
    fastest,
    images_per_step,
    speed_from_names,
    step_times,
    uncompiled,
)

CPU = torch.device("cpu")


def settings(**changed):
    return config.make({"image_size": 32, "batch_size": 4, "precision": "auto", "memory_format": "auto", **changed})


def times(fp32=None, bf16=None, fp16=None):
    """Times by (precision, memory format) of (channels_last, contiguous) pairs."""
    given = {"fp32": fp32, "bf16": bf16, "fp16": fp16}
    return {(p, f): t for p, both in given.items() if both for f, t in zip(FORMATS, both, strict=True)}


@pytest.mark.parametrize(
    ("timed", "chosen"),
    [
        (times((10, 12), (8, 9)), "fp32 channels_last"),  # 1.25 times is not enough
        (times((10, 12), (7.6, 9)), "bf16 channels_last"),  # 1.32
        (times((10, 12), (20, 7.6)), "bf16 contiguous"),
        (times((12, 10), (7.9, 9)), "fp32 contiguous"),  # the best fp32 counts
        (times((10.4, 10), (9, 9)), "fp32 channels_last"),  # near equals
        (times((10.6, 10), (9, 9)), "fp32 contiguous"),
        (times((10, 10), (4.1, 4.1), (4, 4)), "bf16 channels_last"),  # near equals, and no scaling
        (times((10, 10), (6, 6), (4, 4)), "fp16 channels_last"),
        (times((10, 10), None, (9, 9)), "fp32 channels_last"),
        (times(None, (10, 5)), "bf16 contiguous"),  # asked for
        ({("fp32", "contiguous"): 10.0, ("bf16", "contiguous"): 5.0}, "bf16 contiguous"),
    ],
)
def test_lower_precision_only_for_a_gain_of_30_percent_and_channels_last_among_equals(timed, chosen):
    assert " ".join(fastest(timed)) == chosen


@given(st.lists(st.floats(0.1, 1000), min_size=6, max_size=6))
def test_what_is_chosen_is_never_slow(values):
    timed = times(values[:2], values[2:4], values[4:])
    chosen = fastest(timed)
    assert timed[chosen] <= NEAR * min(t for (precision, _), t in timed.items() if precision == chosen[0])
    plain = min(values[:2])
    if chosen[0] == "fp32":
        assert plain < GAIN * NEAR * min(values[2:])
    else:
        assert plain >= GAIN * min(t for (precision, _), t in timed.items() if precision == chosen[0])


def test_auto_is_timed_once_written_down_and_read_afterwards(tmp_path):
    first = choose(settings(), 3, CPU, tmp_path)
    written = (tmp_path / "auto.json").stat().st_mtime_ns
    assert choose(settings(lr=0.1, seed=3, epochs=7, augment="none"), 3, CPU, tmp_path) == first
    assert (tmp_path / "auto.json").stat().st_mtime_ns == written
    assert set(first.step_ms) == {f"{p} {f}" for p in ("fp32", "bf16") for f in ("channels_last", "contiguous")}
    assert all(0 < ms < 5000 for ms in first.step_ms.values())
    chosen = f"{first.precision}, {'channels_last' if first.memory_format == torch.channels_last else 'contiguous'}"
    best = first.step_ms[chosen.replace(",", "")]
    assert first.summary.startswith(f"precision {chosen}: {best:.1f} ms a step of 4 images")
    assert first.summary.endswith("(timed once for this sweep)") and "\n" not in first.summary


def test_other_networks_sides_and_sweeps_are_timed_for_themselves_batches_and_threads_are_not(tmp_path, monkeypatch):
    timed = []

    def noted(cfg, num_classes, device, candidates):
        timed.append(candidates)
        return dict.fromkeys(candidates, 1.0), images_per_step(cfg)

    monkeypatch.setattr("fruitlib.training.precision.step_times", noted)
    for number, changed in enumerate(
        (
            {},
            {"image_size": 40},
            {"model": "resnet18"},
            {"model": "resnet18", "head": "gap_bn"},
            {"precision": "bf16"},
            {"memory_format": "contiguous"},
        )
    ):
        for _ in range(2):
            choose(settings(**changed), 3, CPU, tmp_path)
        assert len(timed) == number + 1, changed
    choose(settings(), 3, CPU, tmp_path / "another")
    assert len(timed) == number + 2
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    choose(settings(batch_size=8, processes=2), 3, CPU, tmp_path)  # a grid over these must not compare precisions
    assert len(timed) == number + 2


def test_a_training_that_was_cut_off_goes_on_as_it_began():
    assert speed_from_names(Speed("bf16", torch.contiguous_format, {}, "timed").names).precision == "bf16"
    assert (
        speed_from_names({"precision": "fp32", "memory_format": "contiguous"}).memory_format == torch.contiguous_format
    )


def test_a_process_times_its_own_share(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert images_per_step(settings(batch_size=16, processes=3)) == 6
    assert images_per_step(settings(batch_size=16, processes=3, micro_batch=4)) == 4


def test_a_named_setting_is_kept_and_with_both_nothing_is_timed(tmp_path):
    both = choose(settings(precision="bf16", memory_format="contiguous"), 3, CPU, tmp_path)
    assert (both.precision, both.memory_format, both.step_ms) == ("bf16", torch.contiguous_format, {})
    assert both.summary == "precision bf16 (as set), contiguous (as set): nothing was timed"
    assert not (tmp_path / "auto.json").exists()
    named = choose(settings(precision="bf16"), 3, CPU, tmp_path)
    assert named.precision == "bf16" and set(named.step_ms) == {"bf16 channels_last", "bf16 contiguous"}
    layout = choose(settings(memory_format="contiguous"), 3, CPU, tmp_path)
    assert layout.memory_format == torch.contiguous_format
    assert set(layout.step_ms) == {"fp32 contiguous", "bf16 contiguous"}


def test_features_computed_once_are_not_timed(tmp_path):
    frozen = settings(model="resnet18", weights="DEFAULT", freeze="backbone", augment="none")
    speed = choose(frozen, 3, CPU, tmp_path)
    assert (speed.precision, speed.memory_format, speed.step_ms) == ("fp32", torch.channels_last, {})


@pytest.mark.parametrize("memory_format", ["auto", "contiguous"])
def test_fp16_on_a_cpu_is_refused(tmp_path, memory_format):
    with pytest.raises(InputError, match=r"^precision = fp16: needs a CUDA device.*; use bf16 or fp32$"):
        choose(settings(precision="fp16", memory_format=memory_format), 3, CPU, tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": {"step_ms": {}}}', '{"a": 1}'])
def test_a_broken_file_is_named(tmp_path, text):
    (tmp_path / "auto.json").write_text(text)
    with pytest.raises(InputError, match=r"auto\.json: .* remove the file"):
        choose(settings(), 3, CPU, tmp_path)


def test_random_state_is_as_before(tmp_path):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    choose(settings(model="efficientnet_b0"), 3, CPU, tmp_path)  # draws weights, dropout and dropped paths
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("changed", [{"model": "resnet18", "head": "gap_bn", "batch_size": 2}, {"micro_batch": 1}])
def test_a_share_of_one_or_two_images_can_be_timed(changed):
    """BatchNorm after the last pooling has no variance of one image."""
    timed, images = step_times(settings(**changed), 3, CPU, [("fp32", "contiguous")])
    assert images == 2 and timed[("fp32", "contiguous")] > 0


def test_weights_to_start_from_are_not_looked_for():
    cfg = settings(model="resnet18", weights="nowhere/best.pt", freeze="backbone", unfreeze_every=1)
    step_times(cfg, 3, CPU, [("fp32", "contiguous")])


def test_a_slow_model_is_timed_on_fewer_images_and_rounds(monkeypatch):
    """A step of 0.1 s an image, and a bf16 a hundred times slower: it is given up after two rounds."""
    clock, taken = [0.0], []

    def step(pair, images):
        seconds = images * (10.0 if pair[0] == "bf16" else 0.1)
        taken.append((pair, images))
        clock[0] += seconds
        return seconds

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    pairs = [(p, f) for p in ("fp32", "bf16") for f in FORMATS]
    timed, images = _measured(step, pairs, 64)
    assert images == 10 and set(timed) == {p for p in pairs if p[0] == "fp32"}
    assert max(taken.count((pair, images)) for pair in pairs if pair[0] == "bf16") == 2


def test_two_at_once_agree_and_one_of_them_times(tmp_path, monkeypatch):
    timed = []

    def slowly(cfg, num_classes, device, candidates):
        time.sleep(0.3)
        timed.append(len(timed) + 1.0)
        return dict.fromkeys(candidates, timed[-1]), 4

    monkeypatch.setattr("fruitlib.training.precision.step_times", slowly)
    with ThreadPoolExecutor(4) as pool:
        speeds = list(pool.map(lambda _: choose(settings(), 3, CPU, tmp_path), range(4)))
    assert timed == [1.0] and speeds == [speeds[0]] * 4


def test_in_a_group_rank_0_decides(tmp_path, monkeypatch):
    """Another rank takes what rank 0 sends, whatever it might have timed itself."""
    sent = {"chosen": "bf16 contiguous", "step_ms": {"bf16 contiguous": 1.0}, "timed_images": 2}
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("fruitlib.training.group.from_first", lambda value: sent)
    assert choose(settings(), 3, CPU, tmp_path).precision == "bf16"
    assert list(tmp_path.iterdir()) == []


def test_autocast_computes_in_the_chosen_precision():
    layer, inputs = nn.Linear(4, 2), torch.rand(3, 4)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(Speed(precision, torch.channels_last, {}, ""), CPU):
            assert layer(inputs).dtype == dtype
    assert layer(inputs).dtype == torch.float32


def test_compiled_gives_the_same_logits_and_uncompiled_calls_hooks(request):
    if problem := compile_problem(CPU):
        pytest.skip(problem)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    images, names = torch.rand(2, 3, 4, 4), list(model.state_dict())
    plain = model(images)
    request.addfinalizer(torch._dynamo.reset)
    compile_model(model, settings())
    assert model._compiled_call_impl is None  # compile: none
    compile_model(model, settings(compile="default"))
    torch.testing.assert_close(model(images), plain, rtol=1e-4, atol=1e-6)
    assert list(model.state_dict()) == names
    seen = []
    hook = model[0].register_forward_hook(lambda *_: seen.append(1))
    with uncompiled(model):
        assert torch.equal(model(images), plain)
    hook.remove()
    assert seen == [1]
    assert model._compiled_call_impl is not None


def test_without_a_compiler_it_says_what_to_install(monkeypatch):
    from torch._inductor import config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(InputError, match=r"^compile = default: .*C\+\+ compiler.* install g\+\+.*compile: none$"):
        compile_model(nn.Linear(2, 2), settings(compile="default"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_times_fp16_too_and_keeps_its_random_state(tmp_path):
    device = torch.device("cuda", 0)
    before = torch.cuda.get_rng_state(device)
    speed = choose(settings(model="resnet18"), 3, device, tmp_path)
    assert {"fp32", "fp16"} <= {name.split()[0] for name in speed.step_ms}
    assert torch.equal(torch.cuda.get_rng_state(device), before)
