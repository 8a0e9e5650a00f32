"""DenseCL, MoCo-v2 and VICRegL as lightly's documentation builds them on PyTorch Lightning; runs in its environment.

Its network, heads, losses, views, optimiser and key momentum are those of the examples, but for what stands in `main`'s
options. Each step is a line of OUT/steps.jsonl, and OUT/weights.pt the backbone under torchvision's names.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torchvision
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss, VICRegLLoss
from lightly.models import utils
from lightly.models.modules import BarlowTwinsProjectionHead, DenseCLProjectionHead, MoCoProjectionHead
from lightly.models.modules.heads import VicRegLLocalProjectionHead
from lightly.transforms import DenseCLTransform
from lightly.transforms.moco_transform import MoCoV2Transform
from lightly.transforms.vicregl_transform import VICRegLTransform
from lightly.utils.scheduler import cosine_schedule
from pytorch_lightning.callbacks import ModelCheckpoint
from steps import Steps
from torch import Tensor, nn


def trunk(resnet: nn.Module) -> nn.Sequential:
    """A ResNet without pooling and head: a grid of 512 channels at stride 32."""
    return nn.Sequential(*list(resnet.children())[:-2])


class DenseCL(pl.LightningModule):
    """Whole views and their most similar cells."""

    def __init__(self, resnet: nn.Module, steps: int, queue: int) -> None:
        super().__init__()
        self.steps = steps
        whole, cells = (DenseCLProjectionHead(512, 512, 128) for _ in range(2))
        self.query = nn.ModuleList([trunk(resnet), whole, cells])
        self.key = copy.deepcopy(self.query)
        utils.deactivate_requires_grad(self.key)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.whole_loss = NTXentLoss(memory_bank_size=(queue, 128))
        self.cells_loss = NTXentLoss(memory_bank_size=(queue, 128))

    def features(self, parts: nn.ModuleList, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cells of the backbone (b, n, 512), the whole view (b, 128), projected cells (b, n, 128)."""
        grid = parts[0](images)
        cells = grid.flatten(2).permute(0, 2, 1)
        return cells, parts[1](self.pool(grid).flatten(1)), parts[2](cells)

    def training_step(self, batch: Any, _: int) -> Tensor:
        first, second = batch[0]
        utils.update_momentum(self.query, self.key, cosine_schedule(self.global_step, self.steps, 0.996, 1))
        cells, whole, local = self.features(self.query, first)
        with torch.no_grad():
            key_cells, key_whole, key_local = self.features(self.key, second)
        matched = utils.select_most_similar(cells, key_cells, key_local)
        dense = self.cells_loss(local.flatten(end_dim=1), matched.flatten(end_dim=1))
        return 0.5 * self.whole_loss(whole, key_whole) + 0.5 * dense

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.06)


class MoCo(pl.LightningModule):
    """Whole views alone."""

    def __init__(self, resnet: nn.Module, steps: int, queue: int) -> None:
        super().__init__()
        self.steps = steps
        pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.query = nn.Sequential(trunk(resnet), *pool, MoCoProjectionHead(512, 512, 128))
        self.key = copy.deepcopy(self.query)
        utils.deactivate_requires_grad(self.key)
        self.loss = NTXentLoss(memory_bank_size=(queue, 128))

    def training_step(self, batch: Any, _: int) -> Tensor:
        first, second = batch[0]
        utils.update_momentum(self.query, self.key, cosine_schedule(self.global_step, self.steps, 0.996, 1))
        query = self.query(first)
        with torch.no_grad():
            key = self.key(second)
        return self.loss(query, key)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.06)


class VICRegL(pl.LightningModule):
    """No queue; cells paired by feature and by place."""

    def __init__(self, resnet: nn.Module, cells: int) -> None:
        super().__init__()
        self.trunk = trunk(resnet)
        self.whole = BarlowTwinsProjectionHead(512, 2048, 2048)
        self.local = VicRegLLocalProjectionHead(512, 512, 512)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.loss = VICRegLLoss(num_matches=(min(20, cells),) * 2)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The whole view (b, 2048) and its cells (b, n, n, 512)."""
        grid = self.trunk(images)
        return self.whole(self.pool(grid).flatten(1)), self.local(grid.permute(0, 2, 3, 1))

    def training_step(self, batch: Any, _: int) -> Tensor:
        views, grids = batch[0][:2], batch[0][2:]
        return self.loss(global_view_features=[self.features(view) for view in views], global_view_grids=grids)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", choices=["densecl", "moco-v2", "vicregl"])
    for name in ("--data", "--out"):
        parser.add_argument(name, type=Path, required=True)
    for name, default in (("size", 96), ("batch", 64), ("steps", 1200), ("workers", 0), ("queue", 4096), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--save-every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--resume", action="store_true", help="from the last checkpoint in OUT")
    args = parser.parse_args()
    pl.seed_everything(args.seed, workers=True)
    resnet = torchvision.models.resnet18()
    side = args.size // 32
    model: pl.LightningModule
    transform: Any
    if args.method == "densecl":
        model, transform = DenseCL(resnet, args.steps, args.queue), DenseCLTransform(input_size=args.size)
    elif args.method == "moco-v2":
        model, transform = MoCo(resnet, args.steps, args.queue), MoCoV2Transform(input_size=args.size)
    else:
        model = VICRegL(resnet, side * side)
        transform = VICRegLTransform(n_local_views=0, global_crop_size=args.size, global_grid_size=side)
    loader = torch.utils.data.DataLoader(
        LightlyDataset(str(args.data), transform=transform),
        batch_size=args.batch,
        shuffle=True,
        drop_last=True,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
    )
    saves = ModelCheckpoint(args.out / "checkpoints", every_n_train_steps=args.save_every, save_last=True)
    trainer = pl.Trainer(
        accelerator="cpu",
        precision=args.precision,
        max_steps=args.steps,
        default_root_dir=args.out,
        callbacks=[Steps(args.out / "steps.jsonl"), saves],
    )
    trainer.fit(model, loader, ckpt_path="last" if args.resume else None)
    torch.save(resnet.state_dict(), args.out / "weights.pt")


if __name__ == "__main__":
    main()
