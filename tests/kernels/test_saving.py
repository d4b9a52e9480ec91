"""Notebooks that were executed by hand: their outputs stay in the file, and git sees none of them."""

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from fruitlib.kernels import saving

ROOT = Path(__file__).parents[2]
NOTEBOOK = "notebooks/00_start.ipynb"
needs = pytest.mark.skipif(not (shutil.which("git") and shutil.which("make")), reason="git or make is not installed")


def git(folder: Path, *arguments: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", *names, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def clone(tmp_path) -> Path:
    """A repository of its own with one notebook, and the filter that `make` sets."""
    (tmp_path / "notebooks").mkdir()
    for name in (NOTEBOOK, "Makefile", ".gitattributes", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".gitignore").write_text(".venv\n")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "x")
    dry = subprocess.run(["make", "-nB", ".venv/installed"], cwd=tmp_path, check=True, capture_output=True, text=True)
    command = next(line for line in dry.stdout.splitlines() if "git config" in line)
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    return tmp_path


def execute(path: Path) -> None:
    """What JupyterLab leaves in a notebook: outputs, counts, the language's version, another kernel, a widget."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for count, cell in enumerate(code, 1):
        cell.outputs = [nbformat.v4.new_output("stream", text="words\n" * 50)]
        cell.execution_count, cell.metadata["execution"] = count, {"iopub.execute_input": "2026-01-01"}
    notebook.metadata.kernelspec = {"name": "fruitlib-warm", "display_name": "fruitlib (warm)", "language": "python"}
    notebook.metadata.language_info |= {"version": "3.12.1", "file_extension": ".py", "mimetype": "text/x-python"}
    notebook.metadata.language_info |= {"codemirror_mode": {"name": "ipython"}, "pygments_lexer": "ipython3"}
    notebook.metadata.widgets = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    nbformat.write(notebook, path)


@needs
def test_outputs_stay_in_the_file_and_git_sees_none(clone):
    path = clone / NOTEBOOK
    execute(path)
    saving.refresh_git(os_path=str(path), model={}, contents_manager=None).join()
    assert git(clone, "status", "--porcelain") == "" and "words" in path.read_text()
    path.write_text(path.read_text().replace("Which sweeps are there", "Which sweeps are here", 1))
    saving.refresh_git(os_path=str(path)).join()
    assert git(clone, "status", "--porcelain") == f" M {NOTEBOOK}\n"  # a change by hand is seen, and not staged
    git(clone, "add", ".")
    changed = git(clone, "diff", "--cached", "--numstat").split()
    assert changed == ["1", "1", NOTEBOOK] and "words" not in git(clone, "show", f":{NOTEBOOK}")


@needs
def test_files_that_git_does_not_know_stay_unknown_and_a_missing_filter_does_no_harm(clone):
    (clone / ".venv").unlink()
    mine = clone / "notebooks" / "mine.ipynb"
    shutil.copy(clone / NOTEBOOK, mine)
    saving.refresh_git(os_path=str(mine)).join()
    assert git(clone, "status", "--porcelain") == "?? notebooks/mine.ipynb\n"
    assert saving.refresh_git(os_path=str(clone / "Makefile")) is None
    execute(clone / NOTEBOOK)
    git(clone, "add", NOTEBOOK)
    assert "words" in git(clone, "show", f":{NOTEBOOK}")  # taken as it is
