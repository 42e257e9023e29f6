"""Which of many equal descriptions of a scene a file holds: the order of its Gaussians, and of each one's axes."""

import itertools
import math

import numpy as np
import numpy.typing as npt

from radcomp_plugins.core.quantize import quantize_uniform, signed_log
from radcomp_plugins.splats.gaussians import Gaussians

MORTON_BITS = 21

Array64 = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


def morton_order(means: Array64) -> Labels:
    """Order along a Z-curve of 21 bits per axis over the scene's box in signed logarithm; equal codes keep theirs."""
    y = signed_log(means)
    cells = quantize_uniform(y, y.min(axis=0), y.max(axis=0), MORTON_BITS)
    code = np.zeros(len(cells), np.int64)
    for bit in range(MORTON_BITS):
        for axis in range(3):
            code |= (cells[:, axis] >> bit & 1) << (3 * bit + axis)
    return np.argsort(code, kind="stable")


def axis_rotations() -> tuple[Array64, Labels]:
    """The 24 rotations that map the axes onto each other: quaternions [24, 4], and where each axis is taken from."""
    half = math.sqrt(0.5)
    quats = [q for q in itertools.product((-1.0, 0.0, 1.0), repeat=4) if sum(map(abs, q)) in (1.0, 2.0)]
    quats = [q for q in quats if next(v for v in q if v) > 0]
    unit = np.array([[v * (1.0 if sum(map(abs, q)) == 1 else half) for v in q] for q in quats])
    halves = np.array([q for q in itertools.product((0.5, -0.5), repeat=4) if q[0] > 0])
    rotations = np.concatenate([unit, halves])
    w, x, y, z = rotations.T
    columns = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]
    columns += [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]
    columns += [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]
    matrices = np.stack(columns, axis=1).reshape(-1, 3, 3)
    return rotations, np.abs(matrices).argmax(axis=1)


def smallest_rotation(quats: Array64, scales: Array64) -> tuple[Array64, Array64]:
    """The same ellipsoids with their axes renamed so that each rotates least: w >= 0.85, the largest component.

    R S^2 R^T does not change when R is multiplied by a rotation M of the axes onto each other and the scales are
    permuted along.
    """
    return rename_axes(quats, scales, smallest_naming(quats))


def smallest_naming(quats: Array64) -> Labels:
    """Which of `axis_rotations` [N] makes each ellipsoid rotate least."""
    rotations, _ = axis_rotations()
    q = quats / np.linalg.norm(quats, axis=1, keepdims=True)
    # The real part of q m for each m. Written out, not as a matrix product, so that ties fall the same way everywhere.
    real = sum(q[:, i, None] * (rotations[:, i] * (1.0 if i == 0 else -1.0)) for i in range(4))
    return np.abs(real).argmax(axis=1)


def rename_axes(quats: Array64, scales: Array64, naming: Labels) -> tuple[Array64, Array64]:
    """Unit quaternions q m with w >= 0 and the scales permuted along, for rotations m of `axis_rotations` [N]."""
    rotations, source = axis_rotations()
    q = quats / np.linalg.norm(quats, axis=1, keepdims=True)
    product = quaternion_product(q, rotations[naming])
    product *= np.where(product[:, :1] < 0, -1.0, 1.0)
    return product, np.take_along_axis(scales, source[naming], axis=1)


def quaternion_product(a: Array64, b: Array64) -> Array64:
    """The products a b of quaternions (w, x, y, z) along the last axis."""
    aw, ax, ay, az = np.moveaxis(a, -1, 0)
    bw, bx, by, bz = np.moveaxis(b, -1, 0)
    return np.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        axis=-1,
    )


def smallest_columns(gaussians: Gaussians) -> dict[str, Array64]:
    """The tensors of a scene as float64 arrays, each Gaussian's axes named so that it rotates least.

    Returns:
        The fields of `Gaussians` by name, and "alpha", the opacities [N] activated.
    """
    columns = {name: tensor.detach().cpu().double().numpy() for name, tensor in gaussians.tensors.items()}
    columns["quats"], columns["scales"] = smallest_rotation(columns["quats"], columns["scales"])
    columns["alpha"] = gaussians.opacities.detach().cpu().double().sigmoid().numpy()
    return columns
