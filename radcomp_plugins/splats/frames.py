"""Turning a scene: means, rotations and spherical harmonics together.

Splat files state no frame. Inria's .ply files, and what is converted from them, have x right, y down, z forward; glTF
has y up. Between the two lies half a turn about x, under which SH coefficients only change sign; any other rotation
mixes the coefficients of a band among each other.
"""

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from radcomp_plugins.splats.gaussians import Gaussians, num_sh_rest

Array64 = npt.NDArray[np.float64]

HALF_TURN_ABOUT_X = (0.0, 1.0, 0.0, 0.0)
"""(w, x, y, z) of the rotation from y down, z forward to y up, z back; its own inverse."""

HALF_TURN_ABOUT_Z = (0.0, 0.0, 0.0, 1.0)
"""The rotation from x right, y down to x left, y up, z forward in both: glTF's frame; its own inverse."""

_DIRECTIONS = 64
_ROUNDING = 1e-12


def rotate(gaussians: Gaussians, quat: tuple[float, float, float, float]) -> Gaussians:
    """The scene turned about the origin; seen from a camera that turns along, it looks the same.

    Args:
        gaussians: The scene.
        quat: Rotation (w, x, y, z) of any length but zero.

    Returns:
        The turned scene on the same device.
    """
    q = np.asarray(quat, np.float64) / np.linalg.norm(quat)
    matrix = rotation_matrix(q)
    g = gaussians
    w, x, y, z = q.tolist()
    left = [[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]]
    rest = g.shN
    for degree in range(1, g.sh_degree + 1):
        band = slice(num_sh_rest(degree - 1), num_sh_rest(degree))
        turn = _like(sh_rotation(degree, matrix), rest)
        rest = torch.cat([rest[:, : band.start], turn @ rest[:, band], rest[:, band.stop :]], dim=1)
    return replace(
        g, means=g.means @ _like(matrix, g.means).T, quats=g.quats @ _like(np.array(left), g.quats).T, shN=rest
    )


def rotation_matrix(quat: Array64) -> Array64:
    """Matrix [3, 3] of a unit quaternion (w, x, y, z)."""
    w, x, y, z = quat.tolist()
    rows = [[1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]]
    rows += [[2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]]
    rows += [[2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]]
    return np.array(rows)


def sh_rotation(degree: int, matrix: Array64) -> Array64:
    """The matrix [2 d + 1, 2 d + 1] that turns the coefficients of band d = `degree`.

    A turned function at direction v is the original at R^T v. Both sides are evaluated at more directions than there
    are coefficients and the system, which is consistent, is solved: exact to rounding, with no recurrence to get wrong.
    """
    v = np.random.default_rng(0).normal(size=(_DIRECTIONS, 3))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    band = slice(degree * degree, (degree + 1) ** 2)
    turned = np.linalg.lstsq(sh_basis(degree, v)[:, band], sh_basis(degree, v @ matrix)[:, band], rcond=None)[0]
    # Zeros and ones that are exact keep a half turn free of any error.
    nearest = np.rint(turned)
    return np.where(np.abs(turned - nearest) < _ROUNDING, nearest, turned)


def sh_basis(degree: int, v: Array64) -> Array64:
    """Values [M, (degree + 1)^2] of the real harmonics at unit vectors [M, 3], in the order and signs of `sh`."""
    x, y, z = v.T
    xx, yy, zz = x * x, y * y, z * z
    columns = [np.full_like(x, math.sqrt(1 / 4)), -math.sqrt(3 / 4) * y, math.sqrt(3 / 4) * z, -math.sqrt(3 / 4) * x]
    columns += [math.sqrt(15 / 4) * x * y, -math.sqrt(15 / 4) * y * z, math.sqrt(5 / 16) * (3 * zz - 1)]
    columns += [-math.sqrt(15 / 4) * x * z, math.sqrt(15 / 16) * (xx - yy)]
    columns += [-math.sqrt(35 / 32) * y * (3 * xx - yy), math.sqrt(105 / 4) * x * y * z]
    columns += [-math.sqrt(21 / 32) * y * (5 * zz - 1), math.sqrt(7 / 16) * z * (5 * zz - 3)]
    columns += [-math.sqrt(21 / 32) * x * (5 * zz - 1), math.sqrt(105 / 16) * z * (xx - yy)]
    columns += [-math.sqrt(35 / 32) * x * (xx - 3 * yy)]
    return np.stack(columns[: (degree + 1) ** 2], axis=1) / math.sqrt(math.pi)


def _like(values: Array64, tensor: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(values).to(tensor)
