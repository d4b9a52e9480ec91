"""`make coverage`: every simulation at its full length; the tables are those of the docstrings.

A module here has `TIMES`, the repetitions of a full run, and functions `table` or `…_table` of them.
"""

import importlib
import pkgutil
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).parent


def tables() -> list[tuple[str, str]]:
    """Module and function of every table."""
    modules = [name for _, name, _ in pkgutil.iter_modules([str(FOLDER)]) if name != "__main__"]
    named = [(name, function) for name in modules for function in vars(_module(name)) if function.endswith("table")]
    return [(name, function) for name, function in named if callable(getattr(_module(name), function))]


def _module(name: str):
    return importlib.import_module(f"tests.simulations.{name}")


def simulate(name: str, function: str) -> str:
    """One table as text, with its title and how long it took."""
    module, started = _module(name), time.perf_counter()
    simulated = getattr(module, function)
    text = simulated(module.TIMES).to_string()
    title = (simulated.__doc__ or module.__doc__).splitlines()[0]
    return f"{name}.{function}: {title}\n{text}\n({time.perf_counter() - started:.0f} s)\n"


def main() -> None:
    """Run all of them, on all cores, and print each as it ends."""
    started, all_tables = time.perf_counter(), tables()
    with ProcessPoolExecutor() as pool:
        for done, text in enumerate(pool.map(simulate, *zip(*all_tables, strict=True)), 1):
            print(f"[{done}/{len(all_tables)}] {text}", flush=True)
    print(f"{len(all_tables)} tables in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
