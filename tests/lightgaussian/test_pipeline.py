"""LightGaussian as a run: stages and counts, resuming anywhere, what a step trains on, rates, teachers, reports."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nerfstudio.engine.callbacks import TrainingCallbackAttributes
from PIL import Image
from pytorch_msssim import ssim
from tiny_runs import LIGHTGAUSSIAN_STEPS, lightgaussian_config, orbit, train, views_of

from radcomp_plugins import compat
from radcomp_plugins.core import metrics
from radcomp_plugins.core.files import read_json
from radcomp_plugins.errors import InputError
from radcomp_plugins.lightgaussian import pipeline as module
from radcomp_plugins.lightgaussian.asset import export_run
from radcomp_plugins.lightgaussian.pipeline import REPORT_NAME
from radcomp_plugins.splats.draw import picture
from radcomp_plugins.splats.formats.registry import read_splats
from radcomp_plugins.teachers.dataset import adopt_dataset
from radcomp_plugins.teachers.load import load_splats

pytestmark = pytest.mark.usefixtures("few_seeds")

LAST_STEP = 12
STOPS = {
    "within the first pruning": 1,
    "before the second pruning": 2,
    "within the second pruning": 3,
    "before the distillation": 5,
    "within the distillation": 7,
    "before the quantisation": 9,
    "within the codebook's training": 10,
    "after the last step": LAST_STEP,
}


def optimizer_state(trainer) -> dict[str, torch.Tensor]:
    """All tensors and rates of a trainer's optimizers, by name."""
    flat = {}
    for group, optimizer in trainer.optimizers.optimizers.items():
        state = optimizer.state_dict()
        flat[f"{group}.lr"] = torch.tensor(state["param_groups"][0]["lr"])
        for key, value in state["state"].get(0, {}).items():
            flat[f"{group}.{key}"] = torch.as_tensor(value)
    return flat


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(got[name], expected[name])]
    assert different == []


# The run as a whole ---------------------------------------------------------------------------------------------------


def test_run_ends_with_its_last_stage_at_the_right_counts(lightgaussian_run):
    assert lightgaussian_run.step == LAST_STEP
    model = lightgaussian_run.pipeline.model
    # 48 Gaussians, twice sqrt(0.5) of them; degree 2; three quarters of 24 are coded.
    assert model.num_points == 24
    assert model.gauss_params["features_rest"].shape == (24, 8, 3)
    assert model.codebook.shape == (LIGHTGAUSSIAN_STEPS["vq_codebook_size"], 24)
    assert int((model.sh_labels >= 0).sum()) == 18
    assert model.significance.shape == (24,) and bool((model.significance > 0).any())


def test_checkpoints_follow_the_stages(lightgaussian_run):
    shapes = {}
    for path in sorted(lightgaussian_run.checkpoint_dir.glob("*.ckpt")):
        state = torch.load(path, weights_only=True)["pipeline"]
        shapes[int(path.stem[5:])] = (
            len(state["_model.gauss_params.means"]),
            state["_model.gauss_params.features_rest"].shape[1],
            len(state["_model.codebook"]),
        )
    expected = {step: (34, 15, 0) for step in (1, 2)} | {step: (24, 15, 0) for step in (3, 4, 5)}
    expected |= {step: (24, 8, 0) for step in (6, 7, 8, 9)} | {step: (24, 8, 8) for step in (10, 11, 12)}
    assert shapes == expected


def test_checkpoint_holds_the_scene_alone_and_neither_teacher_nor_lpips(lightgaussian_run):
    names = {key.removeprefix("_model.") for key in lightgaussian_run.pipeline.state_dict()}
    params = {"means", "quats", "scales", "opacities", "features_dc", "features_rest"}
    own = {"codebook", "sh_labels", "significance", "encoding_plan", "device_indicator_param"}
    assert names == {f"gauss_params.{name}" for name in params} | own


