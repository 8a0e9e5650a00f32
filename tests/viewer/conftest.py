"""A slide with all that colocate makes of one, a run, and a server of them that answers within the test."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from PIL import Image
from starlette.testclient import TestClient

from colocate.evaluation.candidates import find_candidate
from colocate.models.backbones import Backbone
from colocate.prediction.features import features
from colocate.prediction.outputs import Marker, Outlined, write_outlines
from colocate.prediction.settings import DeviceConfig, FeatureConfig
from colocate.slides.listing import Listed, find_slides
from colocate.slides.settings import TilingConfig
from colocate.slides.tile import tile
from colocate.training.checkpoint import write_backbone
from colocate.training.loop import pretrain
from colocate.viewer.collection import collect
from colocate.viewer.server import application, hosts
from tests.phantom_slide import tissue_slide, write_pyramid
from tests.tiny import tiny_recipe, write_tiles

SIDE, MPP = 1300, 1.0
TOKEN = "a-token-of-the-tests"
PORT = 8765


@dataclass(frozen=True)
class World:
    """Folders."""

    slides: Path
    tiles: Path
    predictions: Path
    features: Path
    run: Path

    @property
    def listed(self) -> Listed:
        return find_slides([self.slides])[0]

    @property
    def all(self) -> list[Path]:
        return [self.slides, self.tiles, self.predictions, self.features, self.run]


def blob(dice: np.random.Generator, x: float, y: float, radius: float, corners: int = 24) -> shapely.Polygon:
    """A star-shaped outline around a place, all of it less than 1.3 radii away."""
    turns = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    far = radius * (1 + 0.15 * np.sin(3 * turns + dice.uniform(0, 6)) + dice.uniform(-0.1, 0.1, corners))
    return shapely.Polygon(np.stack([x + far * np.cos(turns), y + far * np.sin(turns)], 1))


def blobs(count: int, width: int, height: int, seed: int = 0) -> list[Outlined]:
    """Within the slide, of classes 1 and 2, in turn; every fifth has a hole. They may overlap."""
    dice = np.random.default_rng(seed)
    found = []
    for number in range(count):
        radius = dice.choice([3.0, 9.0, 40.0, 120.0], p=[0.3, 0.4, 0.2, 0.1])
        x, y = dice.uniform(1.4 * radius, (width - 1.4 * radius, height - 1.4 * radius))
        shape = blob(dice, x, y, radius)
        if number % 5 == 0:
            shape = shape.difference(blob(dice, x, y, radius / 3))
        found.append(Outlined(shape, 1 + number % 2, 0.5 + 0.5 * number / count))
    return found


def predict_blobs(listed: Listed, out: Path, found: list[Outlined]) -> Path:
    """OUT/NAME.geojson and the rest, as `colocate predict` writes them."""
    slide, marker = listed.open(), Marker(out / listed.name, listed.identity())
    write_outlines(marker.place, slide, found, {1: "gland", 2: "nucleus"}, "detection")
    marker.write({"slide": str(slide.path), "level0_mpp": slide.mpp, "origin": slide.origin})
    return out


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    home = tmp_path_factory.mktemp("viewer")
    pixels = tissue_slide(SIDE, MPP)[0][:1101]  # no power of two, nor of one shape
    write_pyramid(home / "slides" / "phantom.tif", pixels, MPP)
    listed = find_slides([home / "slides"])[0]
    tile([listed], home / "tiles", TilingConfig(MPP, 128), manifest_only=True, workers=1)
    predict_blobs(listed, home / "predictions", blobs(60, SIDE, 1101))
    torch.manual_seed(0)
    backbone = Backbone("test_resnet", 16)
    write_backbone(home / "backbone", backbone, {"mean": [0.7, 0.5, 0.6], "std": [0.2, 0.2, 0.2], "mpp": MPP})
    device = DeviceConfig(batch=8, accelerator="cpu", workers=0)
    config = FeatureConfig(of="cells", size=64, device=device)
    features(find_candidate(str(home / "backbone")), [listed], home / "features", config)
    run = pretrain(tiny_recipe(write_tiles(home / "pictures", 20, size=80), home / "run", steps=6))
    return World(home / "slides", home / "tiles", home / "predictions", home / "features", run)


def client_of(places: list[Path]) -> TestClient:
    """Asks as the page does: with the cookie, at the address that was printed."""
    app = application(collect(places), TOKEN, hosts("localhost"), PORT)
    return TestClient(app, f"http://localhost:{PORT}", cookies={f"colocate-{PORT}": TOKEN})


@pytest.fixture(scope="session")
def client(world: World) -> TestClient:
    return client_of(world.all)


def decoded(answer: Any) -> np.ndarray:
    """The pixels of a picture that the server sent."""
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)))
