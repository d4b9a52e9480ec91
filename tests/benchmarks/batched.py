"""Many small networks trained as one: does it pay? On a CPU too little, so every run of a sweep is trained by itself.

M networks, each with batches of its own, take a training step each: forward, loss, backward, Adam. Compared are

    single      one after the other, an optimizer each: what a sweep does
    optimizer   one after the other, one optimizer step for all
    grouped     one network of grouped convolutions, whose layers hold the weights of all
    vmap        torch.func: vmap over grad of functional_call, on stacked parameters
    heads       linear heads on cached features (1,280 numbers a photo): a batched matrix product

Before anything is timed, the others are held to `single`: after five steps of SGD in fp32, weights of the first layer
differ by less than a thousandth of how far they moved. (Not of Adam, which moves a weight by lr even where the gradient
is zero but for rounding.) With one thread, as a run of a sweep has, times are processor seconds, which a busy machine
changes little; with more, seconds of the clock. Taken in turns, the least of seven.

Two cores of an AMD EPYC with AVX512-BF16, torch 2.15, one thread; end2end at 96 pixels. Photos a second of `single`,
and how many times as fast the others were, with M = 4 | 18:

                 single        optimizer     grouped       vmap          heads
    fp32, 4      429 | 440     1.03 | 1.06   1.09 | 1.07   0.59 | 0.59
    fp32, 16     511 | 518     0.98 | 1.00   0.97 | 0.89   0.52 | 0.48
    bf16, 4      574 | 535     1.02 | 1.06   1.24 | 1.39   0.56 | 0.62
    bf16, 16     781 | 792     1.02 | 1.04   1.04 | 1.03   0.47 | 0.45
    heads, 4     16 k | 16 k                                             2.6 | 7.3
    heads, 16    57 k | 59 k                                             2.2 | 4.6

The convolutions of one small network keep a core busy: there is nothing to gain but the overhead of tiny batches. Heads
gain several times; but of a whole run with a frozen backbone (211 photos, 20 epochs) steps are 0.15 of 2.2 processor
seconds, the rest is its notebook and files. On a GPU, which such networks leave idle, grouping would be worth another
look; this has not been measured.

    python tests/benchmarks/batched.py [--batch 4 16] [--members 1 4 18] [--threads 1]
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fruitlib.core import machine
from fruitlib.training.models import Base, End2End, Normalized

SIDE, CLASSES, WIDTH = 96, 3, 1280
TURNS, SECONDS = 7, 0.2
KINDS = (("conv", "fp32"), ("conv", "bf16"), ("heads", "fp32"))
LIMIT = 1e-3  # of how far weights move in five steps: what two ways may be apart
Step = Callable[[], None]


def adam(parameters) -> torch.optim.Optimizer:
    """What is timed."""
    return torch.optim.Adam(parameters, lr=1e-3, fused=True)


def sgd(parameters) -> torch.optim.Optimizer:
    """What the numbers are compared with."""
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


class Grouped(nn.Module):
    """`Normalized(End2End(Base))`, M of them at once: images (N, 3 M, S, S) -> logits (M, N, C)."""

    def __init__(self, members: list[Normalized]):
        super().__init__()
        nets, self.count = [member.net for member in members], len(members)
        for name in ("conv1", "conv2", "conv3"):
            convolutions = [getattr(net.base, name) for net in nets]
            joined = nn.Conv2d(3, 1, 1)  # which only holds the weights
            joined.weight = nn.Parameter(torch.cat([one.weight.detach() for one in convolutions]))
            joined.bias = nn.Parameter(torch.cat([one.bias.detach() for one in convolutions]))
            setattr(self, name, joined)
        self.fc = Stacked([net.base.fc for net in nets])
        self.head = Stacked([net.head for net in nets])
        self.mean, self.std = (buffer.repeat(1, self.count, 1, 1) for buffer in (members[0].mean, members[0].std))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """See the class."""
        x = (images - self.mean) / self.std
        x = F.max_pool2d(torch.relu(self._convolve(self.conv1, x, stride=2, padding=2)), 2)
        x = F.max_pool2d(torch.relu(self._convolve(self.conv2, x, padding=1)), 2)
        x = torch.relu(self._convolve(self.conv3, x, padding=1))
        x = F.adaptive_avg_pool2d(x, 4).contiguous().reshape(len(images), self.count, -1)
        return self.head(F.leaky_relu(self.fc(x.transpose(0, 1)), 0.1))

    def _convolve(self, layer: nn.Conv2d, x: torch.Tensor, **options) -> torch.Tensor:
        return F.conv2d(x, layer.weight, layer.bias, groups=self.count, **options)


class Stacked(nn.Module):
    """Linear layers, M of them at once: (M, N, D) -> (M, N, C)."""

    def __init__(self, layers: list[nn.Linear]):
        super().__init__()
        self.weight = nn.Parameter(torch.stack([one.weight.detach() for one in layers]))
        self.bias = nn.Parameter(torch.stack([one.bias.detach() for one in layers]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return torch.baddbmm(self.bias[:, None], x, self.weight.transpose(1, 2))


def summed_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The sum of the members' mean losses, so that each member has the gradients it would have alone."""
    members, images, _ = logits.shape
    losses = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
    return losses.view(members, images).mean(1).sum()


