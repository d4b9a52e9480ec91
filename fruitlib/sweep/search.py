"""`search:` of a params file: Optuna proposes trials, each a run of the sweep, and hears how they did.

There is one asker, the sweep itself; runs know nothing of Optuna. What Optuna is to remember stands in a journal in the
sweep's folder (or wherever `storage` says). A trial is asked, gets a run folder whose name begins with its number, and
is reported to Optuna exactly once: when its run is complete (its score), was pruned, or failed for good. A
sweep that was killed finds its open trials in the journal and takes up their runs where they stand.

A trial is pruned through its run folder: after each epoch the score in `history.csv` is reported, and where the pruner
has seen enough, a file `stop` ends the training after its next epoch.
"""

import contextlib
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fruitlib.core import config as configs
from fruitlib.core import errors, files, machine
from fruitlib.core.errors import InputError
from fruitlib.runs.run import STOP, Run
from fruitlib.sweep.params import Search, Sweep, run_name
from fruitlib.sweep.space import Range

JOURNAL = "search.journal"
STUDY = "fruitlib"
FEWEST_COMPLETE = 10  # trials before importances are worked out
ENDED = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}


class Trials:
    """The study of a sweep with `search:`, as a context; holds the asker's lock.

    Raises:
        InputError: another sweep asks in this folder, the storage cannot be used, or the study is of another space.
    """

    def __init__(self, plan: Sweep, sweep_dir: Path, say: Callable[[str], None] = print):
        assert plan.search
        self.plan, self.search, self.sweep_dir, self.say = plan, plan.search, sweep_dir, say
        self.open: dict[str, Any] = {}  # by run: the trial whose end was not reported yet
        self._reported_epochs: dict[str, int] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Trials":
        import optuna

        self._optuna = optuna  # half a second, for those who search alone
        optuna.logging.set_verbosity(logging.ERROR)
        self._stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # of experimental features
        try:
            self._stack.enter_context(files.lock(self.sweep_dir / ".search.lock", timeout=0))
        except files.Locked:
            where = files.display_path(self.sweep_dir)
            self._stack.close()
            raise InputError(f"{where}: another sweep searches here; one asks at a time") from None
        try:
            self.study = self._study(optuna)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    def _study(self, optuna):
        """The study, new or as it was left."""
        try:
            storage = _storage(optuna, self.search, self.sweep_dir)
            self._stack.callback(storage.remove_session)
            study = optuna.create_study(
                storage=storage, study_name=STUDY if not self.search.storage else f"{STUDY}-{self.sweep_dir.name}",
                direction=self.search.direction, load_if_exists=True, pruner=_pruner(optuna, self.search, self.plan),
            )  # fmt: skip
        except Exception as problem:  # SQLAlchemy's, Redis's …: whatever the URL leads to
            where = self.search.storage or files.display_path(self.sweep_dir / JOURNAL)
            raise InputError(f"search storage {where}: cannot be used ({errors.first_line(problem)})") from None
        space = files.fingerprint({name: repr(choice) for name, choice in self.search.space.items()})
        facts = {"space": space, "metric": self.search.metric, "settings": files.fingerprint(self.search.fixed)}
        for name, value in facts.items():
            if study.user_attrs.setdefault(name, value) != value:
                where = files.display_path(self.sweep_dir)
                raise InputError(
                    f"{self.plan.source}: {name} changed since this search began in {where}: give it another --out"
                )
            study.set_user_attr(name, value)
        study.sampler = _sampler(optuna, self.search, len(study.trials))
        return study

    def earlier(self) -> dict[str, str]:
        """Take up the trials of earlier sweeps on this folder: by run, its state; "pending" where it goes on."""
        states = {}
        for trial in self.study.trials:
            open_ = trial.state.name not in ENDED
            if open_:
                asked = self._optuna.trial.Trial(self.study, trial._trial_id)
                settings = _suggested(asked, self.search)  # some only now, where a kill cut the asking off
            else:
                settings = trial.params
                if set(settings) != set(self.search.space):  # it failed while it was asked for
                    continue
            name = self._join(trial.number, settings)
            if name is None:
                if open_:
                    self._fail(asked)
                continue
            if open_:
                self.open[name] = asked
                self._reported_epochs[name] = max(trial.intermediate_values, default=0)
            states[name] = ENDED.get(trial.state.name, "pending")
        return states

    def ask(self) -> str | None:
        """A new trial's run; None when there are as many as were wanted."""
        while len(self.study.trials) < self.search.trials:
            trial = self.study.ask()
            if name := self._join(trial.number, _suggested(trial, self.search)):
                self.open[name], self._reported_epochs[name] = trial, 0
                return name
            self._fail(trial)
        return None

    def _fail(self, trial) -> None:
        self.study.tell(trial, state=self._optuna.trial.TrialState.FAIL)

    def _join(self, number: int, settings: dict[str, Any]) -> str | None:
        """Make a trial a run of the plan; returns its name, None where no run can have such settings."""
        try:
            config = configs.make({**self.search.fixed, **settings}, f"{self.plan.source}, trial {number}")
        except InputError as problem:
            self.say(f"{problem}: the trial counts as failed")
            return None
        differing = {name: getattr(config, name) for name in sorted(settings)}
        short = {
            name: float(f"{value:.3g}") if isinstance(value, float) else value for name, value in differing.items()
        }
        name = run_name({"trial": number, **short})
        self.plan.runs[name], self.plan.differs[name] = config, differing
        return name

    def watch(self, name: str, run: Run) -> None:
        """Report a trial's new epochs, and have it stop where the pruner has seen enough."""
        trial = self.open.get(name)
        if trial is None or self.search.pruner == "none" or (run.path / STOP).is_file():
            return
        try:
            history = run.history()
        except (OSError, ValueError):  # its folder is being cleared
            return
        column = f"val_{self.search.metric}"
        if column not in history or self.plan.runs[name].epochs in history["epoch"].values:
            return
        for row in history[history["epoch"] > self._reported_epochs[name]].to_dict("records"):
            self._reported_epochs[name] = epoch = int(row["epoch"])
            trial.report(float(row[column]), step=epoch)
            if trial.should_prune():
                reason = f"{self.search.metric} {row[column]:.3f} at epoch {epoch}, {self.search.pruner} pruner"
                files.write_text(run.path / STOP, reason + "\n")
                return

    def tell(self, name: str, state: str, run: Run) -> None:
        """How a trial ended: complete, pruned or failed; once. A lost one stays open."""
        if state not in ENDED.values() or (trial := self.open.pop(name, None)) is None:
            return
        if state == "complete":
            column = "val_loss" if self.search.metric == "loss" else self.search.metric
            self.study.tell(trial, float(run.read_json("metrics.json")[column]))
        else:
            states = self._optuna.trial.TrialState
            self.study.tell(trial, state=states.PRUNED if state == "pruned" else states.FAIL)

    def write_importances(self) -> None:
        """`importances.csv` (setting, importance; they sum to 1) by functional ANOVA (Hutter et al. 2014), for 08.

        Left out with fewer than ten complete trials, where a forest has nothing to grow on, or if all did equally well.
        """
        complete = [trial for trial in self.study.trials if trial.state.name == "COMPLETE"]
        if len(complete) < FEWEST_COMPLETE or len({trial.value for trial in complete}) == 1:
            return
        evaluator = self._optuna.importance.FanovaImportanceEvaluator(seed=0)
        importances = self._optuna.importance.get_param_importances(self.study, evaluator=evaluator)
        lines = [f"{name},{share:.6f}" for name, share in importances.items()]
        files.write_text(self.sweep_dir / "importances.csv", "\n".join(["setting,importance", *lines]) + "\n")


