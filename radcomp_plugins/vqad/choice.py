"""The step from what training holds for a vertex to the code it takes, and the gradients that go back past it.

Forward only the chosen code counts (the paper's Equation 8). Backward it is as if something smooth had been there: the
softmax of logits (Equation 9), or the latent itself. Rows that nobody reads are left out, and nothing larger than what
training holds anyway is made: neither samples x codes nor vertices x codes x features.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from radcomp_plugins.core.threads import run_striped

PIECE = 2**13
"""Rows of a piece, so that what is made of it stays in the cache; sums go piece by piece, whatever the threads."""

Kind = Literal["logits", "latent"]
CodebookGradient = Literal["hard", "soft"]


def nearest(points: Float[Tensor, "N k"], codes: Float[Tensor, "C k"]) -> Int[Tensor, " N"]:
    """Index of the nearest code of each point, the lower one where two are equally near."""
    half = 0.5 * codes.square().sum(dim=1)
    return torch.addmm(half, points, codes.T, alpha=-1.0).argmin(dim=1)


def index_of(held: Float[Tensor, "U H"], codes: Float[Tensor, "C k"], kind: Kind) -> Int[Tensor, " U"]:
    """Index that each vertex of a level takes: of its largest logit, or of the code nearest to its latent."""
    return held.argmax(dim=1) if kind == "logits" else nearest(held, codes)


def level_bounds(rows: Int[Tensor, " U"], starts: list[int]) -> list[int]:
    """Where each level's vertices begin among ascending rows, then their number."""
    return torch.searchsorted(rows, torch.tensor(starts, device=rows.device)).tolist()


def grouped_sum(values: Float[Tensor, "U k"], group: Int[Tensor, " U"], groups: int) -> Float[Tensor, "G k"]:
    """Sum of the values of each group, in their order: index_add on a GPU would add in whatever order."""
    if not values.is_cuda:
        return values.new_zeros(groups, values.shape[1]).index_add_(0, group, values)
    order = group.argsort(stable=True)
    bounds = torch.searchsorted(group[order], torch.arange(groups + 1, device=group.device))
    return torch.segment_reduce(values[order], "sum", offsets=bounds, axis=0, unsafe=True, initial=0)


def pieces_of(bounds: list[int], on_cpu: bool) -> list[tuple[int, int, int]]:
    """Rows of each level, on the CPU at most `PIECE` at a time: (level, first, one past the last)."""
    most = PIECE if on_cpu else max(bounds[-1], 1)
    return [
        (level, first, min(first + most, end))
        for level, (begin, end) in enumerate(zip(bounds, bounds[1:], strict=False))
        for first in range(begin, end, most)
    ]


def each_piece(work: Callable[[int, int, int, int], None], pieces: list[tuple[int, int, int]], on_cpu: bool) -> None:
    """`work(number, level, first, end)` for every piece; on the CPU on all threads of the kernels' pool."""

    def stripe(start: int, step: int) -> None:
        # Whether gradients are recorded is each thread's own affair.
        with torch.no_grad():
            for number in range(start, len(pieces), step):
                work(number, *pieces[number])

    if on_cpu:
        run_striped(stripe)
    else:
        stripe(0, 1)


class _Choose(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, held, codebook, rows, starts, kind, soft):  # type: ignore[override]  # noqa: ANN001, ANN205
        width, bounds = codebook.shape[2], level_bounds(rows, starts)
        pieces = pieces_of(bounds, not held.is_cuda)
        table, kept = held.new_zeros(len(held), width), held.new_empty(len(rows), held.shape[1])
        index, squares = rows.new_empty(len(rows)), held.new_zeros(len(pieces))

        def take(number: int, level: int, first: int, end: int) -> None:
            here = rows[first:end]
            mine = held.index_select(0, here)
            index[first:end] = index_of(mine, codebook[level], kind)
            chosen = codebook[level].index_select(0, index[first:end])
            table.index_copy_(0, here, chosen)
            kept[first:end] = mine - chosen if kind == "latent" else mine
            if kind == "latent":
                squares[number] = kept[first:end].square().sum()

        each_piece(take, pieces, not held.is_cuda)
        commitment = squares.sum() / max(kept.numel(), 1)
        ctx.save_for_backward(kept, codebook, rows, index)
        ctx.bounds, ctx.kind, ctx.soft, ctx.count = bounds, kind, soft, len(held)
        return table, commitment

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_table, grad_commitment):  # type: ignore[override]  # noqa: ANN001, ANN205
        held, codebook, rows, index = ctx.saved_tensors
        levels, codes, width = codebook.shape
        if ctx.kind == "latent":
            pieces = pieces_of(ctx.bounds, not held.is_cuda)
            to_codes = codebook.new_zeros(len(pieces), codes, width)
            level_of = torch.tensor([level for level, _, _ in pieces], dtype=torch.long, device=rows.device)
            to_held, pull = torch.zeros_like(grad_table), grad_commitment * 2.0 / max(held.numel(), 1)

            def pass_on(number: int, _: int, first: int, end: int) -> None:
                here = rows[first:end]
                grad = grad_table.index_select(0, here)
                to_held.index_copy_(0, here, torch.addcmul(grad, held[first:end], pull))
                to_codes[number] = grouped_sum(grad, index[first:end], codes)

            each_piece(pass_on, pieces, not held.is_cuda)
            to_codebook = grouped_sum(to_codes.flatten(1), level_of, levels).view_as(codebook)
            return to_held, to_codebook, None, None, None, None
        grad = grad_table[rows]
        flat = index + codes * torch.repeat_interleave(
            torch.arange(levels, device=rows.device), torch.tensor(ctx.bounds, device=rows.device).diff()
        )
        to_held = held.new_zeros(ctx.count, codes)
        softly = torch.zeros_like(codebook)
        for i in range(levels):
            part = slice(ctx.bounds[i], ctx.bounds[i + 1])
            share, pulled = held[part].softmax(dim=1), grad[part] @ codebook[i].T
            to_held[rows[part]] = share * (pulled - (share * pulled).sum(dim=1, keepdim=True))
            if ctx.soft:
                softly[i] = share.T @ grad[part]
        to_codebook = softly if ctx.soft else grouped_sum(grad, flat, levels * codes).view_as(codebook)
        return to_held, to_codebook, None, None, None, None


def choose(
    held: Float[Tensor, "m H"],
    codebook: Float[Tensor, "L C k"],
    rows: Int[Tensor, " U"],
    starts: list[int],
    kind: Kind,
    codebook_gradient: CodebookGradient = "hard",
) -> tuple[Float[Tensor, "m k"], Float[Tensor, ""]]:
    """Features of vertices: the codes they take, with gradients straight past the choice.

    Args:
        held: logits [m, C] or latents [m, k] of all vertices, level after level.
        codebook: of each level.
        rows: the only vertices that will be read, ascending; all others' features are 0.
        starts: first vertex of each level, then m.
        kind: what `held` is.
        codebook_gradient: with logits, `hard` gives a vertex's gradient to the code it took, `soft` to all codes by
            their softmax.

    Returns:
        table: [m, k] features.
        commitment: mean squared distance of the read latents to their codes, with gradients to the latents alone (van
            den Oord et al. 2017); 0 with logits.

    Source: Takikawa et al. 2022, section 4.3.
    """
    return _Choose.apply(held, codebook, rows, starts, kind, codebook_gradient == "soft")  # type: ignore[no-any-return]
