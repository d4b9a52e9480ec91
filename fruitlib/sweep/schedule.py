"""What a sweep has before it, from its plan: the jobs that its end is guessed from (`runs.outlook`).

What is not decided yet stands in it without a name: trials that a search has not proposed, pages of the best runs, the
model that is shipped. So nothing that comes later is a surprise to the time left.
"""

from fruitlib.core import machine
from fruitlib.core.config import Config
from fruitlib.core.model_names import FITTED_HEADS
from fruitlib.runs.outlook import REPORT, Job
from fruitlib.runs.run import Run
from fruitlib.sweep import final_model, worker
from fruitlib.sweep.final_model import BEST, NUMBER_STAGES, RUN_STAGES, TEST_STAGE
from fruitlib.sweep.params import Sweep

PAGES = ("05_quantize", "03_metrics", "04_gradcam")  # of the best runs, in the end


def places(executor, runs: int) -> tuple[int, bool]:
    """How many runs an executor executes at a time, and whether the 05 of each goes beside its 03 and 04."""
    threads = getattr(executor, "threads", 1) or machine.requested_threads("OMP_NUM_THREADS") or 1
    return max(1, min(executor.width, runs)), threads > 1


def before_choice(plan: Sweep, work: dict[str, Run], pending: list[str]) -> list[list[Job]]:
    """All phases while runs are executed: those that are pending, and what follows when all have ended."""
    first = work[pending[0]] if pending else next(iter(work.values()), None)
    config = first.config if first else plan.config
    stages = RUN_STAGES if plan.pages == "every" else NUMBER_STAGES
    runs = [job for name in pending if (job := missing(work[name], stages))]
    count = plan.search.trials if plan.search else len(plan.runs)
    runs += [_job("", config, stages)] * max(0, count - len(work))
    late = [_job("", config, some) for some in _late(plan)]
    tests = [_job("", config, (TEST_STAGE,))] * (count if plan.test == "every" else 1)
    if first and first.rows("test").empty:
        tests = []
    return [[own(worker.SPLIT), *runs], late, tests, *ending(count)]


def after_choice(
    plan: Sweep, work: dict[str, Run], pages: list[str], shipped: str | None, tested: list[str]
) -> list[list[Job]]:
    """The phases when the best run is known: pages, the shipped model, tests, comparisons, the report."""
    late = [missing(work[name], PAGES) for name in pages]
    if shipped and shipped not in plan.runs:
        late.append(missing(work[shipped], final_model.stages(work[shipped])))
    tests = [missing(work[name], (TEST_STAGE,)) for name in tested]
    return [list(filter(None, late)), list(filter(None, tests)), *ending(len(work))]


def earlier(plan: Sweep, work: dict[str, Run], complete: list[str]) -> list[Job]:
    """The jobs of runs that are complete: they say how long others will take."""
    return [_job(name, work[name].config, final_model.stages(work[name], plan.pages)) for name in complete]


def missing(run: Run, stages: tuple[str, ...]) -> Job | None:
    """The job of executing those stages of a run that are not complete; None where all are."""
    left = tuple(stage for stage in stages if not run.is_complete(stage))
    return _job(run.name, run.config, left) if left else None


def ending(runs: int) -> list[list[Job]]:
    """07 and 08, where there are runs to compare, and the report."""
    compared = worker.COMPARISON_STAGES if runs > 1 else ()
    return [[own(stage)] for stage in (*compared, REPORT)]


def own(stage: str) -> Job:
    """A stage of the sweep itself."""
    return Job(stage, (stage,))


def _late(plan: Sweep) -> list[tuple[str, ...]]:
    """The stages of what is executed after the choice, before anybody knows which runs are chosen."""
    folds = max(1, plan.config.folds * plan.config.repeats)
    combinations = (plan.search.trials if plan.search else len(plan.runs)) // folds
    with_pages = {"every": 0, "chosen": 1, "best": folds + min(BEST, combinations) - 1}[plan.pages]
    late = [PAGES] * with_pages
    if plan.config.folds and plan.ship != "fold":
        late.append(("02_train", "05_quantize") if plan.ship == "refit" else ("05_quantize",))
    return late


def _job(name: str, config: Config, stages: tuple[str, ...]) -> Job:
    epochs = 1 if config.head in FITTED_HEADS else config.epochs
    return Job(name, stages, f"{config.model} {config.head} {config.image_size}", epochs, config.image_size)
