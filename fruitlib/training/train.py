"""The recipe: photos in, a trained network, its history and its validation predictions out.

In one process `train` runs where it is called. For more, `distributed.launch` starts `python -m torch.distributed.run`
with this module as its program; every process then executes the same `train`, and the files it writes are the result.
"""

import contextlib
import math
import sys
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch.nn.parallel import DistributedDataParallel

from fruitlib.core import files, machine
from fruitlib.core.config import Config
from fruitlib.core.errors import InputError
from fruitlib.core.progress import duration, meter
from fruitlib.data import balance, dataset, loader
from fruitlib.data.batch import Batch
from fruitlib.data.dataset import Photos
from fruitlib.evaluation import metrics
from fruitlib.explain import gradcam
from fruitlib.runs.run import UNFINISHED, Run, clear_run, refuse_stopped
from fruitlib.training import blocks, checkpoint, distributed, evaluate, losses, models, optim, precision, tracking
from fruitlib.training.checkpoint import TrainingState
from fruitlib.training.precision import Speed

OnEpoch = Callable[[pd.DataFrame], None]
CAM_PHOTOS_PER_CLASS = 2
CHECK_LOSS_EVERY = 50  # batches; looking at each would make a GPU wait for the CPU every time


class Diverged(InputError):
    """The loss is no number any more."""


def fit(run: Run, on_epoch: OnEpoch | None = None) -> pd.DataFrame:
    """Train the run unless it is trained already, from where it was cut off if it was; returns its history.

    `on_epoch` is called with the history so far after every epoch, also when child processes do the training.

    Raises:
        InputError: settings, photos or machine do not allow it, the loss stopped being a number (`Diverged`), or a
            search has seen enough of it (`runs.Pruned`).
    """
    with run.locked(), run.training():
        if run.is_complete("train"):
            print(f"{files.display_path(run.path)} is trained already, nothing to do; history read from its files")
            (run.path / checkpoint.NAME).unlink(missing_ok=True)  # where a kill came just before its removal
            return run.history()
        resumes, summary = checkpoint.load_unfinished(run, run.identity("train"))
        clear_run(run, ("figures", *(UNFINISHED if resumes else ())))  # 02 has drawn some by now
        if not resumes:
            print(summary, end="\n" if summary else "", flush=True)
        del resumes  # as large as the network, and `train` reads it anew
        start = distributed.launch if run.config.processes > 1 else train
        try:
            start(run, on_epoch or (lambda history: None))
        except torch.OutOfMemoryError:
            size = run.config.image_size
            raise InputError(f"GPU memory ran out: lower image_size (it is {size}), or take a smaller model") from None
        except RuntimeError:
            refuse_stopped(run, len(run.history()))  # several processes can but say that they failed
            raise
        return run.history()


