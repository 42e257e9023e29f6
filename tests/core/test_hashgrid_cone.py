"""The fused cone encoding against a reference that does one point, level and corner after the other."""

import math

import numpy as np
import pytest
import torch

from radcomp_plugins.core import hashgrid_cone, threads
from radcomp_plugins.core.hashgrid_cone import PRIMES, cone_encode, cone_encode_torch

RESOLUTIONS = (4, 7, 16, 33)
LOG2_SIZE = 9
"""512 entries: 5^3 and 8^3 corners lie densely, 17^3 and 34^3 are hashed."""


def reference(points: np.ndarray, table: np.ndarray) -> np.ndarray:
    """[N, L * F] in float64, with math.erf."""
    out = np.zeros((points.shape[1], len(RESOLUTIONS), table.shape[1]))
    for n in range(points.shape[1]):
        for m in range(points.shape[2]):
            x, std = np.clip(points[:3, n, m], 0, 1), points[3, n, m]
            for level, resolution in enumerate(RESOLUTIONS):
                share = math.erf(1 / math.sqrt(8 * max(std, 1e-12) ** 2 * resolution**2)) / points.shape[2]
                low = np.floor(x * resolution).astype(int)
                fraction = x * resolution - low
                for corner in np.ndindex(2, 2, 2):
                    factor = np.prod(np.where(corner, fraction, 1 - fraction))
                    if factor > 0:
                        entry = index_of(low + corner, resolution)
                        out[n, level] += share * factor * table[level * 2**LOG2_SIZE + entry]
    return out.reshape(len(out), -1)


def index_of(corner: np.ndarray, resolution: int) -> int:
    x, y, z = (int(value) for value in corner)
    if (resolution + 1) ** 3 <= 2**LOG2_SIZE:
        return x + (resolution + 1) * (y + (resolution + 1) * z)
    return (x * PRIMES[0] ^ y * PRIMES[1] ^ z * PRIMES[2]) % 2**LOG2_SIZE


def inputs(features: int, samples: int = 12, num_points: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points that include the corners of the cube, points outside it, and widths from nothing to the whole cube."""
    points = torch.rand(4, samples, num_points)
    points[3] = 10 ** (torch.rand(samples, num_points) * 5 - 4.5)
    points[:3, 0, 0], points[:3, 0, 1], points[:3, 1, 0] = 0.0, 1.0, torch.tensor([-0.3, 0.5, 1.7])
    points[3, 2, 0] = 0.0
    table = torch.randn(len(RESOLUTIONS) << LOG2_SIZE, features)
    return points, table, torch.tensor(RESOLUTIONS, dtype=torch.float32)


@pytest.mark.parametrize("features", [1, 2, 3, 4])
@pytest.mark.parametrize("num_points", [1, 6])
def test_values_are_the_references(features: int, num_points: int) -> None:
    points, table, resolutions = inputs(features, num_points=max(num_points, 2))
    points = points[:, :, :num_points]
    expected = reference(points.double().numpy(), table.double().numpy())
    kernel = cone_encode(points, table, resolutions, LOG2_SIZE)
    plain = cone_encode_torch(points.double(), table.double(), resolutions, LOG2_SIZE)
    np.testing.assert_allclose(plain, expected, atol=1e-9)
    # Float32, and a rational approximation of erf that is good to 3e-7.
    np.testing.assert_allclose(kernel, expected, atol=2e-5)


@pytest.mark.parametrize("features", [1, 2, 3, 4])
def test_gradients_reach_the_table_as_in_plain_torch(features: int) -> None:
    points, table, resolutions = inputs(features, samples=600)  # more than two blocks of the backward kernel
    weights = torch.randn(600, len(RESOLUTIONS) * features)
    weights[100:400] = 0  # these are skipped
    weights[:, :features] = 0
    table.requires_grad_()
    (cone_encode(points, table, resolutions, LOG2_SIZE) * weights).sum().backward()
    found, table.grad = table.grad, None
    (cone_encode_torch(points, table, resolutions, LOG2_SIZE) * weights).sum().backward()
    assert found is not None and table.grad is not None
    torch.testing.assert_close(found, table.grad, atol=1e-4, rtol=1e-4)
    assert not found[: 2**LOG2_SIZE].any() and found[2**LOG2_SIZE :].any()


def test_the_torch_twins_gradient_is_that_of_its_values() -> None:
    points, table, resolutions = inputs(2, samples=4)
    points, table = points.double(), table.double().requires_grad_()
    out = cone_encode_torch(points, table, resolutions, LOG2_SIZE)
    weights = torch.randn_like(out)
    (grad,) = torch.autograd.grad((out * weights).sum(), table)
    # The encoding is linear in the table: the gradient times any table is the change of the output.
    other = torch.randn_like(table)
    change = (cone_encode_torch(points, other, resolutions, LOG2_SIZE) * weights).sum()
    torch.testing.assert_close((grad * other).sum(), change)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    points, table, resolutions = inputs(4, samples=3000)
    table.requires_grad_()
    count = threads.get_num_threads()
    results = []
    try:
        for number in (1, 2, 5):
            threads.set_num_threads(number)
            out = cone_encode(points, table, resolutions, LOG2_SIZE)
            (grad,) = torch.autograd.grad(out.square().sum(), table)
            results.append((out.detach(), grad))
    finally:
        threads.set_num_threads(count)
    for out, grad in results[1:]:
        assert torch.equal(out, results[0][0]) and torch.equal(grad, results[0][1])


def test_a_wide_cone_fades_the_fine_levels_out_first() -> None:
    """Barron et al. 2023, Sec. 3.2: the factor is near 1 below the cell size and falls as 1 / (sigma n) above it."""
    points = torch.full((4, 3, 6), 0.4)
    points[3] = torch.tensor([1e-4, 0.03, 3.0])[:, None]
    ones = torch.ones(len(RESOLUTIONS) << LOG2_SIZE, 1)
    factor = cone_encode(points, ones, torch.tensor(RESOLUTIONS, dtype=torch.float32), LOG2_SIZE)
    assert factor[0].min() > 0.999
    assert (factor[1].diff() < 0).all()
    # erf(x) is 2 x / sqrt(pi) for small x = 1 / (sqrt(8) sigma n).
    expected = 2 / math.sqrt(math.pi) / (math.sqrt(8) * 3 * np.array(RESOLUTIONS))
    np.testing.assert_allclose(factor[2], expected, rtol=2e-3)


def test_refuses_what_it_cannot_do() -> None:
    points, table, resolutions = inputs(2)
    with pytest.raises(ValueError, match="expected 4 levels of 2"):
        cone_encode(points, table[:-1], resolutions, LOG2_SIZE)
    with pytest.raises(ValueError, match="at most 6"):
        cone_encode(torch.rand(4, 2, 7), table, resolutions, LOG2_SIZE)
    with pytest.raises(ValueError, match="detached"):
        cone_encode(points.requires_grad_(), table, resolutions, LOG2_SIZE)


def test_no_samples_give_no_features() -> None:
    _, table, resolutions = inputs(2)
    assert cone_encode(torch.empty(4, 0, 6), table, resolutions, LOG2_SIZE).shape == (0, 8)


def test_knows_which_levels_are_dense() -> None:
    dense = hashgrid_cone.dense_levels(torch.tensor([4.0, 7.0, 8.0, 16.0]), LOG2_SIZE)
    assert dense.tolist() == [True, True, False, False]  # 8^3 = 512 fits, 9^3 = 729 does not
