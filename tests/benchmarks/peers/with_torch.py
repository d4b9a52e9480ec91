"""Plain torch: ImageFolder, DataLoader with workers that stay, a loop. Channels last, Adam in one kernel, autocast."""

import common
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

END = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(common.MEAN, common.SPREAD)]


def loaders(options) -> tuple[DataLoader, DataLoader]:
    """Batches to train on, and to validate on; transforms on bytes as long as possible, which is faster."""
    crop = [v2.RandomResizedCrop(options.side, scale=common.CROP, antialias=True), v2.RandomHorizontalFlip()]
    middle = [v2.Resize(options.side, antialias=True), v2.CenterCrop(options.side)]
    train = ImageFolder(f"{options.folder}/train", v2.Compose([v2.ToImage(), *crop, *END]))
    val = ImageFolder(f"{options.folder}/val", v2.Compose([v2.ToImage(), *middle, *END]))
    stay = {"num_workers": common.WORKERS, "persistent_workers": True}
    return DataLoader(train, options.batch, shuffle=True, **stay), DataLoader(val, options.batch, **stay)


def train(options, precision: str, clock: common.Clock) -> None:
    """Train, validate after every epoch, save."""
    torch.manual_seed(0)
    train_loader, val_loader = loaders(options)
    model = common.network(options.network, len(train_loader.dataset.classes))
    optimizer = torch.optim.Adam(model.parameters(), lr=common.LR, fused=True)
    loss_of = nn.CrossEntropyLoss()
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    for epoch in range(options.epochs):
        model.train()
        clock.start()
        loss_sum = torch.zeros(())
        for images, labels in train_loader:
            images = images.to(memory_format=torch.channels_last)
            with autocast:
                loss = loss_of(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss_sum += loss.detach()
            clock.step(len(images))
        right = validate(model.eval(), val_loader, autocast)
        print(f"epoch {epoch + 1}: loss {loss_sum.item() / len(train_loader):.3f}, val accuracy {right:.3f}")
    torch.save(model.state_dict(), options.weights)


@torch.inference_mode()
def validate(model: nn.Module, loader: DataLoader, autocast: torch.autocast) -> float:
    """The accuracy on the validation photos."""
    right = 0
    for images, labels in loader:
        with autocast:
            logits = model(images.to(memory_format=torch.channels_last))
        right += (logits.argmax(1) == labels).sum().item()
    return right / len(loader.dataset)


if __name__ == "__main__":
    common.main(train)
