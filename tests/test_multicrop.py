"""Local views and the reference view: drawn as the whole ones are, and placed where their crops say."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from colocate.core.geometry import bounding_box, cell_centres
from colocate.core.settings import ViewConfig
from colocate.core.views import View, sample_views

CONFIG = ViewConfig(size=64, local_views=3, local_size=32, reference=True, symmetries="all")
PLAIN = replace(CONFIG, jitter_p=0, grey_p=0, blur_p=0, mean=(0, 0, 0), std=(1, 1, 1))


def painted(size: int = 128, count: int = 6) -> Tensor:
    """Tiles whose red is x and whose green is y."""
    ramp = torch.linspace(0, 255, size).round().to(torch.uint8)
    across, down = ramp.expand(size, size), ramp[:, None].expand(size, size)
    return torch.stack([across, down, torch.zeros_like(across)]).expand(count, 3, size, size)


def places(view: View, cells: int) -> Tensor:
    """Where each cell of a view lies on its painted tile, by its mean colour."""
    return F.adaptive_avg_pool2d(view.images[:, :2], cells).flatten(2).mT * 127 + 0.5


def test_every_view_shows_what_its_crop_says() -> None:
    batch = sample_views(painted(), PLAIN, seed=3)
    assert batch.reference is not None and batch.tiles.tolist() == list(range(6))
    assert [tuple(view.images.shape[2:]) for view in batch.locals] == [(32, 32)] * 3
    for view in (batch.first, batch.second, *batch.locals, batch.reference):
        apart = (places(view, 4).double() - cell_centres(view.crop, 4)).abs().max()
        assert apart < 1.0  # source pixels


def test_local_views_are_small_and_all_different() -> None:
    batch = sample_views(painted(count=64), CONFIG, seed=1)
    views = (batch.first, batch.second, *batch.locals)
    for view in batch.locals:
        share = view.crop.area() / 128**2
        assert bool((share > 0.04).all()) and bool((share < 0.21).all())
    assert not any(torch.equal(a.crop.rows, b.crop.rows) for a in views for b in views if a is not b)


def test_whole_views_do_not_depend_on_the_others() -> None:
    full = sample_views(painted(), CONFIG, seed=1)
    alone = sample_views(painted(), replace(CONFIG, local_views=0, reference=False), seed=1)
    assert torch.equal(full.first.images, alone.first.images) and torch.equal(full.second.images, alone.second.images)
    assert alone.locals == () and alone.reference is None


def test_the_reference_view_is_the_plain_bounding_box() -> None:
    config = replace(CONFIG, mean=(0, 0, 0), std=(1, 1, 1), jitter_p=1, grey_p=1, blur_p=1, stain=0.3, stain_p=1)
    loud, plain = sample_views(painted(), config, seed=5), sample_views(painted(), PLAIN, seed=5)
    assert loud.reference is not None and plain.reference is not None
    torch.testing.assert_close(
        loud.reference.images, plain.reference.images, atol=0.005, rtol=0
    )  # stains floor black at 1
    box = bounding_box(loud.first.crop, loud.second.crop)
    assert torch.equal(loud.reference.crop.rows, box.rows) and torch.equal(loud.reference.crop.cols, box.cols)


def test_local_views_at_one_physical_scale() -> None:
    """With mpp a local view is still a fraction of what a whole view shows at that scale."""
    config = replace(CONFIG, mpp=0.5, area=(1.0, 1.0), ratio=(1.0, 1.0), local_area=(0.25, 0.25))
    batch = sample_views(painted(), config, mpp=torch.full((6,), 0.5))
    torch.testing.assert_close(batch.first.crop.area(), torch.full((6,), 64.0**2, dtype=torch.float64))
    torch.testing.assert_close(batch.locals[0].crop.area(), torch.full((6,), 32.0**2, dtype=torch.float64))
