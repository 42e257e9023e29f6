"""EWA projection of 3D Gaussians to image-plane splats: numba kernels, forward and hand-derived backward.

Zwicker et al. 2001 with the constants of gsplat 1.4.0: blur eps2d added to the 2D covariance, x/z and y/z limited to
the field of view plus 30 % of its half width in the Jacobian, radius of 3 sigma of the longer axis. Arithmetic is in
double precision, which costs scalar code nothing; inputs and outputs are float32.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from radcomp_plugins.core.threads import claim_block, new_counter, run_striped

_FOV_MARGIN = 0.3
_MIN_EIGENVALUE_GAP = 0.01
"""gsplat's lower limit on the square of half the difference of the 2D covariance's eigenvalues."""


@njit(nogil=True, cache=True)
def _rotation(w, x, y, z):
    """Rows of the rotation matrix of a unit quaternion."""
    return (
        1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y),
        2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x),
        2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y),
    )  # fmt: skip


@njit(nogil=True, cache=True, error_model="numpy")
def _limit_slopes(px, py, pz, k, width, height):
    """x/z and y/z limited to the field of view with its margin."""
    fx, fy, cx, cy = k[0, 0], k[1, 1], k[0, 2], k[1, 2]
    margin_x, margin_y = _FOV_MARGIN * 0.5 * width / fx, _FOV_MARGIN * 0.5 * height / fy
    ux = min(max(px / pz, -cx / fx - margin_x), (width - cx) / fx + margin_x)
    uy = min(max(py / pz, -cy / fy - margin_y), (height - cy) / fy + margin_y)
    return ux, uy


@njit(nogil=True, cache=True, error_model="numpy")
def _linear_map(view, k, pz, ux, uy):
    """Rows of J R, from world offsets to pixels: J the Jacobian of the projection, R the camera's rotation."""
    jx, jy = k[0, 0] / pz, k[1, 1] / pz
    return (
        jx * (view[0, 0] - ux * view[2, 0]), jx * (view[0, 1] - ux * view[2, 1]), jx * (view[0, 2] - ux * view[2, 2]),
        jy * (view[1, 0] - uy * view[2, 0]), jy * (view[1, 1] - uy * view[2, 1]), jy * (view[1, 2] - uy * view[2, 2]),
    )  # fmt: skip


@njit(nogil=True, cache=True)
def _footprint(t, r, s0, s1, s2):
    """Rows of A = J R M with M = rotation times scales: the 2D covariance is A A^T."""
    return (
        (t[0] * r[0] + t[1] * r[3] + t[2] * r[6]) * s0,
        (t[0] * r[1] + t[1] * r[4] + t[2] * r[7]) * s1,
        (t[0] * r[2] + t[1] * r[5] + t[2] * r[8]) * s2,
        (t[3] * r[0] + t[4] * r[3] + t[5] * r[6]) * s0,
        (t[3] * r[1] + t[4] * r[4] + t[5] * r[7]) * s1,
        (t[3] * r[2] + t[4] * r[5] + t[5] * r[8]) * s2,
    )


@njit(nogil=True, cache=True)
def _covariance(a):
    """Entries xx, xy, yy of A A^T and its determinant as a sum of squares, which does not cancel."""
    n0, n1, n2 = a[1] * a[5] - a[2] * a[4], a[2] * a[3] - a[0] * a[5], a[0] * a[4] - a[1] * a[3]
    return (
        a[0] * a[0] + a[1] * a[1] + a[2] * a[2],
        a[0] * a[3] + a[1] * a[4] + a[2] * a[5],
        a[3] * a[3] + a[4] * a[4] + a[5] * a[5],
        n0 * n0 + n1 * n1 + n2 * n2,
    )


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _to_camera(view, means, i):
    """A Gaussian's centre in the camera's frame."""
    x, y, z = float(means[i, 0]), float(means[i, 1]), float(means[i, 2])
    return (
        view[0, 0] * x + view[0, 1] * y + view[0, 2] * z + view[0, 3],
        view[1, 0] * x + view[1, 1] * y + view[1, 2] * z + view[1, 3],
        view[2, 0] * x + view[2, 1] * y + view[2, 2] * z + view[2, 3],
    )


