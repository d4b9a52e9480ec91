"""A params file -> executed notebooks: one folder per combination, 02 to 05 in each, 06 for the model that is shipped.

What is complete is not repeated, what failed keeps its notebook with the error, and the rest goes on.
"""

import contextlib
import logging
import os
import tempfile
import time
import warnings
from datetime import datetime
from pathlib import Path

import nbformat
import pandas as pd

from fruitlib import audit, crossval, report, runs, runtime, shipping, sources, splits
from fruitlib import config as configs
from fruitlib.config import Config
from fruitlib.params import Sweep, read_params
from fruitlib.progress import Progress, print_results
from fruitlib.runs import Run
from fruitlib.runtime import InputError
from fruitlib.shipping import RUN_STAGES, TEST_STAGE

# Of training, in results.csv
RECORDED = {name: name for name in ("best_epoch", "epochs", "precision")}
RECORDED |= {"train_seconds": "seconds", "parameters": "total_parameters"}


class NotebookFailed(RuntimeError):
    """A notebook stopped with an error; the message is the error in one line."""


def sweep(params_file: Path, data: str | None = None, out: str | None = None) -> int:
    """Execute a params file; returns 0, or 1 when a run failed.

    Raises:
        InputError: before anything is written, when the params file, the photos or the split do not allow it.
    """
    plan = read_params(params_file, {"data": data} if data else {})
    sweep_dir = runtime.home() / "executed" / (out or sweep_name(plan, data))
    _refuse_other_data(plan.config, sweep_dir)
    _check_before(plan)
    number = f"{len(plan.runs)} run{'s' * (len(plan.runs) > 1)}"
    print(f"{plan.title}\n{number} in {runtime.display_path(sweep_dir)}, photos: {plan.config.data}", flush=True)
    with Progress(plan, sweep_dir) as progress:
        _check_classes(plan, progress)
        splits.prepare(plan.config, sweep_dir, progress.photos)
        work = {name: Run(sweep_dir / name, config) for name, config in plan.runs.items()}
        return _execute(plan, sweep_dir, work, progress)


def sweep_name(plan: Sweep, data: str | None) -> str:
    """The params file's name, and the photos' when they come from the command line: results never mix."""
    return f"{plan.name}-{Path(data).name}" if data and data not in sources.SAMPLES else plan.name


def _refuse_other_data(config: Config, sweep_dir: Path) -> None:
    if (sweep_dir / "manifest.json").is_file() and (held := splits.record(sweep_dir)["data"]) != config.data:
        where = runtime.display_path(sweep_dir)
        raise InputError(f"{where} holds results on other photos ({held}): give this sweep another name with --out")


def _check_before(plan: Sweep) -> None:
    """What every run needs and only a look at the disk can tell."""
    for stage in ("01_split", *RUN_STAGES, TEST_STAGE):
        if not runs.notebook_path(stage).is_file():
            raise InputError(f"{runs.notebook_path(stage)}: no such notebook; set FRUITLIB_HOME to the project folder")
    shipping.check(plan)
    for config in plan.runs.values():
        if config.base_weights and not runtime.resolve(config.base_weights).is_file():
            raise InputError(f"base_weights {config.base_weights}: no such file; params/base_model.yaml trains one")
        if config.weights not in ("none", "DEFAULT") and not runtime.resolve(config.weights).is_file():
            raise InputError(f"weights {config.weights}: no such file; wanted none, DEFAULT or a checkpoint")
    _check_with_torch(plan)


def _check_with_torch(plan: Sweep) -> None:
    """What it takes torch, and so some seconds, to tell."""
    starts = {
        (c.model, c.weights, c.base_weights): c for c in plan.runs.values() if c.weights != "none" or c.base_weights
    }
    lower = [config for config in plan.runs.values() if config.precision in ("bf16", "fp16")]
    if starts or lower:
        from fruitlib import models, speed

        for config in starts.values():
            models.check_start(config)
        for config in lower:
            speed.check(config, runtime.device())


def _check_classes(plan: Sweep, progress: Progress) -> None:
    """The base model's five classes, before anything is written."""
    if all(config.model != "base" for config in plan.runs.values()):
        return
    sources.ready(plan.config.data, progress.photos)
    classes = sources.scan(plan.config)[0]["label"].nunique()
    if classes != configs.BASE_CLASSES:
        raise InputError(f"model base has {configs.BASE_CLASSES} classes, the photos have {classes}: use model end2end")


