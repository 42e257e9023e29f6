"""The network, the test cameras, and scene_params.json: exact text, and what is refused."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from baked_scenes import counted_scene
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radcomp_plugins.errors import InputError
from radcomp_plugins.smerf.formats.params import read_params
from radcomp_plugins.smerf.formats.small_files import frames_text, network_text, read_frames, read_network, to_json
from radcomp_plugins.smerf.formats.smerf import write_smerf
from radcomp_plugins.smerf.layout import DeferredMlp, Layout, TestFrame

LAYOUT = Layout(16, 8, 2, 0.8, (3, 7))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The first submodel of a scene of two."""
    write_smerf(tmp_path, counted_scene(LAYOUT), unused_grids=False)
    return tmp_path / "sm_003"


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    packed = path.suffix == ".gz"
    values = json.loads(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    change(values)
    text = json.dumps(values).encode()
    path.unlink()  # the network's file is one with those of other submodels
    path.write_bytes(gzip.compress(text) if packed else text)


def test_network_text_is_that_of_one_dump():
    scene = counted_scene(Layout(16, 8), grid=2)
    scene.deferred.kernels[0] = np.random.default_rng(0).normal(size=(1, 6, 6, 6, 41, 4)).astype(np.float32)
    arrays = {}
    for layer in range(3):
        for kind, values in (("kernel", scene.deferred.kernels), ("bias", scene.deferred.biases)):
            entry = {"data": values[layer].reshape(-1).tolist(), "shape": list(values[layer].shape)}
            arrays[f"ResampleDense_{layer}/{kind}"] = entry
    assert b"".join(network_text(scene.deferred)).decode() == to_json(arrays)


def test_sets_are_put_in_the_order_of_the_live_submodels(folder):
    params = read_params(folder)
    got = read_network(folder, params.layout, (7, 3), None)
    want = counted_scene(LAYOUT).deferred
    for one, two in zip(got.kernels + got.biases, want.kernels + want.biases, strict=True):
        np.testing.assert_array_equal(one, two[::-1])


def test_dense_networks_are_the_same_everywhere(folder):
    rng = np.random.default_rng(0)
    sizes = {"Dense_0": (41, 8), "Dense_1": (8, 8), "Dense_2": (8, 3)}
    inline = {}
    for name, size in sizes.items():
        for part, shape in (("kernel", size), ("bias", size[1:])):
            values = rng.normal(size=shape).astype(np.float32)
            inline[f"{name}/{part}"] = {"shape": list(shape), "data": values.reshape(-1).tolist()}
    got = read_network(folder, LAYOUT, (3, 7), inline)
    assert [kernel.shape for kernel in got.kernels] == [(2, 1, 1, 1, *size) for size in sizes.values()]
    np.testing.assert_array_equal(got.biases[2][1, 0, 0, 0], np.float32(inline["Dense_2/bias"]["data"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("ResampleDense_1/bias"), "ResampleDense_1/bias is missing"),
        (lambda v: v["ResampleDense_0/kernel"]["data"].pop(), "327 numbers, expected 328 numbers"),
        (lambda v: v["ResampleDense_0/kernel"].update(shape=[2, 1, 1, 1, 4, 41]), r"expected \[2, 1, 1, 1, 41, 41\]"),
        (lambda v: v["ResampleDense_2/bias"].update(shape=[6]), "bias shape"),
        (lambda v: v["ResampleDense_2/bias"].update(shape=[10**9, 10**9]), '"shape"'),
        (lambda v: v["ResampleDense_2/bias"].update(data=[1e39] * 6), "32 bits"),
        (lambda v: v["ResampleDense_2/bias"].update(data=[True] * 6), "something else than numbers"),
        (lambda v: v["ResampleDense_2/bias"].update(data="111111"), "111111"),
    ],
)
def test_networks_of_another_shape_are_refused(folder, change, message):
    rewrite(folder / "deferred_mlp.json.gz", change)
    with pytest.raises(InputError, match=message):
        read_network(folder, LAYOUT, (3, 7), None)


def test_frames_are_in_the_axes_of_the_viewer(tmp_path):
    # A camera at (1, 2, 3) that looks along +y with z up: in WebGL's axes it is at (-1, 3, 2), up is +y.
    pose = np.array([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, -1.0, 2.0], [0.0, 1.0, 0.0, 3.0]])
    (tmp_path / "test_frames.json").write_text(frames_text([TestFrame(pose, 30.0, 32.0, 40, 24)]))
    entry = json.loads((tmp_path / "test_frames.json").read_text())["test_frames"][0]
    assert entry["position"] == [-1.0, 3.0, 2.0]
    columns = np.reshape(entry["rotation"], (4, 4))
    np.testing.assert_array_equal(columns[0], [-1, 0, 0, 0])
    np.testing.assert_array_equal(columns[1], [0, 1, 0, 0])
    np.testing.assert_array_equal(columns[2], [0, 0, -1, 0])
    assert entry["projection"][0] == 1.5 and entry["projection"][5] == pytest.approx(64 / 24)
    (frame,) = read_frames(tmp_path)
    np.testing.assert_array_equal(frame.c2w, pose)


