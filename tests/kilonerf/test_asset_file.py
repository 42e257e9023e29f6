"""The asset's file: exact but for rounding, small, and closed to damage."""

import json
from pathlib import Path

import numpy as np
import pytest
from kilo_scenes import shell_scene, sphere_rays

from radcomp_plugins.core.safetensors import read_tensors, write_tensors
from radcomp_plugins.errors import InputError
from radcomp_plugins.kilonerf import asset_file
from radcomp_plugins.kilonerf.asset_file import (
    MAX_BYTES,
    describe,
    quantised,
    read_scene,
    voxels_by_network,
    write_scene,
)
from radcomp_plugins.kilonerf.render_cpu import CpuRenderer
from radcomp_plugins.kilonerf.scene import KiloScene, NetworkShape


@pytest.fixture(scope="module")
def scene() -> KiloScene:
    return shell_scene(NetworkShape(16, 4, 2))[0]


@pytest.fixture
def file(tmp_path: Path, scene: KiloScene) -> Path:
    write_scene(tmp_path / "scene.safetensors", scene)
    return tmp_path / "scene.safetensors"


def test_everything_comes_back(file: Path, scene: KiloScene) -> None:
    back = read_scene(file)
    assert np.array_equal(back.grid.occupancy, scene.grid.occupancy)
    assert np.array_equal(back.grid.network_of_cell, scene.grid.network_of_cell)
    assert np.array_equal(back.grid.box, scene.grid.box)
    assert (back.grid.step, back.grid.overlap, back.near, back.shape) == (
        scene.grid.step, scene.grid.overlap, scene.near, scene.shape,
    )  # fmt: skip
    assert np.array_equal(back.background, scene.background)
    assert np.array_equal(back.dataset_to_scene, scene.dataset_to_scene)
    for name, array in scene.weights.items():
        assert np.array_equal(back.weights[name], array.astype(np.float16).astype(np.float32)), name


def test_size_is_two_bytes_a_parameter_and_a_bit_a_voxel(file: Path, scene: KiloScene) -> None:
    parameters = sum(array.size for array in scene.weights.values())
    voxels = scene.grid.num_networks * scene.grid.voxels_per_cell**3
    expected = 2 * parameters + voxels // 8
    assert expected < file.stat().st_size < expected + 2500
    assert scene.grid.num_networks < scene.grid.network_of_cell.size


def test_empty_cells_take_no_voxels() -> None:
    grid = shell_scene(NetworkShape(4, 0, 0))[0].grid
    found = voxels_by_network(grid)
    assert found.shape == (grid.num_networks, grid.voxels_per_cell**3) and found.any(axis=1).all()
    cell = np.argwhere(grid.network_of_cell == 3)[0] * grid.voxels_per_cell
    x, y, z = (slice(int(c), int(c) + grid.voxels_per_cell) for c in cell)
    assert np.array_equal(found[3], grid.occupancy[x, y, z].reshape(-1))


@pytest.mark.parametrize(("precision", "most"), [("fp16", 4e-3), ("int8", 6e-2)])
def test_picture_survives_rounding(tmp_path: Path, scene: KiloScene, precision, most: float) -> None:
    write_scene(tmp_path / "s", scene, precision)
    rays = sphere_rays(500)
    truth, got = (CpuRenderer(one).rays(*rays).rgb for one in (scene, read_scene(tmp_path / "s")))
    assert np.abs(truth - got).mean() < most / 4 and np.abs(truth - got).max() < most


def test_int8_is_smaller_and_bounded_by_half_a_step(tmp_path: Path, scene: KiloScene, file: Path) -> None:
    write_scene(tmp_path / "small", scene, "int8")
    assert (tmp_path / "small").stat().st_size < 0.65 * file.stat().st_size
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((5, 7, 3)) * 10.0 ** rng.integers(-6, 3, (5, 1, 3))).astype(np.float32)
    weight[2, :, 1] = 0.0
    codes, scale = quantised(weight)
    step = scale.astype(np.float32)
    assert (np.abs(codes * step - weight) <= 0.5 * step * (1 + 1e-3) + 1e-12).all() and np.abs(codes).max() <= 127


