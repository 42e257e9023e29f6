"""Export: a folder that is whole or not there, decoded again and measured, and opened by stock tools."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from radcomp_plugins import compat
from radcomp_plugins.errors import InputError
from radcomp_plugins.kilonerf.asset import export_run, photo_of
from radcomp_plugins.kilonerf.asset_file import describe, is_kilonerf, read_asset
from radcomp_plugins.kilonerf.baked_config import BakedKiloModelConfig


@pytest.fixture(scope="module")
def asset(kilo_trainer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asset") / "balls"
    export_run(kilo_trainer.base_dir, folder, precision="fp16")
    return folder


def test_manifest_says_what_is_there(asset: Path, kilo_trainer: Any) -> None:
    manifest = json.loads((asset / "manifest.json").read_text())
    grid = kilo_trainer.pipeline.model.grid
    assert (manifest["format"], manifest["version"], manifest["method"]) == ("radcomp-kilonerf", 1, "kilonerf-tiny")
    assert manifest["networks"] == grid.num_networks and manifest["cells"] == list(grid.cells)
    assert set(manifest["files"]) == {
        "scene.safetensors", "run/config.yml", "run/dataparser_transforms.json",
        "run/nerfstudio_models/step-000000000.ckpt",
    }  # fmt: skip
    quality = manifest["quality"]
    assert quality["num_views"] == 2 and quality["psnr"] == pytest.approx(quality["unrounded"]["psnr"], abs=0.05)
    assert quality["teacher"]["num_views"] == 2 and quality["to_teacher"]["psnr"] > 0
    assert manifest["dataset_to_scene"]["scale"] == 1.0


def test_asset_is_the_networks(asset: Path, kilo_trainer: Any) -> None:
    scene = read_asset(asset)
    for name, array in kilo_trainer.pipeline.model.scene().weights.items():
        assert np.abs(scene.weights[name] - array).max() <= 1e-3 * max(np.abs(array).max(), 1e-3), name
    assert is_kilonerf(asset) and not is_kilonerf(asset / "run")
    assert describe(asset)["networks"] == scene.grid.num_networks


def test_exported_run_shows_the_asset(asset: Path) -> None:
    pipeline = compat.load_run(asset / "run")[1]
    assert type(pipeline.model).__name__ == "BakedKiloModel"
    metrics: Any = pipeline.get_average_eval_image_metrics()
    stated = json.loads((asset / "manifest.json").read_text())["quality"]
    assert metrics["psnr"] == pytest.approx(stated["psnr"], abs=1e-3)
    model: Any = pipeline.model
    with pytest.raises(InputError, match="cannot be trained"):
        model.get_loss_dict({}, {})
    assert model.get_param_groups() == {}
    model.panel.show.value = "networks"
    manager: Any = pipeline.datamanager
    camera = manager.eval_dataset.cameras[0:1]
    assert model.get_outputs_for_camera(camera)["rgb"].shape == (32, 32, 3)


def test_asset_and_run_may_move_together(asset: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(asset, tmp_path / "elsewhere")
    pipeline = compat.load_run(tmp_path / "elsewhere/run")[1]
    assert Path(pipeline.model.config.asset) == tmp_path / "elsewhere"  # type: ignore[attr-defined]


def test_same_run_same_bytes(asset: Path, kilo_trainer: Any, tmp_path: Path) -> None:
    export_run(kilo_trainer.base_dir, tmp_path / "again", precision="fp16", with_quality=False)
    assert (tmp_path / "again/scene.safetensors").read_bytes() == (asset / "scene.safetensors").read_bytes()
    assert json.loads((tmp_path / "again/manifest.json").read_text())["quality"] is None


def test_nothing_is_overwritten_unasked(asset: Path, kilo_trainer: Any) -> None:
    with pytest.raises(InputError, match="--overwrite"):
        export_run(kilo_trainer.base_dir, asset, with_quality=False)


def test_int8(kilo_trainer: Any, tmp_path: Path, asset: Path) -> None:
    manifest = export_run(kilo_trainer.base_dir, tmp_path / "small", precision="int8", with_quality=False)
    assert manifest["precision"] == "int8"
    sizes = [(folder / "scene.safetensors").stat().st_size for folder in (tmp_path / "small", asset)]
    assert sizes[0] < 0.7 * sizes[1]


def test_other_runs_are_refused(nerfacto_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected one of kilonerf"):
        export_run(nerfacto_run, tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "manifest", "format"])
def test_damaged_assets_are_told(asset: Path, tmp_path: Path, damage: str) -> None:
    import shutil

    folder = tmp_path / "broken"
    shutil.copytree(asset, folder)
    file, manifest = folder / "scene.safetensors", folder / "manifest.json"
    data = file.read_bytes()
    if damage == "cut":
        file.write_bytes(data[:-5])
    elif damage == "flip":
        file.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    elif damage == "missing":
        file.unlink()
    elif damage == "manifest":
        manifest.write_text("{")
    else:
        manifest.write_text(manifest.read_text().replace("radcomp-kilonerf", "radcomp-smerf"))
    with pytest.raises(InputError) as error:
        read_asset(folder)
    assert "\n" not in str(error.value)


def test_photos_of_any_kind() -> None:
    rgba = torch.tensor([[[0, 255, 0, 128]]], dtype=torch.uint8)
    shown = photo_of({"image": rgba}, torch.tensor([1.0, 0.0, 0.0]))
    assert torch.allclose(shown, torch.tensor([[[127 / 255, 128 / 255, 0.0]]]), atol=1e-6)
    assert torch.equal(photo_of({"image": torch.ones(1, 1, 3)}, torch.zeros(3)), torch.ones(1, 1, 3))


@pytest.mark.parametrize("wrong", [{"early_stop": 1.0}, {"early_stop": -0.1}, {"steps": 0.0}])
def test_settings_that_cannot_work(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected 0 to below 1"):
        BakedKiloModelConfig(**wrong)  # type: ignore[arg-type]
