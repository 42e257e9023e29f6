"""nerfacto-tiny: nerfacto's numbers without nerfacto's time, on objects and in open space, on whatever background."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ray_teachers import copy_of, make_nerfacto, nerfacto_tiny_config, rays_around
from tiny_runs import blender_parser, train

from radcomp_plugins import compat
from radcomp_plugins.errors import InputError
from radcomp_plugins.teachers.hash_encoding import CpuTwinHashEncoding
from radcomp_plugins.teachers.nerfacto_tiny.config import look_at_images


def pipeline_config(data: Path, **model: Any) -> Any:
    """As ns-train has it, on a blender dataset."""
    return nerfacto_tiny_config(Path("unused"), data, **model).pipeline


def opaque_copy(data: Path, folder: Path) -> Path:
    """The dataset with pictures without alpha."""
    shutil.copytree(data, folder)
    for path in (folder / "images").iterdir():
        Image.open(path).convert("RGB").save(path)
    return folder


# Against nerfacto -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("twin", [True, False])
def test_open_space_is_nerfactos_with_all_its_gradients(twin):
    fields: dict[str, Any] = {"scene": "unbounded", "background_color": "last_sample", "cpu_twin": twin}
    stock, ours = (make_nerfacto(stock=stock, **fields) for stock in (True, False))
    assert list(stock.state_dict()) == list(ours.state_dict())
    rays, batch, results = rays_around(radius=0.5), {"image": torch.rand(130, 3)}, []
    for model in (stock, ours):
        model.train()
        torch.manual_seed(3)
        outputs = model(copy_of(rays))
        losses = model.get_loss_dict(outputs, batch, model.get_metrics_dict(outputs, batch))
        torch.stack(list(losses.values())).sum().backward()
        results.append((losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(results[1][0], results[0][0], atol=1e-6, rtol=1e-5)
    assert results[0][1].keys() == results[1][1].keys() and len(results[0][1]) > 8
    for name, grad in results[0][1].items():
        scale = float(grad.abs().max())
        torch.testing.assert_close(results[1][1][name], grad, atol=2e-4 * scale + 1e-9, rtol=1e-3, msg=name)


def test_evaluation_gives_every_output_of_nerfacto():
    fields: dict[str, Any] = {"scene": "unbounded", "background_color": "last_sample"}
    stock, ours = (make_nerfacto(stock=stock, **fields).eval() for stock in (True, False))
    with torch.no_grad():
        expected, got = stock(rays_around(radius=0.5)), ours(rays_around(radius=0.5))
    assert expected.keys() == got.keys()
    torch.testing.assert_close(got["rgb"], expected["rgb"], atol=1e-5, rtol=1e-4)


def test_training_computes_no_depth_and_keeps_what_the_losses_need():
    outputs = make_nerfacto(scene="object", background_color="white").train()(rays_around())
    assert set(outputs) == {"rgb", "accumulation", "weights_list", "ray_samples_list"}
    assert [weights.shape[1] for weights in outputs["weights_list"]] == [12, 8, 6]


def test_encodings_are_twins_only_where_wanted_and_follow_positions_only_for_normals_or_poses():
    def encodings(model):
        return [part for part in model.modules() if isinstance(part, CpuTwinHashEncoding)]

    assert len(encodings(make_nerfacto())) == 3 and not encodings(make_nerfacto(cpu_twin=False))
    assert not any(part.position_gradients for part in encodings(make_nerfacto()))
    assert all(part.position_gradients for part in encodings(make_nerfacto(predict_normals=True)))
    normals = make_nerfacto(scene="object", predict_normals=True).train()(rays_around())
    assert "normals" in normals and "rendered_orientation_loss" in normals


# Objects --------------------------------------------------------------------------------------------------------------


def test_rays_of_an_object_stay_inside_its_box_and_misses_see_the_background():
    model = make_nerfacto(scene="object", background_color="white").eval()
    rays = rays_around()
    rays.directions[:20] = torch.nn.functional.normalize(rays.origins[:20], dim=-1)  # away from it
    with torch.no_grad():
        outputs = model(copy_of(rays))
        samples = model.proposal_sampler(model.collider(copy_of(rays)), density_fns=model.density_fns)[0]
    assert torch.equal(outputs["rgb"][:20], torch.ones(20, 3)) and not outputs["accumulation"][:20].any()
    hit = samples.deltas.sum(dim=(1, 2)) > 1e-3
    assert not hit[:20].any() and hit[20:].float().mean() > 0.8
    assert (outputs["accumulation"][hit] > 0.01).float().mean() > 0.8
    assert samples.frustums.get_positions()[hit].abs().max() <= 1.5 + 1e-3 and samples.deltas.sum(dim=1).max() > 1.0
    assert model.config.disable_scene_contraction is False, "what the user typed is saved, not what it led to"
    assert model.field.spatial_distortion is None


def test_transparent_pixels_are_trained_on_random_backgrounds_and_shown_on_the_datasets():
    model = make_nerfacto(scene="object", background_color="white", has_alpha=True)
    rays = rays_around()
    model.train()
    outputs = model(copy_of(rays))
    # Nothing behind the scene yet: colours are at most what has accumulated.
    assert (outputs["rgb"] <= outputs["accumulation"] + 1e-5).all()
    clear, solid = torch.zeros(130, 4), torch.cat([outputs["rgb"].detach(), torch.ones(130, 1)], dim=1)
    metrics = model.get_metrics_dict(outputs, {"image": clear})
    # A clear pixel costs (random colour)^2 times accumulation^2 plus cross terms: never the same twice, never nothing.
    costs = [float(model.get_loss_dict(outputs, {"image": clear}, metrics)["rgb_loss"]) for _ in range(2)]
    assert costs[0] != costs[1] and min(costs) > 1e-3
    # Where the scene is fully transparent, they cost nothing on any background.
    empty = {**outputs, "rgb": torch.zeros(130, 3), "accumulation": torch.zeros(130, 1)}
    assert float(model.get_loss_dict(empty, {"image": clear}, metrics)["rgb_loss"]) == 0
    # An opaque pixel of the right colour still pays for what shines through.
    assert float(model.get_loss_dict(outputs, {"image": solid}, metrics)["rgb_loss"]) > 0
    with torch.no_grad():
        shown = model.eval()(copy_of(rays))
    assert (shown["rgb"] >= 1 - shown["accumulation"] - 1e-5).all()


def test_opaque_pixels_keep_the_configured_background_in_training():
    model = make_nerfacto(scene="object", background_color="white", has_alpha=False).train()
    outputs = model(rays_around())
    assert (outputs["rgb"] >= 1 - outputs["accumulation"] - 1e-5).all()


# What is auto ---------------------------------------------------------------------------------------------------------


def test_transparent_pictures_make_an_object_on_the_parsers_colour(blender_data):
    config = pipeline_config(blender_data)
    config.prepare()
    assert (config.model.scene, config.model.background_color) == ("object", "white")
    config = pipeline_config(blender_data)
    config.datamanager.dataparser.alpha_color = "black"
    config.prepare()
    assert config.model.background_color == "black"
    config = pipeline_config(blender_data)
    config.datamanager.dataparser.alpha_color = None
    config.prepare()
    assert (config.model.scene, config.model.background_color) == ("object", "black")


def test_opaque_pictures_make_an_open_scene(blender_data, tiny_dataset, tmp_path):
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

    config = pipeline_config(opaque_copy(blender_data, tmp_path / "opaque"))
    config.prepare()
    assert (config.model.scene, config.model.background_color) == ("unbounded", "last_sample")
    config = pipeline_config(blender_data)
    config.datamanager.dataparser, config.datamanager.data = NerfstudioDataParserConfig(), tiny_dataset
    config.prepare()
    assert config.model.scene == "unbounded"


def test_what_the_user_chose_stays(blender_data):
    config = pipeline_config(blender_data, scene="unbounded")
    config.prepare()
    assert (config.model.scene, config.model.background_color) == ("unbounded", "white")
    config = pipeline_config(Path("/nowhere"), scene="object", background_color="red")
    config.prepare()  # nothing to look up
    assert config.model.background_color == "red"


def test_a_dataset_that_is_not_there_is_one_line(tmp_path):
    config = pipeline_config(tmp_path / "missing")
    with pytest.raises(InputError, match=r"^dataset .*missing: no such file or folder; give one with --data$"):
        config.prepare()


def test_a_dataset_without_training_images_is_one_line(blender_data, tmp_path):
    shutil.copytree(blender_data, tmp_path / "data")
    meta = {"camera_angle_x": 0.7, "frames": []}
    (tmp_path / "data/transforms_train.json").write_text(json.dumps(meta))
    manager = pipeline_config(tmp_path / "data").datamanager
    with pytest.raises((InputError, IndexError)):
        look_at_images(manager)


# Runs -----------------------------------------------------------------------------------------------------------------


def test_training_saves_what_auto_came_to_and_keeps_alpha_for_training_only(nerfacto_tiny_trainer):
    config = nerfacto_tiny_trainer.config
    assert (config.pipeline.model.scene, config.pipeline.model.background_color) == ("object", "white")
    assert "scene: object" in (nerfacto_tiny_trainer.base_dir / "config.yml").read_text()
    pipeline = nerfacto_tiny_trainer.pipeline
    assert pipeline.model.has_alpha and pipeline.model.is_object
    pixels = pipeline.datamanager.next_train(0)[1]["image"]
    assert pixels.shape == (64, 4) and pipeline.datamanager.next_eval(0)[1]["image"].shape[1] == 3
    assert pipeline.datamanager.train_dataset[0]["image"].shape[-1] == 3


def test_evaluation_of_the_saved_run_needs_no_download_and_compares_on_white(nerfacto_run):
    loaded: Any = compat.load_run(nerfacto_run)
    pipeline, step = loaded[1], loaded[3]
    assert step == 3
    metrics = pipeline.get_average_eval_image_metrics()
    assert 0 < metrics["psnr"] < 60 and "lpips" in metrics
    pipeline.eval()
    camera, batch = next(iter(pipeline.datamanager.fixed_indices_eval_dataloader))
    outputs = pipeline.model.get_outputs_for_camera(camera)
    values, images = pipeline.model.get_image_metrics_and_images(outputs, batch)
    mse = (outputs["rgb"] - batch["image"]).square().mean()
    assert values["psnr"] == pytest.approx(float(-10 * mse.log10()), abs=1e-3)
    torch.testing.assert_close(images["error"], (outputs["rgb"] - batch["image"]).abs())
    # The corner shows background: white in the picture, whatever little the field has there.
    expected = np.asarray(Image.open(pipeline.datamanager.eval_dataset.image_filenames[0]).convert("RGBA"))
    assert expected[0, 0, 3] == 0 and torch.equal(batch["image"][0, 0], torch.ones(3))


def test_a_resumed_run_ends_where_it_would_have_ended(nerfacto_run, blender_data, tmp_path):
    config = nerfacto_tiny_config(tmp_path, blender_data, steps=6)
    config.load_dir = nerfacto_run / "nerfstudio_models"
    trainer = train(config)
    assert sorted(path.name for path in trainer.checkpoint_dir.iterdir())[-1] == "step-000000005.ckpt"


def test_it_learns_a_scene(blender_data, tmp_path):
    config = nerfacto_tiny_config(tmp_path, blender_data, steps=150)
    config.steps_per_save = 10**6
    config.pipeline.datamanager.train_num_rays_per_batch = 512
    config.pipeline.datamanager.dataparser = blender_parser(blender_data)
    config.pipeline.model.log2_hashmap_size = 12
    config.pipeline.model.num_nerf_samples_per_ray = 16
    pipeline = train(config).pipeline.eval()
    metrics = pipeline.get_average_eval_image_metrics()
    # An empty picture has 10 dB, the mean colour 12 dB.
    assert metrics["psnr"] > 16