def test_report_has_a_row_before_and_after_each_stage(lightgaussian_run):
    report = json.loads((lightgaussian_run.base_dir / REPORT_NAME).read_text())
    assert report["schema_version"] == 1
    rows = report["stages"]
    names = ["teacher"]
    for stage in ("prune 1/2", "prune 2/2", "SH 3 to 2", "quantise"):
        names += [stage, f"{stage}, trained"]
    assert [row["stage"] for row in rows] == names
    assert [row["step"] for row in rows] == [0, 0, 2, 3, 5, 6, 9, 10, 12]
    assert [row["gaussians"] for row in rows] == [48, 34, 34] + [24] * 6
    assert [row["sh_degree"] for row in rows] == [3] * 5 + [2] * 4
    bytes_of = [row["estimated_bytes"] for row in rows]
    assert bytes_of == sorted(bytes_of, reverse=True)


def test_reported_quality_is_that_of_the_saved_scene_on_the_photos(lightgaussian_run, blender_data):
    row = json.loads((lightgaussian_run.base_dir / REPORT_NAME).read_text())["stages"][-1]
    saved = load_splats(lightgaussian_run.base_dir)
    psnrs, ssims = [], []
    for index, view in list(enumerate(views_of(orbit())))[-2:]:
        rgba = np.asarray(Image.open(blender_data / f"images/{index:02d}.png")).astype(np.float64) / 255
        photo = torch.from_numpy(rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:])
        drawn = picture(saved, view, torch.ones(3)).double()
        psnrs.append(-10 * torch.log10(((photo - drawn) ** 2).mean()).item())
        ssims.append(ssim(photo.permute(2, 0, 1)[None], drawn.permute(2, 0, 1)[None], data_range=1.0).item())
    assert row["psnr"] == pytest.approx(np.mean(psnrs), abs=2e-3)
    assert row["ssim"] == pytest.approx(np.mean(ssims), abs=1e-3)


@pytest.mark.parametrize("step", STOPS.values(), ids=STOPS.keys())
def test_run_stopped_anywhere_and_resumed_ends_at_the_same_bits(
    step, lightgaussian_run, teacher_ply, blender_data, tmp_path
):
    config = lightgaussian_config(tmp_path, teacher_ply, blender_data)
    config.load_dir, config.load_step = lightgaussian_run.checkpoint_dir, step
    resumed = train(config)
    assert resumed.step == LAST_STEP
    assert_same(resumed.pipeline.state_dict(), lightgaussian_run.pipeline.state_dict())
    assert_same(optimizer_state(resumed), optimizer_state(lightgaussian_run))
    whole = torch.load(lightgaussian_run.checkpoint_dir / f"step-{LAST_STEP:09d}.ckpt", weights_only=True)
    last = torch.load(sorted(resumed.checkpoint_dir.glob("*.ckpt"))[-1], weights_only=True)
    assert last["step"] == whole["step"]
    assert_same(last["pipeline"], whole["pipeline"])
    if step < LAST_STEP:
        assert read_json(resumed.base_dir / REPORT_NAME) == read_json(lightgaussian_run.base_dir / REPORT_NAME)


def test_two_runs_have_the_same_bits(lightgaussian_run, teacher_ply, blender_data, tmp_path):
    torch.manual_seed(99)
    again = train(lightgaussian_config(tmp_path, teacher_ply, blender_data))
    assert_same(again.pipeline.state_dict(), lightgaussian_run.pipeline.state_dict())


def test_merging_ends_at_the_same_counts_and_resumes_at_the_same_bits(teacher_ply, blender_data, tmp_path):
    whole = train(lightgaussian_config(tmp_path / "whole", teacher_ply, blender_data, reduction="merge"))
    rows = read_json(whole.base_dir / REPORT_NAME)["stages"]
    assert [row["gaussians"] for row in rows] == [48, 34, 34] + [24] * 6
    assert [row["stage"] for row in rows][1:4:2] == ["merge 1/2", "merge 2/2"]
    config = lightgaussian_config(tmp_path / "resumed", teacher_ply, blender_data, reduction="merge")
    config.load_dir, config.load_step = whole.checkpoint_dir, 3
    resumed = train(config)
    assert_same(resumed.pipeline.state_dict(), whole.pipeline.state_dict())
    assert_same(optimizer_state(resumed), optimizer_state(whole))


