"""View-dependent colour from real spherical harmonics of degree 0 to 3: numba kernels, forward and backward.

Basis, order and signs are those of 3D Gaussian Splatting (Kerbl et al. 2023), which gsplat and every splat file share;
colour = max(0, sum + 0.5), as in its renderer. Directions run from the camera to the Gaussian.
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from radcomp_plugins.core.threads import claim_block, new_counter, run_striped

_F0 = np.float32(0.0)
_C0 = np.float32(0.28209479177387814)
_C1 = np.float32(0.4886025119029199)
_C20 = np.float32(1.0925484305920792)
_C21 = np.float32(0.31539156525252005)
_C22 = np.float32(0.5462742152960396)
_C30 = np.float32(0.5900435899266435)
_C31 = np.float32(2.890611442640554)
_C32 = np.float32(0.4570457994644658)
_C33 = np.float32(0.3731763325901154)
_C34 = np.float32(1.445305721320277)


@njit(nogil=True, cache=True)
def _basis(degree, x, y, z, out):
    """Values of the (degree + 1)^2 functions at a unit vector."""
    out[0] = _C0
    if degree < 1:
        return
    out[1] = -_C1 * y
    out[2] = _C1 * z
    out[3] = -_C1 * x
    if degree < 2:
        return
    xx, yy, zz = x * x, y * y, z * z
    one, two, three, five = np.float32(1.0), np.float32(2.0), np.float32(3.0), np.float32(5.0)
    out[4] = _C20 * x * y
    out[5] = -_C20 * y * z
    out[6] = _C21 * (three * zz - one)
    out[7] = -_C20 * x * z
    out[8] = _C22 * (xx - yy)
    if degree < 3:
        return
    out[9] = -_C30 * y * (three * xx - yy)
    out[10] = _C31 * x * y * z
    out[11] = -_C32 * y * (five * zz - one)
    out[12] = _C33 * z * (five * zz - three)
    out[13] = -_C32 * x * (five * zz - one)
    out[14] = _C34 * z * (xx - yy)
    out[15] = -_C30 * x * (xx - two * yy - yy)


@njit(nogil=True, cache=True)
def _basis_gradient(degree, x, y, z, g):
    """Gradient to (x, y, z) of sum_k g[k] basis_k, the functions taken as polynomials."""
    vx, vy, vz = _F0, _F0, _F0
    if degree >= 1:
        vx, vy, vz = -_C1 * g[3], -_C1 * g[1], _C1 * g[2]
    if degree >= 2:
        two, six = np.float32(2.0), np.float32(6.0)
        vx += _C20 * (y * g[4] - z * g[7]) + two * _C22 * x * g[8]
        vy += _C20 * (x * g[4] - z * g[5]) - two * _C22 * y * g[8]
        vz += -_C20 * (y * g[5] + x * g[7]) + six * _C21 * z * g[6]
    if degree >= 3:
        one, two, three, five = np.float32(1.0), np.float32(2.0), np.float32(3.0), np.float32(5.0)
        six, ten, fifteen = np.float32(6.0), np.float32(10.0), np.float32(15.0)
        xx, yy, zz = x * x, y * y, z * z
        vx += -_C30 * (six * x * y * g[9] + three * (xx - yy) * g[15]) + _C31 * y * z * g[10]
        vx += -_C32 * (five * zz - one) * g[13] + two * _C34 * x * z * g[14]
        vy += -_C30 * (three * (xx - yy) * g[9] - six * x * y * g[15]) + _C31 * x * z * g[10]
        vy += -_C32 * (five * zz - one) * g[11] - two * _C34 * y * z * g[14]
        vz += _C31 * x * y * g[10] - ten * _C32 * z * (y * g[11] + x * g[13])
        vz += _C33 * (fifteen * zz - three) * g[12] + _C34 * (xx - yy) * g[14]
    return vx, vy, vz


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _direction(means, i, centers, cam):
    """Unit vector from a camera's centre to a Gaussian, and the reciprocal of their distance; zeros if it is none."""
    dx, dy, dz = means[i, 0] - centers[cam, 0], means[i, 1] - centers[cam, 1], means[i, 2] - centers[cam, 2]
    length = math.sqrt(dx * dx + dy * dy + dz * dz)
    scale = 1.0 / length if length > 0.0 else 0.0
    return np.float32(dx * scale), np.float32(dy * scale), np.float32(dz * scale), scale