@njit(nogil=True, cache=True, error_model="numpy")
def _blurred(xx, xy, yy, det0, eps2d):
    """The blurred covariance's xx and yy, and its determinant."""
    return xx + eps2d, yy + eps2d, det0 + eps2d * (xx + yy) + eps2d * eps2d


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _project_one(
    i, cam, means, r, scales, opacity, views, ks, width, height, near, far, eps2d, radius_clip, antialiased, radii,
    means2d, depths, conics, alphas
):  # fmt: skip
    """Project one Gaussian into one camera; nothing is written if it is culled."""
    view, k = views[cam], ks[cam]
    px, py, pz = _to_camera(view, means, i)
    # This and the tests below are written so that NaN fails them.
    if not (pz >= near and pz <= far and pz > 0.0 and math.isfinite(opacity)):
        return
    ux, uy = _limit_slopes(px, py, pz, k, width, height)
    a = _footprint(_linear_map(view, k, pz, ux, uy), r, float(scales[i, 0]), float(scales[i, 1]), float(scales[i, 2]))
    xx, xy, yy, det0 = _covariance(a)
    xx1, yy1, det = _blurred(xx, xy, yy, det0, eps2d)
    if not det > 0.0:
        return
    mid = 0.5 * (xx1 + yy1)
    radius = math.ceil(3.0 * math.sqrt(mid + math.sqrt(max(_MIN_EIGENVALUE_GAP, mid * mid - det))))
    u, v = k[0, 0] * px / pz + k[0, 2], k[1, 1] * py / pz + k[1, 2]
    # Radii of 2^31 and more do not fit their type; a Gaussian that large has no meaning either.
    if not (radius > radius_clip and radius < 2147483648.0):
        return
    if not (u + radius > 0.0 and u - radius < width and v + radius > 0.0 and v - radius < height):
        return
    radii[cam, i] = np.int32(radius)
    means2d[cam, i, 0] = u
    means2d[cam, i, 1] = v
    depths[cam, i] = pz
    conics[cam, i, 0] = yy1 / det
    conics[cam, i, 1] = -xy / det
    conics[cam, i, 2] = xx1 / det
    alphas[cam, i] = opacity * math.sqrt(det0 / det) if antialiased else opacity


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _unit_rotation(quats, i):
    """A Gaussian's unit quaternion, one over the length it had, and its rotation matrix."""
    w, x, y, z = float(quats[i, 0]), float(quats[i, 1]), float(quats[i, 2]), float(quats[i, 3])
    norm = 1.0 / math.sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w * norm, x * norm, y * norm, z * norm
    return (w, x, y, z), norm, _rotation(w, x, y, z)


@njit(nogil=True, cache=True, error_model="numpy")
def _forward(
    start, step, counter, means, quats, scales, opacities, views, ks, width, height, near, far, eps2d, radius_clip,
    antialiased, radii, means2d, depths, conics, alphas
):  # fmt: skip
    """Project Gaussians, block by block, into all cameras; what is culled gets zeros everywhere."""
    while True:
        begin, end = claim_block(counter, means.shape[0])
        if begin == end:
            break
        for i in range(begin, end):
            _, _, r = _unit_rotation(quats, i)
            for cam in range(views.shape[0]):
                radii[cam, i] = 0
                means2d[cam, i, 0] = means2d[cam, i, 1] = 0.0
                conics[cam, i, 0] = conics[cam, i, 1] = conics[cam, i, 2] = 0.0
                depths[cam, i] = 0.0
                alphas[cam, i] = 0.0
                _project_one(
                    i, cam, means, r, scales, float(opacities[i]), views, ks, width, height, near, far, eps2d,
                    radius_clip, antialiased, radii, means2d, depths, conics, alphas,
                )  # fmt: skip


@njit(nogil=True, cache=True, error_model="numpy")
def _covariance_grads(xx, xy, yy, det0, eps2d, ga, gb, gc, g_compensation):
    """Gradients to xx, xy, yy of the unblurred covariance from those to the conic and the compensation."""
    xx1, yy1, det = _blurred(xx, xy, yy, det0, eps2d)
    a, b, c = yy1 / det, -xy / det, xx1 / det
    # d(S^-1) = -S^-1 dS S^-1; gb belongs to both off-diagonal entries at once.
    h = 0.5 * gb
    v_xx = -(a * a * ga + 2.0 * a * b * h + b * b * gc)
    v_xy = -2.0 * (a * b * ga + (a * c + b * b) * h + b * c * gc)
    v_yy = -(b * b * ga + 2.0 * b * c * h + c * c * gc)
    ratio = det0 / det
    if g_compensation != 0.0 and ratio > 0.0:
        scale = 0.5 * g_compensation / (math.sqrt(ratio) * det)
        v_xx += scale * (yy - ratio * yy1)
        v_xy += scale * -2.0 * xy * (1.0 - ratio)
        v_yy += scale * (xx - ratio * xx1)
    return v_xx, v_xy, v_yy


