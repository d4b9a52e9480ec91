"""Training on a GPU beside its limit: the same step on batches that lie on the device already.

Each network is trained in each precision as `fruitlib.training.train` does it: photos kept on the GPU as bytes,
gathered, augmented and learned there. In turns with that: `limit`, the same step on held batches, and `plain`, a step
of plain torch on held batches. Then what CUDA graphs and torch.compile make of the same step; what pays nowhere needs
no setting. Prints a table, and as its last line JSON:
    least_ratio    the least of fed / limit, photos/s, over all networks and precisions (goal 0.85)
    rows           every figure; not_measured: what there was no time for, or what failed, and why

    python tests/benchmarks/gpu.py [--seconds 300] [--device cpu]     # on the CPU: a trial of this program, no figures
"""

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import fruitlib  # noqa: F401  (sets how torch's threads wait, before torch loads)

# isort: split
import numpy as np
import torch

from fruitlib.core import machine
from fruitlib.core.config import Config
from fruitlib.data import cache, dataset
from fruitlib.data.batch import Batch
from fruitlib.data.loader import Feed
from fruitlib.training import evaluate, losses, micro_batch, models, optim, precision
from fruitlib.training.checkpoint import TrainingState

GOAL = 0.85
CLASSES, HELD = 3, 8
TURNS, TURN_SECONDS = 4, 12  # at most; the time one row may take, about
# Network, side in pixels, photos in a batch, photos
CASES = [
    ("end2end", 96, 16, 4096),
    ("end2end", 96, 256, 16384),
    ("resnet18", 96, 64, 4096),
    ("resnet18", 224, 128, 2048),
    ("efficientnet_b0", 96, 64, 4096),
    ("efficientnet_b0", 224, 128, 1024),
]
TRIAL = [("end2end", 32, 8, 40), ("resnet18", 32, 8, 24)]
PRECISIONS = ["fp32", "tf32", "bf16", "fp16"]
VARIANTS = {"graph": 5, "compile": 45, "compile, graphs": 45}  # and seconds they take; of a network's first case only
Step = Callable[[Batch], None]


@dataclass(frozen=True)
class Case:
    """A network at a size, in a precision, and what its steps are made of."""

    name: str
    config: Config
    device: torch.device
    kind: str  # of PRECISIONS; tf32 is fp32 whose products a GPU may round to TF32

    @property
    def speed(self) -> precision.Speed:
        name = self.kind.replace("tf32", "fp32")
        return precision.speed_from_names({"precision": name, "memory_format": "channels_last"})

    @property
    def scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device.type, enabled=self.kind == "fp16")


def photos_of(side: int, count: int) -> dataset.Photos:
    """Random pictures in memory."""
    rng, paths = np.random.default_rng(0), [str(number) for number in range(count)]
    pixels = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    store = cache.Store(pixels, None, paths, Config(image_size=side), "ram", "in memory")
    return dataset.Photos(store, np.arange(count), torch.arange(count) % CLASSES, paths)


@contextlib.contextmanager
def tf32(allowed: bool):
    """Whether a GPU may round products in float32 to TF32, here."""
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    try:
        for flag in flags:
            flag.allow_tf32 = allowed
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


# ---- steps


def recipe(case: Case, network: torch.nn.Module | None = None) -> Step:
    """A training step as `train` takes it."""
    model = network or fresh(case)
    optimizer, objective = optim.build(case.config, model), losses.build(case.config)
    scaler, state, speed = case.scaler, TrainingState(), case.speed
    tally = evaluate.Tally(CLASSES, case.device)

    def step(batch: Batch) -> None:
        loss, logits = micro_batch.gradients(model, batch, objective, speed, scaler, state, case.config)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        tally.add(loss, logits, batch)

    return step


