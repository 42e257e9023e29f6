"""Hash encoding: kernels against a slow reference, hand-computed values, gradients, threads and broken positions."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radcomp_plugins.core import threads
from radcomp_plugins.core.hashgrid import (
    MAX_LOG2_SIZE,
    HashGrid,
    geometric_resolutions,
    hash_encode,
    hash_encode_torch,
)

PRIMES = (1, 2654435761, 805459861)


@pytest.fixture
def thread_count() -> Iterator[None]:
    before = threads.get_num_threads()
    yield
    threads.set_num_threads(before)


def slow_encode(x: torch.Tensor, table: torch.Tensor, resolutions: torch.Tensor, log2_size: int) -> torch.Tensor:
    """One point, level and corner at a time, in Python's integers and double precision."""
    size, rows = 2**log2_size, []
    for point in x.tolist():
        features = []
        for level, resolution in enumerate(resolutions.tolist()):
            scaled = [float(np.float32(c) * np.float32(resolution)) for c in point]
            low = [int(np.floor(s)) for s in scaled]
            fraction = [s - c for s, c in zip(scaled, low, strict=True)]
            total = torch.zeros(table.shape[1], dtype=torch.float64)
            for corner in range(8):
                weight, key = 1.0, 0
                for axis in range(3):
                    high = corner >> axis & 1
                    weight *= fraction[axis] if high else 1 - fraction[axis]
                    key ^= (low[axis] + high) * PRIMES[axis]
                total += weight * table[level * size + key % size].double()
            features.append(total)
        rows.append(torch.cat(features))
    return torch.stack(rows)


def random_case(count: int, features: int = 2, log2_size: int = 6, levels: int = 3) -> tuple[torch.Tensor, ...]:
    resolutions = torch.tensor([4.0, 11.0, 37.0])[:levels]
    return torch.rand(count, 3), torch.randn(levels << log2_size, features), resolutions


# Values ---------------------------------------------------------------------------------------------------------------


def test_a_point_between_eight_known_entries():
    # One level of 2 cells, table of 8. At (0.25, 0.125, 0.375): scaled (0.5, 0.25, 0.75), cell (0, 0, 0).
    # The primes are odd, 2654435761 = 1 mod 8, 805459861 = 5 mod 8: entry (x ^ y ^ 5 z) mod 8.
    # Corners (x, y, z): 000 -> 0, 100 -> 1, 010 -> 1, 110 -> 0, 001 -> 5, 101 -> 4, 011 -> 4, 111 -> 5.
    table = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0], [32.0], [64.0], [128.0]])
    # z = 0: 1 at (.5 * .75 + .5 * .25), 2 at the same: 1.5. z = 1: 32 and 16 likewise: 24.
    expected = 0.25 * 1.5 + 0.75 * 24
    x = torch.tensor([[0.25, 0.125, 0.375]])
    assert hash_encode(x, table, torch.tensor([2.0]), 3).item() == pytest.approx(expected)


@pytest.mark.parametrize("encode", [hash_encode, hash_encode_torch])
@pytest.mark.parametrize("features", [1, 2, 3, 4, 5])
def test_values_are_those_of_the_slow_reference(encode, features):
    x, table, resolutions = random_case(60, features)
    x[0], x[1], x[2] = 0.0, 1.0, 0.5
    torch.testing.assert_close(
        encode(x, table, resolutions, 6), slow_encode(x, table, resolutions, 6).float(), atol=2e-6, rtol=1e-5
    )


@settings(max_examples=30)
@given(count=st.integers(0, 700), features=st.integers(1, 5), log2_size=st.integers(0, 9), seed=st.integers(0, 99))
def test_kernels_and_torch_agree_for_any_shape(count, features, log2_size, seed):
    torch.manual_seed(seed)
    x, table, resolutions = random_case(count, features, log2_size)
    x = 3 * x - 1  # also outside of the unit cube
    table.requires_grad_()
    x.requires_grad_()
    grads = torch.randn(count, 3 * features)
    results = []
    for encode in (hash_encode, hash_encode_torch):
        out = encode(x, table, resolutions, log2_size)
        results.append((out, *torch.autograd.grad(out, (table, x), grads)))
    assert results[0][0].shape == (count, 3 * features)
    torch.testing.assert_close(results[0], results[1], atol=2e-4, rtol=1e-4)


