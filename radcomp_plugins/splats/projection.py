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

from radcomp_plugins.core.threads import run_striped, stripe

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


@njit(nogil=True, cache=True, error_model="numpy")
def _forward(
    start, step, means, quats, scales, opacities, views, ks, width, height, near, far, eps2d, radius_clip,
    antialiased, radii, means2d, depths, conics, alphas
):  # fmt: skip
    """Project a stripe of Gaussians into all cameras; what is culled gets zeros everywhere."""
    begin, end = stripe(start, step, means.shape[0])
    for i in range(begin, end):
        mx, my, mz = float(means[i, 0]), float(means[i, 1]), float(means[i, 2])
        qw, qx, qy, qz = float(quats[i, 0]), float(quats[i, 1]), float(quats[i, 2]), float(quats[i, 3])
        s0, s1, s2 = float(scales[i, 0]), float(scales[i, 1]), float(scales[i, 2])
        opacity = float(opacities[i])
        norm = 1.0 / math.sqrt(qw * qw + qx * qx + qy * qy + qz * qz)
        r = _rotation(qw * norm, qx * norm, qy * norm, qz * norm)
        for cam in range(views.shape[0]):
            radii[cam, i] = 0
            means2d[cam, i, 0] = means2d[cam, i, 1] = 0.0
            conics[cam, i, 0] = conics[cam, i, 1] = conics[cam, i, 2] = 0.0
            depths[cam, i] = 0.0
            alphas[cam, i] = 0.0
            view, k = views[cam], ks[cam]
            pz = view[2, 0] * mx + view[2, 1] * my + view[2, 2] * mz + view[2, 3]
            # Written so that NaN fails it, as the tests below are.
            if not (pz >= near and pz <= far and pz > 0.0 and math.isfinite(opacity)):
                continue
            px = view[0, 0] * mx + view[0, 1] * my + view[0, 2] * mz + view[0, 3]
            py = view[1, 0] * mx + view[1, 1] * my + view[1, 2] * mz + view[1, 3]
            ux, uy = _limit_slopes(px, py, pz, k, width, height)
            a = _footprint(_linear_map(view, k, pz, ux, uy), r, s0, s1, s2)
            xx, xy, yy, det0 = _covariance(a)
            xx1, yy1 = xx + eps2d, yy + eps2d
            det = det0 + eps2d * (xx + yy) + eps2d * eps2d
            if not det > 0.0:
                continue
            mid = 0.5 * (xx1 + yy1)
            radius = math.ceil(3.0 * math.sqrt(mid + math.sqrt(max(_MIN_EIGENVALUE_GAP, mid * mid - det))))
            u, v = k[0, 0] * px / pz + k[0, 2], k[1, 1] * py / pz + k[1, 2]
            # Radii of 2^31 and more do not fit their type; a Gaussian that large has no meaning either.
            if not (radius > radius_clip and radius < 2147483648.0):
                continue
            if not (u + radius > 0.0 and u - radius < width and v + radius > 0.0 and v - radius < height):
                continue
            radii[cam, i] = np.int32(radius)
            means2d[cam, i, 0] = u
            means2d[cam, i, 1] = v
            depths[cam, i] = pz
            conics[cam, i, 0] = yy1 / det
            conics[cam, i, 1] = -xy / det
            conics[cam, i, 2] = xx1 / det
            alphas[cam, i] = opacity * math.sqrt(det0 / det) if antialiased else opacity