@njit(nogil=True, cache=True, error_model="numpy")
def _forward(start, step, counter, degree, means, low, high, skip, centers, radii, colors):
    """Colours, block by block. The constant coefficient is low[:, :3], the others are high[:, skip:]."""
    basis = np.zeros(16, np.float32)
    terms = (degree + 1) * (degree + 1)
    half = np.float32(0.5)
    while True:
        begin, end = claim_block(counter, means.shape[0])
        if begin == end:
            break
        for i in range(begin, end):
            for cam in range(centers.shape[0]):
                if radii[cam, i] <= 0:
                    colors[cam, i, 0] = colors[cam, i, 1] = colors[cam, i, 2] = _F0
                    continue
                x, y, z, _ = _direction(means, i, centers, cam)
                _basis(degree, x, y, z, basis)
                red, green, blue = basis[0] * low[i, 0], basis[0] * low[i, 1], basis[0] * low[i, 2]
                for k in range(1, terms):
                    at = skip + 3 * (k - 1)
                    red += basis[k] * high[i, at]
                    green += basis[k] * high[i, at + 1]
                    blue += basis[k] * high[i, at + 2]
                # Written so that NaN stays NaN and is left out of the image.
                colors[cam, i, 0] = _F0 if red + half < _F0 else red + half
                colors[cam, i, 1] = _F0 if green + half < _F0 else green + half
                colors[cam, i, 2] = _F0 if blue + half < _F0 else blue + half


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _backward_one(i, cam, degree, means, low, high, skip, centers, rgb, basis, dots, v_means, v_low, v_high):
    """Add what one camera's gradient `rgb` to a Gaussian's colour gives."""
    x, y, z, scale = _direction(means, i, centers, cam)
    _basis(degree, x, y, z, basis)
    red, green, blue = rgb
    v_low[i, 0] += basis[0] * red
    v_low[i, 1] += basis[0] * green
    v_low[i, 2] += basis[0] * blue
    for k in range(1, (degree + 1) * (degree + 1)):
        at = skip + 3 * (k - 1)
        v_high[i, at] += basis[k] * red
        v_high[i, at + 1] += basis[k] * green
        v_high[i, at + 2] += basis[k] * blue
        dots[k] = high[i, at] * red + high[i, at + 1] * green + high[i, at + 2] * blue
    vx, vy, vz = _basis_gradient(degree, x, y, z, dots)
    along = vx * x + vy * y + vz * z
    v_means[i, 0] += np.float32((vx - along * x) * scale)
    v_means[i, 1] += np.float32((vy - along * y) * scale)
    v_means[i, 2] += np.float32((vz - along * z) * scale)


@njit(nogil=True, cache=True, error_model="numpy")
def _backward(
    start, step, counter, degree, means, low, high, skip, centers, radii, colors, g_colors, v_means, v_low, v_high
):  # fmt: skip
    """Gradients, block by block, summed over the cameras that see the Gaussian."""
    basis = np.zeros(16, np.float32)
    dots = np.zeros(16, np.float32)
    while True:
        begin, end = claim_block(counter, means.shape[0])
        if begin == end:
            break
        for i in range(begin, end):
            for j in range(v_low.shape[1]):
                v_low[i, j] = _F0
            for j in range(v_high.shape[1]):
                v_high[i, j] = _F0
            v_means[i, 0] = v_means[i, 1] = v_means[i, 2] = _F0
            for cam in range(centers.shape[0]):
                if radii[cam, i] > 0:
                    # Clamped colours pass nothing on.
                    rgb = (
                        g_colors[cam, i, 0] if colors[cam, i, 0] > _F0 else _F0,
                        g_colors[cam, i, 1] if colors[cam, i, 1] > _F0 else _F0,
                        g_colors[cam, i, 2] if colors[cam, i, 2] > _F0 else _F0,
                    )
                    _backward_one(
                        i, cam, degree, means, low, high, skip, centers, rgb, basis, dots, v_means, v_low, v_high
                    )


