"""Lightning: a LightningModule, torchvision's ImageFolder in DataLoaders, a Trainer without logger and bars."""

import logging
import warnings

import common
import lightning
import torch
from torch import nn
from with_torch import loaders

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}


class Classifier(lightning.LightningModule):
    """A network with its loss and optimizer."""

    def __init__(self, name: str, classes: int):
        super().__init__()
        self.network, self.loss_of = common.network(name, classes), nn.CrossEntropyLoss()

    def training_step(self, batch, number):
        images, labels = batch
        loss = self.loss_of(self.network(images.to(memory_format=torch.channels_last)), labels)
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def validation_step(self, batch, number):
        images, labels = batch
        logits = self.network(images.to(memory_format=torch.channels_last))
        right = (logits.argmax(1) == labels).float().mean()
        self.log("val_accuracy", right, batch_size=len(images))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=common.LR, fused=True)


class Timed(lightning.Callback):
    """Tells the clock of epochs and steps."""

    def __init__(self, clock: common.Clock):
        self.clock = clock

    def on_train_epoch_start(self, trainer, module) -> None:
        self.clock.start()

    def on_train_batch_end(self, trainer, module, outputs, batch, number) -> None:
        self.clock.step(len(batch[0]))


def train(options, precision: str, clock: common.Clock) -> None:
    """Train, validate after every epoch, save."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.manual_seed(0)
    train_loader, val_loader = loaders(options)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=options.epochs,
        precision=PRECISIONS[precision],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[Timed(clock)],
    )
    module = Classifier(options.network, len(train_loader.dataset.classes))
    trainer.fit(module, train_loader, val_loader)
    print({name: round(value.item(), 3) for name, value in trainer.callback_metrics.items()})
    torch.save(module.network.state_dict(), options.weights)


if __name__ == "__main__":
    common.main(train)