@njit(nogil=True, cache=True, error_model="numpy")
def _covariance_grads(xx, xy, yy, det0, eps2d, ga, gb, gc, g_compensation):
    """Gradients to xx, xy, yy of the unblurred covariance from those to the conic and the compensation."""
    xx1, yy1 = xx + eps2d, yy + eps2d
    det = det0 + eps2d * (xx + yy) + eps2d * eps2d
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
def _quat_grads(w, x, y, z, norm, d):
    """Gradient to the unnormalised quaternion from that to the rotation matrix (rows in `d`); norm = 1 / length."""
    vw = 2.0 * (x * (d[7] - d[5]) + y * (d[2] - d[6]) + z * (d[3] - d[1]))
    vx = 2.0 * (-2.0 * x * (d[4] + d[8]) + y * (d[1] + d[3]) + z * (d[2] + d[6]) + w * (d[7] - d[5]))
    vy = 2.0 * (x * (d[1] + d[3]) - 2.0 * y * (d[0] + d[8]) + z * (d[5] + d[7]) + w * (d[2] - d[6]))
    vz = 2.0 * (x * (d[2] + d[6]) + y * (d[5] + d[7]) - 2.0 * z * (d[0] + d[4]) + w * (d[3] - d[1]))
    along = vw * w + vx * x + vy * y + vz * z
    return (vw - along * w) * norm, (vx - along * x) * norm, (vy - along * y) * norm, (vz - along * z) * norm


