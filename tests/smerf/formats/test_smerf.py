"""SMERF's layout: what is written is what the official exporter writes, and comes back to the bit."""

import dataclasses
import gzip
import hashlib
import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from baked_scenes import assert_same_scene, counted_scene, toy_scene
from PIL import Image

from radcomp_plugins.errors import InputError
from radcomp_plugins.smerf.atlas import AtlasSize
from radcomp_plugins.smerf.formats.params import SubmodelParams, read_params
from radcomp_plugins.smerf.formats.smerf import (
    cell_files,
    check_scene,
    index_file,
    plane_files,
    read_blocks,
    read_smerf,
    sparse_files,
    submodel_folder,
    write_smerf,
)
from radcomp_plugins.smerf.layout import Layout
from radcomp_plugins.smerf.voxels import SparseVoxels

GOLDEN = "dd1ab328eebe1d69f4392ee8505632db4631cbe6a34731be69520fa96eea69a4"
"""SHA-256 over all files of a scene of whole numbers; changes when the format does, and then its version has to."""


def content(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small scene of one submodel."""
    folder = tmp_path_factory.mktemp("smerf") / "scene"
    write_smerf(folder, counted_scene(Layout(16, 16)))
    return folder


def test_the_bytes_of_every_file(written):
    digest = hashlib.sha256()
    for path in sorted((written / "sm_000").iterdir()):
        if path.name == "storage.json":
            continue  # holds sizes on disk, which are those of the machine's zlib
        digest.update(path.name.encode() + b"\0" + content(path))
    assert digest.hexdigest() == GOLDEN


def test_two_writes_are_identical(written, tmp_path):
    write_smerf(tmp_path, counted_scene(Layout(16, 16)))
    for path in (written / "sm_000").iterdir():
        assert (tmp_path / "sm_000" / path.name).read_bytes() == path.read_bytes()


def test_storage_is_told_before_and_after_compression(written):
    folder = written / "sm_000"
    told = {entry["filename"]: entry for entry in json.loads((folder / "storage.json").read_text())}
    for path in folder.glob("*.raw.gz"):
        assert told[path.name]["disk_mb"] == path.stat().st_size / 1e6
        assert told[path.name]["memory_mb"] == len(content(path)) / 1e6
    # The network's floats: 41 to 4 to 4 to 3 with their biases.
    assert told["scene_params.json"]["memory_mb"] == 4 * (42 * 4 + 5 * 4 + 5 * 3) / 1e6


def test_the_network_is_copied_where_there_are_no_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    write_smerf(tmp_path, counted_scene(Layout(16, 8, 2, 0.8, (3, 7))))
    first, second = (tmp_path / name / "deferred_mlp.json.gz" for name in ("sm_003", "sm_007"))
    assert first.read_bytes() == second.read_bytes() and not first.samefile(second)


@pytest.mark.parametrize("size", [dict(T=64, S=16, K=1, P=2), dict(T=64, S=32, K=2, P=1)])
def test_round_trip(tmp_path, size):
    scene = toy_scene(**size)
    write_smerf(tmp_path, scene)
    assert_same_scene(read_smerf(tmp_path), scene)
    last = scene.layout.alive[-1]
    assert_same_scene(read_smerf(tmp_path / f"sm_{last:03d}"), scene)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(24, 16, 2, 0.8, (5,)),
        Layout(16, 16, 3, 1.1, (0, 13, 26), feature_gating=False),
        Layout(32, 8, feature_concat=False, activation="relu", background=0.25),
        Layout(16, 12, block_size=4, scene_to_unit=np.array([[0.3, 0, 0, 1], [0, 0.3, 0, 2], [0, 0, 0.3, 1 / 3]])),
    ],
)
def test_round_trip_of_other_layouts(tmp_path, layout):
    scene = counted_scene(layout, grid=2, width=8)
    write_smerf(tmp_path, scene)
    assert_same_scene(read_smerf(tmp_path), scene)


def test_a_scene_without_blocks(tmp_path):
    scene = counted_scene(Layout(16, 16))
    empty = dataclasses.replace(
        scene.submodels[0], block_indices=np.full((2, 2, 2), -1, np.int32), blocks=np.empty((0, 9, 9, 9, 8), np.uint8)
    )
    scene.submodels[0] = empty
    write_smerf(tmp_path, scene)
    assert_same_scene(read_smerf(tmp_path), scene)


def test_where_texels_lie(written):
    # As the viewer reads them: x fastest, then y, then z; planes by their other two axes in ascending order.
    submodel = counted_scene(Layout(16, 16)).submodels[0]
    folder = written / "sm_000"
    for plane in range(3):
        features = np.frombuffer(content(folder / f"plane_features_{plane}.raw.gz"), np.uint8).reshape(16, 16, 4)
        density = np.frombuffer(content(folder / f"plane_density_{plane}.raw.gz"), np.uint8).reshape(16, 16)
        a, b = 3, 11
        np.testing.assert_array_equal(features[b, a], submodel.planes[plane, a, b, 3:7])
        assert density[b, a] == submodel.planes[plane, a, b, 7]
    for z in (0, 4, 8):
        density = np.frombuffer(content(folder / f"sparse_grid_density_{z:03d}.raw.gz"), np.uint8).reshape(9, -1, 2)
        rgb = np.frombuffer(content(folder / f"sparse_grid_rgb_{z:03d}.raw.gz"), np.uint8).reshape(9, -1, 3)
        block, x, y = 3, 2, 5  # the atlas of five blocks is one row along x
        np.testing.assert_array_equal(density[y, block * 9 + x], submodel.blocks[block, x, y, z, [7, 6]])
        np.testing.assert_array_equal(rgb[y, block * 9 + x], submodel.blocks[block, x, y, z, :3])
    indices = np.frombuffer(content(folder / "sparse_grid_block_indices.raw.gz"), np.uint8).reshape(4, 2, 3)
    x, y, z = 1, 0, 1
    assert indices[z * 2 + y, x].tolist() == [submodel.block_indices[x, y, z], 0, 0]


def test_occupancy_of_other_factors(tmp_path):
    rng = np.random.default_rng(0)
    dense = rng.random((64, 64, 64)) < 2e-4
    voxels = SparseVoxels.from_dense(dense)
    scene = counted_scene(Layout(64, 8))
    scene.submodels[0].occupancy = voxels.occupancy(8)
    write_smerf(tmp_path / "fine", scene, {0: voxels})
    write_smerf(tmp_path / "coarse", scene)
    for factor in (4, 8, 16, 32, 64, 128):
        edge = -(-64 // factor)
        files = [tmp_path / kind / "sm_000" / f"occupancy_grid_{factor}_000.raw.gz" for kind in ("fine", "coarse")]
        fine, coarse = (np.frombuffer(content(f), np.uint8).reshape((edge,) * 3).transpose(2, 1, 0) for f in files)
        np.testing.assert_array_equal(fine, voxels.occupancy(factor))
        if factor > 4:
            np.testing.assert_array_equal(coarse, fine)
        else:
            np.testing.assert_array_equal(coarse, np.where(fine, 255, 0))
    with pytest.raises(InputError, match="not that of its occupied texels"):
        write_smerf(tmp_path / "wrong", scene, {0: voxels.dilate(3)})


def test_only_the_grids_that_viewers_read(tmp_path):
    write_smerf(tmp_path, counted_scene(Layout(16, 16)), unused_grids=False)
    names = {path.name for path in (tmp_path / "sm_000").glob("*_grid_*_000.raw.gz")}
    assert {name for name in names if not name.startswith("sparse")} == {
        "occupancy_grid_8_000.raw.gz",
        "distance_grid_8_000.raw.gz",
    }
    read_smerf(tmp_path)


def test_scene_params_of_several_submodels(tmp_path):
    write_smerf(tmp_path, counted_scene(Layout(16, 8, 2, 0.8, (3, 7))))
    params = json.loads((tmp_path / "sm_007" / "scene_params.json").read_text())
    assert params["params_to_sm"] == [3, 7] and params["sm_to_params"] == [-1, -1, -1, 0, -1, -1, -1, 1]
    assert params["submodel_idx"] == 7 and params["num_local_submodels"] == 2 and params["num_submodels"] == 8
    assert params["submodel_scale"] == 1.6 and params["submodel_voxel_size"] == 1.0
    assert list(params) == sorted(params)
    shapes = {entry["filename"]: entry["shape"] for entry in params["asset_metadata"]}
    for path in (tmp_path / "sm_007").glob("*.raw.gz"):
        assert np.prod(shapes[path.name]) == len(content(path))


def test_the_only_submodel_of_several_cells_is_told_twice(tmp_path):
    # With one, the official viewer takes the scene's centre for the submodel's.
    write_smerf(tmp_path, counted_scene(Layout(16, 8, 2, 0.8, (5,))))
    params = json.loads((tmp_path / "sm_005" / "scene_params.json").read_text())
    assert params["num_local_submodels"] == 2 and params["params_to_sm"] == [5, 5]


def test_a_missing_submodel(tmp_path):
    scene = counted_scene(Layout(16, 8, 2, 0.8, (3, 7)))
    write_smerf(tmp_path, scene)
    shutil.rmtree(tmp_path / "sm_007")
    with pytest.raises(InputError, match=r"sm_007.*missing"):
        read_smerf(tmp_path)
    assert list(read_smerf(tmp_path, submodels=[3]).submodels) == [3]
    with pytest.raises(InputError, match="no submodel 4"):
        read_smerf(tmp_path, submodels=[4])
    with pytest.raises(InputError, match="no baked scene"):
        read_smerf(tmp_path / "nowhere")


def test_uncompressed_joined_and_drawn_files_are_read_too(tmp_path):
    scene = counted_scene(Layout(16, 16))
    write_smerf(tmp_path, scene)
    folder = tmp_path / "sm_000"
    for path in folder.glob("*.raw.gz"):
        path.with_suffix("").write_bytes(content(path))
        path.unlink()
    (folder / "scene_params.json.gz").unlink()
    assert_same_scene(read_smerf(tmp_path), scene)
    _join(folder, read_params(folder))
    assert_same_scene(read_smerf(tmp_path), scene)
    _draw(folder, read_params(folder))
    assert_same_scene(read_smerf(tmp_path), scene)


def _join(folder: Path, params: SubmodelParams) -> None:
    """Rewrite an asset in the form of older exports: colours with densities, grids of four channels."""

    def load(name: str, channels: int) -> np.ndarray:
        return np.frombuffer((folder / f"{name}.raw").read_bytes(), np.uint8).reshape(-1, channels)

    names = [(f"plane_{{}}_{i}", 1) for i in range(3)]
    names += [(f"sparse_grid_{{}}_{k:03d}", 2) for k in range(params.num_slices)]
    for name, channels in names:
        density = load(name.format("density"), channels)
        rgb, features = load(name.format("rgb"), 3), load(name.format("features"), 5 - channels)
        joined = np.concatenate([rgb, density[:, :1]], axis=1)
        (folder / f"{name.format('rgb_and_density')}.raw").write_bytes(joined.tobytes())
        features = np.concatenate([features, density[:, 1:]], axis=1)
        (folder / f"{name.format('features')}.raw").write_bytes(features.tobytes())
    for name in ("occupancy_grid_8_000", "distance_grid_8_000"):
        (folder / f"{name}.raw").write_bytes(load(name, 1).repeat(4, axis=1).tobytes())
    values = json.loads((folder / "scene_params.json").read_text())
    values["export_store_rgb_and_density_separately"] = False
    values["export_pad_occupancy_and_distance_grids"] = True
    (folder / "scene_params.json").write_text(json.dumps(values))


def _draw(folder: Path, params: SubmodelParams) -> None:
    """Rewrite the files of arrays as PNG files, as the oldest exports have them."""
    files = [file for file, *_ in [*plane_files(params), *sparse_files(params)]]
    files += [index_file(params), *cell_files(params, "occupancy_grid"), *cell_files(params, "distance_grid")]
    for file in files:
        texels = file.read(folder, params).reshape(file.rows, file.width, file.channels)
        Image.fromarray(texels).save(folder / f"{file.name}.png")
        (folder / f"{file.name}.raw").unlink()
    values = json.loads((folder / "scene_params.json").read_text())
    (folder / "scene_params.json").write_text(json.dumps(values | {"export_array_format": "png"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.submodels.clear(), "submodel 0 of the scene is missing"),
        (lambda s: setattr(s.submodels[0], "planes", s.submodels[0].planes[:2]), "planes has shape"),
        (lambda s: setattr(s.submodels[0], "block_indices", -s.submodels[0].block_indices), "C order"),
        (lambda s: setattr(s.deferred, "biases", [b.repeat(2, 0) for b in s.deferred.biases]), "has 2 submodels"),
    ],
)
def test_scenes_that_cannot_be_drawn_are_not_written(tmp_path, change: Callable, message):
    scene = counted_scene(Layout(16, 16))
    change(scene)
    with pytest.raises(InputError, match=message):
        write_smerf(tmp_path / "out", scene)
    with pytest.raises(InputError, match=message):
        check_scene(scene)
    assert not (tmp_path / "out").exists()


def test_folders_of_submodels(written):
    params = read_params(written / "sm_000")
    assert submodel_folder(written / "sm_000", params, 0) == written / "sm_000"
    assert submodel_folder(written / "sm_000", params, 12) == written / "sm_012"


def test_memory_is_not_taken_for_blocks_that_are_not_there(written):
    params = read_params(written / "sm_000")
    params = dataclasses.replace(params, size=AtlasSize((227, 227, 113), 9), num_slices=5)
    with pytest.raises(InputError, match="the number of blocks is 5800000, expected at most 1472896"):
        read_blocks(written / "sm_000", params, 5_800_000)
    tracemalloc.start()
    with pytest.raises(InputError, match="compressed size"):
        read_blocks(written / "sm_000", params, 1_000_000)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