def train(run: Run, on_epoch: OnEpoch) -> None:
    """The whole training, from first line to last: build, learn, judge on validation, keep the best."""
    config, identity, started = run.config, run.identity("train"), time.perf_counter()
    rank, world_size, device = machine.rank(), machine.world_size(), machine.device()
    say = print if rank == 0 else lambda *_, **__: None

    # Photos, decoded once: in memory, in a mapped file, or streamed, as fits.
    decoding = meter("photos decoded")
    names, teach, judge = run.class_names, dataset.load_photos(run, "train", decoding), dataset.load_photos(run, "val")
    refuse_what_watches_validation(config, judge)
    say(
        f"photos: {teach.store.summary}\n{balance.summary(teach.labels, names, config.balance, config.augment_to)}",
        flush=True,
    )

    # The network, alike in every process; what of it learns is settled epoch by epoch.
    unfinished, resumed = checkpoint.load_unfinished(run, identity)
    fast = (
        precision.speed_from_names(unfinished["speed"])
        if unfinished
        else precision.choose(config, len(names), device, run.sweep_dir)
    )
    machine.seed_everything(config.seed)
    model = models.build(config, len(names)).to(device, memory_format=fast.memory_format)
    initial_weights = models.fingerprint(model)
    learning = blocks.freeze_blocks(model, config)
    precision.compiled(model, config)
    say(fast.summary, model.weights_origin, sep="\n", flush=True)

    # What it learns from and by.
    learner, feed, judge_features = model, loader.Feed(teach, config, device, rank, world_size), None
    if config.features_once:
        learner, feed = models.head_of(model), feature_feed(model, teach, config, device)
        judge_features = features_of(model, judge)
    weights = balance.class_weights(teach.labels, len(names)) if config.balance == "class_weights" else None
    objective, judge_loss = losses.build(config, weights), losses.build_validation_loss(config)
    optimizer = optim.build(config, model)
    schedule = optim.Schedule(config, optimizer, feed.steps)
    scaler = torch.amp.GradScaler(device.type, enabled=fast.precision == "fp16")
    average = optim.Average(config, model) if config.ema else None
    judged_model = average.model if average else model

    # Where an earlier attempt was cut off.
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}
    parts |= {"average": average} if average else {}
    progress = TrainingState(micro_batch=None if config.micro_batch == "auto" else config.micro_batch)
    if unfinished:
        progress = checkpoint.restore(unfinished, parts)
        say(resumed, flush=True)
        if rank == 0:
            tracking.write_history(run, progress.history)
            checkpoint.settle(run, progress)
        unfinished = None  # as large as the network
    distributed.refuse_differing(progress.epoch)
    before = progress.history[-1]["seconds"] if progress.history else 0.0

    network, meters = None, tracking.Meters(device)
    say(meters.summary, end="\n" if meters.summary else "", flush=True)
    with tracking.Mirrors(run, progress.history) if rank == 0 else contextlib.nullcontext() as mirrors:
        while progress.epoch < config.epochs and not should_stop_early(config, progress):
            distributed.in_step(lambda: refuse_stopped(run, progress.epoch))
            epoch, epoch_started = progress.epoch + 1, time.perf_counter()
            machine.seed_everything(machine.seed_of(config.seed, epoch, rank))

            # Thaw what is to learn from this epoch on.
            learns = blocks.freeze_blocks(model, config, epoch)
            if network is None or learns != learning:
                learning = learns
                network = DistributedDataParallel(learner) if world_size > 1 else learner
            blocks.set_modes(model)

            # Learn: every process takes its share of each batch, in parts that fit its device; the loss is the mean
            # over the whole batch, so that gradients depend on neither.
            tally, lr = evaluate.Tally(len(names), device), schedule.lr
            for batch in feed.epoch(epoch):
                loss, logits = gradients(network, batch, objective, fast, scaler, progress, config)
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

            # Judge: each validation photo exactly once, whatever the number of processes. All come to the same
            # verdict, so that all stop, or lower the learning rate, together.
            better, logits = True, torch.empty(0, len(names))  # where nothing validates the last epoch is kept
            if len(judge):
                logits = evaluate.predict_shared(judged_model, judge, judge_features)
                row |= evaluate.validation_row(logits, judge.labels, judge_loss)
                if not math.isfinite(row["val_loss"]):
                    raise diverged(config, f"epoch {epoch}, on validation")
                better = update_best(progress, row, config)
                schedule.judged(score(row, config))
            elif not all(weight.isfinite().all() for weight in judged_model.parameters()):
                raise diverged(config, f"epoch {epoch}, after its last step")
            progress.epoch, progress.best_epoch = epoch, epoch if better else progress.best_epoch
            row["seconds"] = before + time.perf_counter() - started
            progress.history.append(row | meters.read())

            # Keep: rank 0 writes, the others wait for it at their next step.
            if rank > 0:
                continue
            tracking.write_history(run, progress.history)
            mirrors.log(progress.history[-1])
            if better:
                keep_best(run, judged_model, epoch, logits)
            if config.cam_every and len(judge) and (epoch % config.cam_every == 0 or epoch in (1, config.epochs)):
                keep_cams(run, judged_model, judge, epoch)
            checkpoint.save(run, identity, progress, parts, fast.names)
            print(progress_line(progress.history, config.epochs), flush=True)
            on_epoch(pd.DataFrame(progress.history))

    if rank == 0:
        if progress.epoch < config.epochs:
            print(f"stopped early: {config.patience} epochs without a better {config.monitor}", flush=True)
        compiled = "; compiled" if config.compile != "none" else ""
        run.complete(
            "train", identity, best_epoch=progress.best_epoch, epochs=progress.epoch,
            seconds=progress.history[-1]["seconds"], parameters=models.num_parameters(model),
            total_parameters=sum(weight.numel() for weight in model.parameters()), processes=world_size,
            data_fingerprint=run.data_fingerprint, initial_weights=initial_weights, cache=teach.store.kind,
            train_photos=len(teach), photos_per_epoch=len(feed), **fast.names, speed=fast.summary + compiled,
            micro_batch=progress.micro_batch or "whole",
        )  # fmt: skip
        (run.path / checkpoint.NAME).unlink(missing_ok=True)


