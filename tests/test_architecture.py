"""The shape of the house: imports run one way, a light package, one home per dependency, one installation."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import fruitlib

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fruitlib"


def order() -> list[str]:
    lines = re.findall(r"^ +(?:core|around) +(.+)$", fruitlib.__doc__, flags=re.MULTILINE)
    return " ".join(lines).split()


@functools.cache
def imports(path: Path) -> set[str]:
    """Every module a file imports, inside functions too, as dotted names; `fruitlib.x` for relative ones."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = "fruitlib" + (f".{node.module}" if node.module else "") if node.level else node.module
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


def test_the_order_names_every_module():
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert set(order()) == modules


def test_imports_run_one_way():
    names = order()
    for position, name in enumerate(names):
        used = {module for module in names if f"fruitlib.{module}" in imports(PACKAGE / f"{name}.py")}
        assert used <= set(names[:position]), f"{name} imports a module below it: {used - set(names[:position])}"


@pytest.mark.parametrize(
    ("package", "homes"),
    [
        ("papermill", {"execute"}),
        ("optuna", {"search"}),
        ("distributed", {"placement"}),
        ("rich", {"progress"}),
        ("ipywidgets", {"widgets"}),
        ("pytorch_grad_cam", {"gradcam"}),
        ("onnxruntime.quantization", {"export"}),
        ("seaborn", {"plots"}),
        ("nbconvert", {"report"}),
        ("filelock", {"runtime"}),
        ("cv2", {"preprocess", "augment"}),
        ("imagehash", {"intake"}),
        ("sklearn", {"stratify", "audit", "thresholds", "baselines"}),
        ("cleanlab", {"audit"}),
        ("scipy", {"stats", "calibration", "learning"}),
        ("statsmodels", {"stats"}),
        ("imblearn", {"balance"}),
    ],
)
def test_a_dependency_has_one_home(package, homes):
    using = {
        path.stem
        for path in PACKAGE.glob("*.py")
        if any(name == package or name.startswith(f"{package}.") for name in imports(path))
    }
    assert using == homes


def test_importing_fruitlib_is_light_and_quick():
    check = "import sys, fruitlib; print(sorted({'torch', 'IPython', 'pandas', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stdout.strip() == "[]"
    timed = "import time; t = time.perf_counter(); import fruitlib; print(time.perf_counter() - t)"
    taken = [float(subprocess.check_output([sys.executable, "-c", timed])) for _ in range(3)]
    assert min(taken) < 0.1


def test_no_module_is_too_long():
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.glob("*.py")}
    assert {name: n for name, n in lengths.items() if n > 450} == {}


def test_environment_yml_installs_what_pyproject_says():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = set(project["dependencies"] + project["optional-dependencies"]["lab"])
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in dependencies if isinstance(entry, dict))
    assert set(pip) - {"-e ."} == wanted
    assert "-e ." in pip


def test_every_line_of_environment_yml_says_what_uses_it():
    lines = [line for line in (ROOT / "environment.yml").read_text().splitlines() if line.strip().startswith("- ")]
    assert [line for line in lines if "#" not in line and not line.strip().endswith("pip:")] == []


def test_the_lock_names_no_host_and_holds_every_dependency():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    locked = set(re.findall(r"^([\w.-]+)==", text, flags=re.MULTILINE))
    assert {re.split(r"[=<>]", name)[0] for name in wanted} <= locked
