"""solo-learn's MoCo V2+ as the main_pretrain.py of its repository sets it up; runs in its environment."""

# pyright: reportMissingImports=false
from __future__ import annotations

import argparse
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything
from omegaconf import OmegaConf
from solo.args.pretrain import parse_cfg
from solo.data.pretrain_dataloader import (
    FullTransformPipeline,
    NCropAugmentation,
    build_transform_pipeline,
    prepare_dataloader,
    prepare_datasets,
)
from solo.methods import METHODS
from solo.utils.auto_resumer import AutoResumer
from solo.utils.checkpointer import Checkpointer
from solo.utils.misc import make_contiguous
from steps import Steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--data", "--out"):
        parser.add_argument(name, type=Path, required=True)
    for name, default in (("size", 96), ("batch", 64), ("steps", 1200), ("workers", 0), ("queue", 4096), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--resume", action="store_true", help="from the last checkpoint in OUT (auto_resume)")
    args = parser.parse_args()
    augmentation = {
        "rrc": {"enabled": True, "crop_min_scale": 0.2, "crop_max_scale": 1.0},
        "color_jitter": {"prob": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
        "grayscale": {"prob": 0.2},
        "gaussian_blur": {"prob": 0.5},
        "solarization": {"prob": 0.0},
        "equalization": {"prob": 0.0},
        "horizontal_flip": {"prob": 0.5},
        "crop_size": args.size,
        "num_crops": 2,
    }
    heads = {"proj_hidden_dim": 2048, "proj_output_dim": 256, "queue_size": args.queue, "temperature": 0.2}
    optimizer = {"name": "sgd", "batch_size": args.batch, "lr": 0.3, "weight_decay": 1e-4, "classifier_lr": 0.3}
    cfg = OmegaConf.create(
        {
            "name": "mocov2plus",
            "method": "mocov2plus",
            "backbone": {"name": "resnet18"},
            "method_kwargs": heads,
            "momentum": {"base_tau": 0.99, "final_tau": 0.999},
            "data": {"dataset": "custom", "train_path": str(args.data), "num_workers": args.workers},
            "optimizer": optimizer,
            "scheduler": {"name": "warmup_cosine"},
            "checkpoint": {"enabled": True, "dir": str(args.out / "checkpoints"), "frequency": 1},
            "auto_resume": {"enabled": True},
            "augmentations": [augmentation],
            "max_epochs": 400,
            "devices": [0],
            "seed": args.seed,
        }
    )
    cfg = parse_cfg(cfg)
    seed_everything(cfg.seed)
    model = METHODS[cfg.method](cfg)
    make_contiguous(model)
    model = model.to(memory_format=torch.channels_last)
    crops = [NCropAugmentation(build_transform_pipeline("custom", one), one.num_crops) for one in cfg.augmentations]
    views = FullTransformPipeline(crops)
    tiles = prepare_datasets("custom", views, train_data_path=cfg.data.train_path)
    loader = prepare_dataloader(tiles, batch_size=args.batch, num_workers=args.workers)
    folder = Path(cfg.checkpoint.dir) / cfg.method
    found = AutoResumer(folder).find_checkpoint(cfg)[0] if args.resume else None
    trainer = Trainer(
        accelerator="cpu",
        precision=args.precision,
        max_steps=args.steps,
        default_root_dir=args.out,
        logger=False,
        enable_checkpointing=False,
        callbacks=[Steps(args.out / "steps.jsonl"), Checkpointer(cfg, logdir=folder, frequency=1)],
    )
    trainer.fit(model, loader, ckpt_path=found)
    torch.save(model.backbone.state_dict(), args.out / "weights.pt")


if __name__ == "__main__":
    main()
