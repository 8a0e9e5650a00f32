"""One device, and settings that make no sense on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from colocate.base.errors import UserError
from colocate.prediction.settings import DeviceConfig, FeatureConfig, PredictConfig


@pytest.mark.parametrize("settings", [{"batch": 0}, {"workers": -1}])
def test_settings_that_make_no_sense(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        DeviceConfig(**settings)


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(UserError, match="accelerator abacus"):
        DeviceConfig(accelerator="abacus").launch()


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for config in (FeatureConfig, PredictConfig):
        with pytest.raises(UserError, match="instead of torchrun, start the same command on each"):
            config()


def test_readers_are_counted_where_none_are_given() -> None:
    assert DeviceConfig(workers=0).readers == 0
    assert 1 <= DeviceConfig().readers <= 8


@pytest.mark.parametrize("supported", [False, True])
def test_a_cpu_that_would_imitate_bfloat16_is_named(
    supported: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    for precision in ("32", "bf16-mixed"):
        DeviceConfig(accelerator="cpu", precision=precision).launch()
    assert capsys.readouterr().out.count("no instructions for bfloat16") == (not supported)