def test_stages_without_training_act_all_the_same(teacher_ply, blender_data, tmp_path):
    """Pruning before the first step, and quantisation after the last."""
    config = lightgaussian_config(
        tmp_path, teacher_ply, blender_data, co_adaptation_steps=0, distillation_steps=2, vq_finetune_steps=0
    )
    trainer = train(config)
    assert trainer.step == 1
    model = trainer.pipeline.model
    assert (model.num_points, len(model.codebook)) == (24, 8)
    saved = torch.load(trainer.checkpoint_dir / "step-000000001.ckpt", weights_only=True)["pipeline"]
    assert_same(saved, trainer.pipeline.state_dict())
    names = [row["stage"] for row in read_json(trainer.base_dir / REPORT_NAME)["stages"]]
    assert names == ["teacher", "prune 1/2", "prune 2/2", "SH 3 to 2", "SH 3 to 2, trained", "quantise"]


def test_distillation_brings_the_pictures_to_the_teachers(teacher_ply, blender_data, tmp_path):
    config = lightgaussian_config(
        tmp_path,
        teacher_ply,
        blender_data,
        prune_rounds=0,
        sh_degree=1,
        distillation_steps=60,
        vq_ratio=0.0,
        distillation_target="teacher",
    )
    config.steps_per_save = 1000
    config.optimizers["features_rest"]["optimizer"].lr = 0.02
    pipeline = train(config).pipeline
    cut = pipeline.teacher.with_sh_degree(1)
    background = torch.ones(3)

    def error(scene) -> float:
        views = views_of(orbit())[:-2]
        target = [picture(pipeline.teacher, view, background) for view in views]
        drawn = [picture(scene, view, background) for view in views]
        return sum(float((a - b).square().mean()) for a, b in zip(drawn, target, strict=True))

    assert error(pipeline.model.gaussians()) < 0.8 * error(cut)


# Training through a format --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["sog", "spz", "rcs"])
def encoded_run(request, tmp_path_factory, teacher_ply, blender_data, few_seeds):
    """A run whose last 4 steps, 11 to 14, go through a format; with the function that makes its config."""

    def config(folder):
        return lightgaussian_config(
            folder, teacher_ply, blender_data, encoding=request.param, encoding_steps=4, vq_finetune_steps=1
        )

    return train(config(tmp_path_factory.mktemp(request.param))), config


def test_what_was_trained_is_the_exported_file(encoded_run, tmp_path):
    run, _ = encoded_run
    model, encoding = run.pipeline.model, run.config.pipeline.encoding
    report = json.loads((run.base_dir / REPORT_NAME).read_text())["stages"]
    assert [row["stage"] for row in report[-2:]] == [f"encode as .{encoding}", f"encode as .{encoding}, trained"]
    manifest = export_run(run.base_dir, tmp_path / "asset")
    assert {f"scene.{encoding}", "scene.ply"} <= set(manifest["files"])
    # What the last stage measured is what the file measures, to the last digit: no quantiser was chosen anew.
    decoded = read_splats(tmp_path / "asset" / f"scene.{encoding}")
    for name, trained in model.encoded().tensors.items():
        in_order = [t.detach().reshape(24, -1).numpy() for t in (trained, decoded.tensors[name])]
        np.testing.assert_array_equal(*(rows[np.lexsort(rows.T)] for rows in in_order), err_msg=name)
    assert manifest["quality"]["psnr"] == pytest.approx(report[-1]["psnr"], abs=1e-6)
    shown: Any = compat.load_run(tmp_path / "asset" / "run" / "config.yml")[1].model
    assert torch.equal(shown.gaussians().means, decoded.means)


@pytest.mark.parametrize("step", [10, 11, 13])
def test_a_run_through_a_format_resumes_to_the_same_bits(encoded_run, tmp_path, step):
    run, config = encoded_run
    again = config(tmp_path)
    again.load_dir, again.load_step = run.checkpoint_dir, step
    resumed = train(again)
    assert_same(resumed.pipeline.state_dict(), run.pipeline.state_dict())
    assert_same(optimizer_state(resumed), optimizer_state(run))


