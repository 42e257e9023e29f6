"""The rasterizer against a dense float64 reference: image, gradients, statistics; and the same bits for any threads."""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from radcomp_plugins.core.threads import get_num_threads, set_num_threads
from radcomp_plugins.splats.rasterize import rasterize

SH = [0.28209479177387814, 0.4886025119029199]


def make_scene(count: int, sh_degree: int = 3, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "means": torch.randn(count, 3, generator=g) * 0.7,
        "quats": torch.randn(count, 4, generator=g),
        "scales": torch.exp(math.log(0.08) + 0.6 * torch.randn(count, 3, generator=g)),
        "opacities": torch.sigmoid(1.5 * torch.randn(count, generator=g)),
        "colors": 0.3 * torch.randn(count, (sh_degree + 1) ** 2, 3, generator=g),
    }


def make_cameras(width: int, height: int, number: int = 1) -> tuple[Tensor, Tensor]:
    viewmats, intrinsics = [], []
    for index in range(number):
        angle = 0.4 * index
        view = torch.eye(4)
        view[0, 0], view[0, 2], view[2, 0], view[2, 2] = (
            math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle),
        )  # fmt: skip
        view[2, 3] = 4.0 + 0.3 * index
        viewmats.append(view)
        focal = 0.9 * width
        intrinsics.append(torch.tensor([[focal, 0, width / 2 + 1.3], [0, focal, height / 2 - 0.7], [0, 0, 1]]))
    return torch.stack(viewmats), torch.stack(intrinsics)


def sh_basis(d: Tensor, degree: int) -> Tensor:
    """Real spherical harmonics [N, (degree + 1)^2] of unit directions, in the order and signs of 3DGS."""
    x, y, z = d.unbind(-1)
    rows = [torch.full_like(x, SH[0])]
    if degree > 0:
        rows += [-SH[1] * y, SH[1] * z, -SH[1] * x]
    if degree > 1:
        a, b, c = 1.0925484305920792, 0.31539156525252005, 0.5462742152960396
        rows += [a * x * y, -a * y * z, b * (2 * z * z - x * x - y * y), -a * x * z, c * (x * x - y * y)]
    if degree > 2:
        a, b, c = 0.5900435899266435, 2.890611442640554, 0.4570457994644658
        e, f = 0.3731763325901154, 1.445305721320277
        rows += [
            -a * y * (3 * x * x - y * y), b * x * y * z, -c * y * (4 * z * z - x * x - y * y),
            e * z * (2 * z * z - 3 * x * x - 3 * y * y), -c * x * (4 * z * z - x * x - y * y),
            f * z * (x * x - y * y), -a * x * (x * x - 3 * y * y),
        ]  # fmt: skip
    return torch.stack(rows, -1)


def rotations(quats: Tensor) -> Tensor:
    w, x, y, z = (quats / quats.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).reshape(-1, 3, 3)


def project(scene: dict[str, Tensor], view: Tensor, k: Tensor, width: int, height: int) -> dict[str, Tensor]:
    """EWA projection with gsplat 1.4's constants, under autograd."""
    rotation, translation = view[:3, :3], view[:3, 3]
    p = scene["means"] @ rotation.T + translation
    axes = rotations(scene["quats"]) * scene["scales"][:, None, :]
    covariance = rotation @ (axes @ axes.transpose(1, 2)) @ rotation.T
    fx, fy, cx, cy = k[0, 0], k[1, 1], k[0, 2], k[1, 2]
    z = p[:, 2]
    margin_x, margin_y = 0.3 * 0.5 * width / fx, 0.3 * 0.5 * height / fy
    tx = z * (p[:, 0] / z).clamp(float(-(cx / fx + margin_x)), float((width - cx) / fx + margin_x))
    ty = z * (p[:, 1] / z).clamp(float(-(cy / fy + margin_y)), float((height - cy) / fy + margin_y))
    zero = torch.zeros_like(z)
    jacobian = torch.stack([fx / z, zero, -fx * tx / z**2, zero, fy / z, -fy * ty / z**2], -1).reshape(-1, 2, 3)
    flat = jacobian @ covariance @ jacobian.transpose(1, 2)
    det0 = flat[:, 0, 0] * flat[:, 1, 1] - flat[:, 0, 1] ** 2
    a, b, c = flat[:, 0, 0] + 0.3, flat[:, 0, 1], flat[:, 1, 1] + 0.3
    det = a * c - b * b
    mid = 0.5 * (a + c)
    radius = torch.ceil(3 * (mid + (mid * mid - det).clamp(min=0.01).sqrt()).sqrt())
    means2d = torch.stack([fx * p[:, 0] / z + cx, fy * p[:, 1] / z + cy], -1)
    on = (means2d + radius[:, None] > 0).all(-1) & (means2d[:, 0] - radius < width) & (means2d[:, 1] - radius < height)
    return {
        "means2d": means2d, "conics": torch.stack([c / det, -b / det, a / det], -1), "depths": z,
        "radii": torch.where(on & (z > 0.01), radius, 0).detach(), "compensation": (det0 / det).clamp(min=0).sqrt(),
    }  # fmt: skip


