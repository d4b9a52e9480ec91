"""fastai: ImageDataLoaders, a Learner, fit. Crop and mirror photo by photo, in its workers: quicker on a CPU."""

import common
import torch
from fastai.vision.all import (
    Callback,
    ChannelsLast,
    CrossEntropyLossFlat,
    FlipItem,
    ImageDataLoaders,
    Learner,
    Normalize,
    RandomResizedCrop,
    accuracy,
)


class Timed(Callback):
    """Tells the clock of epochs and steps."""

    def __init__(self, clock: common.Clock):
        self.clock = clock

    def before_train(self) -> None:
        self.clock.start()

    def after_batch(self) -> None:
        if self.training:
            self.clock.step(len(self.xb[0]))


def train(options, precision: str, clock: common.Clock) -> None:
    """Train, validate after every epoch, save."""
    if precision == "bf16":
        raise common.NotOffered("its MixedPrecision is for CUDA devices alone")
    torch.manual_seed(0)
    batches = ImageDataLoaders.from_folder(
        options.folder,
        train="train",
        valid="val",
        bs=options.batch,
        num_workers=common.WORKERS,
        item_tfms=[RandomResizedCrop(options.side, min_scale=common.CROP[0]), FlipItem()],
        batch_tfms=Normalize.from_stats(common.MEAN, common.SPREAD, cuda=False),
        device=torch.device("cpu"),
    )
    model = common.network(options.network, batches.c)
    learner = Learner(
        batches, model, loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=[ChannelsLast(), Timed(clock)]
    )
    with learner.no_bar():
        learner.fit(options.epochs, common.LR)
    torch.save(model.state_dict(), options.weights)


if __name__ == "__main__":
    common.main(train)
