"""How fast we train beside plain torch, timm, fastai, Lightning, and the limit: photos per second, and whole processes.

    python tests/benchmarks/bench.py                 three rounds; compares ratios with those of results.json
    python tests/benchmarks/bench.py --keep          and writes them there
    python tests/benchmarks/bench.py --whole 640 5880 --whole-rounds 3        more of whole processes
    python tests/benchmarks/bench.py --peers-in fp32 bf16        whole processes of peers in both
    python tests/benchmarks/bench.py --networks resnet18 --whole --peers torch      less of everything

The peers have an environment of their own, `.venv-peers`, made at the first call (some 5 GB) with the versions of
`peers/requirements.txt`; their scripts and ours are in `peers/`. All train on the same drawn photos (100 x 100 JPEGs),
with random weights, Adam, a random crop and mirroring, and get the same number of threads: all cores.

*Photos per second*: of the epochs after the first, training alone. The limit is a plain step on batches in memory. One
process per peer and network; one after the other; every other round in the opposite order. *Whole processes*: seconds
from command to end of three epochs of resnet18, validated on a fifth of the photos after each; peers in fp32, as
they come, ours as `fruitlib sweep` of one run: trained is when 02 is there, all pages when the report is; both from
nothing, as the peers, "warm" with a kernel waiting from the sweep before. Nothing is downloaded but packages.

Exit code: 0 well, 1 a ratio has fallen by more than 15 % or something of ours failed, 2 no environment.
"""

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bench_figures as figures
from bench_figures import LIMIT, OURS, Measured

HERE = Path(__file__).resolve().parent
ROOT, SCRIPTS, RESULTS = HERE.parents[1], HERE / "peers", HERE / "results.json"
REQUIREMENTS, ENVIRONMENT = SCRIPTS / "requirements.txt", ROOT / ".venv-peers"
PEERS = {"torch": "with_torch.py", "timm": "with_timm.py", "fastai": "with_fastai.py", "Lightning": "with_lightning.py"}
NETWORKS = {  # batch; photos and epochs, of which the first is not counted
    "3-conv": (16, 640, 3),
    "resnet18": (64, 192, 2),
    "efficientnet_b0": (64, 192, 2),
}
SIDE, VALIDATION, PRECISIONS = 96, 48, ("fp32", "bf16")
WHOLE_NETWORK, WHOLE_EPOCHS = "resnet18", 3
TRAINED, ALL_PAGES, WARM = "fruitlib, trained", figures.ALL_PAGES, "fruitlib, all pages, warm"
NOT_PASSED_ON = ("OMP_", "GOMP_", "KMP_", "MKL_", "MALLOC_", "FRUITLIB_", "PYTHONPATH")  # variables: all start alike
LONGEST = 3600  # seconds that one process may take
QUICK = 160  # photos of a quick try's whole processes
BUSY = 1.0  # processes at work before anything starts, on average of a minute


class Failed(Exception):
    """A process failed; the message is the end of its output."""


def environment() -> Path:
    """The Python of the peers' environment, which is made or renewed where its versions are not those wanted."""
    marker, wanted = ENVIRONMENT / "installed.txt", REQUIREMENTS.read_text()
    python = ENVIRONMENT / "bin" / "python"
    if python.exists() and marker.is_file() and marker.read_text() == wanted:
        return python
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if not uv:
        raise Failed("uv is not installed here, and makes the peers' environment: pip install uv")
    print(f"setting up {ENVIRONMENT.name} (some 5 GB; once)", flush=True)
    finished([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(ENVIRONMENT)], {})
    install = [uv, "pip", "install", "--quiet", "--python", str(python), "--compile-bytecode", "-r", str(REQUIREMENTS)]
    finished(install, {})
    marker.write_text(wanted)
    return python


