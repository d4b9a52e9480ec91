"""One numbered notebook, executed by papermill into a file that is whole, or the failed copy with its error."""

import contextlib
import json
import logging
import os
import tempfile
import time
import warnings
from pathlib import Path

from fruitlib.core import files, source_code
from fruitlib.core.config import Config
from fruitlib.core.errors import first_line
from fruitlib.kernels import launcher
from fruitlib.runs import stages
from fruitlib.runs.run import Pruned
from fruitlib.sweep import watch

kernel_folders: set[str] = set()  # temporary ones in use, to be removed when this process is ended from outside


class NotebookFailed(RuntimeError):
    """A notebook stopped with an error; the message is the error in one line.

    Attributes:
        disk_failure: whether the notebook recorded that a full or broken disk caused it.
    """

    def __init__(self, message: str, disk_failure: bool = False):
        super().__init__(message)
        self.disk_failure = disk_failure


class NotebookPruned(NotebookFailed):
    """A notebook stopped because a search pruned its run."""


class KernelLost(NotebookFailed):
    """The kernel died under its notebook. Perhaps it was killed; then a second try may succeed."""


def execute_notebook(stage: str, output: Path, config: Config, kernel: str = "python3", **places: str) -> dict:
    """Execute a numbered notebook by papermill into `output`, which is complete or the failed copy, never a part.

    Settings its parameters cell names are injected as they are, others that differ from their default as `overrides`.

    Returns:
        seconds: from start to end; computed: seconds in its cells, but for the one that imports; kernel: `warm` or
        `cold`, with the reason where a warm one could not be had.

    Raises:
        NotebookFailed: a cell raised (`NotebookPruned`: its run was pruned), or the kernel died (`KernelLost`).
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    source, started = stages.notebook_path(stage), time.perf_counter()
    logging.getLogger("papermill").setLevel(logging.ERROR)
    partial = files.beside(output, output.suffix)
    try:
        with warnings.catch_warnings(), _kernel_settings() as (settings, log):
            warnings.simplefilter("ignore")
            try:
                notebook = papermill.execute_notebook(
                    _literal(source),
                    _literal(partial),
                    parameters(source, config, places),
                    kernel_name=kernel,
                    progress_bar=False,
                    start_timeout=300,  # a machine with many kernels starting at once may take its time
                    config=settings,
                    extra_arguments=["--IPKernelApp.log_level=50"],
                )
            except (DeadKernelError, RuntimeError) as problem:
                if not isinstance(problem, DeadKernelError) and "Kernel died" not in str(problem):
                    raise
                if partial.is_file():  # else it died before its first cell
                    os.replace(partial, output)
                last_lines = _lines(log)[-1:]
                why = last_lines[0] if last_lines else "often out of memory: try a smaller batch_size"
                raise KernelLost(f"{stage}: the kernel died ({why})") from None
            cold = [line.removeprefix(launcher.COLD) for line in _lines(log) if line.startswith(launcher.COLD)]
        os.replace(partial, output)
    except papermill.PapermillExecutionError as problem:
        os.replace(partial, output)
        message = first_line(problem.evalue)
        if problem.ename == Pruned.__name__:
            raise NotebookPruned(message) from None
        raise NotebookFailed(f"{stage}: {problem.ename}: {message}", _recorded_disk_failure(output)) from None
    finally:
        partial.unlink(missing_ok=True)
    used = f"cold: {cold[0]}" if cold else "cold" if kernel == "python3" else "warm"
    seconds = round(time.perf_counter() - started, 2)
    return {"seconds": seconds, "computed": round(_computed(notebook), 2), "kernel": used}


def _recorded_disk_failure(notebook: Path) -> bool:
    """Whether the headline of a notebook that failed says that a disk caused it."""
    outputs = [
        out for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] for out in cell.get("outputs", ())
    ]
    headlines = [out.get("metadata", {}).get("fruitlib", {}).get("headline", {}) for out in outputs]
    return any(headline.get("disk_failure") for headline in headlines)


def _computed(notebook) -> float:
    """Seconds that an executed notebook's cells took, but for the cell that imports."""
    cells = [cell for cell in notebook.cells if not cell.source.lstrip().startswith(("import ", "from "))]
    return sum(cell.metadata.get("papermill", {}).get("duration") or 0 for cell in cells)


@contextlib.contextmanager
def _kernel_settings():
    """Settings for one kernel, and the file that takes its standard error.

    The kernel is reached over sockets in a private folder, because TCP ports can collide and be overheard. Its standard
    error (ipykernel complains now and then while it shuts down) would otherwise mix with the sweep's own messages.
    """
    from traitlets.config import Config as Settings

    job = os.environ.get(launcher.JOB, "")  # whoever started this process removes that folder, however it ends
    where = {"prefix": "k", "dir": job} if os.path.isdir(job) else {"prefix": watch.prefix(os.getpid())}
    with tempfile.TemporaryDirectory(**where) as folder:  # short: a socket's path has a limit of 108 bytes
        kernel_folders.add(folder)
        log = Path(folder) / "kernel.log"
        settings = Settings({"NotebookClient": {"kernel_manager_class": _manager_writing_to(log)}})
        if os.name != "nt":  # no such sockets there
            settings.KernelManager = Settings({"transport": "ipc", "connection_file": f"{folder}/kernel.json"})
        yield settings, log
    kernel_folders.discard(folder)


def _manager_writing_to(log: Path) -> type:
    from jupyter_client.manager import AsyncKernelManager

    class Manager(AsyncKernelManager):
        async def start_kernel(self, **options):
            with log.open("ab") as stderr:
                await super().start_kernel(stderr=stderr, **options)

    return Manager


def _lines(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []


def _literal(path: Path) -> str:
    """A path as papermill wants it: it fills in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def parameters(notebook: Path, config: Config, places: dict[str, str]) -> dict:
    """What to inject: the places and settings the parameters cell names.

    Other settings off their default as `overrides`.
    """
    declared = declared_parameters(notebook)
    settings = config.model_dump()
    injected = {name: value for name, value in {**settings, **places}.items() if name in declared}
    if "overrides" in declared:
        rest = {name: value for name, value in settings.items() if name not in declared}
        defaults = {name: field.default for name, field in Config.model_fields.items()}
        injected["overrides"] = {name: value for name, value in rest.items() if value != defaults[name]}
    return injected


def declared_parameters(notebook: Path) -> set[str]:
    """Names assigned in the cell tagged `parameters`."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    tagged = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    return set().union(*map(source_code.assigned_names, tagged))
