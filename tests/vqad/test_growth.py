"""Where octrees come from, and how training moves them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from tiny_vqad import RADIUS, write_ball

from radcomp_plugins.core import morton
from radcomp_plugins.core.octree import Octree, voxels_of_points
from radcomp_plugins.errors import InputError
from radcomp_plugins.vqad import growth
from radcomp_plugins.vqad.encoding import VQADEncoding

BOX = torch.tensor([[-1.0] * 3, [1.0] * 3])


def dataset(folder: Path) -> Any:
    parser: Any = NerfstudioDataParserConfig(
        data=folder, auto_scale_poses=False, center_method="none", orientation_method="none"
    ).setup()
    return InputDataset(parser.get_dataparser_outputs(split="train"))


def test_depth_maps_lead_to_the_surface(ball_data: Path) -> None:
    images = dataset(ball_data)
    points = growth.depth_points(images, 0)
    assert len(points) > 100
    assert float((points.norm(dim=1) - RADIUS).abs().max()) < 5e-3
    octree, box = growth.octree_from_depth(images, BOX, 2, 4, 0)
    assert float((box[1] - box[0]).max()) == pytest.approx(2 * RADIUS * 1.04, rel=0.05)
    centres = (torch.from_numpy(morton.decode(octree.voxels[-1])) + 0.5) / 16
    radii = (box[0] + centres * (box[1] - box[0])).norm(dim=1)
    half_diagonal = float((box[1] - box[0])[0]) / 16 * 3**0.5 / 2
    assert float((radii - RADIUS).abs().max()) < half_diagonal + 5e-3
    grown, _ = growth.octree_from_depth(images, BOX, 2, 4, 1)
    assert len(grown.voxels[-1]) > 1.5 * len(octree.voxels[-1])


def test_depth_outside_of_the_scene_box_does_not_stretch_the_cube(ball_data: Path) -> None:
    cut = torch.tensor([[-1.0, -1.0, -RADIUS / 2], [1.0] * 3])
    _, box = growth.octree_from_depth(dataset(ball_data), cut, 2, 4, 0)
    # The ball from -r / 2 to r.
    assert float(box[:, 2].mean()) == pytest.approx(RADIUS / 4, abs=0.05 * RADIUS)


@pytest.mark.parametrize("alpha, seen", [(127, False), (128, True)])
def test_depth_counts_where_a_photo_is_at_least_half_opaque(ball_data: Path, alpha: int, seen: bool) -> None:
    images = dataset(ball_data)
    photo = images.get_numpy_image(0).copy()
    photo[..., 3] = alpha
    images.get_numpy_image = lambda index: photo
    assert (len(growth.depth_points(images, 0)) > 100) == seen


def test_depth_in_wrong_units(tmp_path: Path) -> None:
    images = dataset(write_ball(tmp_path / "data", depth_scale=4.0))
    with pytest.raises(InputError, match=r"100 % of [\d,]+ points lie outside the scene box"):
        growth.octree_from_depth(images, BOX, 2, 4, 0)


def test_no_depth_where_it_is_asked_for(tmp_path: Path) -> None:
    images = dataset(write_ball(tmp_path / "data", with_depth=False))
    with pytest.raises(InputError, match="names no depth maps"):
        growth.octree_from_depth(images, BOX, 2, 4, 0)


def test_depth_of_nothing(tmp_path: Path) -> None:
    images = dataset(write_ball(tmp_path / "data", depth_scale=0.0))
    with pytest.raises(InputError, match="octree would be empty"):
        growth.octree_from_depth(images, BOX, 2, 4, 0)


def test_depth_map_that_is_gone(tmp_path: Path) -> None:
    images = dataset(write_ball(tmp_path / "data"))
    (tmp_path / "data/images/01_z.png").unlink()
    with pytest.raises(InputError, match="01_z.png: no such file"):
        growth.octree_from_depth(images, BOX, 2, 4, 0)


def test_points_are_surrounded() -> None:
    points = torch.cat([torch.rand(5000, 3) * 0.5 - 0.2, torch.full((2, 3), 0.99)])
    octree, box = growth.octree_from_points(points, BOX, 2, 4, 1)
    # Two strays do not stretch the box.
    assert float((box[1] - box[0]).max()) < 0.8
    inside = (growth.to_box(points[:5000], box) >= 0).all(1) & (growth.to_box(points[:5000], box) < 1).all(1)
    assert float(inside.float().mean()) > 0.99
    plain, _ = growth.octree_from_points(points, BOX, 2, 4, 0)
    assert len(octree.voxels[-1]) > len(plain.voxels[-1])
    with pytest.raises(InputError, match="60 % of 5 points"):
        growth.octree_from_points(torch.tensor([[0.0] * 3] * 2 + [[3.0] * 3] * 3), BOX, 2, 4, 1)
    with pytest.raises(InputError, match="no points"):
        growth.octree_from_points(torch.zeros(0, 3), BOX, 2, 4, 1)


@pytest.mark.parametrize("dilation, half", [(0, 0.4 * 1.04), (1, 0.4 * (1.04 + 2 / 16))])
def test_the_box_around_points_has_room_to_grow(dilation: int, half: float) -> None:
    points = torch.tensor([[-0.4] * 3, [0.4] * 3]).repeat_interleave(500, 0)
    _, box = growth.octree_from_points(points, BOX, 2, 4, dilation)
    torch.testing.assert_close(box, torch.tensor([[-half] * 3, [half] * 3]))


def test_split_adds_a_level_or_only_prunes() -> None:
    octree = Octree.dense(1, 2)
    kept = np.array([0, 63])
    pruned, grown = growth.split(octree, kept, False), growth.split(octree, kept, True)
    assert [len(v) for v in pruned.voxels] == [2, 2]
    assert [len(v) for v in grown.voxels] == [2, 2, 16] and grown.finest == 3


def test_box_around_voxels() -> None:
    voxels = morton.encode(np.array([[3, 3, 3], [4, 3, 3]]))
    box = growth.box_around_voxels(np.sort(voxels), 3, BOX, torch.ones(2))
    # Voxels of 0.25: one more on each side along x, and a cube of that width.
    assert torch.allclose(box[:, 0], torch.tensor([-0.5, 0.5]))
    assert torch.allclose(box[1] - box[0], torch.tensor(1.0))
    everything = growth.box_around_voxels(np.arange(512), 3, BOX, torch.zeros(512))
    assert torch.equal(everything, BOX)


def test_fog_in_a_corner_does_not_hold_the_box() -> None:
    body = np.stack(np.meshgrid([2, 3, 4], [3, 4], [3, 4], indexing="ij"), axis=-1).reshape(-1, 3)
    antenna, fog = np.array([[5, 5, 5], [6, 6, 6]]), np.array([[0, 7, 0], [1, 7, 0]])
    voxels = morton.encode(np.concatenate([body, antenna, fog]))
    order = np.argsort(voxels)
    # The antenna's tip is as faint as the fog, but hangs on the body by its corners.
    seen = torch.tensor([1.0] * 12 + [0.2, 0.004] + [0.004] * 2)[torch.from_numpy(order)]
    box = growth.box_around_voxels(voxels[order], 3, BOX, seen)
    # From voxel 1 to 8 along x, of 0.25 each.
    assert box[:, 0].tolist() == [-0.75, 1.0] and box[:, 2].tolist() == [-0.625, 1.125]
    heavy = growth.box_around_voxels(voxels[order], 3, BOX, seen + 0.01)
    assert torch.equal(heavy, BOX)


def test_fog_is_faint_beside_all_bodies_together() -> None:
    voxels = morton.encode(np.array([[2, 2, 2], [4, 2, 2], [2, 4, 2], [7, 7, 7]]))
    order = np.argsort(voxels)
    seen = torch.tensor([1.0, 1.0, 1.0, 0.002])[torch.from_numpy(order)]
    # Voxels 1 to 5 along x and y.
    assert growth.side_of(growth.box_around_voxels(voxels[order], 3, BOX, seen)) == pytest.approx(1.25)


def test_voxels_in_other_box_cover_the_old_ones() -> None:
    voxels = morton.encode(np.array([[3, 3, 3], [4, 5, 3]]))
    other = growth.box_around_voxels(np.sort(voxels), 3, BOX, torch.ones(2))
    found = growth.voxels_in_other_box(np.sort(voxels), 3, BOX, other)
    corners = torch.from_numpy(morton.decode(np.sort(voxels))).float()
    points = (corners.repeat_interleave(500, 0) + torch.rand(1000, 3)) / 8 * 2 - 1
    needed = voxels_of_points(growth.to_box(points, other), 3)
    assert np.isin(needed, found).all()
    assert len(found) < 8**3


def test_a_far_smaller_box_has_no_holes() -> None:
    # The voxel from -1/4 to 0 is all of the other box: each of its 8^3 voxels.
    other = torch.tensor([[-0.25] * 3, [0.0] * 3])
    assert len(growth.voxels_in_other_box(morton.encode(np.array([[3, 3, 3]])), 3, BOX, other)) == 512


def test_carrying_over_keeps_the_field() -> None:
    torch.manual_seed(0)
    start = Octree.dense(2, 3)
    encoding = VQADEncoding(start, 16, 4, "full", init_std=1.0)
    # A field that is linear in space survives every change of grid.
    corners = [
        torch.from_numpy(morton.decode(v)).float() / 2**level
        for v, level in zip(start.vertices, start.levels, strict=True)
    ]
    slope = torch.randn(3, 16)
    encoding.values.data = torch.cat([at @ slope for at in corners])
    other = torch.tensor([[-0.5] * 3, [0.5] * 3])
    octree = Octree.from_finest(np.arange(0, 512, 3), 3, 2)
    scene = torch.rand(4000, 3) - 0.5
    before = encoding(growth.to_box(scene, BOX))
    growth.carry_over(encoding, BOX, octree, other)
    after = encoding(growth.to_box(scene, other))
    from radcomp_plugins.core.octree_lookup import locate

    deep = locate(octree, growth.to_box(scene, other))[:, -1] >= 0
    assert int(deep.sum()) > 500
    assert float((after - before)[deep].abs().max()) < 0.02