def test_a_format_gets_a_palette_where_there_was_no_codebook(teacher_ply, blender_data, tmp_path):
    config = lightgaussian_config(tmp_path, teacher_ply, blender_data, vq_ratio=0.0, encoding="rcs", encoding_steps=2)
    model = train(config).pipeline.model
    assert len(model.codebook) == 24 and bool((model.sh_labels >= 0).all())


# One step -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def make_pipeline(teacher_ply, blender_data, tmp_path):
    """A pipeline as the trainer builds it, with optimizers of our own."""

    def make(**changes):
        config = lightgaussian_config(tmp_path, teacher_ply, blender_data, measure_stages=False, **changes)
        config.pipeline.prepare()
        pipeline = config.pipeline.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)
        pipeline.model.optimizers = {
            name: torch.optim.Adam(params, lr=1.0) for name, params in pipeline.get_param_groups().items()
        }
        return pipeline

    return make


def loss_at(pipeline, step: int) -> tuple[dict, dict]:
    """The losses of a step and the picture that was trained on."""
    seen = {}
    get_loss_dict = pipeline.model.get_loss_dict

    def spy(outputs, batch, metrics):
        seen.update(outputs=outputs, batch=batch)
        return get_loss_dict(outputs, batch, metrics)

    pipeline.model.get_loss_dict = spy
    pipeline.train()
    pipeline.model.step = step
    losses = pipeline.get_train_loss_dict(step)[1]
    del pipeline.model.get_loss_dict
    return losses, seen


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_distillation_trains_on_the_teachers_pictures_from_pseudo_or_training_views(make_pipeline, monkeypatch, share):
    pipeline = make_pipeline(pseudo_view_share=share, distillation_target="teacher")
    drawn = []

    def spy(scene, view, background):
        drawn.append((scene, view, picture(scene, view, background)))
        return drawn[-1][2]

    monkeypatch.setattr(module, "picture", spy)
    cameras = pipeline.datamanager.train_dataset.cameras.camera_to_worlds
    for step in range(6, 10):
        _, seen = loss_at(pipeline, step)
        scene, view, image = drawn[-1]
        assert scene is pipeline.teacher and seen["batch"]["image"] is image
        train_view = views_of(cameras[pipeline.datamanager.image_index(step)][None])[0]
        torch.testing.assert_close(view.viewmat[:3, :3], train_view.viewmat[:3, :3])
        moved = float((view.viewmat[:3, 3] - train_view.viewmat[:3, 3]).norm())
        assert (moved > 1e-3) == (share == 1.0)
    assert len(drawn) == 4


def test_distillation_may_keep_the_photos_of_training_views(make_pipeline, monkeypatch):
    pipeline = make_pipeline(pseudo_view_share=0.5, distillation_target="photo")
    drawn = []
    monkeypatch.setattr(module, "picture", lambda *args: drawn.append(picture(*args)) or drawn[-1])
    kinds = []
    for number in range(20):
        pipeline.config.seed = number
        seen = loss_at(pipeline, 7)[1]
        photo = pipeline.datamanager.cached_train[pipeline.datamanager.image_index(7)]["image"]
        kinds.append(torch.equal(seen["batch"]["image"], photo) if seen["batch"]["image"].shape[-1] == 4 else False)
        assert kinds[-1] or seen["batch"]["image"] is drawn[-1]
    assert len(drawn) == kinds.count(False) and 3 < len(drawn) < 17


def test_other_stages_train_on_the_photos(make_pipeline, monkeypatch):
    pipeline = make_pipeline()
    monkeypatch.setattr(module, "picture", lambda *args: pytest.fail("the teacher was drawn"))
    for step in (0, 4, 11):
        seen = loss_at(pipeline, step)[1]
        photo = pipeline.datamanager.cached_train[pipeline.datamanager.image_index(step)]["image"]
        assert torch.equal(seen["batch"]["image"], photo)


