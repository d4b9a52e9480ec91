"""Groups and their rates, schedules against their formulas and torch's curves, averaged weights against NumPy."""

import io
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from fruitlib.core import config
from fruitlib.training import blocks, models, optim

SCHEDULES = ("step", "exponential", "cosine", "plateau", "one_cycle", "constant")


def network(**settings) -> tuple:
    """A config and its freshly built network for three classes, frozen as it says."""
    cfg = config.make(settings)
    torch.manual_seed(0)
    model = models.build(cfg, 3)
    blocks.freeze_blocks(model, cfg)
    return cfg, model


@pytest.fixture(scope="module")
def resnet_weights(tmp_path_factory) -> str:
    """A checkpoint of an untrained resnet18, for settings that want weights to start from."""
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    cfg, model = network(model="resnet18")
    torch.save(models.checkpoint(model, cfg, ["a", "b", "c"]), path)
    return str(path)


def rates(cfg, steps_per_epoch: int, peak: float = 1.0) -> list[float]:
    """The lr of every step of a training, for one group with this peak."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=peak)
    schedule, lrs = optim.Schedule(cfg, optimizer, steps_per_epoch), []
    for _ in range(cfg.epochs * steps_per_epoch):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return lrs


def torchs(build, steps: int) -> list[float]:
    """The lr of every step under one of torch's own schedulers, from a peak of 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler, lrs = build(optimizer), []
    for _ in range(steps):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return lrs


# ---- groups ----


def test_weights_decay_and_biases_and_norms_do_not():
    cfg, model = network(model="resnet18", weight_decay=0.02)
    groups = optim.build(cfg, model).param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(decays) == len(list(model.parameters()))
    for name, module in model.named_modules():
        for kind, p in module.named_parameters(recurse=False):
            plain = kind == "weight" and isinstance(module, (nn.Conv2d, nn.Linear))
            assert decays[id(p)] == (0.02 if plain else 0), f"{name}.{kind}"


@pytest.mark.parametrize("name", ["end2end", "resnet18", "vgg11_bn", "densenet121", "mobilenet_v3_small"])
def test_each_block_learns_slower_than_the_next_and_the_head_at_lr(name):
    cfg, model = network(model=name, lr=0.01, layer_decay=0.5)
    optimizer = optim.build(cfg, model)
    lr_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert lr_of.keys() == {id(p) for p in model.parameters()}
    assert {lr_of[id(p)] for p in models.head_of(model).parameters()} == {0.01}
    parts = list(blocks.blocks_of(model).values())
    for distance, block in enumerate(reversed(parts), start=1):
        assert {lr_of[id(p)] for p in block.parameters()} == {0.01 * 0.5**distance}
    assert optim.Schedule(cfg, optimizer, 5).lr == 0.01  # the head's


def test_groups_have_names():
    names = [group["name"] for group in optim.build(*network(layer_decay=0.5)).param_groups]
    assert names[-2:] == ["head", "head, biases and norms"] and len(set(names)) == len(names) > 2


def test_blocks_of_one_learning_rate_are_one_group():
    names = [group["name"] for group in optim.build(*network(model="resnet18")).param_groups]
    assert names == ["network", "network, biases and norms"]


