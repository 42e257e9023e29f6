"""Teachers: everything a user may point at, and everything that is no teacher, each with one line."""

import io
import os
import pickle
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_runs import make_scene

from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.registry import read_splats, write_splats
from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.teachers.load import find_teacher, latest_checkpoint, load_splats, read_checkpoint, read_config

ONE_LINE = r"^[^\n]+$"


def state_of(scene: Gaussians, prefix: str = "_model.gauss_params.") -> dict[str, torch.Tensor]:
    """The pipeline tensors of a splatfacto checkpoint."""
    tensors = {
        "means": scene.means, "quats": scene.quats, "scales": scene.scales, "opacities": scene.opacities[:, None],
        "features_dc": scene.sh0, "features_rest": scene.shN,
    }  # fmt: skip
    return {prefix + name: tensor for name, tensor in tensors.items()}


def save(path: Path, state: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"step": 7, "pipeline": state}, path)
    return path


def assert_same(got: Gaussians, expected: Gaussians) -> None:
    for name, tensor in expected.tensors.items():
        assert torch.equal(getattr(got, name), tensor), name


# What can be pointed at -----------------------------------------------------------------------------------------------


def test_run_folder_config_and_checkpoint_are_the_same_teacher(teacher_run):
    newest = teacher_run / "nerfstudio_models" / "step-000000005.ckpt"
    for path in (teacher_run, teacher_run / "config.yml", newest):
        files = find_teacher(path)
        assert (files.source, files.config) == (newest, teacher_run / "config.yml")
    expected = torch.load(newest, weights_only=True)["pipeline"]["_model.gauss_params.means"]
    assert torch.equal(load_splats(teacher_run).means, expected)


def test_a_checkpoint_given_by_name_is_that_one(teacher_run):
    older = teacher_run / "nerfstudio_models" / "step-000000002.ckpt"
    assert find_teacher(older).source == older
    assert not torch.equal(load_splats(older).means, load_splats(teacher_run).means)


def test_paths_may_be_relative_or_of_the_home_folder(teacher_run, monkeypatch):
    monkeypatch.chdir(teacher_run.parent)
    assert len(load_splats(Path(teacher_run.name))) == len(load_splats(Path(teacher_run.name) / "config.yml")) == 48
    monkeypatch.setenv("HOME", str(teacher_run.parent))
    assert len(load_splats(Path("~") / teacher_run.name)) == 48


@pytest.mark.parametrize("suffix", ["ply", "sog"])
def test_splat_files_are_teachers_that_know_no_run(suffix, tmp_path):
    path = tmp_path / f"scene.{suffix}"
    write_splats(path, make_scene())
    assert find_teacher(path).config is None
    assert_same(load_splats(path), read_splats(path))


def test_an_unpacked_sog_folder_is_a_teacher(tmp_path):
    write_splats(tmp_path / "scene.sog", make_scene())
    with zipfile.ZipFile(tmp_path / "scene.sog") as archive:
        archive.extractall(tmp_path / "scene")
    assert_same(load_splats(tmp_path / "scene"), read_splats(tmp_path / "scene.sog"))


def test_a_checkpoint_without_a_config_is_a_teacher(tmp_path, monkeypatch):
    path = save(tmp_path / "step-000000001.ckpt", state_of(make_scene()))
    assert find_teacher(path).config is None
    assert_same(load_splats(path), make_scene())
    monkeypatch.chdir(tmp_path)
    assert_same(load_splats(Path(path.name)), make_scene())


def test_the_newest_checkpoint_is_the_one_with_the_highest_step(tmp_path):
    for step in (900, 20_000, 3000):
        save(tmp_path / f"step-{step:09d}.ckpt", {})
    (tmp_path / "step-999999999.ckpt.tmp").touch()
    assert latest_checkpoint(tmp_path).name == "step-000020000.ckpt"


# What is in a checkpoint ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [1, 2, 3])
@pytest.mark.parametrize("prefix", ["_model.gauss_params.", "_model."])
def test_new_and_old_names_and_every_degree_are_read(tmp_path, prefix, degree):
    scene = make_scene(degree=degree)
    assert_same(load_splats(save(tmp_path / "step-000000001.ckpt", state_of(scene, prefix))), scene)


