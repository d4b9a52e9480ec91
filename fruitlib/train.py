"""The recipe: photos in, a trained network, its history and its validation predictions out.

In one process `train` runs where it is called. For more, `launch` starts `python -m torch.distributed.run` with this
module as its program; every process then executes the same `train`, and the files it writes are the result.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from fruitlib import balance, gradcam, images, losses, metrics, models, runs, runtime
from fruitlib.config import PREPROCESS_KNOBS, Config
from fruitlib.images import Photos
from fruitlib.runs import Run

OnEpoch = Callable[[pd.DataFrame], None]
CAM_PHOTOS_PER_CLASS = 2


def fit(run: Run, on_epoch: OnEpoch | None = None) -> pd.DataFrame:
    """Train the run unless it is trained already; returns its history, a row per epoch.

    `on_epoch` is called with the history so far after every epoch, also when child processes do the training.
    """
    with run.locked():
        if run.is_complete("train"):
            print(f"{runtime.display_path(run.path)} is trained already, nothing to do; history read from its files")
            return run.history()
        runs.clear(run)
        start = launch if run.config.processes > 1 else train
        start(run, on_epoch or (lambda history: None))
        return run.history()


def train(run: Run, on_epoch: OnEpoch) -> None:
    """The whole training, from first line to last: build, learn, judge on validation, keep the best."""
    config, identity, started = run.config, run.identity("train"), time.perf_counter()
    rank, world_size, device = runtime.rank(), runtime.world_size(), runtime.device()

    # Photos, decoded once: in memory, in a mapped file, or streamed, as fits.
    decoding = runtime.meter("photos decoded")
    names, teach, judge = run.class_names, images.of(run, "train", decoding), images.of(run, "val")
    if rank == 0:
        said = balance.said(teach.labels, names, config.balance, config.augment_to)
        print(f"{teach.store.said}\n{said}", flush=True)

    # The network, alike in every process, and what of it learns.
    runtime.seed_everything(config.seed)
    model = models.build(config, len(names)).to(device, memory_format=torch.channels_last)
    initial_weights = models.fingerprint(model)
    models.freeze(model, config)
    learner, feed = model, images.Feed(teach, config, device, rank, world_size)
    if config.features_once:
        learner, feed = models.head(model), feature_feed(model, teach, config, device)
    network = DistributedDataParallel(learner) if world_size > 1 else learner
    weights = balance.class_weights(teach.labels, len(names)) if config.balance == "class_weights" else None
    loss_of = losses.build(config, weights)
    plain_loss = losses.build(config)  # validation is judged without weights
    optimizer = build_optimizer(config, [p for p in network.parameters() if p.requires_grad])
    scheduler = build_scheduler(config, optimizer)

    history, best = [], (-1.0, 0.0)
    for epoch in range(1, config.epochs + 1):
        epoch_started = time.perf_counter()

        # Learn: every process takes its share of each batch; the loss is the mean over the whole batch, so
        # gradients do not depend on how many share the work (DDP averages over processes, hence `world_size`).
        models.learning(model, config)
        tally = Tally(len(names))
        for batch in feed.epoch(epoch):
            logits = network(batch.images)
            per_image = batch_loss(loss_of, logits, batch)
            (per_image.sum() * world_size / batch.size).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            tally.add(per_image, logits, batch.labels if batch.share >= 0.5 else batch.other_labels)
        lr = scheduler.get_last_lr()[0]
        scheduler.step()
        seconds = time.perf_counter() - epoch_started

        # Judge: each validation photo exactly once, whatever the number of processes.
        learnt, logits = tally.row("train"), predict_shared(model, judge)  # both need every process
        if rank > 0:
            continue  # rank 0 writes; the others wait for it at their next step
        row = {"epoch": epoch, "lr": lr, **learnt, **judged(logits, judge.labels, plain_loss)}
        history.append(row | {"photos_per_second": len(feed) / seconds, "seconds": time.perf_counter() - started})
        write_history(run, history)
        score = (row["val_macro_f1"], -row["val_loss"])
        if score > best:
            best, best_epoch = score, epoch
            keep_best(run, model, epoch, logits, judge)
        if config.cam_every and (epoch % config.cam_every == 0 or epoch in (1, config.epochs)):
            keep_cams(run, model, judge, epoch)
        print(progress_line(history, config.epochs), flush=True)
        on_epoch(pd.DataFrame(history))

    if rank == 0:
        run.complete(
            "train", identity, best_epoch=best_epoch, epochs=config.epochs, seconds=time.perf_counter() - started,
            parameters=models.num_parameters(model), processes=world_size, data_fingerprint=run.data_fingerprint,
            initial_weights=initial_weights, cache=teach.store.kind, photos_per_epoch=len(feed),
        )  # fmt: skip


def batch_loss(loss_of: losses.Loss, logits: torch.Tensor, batch: images.Batch) -> torch.Tensor:
    """Loss per image (n,); of mixed pairs, the two labels' losses in the shares of the mixture (mixup, equation 1)."""
    if batch.other_labels is None:
        return loss_of(logits, batch.labels)
    return batch.share * loss_of(logits, batch.labels) + (1 - batch.share) * loss_of(logits, batch.other_labels)


