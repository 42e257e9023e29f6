"""Where the scene is: found from what cameras see, given, or around points."""

import numpy as np
import pytest
import torch
from kilo_teachers import CENTRES, RADII, BallPoints
from nerfstudio.cameras.rays import RayBundle

from radcomp_plugins.errors import InputError
from radcomp_plugins.kilonerf import box as boxes

TRUTH = torch.stack([(CENTRES - RADII[:, None]).amin(0), (CENTRES + RADII[:, None]).amax(0)]).double().numpy()


def orbit_rays(count: int = 3000, radius: float = 2.5, seed: int = 0, middle: tuple = (0.0, 0.0, 0.0)) -> RayBundle:
    g = torch.Generator().manual_seed(seed)
    origins = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=-1) * radius
    aim = (torch.rand(count, 3, generator=g) - 0.5) * 1.4
    directions = torch.nn.functional.normalize(aim - origins, dim=-1)
    return RayBundle(origins + torch.tensor(middle), directions, torch.ones(count, 1))


def test_box_is_around_what_is_seen() -> None:
    box = boxes.find_box(BallPoints(), orbit_rays(), 0.1)
    assert np.abs(box - TRUTH).max() < 0.06
    assert (box[0] <= TRUTH[0] + 0.02).all() and (box[1] >= TRUTH[1] - 0.02).all()


def test_floaters_are_left_out_and_thin_ends_are_not() -> None:
    class Odd(BallPoints):
        def query_points(self, positions, directions):
            said = super().query_points(positions, directions)
            floater = (positions - torch.tensor([0.2, -0.2, 1.1])).norm(dim=-1) < 0.05
            leg = (positions[:, :2].norm(dim=-1) < 0.02) & (positions[:, 2] < 0.0) & (positions[:, 2] > -0.7)
            return type(said)(torch.where(floater | leg, 60.0, said.density), said.rgb)

    box = boxes.find_box(Odd(), orbit_rays(6000), 0.1)
    assert box[1, 2] < TRUTH[1, 2] + 0.1 and -0.8 < box[0, 2] < -0.6


def test_what_no_camera_has_seen_does_not_count() -> None:
    class Haunted(BallPoints):
        def query_points(self, positions, directions):
            said = super().query_points(positions, directions)
            # Garbage among the cameras, which are all above.
            return type(said)(said.density + 100.0 * (positions[:, 2] > 1.0), said.rgb)

    rays = orbit_rays()
    rays.origins = torch.nn.functional.normalize(rays.origins.abs() + torch.tensor([0.0, 0.0, 1.0]), dim=-1) * 2.5
    aim = 1.2 * (torch.rand(len(rays), 3) - 0.5)
    rays.directions = torch.nn.functional.normalize(aim - rays.origins, dim=-1)
    assert np.abs(boxes.find_box(Haunted(), rays, 1.7) - TRUTH).max() < 0.1
    assert boxes.find_box(Haunted(), rays, 0.1)[1, 2] > 1.0


def test_focus_of_rays_that_meet() -> None:
    focus, radius = boxes.focus_of(orbit_rays(middle=(1.0, -2.0, 3.0)))
    assert torch.allclose(focus, torch.tensor([1.0, -2.0, 3.0]), atol=0.1) and radius == pytest.approx(2.5, abs=0.15)


def test_parallel_rays_have_a_focus() -> None:
    rays = RayBundle(torch.randn(50, 3), torch.tensor([[0.0, 0.0, -1.0]]).repeat(50, 1), torch.ones(50, 1))
    focus, radius = boxes.focus_of(rays)
    assert torch.isfinite(focus).all() and np.isfinite(radius)


def test_unbounded_scenes_are_told() -> None:
    with pytest.raises(InputError, match="unbounded scene.*pipeline.model.box.*smerf"):
        boxes.find_box(BallPoints(far_wall=10.0), orbit_rays(), 0.1)


def test_teachers_that_show_nothing_are_told() -> None:
    with pytest.raises(InputError, match="shows nothing"):
        boxes.find_box(BallPoints(density=0.0), orbit_rays(), 0.1)


@pytest.mark.parametrize(
    "numbers", [(0.0, 0.0, 0.0, 1.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0, -1.0, 1.0), (0.0,) * 5 + (float("nan"),)]
)
def test_empty_and_inverted_boxes_are_told(numbers: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="expected the lower one below"):
        boxes.given_box(numbers)


def test_share_of_light_outside_of_a_box() -> None:
    rays = orbit_rays()
    assert boxes.check_box(boxes.grown(TRUTH, 0.1), BallPoints(), rays, 0.1) < 0.01
    half = np.array([[-1.0, -1.0, -1.0], [0.0, 1.0, 1.0]])
    assert 0.2 < boxes.check_box(half, BallPoints(), rays, 0.1) < 0.8


def test_boxes_that_miss_the_scene_are_told() -> None:
    with pytest.raises(InputError, match="nothing of what the teacher shows"):
        boxes.check_box(TRUTH + 5.0, BallPoints(), orbit_rays(), 0.1)


def test_box_of_points_leaves_stray_ones_out() -> None:
    g = torch.Generator().manual_seed(0)
    points = torch.cat([torch.rand(2000, 3, generator=g), torch.tensor([[50.0, 0.0, 0.0]])])
    box = boxes.box_of_points(points)
    assert np.abs(box - np.array([[-0.1] * 3, [1.1] * 3])).max() < 0.03
    for few in (None, points[:3]):
        with pytest.raises(InputError, match="SfM points"):
            boxes.box_of_points(few)


def test_light_far_away_in_a_box_is_measured_there() -> None:
    sight = boxes.look_into(BallPoints(), orbit_rays(200), np.array([[8.0, 8.0, 8.0], [9.0, 9.0, 9.0]]), 0.1)
    assert len(sight.weights) == 0
