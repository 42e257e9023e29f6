"""Broken assets: what is wrong is named, all of it, and the rest is still looked at."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from baked_scenes import counted_scene
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radcomp_plugins.cli.main import run
from radcomp_plugins.core.files import write_manifest
from radcomp_plugins.errors import InputError
from radcomp_plugins.smerf.formats.merf import write_merf
from radcomp_plugins.smerf.formats.smerf import read_smerf, write_smerf
from radcomp_plugins.smerf.formats.validate import describe, is_baked_scene, part_bytes, validate
from radcomp_plugins.smerf.layout import Layout


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of two submodels."""
    folder = tmp_path_factory.mktemp("whole") / "scene"
    write_smerf(folder, counted_scene(Layout(16, 16, 2, 0.8, (3, 7))))
    return folder


@pytest.fixture
def asset(whole: Path, tmp_path: Path) -> Path:
    """A copy of it to break."""
    return Path(shutil.copytree(whole, tmp_path / "scene"))


def repack(path: Path, change) -> None:
    data = bytearray(gzip.decompress(path.read_bytes()))
    path.write_bytes(gzip.compress(bytes(change(data) or data)))


def test_a_whole_asset_has_no_problems(whole):
    assert validate(whole) == [] and validate(whole / "sm_007") == []
    assert is_baked_scene(whole) and is_baked_scene(whole / "sm_003") and not is_baked_scene(whole.parent)
    with pytest.raises(InputError, match="no baked scene"):
        validate(whole.parent)


def test_a_wrong_block_index(asset):
    def change(data: bytearray) -> None:
        used = np.flatnonzero(np.frombuffer(data, np.uint8)[::3] != 255)
        data[3 * int(used[1])] = 200

    path = asset / "sm_007" / "sparse_grid_block_indices.raw.gz"
    repack(path, change)
    (problem,) = validate(asset)
    assert "sm_007/sparse_grid_block_indices" in problem.file
    assert "block index [200, 0, 0] outside the atlas" in problem.got


def test_a_truncated_texture(asset):
    path = asset / "sm_003" / "plane_rgb_1.raw.gz"
    repack(path, lambda data: data[:-1])
    (problem,) = validate(asset)
    assert (problem.file, problem.field, problem.got) == (str(path), "size", "767 bytes")
    assert problem.expected.startswith("768 bytes")


def test_a_truncated_gzip_file(asset):
    path = asset / "sm_003" / "sparse_grid_rgb_004.raw.gz"
    path.write_bytes(path.read_bytes()[:-9])
    (problem,) = validate(asset)
    assert problem.file == str(path) and "damaged" in problem.got
    with pytest.raises(InputError, match="sparse_grid_rgb_004"):
        read_smerf(asset)


def test_a_missing_submodel_and_a_missing_file(asset):
    shutil.rmtree(asset / "sm_007")
    (asset / "sm_003" / "plane_density_2.raw.gz").unlink()
    files = [problem.file for problem in validate(asset)]
    assert len(files) == 2 and files[0].endswith("plane_density_2.raw.gz") and files[1].endswith("sm_007")


def test_scene_params_that_lie(asset):
    path = asset / "sm_007" / "scene_params.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"feature_gating": False}))
    (problem,) = validate(asset)
    assert problem.file == str(path) and problem.field == "feature gating" and problem.got == "False"
    path.write_text(json.dumps(values | {"triplane_resolution": 32, "triplane_voxel_size": 4 / 32}))
    problems = validate(asset)
    assert any(problem.field == "triplane resolution" for problem in problems)
    assert any("plane_rgb_0" in problem.file and problem.field == "size" for problem in problems)
    path.write_text(json.dumps(values | {"atlas_width": 2 * values["atlas_width"]}))
    assert any(problem.field == "the atlas" for problem in validate(asset))
    path.write_text(json.dumps(values | {"submodel_idx": 3}))
    assert [problem.field for problem in validate(asset)] == ['"submodel_idx"']
    values["asset_metadata"][1]["shape"][0] = 15
    path.write_text(json.dumps(values))
    (problem,) = validate(asset)
    assert problem.field == '"asset_metadata" of plane_rgb_0.raw.gz' and problem.got == "shape [15, 16, 3]"
    path.write_text("{")
    assert [problem.field for problem in validate(asset)] == ["content"]


