"""Fake quantisation: a scene in training seen as the file it will be written to, with straight-through gradients.

What a format gives back for a scene is computed by the format's own functions, those its writer and reader use, only
without the coding of the levels: the trained picture is the decoded file's, to the bit. Rounding has no useful
gradient, so gradients go past it as if it were not there (Bengio et al. 2013).
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.rcs_header import unpack_header
from radcomp_plugins.splats.formats.rcs_plan import RcsPlan, check_weights, plan_rcs
from radcomp_plugins.splats.formats.rcs_quantise import RcsSettings
from radcomp_plugins.splats.formats.sog_quantise import SogPlan, unpack_plan
from radcomp_plugins.splats.formats.sog_writer import sog_plan
from radcomp_plugins.splats.formats.spz import default_fraction_bits
from radcomp_plugins.splats.formats.spz_packed import SpzPlan
from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.splats.order import axis_rotations, quaternion_product, smallest_columns, smallest_naming

Encoding = Literal["sog", "spz", "rcs"]
"""Formats that a scene can be trained through."""

Plan = SogPlan | SpzPlan | RcsPlan
"""Ranges, steps and codebooks of a format, fixed for one scene."""

Array64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Palette:
    """Higher SH that Gaussians share, as .sog and .rcs store them.

    Attributes:
        entries: [K, R, 3] vectors; where they are trained, each gets the sum of its Gaussians' gradients.
        labels: [N] entry of each Gaussian.
    """

    entries: Float[Tensor, "K R 3"]
    labels: Int[Tensor, " N"]


class _StraightThrough(torch.autograd.Function):
    """The second argument forward, the gradient to the first one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, quantised: Tensor) -> Tensor:
        return quantised.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def straight_through(x: Float[Tensor, "*shape"], quantised: Array64) -> Float[Tensor, "*shape"]:
    """The quantised values, of which the gradient with respect to `x` is the identity."""
    values = torch.from_numpy(np.ascontiguousarray(quantised)).to(x)
    return _StraightThrough.apply(x, values)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class FakeQuantiser:
    """A format's quantisers in a training loop.

    Attributes:
        encoding: The format.
        plan: What its quantisers do.
    """

    encoding: Encoding
    plan: Plan

    def __call__(self, gaussians: Gaussians, palette: Palette | None = None) -> Gaussians:
        """What the decoder of the format returns for a scene, in the scene's order, with straight-through gradients.

        Files name each Gaussian's axes so that it rotates least. The gradients of rotations and scales go through that
        change of names, so that each axis gets its own.

        Args:
            gaussians: The scene in training.
            palette: Higher SH in place of `gaussians.shN`.
        """
        columns = smallest_columns(gaussians)
        values = self.plan.decoded(columns)
        quats, scales = _renamed(gaussians)
        tensors = {**gaussians.tensors, "quats": quats, "scales": scales}
        decoded = {name: straight_through(tensors[name], value) for name, value in values.items()}
        rest = self._rest(gaussians.shN) if palette is None else self._rest(palette.entries)[palette.labels]
        return replace(gaussians, **decoded, shN=rest)

    def _rest(self, rest: Float[Tensor, "K R 3"]) -> Float[Tensor, "K R 3"]:
        return straight_through(rest, self.plan.decoded_rest(rest.detach().cpu().double().numpy()))

    def pack(self) -> bytes:
        """The quantiser as bytes for a checkpoint, all but the weights of .rcs."""
        return self.encoding.encode("ascii") + self.plan.pack()

    def options(self) -> dict[str, Any]:
        """Options of the format's writer with which its file holds what this returns."""
        if isinstance(self.plan, SpzPlan):
            return {"fraction_bits": self.plan.fraction_bits}
        return {"plan": self.plan.header if isinstance(self.plan, RcsPlan) else self.plan}


def fake_quantiser(
    encoding: Encoding,
    gaussians: Gaussians,
    *,
    significance: Float[Tensor, " N"] | None = None,
    palette: Palette | None = None,
    palette_size: int | None = None,
    settings: RcsSettings | None = None,
) -> tuple[FakeQuantiser, Palette | None]:
    """The quantisers that a format's writer would choose for a scene, and the SH palette.

    Args:
        encoding: The format.
        gaussians: The scene as it stands.
        significance: How much each Gaussian matters, as for the writers of .sog and .rcs.
        palette: Higher SH that were clustered already.
        palette_size: Entries of a palette that is not; None takes the format's default.
        settings: Steps of .rcs.

    Returns:
        The quantiser, and what `__call__` wants as palette: None for .spz, where each Gaussian has SH of its own.
    """
    if encoding == "spz":
        # The farthest Gaussian may still move out a little, and SPZ ends somewhere.
        wider = replace(gaussians, means=1.1 * gaussians.means)
        return FakeQuantiser("spz", SpzPlan(default_fraction_bits(wider))), palette
    given = None if palette is None else (palette.entries, palette.labels)
    if encoding == "sog":
        plan, made = sog_plan(gaussians, palette_size=palette_size, sh_palette=given, significance=significance)
        return FakeQuantiser("sog", plan), made and Palette(made[0].to(gaussians.means), made[1])
    settings = settings or RcsSettings(palette=palette_size)
    header, vectors = plan_rcs(gaussians, settings, significance, sh_palette=given)
    weights = check_weights(gaussians, significance)
    made = vectors and Palette(torch.from_numpy(vectors[0]).to(gaussians.means), torch.from_numpy(vectors[1]))
    return FakeQuantiser("rcs", RcsPlan(header, weights, settings.levels)), made


def unpack_quantiser(
    data: bytes, gaussians: Gaussians, significance: Float[Tensor, " N"] | None = None
) -> FakeQuantiser:
    """Undo `FakeQuantiser.pack`; the other arguments as for `fake_quantiser`.

    Raises:
        InputError: Bytes of another kind.
    """
    name, data = data[:3], data[3:]
    where = f"quantisers {name!r} in a checkpoint"
    if name == b"sog":
        return FakeQuantiser("sog", unpack_plan(data, where))
    if name == b"rcs":
        return FakeQuantiser("rcs", RcsPlan(unpack_header(data, where), check_weights(gaussians, significance)))
    if name != b"spz" or len(data) != 4:
        raise InputError(f"{where}: {len(data)} bytes, expected one of {', '.join(get_args(Encoding))}")
    return FakeQuantiser("spz", SpzPlan(data[0], data[1], (data[2], data[3])))


def _renamed(g: Gaussians) -> tuple[Float[Tensor, "N 4"], Float[Tensor, "N 3"]]:
    """`smallest_rotation` with gradients: the choice of names is fixed, the rest linear but for the length."""
    naming = smallest_naming(g.quats.detach().cpu().double().numpy())
    # Row i of a matrix is the product of the unit i and the rotation: q m = q M.
    products = quaternion_product(np.eye(4)[None], axis_rotations()[0][:, None])
    turn = torch.from_numpy(products[naming]).to(g.quats)
    quats = (torch.nn.functional.normalize(g.quats, dim=1)[:, None] @ turn)[:, 0]
    source = torch.from_numpy(axis_rotations()[1][naming]).to(g.scales.device)
    return torch.where(quats[:, :1] < 0, -quats, quats), g.scales.gather(1, source)