@njit(nogil=True, cache=True)
def _quat_grads(q, norm, d):
    """Gradient to the quaternion of length 1 / norm and direction q, from that to the rotation matrix (rows in `d`)."""
    w, x, y, z = q
    vw = 2.0 * (x * (d[7] - d[5]) + y * (d[2] - d[6]) + z * (d[3] - d[1]))
    vx = 2.0 * (-2.0 * x * (d[4] + d[8]) + y * (d[1] + d[3]) + z * (d[2] + d[6]) + w * (d[7] - d[5]))
    vy = 2.0 * (x * (d[1] + d[3]) - 2.0 * y * (d[0] + d[8]) + z * (d[5] + d[7]) + w * (d[2] - d[6]))
    vz = 2.0 * (x * (d[2] + d[6]) + y * (d[5] + d[7]) - 2.0 * z * (d[0] + d[4]) + w * (d[3] - d[1]))
    along = vw * w + vx * x + vy * y + vz * z
    return (vw - along * w) * norm, (vx - along * x) * norm, (vy - along * y) * norm, (vz - along * z) * norm


@njit(nogil=True, cache=True)
def _footprint_grads(a, v_xx, v_xy, v_yy):
    """Gradient to the rows of A from that to A A^T."""
    x, y = 2.0 * v_xx, 2.0 * v_yy
    return (
        x * a[0] + v_xy * a[3], x * a[1] + v_xy * a[4], x * a[2] + v_xy * a[5],
        v_xy * a[0] + y * a[3], v_xy * a[1] + y * a[4], v_xy * a[2] + y * a[5],
    )  # fmt: skip


@njit(nogil=True, cache=True)
def _shape_grads(t, g):
    """Gradient to the rows of M = rotation times scales, from that to A = T M."""
    return (
        t[0] * g[0] + t[3] * g[3], t[0] * g[1] + t[3] * g[4], t[0] * g[2] + t[3] * g[5],
        t[1] * g[0] + t[4] * g[3], t[1] * g[1] + t[4] * g[4], t[1] * g[2] + t[4] * g[5],
        t[2] * g[0] + t[5] * g[3], t[2] * g[1] + t[5] * g[4], t[2] * g[2] + t[5] * g[5],
    )  # fmt: skip


@njit(nogil=True, cache=True)
def _map_grads(g, r, s0, s1, s2):
    """Gradient to the rows of T = J R, from that to A = T M."""
    a0, a1, a2, b0, b1, b2 = g[0] * s0, g[1] * s1, g[2] * s2, g[3] * s0, g[4] * s1, g[5] * s2
    return (
        a0 * r[0] + a1 * r[1] + a2 * r[2], a0 * r[3] + a1 * r[4] + a2 * r[5], a0 * r[6] + a1 * r[7] + a2 * r[8],
        b0 * r[0] + b1 * r[1] + b2 * r[2], b0 * r[3] + b1 * r[4] + b2 * r[5], b0 * r[6] + b1 * r[7] + b2 * r[8],
    )  # fmt: skip


