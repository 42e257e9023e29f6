"""The student as a model: training, schedules, metrics, checkpoints, several submodels."""

from typing import Any

import pytest
import torch
from analytic_teacher import BallTeacher, orbit_rays
from tiny_students import ball_pool, small_model, train

from radcomp_plugins.core.metrics import psnr
from radcomp_plugins.errors import InputError
from radcomp_plugins.smerf import losses
from radcomp_plugins.smerf.config import SmerfModelConfig, SmerfPipelineConfig
from radcomp_plugins.smerf.model import SmerfModel, cull_threshold, layout_for
from radcomp_plugins.smerf.rays import weighty_points


def test_student_learns_its_teacher(trained_student: SmerfModel) -> None:
    bundle = orbit_rays(500, torch.Generator().manual_seed(3))
    said = BallTeacher().query_rays(bundle)
    target = said.rgb + 1.0 - said.weights.sum(dim=-1, keepdim=True)
    with torch.no_grad():
        outputs = trained_student.get_outputs(bundle)
    # White alone would have 8 dB.
    assert float(psnr(outputs["rgb"], target)) > 20.0
    hit = said.weights.sum(dim=-1) > 0.99
    assert float(outputs["accumulation"][hit].median()) > 0.95
    middle = 0.5 * (said.edges[:, 1:] + said.edges[:, :-1])
    depth = (said.weights * middle).sum(dim=-1)
    assert float((outputs["depth"][hit, 0] - depth[hit]).abs().median()) < 0.05


def test_layout_has_few_submodels() -> None:
    """Cameras on one wide, flat floor, in the scene frame's corner: a cell each for left and right, and no more."""
    origins = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([4.0, 1.0, 0.2]) + 3.0
    layout = layout_for(SmerfModelConfig(submodels_per_axis=2), origins)
    assert layout.alive == (0, 4)
    assert layout_for(SmerfModelConfig(), origins).scene_to_unit[:, 3].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("sampling", ["march", "teacher"])
def test_loss_falls(sampling: str) -> None:
    model = small_model(sampling=sampling, deferred_grid=1)
    history = train(model, 25)
    assert sum(history[-5:]) < 0.8 * sum(history[:5])


def test_all_losses_are_there_and_weigh_what_they_should() -> None:
    torch.manual_seed(0)
    model = small_model(submodels_per_axis=2, submodel_scale_factor=0.8)
    assert len(model.submodels) == 8
    pool = ball_pool(model, 40)
    with torch.no_grad():
        model.mark_occupied(*weighty_points(pool, 0.005, model.submodels, 4.0 / model.layout.sparse_resolution))
        model.occupancy.measure()
    model.train()
    torch.manual_seed(1)
    outputs = model.taught_outputs(pool)
    losses = model.get_loss_dict(outputs, {})
    assert set(losses) == {
        "rgb_loss", "dssim_loss", "geometry_loss", "opacity_loss", "distortion_loss", "sparsity_loss", "hash_decay",
        "variation_loss", "consistency_loss",
    }  # fmt: skip
    assert all(bool(torch.isfinite(value)) for value in losses.values())
    model.config.consistency_loss_mult = 3.0
    torch.manual_seed(1)
    assert float(model.get_loss_dict(outputs, {})["consistency_loss"]) == pytest.approx(
        3.0 * float(losses["consistency_loss"].detach())
    )


def test_consistency_reaches_both_submodels() -> None:
    torch.manual_seed(0)
    model = small_model(submodels_per_axis=2, submodel_scale_factor=0.8, reassign_share=0.0)
    pool = ball_pool(model, 60)
    with torch.no_grad():
        model.mark_occupied(*weighty_points(pool, 0.005, model.submodels, 4.0 / model.layout.sparse_resolution))
        model.occupancy.measure()
    home = model.submodels.assign(pool.origins.flatten(0, 1))
    pool = pool.select(torch.where((home.view(-1, 9) == 0).all(dim=-1))[0])
    assert len(pool) > 0
    model.train()
    outputs = model.taught_outputs(pool)
    model.get_loss_dict(outputs, {})["consistency_loss"].backward()
    tables = list(model.field.grids.parameters())
    touched = [table.grad is not None and bool(table.grad.abs().sum() > 0) for table in tables]
    assert touched[0] and sum(touched) > 1


