"""Samples that light reaches, against a plain sum of the field's own densities, and the twin."""

import pytest
import torch
from analytic_teacher import orbit_rays
from tiny_students import small_model

from radcomp_plugins.core import threads
from radcomp_plugins.core.contraction import contract
from radcomp_plugins.smerf.corners import corners_of
from radcomp_plugins.smerf.free_texels import codes_of_cells
from radcomp_plugins.smerf.layout import DENSITY, GATE, NUM_CHANNELS, RANGE_DENSITY, RANGE_FEATURES, Layout
from radcomp_plugins.smerf.model import SmerfModel
from radcomp_plugins.smerf.sampling import PackedSamples
from radcomp_plugins.smerf.sight import OPAQUE_DEPTH, Sight

LAYOUT = Layout(64, 16, 1, 1.0, (0,))


def known_sight(density: float) -> tuple[Sight, torch.Tensor]:
    """A sight that knows random texels of about a density (before the exponential)."""
    sight = Sight(LAYOUT)
    count = LAYOUT.sparse_resolution**3 + 3 * LAYOUT.triplane_resolution**2
    values = torch.randn(count, NUM_CHANNELS) * 0.2
    values[:, GATE] += 0.5 / RANGE_FEATURES
    values[:, DENSITY] += density / RANGE_DENSITY
    raw = torch.logit((0.5 + 0.5 * values).clamp(0.01, 0.99))
    sight.remember(torch.arange(count), raw)
    return sight, raw


def dense_rays(count: int = 60, steps: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, PackedSamples]:
    origins, directions = (torch.rand(count, 3) - 0.5) * 3.0, torch.randn(count, 3)
    edges = torch.linspace(0.1, 2.0, steps + 1)
    samples = PackedSamples(
        edges[:-1].repeat(count), edges[1:].repeat(count), torch.arange(count).repeat_interleave(steps),
        torch.arange(count + 1) * steps,
    )  # fmt: skip
    return origins, directions, torch.zeros(count, dtype=torch.long), samples


@pytest.mark.parametrize("density", [-2.0, 1.5, 6.0])
def test_a_ray_ends_where_no_light_is_left(density: float) -> None:
    torch.manual_seed(0)
    sight, raw = known_sight(density)
    origins, directions, row, samples = dense_rays()
    value = (raw.sigmoid() * 255).round() / 127.5 - 1.0
    middle = 0.5 * (samples.starts + samples.ends)
    points = contract(origins[samples.ray_index] + middle[:, None] * directions[samples.ray_index])
    corners = corners_of(points, row[samples.ray_index], LAYOUT)
    weighted = value[corners.codes][corners.index] * corners.weights[..., None]
    voxels, planes = weighted[:, :8].sum(dim=1), weighted[:, 8:].sum(dim=1)
    pre = voxels[:, GATE] * RANGE_FEATURES * planes[:, DENSITY] * RANGE_DENSITY + voxels[:, DENSITY] * RANGE_DENSITY
    depth = ((pre - 1.0).exp() * (samples.ends - samples.starts)).view(60, 40)
    depth = depth.clamp(max=20.0)
    before = depth.cumsum(dim=1) - depth
    expected = (before <= OPAQUE_DEPTH).sum(dim=1)
    near = (before - OPAQUE_DEPTH).abs().amin(dim=1) < 1e-3
    kept = sight.reaching(origins, directions, row, samples)
    assert torch.equal(kept.ray_offsets.diff()[~near], expected[~near])
    assert torch.equal(sight.count_torch(origins, directions, row, samples)[~near], expected[~near])
    for ray in (0, 7, 59):
        count = int(kept.ray_offsets[ray + 1] - kept.ray_offsets[ray])
        first = int(kept.ray_offsets[ray])
        assert torch.equal(kept.starts[first : first + count], samples.starts[ray * 40 : ray * 40 + count])
    assert bool((kept.ray_index.diff() >= 0).all()) and len(kept.ray_index) == int(kept.ray_offsets[-1])
    if density > 5.0:
        assert len(kept.starts) < 0.2 * len(samples.starts)


def test_same_for_any_number_of_threads() -> None:
    torch.manual_seed(0)
    sight, _ = known_sight(3.0)
    rays = dense_rays(500)
    before, results = threads.get_num_threads(), []
    for count in (1, 3):
        threads.set_num_threads(count)
        results.append(sight.reaching(*rays).starts)
    threads.set_num_threads(before)
    assert torch.equal(*results)


def test_what_was_never_looked_at_hides_nothing() -> None:
    sight = Sight(LAYOUT)
    rays = dense_rays()
    assert sight.reaching(*rays) is rays[3], "nothing is known: nothing is left out"
    sight.remember(torch.tensor([5]), torch.zeros(1, NUM_CHANNELS))
    assert len(sight.reaching(*rays).starts) == len(rays[3].starts)


def test_a_trained_student_looks_the_same_without_what_is_hidden(trained_student: SmerfModel) -> None:
    model = small_model()
    model.load_state_dict(trained_student.state_dict())
    codes = torch.from_numpy(codes_of_cells(model.occupancy.cells.numpy(), model.layout))
    bundle = orbit_rays(200)
    origins, directions = model.submodels.to_unit(bundle.origins), bundle.directions
    row, far = torch.zeros(len(origins), dtype=torch.long), torch.full((len(origins),), 1e3)
    with torch.no_grad():
        model.field.sight.remember(codes, model.field.texels(codes))
        whole = model.march(origins, directions, row, far, torch.full_like(far, 0.5), model.layout.triplane_voxel)
        along = torch.stack([-directions[:, 0], directions[:, 2], directions[:, 1]], dim=-1)
        seen = model.field.sight.reaching(
            model.submodels.to_submodel(origins, row), along * model.layout.submodel_scale, row, whole
        )
        grey = torch.full((3,), 0.5)
        pictures = [model.render(origins, directions, row, grey, samples).rgb for samples in (whole, seen)]
    assert len(seen.starts) < 0.9 * len(whole.starts)
    assert float((pictures[0] - pictures[1]).abs().max()) < 2e-3


def test_checkpoints_from_before_still_load(trained_student: SmerfModel) -> None:
    state = trained_student.state_dict()
    assert len(state["field.sight.texels"]) > 0
    model = small_model()
    model.load_state_dict(state)
    assert torch.equal(model.field.sight.texels, trained_student.field.sight.texels)
    del state["field.sight.texels"]
    older = small_model()
    older.load_state_dict(state)
    assert len(older.field.sight.texels) == 0