def gradients(
    network: torch.nn.Module,
    batch: Batch,
    objective: losses.Objective,
    fast: Speed,
    scaler: torch.amp.GradScaler,
    progress: TrainingState,
    config: Config,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the gradients of a batch's loss to the network's, at most `progress.micro_batch` images at a time.

    Where a GPU's memory does not suffice and the setting is auto, that is halved, and the batch begun again. (What
    BatchNorm and dropout did in the part of the batch that was begun stays done.)

    Returns:
        this process's share of the loss, logits (k, C) float32.
    """
    while True:
        try:
            return _gradients(network, batch.parts(progress.micro_batch), objective, fast, scaler)
        except torch.OutOfMemoryError:
            progress.micro_batch = halve_micro_batch(progress.micro_batch or len(batch.labels), config)
            network.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            print(f"GPU memory ran out: micro_batch is {progress.micro_batch} from now on", flush=True)
        except ValueError as problem:
            if "more than 1 value per channel" not in str(problem):
                raise
            raise InputError("BatchNorm needs at least 2 images at a time: raise micro_batch or batch_size") from None


def _gradients(network, parts: list[Batch], objective, fast: Speed, scaler) -> tuple[torch.Tensor, torch.Tensor]:
    shares, outputs = [], []
    for part in parts:
        inputs = part.images
        if inputs.ndim == 4:  # features of a frozen backbone have two
            inputs = inputs.contiguous(memory_format=fast.memory_format)
        alone = part is parts[-1] or not isinstance(network, DistributedDataParallel)
        with contextlib.nullcontext() if alone else network.no_sync():  # one exchange per batch is enough
            with precision.autocast(fast, inputs.device):
                logits = network(inputs)
            loss = objective(logits.float(), part)
            # DDP averages gradients over processes where the loss asks for their sum, hence the factor.
            scaler.scale(loss * machine.world_size()).backward()
        shares.append(loss.detach())
        outputs.append(logits.detach().float())
    return torch.stack(shares).sum(), torch.cat(outputs)


def halve_micro_batch(images_at_a_time: int, config: Config) -> int:
    """Half as many images at a time, after a GPU's memory ran out; or an error that names the setting.

    Raises:
        InputError: where fewer cannot be had, or one process alone may not change its mind.
    """
    ran_out = f"GPU memory ran out with {images_at_a_time} images at a time"
    if images_at_a_time <= 2:  # BatchNorm needs two
        raise InputError(f"{ran_out}: lower image_size, or take a smaller model") from None
    if config.loss == "soft_f1":
        raise InputError(f"{ran_out}, and loss soft_f1 counts over all of them: lower batch_size") from None
    half = -(-images_at_a_time // 2)
    if config.micro_batch != "auto" or machine.world_size() > 1:
        raise InputError(f"{ran_out}: set micro_batch: {half}, or lower image_size") from None
    return half


def refuse_what_watches_validation(config: Config, judge: Photos) -> None:
    """Raise InputError where a setting waits for validation and no photo validates (fold 0)."""
    if not len(judge) and config.scheduler == "plateau":
        raise InputError("scheduler = plateau follows validation, and no photo validates: take another scheduler")
    if not len(judge) and config.patience:
        raise InputError(f"patience = {config.patience} follows validation, and no photo validates: set patience: 0")


def check_loss(tally: evaluate.Tally, epoch: int, steps: int, config: Config) -> None:
    """Stop where the loss is no number any more.

    Raises:
        Diverged: naming epoch, batch, and the setting that is probably to blame.
    """
    if (batch := tally.first_bad()) is not None:
        raise diverged(config, f"epoch {epoch}, batch {batch} of {steps}")


def diverged(config: Config, where: str) -> Diverged:
    """The error for a loss that is no number any more, with the setting that is probably to blame."""
    cure = f"lower lr (it is {config.lr:g})"
    if config.precision == "fp16":
        cure = f"set precision to bf16 or fp32, or {cure}"
    if not config.clip_norm:
        cure += ", or set clip_norm: 1"
    if not config.warmup_epochs:
        cure += " or warmup_epochs: 1"
    return Diverged(f"the loss is no number any more ({where}): {cure}")


def score(row: dict[str, float], config: Config) -> float:
    """The monitored metric of a history row, higher is better."""
    return -row["val_loss"] if config.monitor == "loss" else row[f"val_{config.monitor}"]


def update_best(progress: TrainingState, row: dict[str, float], config: Config) -> bool:
    """Count an epoch towards early stopping; whether it is the best so far (among equals, the lowest loss)."""
    found = (score(row, config), -row["val_loss"])
    progress.waited += 1
    if found[0] > progress.reference + config.min_delta:
        progress.reference, progress.waited = found[0], 0
    better = found > progress.best
    progress.best = max(found, progress.best)
    return better


def should_stop_early(config: Config, progress: TrainingState) -> bool:
    """Whether early stopping has had enough."""
    return bool(config.patience) and progress.waited >= config.patience


def features_of(model: torch.nn.Module, photos: Photos) -> torch.Tensor | None:
    """A frozen backbone's features (n, D) of these photos; None without photos."""
    with precision.uncompiled(model):
        return blocks.backbone_features(model, photos) if len(photos) else None


