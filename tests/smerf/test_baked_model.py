"""A baked asset in nerfstudio's tools: the run beside it opens, moves, and shows what the renderer draws."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from baked_scenes import toy_scene
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.scene_box import SceneBox

from method_configs.smerf import smerf_tiny
from radcomp_plugins import compat
from radcomp_plugins.core import metrics
from radcomp_plugins.errors import InputError
from radcomp_plugins.smerf.baked_config import BakedSmerfModelConfig, baked_pipeline
from radcomp_plugins.smerf.baked_model import BakedSmerfModel
from radcomp_plugins.smerf.config import SmerfDatamanagerConfig
from radcomp_plugins.smerf.formats.smerf import write_smerf
from radcomp_plugins.smerf.layout import BakedScene
from radcomp_plugins.smerf.render import render
from radcomp_plugins.trainer import RunAnywhereTrainerConfig


@pytest.fixture(scope="module", autouse=True)
def no_downloads():
    """LPIPS as on a machine without network."""
    patch = pytest.MonkeyPatch()
    patch.setattr(metrics, "_networks", {})
    patch.setattr(metrics, "_failures", {"alex": "weights not available: no network"})
    yield
    patch.undo()


@pytest.fixture(scope="module")
def toy() -> BakedScene:
    return toy_scene(32, 8, K=2)


@pytest.fixture(scope="module")
def asset(toy, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("asset") / "scene"
    write_smerf(folder, toy)
    return folder


@pytest.fixture(scope="module")
def model(asset) -> BakedSmerfModel:
    return build(asset)


def build(folder: Path, **fields: Any) -> BakedSmerfModel:
    config = BakedSmerfModelConfig(asset=folder, **fields)
    box = SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
    return config.setup(scene_box=box, num_train_data=1, metadata={}).eval()


def scene_camera(scene: BakedScene, number: int = 0, **fields: Any) -> Cameras:
    """A test frame as nerfstudio has it: in the scene frame."""
    frame, to_unit = scene.test_frames[number], scene.layout.scene_to_unit
    pose = frame.c2w.copy()
    pose[:, 3] = np.linalg.solve(to_unit[:, :3], pose[:, 3] - to_unit[:, 3])
    size = {"width": 30, "height": 20}
    lens = {"fx": frame.fx / 2, "fy": frame.fy / 2, "cx": 14.0, "cy": 11.0}
    return Cameras(torch.tensor(pose, dtype=torch.float32)[None], **{**lens, **size, **fields})


def test_picture_is_the_renderers_in_the_scene_frame(toy, model):
    frame = toy.test_frames[0]
    drawn = render(toy, frame.c2w, frame.fx / 2, frame.fy / 2, 14.0, 11.0, 30, 20)
    outputs = model.get_outputs_for_camera(scene_camera(toy))
    assert outputs["accumulation"].shape == (20, 30, 1) and outputs["accumulation"].max() > 0.9
    torch.testing.assert_close(outputs["rgb"], drawn["rgb"], atol=2e-3, rtol=0)
    # Half as large in the unit frame as in the scene's.
    torch.testing.assert_close(outputs["depth"][..., 0], 2.0 * drawn["depth"], atol=1e-2, rtol=1e-2)


def test_rays_are_the_pictures(toy, model):
    camera = scene_camera(toy, 2)
    whole = model.get_outputs_for_camera(camera)
    bundle = camera.generate_rays(camera_indices=0, keep_shape=True)
    rays = model.get_outputs_for_camera_ray_bundle(bundle)
    for name, tensor in whole.items():
        torch.testing.assert_close(rays[name], tensor, atol=2e-3, rtol=1e-2, msg=name)
    one = model(bundle.flatten()[17:19])
    torch.testing.assert_close(one["rgb"], whole["rgb"].reshape(-1, 3)[17:19], atol=2e-3, rtol=0)


def test_lenses_and_crops_go_by_rays(toy, model):
    flat = model.get_outputs_for_camera(scene_camera(toy))["rgb"]
    bent = scene_camera(toy, distortion_params=torch.tensor([[0.3, 0, 0, 0, 0, 0.0]]))
    assert (model.get_outputs_for_camera(bent)["rgb"] - flat).abs().max() > 0.05
    fisheye = scene_camera(toy, camera_type=CameraType.FISHEYE)
    assert (model.get_outputs_for_camera(fisheye)["rgb"] - flat).abs().max() > 0.05


def test_rays_do_not_begin_before_their_nears(toy, model):
    bundle = scene_camera(toy).generate_rays(camera_indices=0, keep_shape=True)
    bundle.nears = torch.full_like(bundle.origins[..., :1], 1e6)
    assert model.get_outputs_for_camera_ray_bundle(bundle)["accumulation"].max() < 1e-3


def test_metrics_are_those_of_stock_models(toy, model):
    outputs = model.get_outputs_for_camera(scene_camera(toy))
    found, images = model.get_image_metrics_and_images(outputs, {"image": outputs["rgb"] * 0.9})
    expected = -10 * torch.log10(((outputs["rgb"] * 0.1) ** 2).mean())
    assert found["psnr"] == pytest.approx(float(expected), abs=1e-3) and 0.5 < found["ssim"] < 1
    assert np.isnan(found["lpips"]) and images["img"].shape == (20, 60, 3)


def test_model_has_nothing_to_train(model):
    assert model.get_param_groups() == {} and sum(p.numel() for p in model.parameters()) == 0
    with pytest.raises(InputError, match="cannot be trained"):
        model.get_loss_dict({}, {})


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="step_mult 0"):
        BakedSmerfModelConfig(step_mult=0)


def test_missing_asset_is_named(tmp_path):
    with pytest.raises(InputError, match="no baked scene"):
        build(tmp_path)


def test_turned_frames_are_refused(toy, tmp_path):
    turned = np.array([[0.0, 1.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    write_smerf(tmp_path / "a", dataclasses.replace(toy, layout=dataclasses.replace(toy.layout, scene_to_unit=turned)))
    with pytest.raises(InputError, match="scale and a shift"):
        build(tmp_path / "a")


# The run beside the asset ---------------------------------------------------------------------------------------------


def write_run(folder: Path, data: Path) -> None:
    """A run folder as an export leaves it."""
    manager = SmerfDatamanagerConfig(
        data=data, dataparser=NerfstudioDataParserConfig(data=data, load_3D_points=False, orientation_method="none")
    )
    config = RunAnywhereTrainerConfig(method_name="smerf-tiny", experiment_name="scene", timestamp="time")
    config.pipeline = baked_pipeline(manager, BakedSmerfModelConfig(asset=Path("..")))
    (folder / "nerfstudio_models").mkdir(parents=True)
    (folder / "config.yml").write_text(yaml.dump(config))
    state = {"step": 0, "pipeline": {}, "optimizers": {}, "schedulers": {}, "scalers": {}}
    torch.save(state, folder / "nerfstudio_models" / "step-000000000.ckpt")


@pytest.fixture
def run(asset, tiny_dataset, tmp_path, monkeypatch) -> Path:
    # Upstream looks the method up by name; an installation older than the working tree does not have it yet.
    monkeypatch.setitem(all_methods, "smerf-tiny", smerf_tiny.config)
    shutil.copytree(asset, tmp_path / "made" / "scene")
    write_run(tmp_path / "made" / "scene" / "run", tiny_dataset)
    shutil.move(tmp_path / "made", tmp_path / "moved")
    return tmp_path / "moved" / "scene" / "run"


def test_run_opens_where_it_was_moved(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, pipeline, checkpoint, step = compat.load_run(run, test_mode="test")
    model: Any = pipeline.model
    assert model.config.asset == run.parent and step == 0 and checkpoint.parent.parent == run
    found: Any = pipeline.get_average_eval_image_metrics(output_path=None)
    assert found["lpips"] is None and "no network" in found["lpips_missing"]
    assert 0 < found["psnr"] < 40


def test_ns_eval_measures_the_run(run, tmp_path):
    from nerfstudio.scripts.eval import ComputePSNR

    compat.use_our_eval_setup()
    ComputePSNR(load_config=run / "config.yml", output_path=tmp_path / "eval.json").main()
    assert json.loads((tmp_path / "eval.json").read_text())["results"]["psnr"] > 0


def test_run_without_its_asset_says_so(run):
    shutil.rmtree(run.parent / "sm_001", ignore_errors=True)
    for folder in run.parent.glob("sm_*"):
        shutil.rmtree(folder)
    with pytest.raises(InputError, match="no baked scene"):
        compat.load_run(run, test_mode="inference")
