"""Choosing codes: values, and gradients against autograd through the smooth formulas."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from radcomp_plugins.core.threads import get_num_threads, set_num_threads
from radcomp_plugins.vqad import choice
from radcomp_plugins.vqad.choice import Kind, choose, grouped_sum, nearest


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


@pytest.mark.parametrize("kind", ["latent", "logits"])
def test_pieces_and_threads_change_nothing(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each level in pieces of 5 rows, spread over one thread and over three, against all of a level at once."""
    generator = torch.Generator().manual_seed(0)
    held = torch.randn(60, 3 if kind == "latent" else 4, generator=generator, dtype=torch.float64)
    books = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    pull = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    rows = torch.arange(60)[torch.rand(60, generator=generator) < 0.8]
    found = []
    before = get_num_threads()
    for piece, threads in ((100, 1), (5, 1), (5, 3)):
        monkeypatch.setattr(choice, "PIECE", piece)
        set_num_threads(threads)
        mine, codes = held.clone().requires_grad_(), books.clone().requires_grad_()
        table, commitment = choose(mine, codes, rows, [0, 23, 60], kind)
        ((table * pull)[rows].sum() + 3 * commitment).backward()
        assert mine.grad is not None and codes.grad is not None
        found.append([table.detach(), commitment.detach(), mine.grad, codes.grad])
    set_num_threads(before)
    for whole, one, three in zip(*found, strict=True):
        assert torch.equal(one, three) and torch.allclose(whole, one, atol=1e-12)
