"""Teachers of points: what they say is what their models draw from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.models.vanilla_nerf import VanillaModelConfig
from ray_teachers import make_nerfacto, rays_around
from tiny_zipnerf import tiny_model

from radcomp_plugins import compat
from radcomp_plugins.errors import InputError
from radcomp_plugins.teachers import points as points_module
from radcomp_plugins.teachers.load_points import load_point_teacher, point_teacher_of
from radcomp_plugins.teachers.load_rays import teacher_of
from radcomp_plugins.teachers.points import FieldPointTeacher, PointTeacher
from radcomp_plugins.teachers.vanilla import VanillaNerfTeacher
from radcomp_plugins.teachers.zipnerf.points import ZipNerfPointTeacher

HERE = Path("run")


def make_vanilla(seed: int = 0, **fields: Any) -> Any:
    """nerfstudio's own vanilla-nerf, untrained, with a density that varies."""
    torch.manual_seed(seed)
    config = VanillaModelConfig(num_coarse_samples=12, num_importance_samples=10, **fields)
    with compat.lazy_lpips():
        model = config.setup(scene_box=SceneBox(torch.tensor([[-1.5] * 3, [1.5] * 3])), num_train_data=2, metadata={})
    with torch.no_grad():
        for field in (model.field_coarse, model.field_fine):
            field.field_output_density.net.weight.mul_(40)
    return model.eval()


