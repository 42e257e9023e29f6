"""The step from what training holds for a vertex to the code it takes, and the gradients that go back past it.

Forward only the chosen code counts (the paper's Equation 8). Backward it is as if something smooth had been there: the
softmax of logits (Equation 9), or the latent itself. Rows that nobody reads are left out, and nothing larger than what
training holds anyway is made: neither samples x codes nor vertices x codes x features.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

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
    order = group.argsort(stable=True)
    bounds = torch.searchsorted(group[order], torch.arange(groups + 1, device=group.device))
    return torch.segment_reduce(values[order], "sum", offsets=bounds, axis=0, unsafe=True, initial=0)


class _Choose(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, held, codebook, rows, starts, kind, soft):  # type: ignore[override]  # noqa: ANN001, ANN205
        levels, codes, width = codebook.shape
        bounds, mine = level_bounds(rows, starts), held[rows]
        flat = torch.cat(
            [index_of(mine[bounds[i] : bounds[i + 1]], codebook[i], kind) + i * codes for i in range(levels)]
        )
        chosen = codebook.flatten(0, 1)[flat]
        table = chosen.new_zeros(len(held), width).index_copy_(0, rows, chosen)
        gap = mine - chosen if kind == "latent" else mine[:0]
        commitment = gap.square().sum() / max(gap.numel(), 1)
        ctx.save_for_backward(mine if kind == "logits" else gap, codebook, rows, flat)
        ctx.bounds, ctx.kind, ctx.soft, ctx.count = bounds, kind, soft, len(held)
        return table, commitment

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_table, grad_commitment):  # type: ignore[override]  # noqa: ANN001, ANN205
        held, codebook, rows, flat = ctx.saved_tensors
        levels, codes, width = codebook.shape
        grad = grad_table[rows]
        if ctx.kind == "latent":
            pull = grad_commitment * 2.0 / max(held.numel(), 1) * held
            to_held = grad_table.index_copy(0, rows, grad + pull)
            to_codebook = grouped_sum(grad, flat, levels * codes).view_as(codebook)
            return to_held, to_codebook, None, None, None, None
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