def _execute(plan: Sweep, sweep_dir: Path, work: dict[str, Run], progress: Progress) -> int:
    """01, then every run, then the choice and its test; the summary and report grow as runs finish."""
    states = {name: {"state": _state(run), "error": None} for name, run in work.items()}
    progress.before = {name for name, state in states.items() if state["state"] == "complete"}
    progress.finished |= progress.before
    try:
        _execute_split(plan, sweep_dir, progress)
    except NotebookFailed as problem:
        progress.say(f"fruitlib: {problem}; the notebook with the error: {sweep_dir / '01_split.ipynb'}")
        return 1
    busy = []
    for name, stages in _steps(plan):
        if states[name]["state"] == "pending" and not _work_on(work[name], stages, states[name], progress):
            busy.append(name)
        write_summary(plan, sweep_dir, work, states)
    for stages in (RUN_STAGES[:1], RUN_STAGES):  # another sweep had these; by now it may be done
        for name in dict.fromkeys(busy):
            if states[name]["state"] == "pending":
                _work_on(work[name], stages, states[name], progress, wait=True)
        write_summary(plan, sweep_dir, work, states)
    chosen = shipping.choose(plan, work, states, sweep_dir)
    shipped = _ship(plan, work, states, chosen, progress)
    for name in _to_test(plan, work, states, shipped):
        _work_on(work[name], (TEST_STAGE,), states[name], progress, wait=True)
    summary = write_summary(plan, sweep_dir, work, states, chosen, shipped)
    page = report.build(sweep_dir)
    progress.close()
    print_results(plan, sweep_dir, summary)
    print(f"\nreport: {runtime.display_path(page)}")
    return int(any(state["error"] for state in states.values()))


def _steps(plan: Sweep) -> list[tuple[str, tuple[str, ...]]]:
    """Runs and their notebooks in order. All folds of a combination are trained before any is looked at: 03 wants
    the predictions on all photos."""
    if not plan.config.folds:
        return [(name, RUN_STAGES) for name in plan.runs]
    steps = []
    for names in plan.combinations().values():
        steps += [(name, RUN_STAGES[:1]) for name in names] + [(name, RUN_STAGES) for name in names]
    return steps


def _ship(plan: Sweep, work: dict, states: dict, chosen: str | None, progress: Progress) -> str | None:
    """The run whose model is shipped; where it is none of the plan's, it is made and joins `work` and `states`."""
    if chosen is None:
        return None
    folds = _runs_of(plan, work, chosen)
    run = shipping.planned(plan, folds)
    if run.name in work:
        return run.name
    work[run.name], states[run.name] = run, {"state": "pending", "error": None}
    try:
        if plan.ship == "ensemble":
            work[run.name] = run = shipping.assemble(run, folds)
    except InputError as problem:
        states[run.name] = {"state": "failed", "error": str(problem)}
        return run.name
    if _state(run) == "complete":
        progress.before.add(run.name)
    _work_on(run, shipping.stages(run), states[run.name], progress, wait=True)
    return run.name


def _runs_of(plan: Sweep, work: dict[str, Run], combination: str) -> list[Run]:
    return [work[name] for name in (plan.combinations()[combination] if plan.config.folds else [combination])]


def _to_test(plan: Sweep, work: dict[str, Run], states: dict, shipped: str | None) -> list[str]:
    """The runs whose test photos are to be opened; none where no photos were put aside for a test."""
    if shipped is None or work[shipped].rows("test").empty:
        return []
    wanted = list(work) if plan.test == "every" else [shipped]
    return [name for name in wanted if states[name]["state"] == "complete"]


def _state(run: Run) -> str:
    """`complete` when all of its notebooks before the test hold today, else `pending`."""
    return "complete" if all(run.is_complete(stage) for stage in shipping.stages(run)) else "pending"


def _execute_split(plan: Sweep, sweep_dir: Path, progress: Progress) -> None:
    """01 on the sweep's manifest, unless it was executed on it already. Without it there is no sweep."""
    modules = map(runtime.module_source, (*runs.PIXELS, "duplicates", "splits", "augment", "images", "audit", "plots"))
    knobs = plan.config.model_dump(include={*configs.SPLIT_KNOBS, *configs.PREPROCESS_KNOBS})
    made = splits.record(sweep_dir)["identity"]
    identity = runtime.fingerprint(made, knobs, runs.notebook_source("01_split"), *modules)
    record = sweep_dir / "stages" / "01_split.json"
    there = (sweep_dir / "01_split.ipynb").is_file() and record.is_file()
    if there and identity in record.read_text(encoding="utf-8"):
        return
    progress.stage("", "01_split")
    execute("01_split", sweep_dir / "01_split.ipynb", plan.config, sweep_dir=runtime.display_path(sweep_dir))
    runtime.write_json(record, {"identity": identity, "finished": datetime.now().isoformat(timespec="seconds")})