def _array(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().contiguous().numpy()


class _ShColors(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        low: Tensor,
        high: Tensor | None,
        radii: Tensor,
        centers: NDArray[np.float64],
        degree: int,
    ) -> Tensor:
        arrays = _coefficient_arrays(low, high)
        colors = np.empty((len(centers), len(means), 3), np.float32)
        run_striped(_forward, new_counter(), degree, _array(means), *arrays, centers, _array(radii), colors)
        result = torch.from_numpy(colors)
        ctx.save_for_backward(means, low, high, radii, result)
        ctx.centers, ctx.degree = centers, degree
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        means, low, high, radii, colors = ctx.saved_tensors
        arrays = _coefficient_arrays(low, high)
        v_means = np.empty(means.shape, np.float32)
        v_low = np.empty(low.shape, np.float32)
        v_high = v_low if high is None else np.empty(high.shape, np.float32)
        count = len(means)
        run_striped(
            _backward,
            new_counter(),
            ctx.degree,
            _array(means),
            *arrays,
            ctx.centers,
            _array(radii),
            _array(colors),
            _array(grad_outputs[0]),
            v_means,
            _rows(v_low, count),
            _rows(v_high, count),
        )
        grad_high = None if high is None else torch.from_numpy(v_high)
        return torch.from_numpy(v_means), torch.from_numpy(v_low), grad_high, None, None, None


def _rows(array: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    return array.reshape(count, array.size // max(count, 1))


def _coefficient_arrays(low: Tensor, high: Tensor | None) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
    """Arrays of the constant and the other coefficients, and where the latter begin in a row of theirs."""
    first = _rows(_array(low), len(low))
    if high is None:
        return first, first, 3
    return first, _rows(_array(high), len(low)), 0


def sh_to_colors(
    degree: int,
    means: Float[Tensor, "N 3"],
    coefficients: Float[Tensor, "N K 3"] | tuple[Float[Tensor, "N 3"], Float[Tensor, "N K-1 3"]],
    viewmats: Float[Tensor, "C 4 4"],
    radii: Int[Tensor, "C N"],
) -> Float[Tensor, "C N 3"]:
    """Colours of CPU Gaussians seen from C cameras, differentiable in means and coefficients.

    Args:
        degree: of the harmonics to use, 0 to 3.
        means: [N, 3] float32 centres in the world.
        coefficients: [N, K, 3] float32 with K >= (degree + 1)^2; or the constant ones [N, 3] and the others
            [N, K - 1, 3] apart, which saves a caller who keeps them apart the copy.
        viewmats: [C, 4, 4] world to camera.
        radii: [C, N] int32; where it is 0 the colour is 0 and no gradient flows.

    Returns:
        [C, N, 3] float32 colours, not below 0.

    Raises:
        ValueError: `degree` is not 0 to 3, or there are too few coefficients for it.
    """
    low, high = coefficients if isinstance(coefficients, tuple) else (coefficients, None)
    have = low.shape[1] if high is None else 1 + high.shape[1]
    if degree not in (0, 1, 2, 3) or have < (degree + 1) ** 2:
        raise ValueError(f"SH degree {degree} with {have} coefficients per channel: expected degree 0 to 3 and as "
                         f"many as its square of degree + 1")  # fmt: skip
    centers = np.linalg.inv(_array(viewmats).astype(np.float64))[:, :3, 3].copy()
    return _ShColors.apply(means, low, high, radii, centers, degree)  # type: ignore[return-value]