def quadrature(teacher: Any, taught: Any, rays: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and colour of a ray teacher's own intervals by asking for the points in their middles."""
    middle = 0.5 * (taught.edges[:, 1:] + taught.edges[:, :-1])
    points = rays.origins[:, None] + middle[..., None] * rays.directions[:, None]
    said = teacher.query_points(points.reshape(-1, 3), rays.directions[:, None].expand_as(points).reshape(-1, 3))
    depth = said.density.view(middle.shape) * taught.edges.diff(dim=-1)
    weights = torch.exp(-(depth.cumsum(-1) - depth)) * -torch.expm1(-depth)
    return weights, (weights[..., None] * said.rgb.view(points.shape)).sum(1)


def test_nerfacto_draws_from_what_it_says_of_points() -> None:
    model = make_nerfacto(background_color="white")
    rays = rays_around()
    taught = teacher_of(model, HERE).query_rays(rays)
    teacher = point_teacher_of(model, HERE)
    assert isinstance(teacher, FieldPointTeacher) and isinstance(teacher, PointTeacher)
    weights, rgb = quadrature(teacher, taught, rays)
    assert torch.allclose(weights, taught.weights, atol=1e-4) and torch.allclose(rgb, taught.rgb, atol=1e-4)
    assert torch.equal(teacher.background, torch.ones(3)) and teacher.trained_from > 0
    assert taught.weights.sum() > 1


def test_vanilla_draws_from_what_it_says_of_points() -> None:
    model = make_vanilla()
    rays = rays_around()
    teacher = point_teacher_of(model, HERE)
    assert isinstance(teacher, VanillaNerfTeacher) and teacher.trained_from == 2.0
    taught = teacher.query_rays(rays)
    weights, rgb = quadrature(teacher, taught, rays)
    assert torch.allclose(weights, taught.weights, atol=1e-4) and torch.allclose(rgb, taught.rgb, atol=1e-4)
    with torch.no_grad():
        stock = model(model.collider(rays))
    behind = 1 - taught.weights.sum(-1, keepdim=True)
    assert torch.allclose(taught.rgb + behind * teacher.background, stock["rgb_fine"], atol=1e-4)
    assert torch.allclose(taught.weights.sum(-1, keepdim=True), stock["accumulation_fine"], atol=1e-4)


def test_vanilla_may_jitter_and_then_does_not_any_more() -> None:
    teacher, rays = VanillaNerfTeacher(make_vanilla()), rays_around(20)
    still = teacher.query_rays(rays)
    assert not torch.equal(teacher.query_rays(rays, jitter=True).edges, still.edges)
    assert torch.equal(teacher.query_rays(rays).edges, still.edges)


def test_zipnerf_says_what_its_final_field_says() -> None:
    model = tiny_model()
    teacher = point_teacher_of(model, HERE)
    assert isinstance(teacher, ZipNerfPointTeacher) and isinstance(teacher, PointTeacher)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.field.grid.table.normal_(generator=g)
    points = torch.rand(300, 3, generator=g) * 2.8 - 1.4
    towards = torch.nn.functional.normalize(torch.randn(300, 3, generator=g), dim=-1)
    said = teacher.query_points(points, towards)
    # Thin cones from near by: the same places, and next to no width.
    from nerfstudio.cameras.rays import RayBundle

    from radcomp_plugins.teachers.zipnerf.render import Space, march_level

    rays = RayBundle(points - 0.01 * towards, towards, torch.full((300, 1), 1e-14))
    edges = torch.tensor([0.0, 1.0]).expand(300, 2)
    cones = model.cones(rays)
    object.__setattr__(cones, "near", torch.full((300, 1), 0.01 - 1e-5))
    object.__setattr__(cones, "far", torch.full((300, 1), 0.01 + 1e-5))
    with torch.no_grad():
        level = march_level(model.field, cones, Space(model.box, None, (1,)), edges, 1, False, False)
    density = -torch.log1p(-level.weights[:, 0].double()) / 2e-5
    assert torch.allclose(density.float(), said.density, rtol=0.05, atol=0.05 * float(said.density.median()))
    outside = teacher.query_points(points + 5.0, towards)
    assert not outside.density.any() and said.density.min() > 0


def test_zipnerf_footprint_blurs() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.field.grid.table.normal_(generator=torch.Generator().manual_seed(0))
    points, towards = torch.rand(500, 3) - 0.5, torch.nn.functional.normalize(torch.randn(500, 3), dim=-1)
    sharp = ZipNerfPointTeacher(model).query_points(points, towards).density.log().std()
    assert ZipNerfPointTeacher(model, 0.3).query_points(points, towards).density.log().std() < 0.8 * sharp


def test_any_number_of_points_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = point_teacher_of(make_nerfacto(), HERE)
    points, towards = torch.randn(100, 3), torch.nn.functional.normalize(torch.randn(100, 3), dim=-1)
    whole = teacher.query_points(points, towards)
    monkeypatch.setattr(points_module, "CPU_CHUNK", 33)
    parts = teacher.query_points(points, towards)
    assert torch.allclose(whole.density, parts.density, rtol=1e-5) and torch.allclose(whole.rgb, parts.rgb, atol=1e-6)
    none = teacher.query_points(points[:0], towards[:0])
    assert none.density.shape == (0,) and none.rgb.shape == (0, 3)


def test_answers_are_densities_and_colours_without_gradients() -> None:
    for model in (make_nerfacto(), make_vanilla(), tiny_model()):
        said = point_teacher_of(model, HERE).query_points(torch.randn(50, 3), torch.randn(50, 3))
        assert said.density.min() >= 0 and said.rgb.min() >= 0 and said.rgb.max() <= 1
        assert not said.density.requires_grad and not any(p.requires_grad for p in model.parameters())


def test_models_without_a_field_are_told() -> None:
    class Wide(torch.nn.Module):
        field = None

    with pytest.raises(InputError, match="Wide models answer no point queries; expected nerfacto"):
        point_teacher_of(Wide(), HERE)
    model = make_vanilla()
    model.temporal_distortion = torch.nn.Identity()
    with pytest.raises(InputError, match="NeRFModel models answer no point queries"):
        point_teacher_of(model, HERE)


def test_run_is_loaded_without_its_dataset(saved_run: Callable[..., Path]) -> None:
    model = make_nerfacto()
    folder = saved_run(model)
    points, towards = torch.randn(50, 3), torch.nn.functional.normalize(torch.randn(50, 3), dim=-1)
    truth = point_teacher_of(model, HERE).query_points(points, towards)
    said = load_point_teacher(folder).query_points(points, towards)
    assert torch.allclose(truth.density, said.density, rtol=1e-4) and torch.allclose(truth.rgb, said.rgb, atol=1e-5)


def test_splats_are_told(teacher_ply: Path, teacher_run: Path) -> None:
    for path in (teacher_ply, teacher_run):
        with pytest.raises(InputError, match="splat models answer no"):
            load_point_teacher(path)
