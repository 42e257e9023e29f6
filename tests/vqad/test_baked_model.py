"""A `.vqad` file in nerfstudio's tools: what they draw is what the file's levels hold."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nerfstudio.data.scene_box import SceneBox
from vqad_scenes import toy_scene

from radcomp_plugins.errors import InputError
from radcomp_plugins.vqad.baked_config import BakedVqadModelConfig
from radcomp_plugins.vqad.baked_model import BakedVqadModel
from radcomp_plugins.vqad.bitstream import decode_scene, encode_scene, write_scene
from radcomp_plugins.vqad.field import field_from_scene
from radcomp_plugins.vqad.picture import orbit_camera, picture
from radcomp_plugins.vqad.render import draw

SIZE = 24


@pytest.fixture(scope="module")
def scene():
    made = toy_scene((2, 3, 4), num_features=16)
    # Enough density that something is seen.
    made.decoder.biases[1][0] = 3.0
    made.box[:] = [[-1.0] * 3, [1.0] * 3]
    return made


@pytest.fixture(scope="module")
def asset(scene, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("asset")
    write_scene(folder / "scene.vqad", scene)
    return folder


def build(path: Path, **fields: Any) -> BakedVqadModel:
    box = SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
    return BakedVqadModelConfig(asset=path, **fields).setup(scene_box=box, num_train_data=1, metadata={}).eval()


def shown(model: BakedVqadModel) -> torch.Tensor:
    camera = orbit_camera(model.decoded.scene.box, 30.0, 20.0, 1.5, SIZE)
    return model.get_outputs_for_camera(camera)["rgb"]


def test_draws_what_the_scene_in_memory_looks_like(scene, asset) -> None:
    model = build(asset)
    wanted = picture(scene, orbit_camera(scene.box, 30.0, 20.0, 1.5, SIZE))
    assert torch.equal(shown(model), wanted)
    assert wanted.std() > 0.02
    outputs = model.get_outputs_for_camera(orbit_camera(scene.box, 30.0, 20.0, 1.5, SIZE))
    assert outputs["depth"].shape == outputs["accumulation"].shape == (SIZE, SIZE, 1)
    # Upstream has an empty one, to know what device it is on.
    assert all(parameter.numel() == 0 for parameter in [*model.parameters(), *model.state_dict().values()])


def test_every_level_is_bit_for_bit_its_prefix_and_the_truncated_scene(scene, asset, tmp_path) -> None:
    data = encode_scene(scene)
    chunks = decode_scene(data).chunks
    for place, level in enumerate(scene.levels, start=1):
        cut = tmp_path / "cut.vqad"
        cut.write_bytes(data[: chunks[place].end])
        asked, prefix = shown(build(asset, level=level.level)), shown(build(cut))
        truncated = picture(scene.truncated(level.level), orbit_camera(scene.box, 30.0, 20.0, 1.5, SIZE))
        assert torch.equal(asked, prefix) and torch.equal(prefix, truncated)
    assert not torch.equal(shown(build(asset, level=2)), shown(build(asset)))


def test_a_cut_file_is_drawn_and_said_to_be_cut(asset, tmp_path, capsys) -> None:
    cut = tmp_path / "cut.vqad"
    cut.write_bytes((asset / "scene.vqad").read_bytes()[:-1])
    model = build(cut)
    assert "cut off after levels up to 3" in " ".join(capsys.readouterr().out.split())
    assert model.level.value == 3
    with pytest.raises(InputError, match="level 4 asked for, the file holds 2 to 3"):
        build(cut, level=4)


def test_panel_says_what_a_level_costs(asset) -> None:
    model = build(asset)
    whole = (asset / "scene.vqad").stat().st_size
    assert model.status.value.startswith(f"{whole:,} bytes")
    model.level.value = 2
    model._describe()
    assert model.status.value.startswith(f"{model.decoded.chunks[1].end:,} bytes")


def test_nothing_to_train_and_nothing_there(asset, tmp_path) -> None:
    model = build(asset)
    with pytest.raises(InputError, match="cannot be trained"):
        model.get_loss_dict({}, {})
    with pytest.raises(InputError, match=r"no scene\.vqad"):
        build(tmp_path)
    shutil.copy(asset / "scene.vqad", tmp_path / "scene.vqad")
    (tmp_path / "scene.vqad").write_bytes(b"PK" + bytes(30))
    with pytest.raises(InputError, match="another kind of file"):
        build(tmp_path)


def test_metrics_put_transparent_photos_on_the_files_background(asset, scene) -> None:
    model = build(asset)
    background = torch.from_numpy(scene.background)
    rgb = background.expand(16, 16, 3).contiguous()
    photo = torch.cat([torch.rand(16, 16, 3), torch.zeros(16, 16, 1)], dim=-1)
    metrics, images = model.get_image_metrics_and_images({"rgb": rgb}, {"image": photo})
    assert metrics["psnr"] == float("inf") and images["img"].shape == (16, 32, 3)


def test_codebooks_of_unlike_sizes_are_drawn(scene) -> None:
    mixed = toy_scene((2, 3), bits=3, num_features=16)
    mixed.levels[1] = toy_scene((2, 3), bits=5, num_features=16).levels[1]
    decoded = decode_scene(encode_scene(mixed)).scene
    field = field_from_scene(decoded)
    rays = torch.tensor([[-2.0, 0.05, 0.02]]), torch.tensor([[1.0, 0.0, 0.0]])
    drawn = draw(field, *rays)
    assert np.isfinite(drawn.rgb.detach().numpy()).all()