def test_grid_points_meet_from_both_sides():
    _, table, resolutions = random_case(0)
    at = torch.tensor([[0.25, 0.5, 0.75]])  # on the grid of 4 cells
    before, after = at - 1e-6, at + 1e-6
    middle = hash_encode(at, table, resolutions, 6)
    for side in (before, after):
        torch.testing.assert_close(hash_encode(side, table, resolutions, 6), middle, atol=1e-3, rtol=0)
    # There, it is the entry of that grid point alone.
    cell = [int(4 * c) for c in at[0].tolist()]
    key = (cell[0] ^ cell[1] * PRIMES[1] ^ cell[2] * PRIMES[2]) % 64
    torch.testing.assert_close(middle[0, :2], table[key])


# Gradients ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [1, 2, 3])
def test_gradients_in_double_precision(features):
    x, table, resolutions = random_case(12, features, log2_size=3)
    x, table = x.double().requires_grad_(), table.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda p, t: hash_encode(p, t, resolutions, 3), (x, table))


def test_rows_without_gradient_leave_the_table_alone_and_the_others_add_up():
    x, table, resolutions = random_case(500)
    table.requires_grad_()
    grads = torch.randn(500, 6)
    grads[::2] = 0
    whole = torch.autograd.grad(hash_encode(x, table, resolutions, 6), table, grads)[0]
    part = torch.autograd.grad(hash_encode(x[1::2], table, resolutions, 6), table, grads[1::2])[0]
    torch.testing.assert_close(whole, part, atol=1e-5, rtol=1e-5)
    # One row of ones: the weights of a point's corners sum to 1 in each level.
    ones = torch.zeros(500, 6)
    ones[7] = 1
    single = torch.autograd.grad(hash_encode(x, table, resolutions, 6), table, ones)[0]
    torch.testing.assert_close(single.reshape(3, 64, 2).sum(dim=1), torch.ones(3, 2))
    assert int((single != 0).any(dim=1).sum()) <= 24


def test_a_zero_in_one_feature_does_not_drop_the_other():
    x, table, resolutions = random_case(40)
    table.requires_grad_()
    for column in (0, 1):
        grads = torch.zeros(40, 6)
        grads[:, column::2] = 1
        total = torch.autograd.grad(hash_encode(x, table, resolutions, 6), table, grads)[0].sum(dim=0)
        assert total[column].item() == pytest.approx(3 * 40, rel=1e-4) and total[1 - column] == 0


def test_gradients_come_only_where_they_are_asked_for():
    x, table, resolutions = random_case(10)
    assert not hash_encode(x, table, resolutions, 6).requires_grad
    table.requires_grad_()
    hash_encode(x, table, resolutions, 6).sum().backward()
    assert x.grad is None and table.grad is not None
    x.requires_grad_()
    hash_encode(x, table.detach(), resolutions, 6).sum().backward()
    assert x.grad is not None


def test_a_table_changed_before_the_backward_pass_is_noticed():
    x, table, resolutions = random_case(10)
    x.requires_grad_()
    table.requires_grad_()
    out = hash_encode(x, table, resolutions, 6).sum()
    with torch.no_grad():
        table.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


