"""The twins of the CPU's kernels in plain torch, for any device: rays' next samples, and what networks say of them.

Arithmetic is that of `march_cpu`, in single precision and in the same order, so that both ask about the same samples
but for those that rounding puts on either side of a voxel's border.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from radcomp_plugins.kilonerf.bricks import SIDE, make_bricks
from radcomp_plugins.kilonerf.grid import CellLookup
from radcomp_plugins.kilonerf.networks import Blocks, encode
from radcomp_plugins.kilonerf.scene import KiloScene

_SMALL = 1e-6
_SLACK = 1e-3
_MOST_STEPS = 2**30


class SceneTensors:
    """A scene on a device.

    Attributes:
        scene: the scene.
        lookup: its cells.
        weights: see `KiloScene.weights`.
        distance: [bx * by * bz] uint8; see `bricks.Bricks`.
        voxels: [vx * vy * vz] bool.
        low: [3] lower corner of the box of occupied voxels, scene frame.
        high: [3] upper corner.
        corner: [3] lower corner of the grid.
        per_unit: [3] voxels per scene unit.
        numbers: `corner` and `per_unit` as floats.
        background: [3] colour.
    """

    def __init__(self, scene: KiloScene, device: torch.device | str) -> None:
        """Copy everything to the device."""
        grid, bricks = scene.grid, make_bricks(scene.grid)

        def put(array: object) -> Tensor:
            return torch.as_tensor(array, device=device)

        self.scene, self.device = scene, torch.device(device)
        self.lookup = CellLookup(grid).to(device)
        self.weights = {name: put(array) for name, array in scene.weights.items()}
        self.distance, self.voxels = put(bricks.distance).reshape(-1), put(grid.occupancy).reshape(-1)
        self.bricks, self.size = bricks.distance.shape, grid.occupancy.shape
        self.low, self.high = put(bricks.box).float()
        self.corner = put(grid.box[0]).float()
        self.per_unit = put(grid.voxels_per_cell / grid.cell_size).float()
        self.numbers = [float(x) for x in (*self.corner, *self.per_unit)]
        self.background = put(scene.background).float()


@dataclass
class Rays:
    """Rays that come near the scene.

    Attributes:
        ids: [R] int64 number of each among all.
        origins: [R, 3] scene frame.
        directions: [R, 3] unit length.
        starts: [R] distance at which steps begin.
        first: [R] int64 number of the next sample; moved on by marching.
        last: [R] int64 number of the last that may lie in the box.
    """

    ids: Int[Tensor, " R"]
    origins: Float[Tensor, "R 3"]
    directions: Float[Tensor, "R 3"]
    starts: Float[Tensor, " R"]
    first: Int[Tensor, " R"]
    last: Int[Tensor, " R"]


def enter_rays(
    scene: SceneTensors,
    origins: Float[Tensor, "N 3"],
    directions: Float[Tensor, "N 3"],
    starts: Float[Tensor, " N"],
    ends: Float[Tensor, " N"],
    step: float,
) -> Rays:
    """Keep those rays that may have samples in the box of occupied voxels; see `march_cpu.enter_rays`."""
    moves = directions.abs() > 1e-12
    inverse = 1.0 / torch.where(moves, directions, 1.0)
    a, b = (scene.low - origins) * inverse, (scene.high - origins) * inverse
    t0 = torch.where(moves, torch.minimum(a, b), -torch.inf).amax(-1).maximum(starts)
    t1 = torch.where(moves, torch.maximum(a, b), torch.inf).amin(-1).minimum(ends)
    beside = (~moves & ((origins < scene.low) | (origins > scene.high))).any(-1)
    first = ((t0 - starts) / step - 0.5).ceil().clamp(min=0.0)
    last = ((t1 - starts) / step - 0.5).floor()
    ids = ((t1 > t0) & ~beside & (first <= last) & (last < _MOST_STEPS)).nonzero()[:, 0]
    kept = (x[ids].contiguous() for x in (origins, directions, starts))
    return Rays(ids, *kept, first[ids].long(), last[ids].long())  # pyright: ignore[reportCallIssue]


def march(
    scene: SceneTensors, rays: Rays, active: Int[Tensor, " A"], step: float, most: int
) -> tuple[Float[Tensor, "A most"], Int[Tensor, "A most"], Float[Tensor, "A most 3"]]:
    """The next samples of active rays, whose `first` is moved on; see `march_cpu.march`.

    Args:
        scene: what to march through.
        rays: all rays.
        active: int64 rows of those that march.
        step: length of a step, scene units.
        most: samples of a ray.

    Returns:
        Distance, network, and local position of each sample; infinity, -1 and 0 where a ray has fewer.
    """
    count, device = len(active), scene.device
    away = torch.full((count, most), torch.inf, device=device)
    network = torch.full((count, most), -1, device=device)
    local = torch.zeros(count, most, 3, device=device)
    lookup, per_cell = scene.lookup, scene.scene.grid.voxels_per_cell
    k, end, start = rays.first[active], rays.last[active], rays.starts[active]
    d = rays.directions[active] * scene.per_unit
    o = (rays.origins[active] - scene.corner) * scene.per_unit
    small = torch.where(d >= 0.0, _SMALL, -_SMALL)
    steps_per_voxel = (1.0 / step) / torch.where(d.abs() > _SMALL, d, small)
    taken = torch.zeros_like(k)
    upper = torch.tensor(scene.size, device=device) - 1
    while True:
        rows = ((k <= end) & (taken < most)).nonzero()[:, 0]
        if len(rows) == 0:
            break
        t = start[rows] + (k[rows].float() + 0.5) * step
        x = o[rows] + t[:, None] * d[rows]
        voxel = torch.minimum(x.long().clamp(min=0), upper)
        brick = voxel // SIDE
        reach = scene.distance[_flat(brick, scene.bricks)].long()
        here = (reach == 0) & scene.voxels[_flat(voxel, scene.size)]
        per_voxel = steps_per_voxel[rows]
        side = (brick + torch.where(per_voxel > 0.0, reach[:, None], 1 - reach[:, None])) * SIDE
        leap = (((side.float() - x) * per_voxel).amin(-1) - _SLACK).long().clamp(min=0) + 1
        k[rows] += torch.where(reach > 0, leap, 1)
        found, slot, cell = rows[here], taken[rows[here]], voxel[here] // per_cell
        away[found, slot] = t[here]
        network[found, slot] = lookup.ids[_flat(cell, lookup.grid.cells)]
        local[found, slot] = (x[here] - cell * per_cell) * (2.0 / per_cell) - 1.0
        taken[found] += 1
    rays.first[active] = k
    return away, network, local


def _flat(index: Int[Tensor, "M 3"], counts: tuple[int, ...]) -> Int[Tensor, " M"]:
    return (index[:, 0] * counts[1] + index[:, 1]) * counts[2] + index[:, 2]


def blend(
    scene: SceneTensors, rays: Rays, active: Int[Tensor, " A"], away: Float[Tensor, "A K"]
) -> tuple[Int[Tensor, "A K 8"], Float[Tensor, "A K 8 3"], Float[Tensor, "A K 8"]]:
    """Networks, local positions and weights of samples in overlapping cells; see `grid.CellLookup.blend`."""
    t = away.nan_to_num(posinf=0.0)
    points = rays.origins[active, None] + t[..., None] * rays.directions[active, None]
    network, local, weight = scene.lookup.blend(points.reshape(-1, 3))
    shape = away.shape
    network = torch.where(torch.isinf(away)[..., None], -1, network.reshape(*shape, 8))
    return network, local.reshape(*shape, 8, 3), torch.where(network >= 0, weight.reshape(*shape, 8), 0.0)


def evaluate(
    scene: SceneTensors,
    network: Int[Tensor, " M"],
    local: Float[Tensor, "M 3"],
    directions: Float[Tensor, "M 3"],
    steps: float,
) -> Float[Tensor, "M 4"]:
    """Colour and alpha of samples, in their order; zeros where the network is -1. See `evaluate_cpu.evaluate`.

    Args:
        scene: whose networks are asked.
        network: ids in any order.
        local: positions in the networks' cells.
        directions: unit length.
        steps: length of a sample, in the grid's steps.
    """
    order = network.argsort(stable=True)
    order = order[int((network < 0).sum()) :]
    counts = torch.bincount(network[order], minlength=scene.scene.grid.num_networks)
    blocks, weights, shape = Blocks(counts, len(order)), scene.weights, scene.scene.shape

    def product(x: Tensor, layer: str) -> Tensor:
        return torch.baddbmm(
            weights[f"{layer}.bias"][blocks.owner][:, None], x, weights[f"{layer}.weight"][blocks.owner]
        )

    hidden = product(encode(blocks.pad(local[order]), shape.position_octaves), "hidden0").relu()
    hidden = product(hidden, "hidden1").relu()
    depth = product(hidden, "density").relu() * steps
    seen = torch.cat([hidden, encode(blocks.pad(directions[order]), shape.direction_octaves)], dim=-1)
    rgb = product(F.relu(product(seen, "direction")), "color").sigmoid()
    answers = torch.cat([rgb, -torch.expm1(-depth)], dim=-1).reshape(-1, 4)
    out = torch.zeros(len(network), 4, device=scene.device)
    out[order] = answers[blocks.slot]
    return out
