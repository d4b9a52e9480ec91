"""The recipe: photos in, a trained network, its history and its validation predictions out.

In one process `train` runs where it is called. For more, `distributed.launch` starts several with this module as their
program; every process then executes the same `train`, and the files it writes are the result.
"""

import contextlib
import math
import sys
import time

import numpy as np
import pandas as pd
import torch
from torch.nn.parallel import DistributedDataParallel

from fruitlib.core import files, machine
from fruitlib.core.config import Config
from fruitlib.core.errors import InputError, Interrupted
from fruitlib.core.model_names import FITTED_HEADS
from fruitlib.core.progress import duration, meter, recorded, through_epoch
from fruitlib.data import balance, dataset, loader
from fruitlib.data.dataset import Photos
from fruitlib.evaluation import metrics
from fruitlib.runs.run import STOP, UNFINISHED, Pruned, Run, clear_run
from fruitlib.training import (
    blocks,
    cams,
    checkpoint,
    distributed,
    evaluate,
    features,
    fitted,
    group,
    losses,
    messages,
    micro_batch,
    models,
    optim,
    precision,
    tracking,
)
from fruitlib.training.checkpoint import TrainingState
from fruitlib.training.distributed import OnEpoch
from fruitlib.training.messages import say

CHECK_LOSS_EVERY = 50  # batches; looking at each would make a GPU wait for the CPU every time


class Diverged(InputError):
    """The loss is NaN or infinite."""


def fit(run: Run, on_epoch: OnEpoch | None = None) -> pd.DataFrame:
    """Train the run unless it is trained already, resuming it if it was interrupted; returns its history.

    `on_epoch` is called with the history so far after every epoch, also when child processes do the training.

    Raises:
        InputError: settings, photos or machine do not allow it, the loss became NaN or infinite (`Diverged`), or a
            search stops this run early (`runs.Pruned`).
        Interrupted: a person stopped it; the line says where it goes on.
    """
    with run.locked(), run.training(), recorded(run.path):
        if run.is_complete("train"):
            say(f"{files.display_path(run.path)} is trained already, nothing to do; history read from its files")
            (run.path / checkpoint.NAME).unlink(missing_ok=True)  # where a kill came just before its removal
            return run.history()
        unfinished, summary = checkpoint.load_unfinished(run, run.identity("train"))
        clear_run(run, ("figures", *(UNFINISHED if unfinished else ())))  # 02 has drawn some by now
        if not unfinished:
            say(summary)
        del unfinished  # as large as the network, and `train` reads it again
        start = distributed.launch if run.config.processes > 1 else train
        start = fitted.train_head if run.config.head in FITTED_HEADS else start
        try:
            start(run, on_epoch or (lambda history: None))
        except torch.OutOfMemoryError:
            size = run.config.image_size
            raise InputError(f"GPU memory ran out: lower image_size (now {size}), or take a smaller model") from None
        except KeyboardInterrupt:
            raise Interrupted(_interrupted_line(run)) from None
        except RuntimeError:
            refuse_stopped(run, len(run.history()))  # the error of several processes does not say that they were pruned
            raise
        return run.history()


def _interrupted_line(run: Run) -> str:
    """That training was interrupted, and where it goes on."""
    again = "execute 02_train again, by hand or by the same sweep, and it"
    if not (run.path / checkpoint.NAME).is_file():
        return f"training was interrupted before its first epoch was complete: {again} starts from the beginning"
    epochs, total = len(run.history()), run.config.epochs
    return f"training was interrupted after epoch {epochs} of {total}: {again} resumes with epoch {epochs + 1}"