def finished(command: list[str], variables: dict[str, str]) -> str:
    """What a command printed, once it has ended well.

    Raises:
        Failed: it ended otherwise, or took too long.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(NOT_PASSED_ON)}
    try:
        done = subprocess.run(command, env=kept | variables, capture_output=True, text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        raise Failed(f"took more than {LONGEST} s") from None
    if done.returncode:
        output = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise Failed(f"exit code {done.returncode}: {output[-1] if output else 'no output'}")
    return done.stdout


def draw(folder: Path, train: int, val: int) -> Path:
    """A folder with so many drawn photos to train on, and to validate on."""
    from data_path import drawn

    drawn(folder / "train", train)
    drawn(folder / "val", val, first=train)
    return folder


class Bench:
    """What is to be measured, with what; the folder that all goes to; what failed."""

    def __init__(self, options: argparse.Namespace, python: Path, folder: Path):
        self.options, self.python, self.folder = options, python, folder
        self.threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.variables = {"OMP_NUM_THREADS": str(self.threads)}
        self.variables |= {"OMP_WAIT_POLICY": "PASSIVE"} if options.quick else {}
        self.count, self.failures, self.defaults = 0, {}, {}

    def ours(self) -> dict[str, str]:
        """Variables for a process of ours: a fresh home, so that nothing is decoded or trained yet."""
        self.count += 1
        home = self.folder / f"home{self.count}"
        home.mkdir()
        (home / "notebooks").symlink_to(ROOT / "notebooks")
        paths = {"FRUITLIB_HOME": str(home), "PYTHONPATH": str(ROOT)}
        return self.variables | paths

    def note(self, name: str, why: str) -> None:
        """Say once that something gave no figure, and why."""
        if self.failures.get(name) != why:
            print(f"{name}: {why}", flush=True)
        self.failures[name] = why

    def script(self, name: str, network: str, data: Path, epochs: int, precisions: list[str]) -> dict:
        """What a peer's script, ours or the limit's says of each precision; nothing where it failed."""
        own = name in (OURS, LIMIT)
        file = {OURS: "with_fruitlib.py", LIMIT: "limit.py"}.get(name) or PEERS[name]
        command = [sys.executable if own else str(self.python), str(SCRIPTS / file)]
        if name != LIMIT:
            command += [str(data), "--epochs", str(epochs), "--weights", str(self.folder / "weights.pt")]
        command += ["--network", network, "--batch", str(NETWORKS[network][0]), "--side", str(SIDE)]
        try:
            output = finished([*command, "--precisions", *precisions], self.ours() if own else self.variables)
            return json.loads(output.splitlines()[-1])
        except Failed as why:
            self.note(f"{name}, {network}", str(why))
            return {}

    def speeds(self) -> Measured:
        """Photos per second, by network and precision."""
        measured: Measured = {}
        for turn in range(self.options.rounds):
            for network in self.options.networks:
                for name in in_order([*self.options.peers, OURS, LIMIT], turn):
                    for precision, figure in self.speed(name, network).items():
                        row = measured.setdefault(f"{batches(network)}, {precision}", {})
                        row.setdefault(name, []).append(figure)
        for network, precision in self.defaults.items():
            measured[f"{batches(network)}, as they come"] = figures.as_they_come(measured, batches(network), precision)
        return measured

    def speed(self, name: str, network: str) -> dict[str, float | None]:
        """Photos per second by precision, of one process."""
        (batch, photos, epochs), data = NETWORKS[network], self.folder / network
        if not data.is_dir():
            draw(data, 2 * batch if self.options.quick else photos, VALIDATION)
        found = self.script(name, network, data, epochs, [*PRECISIONS, *(["default"] if name == OURS else [])])
        if name == OURS and found:
            self.defaults[network] = found["default"]["precision"]
        rates = {precision: self.rate(f"{name}, {precision}", found.get(precision)) for precision in PRECISIONS}
        output = ", ".join(f"{rate:,.0f} in {precision}" for precision, rate in rates.items() if rate)
        print(f"{network}, {name}: {output or 'no'} photos/s", flush=True)
        return rates

    def rate(self, name: str, found: dict | None) -> float | None:
        """Photos per second after the first epoch, where there are several."""
        if not found or "why" in found:
            if found:
                self.note(name, found["why"])
            return None
        first = 1 if len(found["seconds"]) > 1 else 0
        return sum(found["photos"][first:]) / sum(found["seconds"][first:])

    def whole(self) -> Measured:
        """Seconds of whole processes, by number of photos."""
        measured: Measured = {}
        for photos in self.options.whole:
            train = photos * 4 // 5 // 64 * 64  # whole batches: fastai and timm drop what is left over
            data = draw(self.folder / f"whole{photos}", train, photos - train)
            for turn in range(self.options.whole_rounds):
                for precision in self.options.peers_in:
                    name = f"{photos:,} photos, {WHOLE_EPOCHS} epochs of {WHOLE_NETWORK}, peers in {precision}"
                    self.whole_round(measured.setdefault(name, {}), data, precision, turn)
        return measured

    def whole_round(self, row: dict[str, list[float | None]], data: Path, precision: str, turn: int) -> None:
        """Add a round of whole processes, one after the other, to a row."""
        for name in in_order([*self.options.peers, OURS], turn):
            for column, seconds in self.process(name, data, precision).items():
                row.setdefault(column, []).append(seconds)
                print(f"whole process, {column}: {f'{seconds:.0f} s' if seconds else 'failed'}", flush=True)

    def process(self, name: str, data: Path, precision: str) -> dict[str, float | None]:
        """Seconds of one process from command to end, by column; ours twice, the second time warm."""
        if name == OURS:
            waiting = {"XDG_RUNTIME_DIR": tempfile.mkdtemp(dir=self.folder), "FRUITLIB_KERNELS_IDLE": "20"}
            trained, pages = self.sweep(data, waiting)
            _, warm = self.sweep(data, waiting)
            return {TRAINED: trained, ALL_PAGES: pages, WARM: warm}
        started = time.perf_counter()
        done = self.script(name, WHOLE_NETWORK, data, WHOLE_EPOCHS, [precision])
        taken = time.perf_counter() - started
        return {name: taken if "seconds" in done.get(precision, {}) else None}

    def sweep(self, data: Path, variables: dict[str, str]) -> tuple[float | None, float | None]:
        """Seconds until the network is trained and 02 is there, and until all pages are, of a sweep of one run."""
        variables = self.ours() | variables
        home = Path(variables["FRUITLIB_HOME"])
        settings = {"data": str(data), "test_per_class": 0, "model": WHOLE_NETWORK, "weights": "none", "lr": 0.001}
        settings |= {"image_size": SIDE, "augment": "crop", "batch_size": NETWORKS[WHOLE_NETWORK][0]}
        (home / "one.yaml").write_text(json.dumps(settings | {"epochs": WHOLE_EPOCHS, "grid": {"seed": [0]}}))
        started, begun = time.perf_counter(), time.time()
        try:
            finished([sys.executable, "-m", "fruitlib.cli", "sweep", str(home / "one.yaml")], variables)
        except Failed as why:
            self.note("fruitlib sweep", str(why))
            return None, None
        taken = time.perf_counter() - started
        (record,) = (home / "executed" / "one").glob("*/stages/02_train.json")
        return record.stat().st_mtime - begun, taken


def batches(network: str) -> str:
    """A network and its batches, in words: the beginning of its rows' names."""
    return f"{network}, batch {NETWORKS[network][0]}"


