"""PSNR, error maps, and LPIPS with and without weights."""

import math
import urllib.error
import urllib.request

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from radcomp_plugins.core import metrics


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    """A machine without cached weights and without a network; counts the attempts to reach it."""
    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(metrics, "_networks", {})
    monkeypatch.setattr(metrics, "_failures", {})
    return attempts


@given(st.floats(1e-3, 0.5))
def test_psnr_of_a_constant_error(error):
    target = torch.full((4, 5, 3), 0.25, dtype=torch.float64)
    # MSE = error^2, so PSNR = -20 log10(error).
    assert float(metrics.psnr(target, target + error)) == pytest.approx(-20 * math.log10(error), abs=1e-4)


def test_psnr_of_equal_images_is_infinite():
    assert float(metrics.psnr(torch.ones(2, 2, 3), torch.ones(2, 2, 3))) == math.inf


def test_error_map_runs_from_black_to_light_and_saturates():
    target = torch.zeros(1, 4, 3)
    image = torch.tensor([0.0, 0.1, 0.25, 0.9])[None, :, None].expand(1, 4, 3)
    colors = metrics.error_map(target, image, max_error=0.25)
    brightness = colors.mean(dim=-1)[0]
    assert colors.min() >= 0 and colors.max() <= 1
    assert brightness[0] < 0.05 < brightness[1] < brightness[2]
    assert torch.equal(colors[0, 2], colors[0, 3])


def test_lpips_without_weights_is_none_with_a_reason_and_asks_once(no_weights):
    image = torch.rand(1, 3, 64, 64)
    first, second = metrics.Lpips("alex"), metrics.Lpips("alex")
    assert first(image, image) is None and second(image, image) is None
    assert first.reason == second.reason
    assert "LPIPS (alex)" in str(first.reason) and "Name or service not known" in str(first.reason)
    assert len(no_weights) == 1


def test_lpips_survives_a_damaged_download(no_weights, monkeypatch, tmp_path):
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    (tmp_path / "hub/checkpoints/alexnet-owt-7be5be79.pth").write_bytes(b"PK\x03\x04 cut short")
    lpips = metrics.Lpips("alex")
    assert lpips(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)) is None
    assert lpips.reason and "\n" not in lpips.reason


def test_lpips_passes_the_images_on_and_keeps_no_scores(no_weights, monkeypatch):
    class Distance(torch.nn.Module):
        scores: list[float] = []

        def forward(self, image, target):
            self.scores.append(float((image - target).mean()))
            return torch.tensor(self.scores[-1])

        def reset(self):
            self.scores.clear()

    monkeypatch.setitem(metrics._networks, "vgg", Distance())
    lpips = metrics.Lpips("vgg")
    value = lpips(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.5))
    assert value == 0.5 and lpips.reason is None and not Distance.scores