def train(run: Run, on_epoch: OnEpoch) -> None:
    """The whole training, from first line to last: build, train, evaluate on validation photos, keep one epoch."""
    config, identity, started = run.config, run.identity("train"), time.perf_counter()
    rank, world_size, device = machine.rank(), machine.world_size(), machine.device()

    # Photos, decoded once: in memory, in a mapped file, or streamed, as fits.
    decoding = meter("photos decoded", say=messages.say_from_any_rank)  # whichever process is first decodes
    train_photos, val_photos = dataset.load_photos(run, "train", decoding), dataset.load_photos(run, "val")
    class_names, num_classes = run.class_names, len(run.class_names)
    check_validation(config, val_photos)
    say(f"photos: {train_photos.store.summary}")
    say(balance.summary(train_photos.labels, class_names, config.balance, config.augment_to))

    # The network, alike in every process; which of its blocks train is decided epoch by epoch.
    unfinished, resumed_line = checkpoint.load_unfinished(run, identity)
    speed = precision.speed_from_names(unfinished["speed"]) if unfinished else precision.choose(config, device)
    machine.seed_everything(config.seed)
    model = models.build(config, num_classes).to(device, memory_format=speed.memory_format)
    initial_weights = models.fingerprint(model)
    trained_blocks = blocks.freeze_blocks(model, config)
    if config.head_start == "logistic" and not unfinished:
        say(fitted.start_head(run, model, train_photos))
    precision.compile_model(model, config)
    say(speed.summary, model.origin.summary)

    # Batches, loss and optimizer.
    if config.features_once:
        learner, feed = models.head_of(model), feature_feed(model, train_photos, class_names, config, device)
        val_features = features.of_photos(model, val_photos, config.views).values
    else:
        learner, feed, val_features = model, loader.Feed(train_photos, config, device, rank, world_size), None
    say(feed.summary)
    weights = balance.class_weights(train_photos.labels, class_names) if config.balance == "class_weights" else None
    objective, validation_loss = losses.build(config, weights), losses.build_validation_loss(config)
    optimizer = optim.build(config, model)
    schedule = optim.Schedule(config, optimizer, feed.steps)
    scaler = torch.amp.GradScaler(device.type, enabled=speed.precision == "fp16")
    average = optim.Average(config, model) if config.ema else None
    eval_model = average.model if average else model

    # Resume where an earlier attempt was interrupted.
    # (Of a backbone that stays as it was, only the head: writing all of it took a third of a head's training.)
    parts = {"model": learner, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}
    parts |= {"average": average} if average else {}
    state = TrainingState(micro_batch=None if config.micro_batch == "auto" else config.micro_batch)
    if unfinished:
        state = checkpoint.restore(unfinished, parts)
        say(resumed_line)
        if rank == 0:
            tracking.write_history(run, state.history)
            checkpoint.settle(run, state)
        unfinished = None  # as large as the network
    group.check_same_epoch(state.epoch)
    seconds_before = state.history[-1]["seconds"] if state.history else 0.0

    network, meters = None, tracking.Meters(device)
    say(meters.summary)
    with tracking.Mirrors(run, state.history) if rank == 0 else contextlib.nullcontext() as mirrors:
        while state.epoch < config.epochs and not should_stop_early(config, state):
            group.raise_on_all_ranks(lambda: refuse_stopped(run, state.epoch))
            epoch, epoch_started = state.epoch + 1, time.perf_counter()
            machine.seed_everything(machine.seed_of(config.seed, epoch, rank))

            # Unfreeze the blocks that train from this epoch on.
            now_trained = blocks.freeze_blocks(model, config, epoch)
            if network is None or now_trained != trained_blocks:
                trained_blocks = now_trained
                network = DistributedDataParallel(learner) if world_size > 1 else learner
            blocks.set_modes(model, config)

            # Train: every process takes its share of each batch, in parts that fit its device. The loss is the mean
            # over the whole batch, so that gradients depend on neither.
            tally, lr = evaluate.Tally(num_classes, device), schedule.lr
            for batch in through_epoch(feed.epoch(epoch), epoch, feed.steps):
                loss, logits = micro_batch.gradients(network, batch, objective, speed, scaler, state, config)
                if config.clip_norm:
                    scaler.unscale_(optimizer)
                    torch.nn.utils.clip_grad_norm_(learner.parameters(), config.clip_norm)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad(set_to_none=True)
                schedule.step()
                if average:
                    average.update()
                tally.add(loss, logits, batch)
                if tally.batches % CHECK_LOSS_EVERY == 0:
                    check_loss(tally, epoch, feed.steps, config)
            check_loss(tally, epoch, feed.steps, config)
            row = {"epoch": epoch, "lr": lr, **tally.row("train")}
            row["photos_per_second"] = len(feed) / (time.perf_counter() - epoch_started)

            # Evaluate: each validation photo exactly once, whatever the number of processes. All get the same numbers,
            # so that all stop, or lower the learning rate, together.
            better, logits = None, torch.empty(0, num_classes)
            if len(val_photos):
                logits = evaluate.predict_shared(eval_model, val_photos, val_features)
                row |= evaluate.logits_row("val", logits, val_photos.labels, validation_loss)
                if not math.isfinite(row["val_loss"]):
                    raise diverged(config, f"at epoch {epoch}, on validation photos")
                better = update_best(state, row, config)
                schedule.end_epoch(score(row, config))
            elif not all(weight.isfinite().all() for weight in eval_model.parameters()):
                raise diverged(config, f"at epoch {epoch}, after its last step")
            state.epoch = epoch
            kept = is_kept(config, state, better)
            state.kept_epoch = epoch if kept else state.kept_epoch
            if config.epochs * logits.numel() <= evaluate.KEPT_VALUES:
                state.val_probs.append(evaluate.half_probs(logits))
            row["seconds"] = seconds_before + time.perf_counter() - started
            state.history.append(row | meters.read())

            # Keep: rank 0 writes, the others wait for it at their next step.
            if rank > 0:
                continue
            tracking.write_history(run, state.history)
            mirrors.log(state.history[-1])
            if kept:
                keep_weights(run, eval_model, epoch, logits)
            if config.cam_every and len(val_photos) and (epoch % config.cam_every == 0 or epoch in (1, config.epochs)):
                cams.keep_cams(run, eval_model, val_photos, epoch)
            checkpoint.save(run, identity, state, parts, speed.names)
            best_so_far = 0 if config.keeps_last else state.kept_epoch
            messages.epoch_done(progress_line(state.history, config.epochs, best_so_far))
            on_epoch(pd.DataFrame(state.history))

    if rank == 0:
        keep = "last" if config.keeps_last or not len(val_photos) else "best"
        if state.epoch < config.epochs:
            say(f"stopped early: {config.patience} epochs without a better {config.monitor}")
        compiled = "; compiled" if config.compile != "none" else ""
        val_probs = [probs.numpy() for probs in state.val_probs] or np.empty((0, len(val_photos), num_classes))
        run.write_epoch_predictions(np.asarray(val_probs))
        run.complete(
            "train", identity, keep=keep, kept_epoch=state.kept_epoch, epochs=state.epoch,
            seconds=state.history[-1]["seconds"], parameters=models.num_parameters(model),
            total_parameters=sum(weight.numel() for weight in model.parameters()), processes=world_size,
            data_fingerprint=run.data_fingerprint, initial_weights=initial_weights,
            weights=model.origin.record(), cache=train_photos.store.kind,
            train_photos=len(train_photos), photos_per_epoch=len(feed), **speed.names, speed=speed.summary + compiled,
            micro_batch=state.micro_batch or "whole",
        )  # fmt: skip
        (run.path / checkpoint.NAME).unlink(missing_ok=True)