def in_order(names: list[str], turn: int) -> list[str]:
    """The names, every other turn from the last to the first."""
    return names if turn % 2 == 0 else names[::-1]


def all_of(options: argparse.Namespace) -> bool:
    """Whether all networks and all peers are asked for, and not a quick try."""
    return not options.quick and set(options.networks) == set(NETWORKS) and set(options.peers) == set(PEERS)


def versions(python: Path) -> dict[str, str]:
    """Versions of the packages that the peers run with, and of Python."""
    asked = [line.split("==")[0] for line in REQUIREMENTS.read_text().splitlines() if "==" in line]
    code = "import json, platform, sys; from importlib.metadata import version; "
    code += "print(json.dumps({'python': platform.python_version()} | {name: version(name) for name in sys.argv[1:]}))"
    return json.loads(finished([str(python), "-c", code, *asked], {}))


def results(bench: Bench, speed: Measured, whole: Measured) -> dict:
    """All that `results.json` holds."""
    from fruitlib.core import machine

    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine.hardware(),
        "threads": bench.threads,
        "rounds": {"speed": bench.options.rounds, "whole": bench.options.whole_rounds},
        "peers": versions(bench.python),
        "fruitlib": machine.versions(),
        "default_precision": bench.defaults,
        "photos_per_s": figures.summary(speed),
        "seconds": figures.summary(whole),
        "ratios": figures.ratios(speed, whole),
        "no_figure": bench.failures,
    }


