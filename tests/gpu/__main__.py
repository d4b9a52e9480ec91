"""`make gpu`: what needs a GPU, tested and measured in under eight minutes, by the packages that are installed.

Nothing is installed, and no network is needed: the machine may hold torch and little else. First the tests of this
folder, then tests/benchmarks/gpu.py, whose last line is JSON. Without a GPU both say so and do nothing.

    make gpu PYTHON=python3         # any interpreter that can import torch
"""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What training imports, by the name to install it under; tests/training/test_few_packages.py blocks all else.
NEEDED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "pandas": "pandas",
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "pydantic": "pydantic",
    "yaml": "pyyaml",
    "filelock": "filelock",
    "psutil": "psutil",
}
# And what the tests import besides.
TESTED = {"pytest": "pytest", "matplotlib": "matplotlib", "imagehash": "imagehash", "scipy": "scipy"}
ALL_SECONDS, TEST_SECONDS = 450, 170
NO_TESTS = 5  # pytest's exit code where all tests were skipped or none was found


def missing(packages: dict[str, str]) -> list[str]:
    """The names to install of those packages that cannot be imported here."""
    return [name for module, name in packages.items() if importlib.util.find_spec(module) is None]


def how_to_bring(names: list[str]) -> str:
    """What to do about packages that are missing, also where there is no network."""
    listed = " ".join(names)
    return (
        f"install them, or, without a network here, run elsewhere `python -m pip install --target FOLDER {listed}` "
        f"(same system and Python, {sys.version_info.major}.{sys.version_info.minor}), bring FOLDER, "
        "and `PYTHONPATH=FOLDER make gpu PYTHON=python3`"
    )


def call(command: list[str], seconds: float) -> int:
    """Run a Python command in the project's folder for at most so many seconds; its exit code, 124 where it was ended.

    The project's folder comes first on its path: no installation is needed.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    try:
        return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        print(f"ended after {seconds:.0f} s: {' '.join(command)}", flush=True)
        return 124


def test() -> int:
    """The tests that need a GPU; their exit code, 0 where none could be run."""
    if lacking := missing(TESTED):
        print(f"tests left out, since {', '.join(lacking)} cannot be imported; the benchmark follows", flush=True)
        return 0
    options = ["-q", "-p", "no:cacheprovider", "-m", "gpu"]
    if missing({"pytest_timeout": "pytest-timeout"}):
        options += ["-W", "ignore::pytest.PytestConfigWarning"]  # of a setting that nobody knows then
    code = call(["-m", "pytest", *options, "tests/gpu"], TEST_SECONDS)
    return 0 if code == NO_TESTS else code


def main() -> None:
    started = time.monotonic()
    if lacking := missing(NEEDED):
        sys.exit(f"training needs packages that cannot be imported here: {', '.join(lacking)}; {how_to_bring(lacking)}")
    print(f"by {sys.executable}, nothing is installed", flush=True)
    tests = test()
    left = ALL_SECONDS - (time.monotonic() - started)
    benchmark = call(["tests/benchmarks/gpu.py", "--seconds", f"{left - 30:.0f}", *sys.argv[1:]], left)
    sys.exit(tests or benchmark)


if __name__ == "__main__":
    main()