def refuse_stopped(run: Run, epoch: int) -> None:
    """Stop a training between two epochs where its folder says so.

    Raises:
        Pruned: there is a file `stop`; the message ends with its content.
    """
    path = run.path / STOP
    if path.is_file():
        why = path.read_text(encoding="utf-8").strip() or "as asked"
        raise Pruned(f"pruned after epoch {epoch} of {run.config.epochs}: {why}")


def check_validation(config: Config, val_photos: Photos) -> None:
    """Raise InputError where a setting depends on validation and there are no validation photos (fold 0)."""
    if len(val_photos):
        return
    if config.scheduler == "plateau":
        raise InputError("scheduler = plateau needs validation photos, and there are none: use another scheduler")
    if config.patience:
        raise InputError(f"patience = {config.patience} needs validation photos, and there are none: set patience: 0")


def check_loss(tally: evaluate.Tally, epoch: int, steps: int, config: Config) -> None:
    """Stop where the loss is NaN or infinite.

    Raises:
        Diverged: with epoch, batch, and the setting that is probably to blame.
    """
    if (batch := tally.first_bad()) is not None:
        raise diverged(config, f"at epoch {epoch}, batch {batch} of {steps}")


def diverged(config: Config, where: str) -> Diverged:
    """The error for a loss that is NaN or infinite, with the setting that is probably to blame."""
    remedy = f"lower lr (now {config.lr:g})"
    if config.precision == "fp16":
        remedy = f"set precision to bf16 or fp32, or {remedy}"
    if not config.clip_norm:
        remedy += ", or set clip_norm: 1"
    if not config.warmup_epochs:
        remedy += " or warmup_epochs: 1"
    return Diverged(f"loss is NaN or infinite {where}: {remedy}")


