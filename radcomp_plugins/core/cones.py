"""Cones: the points that stand for each piece of a pixel's cone, in the coordinates of a grid (Barron et al. 2023)."""

import math

import numpy as np
import torch
from jaxtyping import Float
from numba import njit
from torch import Tensor

from radcomp_plugins.core.threads import claim_block, new_counter, run_striped

PATTERN_ANGLES = (0.0, 2 * math.pi / 3, 4 * math.pi / 3, math.pi, 5 * math.pi / 3, math.pi / 3)
"""Angles of the six points about the cone's axis, in the order of their distance (Sec. 3.1)."""

_F0, _F1, _HALF, _TWO = np.float32(0.0), np.float32(1.0), np.float32(0.5), np.float32(2.0)
_SPREAD = np.float32(3 / math.sqrt(7))
_SQRT_HALF = np.float32(math.sqrt(0.5))
_TINY = np.float32(1e-20)


def pattern(num_points: int) -> tuple[list[float], list[float]]:
    """Places along the axis, in [-1, 1], and angles of `num_points` points: all six, or every (6 / num_points)-th."""
    chosen = range(0, 6, 6 // num_points)
    if num_points == 6:
        return [2 * j / 5 - 1 for j in chosen], [PATTERN_ANGLES[j] for j in chosen]
    # Fewer points are spread to the same second moment along the axis, and evenly about it.
    places = [2 * (i + 0.5) / num_points - 1 for i in range(num_points)]
    wanted = sum((2 * j / 5 - 1) ** 2 for j in range(6)) / 6
    mean = sum(place**2 for place in places) / num_points
    scale = math.sqrt(wanted / mean) if mean > 0 else 0.0
    return [place * scale for place in places], [2 * math.pi * i / num_points for i in range(num_points)]


def cone_samples(
    origins: Float[Tensor, "R 3"],
    directions: Float[Tensor, "R 3"],
    radii: Float[Tensor, "R 1"],
    edges: Float[Tensor, "R edges"],
    turns: Float[Tensor, "R intervals"],
    num_points: int = 6,
) -> Float[Tensor, "4 R intervals points"]:
    """Points of each conical frustum that match its mean and covariance (Barron et al. 2023, Eq. 1 to 3).

    Args:
        origins: scene frame.
        directions: unit vectors.
        radii: the cone's radius at distance 1.
        edges: distances, ascending.
        turns: angle in radians by which each frustum's pattern is turned about the axis.
        num_points: 6 for the paper's pattern; 1, 2 or 3 for a poorer one.

    Returns:
        x, y, z in the scene frame, and the deviation of each point's Gaussian, r t / (2 sqrt 2).
    """
    t0, t1 = edges[:, :-1, None], edges[:, 1:, None]
    middle, half = 0.5 * (t0 + t1), 0.5 * (t1 - t0)
    places, angles = (edges.new_tensor(values) for values in pattern(num_points))
    m2, h2 = middle**2, half**2
    spread = 3 / math.sqrt(7) * places * ((h2 - m2) ** 2 + 4 * m2**2).sqrt()
    t = t0 + half * (t1**2 + 2 * m2 + spread) / (h2 + 3 * m2).clamp_min(1e-20)
    angle = angles + turns[..., None]
    smallest = directions.abs().argmin(dim=-1, keepdim=True)
    axis = torch.zeros_like(directions).scatter_(-1, smallest, 1.0)
    u = torch.nn.functional.normalize(torch.linalg.cross(directions, axis), dim=-1)
    v = torch.linalg.cross(directions, u)
    radius = radii[:, None] * t / math.sqrt(2.0)
    along, right, up = t[..., None], (radius * angle.cos())[..., None], (radius * angle.sin())[..., None]
    o, d, u, v = (vectors[:, None, None] for vectors in (origins, directions, u, v))
    points = o + along * d + right * u + up * v
    return torch.cat([points.movedim(-1, 0), 0.5 * radius[None]])


def contract_ball(points: Float[Tensor, "4 *batch"]) -> Float[Tensor, "4 *batch"]:
    """mip-NeRF 360's contraction into the ball of radius 2, of points and of the deviations about them.

    Outside the unit ball C(x) = (2 - 1/|x|) x/|x|. Its Jacobian has the eigenvalues 1/|x|^2 along x and
    (2 - 1/|x|)/|x| across; a deviation is multiplied by the cube root of their product (Barron et al. 2023, Sec. 3.2).

    Args:
        points: x, y, z and deviation.
    """
    r = points[:3].norm(dim=0).clamp_min(1.0)
    scale = (2 * r - 1) / r**2
    return torch.cat([points[:3] * scale, (points[3] * (scale / r) ** (2 / 3))[None]])


def to_grid(points: Float[Tensor, "4 *batch"], box: Float[Tensor, "2 3"] | None) -> Float[Tensor, "4 *batch"]:
    """Grid coordinates in [0, 1] and deviations in their unit: of a box' surrounding cube, or of contracted space."""
    if box is None:
        points = contract_ball(points) / 4
        return torch.cat([points[:3] + 0.5, points[3:]])
    side = (box[1] - box[0]).amax()
    middle = (0.5 * (box[0] + box[1])).view(3, *([1] * (points.dim() - 1)))
    return torch.cat([(points[:3] - middle) / side + 0.5, points[3:] / side])


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _grid_points(
    start, step, counter, origins, directions, radii, edges, turns, places, angles, contracted, middle, scale, out
):  # fmt: skip
    """Fill out [4, R, intervals, points], a block of rays at a time; `scale` is the inverse side of the cube."""
    intervals, num_points = out.shape[2], out.shape[3]
    while True:
        first, end = claim_block(counter, out.shape[1] * intervals)
        if first == end:
            break
        for item in range(first, end):
            r, i = item // intervals, item % intervals
            dx, dy, dz = directions[r, 0], directions[r, 1], directions[r, 2]
            # The axis along which the direction is shortest gives the most accurate cross product.
            ax, ay, az = abs(dx), abs(dy), abs(dz)
            if ax <= ay and ax <= az:
                ux, uy, uz = _F0, dz, -dy
            elif ay <= az:
                ux, uy, uz = -dz, _F0, dx
            else:
                ux, uy, uz = dy, -dx, _F0
            norm = _F1 / math.sqrt(ux * ux + uy * uy + uz * uz)
            ux, uy, uz = ux * norm, uy * norm, uz * norm
            vx, vy, vz = dy * uz - dz * uy, dz * ux - dx * uz, dx * uy - dy * ux
            t0, t1 = edges[r, i], edges[r, i + 1]
            m, h = _HALF * (t0 + t1), _HALF * (t1 - t0)
            m2, h2 = m * m, h * h
            spread = _SPREAD * math.sqrt((h2 - m2) * (h2 - m2) + np.float32(4.0) * m2 * m2)
            share = h / max(h2 + np.float32(3.0) * m2, _TINY)
            fixed = t1 * t1 + _TWO * m2
            c, s = math.cos(turns[r, i]), math.sin(turns[r, i])
            for j in range(num_points):
                t = t0 + share * (fixed + spread * places[j])
                radius = radii[r, 0] * t * _SQRT_HALF
                right = radius * (angles[0, j] * c - angles[1, j] * s)
                up = radius * (angles[1, j] * c + angles[0, j] * s)
                x = origins[r, 0] + t * dx + right * ux + up * vx
                y = origins[r, 1] + t * dy + right * uy + up * vy
                z = origins[r, 2] + t * dz + right * uz + up * vz
                std = _HALF * radius
                if contracted:
                    n = math.sqrt(x * x + y * y + z * z)
                    if n > _F1:
                        shrink = (_TWO * n - _F1) / (n * n)
                        x, y, z = x * shrink, y * shrink, z * shrink
                        std *= np.float32((shrink / n) ** np.float32(2.0 / 3.0))
                out[0, r, i, j] = (x - middle[0]) * scale + _HALF
                out[1, r, i, j] = (y - middle[1]) * scale + _HALF
                out[2, r, i, j] = (z - middle[2]) * scale + _HALF
                out[3, r, i, j] = std * scale


@torch.no_grad()
def grid_points(
    origins: Float[Tensor, "R 3"],
    directions: Float[Tensor, "R 3"],
    radii: Float[Tensor, "R 1"],
    edges: Float[Tensor, "R edges"],
    turns: Float[Tensor, "R intervals"],
    box: Float[Tensor, "2 3"] | None,
    num_points: int = 6,
) -> Float[Tensor, "4 R intervals points"]:
    """`cone_samples` in grid coordinates (`to_grid`): one kernel on the CPU, torch elsewhere."""
    if origins.device.type != "cpu":
        return to_grid(cone_samples(origins, directions, radii, edges, turns, num_points), box)
    out = torch.empty((4, *turns.shape, num_points), dtype=torch.float32)
    places, angles = pattern(num_points)
    round_about = np.array([[math.cos(angle) for angle in angles], [math.sin(angle) for angle in angles]], np.float32)
    middle = np.zeros(3, np.float32) if box is None else (0.5 * (box[0] + box[1])).numpy().astype(np.float32)
    side = 4.0 if box is None else float((box[1] - box[0]).amax())
    rays = [tensor.detach().float().contiguous().numpy() for tensor in (origins, directions, radii, edges, turns)]
    run_striped(
        _grid_points, new_counter(), *rays, np.array(places, np.float32), round_about, box is None, middle,
        np.float32(1 / side), out.numpy(),
    )  # fmt: skip
    return out