@njit(nogil=True, cache=True, error_model="numpy")
def _center_grads(p, ux, uy, view, k, t, gx, gy, g_depth):
    """Gradient to the centre in the world from those to T = J R (`t`), to its pixel and to its depth.

    J = [[fx/z, 0, -fx ux/z], [0, fy/z, -fy uy/z]] with ux, uy the limited slopes.
    """
    px, py, pz = p
    rz = 1.0 / pz
    jx, jy = k[0, 0] * rz, k[1, 1] * rz
    j00 = t[0] * view[0, 0] + t[1] * view[0, 1] + t[2] * view[0, 2]
    j02 = t[0] * view[2, 0] + t[1] * view[2, 1] + t[2] * view[2, 2]
    j11 = t[3] * view[1, 0] + t[4] * view[1, 1] + t[5] * view[1, 2]
    j12 = t[3] * view[2, 0] + t[4] * view[2, 1] + t[5] * view[2, 2]
    vx, vy = gx * jx, gy * jy
    vz = g_depth - rz * (vx * px + vy * py) - rz * (jx * (j00 - ux * j02) + jy * (j11 - uy * j12))
    # A slope that has hit its limit does not depend on the centre.
    if ux == px / pz:
        vx -= jx * j02 * rz
        vz += jx * j02 * rz * ux
    if uy == py / pz:
        vy -= jy * j12 * rz
        vz += jy * j12 * rz * uy
    return (
        view[0, 0] * vx + view[1, 0] * vy + view[2, 0] * vz,
        view[0, 1] * vx + view[1, 1] * vy + view[2, 1] * vz,
        view[0, 2] * vx + view[1, 2] * vy + view[2, 2] * vz,
    )


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _backward_one(
    i, cam, means, r, scales, opacity, views, ks, width, height, eps2d, antialiased, g_means2d, g_depths, g_conics,
    g_alphas
):  # fmt: skip
    """One camera's part of a Gaussian's gradients: to its centre, to M = rotation times scales, to its opacity."""
    view, k = views[cam], ks[cam]
    p = _to_camera(view, means, i)
    ux, uy = _limit_slopes(p[0], p[1], p[2], k, width, height)
    t = _linear_map(view, k, p[2], ux, uy)
    s0, s1, s2 = float(scales[i, 0]), float(scales[i, 1]), float(scales[i, 2])
    a = _footprint(t, r, s0, s1, s2)
    xx, xy, yy, det0 = _covariance(a)
    v_opacity = float(g_alphas[cam, i])
    v_compensation = 0.0
    if antialiased:
        v_compensation = v_opacity * opacity
        v_opacity *= math.sqrt(det0 / _blurred(xx, xy, yy, det0, eps2d)[2])
    v_xx, v_xy, v_yy = _covariance_grads(
        xx, xy, yy, det0, eps2d, g_conics[cam, i, 0], g_conics[cam, i, 1], g_conics[cam, i, 2], v_compensation
    )
    g = _footprint_grads(a, v_xx, v_xy, v_yy)
    v_center = _center_grads(
        p, ux, uy, view, k, _map_grads(g, r, s0, s1, s2), float(g_means2d[cam, i, 0]), float(g_means2d[cam, i, 1]),
        float(g_depths[cam, i]),
    )  # fmt: skip
    return v_center, _shape_grads(t, g), v_opacity


@njit(nogil=True, cache=True, error_model="numpy")
def _backward(
    start, step, counter, means, quats, scales, opacities, views, ks, width, height, eps2d, antialiased, radii,
    g_means2d, g_depths, g_conics, g_alphas, v_means, v_quats, v_scales, v_opacities
):  # fmt: skip
    """Gradients of Gaussians, block by block, summed over the cameras that see them."""
    center, shape = np.empty(3), np.empty(9)
    while True:
        begin, end = claim_block(counter, means.shape[0])
        if begin == end:
            break
        for i in range(begin, end):
            v_quats[i, 0] = v_quats[i, 1] = v_quats[i, 2] = v_quats[i, 3] = 0.0
            v_scales[i, 0] = v_scales[i, 1] = v_scales[i, 2] = 0.0
            for j in range(3):
                center[j] = 0.0
            v_opacity, seen = 0.0, False
            for cam in range(views.shape[0]):
                seen |= radii[cam, i] > 0
            if seen:
                q, norm, r = _unit_rotation(quats, i)
                for j in range(9):
                    shape[j] = 0.0
                for cam in range(views.shape[0]):
                    if radii[cam, i] > 0:
                        v_center, v_shape, v_alpha = _backward_one(
                            i, cam, means, r, scales, float(opacities[i]), views, ks, width, height, eps2d,
                            antialiased, g_means2d, g_depths, g_conics, g_alphas,
                        )  # fmt: skip
                        v_opacity += v_alpha
                        for j in range(3):
                            center[j] += v_center[j]
                        for j in range(9):
                            shape[j] += v_shape[j]
                for j in range(3):
                    v_scales[i, j] = shape[j] * r[j] + shape[3 + j] * r[3 + j] + shape[6 + j] * r[6 + j]
                    # From M to the rotation: its column j is scaled by scale j.
                    shape[j] *= scales[i, j]
                    shape[3 + j] *= scales[i, j]
                    shape[6 + j] *= scales[i, j]
                v_quats[i, 0], v_quats[i, 1], v_quats[i, 2], v_quats[i, 3] = _quat_grads(q, norm, shape)
            v_means[i, 0], v_means[i, 1], v_means[i, 2] = center[0], center[1], center[2]
            v_opacities[i] = v_opacity


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().contiguous().numpy()


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, camera: "_Camera"
    ) -> tuple[Tensor, ...]:
        cameras, count = len(camera.views), len(means)
        inputs = tuple(_array(tensor) for tensor in (means, quats, scales, opacities))
        radii = np.empty((cameras, count), np.int32)
        means2d, depths = np.empty((cameras, count, 2), np.float32), np.empty((cameras, count), np.float32)
        conics, alphas = np.empty((cameras, count, 3), np.float32), np.empty((cameras, count), np.float32)
        run_striped(
            _forward, new_counter(), *inputs, camera.views, camera.ks, camera.width, camera.height, camera.near_plane,
            camera.far_plane, camera.eps2d, camera.radius_clip, camera.antialiased, radii, means2d, depths, conics,
            alphas,
        )  # fmt: skip
        outputs = tuple(torch.from_numpy(array) for array in (radii, means2d, depths, conics, alphas))
        ctx.save_for_backward(means, quats, scales, opacities, outputs[0])
        ctx.camera = camera
        ctx.mark_non_differentiable(outputs[0])
        return outputs

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, radii = (_array(tensor) for tensor in ctx.saved_tensors)
        grads = tuple(_array(grad) for grad in grad_outputs[1:])
        camera = ctx.camera
        results = tuple(np.empty_like(array) for array in inputs)
        run_striped(
            _backward, new_counter(), *inputs, camera.views, camera.ks, camera.width, camera.height, camera.eps2d,
            camera.antialiased, radii, *grads, *results,
        )  # fmt: skip
        return (*(torch.from_numpy(array) for array in results), None)