def score(row: dict[str, float], config: Config) -> float:
    """The monitored metric of a history row, higher is better."""
    return -row["val_loss"] if config.monitor == "loss" else row[f"val_{config.monitor}"]


def update_best(state: TrainingState, row: dict[str, float], config: Config) -> bool:
    """Count an epoch towards early stopping; whether it is the best so far (among equals, the lowest loss)."""
    monitored = score(row, config)
    state.waited += 1
    if monitored > state.reference + config.min_delta:
        state.reference, state.waited = monitored, 0
    candidate = (monitored, -row["val_loss"])
    better = candidate > state.best
    state.best = max(candidate, state.best)
    return better


def should_stop_early(config: Config, state: TrainingState) -> bool:
    """Whether `patience` epochs have passed without a better one."""
    return bool(config.patience) and state.waited >= config.patience


def is_kept(config: Config, state: TrainingState, better: bool | None) -> bool:
    """Whether the epoch just completed is the one to keep, so far: the best one, or the one that training ends with.

    Args:
        better: whether it is the best so far; None without validation photos, where the last one is kept.
    """
    if config.keeps_last or better is None:
        return state.epoch == config.epochs or should_stop_early(config, state)
    return better


def feature_feed(
    model: torch.nn.Module, train_photos: Photos, class_names: list[str], config: Config, device: torch.device
) -> loader.FeatureFeed:
    """Batches of a frozen backbone's features of the training photos, computed once; with SMOTE's where that is set."""
    found = features.of_photos(model, train_photos)
    say(found.summary)
    values, labels = torch.from_numpy(found.values[:, 0]), train_photos.labels
    if config.balance == "smote":
        values, labels = balance.smote(values, labels, class_names, config.seed)
    return loader.FeatureFeed(values.to(device), labels, config, machine.rank(), machine.world_size())


def keep_weights(run: Run, model: torch.nn.Module, epoch: int, logits: torch.Tensor) -> None:
    """Write the weights to keep, with what is needed to use them, and their validation predictions.

    Both have temporary names until `last.pt` names their epoch; see `checkpoint.settle`.
    """
    with files.replacing(run.path / checkpoint.NEXT_BEST[0]) as partial:
        torch.save(models.checkpoint(model, run.config, run.class_names, epoch=epoch), partial)
    run.write_predictions("val.next", {"torch": metrics.softmax(logits.numpy().astype(np.float64))}, run.rows("val"))


def progress_line(history: list[dict], epochs: int, best: int = 0) -> str:
    """One line on the epoch just finished, the best one so far where the best is kept, and the time left at most."""
    last = history[-1]
    left = last["seconds"] / len(history) * (epochs - len(history))
    numbers = f"train loss {last['train_loss']:.3f}"
    if "val_loss" in last:
        numbers += f", val accuracy {last['val_accuracy']:.3f}, macro-F1 {last['val_macro_f1']:.3f}"
        numbers += f", best so far: epoch {best}" if best else ""
    return f"epoch {last['epoch']}/{epochs}: {numbers}, {duration(left)} left"


def main(run_dir: str) -> None:
    """The life of one of several processes."""
    folder = files.resolve(run_dir)

    def work() -> None:
        with recorded(folder) if machine.rank() == 0 else contextlib.nullcontext():
            train(Run(folder), lambda history: None)

    group.worker(work)  # which ends this process without returning


if __name__ == "__main__":
    main(sys.argv[1])