def test_other_stages_may_look_at_pseudo_views_too(make_pipeline, monkeypatch):
    pipeline = make_pipeline(recovery_pseudo_view_share=1.0, pseudo_view_share=0.0, encoding="rcs", encoding_steps=2)
    drawn = []
    monkeypatch.setattr(module, "picture", lambda *args: drawn.append(args) or picture(*args))
    cameras = pipeline.datamanager.train_dataset.cameras.camera_to_worlds
    for step in (0, 4, 11, 13):
        loss_at(pipeline, step)
        scene, view, _ = drawn[-1]
        train_view = views_of(cameras[pipeline.datamanager.image_index(step)][None])[0]
        assert scene is pipeline.teacher
        assert float((view.viewmat[:3, 3] - train_view.viewmat[:3, 3]).norm()) > 1e-3
    loss_at(pipeline, 7)
    assert len(drawn) == 4, "the distillation has a share of its own"


def test_pseudo_views_have_the_stated_sigma_in_units_of_the_cameras_distance(make_pipeline):
    pipeline = make_pipeline(pseudo_view_sigma=0.1)
    c2w = pipeline.datamanager.train_dataset.cameras.camera_to_worlds
    camera = pipeline.datamanager.train_dataset.cameras[0:1]
    moves = []
    batch = {"image": torch.zeros(1, 1, 3)}
    for step in range(400):
        moved, _ = pipeline._taught_view(step, pipeline.datamanager.train_dataset.cameras[0:1], batch, 0.5, False)
        moves.append(moved.camera_to_worlds[0, :, 3] - camera.camera_to_worlds[0, :, 3])
    moves = torch.stack(moves)
    pseudo = moves[(moves != 0).any(dim=1)]
    assert 0.4 < len(pseudo) / len(moves) < 0.6
    distance = c2w[:, :3, 3].norm(dim=1).mean()
    assert pseudo.std(dim=0).tolist() == pytest.approx([0.1 * float(distance)] * 3, rel=0.2)
    again, _ = pipeline._taught_view(7, pipeline.datamanager.train_dataset.cameras[0:1], batch, 0.5, False)
    assert torch.equal(again.camera_to_worlds[0, :, 3] - camera.camera_to_worlds[0, :, 3], moves[7])
    # The dataset's cameras stay where they are.
    assert torch.equal(pipeline.datamanager.train_dataset.cameras.camera_to_worlds, c2w)


@pytest.mark.parametrize("kind", ["squared", "photometric"])
def test_distillation_loss_is_the_one_asked_for(make_pipeline, kind):
    pipeline = make_pipeline(distillation_loss=kind, distillation_target="teacher")
    pipeline.model.cut_sh(0)
    losses, seen = loss_at(pipeline, 7)
    drawn, target = seen["outputs"]["rgb"].detach().double(), seen["batch"]["image"].double()
    if kind == "squared":
        expected = ((drawn - target) ** 2).mean()
    else:
        pair = [image.permute(2, 0, 1)[None] for image in (target, drawn)]
        expected = 0.8 * (drawn - target).abs().mean() + 0.2 * (1 - ssim(*pair, data_range=1.0))
    assert float(losses["main_loss"]) == pytest.approx(float(expected), rel=1e-3) and expected > 1e-4


def test_each_action_happens_once_at_its_step(make_pipeline, monkeypatch):
    pipeline = make_pipeline()
    acts = []
    monkeypatch.setattr(type(pipeline), "act", lambda self, stage: acts.append((stage.name, step)))
    for step in range(13):
        pipeline.begin_step(step)
        pipeline.begin_step(step)
        pipeline.finish_step(step)
    assert acts == [("prune 1/2", 0), ("prune 2/2", 3), ("SH 3 to 2", 6), ("quantise", 10)]


def test_rates_fall_within_each_stage_and_start_anew_in_the_next(make_pipeline, monkeypatch):
    pipeline = make_pipeline(lr_final_factor=0.01)
    monkeypatch.setattr(type(pipeline), "act", lambda self, stage: None)
    rates = []
    for step in range(13):
        pipeline.begin_step(step)
        rates.append({group["lr"] for o in pipeline.model.optimizers.values() for group in o.param_groups})
    expected = [0.01 ** (k / steps) for steps in (3, 3, 4, 3) for k in range(steps)]
    assert [rate.pop() for rate in rates] == pytest.approx(expected)


