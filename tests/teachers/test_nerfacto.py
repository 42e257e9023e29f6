"""NerfactoTeacher: what it says of rays is what the model draws, for every background and any shape of rays."""

from typing import Any

import pytest
import torch
from ray_teachers import copy_of, make_nerfacto, rays_around

from radcomp_plugins.teachers.nerfacto import NerfactoTeacher, samples_by_proposals
from radcomp_plugins.teachers.ray_chunks import in_chunks
from radcomp_plugins.teachers.rays import RayTeacher, TaughtRays

KINDS: dict[str, dict[str, Any]] = {
    "object": {"scene": "object", "background_color": "white"},
    "space": {"scene": "unbounded", "background_color": "last_sample"},
    "black": {"scene": "unbounded", "background_color": "black"},
    "random": {"scene": "unbounded", "background_color": "random"},
}


@pytest.mark.parametrize("stock", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_colour_on_the_background_is_the_models_picture(kind, stock):
    if stock and kind == "object":
        pytest.skip("nerfacto has no objects")
    model = make_nerfacto(stock=stock, **KINDS[kind])
    teacher, rays = NerfactoTeacher(model), rays_around()
    assert isinstance(teacher, RayTeacher)
    taught = teacher.query_rays(rays)
    with torch.no_grad():
        drawn = model(copy_of(rays))["rgb"]
    total = taught.weights.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(taught.rgb + (1 - total) * teacher.background, drawn, atol=1e-5, rtol=1e-5)
    assert taught.edges.shape == (130, 7) and taught.weights.shape == (130, 6)
    assert (taught.edges.diff(dim=-1) >= 0).all() and (taught.weights >= 0).all() and (total <= 1 + 1e-5).all()


def test_backgrounds():
    colors = {name: NerfactoTeacher(make_nerfacto(**fields)).background.tolist() for name, fields in KINDS.items()}
    assert colors == {"object": [1, 1, 1], "space": [0, 0, 0], "black": [0, 0, 0], "random": [0, 0, 0]}
    trained_on_alpha = make_nerfacto(scene="object", background_color="white", has_alpha=True)
    assert NerfactoTeacher(trained_on_alpha).background.tolist() == [1, 1, 1]


def test_the_last_interval_takes_what_is_left_only_where_its_colour_is_the_background():
    thin: dict[str, Any] = {"average_init_density": 1e-3}
    left = NerfactoTeacher(make_nerfacto(scene="unbounded", background_color="black", **thin))
    taken = NerfactoTeacher(make_nerfacto(scene="unbounded", background_color="last_sample", **thin))
    a, b = left.query_rays(rays_around()), taken.query_rays(rays_around())
    assert (a.weights.sum(dim=-1) < 0.95).any()
    torch.testing.assert_close(b.weights.sum(dim=-1), torch.ones(130))
    torch.testing.assert_close(a.weights[:, :-1], b.weights[:, :-1])
    assert (b.weights[:, -1] >= a.weights[:, -1]).all() and not torch.allclose(a.rgb, b.rgb)


def test_distances_are_along_unit_directions():
    """The model's own median depth lies inside the interval where half the light has gone."""
    model = make_nerfacto(scene="object", background_color="white")
    taught = NerfactoTeacher(model).query_rays(rays_around())
    with torch.no_grad():
        depth = model(rays_around())["depth"][:, 0]
    half = (taught.weights.cumsum(dim=-1) >= 0.5).float().argmax(dim=-1)
    seen = taught.weights.sum(dim=-1) > 0.6
    middle = 0.5 * (taught.edges[:, 1:] + taught.edges[:, :-1]).gather(1, half[:, None])[:, 0]
    assert seen.sum() > 20
    torch.testing.assert_close(middle[seen], depth[seen], atol=1e-4, rtol=1e-4)


def test_answers_repeat_unless_jittered_and_jitter_follows_the_global_generator():
    teacher, rays = NerfactoTeacher(make_nerfacto(**KINDS["object"])), rays_around()
    first, again = teacher.query_rays(rays), teacher.query_rays(rays)
    assert torch.equal(first.edges, again.edges) and torch.equal(first.rgb, again.rgb)
    torch.manual_seed(5)
    jittered = teacher.query_rays(rays, jitter=True)
    torch.manual_seed(5)
    same = teacher.query_rays(rays, jitter=True)
    other = teacher.query_rays(rays, jitter=True)
    assert torch.equal(jittered.edges, same.edges) and not torch.equal(jittered.edges, other.edges)
    assert not torch.equal(jittered.edges, first.edges)
    assert torch.equal(teacher.query_rays(rays).edges, first.edges), "jitter must not last"


def test_no_gradients_no_changes_to_the_rays_and_any_batch_shape():
    teacher, rays = NerfactoTeacher(make_nerfacto(**KINDS["object"])), rays_around(132)
    before = copy_of(rays)
    flat = teacher.query_rays(rays)
    assert not flat.rgb.requires_grad and not any(p.requires_grad for p in teacher.model.parameters())
    assert torch.equal(rays.directions, before.directions) and rays.nears is None
    assert set(rays.metadata) == {"directions_norm"}
    folded = teacher.query_rays(rays.reshape((11, 4, 3)))
    assert folded.edges.shape == (11, 4, 3, 7) and folded.rgb.shape == (11, 4, 3, 3)
    assert torch.equal(folded.weights.reshape(132, 6), flat.weights)


def test_rays_that_bring_their_own_range_and_cameras_are_asked_like_all_others():
    teacher, rays = NerfactoTeacher(make_nerfacto(**KINDS["object"], use_appearance_embedding=True)), rays_around()
    expected = teacher.query_rays(rays)
    rays.nears, rays.fars = torch.zeros(130, 1), torch.full((130, 1), 0.1)
    rays.camera_indices = None
    rays.metadata = {}
    assert torch.equal(teacher.query_rays(rays).rgb, expected.rgb)


def test_appearance_is_the_average():
    model = make_nerfacto(**KINDS["object"], use_appearance_embedding=True, appearance_embed_dim=4)
    rays, teacher = rays_around(), NerfactoTeacher(model)
    model.field.embedding_appearance.embedding.weight[0] += 3
    raised = teacher.query_rays(rays).rgb
    model.field.embedding_appearance.embedding.weight[0] -= 3
    model.field.embedding_appearance.embedding.weight[5] += 3
    torch.testing.assert_close(teacher.query_rays(rays).rgb, raised, atol=1e-5, rtol=1e-4)


def test_only_models_with_all_parts_will_do():
    model = make_nerfacto(**KINDS["object"])
    assert samples_by_proposals(model) and not samples_by_proposals(torch.nn.Linear(2, 2))
    model.collider = None
    assert not samples_by_proposals(model)


def test_chunks_are_bounded_and_in_order():
    sizes = []

    def answer(rays):
        sizes.append(len(rays))
        first = rays.origins[:, :1]
        return TaughtRays(edges=first.expand(-1, 3), weights=first.expand(-1, 2), rgb=rays.directions)

    rays = rays_around(130)
    taught = in_chunks(rays.reshape((13, 10)), torch.device("cpu"), 50, answer)
    assert sizes == [50, 50, 30]
    assert torch.equal(taught.rgb.reshape(130, 3), rays.directions)
    assert torch.equal(taught.edges[..., 0].reshape(130), rays.origins[:, 0])
