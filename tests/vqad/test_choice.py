"""Choosing codes: values, and gradients against autograd through the smooth formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from radcomp_plugins.core.threads import get_num_threads, set_num_threads
from radcomp_plugins.vqad import choice_cpu
from radcomp_plugins.vqad.choice import choose, grouped_sum, nearest


def case(bits: int, seed: int, kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[int]]:
    """Two levels of 7 and 12 vertices, of which some are read; in float64."""
    g = torch.Generator().manual_seed(seed)
    codebook = torch.randn(2, 2**bits, 4, generator=g, dtype=torch.float64, requires_grad=True)
    width = 2**bits if kind == "logits" else 4
    held = torch.randn(19, width, generator=g, dtype=torch.float64, requires_grad=True)
    rows = (torch.rand(19, generator=g) < 0.6).nonzero().squeeze(1)
    return held, codebook, rows, [0, 7, 19]


@given(st.integers(1, 8), st.integers(0, 1000), st.sampled_from(["hard", "soft"]))
def test_logits_against_softmax(bits: int, seed: int, gradient: str) -> None:
    held, codebook, rows, starts = case(bits, seed, "logits")
    table, commitment = choose(held, codebook, rows, starts, "logits", gradient)  # type: ignore[arg-type]
    assert float(commitment) == 0.0
    level = (torch.arange(19) >= 7).long()
    read = torch.zeros(19, 1, dtype=torch.float64).index_fill(0, rows, 1.0)
    assert torch.equal(table, codebook[level, held.argmax(dim=1)] * read)
    grad = torch.randn(19, 4, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    smooth = (held.softmax(dim=1)[:, :, None] * codebook[level]).sum(dim=1) * read
    wanted_held, wanted_soft = torch.autograd.grad(smooth, (held, codebook), grad)
    hot = torch.nn.functional.one_hot(held.argmax(dim=1), 2**bits).double()
    (wanted_hard,) = torch.autograd.grad((hot[:, :, None] * codebook[level]).sum(dim=1) * read, codebook, grad)
    to_held, to_codebook = torch.autograd.grad(table, (held, codebook), grad)
    assert torch.allclose(to_held, wanted_held, atol=1e-12)
    assert torch.allclose(to_codebook, wanted_soft if gradient == "soft" else wanted_hard, atol=1e-12)


@given(st.integers(1, 6), st.integers(0, 1000))
def test_latents_go_straight_through(bits: int, seed: int) -> None:
    held, codebook, rows, starts = case(bits, seed, "latent")
    table, commitment = choose(held, codebook, rows, starts, "latent")
    level = (torch.arange(19) >= 7).long()
    index = torch.cdist(held, codebook[level][:, :, :].flatten(0, 1)).view(19, 19, -1).diagonal().T.argmin(dim=1)
    codes = codebook[level, index]
    assert torch.equal(table[rows], codes[rows])
    grad = torch.randn(19, 4, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    straight = codes + held - held.detach()
    gap = (held - codes.detach())[rows].square().mean() if len(rows) else held.sum() * 0
    read = torch.zeros(19, 1, dtype=torch.float64).index_fill(0, rows, 1.0)
    wanted = torch.autograd.grad([straight * read, gap], (held, codebook), [grad, torch.tensor(3.0).double()])
    got = torch.autograd.grad([table, commitment], (held, codebook), [grad * read, torch.tensor(3.0).double()])
    assert float(commitment) == pytest.approx(float(gap))
    for mine, theirs in zip(got, wanted, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-12)


def test_nearest_takes_the_lower_of_two() -> None:
    codes = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    assert nearest(torch.tensor([[0.0, 0.9], [2.0, 0.1]]), codes).tolist() == [0, 1]


def test_grouped_sum_by_hand() -> None:
    values = torch.tensor([[1.0], [2.0], [4.0]])
    assert grouped_sum(values, torch.tensor([2, 0, 2]), 4).tolist() == [[2.0], [0.0], [5.0], [0.0]]
    assert grouped_sum(values[:0], torch.zeros(0, dtype=torch.long), 2).tolist() == [[0.0], [0.0]]


def coarse(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Numbers whose products and sums are exact in float32, so that ties are ties in any order of summing."""
    return (torch.randn(*shape, generator=generator) * 8).round() / 8


@given(st.integers(1, 8), st.integers(0, 1000))
def test_kernels_choose_as_plain_torch_does(bits: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    counts = [5, 0, 1500, 900]
    held, books = coarse(g, sum(counts), 16), coarse(g, 4, 2**bits, 16)
    starts = [0, *np.cumsum(counts).tolist()]
    rows = (torch.rand(len(held), generator=g) < 0.8).nonzero().squeeze(1)
    pull = torch.randn(held.shape, generator=g)
    found = []
    for dtype in (torch.float32, torch.float64):
        mine, codes = held.to(dtype, copy=True).requires_grad_(), books.to(dtype, copy=True).requires_grad_()
        assert choice_cpu.fits(mine, codes) == (dtype == torch.float32)
        table, commitment = choose(mine, codes, rows, starts, "latent")
        ((table * pull.to(dtype))[rows].sum() + 3 * commitment).backward()
        assert mine.grad is not None and codes.grad is not None
        found.append([table.detach(), commitment.detach(), mine.grad, codes.grad])
    for kernel, plain in zip(*found, strict=True):
        assert torch.allclose(kernel.double(), plain, atol=1e-4)


@given(st.integers(1, 8), st.integers(0, 1000))
def test_nearest_by_the_kernel(bits: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    points, codes = coarse(g, 2100, 16), coarse(g, 2**bits, 16)
    codes[-1] = codes[0]
    found = nearest(points, codes)
    assert torch.equal(found, nearest(points.double(), codes.double()))
    assert int(found.max()) < len(codes) - 1 and len(nearest(points[:0], codes)) == 0


def test_what_is_no_number_gets_some_code() -> None:
    points = torch.full((3, 16), float("nan"))
    assert 0 <= int(nearest(points, torch.ones(5, 16)).min()) <= int(nearest(points, torch.ones(5, 16)).max()) < 5


def test_threads_change_nothing() -> None:
    g = torch.Generator().manual_seed(0)
    held, books, pull = (torch.randn(n, 16, generator=g) for n in (5000, 128, 5000))
    rows = (torch.rand(5000, generator=g) < 0.7).nonzero().squeeze(1)
    found, before = [], get_num_threads()
    for threads in (1, 3):
        set_num_threads(threads)
        mine, codes = held.clone().requires_grad_(), books.view(2, 64, 16).clone().requires_grad_()
        table, commitment = choose(mine, codes, rows, [0, 2000, 5000], "latent")
        ((table * pull)[rows].sum() + 3 * commitment).backward()
        assert mine.grad is not None and codes.grad is not None
        found.append([table.detach(), commitment.detach(), mine.grad, codes.grad])
    set_num_threads(before)
    assert all(torch.equal(one, three) for one, three in zip(*found, strict=True))