# Teachers and datasets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["run", "config", "checkpoint"])
def test_without_data_the_dataset_of_the_teachers_run_is_used_and_saved(form, teacher_run, blender_data, tmp_path):
    checkpoint = sorted((teacher_run / "nerfstudio_models").glob("*.ckpt"))[-1]
    paths = {"run": teacher_run, "config": teacher_run / "config.yml", "checkpoint": checkpoint}
    config = lightgaussian_config(tmp_path, paths[form], None)
    config.set_timestamp()
    assert type(config.pipeline.datamanager.dataparser).__name__ == "BlenderDataParserConfig"
    assert config.pipeline.datamanager.data == blender_data
    pipeline = config.pipeline.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)
    assert pipeline.model.num_points == len(pipeline.teacher) == len(load_splats(teacher_run))
    assert torch.equal(pipeline.model.means.detach(), load_splats(teacher_run).means)


def test_data_given_by_the_user_wins(teacher_run, tmp_path):
    config = lightgaussian_config(tmp_path, teacher_run, None)
    config.pipeline.datamanager.data = Path("elsewhere")
    adopt_dataset(config.pipeline, "lightgaussian")
    assert config.pipeline.datamanager.data == Path("elsewhere")
    assert type(config.pipeline.datamanager.dataparser).__name__ == "NerfstudioDataParserConfig"


def test_no_teacher_or_one_that_knows_no_dataset_is_one_line(teacher_ply, tmp_path):
    with pytest.raises(InputError, match=r"^.*--pipeline.teacher.*$"):
        lightgaussian_config(tmp_path, None, None).set_timestamp()
    with pytest.raises(InputError, match=r"^teacher .*teacher.ply: knows no dataset; give one with --data"):
        lightgaussian_config(tmp_path, teacher_ply, None).set_timestamp()


@pytest.mark.parametrize(("field", "value"), [("prune_ratio", 1.0), ("sh_degree", 4), ("vq_decay", -0.1)])
def test_bad_settings_stop_before_training_with_their_name(make_pipeline, field, value):
    with pytest.raises(InputError, match=f"{field}: got {value}, expected"):
        make_pipeline(**{field: value})


# wandb ----------------------------------------------------------------------------------------------------------------


def test_asset_is_logged_to_wandb_offline(monkeypatch, teacher_ply, blender_data, tmp_path):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(metrics, "_networks", {})
    monkeypatch.setattr(metrics, "_failures", {"alex": "no network"})
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    logged = []
    log_artifact = wandb.sdk.wandb_run.Run.log_artifact

    def spy(self, artifact, *args, **kwargs):
        logged.append(artifact)
        return log_artifact(self, artifact, *args, **kwargs)

    monkeypatch.setattr(wandb.sdk.wandb_run.Run, "log_artifact", spy)
    config = lightgaussian_config(
        tmp_path, teacher_ply, blender_data, log_artifact=True, prune_rounds=1, co_adaptation_steps=1,
        distillation_steps=0, vq_finetune_steps=0,
    )  # fmt: skip
    config.vis = "wandb"
    try:
        trainer = train(config)
    finally:
        wandb.finish()
    entries = logged[0].manifest.entries
    assert logged[0].type == "lightgaussian-asset" and len(logged) == 1
    assert {"scene.sog", "scene.ply", "manifest.json", REPORT_NAME, "run/config.yml"} <= set(entries)
    asset = trainer.base_dir / "asset"
    assert entries["scene.sog"].size == (asset / "scene.sog").stat().st_size
    # What was exported is the finished run.
    assert len(load_splats(asset / "scene.ply")) == trainer.pipeline.model.num_points == 24


def test_an_artifact_without_wandb_is_refused_before_training(make_pipeline, lightgaussian_run):
    pipeline = make_pipeline(log_artifact=True)
    attributes = TrainingCallbackAttributes(
        optimizers=lightgaussian_run.optimizers,
        grad_scaler=lightgaussian_run.grad_scaler,
        pipeline=pipeline,
        trainer=lightgaussian_run,
    )
    with pytest.raises(InputError, match="--vis wandb"):
        pipeline.get_training_callbacks(attributes)
