"""Projection and SH in plain torch, a stopgap until the numba kernels take over."""

import torch
from torch import Tensor


def project(means, quats, scales, viewmats, Ks, width, height, near, far, eps2d, radius_clip):  # noqa: N803
    """EWA projection with the constants of gsplat 1.4.0: radii, means2d, depths, conics, compensations."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rot = torch.stack(
        [
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ], dim=-1,
    ).reshape(-1, 3, 3)  # fmt: skip
    m = rot * scales[:, None, :]
    cov = m @ m.transpose(1, 2)
    view = viewmats[:, :3, :3]
    cam = torch.einsum("cij,nj->cni", view, means) + viewmats[:, None, :3, 3]
    cov_c = view[:, None] @ cov[None] @ view.transpose(1, 2)[:, None]
    tx, ty, tz = cam.unbind(-1)
    ok = (tz >= near) & (tz <= far)
    tz = torch.where(ok, tz, torch.ones_like(tz))
    fx, fy, cx, cy = (Ks[:, i, j, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    mx, my = 0.15 * width / fx, 0.15 * height / fy
    ux = torch.minimum(torch.maximum(tx / tz, -(cx / fx + mx)), (width - cx) / fx + mx)
    uy = torch.minimum(torch.maximum(ty / tz, -(cy / fy + my)), (height - cy) / fy + my)
    zero = torch.zeros_like(tz)
    jac = torch.stack([fx / tz, zero, -fx * ux / tz, zero, fy / tz, -fy * uy / tz], -1).reshape(*tz.shape, 2, 3)
    cov2 = jac @ cov_c @ jac.transpose(-1, -2)
    a0, b0, c0 = cov2[..., 0, 0], cov2[..., 0, 1], cov2[..., 1, 1]
    a1, c1 = a0 + eps2d, c0 + eps2d
    det = a1 * c1 - b0 * b0
    ok = ok & (det > 0)
    det = torch.where(ok, det, torch.ones_like(det))
    comp = ((a0 * c0 - b0 * b0) / det).clamp_min(0).sqrt()
    conics = torch.stack([c1 / det, -b0 / det, a1 / det], -1)
    means2d = torch.stack([fx * tx / tz + cx, fy * ty / tz + cy], -1)
    with torch.no_grad():
        mid = 0.5 * (a1 + c1)
        radius = torch.ceil(3 * (mid + (mid * mid - det).clamp_min(0.01).sqrt()).sqrt())
        px, py = means2d.unbind(-1)
        ok = ok & (radius > radius_clip)
        ok = ok & (px + radius > 0) & (px - radius < width) & (py + radius > 0) & (py - radius < height)
        ok = ok & radius.isfinite() & means2d.isfinite().all(-1)
        radii = torch.where(ok, radius, zero).to(torch.int32)
    return radii, means2d, tz, conics, comp


def sh_colors(degree: int, dirs: Tensor, coeffs: Tensor) -> Tensor:
    """Colours before the +0.5: real SH, the sign convention of 3DGS."""
    x, y, z = torch.nn.functional.normalize(dirs, dim=-1).unbind(-1)
    basis = [torch.full_like(x, 0.28209479177387814)]
    if degree > 0:
        basis += [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
    if degree > 1:
        basis += [
            1.0925484305920792 * x * y, -1.0925484305920792 * y * z, 0.31539156525252005 * (3 * z * z - 1),
            -1.0925484305920792 * x * z, 0.5462742152960396 * (x * x - y * y),
        ]  # fmt: skip
    if degree > 2:
        basis += [
            -0.5900435899266435 * y * (3 * x * x - y * y), 2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (5 * z * z - 1), 0.3731763325901154 * z * (5 * z * z - 3),
            -0.4570457994644658 * x * (5 * z * z - 1), 1.445305721320277 * z * (x * x - y * y),
            -0.5900435899266435 * x * (x * x - 3 * y * y),
        ]  # fmt: skip
    return (torch.stack(basis, -1)[..., None] * coeffs[..., : (degree + 1) ** 2, :]).sum(-2)
