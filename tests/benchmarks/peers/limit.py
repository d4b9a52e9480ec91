"""The limit: a plain step on batches that are in memory already, with everything torch has to make it fast.

Channels last, Adam in one kernel, memory kept between steps, threads that wait as libgomp's default has it.

    python limit.py --network resnet18 --batch 64 --side 96 --precisions fp32 bf16

Its last line is JSON as the peers' scripts print it, with the median step as an epoch of its own.
"""

import argparse
import json
import statistics
import time

import torch  # before fruitlib, which would set how its threads wait

# isort: split
import common
from torch import nn

from fruitlib.core import machine

BATCHES, WARM_UP, LEAST_STEPS, LEAST_SECONDS, CLASSES = 4, 3, 5, 2.0, 3


def step_seconds(options: argparse.Namespace, precision: str) -> float:
    """The median seconds of a training step."""
    torch.manual_seed(0)
    model = common.network(options.network, CLASSES).train()
    optimizer, loss_of = torch.optim.Adam(model.parameters(), lr=common.LR, fused=True), nn.CrossEntropyLoss()
    images = torch.rand(BATCHES, options.batch, 3, options.side, options.side)
    images = [batch.contiguous(memory_format=torch.channels_last) for batch in images]
    labels = torch.randint(CLASSES, (BATCHES, options.batch))
    taken = []
    while len(taken) < WARM_UP + LEAST_STEPS or sum(taken[WARM_UP:]) < LEAST_SECONDS:
        started, number = time.perf_counter(), len(taken) % BATCHES
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_of(model(images[number]), labels[number])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[WARM_UP:])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--side", type=int, required=True)
    parser.add_argument("--precisions", nargs="+", required=True)
    options = parser.parse_args()
    machine.keep_freed_memory()
    found = {}
    for precision in options.precisions:
        found[precision] = {"photos": [options.batch], "seconds": [step_seconds(options, precision)]}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
