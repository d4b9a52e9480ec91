"""The shape of the house: rooms import one way, rooms that stay light, one home per dependency, one installation."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

from fruitlib.core import source_code

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fruitlib"
# A room imports only rooms that stand before it; cli.py stands after them all.
ROOMS = ["core", "data", "runs", "evaluation", "explain", "training", "deploy", "reporting", "kernels", "sweep"]
MODULES = sorted(path for path in PACKAGE.glob("*/*.py") if path.name != "__init__.py")
LINEAR_RECIPES = {"train", "train_head"}  # each is one recipe, in the order in which things happen


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@functools.cache
def imports(path: Path) -> set[str]:
    """Every module a file imports, inside functions too, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_the_package_is_ten_rooms_and_the_command_line():
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"} == set(ROOMS)
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "cli.py"}


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_room_imports_only_rooms_before_it(path):
    above = ROOMS[: ROOMS.index(path.parent.name) + 1]
    used = {name.split(".")[1] for name in imports(path) if name.startswith("fruitlib.")}
    assert used <= set(above), f"{dotted(path)} imports from {used - set(above)}"


def test_no_modules_import_each_other_in_a_circle():
    graph = {dotted(path): set(source_code.imported_modules(path)) for path in MODULES}
    TopologicalSorter(graph).prepare()  # CycleError names the circle


@pytest.mark.parametrize("room", ROOMS)
def test_a_rooms_docstring_lists_its_modules_and_it_holds_nothing_else(room):
    tree = ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))
    assert len(tree.body) == 1
    listed = re.findall(r"^ *(\w+)  +\S", ast.get_docstring(tree, clean=False), flags=re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in MODULES if path.parent.name == room)


SKLEARN = ("leakage", "calibration", "baselines")
SCIPY = ("calibration", "crossed", "intervals", "learning_curve", "significance")


@pytest.mark.parametrize(
    ("package", "homes"),
    [
        ("papermill", {"sweep.notebook"}),
        ("optuna", {"sweep.search"}),
        ("distributed", {"sweep.executors"}),
        ("rich", {"sweep.terminal"}),
        (
            "ipywidgets",
            {
                *(f"reporting.{name}" for name in ("widgets", "label_desk", "sweep_list", "cam_browser", "keys_box")),
                "sweep.start_form",
            },
        ),
        ("pytorch_grad_cam", {"explain.methods"}),
        ("onnxruntime.quantization", {"deploy.quantize"}),
        ("seaborn", {"reporting.style", "reporting.metrics_figures"}),
        ("nbconvert", {"reporting.pages"}),
        ("filelock", {"core.files"}),
        ("cv2", {"data.objects", "data.augment", "explain.object_masks"}),
        ("sklearn", {"data.stratify", "training.heads", "training.proof", *(f"evaluation.{name}" for name in SKLEARN)}),
        ("cleanlab", {"evaluation.label_errors"}),
        ("scipy", {f"evaluation.{name}" for name in SCIPY}),
        ("imblearn", {"data.balance"}),
        ("timm", {"core.model_names", "training.timm_zoo"}),
    ],
)
def test_a_dependency_has_one_home(package, homes):
    using = {
        dotted(path).removeprefix("fruitlib.")
        for path in MODULES
        if any(name == package or name.startswith(f"{package}.") for name in imports(path))
    }
    assert using == homes


def test_importing_fruitlib_is_light_and_quick():
    check = "import sys, fruitlib; print(sorted({'torch', 'IPython', 'pandas', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stdout.strip() == "[]"
    timed = "import time; t = time.perf_counter(); import fruitlib; print(time.perf_counter() - t)"
    taken = [float(subprocess.check_output([sys.executable, "-c", timed])) for _ in range(3)]
    assert min(taken) < 0.1


EVALUATION = [dotted(path) for path in MODULES if path.parent.name == "evaluation"]


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [(EVALUATION, ["torch", "torchvision", "IPython"]), (["fruitlib.deploy.predict"], ["torch", "pandas", "scipy"])],
    ids=["evaluation", "predict"],
)
def test_rooms_that_stay_light_import_where_the_heavy_is_forbidden(modules, forbidden):
    code = f"import sys; sys.modules.update(dict.fromkeys({forbidden})); import {', '.join(modules)}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_module_and_no_function_is_too_long():
    lines = {dotted(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {name: n for name, n in lines.items() if n > 400} == {}
    functions = [
        (node.end_lineno - node.lineno + 1, f"{dotted(path)}.{node.name}")
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name not in LINEAR_RECIPES
    ]
    assert [name for n, name in functions if n > 60] == []


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
