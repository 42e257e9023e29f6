"""How far light comes in the student as it stands: samples behind what is opaque have no weight and no gradient.

Following every ray to its end keeps the student from growing transparent where nobody looks, and costs three times the
samples; leaving out those that no light reaches takes the cost away again. On the CPU the density that decides is the
one that every texel had when it was last trained on, which is never far behind: a sample that blocks the light is
itself evaluated at every step.
"""

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numba import njit
from torch import Tensor, nn

from radcomp_plugins.core.contraction import contract
from radcomp_plugins.core.threads import claim, new_counter, run_striped
from radcomp_plugins.smerf.corners import VOXEL_CORNERS, corners_torch, lower_corner, texels_per_submodel
from radcomp_plugins.smerf.layout import DENSITY, GATE, RANGE_DENSITY, RANGE_FEATURES, Layout
from radcomp_plugins.smerf.sampling import PackedSamples

OPAQUE_DEPTH = 8.0
"""Optical depth behind which samples are left out: less than 0.04 % of the light gets there."""
_RAYS_PER_BLOCK = 64
_UNKNOWN = 128
"""A byte in the middle: a gate and a logarithm of density near 0, which stops no light."""


class Sight(nn.Module):
    """What of density and gate each texel had when it was last evaluated; made when it is first needed.

    Attributes:
        texels: [rows * texels of a submodel, 2] gate and density as bytes, by texel code; next to nothing where never
            evaluated.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.register_buffer("texels", torch.zeros(0, 2, dtype=torch.uint8))
        self.texels: UInt8[Tensor, "U 2"]
        steps = np.arange(256, dtype=np.float32) / 127.5 - 1.0
        self._gates, self._densities = steps * np.float32(RANGE_FEATURES), steps * np.float32(RANGE_DENSITY)
        if not layout.feature_gating:
            self._gates = np.ones(256, np.float32)

    @torch.no_grad()
    def remember(self, codes: Int[Tensor, " U"], raw: Float[Tensor, "U 8"]) -> None:
        """Keep what texels are worth now, by their codes and values before the sigmoid."""
        if len(self.texels) == 0:
            count = len(self.layout.alive) * texels_per_submodel(self.layout)
            self.texels = torch.full((count, 2), _UNKNOWN, dtype=torch.uint8, device=codes.device)
        kept = torch.stack([raw[:, GATE], raw[:, DENSITY]], dim=-1)
        self.texels[codes] = (kept.sigmoid() * 255.0).round().to(torch.uint8)

    def reaching(
        self,
        origins: Float[Tensor, "R 3"],
        directions: Float[Tensor, "R 3"],
        row: Int[Tensor, " R"],
        samples: PackedSamples,
    ) -> PackedSamples:
        """The samples that more than a rest of the light reaches.

        Args:
            origins: submodel frame.
            directions: submodel frame, of `samples`' unit of distance.
            row: of each ray's submodel.
            samples: on these rays.
        """
        if len(self.texels) == 0 or len(samples.starts) == 0:
            return samples
        if origins.is_cuda:
            counts = self.count_torch(origins, directions, row, samples)
        else:
            rays = [np.ascontiguousarray(t.detach().numpy()) for t in (origins, directions, row)]
            packed = [t.numpy() for t in (samples.starts, samples.ends, samples.ray_offsets)]
            sizes = (self.layout.sparse_resolution, self.layout.triplane_resolution)
            found = np.zeros(len(row), np.int64)
            known = self.texels.numpy()
            run_striped(_count, new_counter(), *rays, *packed, known, self._gates, self._densities, *sizes, found)
            counts = torch.from_numpy(found)
        index = samples.ray_index
        kept = torch.arange(len(index), device=index.device) < (samples.ray_offsets[:-1] + counts)[index]
        return PackedSamples(
            starts=samples.starts[kept],
            ends=samples.ends[kept],
            ray_index=index[kept],
            ray_offsets=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        )

    def count_torch(
        self, origins: Tensor, directions: Tensor, row: Tensor, samples: PackedSamples
    ) -> Int[Tensor, " R"]:
        """The twin of `_count`."""
        index = samples.ray_index
        middle = 0.5 * (samples.starts + samples.ends)
        points = contract(origins[index] + middle[:, None] * directions[index])
        codes, weights = corners_torch(points, row[index], self.layout)
        known = self.texels[codes].long()
        gates, densities = (torch.from_numpy(t).to(points) for t in (self._gates, self._densities))
        density = weights * densities[known[..., 1]]
        gate = (weights * gates[known[..., 0]])[:, :VOXEL_CORNERS].sum(dim=-1)
        exponent = gate * density[:, VOXEL_CORNERS:].sum(dim=-1) + density[:, :VOXEL_CORNERS].sum(dim=-1) - 1.0
        depth = exponent.clamp(max=88.0).exp() * (samples.ends - samples.starts)
        # One running sum over all rays: a wall counts for no more than it takes to stop the light, or it would cost the
        # rays after it their digits.
        depth = depth.clamp(max=2.0 * OPAQUE_DEPTH)
        summed = torch.nn.functional.pad(depth.double().cumsum(dim=0), (1, 0))
        before = summed[:-1] - summed[samples.ray_offsets[index]]
        return torch.bincount(index[before <= OPAQUE_DEPTH], minlength=len(row))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:  # noqa: ANN002, ANN003
        """A checkpoint says how many there are; those of before had none."""
        there = state_dict.setdefault(prefix + "texels", self.texels)
        self.texels = torch.empty_like(there, device=self.texels.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _count(
    start, step, counter, origins, directions, rows, t0s, t1s, offsets, texels, gates, densities, sparse, triplane,
    counts,
) -> None:  # fmt: skip
    """How many samples of each ray light comes to, the one that takes the last of it included."""
    per_plane = np.int64(triplane) * triplane
    per_row = np.int64(sparse) ** 3 + 3 * per_plane
    point, lows, lowp = np.empty(3, np.float32), np.empty(3, np.int64), np.empty(3, np.int64)
    fs, fp = np.empty(3, np.float32), np.empty(3, np.float32)
    one = np.float32(1.0)
    num_blocks = (len(rows) + _RAYS_PER_BLOCK - 1) // _RAYS_PER_BLOCK
    while True:
        block = claim(counter)
        if block >= num_blocks:
            break
        for ray in range(block * _RAYS_PER_BLOCK, min((block + 1) * _RAYS_PER_BLOCK, len(rows))):
            depth = np.float32(0.0)
            base = rows[ray] * per_row
            count = offsets[ray + 1] - offsets[ray]
            for i in range(offsets[ray], offsets[ray + 1]):
                t = np.float32(0.5) * (t0s[i] + t1s[i])
                largest = one
                for axis in range(3):
                    point[axis] = origins[ray, axis] + t * directions[ray, axis]
                    largest = max(largest, abs(point[axis]))
                if largest > one:
                    for axis in range(3):
                        if abs(point[axis]) == largest:
                            shell = np.float32(2.0) - one / largest
                            point[axis] = shell if point[axis] > 0 else -shell
                        else:
                            point[axis] /= largest
                lower_corner(point, sparse, lows, fs)
                lower_corner(point, triplane, lowp, fp)
                gate, density = np.float32(0.0), np.float32(0.0)
                for corner in range(8):
                    code = np.int64(0)
                    weight = one
                    for axis in range(3):
                        up = (corner >> axis) & 1
                        code = code * sparse + min(max(lows[axis] + up, 0), sparse - 1)
                        weight *= fs[axis] if up else one - fs[axis]
                    gate += weight * gates[texels[base + code, 0]]
                    density += weight * densities[texels[base + code, 1]]
                planes = np.float32(0.0)
                for plane in range(3):
                    first = base + np.int64(sparse) ** 3 + plane * per_plane
                    a = 1 if plane == 0 else 0
                    b = 1 if plane == 2 else 2
                    for corner in range(4):
                        up_a, up_b = corner & 1, corner >> 1
                        ia = min(max(lowp[a] + up_a, 0), triplane - 1)
                        ib = min(max(lowp[b] + up_b, 0), triplane - 1)
                        weight = (fp[a] if up_a else one - fp[a]) * (fp[b] if up_b else one - fp[b])
                        planes += weight * densities[texels[first + ia * triplane + ib, 1]]
                exponent = min(gate * planes + density - one, np.float32(88.0))
                depth += np.float32(np.exp(exponent)) * (t1s[i] - t0s[i])
                if depth > np.float32(OPAQUE_DEPTH):
                    count = i + 1 - offsets[ray]
                    break
            counts[ray] = count