def _work_on(run: Run, stages: tuple[str, ...], state: dict, progress: Progress, wait: bool = False) -> bool:
    """Execute what is not complete of a run; False when another process holds the run and `wait` is not wanted."""
    try:
        with run.locked(timeout=-1 if wait else 0):
            for stage in stages:
                if not run.is_complete(stage):
                    if stage == "02_train" and (gone := _cut_off(run)):
                        progress.say(f"{run.name}: training was cut off after epoch {gone} and goes on from there")
                    progress.stage(run.name, stage, run)
                    _execute_stage(run, stage)
            state["state"] = _state(run)
    except NotebookFailed as problem:
        validated = _state(run) == "complete"  # when only the test failed, the run's validation still stands
        state.update(state="complete" if validated else "failed", error=str(problem))
        progress.say(f"{run.name}: {problem}")
    except runs.Busy as busy:
        progress.say(str(busy))
        return False
    if state["state"] != "pending":  # with folds, trained but not looked at yet
        progress.done(run.name)
    return True


def _cut_off(run: Run) -> int:
    """The epochs done by a training of this run, with these knobs, that was cut off; 0 where there is none."""
    if not (run.path / "last.pt").is_file() or not (run.path / "params.yaml").is_file():
        return 0
    held, knobs = Run(run.path).params["knobs"], run.config.model_dump()
    return len(run.history()) if all(held.get(name) == knobs[name] for name in configs.TRAIN_KNOBS) else 0


def _execute_stage(run: Run, stage: str) -> None:
    if run.is_complete("train"):  # notebooks after 02 read the knobs from params.yaml, and some may be new
        runs.create(run.path, run.config)
    identity, started = run.identity(stage), time.perf_counter()
    execute(stage, run.path / f"{stage}.ipynb", run.config, run_dir=runtime.display_path(run.path))
    run.complete(stage, identity, seconds=round(time.perf_counter() - started, 2))


def execute(stage: str, output: Path, config: Config, **places: str) -> None:
    """Execute a numbered notebook by papermill into `output`, which is complete or the failed copy, never a part.

    Knobs its parameters cell names are injected as they are, others that differ from their default as `overrides`.

    Raises:
        NotebookFailed: a cell raised, or the kernel died.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    source = runs.notebook_path(stage)
    logging.getLogger("papermill").setLevel(logging.ERROR)
    partial = output.with_name(f".{output.stem}.partial.ipynb")
    try:
        with warnings.catch_warnings(), _kernel_settings() as (settings, log):
            warnings.simplefilter("ignore")
            try:
                papermill.execute_notebook(
                    _literal(source),
                    _literal(partial),
                    parameters(source, config, places),
                    progress_bar=False,
                    start_timeout=120,
                    config=settings,
                    extra_arguments=["--IPKernelApp.log_level=50"],
                )
            except DeadKernelError:
                os.replace(partial, output)
                said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
                why = said[0] if said else "often out of memory: try a smaller batch_size"
                raise NotebookFailed(f"{stage}: the kernel died ({why})") from None
        os.replace(partial, output)
    except papermill.PapermillExecutionError as problem:
        os.replace(partial, output)
        raise NotebookFailed(f"{stage}: {problem.ename}: {_first_line(problem.evalue)}") from None
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _kernel_settings():
    """Settings for one kernel, and the file that takes what it says outside of the notebook.

    It talks over files of the sweep's own: TCP ports can collide and be overheard. What a kernel writes to its standard
    error (ipykernel complains now and then while it shuts down) would mix with the progress line.
    """
    from traitlets.config import Config as Settings

    with tempfile.TemporaryDirectory(prefix="fruit") as folder:  # short: a socket's path has a limit of 108 bytes
        log = Path(folder) / "kernel.log"
        settings = Settings({"NotebookClient": {"kernel_manager_class": _manager_writing_to(log)}})
        if os.name != "nt":  # no such sockets there
            settings.KernelManager = Settings({"transport": "ipc", "connection_file": f"{folder}/kernel.json"})
        yield settings, log


def _manager_writing_to(log: Path) -> type:
    from jupyter_client.manager import AsyncKernelManager

    class Manager(AsyncKernelManager):
        async def start_kernel(self, **options):
            with log.open("ab") as stderr:
                await super().start_kernel(stderr=stderr, **options)

    return Manager


def _literal(path: Path) -> str:
    """A path as papermill wants it: it fills in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no message"


def parameters(notebook: Path, config: Config, places: dict[str, str]) -> dict:
    """What to inject: the places and knobs the parameters cell names; other knobs off their default as `overrides`."""
    declared = declared_parameters(notebook)
    knobs = config.model_dump()
    injected = {name: value for name, value in {**knobs, **places}.items() if name in declared}
    if "overrides" in declared:
        rest = {name: value for name, value in knobs.items() if name not in declared}
        defaults = {name: field.default for name, field in Config.model_fields.items()}
        injected["overrides"] = {name: value for name, value in rest.items() if value != defaults[name]}
    return injected