@pytest.mark.parametrize(
    ("name", "kind", "wanted"),
    [
        ("adam", torch.optim.Adam, {"betas": (0.9, 0.999)}),
        ("adamw", torch.optim.AdamW, {"betas": (0.9, 0.999)}),
        ("sgd", torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
        ("rmsprop", torch.optim.RMSprop, {"momentum": 0.8, "alpha": 0.99}),
    ],
)
def test_optimizers_are_torchs_own(name, kind, wanted):
    optimizer = optim.build(*network(optimizer=name, lr=0.02, weight_decay=0.03, momentum=0.8))
    assert type(optimizer) is kind
    for group in optimizer.param_groups:
        assert group.items() >= wanted.items() and group["lr"] == 0.02 and group["weight_decay"] in (0.03, 0.0)


def test_sgd_without_momentum_is_plain():
    assert not optim.build(*network(optimizer="sgd", momentum=0.0)).defaults["nesterov"]


def a_step(cfg, model, optimizer) -> None:
    blocks.set_modes(model, cfg)
    model(torch.rand(4, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", ["adamw", "sgd", "rmsprop"])
def test_frozen_weights_stay_until_their_turn_though_the_optimizer_holds_them(resnet_weights, name):
    cfg, model = network(
        model="resnet18", weights=resnet_weights, freeze="backbone", unfreeze_every=2, optimizer=name,
        weight_decay=0.1, epochs=6, lr=0.01, layer_decay=0.9,
    )  # fmt: skip
    optimizer = optim.build(cfg, model)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    for epoch in (1, 3):
        learns = blocks.freeze_blocks(model, cfg, epoch)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        a_step(cfg, model, optimizer)
        for block, part in blocks.blocks_of(model).items():
            same = [torch.equal(before[key], value) for key, value in state_of(model, part)]
            assert all(same) == (block not in learns), f"{block} in epoch {epoch}"


def state_of(model, part) -> list[tuple[str, torch.Tensor]]:
    """The model's entries of a part, BatchNorm's statistics too."""
    mine = {t.data_ptr() for t in part.state_dict().values()}
    return [(key, value) for key, value in model.state_dict().items() if value.data_ptr() in mine]


def test_what_stays_frozen_is_not_in_the_optimizer(resnet_weights):
    cfg, model = network(model="resnet18", weights=resnet_weights, freeze="backbone")
    held = [id(p) for group in optim.build(cfg, model).param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in models.head_of(model).parameters())


# ---- schedules ----

EPOCHS, STEPS = 7, 4
LAST = EPOCHS * STEPS - 1


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("step", lambda k: 0.1 ** (k // (3 * STEPS))),  # ceil(7 / 3) = 3 epochs
        ("exponential", lambda k: 0.01 ** (k / LAST)),
        ("cosine", lambda k: 0.01 + 0.99 * (1 + math.cos(math.pi * k / LAST)) / 2),
        ("constant", lambda k: 1),
        ("plateau", lambda k: 1),
    ],
)
def test_schedules_follow_their_formulas(name, formula):
    lrs = rates(config.make({"scheduler": name, "epochs": EPOCHS}), STEPS, peak=0.3)
    assert lrs == pytest.approx([0.3 * formula(k) for k in range(EPOCHS * STEPS)])


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("step", lambda o: lr_scheduler.StepLR(o, 3 * STEPS, gamma=0.1)),
        ("exponential", lambda o: lr_scheduler.ExponentialLR(o, 0.01 ** (1 / LAST))),
        ("cosine", lambda o: lr_scheduler.CosineAnnealingLR(o, LAST, eta_min=0.01)),
        ("one_cycle", lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=LAST + 1, cycle_momentum=False)),
    ],
)
def test_schedules_are_torchs_curves(name, build):
    lrs = rates(config.make({"scheduler": name, "epochs": EPOCHS}), STEPS)
    assert lrs == pytest.approx(torchs(build, EPOCHS * STEPS), rel=1e-6)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "one_cycle"])
def test_warm_up_is_torchs_linear_one_and_the_rest_follows_it(name):
    warm = 2 * STEPS
    lrs = rates(config.make({"scheduler": name, "epochs": EPOCHS, "warmup_epochs": 2}), STEPS)
    linear = torchs(lambda o: lr_scheduler.LinearLR(o, 1 / (warm + 1), total_iters=warm), warm + 1)
    assert lrs[: warm + 1] == pytest.approx(linear) and lrs[warm] == 1
    assert lrs[warm:] == pytest.approx(rates(config.make({"scheduler": name, "epochs": EPOCHS - 2}), STEPS))


def test_one_cycle_takes_the_epochs_of_warm_up_for_its_rise():
    lrs = rates(config.make({"scheduler": "one_cycle", "epochs": EPOCHS, "warmup_epochs": 4}), STEPS)
    assert np.argmax(lrs) == 4 * STEPS and max(lrs) == 1
    assert lrs[0] == pytest.approx(1 / 25) and lrs[-1] == pytest.approx(1 / 25e4)
    assert np.all(np.diff(lrs[: 4 * STEPS + 1]) > 0) and np.all(np.diff(lrs[4 * STEPS :]) < 0)


def test_one_cycle_leaves_momentum_as_the_setting_says():
    cfg, model = network(scheduler="one_cycle", optimizer="sgd", momentum=0.7, epochs=2)
    optimizer = optim.build(cfg, model)
    schedule = optim.Schedule(cfg, optimizer, 3)
    for _ in range(6):
        assert {group["momentum"] for group in optimizer.param_groups} == {0.7}
        schedule.step()


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("epochs", "steps", "warm"), [(1, 1, 0), (1, 2, 0), (2, 1, 1), (3, 1, 1)])
def test_the_shortest_trainings_have_sound_rates(name, epochs, steps, warm):
    lrs = rates(config.make({"scheduler": name, "epochs": epochs, "warmup_epochs": warm}), steps)
    assert all(0 < rate <= 1 for rate in lrs) and max(lrs) >= 0.5


def test_each_group_has_its_own_peak_and_falls_from_there():
    cfg, model = network(scheduler="cosine", layer_decay=0.1, epochs=3, lr=0.5)
    optimizer = optim.build(cfg, model)
    peaks = [group["lr"] for group in optimizer.param_groups]
    schedule = optim.Schedule(cfg, optimizer, 4)
    for _ in range(11):
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([peak / 100 for peak in peaks])
    assert schedule.lr == pytest.approx(0.005) and min(peaks) < 0.005