def blend(splats: dict[str, Tensor], opacities: Tensor, colors: Tensor, width: int, height: int) -> dict[str, Tensor]:
    """Front-to-back compositing, one Gaussian after the other over the whole image, tiles of 16 as gsplat has them."""
    dtype = colors.dtype
    ys, xs = torch.meshgrid(
        torch.arange(height, dtype=dtype) + 0.5, torch.arange(width, dtype=dtype) + 0.5, indexing="ij"
    )
    trans, image = torch.ones(height, width, dtype=dtype), torch.zeros(height, width, colors.shape[1], dtype=dtype)
    done = torch.zeros(height, width, dtype=torch.bool)
    tile_x, tile_y = xs.long() // 16, ys.long() // 16
    count = len(opacities)
    hits, total, largest = (
        torch.zeros(count, dtype=torch.int64),
        torch.zeros(count, dtype=dtype),
        torch.zeros(count, dtype=dtype),
    )
    for i in splats["depths"].argsort(stable=True).tolist():
        radius = splats["radii"][i]
        if radius <= 0:
            continue
        (mx, my), (a, b, c) = splats["means2d"][i], splats["conics"][i]
        low = torch.stack([mx - radius, my - radius]).detach().div(16).floor().clamp(min=0)
        high = torch.stack([mx + radius, my + radius]).detach().div(16).ceil()
        inside = (tile_x >= low[0]) & (tile_x < high[0]) & (tile_y >= low[1]) & (tile_y < high[1])
        dx, dy = mx - xs, my - ys
        sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
        alpha = (opacities[i] * torch.exp(-sigma)).clamp(max=0.999)
        valid = (sigma >= 0) & (alpha >= 1 / 255) & ~done & inside
        after = trans * (1 - alpha)
        stop = valid & (after <= 1e-4)
        done, valid = done | stop, valid & ~stop
        weight = torch.where(valid, alpha * trans, 0.0)
        image = image + weight[..., None] * colors[i]
        trans = torch.where(valid, after, trans)
        hits[i], total[i], largest[i] = valid.sum(), weight.detach().sum(), weight.detach().max()
    return {"image": image, "alpha": 1 - trans, "hits": hits, "weight_sum": total, "weight_max": largest}


def reference(scene: dict[str, Tensor], view: Tensor, k: Tensor, width: int, height: int, degree: int | None,
              mode: str = "classic") -> dict[str, Tensor]:  # fmt: skip
    splats = project(scene, view, k, width, height)
    opacities = scene["opacities"] * splats["compensation"] if mode == "antialiased" else scene["opacities"]
    colors = scene["colors"]
    if degree is not None:
        center = -view[:3, :3].T @ view[:3, 3]
        direction = torch.nn.functional.normalize(scene["means"] - center, dim=-1)
        basis = sh_basis(direction, degree)
        colors = ((basis[..., None] * colors[:, : basis.shape[1]]).sum(1) + 0.5).clamp(min=0)
    features = torch.cat([colors, splats["depths"][:, None]], -1)
    return {**blend(splats, opacities, features, width, height), **splats}


def leaves(scene: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype).clone().requires_grad_() for name, tensor in scene.items()}


def draw(scene: dict[str, Tensor], viewmats: Tensor, intrinsics: Tensor, width: int, height: int, **options: Any):
    """`rasterize` of a scene of activated tensors."""
    tensors = (scene["means"], scene["quats"], scene["scales"], scene["opacities"], scene["colors"])
    means, quats, scales, opacities, colors = tensors
    return rasterize(means, quats, scales, opacities, colors, viewmats, intrinsics, width, height, **options)