@njit(nogil=True, cache=True, error_model="numpy")
def _backward(
    start, step, means, quats, scales, opacities, views, ks, width, height, eps2d, antialiased, radii, g_means2d,
    g_depths, g_conics, g_alphas, v_means, v_quats, v_scales, v_opacities
):  # fmt: skip
    """Gradients of a stripe of Gaussians, summed over the cameras that see them."""
    begin, end = stripe(start, step, means.shape[0])
    for i in range(begin, end):
        vm0, vm1, vm2, v_opacity = 0.0, 0.0, 0.0, 0.0
        d0, d1, d2, d3, d4, d5, d6, d7, d8 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        vs0, vs1, vs2 = 0.0, 0.0, 0.0
        qw, qx, qy, qz = float(quats[i, 0]), float(quats[i, 1]), float(quats[i, 2]), float(quats[i, 3])
        norm = 0.0
        r = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
        for cam in range(views.shape[0]):
            if radii[cam, i] <= 0:
                continue
            if norm == 0.0:
                norm = 1.0 / math.sqrt(qw * qw + qx * qx + qy * qy + qz * qz)
                r = _rotation(qw * norm, qx * norm, qy * norm, qz * norm)
            mx, my, mz = float(means[i, 0]), float(means[i, 1]), float(means[i, 2])
            s0, s1, s2 = float(scales[i, 0]), float(scales[i, 1]), float(scales[i, 2])
            view, k = views[cam], ks[cam]
            px = view[0, 0] * mx + view[0, 1] * my + view[0, 2] * mz + view[0, 3]
            py = view[1, 0] * mx + view[1, 1] * my + view[1, 2] * mz + view[1, 3]
            pz = view[2, 0] * mx + view[2, 1] * my + view[2, 2] * mz + view[2, 3]
            ux, uy = _limit_slopes(px, py, pz, k, width, height)
            t = _linear_map(view, k, pz, ux, uy)
            a = _footprint(t, r, s0, s1, s2)
            xx, xy, yy, det0 = _covariance(a)
            g_alpha = float(g_alphas[cam, i])
            g_compensation = 0.0
            if antialiased:
                det = det0 + eps2d * (xx + yy) + eps2d * eps2d
                g_compensation = g_alpha * opacities[i]
                g_alpha *= math.sqrt(det0 / det)
            v_opacity += g_alpha
            v_xx, v_xy, v_yy = _covariance_grads(
                xx, xy, yy, det0, eps2d, g_conics[cam, i, 0], g_conics[cam, i, 1], g_conics[cam, i, 2], g_compensation
            )
            # A A^T: gradient to A, then to J R (through M) and to M (through J R).
            a0, a1, a2 = 2.0 * v_xx * a[0] + v_xy * a[3], 2.0 * v_xx * a[1] + v_xy * a[4], 2.0 * v_xx * a[2] + v_xy * a[5]
            b0, b1, b2 = v_xy * a[0] + 2.0 * v_yy * a[3], v_xy * a[1] + 2.0 * v_yy * a[4], v_xy * a[2] + 2.0 * v_yy * a[5]
            n00, n01, n02 = t[0] * a0 + t[3] * b0, t[0] * a1 + t[3] * b1, t[0] * a2 + t[3] * b2
            n10, n11, n12 = t[1] * a0 + t[4] * b0, t[1] * a1 + t[4] * b1, t[1] * a2 + t[4] * b2
            n20, n21, n22 = t[2] * a0 + t[5] * b0, t[2] * a1 + t[5] * b1, t[2] * a2 + t[5] * b2
            vs0 += n00 * r[0] + n10 * r[3] + n20 * r[6]
            vs1 += n01 * r[1] + n11 * r[4] + n21 * r[7]
            vs2 += n02 * r[2] + n12 * r[5] + n22 * r[8]
            d0, d1, d2 = d0 + n00 * s0, d1 + n01 * s1, d2 + n02 * s2
            d3, d4, d5 = d3 + n10 * s0, d4 + n11 * s1, d5 + n12 * s2
            d6, d7, d8 = d6 + n20 * s0, d7 + n21 * s1, d8 + n22 * s2
            a0, a1, a2, b0, b1, b2 = a0 * s0, a1 * s1, a2 * s2, b0 * s0, b1 * s1, b2 * s2
            t0, t1, t2 = a0 * r[0] + a1 * r[1] + a2 * r[2], a0 * r[3] + a1 * r[4] + a2 * r[5], a0 * r[6] + a1 * r[7] + a2 * r[8]
            t3, t4, t5 = b0 * r[0] + b1 * r[1] + b2 * r[2], b0 * r[3] + b1 * r[4] + b2 * r[5], b0 * r[6] + b1 * r[7] + b2 * r[8]
            # J = [[fx/z, 0, -fx ux/z], [0, fy/z, -fy uy/z]].
            jx, jy, rz = k[0, 0] / pz, k[1, 1] / pz, 1.0 / pz
            j00 = t0 * view[0, 0] + t1 * view[0, 1] + t2 * view[0, 2]
            j02 = t0 * view[2, 0] + t1 * view[2, 1] + t2 * view[2, 2]
            j11 = t3 * view[1, 0] + t4 * view[1, 1] + t5 * view[1, 2]
            j12 = t3 * view[2, 0] + t4 * view[2, 1] + t5 * view[2, 2]
            gx, gy = float(g_means2d[cam, i, 0]), float(g_means2d[cam, i, 1])
            vx, vy = gx * jx, gy * jy
            vz = float(g_depths[cam, i]) - rz * (gx * jx * px + gy * jy * py)
            vz -= rz * (jx * (j00 - ux * j02) + jy * (j11 - uy * j12))
            slope_x, slope_y = -jx * j02, -jy * j12
            if ux == px / pz:
                vx += slope_x * rz
                vz -= slope_x * rz * ux
            if uy == py / pz:
                vy += slope_y * rz
                vz -= slope_y * rz * uy
            vm0 += view[0, 0] * vx + view[1, 0] * vy + view[2, 0] * vz
            vm1 += view[0, 1] * vx + view[1, 1] * vy + view[2, 1] * vz
            vm2 += view[0, 2] * vx + view[1, 2] * vy + view[2, 2] * vz
        v_means[i, 0], v_means[i, 1], v_means[i, 2] = vm0, vm1, vm2
        v_scales[i, 0], v_scales[i, 1], v_scales[i, 2] = vs0, vs1, vs2
        v_opacities[i] = v_opacity
        if norm != 0.0:
            v_quats[i, 0], v_quats[i, 1], v_quats[i, 2], v_quats[i, 3] = _quat_grads(
                qw * norm, qx * norm, qy * norm, qz * norm, norm, (d0, d1, d2, d3, d4, d5, d6, d7, d8)
            )
        else:
            v_quats[i, 0] = v_quats[i, 1] = v_quats[i, 2] = v_quats[i, 3] = 0.0


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
            _forward, *inputs, camera.views, camera.ks, camera.width, camera.height, camera.near_plane,
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
            _backward, *inputs, camera.views, camera.ks, camera.width, camera.height, camera.eps2d,
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