class Study:
    """M networks, their batches, and the ways to take a step with all; each way has a copy of the networks."""

    def __init__(self, make: Callable[[], nn.Module], inputs: torch.Tensor, bf16: bool, optimizer: Callable):
        """`inputs` are (M, N, …)."""
        self.make, self.inputs, self.bf16, self.optimizer = make, inputs, bf16, optimizer
        self.labels = torch.randint(CLASSES, inputs.shape[:2])

    def members(self) -> list[nn.Module]:
        """The same fresh networks each time."""
        torch.manual_seed(0)
        return [self.make().to(memory_format=torch.channels_last) for _ in self.inputs]

    def autocast(self):
        """bf16 or nothing."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bf16)

    def one_by_one(self, one_optimizer: bool) -> tuple[Step, Callable]:
        """`single`, or `optimizer`; and what gives the weights."""
        members = self.members()
        alone = [self.optimizer(member.parameters()) for member in members]
        optimizers = (
            [self.optimizer([p for member in members for p in member.parameters()])] if one_optimizer else alone
        )
        inputs = [images.contiguous(memory_format=_format(images)) for images in self.inputs]

        def step() -> None:
            for number, member in enumerate(members):
                with self.autocast():
                    logits = member(inputs[number])
                F.cross_entropy(logits.float(), self.labels[number]).backward()
                if not one_optimizer:
                    take(optimizers[number])
            if one_optimizer:
                take(optimizers[0])

        return step, lambda: [next(member.parameters()).detach() for member in members]

    def joined(self, network: nn.Module, inputs: torch.Tensor) -> tuple[Step, Callable]:
        """`grouped`, or the heads': a network that is all of them."""
        optimizer, inputs = self.optimizer(network.parameters()), inputs.contiguous(memory_format=_format(inputs))

        def step() -> None:
            with self.autocast():
                logits = network(inputs)
            summed_loss(logits, self.labels).backward()
            take(optimizer)

        return step, lambda: list(next(network.parameters()).detach().reshape(len(self.inputs), -1))

    def vmapped(self) -> tuple[Step, Callable]:
        """`vmap`."""
        members = self.members()
        stacked, buffers = stack_module_state(members)
        parameters = {name: values.detach().requires_grad_() for name, values in stacked.items()}
        optimizer = self.optimizer(parameters.values())

        def loss(parameters: dict, buffers: dict, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            with self.autocast():
                logits = functional_call(members[0], (parameters, buffers), (images,))
            return F.cross_entropy(logits.float(), labels)

        gradients = vmap(grad(loss))

        def step() -> None:
            found = gradients(parameters, buffers, self.inputs, self.labels)
            for name, values in parameters.items():
                values.grad = found[name].contiguous()
            take(optimizer)

        return step, lambda: list(next(iter(parameters.values())).detach())


def take(optimizer: torch.optim.Optimizer) -> None:
    """A step, and no gradients after it."""
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _format(images: torch.Tensor) -> torch.memory_format:
    return torch.channels_last if images.ndim == 4 else torch.contiguous_format


def ways(kind: str, members: int, batch: int, bf16: bool, optimizer: Callable) -> dict[str, tuple[Step, Callable]]:
    """The ways to train M networks (`kind` conv) or heads, by name."""
    if kind == "heads":
        study = Study(lambda: nn.Linear(WIDTH, CLASSES), torch.rand(members, batch, WIDTH), bf16, optimizer)
        together = study.joined(Stacked(study.members()), study.inputs)
        return {"single": study.one_by_one(False), "heads": together}
    photos = torch.rand(members, batch, 3, SIDE, SIDE)
    study = Study(lambda: Normalized(End2End(Base(), CLASSES)), photos, bf16, optimizer)
    side_by_side = study.inputs.transpose(0, 1).flatten(1, 2)
    return {
        "single": study.one_by_one(False),
        "optimizer": study.one_by_one(True),
        "grouped": study.joined(Grouped(study.members()), side_by_side),
        "vmap": study.vmapped(),
    }


def apart(found: dict[str, tuple[Step, Callable]]) -> float:
    """Take five steps each way; how far the first layer's weights end from `single`, as a share of how they moved."""

    def weights() -> dict[str, torch.Tensor]:
        return {name: torch.stack([one.flatten() for one in of()]).clone() for name, (_, of) in found.items()}

    before = weights()["single"]
    for _ in range(5):
        for step, _ in found.values():
            step()
    after = weights()
    moved = (after["single"] - before).abs().max().item()
    return max((after[name] - after["single"]).abs().max().item() for name in found) / moved


def seconds(found: dict[str, tuple[Step, Callable]], clock: Callable[[], float]) -> dict[str, float]:
    """Least seconds of a step by way, taken in turns."""
    least = dict.fromkeys(found, float("inf"))
    for _ in range(TURNS):
        for name, (step, _) in found.items():
            started, steps = clock(), 0
            while not steps or clock() - started < SECONDS:
                step()
                steps += 1
            least[name] = min(least[name], (clock() - started) / steps)
    return least


def compare(kind: str, precision: str, batch: int, members: int, clock: Callable[[], float]) -> dict:
    """One row of the table."""
    bf16 = precision == "bf16"
    difference = apart(ways(kind, members, batch, bf16, sgd))
    assert bf16 or difference < LIMIT, f"{kind}, {members} at once: not the numbers of single ones ({difference:.1e})"
    least = seconds(ways(kind, members, batch, bf16, adam), clock)
    row = {"kind": kind, "precision": precision, "batch": batch, "members": members}
    row |= {"single_per_s": round(members * batch / least["single"])}
    row |= {name: round(least["single"] / taken, 2) for name, taken in least.items() if name != "single"}
    print("  ".join(f"{name} {value}" for name, value in row.items()) + f"  apart {difference:.0e}", flush=True)
    return row


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--batch", type=int, nargs="+", default=[4, 16])
    options.add_argument("--members", type=int, nargs="+", default=[1, 4, 18])
    options.add_argument("--threads", type=int, default=1)
    options = options.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    asked = [(kind, batch, members) for kind in KINDS for batch in options.batch for members in options.members]
    rows = [compare(*kind, batch, members, clock) for kind, batch, members in asked]
    facts = {"threads": options.threads, "hardware": machine.hardware(), "torch": torch.__version__}
    print(json.dumps(facts | {"rows": rows}))


if __name__ == "__main__":
    main()
