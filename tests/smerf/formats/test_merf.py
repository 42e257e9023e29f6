"""MERF's layout: where its viewer looks for texels, round trips, and what it cannot hold."""

import dataclasses
import json

import numpy as np
import pytest
from baked_scenes import assert_same_scene, counted_scene
from PIL import Image

from radcomp_plugins.errors import InputError
from radcomp_plugins.smerf.empty_space import distance_grid
from radcomp_plugins.smerf.formats.merf import is_merf, read_merf, write_merf
from radcomp_plugins.smerf.layout import BakedScene, Layout

PLAIN = Layout(24, 16, submodel_scale_factor=1.0, feature_gating=False, feature_concat=False, activation="relu")


def plain_scene() -> BakedScene:
    scene = counted_scene(PLAIN, width=16)
    scene.test_frames = []
    submodel = scene.submodels[0]
    submodel.occupancy = np.where(submodel.occupancy, np.uint8(255), np.uint8(0))
    submodel.distance = distance_grid(submodel.occupancy != 0)
    return scene


def test_round_trip(tmp_path):
    scene = plain_scene()
    write_merf(tmp_path, scene)
    assert is_merf(tmp_path)
    assert_same_scene(read_merf(tmp_path), scene)


def test_files_are_those_of_the_viewer(tmp_path):
    scene = plain_scene()
    write_merf(tmp_path, scene)
    submodel = scene.submodels[0]
    names = {path.name for path in tmp_path.iterdir()}
    assert {f"occupancy_grid_{f}.png" for f in (8, 16, 32, 64, 128)} <= names
    assert not any("distance" in name or "grid_4" in name for name in names)
    texels = np.asarray(Image.open(tmp_path / "plane_rgb_and_density_1.png"))
    np.testing.assert_array_equal(texels[5, 3], submodel.planes[1, 3, 5][[0, 1, 2, 7]])
    texels = np.asarray(Image.open(tmp_path / "sparse_grid_features_004.png"))
    np.testing.assert_array_equal(texels[2, 9 + 3], submodel.blocks[1, 3, 2, 4, 3:7])
    texels = np.asarray(Image.open(tmp_path / "occupancy_grid_8.png"))
    occupied = submodel.occupancy != 0
    for x, y, z in ((0, 0, 0), (1, 2, 0), (2, 1, 2)):
        assert texels[z * 3 + y, x].tolist() == [int(occupied[x, y, z])] * 4
    params = json.loads((tmp_path / "scene_params.json").read_text())
    assert np.shape(params["0_weights"]) == (34, 16) and np.shape(params["2_bias"]) == (3,)
    np.testing.assert_array_equal(params["0_weights"], scene.deferred.kernels[0][0, 0, 0, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(feature_gating=True), "gates the planes"),
        (dict(feature_concat=True), "a second time"),
        (dict(submodel_scale_factor=2.5), "scale 2.5"),
        (dict(activation="elu"), "activation elu"),
        (dict(submodels_per_axis=2, submodel_scale_factor=0.5), "several submodels"),
    ],
)
def test_what_merf_does_not_know(tmp_path, change, message):
    scene = counted_scene(dataclasses.replace(PLAIN, **change))
    with pytest.raises(InputError, match=message):
        write_merf(tmp_path / "out", scene)
    assert not (tmp_path / "out").exists()


def test_one_set_of_parameters(tmp_path):
    with pytest.raises(InputError, match="several parameter sets"):
        write_merf(tmp_path / "out", counted_scene(PLAIN, grid=2))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("0_weights", [[1.0]], "expected 34 lists"),
        ("1_weights", [[1.0, "x"] * 8] * 16, "16 numbers"),
        ("2_weights", [[1.0] * 4] * 16, "4 outputs, expected 3"),
        ("1_bias", [1.0], "16 numbers"),
        ("atlas_depth", 10, "multiple of 9"),
        ("triplane_resolution", 48, "triplane_voxel_size"),
        ("data_block_size", 5, "the layout"),
    ],
)
def test_broken_numbers(tmp_path, name, value, message):
    write_merf(tmp_path, plain_scene())
    path = tmp_path / "scene_params.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(InputError, match=message):
        read_merf(tmp_path)


def test_broken_pictures(tmp_path):
    write_merf(tmp_path, plain_scene())
    (tmp_path / "occupancy_grid_8.png").unlink()
    with pytest.raises(InputError, match=r"occupancy_grid_8\.png.*missing"):
        read_merf(tmp_path)
    Image.new("RGB", (24, 24)).save(tmp_path / "plane_features_2.png")
    with pytest.raises(InputError, match=r"plane_features_2\.png: mode is RGB, expected RGBA"):
        read_merf(tmp_path)