def test_splatfacto_of_degree_0_stores_logits_of_the_colour(tmp_path):
    scene = make_scene(degree=0)
    colors = torch.rand(48, 3) * 0.9 + 0.05
    state = {**state_of(scene), "_model.gauss_params.features_dc": torch.logit(colors)}
    read = load_splats(save(tmp_path / "step-000000001.ckpt", state))
    torch.testing.assert_close(0.5 + 0.28209479177387814 * read.sh0, colors)
    # Ours keeps harmonics at degree 0, and says so by its labels.
    state = {**state_of(scene), "_model.sh_labels": torch.full((48,), -1), "_model.codebook": torch.zeros(0, 0)}
    assert_same(load_splats(save(tmp_path / "step-000000002.ckpt", state)), scene)


def test_codes_stand_in_for_the_sh_of_labelled_gaussians(tmp_path):
    scene = make_scene(degree=1)
    labels, codebook = torch.arange(48, dtype=torch.int32) % 4 - 1, torch.randn(3, 9)
    state = {**state_of(scene), "_model.sh_labels": labels, "_model.codebook": codebook}
    read = load_splats(save(tmp_path / "step-000000001.ckpt", state))
    for index, label in enumerate(labels.tolist()):
        assert torch.equal(read.shN[index], scene.shN[index] if label < 0 else codebook[label].view(3, 3))


def test_gaussians_with_nan_are_left_out_and_a_scene_of_nothing_else_refused(tmp_path):
    scene = make_scene()
    scene.means[3, 1], scene.opacities[5], scene.quats[7] = torch.nan, torch.inf, 0.0
    read = load_splats(save(tmp_path / "step-000000001.ckpt", state_of(scene)))
    keep = [index for index in range(48) if index not in (3, 5, 7)]
    assert_same(read, scene.select(torch.tensor(keep)))
    scene.scales[:] = torch.nan
    with pytest.raises(InputError, match="no finite Gaussian in it"):
        load_splats(save(tmp_path / "step-000000002.ckpt", state_of(scene)))


def test_rasterize_mode_comes_from_the_config(teacher_run, tmp_path):
    config = yaml.load((teacher_run / "config.yml").read_text(), Loader=yaml.Loader)
    config.pipeline.model.rasterize_mode = "antialiased"
    (tmp_path / "config.yml").write_text(yaml.dump(config))
    save(tmp_path / "nerfstudio_models" / "step-000000001.ckpt", state_of(make_scene()))
    assert load_splats(tmp_path).antialiased
    assert not load_splats(teacher_run).antialiased


def test_neither_dataset_nor_method_is_needed_to_read_tensors(teacher_run, tmp_path):
    text = (teacher_run / "config.yml").read_text()
    config = yaml.load(text, Loader=yaml.Loader)
    config.pipeline.datamanager.data = tmp_path / "gone"
    config.pipeline.datamanager.dataparser.data = tmp_path / "gone"
    (tmp_path / "config.yml").write_text(yaml.dump(config))
    save(tmp_path / "nerfstudio_models" / "step-000000001.ckpt", state_of(make_scene()))
    assert_same(load_splats(tmp_path), make_scene())


# What is no teacher ---------------------------------------------------------------------------------------------------


def test_what_is_not_there_or_holds_nothing(tmp_path):
    with pytest.raises(InputError, match=r"^teacher .*nothing: no such file or folder; expected .*\.ply"):
        load_splats(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"^teacher .*: a folder without config.yml; expected a nerfstudio run"):
        load_splats(tmp_path)
    (tmp_path / "config.yml").write_text("a: 1")
    with pytest.raises(InputError, match="no checkpoint step-.* in it; expected a run that has saved one"):
        load_splats(tmp_path)
    (tmp_path / "scene.ply").write_bytes(b"")
    with pytest.raises(InputError, match="scene.ply"):
        load_splats(tmp_path / "scene.ply")


@pytest.mark.parametrize("text", ["a: 1", "{", "!!python/object:no.such.Thing {}", "- \x00", "\udcff"])
def test_a_config_that_is_none_is_one_line(tmp_path, text):
    (tmp_path / "config.yml").write_bytes(text.encode("utf-8", "surrogateescape"))
    save(tmp_path / "nerfstudio_models" / "step-000000001.ckpt", state_of(make_scene()))
    with pytest.raises(InputError, match=ONE_LINE) as caught:
        load_splats(tmp_path)
    assert str(tmp_path / "config.yml") in str(caught.value)