def test_frames_of_the_official_exporter_have_no_size(tmp_path):
    pose = np.eye(4)[:3]
    text = json.loads(frames_text([TestFrame(pose, 30.0, 30.0, 60, 40)]))
    del text["test_frames"][0]["radcomp"]
    (tmp_path / "test_frames.json").write_text(json.dumps(text))
    (frame,) = read_frames(tmp_path)
    assert (frame.width, frame.height) == (600, 400)
    assert frame.fx == pytest.approx(300.0) and frame.fy == pytest.approx(300.0)
    assert read_frames(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.update(test_frames=3), "list of at most"),
        (lambda f: f["test_frames"][0].update(position=[1, 2]), "3 numbers"),
        (lambda f: f["test_frames"][0].update(rotation=[2.0] * 16), "no rotation"),
        (lambda f: f["test_frames"][0].update(projection=[0.0] * 16), "focal lengths"),
        (lambda f: f["test_frames"][0]["radcomp"].update(fx=99.0), "focal lengths beside"),
    ],
)
def test_frames_that_are_no_cameras(folder, change, message):
    rewrite(folder / "test_frames.json", change)
    with pytest.raises(InputError, match=message):
        read_frames(folder)


LIES = [
    ("triplane_resolution", 17, "triplane_voxel_size"),
    ("triplane_resolution", 32, "triplane_voxel_size"),
    ("triplane_resolution", "16", "whole number"),
    ("triplane_resolution", 10**9, "16 to 4096"),
    ("sparse_grid_resolution", 16, "sparse_grid_voxel_size"),
    ("range_density", [-7, 7], "range_density"),
    ("range_features", [0], "2 numbers"),
    ("num_submodels", 9, "cube"),
    ("num_submodels", 27, "sm_to_params"),
    ("params_to_sm", [3, 8], "params_to_sm"),
    ("params_to_sm", [], "params_to_sm"),
    ("params_to_sm", [7, 3], "inverse of params_to_sm"),
    ("sm_to_params", [0], "inverse of params_to_sm"),
    ("num_local_submodels", 1, "num_local_submodels"),
    ("submodel_scale", 2.0, "submodel_scale"),
    ("submodel_voxel_size", 2.0, "submodel_voxel_size"),
    ("submodel_idx", -1, "submodel_idx"),
    ("atlas_width", 10, "multiple of 9"),
    ("atlas_width", 2**40, "atlas_width"),
    ("num_slices", 2, "divisor"),
    ("num_slices", 0, "num_slices"),
    ("data_block_size", 3, "multiple of 3"),
    ("activation", "tanh", "elu or relu"),
    ("merge_features_combine_op", "max", "coarse_sum or sum"),
    ("deferred_rendering_mode", "vfr", "snerg"),
    ("default_exposure", 0.1, "exposures"),
    ("export_apply_zdiff_to_slices", True, "undoes"),
    ("export_array_format", "npy.gz", "raw.gz or raw or png"),
    ("feature_gating", 1, "true or false"),
    ("radcomp", 3, "an object"),
    ("radcomp", {"version": 99}, "version"),
]


@pytest.mark.parametrize(("name", "value", "message"), LIES)
def test_scene_params_that_lie(folder, name, value, message):
    rewrite(folder / "scene_params.json", lambda values: values.update({name: value}))
    with pytest.raises(InputError, match=message) as caught:
        read_params(folder)
    assert "scene_params.json" in str(caught.value) and "\n" not in str(caught.value)


NEEDED = [
    "triplane_resolution",
    "triplane_voxel_size",
    "sparse_grid_resolution",
    "data_block_size",
    "range_features",
    "range_density",
    "atlas_width",
    "num_slices",
    "merge_features_combine_op",
    "params_to_sm",
    "num_submodels",
    "submodel_scale",
    "sm_to_params",
]


@pytest.mark.parametrize("name", NEEDED)
def test_scene_params_that_lack_what_the_viewer_needs(folder, name):
    rewrite(folder / "scene_params.json", lambda values: values.pop(name))
    with pytest.raises(InputError, match=f'"{name}" is missing'):
        read_params(folder)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(data=st.data())
def test_any_value_is_taken_or_refused_in_one_line(folder, data):
    path = folder / "scene_params.json"
    values = json.loads(path.read_text())
    name = data.draw(st.sampled_from(sorted(values)))
    changed = {**values, name: data.draw(VALUES)}
    (folder / "scene_params.json.gz").unlink(missing_ok=True)
    original = path.read_text()
    path.write_text(json.dumps(changed))
    try:
        read_params(folder)
    except InputError as error:
        assert "\n" not in str(error)
    finally:
        path.write_text(original)


def test_a_network_of_many_numbers_is_written_in_pieces():
    zeros = [np.zeros((1, 9, 9, 9, n), np.float32) for n in (4, 4, 3)]
    deferred = DeferredMlp([np.zeros((1, 9, 9, 9, i, o), np.float32) for i, o in ((41, 4), (4, 4), (4, 3))], zeros)
    assert max(len(piece) for piece in network_text(deferred)) < 200_000