def relative(ours: Tensor | None, theirs: Tensor | None) -> float:
    assert ours is not None and theirs is not None
    return float((ours.double() - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("mode", ["classic", "antialiased"])
@pytest.mark.parametrize("degree", [None, 0, 1, 2, 3])
def test_image_and_gradients_match_the_dense_reference(mode, degree):
    width, height = 61, 45
    scene = make_scene(250, degree or 0)
    if degree is None:
        scene["colors"] = torch.rand(250, 3, generator=torch.Generator().manual_seed(5))
    viewmats, intrinsics = make_cameras(width, height)
    ours, theirs = leaves(scene, torch.float32), leaves(scene, torch.float64)
    render, alpha, info = draw(
        ours, viewmats, intrinsics, width, height, sh_degree=degree, render_mode="RGB+D", rasterize_mode=mode
    )
    expected = reference(theirs, viewmats[0].double(), intrinsics[0].double(), width, height, degree, mode)
    assert (render[0].double() - expected["image"]).abs()[..., :3].max() <= 1e-5
    assert (render[0, ..., 3].double() - expected["image"][..., 3]).abs().max() <= 1e-4  # depths are about 4
    assert (alpha[0, ..., 0].double() - expected["alpha"]).abs().max() <= 1e-5
    weights = torch.randn(height, width, 5, generator=torch.Generator().manual_seed(1))
    ((render[0] * weights[..., :4]).sum() + (alpha[0, ..., 0] * weights[..., 4]).sum()).backward()
    ((expected["image"] * weights[..., :4]).sum() + (expected["alpha"] * weights[..., 4]).sum()).backward()
    for name in scene:
        assert relative(ours[name].grad, theirs[name].grad) <= 1e-4, name


def test_statistics_are_exact_and_add_up_over_cameras():
    width, height, number = 64, 48, 2
    scene = make_scene(300, 0, seed=2)
    viewmats, intrinsics = make_cameras(width, height, number)
    info = draw(scene, viewmats, intrinsics, width, height, sh_degree=0, compute_stats=True)[2]
    double = {name: tensor.double() for name, tensor in scene.items()}
    each = [reference(double, viewmats[i].double(), intrinsics[i].double(), width, height, 0) for i in range(number)]
    assert info["hits"].sum() > 1000
    assert torch.equal(info["hits"], torch.stack([e["hits"] for e in each]).sum(0))
    torch.testing.assert_close(
        info["weight_sum"].double(), torch.stack([e["weight_sum"] for e in each]).sum(0), rtol=1e-4, atol=1e-5
    )
    largest = torch.stack([e["weight_max"] for e in each]).amax(0)
    torch.testing.assert_close(info["weight_max"].double(), largest, rtol=1e-4, atol=1e-6)


def test_backgrounds_batches_and_expected_depth():
    width, height = 50, 33
    scene = make_scene(120, 1, seed=3)
    viewmats, intrinsics = make_cameras(width, height, 2)
    backgrounds = torch.tensor([[1.0, 0.5, 0.0], [0.2, 0.4, 0.6]])
    plain, alpha, _ = draw(scene, viewmats, intrinsics, width, height, sh_degree=1, render_mode="RGB+ED")
    over = draw(scene, viewmats, intrinsics, width, height, sh_degree=1, backgrounds=backgrounds)[0]
    torch.testing.assert_close(over, plain[..., :3] + (1 - alpha) * backgrounds[:, None, None], atol=1e-6, rtol=1e-6)
    total = draw(scene, viewmats, intrinsics, width, height, sh_degree=1, render_mode="D")[0]
    torch.testing.assert_close(plain[..., 3:] * alpha, total, atol=1e-4, rtol=1e-4)
    for index in range(2):
        single = draw(scene, viewmats[index : index + 1], intrinsics[index : index + 1], width, height, sh_degree=1)[0]
        assert torch.equal(single[0], plain[index, ..., :3])


def draw_with_gradients(scene: dict[str, Tensor], absgrad: bool = False) -> list[Tensor]:
    viewmats, intrinsics = make_cameras(70, 52, 2)
    ours = leaves(scene, torch.float32)
    render, alpha, info = draw(ours, viewmats, intrinsics, 70, 52, sh_degree=3, absgrad=absgrad, compute_stats=True)
    info["means2d"].retain_grad()
    (render.square().sum() + alpha.sum()).backward()
    extra = [info["means2d"].absgrad] if absgrad else []
    grads = [leaf.grad for leaf in ours.values() if leaf.grad is not None]
    return [render.detach(), alpha.detach(), info["weight_sum"], info["means2d"].grad, *grads, *extra]


def test_same_bits_for_any_number_of_threads():
    scene, before = make_scene(2000, 3, seed=4), get_num_threads()
    try:
        results = []
        for threads in (1, 2, 4):
            set_num_threads(threads)
            results.append(draw_with_gradients(scene, absgrad=True))
    finally:
        set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_same_bits_under_concurrent_callers():
    scene = make_scene(1500, 3, seed=6)
    alone = draw_with_gradients(scene)
    with ThreadPoolExecutor(4) as callers:
        for together in callers.map(lambda _: draw_with_gradients(scene), range(8)):
            assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_absolute_gradients_bound_the_signed_ones():
    scene = make_scene(200, 3, seed=7)
    viewmats, intrinsics = make_cameras(40, 40)
    ours = leaves(scene, torch.float32)
    render, _, info = draw(ours, viewmats, intrinsics, 40, 40, sh_degree=3, absgrad=True)
    info["means2d"].retain_grad()
    render.sin().sum().backward()
    signed, absolute = info["means2d"].grad, info["means2d"].absgrad
    assert (absolute >= signed.abs() - 1e-5 * signed.abs().max()).all()
    assert (absolute > 1.5 * signed.abs()).any()
    assert ((absolute > 0).any(-1) == (signed != 0).any(-1)).all()


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 3)])
def test_nothing_to_draw_gives_the_background(size):
    viewmats, intrinsics = make_cameras(*size)
    empty = leaves({name: tensor[:0] for name, tensor in make_scene(1).items()}, torch.float32)
    behind = make_scene(5)
    behind["means"][:, 2] -= 100
    for scene in (empty, leaves(behind, torch.float32)):
        render, alpha, info = draw(
            scene, viewmats, intrinsics, *size, sh_degree=3, backgrounds=torch.full((1, 3), 0.25)
        )
        assert render.shape == (1, size[1], size[0], 3) and torch.all(render == 0.25) and torch.all(alpha == 0)
        (render.sum() + alpha.sum()).backward()
        assert (info["radii"] == 0).all()