def test_a_model_without_gaussians_is_named_by_its_parts(tmp_path):
    state = {"_model.field.mlp_base.params": torch.zeros(4), "_model.proposal_networks.0.weight": torch.zeros(2)}
    path = save(tmp_path / "step-000000001.ckpt", state)
    with pytest.raises(InputError, match=r"a model of field, proposal_networks without Gaussians \(means missing\)"):
        load_splats(path)


class Bomb:
    def __reduce__(self):
        return os.mkdir, (BOMB_TARGET,)


BOMB_TARGET = ""


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "BOMB_TARGET", str(tmp_path / "exploded"))
    torch.save({"step": 1, "pipeline": Bomb()}, tmp_path / "step-000000001.ckpt")
    (tmp_path / "step-000000002.ckpt").write_bytes(pickle.dumps({"pipeline": Bomb()}))
    torch.save({"step": 1, "pipeline": Namespace(a=1)}, tmp_path / "step-000000003.ckpt")
    for path in sorted(tmp_path.glob("*.ckpt")):
        with pytest.raises(InputError, match=ONE_LINE) as caught:
            load_splats(path)
        assert str(path) in str(caught.value) and "not a readable nerfstudio checkpoint" in str(caught.value)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("state", [[], {}, {"step": 1}, {"pipeline": 3}, {"pipeline": []}, {"pipeline": {1: 2}}, 5])
def test_a_pickle_of_something_else_is_refused(tmp_path, state):
    torch.save(state, tmp_path / "step-000000001.ckpt")
    with pytest.raises(InputError, match=ONE_LINE):
        load_splats(tmp_path / "step-000000001.ckpt")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_truncated_and_damaged_checkpoints_are_refused_or_read_right(tmp_path, data):
    buffer = io.BytesIO()
    torch.save({"step": 1, "pipeline": state_of(make_scene(count=3, degree=0))}, buffer)
    content = bytearray(buffer.getvalue())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "step-000000001.ckpt"
    path.write_bytes(content)
    try:
        scene = load_splats(path)
    except InputError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert 1 <= len(scene) <= 3


def wrong(name: str, tensor: object) -> dict[str, object]:
    return {**state_of(make_scene(degree=1)), f"_model.{name}": tensor}


@pytest.mark.parametrize(
    "state",
    [
        wrong("gauss_params.means", torch.zeros(48, 2)),
        wrong("gauss_params.means", torch.zeros(47, 3)),
        wrong("gauss_params.means", torch.zeros(())),
        wrong("gauss_params.quats", torch.zeros(48)),
        wrong("gauss_params.scales", "text"),
        wrong("gauss_params.opacities", torch.zeros(48, 2)),
        wrong("gauss_params.features_dc", torch.zeros(48, 1, 3)),
        wrong("gauss_params.features_rest", torch.zeros(48, 7, 3)),
        wrong("gauss_params.features_rest", torch.zeros(48)),
        {**wrong("sh_labels", torch.full((48,), 5)), "_model.codebook": torch.zeros(3, 9)},
        {**wrong("sh_labels", torch.zeros(48, dtype=torch.int64)), "_model.codebook": torch.zeros(3, 8)},
        {**wrong("sh_labels", torch.zeros(40, dtype=torch.int64)), "_model.codebook": torch.zeros(3, 9)},
        {**wrong("sh_labels", torch.zeros(48)), "_model.codebook": torch.zeros(3, 9)},
        wrong("sh_labels", torch.zeros(48, dtype=torch.int64)),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused(tmp_path, state):
    path = save(tmp_path / "step-000000001.ckpt", state)
    with pytest.raises(InputError, match=ONE_LINE) as caught:
        load_splats(path)
    assert str(path) in str(caught.value)


def test_checkpoint_values_of_numpy_schedulers_are_read(tmp_path):
    state = state_of(make_scene())
    torch.save({"pipeline": state, "schedulers": {"lr": np.float64(0.5)}}, tmp_path / "step-000000001.ckpt")
    assert read_checkpoint(tmp_path / "step-000000001.ckpt").keys() == state.keys()


def test_read_config_finds_the_run_where_it_lies(teacher_run, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "config.yml").write_text((teacher_run / "config.yml").read_text())
    assert read_config(moved / "config.yml").get_checkpoint_dir() == moved / "nerfstudio_models"