def feature_feed(model: torch.nn.Module, teach: Photos, config: Config, device: torch.device) -> images.FeatureFeed:
    """What a frozen backbone makes of the training photos, computed once; topped up by SMOTE where asked for."""
    features, labels = models.features(model, teach), teach.labels
    if config.balance == "smote":
        features, labels = balance.smote(features, labels, config.seed)
    return images.FeatureFeed(features.to(device), labels, config, runtime.rank(), runtime.world_size())


class Tally:
    """Loss and confusion matrix of an epoch's training batches, this process's share; `row` adds up all shares."""

    def __init__(self, num_classes: int):
        self.sums = torch.zeros(num_classes * num_classes + 1, dtype=torch.float64)
        self.num_classes = num_classes

    def add(self, per_image: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Count one batch: loss per image (n,), logits (n, C), labels (n,)."""
        cells = (labels * self.num_classes + logits.argmax(1)).cpu()
        self.sums[0] += per_image.detach().sum().item()
        self.sums[1:] += torch.bincount(cells, minlength=len(self.sums) - 1)

    def row(self, prefix: str) -> dict[str, float]:
        """<prefix>_loss, _accuracy and _macro_f1 over all processes' shares of the epoch."""
        if dist.is_initialized():
            dist.all_reduce(self.sums)
        matrix = self.sums[1:].reshape(self.num_classes, -1).numpy().astype(np.int64)
        return _row(prefix, self.sums[0].item() / matrix.sum(), matrix)


def judged(logits: torch.Tensor, labels: torch.Tensor, loss_of: losses.Loss) -> dict[str, float]:
    """val_loss, val_accuracy and val_macro_f1 of logits (n, C) for labels (n,)."""
    matrix = metrics.confusion_matrix(labels.numpy(), logits.argmax(1).numpy(), logits.shape[1])
    return _row("val", loss_of(logits, labels).mean().item(), matrix)


def _row(prefix: str, loss: float, matrix: np.ndarray) -> dict[str, float]:
    summary = metrics.summary(matrix)
    return {f"{prefix}_loss": loss} | {f"{prefix}_{name}": summary[name] for name in ("accuracy", "macro_f1")}


@torch.inference_mode()
def predict(model: torch.nn.Module, photos: Photos, batch_size: int = 64) -> torch.Tensor:
    """Logits float32 (n, C) on the CPU for these photos, the model in eval mode."""
    device = next(model.parameters()).device
    model.eval()
    parts = [model(pixels).float().cpu() for pixels in images.in_parts(photos, batch_size, device)]
    return torch.cat(parts)


def predict_shared(model: torch.nn.Module, photos: Photos) -> torch.Tensor:
    """`predict` with the photos dealt out among the processes, each to exactly one; all get all logits.

    (torch's DistributedSampler would repeat photos to even out the shares, and so judge some of them twice.)
    """
    if not dist.is_initialized():
        return predict(model, photos)
    for buffer in model.buffers():  # BatchNorm's statistics differ by process; rank 0's are the ones that are kept
        dist.broadcast(buffer, src=0)
    shares = [range(rank, len(photos), dist.get_world_size()) for rank in range(dist.get_world_size())]
    mine = shares[dist.get_rank()]
    gathered: list = [None] * len(shares)
    dist.all_gather_object(gathered, predict(model, photos.pick(mine)) if mine else None)
    logits = torch.empty(len(photos), next(part.shape[1] for part in gathered if part is not None))
    for share, part in zip(shares, gathered, strict=True):
        if part is not None:
            logits[list(share)] = part
    return logits


def build_optimizer(config: Config, parameters) -> torch.optim.Optimizer:
    """adam, adamw, or sgd (with Nesterov momentum 0.9)."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=0.9, nesterov=True, weight_decay=config.weight_decay)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[config.optimizer](parameters, lr=config.lr, weight_decay=config.weight_decay)


def build_scheduler(config: Config, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """lr by epoch: step divides by 10 after each third, exponential and cosine fall smoothly to a hundredth."""
    schedulers = torch.optim.lr_scheduler
    if config.scheduler == "step":
        return schedulers.StepLR(optimizer, step_size=max(1, -(-config.epochs // 3)), gamma=0.1)
    if config.scheduler == "exponential":
        return schedulers.ExponentialLR(optimizer, gamma=0.01 ** (1 / max(1, config.epochs - 1)))
    return schedulers.CosineAnnealingLR(optimizer, T_max=max(1, config.epochs - 1), eta_min=config.lr / 100)


def write_history(run: Run, history: list[dict]) -> None:
    """`history.csv`, whole and atomic after every epoch."""
    with runtime.replacing(run.path / "history.csv") as partial:
        pd.DataFrame(history).to_csv(partial, index=False)


def keep_best(run: Run, model: torch.nn.Module, epoch: int, logits: torch.Tensor, judge: Photos) -> None:
    """`best.pt` (weights and what is needed to use them) and the predictions that made it the best."""
    checkpoint = {
        "model": run.config.model,
        "image_size": run.config.image_size,
        "preprocess": run.config.model_dump(include=set(PREPROCESS_KNOBS)),
        "class_names": run.class_names,
        "epoch": epoch,
        "state_dict": {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()},
    }
    with runtime.replacing(run.path / "best.pt") as partial:
        torch.save(checkpoint, partial)
    run.write_predictions("val", {"torch": metrics.softmax(logits.numpy().astype(np.float64))}, run.rows("val"))


def cam_photos(judge: Photos) -> Photos:
    """The validation photos whose heatmaps are followed through training: the first few of each class."""
    rank_in_class = pd.Series(judge.labels.numpy()).groupby(judge.labels.numpy()).cumcount()
    return judge.pick(np.flatnonzero(rank_in_class < CAM_PHOTOS_PER_CLASS))


def keep_cams(run: Run, model: torch.nn.Module, judge: Photos, epoch: int) -> None:
    """Heatmaps of this epoch for the fixed photos, towards each photo's true class, in `cams/epoch_NNNN.npz`."""
    photos = cam_photos(judge)
    pixels = images.to_float(photos.images, next(model.parameters()).device)
    maps = gradcam.heatmaps(model, pixels, models.target_layers(model), targets=photos.labels.tolist())
    gradcam.save(run.path / "cams" / f"epoch_{epoch:04d}.npz", maps, paths=np.array(photos.paths))


def kept_cams(run: Run) -> dict[int, gradcam.Heatmaps]:
    """The heatmaps kept during training, by epoch; empty when `cam_every` is 0."""
    return {int(path.stem[-4:]): gradcam.load(path)[0] for path in sorted((run.path / "cams").glob("epoch_*.npz"))}


def progress_line(history: list[dict], epochs: int) -> str:
    """One line on the epoch just finished and the time left."""
    last = history[-1]
    left = last["seconds"] / len(history) * (epochs - len(history))
    numbers = f"train loss {last['train_loss']:.3f}, val accuracy {last['val_accuracy']:.3f}"
    eta = f"{left / 60:.1f} min" if left >= 90 else f"{left:.0f} s"
    return f"epoch {last['epoch']}/{epochs}: {numbers}, macro-F1 {last['val_macro_f1']:.3f}, {eta} left"


def launch(run: Run, on_epoch: OnEpoch) -> None:
    """Train in `processes` children under torchrun, showing their log and passing on each new epoch.

    Whatever ends this call (an error, an interrupted cell) ends the children too.

    Raises:
        RuntimeError: the children failed; one line says why, and where all they said is.
    """
    processes = run.config.processes
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    command += [f"--nproc-per-node={processes}", "-m", "fruitlib.train", str(run.path)]
    threads = str(max(1, torch.get_num_threads() // processes))
    environment = os.environ | {
        "OMP_NUM_THREADS": threads,
        "PYTHONUNBUFFERED": "1",
        "FRUITLIB_STARTER": str(os.getpid()),
        "FRUITLIB_HOME": str(runtime.home()),
    }
    print(f"starting {processes} processes with {threads} threads each", flush=True)
    child = subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        with (run.path / "train.log").open("w", encoding="utf-8") as log:
            for line in child.stdout:
                log.write(line)
                if line.startswith("epoch "):
                    print(line, end="", flush=True)
                    on_epoch(run.history())
        if child.wait():
            said = (run.path / "train.log").read_text(encoding="utf-8")
            reasons = [line.removeprefix("error: ") for line in said.splitlines() if line.startswith("error: ")]
            where = runtime.display_path(run.path / "train.log")
            reason = reasons[0] if reasons else f"exit code {child.returncode}"
            raise RuntimeError(f"training in {processes} processes failed: {reason} (all they said: {where})")
    finally:
        end_tree(child)
        child.stdout.close()


def end_tree(child: subprocess.Popen, patience: float = 10) -> None:
    """End a torchrun agent and its workers, which live in sessions of their own: ask first, then kill."""
    if child.poll() is not None:
        return
    family = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
    child.terminate()  # the agent passes this on to its workers
    _, alive = psutil.wait_procs(family, timeout=patience)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    child.wait()


def _leave_with_starter() -> None:
    """End this worker when torchrun's agent, or the process that started the agent, is gone.

    Either may be killed outright, and then cannot tell anyone; the agent by itself would work on.
    """
    family = [psutil.Process(os.getppid()), psutil.Process(int(os.environ.get("FRUITLIB_STARTER", os.getppid())))]

    def watch() -> None:
        while all(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family):
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(run_dir: str) -> None:
    """One torchrun worker's life."""
    _leave_with_starter()
    enough_gpus = torch.cuda.is_available() and torch.cuda.device_count() >= runtime.world_size()
    if enough_gpus:
        torch.cuda.set_device(runtime.device())
    dist.init_process_group("cpu:gloo,cuda:nccl" if enough_gpus else "gloo", timeout=timedelta(hours=2))
    try:
        train(Run(Path(run_dir)), lambda history: None)
        dist.barrier()
    except Exception as problem:
        print(f"error: {type(problem).__name__}: {problem}", flush=True)  # found by `launch` among torchrun's own words
        raise
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
