"""Drawing: the kernel against plain torch, both against a slow reference in float64."""

from typing import Any

import pytest
import torch
from tiny_vqad import rays_at_sphere, sphere_field

from radcomp_plugins.core.octree_lookup import locate
from radcomp_plugins.core.threads import get_num_threads, set_num_threads
from radcomp_plugins.vqad.render import Drawn, draw


def gradients(field: Any, drawn: Drawn, seed: int = 0) -> list[torch.Tensor]:
    """Of a random mix of colours and accumulation, to all parameters that have any."""
    pull = torch.randn(len(drawn.rgb), 4, generator=torch.Generator().manual_seed(seed))
    field.zero_grad()
    (torch.cat([drawn.rgb, drawn.accumulation[:, None]], dim=1) * pull).sum().backward()
    return [p.grad.clone() for p in field.parameters() if p.grad is not None]


@pytest.mark.parametrize("activation", ["relu", "softplus", "exp"])
@pytest.mark.parametrize("mode", ["full", "logits", "latent", "fixed"])
def test_kernel_is_torch(activation: str, mode: str) -> None:
    field = sphere_field(mode, activation=activation)
    rays = rays_at_sphere(300)
    results = [draw(field, *rays, kernel=kernel) for kernel in (True, False)]
    ours, wanted = results
    assert ours.samples == wanted.samples > 300
    assert torch.equal(ours.nodes, wanted.nodes)
    for name in ("rgb", "accumulation", "depth", "weights"):
        assert torch.allclose(getattr(ours, name), getattr(wanted, name), atol=3e-6), name
    pairs = zip(*(gradients(field, drawn) for drawn in results), strict=True)
    for mine, theirs in pairs:
        assert float((mine - theirs).abs().max()) < 1e-4 * float(theirs.abs().max())


def slow_rays(field: Any, origins: torch.Tensor, directions: torch.Tensor, steps: int) -> torch.Tensor:
    """Colours and accumulation by tiny even steps along whole rays, where there is a finest voxel."""
    at = torch.linspace(1.0, 5.0, steps + 1)
    middle = 0.5 * (at[1:] + at[:-1])
    out = []
    for o, d in zip(origins, directions, strict=True):
        points = field.to_box(o + middle[:, None] * d)
        nodes = locate(field.octree, points)
        base = field.decoder.ray_base(d[None]).expand(steps, -1)
        density, colour = field.sample(field.encoding.table(), points, nodes, base)
        density = torch.where(nodes[:, -1] >= 0, density, 0.0)
        tau = (density * at.diff() / field.side).double()
        light = torch.exp(-(tau.cumsum(0) - tau))
        weight = light * -torch.expm1(-tau)
        out.append(torch.cat([(weight[:, None] * colour).sum(0), weight.sum()[None]]))
    return torch.stack(out).float()


def test_converges_to_the_integral() -> None:
    field = sphere_field("full", opaque=0.0)
    rays = rays_at_sphere(20)
    with torch.no_grad():
        wanted = slow_rays(field, *rays, 20_000)
        errors = []
        for per_voxel in (1, 4, 64):
            field.samples_per_voxel = per_voxel
            drawn = draw(field, *rays)
            got = torch.cat([drawn.rgb, drawn.accumulation[:, None]], dim=1)
            errors.append(float((got - wanted).abs().max()))
    assert errors[2] < 3e-3 and errors[2] < errors[1] < errors[0]


@pytest.mark.parametrize("kernel", [True, False])
def test_rays_end_where_they_are_opaque(kernel: bool) -> None:
    field = sphere_field("full", opaque=0.0)
    field.decoder.density_bias = 4.0
    rays = rays_at_sphere(200)
    with torch.no_grad():
        whole = draw(field, *rays, kernel=kernel)
        field.opaque = 1e-2
        short = draw(field, *rays, kernel=kernel)
    assert whole.samples == len(whole.weights)
    assert short.samples < 0.8 * whole.samples
    assert float((short.rgb - whole.rgb).abs().max()) <= 1e-2
    assert bool((short.weights[short.nodes < 0] == 0).all())


def test_levels_of_detail_are_truncated_fields() -> None:
    from radcomp_plugins.vqad.field import field_from_scene, scene_from_field

    field = sphere_field("fixed")
    scene = scene_from_field(field)
    rays = rays_at_sphere(100)
    with torch.no_grad():
        read = field_from_scene(scene)
        for level in (2, 3, 4):
            wanted, got = draw(field_from_scene(scene.truncated(level)), *rays), draw(read, *rays, level=level)
            assert torch.equal(wanted.rgb, got.rgb) and torch.equal(wanted.depth, got.depth)
        assert not torch.equal(draw(read, *rays, level=3).rgb, draw(read, *rays).rgb)


def test_coarsest_sampling_sees_what_finer_levels_leave_out() -> None:
    field = sphere_field("full", samples_at="coarsest", opaque=0.0)
    rays = rays_at_sphere(100)
    with torch.no_grad():
        coarse = draw(field, *rays)
        field.samples_at = "finest"
        fine = draw(field, *rays)
    assert bool((coarse.nodes < 0).any()) and not bool((fine.nodes < 0).any())


def test_jitter_moves_samples_within_their_parts() -> None:
    field = sphere_field("full")
    rays = rays_at_sphere(100)
    with torch.no_grad():
        plain, moved, again = draw(field, *rays), draw(field, *rays, jitter=True), draw(field, *rays, jitter=True)
    assert len(plain.weights) == len(moved.weights)
    assert not torch.equal(plain.rgb, moved.rgb) and not torch.equal(moved.rgb, again.rgb)
    assert float((plain.rgb - moved.rgb).abs().mean()) < 0.1


def test_a_budget_of_samples_takes_the_first_rays() -> None:
    field = sphere_field("full")
    rays = rays_at_sphere(200)
    with torch.no_grad():
        whole, part = draw(field, *rays), draw(field, *rays, max_samples=500)
    assert 1 < part.rays < 200
    assert len(part.weights) <= 500
    assert torch.equal(part.rgb, whole.rgb[: part.rays])


def test_rays_that_miss() -> None:
    field = sphere_field("full")
    drawn = draw(field, torch.full((3, 3), 5.0), torch.tensor([[0.0, 0.0, 1.0]]).expand(3, -1))
    assert drawn.samples == 0
    assert bool((drawn.rgb == 0).all()) and bool((drawn.accumulation == 0).all()) and bool((drawn.depth == 0).all())
    gradients(field, drawn)


def test_same_bits_for_any_number_of_threads() -> None:
    before, results = get_num_threads(), []
    try:
        for count in (1, 3):
            set_num_threads(count)
            field = sphere_field("full")
            drawn = draw(field, *rays_at_sphere(700))
            results.append([drawn.rgb.detach(), *gradients(field, drawn)])
    finally:
        set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