def declared_parameters(notebook: Path) -> set[str]:
    """Names assigned in the cell tagged `parameters`."""
    cells = nbformat.read(notebook, as_version=4).cells
    tagged = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    return set().union(*map(configs.assigned_names, tagged))


def results(plan: Sweep, work: dict[str, Run], states: dict, shipped: dict | None = None) -> pd.DataFrame:
    """A row per run: what differs, state, validation numbers, costs, and test numbers where 06 was executed.

    `shipped` adds `shipping.expected` to a run's row, by the run's name.
    """
    rows, combination_of = [], {}
    if plan.config.folds:
        combination_of = {run: name for name, members in plan.combinations().items() for run in members}
    for name, run in work.items():
        row = {
            "run": name,
            **{knob: getattr(run.config, knob) for knob in plan.knobs},
            "state": states[name]["state"],
        }
        if name in combination_of:
            row["combination"] = combination_of[name]
        if states[name]["state"] == "complete":
            row |= run.read_json("metrics.json") | run.read_json("export.json")
            trained = run.record("train")
            row |= {new: trained.get(old) for new, old in RECORDED.items()}
            if run.is_complete(TEST_STAGE):
                tested = run.read_json("test.json")
                row |= tested["numbers"] | {"test_backend": tested["shipped"]}
        rows.append(row | (shipped or {}).get(name, {}))
    return pd.DataFrame(rows)


def write_summary(
    plan: Sweep, sweep_dir: Path, work: dict, states: dict, chosen: str | None = None, shipped: str | None = None
) -> dict:
    """`results.csv`, `sweep.json` and what compares runs with each other, as far as the sweep has come.

    Returns:
        what `sweep.json` holds.
    """
    expected = {}
    if plan.config.folds:
        pooled, problems = crossval.pool(work, plan.combinations(), sweep_dir)
        for problem in problems:
            print(problem, flush=True)
        pooled = crossval.results(pooled, splits.record(sweep_dir)["class_names"])
        _write_table(pooled, sweep_dir / "results_oof.csv")
        expected = {shipped: shipping.expected(plan, shipped, chosen, pooled)} if shipped else {}
    table = results(plan, work, states, expected)
    _write_table(table, sweep_dir / "results.csv")
    complete = table[(table["state"] == "complete") & table["run"].isin(plan.runs)]
    gains = pd.DataFrame()
    if plan.choose_by in complete:
        gains = audit.gains(complete, plan.knobs, plan.choose_by, plan.config.folds)
    gains = gains.assign(said=[audit.said(row) for row in gains.to_dict("records")])
    replicates = {*configs.FOLD_KNOBS, "seed"} & set(plan.knobs)
    if gains.empty and replicates and replicates < set(plan.knobs):  # it was meant to compare
        few = f"fewer than {audit.FEWEST_PAIRS} pairs of complete runs: no gain with an interval; add seeds or folds"
        gains = pd.DataFrame([{"said": few}])
    _write_table(gains, sweep_dir / "gains.csv")
    summary = _summary(plan, work, states) | {"chosen": chosen, "shipped": shipped}
    if shipped and plan.config.folds:
        summary["made"] = shipping.said(plan, work[shipped], _runs_of(plan, work, chosen))
    runtime.write_json(sweep_dir / "sweep.json", summary)
    return summary


def _summary(plan: Sweep, work: dict[str, Run], states: dict) -> dict:
    """The sweep, its runs and where they ran; a run that was made to be shipped names the notebooks it has."""
    stages = ("02_train", "05_quantize", TEST_STAGE)
    finished = [run.record(stage).get("finished", "") for run in work.values() for stage in stages]
    params = next((run.params for run in work.values() if (run.path / "params.yaml").is_file()), {"record": {}})
    listed = [{"name": name, "knobs": plan.differs.get(name, {}), **states[name]} for name in work]
    for run in listed:
        run |= {} if run["name"] in plan.runs else {"stages": shipping.stages(work[run["name"]])}
    return {
        "title": plan.title,
        "params_file": runtime.display_path(Path(plan.source).resolve()),
        "data": plan.config.data,
        "choose_by": plan.choose_by,
        "hardware": params["record"].get("hardware", ""),
        "versions": params["record"].get("versions", {}),
        "finished": max(finished, default="")[:16].replace("T", " "),
        "runs": listed,
    }


def _write_table(table: pd.DataFrame, path: Path) -> None:
    """A CSV file, whole or not at all; an empty table leaves no file."""
    if len(table):
        with runtime.replacing(path) as partial:
            table.to_csv(partial, index=False)
    else:
        path.unlink(missing_ok=True)