def show(now: dict) -> None:
    """Print the tables, and with what they were measured."""
    for table in figures.tables(now):
        print(f"\n{table}")
    defaults = ", ".join(f"{precision} for {network}" for network, precision in now["default_precision"].items())
    peers = ", ".join(f"{name} {version}" for name, version in now["peers"].items())
    print(f"\n{now['date']}, {now['machine']}, {now['threads']} threads; peers: {peers}")
    print(f"fruitlib with torch {now['fruitlib']['torch']}, takes by default {defaults or '(not asked)'}")


def ours_failed(now: dict) -> int:
    """1 where something of ours gave no figure, with a line for each; else 0."""
    lines = [
        f"{name} gave no figure: {why}" for name, why in now["no_figure"].items() if name.startswith((OURS, LIMIT))
    ]
    print("".join(f"{line}\n" for line in lines), end="")
    return 1 if lines else 0


def kept(now: dict) -> int:
    """Write the results, unless something of ours is not in them; returns the exit code."""
    if ours_failed(now):
        print("nothing was kept")
        return 1
    RESULTS.write_text(json.dumps(now, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"kept in {RESULTS.name}")
    return 0


def compared(now: dict) -> int:
    """Compare the ratios with the kept ones, a line for each that has fallen; returns the exit code."""
    code = ours_failed(now)
    if not RESULTS.is_file():
        print(f"nothing to compare with: --keep writes {RESULTS.name}")
        return code
    before = json.loads(RESULTS.read_text(encoding="utf-8"))
    if before["machine"] != now["machine"]:
        print(f"ratios are not compared: the kept ones are of another machine ({before['machine']})")
        return code
    named = f"those of {before['date']}"
    lines = figures.fallen(before["ratios"], now["ratios"], named)
    print("\n".join(lines) or f"no ratio is more than {figures.FALL:.0%} below {named}")
    return 1 if lines else code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of speed (default 3; 0: none)")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    whole = "whole processes with so many photos (default 640; nothing: none)"
    parser.add_argument("--whole", nargs="*", type=int, default=[640], metavar="PHOTOS", help=whole)
    parser.add_argument("--whole-rounds", type=int, default=1, help="of whole processes (default 1)")
    peers_in = "precision that peers have as whole processes (default fp32, as they come)"
    parser.add_argument("--peers-in", nargs="+", choices=PRECISIONS, default=["fp32"], help=peers_in)
    parser.add_argument("--quick", action="store_true", help="few photos, idle threads sleep: tries the harness alone")
    parser.add_argument("--keep", action="store_true", help="write results.json, for later comparisons")
    parser.add_argument("--show", action="store_true", help="print the tables of results.json; nothing is measured")
    options = parser.parse_args()
    if options.show:
        show(json.loads(RESULTS.read_text(encoding="utf-8")))
        return 0
    if options.keep and not (options.rounds and options.whole and options.whole_rounds and all_of(options)):
        parser.error("--keep wants all networks and all peers, in speed and as whole processes, and no --quick")
    if options.quick:
        options.whole = [QUICK] if options.whole else []
    sys.path.insert(0, str(ROOT))
    started = time.perf_counter()
    if os.getloadavg()[0] > BUSY:
        print("this machine is busy: figures will be off, most where threads spin while they wait", flush=True)
    try:
        python = environment()
    except Failed as why:
        print(f"the peers' environment could not be made: {why}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="fb", ignore_cleanup_errors=True) as made:
        bench = Bench(options, python, Path(made))
        now = results(bench, bench.speeds(), bench.whole())
    show(now)
    print(json.dumps(now, ensure_ascii=False))
    print(f"{time.perf_counter() - started:.0f} s in all")
    if options.quick:
        print("a quick try: nothing is compared")
        return ours_failed(now)
    return kept(now) if options.keep else compared(now)


if __name__ == "__main__":
    sys.exit(main())
