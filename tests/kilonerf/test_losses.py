"""Losses against values worked out by hand."""

import math

import pytest
import torch

from radcomp_plugins.kilonerf.losses import alpha_of, distillation, view_dependence


def test_alpha_of_positive_outputs() -> None:
    assert alpha_of(torch.tensor([2.0]), 0.3).item() == pytest.approx(1 - math.exp(-0.6))


def test_empty_networks_still_learn() -> None:
    raw = torch.tensor([-3.0], requires_grad=True)
    alpha = alpha_of(raw, 0.3)
    alpha.backward()
    assert alpha.item() == pytest.approx(-0.009) and raw.grad is not None
    assert raw.grad.item() == pytest.approx(0.003)


def test_distillation_by_hand() -> None:
    alpha, taught = torch.tensor([[0.5, 0.0]]), torch.tensor([[1.0, 0.0]])
    rgb, said = torch.zeros(1, 2, 3), torch.tensor([[[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]])
    # Opacity: 0.25 and 0. Colour: 1 with weight (1 + 0.25) / 1.25, and 3 with weight 0.25 / 1.25.
    assert distillation(alpha, rgb, taught, said, 0.25).item() == pytest.approx((0.25 + 1.0 + 0.6) / 2 / 4)


def test_networks_do_not_share_losses() -> None:
    alpha = torch.zeros(2, 4, requires_grad=True)
    taught = torch.stack([torch.ones(4), torch.zeros(4)])
    each = distillation(alpha, torch.zeros(2, 4, 3), taught, torch.zeros(2, 4, 3), 0.05)
    each.sum().backward()
    assert each[1] == 0 and alpha.grad is not None and alpha.grad[0].abs().min() > 0 and not alpha.grad[1].any()


def test_view_dependence_is_a_sum_of_norms() -> None:
    parts = [torch.tensor([3.0, 4.0]), torch.tensor([[12.0], [5.0]])]
    assert view_dependence(parts).item() == pytest.approx(18.0)