def follow(cfg, scores, steps_per_epoch=2) -> list[float]:
    """The lr after each epoch, whose score is given."""
    schedule = optim.Schedule(cfg, torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0), steps_per_epoch)
    lrs = []
    for score in scores:
        for _ in range(steps_per_epoch):
            schedule.step()
        schedule.end_epoch(score)
        lrs.append(schedule.lr)
    return lrs


def test_plateau_divides_by_ten_after_its_patience_without_a_gain():
    cfg = config.make({"scheduler": "plateau", "epochs": 20, "min_delta": 0.1})  # patience 2
    lrs = follow(cfg, [0.5, 0.55, 0.58, 0.59, 0.8, 0.8, 0.8, 0.95, 0.95, 0.95, 0.95])
    assert lrs == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.01])
    patient = config.make({"scheduler": "plateau", "epochs": 50})  # patience 5
    assert follow(patient, [0.5] * 7) == pytest.approx([1] * 6 + [0.1])
    assert follow(config.make({"scheduler": "constant"}), [0.5] * 9) == [1] * 9


def test_plateau_does_not_count_epochs_of_warm_up():
    cfg = config.make({"scheduler": "plateau", "epochs": 20, "warmup_epochs": 4})
    assert follow(cfg, [0.5] * 8)[3:] == pytest.approx([1, 1, 1, 1, 0.1])


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("optimizer_first", [True, False])
def test_a_resumed_schedule_goes_on_exactly(name, optimizer_first):
    """Cut off after any step (mid-epoch, in warm-up, after a cut of plateau), saved as a file, loaded into new ones."""
    cfg, model = network(scheduler=name, epochs=12, warmup_epochs=2, layer_decay=0.5, optimizer="sgd")
    steps, scores = 3, [0.1, 0.2, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.4, 0.4, 0.4]

    def fresh():
        optimizer = optim.build(cfg, model)
        return optimizer, optim.Schedule(cfg, optimizer, steps)

    def go_on(optimizer, schedule, taken, saved=None) -> list[list[float]]:
        lrs = []
        for step in range(taken, cfg.epochs * steps):
            lrs.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            schedule.step()
            if (step + 1) % steps == 0:
                schedule.end_epoch(scores[step // steps])
            if saved is not None:
                saved.append(io.BytesIO())
                torch.save([optimizer.state_dict(), schedule.state_dict()], saved[-1])
        return lrs

    saved = []
    whole = go_on(*fresh(), 0, saved)
    assert len({tuple(row) for row in whole}) > 1
    for taken, file in enumerate(saved, start=1):
        optimizer, schedule = fresh()
        file.seek(0)
        states = torch.load(file, weights_only=True)
        parts = [(optimizer, states[0]), (schedule, states[1])]
        for part, state in parts if optimizer_first else reversed(parts):
            part.load_state_dict(state)
        assert go_on(optimizer, schedule, taken) == whole[taken:]


# ---- averaged weights ----


def test_averaged_weights_are_those_of_a_plain_loop():
    cfg = config.make({"ema": 0.6})
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = optim.Average(cfg, model)
    rng, expected = np.random.default_rng(0), None
    for n in range(30):
        state = {key: rng.normal(size=value.shape) for key, value in model.state_dict().items()}
        state["1.num_batches_tracked"] = np.array(n)
        model.load_state_dict({key: torch.as_tensor(value) for key, value in state.items()})
        average.update()
        decay = min(0.6, (1 + n) / (10 + n))
        expected = state if n == 0 else {k: decay * expected[k] + (1 - decay) * state[k] for k in state}
    assert decay == 0.6 and (1 + 3) / (10 + 3) < 0.6  # both branches were taken
    for key, value in average.model.state_dict().items():
        if key != "1.num_batches_tracked":  # a count, which nothing reads
            np.testing.assert_allclose(value.numpy(), expected[key], atol=1e-6)


def test_an_average_of_what_stands_still_is_exactly_that():
    cfg, model = network(ema=0.97)
    average = optim.Average(cfg, model)
    for _ in range(20):
        average.update()
    for key, value in average.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])
    assert average.model is not model


def test_a_resumed_average_goes_on_exactly():
    def run(cut: int | None) -> dict[str, torch.Tensor]:
        cfg, model = network(ema=0.9)
        average, random = optim.Average(cfg, model), torch.Generator().manual_seed(0)
        for step in range(12):
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(torch.randn(p.shape, generator=random))
            average.update()
            if step == cut:
                file = io.BytesIO()
                torch.save(average.state_dict(), file)
                file.seek(0)
                average = optim.Average(cfg, model)
                average.load_state_dict(torch.load(file, weights_only=True))
        return average.model.state_dict()

    whole = run(None)
    for cut in (0, 5):
        for key, value in run(cut).items():
            assert torch.equal(value, whole[key]), key