# Threads --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [2, 3])
def test_bits_do_not_depend_on_the_number_of_threads(features, thread_count):
    x, table, resolutions = random_case(9001, features)
    table.requires_grad_()
    x.requires_grad_()
    grads, results = torch.randn(9001, 3 * features), []
    for count in (1, 2, 7):
        threads.set_num_threads(count)
        out = hash_encode(x, table, resolutions, 6)
        results.append((out, *torch.autograd.grad(out, (table, x), grads)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# Broken and odd input -------------------------------------------------------------------------------------------------


def test_broken_positions_give_nan_and_harm_nobody_else():
    x, table, resolutions = random_case(20)
    clean = hash_encode(x, table, resolutions, 6)
    nan, inf = float("nan"), float("inf")
    broken = torch.tensor([[nan, 0.5, 0.5], [0.5, inf, 0.5], [0.5, 0.5, -inf], [nan, nan, nan]])
    out = hash_encode(torch.cat([broken, x]), table, resolutions, 6)
    assert out[:4].isnan().all() and torch.equal(out[4:], clean)


def test_positions_far_away_are_finite_and_need_no_memory_outside_the_table():
    _, table, resolutions = random_case(0)
    table.requires_grad_()
    far = torch.tensor([[1e30, -1e30, 0.5], [-5.0, 3e9, -3e9], [2.0**40, 0.0, 1.0]])
    out = hash_encode(far, table, resolutions, 6)
    assert out.isfinite().all()
    out.sum().backward()
    assert table.grad is not None and table.grad.isfinite().all()


def test_views_and_other_precisions_of_positions():
    x, table, resolutions = random_case(100)
    expected = hash_encode(x, table, resolutions, 6)
    strided = torch.stack([x, x], dim=1)[:, 1]
    assert torch.equal(hash_encode(strided, table, resolutions, 6), expected)
    assert torch.equal(hash_encode(x.double(), table, resolutions, 6), expected)
    assert hash_encode(x, table.double(), resolutions, 6).dtype == torch.float64
    half = hash_encode(x, table.half(), resolutions, 6)
    assert half.dtype == torch.float16 and torch.allclose(half.float(), expected, atol=0.01)


@pytest.mark.parametrize(
    ("rows", "log2_size", "points"),
    [(191, 6, (5, 3)), (192, 5, (5, 3)), (192, -1, (5, 3)), (192, MAX_LOG2_SIZE + 1, (5, 3)), (192, 6, (5, 2))],
)
def test_wrong_shapes_are_refused(rows, log2_size, points):
    with pytest.raises(ValueError, match="expected"):
        hash_encode(torch.rand(points), torch.randn(rows, 2), torch.tensor([4.0, 11.0, 37.0]), log2_size)


# The module -----------------------------------------------------------------------------------------------------------


def test_resolutions_are_whole_and_both_ends_exact():
    for low, high, levels in [(16, 2048, 16), (16, 8192, 20), (4, 4, 3), (7, 1000, 1)]:
        resolutions = geometric_resolutions(levels, low, high)
        assert resolutions[0] == low and (levels == 1 or resolutions[-1] == high)
        assert torch.equal(resolutions, resolutions.floor()) and (resolutions.diff() >= 0).all()
    # 16 * 2^(l/2): 16, 22.6, 32, 45.3, 64
    assert geometric_resolutions(5, 16, 64).tolist() == [16, 22, 32, 45, 64]


def test_module_learns_a_function():
    grid = HashGrid(num_levels=4, min_res=4, max_res=16, log2_size=12, features=2)
    assert grid.out_dim == 8 and grid.table.shape == (4 * 4096, 2) and grid.table.abs().max() <= 1e-3
    optimizer = torch.optim.Adam(grid.parameters(), lr=0.02)
    loss = torch.tensor(0.0)
    for _ in range(150):
        x = torch.rand(512, 3)
        loss = (grid(x).sum(dim=1) - torch.sin(5 * x[:, 0]) * x[:, 2]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1e-3


def test_module_keeps_only_its_table_and_refuses_nonsense():
    assert list(HashGrid(2, 4, 8, 3).state_dict()) == ["table"]
    for wrong in ({"num_levels": 0}, {"min_res": 0}, {"max_res": 3}, {"log2_size": 40}, {"features": 0}):
        with pytest.raises(ValueError, match="hash grid"):
            HashGrid(**{"num_levels": 2, "min_res": 4, "max_res": 8, "log2_size": 3, **wrong})