def test_same_scene_same_bytes(file: Path, tmp_path: Path, scene: KiloScene) -> None:
    write_scene(tmp_path / "again", scene)
    assert (tmp_path / "again").read_bytes() == file.read_bytes()


def test_facts(file: Path, scene: KiloScene) -> None:
    facts = describe(file)
    assert facts["networks"] == scene.grid.num_networks and facts["bytes"] == file.stat().st_size


def test_parameters_too_large_for_half_precision_are_told(tmp_path: Path, scene: KiloScene) -> None:
    weights = {**scene.weights, "color.bias": scene.weights["color.bias"] + np.float32(1e5)}
    loud = KiloScene(scene.grid, scene.shape, weights)
    with pytest.raises(InputError, match="color.bias reaches 1e\\+05"):
        write_scene(tmp_path / "s", loud)
    assert not (tmp_path / "s").exists()


def changed(file: Path, change) -> Path:
    """The file with other facts or arrays."""
    arrays, metadata = read_tensors(file, MAX_BYTES)
    arrays, facts = dict(arrays), json.loads(metadata["kilonerf"])
    change(facts, arrays)
    write_tensors(file, arrays, {"kilonerf": json.dumps(facts)})
    return file


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f, a: f.update(format="other"), "expected 'radcomp-kilonerf' version 1"),
        (lambda f, a: f.update(version=2), "version 2"),
        (lambda f, a: f.update(precision="fp8"), "fp16 or int8"),
        (lambda f, a: f.update(width="16"), "width is 16"),
        (lambda f, a: f.update(width=10**9), "whole number from 4 to 256"),
        (lambda f, a: f.update(voxels_per_cell=5), "4, 8, 16, 32 or 64"),
        (lambda f, a: f.update(cells=[4096, 4096, 4096]), "at most"),
        (lambda f, a: f.update(cells=[4, 4]), "three whole numbers"),
        (lambda f, a: f.update(cells=[5, 4, 3]), "used is"),
        (lambda f, a: f.update(box=[[0, 0, 0], [0, 1, 1]]), "lower corner"),
        (lambda f, a: f.update(box=[[0, 0], [1, 1]]), "in the form"),
        (lambda f, a: f.update(step=-1), "step"),
        (lambda f, a: f.update(step=None), "a number"),
        (lambda f, a: f.update(overlap=3), "overlap"),
        (lambda f, a: f.update(near=1e300), "a number"),
        (lambda f, a: f.update(background=[0, 0, 2]), "background"),
        (lambda f, a: f.update(dataset_to_scene=[[1]]), "in the form"),
        (lambda f, a: a.pop("color.bias"), "color.bias is missing"),
        (lambda f, a: a.update(extra=np.zeros(2, np.uint8)), "extra is missing or does not belong"),
        (lambda f, a: a.update(used=np.zeros_like(a["used"])), "at least one"),
        (lambda f, a: a.update(occupancy=a["occupancy"][:-1]), "occupancy is"),
        (lambda f, a: a.update({"color.bias": a["color.bias"][:, :2]}), "color.bias is"),
        (lambda f, a: a.update({"color.bias": a["color.bias"].astype(np.float32)}), "expected float16"),
        (lambda f, a: a.update({"color.bias": a["color.bias"] * np.float16(np.nan)}), "NaN"),
    ],
)
def test_wrong_files_are_told(file: Path, change, told: str) -> None:
    with pytest.raises(InputError, match=told) as error:
        read_scene(changed(file, change))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_wrong_scales_are_told(tmp_path: Path, scene: KiloScene) -> None:
    write_scene(tmp_path / "s", scene, "int8")
    broken = changed(tmp_path / "s", lambda f, a: a.update({"color.scale": a["color.scale"][:1]}))
    with pytest.raises(InputError, match="scale of color.weight"):
        read_scene(broken)


def test_other_safetensors_are_told(tmp_path: Path) -> None:
    write_tensors(tmp_path / "s", {"x": np.zeros(3, np.float32)}, {})
    with pytest.raises(InputError, match="no metadata of a KiloNeRF"):
        read_scene(tmp_path / "s")


def test_oversized_files_are_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asset_file, "MAX_BYTES", 100)
    with pytest.raises(InputError, match="expected at most 100"):
        read_scene(file)