@dataclass(frozen=True)
class _Camera:
    """What the kernels need to know of the cameras: float64 matrices and plain numbers."""

    views: NDArray[np.float64]
    ks: NDArray[np.float64]
    width: int
    height: int
    near_plane: float
    far_plane: float
    eps2d: float
    radius_clip: float
    antialiased: bool


@dataclass(frozen=True)
class Splats2D:
    """Gaussians projected into C images; all zeros where culled.

    Attributes:
        radii: [C, N] int32 half side of gsplat's box in pixels, 0 where culled.
        means2d: [C, N, 2] float32 pixels; the centre of the first pixel is (0.5, 0.5).
        depths: [C, N] float32 z in the camera's frame.
        conics: [C, N, 3] float32 inverse of the blurred 2D covariance (xx, xy, yy).
        opacities: [C, N] float32 peak alpha, compensated for the blur if antialiased.
    """

    radii: Int[Tensor, "C N"]
    means2d: Float[Tensor, "C N 2"]
    depths: Float[Tensor, "C N"]
    conics: Float[Tensor, "C N 3"]
    opacities: Float[Tensor, "C N"]


def project_gaussians(
    means: Float[Tensor, "N 3"],
    quats: Float[Tensor, "N 4"],
    scales: Float[Tensor, "N 3"],
    opacities: Float[Tensor, " N"],
    viewmats: Float[Tensor, "C 4 4"],
    Ks: Float[Tensor, "C 3 3"],  # noqa: N803
    width: int,
    height: int,
    *,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    eps2d: float = 0.3,
    radius_clip: float = 0.0,
    antialiased: bool = False,
) -> Splats2D:
    """Project CPU Gaussians into C pinhole cameras, differentiably in the first four arguments.

    Gaussians with a NaN or infinity among their parameters, or a zero quaternion, are culled and get zero gradients.

    Args:
        means: [N, 3] float32 centres, world units.
        quats: [N, 4] float32 rotations (w, x, y, z) of any length but zero.
        scales: [N, 3] float32 standard deviations, world units.
        opacities: [N] float32 peak alpha, 0 .. 1.
        viewmats: [C, 4, 4] float32 world to camera, OpenCV axes.
        Ks: [C, 3, 3] float32 intrinsics in pixels, no skew.
        width: of the images in pixels.
        height: of the images in pixels.
        near_plane: nearer Gaussians are culled.
        far_plane: farther Gaussians are culled.
        eps2d: pixels^2 added to the diagonal of the 2D covariance.
        radius_clip: splats of this radius in pixels and smaller are culled.
        antialiased: multiply opacities by sqrt(det before / det after the blur) (Yu et al. 2024).
    """
    camera = _Camera(
        _array(viewmats).astype(np.float64), _array(Ks).astype(np.float64), width, height, float(near_plane),
        float(far_plane), float(eps2d), float(radius_clip), antialiased,
    )  # fmt: skip
    return Splats2D(*_Project.apply(means, quats, scales, opacities, camera))  # type: ignore[misc]