def test_gaussians_that_are_not_finite_are_culled():
    scene = make_scene(100, 1, seed=8)
    viewmats, intrinsics = make_cameras(40, 40)
    clean = draw({name: t[4:] for name, t in scene.items()}, viewmats, intrinsics, 40, 40, sh_degree=1)[0]
    scene["means"][0, 1], scene["scales"][1, 0], scene["quats"][2] = math.nan, math.inf, 0.0
    scene["opacities"][3] = math.nan
    broken = draw(scene, viewmats, intrinsics, 40, 40, sh_degree=1)[0]
    assert torch.isfinite(broken).all()
    torch.testing.assert_close(broken, clean, atol=1e-6, rtol=0)


def test_gsplat_densifies_from_what_it_returns():
    from gsplat.strategy import DefaultStrategy

    scene = make_scene(80, 3, seed=9)
    raw = {**scene, "scales": scene["scales"].log(), "opacities": scene["opacities"].logit()}
    params = torch.nn.ParameterDict({name: torch.nn.Parameter(tensor) for name, tensor in raw.items()})
    optimizers: dict[str, torch.optim.Optimizer] = {name: torch.optim.Adam([param]) for name, param in params.items()}
    strategy = DefaultStrategy(refine_start_iter=0, refine_every=1, grow_grad2d=1e-9, absgrad=True, prune_opa=0.0)
    state = strategy.initialize_state()
    viewmats, intrinsics = make_cameras(40, 40)
    render, _, info = rasterize(
        params["means"], params["quats"], params["scales"].exp(), params["opacities"].sigmoid(), params["colors"],
        viewmats, intrinsics, 40, 40, sh_degree=3, absgrad=True,
    )  # fmt: skip
    strategy.step_pre_backward(params, optimizers, state, 1, info)
    render.square().sum().backward()
    strategy.step_post_backward(params, optimizers, state, 1, info)
    assert len(params["means"]) > 80
