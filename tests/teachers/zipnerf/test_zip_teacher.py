"""The teacher's contract (radcomp_plugins/teachers/rays.py)."""

import pytest
import torch
from tiny_zipnerf import OBJECT, rays_at, tiny_model

from radcomp_plugins.teachers.rays import RayTeacher
from radcomp_plugins.teachers.zipnerf import teacher as teacher_module
from radcomp_plugins.teachers.zipnerf.teacher import ZipNerfTeacher


@pytest.mark.parametrize("metadata", [OBJECT, {}])
@pytest.mark.parametrize("jitter", [False, True])
def test_answers_keep_the_contract(metadata: dict, jitter: bool) -> None:
    teacher = ZipNerfTeacher(tiny_model(metadata, skip_weight_threshold=0.3))
    assert isinstance(teacher, RayTeacher)
    rays = rays_at(torch.rand(60, 3) * 3 - 1.5, distance=1.0 if not metadata else 4.0).reshape((5, 12))
    answer = teacher.query_rays(rays, jitter=jitter)
    assert answer.edges.shape == (5, 12, 9) and answer.weights.shape == (5, 12, 8) and answer.rgb.shape == (5, 12, 3)
    assert (answer.edges.diff(dim=-1) >= 0).all() and answer.edges.min() >= 0
    total = answer.weights.sum(dim=-1)
    assert answer.weights.min() >= 0 and total.max() <= 1 + 1e-5
    if not metadata:
        torch.testing.assert_close(total, torch.ones(5, 12))
    # Premultiplied: at most what the weights let through, and a little for the colour's padding.
    assert answer.rgb.min() >= 0 and (answer.rgb <= total[..., None] * 1.001 + 1e-6).all()
    assert not answer.rgb.requires_grad and not answer.weights.requires_grad


def test_on_its_background_it_is_what_the_model_draws() -> None:
    model = tiny_model()
    teacher = ZipNerfTeacher(model)
    rays = rays_at(torch.rand(40, 3) - 0.5)
    answer = teacher.query_rays(rays)
    drawn = answer.rgb + (1 - answer.weights.sum(dim=-1, keepdim=True)) * teacher.background
    with torch.no_grad():
        torch.testing.assert_close(drawn, model(rays)["rgb"], atol=2e-3, rtol=0)


def test_edges_are_distances_in_the_scene() -> None:
    teacher = ZipNerfTeacher(tiny_model())
    rays = rays_at(torch.zeros(3, 3))
    edges = teacher.query_rays(rays).edges
    # The box of half side 1.5 is entered at 4 - 1.5 and left at 4 + 1.5.
    assert edges.min() >= 2.5 - 1e-5 and edges.max() <= 5.5 + 1e-5
    points = rays.origins[:, None] + edges[..., None] * rays.directions[:, None]
    assert points.abs().max() <= 1.5 + 1e-5


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = ZipNerfTeacher(tiny_model())
    rays = rays_at(torch.rand(50, 3) - 0.5)
    whole = teacher.query_rays(rays)
    monkeypatch.setattr(teacher_module, "CPU_CHUNK", 7)
    parts = teacher.query_rays(rays)
    torch.testing.assert_close(whole.rgb, parts.rgb)
    torch.testing.assert_close(whole.weights, parts.weights)


def test_jitter_comes_from_the_global_generator() -> None:
    teacher = ZipNerfTeacher(tiny_model())
    rays = rays_at(torch.rand(10, 3) - 0.5)

    def ask() -> torch.Tensor:
        torch.manual_seed(3)
        return teacher.query_rays(rays, jitter=True).edges

    assert torch.equal(ask(), ask()) and not torch.equal(ask(), teacher.query_rays(rays).edges)
    assert torch.equal(teacher.query_rays(rays).edges, teacher.query_rays(rays).edges)


def test_rays_and_model_are_left_as_they_were() -> None:
    teacher = ZipNerfTeacher(tiny_model())
    rays = rays_at(torch.rand(10, 3) - 0.5)
    before = (rays.origins.clone(), rays.directions.clone())
    teacher.query_rays(rays)
    assert torch.equal(rays.origins, before[0]) and torch.equal(rays.directions, before[1]) and rays.nears is None
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert teacher.to("cpu") is teacher
