"""The step from what training holds for a vertex to the code it takes, and the gradients that go back past it.

Forward only the chosen code counts (the paper's Equation 8). Backward it is as if something smooth had been there: the
softmax of logits (Equation 9), or the latent itself. Rows that nobody reads are left out, and nothing larger than what
training holds anyway is made: neither samples x codes nor vertices x codes x features.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from radcomp_plugins.vqad import choice_cpu

Kind = Literal["logits", "latent"]
CodebookGradient = Literal["hard", "soft"]


def nearest(points: Float[Tensor, "N k"], codes: Float[Tensor, "C k"]) -> Int[Tensor, " N"]:
    """Index of the nearest code of each point, the lower one where two are equally near."""
    if choice_cpu.fits(points, codes):
        return choice_cpu.nearest(points, codes)
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


class _Choose(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, held, codebook, rows, bounds, kind, soft):  # type: ignore[override]  # noqa: ANN001, ANN205
        levels, codes, width = codebook.shape
        read, parts = held[rows], [slice(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]
        index = torch.cat([index_of(read[part], book, kind) for part, book in zip(parts, codebook, strict=True)])
        index += codes * torch.repeat_interleave(
            torch.arange(levels, device=rows.device), torch.tensor(bounds, device=rows.device).diff()
        )
        chosen = codebook.flatten(0, 1)[index]
        kept = read - chosen if kind == "latent" else read
        squares = kept.square().sum() if kind == "latent" else kept.new_zeros(())
        ctx.save_for_backward(kept, codebook, rows, index)
        ctx.parts, ctx.kind, ctx.soft, ctx.count = parts, kind, soft, len(held)
        return held.new_zeros(len(held), width).index_copy_(0, rows, chosen), squares / max(kept.numel(), 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_table, grad_commitment):  # type: ignore[override]  # noqa: ANN001, ANN205
        kept, codebook, rows, index = ctx.saved_tensors
        grad, to_held = grad_table[rows], grad_table.new_zeros(ctx.count, kept.shape[1])
        softly = torch.zeros_like(codebook)
        if ctx.kind == "latent":
            to_held[rows] = torch.addcmul(grad, kept, grad_commitment * 2.0 / max(kept.numel(), 1))
        else:
            for level, part in enumerate(ctx.parts):
                share, pulled = kept[part].softmax(dim=1), grad[part] @ codebook[level].T
                to_held[rows[part]] = share * (pulled - (share * pulled).sum(dim=1, keepdim=True))
                if ctx.soft:
                    softly[level] = share.T @ grad[part]
        hardly = ctx.kind == "latent" or not ctx.soft
        groups = codebook.shape[0] * codebook.shape[1]
        to_codebook = grouped_sum(grad, index, groups).view_as(codebook) if hardly else softly
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
    bounds = level_bounds(rows, starts)
    if kind == "latent" and choice_cpu.fits(held, codebook):
        return choice_cpu.ChooseLatents.apply(held, codebook, rows, bounds)  # type: ignore[no-any-return]
    return _Choose.apply(held, codebook, rows, bounds, kind, codebook_gradient == "soft")  # type: ignore[no-any-return]
