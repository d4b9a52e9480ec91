"""What a sweep costs beyond what its notebooks compute, beside stock papermill, both in one run.

Prints a table, and as its last line JSON:
    warm_overhead_s   one notebook executed as a sweep does it: seconds from start to end less its own (<= 1.0)
    times_less        stock papermill's overhead on the same notebook / ours (>= 6)
    wall_over_ideal   a grid of 24 runs: wall time / (seconds its runs' cells computed / cores) (<= 1.25); in the wall
                      time is everything: the first kernel's imports, 01, summaries, the report, the test

    python tests/benchmarks/sweep_overhead.py [--runs 24] [--epochs 20]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import nbformat
import yaml

from fruitlib.core import machine
from fruitlib.core.config import Config
from fruitlib.kernels import kernelspec
from fruitlib.sweep import executors
from fruitlib.sweep.notebook import execute_notebook

ROOT = Path(__file__).resolve().parents[2]
TURNS = 5
CELLS = [
    "import time\n\nimport matplotlib.pyplot as plt\nimport seaborn as sns\nimport torch\nimport torchvision",
    "started = time.perf_counter()",
    "network = torchvision.models.mobilenet_v3_small()\nnetwork(torch.rand(8, 3, 96, 96)).sum().backward()",
    "sns.lineplot(x=range(100), y=[number**2 for number in range(100)])\nplt.show()",
    "print(time.perf_counter() - started)",
]


def notebook(folder: Path) -> None:
    """A notebook that imports what ours import, computes for a moment, shows a figure, and says how long it took."""
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    made.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    (folder / "notebooks").mkdir()
    nbformat.write(made, folder / "notebooks" / "sample.ipynb")


def own_seconds(path: Path) -> float:
    """What an executed copy says it computed for."""
    last = nbformat.read(path, as_version=4).cells[-1]
    return float("".join(output.text for output in last.outputs if output.output_type == "stream"))


def overheads(folder: Path) -> tuple[list[float], list[float]]:
    """Seconds beyond the notebook's own, (ours, stock papermill's), in turns after one of each that does not count."""
    kernel, placed = kernelspec.ready()
    print(f"kernels: {placed}")
    source, out = folder / "notebooks" / "sample.ipynb", folder / "out.ipynb"

    def ours() -> float:
        started = time.perf_counter()
        execute_notebook("sample", out, Config(), kernel)
        return time.perf_counter() - started - own_seconds(out)

    def stock() -> float:
        started = time.perf_counter()
        command = [sys.executable, "-m", "papermill", str(source), str(out), "--no-progress-bar"]
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - started - own_seconds(out)

    ours(), stock()
    pairs = [(ours(), stock()) for _ in range(TURNS)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def grid(folder: Path, runs: int, epochs: int) -> tuple[float, float, int]:
    """(wall seconds, seconds the runs' cells computed, runs at a time) of a grid on the practice photographs."""
    (folder / "notebooks").rename(folder / "sample")
    (folder / "notebooks").symlink_to(ROOT / "notebooks")
    seeds = list(range(runs // 4))
    settings = {"epochs": epochs, "grid": {"lr": [0.003, 0.01], "optimizer": ["adam", "sgd"], "seed": seeds}}
    (folder / "grid.yaml").write_text(yaml.safe_dump(settings))
    environment = os.environ | {"XDG_RUNTIME_DIR": str(folder / "r")}  # a zygote of its own, to be started first
    (folder / "r").mkdir()
    subprocess.run([sys.executable, "-m", "fruitlib.cli", "data", "sample"], check=True)  # drawn before, once
    command = [sys.executable, "-m", "fruitlib.cli", "sweep", str(folder / "grid.yaml")]
    started = time.perf_counter()
    subprocess.run(command, check=True, env=environment)
    wall = time.perf_counter() - started
    records = [json.loads(path.read_text()) for path in (folder / "executed" / "grid").glob("*/stages/0[2345]_*.json")]
    assert len(records) == 4 * runs, "not every run is complete"
    executor, _ = executors.local(0, runs, 1, print)
    return wall, sum(record["computed"] for record in records), executor.width


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--runs", type=int, default=24)
    options.add_argument("--epochs", type=int, default=20)
    options = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="fb", ignore_cleanup_errors=True) as made:
        folder = Path(made)
        os.environ |= {"FRUITLIB_HOME": made, "FRUITLIB_KERNELS_IDLE": "30"}
        notebook(folder)
        ours, stock = overheads(folder)
        for name, seconds in (("as a sweep does it, warm", ours), ("papermill as it stands", stock)):
            low, middle, high = statistics.quantiles(seconds, n=4)
            print(f"overhead, {name:<28}{middle:7.2f} s  ({low:.2f} to {high:.2f})")
        figures = {"warm_overhead_s": statistics.median(ours)}
        figures["times_less"] = statistics.median(b / a for a, b in zip(ours, stock, strict=True))
        if options.runs:
            wall, computed, width = grid(folder, options.runs, options.epochs)
            print(f"{options.runs} runs, {width} at a time: {wall:.0f} s for {computed:.0f} s of computing")
            figures |= {"wall_over_ideal": wall / (computed / width), "wall_s": wall, "computed_s": computed}
    print(json.dumps({name: round(value, 2) for name, value in figures.items()} | {"hardware": machine.hardware()}))


if __name__ == "__main__":
    main()