def test_neighbours_draw_a_share_of_the_patches() -> None:
    torch.manual_seed(0)
    model = small_model(submodels_per_axis=2, submodel_scale_factor=0.8, consistency_share=0.25)
    pool = ball_pool(model, 60)
    model.train()
    outputs = model.taught_outputs(pool)
    assert len(outputs["neighbour_rgb"]) == len(outputs["rgb"]) // 4 == 15 * 9
    expected = losses.robust_rgb(outputs["neighbour_rgb"], outputs["rgb"][: 15 * 9])
    torch.testing.assert_close(model.get_loss_dict(outputs, {})["consistency_loss"], expected)
    with pytest.raises(ValueError, match="consistency_share is 0"):
        SmerfModelConfig(consistency_share=0.0)


def test_cull_threshold_by_hand() -> None:
    config = SmerfModelConfig(alpha_cull_start=100, alpha_cull_end=200, alpha_cull_threshold=0.005)
    assert cull_threshold(config, 99) == 0.0
    assert cull_threshold(config, 100) == pytest.approx(0.0005)
    assert cull_threshold(config, 150) == pytest.approx(0.005 * 10**-0.5)
    assert cull_threshold(config, 10_000) == pytest.approx(0.005)


def test_culling_empties_thin_samples(trained_student: SmerfModel) -> None:
    bundle = orbit_rays(100)
    with torch.no_grad():
        before = trained_student.get_outputs(bundle)["accumulation"]
        trained_student.cull_threshold = 0.9999
        after = trained_student.get_outputs(bundle)["accumulation"]
        trained_student.cull_threshold = 0.0
    assert float(after.max()) < float(before.max())


def test_steps_shrink_to_a_voxel() -> None:
    model = small_model(first_step=3.0)
    voxel = model.layout.triplane_voxel
    model.train()
    lengths = []
    for step in (0, 25, 50, 100):
        model.set_progress(step, 101)
        lengths.append(model.step_length() / voxel)
    assert lengths == pytest.approx([3.0, 2.0, 1.0, 1.0])
    model.eval()
    model.set_progress(0, 101)
    assert model.step_length() == voxel


def test_pruning_happens_when_it_should() -> None:
    model = small_model(prune_every=10)
    model.train()
    model.occupancy.cells[:] = True
    model.set_progress(9, 100)
    assert bool(model.occupancy.cells.all())
    model.set_progress(10, 100)
    assert not bool(model.occupancy.cells.any())


def test_checkpoint_of_other_cameras() -> None:
    model, other = small_model(), small_model(camera_room=0.5)
    with pytest.raises(InputError, match="scene_to_unit"):
        other.load_state_dict(model.state_dict())


def test_checkpoint_round_trip(trained_student: SmerfModel) -> None:
    other = small_model()
    other.load_state_dict(trained_student.state_dict())
    other.eval()
    bundle = orbit_rays(50)
    with torch.no_grad():
        ours, theirs = (model.get_outputs(bundle)["rgb"] for model in (trained_student, other))
    assert bool((ours == theirs).all())


def test_predicted_bytes(trained_student: SmerfModel) -> None:
    planes = 3 * 128 * 128 * 8
    blocks = (trained_student.predicted_bytes() - planes) / (9**3 * 8)
    assert blocks == int(blocks) and 0 < blocks <= 4**3


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (SmerfModelConfig, {"camera_room": 0.0}),
        (SmerfModelConfig, {"first_step": 0.5}),
        (SmerfModelConfig, {"hash_levels": 0}),
        (SmerfPipelineConfig, {"photo_share": 1.5}),
        (SmerfPipelineConfig, {"pool_steps": 0}),
    ],
)
def test_configs_that_cannot_work(kind: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        kind(**changes)
