"""The Gaussian scene every part of the suite passes around."""

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor

from radcomp_plugins.errors import InputError

SH_C0 = 0.28209479177387814
"""Value of the constant spherical harmonic: colour = SH_C0 * sh0 + 0.5."""

MAX_SH_DEGREE = 3


def num_sh_rest(degree: int) -> int:
    """Number of SH coefficients per channel above the constant one: 0, 3, 8, 15 for degree 0 to 3."""
    return (degree + 1) ** 2 - 1


def sh_degree_of(num_rest: int) -> int:
    """Inverse of `num_sh_rest`.

    Raises:
        InputError: `num_rest` is not 0, 3, 8 or 15.
    """
    for degree in range(MAX_SH_DEGREE + 1):
        if num_sh_rest(degree) == num_rest:
            return degree
    raise InputError(f"{num_rest} SH coefficients per channel above the first: expected 0, 3, 8 or 15 (degree 0 to 3)")


@dataclass(frozen=True)
class Gaussians:
    """A set of N anisotropic 3D Gaussians in the world frame, before activation (the convention of 3DGS .ply files).

    Attributes:
        means: [N, 3] float32 centres, world units.
        quats: [N, 4] float32 rotations (w, x, y, z), of any length but zero.
        scales: [N, 3] float32 natural logarithms of the standard deviations in world units.
        opacities: [N] float32 logits; sigmoid gives the peak alpha.
        sh0: [N, 3] float32 constant SH coefficient of R, G, B.
        shN: [N, K, 3] float32 other SH coefficients, K = 0, 3, 8 or 15.
        antialiased: trained with the antialiased rasterize mode, so it must be drawn with it.
    """

    means: Float[Tensor, "N 3"]
    quats: Float[Tensor, "N 4"]
    scales: Float[Tensor, "N 3"]
    opacities: Float[Tensor, " N"]
    sh0: Float[Tensor, "N 3"]
    shN: Float[Tensor, "N K 3"]
    antialiased: bool = False

    def __post_init__(self) -> None:
        n = self.means.shape[0]
        expected = {"means": (n, 3), "quats": (n, 4), "scales": (n, 3), "opacities": (n,), "sh0": (n, 3)}
        for name, shape in expected.items():
            got = tuple(getattr(self, name).shape)
            if got != shape:
                raise ValueError(f"Gaussians.{name} has shape {got}, expected {shape}")
        if self.shN.ndim != 3 or self.shN.shape[0] != n or self.shN.shape[2] != 3:
            raise ValueError(f"Gaussians.shN has shape {tuple(self.shN.shape)}, expected ({n}, K, 3)")
        sh_degree_of(self.shN.shape[1])

    def __len__(self) -> int:
        return self.means.shape[0]

    @property
    def sh_degree(self) -> int:
        """Degree of the spherical harmonics, 0 to 3."""
        return sh_degree_of(self.shN.shape[1])

    def different_sh(self) -> int:
        """How many different vectors of higher SH there are: fewer than Gaussians where a palette made them."""
        return len(torch.unique(self.shN.detach().cpu().float().flatten(1), dim=0))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, in the order of the fields."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "antialiased"}

    def select(self, keep: Tensor) -> "Gaussians":
        """The Gaussians that a boolean mask [N] or an index tensor [M] picks, in that order."""
        return replace(self, **{name: tensor[keep] for name, tensor in self.tensors.items()})

    def with_sh_degree(self, degree: int) -> "Gaussians":
        """A copy whose SH is cut to `degree`, or padded with zeros up to it."""
        count, have = num_sh_rest(degree), self.shN.shape[1]
        kept = self.shN[:, :count]
        if count > have:
            kept = torch.cat([kept, kept.new_zeros(len(self), count - have, 3)], dim=1)
        return replace(self, shN=kept)

    def to(self, device: torch.device | str) -> "Gaussians":
        """The same scene on another device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self.tensors.items()})

    def detach(self) -> "Gaussians":
        """The same scene without gradients."""
        return replace(self, **{name: tensor.detach() for name, tensor in self.tensors.items()})

    def finite(self) -> Tensor:
        """Boolean mask [N] of the Gaussians that hold no NaN or infinity and whose quaternion is not zero."""
        flat = [tensor.reshape(len(self), -1) for tensor in self.tensors.values()]
        mask = torch.cat(flat, dim=1).isfinite().all(dim=1)
        return mask & (self.quats.norm(dim=1) > 0)