def test_a_network_of_another_shape(asset):
    path = asset / "sm_003" / "deferred_mlp.json.gz"
    values = json.loads(gzip.decompress(path.read_bytes()))
    values["ResampleDense_1/kernel"]["shape"] = [2, 1, 1, 1, 2, 8]
    path.write_bytes(gzip.compress(json.dumps(values).encode()))
    (problem,) = validate(asset)
    assert problem.field == "ResampleDense_1/kernel shape" and problem.got == "[2, 1, 1, 1, 2, 8]"


def test_distances_that_let_rays_jump_over_things(asset):
    repack(asset / "sm_003" / "distance_grid_8_000.raw.gz", lambda data: bytes(data[:3]) + b"\x05" + bytes(data[4:]))
    (problem,) = validate(asset)
    assert "distance_grid_8" in problem.file and problem.field == "cell (1, 1, 0)" and problem.got == "5"


def test_a_grid_that_no_viewer_reads(asset):
    repack(asset / "sm_003" / "occupancy_grid_4_000.raw.gz", lambda data: data + b"0")
    (problem,) = validate(asset)
    assert problem.file.endswith("occupancy_grid_4_000.raw.gz")


def test_a_manifest_is_kept_to(asset):
    write_manifest(asset, {"format": "smerf"})
    assert validate(asset) == []
    path = asset / "sm_003" / "test_frames.json"
    path.write_text(path.read_text() + " ")
    (problem,) = validate(asset)
    assert "test_frames.json" in problem.got


def test_merf(tmp_path):
    plain = Layout(16, 16, submodel_scale_factor=1.0, feature_gating=False, feature_concat=False, activation="relu")
    write_merf(tmp_path, counted_scene(plain))
    assert validate(tmp_path) == [] and describe(tmp_path)["format"] == "MERF"
    (tmp_path / "plane_features_0.png").write_bytes(b"no picture")
    (tmp_path / "occupancy_grid_8.png").unlink()
    assert [Path(problem.file).name for problem in validate(tmp_path)] == [
        "plane_features_0.png",
        "occupancy_grid_8.png",
    ]


def test_description(whole):
    facts = describe(whole)
    scene = counted_scene(Layout(16, 16, 2, 0.8, (3, 7)))
    assert facts["blocks"] == sum(len(submodel.blocks) for submodel in scene.submodels.values())
    assert facts["submodels"] == "2 of 2^3" and facts["network"] == "41 -> 4 -> 4 -> 3, 1^3 sets a submodel"
    unique = {path.stat().st_ino: path.stat().st_size for path in whole.rglob("*") if path.is_file()}
    assert facts["bytes"] == sum(unique.values())
    sizes = part_bytes([whole / "sm_003"])
    assert sizes["planes"] == sum(path.stat().st_size for path in (whole / "sm_003").glob("plane_*"))


def test_info_shows_facts_or_problems(asset, capsys):
    run(["info", str(asset)])
    assert "2 of 2^3" in capsys.readouterr().out
    (asset / "sm_003" / "plane_density_2.raw.gz").unlink()
    with pytest.raises(SystemExit) as caught:
        run(["info", str(asset)])
    assert caught.value.code == 1
    assert "plane_density_2.raw.gz: the file is missing, expected" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(["info", str(asset), "--json"])
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert problem["field"] == "the file" and problem["got"] == "missing"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.data())
def test_whatever_is_broken_nothing_else_is_raised(whole, data):
    files = sorted(path for path in (whole / "sm_003").iterdir())
    path = data.draw(st.sampled_from(files))
    original = path.read_bytes()
    at = data.draw(st.integers(0, len(original) - 1))
    kind = data.draw(st.sampled_from(["cut", "flip", "insert"]))
    if kind == "cut":
        broken = original[:at]
    else:
        byte = bytes([data.draw(st.integers(0, 255))])
        broken = original[:at] + byte + original[at + (kind == "flip") :]
    path.write_bytes(broken)
    try:
        problems = validate(whole)
        assert all("\n" not in str(problem) for problem in problems)
        if not problems:
            read_smerf(whole)
    finally:
        path.write_bytes(original)