def _suggested(trial, search: Search) -> dict[str, Any]:
    """The values of a trial's settings: those it has, and new ones for the rest."""
    values: dict[str, Any] = {}
    for name, choice in search.space.items():
        if not isinstance(choice, Range):
            values[name] = trial.suggest_categorical(name, choice)
        elif choice.whole:
            step = {"step": int(choice.step)} if choice.step else {}
            values[name] = trial.suggest_int(name, int(choice.low), int(choice.high), log=choice.log, **step)
        else:
            values[name] = trial.suggest_float(name, choice.low, choice.high, log=choice.log, step=choice.step)
    return values


def _storage(optuna, search: Search, sweep_dir: Path):
    """Where the study is kept: a journal file by its absolute path, or what a URL leads to."""
    if search.storage:
        return optuna.storages.get_storage(search.storage)
    path = (sweep_dir / JOURNAL).resolve()
    repair(path)
    backend = optuna.storages.journal.JournalFileBackend(
        str(path), lock_obj=optuna.storages.journal.JournalFileOpenLock(str(path))
    )
    return optuna.storages.JournalStorage(backend)


def repair(path: Path) -> None:
    """Cut off the last line of a journal where a kill tore it, and drop the lock that was held; for the only writer.

    What a torn line was to record has not happened: its trial is asked for, or reported, again.
    """
    path.with_name(path.name + ".lock").unlink(missing_ok=True)
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with open(path, "r+b") as journal:
            journal.truncate(len(whole))


def _sampler(optuna, search: Search, begun: int):
    """The sampler; one that goes on must not draw again what it drew before."""
    seed = machine.seed_of(search.seed, begun)
    kinds = {"tpe": "TPESampler", "random": "RandomSampler", "gp": "GPSampler", "qmc": "QMCSampler"}
    return getattr(optuna.samplers, kinds[search.sampler])(seed=search.seed if search.sampler == "qmc" else seed)


def _pruner(optuna, search: Search, plan: Sweep):
    epochs = plan.config.epochs
    return {
        "none": optuna.pruners.NopPruner,
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=max(1, epochs // 5)),
        "successive_halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=max(1, epochs // 9)),
        "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=max(1, epochs // 9), max_resource=epochs),
    }[search.pruner]()