def plain(case: Case, capturable: bool = False) -> Step:
    """A training step of plain torch."""
    model, scaler, dtype = fresh(case), case.scaler, precision.DTYPES[case.speed.precision]
    optimizer = torch.optim.Adam(model.parameters(), fused=True, capturable=capturable)

    def step(batch: Batch) -> None:
        with torch.autocast(case.device.type, dtype, enabled=dtype != torch.float32):
            loss = torch.nn.functional.cross_entropy(model(batch.images), batch.labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step


def compiled(case: Case, mode: str) -> Step:
    """The recipe's step with a compiled network; photos of one batch size only, so that nothing is compiled twice."""
    model = fresh(case)
    model.compile(mode=mode)
    return recipe(case, model)


def graphed(case: Case, batch: Batch) -> Step:
    """A whole step of plain torch as one CUDA graph: one launch in place of hundreds."""
    step = plain(case, capturable=True)
    images, labels = batch.images.clone(), batch.labels.clone()
    still = Batch(images, labels, None, 1.0, batch.size)
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):  # what is allocated and chosen once
        for _ in range(3):
            step(still)
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(still)

    def replay(batch: Batch) -> None:
        images.copy_(batch.images)
        labels.copy_(batch.labels)
        graph.replay()

    return replay


def fresh(case: Case) -> torch.nn.Module:
    torch.manual_seed(0)
    return models.build(case.config, CLASSES).to(case.device, memory_format=torch.channels_last).train()


# ---- measuring


def rate(step: Step, batches: Iterable[Batch], device: torch.device) -> float:
    """Photos per second."""
    wait(device)
    started, seen = time.perf_counter(), 0
    for batch in batches:
        step(batch)
        seen += len(batch.labels)
    wait(device)
    return seen / (time.perf_counter() - started)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Rates:
    """One case's photos, and what steps make of them."""

    def __init__(self, name: str, side: int, batch: int, count: int, device: torch.device):
        config = Config(model=name, image_size=side, batch_size=batch, augment="geometric", precision="fp32")
        self.config, self.device, self.epochs = config, device, iter(range(1, 10**6))
        self.feed = Feed(photos_of(side, count), config, device, resident=True)
        self.held = [copied(one) for _, one in zip(range(HELD), self.feed.epoch(1), strict=False)]
        self.again = [self.held[number % len(self.held)] for number in range(self.feed.steps)]

    def fed(self, step: Step) -> float:
        return rate(step, self.feed.epoch(next(self.epochs)), self.device)

    def limit(self, step: Step) -> float:
        return rate(step, self.again, self.device)

    def beside_limit(self, case: Case) -> dict[str, float]:
        """Photos/s of the recipe fed, at its limit, and of plain torch: medians over turns."""
        ours, theirs = recipe(case), plain(case)
        sides = {"fed": lambda: self.fed(ours), "limit": lambda: self.limit(ours), "plain": lambda: self.limit(theirs)}
        return medians(sides)

    def variant(self, case: Case, name: str) -> dict[str, float]:
        """The same of another way to compute the step."""
        if name == "graph":
            step = graphed(case, self.held[0])
        else:
            step = compiled(case, "reduce-overhead" if "graphs" in name else "default")
        return medians({"fed": lambda: self.fed(step), "limit": lambda: self.limit(step)})


def copied(batch: Batch) -> Batch:
    return Batch(batch.images.clone(), batch.labels.clone(), None, 1.0, batch.size)


