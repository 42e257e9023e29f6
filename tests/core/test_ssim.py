"""SSIM against pytorch_msssim, value and gradient."""

import pytest
import torch
from pytorch_msssim import ssim as reference_ssim

from radcomp_plugins.core.ssim import SSIM, ssim


def random_pair(shape: tuple[int, ...], noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    target = torch.rand(shape, generator=generator)
    image = (target + noise * torch.randn(shape, generator=generator)).clamp(0, 1)
    return target, image


@pytest.mark.parametrize("shape", [(1, 3, 40, 53), (2, 1, 11, 30), (1, 3, 11, 11)])
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.5])
def test_value_and_gradient_match_the_reference(shape, noise):
    target, image = random_pair(shape, noise)
    ours, theirs = (image.clone().requires_grad_() for _ in range(2))
    value = ssim(target, ours)
    expected = reference_ssim(target.double(), theirs.double(), data_range=1.0, size_average=True)
    value.backward()
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), abs=2e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=2e-7, rtol=2e-3)


def test_gradient_follows_finite_differences():
    target, image = random_pair((1, 1, 16, 17), 0.2)
    leaf = image.clone().requires_grad_()
    ssim(target, leaf).backward()
    assert leaf.grad is not None
    for row, column in [(0, 0), (8, 9), (15, 16)]:
        step = torch.zeros_like(image)
        step[0, 0, row, column] = 1e-3
        ahead, behind = (
            reference_ssim(target.double(), (image + sign * step).double(), data_range=1.0) for sign in (1, -1)
        )
        assert leaf.grad[0, 0, row, column].item() == pytest.approx(
            ((ahead - behind) / 2e-3).item(), rel=1e-2, abs=1e-6
        )


def test_identical_images_have_similarity_one_and_no_gradient():
    image = random_pair((1, 3, 20, 20), 0.0)[0].requires_grad_()
    value = SSIM()(image.detach(), image)
    value.backward()
    assert image.grad is not None
    assert value.item() == pytest.approx(1.0, abs=1e-6)
    assert image.grad.abs().max() < 1e-6


def test_non_contiguous_input_and_small_images():
    target, image = random_pair((1, 20, 24, 3), 0.1)
    permuted = [t.permute(0, 3, 1, 2) for t in (target, image)]
    assert ssim(*permuted).item() == pytest.approx(ssim(*(t.contiguous() for t in permuted)).item())
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(torch.zeros(1, 3, 10, 40), torch.zeros(1, 3, 10, 40))