def feature_feed(model: torch.nn.Module, teach: Photos, config: Config, device: torch.device) -> loader.FeatureFeed:
    """What a frozen backbone makes of the training photos, computed once; topped up by SMOTE where asked for."""
    features, labels = features_of(model, teach), teach.labels
    if config.balance == "smote":
        features, labels = balance.smote(features, labels, config.seed)
    return loader.FeatureFeed(features.to(device), labels, config, machine.rank(), machine.world_size())


def keep_best(run: Run, model: torch.nn.Module, epoch: int, logits: torch.Tensor) -> None:
    """The best weights, with what is needed to use them, and the predictions that made them so.

    They are kept aside until `last.pt` names their epoch; see `checkpoint.settle`.
    """
    with files.replacing(run.path / checkpoint.NEXT_BEST[0]) as partial:
        torch.save(models.checkpoint(model, run.config, run.class_names, epoch=epoch), partial)
    run.write_predictions("val.next", {"torch": metrics.softmax(logits.numpy().astype(np.float64))}, run.rows("val"))


def cam_photos(judge: Photos) -> Photos:
    """The validation photos whose heatmaps are followed through training: the first few of each class."""
    rank_in_class = pd.Series(judge.labels.numpy()).groupby(judge.labels.numpy()).cumcount()
    return judge.pick(np.flatnonzero(rank_in_class < CAM_PHOTOS_PER_CLASS))


def keep_cams(run: Run, model: torch.nn.Module, judge: Photos, epoch: int) -> None:
    """Heatmaps of this epoch for the fixed photos, towards each photo's true class, in `cams/epoch_NNNN.npz`."""
    photos = cam_photos(judge)
    pixels = dataset.to_float(photos.images, next(model.parameters()).device)
    with precision.uncompiled(model):
        maps = gradcam.heatmaps(model, pixels, blocks.target_layers(model), targets=photos.labels.tolist())
    gradcam.save(run.path / "cams" / f"epoch_{epoch:04d}.npz", maps, paths=np.array(photos.paths))


def kept_cams(run: Run) -> dict[int, gradcam.Heatmaps]:
    """The heatmaps kept during training, by epoch; empty when `cam_every` is 0."""
    return {int(path.stem[-4:]): gradcam.load(path)[0] for path in sorted((run.path / "cams").glob("epoch_*.npz"))}


def progress_line(history: list[dict], epochs: int) -> str:
    """One line on the epoch just finished and the time left at most."""
    last = history[-1]
    left = last["seconds"] / len(history) * (epochs - len(history))
    numbers = f"train loss {last['train_loss']:.3f}"
    if "val_loss" in last:
        numbers += f", val accuracy {last['val_accuracy']:.3f}, macro-F1 {last['val_macro_f1']:.3f}"
    return f"epoch {last['epoch']}/{epochs}: {numbers}, {duration(left)} left"


def answer(run: Run) -> tuple[str, dict[str, float]]:
    """What training came to, in a sentence and as numbers."""
    trained, history, n = run.record("train"), run.history(), len(run.rows("val"))
    best = history.set_index("epoch").loc[trained["best_epoch"]]
    ended = f"epoch {trained['best_epoch']} of {trained['epochs']}, {trained['seconds']:.0f} s of training"
    numbers = {"n": n, "seconds": trained["seconds"], "best_epoch": trained["best_epoch"]}
    if not n:
        return f"Trained on all {len(run.rows('train'))} photos, none validate; {ended}", numbers
    accuracy = metrics.proportion_text(round(best["val_accuracy"] * n), n)
    numbers |= {name: best[f"val_{name}"] for name in ("macro_f1", "accuracy")}
    return f"Validation macro-F1 {best['val_macro_f1']:.3f}, accuracy {accuracy}, {ended}", numbers


def main(run_dir: str) -> None:
    """One torchrun worker's life."""
    distributed.worker(lambda: train(Run(files.resolve(run_dir)), lambda history: None))


if __name__ == "__main__":
    main(sys.argv[1])