def medians(sides: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Each side's median over the turns, after one that does not count; the order alternates.

    There are fewer turns, at least one, where a GPU is slow.
    """
    started = time.monotonic()
    found = {name: [] for name in sides}
    for measure in sides.values():
        measure()
    for turn in range(TURNS):
        if turn and time.monotonic() - started > TURN_SECONDS:
            break
        for name in sides if turn % 2 else reversed(sides):
            found[name].append(sides[name]())
    return {name: statistics.median(rates) for name, rates in found.items()}


# ---- all of it


class Report:
    """Rows as they come, and what there was no time for or what failed."""

    def __init__(self, seconds: float):
        self.deadline, self.rows, self.not_measured = time.monotonic() + seconds, [], []

    def measure(self, what: dict, work: Callable[[], dict[str, float]], expected: float) -> None:
        """Add `work()`'s figures to `what` as a row, unless it would take longer than there is time."""
        name = " ".join(str(value) for value in what.values())
        if time.monotonic() + expected > self.deadline:
            self.not_measured.append(f"{name}: no time left")
            return
        try:
            figures = work()
        except Exception as problem:  # another one may work: what fails is a finding, too
            reason = (str(problem).strip() or type(problem).__name__).splitlines()[0][:200]
            self.not_measured.append(f"{name}: {type(problem).__name__}: {reason}")
            return
        row = what | {key: round(value) for key, value in figures.items()}
        row["ratio"] = round(figures["fed"] / figures["limit"], 3)
        self.rows.append(row)
        print(line(row), flush=True)


def line(row: dict) -> str:
    case = f"{row['network']} {row['side']} px, {row['batch']} a batch"
    way = f"{row['precision']} {row.get('way', '')}"
    extra = f"{row['plain']:>12,}" if "plain" in row else f"{'':>12}"
    return f"{case:<34}{way:<22}{row['fed']:>12,}{row['limit']:>12,}{row['ratio']:>8.3f}{extra}"


def measure_all(cases: list[tuple], device: torch.device, report: Report) -> None:
    print(f"{'photos/s':<56}{'fed':>12}{'limit':>12}{'ratio':>8}{'plain torch':>12}")
    first_of = {}
    for name, side, batch, count in cases:
        rates = Rates(name, side, batch, count, device)
        first_of.setdefault(name, rates)
        for kind in [kind for kind in PRECISIONS if usable(kind, device)]:
            case = Case(name, rates.config, device, kind)
            with tf32(kind == "tf32"):
                report.measure(described(case), partial(rates.beside_limit, case), expected=TURN_SECONDS)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    kind = "bf16" if usable("bf16", device) else "fp32"
    for way, seconds in VARIANTS.items() if device.type == "cuda" else ():
        for name, rates in first_of.items():
            case = Case(name, rates.config, device, kind)
            report.measure(described(case) | {"way": way}, partial(rates.variant, case, way), expected=seconds)


def described(case: Case) -> dict:
    """What names a row."""
    size = {"side": case.config.image_size, "batch": case.config.batch_size}
    return {"network": case.name, **size, "precision": case.kind}


def usable(kind: str, device: torch.device) -> bool:
    """Whether the device has a precision; on the CPU there is no TF32, and training has no fp16."""
    if device.type == "cpu":
        return kind in ("fp32", "bf16")
    return kind != "bf16" or torch.cuda.is_bf16_supported(including_emulation=False)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seconds", type=float, default=300)
    options.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = options.parse_args()
    device = torch.device(options.device, 0) if options.device == "cuda" else torch.device("cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device, so there is nothing to measure (a trial on the CPU: --device cpu)")
        return
    report, versions = Report(options.seconds), machine.versions()
    card = machine.hardware()
    print(f"{card}; torch {versions['torch']}, torchvision {versions['torchvision']}, CUDA {torch.version.cuda}")
    measure_all(CASES if device.type == "cuda" else TRIAL, device, report)
    for reason in report.not_measured:
        print(f"not measured: {reason}")
    ratios = [row["ratio"] for row in report.rows if "way" not in row]
    least = min(ratios, default=None)
    print(f"least ratio {least}, goal {GOAL}")
    facts = {"card": card, "device": device.type, "cuda": torch.version.cuda, **versions}
    figures = {"rows": report.rows, "not_measured": report.not_measured}
    print(json.dumps({"least_ratio": least, "goal": GOAL} | facts | figures))


if __name__ == "__main__":
    main()
